//! `--supervise`: a parent process that runs the box as its child, and starts it again when it dies or a worker stays stuck. For machines without a
//! service manager that does so.
//!
//! It is to the box what systemd is: it hears that the box is ready and that no worker is stuck, kills a box that falls silent, and waits ever longer
//! between two starts. What it hears comes over a pair of sockets, of which the box has one as its standard input: so nobody else can say it. It holds
//! nothing of the box, opens no interface, and needs no privileges but that to kill.

use super::exit::Failure;
use super::signals::{self, Signalled};
use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use rustix::net::SendFlags;
use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, error, info, warn};

/// How long the box may be silent once it is ready. It gives four beats in this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait before a new start after a bad run, and at most; each time twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A box that was ready for so long is started again at once.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// The variable that tells the box by which process it is supervised.
const SUPERVISOR: &str = "SYNPROXY_SUPERVISOR";

/// What the supervisor hears.
enum Heard {
    /// The box said these lines.
    Said(String),
    /// A signal came.
    Signal(Signalled),
    /// A child has ended.
    Ended(io::Result<ExitStatus>),
}

/// Runs this program again without `--supervise`, as often as need be; returns the exit status of the last run.
///
/// # Errors
/// When the program cannot be started, or not be listened to.
pub fn supervise() -> Result<ExitCode, Failure> {
    let (sender, heard) = channel::unbounded();
    let signalled = sender.clone();
    signals::listen(Arc::new(AtomicBool::new(false)), move |signal| drop(signalled.send(Heard::Signal(signal))))?;
    let (socket, theirs) = UnixDatagram::pair().map_err(Failure::Spawn)?;
    let (ended, ends) = channel::unbounded();
    let listen = move || {
        let mut message = [0; 4096];
        while let Ok(length) = socket.recv(&mut message) {
            let heard = match length {
                0 => ends.try_recv().ok().map(Heard::Ended),
                _ => Some(Heard::Said(String::from_utf8_lossy(&message[..length]).into_owned())),
            };
            if heard.is_some_and(|heard| sender.send(heard).is_err()) {
                return;
            }
        }
    };
    thread::Builder::new().name("notify".to_owned()).spawn(listen).map_err(Failure::Spawn)?;

    let mut backoff = Backoff::default();
    let mut was_ever_ready = false;
    loop {
        let child = start(&theirs).map_err(Failure::Spawn)?;
        let pid = Pid::from_raw(child.id() as i32);
        let (ended, behind) = (ended.clone(), theirs.try_clone().map_err(Failure::Spawn)?);
        let wait = move |mut child: Child| {
            // The end is heard behind what the box has said, which may be that it was ready.
            let _ = ended.send(child.wait());
            let _ = behind.send(&[]);
        };
        thread::Builder::new().name("wait".to_owned()).spawn(move || wait(child)).map_err(Failure::Spawn)?;
        let run = watch(pid, &heard)?;
        was_ever_ready |= run.ready_since.is_some();
        let is_good = run.ready_since.is_some_and(|since| since.elapsed() >= GOOD_RUN);
        if run.is_to_end || run.status.success() || !was_ever_ready || is_final(run.status) {
            return Ok(exit_code(run.status));
        }
        let wait = backoff.next(is_good);
        error!("the box has ended ({}); it is started again in {:.1} s", run.status, wait.as_secs_f64());
        if let Some(status) = pause(wait, &heard) {
            return Ok(status);
        }
    }
}

/// To be called by the box once it is the user that it shall be: from now on it ends when its supervisor does, if it has one.
pub fn end_with_supervisor() {
    let Some(supervisor) = env::var(SUPERVISOR).ok().and_then(|pid| pid.parse().ok()) else { return };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        warn!("the box does not end with its supervisor: {error}");
    }
    // It may have ended before.
    if getppid() != Pid::from_raw(supervisor) {
        let _ = kill(Pid::this(), Signal::SIGTERM);
    }
}

/// Tells the supervisor, if there is one; returns whether there is.
pub fn tell(text: &str) -> bool {
    if env::var_os(SUPERVISOR).is_none() {
        return false;
    }
    // It may have ended, or have too much to read; a beat is repeated.
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let Err(error) = rustix::net::send(io::stdin(), text.as_bytes(), flags) {
        debug!("the supervisor is not told: {error}");
    }
    true
}

