//! What outlives the process in the file system of BPF: the entries of connections that the kernel forwards by itself, and the links of its programs at
//! tc. XDP programs stay by netlink.
//!
//! One directory for each pair of ports, named by the network namespace's number and the interfaces' indexes. Without that file system, or
//! permission to write there, nothing outlives the process but XDP programs.

use std::error::Error;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};

use crate::mapping::Mapping;
use crate::netdev::Interface;
use crate::xdp::{BUCKET, MAP};

/// Where the file system is usually mounted.
const USUAL: &str = "/sys/fs/bpf";

/// The directory of ours in it.
const NAME: &str = "synproxy";

/// The file of the map of entries.
const FLOWS: &str = "flows";

/// The directory of one pair of ports.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// The directory of these ports.
    ///
    /// # Errors
    ///
    /// Why there can be none, in words.
    pub(crate) fn of([lan, wan]: [&Interface; 2]) -> Result<Pins, String> {
        let namespace = fs::metadata("/proc/thread-self/ns/net").map_err(|error| error.to_string())?.ino();
        let root = root().ok_or("no file system of BPF is mounted")?;
        let directory = root.join(format!("{namespace}-{}-{}", lan.index(), wan.index()));
        let pins = Pins { directory };
        // What another user has left there may be in the way.
        let probe = pins.directory.join("probe");
        let made = fs::create_dir_all(&pins.directory).and_then(|()| fs::create_dir(&probe));
        made.and_then(|()| fs::remove_dir(probe)).map_err(|error| format!("{}: {error}", pins.directory.display()))?;
        Ok(pins)
    }

    /// The words of the entries that a former process has left; they stay mapped until this one ends.
    pub(crate) fn former_words(&self) -> Option<&'static [AtomicU64]> {
        let map = MapData::from_pin(self.directory.join(FLOWS)).ok()?;
        let information = map.info().ok()?;
        let bytes = information.value_size() as usize * information.max_entries() as usize;
        let mapping = Box::leak(Box::new(Mapping::shared(map.fd().as_fd(), bytes).ok()?));
        // SAFETY: this process uses the mapping through this slice alone. A program writes 32-bit fields there too; whatever is read is a number.
        Some(unsafe { mapping.words() })
    }

    /// The map of entries that a former process has left, if it is one of so many buckets: programs that are loaded over it go on with what those of
    /// that process forward.
    pub(crate) fn former_map(&self, buckets: u32) -> Option<PathBuf> {
        let path = self.directory.join(FLOWS);
        let information = MapData::from_pin(&path).ok()?.info().ok()?;
        let fits = information.value_size() as usize == BUCKET && information.max_entries() == buckets;
        fits.then_some(path)
    }

    /// The link of this name that a former process has left, no longer pinned: its program is detached when it is dropped.
    pub(crate) fn take_link(&self, name: &str) -> Option<FdLink> {
        PinnedLink::from_pin(self.directory.join(name)).ok()?.unpin().ok()
    }

    /// Pins a link, so that its program stays, in the place of a former one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn put_link(&self, name: &str, link: FdLink) -> Result<PinnedLink, Box<dyn Error>> {
        Ok(link.pin(self.place(name)?)?)
    }

    /// Where something of this name is pinned: nothing is there, but the directory is.
    fn place(&self, name: &str) -> io::Result<PathBuf> {
        // A former process of these ports that ends late removes it when it is empty.
        fs::create_dir_all(&self.directory)?;
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(path),
        }
    }

    /// Whether the map of this name is the one that is pinned.
    fn has_pinned(&self, ebpf: &Ebpf, map: &str) -> bool {
        let own = match ebpf.map(map) {
            Some(Map::Array(data)) => data.info().ok(),
            _ => None,
        };
        let pinned = MapData::from_pin(self.directory.join(FLOWS)).ok().and_then(|map| map.info().ok());
        own.zip(pinned).is_some_and(|(own, pinned)| own.id() == pinned.id())
    }

    /// Pins the map of entries, in the place of a former one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn put_flows(&self, ebpf: &Ebpf, map: &str) -> Result<(), Box<dyn Error>> {
        Ok(ebpf.map(map).ok_or("the program lacks its map")?.pin(self.place(FLOWS)?)?)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Fails where something is pinned.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The entries of this process, and what a former one has left of its own. Dropping it has the kernel forward nothing any more, and removes what is pinned,
/// unless it is [kept](KeptFlows::keep).
#[derive(Debug)]
pub(crate) struct KeptFlows {
    pins: Pins,
    words: &'static [AtomicU64],
    former: Former,
    is_kept: bool,
}

