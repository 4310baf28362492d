//! Tests of `tests/e2e` in a guest, for what this machine's kernel cannot. Run by `make test-guest`, which builds the guest; no part of a plain
//! `cargo test`. Both hosts and the box are namespaces inside; the guest's own cards are not used.
//!
//! The guest's processor is emulated, so no time taken here says how fast anything is.

use std::process::ExitCode;
use std::time::Duration;

use unit::guest::{self, Card, Guest, Image, row, step};
use unit::netns::Namespace;

/// How long the tests of one part may take.
const INSIDE: Duration = Duration::from_secs(900);

/// Runs the end-to-end tests whose names begin so, all of which have to run, on so many processors.
fn inside(image: &Image, tests: &str, processors: usize) {
    let (client, server) = (Namespace::new("client"), Namespace::new("server"));
    let mut guest = Guest::boot(image, &client, &server, 1);
    step(&format!("In the guest, between namespaces of its own: {tests}"));
    row("kernel", guest.sh("uname -rm").trim());
    if processors == 1 {
        guest.sh("echo 0 >/sys/devices/system/cpu/cpu1/online");
    }
    let line = format!("SYNPROXY_BIN_DIR=/bin e2e {tests} --nocapture --test-threads 1");
    let (status, said) = guest.run_for(&line, INSIDE);
    print!("{said}");
    assert_eq!(status, 0, "the tests inside failed");
    assert!(said.contains("; 0 failed; 0 ignored"), "a test was ignored inside, where all can run");
    guest.expect_calm();
}

fn main() -> ExitCode {
    guest::run(
        "test-guest",
        Card::Virtio,
        &[
            ("bonds", &|image| inside(image, "bonds::real::", 2)),
            ("accurate-ecn", &|image| inside(image, "accurate::", 2)),
            // A veth has a queue for each processor, and emulated ones run so unevenly that what a host sends by both is overtaken.
            ("fast-path", &|image| inside(image, "handed_down::kernels_take", 1)),
        ],
    )
}
