#!/bin/sh
# Build the packages that tests/boot installs, and two signed repositories of them.
#   tools/boot_packages.sh ROOM
# ROOM/packages/old, new   the same code, as the version before and as the one now
# ROOM/repository/old      holds the old one; ROOM/repository/new holds both
set -eu
room=$1
rm -rf "$room/packages" "$room/repository"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' relayd/__init__.py)
# A "~" sorts before the version itself, "+" after it.
VERSION="$version~before" sh tools/deb.sh "$room/packages/old"
VERSION="$version+after" sh tools/deb.sh "$room/packages/new"

keys=$room/keys
if [ ! -e "$keys/public.asc" ]; then
    mkdir -p -m 0700 "$keys"
    gpg --homedir "$keys" --batch --quiet --passphrase '' --quick-generate-key relayd-tests ed25519 sign never
    gpg --homedir "$keys" --armor --export > "$keys/public.asc"
    gpgconf --homedir "$keys" --kill gpg-agent
fi
for which in old new; do
    place=$room/repository/$which
    mkdir -p "$place"
    cp "$room"/packages/old/*.deb "$keys/public.asc" "$place"
    [ $which = old ] || cp "$room"/packages/new/*.deb "$place"
    (
        cd "$place"
        apt-ftparchive packages . > Packages
        apt-ftparchive -o APT::FTPArchive::Release::Origin=relayd release . > ../Release
        gpg --homedir "$keys" --batch --quiet --yes --clearsign -o InRelease ../Release
        rm ../Release
    )
done
gpgconf --homedir "$keys" --kill gpg-agent
