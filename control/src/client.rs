//! The client: connects, asks, and waits for the answer.

use crate::{DIRECTORY, Line, MAX_REPLY, Refusal, Reply, Request, read_line, write_line};
use std::io::{self, BufReader, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest a reply may take: workers are given one second, the rest is for a crowded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a running box.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Complaint {
    /// No box could be reached.
    #[error("{path}: {what}", path = .path.display())]
    Unreachable {
        /// Where it was looked for.
        path: PathBuf,
        /// What was found there.
        what: String,
        /// Whether a box is there that may not be talked to.
        forbidden: bool,
    },

    /// Which box is meant is not clear.
    #[error("several boxes run here; say which with --socket:{}", .0.iter().map(|path| format!("\n  {}", path.display())).collect::<String>())]
    Ambiguous(Vec<PathBuf>),

    /// The connection broke, or nothing came.
    #[error("the box does not answer: {0}")]
    Broken(#[from] io::Error),

    /// The answer is not one of ours.
    #[error("the box answers something else: {0}")]
    Strange(String),

    /// What was asked has not been done.
    #[error("{message}", message = .0.message)]
    Refused(Refusal),
}

impl Client {
    /// Connects to the box whose socket this is.
    ///
    /// # Errors
    /// [`Complaint::Unreachable`] when none listens there, or not to us.
    pub fn connect(path: &Path) -> Result<Client, Complaint> {
        let stream = UnixStream::connect(path).map_err(|error| {
            let forbidden = error.kind() == ErrorKind::PermissionDenied;
            let what = match error.kind() {
                ErrorKind::NotFound => "there is no such socket; is synproxy running?".to_owned(),
                ErrorKind::ConnectionRefused => "a socket, but nobody listens; synproxy has ended".to_owned(),
                ErrorKind::PermissionDenied => {
                    "not permitted: run as root, as the box's own user, or as one of its `control_group`".to_owned()
                }
                _ => error.to_string(),
            };
            Complaint::Unreachable { path: path.to_owned(), what, forbidden }
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream), line: Vec::new() })
    }

    /// Connects to the only box that runs here.
    ///
    /// # Errors
    /// [`Complaint::Ambiguous`] when there are several, else as [`Client::connect`].
    pub fn connect_to_the_only_one() -> Result<Client, Complaint> {
        let mut found = Vec::new();
        let mut failed = None;
        for path in sockets() {
            match Client::connect(&path) {
                Ok(client) => found.push((path, client)),
                Err(complaint) => failed = Some(complaint),
            }
        }
        match found.len() {
            0 => Err(failed.unwrap_or_else(|| Complaint::Unreachable {
                path: DIRECTORY.into(),
                what: "there is no socket in it; is synproxy running?".to_owned(),
                forbidden: false,
            })),
            1 => Ok(found.remove(0).1),
            _ => Err(Complaint::Ambiguous(found.into_iter().map(|(path, _)| path).collect())),
        }
    }

    /// Asks, and returns the answer, which is no refusal.
    ///
    /// # Errors
    /// When there is no answer, or a refusal.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, Complaint> {
        self.send(request)?;
        self.receive()
    }

    /// Asks, and leaves the answer to [`Client::receive`].
    ///
    /// # Errors
    /// When writing fails.
    pub fn send(&mut self, request: &Request) -> Result<(), Complaint> {
        // Who may not ask is told so and hung up on, so what cannot be written may still be answered.
        match write_line(self.stream.get_mut(), request) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The next answer, which is no refusal.
    ///
    /// # Errors
    /// When there is none, or a refusal.
    pub fn receive(&mut self) -> Result<Reply, Complaint> {
        match read_line(&mut self.stream, &mut self.line, MAX_REPLY)? {
            Line::Whole => {}
            Line::TooLong => return Err(Complaint::Strange(format!("a line of more than {MAX_REPLY} bytes"))),
            Line::End => return Err(Complaint::Broken(ErrorKind::UnexpectedEof.into())),
        }
        match serde_json::from_slice(&self.line) {
            Ok(Reply::Error(refusal)) => Err(Complaint::Refused(refusal)),
            Ok(reply) => Ok(reply),
            Err(error) => Err(Complaint::Strange(error.to_string())),
        }
    }
}

/// The sockets in the usual place, in the order of their names.
fn sockets() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let mut sockets: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "sock")).collect();
    sockets.sort();
    sockets
}
