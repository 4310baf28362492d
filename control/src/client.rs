//! The client: connects, sends requests and waits for the replies.

use crate::{DIRECTORY, Line, MAX_REPLY, Refusal, Reply, Request, read_line, write_line};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait for a reply: the box gives its workers one second, the rest allows for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a running box.
#[derive(Debug)]
pub struct Client {
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

    /// The connection failed, or the reply did not come in time.
    #[error("the box does not answer: {0}")]
    Io(#[from] io::Error),

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
    /// [`ClientError::Unreachable`] if nothing listens there or permission is denied.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let forbidden = error.kind() == ErrorKind::PermissionDenied;
            let what = match error.kind() {
                ErrorKind::NotFound => "there is no such socket; is synproxy running?".to_owned(),
                ErrorKind::ConnectionRefused => "nothing listens on this socket; synproxy has ended".to_owned(),
                ErrorKind::PermissionDenied => {
                    "permission denied: run as root, as the user synproxy runs as, or as a member of its `control_group`".to_owned()
                }
                _ => error.to_string(),
            };
            ClientError::Unreachable { path: path.to_owned(), what, forbidden }
        })?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        Ok(Client { stream: BufReader::new(stream), line: Vec::new() })
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
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Receives the next reply, never [`Reply::Error`].
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a refusal, or if the connection fails.
    pub fn receive(&mut self) -> Result<Reply, ClientError> {
        match read_line(&mut self.stream, &mut self.line, MAX_REPLY)? {
            Line::Whole => {}
            Line::TooLong => return Err(ClientError::Unexpected(format!("a line of more than {MAX_REPLY} bytes"))),
            Line::End => return Err(ClientError::Io(ErrorKind::UnexpectedEof.into())),
        }
        match serde_json::from_slice(&self.line) {
            Ok(Reply::Error(refusal)) => Err(ClientError::Refused(refusal)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ClientError::Unexpected(error.to_string())),
        }
    }
}

/// The control sockets in [`DIRECTORY`], sorted by name.
fn sockets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "sock")).collect();
    sockets.sort();
    sockets
}
