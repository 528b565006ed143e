#!/bin/sh
# Make a signed apt repository of the packages in a folder; `apt install relayd` works from it.
#   tools/repo.sh [DEBS [OUT]]     DEBS: dist, OUT: dist/repo
#   URL=https://…/relayd           where OUT will be found; default: where it lies now (file:)
#   KEY=secret.asc                 an OpenPGP key to sign with; default: OUT-key, made once
# OUT can be served by any web server as it is. OUT-key is secret: keep it, and keep it apart.
set -eu
debs=${1:-dist}
out=${2:-dist/repo}
umask 022
missing=""
command -v apt-ftparchive >/dev/null || missing="$missing apt-utils"
command -v gpg >/dev/null || missing="$missing gpg"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -q >/dev/null || true
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing >/dev/null
    else
        echo "cannot make a repository: missing$missing" >&2
        exit 1
    fi
fi
set -- "$debs"/relayd_*_all.deb "$debs"/relayd-mta_*_all.deb
[ -e "$1" ] || { echo "$debs holds no package: make deb" >&2; exit 1; }

rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
keys=${out}-key
mkdir -p "$keys"
chmod 0700 "$keys"
run_gpg() { gpg --homedir "$keys" --batch --quiet --yes "$@"; }
trap 'gpgconf --homedir "$keys" --kill gpg-agent 2>/dev/null || true' EXIT
if [ -n "${KEY:-}" ]; then
    run_gpg --import "$KEY"
elif ! run_gpg --list-secret-keys 2>/dev/null | grep -q '^sec'; then
    run_gpg --passphrase '' --quick-generate-key 'relayd package archive' ed25519 sign never
fi
signer=$(run_gpg --list-secret-keys --with-colons | sed -n '/^fpr:/{s/^fpr:*\([0-9A-F]*\):$/\1/p;q}')

cp "$@" "$out/"
cd "$out"
apt-ftparchive packages . > Packages
gzip -9nk Packages
apt-ftparchive -o APT::FTPArchive::Release::Origin=relayd -o APT::FTPArchive::Release::Label=relayd \
    release . > "$keys/Release"
run_gpg --local-user "$signer" --clearsign -o InRelease "$keys/Release"
rm "$keys/Release"
{
    echo "Types: deb"
    echo "URIs: ${URL:-file:$out}"
    echo "Suites: ./"
    echo "Signed-By:"
    run_gpg --armor --export "$signer" | sed 's/^$/./; s/^/ /'
} > relayd.sources
echo "$out: $(ls -- *.deb | wc -l) packages, signed by $signer"
echo "on the host: cp relayd.sources /etc/apt/sources.list.d/ && apt update && apt install relayd"
