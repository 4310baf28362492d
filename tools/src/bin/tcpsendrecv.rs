//! `tcpsendrecv`: both ends of connections through the box. The program is [`tools::programs::tcpsendrecv`].

use std::process::ExitCode;

fn main() -> ExitCode {
    tools::programs::tcpsendrecv::main()
}
