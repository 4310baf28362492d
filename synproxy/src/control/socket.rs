//! The control socket: access control, and one line of answer for each line of request. `api` answers the requests.
//!
//! Root and the user the process runs as may send every request, members of the configured group most of them. The file's mode enforces
//! that, and the peer's credentials are checked besides. Each client is served by a thread of its own and waits for its own answers only.
//! Members have seats apart from root's, so that they cannot keep root out, and no user keeps others out by connections that send nothing.

use super::api::{ControlApi, Role};
use crate::process::exit::Failure;
use crate::process::privileges;
use ::control::{Line, MAX_REQUEST, Reply, Why, read_line, write_line};
use rustix::fs::Mode;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Clients served at once: root and the box's own user.
const OWNER_SEATS: usize = 32;

/// Clients served at once: members of the group.
const GUEST_SEATS: usize = 32;

/// How long a client may send no request before the box disconnects it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a client must have sent no request before another client of the same user may take its seat.
const REPLACEABLE_AFTER: Duration = Duration::from_secs(10);

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
            match fs::create_dir(control::DIRECTORY) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let text = "cannot be created: create it for the user of the box (systemd: RuntimeDirectory=synproxy), or set `control`";
                    return Err(io::Error::new(error.kind(), format!("{} {text} ({error})", control::DIRECTORY)));
                }
            }
            // The process removes the socket, and what it has noted of its interfaces, as the user it changes to.
            let is_roots = fs::metadata(control::DIRECTORY).is_ok_and(|directory| directory.uid() == 0);
            if is_roots && (user, group) != (None, None) {
                std::os::unix::fs::chown(control::DIRECTORY, user, group).map_err(not_given)?;
            }
        }
        remove_stale(path)?;
        // The file has its mode from its creation on. No other thread creates files now.
        let mask = rustix::process::umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        rustix::process::umask(mask);
        let socket = Self { listener: listener?, file: Serving { path: path.to_owned() }, permissions };
        std::os::unix::fs::lchown(path, user, permissions.group.or(group)).map_err(not_given)?;
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

/// The error of a file that cannot be given to the user and group it is for.
fn not_given(error: io::Error) -> io::Error {
    let text = format!(
        "it cannot be given to the box's user and `control_group` ({error}); it takes CAP_CHOWN, or membership in the group"
    );
    io::Error::new(error.kind(), text)
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
        Ok(_) => match ::control::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Err(io::Error::other("another process listens there, and does not answer: it is stopped or overloaded"))
            }
            _ => Err(io::Error::other("another process listens there")),
        },
    }
}

/// Accepts clients, each into a thread of its own.
fn accept(listener: &UnixListener, permissions: SocketPermissions, api: &Arc<ControlApi>) {
    let seats = Arc::<Seats>::default();
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
        if let Err(error) = admit(client, permissions, &seats, api) {
            warn!("control socket: a client cannot be served: {error}");
        }
    }
}

/// Gives a client a seat and a thread, or refuses it.
fn admit(
    mut client: UnixStream,
    permissions: SocketPermissions,
    seats: &Arc<Seats>,
    api: &Arc<ControlApi>,
) -> io::Result<()> {
    client.set_write_timeout(Some(WRITE_TIMEOUT))?;
    client.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let user = rustix::net::sockopt::socket_peercred(&client)?.uid.as_raw();
    // The refusals below do not wait: nothing was written to the socket before, so they fit its buffer.
    let Some(role) = permissions.role(user) else {
        warn!("control socket: user {user} is not permitted");
        let refusal = Reply::refuse(Why::Forbidden, "not permitted: run as root, or as the box's own user");
        return write_line(&mut client, &refusal).or_else(gone);
    };
    let Some(seat) = Seats::take(seats, user, role, client.try_clone()?, Instant::now()) else {
        let message = format!("{} clients are connected already, and none of them is idle", seats_of(role));
        return write_line(&mut client, &Reply::refuse(Why::Busy, message)).or_else(gone);
    };
    let api = Arc::clone(api);
    let serve = move || {
        if let Err(error) = serve(client, role, user, &seat, &api) {
            debug!("control socket: the connection to a client failed: {error}");
        }
    };
    thread::Builder::new().name("control client".to_owned()).spawn(serve).map(drop)
}

/// A client that has gone does not read why it was refused.
fn gone(error: io::Error) -> io::Result<()> {
    debug!("control socket: a client was refused and did not wait for the reason: {error}");
    Ok(())
}

/// How many clients of this role are served at once.
const fn seats_of(role: Role) -> usize {
    match role {
        Role::Owner => OWNER_SEATS,
        Role::Guest => GUEST_SEATS,
    }
}

/// The clients that are served.
#[derive(Default)]
struct Seats {
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    clients: Vec<Served>,
    /// The number of the next seat.
    next: u64,
}

/// A client that is served.
struct Served {
    number: u64,
    user: u32,
    role: Role,
    /// Another handle of its connection, to end it with.
    connection: UnixStream,
    /// When it connected, or was last answered.
    active: Instant,
    /// Whether a request of it is being answered.
    is_busy: bool,
}

