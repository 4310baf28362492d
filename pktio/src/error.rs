//! Why a port cannot be opened. Each error names what was tried and what the operator can do about it.

use std::io;
use std::path::PathBuf;

/// Why ports could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such interface.
    #[error("there is no interface {interface:?}; `ip link` lists those there are")]
    NotFound {
        /// Its name.
        interface: String,
    },
    /// The process lacks the privilege.
    #[error("no permission to open {interface}: {}", crate::privilege::lack())]
    Permission {
        /// The interface that was tried.
        interface: String,
    },
    /// The interface exists but is not up.
    #[error("{interface} is down; bring it up with `ip link set dev {interface} up`")]
    Down {
        /// Its name.
        interface: String,
    },
    /// Both ports are the same interface.
    #[error("both ports are {interface}; a bridge needs two interfaces")]
    SameInterface {
        /// Its name.
        interface: String,
    },
    /// A port's name has the wrong form.
    #[error("{name:?} names no port; write [xdp:|netmap:|packet:|pcap:]NAME or valeX:Y")]
    Syntax {
        /// What was written.
        name: String,
    },
    /// The interface is in use in a way that excludes this one: by another program, by a bridge, by the machine itself.
    #[error("{what}; {hint}")]
    Busy {
        /// What is in use.
        what: String,
        /// How to free it.
        hint: String,
    },
    /// A capture file cannot be read or written.
    #[error(transparent)]
    Capture(#[from] PcapFileError),
    /// The device or this version does not support what was asked.
    #[error("{what}; {hint}")]
    Unsupported {
        /// What is not supported.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// A system call failed.
    #[error("{what}: {source}{}", advice(source))]
    Io {
        /// What was tried.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Why a capture file could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum PcapFileError {
    /// The file could not be opened, read or written.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is no capture file, or is damaged.
    #[error("{}: at byte {offset}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the block or record begins that cannot be parsed, in bytes from the beginning of the file.
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The text behind `pcap:` does not say which files.
    #[error("`{0}` names no capture file; write FILE, or in=FILE, out=FILE or outng=FILE with colons between them")]
    Syntax(String),
}

/// What an operator can do about a thread that could not be started, to be put behind the error's text: that says no more than "try again".
pub fn thread_advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => "; raise the limit of threads (`ulimit -u`, TasksMax=) or of memory (`ulimit -v`)",
        _ => advice(error),
    }
}

/// What an operator can do about an error that says nothing of it, to be put behind its text; empty where that depends on what was tried.
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "; raise the limit of the process (`ulimit -n`, LimitNOFILE=)",
        Some(libc::ENFILE) => "; raise the limit of the machine (`sysctl fs.file-max`)",
        Some(libc::ENOMEM | libc::ENOBUFS) => {
            "; free memory, or raise the limits (`ulimit -v`, `ulimit -l`, MemoryMax=)"
        }
        Some(libc::ENOSPC) => "; free space there",
        Some(libc::EROFS) => "; choose a place that can be written to",
        _ => "",
    }
}
