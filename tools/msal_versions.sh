#!/bin/sh
# Run tests/identity_msal against the MSAL of Debian 12, of Debian 13 and the newest, each in an
# environment of its own with nothing else of ours in it; they are kept for the next time.
#   tools/msal_versions.sh [FOLDER]     FOLDER: where they are kept, build/msal by default
# Exit: 0 all passed; 1 a test failed; 75 a package could not be had (no network).
set -u
cd "$(dirname "$0")/.." || exit 1
folder=${1:-build/msal}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder" || exit 1

run() {
    name=$1; shift
    bin=$folder/$name/bin
    if [ ! -e "$folder/$name/.ready" ]; then
        "$python" -m venv --clear "$folder/$name" \
            && "$bin/python" -m pip install -q --disable-pip-version-check pytest "$@" >&2 \
            && touch "$folder/$name/.ready" \
            || { echo "msal $name: cannot be installed here" >&2; exit 75; }
    fi
    # The house's pytest settings name plugins that are not in there.
    "$bin/python" -c 'import msal; print("msal", msal.__version__)'
    "$bin/python" -m pytest -q -c /dev/null --rootdir . -p no:cacheprovider \
        -o pythonpath=. --import-mode=importlib -W error tests/identity_msal || failed=1
}

failed=0
run debian12 msal==1.21.0 requests==2.28.1 urllib3==1.26.12 cryptography==38.0.4
run debian13 msal==1.32.3 requests==2.32.3 cryptography==43.0.0
run newest msal requests cryptography
exit $failed
