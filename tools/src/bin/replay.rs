//! `replay`: captures through the engine. The program is [`tools::programs::replay`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::replay::main()
}
