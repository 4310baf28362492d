//! The client: connects, sends requests and waits for the replies.

use crate::{DIRECTORY, Line, MAX_REPLY, Refusal, Reply, Request, read_line, write_line};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait for a reply, in seconds: the box gives its workers one, the rest allows for a busy machine. Tests that nobody answers wait less.
const TIMEOUT: u64 = if cfg!(test) { 2 } else { 10 };

/// A connection to a running box.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket cannot be connected to.
    #[error("{path}: {what}", path = .path.display())]
    Unreachable {
        /// The socket, or the directory that was searched.
        path: PathBuf,
        /// What is wrong, in words.
        what: String,
        /// Whether the cause is a lack of permission.
        forbidden: bool,
    },

    /// Several boxes run, and none was named.
    #[error("several boxes run here; say which with --socket:{}", .0.iter().map(|path| format!("\n  {}", path.display())).collect::<String>())]
    Ambiguous(Vec<PathBuf>),

    /// The box has accepted no connection or sent no reply in time.
    #[error("the box does not answer: nothing came from {} within {TIMEOUT} s; synproxy is stopped or overloaded", .0.display())]
    Silent(PathBuf),

    /// The box has closed the connection.
    #[error(
        "the box does not answer: it has closed the connection at {}; synproxy has ended, or has given the place of this idle client to another",
        .0.display()
    )]
    Closed(PathBuf),

    /// The connection failed.
    #[error("the box does not answer: the connection at {path} failed: {error}", path = .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },

    /// The reply is not one of this protocol.
    #[error("unexpected reply from the box: {0}")]
    Unexpected(String),

    /// The box refused the request.
    #[error("{message}", message = .0.message)]
    Refused(Refusal),
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] if nothing listens there or permission is denied; [`ClientError::Silent`] if the box accepts no connection.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = connect(path).map_err(|error| {
            let forbidden = error.kind() == ErrorKind::PermissionDenied;
            if error.kind() == ErrorKind::WouldBlock {
                return ClientError::Silent(path.to_owned());
            }
            let what = match error.kind() {
                ErrorKind::NotFound => "there is no such socket; is synproxy running?".to_owned(),
                ErrorKind::ConnectionRefused => "nothing listens on this socket; synproxy has ended".to_owned(),
                ErrorKind::PermissionDenied => {
                    "permission denied: run as root, as the user synproxy runs as, or as a member of a group it admits (`control_read`, `control_operate`, `control_admin`, `control_group`)".to_owned()
                }
                _ => error.to_string(),
            };
            ClientError::Unreachable { path: path.to_owned(), what, forbidden }
        })?;
        let failed = |error| ClientError::Io { path: path.to_owned(), error };
        stream.set_read_timeout(Some(Duration::from_secs(TIMEOUT))).map_err(failed)?;
        Ok(Client { path: path.to_owned(), stream: BufReader::new(stream), line: Vec::new() })
    }

    /// Connects to the box that runs on this machine, if it is the only one.
    ///
    /// # Errors
    /// [`ClientError::Ambiguous`] if there are several; otherwise those of [`Client::connect`].
    pub fn connect_to_only() -> Result<Client, ClientError> {
        let mut found = Vec::new();
        let mut failed = None;
        for path in sockets() {
            match Client::connect(&path) {
                Ok(client) => found.push((path, client)),
                Err(error) => failed = Some(error),
            }
        }
        match found.len() {
            0 => Err(failed.unwrap_or_else(|| ClientError::Unreachable {
                path: DIRECTORY.into(),
                what: "there is no control socket; is synproxy running?".to_owned(),
                forbidden: false,
            })),
            1 => Ok(found.remove(0).1),
            _ => Err(ClientError::Ambiguous(found.into_iter().map(|(path, _)| path).collect())),
        }
    }

    /// Sends a request and returns its reply, never [`Reply::Error`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a refusal, or if the connection fails.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.send(request)?;
        self.receive()
    }

    /// Sends a request without waiting for the reply; see [`Client::receive`].
    ///
    /// # Errors
    /// If writing fails.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        // The box answers a forbidden client and closes the connection, so there may be a reply although writing fails.
        match write_line(self.stream.get_mut(), request) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// The error of a connection that has failed.
    fn failed(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ClientError::Silent(path),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ClientError::Closed(path),
            _ => ClientError::Io { path, error },
        }
    }

    /// Receives the next reply, never [`Reply::Error`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a refusal, or if the connection fails.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        let read = read_line(&mut self.stream, &mut self.line, MAX_REPLY);
        match read.map_err(|error| self.failed(error))? {
            Line::Whole => {}
            Line::TooLong => return Err(ClientError::Unexpected(format!("a line of more than {MAX_REPLY} bytes"))),
            Line::End => return Err(ClientError::Closed(self.path.clone())),
        }
        match serde_json::from_slice(&self.line) {
            Ok(Reply::Error(refusal)) => Err(ClientError::Refused(refusal)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ClientError::Unexpected(error.to_string())),
        }
    }
}

/// Connects to a Unix socket as [`UnixStream::connect`] does, but gives up after ten seconds with [`ErrorKind::WouldBlock`]: a process that is
/// stopped accepts no connection, and once as many wait as its queue holds, connecting to it would wait for ever.
///
/// # Errors
/// Those of `connect(2)`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The limit of a send is that of connecting as well (unix(7)).
    set_socket_timeout(&socket, Timeout::Send, Some(Duration::from_secs(TIMEOUT)))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// The control sockets in [`DIRECTORY`], sorted by name.
fn sockets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "sock")).collect();
    sockets.sort();
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What asking a socket fails with, and how it says so.
    fn ask(path: &Path) -> (ClientError, String) {
        let error = Client::connect(path).and_then(|mut client| client.ask(&Request::Status)).unwrap_err();
        let text = error.to_string();
        (error, text)
    }

    #[test]
    fn every_way_to_get_no_answer_says_which_socket_and_why() {
        let path = std::env::temp_dir().join(format!("spx-client-{}", std::process::id()));
        let (error, text) = ask(&path);
        assert!(matches!(error, ClientError::Unreachable { .. }) && text.contains("no such socket"), "{text}");
        let listener = UnixListener::bind(&path).unwrap();
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let (error, text) = ask(&path);
        assert!(matches!(error, ClientError::Closed(_)) && text.contains("closed the connection"), "{text}");
        closing.join().unwrap();
        let (error, text) = ask(&path);
        assert!(matches!(error, ClientError::Unreachable { .. }) && text.contains("has ended"), "{text}");
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_box_that_is_stopped_is_said_not_to_answer_whether_its_queue_is_full_or_not() {
        let path = std::env::temp_dir().join(format!("spx-client-stopped-{}", std::process::id()));
        // The kernel keeps one connection more than the queue is long.
        let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let waits = std::thread::spawn({
            let path = path.clone();
            move || ask(&path)
        });
        std::thread::sleep(Duration::from_millis(300));
        for (error, text) in [ask(&path), waits.join().unwrap()] {
            assert!(matches!(error, ClientError::Silent(_)), "{error:?}");
            assert!(text.contains(&format!("within {TIMEOUT} s")) && text.contains("spx-client-stopped"), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
