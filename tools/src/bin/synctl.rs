//! `synctl`: the operator's hand at a running box. Asks over the control socket, and prints the answer for people, or as JSON for programs.

use clap::{Parser, Subcommand};
use control::{Client, Complaint, LogLevel, Reply, Request};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use tools::show;

/// Shown below the options in `--help`.
const AFTER_HELP: &str = "\
Exit status:
  0  done
  1  the box refuses, or answers something else
  2  the command line is wrong
  4  there is no box to be reached, or several and none was named
  5  not permitted: run as root, or as the user the box runs as";

/// Asks a running synproxy how it is, and tells it what to do
#[derive(Debug, Parser)]
#[command(name = "synctl", version, after_help = AFTER_HELP)]
struct Arguments {
    /// The box's control socket; not needed where only one box runs
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

/// What is asked.
#[derive(Debug, Subcommand)]
enum Command {
    /// What the box is, and whether its workers answer
    Status {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Everything counted since the start
    Stats {
        /// Prints the reply as it came
        #[arg(long)]
        json: bool,
    },
    /// Changes a setting until the box ends
    Set {
        #[command(subcommand)]
        setting: Setting,
    },
}

/// What can be set.
#[derive(Debug, Subcommand)]
enum Setting {
    /// The least severe messages that are logged
    LogLevel {
        /// error, warn, info, debug or trace
        level: LogLevel,
    },
}

/// Why nothing came of it.
#[derive(Debug)]
enum Failure {
    Box(Complaint),
    Output(io::Error),
}

impl From<Complaint> for Failure {
    fn from(complaint: Complaint) -> Self {
        Failure::Box(complaint)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Output(error)
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        // Whoever reads has heard enough.
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Output(error)) => {
            eprintln!("synctl: {error}");
            ExitCode::FAILURE
        }
        Err(Failure::Box(complaint)) => {
            eprintln!("synctl: {complaint}");
            status(&complaint)
        }
    }
}

/// The status for each complaint, as `--help` lists them.
fn status(complaint: &Complaint) -> ExitCode {
    ExitCode::from(match complaint {
        Complaint::Unreachable { forbidden: true, .. } => 5,
        Complaint::Refused(refusal) if refusal.why == control::Why::Forbidden => 5,
        Complaint::Unreachable { .. } | Complaint::Ambiguous(_) | Complaint::Broken(_) => 4,
        Complaint::Strange(_) | Complaint::Refused(_) => 1,
    })
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut client = match &arguments.socket {
        Some(path) => Client::connect(path)?,
        None => Client::connect_to_the_only_one()?,
    };
    let (request, json) = request(&arguments.command);
    let reply = client.ask(&request)?;
    let mut out = io::stdout().lock();
    if json {
        control::write_line(&mut out, &reply)?;
    } else {
        write!(out, "{}", text(&reply))?;
    }
    Ok(())
}

/// The request, and whether its answer is to be printed as it came.
fn request(command: &Command) -> (Request, bool) {
    match command {
        Command::Status { json } => (Request::Status, *json),
        Command::Stats { json } => (Request::Stats, *json),
        Command::Set { setting: Setting::LogLevel { level } } => (Request::SetLogLevel { level: *level }, false),
    }
}

/// An answer for people.
fn text(reply: &Reply) -> String {
    match reply {
        Reply::Status(status) => show::status(status),
        Reply::Stats(stats) => show::stats(stats),
        Reply::Done(message) => format!("{message}\n"),
        Reply::Error(refusal) => format!("{}\n", refusal.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_said_is_what_is_asked() {
        let asked = |line: &str| {
            let arguments = Arguments::try_parse_from(line.split_whitespace()).map_err(|error| error.exit_code());
            arguments.map(|arguments| request(&arguments.command))
        };
        assert_eq!(asked("synctl status"), Ok((Request::Status, false)));
        assert_eq!(asked("synctl stats --json --socket x"), Ok((Request::Stats, true)));
        assert_eq!(asked("synctl set log-level debug"), Ok((Request::SetLogLevel { level: LogLevel::Debug }, false)));
        for wrong in ["synctl", "synctl set log-level loud", "synctl stat"] {
            assert_eq!(asked(wrong), Err(2), "{wrong}");
        }
    }
}
