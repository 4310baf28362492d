//! The command channel: commands to the workers, and their answers.
//!
//! Each worker has a queue that it checks between two poll iterations; an empty queue costs one relaxed load. A command ends the
//! worker's sleep. A worker executes one command an iteration, so that no number of them delays its frames by more than one.

use crate::metrics::descriptors::CommandKind;
use crate::metrics::top_talkers::TalkerReport;
use confparse::Poll;
use crossbeam::channel::{self, Sender, TrySendError};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tcpstate::{
    Connection, CookieClock, Excerpt, Filter, Lists, NameAnswer, Policy, Rotation, ServerTable, ServiceStatus, Side,
};

/// Commands that a queue holds: more than there are clients, each of which waits for the answer to one.
const CAPACITY: usize = 128;

/// How long a worker has to answer: it checks its queue every few microseconds, or is woken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// What a worker is to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Answer, and publish the statistics first.
    Ping,
    /// Use this server table instead of the present one.
    ServerTable(Arc<ServerTable>),
    /// Open connections under this policy from the next iteration on; its option tables come into force at [`Policy::tables_begin`], on every worker
    /// at the same time.
    SetPolicy(Arc<Policy>),
    /// Wait for frames, and shed, like this from the next iteration on.
    SetOptions {
        /// How it waits.
        poll: Poll,
        /// Whether it sheds under overload.
        shed: bool,
    },
    /// Treat clients by these lists from the next iteration on.
    SetLists(Arc<Lists>),
    /// Reset the connections of blocked clients that run, a part in each iteration.
    ResetBlocked,
    /// Pass new connections through to their servers, or stop doing so.
    Drain(bool),
    /// Change the cookie secret at the time the rotation gives.
    Rotate(Rotation),
    /// Make cookies in the epochs of this clock.
    SetCookieClock(CookieClock),
    /// List a part of the connections.
    List {
        /// Where the part begins.
        from: u32,
        /// Which connections are listed.
        filter: Filter,
    },
    /// Copy the state that decides what happens to a frame.
    Explain {
        /// The port it would come in by.
        side: Side,
        /// The frame.
        frame: Arc<[u8]>,
    },
    /// Report the top talkers.
    Top,
    /// Report services and their servers.
    Services,
    /// Give a server of services no connections anew, or some again.
    DrainServer {
        /// Its address; an IPv4 address in its IPv6-mapped form.
        address: [u32; 4],
        /// Its port.
        port: u16,
        /// Whether it gets none.
        drained: bool,
    },
    /// Go on with a connection whose server's name has been looked up.
    Resolved(Arc<NameAnswer>),
}

impl Command {
    /// The metric that keeps its time.
    pub fn kind(&self) -> CommandKind {
        match self {
            Command::Ping => CommandKind::Status,
            Command::ServerTable(_) => CommandKind::Backends,
            Command::SetPolicy(_) => CommandKind::Policy,
            Command::SetOptions { .. } => CommandKind::Options,
            Command::SetLists(_) | Command::ResetBlocked => CommandKind::Lists,
            Command::Drain(_) => CommandKind::Drain,
            Command::Rotate(_) => CommandKind::RotateSecrets,
            Command::SetCookieClock(_) => CommandKind::Clock,
            Command::List { .. } => CommandKind::Flows,
            Command::Explain { .. } => CommandKind::Explain,
            Command::Top => CommandKind::Top,
            Command::Services | Command::DrainServer { .. } => CommandKind::Services,
            Command::Resolved(_) => CommandKind::Resolved,
        }
    }
}

