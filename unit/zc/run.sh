#!/bin/bash
# Zero copy without a network card that can do it: the proxy in a guest whose virtio cards can, between two real kernels.
# Fetches the guest's kernel, packs the guest, and runs unit/zc/main.rs, which says what is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-zero-copy
. unit/guest/pack.sh

begin
need_tun
# The machine to emulate, a shell for the guest, its archive, and what unpacks the kernel's modules.
need qemu-system-x86 busybox-static cpio xz-utils binutils
build "${PROFILE:-demo}" zero_copy

# The guest's kernel: virtio-net does zero copy since 6.18, and Debian 13 has such kernels in its backports. It is only
# unpacked, here, and the copy is kept for the next time.
kept=$target/zero-copy
mkdir -p "$kept"
package=$(ls "$kept"/linux-image-*.deb 2>/dev/null | tail -1 || true)
if [ -z "$package" ]; then
    look_at trixie-backports
    pattern='^linux-image-[0-9.]+\+deb13-cloud-amd64$' series= chosen=
    for candidate in $(apt-cache "${there[@]}" search --names-only "$pattern" | cut -d' ' -f1 | sort -V); do
        version=${candidate#linux-image-} version=${version%%+*}
        [ "$(printf '%s\n' 6.18 "$version" | sort -V | head -1)" = 6.18 ] || continue
        # The last of the oldest series that can do it.
        : "${series:=$(cut -d. -f1-2 <<<"$version")}"
        case $version in "$series"*) chosen=$candidate ;; esac
    done
    [ -n "$chosen" ] || ignored "trixie-backports has no kernel since 6.18"
    say "fetching $chosen"
    (cd "$kept" && fetch apt-get "${there[@]}" download -q "$chosen") || exit
    package=$(ls "$kept"/linux-image-*.deb | tail -1)
fi
dpkg-deb -x "$package" "$work/package"

# The guest: a shell, the driver, the program, and ethtool to look with.
begin_guest
for module in failover net_failover virtio_net; do
    add_module "$(find "$work/package" -name "$module.ko*")"
done
add_program "$programs/synproxy"
add_program "$(command -v ethtool)"
run_guest "$work"/package/boot/vmlinuz-* "$@"
