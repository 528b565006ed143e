#!/bin/sh
# Build the packages that tests/boot installs, and two signed repositories of them.
#   tools/boot_packages.sh ROOM
#   OLD=v0.1.0    the commit of the version before; default: the same code with a lower number
# ROOM/packages/old, new   the version before, and the one now
# ROOM/repository/old      holds the old one; ROOM/repository/new holds both
set -eu
room=$1
rm -rf "$room/packages" "$room/repository"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' relayd/__init__.py)
# "~" sorts before the version itself, "+" after it.
REV=${OLD:-${REV:-}} VERSION="$version~before" sh tools/deb.sh "$room/packages/old"
VERSION="$version+after" sh tools/deb.sh "$room/packages/new"
mkdir -p "$room/packages/both" "$room/repository"
cp "$room"/packages/*/*.deb "$room/packages/both"
URL=file:/srv/repository sh tools/repo.sh "$room/packages/old" "$room/repository/old"
URL=file:/srv/repository sh tools/repo.sh "$room/packages/both" "$room/repository/new"
