# One line a verb. CI and a laptop run the same lines; every verb that compiles first installs what is missing.
SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin

# What make starts so ends when make is gone, however that went; what cargo starts ends with cargo (.cargo/config.toml).
run := exec setpriv --pdeathsig TERM --

.PHONY: setup build man papers test test-queues test-zero-copy test-netmap test-guest test-packetdrill test-programs test-services test-metrics test-page test-bgp test-deb test-systemd test-dist test-aarch64 test-dependencies test-restart test-failover test-handed-down test-model deb dist install test-all e2e-zc e2e-netmap demo bench bench-splice bench-check fuzz fmt lint clean

setup:        ; @scripts/setup.sh
build: setup  ; cargo build --release --workspace --bins
man: setup    ; @cargo run -q -p tools --bin mkman -- target/man-pages
papers: man   # the former name
# A Debian package in target/deb. `make install` is for other systems: DESTDIR, PREFIX (/usr/local) and UNITS (/etc/systemd/system) say where to.
deb: setup    ; @packaging/deb.sh
# An archive in target/dist for everybody else, with the licences of what is linked in and a bill of materials.
dist: setup   ; @packaging/dist.sh
install: build man
	packaging/install.sh target/release target/man-pages $(or $(UNITS),/etc/systemd/system)

# `make test TESTS='-p unit --test e2e tcp::'` runs a part.
test: setup
	$(run) cargo test $(or $(TESTS),--workspace)
	$(if $(TESTS),,$(run) cargo test --manifest-path unit/loom/Cargo.toml --target-dir target/loom)
# What takes longer, or needs a guest or a module: each sets up what it needs.
test-queues: setup ; $(run) unit/queues.sh
test-zero-copy: setup ; @$(run) unit/zc/run.sh
test-netmap: setup ; @$(run) unit/netmap/run.sh
test-guest: setup ; @$(run) unit/guest/run.sh
test-services: setup ; @$(run) unit/services/run.sh
test-metrics: setup ; @$(run) unit/metrics/run.sh
test-page: setup ; @$(run) unit/metrics/page.sh
test-bgp: setup ; @$(run) unit/bgp/run.sh
test-deb: setup ; @$(run) unit/deb/run.sh
test-systemd: setup ; @$(run) unit/systemd/run.sh
test-dist: setup ; @$(run) unit/dist/run.sh
test-aarch64: setup ; @$(run) unit/aarch64/run.sh
test-dependencies: setup ; @$(run) scripts/dependencies.sh
test-packetdrill: setup ; @$(run) unit/packetdrill/run.sh
test-programs: setup ; @$(run) unit/programs/run.sh
# Ten thousand connections, and twenty restarts of each kind. `CONNECTIONS=160 IDLE=99840` has a hundred thousand, most of which say nothing.
test-restart: setup ; CONNECTIONS=10000 ROUNDS=20 $(run) cargo test -p unit --test e2e restart::connections -- --nocapture --test-threads=1
# How soon frames pass a worker that takes none, and five minutes in which nobody takes an idle or a busy one for such.
test-failover: setup ; SWITCHES=20 QUIET=300 LOAD=600 $(run) cargo test -p unit --test e2e endurance:: -- --nocapture
# A million segments by each of the kernel's programs and by the engine; and ten thousand times down to the kernel and up again, beside a box without it. And fifty times an XDP program that comes in front of tc, and goes.
test-handed-down: setup ; HANDED_DOWN_SEGMENTS=1000000 HANDED_DOWN_ROUNDS=850 $(run) cargo test -p unit --test e2e handed_down:: -- --nocapture && SYN_SWAPS=50 $(run) cargo test -p unit --test e2e kernel_syns::while -- --nocapture
# How one process follows another, in every order (unit/model).
test-model: setup ; $(run) cargo test --release --manifest-path unit/model/Cargo.toml --target-dir target/model
test-all: test test-queues test-zero-copy test-netmap test-guest test-packetdrill test-programs test-services test-metrics test-page test-bgp test-deb test-systemd test-dist test-aarch64 test-dependencies test-restart test-failover test-handed-down test-model
e2e-zc: test-zero-copy
e2e-netmap: test-netmap

demo: setup   ; @$(run) unit/demo.sh
bench: setup  ; cargo bench -p unit --bench engine && cargo bench -p unit --bench scaling && cargo bench -p unit --bench wire -- $(BENCH)
# Every way to relay TCP side by side, half an hour: with `SPLICE=--write` table and plots go into docs/splice.md.
bench-splice: setup ; @$(run) unit/benches/splice/run.sh $(SPLICE)
bench-check: setup ; cargo bench -p unit --bench engine -- --check
fuzz:         ; @unit/fuzz/run.sh
fmt:          ; cargo fmt --all
lint: setup   ; cargo fmt --all --check && cargo clippy --workspace --all-targets -- -D warnings
clean:        ; cargo clean
