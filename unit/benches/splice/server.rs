//! The server: one thread in its namespace, on the last core. It takes a ClientHello, answers it by itself, and then does as it is ordered; or it answers
//! with fixed bytes, if the name is [`Name::Page`]'s.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{self, Shutdown, SocketFlags, sockopt};
use unit::netns::{self, Rig};

use crate::pattern::{self, CHUNK, Name};
use crate::poll::{Poll, Readiness, put};
use crate::relay;

/// Where it listens.
pub const PORT: u16 = 443;

/// How many bytes answer a ClientHello for [`Name::Page`]: a certificate chain of today, and what else a server says first.
pub const PAGE: u64 = 4096;

/// The stream that those bytes are the beginning of.
pub const PAGE_SEED: u64 = 0x9a9e;

/// What a client wants of the server once its ClientHello has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All that comes goes back.
    Echo,
    /// What comes is compared; at its end come as many bytes as are ordered, and the end.
    Take,
    /// So many bytes come, and the end.
    Give,
    /// As [`What::Take`], but nothing is read until the server is [`Server::release`]d.
    Hold,
}

/// What a client says behind its ClientHello.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub what: What,
    /// Names the connection, and the stream of its bytes.
    pub seed: u64,
    /// Bytes that the server is to send.
    pub bytes: u64,
}

impl Order {
    const LEN: usize = 24;

    pub fn written(self) -> [u8; Order::LEN] {
        let mut text = [0; Order::LEN];
        for (at, number) in [self.what as u64, self.seed, self.bytes].into_iter().enumerate() {
            text[at * 8..][..8].copy_from_slice(&number.to_be_bytes());
        }
        text
    }

    fn read(text: &[u8]) -> Option<Order> {
        let number = |at: usize| Some(u64::from_be_bytes(text.get(at * 8..at * 8 + 8)?.try_into().ok()?));
        let what = [What::Echo, What::Take, What::Give, What::Hold]
            .into_iter()
            .find(|what| Some(*what as u64) == number(0))?;
        Some(Order { what, seed: number(1)?, bytes: number(2)? })
    }
}

/// How the client's half of a connection ended, as the server saw it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub when: Instant,
    pub is_reset: bool,
    /// Bytes that had come, and where the first wrong one was.
    pub received: u64,
    pub wrong: Option<u64>,
}

/// A server that runs until it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    is_released: AtomicBool,
    /// By what the connections are called.
    ends: Mutex<HashMap<u64, End>>,
}

impl Server {
    pub fn start(rig: &Rig) -> Server {
        let shared = Arc::new(Shared::default());
        let IpAddr::V4(address) = netns::SERVER_V4 else { unreachable!("it is one of the fourth version") };
        let listener = rig.server.run(|| relay::listen(SocketAddrV4::new(address, PORT))).expect("listening");
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            crate::pin_to_last();
            Serving::new(of_thread, listener)?.run()
        });
        Server { shared, thread: Some(thread) }
    }

    /// Connections of [`What::Hold`] are read from now on.
    pub fn release(&self) {
        self.shared.is_released.store(true, Ordering::Relaxed);
    }

    /// How this connection ended, once that is known; it is forgotten.
    pub fn end_of(&self, seed: u64) -> Option<End> {
        self.shared.ends.lock().expect("the server does not panic").remove(&seed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().map(JoinHandle::join);
        match outcome {
            Some(Ok(Err(error))) => eprintln!("the server: {error}"),
            Some(Err(panic)) if !thread::panicking() => std::panic::resume_unwind(panic),
            _ => {}
        }
    }
}

/// Where a connection stands.
enum Stage {
    /// Its ClientHello and its order come.
    Begins { head: Vec<u8>, is_answered: bool },
    /// What came goes back; some of it may not have been taken.
    Echoes { pending: Vec<u8>, from: usize },
    /// Bytes come, and are compared.
    Takes,
    /// Bytes go; then the end.
    Gives { sent: u64 },
    /// Nothing is to be done but to wait for the client's end.
    Ends,
}

struct Connection {
    socket: OwnedFd,
    readiness: Readiness,
    stage: Stage,
    order: Option<Order>,
    /// Bytes that were compared, and where the first wrong one was.
    received: u64,
    wrong: Option<u64>,
}

/// What is to become of a connection.
enum Next {
    Waits,
    Goes,
}

struct Serving {
    shared: Arc<Shared>,
    listener: OwnedFd,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    was_released: bool,
}

