#!/bin/sh
# Runs every fuzz target for a while: `make fuzz`, or `SECONDS_EACH=3600 TARGETS="http netlink" make fuzz`. New inputs go to target/, crashes to
# artifacts/; the committed corpora are only read.
set -eu
cd "$(dirname "$0")"

if ! rustup run nightly rustc --version >/dev/null 2>&1 || ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly && cargo install --locked cargo-fuzz" >&2
    exit 1
fi

for target in ${TARGETS:-parser options first_bytes engine configuration state networks capture netlink originals http requests answers}; do
    mkdir -p "target/corpus/$target"
    # The answer with all counters is longer than any other input.
    case $target in answers) longest=16384 ;; *) longest=1500 ;; esac
    cargo +nightly fuzz run --fuzz-dir . "$target" "target/corpus/$target" "corpus/$target" -- \
        -max_total_time="${SECONDS_EACH:-60}" -max_len="$longest" -timeout=10
done
