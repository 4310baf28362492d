//! An interface that one box has for itself: a lock, and in the same file the settings it had before.
//!
//! The file lies in [`DIRECTORY`] and is named by the interface's index and the network namespace's number. Its lock is the kernel's
//! (`flock(2)`), so it ends with the process, however that ends. What was written before the first change is what the next box, or
//! [`restore`](super::restore()), puts back when the process was killed. An empty file says nothing; it stays only where the process may not remove it.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, info, warn};

use super::Interface;
use super::ethtool::Ethtool;
use super::originals::Originals;
use super::record::{self, END};
use super::rtnetlink::Link;
use crate::error::OpenError;

/// Where the files lie.
pub const DIRECTORY: &str = "/run/synproxy";

/// How a file's name begins.
pub(super) const PREFIX: &str = "port-";

/// The first line of a file.
const VERSION: &str = "synproxy-port 1";

/// The second line, but for its last character, which says whether the box has taken the interface down: 1 or 0. It is all that changes later.
const STATE: &str = "taken-down ";

/// Where that character is.
const STATE_AT: u64 = (VERSION.len() + 1 + STATE.len()) as u64;

/// The most characters that are shown of who holds a lock.
const LONGEST_HOLDER: usize = 200;

/// How long another process may hold the lock for something short, as [`restore`](super::restore()) does.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often to try again meanwhile.
const STEP: Duration = Duration::from_millis(1);

/// An interface that this process has for itself, until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    name: String,
    index: u32,
    /// The file; `None` where there can be none.
    file: Option<(File, PathBuf)>,
    /// The lines above the settings.
    head: String,
    /// The file stays when this ends.
    is_kept: bool,
    /// What a former process has left: how the settings were before it changed them, and the XDP program that is still attached.
    left: Originals,
}

/// Claims the interfaces for `holder`, as others are told of it. What a former process has left changed at them stays so, for this one.
///
/// # Errors
///
/// When another process has one of them.
pub(super) fn claim(interfaces: &[&Interface], holder: &str) -> Result<Vec<Claim>, OpenError> {
    let ethtool = Ethtool::new().map_err(|source| OpenError::Io { what: "a socket".into(), source })?;
    let namespace = Namespace::of_this_thread(&ethtool);
    // In the same order everywhere, so that of two boxes with the same ports one gets both.
    let mut order: Vec<usize> = (0..interfaces.len()).collect();
    order.sort_by_key(|&at| interfaces[at].index());
    let mut claims: Vec<(usize, Claim)> = Vec::new();
    for at in order {
        claims.push((at, Claim::new(interfaces[at].link(), holder, &namespace, &ethtool)?));
    }
    claims.sort_by_key(|(at, _)| *at);
    Ok(claims.into_iter().map(|(_, claim)| claim).collect())
}

impl Claim {
    fn new(link: &Link, holder: &str, namespace: &Namespace, ethtool: &Ethtool) -> Result<Claim, OpenError> {
        let name = link.name.clone();
        let head = format!(
            "{VERSION}\n{STATE}0\nholder {} {holder}\ninterface {name} {}\n",
            std::process::id(),
            namespace.identity(link)
        );
        let mut claim = Claim { name, index: link.index, file: None, head, is_kept: false, left: Originals::default() };
        let path = Path::new(DIRECTORY).join(namespace.file_name(PREFIX, link.index));
        let begin = Instant::now();
        let mut file = loop {
            match lock(&path, true) {
                Ok(Lock::Taken(file)) => break file,
                Ok(Lock::Held(_)) if begin.elapsed() < PATIENCE => thread::sleep(STEP),
                Ok(Lock::Held(text)) => return Err(held(&claim.name, &text)),
                Ok(Lock::Absent) => {}
                Err(error) => {
                    warn!(
                        "{}: {error}: nothing keeps another box from {name}, and its settings are put back at a clean end only",
                        path.display(),
                        name = claim.name
                    );
                    return Ok(claim);
                }
            }
        };
        let text = record::read(&mut file).unwrap_or_default();
        if let Some(left) = settings_of(&text, &namespace.identity(link)) {
            if left.taken_down {
                let state = Originals { taken_down: true, ..Originals::default() };
                if !state.put_back(ethtool, &claim.name).done.is_empty() {
                    info!("{}: taken up; a former process has left it down", claim.name);
                }
            }
            let programs = left.attached(link.index).into_iter().collect();
            claim.left = Originals { taken_down: false, programs, ..left };
            debug!("{}: its settings are those of a former process", claim.name);
        }
        claim.file = Some((file, path));
        claim.save(&claim.left);
        Ok(claim)
    }

