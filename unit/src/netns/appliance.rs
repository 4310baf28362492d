//! The proxy itself in the middle of a rig: started, waited for, stopped, and asked what it has seen.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use harness::{leftovers, note};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::{Namespace, Rig, program};

/// How long start and end may each take before they count as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How frames come in and go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// AF_XDP, the program in the driver's receive path.
    Driver,
    /// AF_XDP, the program in the kernel's generic hook.
    Generic,
    /// AF_PACKET with a mapped ring.
    Packet,
}

/// The proxy's mode with the SYN cache on, as a line of its configuration.
pub const CACHE_ON: &str = "halfopen_cache_max = 65536;";
/// And off: cookies alone.
pub const CACHE_OFF: &str = "halfopen_cache_max = 0;";

/// What a test puts in the middle, one after the other: the bridge, or the proxy with this configuration.
pub const MIDDLES: [Option<&str>; 3] = [None, Some(CACHE_ON), Some(CACHE_OFF)];

/// Puts one of [`MIDDLES`] there.
pub fn stand(rig: &Rig, middle: Option<&str>) -> Option<Appliance> {
    let Some(config) = middle else {
        rig.bridge();
        return None;
    };
    Some(Appliance::start(rig, Backend::Driver, config))
}

impl Backend {
    /// Every backend that works on veth.
    pub const ALL: [Backend; 3] = [Backend::Driver, Backend::Generic, Backend::Packet];

    /// The arguments that ask for it and nothing else.
    pub fn arguments(self) -> Vec<String> {
        let (mode, prefix) = match self {
            Backend::Driver => ("driver", "xdp"),
            Backend::Generic => ("generic", "xdp"),
            Backend::Packet => ("auto", "packet"),
        };
        let interface = |name| format!("{prefix}:{name}");
        vec![format!("--xdp-mode={mode}"), interface(Rig::LAN), interface(Rig::WAN)]
    }
}

/// A running `synproxy`; ended when dropped.
#[derive(Debug)]
pub struct Appliance {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    config: Option<PathBuf>,
}

/// What is left of an [`Appliance`] that was stopped.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub status: ExitStatus,
    /// How long it took to end.
    pub took: Duration,
    /// Everything it said, a line each.
    pub log: Vec<String>,
}

impl Report {
    /// What each worker handed over to others and took over from them; empty if it was the only one.
    pub fn crossed(&self) -> Vec<[u64; 2]> {
        self.workers().map(|row| [row[0], row[1]]).collect()
    }

    /// Frames that were lost between workers.
    pub fn lost_between(&self) -> u64 {
        self.workers().map(|row| row[2] + row[3]).sum()
    }

    /// What each worker told the others, heard from them, and told in vain.
    pub fn words(&self) -> Vec<[u64; 3]> {
        self.workers().map(|row| [row[6], row[7], row[8]]).collect()
    }

    /// The rows of the workers in the table at the end.
    fn workers(&self) -> impl Iterator<Item = [u64; 9]> {
        let rows = self.log.iter().skip_while(|line| !line.starts_with("workers ")).skip(1);
        rows.map_while(|line| {
            let cells = line.strip_prefix("  ")?.split_whitespace().map(str::parse);
            let cells: Vec<u64> = cells.collect::<Result<_, _>>().ok()?;
            cells.get(1..)?.try_into().ok()
        })
    }

    /// The last number given under `name` in the log, as `name=17` or `name 17`.
    pub fn figure(&self, name: &str) -> Option<u64> {
        figure(&self.log, name)
    }
}

fn figure(log: &[String], name: &str) -> Option<u64> {
    log.iter().rev().find_map(|line| {
        let mut rest = line.as_str();
        while let Some(at) = rest.find(name) {
            let before = rest[..at].chars().next_back();
            rest = &rest[at + name.len()..];
            let whole = !before.is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_');
            let value = rest.strip_prefix(['=', ':', ' ']).map(str::trim_start).unwrap_or_default();
            let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
            if whole && !digits.is_empty() {
                return digits.parse().ok();
            }
        }
        None
    })
}

/// Held for reading by each box that starts.
static STARTING: RwLock<()> = RwLock::new(());

impl Appliance {
    /// Starts the proxy in the middle of `rig` with the configuration entries `config` (the inside of
    /// `synproxyconf = { }`), and returns when frames flow.
    ///
    /// # Panics
    /// If it ends or stays silent instead of becoming ready; the message has all it said.
    pub fn start(rig: &Rig, backend: Backend, config: &str) -> Appliance {
        Appliance::start_with(rig, backend, config, &[])
    }

    /// As [`Appliance::start`], with further arguments.
    ///
    /// # Panics
    /// As [`Appliance::start`].
    pub fn start_with(rig: &Rig, backend: Backend, config: &str, arguments: &[&str]) -> Appliance {
        Appliance::start_on(rig, &backend.arguments(), config, arguments)
    }

