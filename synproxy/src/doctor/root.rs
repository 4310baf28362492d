//! Files below a directory, which is `/` but in tests; and lists of cores in them.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory below which `/proc` and `/sys` are read.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// Reads below `path`.
    pub fn new(path: &Path) -> Root {
        Root(path.to_owned())
    }

    /// The path of a file; `path` has no slash in front.
    pub fn path(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// The text of a file, without blanks around it; `None` if it cannot be read.
    pub fn read(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// A number in a file.
    pub fn number(&self, path: &str) -> Option<i64> {
        self.read(path)?.parse().ok()
    }

    /// The names in a directory, in order; none if it cannot be read.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort_unstable();
        names
    }

    /// What a symbolic link says.
    pub fn link(&self, path: &str) -> Option<String> {
        Some(fs::read_link(self.path(path)).ok()?.to_string_lossy().into_owned())
    }

    /// The number and the name of each process.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let numbers = self.list("proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
        numbers.filter_map(|number| Some((number, self.name_of(number)?))).collect()
    }

    /// The name of a process, in a line.
    pub fn name_of(&self, process: u32) -> Option<String> {
        Some(self.read(&format!("proc/{process}/comm"))?.replace(char::is_control, "?"))
    }

    /// The value of a line `KEY: value` of a file.
    pub fn value(&self, path: &str, key: &str) -> Option<String> {
        let text = self.read(path)?;
        text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned()))
    }

    /// The cores that this process may use, in order.
    pub fn cores(&self) -> Vec<usize> {
        self.value("proc/self/status", "Cpus_allowed_list").map(|list| parse_cores(&list)).unwrap_or_default()
    }

    /// The NUMA node of an interface's device; `None` if it is on none.
    pub fn node_of(&self, interface: &str) -> Option<u32> {
        u32::try_from(self.number(&format!("sys/class/net/{interface}/device/numa_node"))?).ok()
    }

    /// The cores of a NUMA node.
    pub fn cores_of_node(&self, node: u32) -> Vec<usize> {
        self.read(&format!("sys/devices/system/node/node{node}/cpulist"))
            .map(|list| parse_cores(&list))
            .unwrap_or_default()
    }
}

/// The cores of a list like `0-3,8`.
pub fn parse_cores(list: &str) -> Vec<usize> {
    /// More than any machine has.
    const MOST: usize = 1 << 16;
    let ranges = list.split(',').filter_map(|part| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(first.parse().ok()?..=last.parse::<usize>().ok()?.min(MOST))
    });
    ranges.flatten().collect()
}

/// The list of some cores, which are in order: `0-3,8`.
pub fn list_of(cores: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &core in cores {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let part =
        |(first, last): (usize, usize)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.into_iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_is_read_and_written() {
        for (list, cores) in [("0-3,8", &[0, 1, 2, 3, 8][..]), ("", &[]), ("5", &[5]), ("0,2,4-5", &[0, 2, 4, 5])] {
            assert_eq!((parse_cores(list).as_slice(), list_of(cores).as_str()), (cores, list));
        }
        assert_eq!(parse_cores("x,3-1,2"), [2]);
    }
}
