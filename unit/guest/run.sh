#!/bin/bash
# What this machine's kernel cannot, in a guest with Debian's newest: bonds at both ends of the box, and accurate ECN (tcp_ecn = 3). And what older ones can: the fast path.
# Fetches the kernels, packs the guests, and runs unit/guest/main.rs, by which end-to-end tests run inside.
#
#     run.sh [bonds] [accurate-ecn] [fast-path]
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

# A kernel of Debian, in one package or, later, in two. It is only unpacked, here, and kept for the next time: $1 is where, $2 the suite, $3 what its version
# matches, $4 the least version.
kernel_of() {
    [ ! -d "$1" ] || return 0
    look_at "$2"
    local chosen version parts package
    chosen=$(apt-cache "${there[@]}" search --names-only "^linux-image-$3-cloud-amd64\$" | cut -d' ' -f1 | sort -V | tail -1)
    version=${chosen#linux-image-}
    [ "$(printf '%s\n' "$4" "$version" | sort -V | head -1)" = "$4" ] || ignored "$2 has no kernel since $4"
    parts=$(apt-cache "${there[@]}" depends "$chosen" | sed -n "s/.*Depends: \(linux-\(binary\|modules\)-$version\)$/\1/p")
    say "fetching ${parts:-$chosen}"
    rm -rf "$1.part" && mkdir -p "$1.part"
    # shellcheck disable=SC2086
    (cd "$1.part" && fetch apt-get "${there[@]}" download -q ${parts:-$chosen}) || exit
    for package in "$1.part"/*.deb; do dpkg-deb -x "$package" "$1.unpacked"; done
    rm -r "$1.part" && mv "$1.unpacked" "$1"
}

# A guest with the kernel at $1, in which the further arguments are run: modules in the order in which they need each other, and everything the tests call.
guest_with() {
    local kernel=$1 module
    shift
    rm -rf "$work/guest" && begin_guest
    for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console failover net_failover virtio_net veth llc stp bridge tls bonding; do
        module=$(find "$kernel" -name "$module.ko*")
        # What is built in is no module.
        [ -z "$module" ] || add_module "$module"
    done
    add_program "$programs/synproxy"
    for program in ip ethtool ping setpriv sysctl; do add_program "$(command -v $program)"; done
    # busybox's shell takes its own `ip` for the one that is there.
    add_program "$(readlink -f /bin/sh)" sh
    add_program "$inside" e2e
    run_guest "$(find "$kernel" -name 'vmlinuz*' -type f)" "$@"
}

[ $# -gt 0 ] || set -- bonds accurate-ecn fast-path
kept=$target/guest newest=
mkdir -p "$kept"
for part; do [ "$part" = fast-path ] || newest="$newest $part"; done
if [ -n "$newest" ]; then
    # Linux speaks accurate ECN since 7.0; Debian 13 has such kernels in its backports.
    kernel_of "$kept/kernel" trixie-backports '[0-9.]+\+deb13' 7.0
    # shellcheck disable=SC2086
    guest_with "$kept/kernel" $newest
fi
case " $* " in *" fast-path "*)
    # Those of Debian 12 and 13, of which the first is too old for the fast path at tc; and the one of the backports.
    kernel_of "$kept/kernel-6.1" bookworm '6\.1\.[0-9]+-[0-9]+' 6.1
    kernel_of "$kept/kernel-6.12" trixie '6\.12\.[0-9.]+\+deb13' 6.12
    kernel_of "$kept/kernel" trixie-backports '[0-9.]+\+deb13' 7.0
    for kernel in "$kept/kernel-6.1" "$kept/kernel-6.12" "$kept/kernel"; do guest_with "$kernel" fast-path; done
esac
