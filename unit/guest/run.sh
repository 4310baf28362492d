#!/bin/bash
# What this machine's kernel cannot, in a guest with Debian's newest: bonds at both ends of the box, and accurate ECN (tcp_ecn = 3). Fetches the kernel, packs the guest,
# and runs unit/guest/main.rs, by which end-to-end tests run inside.
#
#     run.sh [bonds] [accurate-ecn]
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-guest
. unit/guest/pack.sh

begin
need_tun
need qemu-system-x86 busybox-static cpio xz-utils binutils iproute2 ethtool iputils-ping procps util-linux
# No speed is taken here.
build dev guest
executable e2e
inside=$path

# Linux speaks accurate ECN since 7.0; Debian 13 has such kernels in its backports, in one package or, later, in two. They are only unpacked, here, and kept
# for the next time.
kept=$target/guest
if [ ! -d "$kept/kernel" ]; then
    look_at trixie-backports
    chosen=$(apt-cache "${there[@]}" search --names-only '^linux-image-[0-9.]+\+deb13-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -1)
    version=${chosen#linux-image-}
    [ "$(printf '%s\n' 7.0 "$version" | sort -V | head -1)" = 7.0 ] || ignored "trixie-backports has no kernel since 7.0"
    parts=$(apt-cache "${there[@]}" depends "$chosen" | sed -n "s/.*Depends: \(linux-\(binary\|modules\)-$version\)$/\1/p")
    say "fetching ${parts:-$chosen}"
    rm -rf "$kept" && mkdir -p "$kept/part"
    # shellcheck disable=SC2086
    (cd "$kept/part" && fetch apt-get "${there[@]}" download -q ${parts:-$chosen}) || exit
    for package in "$kept"/part/*.deb; do dpkg-deb -x "$package" "$kept/unpacked"; done
    rm -r "$kept/part" && mv "$kept/unpacked" "$kept/kernel"
fi
kernel=$(find "$kept/kernel" -name 'vmlinuz*' -type f)

# The guest: modules in the order in which they need each other, and everything the tests call.
begin_guest
for module in failover net_failover virtio_net veth llc stp bridge tls bonding; do
    module=$(find "$kept/kernel" -name "$module.ko*")
    # What is built in is no module.
    [ -z "$module" ] || add_module "$module"
done
add_program "$programs/synproxy"
for program in ip ethtool ping setpriv sysctl; do add_program "$(command -v $program)"; done
# busybox's shell takes its own `ip` for the one that is there.
add_program "$(readlink -f /bin/sh)" sh
add_program "$inside" e2e
run_guest "$kernel" "$@"
