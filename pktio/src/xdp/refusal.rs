//! Why AF_XDP cannot be used, and the texts of kernel and library errors.

use std::fmt;
use std::fs::File;
use std::io;

use tracing::debug;

/// Why AF_XDP cannot be used.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A driver does not support what was asked.
    Unsupported(String),
    /// Another program uses the interface: a reason to stop, not to try a lesser mode.
    Busy {
        /// What is in use.
        what: String,
        /// How to free it.
        hint: String,
    },
    /// The process may not lock as much memory: no other mode of AF_XDP takes less.
    Limit(String),
    /// The process or the machine has no file descriptor left: a reason to stop, since whatever comes next takes some too.
    Descriptors(io::Error),
    /// Everything else.
    Failed(String),
}

impl Refusal {
    /// That of an error of the kernel or of a library.
    pub(super) fn failed(error: impl std::error::Error + 'static) -> Refusal {
        match os_error(&error) {
            Some(code @ (libc::EMFILE | libc::ENFILE)) => Refusal::Descriptors(io::Error::from_raw_os_error(code)),
            _ => Refusal::Failed(chain(&error)),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unsupported(text) | Refusal::Limit(text) | Refusal::Failed(text) => f.write_str(text),
            Refusal::Busy { what, hint } => write!(f, "{what}; {hint}"),
            Refusal::Descriptors(error) => error.fmt(f),
        }
    }
}

/// The error of a process that has next to no descriptors left. The library asks for several at once, gives them back when it gets too few, and says that
/// something was not found.
pub(super) fn descriptors_ran_out() -> Option<io::Error> {
    const WANTED: usize = 8;
    let opened: io::Result<Vec<File>> = (0..WANTED).map(|_| File::open("/dev/null")).collect();
    opened.err().filter(|error| matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)))
}

/// What stands before the verifier's log in the text of an error: pages that an operator can do nothing with.
const VERIFIER_LOG: &str = "Verifier output:";

/// An error with its causes, in one line, without the verifier's log, which is logged for debugging.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    if let Some((error, log)) = text.split_once(VERIFIER_LOG) {
        debug!("the verifier's log: {log}");
        text = error.trim_end().trim_end_matches('.').to_owned();
    }
    text.replace('\n', " ").trim_end().to_owned()
}

/// The kernel's error number behind an error, if there is one.
pub(super) fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(inner) = cause {
        if let Some(code) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        cause = inner.source();
    }
    None
}
