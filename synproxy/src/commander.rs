//! The control port: the binary protocol of `control::wire` over TCP, in a thread of its own. What requests do is `backends`' matter.
//!
//! Nothing a client sends or leaves out concerns another: each has bounded room for what has come and for what has not been fetched, and who
//! does not fetch his answers is not listened to. Requests that have come by the same time are done together, so that many of them cost the
//! workers one change.

use crate::backends::Registry;
use crate::failure::Failure;
use crate::identity;
use control::wire::{self, DONE, Operation, REFUSED};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Clients connected at once. One more takes the place of the one that has been silent for longest.
const CLIENTS: usize = 256;

/// Bytes of requests taken from a client at once, some five thousand.
const ROOM: usize = 65_536;

/// Bytes of answers a client may leave unfetched.
const UNFETCHED: usize = 65_536;

/// How long the port rests when the system has no descriptor for another client.
const REST: Duration = Duration::from_millis(100);

/// The port, which nobody is served at yet.
#[derive(Debug)]
pub struct Commander {
    listener: TcpListener,
}

impl Commander {
    /// Listens at this address.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Serves everybody who comes, in a thread that ends with the process.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn serve(self, registry: Arc<Registry>) -> Result<(), Failure> {
        if let Ok(address) = self.listener.local_addr() {
            info!("control port: {address}");
            if !address.ip().is_loopback() {
                warn!(
                    "whoever reaches {address} can change what clients are told of servers: the protocol knows no passwords"
                );
            }
        }
        let work = move || {
            identity::become_servant();
            let mut crowd = Crowd { listener: self.listener, clients: Vec::new(), round: 0 };
            loop {
                crowd.round(&registry, None);
            }
        };
        thread::Builder::new().name("control port".to_owned()).spawn(work).map(drop).map_err(Failure::Spawn)
    }
}

/// A client.
struct Client {
    stream: TcpStream,
    /// What has come and is not a whole request yet.
    input: Vec<u8>,
    /// What it has not fetched yet.
    output: Vec<u8>,
    /// The round it last sent something in.
    heard: u64,
    /// Whether nothing more will come.
    has_ended: bool,
    /// Whether it is gone.
    is_gone: bool,
}

