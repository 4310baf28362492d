//! What std's sockets do not offer: the kernel's own view of a connection, the options that change how one begins, and
//! ways to end one that no application has.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::libc;
use nix::sys::socket::{self, SockaddrIn, SockaddrIn6, SockaddrLike, setsockopt, sockopt};

use super::Namespace;
use super::traffic::PATIENCE;

/// BBR's view of a connection; `struct tcp_bbr_info` of `linux/inet_diag.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Bbr {
    bandwidth_low: u32,
    bandwidth_high: u32,
    /// The least round trip seen lately, in microseconds.
    pub min_rtt: u32,
    /// 256 is one.
    pub pacing_gain: u32,
    /// 256 is one.
    pub cwnd_gain: u32,
}

impl Bbr {
    /// The bandwidth estimated, in bytes a second.
    pub fn bandwidth(&self) -> u64 {
        u64::from(self.bandwidth_high) << 32 | u64::from(self.bandwidth_low)
    }
}

/// The kernel's view of a connection: what `ss -ti` prints, times in microseconds.
///
/// # Panics
/// If it is no TCP socket.
pub fn tcp_info(socket: &impl AsFd) -> libc::tcp_info {
    // SAFETY: plain numbers, of which all patterns are valid.
    unsafe { option(socket, libc::TCP_INFO) }.expect("TCP_INFO of a TCP socket")
}

/// BBR's view of a connection that uses BBR.
///
/// # Panics
/// If it is no TCP socket.
pub fn bbr(socket: &impl AsFd) -> Option<Bbr> {
    let name = socket::getsockopt(socket, sockopt::TcpCongestion).expect("TCP_CONGESTION of a TCP socket");
    let name = name.to_string_lossy();
    // SAFETY: plain numbers, of which all patterns are valid.
    (name.trim_end_matches('\0') == "bbr").then(|| unsafe { option(socket, libc::TCP_CC_INFO) }.expect("TCP_CC_INFO"))
}

/// Reads an option of the TCP level; what the kernel leaves out is zero.
///
/// # Safety
/// Every pattern of bytes is a `T`.
pub(super) unsafe fn option<T>(socket: &impl AsFd, name: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the buffer is as long as `length` says.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::IPPROTO_TCP, name, value.as_mut_ptr().cast(), &raw mut length)
    };
    match result {
        // SAFETY: zeroed, and overwritten with what the caller vouches for.
        0 => Ok(unsafe { value.assume_init() }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The address as the kernel wants it.
fn native(address: SocketAddr) -> Box<dyn SockaddrLike> {
    match address {
        SocketAddr::V4(address) => Box::new(SockaddrIn::from(address)),
        SocketAddr::V6(address) => Box::new(SockaddrIn6::from(address)),
    }
}

/// Sets an option to a value laid out as the kernel wants it.
///
/// # Errors
/// The kernel's.
fn set_option<T: Copy>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the value is valid for the call, and as long as said.
    let result = unsafe {
        let value: *const T = value;
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.cast(), mem::size_of::<T>() as libc::socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has this congestion control steer the socket, or those that a listening one will accept.
///
/// # Errors
/// The kernel's; `NotFound` where it does not have it.
pub fn set_congestion_control(socket: &impl AsFd, name: &str) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::TcpCongestion, &name.into())?)
}

/// Signs segments exchanged with `peer` with `key` (RFC 2385), and takes none that are not signed so.
///
/// # Errors
/// The kernel's; `NotFound` (ENOPROTOOPT) where it was built without.
pub fn sign_with_md5(socket: &impl AsFd, peer: IpAddr, key: &[u8]) -> io::Result<()> {
    /// `struct tcp_md5sig` of `linux/tcp.h`.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Signature {
        peer: libc::sockaddr_storage,
        flags: u8,
        prefix: u8,
        key_length: u16,
        interface: libc::c_int,
        key: [u8; 80],
    }
    const TCP_MD5SIG: libc::c_int = 14;
    let address = native(SocketAddr::new(peer, 0));
    let mut signature = Signature {
        // SAFETY: all zero is an address of no family.
        peer: unsafe { mem::zeroed() },
        flags: 0,
        prefix: 0,
        key_length: key.len() as u16,
        interface: 0,
        key: [0; 80],
    };
    signature.key[..key.len()].copy_from_slice(key);
    // SAFETY: the address is as long as it says, and no address is longer than the storage.
    unsafe {
        let to: *mut libc::sockaddr_storage = &raw mut signature.peer;
        std::ptr::copy_nonoverlapping(address.as_ptr().cast::<u8>(), to.cast(), address.len() as usize);
    }
    set_option(socket, libc::IPPROTO_TCP, TCP_MD5SIG, &signature)
}

