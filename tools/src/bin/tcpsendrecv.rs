//! `tcpsendrecv`: plays both ends of connections through a box. See the library's module of that name.

use std::process::ExitCode;

use clap::Parser;
use tools::tcpsendrecv::{Arguments, run};

fn main() -> ExitCode {
    if let Some(status) = papers::serve::<Arguments>() {
        return status;
    }
    let arguments = Arguments::parse();
    tools::finish("tcpsendrecv", arguments.json, |stop| run(&arguments, stop), |report| report.is_good())
}
