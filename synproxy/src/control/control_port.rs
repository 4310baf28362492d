//! The control port: the binary protocol of nmsynproxy (`control::wire`) over TCP, in a thread of its own. `servers` executes the requests.
//!
//! Clients do not affect each other: each has bounded buffers for its requests and for its unread answers, and a client that does not read
//! its answers is not read from. Requests that arrive at the same time are executed together, so that many of them cost the workers one
//! change.

use super::servers::ServerRegistry;
use crate::process::exit::Failure;
use crate::process::listening::Listening;
use ::control::wire::{self, DONE, Operation, REFUSED};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Clients connected at once. One more replaces the one that has been idle for longest.
const MAX_CLIENTS: usize = 256;

/// Bytes of requests read from a client at once, about five thousand requests.
const INPUT_BUFFER: usize = 65_536;

/// Bytes of answers that a client may leave unread.
const MAX_UNREAD: usize = 65_536;

/// How long the port waits when the system has no descriptor for another client.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The bound port, before it is served.
#[derive(Debug)]
pub struct ControlPort {
    listener: TcpListener,
}

impl ControlPort {
    /// Listens at this address.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Serves clients in a thread, until it is closed or the process ends; its clients then lose their connections.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn serve(self, registry: Arc<ServerRegistry>) -> Result<Listening, Failure> {
        if let Ok(address) = self.listener.local_addr() {
            info!("control port: {address}");
            if !address.ip().is_loopback() {
                warn!("anyone who reaches {address} can change the server table: the protocol has no authentication");
            }
        }
        Listening::serve("control port", self.listener, move |listener, closed| {
            let mut server = Server { listener, clients: Vec::new(), round: 0 };
            while !closed.get() {
                server.serve_once(&registry, None);
            }
        })
    }
}

/// A client.
struct Client {
    stream: TcpStream,
    /// Received bytes that are not a whole request yet.
    input: Vec<u8>,
    /// Answers that it has not read yet.
    output: Vec<u8>,
    /// The round in which it last sent something.
    last_active: u64,
    /// Whether it will send nothing more.
    has_ended: bool,
    /// Whether the connection is lost.
    is_gone: bool,
}

impl Client {
    /// The events to wait for: requests, unless too many answers are unread; and space for answers, if there are any.
    fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.has_ended && self.output.len() < MAX_UNREAD);
        flags.set(PollFlags::OUT, !self.output.is_empty());
        flags
    }

    /// Reads at most [`INPUT_BUFFER`] bytes and appends the requests to `operations`; returns how many.
    fn read(&mut self, round: u64, operations: &mut Vec<Operation>) -> usize {
        let before = self.input.len();
        self.input.resize(INPUT_BUFFER, 0);
        let read = match self.stream.read(&mut self.input[before..]) {
            Ok(0) => {
                self.has_ended = true;
                0
            }
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.is_gone = true;
                0
            }
        };
        self.input.truncate(before + read);
        if read > 0 {
            self.last_active = round;
        }
        let (mut used, mut count) = (0, 0);
        while let Some((operation, length)) = wire::read(&self.input[used..]) {
            operations.push(operation);
            used += length;
            count += 1;
        }
        self.input.drain(..used);
        count
    }

    /// Writes as many answers as the socket takes.
    fn write(&mut self) {
        match self.stream.write(&self.output) {
            Ok(sent) => drop(self.output.drain(..sent)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.is_gone = true,
        }
    }

    /// Whether there is nothing more to do for it: an incomplete request at the end is not answered.
    fn is_done(&self) -> bool {
        self.is_gone || self.has_ended && self.output.is_empty()
    }
}

/// The port and its clients.
struct Server<'a> {
    listener: &'a TcpListener,
    clients: Vec<Client>,
    round: u64,
}

