#!/bin/bash
# Checks what we depend on against deny.toml: licences, where crates come from, none without a version. Installs cargo-deny below target/ the first time.
# Advisories need a database from a network and are left to `cargo deny check advisories`.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools
if ! command -v cargo-deny >/dev/null && [ ! -x "$tools/bin/cargo-deny" ]; then
    echo "installing cargo-deny, some minutes"
    if ! cargo install --quiet --locked --root "$tools" --target-dir target/tools/build cargo-deny; then
        echo "make test-dependencies: ignored, cargo-deny cannot be installed"
        exit 0
    fi
    rm -rf "$tools/build"
fi
PATH=$PATH:$tools/bin
# The members of this workspace, and those that have one of their own.
for manifest in Cargo.toml unit/loom/Cargo.toml unit/model/Cargo.toml unit/fuzz/Cargo.toml; do
    # Those of other systems too, which no build has fetched: a lock file names them all.
    if ! cargo fetch --quiet --locked --manifest-path "$manifest"; then
        # Either there is no network, or the lock file is out of date.
        cargo fetch --quiet --manifest-path "$manifest" && echo "the lock file of $manifest was out of date: it has been written anew" && exit 1
        echo "make test-dependencies: ignored, the crates of $manifest cannot be fetched"
        exit 0
    fi
    cargo deny --manifest-path "$manifest" --config "$PWD/deny.toml" --offline check licenses bans sources
done
