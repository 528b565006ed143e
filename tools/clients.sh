#!/bin/sh
# Install the foreign mail programs that the tests talk to relayd with, where that is allowed;
# elsewhere their tests say what they miss and are skipped.
#   tools/clients.sh          swaks, msmtp, s-nail, curl, strace, and Debian's own python3-*
#                             packages, with which the demo is run once more; promtool; what
#                             man pages and completion are tried with (groff, mandoc, zsh, fish)
#   tools/clients.sh bench    also postfix (smtp-source, smtp-sink) and nginx with echo
set -eu
# promtool, which proves the alert rules, comes in one package with the Prometheus server. Only
# the tool is taken out of it, next to Python: no server is installed, and no root is needed.
promtool() {
    [ ! -x .venv/bin/promtool ] && [ -d .venv/bin ] || return 0
    if [ -x /usr/bin/promtool ] || ! command -v apt-get >/dev/null; then return 0; fi
    folder=$(mktemp -d)
    if (cd "$folder" && apt-get download -q prometheus >/dev/null 2>&1 && dpkg-deb -x prometheus_*.deb .); then
        cp "$folder/usr/bin/promtool" .venv/bin/promtool && echo "installed: promtool"
    else
        echo "not installed: promtool (apt cannot get package prometheus)" >&2
    fi
    rm -rf "$folder"
}
trap promtool EXIT  # after apt's lists were renewed, if they are
want="swaks msmtp s-nail curl strace man-db groff-base mandoc zsh fish
python3-argon2 python3-cryptography python3-dkim python3-gevent python3-msal
python3-prometheus-client python3-requests python3-setproctitle python3-structlog python3-urllib3"
want=$(echo $want)
[ "${1:-}" = bench ] && want="$want postfix nginx-light libnginx-mod-http-echo"
missing=""
for package in $want; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "not installed here:$missing" >&2; exit 0; }
sudo=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=sudo
    else echo "not installed (needs root):$missing" >&2; exit 0; fi
fi
echo "installing:$missing"
# The programs are wanted, not their services: a failed start in a container is no matter.
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -q >/dev/null || true
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends \
    $missing >/dev/null || echo "could not install:$missing" >&2
