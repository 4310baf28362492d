#!/bin/bash
# The proxy at work, in under a minute: a client, the box and a server, each in a network namespace; ping, transfers, a
# flood, and honest clients who connect through it. Everything made here is removed at the end, also when interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:$HOME/.cargo/bin"

if [ "$(id -u)" -ne 0 ]; then echo "demo: network namespaces need root" >&2; exit 1; fi

# Names carry this process's id, as those of the tests do.
client=spx$$-demo-client box=spx$$-demo-box server=spx$$-demo-server
work=$(mktemp -d -t "spx$$-demo.XXXXXX")
children=()

# A namespace, and before it the processes inside, which would keep it without a name.
remove() {
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null || true)
    if [ -n "$pids" ]; then
        kill $pids 2>/dev/null || true
        for _ in {1..60}; do
            [ -n "$(ip netns pids "$1" 2>/dev/null || true)" ] || break
            sleep 0.05
        done
        kill -9 $pids 2>/dev/null || true
    fi
    ip netns del "$1" 2>/dev/null || true
}
undo() {
    trap - EXIT
    trap '' INT TERM
    for child in "${children[@]}"; do kill "$child" 2>/dev/null || true; done
    for namespace in $client $box $server; do remove $namespace; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap undo EXIT
trap 'echo; echo "interrupted; everything is put away"; exit 130' INT TERM HUP

# What a demo or a test left behind that was killed: what carries the id of a process that is no more.
for path in /run/netns/spx*-* "${TMPDIR:-/tmp}"/spx*-*; do
    name=${path##*/} owner=${path##*/spx} owner=${owner%%-*}
    if [[ ! $owner =~ ^[0-9]+$ ]] || [ -d "/proc/$owner" ]; then continue; fi
    case $path in /run/*) remove "$name" ;; *) rm -rf "$path" ;; esac
done

bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
row() { printf '  %-38s %s\n' "$@"; }
# A command that is waited for so that a signal is heeded at once.
attend() { "$@" <&0 & children+=($!); wait $!; }
# A program in a namespace, which ends with the process that started it. `begin` is for the background.
at() { local namespace=$1; shift; attend ip netns exec "$namespace" setpriv --pdeathsig TERM -- "$@"; }
begin() { local namespace=$1; shift; exec ip netns exec "$namespace" setpriv --pdeathsig TERM -- "$@"; }
fail() { echo "demo: $*" >&2; [ -f "$work/log" ] && sed 's/^/  synproxy: /' "$work/log" >&2; exit 1; }

# `SYNPROXY_BIN_DIR` names a directory with ready programs instead.
bin=${SYNPROXY_BIN_DIR:-}
if [ -z "$bin" ]; then
    step "Building"
    attend setpriv --pdeathsig TERM -- cargo build --profile demo --workspace --bins
    bin=$(cargo metadata --format-version 1 --no-deps --offline 2>/dev/null | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/demo
fi
row "programs" "synproxy, synflood, honest (${bin/#$PWD\//})"

step "Three namespaces, two cables"
cat <<PICTURE

    client 10.77.0.1 ── wan0 [ synproxy ] lan0 ── 10.77.0.2 server
           fd77::1                                fd77::2
PICTURE
for namespace in $client $box $server; do ip netns add $namespace; done
at $box sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1
cable() { # the host's namespace, its interface, the box's interface, the last part of its addresses
    at $box ip link add "$3" type veth peer name "$2" netns "$1"
    at $box ip link set "$3" up
    # Veth leaves checksums to hardware that is not there: the hosts must write them, as on a wire.
    at "$1" ethtool -K "$2" tx off txvlan off >/dev/null
    at "$1" ip link set lo up
    at "$1" ip link set "$2" up
    at "$1" ip addr add "10.77.0.$4/24" dev "$2"
    at "$1" ip addr add "fd77::$4/64" dev "$2" nodad
}
cable $client c0 wan0 1
cable $server s0 lan0 2

begin $box "$bin/synproxy" --state-dir none lan0 wan0 >"$work/log" 2>&1 &
proxy=$!
children+=($proxy)
for _ in {1..200}; do
    grep -q '^ready' "$work/log" && break
    kill -0 $proxy 2>/dev/null || fail "synproxy did not start"
    sleep 0.05
done
grep -q '^ready' "$work/log" || fail "synproxy did not become ready"
row "synproxy" "$(grep '^ready' "$work/log")"

row "mode" "SYN cache on (65536 entries), cookies for what finds no place there"

step "Ping"
reach() { # a name, from, to
    local told
    told=$(at "$2" ping -q -n -c 10 -i 0.05 -W 2 "$3") || fail "no answer from $3"
    row "$1 -> $3" "$(sed -n 's/.*, \([0-9]*% packet loss\).*/\1/p' <<<"$told"), $(sed -n 's/^rtt.*= [^/]*\/\([^/]*\).*/\1 ms/p' <<<"$told")"
}
reach "client" $client 10.77.0.2
reach "client" $client fd77::2
reach "server" $server 10.77.0.1
reach "server" $server fd77::1

step "TCP, 64 MB each"
head -c 64M /dev/urandom >"$work/sent"
sum=$(md5sum <"$work/sent")
transfer() { # a name, who connects, who listens and where, which of them sends
    local listener start end received=$work/received
    if [ "$5" = opener ]; then
        begin "$3" timeout 30 nc -d -l "$4" 4000 >"$received" & listener=$!; children+=($listener)
        sleep 0.3; start=$(date +%s%N)
        at "$2" timeout 20 nc -N "$4" 4000 <"$work/sent" >/dev/null || fail "$1 got stuck"
    else
        begin "$3" timeout 30 nc -N -l "$4" 4000 <"$work/sent" >/dev/null & listener=$!; children+=($listener)
        sleep 0.3; start=$(date +%s%N)
        at "$2" timeout 20 nc -d "$4" 4000 >"$received" || fail "$1 got stuck"
    fi
    wait $listener || true
    end=$(date +%s%N)
    [ "$(md5sum <"$received")" = "$sum" ] || fail "$1: the bytes differ"
    row "$1" "$((64 * 8388608 / ((end - start) / 1000))) Mbit/s, every byte as sent"
}
transfer "client connects, client sends, IPv4" $client $server 10.77.0.2 opener
transfer "client connects, server sends, IPv6" $client $server fd77::2 acceptor
transfer "server connects, server sends, IPv4" $server $client 10.77.0.1 opener

step "A SYN flood from the whole Internet, and 200 honest clients"
begin $server "$bin/honest" serve 10.77.0.2:80 </dev/null >/dev/null & children+=($!)
sleep 0.3
mac=$(at $server cat /sys/class/net/s0/address)
# As many as two cores carry besides box, server and clients: beyond that the cable itself loses what honest clients send. It ends by itself, also
# when nobody ends it.
begin $client "$bin/synflood" --rate 500000 --interface c0 --to 10.77.0.2 --to-mac "$mac" --from-mac 02:00:00:00:00:66 --seconds 120 \
    >"$work/flood" & flood=$!
children+=($flood)
sleep 0.5
at $client "$bin/honest" connect 10.77.0.2:80 --count 200 --over 4 >"$work/honest" || { cat "$work/honest"; fail "honest clients failed"; }
kill $flood 2>/dev/null || fail "the flood ended before the honest clients had connected"
wait $flood 2>/dev/null || true

kill $proxy; wait $proxy || fail "synproxy ended badly"
said() { sed -n "s/.*$2=\([^ ]*\).*/\1/p" "$work/$1"; }
counted() { sed -n "s/^  $1  *\([0-9][0-9]*\) .*/\1/p" "$work/log" | tail -1; }

step "What happened"
row "flood" "$(said flood sent) SYNs in $(said flood seconds) s, $(said flood kpps) thousand a second"
row "SYNs answered, nothing remembered" "$(counted cache-full)"
row "SYNs answered and remembered" "$(counted cache-stored)"
row "honest clients" "$(said honest connected) of $(said honest attempted) connected"
row "slowest connect" "$(said honest slowest)"
row "connections that reached the server" "$(counted spliced)"
printf '  dropped, by reason:\n'
sed -n '/^drops/,$p' "$work/log" | awk '/^  [a-z]/ { printf "    %-36s %s\n", $1, $2 }'
echo
