//! The control socket: who may come in, and a line in for a line out. What is answered is `operator`'s matter.
//!
//! Root may ask, the user the process runs as may, and nobody else: the file's mode says so, and the peer's credentials are looked at
//! besides. Clients are served side by side, each by a thread of its own, and each waits for its own answers only.

use crate::failure::Failure;
use crate::identity;
use crate::operator::{Operator, Who};
use control::{Line, MAX_REQUEST, Reply, Why, read_line, write_line};
use rustix::fs::Mode;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::fs::FileTypeExt;
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
}

impl Socket {
    /// Makes the socket at `path`, in place of one that an ended process has left there; it belongs to `owner` and may be used by
    /// nobody else (but root).
    ///
    /// # Errors
    /// When something else is there, or somebody listens there, or the system refuses.
    pub fn bind(path: &Path, owner: (Option<u32>, Option<u32>)) -> io::Result<Self> {
        if path.parent() == Some(Path::new(control::DIRECTORY)) && fs::create_dir(control::DIRECTORY).is_ok() {
            // Whoever this process becomes has to remove the socket again.
            std::os::unix::fs::chown(control::DIRECTORY, owner.0, owner.1)?;
        }
        clear(path)?;
        // The file has its mode from the first moment on. No other thread makes files now.
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        let socket = Self { listener: listener?, path: path.to_owned() };
        std::os::unix::fs::lchown(path, owner.0, owner.1)?;
        Ok(socket)
    }

    /// Serves everybody who may come, in threads that end with the process. The socket stays until what is returned is dropped.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn serve(self, operator: Arc<Operator>) -> Result<Serving, Failure> {
        let serving = Serving { path: self.path };
        let listener = self.listener;
        let accept = move || {
            identity::become_servant();
            accept(&listener, &operator);
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
fn accept(listener: &UnixListener, operator: &Arc<Operator>) {
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
            if let Err(error) = serve(client, place, &operator) {
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
fn serve(mut client: UnixStream, place: Option<Place>, operator: &Operator) -> io::Result<()> {
    client.set_write_timeout(Some(PATIENCE))?;
    let peer = rustix::net::sockopt::socket_peercred(&client)?;
    if !may_ask(peer.uid.as_raw()) {
        warn!("control socket: user {} may not ask here", peer.uid.as_raw());
        return write_line(
            &mut client,
            &Reply::refuse(Why::Forbidden, "not permitted: run as root, or as the box's own user"),
        );
    }
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
                Ok(request) => write_line(&mut client, &operator.answer(request, Who::Own))?,
                Err(error) => write_line(&mut client, &Reply::refuse(Why::Malformed, error.to_string()))?,
            },
        }
    }
}

/// Whether a client of this user may ask.
fn may_ask(user: u32) -> bool {
    user == 0 || user == rustix::process::geteuid().as_raw()
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
        let listened = Socket::bind(&path, (None, None)).unwrap_err();
        assert!(listened.to_string().contains("another process"), "{listened}");
        drop(left);
        let socket = Socket::bind(&path, (None, None)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        fs::remove_file(&path).unwrap();

        fs::write(&path, "a file").unwrap();
        assert!(Socket::bind(&path, (None, None)).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
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