    /// The interface's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// What a former process has left: how the settings were before it changed them, and the XDP program that is still attached.
    pub(super) fn left(&self) -> &Originals {
        &self.left
    }

    /// Puts back what a former process has left changed, but for its XDP program, where the next does not go on with it.
    pub(super) fn put_back_left(&mut self, ethtool: &Ethtool) {
        let done = self.left.put_back(ethtool, &self.name).done;
        if !done.is_empty() {
            info!("{}: {} put back as before a former process", self.name, done.join(", "));
        }
        let programs = std::mem::take(&mut self.left.programs);
        self.left = Originals { programs, ..Originals::default() };
        self.save(&self.left);
    }

    /// Writes down whether the interface is to be taken up; in one byte, so that a kill cannot come between.
    pub(super) fn note_taken_down(&self, is_taken_down: bool) {
        let Some((file, path)) = &self.file else { return };
        if let Err(error) = file.write_all_at(if is_taken_down { b"1" } else { b"0" }, STATE_AT) {
            warn!("{}: {error}: after a kill {} stays as it is then", path.display(), self.name);
        }
    }

    /// Writes down the settings before they are changed. When the process is killed meanwhile, nothing has changed yet.
    pub(super) fn save(&self, originals: &Originals) {
        let Some((file, path)) = &self.file else { return };
        let mut text = self.head.clone();
        originals.write(&mut text);
        let _ = writeln!(text, "{END}");
        if let Err(error) = record::write(file, &text) {
            warn!("{}: {error}: after a kill the settings of {} stay as they are then", path.display(), self.name);
        }
    }

    /// Leaves the file for a successor, or for [`restore`](super::restore()): it says since when.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
        if let Some((file, path)) = &self.file
            && let Err(error) = file.set_modified(SystemTime::now())
        {
            debug!("{} does not say since when it is left: {error}", path.display());
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some((file, path)) = self.file.as_ref().filter(|_| !self.is_kept) else { return };
        // While the lock is held, nobody else reads or removes it. The user the process has become may not be allowed to remove it.
        if let Err(error) = record::clear(file).and_then(|()| fs::remove_file(path)) {
            debug!("{} stays: {error}", path.display());
        }
    }
}

/// Who has an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    #[default]
    Nobody,
    /// A box, or another program of this package.
    Process {
        /// Its process, where the file says.
        process: Option<u32>,
        /// What it is, in words.
        what: String,
    },
    /// A process that has ended and has left settings changed, for a successor or because it was killed; [`restore`](super::restore()) puts them back.
    Killed,
}

/// Who has an interface. Nothing is changed: a lock that others may share is taken for a moment.
pub(super) fn holder_of(link: &Link, ethtool: &Ethtool) -> Holder {
    let namespace = Namespace::of_this_thread(ethtool);
    let path = Path::new(DIRECTORY).join(namespace.file_name(PREFIX, link.index));
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let Ok(mut file) = file else { return Holder::Nobody };
    if !file.metadata().is_ok_and(|own| own.is_file()) {
        return Holder::Nobody;
    }
    // SAFETY: the descriptor is open, and no pointer is passed.
    let is_held = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } < 0;
    let text = record::read(&mut file).unwrap_or_default();
    if is_held {
        let line = text.lines().find_map(|line| line.strip_prefix("holder ")?.split_once(' '));
        let what = line.map_or("another process", |(_, what)| what).to_owned();
        return Holder::Process { process: line.and_then(|(process, _)| process.parse().ok()), what };
    }
    if settings_of(&text, &namespace.identity(link)).is_some() { Holder::Killed } else { Holder::Nobody }
}

