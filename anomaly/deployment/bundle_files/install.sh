#!/bin/sh
# Installs this bundle into a new virtual environment, without a network.
#     sh install.sh VENV
#     PYTHON=python3.11 sh install.sh VENV        with another interpreter
set -eu
if [ $# -ne 1 ]; then
    echo "usage: sh install.sh VENV      VENV is the folder of the new virtual environment" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}
"$python" -I "$here/check.py" --files
"$python" -I -m venv "$1"
"$1/bin/python" -I -m pip --isolated --disable-pip-version-check install --quiet \
    --no-index --find-links "$here/wheels" --requirement "$here/requirements.txt"
"$1/bin/python" -I "$here/check.py"
echo "$1/bin/anomaly --help"
