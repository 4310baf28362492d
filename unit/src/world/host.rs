//! A host: smoltcp, its manner of speaking, and the applications at its sockets.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use tcpstate::Side;

use super::chance::Chance;
use super::dialect::{Dialect, Tongue};
use super::envelope::{Envelope, Reassembly, Whole, undress};
use crate::oracle::icmp::Error;
use crate::oracle::layers::{Tags, is_priority_tag};
use crate::oracle::{Ancestor, Segment, pattern};

thread_local! {
    /// The world's clock in microseconds: smoltcp takes its TSval from a function without arguments.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Sets the time of this thread's hosts.
pub fn set_clock(micros: u64) {
    CLOCK.set(micros);
}

fn tsval() -> u32 {
    (CLOCK.get() / 1000) as u32
}

/// When an application closes its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// As soon as everything is written.
    WhenSent,
    /// When everything is written and the peer has closed.
    AfterPeer,
    /// Not at all: after receiving so many bytes the application resets the connection.
    Abort(u64),
}

/// What an application at one end of a connection does.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Bytes it writes.
    pub writes: u64,
    /// Bytes it expects.
    pub expects: u64,
    /// Bytes it waits for before it writes the first.
    pub speaks_after: u64,
    /// After so many bytes received it stops reading for so long, once (microseconds).
    pub pause: Option<(u64, u64)>,
    /// When it closes.
    pub close: Close,
    /// When it gives up, by the world's clock.
    pub patience: u64,
    /// Receive and transmit buffer.
    pub buffers: (usize, usize),
    /// Interval of keepalives, in microseconds.
    pub keepalive: u64,
    /// Whether small writes are held back.
    pub nagle: bool,
}

/// How a connection ended for one of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything written and read, both directions closed.
    Finished,
    /// Reset by the peer or on its behalf.
    Reset,
    /// The application gave up.
    GaveUp,
    /// The application reset it on purpose.
    Aborted,
}

/// One socket and the application at it.
#[derive(Debug)]
pub struct Connection {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    handle: Option<SocketHandle>,
    behaviour: Behaviour,
    /// Bytes written.
    pub written: u64,
    /// Bytes read and found right.
    pub read: u64,
    paused_until: Option<u64>,
    paused: bool,
    peer_closed: bool,
    closed: bool,
    /// The end, once it has come.
    pub ending: Option<Ending>,
}

/// What a port of a host does with a SYN.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    /// Connections are accepted.
    Open(Dialect),
    /// SYNs are swallowed until this time, then accepted.
    Silent(u64, Dialect),
    /// No socket listens.
    Closed,
}

/// What a host puts on its cable for one packet.
pub struct Departure {
    /// The packet in one frame, without anything around it.
    pub whole: Vec<u8>,
    /// The frames.
    pub frames: Vec<Vec<u8>>,
}

/// A host of the world.
pub struct Host {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its addresses.
    pub v6: Ipv6Addr,
    interface: Interface,
    nic: Nic,
    sockets: SocketSet<'static>,
    tongue: Tongue,
    /// What it answers without its stack.
    answers: Vec<(Vec<u8>, Envelope)>,
    reassembly: Reassembly,
    /// The next IPv4 identification.
    ids: u16,
    mtu: usize,
    /// The network each of its connections runs in, by (local, remote).
    pub networks: BTreeMap<(SocketAddr, SocketAddr), Tags>,
    chance: Chance,
    /// Its connections, ended ones too.
    pub connections: Vec<Connection>,
    /// What its ports do.
    pub services: BTreeMap<u16, Service>,
    /// What will be done at the far end of connections others open, by (local, remote).
    pub expected: BTreeMap<(SocketAddr, SocketAddr), Behaviour>,
    /// An application saw a byte that was not written there, or a stream that ended too early.
    pub wrong: Option<String>,
}

