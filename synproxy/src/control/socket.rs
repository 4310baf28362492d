//! The control socket: access control, and one line of answer for each line of request. `api` answers the requests.
//!
//! Root and the user the process runs as may send every request, members of the configured groups those of their role. The credentials that the
//! kernel has noted of the peer decide, for each request; the file's mode keeps out whom it can. Each client is served by a thread of its own and
//! waits for its own answers only. Members have seats apart from root's, so that they cannot keep root out, and no user keeps others out by
//! connections that send nothing.

use super::api::{Client, ControlApi};
use crate::process::exit::Failure;
use crate::process::log::AUDIT;
use crate::process::privileges;
use ::control::{Line, MAX_LOAD, MAX_REQUEST, Reply, Role, Why, read_line, write_line};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::fs::Mode;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Clients served at once: root and the box's own user.
const OWNER_SEATS: usize = 32;

/// Clients served at once: members of the groups.
const MEMBER_SEATS: usize = 32;

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
    file: Arc<Serving>,
    permissions: Arc<SocketPermissions>,
}

/// Who may use the socket, besides root and this process' own user.
#[derive(Debug, Default)]
pub struct SocketPermissions {
    /// The user and the group this process will have, where they differ from its present ones.
    owner: (Option<u32>, Option<u32>),
    /// The groups whose members may connect, each with its role.
    groups: RwLock<Vec<(u32, Role)>>,
}

/// The user and the groups of a process at the other end of the socket, as they were when it connected.
#[derive(Clone, Debug)]
struct Peer {
    user: u32,
    groups: Vec<u32>,
}

impl Peer {
    /// The one at the other end of this connection.
    fn of(client: &UnixStream) -> io::Result<Self> {
        // Not by rustix: a process of an outer process namespace has the number 0 here, which its type for numbers cannot be.
        let credentials = getsockopt(client, sockopt::PeerCredentials)?;
        let mut groups = pktio::peer_groups(client)?;
        groups.push(credentials.gid());
        Ok(Self { user: credentials.uid(), groups })
    }

    /// Whether it is root or this process' own user.
    fn is_owner(&self) -> bool {
        self.user == 0 || self.user == rustix::process::geteuid().as_raw()
    }
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
    pub fn bind(path: &Path, permissions: Arc<SocketPermissions>) -> io::Result<Self> {
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
        let socket = Self { listener: listener?, file: Arc::new(Serving { path: path.to_owned() }), permissions };
        if user.is_some() || group.is_some() {
            std::os::unix::fs::lchown(path, user, group).map_err(not_given)?;
        }
        admit(path, &socket.permissions)?;
        Ok(socket)
    }

    /// Its file.
    pub fn file(&self) -> &Arc<Serving> {
        &self.file
    }

    /// Serves clients in threads that end with the process. The socket stays until the returned value is dropped.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn serve(self, api: Arc<ControlApi>) -> Result<Arc<Serving>, Failure> {
        let serving = self.file;
        let (listener, permissions) = (self.listener, self.permissions);
        let accept = move || {
            privileges::enter_control_thread();
            accept(&listener, &permissions, &api);
        };
        thread::Builder::new().name("control".to_owned()).spawn(accept).map_err(Failure::Spawn)?;
        info!("control socket: {}", serving.path.display());
        Ok(serving)
    }
}

