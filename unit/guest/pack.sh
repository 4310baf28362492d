# What runs in a guest have in common: packages, programs, the guest's archive, and an end that leaves nothing behind.
# Sourced by bash scripts, which call themselves $name; nothing happens before they call one of these.

say() { echo "$name: $*"; }
fail() { echo "$name: $*" >&2; exit 1; }

# The directory $work, gone at the end as are the children.
begin() {
    [ "$(id -u)" -eq 0 ] || fail "network namespaces need root"
    [ -c /dev/net/tun ] || fail "there is no /dev/net/tun, by which the guest's cards reach the namespaces"
    work=$(mktemp -d) child=
    trap undo EXIT
    trap 'exit 130' INT TERM
}
undo() {
    trap - EXIT INT TERM
    # It puts away its guest and its namespaces itself.
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
    rm -rf "$work"
}

# Runs a command whose output matters only if it fails.
quietly() { "$@" >"$work/said" 2>&1 </dev/null || { cat "$work/said" >&2; exit 1; }; }

# Installs Debian packages for good, as scripts/setup.sh does; says nothing when none is missing.
need() {
    local package missing= patient="-q -o DPkg::Lock::Timeout=120"
    for package; do
        case $(dpkg-query -W -f='${Status}' "$package" 2>/dev/null || true) in
            *"ok installed") ;;
            *) missing="$missing $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install $patient -y --no-install-recommends $missing >"$work/said" 2>&1 </dev/null && return
    quietly apt-get update $patient
    quietly apt-get install $patient -y --no-install-recommends $missing
}

# Has apt look at one suite of the mirror this machine uses, beside the machine's own package sources, which stay as
# they are: `apt-get "${there[@]}" ...`.
look_at() {
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | grep -v -- -security | head -1)
    mirror=${mirror% *}
    [ -n "$mirror" ] || fail "apt knows no mirror to fetch a kernel from"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
    echo "deb [signed-by=$keys] $mirror $1 main" >"$work/sources.list"
    there=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/parts"
        -o "Dir::Cache=$work/cache" -o "Dir::State::Lists=$work/lists" -o Dir::State::status=/dev/null)
    quietly apt-get "${there[@]}" update -q
}

# Builds the programs with profile $1 and the tests called $2: they are in $programs and at $tests; $target is where
# files may be kept.
build() {
    case $1 in dev) profile= ;; *) profile="--profile $1" ;; esac
    cargo build $profile --quiet --workspace --bins
    target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    case $1 in dev) programs=$target/debug ;; *) programs=$target/$1 ;; esac
    tests=$(executable "$2")
}

# The path of a test's program, built.
executable() {
    local path
    path=$(cargo test $profile --quiet -p unit --test "$1" --no-run --message-format=json \
        | sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" | tail -1)
    [ -x "$path" ] || fail "the tests were not built"
    echo "$path"
}

# The guest's root in $guest: a shell, the first process, and the kernel modules that are piped in by `add_module`.
begin_guest() {
    guest=$work/guest modules=0
    mkdir -p "$guest"/{bin,modules,proc,sys,dev,tmp,run}
    cp /bin/busybox "$guest/bin/"
    install -m 755 unit/guest/init "$guest/init"
}
add_module() {
    [ -f "$1" ] || fail "there is no such module: $1"
    modules=$((modules + 1))
    case $1 in *.xz) xz -dc "$1" ;; *) cat "$1" ;; esac >"$guest/modules/$(printf %02d $modules)-$(basename "${1%.xz}")"
}
# A program, with the libraries it is linked to.
add_program() {
    local program=$1 name=${2:-${1##*/}} library
    strip -o "$guest/bin/$name" "$program" 2>/dev/null || cp "$program" "$guest/bin/$name"
    for library in $(ldd "$program" 2>/dev/null | grep -o '/[^ :]*' | sort -u); do
        [ -e "$guest$library" ] || install -D "$library" "$guest$library"
    done
}

# Packs the guest, and runs $tests with its kernel $1 and the further arguments; as a child, so that a signal to this
# script is passed on at once.
run_guest() {
    local kernel=$1 status=0
    shift
    (cd "$guest" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initramfs"
    say "${kernel##*/vmlinuz-} in a guest without hardware virtualisation"
    "$tests" "$kernel" "$work/initramfs" "$@" </dev/null &
    child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}
