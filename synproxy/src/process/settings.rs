//! The configuration file: reads it, parses it, and reports what is wrong with it, on this machine too.

use super::exit::Failure;
use super::footprint::{Limit, Needed};
use super::privileges;
use crate::control::lists::Listed;
use confparse::{Config, Control, Level, Parsed};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use tracing::{info, warn};

/// A configuration, and where its keys stand.
pub struct Settings {
    /// What it says.
    pub config: Config,
    places: confparse::Places,
}

impl Settings {
    /// The memory a process with so many workers needs.
    ///
    /// # Errors
    /// When this machine does not have it, or the process may not have it.
    pub fn reserve_memory(&self, workers: usize, bypass: bool) -> Result<Needed, Failure> {
        let needed = Needed::of(&self.config, workers, bypass);
        let is_turned = |own: &tcpstate::config::ServiceConfig| own.of_lan || own.side == tcpstate::Side::Wan;
        if workers > 1 && self.config.engine.services.iter().any(is_turned) && !bypass {
            let message = format!("`clients_on` and `servers_on` need a single worker, and there are {workers}");
            return Err(Failure::Configuration(self.places.complain(None, "services", &message)));
        }
        match Limit::here().and_then(|limit| needed.exceeds(&limit)) {
            Some((section, name, message)) => {
                Err(Failure::Configuration(self.places.complain(section, name, &message)))
            }
            None => needed.reserve().map(|()| needed),
        }
    }
}

impl Settings {
    /// The lists of clients, with those of their files.
    ///
    /// # Errors
    /// When a file cannot be read, or holds something that is no network.
    pub fn lists(&self) -> Result<Listed, Failure> {
        Listed::load(&self.config.lists)
            .map_err(|(key, wrong)| Failure::Configuration(complaint_of_lists(&self.places, key, &wrong)))
    }
}

/// What is wrong with the files of a list: where the configuration names them, and where the fault is.
fn complaint_of_lists(places: &confparse::Places, key: &str, wrong: &str) -> String {
    places.complain(Some("lists"), key, &format!("`lists.{key}`: {wrong}"))
}

/// The configuration in `file`, or the defaults. Only the named file is read; warnings go to the log.
///
/// # Errors
/// When the file cannot be read or is not valid.
pub fn load(file: Option<&Path>) -> Result<Settings, Failure> {
    let Some(file) = file else { return Ok(Settings { config: Config::default(), places: Default::default() }) };
    let Parsed { config, warnings, places } = parse(file)?;
    for warning in &warnings {
        match warning.level {
            Level::Note => info!("{warning}"),
            _ => warn!("{warning}"),
        }
    }
    Ok(Settings { config, places })
}

/// Checks `file` and prints the result: what the text says, and what this machine has of it (users, groups, paths, addresses, memory).
///
/// # Errors
/// When the file cannot be read, is not valid, or cannot work on this machine.
pub fn check(file: &Path) -> Result<(), Failure> {
    let parsed = parse(file)?;
    let examined = examine(&parsed);
    let Parsed { config, warnings, .. } = parsed;
    let needed = Needed::of(&config, config.workers, false);
    let wrong = examined.as_ref().err().map_or(&[][..], Vec::as_slice);
    // A warning of what is refused says less than the refusal.
    let place = |text: &str| text.split(' ').next().map(str::to_owned);
    for warning in warnings.iter().map(ToString::to_string) {
        if !wrong.iter().any(|wrong| place(wrong) == place(&warning)) {
            eprintln!("{warning}");
        }
    }
    let listed = examined.map_err(|wrong| Failure::Configuration(wrong.join("\n")))?;
    println!("{}: the configuration is valid\nmemory: {needed}", file.display());
    if !listed.is_empty() {
        println!("lists of clients: {} networks", listed.len());
    }
    Ok(())
}

