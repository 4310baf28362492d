#!/bin/bash
# Zero copy without a network card that can do it: the proxy in a guest whose virtio cards can, between two real kernels.
# Fetches the guest's kernel, packs the guest, and runs unit/zc/main.rs, which says what is tested.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PATH="$PATH:$HOME/.cargo/bin"

say() { echo "e2e-zc: $*"; }
fail() { echo "e2e-zc: $*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || fail "network namespaces need root"
[ -c /dev/net/tun ] || fail "there is no /dev/net/tun, by which the guest's cards reach the namespaces"

work=$(mktemp -d) child=
undo() {
    trap - EXIT INT TERM
    # It puts away its guest and its namespaces itself.
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap undo EXIT
trap 'exit 130' INT TERM

# Installed for good, as scripts/setup.sh does for the rest: the machine to emulate, a shell for the guest, its archive,
# and what unpacks the kernel's modules.
missing=
for package in qemu-system-x86 busybox-static cpio xz-utils binutils; do
    case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
        *"ok installed") ;;
        *) missing="$missing $package" ;;
    esac
done
if [ -n "$missing" ]; then
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    patient="-q -o DPkg::Lock::Timeout=120"
    install() { apt-get install $patient -y --no-install-recommends $missing >"$work/apt" 2>&1 </dev/null; }
    if ! install; then
        apt-get update $patient >"$work/apt" 2>&1 </dev/null || { cat "$work/apt" >&2; exit 1; }
        install || { cat "$work/apt" >&2; exit 1; }
    fi
fi

cargo build --release --quiet --workspace --bins
target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
tests=$(cargo test --release --quiet -p unit --test zero_copy --no-run --message-format=json \
    | sed -n 's/.*"name":"zero_copy".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
[ -x "$tests" ] || fail "the tests were not built"

# The guest's kernel: virtio-net does zero copy since 6.18, and Debian 13 has such kernels in its backports. It is only
# unpacked, here; the package sources of the machine stay as they are, and the copy is kept for the next time.
kept=$target/zero-copy
mkdir -p "$kept"
package=$(ls "$kept"/linux-image-*.deb 2>/dev/null | tail -1 || true)
if [ -z "$package" ]; then
    # The mirror the machine itself uses.
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | grep -v -- -security | head -1)
    mirror=${mirror% *}
    [ -n "$mirror" ] || fail "apt knows no mirror to fetch a kernel from"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keys] $mirror trixie-backports main" >"$work/sources.list"
    there=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::Cache=$work/cache"
        -o "Dir::State::Lists=$work/lists" -o Dir::State::status=/dev/null)
    apt-get "${there[@]}" update -q >"$work/apt" 2>&1 || { cat "$work/apt" >&2; exit 1; }
    name='^linux-image-[0-9.]+\+deb13-cloud-amd64$' series= chosen=
    for candidate in $(apt-cache "${there[@]}" search --names-only "$name" | cut -d' ' -f1 | sort -V); do
        version=${candidate#linux-image-} version=${version%%+*}
        [ "$(printf '%s\n' 6.18 "$version" | sort -V | head -1)" = 6.18 ] || continue
        # The last of the oldest series that can do it.
        : "${series:=$(cut -d. -f1-2 <<<"$version")}"
        case $version in "$series"*) chosen=$candidate ;; esac
    done
    [ -n "$chosen" ] || fail "trixie-backports has no kernel since 6.18"
    say "fetching $chosen"
    (cd "$kept" && apt-get "${there[@]}" download -q "$chosen" >"$work/apt" 2>&1) || { cat "$work/apt" >&2; exit 1; }
    package=$(ls "$kept"/linux-image-*.deb | tail -1)
fi
dpkg-deb -x "$package" "$work/package"
kernel=$(ls "$work"/package/boot/vmlinuz-*)

# The guest: a shell, the driver, the program with the libraries it is linked to, and ethtool to look with.
guest=$work/guest
mkdir -p "$guest"/{bin,modules,proc,sys,dev,tmp}
cp /bin/busybox "$guest/bin/"
install -m 755 unit/zc/init "$guest/init"
number=0
for module in failover net_failover virtio_net; do
    file=$(find "$work/package" -name "$module.ko*")
    [ -n "$file" ] || fail "${kernel##*/} has no module $module"
    number=$((number + 1))
    if [ "${file%.xz}" = "$file" ]; then cat "$file"; else xz -dc "$file"; fi >"$guest/modules/$number-$module.ko"
done
strip -o "$guest/bin/synproxy" "$target/release/synproxy"
cp "$(command -v ethtool)" "$guest/bin/"
for library in $(ldd "$guest/bin/synproxy" "$guest/bin/ethtool" | grep -o '/[^ :]*' | grep -v "^$guest" | sort -u); do
    install -D "$library" "$guest$library"
done
(cd "$guest" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs"

say "${kernel##*/vmlinuz-} in a guest without hardware virtualisation"
# As a child, so that a signal to this script is passed on at once.
"$tests" "$kernel" "$work/initramfs" "$@" </dev/null &
child=$!
status=0
wait "$child" || status=$?
child=
exit "$status"
