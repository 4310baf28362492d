#!/bin/bash
# The Debian package in a clean Debian 12: built twice, checked by lintian, installed, upgraded, removed and purged in a chroot.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-deb
. unit/guest/pack.sh
. unit/deb/debian.sh

begin
need mmdebstrap lintian systemd dpkg-dev
build_packages

lintian --allow-root --fail-on warning,error "$second" || fail "lintian has complaints"
check "lintian has nothing to say"

exposure=$(systemd-analyze security --offline=yes --no-pager packaging/systemd/synproxy@.service | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
awk "BEGIN { exit !($exposure <= 2.5) }" || fail "systemd-analyze security says $exposure"
while read -r marked; do
    grep -qF "| \`${marked//|/\\|}\` |" docs/security.md || fail "docs/security.md does not say why $marked is needed"
done < <(systemd-analyze security --offline=yes --no-pager packaging/systemd/synproxy@.service | sed -n 's/^✗ \([^ ]*\) .*/\1/p')
check "systemd-analyze security says $exposure, and each line that is marked has its reason"

unpack_debian
# Manuals may have been left out of so small a system.
rm -f "$root"/etc/dpkg/dpkg.cfg.d/*exclude*
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
# What dpkg says matters only if it fails.
change() { inside dpkg "$@" </dev/null >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "dpkg $1 fails"; }; }
# Devices that the package's scripts and the programs open.
for device in null:1:3 zero:1:5 urandom:1:9; do
    IFS=: read -r node major minor <<<"$device"
    [ -e "$root/dev/$node" ] || mknod -m 666 "$root/dev/$node" c "$major" "$minor"
done

change -i /packages/first.deb
inside dpkg -s synproxy | grep -q '^Status: install ok installed' || fail "it is not installed"
check "installs"
[ "$(inside synproxy --version)" = "synproxy $former" ] || fail "the program does not start, or is not of version $former"
for tool in synctl synflood honest replay tcpsendrecv netmapsend ctrlperf; do
    inside "$tool" --help >/dev/null || fail "$tool does not start"
done
check "every program starts"
inside getent passwd synproxy | grep -q '/usr/sbin/nologin$' || fail "there is no user synproxy without a login"
check "has a user of its own"
inside synproxy --check-config /usr/share/doc/synproxy/examples/conf.txt >/dev/null || fail "the sample is refused"
check "accepts the sample configuration"
for page in synproxy synctl replay; do
    inside sh -c "man -w $page >/dev/null" || fail "there is no man page of $page"
done
inside bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader synctl; complete -p synctl' >/dev/null \
    || fail "the shell completes nothing"
check "has man pages and completions"
# Only what the unit says is judged: nothing of its own is run here.
inside systemd-analyze verify --man=no /lib/systemd/system/synproxy@.service 2>&1 | grep . && fail "the unit has faults"
check "has a unit without faults"

echo 'synproxyconf = { };' >"$root/etc/synproxy/edge.conf"
printf 'LAN=eth0\nWAN=eth1\n' >"$root/etc/synproxy/edge.env"
inside systemctl enable synproxy@edge >/dev/null 2>&1 || fail "the unit cannot be enabled"
change -i /packages/second.deb
inside dpkg -s synproxy | grep -qx "Version: $version" || fail "it is not upgraded"
[ "$(inside synproxy --version)" = "synproxy $version" ] || fail "the program is not of version $version"
[ -s "$root/etc/synproxy/edge.conf" ] && [ -L "$root/etc/systemd/system/multi-user.target.wants/synproxy@edge.service" ] \
    || fail "the upgrade has lost a configuration"
check "upgrades, and the configuration stays"

change -r synproxy
[ ! -e "$root/usr/sbin/synproxy" ] && [ -s "$root/etc/synproxy/edge.conf" ] || fail "removing leaves programs, or takes configurations"
check "is removed, and the operator's files stay"
change -P synproxy
left=$(find "$root" -xdev -path "$root/packages" -prune -o -name '*synproxy*' -print | grep -v -e /var/log -e /etc/synproxy -e multi-user.target.wants || true)
[ -z "$left" ] || fail "purging leaves $left"
check "is purged, and leaves nothing of its own"
say "$checks checks passed"
