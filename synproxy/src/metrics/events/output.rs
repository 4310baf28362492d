//! The outputs: for each a thread that delivers records one after the other from a bounded queue, so that what an output waits for delays nobody
//! else.

use super::command::Commands;
use super::file::EventFile;
use super::syslog::SyslogSocket;
use super::{Delivery, Record};
use crate::metrics::descriptors::DeliveryMetric;
use crate::process::exit::Failure;
use crate::process::privileges;
use crossbeam::channel::{self, Receiver};
use std::io;
use std::sync::Arc;
use std::thread;
use tracing::{debug, info, warn};

/// Records that may wait for an output.
const WAITING: usize = 256;

/// A record, and the line of JSON that says it.
#[derive(Debug)]
pub struct Line {
    /// The record.
    pub record: Record,
    /// The line, without its end.
    pub json: String,
}

/// Something that takes records one after the other.
pub trait Sink: Send + 'static {
    /// Delivers a record.
    ///
    /// # Errors
    /// Why that was not possible; the record is lost then.
    fn deliver(&mut self, line: &Line) -> io::Result<()>;
}

/// The outputs of the configuration.
pub struct Outputs(Vec<Output>);

struct Output {
    queue: channel::Sender<Arc<Line>>,
    delivery: Arc<Delivery>,
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
        alive: &channel::Sender<()>,
    ) -> Result<Self, Failure> {
        let mut outputs = Vec::new();
        if let Some(path) = &settings.file {
            let (sink, lost) = (EventFile::new(path), DeliveryMetric::FileLost);
            outputs.push(Output::sink(sink, path.display().to_string(), lost, delivery, alive)?);
        }
        if let Some(server) = &settings.syslog {
            let (sink, lost) = (SyslogSocket::new(server.clone()), DeliveryMetric::SyslogLost);
            outputs.push(Output::sink(sink, format!("syslog, {server}"), lost, delivery, alive)?);
        }
        if let Some(command) = &settings.command {
            let commands = Commands::new(command, settings.commands, settings.command_timeout, Arc::clone(delivery));
            let run = move |lines: &Receiver<Arc<Line>>| commands.run(lines);
            outputs.push(Output::start(run, DeliveryMetric::CommandLost, delivery, alive)?);
        }
        Ok(Self(outputs))
    }

    /// Passes a record on. Never waits.
    pub fn send(&self, record: &Record) {
        if self.0.is_empty() {
            return;
        }
        let json = match serde_json::to_string(record) {
            Ok(json) => json,
            // Every type in it has a form in JSON.
            Err(error) => return debug!("an event has no form in JSON: {error}"),
        };
        let line = Arc::new(Line { record: record.clone(), json });
        for output in &self.0 {
            if output.queue.try_send(Arc::clone(&line)).is_err() {
                output.delivery.count(output.lost);
            }
        }
    }
}

impl Output {
    /// Starts a thread that takes lines from a queue.
    fn start(
        run: impl FnOnce(&Receiver<Arc<Line>>) + Send + 'static,
        lost: DeliveryMetric,
        delivery: &Arc<Delivery>,
        alive: &channel::Sender<()>,
    ) -> Result<Self, Failure> {
        let (queue, lines) = channel::bounded(WAITING);
        let alive = alive.clone();
        let work = move || {
            privileges::enter_control_thread();
            run(&lines);
            drop(alive);
        };
        thread::Builder::new().name("events output".to_owned()).spawn(work).map_err(Failure::Spawn)?;
        Ok(Self { queue, delivery: Arc::clone(delivery), lost })
    }

    /// Starts a thread that delivers lines to `sink`, which the log calls `what`.
    fn sink(
        sink: impl Sink,
        what: String,
        lost: DeliveryMetric,
        delivery: &Arc<Delivery>,
        alive: &channel::Sender<()>,
    ) -> Result<Self, Failure> {
        let counts = Arc::clone(delivery);
        let run = move |lines: &Receiver<Arc<Line>>| run(sink, &what, lines, &counts, lost);
        Self::start(run, lost, delivery, alive)
    }
}

/// Delivers until nothing more can come. The log says when an output fails, and when it works again.
fn run(mut sink: impl Sink, what: &str, lines: &Receiver<Arc<Line>>, delivery: &Delivery, lost: DeliveryMetric) {
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
