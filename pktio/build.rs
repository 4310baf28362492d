//! Compiles the XDP program, and those that lead the frames of this machine through a box.

include!("bpf/compile.rs");

fn main() {
    compile("bpf/redirect.c", &["bpf/kernel.h", "bpf/shed.h", "bpf/fail.h", "bpf/compile.rs"], "redirect.o");
    compile("bpf/host.c", &["bpf/kernel.h", "bpf/compile.rs"], "host.o");
}
