//! The log: one line a message on stderr, in colour on a terminal. Its level can be changed while the process runs.

use ::control::LogLevel;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{panic, thread};
use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, reload};

/// What is logged under this target is logged whatever the level is: who has changed something. Otherwise who may change the level could hide it.
pub const AUDIT: &str = "audit";

/// Reads and changes the log level.
#[derive(Clone)]
pub struct LogControl {
    apply: Arc<dyn Fn(LevelFilter) + Send + Sync>,
    level: Arc<AtomicUsize>,
}

impl LogControl {
    /// Logs messages of at least this severity from now on.
    pub fn set(&self, level: LogLevel) {
        self.level.store(level as usize, Ordering::Relaxed);
        (self.apply)(filter(level));
    }

    /// One that changes nothing but what it says itself.
    #[cfg(test)]
    pub fn detached(level: LogLevel) -> Self {
        Self { apply: Arc::new(|_| ()), level: Arc::new(AtomicUsize::new(level as usize)) }
    }

    /// The least severe level that is logged.
    pub fn level(&self) -> LogLevel {
        LogLevel::ALL[self.level.load(Ordering::Relaxed)]
    }
}

/// A level of the configuration.
pub fn level_from_config(level: confparse::LogLevel) -> LogLevel {
    match level {
        confparse::LogLevel::Error => LogLevel::Error,
        confparse::LogLevel::Warn => LogLevel::Warn,
        confparse::LogLevel::Info => LogLevel::Info,
        confparse::LogLevel::Debug => LogLevel::Debug,
        confparse::LogLevel::Trace => LogLevel::Trace,
    }
}

/// The same as a value of the configuration.
pub fn level_of_config(level: LogLevel) -> confparse::LogLevel {
    match level {
        LogLevel::Error => confparse::LogLevel::Error,
        LogLevel::Warn => confparse::LogLevel::Warn,
        LogLevel::Info => confparse::LogLevel::Info,
        LogLevel::Debug => confparse::LogLevel::Debug,
        LogLevel::Trace => confparse::LogLevel::Trace,
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Starts logging messages of at least this severity. A panic is logged too, in one line.
///
/// # Panics
/// If it is called twice.
pub fn init(level: LogLevel) -> LogControl {
    let targets =
        |level: LevelFilter| Targets::new().with_default(level).with_target(AUDIT, level.max(LevelFilter::INFO));
    let (filter_layer, handle) = reload::Layer::new(targets(filter(level)));
    let lines = fmt::layer().with_target(false).with_ansi(stderr().is_terminal()).with_writer(stderr);
    tracing_subscriber::registry().with(filter_layer).with(lines).init();
    panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let place = panic.location().map_or("an unknown place".to_owned(), ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        error!("{} panicked at {place}: {message}", thread.name().unwrap_or("a thread"));
    }));
    let apply = move |level| {
        // It fails only when the subscriber is gone, and that lives as long as the process.
        let _ = handle.reload(targets(level));
    };
    LogControl { apply: Arc::new(apply), level: Arc::new(AtomicUsize::new(level as usize)) }
}
