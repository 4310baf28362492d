//! Compiles the XDP programs of `live`.

include!("../pktio/bpf/compile.rs");

fn main() {
    compile("bpf/live.c", &["../pktio/bpf/kernel.h", "../pktio/bpf/compile.rs"], "live.o");
}
