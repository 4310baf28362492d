# One line a verb. CI and a laptop run the same lines; every verb that compiles first installs what is missing.
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: setup build man papers test test-queues demo e2e-zc e2e-netmap bench bench-check fuzz fmt lint clean

setup:        ; @scripts/setup.sh
build: setup  ; cargo build --release --workspace --bins
man: setup    ; @cargo run -q -p tools --bin mkman -- target/man-pages
papers: man   # the former name
test: setup   ; cargo build --workspace --bins && cargo test --workspace && cargo test --manifest-path unit/loom/Cargo.toml --target-dir target/loom
test-queues: setup ; for queues in 2 4; do for steer in handoff everything; do QUEUES=$$queues STEER=$$steer cargo test -p unit --test 'e2e_*' || exit; done; done
demo: setup   ; @unit/demo.sh
e2e-zc: setup ; @unit/zc/run.sh
e2e-netmap: setup ; @unit/netmap/run.sh
bench: setup  ; cargo bench -p unit --bench engine && cargo bench -p unit --bench scaling && cargo bench -p unit --bench wire -- $(BENCH)
bench-check: setup ; cargo bench -p unit --bench engine -- --check
fuzz:         ; @unit/fuzz/run.sh
fmt:          ; cargo fmt --all
lint: setup   ; cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings
clean:        ; cargo clean
