#!/bin/bash
# The package under a real systemd: Debian 12, with systemd as the first process of namespaces of its own (processes, mounts, control groups,
# network, host name), between a client and a server in network namespaces. The kernel is this machine's, so that it takes no minutes as in an emulated guest, and AF_XDP,
# seccomp filters, capabilities and the watchdog are real. What systemd could change of the machine is read-only to it or taken from it.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-systemd
. unit/guest/pack.sh
. unit/deb/debian.sh

begin
need mmdebstrap dpkg-dev iproute2 ethtool util-linux iputils-ping procps
groups=$(findmnt -n -t cgroup2 -o TARGET | head -1)
[ -n "$groups" ] || ignored "systemd needs control groups of version 2, and none are mounted"
group=$groups/spx$$
netns() { echo "spx$$-$1"; }

# Ends what runs in the namespaces, which go with their last process, and removes what has a name.
holder=
finish() {
    local status=$? place
    trap - EXIT
    set +e
    if [ "$status" -ne 0 ] && [ "$status" -ne 77 ] && [ -n "${one:-}" ]; then
        { cat "$work/console"; inside journalctl --no-pager -n 40 -u synproxy@edge; } >&2
    fi
    if [ -n "$holder" ]; then kill -KILL "$holder" 2>/dev/null; wait "$holder" 2>/dev/null; fi
    for place in box client server; do ip netns del "$(netns $place)" 2>/dev/null; done
    # They become empty when the last process there is gone.
    for _ in $(seq 50); do
        [ -d "$group" ] || break
        find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null
        sleep 0.1
    done
    (exit "$status")
    undo
}
trap finish EXIT

build_packages
unpack_debian
# What belongs to a machine of its own, and what only waits.
for unit in systemd-sysctl systemd-modules-load systemd-udevd systemd-random-seed systemd-remount-fs systemd-timesyncd systemd-networkd systemd-logind getty@tty1 console-getty systemd-binfmt systemd-hwdb-update; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
# A service that the doctor wants gone, for the command that it gives.
cat >"$root/etc/systemd/system/irqbalance.service" <<'UNIT'
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
UNIT

# Client and server, and between them the machine with systemd: its ports eth0 (LAN) and eth1 (WAN).
for place in box client server; do ip netns add "$(netns $place)"; done
cable() {
    ip -n "$(netns box)" link add "$1" type veth peer name "$2" netns "$(netns "$3")"
    ip netns exec "$(netns "$3")" ethtool -K "$2" tx off txvlan off >/dev/null
    ip -n "$(netns "$3")" addr add "$4/24" dev "$2"
    ip -n "$(netns "$3")" link set "$2" up
}
cable eth0 s0 server 10.77.0.2
cable eth1 c0 client 10.77.0.1
# And one by which the machine itself is reached.
cable eth2 c1 client 10.78.0.1
ip -n "$(netns box)" addr add 10.78.0.2/24 dev eth2
ip -n "$(netns box)" link set eth2 up

cat >"$work/first" <<'INIT'
set -e
root=$1
mount --bind "$root" "$root"
cd "$root"
mkdir -p old dev proc sys run tmp
mount -t proc proc proc
# The machine's settings.
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
# As systemd mounts it: for root alone.
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs dev
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r node major minor <<<"$device"
    mknod -m 666 "dev/$node" c "$major" "$minor"
done
mkdir dev/pts dev/shm
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
hostname systemd-test
pivot_root . old
umount -l old
exec setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-sys_boot,-syslog env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal --show-status=no
INIT
mkdir "$group"
(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec ip netns exec "$(netns box)" unshare --mount --pid --cgroup --uts --ipc --fork --kill-child=KILL --propagation=private bash "$work/first" "$root"
) >"$work/console" 2>&1 </dev/null &
holder=$!
# The number of the first process there, as it is here.
for _ in $(seq 200); do
    one=$(pgrep -P "$holder" 2>/dev/null | head -1 || true)
    [ -n "$one" ] && [ "$(readlink "/proc/$one/exe" 2>/dev/null)" = /usr/lib/systemd/systemd ] && break
    sleep 0.05
done
inside() { nsenter --target "$one" --mount --pid --cgroup --uts --ipc --net -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C SYSTEMD_PAGER= "$@" </dev/null; }
# Waits until a command succeeds.
until_it() {
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    fail "in vain: $*"
}
is_up() { case $(inside systemctl is-system-running 2>/dev/null) in running | degraded) ;; *) return 1 ;; esac; }
until_it is_up
check "systemd $(inside systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p') runs as the first process"

