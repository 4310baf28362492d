//! The configuration text, parsed and validated.

/// Everything the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the engine is told.
    pub engine: tcpstate::Config,
    /// Worker threads, one a queue pair (`threadcount`).
    pub workers: usize,
}
