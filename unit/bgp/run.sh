#!/bin/bash
# A blackhole announced by a real BGP speaker: fetches Debian's GoBGP, which is only unpacked, and runs unit/bgp/main.rs, which says what is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-bgp
. unit/guest/pack.sh

begin
build dev bgp
kept=$target/gobgp
if [ ! -x "$kept/usr/bin/gobgpd" ]; then
    say "fetching gobgpd"
    rm -rf "$kept" && mkdir -p "$kept"
    (cd "$kept" && { attend apt-get download -q gobgpd >"$work/said" 2>&1 || { fetch apt-get update -q && fetch apt-get download -q gobgpd; }; })
    quietly dpkg-deb -x "$kept"/gobgpd_*.deb "$kept"
fi
GOBGP=$kept/usr/bin attend "$tests" "$@"
