#!/bin/sh
# Ends as the first line of the file "mended" says, if there is one, else as it is told.
exit "$(cat mended 2>/dev/null || echo "$1")"
