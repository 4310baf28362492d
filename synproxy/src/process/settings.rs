//! The configuration file: reads it, parses it, and reports what is wrong with it.

use super::exit::Failure;
use confparse::{Config, Level, Parsed};
use std::path::Path;
use std::{fs, io};
use tracing::{info, warn};

/// The configuration in `file`, or the defaults. Only the named file is read; warnings go to the log.
///
/// # Errors
/// When the file cannot be read or is not valid.
pub fn load(file: Option<&Path>) -> Result<Config, Failure> {
    let Some(file) = file else { return Ok(Config::default()) };
    let Parsed { config, warnings } = parse(file)?;
    for warning in &warnings {
        match warning.level {
            Level::Note => info!("{warning}"),
            _ => warn!("{warning}"),
        }
    }
    Ok(config)
}

/// Checks `file` and prints the result.
///
/// # Errors
/// When the file cannot be read or is not valid.
pub fn check(file: &Path) -> Result<(), Failure> {
    let parsed = parse(file)?;
    for warning in &parsed.warnings {
        eprintln!("{warning}");
    }
    println!("{}: the configuration is valid", file.display());
    Ok(())
}

fn parse(file: &Path) -> Result<Parsed, Failure> {
    let text = read(file).map_err(|error| Failure::Configuration(format!("{}: {error}", file.display())))?;
    confparse::parse(&text, &file.display().to_string()).map_err(|errors| Failure::Configuration(errors.to_string()))
}

/// The text of `file`. Bytes that are not UTF-8, as comments in an old encoding have, do not make it unreadable.
fn read(file: &Path) -> io::Result<String> {
    let longest = confparse::MAX_TEXT as u64;
    if fs::metadata(file)?.len() > longest {
        return Err(io::Error::other(format!("longer than {longest} bytes, so this is no configuration")));
    }
    Ok(String::from_utf8_lossy(&fs::read(file)?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_a_configuration_error_that_names_it() {
        let failure = load(Some(Path::new("/nonexistent/conf.txt"))).unwrap_err();
        assert!(matches!(&failure, Failure::Configuration(text) if text.starts_with("/nonexistent/conf.txt: ")));
    }

    #[test]
    fn a_worker_has_as_many_frames_as_the_configuration_is_checked_against() {
        assert_eq!(2 * pktio::Options::default().frames_per_port, confparse::FRAMES_OF_A_WORKER);
    }

    #[test]
    fn without_a_file_every_key_has_its_default() {
        assert_eq!(load(None).unwrap(), Config::default());
    }
}
