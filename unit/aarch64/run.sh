#!/bin/bash
# The programs for aarch64, built here by a cross compiler: they start, and the unit tests of all crates (but for those of BPF programs)
# pass, under qemu-user.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-aarch64
. unit/guest/pack.sh

begin
machine=aarch64-unknown-linux-gnu
need gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user debian-archive-keyring
command -v rustup >/dev/null || ignored "without rustup there is no standard library for $machine"
fetch rustup target add "$machine"

target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="${emulator[*]}"

say "building"
attend cargo build --target "$machine" -p synproxy -p tools --bins
for program in synproxy synctl replay; do
    "${emulator[@]}" "$target/$machine/debug/$program" --version
done
attend cargo test --target "$machine" -p tcpstate -p confparse -p control -p tools --lib
# One at a time, since tables of several boxes at once are more memory than many machines have. The emulator does not tell that a program could not be started.
attend cargo test --target "$machine" -p synproxy --lib -- --test-threads=1 --skip a_program_that_fails_or_is_not_there
# The emulator has no bpf(2), and not all of netlink.
attend cargo test --target "$machine" -p pktio --lib -- --skip xdp::program:: --skip netdev::filters::
