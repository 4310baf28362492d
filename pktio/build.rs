//! Compiles the XDP program.

include!("bpf/compile.rs");

fn main() {
    compile("bpf/redirect.c", &["bpf/kernel.h", "bpf/shed.h", "bpf/compile.rs"], "redirect.o");
}