change() { inside dpkg "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; fail "dpkg $1 fails"; }; }
change -i /packages/first.deb
cat >"$root/etc/synproxy/edge.env" <<'ENV'
LAN=eth0
WAN=eth1
OPTIONS=
ENV
echo 'synproxyconf = { mode = cache; };' >"$root/etc/synproxy/edge.conf"

# Where root may not raise limits, as in some containers, systemd cannot either: two lines of the unit are left out.
if [ $((16#$(sed -n 's/^CapEff:.//p' /proc/self/status) >> 24 & 1)) -eq 0 ]; then
    say "without CAP_SYS_RESOURCE here, so without LimitMEMLOCK= and OOMScoreAdjust= of the unit"
    mkdir -p "$root/etc/systemd/system/synproxy@.service.d"
    printf '[Service]\nLimitMEMLOCK=1M\nOOMScoreAdjust=0\n' >"$root/etc/systemd/system/synproxy@.service.d/limits.conf"
    inside systemctl daemon-reload
fi

# A server, and what a client sees of it.
ip netns exec "$(netns server)" setpriv --pdeathsig KILL nc -lk 80 </dev/null >/dev/null 2>&1 &
passes() { ip netns exec "$(netns client)" ping -q -c 1 -W 1 10.77.0.2 >/dev/null; }
connects() { ip netns exec "$(netns client)" timeout 5 bash -c ': </dev/tcp/10.77.0.2/80'; }
property() { inside systemctl show -p "$1" --value synproxy@edge; }

if passes; then fail "something passes without a box"; fi
inside systemctl enable --now synproxy@edge 2>/dev/null || fail "it does not start"
until_it passes
until_it connects
inside synctl --socket /run/synproxy/edge.sock status | grep eth0 >/dev/null || fail "it does not answer the operator"
inside systemctl status synproxy@edge >/dev/null || fail "it has no status"
check "starts, and forwards frames"

main=$(property MainPID)
inside grep -q "^Uid:.$(inside id -u synproxy)" "/proc/$main/status" || fail "it is not the user synproxy"
[ "$(inside sed -n 's/^CapBnd:.//p' "/proc/$main/status")" = "$(printf '%016x' $((1 << 12 | 1 << 13 | 1 << 14 | 1 << 23 | 1 << 38 | 1 << 39)))" ] \
    || fail "it may have other capabilities than its six: $(inside grep Cap "/proc/$main/status")"
inside grep -q '^Seccomp:.2' "/proc/$main/status" || fail "no filter of system calls is in force"
check "runs as its own user, with six capabilities at most and a filter of system calls"
if [ "$(nproc)" -gt 1 ]; then
    pinned=$(inside sh -c "grep -l '^Cpus_allowed_list:.[0-9]*\$' /proc/$main/task/*/status | wc -l")
    [ "$pinned" -eq 1 ] || fail "$pinned threads are pinned, and there is one worker"
    check "pins its worker"
fi

exposure=$(inside systemd-analyze security synproxy@edge | sed -n 's/.*exposure level for .*: \([0-9.]*\) .*/\1/p')
awk "BEGIN { exit !($exposure <= 2.5) }" || fail "systemd-analyze security says $exposure"
check "systemd-analyze security says $exposure"

inside systemctl reload synproxy@edge || fail "it does not reload"
echo 'synproxyconf = { mode = wrong; };' >"$root/etc/synproxy/edge.conf"
if inside systemctl reload synproxy@edge 2>/dev/null; then fail "a wrong configuration is reloaded"; fi
echo 'synproxyconf = { mode = cache; };' >"$root/etc/synproxy/edge.conf"
[ "$(property MainPID)" = "$main" ] || fail "a reload ends it"
until_it passes
check "reloads, and refuses a wrong configuration while it goes on"

inside bash -c "kill -STOP $main"
restarted() { [ "$(property NRestarts)" -ge 1 ] && [ "$(property ActiveState)" = active ]; }
until_it restarted
until_it passes
inside journalctl --no-pager -u synproxy@edge | grep 'Watchdog timeout' >/dev/null || fail "it was not the watchdog"
check "is restarted by the watchdog when it stands still, and forwards frames again"

inside bash -c "kill -KILL $(property MainPID)"
again() { [ "$(property NRestarts)" -ge 2 ] && [ "$(property ActiveState)" = active ]; }
until_it again
until_it passes
check "is restarted after a kill"

# What was established lies in the manager's descriptor store.
echo 'synproxyconf = { mode = cache; state_dir = "descriptors"; };' >"$root/etc/synproxy/edge.conf"
inside systemctl restart synproxy@edge
until_it passes
[ "$(property NFileDescriptorStore)" -ge 2 ] || fail "systemd keeps $(property NFileDescriptorStore) descriptors"
heard=$work/heard
mkfifo "$work/say"
ip netns exec "$(netns server)" setpriv --pdeathsig KILL nc -l 82 </dev/null >"$heard" 2>/dev/null &
listens() { ip netns exec "$(netns server)" grep -q ':0052 00000000:0000 0A' /proc/net/tcp; }
until_it listens
ip netns exec "$(netns client)" setpriv --pdeathsig KILL bash -c 'exec 3<>/dev/tcp/10.77.0.2/82; while read -r word; do echo "$word" >&3; done' <"$work/say" &
exec 4>"$work/say"
# A word from client to server, on one connection.
says() {
    echo "$1" >&4
    until_it grep -qx "$1" "$heard"
}
says established
main=$(property MainPID)
inside systemctl restart synproxy@edge
[ "$(property MainPID)" != "$main" ] || fail "a restart changes nothing"
says restarted
restarts=$(property NRestarts)
inside bash -c "kill -KILL $(property MainPID)"
once_more() { [ "$(property NRestarts)" -gt "$restarts" ] && [ "$(property ActiveState)" = active ]; }
until_it once_more
says killed
inside journalctl --no-pager -u synproxy@edge | grep 'taking over the state' | grep -i descriptor >/dev/null || fail "the state was not in the descriptor store"
check "connections outlive a restart and a kill in the descriptor store"

# What the kernel forwards by itself goes on beside that, in the box's own part of the BPF file system.
echo 'synproxyconf = { mode = cache; state_dir = "descriptors"; fast_path = tc; };' >"$root/etc/synproxy/edge.conf"
inside systemctl restart synproxy@edge
says "in the kernel"
handed_down() { inside synctl --socket /run/synproxy/edge.sock stats --json | grep -E '"handed-down": ?[1-9]' >/dev/null; }
until_it handed_down
owner=$(inside stat -c %U /sys/fs/bpf/synproxy)
[ "$owner" = synproxy ] || fail "its part of the BPF file system is $owner's"
pinned() { inside sh -c 'test -e /sys/fs/bpf/synproxy/*/flows'; }
pinned || fail "nothing of the connections is pinned"
mkdir -p "$root/run/systemd/system/synproxy@edge.service.d"
printf '[Service]\nRestartSec=10\n' >"$root/run/systemd/system/synproxy@edge.service.d/later.conf"
inside systemctl daemon-reload
restarts=$(property NRestarts)
inside systemctl kill --signal=KILL synproxy@edge
says "without a process"
[ "$(property NRestarts)" = "$restarts" ] || fail "there was a process again"
until_it once_more
rm "$root/run/systemd/system/synproxy@edge.service.d/later.conf"
inside systemctl daemon-reload
says "and with the next one"
exec 4>&-
check "what the kernel forwards by itself outlives the process"

main=$(property MainPID)
change -i /packages/second.deb
inside dpkg -s synproxy | grep -x "Version: $version" >/dev/null || fail "it is not upgraded"
[ "$(property MainPID)" = "$main" ] || fail "the upgrade ends a running box"
runs() { [ "$(inside "/proc/$(property MainPID)/exe" --version)" = "synproxy $1" ]; }
runs "$former" || fail "what runs after the upgrade is not version $former"
until_it passes
inside systemctl restart synproxy@edge
[ "$(property MainPID)" != "$main" ] || fail "a restart changes nothing"
runs "$version" || fail "what runs after the restart is not version $version"
until_it passes
until_it connects
check "is upgraded from $former to $version while it runs, and restarted when the operator says so"

# The machine protects itself: LAN=host is no interface that could be taken up before the start.
printf 'LAN=host\nWAN=eth2\nOPTIONS=\n' >"$root/etc/synproxy/self.env"
echo 'synproxyconf = { mode = cache; };' >"$root/etc/synproxy/self.conf"
inside systemd-run --quiet --unit=echo systemd-socket-activate -l 10.78.0.2:81 --accept --inetd /bin/cat 2>/dev/null || fail "no server can be started in it"
echoes() { ip netns exec "$(netns client)" timeout 5 bash -c 'exec 3<>/dev/tcp/10.78.0.2/81 && echo hello >&3 && read -r line <&3 && [ "$line" = hello ]'; }
until_it echoes
inside systemctl start synproxy@self 2>/dev/null || { inside journalctl --no-pager -n 20 -u synproxy@self >&2; fail "it does not start with LAN=host"; }
until_it echoes
answers() { inside synctl --socket /run/synproxy/self.sock stats --json | grep -E '"syn-answered": ?[1-9]' >/dev/null; }
until_it answers
inside systemctl stop synproxy@self
until_it echoes
if inside ip link show host-eth2 >/dev/null 2>&1; then fail "the pair of the box before the machine is left"; fi
check "protects the machine itself, and leaves nothing behind"

# The doctor's command against a service that moves interrupts; a stand-in for the service.
inside systemctl start irqbalance
inside systemctl disable --now irqbalance 2>/dev/null
if inside systemctl is-active --quiet irqbalance; then fail "systemctl disable --now irqbalance leaves it running"; fi

change -r synproxy
gone() { ! inside systemctl is-active --quiet synproxy@edge; }
until_it gone
if passes; then fail "something passes after the removal"; fi
[ ! -e "$root/usr/sbin/synproxy" ] && [ -s "$root/etc/synproxy/edge.conf" ] || fail "removing leaves programs, or takes configurations"
change -P synproxy
check "is stopped and removed, and the operator's files stay"
say "$checks checks passed"
