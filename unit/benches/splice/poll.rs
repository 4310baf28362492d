//! Waiting for sockets, to the microsecond: `epoll`, always edge-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What happened to a socket.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What it was added with.
    pub token: u64,
    /// There may be something to read.
    pub reads: bool,
    /// There may be room to write.
    pub writes: bool,
    /// Its peer has ended, or it is broken: it is to be read to its end.
    pub ended: bool,
}

/// A set of sockets.
pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: no pointers; the descriptor is new and nobody else's.
        let epoll = unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Poll { epoll, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256] })
    }

    /// Adds a socket, until it is closed.
    pub fn add(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let what = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        let mut event = libc::epoll_event { events: what as u32, u64: token };
        let fd = socket.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open, and the structure outlives the call.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits, for ever without a `patience`; what has happened meanwhile.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<impl Iterator<Item = Event> + use<'_>> {
        let most = self.events.len() as i32;
        let time = patience.map(|patience| libc::timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: there is room for so many events, and the time, if there is one, outlives the call.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                most,
                time,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
        let count = match count {
            0.. => count as usize,
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error => return Err(error),
            },
        };
        Ok(self.events[..count].iter().map(|event| {
            let (bits, token) = (event.events as i32, event.u64);
            let ended = bits & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) != 0;
            Event { token, reads: ended || bits & libc::EPOLLIN != 0, writes: bits & libc::EPOLLOUT != 0, ended }
        }))
    }
}

/// What is known of whether a socket has something to read, so that nobody asks in vain: when less came than there was room for, what comes later is
/// another event. An end may have come together with those bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    is_dry: bool,
    has_ended: bool,
}

impl Readiness {
    /// Something has happened.
    pub fn note(&mut self, event: Event) {
        self.is_dry &= !event.reads;
        self.has_ended |= event.ended;
    }

    /// What has come, nothing at the end; none if there is nothing now.
    pub fn read<'a>(&mut self, socket: impl AsFd, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        if self.is_dry && !self.has_ended {
            return Ok(None);
        }
        match rustix::io::read(socket, &mut *buffer) {
            Ok(got) => {
                self.is_dry = got < buffer.len();
                Ok(Some(&buffer[..got]))
            }
            Err(rustix::io::Errno::AGAIN) => {
                self.is_dry = true;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// How many of the bytes a socket takes now.
pub fn put(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    match rustix::io::write(socket, bytes) {
        Ok(put) => Ok(put),
        Err(rustix::io::Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
