#!/bin/bash
# The metrics with a real Prometheus: fetches Debian's package, which is only unpacked, and runs unit/metrics/main.rs, which says what is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-metrics
. unit/guest/pack.sh

begin
build dev metrics
kept=$target/prometheus
if [ ! -x "$kept/usr/bin/prometheus" ]; then
    say "fetching prometheus"
    rm -rf "$kept" && mkdir -p "$kept"
    (cd "$kept" && { attend apt-get download -q prometheus >"$work/said" 2>&1 || { fetch apt-get update -q && fetch apt-get download -q prometheus; }; })
    quietly dpkg-deb -x "$kept"/prometheus_*.deb "$kept"
fi
PROMETHEUS=$kept/usr/bin attend "$tests" --skip page "$@"
