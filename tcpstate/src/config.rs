//! What the engine can be told. Filled by `confparse`, or by a test; every value is plain.

use core::time::Duration;

/// Where an attribute of our SYN-ACK comes from (`sackmode`, `mssmode`, `wscalemode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Always the configured `own_*` value.
    Default,
    /// What the server's address last answered; else `own_*`.
    HashIp,
    /// What the server's address and port last answered; else `own_*`.
    HashIpPort,
    /// What the operator said of the server over the control protocol; else `own_*`.
    Commanded,
}

/// What becomes of a client's SACK blocks when it was promised SACK and the server does not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SackConflict {
    /// They are overwritten with NOPs.
    Remove,
    /// They are translated and passed.
    Retain,
}

/// Lifetimes of a flow in each state. Each is at least one second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An established flow without FIN.
    pub connected: Duration,
    /// One direction has sent FIN.
    pub one_fin: Duration,
    /// Both directions have sent FIN, not both are acknowledged.
    pub both_fin: Duration,
    /// Both FINs are acknowledged.
    pub time_wait: Duration,
    /// A valid RST was seen.
    pub reseted: Duration,
    /// A SYN from the LAN was passed, no SYN-ACK yet.
    pub ul_syn_sent: Duration,
    /// A SYN-ACK from the WAN was passed, no ACK from the LAN yet.
    pub ul_syn_rcvd: Duration,
    /// An entry of the SYN cache.
    pub dl_half_open: Duration,
    /// Our SYN went to the server, no SYN-ACK yet.
    pub dl_syn_sent: Duration,
    /// The first interval after which our SYN to the server is repeated; it doubles each time.
    pub syn_retx: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            connected: s(86400),
            one_fin: s(7440),
            both_fin: s(240),
            time_wait: s(120),
            reseted: s(45),
            ul_syn_sent: s(240),
            ul_syn_rcvd: s(240),
            dl_half_open: s(64),
            dl_syn_sent: s(240),
            syn_retx: s(1),
        }
    }
}

/// The token buckets of source prefixes (`ratehash`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Number of buckets, a power of two.
    pub size: usize,
    /// Refill period.
    pub period: Duration,
    /// Tokens added each period.
    pub add: u32,
    /// Tokens at the start, and the most a bucket holds.
    pub burst: u32,
    /// Leading bits of an IPv4 source that name its bucket, 0 to 32.
    pub prefix4: u8,
    /// Leading bits of an IPv6 source that name its bucket, 0 to 128.
    pub prefix6: u8,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { size: 131_072, period: Duration::from_secs(1), add: 400, burst: 2000, prefix4: 24, prefix6: 64 }
    }
}

/// Everything the engine can be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where the SACK-permitted bit of our SYN-ACKs comes from.
    pub sack: Source,
    /// Where the MSS of our SYN-ACKs comes from.
    pub mss: Source,
    /// Where the window scale of our SYN-ACKs comes from.
    pub wscale: Source,
    /// What to do when SACK was promised in vain.
    pub sack_conflict: SackConflict,
    /// Entries of the learning cache.
    pub learn_capacity: usize,
    /// Buckets of the flow table, a power of two; the table holds [`Config::FLOWS_PER_BUCKET`] times as many flows.
    pub table_buckets: usize,
    /// Most entries of the SYN cache; zero turns it off.
    pub half_open_max: usize,
    /// The MSS values a cookie without timestamps can express, rising.
    pub mss_table: Vec<u16>,
    /// The window scales a cookie without timestamps can express, rising from 0 ("none" is always expressible besides).
    pub wscale_table: Vec<u8>,
    /// The MSS values a cookie with timestamps can express, rising, at most 32.
    pub ts_mss_table: Vec<u16>,
    /// MSS announced for a server nothing is known of (IPv6 clients are told 20 less).
    pub own_mss: u16,
    /// Window scale announced for a server nothing is known of, and to every client without timestamps; 0 to 14.
    pub own_wscale: u8,
    /// Whether SACK is announced for a server nothing is known of.
    pub own_sack: bool,
    /// Upper limit of every MSS option that passes the box.
    pub mss_clamp: Option<u16>,
    /// Lifetimes.
    pub timeouts: Timeouts,
    /// Limits on unanswered SYNs.
    pub rate: RateLimit,
    /// Whether 540 established flows are made at the start (for load generators).
    pub test_connections: bool,
}

impl Config {
    /// Flows the table holds for each of its buckets.
    pub const FLOWS_PER_BUCKET: usize = 8;

    /// How many flows the table holds.
    pub fn flow_capacity(&self) -> usize {
        self.table_buckets * Self::FLOWS_PER_BUCKET
    }

    /// The share of one of `workers` workers: tables and caches divided, limits kept per worker.
    ///
    /// # Panics
    /// If `workers` is zero.
    #[must_use]
    pub fn share(&self, workers: usize) -> Config {
        assert!(workers > 0, "a share of no workers");
        let split = |n: usize| n.div_ceil(workers);
        Config {
            table_buckets: split(self.table_buckets).next_power_of_two(),
            half_open_max: split(self.half_open_max),
            ..self.clone()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sack: Source::HashIpPort,
            mss: Source::HashIpPort,
            wscale: Source::HashIpPort,
            sack_conflict: SackConflict::Remove,
            learn_capacity: 131_072,
            table_buckets: 131_072,
            half_open_max: 65_536,
            mss_table: vec![216, 536, 1220, 1360, 1400, 1440, 1460, 8940],
            wscale_table: vec![0, 2, 4, 6, 7, 8, 9],
            ts_mss_table: vec![
                64, 216, 256, 344, 512, 536, 600, 712, 800, 940, 1024, 1100, 1160, 1200, 1220, 1240, 1260, 1280, 1300,
                1320, 1340, 1360, 1380, 1400, 1420, 1440, 1452, 1460, 4036, 8900, 8940, 8960,
            ],
            own_mss: 1460,
            own_wscale: 7,
            own_sack: true,
            mss_clamp: None,
            timeouts: Timeouts::default(),
            rate: RateLimit::default(),
            test_connections: false,
        }
    }
}
