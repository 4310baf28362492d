//! Relays of our own, as one writes them against the kernel's interfaces: a process each, `splice relay KIND LISTEN SERVER WORKERS [spin]`.
//!
//! All wait by `epoll` but the one of io_uring. A worker accepts for itself (`SO_REUSEPORT`), connects each client to the server, and moves what
//! comes from either end to the other by the means that the [`Mover`] is. TCP_NODELAY is set at both ends.

mod read_write;
mod sockmap;
mod splice;
mod uring;

use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use crate::poll::Poll;

/// How much a connection may move in one direction before others have their turn.
const TURN: usize = 1 << 20;

/// The token of the listening socket.
const LISTENER: u64 = u64::MAX;

/// What a relay is told.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub listen: SocketAddrV4,
    pub server: SocketAddrV4,
    pub workers: usize,
    /// Whether it never sleeps.
    pub spins: bool,
}

/// The whole life of the process.
pub fn main(words: &[String]) -> io::Result<()> {
    let [kind, listen, server, workers, rest @ ..] = words else {
        return Err(io::Error::other("relay KIND LISTEN SERVER WORKERS [spin]"));
    };
    let address = |text: &str| text.parse().map_err(io::Error::other);
    let task = Task {
        listen: address(listen)?,
        server: address(server)?,
        workers: workers.parse().map_err(io::Error::other)?,
        spins: rest.iter().any(|word| word == "spin"),
    };
    crate::raise_descriptors();
    match kind.as_str() {
        "read-write" => work(task, |listener| Worker::new(task, listener, read_write::ReadWrite::new())?.run()),
        "splice" => work(task, |listener| Worker::new(task, listener, splice::Splice::new())?.run()),
        "uring" | "uring-zero-copy" => {
            let copies = kind == "uring";
            work(task, |listener| uring::Uring::new(task, listener, copies)?.run())
        }
        "sockmap" => {
            let maps = sockmap::Maps::load()?;
            work(task, |listener| Worker::new(task, listener, sockmap::SockMap::new(&maps))?.run())
        }
        other => Err(io::Error::other(format!("there is no relay {other}"))),
    }
}

/// Starts the workers, and says so.
fn work(task: Task, worker: impl Fn(OwnedFd) -> io::Result<()> + Sync) -> io::Result<()> {
    let listeners: Vec<OwnedFd> = (0..task.workers).map(|_| listen(task.listen)).collect::<io::Result<_>>()?;
    println!("ready");
    thread::scope(|scope| {
        let worker = &worker;
        let workers: Vec<_> = listeners.into_iter().map(|listener| scope.spawn(move || worker(listener))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}

/// A socket that listens beside others at the same address.
pub fn listen(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    net::bind(&socket, &address)?;
    net::listen(&socket, 4096)?;
    Ok(socket)
}

/// Begins to connect.
pub fn connect(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

/// How bytes get from one end to the other.
trait Mover {
    /// What is on its way in one direction.
    type Pending: Default;

    /// Moves what there is from this end to the other, at most a [`TURN`].
    fn pump(&mut self, pair: &mut Pair<Self::Pending>, from: usize) -> io::Result<Pumped>;

    /// Takes back what a connection that has ended had on its way.
    fn recycle(&mut self, _pending: Self::Pending) {}
}

/// How far one got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pumped {
    /// There is nothing more to read.
    Drained,
    /// The receiver takes no more.
    Blocked,
    /// The turn is over; there may be more.
    Again,
    /// The sender has ended, and the receiver knows.
    Ended,
}

/// A client and its server.
struct Pair<P> {
    /// The client's socket, and the server's.
    ends: [OwnedFd; 2],
    /// What comes from each.
    ways: [Way<P>; 2],
    /// Whether the server has answered our SYN.
    is_connected: bool,
}

/// One direction.
#[derive(Default)]
struct Way<P> {
    pending: P,
    /// The sender is to be read to its end.
    hung_up: bool,
    /// All has been passed on.
    is_over: bool,
}

/// A thread with connections of its own.
struct Worker<M: Mover> {
    task: Task,
    listener: OwnedFd,
    poll: Poll,
    mover: M,
    pairs: Vec<Option<Pair<M::Pending>>>,
    free: Vec<usize>,
}

impl<M: Mover> Worker<M> {
    fn new(task: Task, listener: OwnedFd, mover: M) -> io::Result<Worker<M>> {
        let poll = Poll::new()?;
        poll.add(&listener, LISTENER)?;
        Ok(Worker { task, listener, poll, mover, pairs: Vec::new(), free: Vec::new() })
    }

    fn run(mut self) -> io::Result<()> {
        // Directions that have used up their turn.
        let mut again: Vec<(usize, usize)> = Vec::new();
        let mut events = Vec::new();
        loop {
            let patience = (self.task.spins || !again.is_empty()).then_some(Duration::ZERO);
            events.clear();
            events.extend(self.poll.wait(patience)?);
            for (at, from) in std::mem::take(&mut again) {
                self.pump(at, from, &mut again);
            }
            for event in &events {
                if event.token == LISTENER {
                    self.accept()?;
                    continue;
                }
                let (at, side) = ((event.token / 2) as usize, (event.token % 2) as usize);
                let Some(pair) = &mut self.pairs[at] else { continue };
                pair.ways[side].hung_up |= event.ended;
                pair.is_connected |= side == 1 && event.writes;
                if event.reads {
                    self.pump(at, side, &mut again);
                }
                if event.writes {
                    self.pump(at, 1 - side, &mut again);
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let client = match net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(client) => client,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                // It has gone again.
                Err(rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            sockopt::set_tcp_nodelay(&client, true)?;
            let server = connect(self.task.server)?;
            let at = self.free.pop().unwrap_or_else(|| {
                self.pairs.push(None);
                self.pairs.len() - 1
            });
            self.poll.add(&client, at as u64 * 2)?;
            self.poll.add(&server, at as u64 * 2 + 1)?;
            let ways = [Way::default(), Way::default()];
            self.pairs[at] = Some(Pair { ends: [client, server], ways, is_connected: false });
        }
    }

    /// Moves bytes from an end of a connection; it may end thereby.
    fn pump(&mut self, at: usize, from: usize, again: &mut Vec<(usize, usize)>) {
        let Some(pair) = &mut self.pairs[at] else { return };
        if pair.ways[from].is_over || !pair.is_connected && !pair.ways[1].hung_up {
            return;
        }
        match self.mover.pump(pair, from) {
            Ok(Pumped::Drained | Pumped::Blocked) => return,
            Ok(Pumped::Again) => return again.push((at, from)),
            Ok(Pumped::Ended) => {
                pair.ways[from].is_over = true;
                if !pair.ways[1 - from].is_over {
                    return;
                }
            }
            // What became of one end becomes of the other: a reset.
            Err(_) => pair.ends.iter().for_each(|end| {
                let _ = sockopt::set_socket_linger(end, Some(Duration::ZERO));
            }),
        }
        if let Some(pair) = self.pairs[at].take() {
            pair.ways.into_iter().for_each(|way| self.mover.recycle(way.pending));
        }
        self.free.push(at);
    }
}

/// The receiver hears that the sender has ended.
fn end(receiver: &OwnedFd) -> io::Result<Pumped> {
    match net::shutdown(receiver, Shutdown::Write) {
        Ok(()) => Ok(Pumped::Ended),
        Err(error) => Err(error.into()),
    }
}

/// Whether a call is to be made again when something has happened; other errors remain.
fn blocks<T>(outcome: rustix::io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(done) => Ok(Some(done)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error.into()),
    }
}