/// Lets members of the groups connect to the socket at `path`: nobody else where there is one group and the file can be given to it, which takes
/// CAP_CHOWN or membership. Otherwise everybody may connect, and who is in no group is refused an answer.
fn admit(path: &Path, permissions: &SocketPermissions) -> io::Result<()> {
    let mode = match permissions.numbers().as_slice() {
        [] => 0o600,
        [group] => {
            let is_given = fs::metadata(path)?.gid() == *group;
            match std::os::unix::fs::lchown(path, None, Some(*group)) {
                Err(error) if !is_given => {
                    debug!("{} cannot be given to group {group}, so everybody may connect: {error}", path.display());
                    0o666
                }
                _ => 0o660,
            }
        }
        _ => 0o666,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The error of a file that cannot be given to the user and group it is for.
fn not_given(error: io::Error) -> io::Error {
    let text = format!("it cannot be given to the box's user and group ({error}); it takes CAP_CHOWN");
    io::Error::new(error.kind(), text)
}

/// A socket that is being served; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Serving {
    path: PathBuf,
}

impl Serving {
    /// Admits the members of these groups from now on, and no others; connected clients too.
    pub fn set_groups(&self, permissions: &SocketPermissions, groups: Vec<(u32, Role)>) {
        *permissions.groups.write().unwrap_or_else(PoisonError::into_inner) = groups;
        if let Err(error) = admit(&self.path, permissions) {
            warn!("the mode of {} cannot be changed: {error}", self.path.display());
        }
    }
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
fn accept(listener: &UnixListener, permissions: &Arc<SocketPermissions>, api: &Arc<ControlApi>) {
    let seats = Arc::<Seats>::default();
    let mut refusals = Refusals::default();
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
        if let Err(error) = welcome(client, permissions, &seats, &mut refusals, api) {
            warn!("control socket: a client cannot be served: {error}");
        }
    }
}

/// Gives a client a seat and a thread, or refuses it.
fn welcome(
    mut client: UnixStream,
    permissions: &Arc<SocketPermissions>,
    seats: &Arc<Seats>,
    refusals: &mut Refusals,
    api: &Arc<ControlApi>,
) -> io::Result<()> {
    client.set_write_timeout(Some(WRITE_TIMEOUT))?;
    client.set_read_timeout(Some(IDLE_TIMEOUT))?;
    let peer = Peer::of(&client)?;
    // The refusals below do not wait: nothing was written to the socket before, so they fit its buffer.
    if permissions.role(&peer).is_none() {
        refusals.note(peer.user, Instant::now());
        return write_line(&mut client, &api.not_admitted()).or_else(gone);
    }
    let class = if peer.is_owner() { Class::Owner } else { Class::Member };
    let Some(seat) = Seats::take(seats, peer.user, class, client.try_clone()?, Instant::now()) else {
        let message = format!("{} clients are connected already, and none of them is idle", class.seats());
        return write_line(&mut client, &Reply::refuse(Why::Busy, message)).or_else(gone);
    };
    let (api, permissions) = (Arc::clone(api), Arc::clone(permissions));
    let serve = move || {
        if let Err(error) = serve(client, &peer, &permissions, &seat, &api) {
            debug!("control socket: the connection to a client failed: {error}");
        }
    };
    thread::Builder::new().name("control client".to_owned()).spawn(serve).map(drop)
}

/// Clients that were not admitted: named in the log once a second at most, since everybody on the machine may try.
#[derive(Default)]
struct Refusals {
    logged: Option<Instant>,
    since: u64,
}

impl Refusals {
    fn note(&mut self, user: u32, now: Instant) {
        self.since += 1;
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= Duration::from_secs(1)) {
            let others = if self.since > 1 { format!(", nor were {} before", self.since - 1) } else { String::new() };
            warn!(target: AUDIT, "control socket: user {user} is not permitted{others}");
            (self.logged, self.since) = (Some(now), 0);
        }
    }
}

/// A client that has gone does not read why it was refused.
fn gone(error: io::Error) -> io::Result<()> {
    debug!("control socket: a client was refused and did not wait for the reason: {error}");
    Ok(())
}

/// Whose seats a client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// Root's and the own user's.
    Owner,
    /// Those of members of the groups, whatever their role.
    Member,
}

