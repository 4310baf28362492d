//! `mkman`: writes the man pages and shell completions of all programs. Packagers run it (`make man`); it is not installed.

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use tools::{man_pages, programs};

/// Writes man pages and shell completions of all programs
#[derive(Debug, Parser)]
#[command(name = "mkman", version)]
struct Arguments {
    /// Where to write: man1/ for pages, bash/, zsh/ and fish/ for completions
    #[arg(default_value = "target/man-pages")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { directory } = Arguments::parse();
    for command in programs::commands() {
        let name = command.get_name().to_owned();
        if let Err(error) = man_pages::write(command, &directory) {
            eprintln!("mkman: {name}: {}: {error}", directory.display());
            return ExitCode::FAILURE;
        }
    }
    println!("{}", directory.display());
    ExitCode::SUCCESS
}