impl Server<'_> {
    /// Waits for events, at most for `timeout`, and handles them.
    fn serve_once(&mut self, registry: &ServerRegistry, timeout: Option<Duration>) {
        self.round += 1;
        let mut waiting: Vec<PollFd<'_>> = vec![PollFd::new(self.listener, PollFlags::IN)];
        waiting.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.interest())));
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        if poll(&mut waiting, timeout.as_ref()).is_err() {
            return;
        }
        let ready: Vec<PollFlags> = waiting.iter().map(PollFd::revents).collect();
        drop(waiting);

        let mut operations = Vec::new();
        let mut shares = Vec::new();
        for (client, ready) in self.clients.iter_mut().zip(&ready[1..]) {
            let interest = client.interest();
            // Reading reports the error, or writing where nothing is to be read.
            let trouble = ready.intersects(PollFlags::ERR | PollFlags::HUP);
            let may_read = interest.contains(PollFlags::IN) && (trouble || ready.contains(PollFlags::IN));
            shares.push(if may_read { client.read(self.round, &mut operations) } else { 0 });
            client.is_gone |= trouble && !may_read;
        }
        let outcomes = if operations.is_empty() { Vec::new() } else { registry.apply(&operations) };
        let mut outcomes = outcomes.into_iter();
        for (client, share) in self.clients.iter_mut().zip(shares) {
            for outcome in outcomes.by_ref().take(share) {
                client.output.extend(if outcome.is_ok() { DONE } else { REFUSED });
            }
            if !client.output.is_empty() {
                client.write();
            }
        }
        self.clients.retain(|client| !client.is_done());
        if ready[0].contains(PollFlags::IN) {
            self.accept();
        }
    }

    /// Accepts waiting clients, a limited number at a time.
    fn accept(&mut self) {
        for _ in 0..64 {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                // There is none, or the socket has been closed.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::InvalidInput) => return,
                Err(error) => {
                    debug!("control port: {error}");
                    return thread::sleep(ACCEPT_BACKOFF);
                }
            };
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            if self.clients.len() >= MAX_CLIENTS
                && let Some(at) = (0..self.clients.len()).min_by_key(|&at| self.clients[at].last_active)
            {
                debug!("control port: the client that has been idle for longest is replaced by a new one");
                self.clients.remove(at);
            }
            let (input, output) = (Vec::new(), Vec::new());
            self.clients.push(Client {
                stream,
                input,
                output,
                last_active: self.round,
                has_ended: false,
                is_gone: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::commands::CommandSender;
    use ::control::Entry;
    use std::net::Shutdown;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Serves a port in a thread while `test` runs.
    fn with_port(test: impl FnOnce(SocketAddr, &ServerRegistry)) {
        let registry = ServerRegistry::new(CommandSender::open(0).unwrap(), [1, 2]);
        let port = ControlPort::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = port.listener.local_addr().unwrap();
        let stop = AtomicBool::new(false);
        let mut server = Server { listener: &port.listener, clients: Vec::new(), round: 0 };
        /// Stops the port even when the test panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    server.serve_once(&registry, Some(Duration::from_millis(20)));
                    let buffered =
                        server.clients.iter().map(|client| client.input.capacity() + client.output.capacity());
                    assert!(server.clients.len() <= MAX_CLIENTS && buffered.max().unwrap_or(0) <= 8 * INPUT_BUFFER);
                }
            });
            test(address, &registry);
        });
    }

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn entry(last: u8) -> Entry {
        Entry { address: [10, 0, 0, last].into(), port: 80, protocol: 6, mss: 1460, sack: true, wscale: 7 }
    }

    fn bytes(operations: &[Operation]) -> Vec<u8> {
        let mut bytes = Vec::new();
        operations.iter().for_each(|operation| wire::write(operation, &mut bytes));
        bytes
    }

    fn replies(stream: &mut TcpStream, count: usize) -> String {
        let mut replies = vec![0; 2 * count];
        stream.read_exact(&mut replies).unwrap();
        String::from_utf8(replies).unwrap()
    }

    #[test]
    fn requests_are_answered_in_their_order_however_they_arrive() {
        with_port(|address, registry| {
            let six = Entry { address: "2001:db8::1".parse().unwrap(), ..entry(0) };
            let sent = bytes(&[
                Operation::Add(entry(1)),
                Operation::Add(entry(1)),
                Operation::Add(six),
                Operation::Unknown(5),
                Operation::Delete(entry(2).key()),
                Operation::Modify(entry(2)),
                Operation::Flush(Some(entry(1).address)),
            ]);
            for step in [1, 5, 13, sent.len()] {
                let mut client = connect(address);
                client.write_all(&bytes(&[Operation::Flush(None)])).unwrap();
                for piece in sent.chunks(step) {
                    client.write_all(piece).unwrap();
                    thread::sleep(Duration::from_micros(200));
                }
                assert_eq!(replies(&mut client, 8), "1\n1\n0\n1\n0\n0\n1\n1\n");
                assert_eq!(registry.list(), [entry(2), six]);
            }
        });
    }

    #[test]
    fn a_client_that_closes_after_its_last_request_gets_every_answer_and_half_a_request_gets_none() {
        with_port(|address, registry| {
            let mut client = connect(address);
            let mut sent = bytes(&[Operation::Add(entry(1)), Operation::Add(entry(2)), Operation::Add(entry(3))]);
            sent.truncate(sent.len() - 1);
            client.write_all(&sent).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!((answer.as_str(), registry.count()), ("1\n1\n", 2));
        });
    }

    #[test]
    fn a_client_that_never_reads_and_one_that_never_ends_its_request_delay_no_other() {
        with_port(|address, _| {
            let mut unread = connect(address);
            unread.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let flood = bytes(&vec![Operation::Flush(None); 20_000]);
            // It is no longer read from once enough of its answers are unread.
            let stuck = (0..200).any(|_| unread.write_all(&flood).is_err());
            assert!(stuck, "48 MB of requests were read while no answer was");
            let mut slow = connect(address);
            slow.write_all(&[10]).unwrap();
            let mut client = connect(address);
            client.write_all(&bytes(&[Operation::Flush(None)])).unwrap();
            assert_eq!(replies(&mut client, 1), "1\n");
        });
    }

    #[test]
    fn a_thousand_connections_and_a_thousand_more_keep_no_client_out() {
        with_port(|address, _| {
            let mut held = Vec::new();
            for round in 0..2 {
                for _ in 0..300 {
                    held.push(connect(address));
                }
                let mut client = connect(address);
                client.write_all(&bytes(&[Operation::Modify(entry(round))])).unwrap();
                assert_eq!(replies(&mut client, 1), "1\n");
                for _ in 0..200 {
                    drop(connect(address));
                }
            }
        });
    }

    #[test]
    fn any_bytes_at_all_are_answered_or_kept_as_an_incomplete_request() {
        with_port(|address, registry| {
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            let mut draw = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            for _ in 0..20 {
                let mut client = connect(address);
                let sent: Vec<u8> = (0..4096).map(|_| draw() as u8).collect();
                client.write_all(&sent).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let (mut expected, mut used) = (0, 0);
                while let Some((_, length)) = wire::read(&sent[used..]) {
                    used += length;
                    expected += 1;
                }
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert_eq!(answer.len(), 2 * expected);
                assert!(answer.lines().all(|line| line == "0" || line == "1"));
            }
            assert!(registry.list().iter().all(|entry| entry.check().is_ok()));
        });
    }
}
