#!/bin/sh
# Installs what building and testing need beyond the Rust toolchain. Safe to run again: when nothing is missing it
# says nothing and touches nothing. Written for Debian 12; elsewhere it names the packages and leaves them to you.
set -eu

# One package a line, with its reason.
packages=$(sed 's/#.*//' <<'LIST'
gcc              # links every Rust program
libc6-dev        # the C library's headers and start files
make             # this Makefile
clang            # compiles the XDP program to BPF
iproute2         # namespaces and veth pairs of the tests and the demo
ethtool          # offloads of the end hosts on veth
procps           # sysctl, for the namespaces
iputils-ping     # the demo and the ping tests
netcat-openbsd   # the demo and the nc tests
libcap2-bin      # setcap, which synproxy doctor names
tcpdump          # a reader of an interface, which synproxy doctor is to find
valgrind         # counts instructions for make bench-check
nftables         # the kernel's SYNPROXY, which make bench sets beside ours
LIST
)

if ! command -v cargo >/dev/null 2>&1 && [ ! -x "$HOME/.cargo/bin/cargo" ]; then
    echo "setup: no cargo found. Install the Rust toolchain first (with rustup)." >&2
    exit 1
fi

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    for tool in gcc make clang ip ethtool ping nc tcpdump valgrind nft; do
        command -v "$tool" >/dev/null 2>&1 || absent="${absent:-} $tool"
    done
    [ -z "${absent:-}" ] && exit 0
    echo "setup: this is no Debian; install what gives these commands:$absent" >&2
    echo "setup: Debian calls the packages:" $packages >&2
    exit 1
fi

missing=
for package in $packages; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
        *"ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "setup: missing packages; run as root: apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

echo "setup: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
install() { apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 $missing >"$log" 2>&1 </dev/null; }
# The package lists of a fresh machine are empty or old: try what is there, refresh once, try again.
if ! install; then
    apt-get update -q -o DPkg::Lock::Timeout=120 >"$log" 2>&1 </dev/null || { cat "$log" >&2; exit 1; }
    install || { cat "$log" >&2; exit 1; }
fi