impl Seats {
    /// A seat for a client of this user and role. If all seats of the role are taken, another client loses its own: of the user who has
    /// the most, the one that has been idle for longest. A user who has the most seats takes none from others, and from themselves only
    /// where a connection has been idle for [`REPLACEABLE_AFTER`].
    fn take(seats: &Arc<Self>, user: u32, role: Role, connection: UnixStream, now: Instant) -> Option<Seat> {
        let mut taken = seats.taken();
        let of_user =
            |user: u32| taken.clients.iter().filter(|client| client.role == role && client.user == user).count();
        if taken.clients.iter().filter(|client| client.role == role).count() >= seats_of(role) {
            let own = of_user(user);
            let may_go = |client: &&Served| {
                let is_idle = !client.is_busy && now.duration_since(client.active) >= REPLACEABLE_AFTER;
                client.role == role && (is_idle || of_user(client.user) > own + 1)
            };
            let rank = |client: &&Served| {
                let idle = (!client.is_busy).then(|| now.duration_since(client.active));
                (of_user(client.user), idle)
            };
            let number = taken.clients.iter().filter(may_go).max_by_key(rank)?.number;
            let at = taken.clients.iter().position(|client| client.number == number)?;
            let replaced = taken.clients.swap_remove(at);
            debug!("control socket: user {user} takes the seat of an idle client of user {}", replaced.user);
            // Its thread sees the end of the connection, and ends. Where the client has closed it already there is nothing to shut down.
            let _ = replaced.connection.shutdown(Shutdown::Both);
        }
        let number = taken.next;
        taken.next += 1;
        taken.clients.push(Served { number, user, role, connection, active: now, is_busy: false });
        drop(taken);
        Some(Seat { seats: Arc::clone(seats), number })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The seat of one client; freed when dropped.
struct Seat {
    seats: Arc<Seats>,
    number: u64,
}

impl Seat {
    /// Notes that a request is being answered from now on, or has been answered.
    fn mark(&self, is_busy: bool) {
        if let Some(client) = self.seats.taken().clients.iter_mut().find(|client| client.number == self.number) {
            (client.active, client.is_busy) = (Instant::now(), is_busy);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken().clients.retain(|client| client.number != self.number);
    }
}

/// Answers the requests of a client until it disconnects, or sends none for [`IDLE_TIMEOUT`].
fn serve(mut client: UnixStream, role: Role, user: u32, seat: &Seat, api: &ControlApi) -> io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?);
    let mut line = Vec::new();
    loop {
        let read = match read_line(&mut lines, &mut line, MAX_REQUEST) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        };
        seat.mark(true);
        match read {
            Line::End => return Ok(()),
            Line::TooLong => {
                let message = format!("a request has {MAX_REQUEST} bytes at most");
                return write_line(&mut client, &Reply::refuse(Why::Malformed, message));
            }
            Line::Whole => match serde_json::from_slice(&line) {
                Ok(request) => write_line(&mut client, &api.answer(request, role, user))?,
                Err(error) => write_line(&mut client, &Reply::refuse(Why::Malformed, error.to_string()))?,
            },
        }
        seat.mark(false);
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
    use std::io::Read;

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

    /// Takes a seat; the far end of its connection comes with it.
    fn take(seats: &Arc<Seats>, user: u32, role: Role, now: Instant) -> Option<(Seat, UnixStream)> {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        Some((Seats::take(seats, user, role, near, now)?, far))
    }

    fn is_open((_, far): &(Seat, UnixStream)) -> bool {
        let mut far = far;
        matches!(far.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    #[test]
    fn members_that_take_every_seat_of_theirs_leave_root_its_own() {
        let (seats, now) = (Arc::default(), Instant::now());
        let guests: Vec<_> = (0..GUEST_SEATS).map(|_| take(&seats, 1000, Role::Guest, now).unwrap()).collect();
        assert!(take(&seats, 1000, Role::Guest, now).is_none(), "it has the most, and none of them is idle");
        let owners: Vec<_> = (0..OWNER_SEATS).map(|_| take(&seats, 0, Role::Owner, now).unwrap()).collect();
        assert!(take(&seats, 0, Role::Owner, now).is_none());
        assert!(guests.iter().chain(&owners).all(is_open));
        drop((guests, owners));
        assert!(seats.taken().clients.is_empty());
    }

    #[test]
    fn the_user_with_the_most_seats_gives_way_and_of_these_the_longest_idle() {
        let (seats, now) = (Arc::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let first = take(&seats, 1001, Role::Guest, at(0)).unwrap();
        let many: Vec<_> =
            (1..GUEST_SEATS).map(|n| take(&seats, 1000, Role::Guest, at(n as u64 / 16)).unwrap()).collect();
        let busy = |number: u64| {
            seats.taken().clients.iter_mut().find(|client| client.number == number).unwrap().is_busy = true
        };
        busy(many[0].0.number);
        let other = take(&seats, 1002, Role::Guest, at(2)).unwrap();
        let closed: Vec<_> = (0..many.len()).filter(|&n| !is_open(&many[n])).collect();
        assert!(closed.len() == 1 && (1..15).contains(&closed[0]), "one of those that connected at first: {closed:?}");
        assert!(is_open(&first) && is_open(&other));
        let again = take(&seats, 1000, Role::Guest, at(2));
        assert!(again.is_none(), "it still has the most");
        let again = take(&seats, 1000, Role::Guest, at(10)).unwrap();
        assert_eq!((many.iter().filter(|seat| !is_open(seat)).count(), is_open(&again)), (2, true), "its own idle one");
        assert!(is_open(&first), "idle for longer, and of a user with one seat");
    }

    #[test]
    fn users_with_a_seat_each_lose_it_only_when_idle() {
        let (seats, now) = (Arc::default(), Instant::now());
        let each: Vec<_> = (0..GUEST_SEATS as u32).map(|user| take(&seats, user, Role::Guest, now).unwrap()).collect();
        assert!(take(&seats, 5000, Role::Guest, now + REPLACEABLE_AFTER / 2).is_none());
        assert!(take(&seats, 5000, Role::Guest, now + REPLACEABLE_AFTER).is_some());
        assert_eq!(each.iter().filter(|seat| is_open(seat)).count(), GUEST_SEATS - 1);
    }
}
