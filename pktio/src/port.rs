//! What every backend offers the worker: receive a batch, transmit a batch, flush, wait.
//!
//! How frames get in and out of the machine is the backends' story; what is done with them is the worker's.

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use tracing::debug;

use crate::frame::{Batch, Pool};
use crate::sieve::Level;

/// How long a backlogged port may wait for its next flush.
const BACKLOG_WAIT: Duration = Duration::from_millis(1);

/// One queue of one interface.
///
/// A port never blocks without bound and never allocates per frame. The pool passed in is always the one the port was
/// opened with; ports panic when handed frames of another.
pub trait Port: Send {
    /// Appends up to `max` received frames to `batch` and returns how many.
    ///
    /// The receive ring is refilled from `pool` as frames leave it. When the pool has no replacement, a frame is
    /// dropped, counted in [`PortStatistics::no_buffer`], and its buffer goes back to the ring: the ring never runs dry
    /// because others hold the frames.
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize;

    /// Queues frames from the front of `batch`, as many as fit, and returns how many. What does not fit stays in
    /// `batch`, in order. Takes completed transmissions back into `pool`.
    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize;

    /// Kicks the kernel if it needs a kick, and takes completed transmissions back into `pool`.
    fn flush(&mut self, pool: &mut Pool);

    /// The descriptor that becomes readable when frames have arrived; `None` for ports that are always ready.
    fn poll_fd(&self) -> Option<RawFd>;

    /// True once the port will never deliver a frame again (the end of a capture file).
    fn is_exhausted(&self) -> bool {
        false
    }

    /// True while frames wait in the transmit ring that the kernel would not take at the last [`flush`](Port::flush);
    /// [`wait`] then sleeps no longer than a millisecond, so that the next flush comes soon.
    fn is_backlogged(&self) -> bool {
        false
    }

    /// Asks the port to leave out so much of what opens connections, before it costs a buffer (see [`sieve`](crate::sieve)).
    /// False when it cannot: whoever asks has to sift what it receives.
    fn shed(&mut self, _: Level) -> bool {
        false
    }

    /// Tells the port of a source that has proved itself, by its address: 16 bytes in network order, an IPv4 one mapped into
    /// IPv6 (RFC 4291 section 2.5.5.2). What it sends is not left out.
    fn favour(&mut self, _: [u8; 16]) {}

    /// What the port can do; it does not change while the port is open.
    fn capabilities(&self) -> Capabilities;

    /// What has passed so far. May ask the kernel: for the control path, not for every turn.
    fn statistics(&self) -> PortStatistics;
}

impl<P: Port + ?Sized> Port for Box<P> {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        (**self).receive(batch, max, pool)
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        (**self).transmit(batch, pool)
    }

    fn flush(&mut self, pool: &mut Pool) {
        (**self).flush(pool)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        (**self).poll_fd()
    }

    fn is_exhausted(&self) -> bool {
        (**self).is_exhausted()
    }

    fn is_backlogged(&self) -> bool {
        (**self).is_backlogged()
    }

    fn shed(&mut self, level: Level) -> bool {
        (**self).shed(level)
    }

    fn favour(&mut self, source: [u8; 16]) {
        (**self).favour(source);
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn statistics(&self) -> PortStatistics {
        (**self).statistics()
    }
}

/// What a port can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The backend, as it is named in interface names: `xdp`, `packet`, `pcap`, `memory`.
    pub backend: &'static str,
    /// The device reads and writes the frames where they lie.
    pub zero_copy: bool,
    /// The XDP program runs in the driver, before the kernel makes an skb.
    pub driver_mode: bool,
    /// The kernel says when it needs a kick, so an idle ring costs no system call.
    pub need_wakeup: bool,
    /// A frame may lie in several buffers.
    pub multi_buffer: bool,
    /// The longest frame that can be received or sent, in bytes, from the destination address to the end of the payload.
    pub max_frame: usize,
    /// The interface's receive queue this port serves.
    pub queue: u32,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities {
            backend: "",
            zero_copy: false,
            driver_mode: false,
            need_wakeup: false,
            multi_buffer: false,
            max_frame: 1518,
            queue: 0,
        }
    }
}

/// What has passed a port since it was opened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct PortStatistics {
    /// Frames handed to the worker.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames accepted for transmission.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Times that [`Port::transmit`] had to leave frames in the batch.
    pub transmit_full: u64,
    /// Frames that could not be sent at all (too long, refused by the kernel) and were put back into the pool.
    pub transmit_errors: u64,
    /// Received frames dropped by the port because the pool had no buffer to replace theirs.
    pub no_buffer: u64,
    /// Received frames dropped because they were longer than [`Capabilities::max_frame`] or came cut off.
    pub truncated: u64,
    /// Frames the kernel dropped because the receive ring was full.
    pub receive_full: u64,
    /// Times the kernel found no buffer to receive into.
    pub fill_empty: u64,
    /// Frames the kernel dropped on the way to the port for other reasons.
    pub kernel_drops: u64,
    /// System calls that told the kernel to send, or that there are buffers to receive into.
    pub kicks: u64,
    /// Frames left out because they were calls of unproved sources seen for the first time ([`Port::shed`]).
    pub shed_fresh: u64,
    /// Frames left out because they were repeated calls of unproved sources.
    pub shed_repeated: u64,
}

/// What one worker owns: its queue of both ports, and the frames they share.
///
/// The ports go before the pool when it is dropped, so that their rings give the frames up first.
pub struct Pair {
    /// The port to the servers.
    pub lan: Box<dyn Port>,
    /// The port to everybody else.
    pub wan: Box<dyn Port>,
    /// The frames of both ports.
    pub pool: Pool,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair")
            .field("lan", &self.lan.capabilities())
            .field("wan", &self.wan.capabilities())
            .field("pool", &self.pool)
            .finish()
    }
}

