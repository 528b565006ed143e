#!/bin/sh
# Make the trees of one suite that tests/boot boots copies of.
#   tools/boot_tree.sh SUITE ROOM
# ROOM/SUITE-KEY/bare   systemd, and everything relayd needs in apt's cache: a guest needs no network
# ROOM/SUITE-KEY/full   the same with it installed, but relayd
# KEY changes with what the package depends on, and with this file.
set -eu
suite=$1 room=$2
deb=$(ls "$room"/packages/new/relayd_*_all.deb)
key=$({ dpkg-deb -f "$deb" Depends Recommends; cat "$0"; } | sha256sum | cut -c 1-12)
place=$room/$suite-$key
ln -sfn "$suite-$key" "$room/$suite"
[ -e "$place/full" ] && exit
for old in "$room/$suite"-*; do
    [ "$old" = "$place" ] || rm -rf "$old"
done
rm -rf "$place"
mkdir -p "$place"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
PATH=/usr/sbin:/usr/bin:/sbin:/bin

mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,netbase --format=directory \
    "$suite" "$place/part" "${MIRROR:-http://deb.debian.org/debian}"
in_tree() { chroot "$place/part" "$@"; }
cp -L /etc/resolv.conf "$place/part/etc/resolv.conf"
# apt must not throw the packages away.
echo 'Binary::apt::APT::Keep-Downloaded-Packages "true";' > "$place/part/etc/apt/apt.conf.d/90keep"
cp "$deb" "$place/part/opt/relayd.deb"
in_tree apt-get update -q
in_tree apt-get install -qy --download-only /opt/relayd.deb
# Somebody who holds port 25.
in_tree apt-get install -qy --download-only --no-install-recommends exim4-daemon-light
rm "$place/part/opt/relayd.deb" "$place/part/etc/resolv.conf"
echo guest > "$place/part/etc/hostname"
echo 127.0.0.1 localhost guest > "$place/part/etc/hosts"
echo ::1 localhost >> "$place/part/etc/hosts"

cp -a "$place/part" "$place/whole"
wanted=$(dpkg-deb -f "$deb" Depends | tr ',' '\n' | sed 's/|.*//; s/(.*//; s/:any//; s/ //g' | sort -u)
# shellcheck disable=SC2086
chroot "$place/whole" apt-get install -qy --no-download ca-certificates $wanted
rm -rf "$place/whole"/var/cache/apt/archives/*.deb
mv "$place/part" "$place/bare"
mv "$place/whole" "$place/full"
