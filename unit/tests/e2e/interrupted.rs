//! A run that is interrupted leaves nothing behind: no namespace and so no link, no process, no program in the kernel, no file. A run of one
//! test is started, as `make test` starts it, and ended in every way there is. So is the demo.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

use harness::{ignore, leftovers, note, test};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use unit::netns::{Appliance, Backend, CACHE_ON, Rig, program};

/// Set for the run that is interrupted: what it says goes to this file.
const STANDS: &str = "INTERRUPTED";

/// For the run to get there; cargo is in between, and may have to wait for another.
const START: Duration = Duration::from_secs(120);

/// For everything to be gone.
const END: Duration = Duration::from_secs(20);

/// The test that is interrupted: a box at work between two hosts. It does nothing by itself.
#[test]
fn a_box_stands_here_until_it_is_interrupted() {
    let Some(file) = env::var_os(STANDS) else { ignore("is run by the other tests of this module") };
    let rig = Rig::new();
    let appliance = Appliance::start(&rig, Backend::Driver, CACHE_ON);
    // What the parent looks for, in one go.
    let part = PathBuf::from(&file).with_extension("part");
    fs::write(&part, format!("{} {}", process::id(), appliance.pid())).expect("a file of one's own");
    fs::rename(part, file).expect("a file of one's own");
    thread::sleep(Duration::from_secs(600));
}

/// What a run has made.
#[derive(Debug)]
struct Made {
    /// The process whose id the names carry.
    owner: u32,
    /// Its processes, and those that started them, up to the one we started.
    processes: BTreeSet<i32>,
    /// The XDP programs at its interfaces.
    programs: BTreeSet<u32>,
}

/// The names of process `owner` among the namespaces and the temporary files.
fn names(owner: u32) -> Vec<String> {
    let own = format!("{}{owner}-", leftovers::PREFIX);
    let folders = [PathBuf::from(leftovers::NAMES), env::temp_dir()];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with(&own)).collect()
}

/// Whether a process is there, and not only its exit status.
fn runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Whether the kernel has an XDP program of this number: it then gives a descriptor for it.
fn is_loaded(program: u32) -> bool {
    // Linux 5.x: `bpf(BPF_PROG_GET_FD_BY_ID, { id, next_id, open_flags }, size)`.
    const GET_FD_BY_ID: i32 = 13;
    let attributes: [u32; 3] = [program, 0, 0];
    // SAFETY: the attributes are as long as is said, and the kernel only reads them.
    let fd =
        unsafe { nix::libc::syscall(nix::libc::SYS_bpf, GET_FD_BY_ID, attributes.as_ptr(), size_of_val(&attributes)) };
    if fd >= 0 {
        // SAFETY: the kernel has just given this descriptor to us, and nobody else has it.
        drop(unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) });
    } else {
        assert_eq!(Errno::last(), Errno::ENOENT, "looking for a program by its number");
    }
    fd >= 0
}

impl Made {
    /// What there is under the names of `owner` now, `started` being the process we started ourselves.
    fn look(owner: u32, started: &Child) -> Made {
        let ids = |text: &str| text.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<i32>>();
        let run = |arguments: &[&str]| {
            let output = Command::new("ip").args(arguments).output().expect("ip runs");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut processes = BTreeSet::from([owner as i32, started.id() as i32]);
        let mut programs = BTreeSet::new();
        for name in names(owner) {
            if !Path::new(leftovers::NAMES).join(&name).exists() {
                continue;
            }
            processes.extend(ids(&run(&["netns", "pids", &name])));
            let links = run(&["-d", "-n", &name, "link", "show"]);
            let after = links.split("prog/xdp id ").skip(1).filter_map(|rest| rest.split_whitespace().next());
            programs.extend(after.filter_map(|id| id.parse::<u32>().ok()));
        }
        // Those between.
        let mut above = owner as i32;
        while above > 1 && above != started.id() as i32 {
            let stat = fs::read_to_string(format!("/proc/{above}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
            above = parent.unwrap_or_default();
            processes.insert(above);
        }
        // This very process may have threads in there.
        processes.retain(|pid| *pid > 1 && *pid != process::id() as i32);
        Made { owner, processes, programs }
    }

    /// What is left of it.
    fn left(&self) -> Vec<String> {
        let processes = self.processes.iter().filter(|pid| runs(**pid)).map(|pid| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
            format!("process {pid}: {line}")
        });
        let programs = self.programs.iter().filter(|id| is_loaded(**id)).map(|id| format!("XDP program {id}"));
        names(self.owner).into_iter().chain(processes).chain(programs).collect()
    }

    /// Waits until nothing is left of it.
    #[track_caller]
    fn is_gone(&self, how: &str) {
        let begin = Instant::now();
        while !self.left().is_empty() {
            assert!(begin.elapsed() < END, "{how}: {END:?} later there still are {:#?}", self.left());
            thread::sleep(Duration::from_millis(50));
        }
        note!("{how}: everything was gone after {:.1?}", begin.elapsed());
    }
}

/// A run of [`a_box_stands_here_until_it_is_interrupted`], in a process group of its own.
fn start(mut command: Command) -> (Child, Made) {
    let file = leftovers::file("interrupted");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace");
    command.current_dir(root).env(STANDS, &file).process_group(0);
    // The programs are those that we have.
    command.env("SYNPROXY_BIN_DIR", program("synproxy").parent().expect("a program lies in a directory"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("starting a run");
    let begin = Instant::now();
    let said = loop {
        if let Ok(said) = fs::read_to_string(&file) {
            break said;
        }
        if let Some(status) = child.try_wait().expect("waiting for a child of one's own") {
            panic!("{command:?} ended instead of standing there: {status}");
        }
        if begin.elapsed() > START {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            panic!("{command:?} does not get there");
        }
        thread::sleep(Duration::from_millis(50));
    };
    fs::remove_file(file).expect("a file of one's own");
    let ids: Vec<i32> = said.split_whitespace().map(|id| id.parse().expect("process ids")).collect();
    let made = Made::look(ids[0] as u32, &child);
    assert!(made.processes.contains(&ids[1]), "the box is a process of the run: {made:?}, {said}");
    assert!(names(made.owner).len() >= 3 && !made.programs.is_empty(), "{made:?}");
    (child, made)
}

/// `make test`, of this one test.
fn make() -> Command {
    let mut command = Command::new("make");
    command
        .args(["test", "TESTS=-p unit --test e2e -- --exact interrupted::a_box_stands_here_until_it_is_interrupted"]);
    if env::var_os("CARGO").is_none() {
        ignore("is not run by cargo");
    }
    command
}

/// This program, with this one test.
fn itself() -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "interrupted::a_box_stands_here_until_it_is_interrupted"]);
    command
}

/// Sends `signal` to the process we started.
fn end(mut child: Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("signalling a child of one's own");
    child.wait().expect("waiting for a child of one's own");
}

#[test]
fn a_run_ended_by_a_signal_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let (child, made) = start(itself());
        end(child, signal);
        made.is_gone(&format!("{signal}"));
    }
}

