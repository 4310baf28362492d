# What test-deb and test-systemd have in common: two versions of the package, and a Debian 12 to install them in. Sourced after unit/guest/pack.sh.

# What debuggers want takes longest, and is not tested.
export DEB_BUILD_OPTIONS=noautodbgsym PROFILE=${PROFILE:-demo}

# Builds this tree's package, at $second, and one of a lower version, $former, at $first: of the same sources, whose programs say that version.
build_packages() {
    local tree
    say "building the package, as two versions"
    build "$PROFILE"
    former=0.0.9
    kept=$target/test-deb tree=$target/test-deb/former
    rm -rf "$tree"
    mkdir -p "$tree"
    # With the dates of the originals, so that a second run builds nothing.
    tar --exclude=target --exclude=.git -cf - . | tar -xf - -C "$tree"
    sed -i "s/^version = .*/version = \"$former\"/" "$tree/Cargo.toml"
    first=$(CARGO_TARGET_DIR=$target VERSION=$former attend "$tree/packaging/deb.sh" "$work/former" | tail -1)
    second=$(attend packaging/deb.sh "$work/present" | tail -1)
    version=$(dpkg-deb -f "$second" Version)
    dpkg --compare-versions "$former" lt "$version" || fail "$former is not lower than $version"
}

# Unpacks what a server has, and what the package needs, into $root, with both packages in /packages; it is kept for the next time.
unpack_debian() {
    if [ ! -s "$kept/bookworm.tar" ]; then
        say "fetching Debian 12"
        look_at bookworm
        fetch mmdebstrap --mode=root --variant=minbase --include=iproute2,systemd,man-db,bash-completion --quiet bookworm \
            "$kept/part.tar" "$(cat "$work/sources.list")"
        mv "$kept/part.tar" "$kept/bookworm.tar"
    fi
    root=$work/root
    mkdir "$root"
    tar -xf "$kept/bookworm.tar" -C "$root" --exclude='./dev/*'
    mkdir -p "$root/packages"
    cp "$first" "$root/packages/first.deb"
    cp "$second" "$root/packages/second.deb"
}

checks=0
check() { checks=$((checks + 1)); say "ok: $*"; }