/// Forgets a connection without a word to the peer, as a host does that loses its power.
///
/// # Errors
/// The kernel's.
pub fn vanish(stream: TcpStream) -> io::Result<()> {
    // A socket under repair sends nothing when it is closed.
    set_option(&stream, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1i32)
}

/// Puts four bytes of options (NOPs) into the IPv4 header, or an empty hop-by-hop and an empty destination options header behind the
/// IPv6 header, of every segment the socket will send, or those that a listening one will accept.
///
/// # Errors
/// The kernel's.
pub fn send_more_headers(socket: &impl AsFd) -> io::Result<()> {
    /// `IPV6_HOPOPTS` and `IPV6_DSTOPTS` of `linux/in6.h`.
    const IPV6_OPTIONS: [libc::c_int; 2] = [54, 59];
    // Next header (the kernel's to fill in), length in units of eight bytes beyond the first, four bytes of padding (RFC 8200).
    const EMPTY: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
    match speaks_v4(socket)? {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1u8; 4]),
        false => IPV6_OPTIONS.iter().try_for_each(|&option| set_option(socket, libc::IPPROTO_IPV6, option, &EMPTY)),
    }
}

/// Whether a socket is one of IPv4.
fn speaks_v4(socket: &impl AsFd) -> io::Result<bool> {
    let family = socket::getsockname::<socket::SockaddrStorage>(socket.as_fd().as_raw_fd())?.family();
    Ok(family == Some(socket::AddressFamily::Inet))
}

/// Has what the socket sends, and those that a listening one will accept, bear this TTL or hop limit.
///
/// # Errors
/// The kernel's.
pub fn set_hop_limit(socket: &impl AsFd, hops: u8) -> io::Result<()> {
    match speaks_v4(socket)? {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_TTL, &i32::from(hops)),
        false => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &i32::from(hops)),
    }
}

/// Has the socket, and those that a listening one will accept, take no segment with a lower TTL or hop limit (RFC 5082).
///
/// # Errors
/// The kernel's.
pub fn require_hop_limit(socket: &impl AsFd, least: u8) -> io::Result<()> {
    match speaks_v4(socket)? {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &i32::from(least)),
        false => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &i32::from(least)),
    }
}

/// Has what the socket sends bear this DSCP (RFC 2474).
///
/// # Errors
/// The kernel's.
pub fn set_dscp(socket: &impl AsFd, dscp: u8) -> io::Result<()> {
    match speaks_v4(socket)? {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_TOS, &(i32::from(dscp) << 2)),
        false => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &(i32::from(dscp) << 2)),
    }
}

/// Has a listener accept a connection when its first data has come, or after about so many seconds.
///
/// # Errors
/// The kernel's.
pub fn defer_accept(listener: &impl AsFd, seconds: i32) -> io::Result<()> {
    set_option(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, &seconds)
}

/// Has a client that is not connected yet begin with this sequence number, and leave out the random choice of one.
///
/// # Errors
/// The kernel's.
pub fn begin_at(socket: &impl AsFd, number: u32) -> io::Result<()> {
    const TCP_SEND_QUEUE: i32 = 2;
    for (option, value) in [(libc::TCP_REPAIR, 1), (libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE)] {
        set_option(socket, libc::IPPROTO_TCP, option, &value)?;
    }
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, &number)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &0i32)
}

/// Puts four bytes of options (NOPs) into the IPv4 header of every segment that the socket sends from now on, or leaves them out again.
///
/// # Errors
/// The kernel's.
pub fn set_ip_options(socket: &impl AsFd, on: bool) -> io::Result<()> {
    match on {
        true => set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[1u8; 4]),
        false => set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[0u8; 0]),
    }
}

/// Lets a client send data with its SYN, once it has a cookie of the server's (RFC 7413).
///
/// # Errors
/// The kernel's.
pub fn connect_with_data(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::TcpFastOpenConnect, &true)?)
}

/// Lets a client send the last acknowledgement of the handshake with its first data, if there is some at once.
///
/// # Errors
/// The kernel's.
pub fn acknowledge_with_data(socket: &impl AsFd) -> io::Result<()> {
    // Whoever does not acknowledge quickly waits for something to send.
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_QUICKACK, &0i32)
}

/// Has a client that is not connected yet never offer a window of more than so many bytes, however fast its data come.
///
/// # Errors
/// The kernel's.
pub fn bound_window(socket: &impl AsFd, bytes: i32) -> io::Result<()> {
    // A buffer of a fixed size, and ample, lets the window neither grow nor shrink with what frames cost in memory.
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(bytes * 16))?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, &bytes)
}

/// Gives a socket a receive buffer of so many bytes, whatever the system's limit.
///
/// # Errors
/// The kernel's.
pub fn set_receive_buffer(socket: &impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
}

