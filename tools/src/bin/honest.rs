//! `honest`: kernel TCP clients and servers. The program is [`tools::programs::honest`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::honest::main()
}
