#!/bin/sh
# Look hard at the packages: not part of `make test`, it takes minutes and installs its own tools.
#   tools/deb_check.sh [SUITE ...]      default: bookworm trixie
# Builds twice and compares; lintian; the unit's exposure; AppArmor's and fail2ban's own checkers;
# in a chroot of each suite piuparts and autopkgtest. What cannot be done here is told as skipped.
set -u
cd "$(dirname "$0")/.."
suites=${*:-bookworm trixie}
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH LC_ALL=C.UTF-8
# A proxy's or a test machine's certificates are not the product's.
unset REQUESTS_CA_BUNDLE CURL_CA_BUNDLE SSL_CERT_FILE SSL_CERT_DIR
work=$(mktemp -d)
clean() {
    for proc in "$work"/*/proc; do
        mountpoint -q "$proc" && umount "$proc"
    done
    rm -rf "$work"
}
trap clean EXIT
chmod 0755 "$work"
failed=0

step() {  # step NAME COMMAND...: run it, print one line; its output only when it fails
    name=$1
    shift
    started=$(date +%s)
    if "$@" > "$work/said" 2>&1; then
        verdict=ok
    else
        verdict=FAILED
        failed=1
    fi
    printf '%-34s %-8s %4s s\n' "$name" "$verdict" "$(($(date +%s) - started))"
    [ $verdict = ok ] || tail -n 60 "$work/said"
}
skip() { printf '%-34s %-8s %s\n' "$1" skipped "$2"; }
has() { command -v "$1" > /dev/null; }

tools="lintian piuparts autopkgtest mmdebstrap apparmor fail2ban systemd"
if [ "$(id -u)" = 0 ] && has apt-get; then
    lacking=""
    for package in $tools; do
        dpkg-query -W -f '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || lacking="$lacking $package"
    done
    if [ -n "$lacking" ]; then
        echo "installing:$lacking"
        apt-get update -q > /dev/null 2>&1
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -qy --no-install-recommends \
            $lacking > /dev/null 2>&1 || echo "could not install:$lacking"
    fi
fi

build_twice() {
    sh tools/deb.sh "$work/one" || return 1
    (umask 077 && TZ=Pacific/Kiritimati sh tools/deb.sh "$work/a much longer name/two") || return 1
    for deb in "$work"/one/*.deb; do
        cmp "$deb" "$work/a much longer name/two/${deb##*/}" || return 1
    done
}
step "two builds are the same" build_twice
if ! ls "$work"/one/*.deb > /dev/null 2>&1; then
    echo "no package, nothing more to look at" >&2
    exit 1
fi

run_lintian() {
    lintian --allow-root -I --pedantic --fail-on error,warning "$work"/one/*.changes > "$work/tags"
    code=$?
    cat "$work/tags"
    # What is less than a warning has its answer in packaging/debian/README.md, by the tag's name.
    for tag in $(sed -n 's/^[IP]: [a-z-]*\( source\)\{0,1\}: \([a-z0-9.-]*\).*/\2/p' "$work/tags" | sort -u); do
        grep -q "\`$tag\`" packaging/debian/README.md || { echo "not answered: $tag"; code=1; }
    done
    return $code
}
if has lintian; then step "lintian, every tag answered" run_lintian; else skip lintian "not installed"; fi

exposure() {
    for unit in relayd.service relayd@.service; do
        systemd-analyze security --offline=true --threshold=15 "systemd/$unit" || return 1
    done
}
if has systemd-analyze; then step "exposure of the units <= 1.5" exposure; else skip exposure "no systemd-analyze"; fi

if has apparmor_parser; then
    step "AppArmor profile" apparmor_parser -Q -K packaging/debian/etc/apparmor
else
    skip "AppArmor profile" "not installed"
fi
fail2ban_finds_a_guess() {
    line='auth.failed level=warning session=a-1 ip=192.0.2.7 device="" user=x method=plain'
    line="$line reason=\"wrong password\" process=\"worker 1\" ts=2026-11-20T10:00:00.123Z"
    fail2ban-regex -o ip "$line" packaging/debian/etc/fail2ban-filter | grep -qx 192.0.2.7
}
if has fail2ban-regex; then
    step "fail2ban filter" fail2ban_finds_a_guess
else
    skip "fail2ban filter" "not installed"
fi
if ! has mmdebstrap || [ "$(id -u)" != 0 ]; then
    skip "piuparts, autopkgtest" "need root and mmdebstrap"
    exit $failed
fi

sources() {  # the host's own mirror, for another suite
    cat /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2> /dev/null |
        grep -q '^Types:' && cat /etc/apt/sources.list.d/debian.sources 2> /dev/null || cat /etc/apt/sources.list
}
here=$(. /etc/os-release && echo "$VERSION_CODENAME")
make_chroot() {
    sources | sed "s/$here/$1/g" > "$work/$1.sources"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,netbase,systemd "$1" "$work/$1" - < "$work/$1.sources" &&
        cp /etc/hosts "$work/$1/etc/hosts" &&
        { cp /etc/apt/apt.conf.d/99* "$work/$1/etc/apt/apt.conf.d/" 2> /dev/null || true; } &&
        chroot "$work/$1" apt-get update -q
}
for suite in $suites; do
    step "$suite: chroot" make_chroot "$suite"
    [ -x "$work/$suite/usr/bin/apt-get" ] || continue
    if has piuparts; then
        cp -a "$work/$suite" "$work/$suite-piuparts"
        # tmp.ci is debconf's own: apt makes it when a dependency has questions.
        step "$suite: piuparts" piuparts --existing-chroot "$work/$suite-piuparts" -d "$suite" \
            --ignore-regex='^/var/cache/debconf/tmp\.ci' "$work"/one/*.deb
    else
        skip "$suite: piuparts" "not installed"
    fi
    if has autopkgtest; then
        rm -rf "$work/tree"
        mkdir -p "$work/tree"
        git ls-files -z packaging | tar --null -T - -c | tar -x -C "$work/tree"
        mv "$work/tree/packaging/debian" "$work/tree/debian"
        # The relay needs /proc, which autopkgtest's chroot does not give.
        mount -t proc proc "$work/$suite/proc"
        step "$suite: autopkgtest" autopkgtest --apt-upgrade "$work"/one/*.deb "$work/tree/" -- \
            chroot "$work/$suite"
    else
        skip "$suite: autopkgtest" "not installed"
    fi
done
exit $failed
