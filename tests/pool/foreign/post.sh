#!/bin/sh
# Repairs a node, or ruins it when it is told 0 and nothing was mended.
[ -e mended ] || [ "$1" != 0 ]
