//! Compiles the XDP programs of `xdp_generator`.

include!("../pktio/bpf/compile.rs");

fn main() {
    compile("bpf/generator.c", &["../pktio/bpf/kernel.h", "../pktio/bpf/compile.rs"], "generator.o");
}
