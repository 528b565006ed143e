#!/bin/sh
# Prove the package on booted Debian: real systemd under systemd-nspawn, one guest at a time for
# each suite, both suites side by side. Prints one line for each check at the end.
#   tools/boot.sh [pytest arguments]     -k reload
#   SUITES="bookworm trixie"    which
#   MIRROR=http://…/debian      where the trees come from
# Trees, packages and results are kept in build/boot; `make clean` removes them. What is missing
# (root, programs, the network for the first trees) is told, and the checks are skipped.
set -u
cd "$(dirname "$0")/.."
SUITES=${SUITES:-bookworm trixie}
room=$PWD/build/boot
python=.venv/bin/python
umask 022

skip() {
    BOOT_SKIP="$1" $python -m pytest -q -rs tests/boot
    exit
}

[ "$(id -u)" = 0 ] || skip "needs root, for systemd-nspawn"
want=""
for pair in systemd-nspawn=systemd-container mmdebstrap=mmdebstrap apt-ftparchive=apt-utils gpg=gpg \
    ip=iproute2 smtp-source=postfix unshare=util-linux; do
    command -v "${pair%%=*}" >/dev/null || want="$want ${pair#*=}"
done
if [ -n "$want" ]; then
    command -v apt-get >/dev/null || skip "not installed:$want"
    echo "installing:$want"
    apt-get update -q >/dev/null || true
    # Postfix is wanted for smtp-source alone: RUNLEVEL keeps its service from starting.
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends $want >/dev/null \
        || skip "could not install:$want"
fi
unshare --net true 2>/dev/null || skip "no network namespaces here"
mkdir -p "$room"
rm -f "$room"/run-*.log "$room"/results-*

if ! sh tools/boot_packages.sh "$room" > "$room/packages.log" 2>&1; then
    dpkg-checkbuilddeps packaging/debian/control 2>/dev/null || skip "what builds the package cannot be installed"
    cat "$room/packages.log" >&2
    exit 1
fi
making=""
for suite in $SUITES; do
    sh tools/boot_tree.sh "$suite" "$room" > "$room/tree-$suite.log" 2>&1 &
    making="$making $!"
done
made=yes
for pid in $making; do wait "$pid" || made=""; done
if [ -z "$made" ]; then
    tail -n 5 "$room"/tree-*.log >&2
    skip "the trees cannot be made: is there a network?"
fi

running=""
for suite in $SUITES; do
    # Its own network: port 25 is free there, and nothing of it reaches anybody.
    # A shell starts what it does not wait for deaf to SIGINT, which ends pytest in order.
    BOOT_ROOM=$room BOOT_SUITE=$suite unshare --net env --default-signal=INT,QUIT sh -c \
        'ip link set lo up && exec "$@"' sh \
        $python -m pytest -p no:randomly -p no:cacheprovider tests/boot "$@" > "$room/run-$suite.log" 2>&1 &
    running="$running $suite=$!"
done
trap 'for one in $running; do kill -INT "${one#*=}" 2>/dev/null; done; wait; exit 130' INT TERM
result=0
for one in $running; do
    if ! wait "${one#*=}"; then
        result=1
        cat "$room/run-${one%%=*}.log"
    fi
done
echo
for suite in $SUITES; do cat "$room/results-$suite" 2>/dev/null; done
echo
for suite in $SUITES; do echo "$suite: $(tail -n 1 "$room/run-$suite.log" | tr -d =)"; done
exit $result
