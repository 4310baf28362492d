//! Puts back what a process that was killed has left changed.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use tracing::warn;

use super::Interface;
use super::claim::{DIRECTORY, Lock, Namespace, PREFIX, files, holder, lock, settings_of};
use super::ethtool::Ethtool;
use super::host::{self, Cleaned, Left};
use super::record;
use super::rtnetlink::Rtnetlink;
use crate::error::OpenError;
use crate::pins;

/// What a program that was detached is called among the settings that were put back.
pub const PROGRAM: &str = "XDP program";

/// What [`restore`] calls the entries and programs by which the kernel goes on forwarding connections.
pub const FAST_PATH: &str = "fast path";

/// What [`restore`] did for an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Its name.
    pub interface: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of putting settings back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// These settings differed and are as they were; none, if all were.
    Done(Vec<&'static str>),
    /// At least one setting could not be put back; the log says which and why.
    Failed,
    /// A box has the interface and puts them back itself when it ends; what is known of it, in words.
    Held(String),
}

/// Puts back the settings of these interfaces, or of all in this network namespace that a process has left changed; with an `age` those that no process
/// has had for so long, so that who waits for a successor does not mistake a later one's predecessor for its own.
///
/// # Errors
///
/// When there is no such interface, or the files cannot be read.
pub fn restore(names: &[String], age: Option<Duration>) -> Result<Vec<Restored>, OpenError> {
    let io = |source| OpenError::Io { what: DIRECTORY.into(), source };
    let (ethtool, mut netlink) = (Ethtool::new().map_err(io)?, Rtnetlink::new().map_err(io)?);
    let namespace = Namespace::of_this_thread(&ethtool);
    let links = match names {
        [] => {
            let mut indexes = files(&namespace, PREFIX).map_err(io)?;
            indexes.extend(host::files(&namespace).map_err(io)?);
            indexes.sort_unstable();
            indexes.dedup();
            indexes.into_iter().map(|index| netlink.indexed(index).map_err(|_| index)).collect()
        }
        names => names
            .iter()
            .map(|name| Interface::locate(name).map(|interface| Ok(interface.link().clone())))
            .collect::<Result<Vec<_>, _>>()?,
    };
    let mut restored = Vec::new();
    for link in links {
        let index = link.as_ref().map_or_else(|index| *index, |link| link.index);
        let path = Path::new(DIRECTORY).join(namespace.file_name(PREFIX, index));
        let interface = link.as_ref().map_or_else(|index| format!("interface {index}"), |link| link.name.clone());
        let refused = |source: io::Error| match source.kind() {
            ErrorKind::PermissionDenied => OpenError::Permission { interface: interface.clone() },
            _ => OpenError::Io { what: path.display().to_string(), source },
        };
        // Before the settings: the pair's end has some as well, which go with it.
        let removed =
            match host::restore(link.as_ref().ok(), index, namespace.clone(), &mut netlink).map_err(&refused)? {
                Left::Nothing => Cleaned::default(),
                Left::Removed(cleaned) => cleaned,
                Left::Held(text) => {
                    restored.push(Restored { interface, outcome: Outcome::Held(holder(&text)) });
                    continue;
                }
            };
        let outcome = match lock(&path, false).map_err(&refused)? {
            Lock::Absent if removed.has_failed => Outcome::Failed,
            Lock::Absent => Outcome::Done(removed.done),
            Lock::Held(text) => Outcome::Held(holder(&text)),
            Lock::Taken(file) if age.is_some_and(|age| !is_older(&file, age)) => {
                Outcome::Held("a process that has just ended".to_owned())
            }
            Lock::Taken(mut file) => {
                let text = record::read(&mut file).map_err(io)?;
                // An interface that is gone took its settings along.
                let known =
                    link.ok().and_then(|link| Some((settings_of(&text, &namespace.identity(&link))?, link.name)));
                let result = known.map(|(originals, name)| {
                    let mut result = originals.put_back(&ethtool, &name);
                    match originals.detach(index) {
                        Ok(false) => {}
                        Ok(true) => result.done.push(PROGRAM),
                        Err(error) => {
                            warn!("{name}: could not detach its XDP program: {error}");
                            result.has_failed = true;
                        }
                    }
                    result
                });
                let mut result = result.unwrap_or_default();
                if pins::remove_left(index) {
                    result.done.push(FAST_PATH);
                }
                if result.has_failed {
                    Outcome::Failed
                } else {
                    let _ = record::clear(&file).and_then(|()| fs::remove_file(&path));
                    let done = Outcome::Done([removed.done, result.done].concat());
                    if removed.has_failed { Outcome::Failed } else { done }
                }
            }
        };
        restored.push(Restored { interface, outcome });
    }
    Ok(restored)
}

/// Whether nobody has had the file for so long. A clock that was set back says so too.
fn is_older(file: &File, age: Duration) -> bool {
    let modified = file.metadata().and_then(|it| it.modified());
    modified.is_ok_and(|modified| modified.elapsed().map_or(true, |since| since >= age))
}