impl Host {
    /// A host with the `number`th addresses of its side.
    pub fn new(side: Side, number: u8, mtu: usize, mut chance: Chance) -> Self {
        let mac = [2, 0, 0, side as u8, 0, number];
        let v4 = Ipv4Addr::new(10, 0, side as u8, number);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, side as u16, u16::from(number));
        let mut nic = Nic { mtu, incoming: VecDeque::new(), outgoing: Vec::new() };
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = chance.word();
        let mut interface = Interface::new(config, &mut nic, Instant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(v4), 16)).expect("room for an address");
            addresses.push(IpCidr::new(IpAddress::Ipv6(v6), 64)).expect("room for an address");
        });
        Self {
            mac,
            v4,
            v6,
            interface,
            nic,
            sockets: SocketSet::new(Vec::new()),
            tongue: Tongue::default(),
            answers: Vec::new(),
            reassembly: Reassembly::default(),
            ids: chance.word() as u16,
            mtu,
            networks: BTreeMap::new(),
            chance,
            connections: Vec::new(),
            services: BTreeMap::new(),
            expected: BTreeMap::new(),
            wrong: None,
        }
    }

    /// The address of this family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// Opens a connection.
    pub fn connect(&mut self, local: SocketAddr, remote: SocketAddr, dialect: Dialect, behaviour: Behaviour) {
        let dialect = dialect.with_buffer(behaviour.buffers.0);
        self.tongue.settle(local, remote, dialect);
        let handle = self.sockets.add(socket(&behaviour, &dialect));
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(self.interface.context(), IpEndpoint::from(remote), IpEndpoint::from(local))
            .expect("a fresh socket connects");
        self.connections.push(Connection::new(local, remote, handle, behaviour));
    }

    /// Whether every connection between these two has ended here, its socket and all.
    pub fn is_over(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let mut connections =
            self.connections.iter().filter(|connection| connection.local == local && connection.remote == remote);
        connections.all(|connection| connection.handle.is_none())
    }

    /// Puts a frame off the cable together with others, if it is a fragment; the whole packet when all have come.
    pub fn assemble(&mut self, bytes: Vec<u8>, corrupt: bool, ancestor: Option<Ancestor>, now: u64) -> Option<Whole> {
        self.reassembly.take(bytes, corrupt, ancestor, now)
    }

    /// Takes an ICMP error.
    pub fn complain(&mut self, error: &Error) {
        let Some((local, remote)) = self.tongue.heed_error(error) else { return };
        for connection in
            self.connections.iter_mut().filter(|connection| (connection.local, connection.remote) == (local, remote))
        {
            if let (Some(handle), None) = (connection.handle, connection.ending) {
                self.sockets.get_mut::<tcp::Socket>(handle).abort();
                connection.ending = Some(Ending::Reset);
            }
        }
    }

    /// Takes a whole packet.
    pub fn receive(&mut self, frame: Vec<u8>, now: u64) {
        let mut listener = None;
        if let Some(segment) = Segment::read(&frame)
            && segment.syn
            && segment.ack.is_none()
            && segment.sums_right()
            && segment.destination.ip() == self.address(segment.destination.is_ipv6())
        {
            let (local, remote) = (segment.destination, segment.source);
            let busy = self.connections.iter().any(|connection| {
                connection.local == local && connection.remote == remote && (connection.handle.is_some())
            });
            match self.services.get(&local.port()).copied() {
                Some(Service::Silent(until, _)) if now < until => return,
                Some(Service::Open(dialect) | Service::Silent(_, dialect)) if !busy => {
                    listener = self.listen(local, remote, dialect);
                }
                _ => {}
            }
        }
        set_clock(now);
        self.answers.extend(self.tongue.answer_again(&frame, tsval()));
        if self.tongue.ignores(&frame) {
            return;
        }
        let frame = undress(self.tongue.inward(frame));
        self.nic.incoming.push_back(frame);
        self.poll(now);
        if let Some(handle) = listener
            && self.sockets.get::<tcp::Socket>(handle).state() == tcp::State::Listen
        {
            self.sockets.remove(handle);
            self.connections.retain(|connection| connection.handle != Some(handle));
        }
    }

    fn listen(&mut self, local: SocketAddr, remote: SocketAddr, mut dialect: Dialect) -> Option<SocketHandle> {
        let behaviour = *self.expected.get(&(local, remote))?;
        dialect.draw_isn(&mut self.chance);
        dialect = dialect.with_buffer(behaviour.buffers.0);
        self.tongue.settle(local, remote, dialect);
        let mut socket = socket(&behaviour, &dialect);
        socket.listen(IpEndpoint::from(local)).expect("a fresh socket listens");
        let handle = self.sockets.add(socket);
        self.connections.push(Connection::new(local, remote, handle, behaviour));
        Some(handle)
    }

    /// Lets the stack and the applications do what is due, and takes what the host sends.
    pub fn turn(&mut self, now: u64) -> Vec<Departure> {
        for _ in 0..4 {
            self.poll(now);
            if !self.work(now) {
                break;
            }
        }
        self.poll(now);
        let mut departures = Vec::new();
        let mut packets: Vec<_> =
            std::mem::take(&mut self.answers).into_iter().map(|(frame, envelope)| (vec![frame], envelope)).collect();
        packets.extend(std::mem::take(&mut self.nic.outgoing).into_iter().map(|frame| self.tongue.outward(frame)));
        for (frames, envelope) in packets {
            for whole in frames {
                let ends = Segment::read(&whole).map(|segment| (segment.source, segment.destination));
                let mut tags = ends.and_then(|ends| self.networks.get(&ends)).copied().unwrap_or_default();
                if tags.iter().flatten().any(is_priority_tag) && self.chance.one_in(1, 2) {
                    tags = tags.map(|tag| tag.filter(|tag| !is_priority_tag(tag)));
                }
                let mtu = ends.map_or(usize::MAX, |(_, remote)| self.tongue.route(remote.ip())).min(self.mtu);
                let frames = envelope.dress(tags, whole.clone(), mtu, &mut self.ids, &mut self.chance);
                departures.push(Departure { whole, frames });
            }
        }
        departures
    }

    /// When [`Host::turn`] has something to do without a frame having come.
    pub fn next_turn(&mut self, now: u64) -> Option<u64> {
        let stack = self
            .interface
            .poll_at(Instant::from_micros(now as i64), &self.sockets)
            // The stack sometimes says "now" and then has nothing to send.
            .map(|at| (at.total_micros().max(0) as u64).max(now + 1000));
        let applications = self
            .connections
            .iter()
            .filter(|connection| connection.handle.is_some())
            .flat_map(|connection| {
                let patience = connection.ending.is_none().then_some(connection.behaviour.patience);
                [connection.paused_until, patience]
            })
            .flatten()
            .filter(|&at| at > now)
            .min();
        [stack, applications].into_iter().flatten().min()
    }

    fn poll(&mut self, now: u64) {
        set_clock(now);
        self.interface.poll(Instant::from_micros(now as i64), &mut self.nic, &mut self.sockets);
    }

    /// Lets every application work; returns whether any did.
    fn work(&mut self, now: u64) -> bool {
        let mut worked = false;
        for connection in &mut self.connections {
            let Some(handle) = connection.handle else { continue };
            let socket = self.sockets.get_mut::<tcp::Socket>(handle);
            match connection.work(socket, now) {
                Ok(any) => worked |= any,
                Err(why) => self.wrong = self.wrong.take().or(Some(why)),
            }
            if socket.state() == tcp::State::Closed && socket.local_endpoint().is_none() {
                self.sockets.remove(handle);
                connection.handle = None;
            }
        }
        worked
    }
}

