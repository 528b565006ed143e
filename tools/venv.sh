#!/bin/sh
# Make a virtual environment with relayd and its tools in it: tools/venv.sh PYTHON [.venv]
# Debian's python3 has no ensurepip without python3-venv: install that when we may, else say the
# one line that mends it.
set -eu
python=$1
venv=${2:-.venv}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "relayd needs Python 3.11 or later as '$python'; set PYTHON=/path/to/python3" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy python3-venv
    elif command -v sudo >/dev/null && command -v apt-get >/dev/null; then
        sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy python3-venv
    else
        echo "Python's venv module is missing: run 'apt install python3-venv' first" >&2
        exit 1
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --use-pep517 -e '.[dev]'