/// Sleeps until one of the ports has frames to receive or `timeout` has passed (`None`: for as long as it takes).
///
/// Returns at once when a port is always ready and not exhausted, or when neither can ever become readable. A signal ends
/// the sleep early and is no error. The poll also gives the kernel the kick that an idle AF_XDP queue needs.
///
/// # Errors
///
/// Those of `ppoll(2)`.
pub fn wait(ports: [&dyn Port; 2], timeout: Option<Duration>) -> io::Result<()> {
    wait_or_bell(ports, [None; 2], timeout)
}

/// As [`wait`], but each of `bells` too ends the sleep when it is readable.
///
/// # Errors
///
/// Those of `ppoll(2)`.
pub fn wait_or_bell(ports: [&dyn Port; 2], bells: [Option<RawFd>; 2], timeout: Option<Duration>) -> io::Result<()> {
    // A negative descriptor is skipped by poll(2).
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 4];
    for (entry, bell) in fds[2..].iter_mut().zip(bells) {
        entry.fd = bell.unwrap_or(-1);
    }
    let mut waiting = false;
    for (port, entry) in ports.iter().zip(&mut fds) {
        match port.poll_fd() {
            _ if port.is_exhausted() => {}
            Some(fd) => {
                entry.fd = fd;
                waiting = true;
            }
            None => return Ok(()),
        }
    }
    if !waiting {
        return Ok(());
    }
    let backlogged = ports.iter().any(|port| port.is_backlogged());
    let timeout = if backlogged { Some(timeout.map_or(BACKLOG_WAIT, |t| t.min(BACKLOG_WAIT))) } else { timeout };
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the array holds as many entries as we say, the time-out is null or valid, and no signal mask is passed.
    let ready = unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    for entry in fds.iter().filter(|entry| entry.revents & libc::POLLERR != 0) {
        let error = take_error(entry.fd);
        debug!("a port reports: {error}");
    }
    Ok(())
}

/// Takes the error that waits at a socket (its interface went down, or away). One that is left there would end every later
/// sleep at once.
fn take_error(socket: RawFd) -> io::Error {
    let mut error: libc::c_int = 0;
    let mut length = size_of_val(&error) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to an integer of ours.
    let result =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut length) };
    if result == 0 { io::Error::from_raw_os_error(error) } else { io::Error::last_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;
    use std::time::Instant;

    struct Fake {
        fd: Option<RawFd>,
        exhausted: bool,
    }

    impl Port for Fake {
        fn receive(&mut self, _: &mut Batch, _: usize, _: &mut Pool) -> usize {
            0
        }
        fn transmit(&mut self, _: &mut Batch, _: &mut Pool) -> usize {
            0
        }
        fn flush(&mut self, _: &mut Pool) {}
        fn poll_fd(&self) -> Option<RawFd> {
            self.fd
        }
        fn is_exhausted(&self) -> bool {
            self.exhausted
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
        fn statistics(&self) -> PortStatistics {
            PortStatistics::default()
        }
    }

    #[test]
    fn the_wait_ends_with_its_time() {
        let (one, _keep) = UnixDatagram::pair().unwrap();
        let port = Fake { fd: Some(one.as_raw_fd()), exhausted: false };
        let begin = Instant::now();
        wait([&port, &port], Some(Duration::from_millis(20))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn an_error_at_a_socket_ends_one_wait_and_not_the_next() {
        // A datagram that nobody wants brings an error back.
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sender.connect(nobody).unwrap();
        sender.send(b"x").unwrap();
        let port = Fake { fd: Some(sender.as_raw_fd()), exhausted: false };
        let begin = Instant::now();
        wait([&port, &port], Some(Duration::from_secs(5))).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(5), "the error ends the wait");
        let begin = Instant::now();
        wait([&port, &port], Some(Duration::from_millis(20))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn the_wait_ends_when_either_port_is_readable() {
        let (one, other) = UnixDatagram::pair().unwrap();
        let (quiet, _keep) = UnixDatagram::pair().unwrap();
        other.send(b"x").unwrap();
        let ready = Fake { fd: Some(one.as_raw_fd()), exhausted: false };
        let quiet = Fake { fd: Some(quiet.as_raw_fd()), exhausted: false };
        wait([&quiet, &ready], None).unwrap();
        wait([&ready, &quiet], None).unwrap();
    }

    #[test]
    fn the_bell_ends_the_wait() {
        let (quiet, _keep) = UnixDatagram::pair().unwrap();
        let (bell, ringer) = UnixDatagram::pair().unwrap();
        let quiet = Fake { fd: Some(quiet.as_raw_fd()), exhausted: false };
        let bell = Some(bell.as_raw_fd());
        let begin = Instant::now();
        wait_or_bell([&quiet, &quiet], [bell, None], Some(Duration::from_millis(20))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
        ringer.send(b"x").unwrap();
        wait_or_bell([&quiet, &quiet], [bell, None], None).unwrap();
        wait_or_bell([&quiet, &quiet], [None, bell], None).unwrap();
    }

    #[test]
    fn a_port_that_is_always_ready_needs_no_wait_and_an_exhausted_one_none_either() {
        let (one, _keep) = UnixDatagram::pair().unwrap();
        let quiet = Fake { fd: Some(one.as_raw_fd()), exhausted: false };
        let always = Fake { fd: None, exhausted: false };
        let done = Fake { fd: None, exhausted: true };
        wait([&quiet, &always], None).unwrap();
        wait([&done, &done], None).unwrap();
        let begin = Instant::now();
        wait([&quiet, &done], Some(Duration::from_millis(20))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }
}