fn socket(behaviour: &Behaviour, dialect: &Dialect) -> tcp::Socket<'static> {
    let (receive, transmit) = behaviour.buffers;
    let mut socket =
        tcp::Socket::new(tcp::SocketBuffer::new(vec![0; receive]), tcp::SocketBuffer::new(vec![0; transmit]));
    if dialect.stamps {
        socket.set_tsval_generator(Some(tsval));
    }
    socket.set_keep_alive(Some(Duration::from_micros(behaviour.keepalive)));
    socket.set_nagle_enabled(behaviour.nagle);
    socket
}

impl Connection {
    fn new(local: SocketAddr, remote: SocketAddr, handle: SocketHandle, behaviour: Behaviour) -> Self {
        Self {
            local,
            remote,
            handle: Some(handle),
            behaviour,
            written: 0,
            read: 0,
            paused_until: None,
            paused: false,
            peer_closed: false,
            closed: false,
            ending: None,
        }
    }

    fn work(&mut self, socket: &mut tcp::Socket, now: u64) -> Result<bool, String> {
        if matches!(socket.state(), tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived) {
            if socket.state() == tcp::State::Listen {
                // A reset in SYN-RECEIVED: the stack would listen again, a real server's socket is gone.
                socket.abort();
                self.ending = Some(Ending::Reset);
            } else if now >= self.behaviour.patience && self.ending.is_none() {
                socket.abort();
                self.ending = Some(Ending::GaveUp);
            }
            return Ok(false);
        }
        let mut worked = false;
        // The connection may close for good while the application pauses; what has come is there to read.
        if self.paused_until.is_some_and(|until| now >= until) || socket.state() == tcp::State::Closed {
            self.paused_until = None;
        }
        while self.paused_until.is_none() && socket.can_recv() {
            let (local, remote, start) = (self.local, self.remote, self.read);
            let limit = match self.behaviour.pause {
                Some((at, _)) if !self.paused => (at - start.min(at)).max(1) as usize,
                _ => usize::MAX,
            };
            let count = socket
                .recv(|bytes| {
                    let bytes = &bytes[..bytes.len().min(limit)];
                    let wrong = (start..).zip(bytes).find(|&(at, &byte)| pattern(remote, local, at) != byte);
                    (bytes.len(), wrong.map_or(Ok(bytes.len() as u64), |(at, _)| Err(at)))
                })
                .map_err(|error| format!("{local} cannot read: {error:?}"))?
                .map_err(|at| format!("{local} read a wrong byte at offset {at} from {remote}"))?;
            self.read += count;
            worked = true;
            if self.read > self.behaviour.expects {
                return Err(format!("{local} read {} bytes of {}", self.read, self.behaviour.expects));
            }
            if let Some((at, duration)) = self.behaviour.pause
                && !self.paused
                && self.read >= at
            {
                self.paused = true;
                self.paused_until = Some(now + duration);
            }
        }
        if !self.peer_closed && socket.recv_slice(&mut []) == Err(tcp::RecvError::Finished) {
            self.peer_closed = true;
            worked = true;
            if self.read != self.behaviour.expects {
                return Err(format!(
                    "{} saw the end of the stream after {} bytes of {}",
                    self.local, self.read, self.behaviour.expects
                ));
            }
        }
        if self.read >= self.behaviour.speaks_after {
            while self.written < self.behaviour.writes && socket.can_send() {
                let (local, remote, start) = (self.local, self.remote, self.written);
                let left = (self.behaviour.writes - start) as usize;
                let count = socket
                    .send(|room| {
                        let count = room.len().min(left);
                        for (at, byte) in (start..).zip(&mut room[..count]) {
                            *byte = pattern(local, remote, at);
                        }
                        (count, count)
                    })
                    .map_err(|error| format!("{local} cannot write: {error:?}"))?;
                self.written += count as u64;
                worked = true;
            }
        }
        let sent = self.written == self.behaviour.writes;
        match self.behaviour.close {
            Close::WhenSent if sent && !self.closed => {
                socket.close();
                self.closed = true;
                worked = true;
            }
            Close::AfterPeer if sent && self.peer_closed && !self.closed => {
                socket.close();
                self.closed = true;
                worked = true;
            }
            Close::Abort(after) if self.read >= after && self.ending.is_none() => {
                socket.abort();
                self.ending = Some(Ending::Aborted);
                worked = true;
            }
            _ => {}
        }
        if self.ending.is_none() {
            let ours_acknowledged =
                matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait | tcp::State::FinWait2);
            if self.closed && self.peer_closed && (ours_acknowledged || socket.state() == tcp::State::Closed) {
                self.ending = Some(Ending::Finished);
            } else if socket.state() == tcp::State::Closed {
                self.ending = Some(Ending::Reset);
            } else if now >= self.behaviour.patience {
                socket.abort();
                self.ending = Some(Ending::GaveUp);
                worked = true;
            }
        }
        Ok(worked)
    }
}

/// The network card: frames in and out, one at a time.
struct Nic {
    mtu: usize,
    incoming: VecDeque<Vec<u8>>,
    outgoing: Vec<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sending<'a>(&'a mut Vec<Vec<u8>>);

impl Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.incoming.pop_front()?;
        Some((Received(frame), Sending(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + 14;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        // Ethernet's minimum, without the frame check sequence.
        if frame.len() < 60 {
            frame.resize(60, 0);
        }
        self.0.push(frame);
        // The stack sends as long as the card takes, a megabyte in segments of forty bytes at once; should it never end, the world must.
        assert!(
            self.0.len() < 1 << 16,
            "a stack that never stops sending: {:?}",
            self.0.last().and_then(|f| Segment::read(f))
        );
        result
    }
}
