//! The way by which a process that ends gives its AF_XDP sockets to the one that has asked for its state: a socket in the state's directory, which only the
//! user of the box and root can reach. The successor opens it before it asks; the former process writes there before it gives up the state. So the successor
//! never waits for it: when it has the state, everything has been written, or nothing will be.

use pktio::LeftSockets;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{self, MaybeUninit};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::debug;

/// The name of the socket.
const NAME: &str = "successor";

/// The most descriptors of one worker: its memory, and a socket for each member of both ports.
const MOST_DESCRIPTORS: usize = 1 + 2 * pktio::MOST_MEMBERS;

/// The most bytes that say what they are.
const MOST_BYTES: usize = 1024;

/// For how long a process that has given its sockets may keep the state. Who has them and not the state then has been overtaken by a third process, which needs
/// the queues.
const LATEST: Duration = Duration::from_millis(500);

/// The end of the process that follows.
pub struct Successor {
    listener: OwnedFd,
    path: PathBuf,
    /// What the path was when it was bound: a later successor takes it for itself.
    inode: u64,
    connections: Vec<OwnedFd>,
    /// What was given, and when.
    left: Vec<LeftSockets>,
    given_at: Option<Instant>,
}

impl Successor {
    /// Opens it in the directory of a state.
    ///
    /// # Errors
    /// When there can be no socket of this name.
    pub fn listen(directory: &Path) -> io::Result<Self> {
        let path = directory.join(NAME);
        // One that another process has left.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = new_socket()?;
        bind(&listener, &SocketAddrUnix::new(&path)?)?;
        let inode = fs::metadata(&path)?.ino();
        let successor = Self { listener, path, inode, connections: Vec::new(), left: Vec::new(), given_at: None };
        // The former process may run as the user whose directory it is.
        let owner = fs::metadata(directory)?;
        std::os::unix::fs::lchown(&successor.path, Some(owner.uid()), Some(owner.gid()))?;
        listen(&successor.listener, 1)?;
        Ok(successor)
    }

    /// What the former process has given, which has ended or has nothing to give any more.
    pub fn take(mut self) -> Vec<LeftSockets> {
        self.look();
        mem::take(&mut self.left)
    }

    /// Looks for what was given, while another process has the state; closes it if that is not going to be this one.
    pub fn look(&mut self) {
        if self.given_at.is_some_and(|at| at.elapsed() > LATEST) {
            self.left.clear();
        }
        while let Ok(connection) = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            self.given_at = Some(Instant::now());
            self.connections.push(connection);
        }
        for connection in &self.connections {
            loop {
                match receive(connection) {
                    Ok(Some(one)) => self.left.push(one),
                    Ok(None) => break,
                    Err(error) => debug!("a worker's sockets of the former process are closed: {error}"),
                }
            }
        }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // The directory may be gone.
        if fs::metadata(&self.path).is_ok_and(|it| it.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Gives sockets to the process that has asked for the state in this directory. What cannot be given is closed.
pub fn give(directory: &Path, left: Vec<LeftSockets>) {
    if left.is_empty() {
        return;
    }
    if let Err(error) = try_to_give(directory, &left) {
        debug!("the sockets are closed, and not given to the successor: {error}");
    }
}

fn try_to_give(directory: &Path, left: &[LeftSockets]) -> io::Result<()> {
    let connection = new_socket()?;
    connect(&connection, &SocketAddrUnix::new(directory.join(NAME))?)?;
    for one in left {
        let bytes: Vec<u8> = one.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        let descriptors = one.descriptors();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("a worker has too many sockets"));
        }
        sendmsg(&connection, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    Ok(())
}

/// One worker's; `None` if there is none, or none yet.
///
/// # Errors
/// When they make no sense.
fn receive(connection: &OwnedFd) -> io::Result<Option<LeftSockets>> {
    let mut bytes = [0; MOST_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        match recvmsg(connection, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            Err(Errno::INTR) => return receive(connection),
            // Nothing, or a connection that is broken.
            Err(_) => return Ok(None),
        };
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    if received == 0 {
        return Ok(None);
    }
    let (words, rest) = bytes[..received].as_chunks();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    let left = LeftSockets::from_words(&words, descriptors).filter(|_| rest.is_empty());
    left.map(Some).ok_or_else(|| io::Error::other("they are of another version"))
}

/// A socket that never makes its process wait.
fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileTypeExt;

    fn left(queue: u64, sockets: usize) -> LeftSockets {
        let descriptors = (0..=sockets).map(|_| File::open("/dev/null").expect("it is there").into()).collect();
        let socket = |n| [7 + n as u64, 0, 100, 3, 4096, 16384, 5];
        let words: Vec<u64> = [1, 16384, 2048, queue].into_iter().chain((0..sockets).flat_map(socket)).collect();
        LeftSockets::from_words(&words, descriptors).expect("it makes sense")
    }

    #[test]
    fn what_is_given_before_the_state_is_there_when_the_state_is() {
        let directory = tempfile();
        let successor = Successor::listen(&directory).expect("a socket");
        give(&directory, vec![left(0, 2), left(1, MOST_DESCRIPTORS - 1)]);
        let taken = successor.take();
        let words: Vec<_> = taken.iter().map(LeftSockets::words).collect();
        assert_eq!(words, [left(0, 2).words(), left(1, MOST_DESCRIPTORS - 1).words()]);
        assert_eq!(taken[1].descriptors().len(), MOST_DESCRIPTORS);
        assert!(!directory.join(NAME).exists());
        fs::remove_dir(directory).expect("it is empty");
    }

    #[test]
    fn nobody_waits_for_who_is_not_there() {
        let directory = tempfile();
        give(&directory, vec![left(0, 2)]);
        let former = Successor::listen(&directory).expect("a socket");
        mem::forget(former);
        let successor = Successor::listen(&directory).expect("a socket that another has left is replaced");
        assert!(fs::metadata(directory.join(NAME)).expect("it is there").file_type().is_socket());
        assert!(successor.take().is_empty());
        fs::remove_dir(directory).expect("it is empty");
    }

    #[test]
    fn one_that_has_been_replaced_takes_nothing_away() {
        let directory = tempfile();
        let first = Successor::listen(&directory).expect("a socket");
        let second = Successor::listen(&directory).expect("a socket that another has left is replaced");
        drop(first);
        give(&directory, vec![left(0, 2)]);
        assert_eq!(second.take().len(), 1);
        fs::remove_dir(directory).expect("it is empty");
    }

    #[test]
    fn what_another_version_says_is_left_alone() {
        let directory = tempfile();
        let successor = Successor::listen(&directory).expect("a socket");
        let connection = new_socket().expect("a socket");
        connect(&connection, &SocketAddrUnix::new(directory.join(NAME)).expect("a path")).expect("somebody listens");
        rustix::net::send(&connection, b"another", SendFlags::NOSIGNAL).expect("room");
        assert!(successor.take().is_empty());
        fs::remove_dir(directory).expect("it is empty");
    }

    fn tempfile() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("successor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a directory");
        path
    }
}
