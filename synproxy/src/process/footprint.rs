//! How much memory a configuration needs, and whether this machine has it.
//!
//! Tables are mapped before they are used, and the kernel promises memory that it does not have: a table that is too large would start, and
//! end the process when a flood fills it. So a configuration is refused that needs more than there is, and the address space is tried before
//! any interface is touched.

use super::exit::Failure;
use confparse::{Config, OnFailure, Value};
use pktio::region::Region;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use tcpstate::{FlowMap, Footprint, SharedSyns};

/// Bytes of a buffer for a frame of an MTU up to about 1700.
const BUFFER: u64 = 2048;

/// Bytes of the queues to a worker, if there are several: 2048 frames for each side.
const HAND_OFF: u64 = 2 * 2048 * 1536;

/// Bytes of a worker's stack, batches and statistics.
const WORKER: u64 = 4 << 20;

/// Address space that the C library's allocator sets aside for a thread, most of which is never used.
const ARENA: u64 = 64 << 20;

/// Threads besides the workers, without those of the outputs of events.
const OTHER_THREADS: u64 = 5;

/// Bytes of the program and of what serves the operator.
const PROGRAM: u64 = 16 << 20;

/// The memory that a configuration needs, by the key that decides on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Section and name of a key, its value, and the bytes.
    parts: Vec<(Option<&'static str>, &'static str, u64, u64)>,
    /// Threads that allocate.
    threads: u64,
}

impl Needed {
    /// The memory of a process with so many workers and this configuration; `bypass`: one that forwards every frame without the engine.
    pub fn of(config: &Config, workers: usize, bypass: bool) -> Self {
        let each = workers as u64;
        let engine = if bypass { Footprint::default() } else { Footprint::of(&config.engine.share(workers.max(1))) };
        let answers_syns = config.syns_in_kernel && !bypass;
        let knows_flows = (config.failures.on_failure != OnFailure::Closed || answers_syns) && !bypass;
        let flows = FlowMap::words_needed(config.engine.share(workers.max(1)).flow_capacity());
        let flow_map = if knows_flows { 8 * flows as u64 } else { 0 };
        let frames = 2 * pktio::Options::default().frames_per_port as u64 * BUFFER;
        // The engine's own filter and buckets lie idle then.
        let [answers, noted, buckets] =
            if answers_syns { SharedSyns::words_needed(&config.engine.share(workers.max(1))) } else { [0; 3] };
        let shed = if (config.shed || answers_syns) && !bypass { pktio::shed::BYTES as u64 } else { 0 };
        let others = if workers > 1 { HAND_OFF } else { 0 };
        let worker = engine.fixed + engine.held + frames + shed + others + WORKER + 8 * (answers + noted) as u64;
        let number = |section: Option<&str>, name: &str| {
            let key = Config::KEYS.iter().find(|key| key.section == section && key.name == name);
            match key.and_then(|key| key.value(config)) {
                Some(Value::Number(number)) => number,
                _ => 0,
            }
        };
        let part = |section, name, bytes: u64| (section, name, number(section, name), each.saturating_mul(bytes));
        let mut threads = part(None, "threadcount", worker);
        // The command line overrides it.
        threads.2 = each;
        let events = &config.events;
        let outputs = [events.file.is_some(), events.syslog.is_some(), events.command.is_some()];
        Self {
            threads: each + OTHER_THREADS + outputs.map(u64::from).iter().sum::<u64>(),
            parts: vec![
                part(None, "conntablesize", engine.table + flow_map),
                part(None, "learnhashsize", engine.server_options),
                part(Some("ratehash"), "size", engine.limits + 8 * buckets as u64),
                part(None, "proved_sources", engine.proved_sources),
                part(None, "service_buffers", engine.services),
                threads,
            ],
        }
    }

    /// All of it, in bytes.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(PROGRAM, |sum, (.., bytes)| sum.saturating_add(*bytes))
    }

    /// The address space it takes, in bytes: more than the memory, since the C library sets some aside for each thread.
    pub fn address_space(&self) -> u64 {
        self.total().saturating_add(ARENA.saturating_mul(self.threads))
    }

    /// Section and name of the key that needs more than `limit` allows, and why the configuration is refused, in one line; `None` if all of
    /// it fits.
    pub fn exceeds(&self, limit: &Limit) -> Option<(Option<&'static str>, &'static str, String)> {
        let total = self.total();
        if total <= limit.bytes {
            return None;
        }
        let &(section, name, value, bytes) = self.parts.iter().max_by_key(|(.., bytes)| *bytes)?;
        let section_of = section.map_or(String::new(), |section| format!("{section}."));
        let message = format!(
            "`{section_of}{name} = {value}` takes {} of the {} that this configuration needs, and {limit}",
            Size(bytes),
            Size(total)
        );
        Some((section, name, message))
    }

    /// Tries whether the process may have so much address space, which `ulimit -v`, `ulimit -d` and `vm.overcommit_memory` bound.
    ///
    /// # Errors
    /// When it may not.
    pub fn reserve(&self) -> Result<(), Failure> {
        let words = usize::try_from(self.address_space() / 8).unwrap_or(usize::MAX);
        Region::anonymous(words).map(drop).map_err(|error| Failure::AddressSpace { needed: self.to_string(), error })
    }
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", Size(self.total()))?;
        // What is not there is not worth a word.
        for (at, (section, name, _, bytes)) in self.parts.iter().filter(|(.., bytes)| *bytes > 0).enumerate() {
            let separator = if at > 0 { ", " } else { "" };
            let section = section.map_or(String::new(), |section| format!("{section}."));
            write!(f, "{separator}{section}{name} {}", Size(*bytes))?;
        }
        write!(f, ", the program {}", Size(PROGRAM))
    }
}

