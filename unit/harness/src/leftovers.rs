//! What a test makes outside of its process (network namespaces, processes, temporary files), and how it goes when the test is interrupted.
//!
//! * All names begin with `spx`, the process id and a hyphen ([`name`]).
//! * SIGINT, SIGTERM, SIGHUP and the death of the process that started the program end it through [`end`], which ends its descendants and removes
//!   what carries its name.
//! * SIGKILL leaves what it leaves: the programs in the namespaces end by themselves (they are started so that they end with the thread that
//!   started them), and the next test, demo or benchmark removes the rest ([`sweep`]): what carries the id of a process that is gone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getppid};

/// The first part of every name, before the process id.
pub const PREFIX: &str = "spx";

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/run/netns";

/// How long a process may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Held while something is made; taken for good by [`end`], after which nothing more is made.
static MAKING: RwLock<()> = RwLock::new(());

/// A name that nothing else has, for a namespace or a file: the prefix, the process id, a number, and `role`.
pub fn name(role: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}-{role}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The path of a temporary file or directory with such a name, which nobody has made yet.
pub fn file(role: &str) -> PathBuf {
    std::env::temp_dir().join(name(role))
}

/// To be held while something with a [`name`] is made, so that [`end`] does not overlook it. Sweeps first, once a process. Never returns
/// once the process is about to end.
pub fn making() -> RwLockReadGuard<'static, ()> {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    MAKING.read().unwrap_or_else(|poison| poison.into_inner())
}

/// From now on a signal, or the death of the parent, ends the process through [`end`].
///
/// # Panics
/// If somebody else handles signals.
pub fn guard() {
    ctrlc::set_handler(|| {
        end();
        process::exit(130);
    })
    .expect("nobody else handles signals here");
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGTERM).expect("a signal at the parent's death can be asked for");
    if getppid() != parent {
        end();
        process::exit(130);
    }
}

/// Ends every descendant of this process and removes every namespace and temporary file with its name, whatever still uses them. Nothing
/// new can be made afterwards: the caller has to end.
pub fn end() {
    std::mem::forget(MAKING.write().unwrap_or_else(|poison| poison.into_inner()));
    remove(process::id());
}

/// Removes what processes that are no more have left behind.
pub fn sweep() {
    let mut gone: Vec<u32> = names(NAMES).chain(names(&std::env::temp_dir())).filter_map(|name| owner(&name)).collect();
    gone.sort_unstable();
    gone.dedup();
    gone.retain(|pid| !Path::new("/proc").join(pid.to_string()).exists());
    gone.into_iter().for_each(remove);
}

/// Removes what process `pid` has made: first the processes, or a namespace would live on without a name.
fn remove(pid: u32) {
    let own = format!("{PREFIX}{pid}-");
    let namespaces: Vec<String> = names(NAMES).filter(|name| name.starts_with(&own)).collect();
    let mut processes = descendants(pid);
    processes.extend(namespaces.iter().flat_map(|name| inside(name)));
    // The threads of this very process that are inside are no concern.
    processes.retain(|process| *process != process::id() as i32);
    stop(&processes);
    for name in namespaces {
        // Nothing to do about a failure; the next sweep tries again.
        let _ = Command::new("ip").args(["netns", "del", &name]).stderr(Stdio::null()).status();
    }
    let folder = std::env::temp_dir();
    for name in names(&folder).filter(|name| name.starts_with(&own)) {
        let path = folder.join(name);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
}

/// Ends processes: by SIGTERM, since a program takes back what it did to interfaces, and then by SIGKILL.
fn stop(processes: &[i32]) {
    let send = |signal: Signal| {
        for pid in processes {
            // It may have ended by itself.
            let _ = signal::kill(Pid::from_raw(*pid), signal);
        }
    };
    let start = Instant::now();
    send(Signal::SIGTERM);
    while processes.iter().any(|pid| runs(*pid)) {
        if start.elapsed() > PATIENCE {
            return send(Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process is there and more than an exit status nobody has asked for.
fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// State and parent of a process.
fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses, and may contain any of them.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// The processes below this one.
fn descendants(pid: u32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> =
        names("/proc").filter_map(|name| name.parse().ok()).filter_map(|pid| Some((pid, stat(pid)?.1))).collect();
    let mut found = vec![pid as i32];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(child, _)| *child));
        next += 1;
    }
    found.split_off(1)
}

/// The processes in a namespace.
fn inside(name: &str) -> Vec<i32> {
    let output = Command::new("ip").args(["netns", "pids", name]).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process id in a name of ours.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// The names in a directory, none if there is no such directory.
fn names(folder: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_name_is_read_and_of_other_names_nobody_is() {
        assert_eq!(owner(&name("box")), Some(process::id()));
        for name in ["spx-box", "spx12", "spx1x-0-box", "other12-0-box"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn children_of_children_are_found() {
        let mut shell = Command::new("sh").args(["-c", "sleep 30; true"]).spawn().expect("there is a shell");
        let begin = Instant::now();
        let found = loop {
            let found = descendants(process::id());
            if found.iter().any(|pid| stat(*pid).is_some_and(|(_, parent)| parent == shell.id() as i32)) {
                break found;
            }
            assert!(begin.elapsed() < PATIENCE, "{found:?}");
        };
        assert!(found.contains(&(shell.id() as i32)));
        stop(&descendants(shell.id()));
        shell.kill().expect("a child can be killed");
        shell.wait().expect("a child can be waited for");
    }
}
