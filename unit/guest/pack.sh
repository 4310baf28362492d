# What scripts have in common that test with the help of others' programs: packages, programs, a guest's archive, and an end that leaves
# nothing behind. Sourced by bash scripts, which call themselves $name, the verb of the Makefile; nothing happens before they call one of these.

say() { echo "$name: $*"; }
fail() { echo "$name: $*" >&2; exit 1; }
# Nothing is tested, and this is why: the line that `.ci/run` looks for. Ends the script, or the subshell, whose caller then ends with
# the same status.
ignored() { echo "make $name: ignored, $*"; exit 77; }

# The directory $work, gone at the end as are the children.
begin() {
    work= child=
    trap undo EXIT
    trap 'exit 130' INT TERM HUP
    [ "$(id -u)" -eq 0 ] || ignored "network namespaces need root"
    work=$(mktemp -d -t "spx$$-$name.XXXXXX")
}
# For those that run in a guest.
need_tun() {
    [ -c /dev/net/tun ] || ignored "there is no /dev/net/tun, by which the guest's cards reach the namespaces"
}
undo() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    # It puts away its guest and its namespaces itself.
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; wait "$child" 2>/dev/null || true; fi
    [ -z "$work" ] || rm -rf "$work"
    # Ignored is not failed.
    if [ "$status" -eq 77 ]; then exit 0; fi
}

# Runs a command so that a signal to this script is passed on at once.
attend() {
    local status=0
    setpriv --pdeathsig TERM -- "$@" </dev/null & child=$!
    wait "$child" || status=$?
    child=
    return "$status"
}
# Runs a command whose output matters only if it fails.
quietly() { attend "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; exit 1; }; }
# The same, for what comes over the network: without it nothing can be tested.
fetch() { attend "$@" >"$work/said" 2>&1 || { cat "$work/said" >&2; ignored "what it needs cannot be fetched"; }; }

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
    attend apt-get install $patient -y --no-install-recommends $missing >"$work/said" 2>&1 && return
    fetch apt-get update $patient
    fetch apt-get install $patient -y --no-install-recommends $missing
}

# Has apt look at one suite of the mirror this machine uses, beside the machine's own package sources, which stay as
# they are: `apt-get "${there[@]}" ...`.
look_at() {
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg mirror
    mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | grep -v -- -security | head -1)
    mirror=${mirror% *}
    [ -n "$mirror" ] || ignored "apt knows no mirror to fetch a kernel from"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/parts"
    echo "deb [signed-by=$keys] $mirror $1 main" >"$work/sources.list"
    there=(-o "Dir::Etc::SourceList=$work/sources.list" -o "Dir::Etc::SourceParts=$work/parts"
        -o "Dir::Cache=$work/cache" -o "Dir::State::Lists=$work/lists" -o Dir::State::status=/dev/null)
    fetch apt-get "${there[@]}" update -q
}

# Builds the programs with profile $1 and the tests called $2, if any: they are in $programs and at $tests; $target is where
# files may be kept.
build() {
    case $1 in dev) profile= ;; *) profile="--profile $1" ;; esac
    attend cargo build $profile --workspace --bins
    target=$(cargo metadata --format-version 1 --no-deps --offline | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    case $1 in dev) programs=$target/debug ;; *) programs=$target/$1 ;; esac
    [ -n "${2:-}" ] || return 0
    executable "$2"
    tests=$path
}

# Builds a test's program: it is at $path.
executable() {
    attend cargo test $profile -p unit --test "$1" --no-run --message-format=json-render-diagnostics >"$work/built"
    path=$(sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" "$work/built" | tail -1)
    [ -x "$path" ] || fail "the tests were not built"
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