/// What a former process has left.
#[derive(Debug)]
enum Former {
    None,
    /// Entries in a map of its own.
    Apart(&'static [AtomicU64]),
    /// Entries in the map that this process goes on with.
    Same,
}

impl KeptFlows {
    /// Pins the entries of this process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn new(pins: Pins, ebpf: &Ebpf, words: &'static [AtomicU64]) -> Result<KeptFlows, Box<dyn Error>> {
        if pins.has_pinned(ebpf, MAP) {
            // Until this process takes them over they may be another one's.
            return Ok(KeptFlows { pins, words, former: Former::Same, is_kept: true });
        }
        let former = pins.former_words().map_or(Former::None, Former::Apart);
        pins.put_flows(ebpf, MAP)?;
        Ok(KeptFlows { pins, words, former, is_kept: false })
    }

    /// The words of entries that a former process has left in a map of its own.
    pub(crate) fn former(&self) -> Option<&'static [AtomicU64]> {
        match self.former {
            Former::Apart(words) => Some(words),
            _ => None,
        }
    }

    /// Whether this process goes on with the entries of a former one.
    pub(crate) fn goes_on(&self) -> bool {
        matches!(self.former, Former::Same)
    }

    /// The entries are those of this process from now on.
    pub(crate) fn take_over(&mut self) {
        self.is_kept = false;
    }

    /// Leaves the entries, and the programs that are pinned beside them, for a successor.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for KeptFlows {
    fn drop(&mut self) {
        if !self.is_kept {
            // A process that has given up its privileges may not remove the files: without hashes they mean nothing.
            let hashes = self.words.chunks(BUCKET / 8).flat_map(|bucket| bucket.iter().take(8));
            hashes.for_each(|hash| hash.store(0, Ordering::Relaxed));
            remove(&self.pins.directory);
        }
    }
}

/// Where the directories lie: in the file system of BPF, at its usual place or wherever else it is mounted. A process that may see nothing else of it has
/// that directory as a mount of its own.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    root_among(&mounts)
}

/// As [`root`], for these lines of `mountinfo` (proc_pid_mountinfo(5)).
fn root_among(mounts: &str) -> Option<PathBuf> {
    let mounted = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (part, place) = (Path::new(fields.next()?), Path::new(fields.next()?));
        let is_own = part.ends_with(NAME);
        let root = if is_own { place.to_path_buf() } else { place.join(NAME) };
        kind.starts_with("bpf ").then_some((!is_own, place != Path::new(USUAL), root))
    });
    Some(mounted.min_by_key(|mounted| (mounted.0, mounted.1))?.2)
}

/// The directories of pairs of ports of which the interface with this index is one.
fn left(index: u32) -> Vec<PathBuf> {
    let Ok(namespace) = fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino().to_string()) else {
        return Vec::new();
    };
    let is_its = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut parts = name.split('-');
        parts.next() == Some(&*namespace) && parts.any(|part| part == index.to_string())
    };
    let Some(root) = root() else { return Vec::new() };
    fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_its).collect()
}

/// Removes what a killed process has pinned for the interface with this index; true if there was something.
pub(crate) fn remove_left(index: u32) -> bool {
    let left = left(index);
    left.iter().for_each(|directory| remove(directory));
    !left.is_empty()
}

/// Detaches the programs at tc that a killed process has pinned for the interface with this index.
pub(crate) fn detach_left(index: u32) {
    left(index).iter().for_each(|directory| {
        files(directory).filter(|path| !path.ends_with(FLOWS)).for_each(|path| drop(fs::remove_file(path)))
    });
}

fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn remove(directory: &Path) {
    files(directory).for_each(|path| drop(fs::remove_file(path)));
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_lies_in_the_file_system_or_is_all_that_is_seen_of_it() {
        let at = |mounts: &str| root_among(mounts).map(|root| root.display().to_string());
        let usual = "22 20 0:21 / /sys rw - sysfs sysfs rw\n30 22 0:27 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n";
        assert_eq!(at(usual).as_deref(), Some("/sys/fs/bpf/synproxy"));
        let elsewhere = "31 20 0:28 / /mnt/bpf rw - bpf none rw\n";
        assert_eq!(at(elsewhere).as_deref(), Some("/mnt/bpf/synproxy"));
        let own = "99 50 0:27 /synproxy /run/synproxy/bpf rw,nosuid - bpf bpf rw,mode=700\n";
        for mounts in [[elsewhere, usual, ""], [usual, elsewhere, ""]].map(|mounts| mounts.concat()) {
            assert_eq!(at(&mounts).as_deref(), Some("/sys/fs/bpf/synproxy"));
            assert_eq!(at(&(mounts + own)).as_deref(), Some("/run/synproxy/bpf"));
        }
        assert_eq!(at("22 20 0:21 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