impl Serving {
    fn new(shared: Arc<Shared>, listener: OwnedFd) -> io::Result<Serving> {
        let poll = Poll::new()?;
        poll.add(&listener, u64::MAX)?;
        let buffer = vec![0; CHUNK];
        Ok(Serving { shared, listener, poll, connections: Vec::new(), free: Vec::new(), buffer, was_released: false })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Vec::new();
        while !self.shared.is_over.load(Ordering::Relaxed) {
            events.clear();
            events.extend(self.poll.wait(Some(Duration::from_millis(50)))?);
            for &event in &events {
                if event.token == u64::MAX {
                    self.accept()?;
                    continue;
                }
                let at = event.token as usize;
                if let Some(connection) = &mut self.connections[at] {
                    connection.readiness.note(event);
                    self.serve(at);
                }
            }
            if !self.was_released && self.shared.is_released.load(Ordering::Relaxed) {
                self.was_released = true;
                (0..self.connections.len()).for_each(|at| self.serve(at));
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let socket = match net::accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            sockopt::set_tcp_nodelay(&socket, true)?;
            let at = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.add(&socket, at as u64)?;
            let stage = Stage::Begins { head: Vec::new(), is_answered: false };
            let readiness = Readiness::default();
            self.connections[at] = Some(Connection { socket, readiness, stage, order: None, received: 0, wrong: None });
        }
    }

    fn serve(&mut self, at: usize) {
        let Some(connection) = &mut self.connections[at] else { return };
        match connection.serve(&mut self.buffer, self.was_released, &self.shared) {
            Ok(Next::Waits) => return,
            Ok(Next::Goes) => {}
            Err(_) => connection.tell(true, &self.shared),
        }
        self.connections[at] = None;
        self.free.push(at);
    }
}

impl Connection {
    /// Does what can be done now. An error is the connection's.
    fn serve(&mut self, buffer: &mut [u8], is_released: bool, shared: &Shared) -> io::Result<Next> {
        loop {
            match &mut self.stage {
                Stage::Begins { head, is_answered } => {
                    let Some(got) = self.readiness.read(&self.socket, buffer)? else { return Ok(Next::Waits) };
                    head.extend_from_slice(got);
                    if got.is_empty() {
                        return Ok(Next::Goes);
                    }
                    let Some(len) = pattern::record(head).filter(|len| head.len() >= *len) else { continue };
                    if !*is_answered {
                        *is_answered = true;
                        if Name::asked(&head[..len]) == Some(Name::Page) {
                            say(&self.socket, pattern::bytes(PAGE_SEED, 0, PAGE))?;
                            return Ok(Next::Goes);
                        }
                        say(&self.socket, &head[..len])?;
                    }
                    let Some(order) = Order::read(&head[len..]) else { continue };
                    self.order = Some(order);
                    let rest = head.split_off(len + Order::LEN);
                    self.stage = match order.what {
                        What::Echo => Stage::Echoes { pending: rest, from: 0 },
                        What::Give => Stage::Gives { sent: 0 },
                        What::Take | What::Hold => {
                            self.compare(&rest);
                            Stage::Takes
                        }
                    };
                }
                Stage::Echoes { pending, from } => {
                    if !pending.is_empty() {
                        *from += put(&self.socket, &pending[*from..])?;
                        if *from < pending.len() {
                            return Ok(Next::Waits);
                        }
                        (*pending, *from) = (Vec::new(), 0);
                    }
                    let Some(got) = self.readiness.read(&self.socket, buffer)? else { return Ok(Next::Waits) };
                    if got.is_empty() {
                        return Ok(Next::Goes);
                    }
                    let put = put(&self.socket, got)?;
                    pending.extend_from_slice(&got[put..]);
                }
                Stage::Takes => {
                    let order = self.order.expect("it was ordered");
                    if order.what == What::Hold && !is_released {
                        return Ok(Next::Waits);
                    }
                    let Some(got) = self.readiness.read(&self.socket, buffer)? else { return Ok(Next::Waits) };
                    let got = got.len();
                    self.compare(&buffer[..got]);
                    if got == 0 {
                        self.tell(false, shared);
                        self.stage = Stage::Gives { sent: 0 };
                    }
                }
                Stage::Gives { sent } => {
                    let order = self.order.expect("it was ordered");
                    while *sent < order.bytes {
                        match put(&self.socket, pattern::bytes(order.seed, *sent, order.bytes - *sent))? {
                            0 => return Ok(Next::Waits),
                            put => *sent += put as u64,
                        }
                    }
                    if order.what != What::Give {
                        return Ok(Next::Goes);
                    }
                    net::shutdown(&self.socket, Shutdown::Write)?;
                    self.stage = Stage::Ends;
                }
                Stage::Ends => match self.readiness.read(&self.socket, buffer)? {
                    None => return Ok(Next::Waits),
                    Some([]) => return Ok(Next::Goes),
                    Some(_) => {}
                },
            }
        }
    }

    fn compare(&mut self, got: &[u8]) {
        let seed = self.order.expect("it was ordered").seed;
        self.wrong = self.wrong.or_else(|| pattern::wrong(seed, self.received, got));
        self.received += got.len() as u64;
    }

    /// The client's half has ended.
    fn tell(&self, is_reset: bool, shared: &Shared) {
        let Some(order) = self.order else { return };
        let end = End { when: Instant::now(), is_reset, received: self.received, wrong: self.wrong };
        shared.ends.lock().expect("nobody panics with it").insert(order.seed, end);
    }
}

/// Says something short to a client that listens.
fn say(socket: &OwnedFd, text: &[u8]) -> io::Result<()> {
    match put(socket, text)? == text.len() {
        true => Ok(()),
        false => Err(io::Error::other("a new connection takes less than a page")),
    }
}