impl Class {
    /// How many clients of this class are served at once.
    const fn seats(self) -> usize {
        match self {
            Class::Owner => OWNER_SEATS,
            Class::Member => MEMBER_SEATS,
        }
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
    class: Class,
    /// Another handle of its connection, to end it with.
    connection: UnixStream,
    /// When it connected, or was last answered.
    active: Instant,
    /// Whether a request of it is being answered.
    is_busy: bool,
}

impl Seats {
    /// A seat for a client of this user and class. If all seats of the class are taken, another client loses its own: of the user who has
    /// the most, the one that has been idle for longest. A user who has the most seats takes none from others, and from themselves only
    /// where a connection has been idle for [`REPLACEABLE_AFTER`].
    fn take(seats: &Arc<Self>, user: u32, class: Class, connection: UnixStream, now: Instant) -> Option<Seat> {
        let mut taken = seats.taken();
        let of_user =
            |user: u32| taken.clients.iter().filter(|client| client.class == class && client.user == user).count();
        if taken.clients.iter().filter(|client| client.class == class).count() >= class.seats() {
            let own = of_user(user);
            let may_go = |client: &&Served| {
                let is_idle = !client.is_busy && now.duration_since(client.active) >= REPLACEABLE_AFTER;
                client.class == class && (is_idle || of_user(client.user) > own + 1)
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
        taken.clients.push(Served { number, user, class, connection, active: now, is_busy: false });
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
fn serve(
    mut client: UnixStream,
    peer: &Peer,
    permissions: &SocketPermissions,
    seat: &Seat,
    api: &ControlApi,
) -> io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?);
    let mut line = Vec::new();
    loop {
        let most = if permissions.role(peer) == Some(Role::Admin) { MAX_LOAD } else { MAX_REQUEST };
        let read = match read_line(&mut lines, &mut line, most) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            read => read?,
        };
        seat.mark(true);
        // The groups may be others now.
        let Some(role) = permissions.role(peer) else {
            return write_line(&mut client, &api.not_admitted()).or_else(gone);
        };
        match read {
            Line::End => return Ok(()),
            Line::TooLong => {
                let message = format!("a request has {most} bytes at most");
                return write_line(&mut client, &Reply::refuse(Why::Malformed, message));
            }
            Line::Whole => match serde_json::from_slice(&line) {
                Ok(request) => write_line(&mut client, &api.serve(request, Client { user: peer.user, role }))?,
                Err(error) => write_line(&mut client, &Reply::refuse(Why::Malformed, error.to_string()))?,
            },
        }
        if line.capacity() > MAX_REQUEST {
            line = Vec::new();
        }
        seat.mark(false);
    }
}

impl SocketPermissions {
    /// Those of a process that will have this user and group, where they differ from its present ones: members of these groups have these roles.
    pub fn new(owner: (Option<u32>, Option<u32>), groups: Vec<(u32, Role)>) -> Self {
        Self { owner, groups: RwLock::new(groups) }
    }

    /// The role of a client; `None` if it may not connect.
    fn role(&self, peer: &Peer) -> Option<Role> {
        if peer.is_owner() {
            return Some(Role::Admin);
        }
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.iter().filter(|(group, _)| peer.groups.contains(group)).map(|(_, role)| *role).max()
    }

    /// The groups, each once.
    fn numbers(&self) -> Vec<u32> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.iter().map(|(group, _)| *group).collect::<BTreeSet<_>>().into_iter().collect()
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
        let listened = Socket::bind(&path, Arc::default()).unwrap_err();
        assert!(listened.to_string().contains("another process"), "{listened}");
        drop(left);
        let socket = Socket::bind(&path, Arc::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists(), "a socket that was never served is removed too");

