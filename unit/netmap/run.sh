#!/bin/bash
# netmap where it is: in a guest with Debian's kernel and netmap's module, built here from the sources in $NETMAP_SRC (a
# clone or an unpacked archive of netmap; nothing is written there). Fetches the kernel's packages, builds the module and
# the drivers it patches, packs the guest, and runs unit/netmap/main.rs, which says what is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"
name=test-netmap
. unit/guest/pack.sh

begin
need_tun
if [ -z "${NETMAP_SRC:-}" ]; then
    ignored "NETMAP_SRC does not name a directory with netmap's sources"
fi
[ -x "$NETMAP_SRC/LINUX/configure" ] || fail "$NETMAP_SRC has no LINUX/configure: those are not netmap's sources"
sources=$(cd "$NETMAP_SRC" && pwd)

# The machine to emulate, a shell for the guest, its archive; and what builds a kernel's modules.
need qemu-system-x86 busybox-static cpio xz-utils binutils gcc make patch iproute2 ethtool iputils-ping util-linux
# No speed is taken here, and this profile is built much sooner.
build dev netmap_module
executable e2e
inside=$path

# The kernel is that of this release of Debian, since its modules want the compiler it was built with. Its packages are
# only unpacked, and kept for the next time.
kept=$target/netmap
mkdir -p "$kept"
if ! ls "$kept"/linux-image-*.deb >/dev/null 2>&1; then
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    look_at "$release"
    dependency() { apt-cache "${there[@]}" depends "$1" | sed -n "s/.*Depends: \($2\)$/\1/p" | head -1; }
    image=$(dependency linux-image-amd64 'linux-image-[0-9].*')
    headers=linux-headers-${image#linux-image-}
    series=$(sed -n 's/^linux-image-\([0-9]*\.[0-9]*\).*/\1/p' <<<"$image")
    [ -n "$image" ] && [ -n "$series" ] || ignored "$release has no kernel for this machine"
    say "fetching $image"
    rm -rf "$kept/part" && mkdir "$kept/part"
    (cd "$kept/part" && fetch apt-get "${there[@]}" download -q "$image" "$headers" "linux-source-$series" \
        "$(dependency "$headers" 'linux-headers-[0-9].*-common')" "$(dependency "$headers" 'linux-kbuild-[0-9].*')") || exit
    mv "$kept"/part/*.deb "$kept" && rmdir "$kept/part"
fi
for package in "$kept"/linux-image-*.deb; do dpkg-deb -x "$package" "$work/package"; done
kernel=$(ls "$work"/package/boot/vmlinuz-*)
version=${kernel##*/vmlinuz-}

# netmap.ko, two drivers with its patches, and its own programs; built once for these sources and this kernel.
built=$kept/built-$version-$(cd "$sources" && find LINUX sys apps libnetmap -type f ! -name '*.o' -print0 | sort -z \
    | xargs -0 cat | cksum | cut -d' ' -f1)
if [ ! -d "$built" ]; then
    say "building the module for $version"
    for package in "$kept"/linux-{headers,kbuild}-*.deb; do dpkg-deb -x "$package" "$work/package"; done
    tree=$work/package/usr/src
    sed -i "s#/usr/src/#$tree/#" "$tree/linux-headers-$version/Makefile"
    dpkg-deb -x "$kept"/linux-source-*.deb "$work/source"
    archive=$(ls "$work"/source/usr/src/linux-source-*.tar.xz)
    root=$(basename "$archive" .tar.xz)
    tar -xJf "$archive" -C "$work/source" "$root"/drivers/net/{veth.c,ethernet/intel/e1000}
    rm "$archive"
    cp -r "$sources" "$work/netmap"
    # netmap chooses a patch by the kernel's version; Debian's kernel has changes of later ones, for which a later patch fits.
    for patch in "$work"/netmap/LINUX/final-patches/vanilla--veth.c--*; do
        cp "$work/source/$root/drivers/net/veth.c" "$work/veth.c"
        if patch -s -p1 "$work/veth.c" <"$patch" >/dev/null 2>&1; then fits=$patch; fi
    done
    [ -n "${fits:-}" ] || fail "no patch of netmap's fits veth.c of $version"
    for patch in "$work"/netmap/LINUX/final-patches/vanilla--veth.c--*; do
        [ "$patch" = "$fits" ] || cp "$fits" "$patch"
    done
    mkdir "$work/build"
    # Its make asks git and a clock for a version; neither matters.
    (cd "$work/build" && quietly "$work/netmap/LINUX/configure" --kernel-dir="$tree/linux-headers-$version" \
        --kernel-sources="$work/source/$root" --drivers=veth.c,e1000 --no-ext-drivers --apps=bridge,vale-ctl,pkt-gen \
        --no-utils --disable-ptnetmap && quietly make -j2)
    mkdir "$built.part"
    (cd "$work/build" && cp netmap.ko veth.ko e1000/e1000.ko build-apps/*/{bridge,vale-ctl,pkt-gen} "$built.part" 2>/dev/null) || true
    for file in netmap.ko veth.ko e1000.ko bridge vale-ctl pkt-gen; do
        [ -f "$built.part/$file" ] || fail "netmap's make did not make $file"
    done
    mv "$built.part" "$built"
fi

# The guest: its ports, the module before the drivers that need it, and everything the tests call.
begin_guest
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_console; do
    add_module "$(find "$work/package/lib/modules" -name "$module.ko*")"
done
for module in netmap veth e1000; do add_module "$built/$module.ko"; done
for program in synproxy netmapsend tcpsendrecv; do add_program "$programs/$program"; done
for program in ip ethtool ping setpriv; do add_program "$(command -v $program)"; done
# busybox's shell takes its own `ip` for the one that is there.
add_program "$(readlink -f /bin/sh)" sh
add_program "$inside" e2e
add_program "$built/bridge" netmap-bridge
add_program "$built/vale-ctl"
add_program "$built/pkt-gen"
run_guest "$kernel" "$@"
