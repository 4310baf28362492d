//! A program that is run for each event, which it gets on its standard input.
//!
//! The event lies in a file in memory, which is the program's input: whether it reads it, or how slowly, is its own affair. It runs in a process
//! group of its own, with nothing open but its input, standard error and /dev/null, and the whole group is killed when its time is over. So many
//! run at once and so many wait; what is beyond is counted and lost. Events about one thing are taken one after the other, so that the end of an
//! attack is never overtaken by its beginning.

use super::sink::{Delivery, Line};
use crate::metrics::descriptors::DeliveryMetric;
use ::control::Event;
use crossbeam::channel::{Receiver, RecvTimeoutError};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;

/// Events that may wait for a free place.
const WAITING: usize = 64;

/// How often running programs are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long the programs of the last events may run when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The least time between two lines of the log about programs that fail.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Commands {
    program: String,
    arguments: Vec<String>,
    /// How many run at once.
    most: usize,
    timeout: Duration,
    delivery: Arc<Delivery>,
    waiting: VecDeque<Arc<Line>>,
    running: Vec<Running>,
    logged: Option<Instant>,
}

/// A program that runs.
struct Running {
    child: Child,
    begin: Instant,
    subject: Subject,
}

/// What an event is about.
#[derive(Clone, PartialEq, Eq)]
enum Subject {
    Attack(u32),
    Destination(String),
    Server(String),
    Port(::control::Side),
    Worker(usize),
    Box,
}

impl Subject {
    fn of(event: &Event) -> Self {
        match event {
            Event::AttackBegin(attack)
            | Event::AttackUpdate(attack)
            | Event::AttackPeak(attack)
            | Event::AttackEnd(attack) => Subject::Attack(attack.mid),
            Event::ModeSwitched { destination, .. } => Subject::Destination(destination.clone()),
            Event::ServerUp { server, .. } | Event::ServerDown { server, .. } => Subject::Server(server.clone()),
            Event::LinkChanged { port, .. } | Event::SettingsChanged { port, .. } => Subject::Port(*port),
            Event::WorkerStalled { worker, .. } | Event::WorkerResumed { worker } => Subject::Worker(*worker),
            Event::BoxFailed { .. } => Subject::Box,
        }
    }
}

impl Commands {
    /// Runs this program, with arguments behind blanks, at most so often at once and so long.
    pub fn new(command: &str, most: usize, timeout: Duration, delivery: Arc<Delivery>) -> Self {
        let mut words = command.split_whitespace().map(str::to_owned);
        let program = words.next().unwrap_or_default();
        let (waiting, running, logged) = (VecDeque::new(), Vec::new(), None);
        Self { program, arguments: words.collect(), most, timeout, delivery, waiting, running, logged }
    }

