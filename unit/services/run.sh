#!/bin/bash
# Services with clients and servers of others: curl, OpenSSL, GnuTLS and nginx, which are installed, through the recipes of docs/services.md. Runs
# unit/services/main.rs, which says what is tested. For test machines: a service that is installed here is not started, but may start when the
# machine does.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-services
. unit/guest/pack.sh

begin
(need nginx-light curl openssl gnutls-bin)
quietly cargo build -p synproxy --bins
attend cargo test -p unit --test services -- "$@"
