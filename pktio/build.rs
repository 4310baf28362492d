//! Compiles the programs of the kernel: for AF_XDP, for the fast path of packet sockets, and those that lead the frames of this machine through a box.

include!("bpf/compile.rs");

fn main() {
    let flows =
        ["bpf/sip.h", "bpf/projection.h", "bpf/frame.h", "bpf/flows.h", "bpf/syns.h", "bpf/kernel.h", "bpf/compile.rs"];
    compile(
        "bpf/redirect.c",
        &[&["bpf/shed.h", "bpf/fail.h", "bpf/forward.h", "bpf/answer.h"][..], &flows].concat(),
        "redirect.o",
    );
    compile("bpf/pass.c", &[&["bpf/skb.h", "bpf/answer_skb.h"][..], &flows].concat(), "pass.o");
    compile("bpf/host.c", &["bpf/kernel.h", "bpf/compile.rs"], "host.o");
}