/// The indexes of the interfaces that have a file.
pub(super) fn files(namespace: &Namespace, prefix: &str) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut indexes: Vec<u32> = names.filter_map(|name| namespace.index_of(prefix, &name)).collect();
    indexes.sort_unstable();
    Ok(indexes)
}

/// Why another process cannot have an interface.
pub(super) fn held(name: &str, text: &str) -> OpenError {
    OpenError::Busy {
        what: format!("{name} belongs to {}", holder(text)),
        hint: "an interface is a port of one box only; end that one, or name another interface".into(),
    }
}

/// Who holds a file's lock, in words. Others may have written the file, so nothing of it moves a terminal's cursor or fills its screen.
pub(super) fn holder(text: &str) -> String {
    let plain = |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(LONGEST_HOLDER).collect() };
    let line = text.lines().find_map(|line| line.strip_prefix("holder ")).and_then(|line| line.split_once(' '));
    let Some((pid, holder)) = line.and_then(|(pid, holder)| Some((pid.parse::<u32>().ok()?, holder))) else {
        return "another process".into();
    };
    format!("{}, process {pid}", plain(holder))
}

/// The settings in a file, if it is complete and about this interface.
pub(super) fn settings_of(text: &str, identity: &str) -> Option<Originals> {
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) || lines.next_back() != Some(END) {
        return None;
    }
    let mut originals = Originals::default();
    let mut is_the_same = false;
    for line in lines {
        match line.split_once(' ') {
            Some(("holder", _)) => {}
            Some(("interface", rest)) => is_the_same = rest.split(' ').nth(1) == Some(identity),
            _ => originals.parse(line)?,
        }
    }
    if !is_the_same && !originals.is_empty() {
        debug!("settings of an interface that is no more are forgotten: {text:?}");
    }
    (is_the_same && !originals.is_empty()).then_some(originals)
}

/// The network namespace of a thread.
#[derive(Debug, Clone)]
pub(super) struct Namespace {
    /// The number of its inode.
    number: u64,
    /// What no other namespace has had since the machine started: numbers of inodes come again.
    cookie: u64,
    /// What no other start of the machine has.
    boot: String,
}

impl Namespace {
    /// That of the calling thread.
    pub(super) fn of_this_thread(ethtool: &Ethtool) -> Namespace {
        let number = fs::metadata("/proc/thread-self/ns/net").map_or(0, |file| file.ino());
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Namespace { number, cookie: ethtool.namespace_cookie(), boot: boot.trim().replace(' ', "") }
    }

    /// What no other interface has, nor had: its place, and its address.
    pub(super) fn identity(&self, link: &Link) -> String {
        let address: String = link.address.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}/{}/{}/{address}", self.boot, self.cookie, link.index)
    }

    /// The name of a file about an interface.
    pub(super) fn file_name(&self, prefix: &str, index: u32) -> String {
        format!("{prefix}{index}@{}", self.number)
    }

    /// The index in the name of a file, if it is about an interface in this namespace.
    fn index_of(&self, prefix: &str, name: &str) -> Option<u32> {
        let (index, number) = name.strip_prefix(prefix)?.split_once('@')?;
        (number.parse() == Ok(self.number)).then_some(index.parse().ok()?)
    }
}

/// What came of locking a file.
pub(super) enum Lock {
    /// This process has it.
    Taken(File),
    /// Another has it; the file says who.
    Held(String),
    /// There is none, and none was to be made; or it was just being removed.
    Absent,
}