    /// As [`Appliance::start_with`], with these words for the two ports.
    ///
    /// # Panics
    /// As [`Appliance::start`].
    pub fn start_on(rig: &Rig, ports: &[String], config: &str, arguments: &[&str]) -> Appliance {
        Appliance::start_in(rig, &rig.middle, ports, config, arguments)
    }

    /// As [`Appliance::start_on`], in this namespace of the rig.
    ///
    /// # Panics
    /// As [`Appliance::start`].
    pub fn start_in(rig: &Rig, place: &Namespace, ports: &[String], config: &str, arguments: &[&str]) -> Appliance {
        let mut command = place.command(program("synproxy"));
        // Rigs stand side by side on few cores: pinned, their first workers would all take the first one.
        if rig.queues() == 1 || !rig.is_alone() {
            command.arg("--no-pin");
        }
        let says = |option: &str| arguments.iter().any(|argument| argument.starts_with(option));
        if !says("--workers") {
            command.args(rig.workers());
        }
        // How several workers share the connections: what `STEER` of the environment says, where the test says nothing.
        if let Ok(steer) = env::var("STEER")
            && !says("--steer")
        {
            command.args(["--steer", &steer]);
        }
        // Rigs have interfaces of the same names, and one file system.
        if !says("--control") && !config.contains("control = ") {
            command.arg("--control=none");
        }
        // What one box leaves another must not find, unless the test is about that.
        if !says("--state-dir") && !config.contains("state_dir = ") {
            command.arg("--state-dir=none");
        }
        command.args(arguments);
        let config = (!config.is_empty()).then(|| {
            let path = leftovers::file("conf");
            fs::write(&path, format!("synproxyconf = {{\n{config}\n}};\n")).expect("writing a configuration");
            command.arg("--config").arg(&path);
            path
        });
        command.args(ports);
        let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starting ip netns exec");
        let (ready, is_ready) = mpsc::channel();
        let log = Arc::new(Mutex::new(Vec::new()));
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("piped"));
        let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().expect("piped"));
        let readers = [stdout, stderr].map(|pipe| {
            let (log, ready) = (Arc::clone(&log), ready.clone());
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let says_ready = line.split_whitespace().any(|word| word == "ready");
                    log.lock().expect("a reader does not panic").push(line);
                    if says_ready {
                        // Nobody listens any more after the first time.
                        let _ = ready.send(());
                    }
                }
            })
        });
        drop(ready);
        let mut appliance = Appliance { child, log, readers: readers.into(), config };
        appliance.wait_ready(&is_ready);
        appliance
    }

    /// Does something that would hinder a box that is starting, between two that do.
    pub fn while_none_starts(change: impl FnOnce()) {
        let _nobody = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        change();
    }

    fn wait_ready(&mut self, ready: &Receiver<()>) {
        match ready.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => panic!("not ready after {PATIENCE:?}:\n{}", self.log().join("\n")),
            // Both pipes closed: it ended.
            Err(RecvTimeoutError::Disconnected) => panic!("ended instead of starting:\n{}", self.log().join("\n")),
        }
    }

    /// What it has said so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("a reader does not panic").clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        // A process that has ended and was not waited for has no memory.
        self.resident().is_some()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.child.id() as i32), signal).expect("signalling a child of one's own");
    }

    /// Its resident memory in KiB, if it runs.
    pub fn resident(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
    }

    /// Ends it as an operator would, by SIGTERM, and returns its last words.
    ///
    /// # Panics
    /// If it has ended by itself, or does not end; the message has all it said.
    pub fn stop(self) -> Report {
        self.end(Signal::SIGTERM)
    }

    /// Ends it by `signal`, and returns its last words.
    ///
    /// # Panics
    /// As [`Appliance::stop`].
    pub fn end(mut self, signal: Signal) -> Report {
        if let Some(status) = self.child.try_wait().expect("waiting for a child of one's own") {
            panic!("it had ended by itself, {status}:\n{}", self.log().join("\n"));
        }
        let start = Instant::now();
        self.signal(signal);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for a child of one's own") {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "{signal} did not end it:\n{}", self.log().join("\n"));
            thread::sleep(Duration::from_millis(5));
        };
        let took = start.elapsed();
        self.readers.drain(..).for_each(|reader| reader.join().expect("a reader does not panic"));
        Report { status, took, log: self.log() }
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        // After `stop` there is nothing left to end. Otherwise a test has failed: its log is the best hint.
        if let Ok(None) = self.child.try_wait() {
            let _ = signal::kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(3) && matches!(self.child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            note!("synproxy said:\n{}", self.log().join("\n"));
        }
        if let Some(path) = self.config.take() {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_whole_name() {
        let log = ["cookies-bad=3 bad=4", "drops: bad-cookie 17", "syns: 9"].map(String::from);
        assert_eq!(figure(&log, "bad"), Some(4));
        assert_eq!(figure(&log, "bad-cookie"), Some(17));
        assert_eq!(figure(&log, "syns"), Some(9));
        assert_eq!(figure(&log, "yn"), None);
    }
}
