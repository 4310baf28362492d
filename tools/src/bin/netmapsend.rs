//! `netmapsend`: sends traffic by an interface of any backend, or swallows it. See the library's module of that name.

use std::process::ExitCode;

use clap::Parser;
use tools::netmapsend::{Arguments, run};

fn main() -> ExitCode {
    if let Some(status) = papers::serve::<Arguments>() {
        return status;
    }
    let arguments = Arguments::parse();
    tools::finish("netmapsend", arguments.json, |stop| run(&arguments, stop), |report| report.is_good())
}
