//! Man pages and shell completions, which every program writes out of the definition of its own command line, so that they cannot say
//! something else than the program does. `make papers` asks all of them.

#![forbid(unsafe_code)]

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

/// The shells completions are written for, each into a directory of its name.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes the papers of the program whose command line is `P`, if that is what it was called for: `PROGRAM --papers DIRECTORY`. To be asked
/// first thing in `main`, which ends with the status returned, if one is.
pub fn serve<P: CommandFactory>() -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != "--papers" {
        return None;
    }
    let directory = arguments.next()?;
    Some(match write(P::command(), Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", Path::new(&directory).display());
            ExitCode::FAILURE
        }
    })
}

/// Writes into `directory`: `man1` with a page for the program and one for each of its commands, and a directory for each shell.
///
/// # Errors
/// When the system refuses.
pub fn write(mut program: Command, directory: &Path) -> io::Result<()> {
    let pages = directory.join("man1");
    fs::create_dir_all(&pages)?;
    clap_mangen::generate_to(program.clone(), &pages)?;
    let name = program.get_name().to_owned();
    for shell in SHELLS {
        let directory = directory.join(shell.to_string());
        fs::create_dir_all(&directory)?;
        clap_complete::generate_to(shell, &mut program, &name, &directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, ArgAction};

    #[test]
    fn every_option_is_on_the_page_and_in_the_completions() {
        let option = Arg::new("depth").long("depth").help("How deep").action(ArgAction::Set);
        let command = Command::new("dig").about("Digs further").arg(option);
        let program = Command::new("spade").about("Works the earth").subcommand(command);
        let directory = env::temp_dir().join(format!("spx-papers-{}", std::process::id()));
        write(program, &directory).unwrap();
        let read =
            |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read("man1/spade.1").contains("Works the earth"));
        assert!(read("man1/spade-dig.1").contains("How deep"));
        for paper in ["bash/spade.bash", "zsh/_spade", "fish/spade.fish"] {
            assert!(read(paper).contains("depth"), "{paper}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
