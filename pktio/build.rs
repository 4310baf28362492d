//! Compiles the programs of the kernel: for AF_XDP, for the fast path of packet sockets, and those that lead the frames of this machine through a box.

include!("bpf/compile.rs");

fn main() {
    compile(
        "bpf/redirect.c",
        &["bpf/kernel.h", "bpf/sip.h", "bpf/shed.h", "bpf/fail.h", "bpf/compile.rs"],
        "redirect.o",
    );
    compile("bpf/host.c", &["bpf/kernel.h", "bpf/compile.rs"], "host.o");
    let headers = ["bpf/kernel.h", "bpf/skb.h", "bpf/sip.h", "bpf/projection.h", "bpf/compile.rs"];
    compile("bpf/pass.c", &headers, "pass.o");
}