/// A number of bytes, for people.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut size = self.0 as f64 / 1024.0;
        let mut at = 0;
        while size >= 1024.0 && at + 1 < units.len() {
            size /= 1024.0;
            at += 1;
        }
        write!(f, "{size:.1} {}", units[at])
    }
}

/// The most memory this process can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// So many.
    pub bytes: u64,
    /// Who sets it.
    by: String,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.by, Size(self.bytes))
    }
}

impl Limit {
    /// That of this machine, or of the control group this process is in, whichever is lower. `None` if neither can be read.
    pub fn here() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    /// The same from the files under `root`.
    pub fn below(root: &Path) -> Option<Self> {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let meminfo = read(root.join("proc/meminfo")).unwrap_or_default();
        let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
        let machine = total.and_then(|kib| kib.trim().parse::<u64>().ok()).map(|kib| kib << 10);
        let machine = machine.map(|bytes| Limit { bytes, by: "this machine has".to_owned() });
        let limits = group_files(root).into_iter().filter_map(|file| read(root.join(file))?.trim().parse().ok());
        let group = limits.min().map(|bytes| Limit { bytes, by: "its control group allows".to_owned() });
        [machine, group].into_iter().flatten().min_by_key(|limit| limit.bytes)
    }
}

/// The files under `root` with the limits of memory of the control groups that this process is in, its own first, then those above, which bound it too.
pub fn group_files(root: &Path) -> Vec<PathBuf> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let files = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            "memory" => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let own = Path::new(mount).join(path.trim_start_matches('/'));
        let above = own.ancestors().take_while(|at| at.starts_with(mount));
        Some(above.map(|at| at.join(file)).collect::<Vec<_>>())
    });
    files.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed(set: impl FnOnce(&mut Config)) -> Needed {
        let mut config = Config::default();
        set(&mut config);
        Needed::of(&config, config.workers, false)
    }

    #[test]
    fn every_size_of_a_table_counts_and_the_largest_is_named() {
        let limit = Limit { bytes: 8 << 30, by: "this machine has".to_owned() };
        assert_eq!(needed(|_| ()).exceeds(&limit), None);
        let named = |needed: Needed| {
            let (section, name, message) = needed.exceeds(&limit).expect("more than there is");
            assert!(!message.contains('\n') && message.ends_with("this machine has 8.0 GiB"), "{message}");
            (section, name)
        };
        assert_eq!(named(needed(|config| config.engine.table_buckets = 268_435_455)), (None, "conntablesize"));
        assert_eq!(named(needed(|config| config.engine.learn_capacity = 1 << 30)), (None, "learnhashsize"));
        assert_eq!(named(needed(|config| config.engine.rate.size = 1 << 30)), (Some("ratehash"), "size"));
        let small = Limit { bytes: 1 << 30, ..limit };
        let many = needed(|config| config.workers = 64).exceeds(&small).expect("more than there is");
        assert!(many.1 == "threadcount" && many.2.starts_with("`threadcount = 64` takes "), "{}", many.2);
        // The SYN cache lies in the flow table, whatever its most is.
        assert_eq!(needed(|config| config.engine.syn_cache_max = 2_147_483_647).exceeds(&small), None);
    }

    #[test]
    fn what_cannot_be_mapped_is_said_in_one_line() {
        let failure =
            Needed { parts: vec![(None, "conntablesize", 1, 1 << 60)], threads: 1 }.reserve().unwrap_err().to_string();
        assert!(failure.contains("1.0 EiB") && !failure.contains('\n'), "{failure}");
        needed(|_| ()).reserve().expect("a small process may have this much");
    }

    #[test]
    fn the_limit_of_a_control_group_counts_and_that_of_those_above_it() {
        let root = std::env::temp_dir().join(format!("spx-footprint-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n");
        let limit = || Limit::below(&root).expect("there is one").to_string();
        assert_eq!(limit(), "this machine has 8.0 GiB");
        write("proc/self/cgroup", "1:name=systemd:/a\n0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(limit(), "this machine has 8.0 GiB");
        write("sys/fs/cgroup/a/memory.max", "1073741824\n");
        assert_eq!(limit(), "its control group allows 1.0 GiB");
        write("proc/self/cgroup", "4:memory:/c\n");
        write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "536870912\n");
        assert_eq!(limit(), "its control group allows 512.0 MiB");
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(Limit::below(&root), None);
    }
}
