//! Where the regions of the state lie: files of a directory, or descriptors that the service manager keeps.

use super::header::{Header, Refused};
use super::successor::Successor;
use crate::process::{exit::Failure, service_manager};
use confparse::StateDir;
use pktio::LeftSockets;
use pktio::region::{self, Region, RegionError};
use rustix::fs::statfs;
use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// The name of the header.
pub const HEADER: &str = "box";

/// The directories below which the state lies by default, the first that is on a tmpfs.
const DEFAULTS: [&str; 2] = [control::DIRECTORY, "/dev/shm/synproxy"];

/// How long a process that ends may hold the lock.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a process may take to end that is asked to.
const PATIENCE_WITH_ONE_THAT_RUNS: Duration = Duration::from_secs(10);

/// How long to wait for an answer before it is asked again: another process may have asked at the same moment.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// What a file system in memory says it is: tmpfs, ramfs, hugetlbfs.
const IN_MEMORY: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// A place for regions, by name.
pub enum Store {
    /// The files of this directory.
    Directory(PathBuf),
    /// Memory files that the service manager keeps, by name; with those it has handed over and that were not taken yet.
    Descriptors(Mutex<HashMap<String, Option<OwnedFd>>>),
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("another process is using {0}")]
    Held(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl Store {
    /// The place that the configuration names, for the box of this `name`; `None` where it wants none, or none of the default ones will do, which the log says.
    /// A directory belongs to this user and group, if any is given.
    ///
    /// # Errors
    /// When a place that is named will not do.
    pub fn find(place: &StateDir, name: &str, owner: (Option<u32>, Option<u32>)) -> Result<Option<Self>, Failure> {
        match place {
            StateDir::None => Ok(None),
            StateDir::Descriptors => match service_manager::kept_descriptors() {
                Some(kept) => {
                    let kept = kept.into_iter().map(|(name, descriptor)| (name, Some(descriptor))).collect();
                    Ok(Some(Store::Descriptors(Mutex::new(kept))))
                }
                None => Err(Failure::State(
                    "`state_dir = \"descriptors\"` takes a service manager that keeps descriptors (NOTIFY_SOCKET is not set)"
                        .to_owned(),
                )),
            },
            StateDir::Below(base) => {
                if is_in_memory(base) == Some(false) {
                    warn!("{} is on no tmpfs: what the box keeps for a restart goes to the disk, which is slow", base.display());
                }
                let directory = directory(base, name, owner);
                let failed = |error| Failure::State(format!("no state in {}: {error}", base.display()));
                directory.map(|path| Some(Store::Directory(path))).map_err(failed)
            }
            StateDir::Auto => {
                for base in DEFAULTS.map(Path::new) {
                    match directory(base, name, owner) {
                        Ok(path) if is_in_memory(&path) == Some(true) => return Ok(Some(Store::Directory(path))),
                        Ok(path) => drop(fs::remove_dir(path)),
                        Err(error) => debug!("no state in {}: {error}", base.display()),
                    }
                }
                warn!("a restart will lose connections: neither {} nor {} is a tmpfs that the box can use; see `state_dir`", DEFAULTS[0], DEFAULTS[1]);
                Ok(None)
            }
        }
    }

    /// Removes what boxes of other ports have left beside this one, where no process uses it and nobody will take it over any more: `is_left` says so of the
    /// words of a header.
    pub fn tidy(&self, is_left: impl Fn(&[u64]) -> bool) {
        let Store::Directory(own) = self else { return };
        let beside = own.parent().and_then(|base| fs::read_dir(base).ok()).into_iter().flatten().flatten();
        for path in beside.map(|entry| entry.path()).filter(|path| path != own) {
            let other = Store::Directory(path);
            // A header that a process has is locked.
            if let Ok(Some(mut header)) = other.take(HEADER)
                && is_left(header.words())
            {
                info!("{}: a state that nobody has taken over is removed", other.describe());
                other.sweep(|name| name == HEADER || super::tables::generation_of(name).is_some());
                other.close();
            }
        }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Store::Directory(path) => Some(path),
            Store::Descriptors(_) => None,
        }
    }

    /// What it is, for the log.
    pub fn describe(&self) -> String {
        match self {
            Store::Directory(path) => path.display().to_string(),
            Store::Descriptors(_) => "the service manager's descriptors".to_owned(),
        }
    }

    /// The header, as it is or new. A process that ends is waited for; with `takeover` one that does not is asked to, and gives its sockets.
    ///
    /// # Errors
    /// When another process has it, or the system refuses.
    pub fn header(&self, words: usize, takeover: bool) -> Result<(Region, Vec<LeftSockets>), StoreError> {
        let begin = Instant::now();
        let mut asked: Option<Instant> = None;
        let patience = if takeover { PATIENCE_WITH_ONE_THAT_RUNS } else { PATIENCE };
        // Before anybody is asked.
        let mut successor = self.directory().filter(|_| takeover).and_then(|directory| {
            let closed = |error: &io::Error| debug!("the former process's sockets are opened anew: {error}");
            Successor::listen(directory).inspect_err(closed).ok()
        });
        loop {
            let region = match self.take(HEADER) {
                Ok(Some(region)) if region.len() >= words => Ok(region),
                // What is too short is none of ours.
                Ok(Some(_)) => self.remove(HEADER).and_then(|()| self.create(HEADER, words)),
                Ok(None) => self.create(HEADER, words),
                Err(error) => Err(error),
            };
            match region {
                Ok(region) => return Ok((region, successor.map(Successor::take).unwrap_or_default())),
                Err(RegionError::Held { .. }) if begin.elapsed() < patience => {
                    if takeover && asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
                        if asked.is_none() {
                            info!("asking the process that uses {} to end", self.describe());
                        }
                        self.ask();
                        asked = Some(Instant::now());
                    }
                    successor.iter_mut().for_each(Successor::look);
                    thread::sleep(Duration::from_millis(1));
                }
                Err(RegionError::Held { .. }) => return Err(StoreError::Held(self.describe())),
                // Another process has just created it.
                Err(RegionError::Io { source, .. })
                    if source.kind() == ErrorKind::AlreadyExists && begin.elapsed() < PATIENCE => {}
                Err(error) => return Err(StoreError::Failed(error.to_string())),
            }
        }
    }

    /// Asks the process that has the header to end. It may just have ended, and taken the file along.
    fn ask(&self) {
        let Store::Directory(path) = self else { return };
        match Region::of_another(path.join(HEADER)).and_then(Header::of) {
            Ok((header, _)) => header.succession().ask(std::process::id()),
            Err(error) => debug!("{} cannot be asked: {error}", path.display()),
        }
    }

    /// The region of this name, as it is; `None` if there is none.
    fn take(&self, name: &str) -> Result<Option<Region>, RegionError> {
        match self {
            Store::Directory(path) => match Region::existing(path.join(name)) {
                Ok(region) => Ok(Some(region)),
                Err(RegionError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
                // A process was killed between the file's creation and its first byte.
                Err(RegionError::Empty) => fs::remove_file(path.join(name))
                    .map(|()| None)
                    .map_err(|source| RegionError::Io { path: path.join(name), source }),
                Err(error) => Err(error),
            },
            Store::Descriptors(descriptors) => {
                let descriptor = lock(descriptors).get_mut(name).and_then(Option::take);
                descriptor.map(|descriptor| Region::of_descriptor(descriptor, name)).transpose()
            }
        }
    }

    /// The region of this name, which a former process has left.
    ///
    /// # Errors
    /// When there is none, or it is not this box's alone.
    pub fn existing(&self, name: &str) -> Result<Region, Refused> {
        match self.take(name) {
            Ok(Some(region)) => Ok(region),
            Ok(None) => Err(Refused::File(format!("{name} is missing"))),
            Err(error) => Err(Refused::File(error.to_string())),
        }
    }

    /// A new region of this name, all zero.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn create(&self, name: &str, words: usize) -> Result<Region, RegionError> {
        match self {
            Store::Directory(path) => Region::create(path.join(name), words),
            Store::Descriptors(descriptors) => {
                let region = Region::sealed(&format!("synproxy-{name}"), words)?;
                if let Some(descriptor) = region.descriptor() {
                    service_manager::keep_descriptor(name, descriptor)
                        .map_err(|source| RegionError::Io { path: format!("memfd:{name}").into(), source })?;
                }
                lock(descriptors).insert(name.to_owned(), None);
                Ok(region)
            }
        }
    }

    /// Removes a region; who has it mapped keeps it.
    fn remove(&self, name: &str) -> Result<(), RegionError> {
        match self {
            Store::Directory(path) => {
                let path = path.join(name);
                fs::remove_file(&path).map_err(|source| RegionError::Io { path, source })
            }
            Store::Descriptors(descriptors) => {
                lock(descriptors).remove(name);
                service_manager::forget_descriptor(name);
                Ok(())
            }
        }
    }

    /// Removes everything whose name `is_old`.
    pub fn sweep(&self, is_old: impl Fn(&str) -> bool) {
        let names: Vec<String> = match self {
            Store::Directory(path) => {
                let entries = fs::read_dir(path).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Store::Descriptors(descriptors) => lock(descriptors).keys().cloned().collect(),
        };
        for name in names.iter().filter(|name| is_old(name)) {
            if let Err(error) = self.remove(name) {
                warn!("an old part of the state stays: {error}");
            }
        }
    }

    /// Removes a part of the state that a box which runs has no use for any more.
    pub fn discard(&self, name: &str) {
        if let Err(error) = self.remove(name) {
            debug!("a part of the state stays: {error}");
        }
    }

    /// Removes the directory, once nothing is in it.
    pub fn close(&self) {
        if let Store::Directory(path) = self {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Gives back the memory of tables in this directory of a box that holds nothing, as long as no process uses them; the next one allocates it again.
pub fn trim(directory: &Path) {
    let store = Store::Directory(directory.to_owned());
    // It keeps out a process that starts meanwhile.
    let Ok(Some(_header)) = store.take(HEADER) else { return };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        if super::tables::generation_of(&name).is_some()
            && let Err(error) = region::trim(directory.join(&name))
        {
            debug!("{name} is not made smaller: {error}");
        }
    }
}

/// Gives back memory as [`trim`] does, of all states below the default directories.
pub fn trim_all() {
    for base in DEFAULTS {
        let boxes = fs::read_dir(base).into_iter().flatten().flatten();
        boxes.map(|entry| entry.path()).filter(|path| path.join(HEADER).is_file()).for_each(|path| trim(&path));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the file system of a path is one in memory; `None` if the kernel does not say.
fn is_in_memory(path: &Path) -> Option<bool> {
    // The type's width and sign differ from one architecture to another, and the numbers have 32 bits.
    let kind = statfs(path).ok()?.f_type as u64 & 0xffff_ffff;
    Some(IN_MEMORY.contains(&kind))
}

/// The box's directory below `base`, both made where they are missing. Nobody else may write into either.
fn directory(base: &Path, name: &str, (user, group): (Option<u32>, Option<u32>)) -> io::Result<PathBuf> {
    let path = base.join(name);
    for (path, mode) in [(base, 0o755), (&path, 0o700)] {
        let is_new = match DirBuilder::new().mode(mode).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        // The process removes what is in it as the user it changes to.
        if is_new && (user, group) != (None, None) {
            std::os::unix::fs::lchown(path, user, group)?;
        }
        let found = fs::symlink_metadata(path)?;
        let own = rustix::process::geteuid().as_raw();
        let is_ours = found.uid() == own || found.uid() == 0 || Some(found.uid()) == user;
        if !found.is_dir() || !is_ours || found.mode() & 0o022 != 0 {
            let why = format!("{} is no directory that only this box's user can write into", path.display());
            return Err(io::Error::other(why));
        }
    }
    Ok(path)
}