fn start(socket: &UnixDatagram) -> io::Result<Child> {
    let arguments = env::args_os().skip(1).filter(|argument| argument != "--supervise");
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments).stdin(OwnedFd::from(socket.try_clone()?));
    command.env_remove("NOTIFY_SOCKET").env_remove("WATCHDOG_PID");
    command.env("WATCHDOG_USEC", PATIENCE.as_micros().to_string()).env(SUPERVISOR, std::process::id().to_string());
    command.spawn()
}

/// What became of a run.
struct Run {
    status: ExitStatus,
    ready_since: Option<Instant>,
    /// The operator has ended it.
    is_to_end: bool,
}

/// Watches the box until it has ended.
fn watch(pid: Pid, heard: &Receiver<Heard>) -> Result<Run, Failure> {
    let mut ready_since = None;
    let mut beat: Option<Instant> = None;
    let mut is_to_end = false;
    loop {
        let left = beat.map_or(PATIENCE, |beat| (beat + PATIENCE).saturating_duration_since(Instant::now()));
        match heard.recv_timeout(left) {
            Ok(Heard::Said(message)) => {
                for line in message.lines() {
                    match line {
                        "READY=1" => {
                            ready_since.get_or_insert_with(Instant::now);
                            beat = Some(Instant::now());
                        }
                        "WATCHDOG=1" => beat = Some(Instant::now()),
                        // It takes leave, and puts the interfaces back meanwhile.
                        "STOPPING=1" => beat = None,
                        _ => {}
                    }
                }
            }
            Ok(Heard::Signal(signal)) => {
                let forwarded = match signal {
                    Signalled::Reload => Signal::SIGHUP,
                    Signalled::End { may_be_followed: true, .. } => Signal::SIGTERM,
                    Signalled::End { .. } => Signal::SIGINT,
                };
                if forwarded != Signal::SIGHUP {
                    (is_to_end, beat) = (true, None);
                }
                let _ = kill(pid, forwarded);
            }
            Ok(Heard::Ended(status)) => {
                return Ok(Run { status: status.map_err(Failure::Spawn)?, ready_since, is_to_end });
            }
            Err(RecvTimeoutError::Timeout) if beat.is_some() => {
                error!("the box was silent for {} s, so it is killed", PATIENCE.as_secs());
                let _ = kill(pid, Signal::SIGKILL);
                beat = None;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("this thread has a sender"),
        }
    }
}

/// Waits before another start; the exit status if a signal ends it meanwhile.
fn pause(wait: Duration, heard: &Receiver<Heard>) -> Option<ExitCode> {
    let end = Instant::now() + wait;
    loop {
        match heard.recv_deadline(end) {
            Ok(Heard::Signal(Signalled::End { .. })) => {
                info!("ended by a signal while no box ran");
                return Some(ExitCode::SUCCESS);
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// How long to wait between two starts.
#[derive(Default)]
struct Backoff(Option<Duration>);

impl Backoff {
    fn next(&mut self, was_good: bool) -> Duration {
        let next = match self.0 {
            _ if was_good => Duration::ZERO,
            Some(last) => (2 * last).clamp(FIRST_WAIT, LONGEST_WAIT),
            None => FIRST_WAIT,
        };
        self.0 = Some(next);
        next
    }
}

/// Whether another start would end the same way: the command line, the configuration or the privileges are wrong.
fn is_final(status: ExitStatus) -> bool {
    matches!(status.code(), Some(2 | 3 | 5))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    // As shells say it: a signal's number beyond 128.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_begins_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..9).map(|_| backoff.next(false).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(backoff.next(true), Duration::ZERO);
        assert_eq!([backoff.next(false), backoff.next(false)], [FIRST_WAIT, 2 * FIRST_WAIT]);
    }

    #[test]
    fn what_another_start_does_not_mend_is_final() {
        for (code, last) in [(0, false), (1, false), (2, true), (3, true), (4, false), (5, true)] {
            assert_eq!(is_final(ExitStatus::from_raw(code << 8)), last, "{code}");
        }
        assert!(!is_final(ExitStatus::from_raw(9)), "killed");
    }
}
