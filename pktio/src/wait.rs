//! How a worker sleeps until there is something to do.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use tracing::debug;

use crate::frame::MOST_MEMBERS;
use crate::port::Port;

/// How long a backlogged port may wait for its next flush.
const BACKLOG_WAIT: Duration = Duration::from_millis(1);

/// Sleeps until one of the ports has frames to receive or `timeout` has passed (`None`: without bound).
///
/// Returns at once when a port is always ready and not exhausted, or when neither can ever become readable. A signal ends
/// the sleep early and is no error. The system call also wakes the driver of an idle AF_XDP queue.
///
/// # Errors
///
/// Those of `ppoll(2)`.
pub fn wait(ports: [&dyn Port; 2], timeout: Option<Duration>) -> io::Result<()> {
    wait_or_wake(ports, [None; 2], timeout)
}

/// As [`wait`], but each of `wakers` ends the sleep as well when it is readable (an `eventfd(2)`, for example).
///
/// # Errors
///
/// Those of `ppoll(2)`.
pub fn wait_or_wake(ports: [&dyn Port; 2], wakers: [Option<RawFd>; 2], timeout: Option<Duration>) -> io::Result<()> {
    // A negative descriptor is skipped by poll(2).
    let mut fds = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 2 + 2 * MOST_MEMBERS];
    for (entry, waker) in fds.iter_mut().zip(wakers) {
        entry.fd = waker.unwrap_or(-1);
    }
    let mut used = 2;
    let mut add = |port: &dyn Port| {
        if port.is_exhausted() {
            return true;
        }
        let Some(fd) = port.poll_fd() else { return false };
        fds[used].fd = fd;
        used += 1;
        true
    };
    for port in ports {
        let all_can_wait = match port.members() {
            [] => add(port),
            members => members.iter().all(|member| add(&**member)),
        };
        if !all_can_wait {
            return Ok(());
        }
    }
    if used == 2 {
        return Ok(());
    }
    let fds = &mut fds[..used];
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

/// Tells whether frames wait at a port, asked by somebody other than who serves it, also when the port is gone.
#[derive(Debug)]
pub struct PortWatch(Vec<OwnedFd>);

impl PortWatch {
    /// Of this port; `None` where asking would change something, as `poll(2)` moves the rings of netmap, or nothing can be asked.
    pub fn new(port: &dyn Port) -> Option<Self> {
        if !["xdp", "packet"].contains(&port.capabilities().backend) {
            return None;
        }
        let copy = |port: &dyn Port| {
            let fd = port.poll_fd()?;
            // SAFETY: the port has this descriptor open, and is borrowed.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            fd.try_clone_to_owned().ok()
        };
        match port.members() {
            [] => Some(Self(vec![copy(port)?])),
            members => members.iter().map(|member| copy(&**member)).collect::<Option<_>>().map(Self),
        }
    }

    /// Whether the port has frames to receive.
    pub fn is_readable(&self) -> bool {
        self.0.iter().any(|fd| {
            let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one entry, which the kernel fills in before this returns at once.
            let ready = unsafe { libc::poll(&mut entry, 1, 0) };
            ready > 0 && entry.revents & libc::POLLIN != 0
        })
    }
}

/// Takes the pending error of a socket (its interface went down or was removed). Left there, it would end every later
/// sleep at once.
fn take_error(socket: RawFd) -> io::Error {
    let mut error: libc::c_int = 0;
    let mut length = size_of_val(&error) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a local integer.
    let result =
        unsafe { libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut length) };
    if result == 0 { io::Error::from_raw_os_error(error) } else { io::Error::last_os_error() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Batch;
    use crate::pool::Pool;
    use crate::port::{Capabilities, PortStatistics};
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
        // A datagram to a closed port brings an error back.
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        sender.connect(closed).unwrap();
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
    fn the_waker_ends_the_wait() {
        let (quiet, _keep) = UnixDatagram::pair().unwrap();
        let (waker, writer) = UnixDatagram::pair().unwrap();
        let quiet = Fake { fd: Some(quiet.as_raw_fd()), exhausted: false };
        let waker = Some(waker.as_raw_fd());
        let begin = Instant::now();
        wait_or_wake([&quiet, &quiet], [waker, None], Some(Duration::from_millis(20))).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(20));
        writer.send(b"x").unwrap();
        wait_or_wake([&quiet, &quiet], [waker, None], None).unwrap();
        wait_or_wake([&quiet, &quiet], [None, waker], None).unwrap();
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
