//! The control socket: who may come in, and a line in for a line out. What is answered is `operator`'s matter.
//!
//! Root may ask, the user the process runs as may, and the group the configuration names, but not for everything: the file's mode says so, and
//! the peer's credentials are looked at besides. Clients are served side by side, each by a thread of its own, and each waits for its own answers only.

use crate::control::api::{Operator, Who};
use crate::process::exit::Failure;
use crate::process::privileges as identity;
use ::control::{Line, MAX_REQUEST, Reply, Why, read_line, write_line};
use rustix::fs::Mode;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tracing::{debug, info, warn};

/// Clients served at once.
const CLIENTS: usize = 32;

/// How long a client may leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// A socket nobody is served at yet; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    doors: Doors,
}

/// Who may come in, besides root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// The user and the group this process will have, where they are not those it has.
    pub owner: (Option<u32>, Option<u32>),
    /// A group whose members may come in as guests.
    pub group: Option<u32>,
}

/// The number of the machine's own network namespace: `NET_NS_INIT_INO` of newer kernels.
const FIRST: u64 = 0xefff_fff9;

/// The number of the network namespace this process is in, unless it is the machine's own, or that of the container's first process.
pub fn namespace() -> Option<u64> {
    let number = |process: &str| Some(fs::metadata(format!("/proc/{process}/ns/net")).ok()?.ino());
    // Not everybody may look at the first process.
    number("self").filter(|own| *own != FIRST && Some(*own) != number("1"))
}

impl Socket {
    /// Makes the socket at `path`, in place of one that an ended process has left there.
    ///
    /// # Errors
    /// When something else is there, or somebody listens there, or the system refuses.
    pub fn bind(path: &Path, doors: Doors) -> io::Result<Self> {
        let (user, group) = doors.owner;
        if path.parent() == Some(Path::new(control::DIRECTORY)) && fs::create_dir(control::DIRECTORY).is_ok() {
            // Whoever this process becomes has to remove the socket again.
            std::os::unix::fs::chown(control::DIRECTORY, user, group)?;
        }
        clear(path)?;
        // The file has its mode from the first moment on. No other thread makes files now.
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        let socket = Self { listener: listener?, path: path.to_owned(), doors };
        std::os::unix::fs::lchown(path, user, doors.group.or(group))?;
        if doors.group.is_some() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        }
        Ok(socket)
    }

    /// Serves everybody who may come, in threads that end with the process. The socket stays until what is returned is dropped.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn serve(self, operator: Arc<Operator>) -> Result<Serving, Failure> {
        let serving = Serving { path: self.path };
        let (listener, doors) = (self.listener, self.doors);
        let accept = move || {
            identity::become_servant();
            accept(&listener, doors, &operator);
        };
        thread::Builder::new().name("control".to_owned()).spawn(accept).map_err(Failure::Spawn)?;
        info!("control socket: {}", serving.path.display());
        Ok(serving)
    }
}

/// A socket at which clients are served; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Serving {
    path: PathBuf,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            debug!("{} stays: {error}", self.path.display());
        }
    }
}

/// Removes a socket that nobody listens at.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(file) if !file.file_type().is_socket() => Err(io::Error::other("something that is no socket is there")),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Err(io::Error::other("another process listens there")),
        },
    }
}

/// Serves whoever comes.
fn accept(listener: &UnixListener, doors: Doors, operator: &Arc<Operator>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => {
                // Descriptors may be spare again later.
                debug!("control socket: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(&clients);
        let operator = Arc::clone(operator);
        let serve = move || {
            if let Err(error) = serve(client, doors, place, &operator) {
                debug!("control socket: a client is gone: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("control client".to_owned()).spawn(serve) {
            warn!("control socket: a client cannot be served: {error}");
        }
    }
}

/// One of the places for clients; given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, if one is free.
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Place(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < CLIENTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers a client's lines until it leaves.
fn serve(mut client: UnixStream, doors: Doors, place: Option<Place>, operator: &Operator) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(&client)?;
    let Some(who) = doors.admit(peer.uid.as_raw()) else {
        warn!("control socket: user {} may not ask here", peer.uid.as_raw());
        return write_line(
            &mut client,
            &Reply::refuse(Why::Forbidden, "not permitted: run as root, or as the box's own user"),
        );
    };
    if place.is_none() {
        return write_line(&mut client, &Reply::refuse(Why::Busy, format!("{CLIENTS} clients are connected already")));
    }
    let mut lines = BufReader::new(client.try_clone()?);
    let mut line = Vec::new();
    loop {
        match read_line(&mut lines, &mut line, MAX_REQUEST)? {
            Line::End => return Ok(()),
            Line::TooLong => {
                let message = format!("a request has {MAX_REQUEST} bytes at most");
                return write_line(&mut client, &Reply::refuse(Why::Malformed, message));
            }
            Line::Whole => match serde_json::from_slice(&line) {
                Ok(request) => write_line(&mut client, &operator.answer(request, who))?,
                Err(error) => write_line(&mut client, &Reply::refuse(Why::Malformed, error.to_string()))?,
            },
        }
    }
}

impl Doors {
    /// As whom a client of this user is let in, if at all.
    fn admit(self, user: u32) -> Option<Who> {
        if user == 0 || user == rustix::process::geteuid().as_raw() {
            return Some(Who::Own);
        }
        // The kernel has let it use the file, which only members of the group may.
        self.group.map(|_| Who::Guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("spx-socket-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_nothing_else_is() {
        let path = path("left");
        let left = UnixListener::bind(&path).unwrap();
        let listened = Socket::bind(&path, Doors::default()).unwrap_err();
        assert!(listened.to_string().contains("another process"), "{listened}");
        drop(left);
        let socket = Socket::bind(&path, Doors::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        fs::remove_file(&path).unwrap();

        fs::write(&path, "a file").unwrap();
        assert!(Socket::bind(&path, Doors::default()).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_group_may_come_in_as_a_guest_and_nobody_else() {
        let path = path("group");
        // A group that this process may give a file to: its own.
        let own = rustix::process::getegid().as_raw();
        let doors = Doors { group: Some(own), ..Doors::default() };
        let socket = Socket::bind(&path, doors).unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (0o660, own));
        drop(socket);
        fs::remove_file(&path).unwrap();
        assert_eq!([doors, Doors::default()].map(|doors| doors.admit(0)), [Some(Who::Own); 2]);
        assert_eq!([doors, Doors::default()].map(|doors| doors.admit(65_533)), [Some(Who::Guest), None]);
    }

    #[test]
    fn places_are_given_back() {
        let taken = Arc::default();
        let places: Vec<_> = (0..CLIENTS).map(|_| Place::take(&taken)).collect();
        assert!(places.iter().all(Option::is_some) && Place::take(&taken).is_none());
        drop(places);
        assert!(Place::take(&taken).is_some());
    }
}
