#!/bin/sh
# Build relayd_*_all.deb and relayd-mta_*_all.deb.
#   tools/deb.sh [OUT]          OUT: dist
#   VERSION=0.2.0~test1         another version than the changelog's; `relayd version` says it too
#   REV=HEAD                    a commit, instead of the files as they are now
# The same files give the same bytes, wherever it is built.
set -eu
out=${1:-dist}
mkdir -p "$out"
out=$(cd "$out" && pwd)
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C.UTF-8
umask 022
cd "$(dirname "$0")/.."

command -v dpkg-checkbuilddeps >/dev/null || missing=dpkg-dev
if [ -z "${missing:-}" ]; then
    missing=$(dpkg-checkbuilddeps packaging/debian/control 2>&1 | sed -n 's/.*dependencies: //p')
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "cannot build a package: missing $missing" >&2
        exit 1
    fi
    echo "installing: $missing" >&2
    apt-get update -q >/dev/null || true
    names=$(printf '%s' "$missing" | sed 's/([^)]*)//g; s/debhelper-compat/debhelper/; s/:any//g')
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        dpkg-dev fakeroot $names >/dev/null
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/relayd
mkdir "$tree"
if [ -n "${REV:-}" ]; then
    git archive "$REV" | tar -x -C "$tree"
elif git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z | xargs -0 sh -c 'for f; do [ -f "$f" ] && printf "%s\0" "$f"; done' sh \
        | tar --null -T - -c | tar -x -C "$tree"
else
    tar --exclude=./.venv --exclude=./dist --exclude=./build -c . | tar -x -C "$tree"
fi
# Nothing of the checkout's modes or times may reach the package.
find "$tree" -type d -exec chmod 0755 {} + -o -type f -perm /111 -exec chmod 0755 {} + \
    -o -type f -exec chmod 0644 {} +
cp -a "$tree/packaging/debian" "$tree/debian"

cd "$tree"
of_code=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' relayd/__init__.py)
of_log=$(dpkg-parsechangelog -S Version)
if [ "$of_code" != "$of_log" ]; then
    echo "relayd/__init__.py says $of_code, packaging/debian/changelog $of_log" >&2
    exit 1
fi
if [ -n "${VERSION:-}" ] && [ "$VERSION" != "$of_log" ]; then
    {
        printf 'relayd (%s) UNRELEASED; urgency=medium\n\n  * Built as %s.\n\n' "$VERSION" "$VERSION"
        sed -n '/^ -- /{p;q}' debian/changelog
        echo
        cat debian/changelog
    } > "$work/changelog"
    cp "$work/changelog" debian/changelog
    sed -i "s/^__version__ = .*/__version__ = \"$VERSION\"/" relayd/__init__.py
fi

if ! dpkg-buildpackage -us -uc -b > "$work/log" 2>&1; then
    tail -n 40 "$work/log" >&2
    exit 1
fi
cp "$work"/relayd*.deb "$work"/relayd*.buildinfo "$work"/relayd*.changes "$out/"
for deb in "$work"/*.deb; do
    printf '%s  %s octets\n' "$out/${deb##*/}" "$(stat -c %s "$deb")"
done
