//! The programs of this crate: their command lines and what they do. Each binary calls the `main` of its module, so that
//! `mkman` can reach every command line.

use clap::{Command, CommandFactory};

pub mod ctrlperf;
pub mod honest;
pub mod netmapsend;
pub mod replay;
pub mod synctl;
pub mod synflood;
pub mod tcpsendrecv;

/// The command lines of all programs that get a man page and shell completions.
pub fn commands() -> Vec<Command> {
    vec![
        synproxy::process::cli::command(),
        synctl::Arguments::command(),
        netmapsend::Arguments::command(),
        tcpsendrecv::Arguments::command(),
        synflood::Arguments::command(),
        honest::Arguments::command(),
        ctrlperf::Arguments::command(),
        replay::Arguments::command(),
    ]
}

/// Parses a duration in seconds of a command line.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "expected between 0.001 and 3600 seconds".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_line_is_consistent() {
        commands().into_iter().for_each(Command::debug_assert);
    }
}