/// The answer of a worker.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Command::ServerTable`]: the table used before, which the caller frees because the worker has no time for it.
    Former(Arc<ServerTable>),
    /// To [`Command::SetPolicy`]: the former policy, which the caller frees likewise.
    FormerPolicy(Arc<Policy>),
    /// To [`Command::SetLists`]: the former lists, which the caller frees likewise.
    FormerLists(Arc<Lists>),
    /// To [`Command::List`]: connections, and where the next part begins.
    Listed(Vec<Connection>, Option<u32>),
    /// To [`Command::Explain`]: a copy of all the state that decides what happens to the frame.
    Excerpt(Box<Excerpt>),
    /// To [`Command::Services`].
    Services(Vec<ServiceStatus>),
    /// To [`Command::DrainServer`]: no service has it.
    NoServer,
    /// To [`Command::Top`].
    Top(TalkerReport),
}

/// A command, and where its answer goes.
struct Request {
    command: Command,
    number: usize,
    reply: Sender<(usize, Answer)>,
}

/// The commands of one worker that it has not executed yet.
pub struct CommandQueue {
    has_commands: CachePadded<AtomicBool>,
    requests: ArrayQueue<Request>,
    /// Answers that came too late, to be freed by the next sender: a server table or a policy may be large.
    late: ArrayQueue<Answer>,
    event: OwnedFd,
}

impl CommandQueue {
    fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (requests, late) = (ArrayQueue::new(CAPACITY), ArrayQueue::new(2 * CAPACITY));
        Ok(Self { has_commands: CachePadded::default(), requests, late, event })
    }

    /// A descriptor that is readable while there are commands.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Whether there may be commands.
    #[inline]
    pub fn has_commands(&self) -> bool {
        self.has_commands.load(Ordering::Relaxed)
    }

    /// Executes one command, if there is one, and sends its answer.
    #[cold]
    pub fn execute_next(&self, execute: impl FnOnce(Command) -> Answer) {
        // Both signals are cleared before the queue is read, so that a command queued meanwhile sets them again.
        self.has_commands.store(false, Ordering::SeqCst);
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let Some(request) = self.requests.pop() else { return };
        if !self.requests.is_empty() {
            self.signal();
        }
        // A caller whose time is over has gone, and nobody reads the answer.
        if let Err(late) = request.reply.try_send((request.number, execute(request.command))) {
            let (TrySendError::Full((_, answer)) | TrySendError::Disconnected((_, answer))) = late;
            // Each sender empties this queue and adds one command, so it has room.
            let _ = self.late.push(answer);
        }
    }

    /// Signals that there are commands.
    fn signal(&self) {
        self.has_commands.store(true, Ordering::SeqCst);
        // The counter of the eventfd holds up to 2^64 and is cleared with every command, so the write does not fail.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    fn push(&self, request: Request) -> bool {
        while self.late.pop().is_some() {}
        let pushed = self.requests.push(request).is_ok();
        self.signal();
        pushed
    }
}

/// The sending side of the command channels of all workers.
#[derive(Clone)]
pub struct CommandSender {
    queues: Arc<[Arc<CommandQueue>]>,
}

