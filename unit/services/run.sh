#!/bin/bash
# Services with clients and servers of others: curl, OpenSSL, GnuTLS, Go, nghttp2, ssh, Chromium, Firefox, nginx and Dante, which are installed, through the recipes
# of docs/services.md. TRANSFERS says how many transfers by SOCKS there are to be. Runs
# unit/services/main.rs, which says what is tested. For test machines: a service that is installed here is not started, but may start when the
# machine does.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-services
. unit/guest/pack.sh

begin
(need nginx-light curl openssl gnutls-bin golang-go nghttp2-client openssh-server openssh-client netcat-openbsd chromium firefox-esr dante-server)
quietly cargo build -p synproxy --bins
attend cargo test -p unit --test services -- "$@"
