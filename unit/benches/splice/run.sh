#!/bin/bash
# Every way to relay TCP side by side: installs the relays of others, and runs unit/benches/splice/main.rs, which says what is measured. For machines
# that do nothing else: a service that is installed here is not started, but may start when the machine does.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=bench-splice
. unit/guest/pack.sh

begin
(need haproxy nginx-light libnginx-mod-stream dante-server shadowsocks-libev wrk openssl)
attend cargo bench -p unit --bench splice -- "$@"