/// The lists of clients that a valid configuration names.
///
/// # Errors
/// What of it cannot work on this machine, each behind its place in the file.
pub fn examine(Parsed { config, places, .. }: &Parsed) -> Result<Listed, Vec<String>> {
    let mut wrong: Vec<String> = privileges::complaints(config)
        .into_iter()
        .chain(control_path(config).map(|message| ("control", message)))
        .chain(foreign_addresses(config))
        .map(|(key, message)| places.complain(None, key, &message))
        .chain(event_outputs(config).map(|(key, message)| places.complain(Some("events"), key, &message)))
        .collect();
    let needed = Needed::of(config, config.workers, false);
    if let Some((section, name, message)) = Limit::here().and_then(|limit| needed.exceeds(&limit)) {
        wrong.push(places.complain(section, name, &message));
    }
    match Listed::load(&config.lists) {
        Ok(listed) if wrong.is_empty() => return Ok(listed),
        Ok(_) => {}
        Err((key, text)) => wrong.push(complaint_of_lists(places, key, &text)),
    }
    Err(wrong)
}

/// Reads the file of a running box again, which may have changed its user since it read it first.
///
/// # Errors
/// When it cannot be read, is no plain file, or is not valid.
pub fn read_again(file: &Path) -> Result<Parsed, Failure> {
    let refused = |why: String| Failure::Configuration(format!("{}: {why}", file.display()));
    let hint = |error: io::Error| {
        let advice = match error.kind() {
            ErrorKind::PermissionDenied => format!(
                "; the box runs as user {} and may not read it: make it readable for that user, or have root send it with `synctl reload FILE`",
                rustix::process::geteuid().as_raw()
            ),
            _ => String::new(),
        };
        refused(format!("{error}{advice}"))
    };
    // A pipe would be waited for.
    if !fs::metadata(file).map_err(hint)?.is_file() {
        return Err(refused("it is no file any more".to_owned()));
    }
    parse_text(&read(file).map_err(hint)?, &file.display().to_string())
}

/// Parses a text of this name.
///
/// # Errors
/// When it is not valid.
pub fn parse_text(text: &str, name: &str) -> Result<Parsed, Failure> {
    confparse::parse(text, name).map_err(|errors| Failure::Configuration(errors.to_string()))
}

/// A hash that is the same for boxes which are configured alike, and no more than that (FNV-1a).
pub fn hash(config: &Config) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    config.describe().bytes().fold(0xcbf2_9ce4_8422_2325, hash)
}

/// Why the control socket cannot be at its path.
fn control_path(config: &Config) -> Option<String> {
    let Control::At(path) = &config.control else { return None };
    let because = |what: &str| Some(format!("`control = \"{}\"`: {what}", path.display()));
    match path.parent().map(fs::metadata) {
        Some(Err(error)) if error.kind() == ErrorKind::NotFound => return because("there is no such directory"),
        Some(Err(error)) if error.kind() == ErrorKind::NotADirectory => return because("its parent is no directory"),
        Some(Ok(parent)) if !parent.is_dir() => return because("its parent is no directory"),
        // What only root may see is seen when root starts.
        _ => {}
    }
    match fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => because("something that is no socket is there"),
        _ => None,
    }
}

/// The outputs of events that cannot work: the key, and what is wrong with it.
fn event_outputs(config: &Config) -> impl Iterator<Item = (&'static str, String)> {
    let file = config.events.file.as_deref().and_then(|path| {
        let what = match path.parent().map(fs::metadata) {
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => "there is no such directory",
            Some(Ok(parent)) if !parent.is_dir() => "its parent is no directory",
            _ if path.is_dir() => "a directory is there",
            _ => return None,
        };
        Some(("file", format!("`file = \"{}\"`: {what}", path.display())))
    });
    let command = config.events.command.as_deref().and_then(|command| {
        let program = command.split_whitespace().next().unwrap_or_default();
        let what = match fs::metadata(program) {
            Err(error) if error.kind() == ErrorKind::NotFound => "there is no such program",
            Ok(file) if !file.is_file() || file.permissions().mode() & 0o111 == 0 => "that is no program",
            _ => return None,
        };
        Some(("on_event", format!("`on_event = \"{program}\"`: {what}")))
    });
    file.into_iter().chain(command)
}

