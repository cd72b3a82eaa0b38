#!/bin/sh
# Makes a virtual environment of a packed one, in the job's sandbox, once:
#
#     venv.sh FILE FOLDER
#
# FILE is a PEX, which brings its own tools and looks for a Python that suits it.

[ -x "$2/bin/python" ] && exit 0
chmod +x "$1" 2>/dev/null
# Packages are unpacked there first and then linked; a job may have no home.
PEX_ROOT=$2.pex PEX_TOOLS=1 /usr/bin/env python3 "$1" venv "$2"
status=$?
rm -rf "$2.pex"
if [ "$status" -ne 0 ]; then
    echo "condorctl: this node cannot unpack the Python environment $1" >&2
fi
exit "$status"
