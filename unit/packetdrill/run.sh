#!/bin/bash
# packetdrill's suite through the proxy, beside a bridge: its scripts say packet by packet what a kernel's TCP does, and the kernel stands on
# either side. Builds packetdrill from a copy of the sources in $PACKETDRILL_SRC (a clone or an unpacked archive; nothing is written
# there), with what is forgiven inserted into the copy, and runs unit/packetdrill/suite.py, which says what is tested.
#
#     run.sh [--setups AC] [--modes early] [...] [TEXT...]      the arguments are suite.py's
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-packetdrill
. unit/guest/pack.sh

begin
if [ -z "${PACKETDRILL_SRC:-}" ]; then
    ignored "PACKETDRILL_SRC does not name a directory with packetdrill's sources"
fi
sources=$PACKETDRILL_SRC/gtests/net
[ -f "$sources/packetdrill/run_packet.c" ] && [ -d "$sources/tcp" ] \
    || fail "$PACKETDRILL_SRC has no gtests/net/packetdrill and gtests/net/tcp: those are not packetdrill's sources"

# What builds it, what its scripts call, and what runs them.
need gcc make bison flex python3 iproute2 ethtool procps util-linux
cp -r "$sources" "$work/net"
attend python3 unit/packetdrill/prepare.py "$work/net/packetdrill"
(cd "$work/net/packetdrill" && quietly ./configure && quietly make packetdrill)
# `SYNPROXY_BIN_DIR` names a directory with ready programs instead.
programs=${SYNPROXY_BIN_DIR:-}
[ -n "$programs" ] || build dev

attend python3 unit/packetdrill/suite.py "$work/net/packetdrill/packetdrill" "$work/net/tcp" "$programs" "$@"