/// The addresses at which a port is to be opened, and which this machine does not have: the key, and what is wrong with it.
fn foreign_addresses(config: &Config) -> Vec<(&'static str, String)> {
    let control = config.commanded().then(|| ("listen", config.listen, config.listen.to_string()));
    let metrics = config.metrics.map(|address| ("metrics", address.ip(), address.to_string()));
    let is_foreign = |ip: IpAddr| {
        let error = UdpSocket::bind((ip, 0)).err()?;
        (error.kind() == ErrorKind::AddrNotAvailable).then_some(error)
    };
    let complain = |(key, ip, value)| {
        Some((key, format!("`{key} = \"{value}\"`: this machine has no such address ({})", is_foreign(ip)?)))
    };
    control.into_iter().chain(metrics).filter_map(complain).collect()
}

/// Reads and parses a file.
///
/// # Errors
/// When it cannot be read or is not valid.
pub fn parse(file: &Path) -> Result<Parsed, Failure> {
    let text = read(file).map_err(|error| Failure::Configuration(format!("{}: {error}", file.display())))?;
    parse_text(&text, &file.display().to_string())
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
        let Err(failure) = load(Some(Path::new("/nonexistent/conf.txt"))) else { panic!("there is no such file") };
        assert!(matches!(&failure, Failure::Configuration(text) if text.starts_with("/nonexistent/conf.txt: ")));
    }

    #[test]
    fn a_worker_has_as_many_frames_as_the_configuration_is_checked_against() {
        assert_eq!(2 * pktio::Options::default().frames_per_port, confparse::FRAMES_OF_A_WORKER);
    }

    #[test]
    fn without_a_file_every_key_has_its_default() {
        assert_eq!(load(None).ok().map(|settings| settings.config), Some(Config::default()));
    }

    #[test]
    fn an_output_of_events_that_cannot_work_is_complained_of() {
        let wrong = |file: &str, command: &str| {
            let mut config = Config::default();
            (config.events.file, config.events.command) = (Some(file.into()), Some(command.to_owned()));
            event_outputs(&config).map(|(key, text)| format!("{key}: {text}")).collect::<Vec<_>>()
        };
        assert!(wrong("/tmp/events.json", "/bin/sh -c true").is_empty());
        let said = wrong("/nowhere/at/all", "/nowhere/at/all -v");
        assert!(said.len() == 2 && said[0].contains("no such directory"), "{said:?}");
        assert!(
            said[1].starts_with("on_event: `on_event = \"/nowhere/at/all\"`: there is no such program"),
            "{said:?}"
        );
        let said = wrong("/tmp", "/etc/passwd");
        assert!(said[0].ends_with("a directory is there") && said[1].ends_with("that is no program"), "{said:?}");
    }

    #[test]
    fn a_path_or_address_that_this_machine_does_not_have_is_complained_of() {
        let at = |path: &str| control_path(&Config { control: Control::from(path), ..Config::default() });
        assert!(at("/nowhere/at/all.sock").is_some_and(|text| text.contains("no such directory")));
        assert!(at("/etc/passwd/x").is_some_and(|text| text.contains("no directory")));
        assert!(at("/etc/passwd").is_some_and(|text| text.contains("no socket")));
        assert_eq!([at("/tmp/new.sock"), at("auto"), at("none")], [const { None }; 3]);
        let mut config = Config { listen: "192.0.2.1".parse().unwrap(), ..Config::default() };
        assert!(foreign_addresses(&config).is_empty(), "the port is not opened");
        config.engine.sack = tcpstate::config::Source::Commanded;
        config.metrics = Some("[2001:db8::77]:9117".parse().unwrap());
        let said = foreign_addresses(&config);
        assert_eq!(said.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["listen", "metrics"]);
        assert!(said.iter().all(|(_, text)| text.contains("no such address")), "{said:?}");
        config.listen = "127.0.0.1".parse().unwrap();
        config.metrics = Some("127.0.0.1:9117".parse().unwrap());
        assert!(foreign_addresses(&config).is_empty());
    }
}
