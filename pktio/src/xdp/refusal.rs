//! Why AF_XDP cannot be used, and the texts of kernel and library errors.

use std::fmt;
use std::io;

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
    /// Everything else.
    Failed(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unsupported(text) | Refusal::Failed(text) => f.write_str(text),
            Refusal::Busy { what, hint } => write!(f, "{what}; {hint}"),
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
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
