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
        synproxy::appliance::command(),
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

    /// A page is found by the name of the program, so the two must be the same.
    #[test]
    fn every_installed_binary_has_a_command_line_of_its_name() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin");
        let binaries = std::fs::read_dir(directory).expect("the binaries");
        let mut binaries: Vec<String> = binaries
            .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
            // It writes the pages and is not installed.
            .filter(|name| name != "mkman")
            .chain(["synproxy".to_owned()])
            .collect();
        let mut names: Vec<String> = commands().iter().map(|command| command.get_name().to_owned()).collect();
        binaries.sort();
        names.sort();
        assert_eq!(names, binaries);
        assert!(commands().iter().all(|command| command.get_about().is_some()), "each says what it does");
    }

    #[test]
    fn every_command_line_is_consistent() {
        commands().into_iter().for_each(Command::debug_assert);
    }
}
