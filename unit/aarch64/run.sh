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

# Libraries of the other architecture are only unpacked, and kept for the next time.
target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
kept=$target/aarch64
if [ ! -d "$kept/root" ]; then
    say "fetching libraries"
    look_at "$(. /etc/os-release && echo "$VERSION_CODENAME")"
    there+=(-o APT::Architecture=arm64 -o APT::Architectures::=arm64)
    fetch apt-get "${there[@]}" update -q
    rm -rf "$kept" && mkdir -p "$kept/part"
    (cd "$kept/part" && fetch apt-get "${there[@]}" download -q libelf-dev libelf1 zlib1g-dev zlib1g) || exit
    for package in "$kept"/part/*.deb; do dpkg-deb -x "$package" "$kept/unpacked"; done
    rm -r "$kept/part" && mv "$kept/unpacked" "$kept/root"
fi
root=$kept/root

export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
export CFLAGS_aarch64_unknown_linux_gnu="-I$root/usr/include"
export BINDGEN_EXTRA_CLANG_ARGS_aarch64_unknown_linux_gnu="--target=$machine -I/usr/aarch64-linux-gnu/include -I$root/usr/include"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-L native=$root/usr/lib/aarch64-linux-gnu -C link-arg=-Wl,-rpath-link,$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu"
emulator=(qemu-aarch64 -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=$root/usr/lib/aarch64-linux-gnu:$root/lib/aarch64-linux-gnu")
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="${emulator[*]}"
# The BPF programs of dependencies are compiled with the machine's clang, which finds no headers for this architecture itself.
export C_INCLUDE_PATH=/usr/aarch64-linux-gnu/include
# libxdp embeds its BPF objects with these two; without them it takes the machine's own, whose objects the cross linker refuses.
export CROSS_COMPILE=aarch64-linux-gnu- LD=aarch64-linux-gnu-ld OBJCOPY=aarch64-linux-gnu-objcopy

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
