//! Where the log goes: stderr, one line a message, in colour on a terminal.

use std::io::{IsTerminal, stderr};
use std::{panic, thread};
use tracing::error;
use tracing::level_filters::LevelFilter;

/// Starts logging messages of at least this severity. A panic is one of them, and also takes one line.
pub fn init(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let place = panic.location().map_or("an unknown place".to_owned(), ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        error!("{} panicked at {place}: {message}", thread.name().unwrap_or("a thread"));
    }));
}
