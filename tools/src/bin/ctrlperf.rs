//! `ctrlperf`: measures the control port. The program is [`tools::programs::ctrlperf`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::ctrlperf::main()
}