    /// Runs it for every event, until nothing more can come.
    pub fn run(mut self, lines: &Receiver<Arc<Line>>) {
        loop {
            let next = if self.running.is_empty() {
                lines.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                lines.recv_timeout(LOOK_EVERY)
            };
            match next {
                Ok(line) => self.accept(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look_after(Instant::now());
        }
        let end = Instant::now() + LAST_WORDS;
        while !(self.running.is_empty() && self.waiting.is_empty()) && Instant::now() < end {
            std::thread::sleep(LOOK_EVERY);
            self.look_after(Instant::now());
        }
        self.running.iter_mut().for_each(Running::kill);
    }

    /// Lets an event wait for its turn.
    fn accept(&mut self, line: Arc<Line>) {
        // An attack's update says nothing that a later event of the same attack does not.
        if let Some(attack) = line.record.event.attack() {
            let is_outdated = |other: &Line| match &other.record.event {
                Event::AttackUpdate(other) => other.mid == attack.mid,
                _ => false,
            };
            self.waiting.retain(|other| !is_outdated(other));
        }
        if self.waiting.len() >= WAITING {
            return self.delivery.count(DeliveryMetric::CommandLost);
        }
        self.waiting.push_back(line);
    }

    /// Takes leave of programs that have ended, kills those whose time is over, and starts the next ones.
    fn look_after(&mut self, now: Instant) {
        let (timeout, mut failures) = (self.timeout, Vec::new());
        self.running.retain_mut(|running| {
            match running.child.try_wait() {
                Ok(None) if now - running.begin < timeout => return true,
                Ok(None) => {
                    running.kill();
                    self.delivery.count(DeliveryMetric::CommandKilled);
                    failures.push(format!("it was killed, having run for {} s", timeout.as_secs()));
                }
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => {
                    self.delivery.count(DeliveryMetric::CommandFailed);
                    failures.push(format!("it ended with {status}"));
                }
                // Nobody else waits for it.
                Err(error) => failures.push(error.to_string()),
            }
            false
        });
        while self.running.len() < self.most {
            let is_free = |line: &Arc<Line>| {
                let subject = Subject::of(&line.record.event);
                self.running.iter().all(|running| running.subject != subject)
            };
            let Some(next) = self.waiting.iter().position(is_free) else { break };
            let Some(line) = self.waiting.remove(next) else { break };
            match self.start(&line.json) {
                Ok(child) => {
                    self.delivery.count(DeliveryMetric::CommandRun);
                    self.running.push(Running { child, begin: now, subject: Subject::of(&line.record.event) });
                }
                Err(error) => {
                    self.delivery.count(DeliveryMetric::CommandFailed);
                    failures.push(format!("it cannot be run: {error}"));
                }
            }
        }
        if let Some(failure) = failures.first()
            && self.logged.is_none_or(|logged| now - logged >= LOG_EVERY)
        {
            self.logged = Some(now);
            warn!("the command for events, {}: {failure}", self.program);
        }
    }

    fn start(&self, json: &str) -> io::Result<Child> {
        // Older kernels do not know that a file is never to be executed.
        let memory = rustix::fs::memfd_create("event", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| rustix::fs::memfd_create("event", MemfdFlags::CLOEXEC))?;
        let mut input = File::from(memory);
        input.write_all(json.as_bytes())?;
        input.write_all(b"\n")?;
        input.rewind()?;
        Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
    }
}

impl Running {
    /// Kills the program, with what it has started, and waits for its end.
    fn kill(&mut self) {
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // It has not been waited for, so the number is still its own.
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::events::Record;
    use ::control::{Attack, AttackStatus};
    use crossbeam::channel;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::thread;

    /// A script in a directory of its own, which is removed with it.
    struct Script(PathBuf);

    impl Script {
        /// `body` of a shell script, in which `$HERE` is the directory.
        fn new(name: &str, body: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("spx-command-{}-{name}", std::process::id()));
            fs::create_dir(&directory).unwrap();
            let path = directory.join("run");
            fs::write(&path, format!("#!/bin/sh\nHERE={}\n{body}\n", directory.display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(directory)
        }

        fn commands(&self, most: usize, timeout: Duration) -> (Commands, Arc<Delivery>) {
            let delivery = Arc::<Delivery>::default();
            let command = format!("{} first second", self.0.join("run").display());
            (Commands::new(&command, most, timeout, Arc::clone(&delivery)), delivery)
        }

        fn text(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap_or_default()
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn line(event: Event) -> Arc<Line> {
        let record = Record { number: 1, time: String::new(), host: String::new(), appliance: String::new(), event };
        Arc::new(Line { json: serde_json::to_string(&record).unwrap(), record })
    }

    fn attack(mid: u32) -> Box<Attack> {
        Box::new(Attack {
            mid,
            status: AttackStatus::AttackMitigationInProgress,
            target_prefix: vec!["192.0.2.1/32".to_owned()],
            target_port_range: Vec::new(),
            target_protocol: vec![6],
            mitigation_start: 0,
            duration: 0,
            pps: 0,
            pps_dropped: 0,
            pkts_dropped: 0,
            peak_pps_dropped: 0,
            peak_time: 0,
            top_sources: Vec::new(),
            top_targets: Vec::new(),
        })
    }

    /// Delivers these and returns when all is over.
    fn deliver(commands: Commands, lines: impl IntoIterator<Item = Arc<Line>>) {
        let (send, receive) = channel::unbounded();
        lines.into_iter().for_each(|line| send.send(line).unwrap());
        drop(send);
        commands.run(&receive);
    }

    #[test]
    fn a_program_gets_the_event_and_its_arguments_and_no_environment_of_ours() {
        let script = Script::new("gets", "cat >$HERE/in; echo $* >$HERE/arguments; env >$HERE/env");
        let (commands, delivery) = script.commands(4, Duration::from_secs(10));
        let event = line(Event::WorkerResumed { worker: 2 });
        deliver(commands, [Arc::clone(&event)]);
        assert_eq!(script.text("in"), format!("{}\n", event.json));
        assert_eq!(script.text("arguments"), "first second\n");
        assert!(!script.text("env").contains("CARGO"), "{}", script.text("env"));
        assert_eq!(delivery.get(DeliveryMetric::CommandRun), 1);
        assert_eq!(delivery.get(DeliveryMetric::CommandFailed), 0);
    }

    #[test]
    fn a_program_that_hangs_and_reads_nothing_is_killed_with_its_children_and_delays_only_events_of_its_subject() {
        let script = Script::new("hangs", "if read line; then echo $line >>$HERE/lines; fi; sleep 1000 & sleep 1000");
        let (mut commands, delivery) = script.commands(2, Duration::from_millis(200));
        let begin = Instant::now();
        for mid in [1, 2, 3] {
            commands.accept(line(Event::AttackBegin(attack(mid))));
            commands.accept(line(Event::AttackEnd(attack(mid))));
        }
        commands.look_after(begin);
        assert_eq!((commands.running.len(), commands.waiting.len()), (2, 4), "two at once");
        let subjects: Vec<u32> = commands
            .running
            .iter()
            .filter_map(|running| if let Subject::Attack(mid) = running.subject { Some(mid) } else { None })
            .collect();
        assert_eq!(subjects, [1, 2], "one of each attack");
        let groups: Vec<u32> = commands.running.iter().map(|running| running.child.id()).collect();
        while script.text("lines").lines().count() < 2 {
            assert!(begin.elapsed() < Duration::from_secs(20), "the programs do not start");
            thread::sleep(Duration::from_millis(5));
        }
        commands.look_after(begin + Duration::from_secs(1));
        assert_eq!(delivery.get(DeliveryMetric::CommandKilled), 2);
        for group in groups {
            let group = Pid::from_raw(group as i32).unwrap();
            // The children of the killed shell are init's now, which waits for them.
            let gone = || rustix::process::test_kill_process_group(group).is_err();
            while !gone() {
                assert!(begin.elapsed() < Duration::from_secs(20), "a child of the program lives on");
                thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!((commands.running.len(), commands.waiting.len()), (2, 2));
        commands.running.iter_mut().for_each(Running::kill);
    }

    #[test]
    fn what_does_not_fit_is_lost_and_an_update_gives_way_to_what_comes_after_it() {
        let script = Script::new("full", "exit 3");
        let (mut commands, delivery) = script.commands(1, Duration::from_secs(10));
        for mid in 0..WAITING as u32 {
            commands.accept(line(Event::AttackUpdate(attack(mid))));
        }
        commands.accept(line(Event::WorkerResumed { worker: 0 }));
        assert_eq!(delivery.get(DeliveryMetric::CommandLost), 1);
        commands.accept(line(Event::AttackEnd(attack(7))));
        assert_eq!((delivery.get(DeliveryMetric::CommandLost), commands.waiting.len()), (1, WAITING));
        let of_seven =
            commands.waiting.iter().filter(|line| line.record.event.attack().is_some_and(|own| own.mid == 7));
        assert_eq!(of_seven.map(|line| line.record.event.name()).collect::<Vec<_>>(), ["attack-end"]);
    }

    #[test]
    fn a_program_that_fails_or_is_not_there_is_counted() {
        let script = Script::new("fails", "exit 3");
        let (commands, delivery) = script.commands(1, Duration::from_secs(10));
        deliver(commands, [line(Event::WorkerResumed { worker: 0 })]);
        assert_eq!(delivery.get(DeliveryMetric::CommandFailed), 1);
        let missing = Path::new("/nowhere/at/all").display().to_string();
        let commands = Commands::new(&missing, 1, Duration::from_secs(1), Arc::clone(&delivery));
        deliver(commands, [line(Event::WorkerResumed { worker: 0 })]);
        assert_eq!(delivery.get(DeliveryMetric::CommandFailed), 2);
        assert_eq!(delivery.get(DeliveryMetric::CommandRun), 1);
    }

    #[test]
    fn the_end_waits_for_programs_but_not_for_ever() {
        let script = Script::new("end", "sleep 1000");
        let (commands, _) = script.commands(1, Duration::from_secs(1000));
        let begin = Instant::now();
        deliver(commands, [line(Event::WorkerResumed { worker: 0 })]);
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