impl Client {
    /// What to wait for: more requests, unless there are too many answers; and room for answers, if there are any.
    fn awaits(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, !self.has_ended && self.output.len() < UNFETCHED);
        flags.set(PollFlags::OUT, !self.output.is_empty());
        flags
    }

    /// Takes what has come, at most [`ROOM`] of it, and appends the requests to `operations`; returns how many.
    fn receive_update(&mut self, round: u64, operations: &mut Vec<Operation>) -> usize {
        let before = self.input.len();
        self.input.resize(ROOM, 0);
        let came = match self.stream.read(&mut self.input[before..]) {
            Ok(0) => {
                self.has_ended = true;
                0
            }
            Ok(came) => came,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            Err(_) => {
                self.is_gone = true;
                0
            }
        };
        self.input.truncate(before + came);
        if came > 0 {
            self.heard = round;
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

    /// Sends what it will take.
    fn tell(&mut self) {
        match self.stream.write(&self.output) {
            Ok(sent) => drop(self.output.drain(..sent)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.is_gone = true,
        }
    }

    /// Whether there is nothing more to do for it: half a request that nothing follows is not answered.
    fn is_done(&self) -> bool {
        self.is_gone || self.has_ended && self.output.is_empty()
    }
}

/// Everybody at the port.
struct Crowd {
    listener: TcpListener,
    clients: Vec<Client>,
    round: u64,
}

impl Crowd {
    /// Waits until something comes, or as long as `patience`, and does what there is to do.
    fn round(&mut self, registry: &Registry, patience: Option<Duration>) {
        self.round += 1;
        let mut waiting: Vec<PollFd<'_>> = vec![PollFd::new(&self.listener, PollFlags::IN)];
        waiting.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.awaits())));
        let patience = patience
            .map(|patience| Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() });
        if poll(&mut waiting, patience.as_ref()).is_err() {
            return;
        }
        let ready: Vec<PollFlags> = waiting.iter().map(PollFd::revents).collect();
        drop(waiting);

        let mut operations = Vec::new();
        let mut shares = Vec::new();
        for (client, ready) in self.clients.iter_mut().zip(&ready[1..]) {
            let awaited = client.awaits();
            // An error is found by reading, or by writing where nothing is to be read.
            let trouble = ready.intersects(PollFlags::ERR | PollFlags::HUP);
            let may_read = awaited.contains(PollFlags::IN) && (trouble || ready.contains(PollFlags::IN));
            shares.push(if may_read { client.receive_update(self.round, &mut operations) } else { 0 });
            client.is_gone |= trouble && !may_read;
        }
        let outcomes = if operations.is_empty() { Vec::new() } else { registry.apply(&operations) };
        let mut outcomes = outcomes.into_iter();
        for (client, share) in self.clients.iter_mut().zip(shares) {
            for outcome in outcomes.by_ref().take(share) {
                client.output.extend(if outcome.is_ok() { DONE } else { REFUSED });
            }
            if !client.output.is_empty() {
                client.tell();
            }
        }
        self.clients.retain(|client| !client.is_done());
        if ready[0].contains(PollFlags::IN) {
            self.admit();
        }
    }

    /// Lets those in who wait, a few at a time.
    fn admit(&mut self) {
        for _ in 0..64 {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    debug!("control port: {error}");
                    return thread::sleep(REST);
                }
            };
            if stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).is_err() {
                continue;
            }
            if self.clients.len() >= CLIENTS
                && let Some(at) = (0..self.clients.len()).min_by_key(|&at| self.clients[at].heard)
            {
                debug!("control port: the client that has been silent for longest makes room for another");
                self.clients.remove(at);
            }
            let (input, output) = (Vec::new(), Vec::new());
            self.clients.push(Client { stream, input, output, heard: self.round, has_ended: false, is_gone: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Post;
    use control::Entry;
    use std::net::Shutdown;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Serves a port in a thread while `test` runs.
    fn with_port(test: impl FnOnce(SocketAddr, &Registry)) {
        let registry = Registry::new(Post::open(0).unwrap(), [1, 2]);
        let commander = Commander::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = commander.listener.local_addr().unwrap();
        let stop = AtomicBool::new(false);
        let mut crowd = Crowd { listener: commander.listener, clients: Vec::new(), round: 0 };
        /// Stops the port also when the test panics.
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
                    crowd.round(&registry, Some(Duration::from_millis(20)));
                    let room = crowd.clients.iter().map(|client| client.input.capacity() + client.output.capacity());
                    assert!(crowd.clients.len() <= CLIENTS && room.max().unwrap_or(0) <= 8 * ROOM);
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
            let said = bytes(&[
                Operation::Add(entry(1)),
                Operation::Add(entry(1)),
                Operation::Add(six),
                Operation::Unknown(5),
                Operation::Delete(entry(2).key()),
                Operation::Modify(entry(2)),
                Operation::Flush(Some(entry(1).address)),
            ]);
            for step in [1, 5, 13, said.len()] {
                let mut client = connect(address);
                client.write_all(&bytes(&[Operation::Flush(None)])).unwrap();
                for piece in said.chunks(step) {
                    client.write_all(piece).unwrap();
                    thread::sleep(Duration::from_micros(200));
                }
                assert_eq!(replies(&mut client, 8), "1\n1\n0\n1\n0\n0\n1\n1\n");
                assert_eq!(registry.list(), [entry(2), six]);
            }
        });
    }

    #[test]
    fn who_hangs_up_after_the_last_word_gets_every_answer_and_half_a_request_gets_none() {
        with_port(|address, registry| {
            let mut client = connect(address);
            let mut said = bytes(&[Operation::Add(entry(1)), Operation::Add(entry(2)), Operation::Add(entry(3))]);
            said.truncate(said.len() - 1);
            client.write_all(&said).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!((answer.as_str(), registry.len()), ("1\n1\n", 2));
        });
    }

    #[test]
    fn a_client_that_never_listens_and_one_that_never_ends_its_word_keep_nobody_else_waiting() {
        with_port(|address, _| {
            let mut deaf = connect(address);
            deaf.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let flood = bytes(&vec![Operation::Flush(None); 20_000]);
            // It is not listened to any more when it has left enough unfetched.
            let stuck = (0..200).any(|_| deaf.write_all(&flood).is_err());
            assert!(stuck, "48 MB of requests were taken while no answer was fetched");
            let mut slow = connect(address);
            slow.write_all(&[10]).unwrap();
            let mut client = connect(address);
            client.write_all(&bytes(&[Operation::Flush(None)])).unwrap();
            assert_eq!(replies(&mut client, 1), "1\n");
        });
    }

    #[test]
    fn a_thousand_connections_and_a_thousand_more_keep_nobody_out() {
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
    fn any_bytes_at_all_are_answered_or_waited_with() {
        with_port(|address, registry| {
            let mut chance = 0x9e37_79b9_7f4a_7c15_u64;
            let mut draw = || {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                chance
            };
            for _ in 0..20 {
                let mut client = connect(address);
                let said: Vec<u8> = (0..4096).map(|_| draw() as u8).collect();
                client.write_all(&said).unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                let (mut expected, mut used) = (0, 0);
                while let Some((_, length)) = wire::read(&said[used..]) {
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
