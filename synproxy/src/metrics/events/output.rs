//! The outputs: for each a thread that delivers records one after the other from a bounded queue, so that what an output waits for delays nobody
//! else.

use super::command::Commands;
use super::file::EventFile;
use super::sink::{Delivery, Line, Sink};
use super::syslog::SyslogSocket;
use crate::metrics::descriptors::DeliveryMetric;
use crate::process::exit::Failure;
use crate::process::privileges;
use ::control::Record;
use confparse::Syslog;
use crossbeam::channel::{self, Receiver};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Records that may wait for an output.
const WAITING: usize = 256;

/// The work of an output's thread.
type Run = dyn FnOnce(&Receiver<Arc<Line>>) + Send;

/// The outputs of the configuration.
pub struct Outputs {
    running: Vec<Output>,
    delivery: Arc<Delivery>,
    alive: channel::Sender<()>,
}

/// An output as it is configured.
#[derive(Clone, PartialEq, Eq)]
enum Destination {
    File(PathBuf),
    Syslog(Syslog),
    Command { line: String, at_once: usize, timeout: Duration },
}

impl Destination {
    /// Those of a configuration.
    fn all(settings: &confparse::Events) -> impl Iterator<Item = Self> {
        let confparse::Events { file, syslog, command, commands, command_timeout, .. } = settings;
        let (at_once, timeout) = (*commands, *command_timeout);
        let command = command.clone().map(|line| Self::Command { line, at_once, timeout });
        [file.clone().map(Self::File), syslog.clone().map(Self::Syslog), command].into_iter().flatten()
    }
}

struct Output {
    destination: Destination,
    queue: channel::Sender<Arc<Line>>,
    lost: DeliveryMetric,
}

impl Outputs {
    /// Starts them. Each keeps a clone of `alive` until it has ended, which it does when it has delivered all after this is dropped.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn start(
        settings: &confparse::Events,
        delivery: &Arc<Delivery>,
        alive: channel::Sender<()>,
    ) -> Result<Self, Failure> {
        let mut outputs = Self { running: Vec::new(), delivery: Arc::clone(delivery), alive };
        outputs.follow(settings)?;
        Ok(outputs)
    }

    /// Has there be the outputs of this configuration. One that is as before goes on; one that is no more delivers what waits for it, and ends.
    ///
    /// # Errors
    /// When no thread can be created. The outputs that are started already go on.
    pub fn follow(&mut self, settings: &confparse::Events) -> Result<(), Failure> {
        let wanted: Vec<_> = Destination::all(settings).collect();
        self.running.retain(|output| wanted.contains(&output.destination));
        for destination in wanted {
            if !self.running.iter().any(|output| output.destination == destination) {
                self.running.push(self.begin(destination)?);
            }
        }
        Ok(())
    }

    /// Starts the thread of an output.
    fn begin(&self, destination: Destination) -> Result<Output, Failure> {
        let delivery = Arc::clone(&self.delivery);
        let (lost, run): (_, Box<Run>) = match destination.clone() {
            Destination::File(path) => {
                let (lost, what) = (DeliveryMetric::FileLost, path.display().to_string());
                (lost, Box::new(move |lines| deliver_all(EventFile::new(&path), &what, lines, &delivery, lost)))
            }
            Destination::Syslog(server) => {
                let (lost, what) = (DeliveryMetric::SyslogLost, format!("syslog, {server}"));
                (lost, Box::new(move |lines| deliver_all(SyslogSocket::new(server), &what, lines, &delivery, lost)))
            }
            Destination::Command { line, at_once, timeout } => {
                let commands = Commands::new(&line, at_once, timeout, delivery);
                (DeliveryMetric::CommandLost, Box::new(move |lines| commands.run(lines)))
            }
        };
        let (queue, lines) = channel::bounded(WAITING);
        let alive = self.alive.clone();
        let work = move || {
            privileges::enter_control_thread();
            run(&lines);
            drop(alive);
        };
        thread::Builder::new().name("events output".to_owned()).spawn(work).map_err(Failure::Spawn)?;
        Ok(Output { destination, queue, lost })
    }

    /// Passes a record on. Never waits.
    pub fn send(&self, record: &Record) {
        if self.running.is_empty() {
            return;
        }
        let json = match serde_json::to_string(record) {
            Ok(json) => json,
            // Every type in it has a form in JSON.
            Err(error) => return debug!("an event has no form in JSON: {error}"),
        };
        let line = Arc::new(Line { record: record.clone(), json });
        for output in &self.running {
            if output.queue.try_send(Arc::clone(&line)).is_err() {
                self.delivery.count(output.lost);
            }
        }
    }
}

/// Delivers until nothing more can come. The log says when an output fails, and when it works again.
fn deliver_all(
    mut sink: impl Sink,
    what: &str,
    lines: &Receiver<Arc<Line>>,
    delivery: &Delivery,
    lost: DeliveryMetric,
) {
    let mut is_failing = false;
    for line in lines {
        match sink.deliver(&line) {
            Ok(()) if is_failing => {
                is_failing = false;
                info!("events reach {what} again");
            }
            Ok(()) => {}
            Err(error) => {
                delivery.count(lost);
                if !is_failing {
                    warn!("events are lost, {what}: {error}{}", pktio::advice(&error));
                }
                is_failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::control::Event;
    use std::time::Instant;

    /// Waits until the file has so many lines, and returns what it has.
    fn lines(path: &std::path::Path, count: usize) -> String {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            if text.lines().count() >= count {
                return text;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "{text}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn outputs_follow_other_settings_and_lose_no_record_by_it() {
        let [one, other] =
            ["one", "other"].map(|name| std::env::temp_dir().join(format!("spx-output-{}-{name}", std::process::id())));
        let _ = [&one, &other].map(std::fs::remove_file);
        let to = |file: Option<&PathBuf>| confparse::Events { file: file.cloned(), ..confparse::Events::default() };
        let record = |number| {
            let event = Event::WorkerResumed { worker: 0 };
            Record { number, time: String::new(), host: String::new(), appliance: String::new(), event }
        };
        let delivery = Arc::<Delivery>::default();
        let (alive, over) = channel::bounded(0);
        let mut outputs = Outputs::start(&to(Some(&one)), &delivery, alive).unwrap();
        (0..100).for_each(|number| outputs.send(&record(number)));
        let thread = outputs.running[0].queue.clone();
        // Something else has changed: it is the same output as before.
        outputs.follow(&confparse::Events { attack_begin: 7, ..to(Some(&one)) }).unwrap();
        assert!(outputs.running[0].queue.same_channel(&thread));
        drop(thread);
        outputs.follow(&to(Some(&other))).unwrap();
        (100..110).for_each(|number| outputs.send(&record(number)));
        assert_eq!((lines(&one, 100).lines().count(), lines(&other, 10).lines().count()), (100, 10));
        outputs.follow(&to(None)).unwrap();
        outputs.send(&record(110));
        drop(outputs);
        assert_eq!(over.recv_timeout(Duration::from_secs(30)), Err(channel::RecvTimeoutError::Disconnected));
        assert_eq!(lines(&other, 10).lines().count(), 10);
        assert_eq!(DeliveryMetric::ALL.iter().map(|&metric| delivery.get(metric)).sum::<u64>(), 0);
        for path in [one, other] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
