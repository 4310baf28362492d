#!/bin/bash
# Programs of others through the proxy, beside a bridge: what an operator has running there. Installs those that Debian has, and runs the tests in
# unit/programs, each of which is ignored if its program is missing.
#
#     run.sh [ARGUMENTS...]      the arguments are those of the tests
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-programs
. unit/guest/pack.sh

begin
need haproxy nmap nftables
attend cargo test -p unit --test programs -- "$@"
