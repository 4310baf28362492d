//! `synflood`: a flood through a packet socket. The program is [`tools::programs::synflood`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::synflood::main()
}