#[test]
fn make_test_ended_from_the_keyboard_leaves_nothing() {
    let (mut child, made) = start(make());
    killpg(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("signalling a group of one's own");
    child.wait().expect("waiting for a child of one's own");
    made.is_gone("SIGINT to the whole group");
}

#[test]
fn make_test_ended_by_sigterm_or_sigkill_leaves_nothing() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let (child, made) = start(make());
        end(child, signal);
        made.is_gone(&format!("{signal} to make"));
    }
}

#[test]
fn cargo_test_killed_leaves_nothing() {
    let Some(cargo) = env::var_os("CARGO") else { ignore("is not run by cargo") };
    let mut command = Command::new(cargo);
    command.args(["test", "-p", "unit", "--test", "e2e", "--", "--exact"]);
    command.arg("interrupted::a_box_stands_here_until_it_is_interrupted");
    let (child, made) = start(command);
    end(child, Signal::SIGKILL);
    made.is_gone("SIGKILL to cargo");
}

// Alone: every other run that begins meanwhile would remove it as well.
#[test(alone)]
fn what_a_killed_run_leaves_the_next_one_removes() {
    let (child, made) = start(itself());
    end(child, Signal::SIGKILL);
    // Without its owner the box ends by itself; the names stay.
    let begin = Instant::now();
    while made.processes.iter().any(|pid| runs(*pid)) {
        assert!(begin.elapsed() < END, "{:#?}", made.left());
        thread::sleep(Duration::from_millis(50));
    }
    assert!(names(made.owner).len() >= 3, "another run was quicker: {:?}", names(made.owner));
    let (child, next) = start(itself());
    assert_eq!(made.left(), Vec::<String>::new());
    end(child, Signal::SIGTERM);
    next.is_gone("SIGTERM");
}

#[test]
fn the_demo_interrupted_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (demo, made) = start_demo("exec unit/demo.sh");
        end(demo, signal);
        made.is_gone(&format!("{signal} to the demo"));
    }
    let (parent, made) = start_demo("setpriv --pdeathsig TERM -- unit/demo.sh; true");
    end(parent, Signal::SIGKILL);
    made.is_gone("SIGKILL to what started the demo, as make does");
}

// Alone: it has a flood.
#[test(alone)]
fn the_demo_not_interrupted_shows_what_it_is_for() {
    let output = demo("exec unit/demo.sh").stdout(Stdio::piped()).output().expect("starting the demo");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}", output.status);
    for line in ["every byte as sent", "200 of 200 connected"] {
        assert!(said.contains(line), "no {line} in {said}");
    }
}

/// The demo, to be started by this line of a shell, with the programs of this build.
fn demo(line: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the workspace");
    let mut command = Command::new("bash");
    command.args(["-c", line]).current_dir(root).process_group(0);
    command.env("SYNPROXY_BIN_DIR", program("synproxy").parent().expect("a program lies in a directory"));
    command.stdin(Stdio::null());
    command
}

/// The demo at work, started by this line of a shell.
fn start_demo(line: &str) -> (Child, Made) {
    let mut child = demo(line).stdout(Stdio::null()).spawn().expect("starting the demo");
    let begin = Instant::now();
    loop {
        // The demo is the shell, or a child of it.
        let owner = [child.id()].into_iter().chain(children(child.id())).find(|pid| !names(*pid).is_empty());
        let made = owner.map(|owner| Made::look(owner, &child));
        // The box is at work once its interfaces have their programs.
        if let Some(made) = made.filter(|made| !made.programs.is_empty()) {
            return (child, made);
        }
        if let Some(status) = child.try_wait().expect("waiting for a child of one's own") {
            panic!("the demo ended instead of going on: {status}");
        }
        if begin.elapsed() > START {
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            let _ = child.wait();
            panic!("the demo does not get there");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let said = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    said.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
