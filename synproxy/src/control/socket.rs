//! The control socket: access control, and one line of answer for each line of request. `api` answers the requests.
//!
//! Root and the user the process runs as may send every request, members of the configured group most of them. The file's mode enforces
//! that, and the peer's credentials are checked besides. Each client is served by a thread of its own and waits for its own answers only.

use super::api::{ControlApi, Role};
use crate::process::exit::Failure;
use crate::process::privileges;
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
const MAX_CLIENTS: usize = 32;

/// How long a client may leave an answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The bound socket, before it is served. Its file is removed when this is dropped without.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: Serving,
    permissions: SocketPermissions,
}

/// Who may use the socket, besides root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketPermissions {
    /// The user and the group this process will have, where they differ from its present ones.
    pub owner: (Option<u32>, Option<u32>),
    /// A group whose members may connect as [`Role::Guest`].
    pub group: Option<u32>,
}

/// The inode of the machine's initial network namespace: `NET_NS_INIT_INO` of newer kernels.
const INITIAL_NAMESPACE: u64 = 0xefff_fff9;

/// The inode of the network namespace of this process, unless it is the machine's initial one, or that of the container's first process.
pub fn namespace() -> Option<u64> {
    let number = |process: &str| Some(fs::metadata(format!("/proc/{process}/ns/net")).ok()?.ino());
    // An unprivileged process may not read the namespace of the first one.
    number("self").filter(|own| *own != INITIAL_NAMESPACE && Some(*own) != number("1"))
}

impl Socket {
    /// Creates the socket at `path`, and replaces one that a former process has left there.
    ///
    /// # Errors
    /// When another file is there, or a process listens there, or the system refuses.
    pub fn bind(path: &Path, permissions: SocketPermissions) -> io::Result<Self> {
        let (user, group) = permissions.owner;
        if path.parent() == Some(Path::new(control::DIRECTORY)) {
            let _ = fs::create_dir(control::DIRECTORY);
            // The process removes the socket, and what it has noted of its interfaces, as the user it changes to.
            let is_roots = fs::metadata(control::DIRECTORY).is_ok_and(|directory| directory.uid() == 0);
            if is_roots && (user, group) != (None, None) {
                std::os::unix::fs::chown(control::DIRECTORY, user, group)?;
            }
        }
        remove_stale(path)?;
        // The file has its mode from its creation on. No other thread creates files now.
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        let socket = Self { listener: listener?, file: Serving { path: path.to_owned() }, permissions };
        std::os::unix::fs::lchown(path, user, permissions.group.or(group))?;
        if permissions.group.is_some() {
            fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        }
        Ok(socket)
    }

    /// Serves clients in threads that end with the process. The socket stays until the returned value is dropped.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn serve(self, api: Arc<ControlApi>) -> Result<Serving, Failure> {
        let serving = self.file;
        let (listener, permissions) = (self.listener, self.permissions);
        let accept = move || {
            privileges::enter_control_thread();
            accept(&listener, permissions, &api);
        };
        thread::Builder::new().name("control".to_owned()).spawn(accept).map_err(Failure::Spawn)?;
        info!("control socket: {}", serving.path.display());
        Ok(serving)
    }
}

/// A socket that is being served; its file is removed when this is dropped.
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

/// Removes a socket on which no process listens.
fn remove_stale(path: &Path) -> io::Result<()> {
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

/// Accepts clients, each into a thread of its own.
fn accept(listener: &UnixListener, permissions: SocketPermissions, api: &Arc<ControlApi>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) => {
                // Descriptors may become free later.
                debug!("control socket: {error}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let place = Place::take(&clients);
        let api = Arc::clone(api);
        let serve = move || {
            if let Err(error) = serve(client, permissions, place, &api) {
                debug!("control socket: the connection to a client failed: {error}");
            }
        };
        if let Err(error) = thread::Builder::new().name("control client".to_owned()).spawn(serve) {
            warn!("control socket: a client cannot be served: {error}");
        }
    }
}

/// One of the places for clients; freed when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, if one is free.
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let place = Place(Arc::clone(taken));
        (taken.fetch_add(1, Ordering::Relaxed) < MAX_CLIENTS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers the requests of a client until it disconnects.
fn serve(
    mut client: UnixStream,
    permissions: SocketPermissions,
    place: Option<Place>,
    api: &ControlApi,
) -> io::Result<()> {
    client.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let peer = rustix::net::sockopt::socket_peercred(&client)?;
    let Some(role) = permissions.role(peer.uid.as_raw()) else {
        warn!("control socket: user {} is not permitted", peer.uid.as_raw());
        return write_line(
            &mut client,
            &Reply::refuse(Why::Forbidden, "not permitted: run as root, or as the box's own user"),
        );
    };
    if place.is_none() {
        return write_line(
            &mut client,
            &Reply::refuse(Why::Busy, format!("{MAX_CLIENTS} clients are connected already")),
        );
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
                Ok(request) => write_line(&mut client, &api.answer(request, role))?,
                Err(error) => write_line(&mut client, &Reply::refuse(Why::Malformed, error.to_string()))?,
            },
        }
    }
}

impl SocketPermissions {
    /// The role of a client of this user; `None` if it may not connect.
    fn role(self, user: u32) -> Option<Role> {
        if user == 0 || user == rustix::process::geteuid().as_raw() {
            return Some(Role::Owner);
        }
        // The kernel has checked the mode of the file, which admits only members of the group.
        self.group.map(|_| Role::Guest)
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
        let listened = Socket::bind(&path, SocketPermissions::default()).unwrap_err();
        assert!(listened.to_string().contains("another process"), "{listened}");
        drop(left);
        let socket = Socket::bind(&path, SocketPermissions::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists(), "a socket that was never served is removed too");

        fs::write(&path, "a file").unwrap();
        assert!(Socket::bind(&path, SocketPermissions::default()).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn members_of_the_group_connect_as_guests_and_no_other_user_does() {
        let path = path("group");
        // A group that this process may give a file to: its own.
        let own = rustix::process::getegid().as_raw();
        let permissions = SocketPermissions { group: Some(own), ..SocketPermissions::default() };
        let socket = Socket::bind(&path, permissions).unwrap();
        let file = fs::metadata(&path).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (0o660, own));
        drop(socket);
        assert!(!path.exists(), "a socket that was never served is removed too");
        assert_eq!(
            [permissions, SocketPermissions::default()].map(|permissions| permissions.role(0)),
            [Some(Role::Owner); 2]
        );
        assert_eq!(
            [permissions, SocketPermissions::default()].map(|permissions| permissions.role(65_533)),
            [Some(Role::Guest), None]
        );
    }

    #[test]
    fn places_are_freed_when_clients_disconnect() {
        let taken = Arc::default();
        let places: Vec<_> = (0..MAX_CLIENTS).map(|_| Place::take(&taken)).collect();
        assert!(places.iter().all(Option::is_some) && Place::take(&taken).is_none());
        drop(places);
        assert!(Place::take(&taken).is_some());
    }
}