impl CommandSender {
    /// Empty queues for this many workers.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn open(workers: usize) -> io::Result<Self> {
        let queues = (0..workers).map(|_| CommandQueue::new().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { queues })
    }

    /// The queue of this worker.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn queue(&self, worker: usize) -> Arc<CommandQueue> {
        Arc::clone(&self.queues[worker])
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.queues.len()
    }

    /// Wakes the workers that sleep.
    pub fn wake(&self) {
        self.queues.iter().for_each(|queue| queue.signal());
    }

    /// Sends a command to every worker and waits for the answers: `None` for one that has not answered within a second, which may
    /// still execute the command later.
    pub fn send(&self, command: &Command) -> Vec<Option<Answer>> {
        self.send_to(0..self.workers(), command)
    }

    /// As [`CommandSender::send`], to these workers only; the answers come in their order.
    ///
    /// # Panics
    /// If there is no such worker.
    pub fn send_to(&self, workers: std::ops::Range<usize>, command: &Command) -> Vec<Option<Answer>> {
        let mut answers: Vec<Option<Answer>> = workers.clone().map(|_| None).collect();
        let (reply, replies) = channel::bounded(answers.len().max(1));
        for (number, worker) in workers.enumerate() {
            self.queues[worker].push(Request { command: command.clone(), number, reply: reply.clone() });
        }
        drop(reply);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        // It ends early when every command has been executed, or did not fit its queue.
        while let Ok((number, answer)) = replies.recv_deadline(deadline) {
            answers[number] = Some(answer);
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    /// Executes commands as a worker does, asleep in between, until there have been so many; returns how often a sleep timed out.
    fn serve(queue: &CommandQueue, commands: usize) -> usize {
        let (mut executed, mut timeouts) = (0, 0);
        while executed < commands {
            queue.execute_next(|command| {
                assert!(matches!(command, Command::Ping));
                executed += 1;
                Answer::Done
            });
            if executed == commands {
                break;
            }
            let event = queue.event();
            let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
            timeouts += usize::from(poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap() == 0);
        }
        timeouts
    }

    #[test]
    fn every_worker_gets_the_command_and_answers_for_itself() {
        const EACH: usize = 2000;
        let sender = CommandSender::open(3).unwrap();
        let workers: Vec<_> = (0..3).map(|n| sender.queue(n)).collect();
        thread::scope(|scope| {
            let served: Vec<_> = workers.iter().map(|queue| scope.spawn(|| serve(queue, 2 * EACH))).collect();
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let answers = sender.send(&Command::Ping);
                        assert!(answers.len() == 3 && answers.iter().all(Option::is_some), "{answers:?}");
                    }
                });
            }
            for served in served {
                assert_eq!(served.join().unwrap(), 0, "a command has not ended the sleep");
            }
        });
    }

    #[test]
    fn a_worker_that_does_not_answer_delays_no_other_answer() {
        let sender = CommandSender::open(2).unwrap();
        let queue = sender.queue(1);
        thread::scope(|scope| {
            scope.spawn(|| serve(&queue, 1));
            assert!(matches!(sender.send(&Command::Ping)[..], [None, Some(Answer::Done)]));
        });
    }

    #[test]
    fn what_a_worker_gives_back_too_late_is_freed_by_the_next_sender() {
        let sender = CommandSender::open(1).unwrap();
        let queue = sender.queue(0);
        let policy =
            |seconds| Arc::new(Policy::new(&tcpstate::Config::default(), tcpstate::Instant::from_secs(seconds)));
        let (former, next) = (policy(1), policy(2));
        assert!(matches!(sender.send(&Command::SetPolicy(Arc::clone(&next)))[..], [None]));
        let mut in_force = Arc::clone(&former);
        queue.execute_next(|command| {
            let Command::SetPolicy(policy) = command else { panic!("{command:?}") };
            Answer::FormerPolicy(std::mem::replace(&mut in_force, policy))
        });
        assert_eq!((Arc::strong_count(&former), Arc::strong_count(&next)), (2, 2), "the worker has freed nothing");
        thread::scope(|scope| {
            scope.spawn(|| serve(&queue, 1));
            assert!(matches!(sender.send(&Command::Ping)[..], [Some(Answer::Done)]));
        });
        assert_eq!(Arc::strong_count(&former), 1);
    }

    #[test]
    fn a_full_queue_takes_no_more_and_what_it_holds_is_still_executed() {
        let sender = CommandSender::open(1).unwrap();
        let queue = sender.queue(0);
        let (reply, replies) = channel::bounded(2 * CAPACITY);
        let request = || Request { command: Command::Ping, number: 0, reply: reply.clone() };
        assert_eq!((0..2 * CAPACITY).filter(|_| queue.push(request())).count(), CAPACITY);
        assert_eq!(serve(&queue, CAPACITY), 0);
        assert_eq!(replies.len(), CAPACITY);
        queue.execute_next(|_| unreachable!("it is empty"));
    }
}
