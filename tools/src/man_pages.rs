//! Man pages and shell completions, generated from the same definitions that parse the command lines, so that they cannot disagree
//! with the programs. `make man` writes those of every program.

use clap::Command;
use clap_complete::Shell;
use std::path::Path;
use std::{fs, io};

/// The shells completions are written for, each into a directory of its name.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes the pages and completions of `program` into `directory`: `man1` with a page for the program and one for each of its
/// subcommands, and a directory for each shell. Creates what is missing.
///
/// # Errors
/// When a directory or file cannot be written.
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
    use std::env;

    #[test]
    fn every_option_is_on_the_page_and_in_the_completions() {
        let option = Arg::new("depth").long("depth").help("How deep").action(ArgAction::Set);
        let command = Command::new("dig").about("Digs further").arg(option);
        let program = Command::new("spade").about("Works the earth").subcommand(command);
        let directory = env::temp_dir().join(format!("spx-man-pages-{}", std::process::id()));
        write(program, &directory).unwrap();
        let read =
            |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read("man1/spade.1").contains("Works the earth"));
        assert!(read("man1/spade-dig.1").contains("How deep"));
        for completion in ["bash/spade.bash", "zsh/_spade", "fish/spade.fish"] {
            assert!(read(completion).contains("depth"), "{completion}");
        }
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn every_program_has_a_page_and_completions() {
        let directory = env::temp_dir().join(format!("spx-man-pages-all-{}", std::process::id()));
        let commands = crate::programs::commands();
        let names: Vec<String> = commands.iter().map(|command| command.get_name().to_owned()).collect();
        commands.into_iter().for_each(|command| write(command, &directory).unwrap());
        for name in names {
            for file in [
                format!("man1/{name}.1"),
                format!("bash/{name}.bash"),
                format!("zsh/_{name}"),
                format!("fish/{name}.fish"),
            ] {
                assert!(directory.join(&file).is_file(), "{file}");
            }
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
