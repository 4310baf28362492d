//! `synctl`: the operator's client. The program is [`tools::programs::synctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::synctl::main()
}
