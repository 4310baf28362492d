//! `netmapsend`: one interface as a traffic source or sink. The program is [`tools::programs::netmapsend`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::netmapsend::main()
}