        fs::write(&path, "a file").unwrap();
        assert!(Socket::bind(&path, Arc::default()).unwrap_err().to_string().contains("no socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();
    }

    /// Permissions for the members of these groups.
    fn groups(groups: &[(u32, Role)]) -> Arc<SocketPermissions> {
        Arc::new(SocketPermissions::new((None, None), groups.to_vec()))
    }

    #[test]
    fn the_mode_admits_one_group_or_leaves_it_to_the_credentials() {
        let path = path("group");
        // A group that this process may give a file to: its own.
        let own = rustix::process::getegid().as_raw();
        let mode = || (fs::metadata(&path).unwrap().mode() & 0o777, fs::metadata(&path).unwrap().gid());
        for (permissions, expected) in [
            (groups(&[]), (0o600, own)),
            (groups(&[(own, Role::Read)]), (0o660, own)),
            (groups(&[(own, Role::Read), (own, Role::Operate)]), (0o660, own)),
            (groups(&[(own, Role::Read), (own + 1, Role::Operate)]), (0o666, own)),
        ] {
            let socket = Socket::bind(&path, permissions).unwrap();
            assert_eq!(mode(), expected);
            drop(socket);
        }
        let permissions = groups(&[]);
        let socket = Socket::bind(&path, Arc::clone(&permissions)).unwrap();
        for (groups, expected) in [
            (vec![(own, Role::Admin)], 0o660),
            (vec![(own, Role::Admin), (own + 1, Role::Read)], 0o666),
            (vec![], 0o600),
        ] {
            socket.file.set_groups(&permissions, groups);
            assert_eq!(mode().0, expected);
        }
        drop(socket);
        assert!(!path.exists(), "a socket that was never served is removed too");
    }

    #[test]
    fn a_client_has_the_highest_role_of_its_groups() {
        let permissions = groups(&[(7, Role::Read), (8, Role::Operate), (9, Role::Admin), (10, Role::Read)]);
        let role = |user, groups: &[u32]| permissions.role(&Peer { user, groups: groups.to_vec() });
        assert_eq!(role(0, &[]), Some(Role::Admin));
        assert_eq!(role(rustix::process::geteuid().as_raw(), &[]), Some(Role::Admin));
        assert_eq!(role(65_533, &[]), None);
        assert_eq!(role(65_533, &[6, 11]), None);
        assert_eq!(role(65_533, &[6, 10]), Some(Role::Read));
        assert_eq!(role(65_533, &[8, 10, 7]), Some(Role::Operate));
        assert_eq!(role(65_533, &[7, 9, 8]), Some(Role::Admin));
    }

    /// Takes a seat; the far end of its connection comes with it.
    fn take(seats: &Arc<Seats>, user: u32, class: Class, now: Instant) -> Option<(Seat, UnixStream)> {
        let (near, far) = UnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        Some((Seats::take(seats, user, class, near, now)?, far))
    }

    fn is_open((_, far): &(Seat, UnixStream)) -> bool {
        let mut far = far;
        matches!(far.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    #[test]
    fn members_that_take_every_seat_of_theirs_leave_root_its_own() {
        let (seats, now) = (Arc::default(), Instant::now());
        let guests: Vec<_> = (0..MEMBER_SEATS).map(|_| take(&seats, 1000, Class::Member, now).unwrap()).collect();
        assert!(take(&seats, 1000, Class::Member, now).is_none(), "it has the most, and none of them is idle");
        let owners: Vec<_> = (0..OWNER_SEATS).map(|_| take(&seats, 0, Class::Owner, now).unwrap()).collect();
        assert!(take(&seats, 0, Class::Owner, now).is_none());
        assert!(guests.iter().chain(&owners).all(is_open));
        drop((guests, owners));
        assert!(seats.taken().clients.is_empty());
    }

    #[test]
    fn the_user_with_the_most_seats_gives_way_and_of_these_the_longest_idle() {
        let (seats, now) = (Arc::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let first = take(&seats, 1001, Class::Member, at(0)).unwrap();
        let many: Vec<_> =
            (1..MEMBER_SEATS).map(|n| take(&seats, 1000, Class::Member, at(n as u64 / 16)).unwrap()).collect();
        let busy = |number: u64| {
            seats.taken().clients.iter_mut().find(|client| client.number == number).unwrap().is_busy = true
        };
        busy(many[0].0.number);
        let other = take(&seats, 1002, Class::Member, at(2)).unwrap();
        let closed: Vec<_> = (0..many.len()).filter(|&n| !is_open(&many[n])).collect();
        assert!(closed.len() == 1 && (1..15).contains(&closed[0]), "one of those that connected at first: {closed:?}");
        assert!(is_open(&first) && is_open(&other));
        let again = take(&seats, 1000, Class::Member, at(2));
        assert!(again.is_none(), "it still has the most");
        let again = take(&seats, 1000, Class::Member, at(10)).unwrap();
        assert_eq!((many.iter().filter(|seat| !is_open(seat)).count(), is_open(&again)), (2, true), "its own idle one");
        assert!(is_open(&first), "idle for longer, and of a user with one seat");
    }

    #[test]
    fn users_with_a_seat_each_lose_it_only_when_idle() {
        let (seats, now) = (Arc::default(), Instant::now());
        let each: Vec<_> =
            (0..MEMBER_SEATS as u32).map(|user| take(&seats, user, Class::Member, now).unwrap()).collect();
        assert!(take(&seats, 5000, Class::Member, now + REPLACEABLE_AFTER / 2).is_none());
        assert!(take(&seats, 5000, Class::Member, now + REPLACEABLE_AFTER).is_some());
        assert_eq!(each.iter().filter(|seat| is_open(seat)).count(), MEMBER_SEATS - 1);
    }
}
