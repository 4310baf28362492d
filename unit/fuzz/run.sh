#!/bin/sh
# Runs every fuzz target for a while: `make fuzz`, or `SECONDS_EACH=3600 make fuzz`. New inputs go to target/, crashes to artifacts/;
# the committed corpora are only read.
set -eu
cd "$(dirname "$0")"

if ! rustup run nightly rustc --version >/dev/null 2>&1 || ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly && cargo install --locked cargo-fuzz" >&2
    exit 1
fi

for target in parser options engine configuration; do
    mkdir -p "target/corpus/$target"
    cargo +nightly fuzz run --fuzz-dir . "$target" "target/corpus/$target" "corpus/$target" -- \
        -max_total_time="${SECONDS_EACH:-60}" -max_len=1500 -timeout=10
done