/// Lets a listener take data that comes with a SYN.
///
/// # Errors
/// The kernel's.
pub fn accept_with_data(listener: &impl AsFd) -> io::Result<()> {
    const TCP_FASTOPEN: libc::c_int = 23;
    set_option(listener, libc::IPPROTO_TCP, TCP_FASTOPEN, &16i32)
}

/// How a socket is made that std would make otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Making {
    /// The local port; 0 is any. Another socket may have used it a moment ago.
    pub port: u16,
    /// `IPPROTO_TCP`, or a protocol that looks like it.
    pub protocol: libc::c_int,
}

impl Default for Making {
    fn default() -> Making {
        Making { port: 0, protocol: libc::IPPROTO_TCP }
    }
}

impl Making {
    /// Multipath TCP (RFC 8684).
    pub const MULTIPATH: Making = Making { port: 0, protocol: libc::IPPROTO_MPTCP };

    /// A socket bound to `ip` in the calling thread's namespace.
    fn make(self, ip: IpAddr) -> io::Result<OwnedFd> {
        let family = if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: a call without pointers; what it returns is nobody else's.
        let socket = unsafe {
            match libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, self.protocol) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        socket::bind(socket.as_raw_fd(), &*native(SocketAddr::new(ip, self.port)))?;
        Ok(socket)
    }

    /// Connects from `from` to `to` in the calling thread's namespace, after `prepare` has seen the socket. Reads and
    /// writes, and connecting itself, wait no longer than [`PATIENCE`].
    ///
    /// # Errors
    /// The kernel's, and those of `prepare`.
    pub fn connect(
        self,
        from: IpAddr,
        to: SocketAddr,
        prepare: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<TcpStream> {
        let socket = self.make(from)?;
        prepare(&socket)?;
        let patience = Some(PATIENCE);
        // The time to send bounds connecting too.
        let socket = TcpStream::from(socket);
        socket.set_write_timeout(patience)?;
        socket.set_read_timeout(patience)?;
        socket::connect(socket.as_raw_fd(), &*native(to))?;
        Ok(socket)
    }

    /// Listens at `ip` in the calling thread's namespace, after `prepare` has seen the socket.
    ///
    /// # Errors
    /// The kernel's, and those of `prepare`.
    pub fn listen(self, ip: IpAddr, prepare: impl FnOnce(&OwnedFd) -> io::Result<()>) -> io::Result<TcpListener> {
        let socket = self.make(ip)?;
        prepare(&socket)?;
        socket::listen(&socket, socket::Backlog::new(64)?)?;
        Ok(TcpListener::from(socket))
    }
}

/// Waits for a connection, no longer than `patience`.
///
/// # Errors
/// The kernel's; `WouldBlock` when none came.
pub fn accept(listener: &TcpListener, patience: Duration) -> io::Result<TcpStream> {
    set_receive_timeout(listener, patience)?;
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A SYN on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// When it passed.
    pub at: Instant,
    /// Who connects.
    pub from: SocketAddr,
    /// Who listens.
    pub to: SocketAddr,
}

/// Watches a host for SYNs without ACK, until it is stopped or dropped.
#[derive(Debug)]
pub struct Syns {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Syn>>>,
}

impl Syns {
    /// Watches what passes every interface of `namespace`, whomever it is for.
    ///
    /// # Panics
    /// Without root.
    pub fn watch(namespace: &Namespace) -> Syns {
        // SAFETY: calls without pointers; what the first returns is nobody else's.
        let socket = namespace.run(|| unsafe {
            let every = i32::from((libc::ETH_P_ALL as u16).to_be());
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, every);
            assert!(fd >= 0, "a packet socket: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        });
        set_receive_timeout(&socket, Duration::from_millis(50)).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut syns, mut frame) = (Vec::new(), [0; 2048]);
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(length) = socket::recv(socket.as_raw_fd(), &mut frame, socket::MsgFlags::empty()) {
                    syns.extend(syn(&frame[..length.min(frame.len())]));
                }
            }
            syns
        });
        Syns { stop, thread: Some(thread) }
    }

    /// Ends, and returns what has passed, in order.
    ///
    /// # Panics
    /// If the watching thread did.
    pub fn stop(mut self) -> Vec<Syn> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("stopped once").join().expect("a watcher does not panic")
    }
}

impl Drop for Syns {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn syn(frame: &[u8]) -> Option<Syn> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(net), Some(TransportSlice::Tcp(tcp))) = (packet.net, packet.transport) else { return None };
    let (from, to) = match net {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => return None,
    };
    (tcp.syn() && !tcp.ack()).then(|| Syn {
        at: Instant::now(),
        from: SocketAddr::new(from, tcp.source_port()),
        to: SocketAddr::new(to, tcp.destination_port()),
    })
}

fn set_receive_timeout(socket: &impl AsFd, time: Duration) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: time.as_secs() as libc::time_t,
        tv_usec: libc::suseconds_t::from(time.subsec_micros()),
    };
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &time)
}