/// Locks the file at `path`, and makes it first if `make` says so.
pub(super) fn lock(path: &Path, make: bool) -> io::Result<Lock> {
    if make {
        DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    }
    // The directory may belong to the user that a box becomes, so what lies there is not trusted: no link, nothing with a second name.
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create(make)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let mut file = match options {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && !make => return Ok(Lock::Absent),
        Err(error) => return Err(error),
    };
    let own = file.metadata()?;
    if !own.is_file() || own.nlink() > 1 {
        return Err(io::Error::other("something that is no file of this program is there"));
    }
    // SAFETY: the descriptor is open, and no pointer is passed.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == ErrorKind::WouldBlock {
            Ok(Lock::Held(record::read(&mut file)?))
        } else {
            Err(error)
        };
    }
    // The former holder may have removed it.
    let is_there = fs::symlink_metadata(path).is_ok_and(|there| there.ino() == own.ino());
    Ok(if is_there { Lock::Taken(file) } else { Lock::Absent })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "synproxy-port 1\ntaken-down 0\nholder 12 the box between lan0 and wan0\ninterface lan0 me\noffloads rx-gro\nend\n";

    #[test]
    fn settings_count_only_if_they_are_complete_and_of_the_same_interface() {
        let originals = settings_of(TEXT, "me").unwrap();
        assert_eq!(originals.offloads, ["rx-gro"]);
        assert_eq!(settings_of(TEXT, "another"), None);
        assert_eq!(settings_of(&TEXT.replace("offloads rx-gro\n", ""), "me"), None, "nothing was changed");
        let mut bytes = TEXT.as_bytes().to_vec();
        bytes[STATE_AT as usize] = b'1';
        let originals = settings_of(std::str::from_utf8(&bytes).unwrap(), "me").unwrap();
        assert!(originals.taken_down && originals.offloads == ["rx-gro"]);
        for length in 0..TEXT.len() - 1 {
            assert_eq!(settings_of(&TEXT[..length], "me"), None, "{length}");
        }
        for wrong in ["synproxy-port 2", "synproxy-port"] {
            assert_eq!(settings_of(&TEXT.replace("synproxy-port 1", wrong), "me"), None);
        }
        assert_eq!(settings_of(&TEXT.replace("offloads", "mtu"), "me"), None);
    }

    #[test]
    fn the_holder_is_named() {
        assert_eq!(holder(TEXT), "the box between lan0 and wan0, process 12");
        for text in ["", "holder 12", "holder me the box", "holder  x"] {
            assert_eq!(holder(text), "another process", "{text:?}");
        }
        let long = format!("holder 12 \u{1b}[2J\t{}", "x".repeat(5000));
        assert_eq!(holder(&long), format!("[2J{}, process 12", "x".repeat(LONGEST_HOLDER - 3)));
    }

    #[test]
    fn a_file_is_named_by_interface_and_namespace() {
        let namespace = Namespace { number: 4_026_531_840, cookie: 1, boot: "b".into() };
        assert_eq!(namespace.file_name(PREFIX, 7), "port-7@4026531840");
        assert_eq!(namespace.index_of(PREFIX, "port-7@4026531840"), Some(7));
        for other in ["port-7@4026531841", "port-@4026531840", "lan0-wan0@4026531840.sock", "port-7"] {
            assert_eq!(namespace.index_of(PREFIX, other), None, "{other}");
        }
        let link = Link { index: 7, address: vec![2, 0, 0xff], ..Link::default() };
        assert_eq!(namespace.identity(&link), "b/1/7/0200ff");
    }

    #[test]
    fn a_lock_has_one_holder_and_its_file_goes_with_it() {
        let path = std::env::temp_dir().join(format!("pktio-claim-{}", std::process::id()));
        assert!(matches!(lock(&path, false).unwrap(), Lock::Absent));
        let Lock::Taken(file) = lock(&path, true).unwrap() else { panic!("it is new") };
        record::write(&file, TEXT).unwrap();
        let Lock::Held(text) = lock(&path, true).unwrap() else { panic!("it is held") };
        assert_eq!(text, TEXT);
        let head = String::new();
        drop(Claim {
            name: "lan0".into(),
            index: 7,
            file: Some((file, path.clone())),
            head,
            is_kept: false,
            left: Originals::default(),
        });
        assert!(!path.exists());
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(lock(&path, true).is_err());
        fs::remove_file(&path).unwrap();
    }
}
