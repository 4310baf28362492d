//! The engine's configuration. Filled by `confparse`, or by a test; every value is plain.

use core::time::Duration;
use std::sync::Arc;

/// Where an attribute of our SYN-ACK comes from (`sackmode`, `mssmode`, `wscalemode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SackConflict {
    /// They are overwritten with NOPs.
    Remove,
    /// They are translated and passed.
    Retain,
}

/// When a server gets the handshake's last acknowledgement, and what a client may send before it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Handshake {
    /// The client may send when the server has answered; the handshake's last acknowledgement reaches the server as late as the
    /// client is far, so that its first round-trip sample is true.
    #[default]
    Honest,
    /// The client may send at once; what it sends is held until the server has answered, so that the first byte is not late.
    Early,
}

/// Whether, of an [early](Handshake::Early) client, the handshake's last acknowledgement echoes the TSval of the server's SYN-ACK. With an echo
/// the server takes the round trip to the box for that to the client; without, it has none before its first data is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum EarlyEcho {
    /// Where the server needs it: it is unknown, or its answers show that it keeps its terms in that TSval (SYN cookies, a proxy), or it took no
    /// other recently.
    #[default]
    Auto,
    /// Always.
    Exact,
    /// Never.
    None,
}

/// What becomes of frames of a kind the proxy cannot verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Action {
    /// They are passed on.
    #[default]
    Pass,
    /// They are dropped.
    Drop,
}

/// What becomes of a SYN that offers an extension the proxy cannot answer for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Extension {
    /// It is answered as if the offer were not there: the client falls back to plain TCP.
    #[default]
    Strip,
    /// It is passed to the server, unanswered by us, and so is its whole connection.
    Pass,
}

/// What becomes of connections of which only one direction crosses the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Asymmetric {
    /// A SYN-ACK from the WAN whose SYN left another way passes, and so does what follows it.
    #[default]
    Pass,
    /// It is dropped.
    Drop,
    /// It passes, and SYNs to a server that is found to answer another way pass to it unanswered, as it could not be connected otherwise.
    Bypass,
}

/// What becomes of connections of a source that has proved its address lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Proved {
    /// Its SYNs are answered, and its connections translated, like those of any other.
    #[default]
    Translate,
    /// Its SYNs pass to the server unanswered, within the budgets of [`Config::proved_syns`] and the following, and its connections are followed and not
    /// touched.
    Pass,
}

/// What becomes of a segment of an unknown connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Stray {
    /// It is dropped.
    #[default]
    Drop,
    /// It is answered with a reset, as a host without the connection would (RFC 9293 section 3.10.7.1).
    Reset,
}

/// What becomes of a client's SYN. What this is for a destination in [`Auto`](Mode::Auto) changes with the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// As [`Pass`](Mode::Pass); and what would have become of it in [`Cache`](Mode::Cache) is counted.
    Observe,
    /// It passes to its server; its connection is followed and not touched.
    Pass,
    /// It is answered from the SYN cache, and by a cookie alone when that is full.
    #[default]
    Cache,
    /// It is answered by a cookie alone.
    Cookie,
    /// It passes until too many connections of its destination are half-open; then it is answered by a cookie until the attack is over.
    Auto,
}

impl Mode {
    /// Every mode, the one that does least first.
    pub const ALL: [Mode; 5] = [Mode::Observe, Mode::Pass, Mode::Cache, Mode::Cookie, Mode::Auto];

    /// The word of the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Mode::Observe => "observe",
            Mode::Pass => "pass",
            Mode::Cache => "cache",
            Mode::Cookie => "cookie",
            Mode::Auto => "auto",
        }
    }

    /// Whether SYNs pass; those of a destination in [`Auto`](Mode::Auto) do at first.
    pub const fn passes(self) -> bool {
        matches!(self, Mode::Observe | Mode::Pass | Mode::Auto)
    }
}

/// Declares [`Auto`] and what a rule may settle of it.
macro_rules! auto {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr,)+) => {
        /// When a destination in [`Mode::Auto`] stops and begins to pass SYNs. All numbers are of one destination and of all workers together.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Auto { $($(#[doc = $doc])+ pub $name: $type,)+ }

        /// [`Auto`] of which some is left open.
        #[derive(Clone, Debug, PartialEq, Eq, Default)]
        pub struct AutoSettings { $($(#[doc = $doc])+ pub $name: Option<$type>,)+ }

        impl AutoSettings {
            /// These, and `base` where they are left open.
            pub fn over(&self, base: &Auto) -> Auto {
                Auto { $($name: self.$name.unwrap_or(base.$name),)+ }
            }
        }

        impl Default for Auto {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }
    };
}

auto! {
    /// Half-open connections at which it stops to pass SYNs. It must lie below the backlog of its servers.
    enter_half_open: u32 = 64,
    /// SYNs a second at which it does; zero: at no rate.
    enter_syn_rate: u32 = 0,
    /// Half-open connections, and cookies that may still be acknowledged, below which it passes SYNs again.
    leave_half_open: u32 = 32,
    /// For how long at least it answers by cookies.
    stay: Duration = Duration::from_secs(60),
    /// For how long, once SYNs pass again, cookies that were sent still open connections.
    grace: Duration = Duration::from_secs(134),
    /// For how long a cookie counts as one that may still be acknowledged.
    in_flight: Duration = Duration::from_secs(3),
}

/// Servers whose handshakes end in a way of their own; a [`DestinationRule`] can say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Their network's address; an IPv4 address in its IPv6-mapped form, as in [`FlowKey`](crate::wire::FlowKey).
    pub address: crate::wire::Addr,
    /// Leading bits of `address` that count, 0 to 128; those of an IPv4 network are 96 more than it is written with.
    pub prefix: u8,
    /// Their port, or every port.
    pub port: Option<u16>,
    /// How their clients' handshakes end.
    pub handshake: Handshake,
}

impl Destination {
    /// Whether a server at this address and port is meant.
    pub fn covers(&self, address: &crate::wire::Addr, port: u16) -> bool {
        let network = Network { address: self.address, prefix: self.prefix };
        self.port.is_none_or(|own| own == port) && network.covers(address)
    }
}

/// A network of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its address; an IPv4 address in its IPv6-mapped form, as in [`FlowKey`](crate::wire::FlowKey).
    pub address: crate::wire::Addr,
    /// Leading bits of `address` that count, 0 to 128; those of an IPv4 network are 96 more than it is written with.
    pub prefix: u8,
}

impl Network {
    /// Whether this address is in it.
    pub fn covers(&self, address: &crate::wire::Addr) -> bool {
        let bits = |n: usize| u32::from(self.prefix).saturating_sub(32 * n as u32).min(32);
        let alike = |n: usize| (self.address[n] ^ address[n]).checked_shr(32 - bits(n)).unwrap_or(0) == 0;
        (0..4).all(alike)
    }
}

/// What is settled for servers of one network: for one port or every port, on one VLAN or any.
///
/// Of several rules that cover a connection the longest prefix counts, then the one for its VLAN, then the one for its port. What a rule leaves
/// open it takes from the rule that would count without it for all it covers, and at last from the rest of the [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// The VLAN, by the identifier of the outer tag, 0 without a tag; or any VLAN.
    pub vlan: Option<u16>,
    /// The servers' network.
    pub network: Network,
    /// Their port, or every port.
    pub port: Option<u16>,
    /// What is settled. Many rules may share it.
    pub settings: Arc<Settings>,
}

/// What a [`DestinationRule`] settles; each field as the one of the same name in [`Config`], `None` where it is left open.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// See [`Config::sack`].
    pub sack: Option<Source>,
    /// See [`Config::mss`].
    pub mss: Option<Source>,
    /// See [`Config::wscale`].
    pub wscale: Option<Source>,
    /// See [`Config::sack_conflict`].
    pub sack_conflict: Option<SackConflict>,
    /// See [`Config::own_mss`].
    pub own_mss: Option<u16>,
    /// See [`Config::own_wscale`]; where it is announced because a cookie without timestamps carries no scale, the general one is.
    pub own_wscale: Option<u8>,
    /// See [`Config::own_sack`].
    pub own_sack: Option<bool>,
    /// See [`Config::own_ttl`].
    pub own_ttl: Option<u8>,
    /// See [`Config::mss_clamp`].
    pub mss_clamp: Option<u16>,
    /// See [`Config::timeouts`].
    pub timeouts: TimeoutSettings,
    /// See [`Config::handshake`].
    pub handshake: Option<Handshake>,
    /// See [`Config::early_window`].
    pub early_window: Option<u16>,
    /// See [`Config::early_echo`].
    pub early_echo: Option<EarlyEcho>,
    /// See [`Config::multipath`].
    pub multipath: Option<Extension>,
    /// See [`Config::fast_open`].
    pub fast_open: Option<Extension>,
    /// See [`Config::signed`].
    pub signed: Option<Action>,
    /// See [`Config::proved`].
    pub proved: Option<Proved>,
    /// See [`Config::asymmetric`].
    pub asymmetric: Option<Asymmetric>,
    /// See [`Config::stray`].
    pub stray: Option<Stray>,
    /// See [`Config::icmp_errors`].
    pub icmp_errors: Option<Action>,
    /// See [`Config::stray_fragments`].
    pub stray_fragments: Option<Action>,
    /// See [`Config::closed_memory`].
    pub closed_memory: Option<Duration>,
    /// See [`Config::mode`].
    pub mode: Option<Mode>,
    /// See [`Config::auto`].
    pub auto: AutoSettings,
}

/// Declares [`Timeouts`] and what a rule may settle of them.
macro_rules! timeouts {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Lifetimes of a flow in each state. Each is at least one second.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Timeouts { $($(#[doc = $doc])+ pub $name: Duration,)+ }

        /// [`Timeouts`] of which some are left open.
        #[derive(Clone, Debug, PartialEq, Eq, Default)]
        pub struct TimeoutSettings { $($(#[doc = $doc])+ pub $name: Option<Duration>,)+ }

        impl TimeoutSettings {
            /// These, and `base` where they are left open.
            pub fn over(&self, base: &Timeouts) -> Timeouts {
                Timeouts { $($name: self.$name.unwrap_or(base.$name),)+ }
            }
        }
    };
}

timeouts! {
    /// An established flow without FIN.
    connected,
    /// One direction has sent FIN.
    one_fin,
    /// Both directions have sent FIN, not both are acknowledged.
    both_fin,
    /// Both FINs are acknowledged.
    time_wait,
    /// A valid RST was seen.
    reseted,
    /// A SYN from the LAN was passed, no SYN-ACK yet.
    ul_syn_sent,
    /// A SYN-ACK from the WAN was passed, no ACK from the LAN yet.
    ul_syn_rcvd,
    /// An entry of the SYN cache.
    dl_half_open,
    /// Our SYN went to the server, no SYN-ACK yet.
    dl_syn_sent,
    /// The first interval after which our SYN to the server is repeated; it doubles each time.
    syn_retx,
    /// The longest such interval.
    syn_retx_max,
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
            syn_retx_max: s(16),
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
    /// Cookie tests that the sources of one bucket may fail each period; five times as many at once.
    pub failures: u32,
    /// Cookie tests that all sources together may fail each period.
    pub guesses: u32,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            size: 131_072,
            period: Duration::from_secs(1),
            add: 400,
            burst: 2000,
            prefix4: 24,
            prefix6: 64,
            failures: 24,
            guesses: 1024,
        }
    }
}

/// Limits on connections and SYN-ACKs (`limits`), of all workers together. Zero is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// New connections a second of one source address (IPv4) or /64 (IPv6).
    pub source_rate: u32,
    /// Connections of it that may run.
    pub source_flows: u32,
    /// How many times as much each larger network may: /24, then /16 (IPv4); /56, then /48, then /32 (IPv6). At least 1.
    pub network_factor: u32,
    /// New connections a second to one server port.
    pub destination_rate: u32,
    /// Connections to it that may run.
    pub destination_flows: u32,
    /// SYN-ACKs a second.
    pub syn_acks: u32,
    /// SYN-ACKs a second in the name of one server port.
    pub destination_syn_acks: u32,
}

impl Limits {
    /// Whether anything is limited for connections.
    pub fn limits_connections(&self) -> bool {
        [self.source_rate, self.source_flows, self.destination_rate, self.destination_flows] != [0; 4]
    }

    /// Whether SYN-ACKs are limited.
    pub fn limits_syn_acks(&self) -> bool {
        [self.syn_acks, self.destination_syn_acks] != [0; 2]
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            source_rate: 0,
            source_flows: 0,
            network_factor: 8,
            destination_rate: 0,
            destination_flows: 0,
            syn_acks: 0,
            destination_syn_acks: 0,
        }
    }
}

/// What the clients of a service speak, and so where the name is that they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// TLS: the server name of the ClientHello.
    #[default]
    Tls,
    /// HTTP/1: the host of the first request.
    Http,
    /// SOCKS version 5: the client says where it wants to go.
    Socks,
    /// HTTP/1: the client says by CONNECT where it wants to go.
    Connect,
}

impl Protocol {
    /// The word of the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Protocol::Tls => "tls",
            Protocol::Http => "http",
            Protocol::Socks => "socks",
            Protocol::Connect => "connect",
        }
    }

    /// Whether clients say where they want to go, and the box answers them.
    pub fn asks_for_place(self) -> bool {
        matches!(self, Protocol::Socks | Protocol::Connect)
    }
}

/// Who may use a service, of those who say where they want to go.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceUser {
    /// Its name, 1 to 255 bytes.
    pub name: String,
    /// Its password, as many at most.
    pub password: String,
}

/// Without the password.
impl core::fmt::Debug for ServiceUser {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "user {:?}", self.name)
    }
}

/// A host where clients may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHost {
    /// Every one.
    Any,
    /// Those with an address in this network, named or not.
    Network(Network),
    /// Those that the client names so: by a whole name, or by one below the name behind `*.`.
    Names(String),
}

/// Where clients may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPlace {
    /// To which hosts.
    pub host: AllowedHost,
    /// To which port there, or every port.
    pub port: Option<u16>,
}

/// Where some clients may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The clients.
    pub clients: Network,
    /// The places.
    pub to: Vec<AllowedPlace>,
}

/// What a connection to a server of a service begins with, before the client's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ProxyHeader {
    /// Nothing.
    #[default]
    None,
    /// The header of the PROXY protocol, version 1: a line of text.
    V1,
    /// The same, version 2.
    V2,
}

/// How the servers of a service are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Reach {
    /// Their address and port take the place of the service's; they see the client's.
    #[default]
    Nat,
    /// They have the service's address themselves, on an interface that does not answer for it: only the Ethernet address changes.
    Mac,
    /// As [`Reach::Nat`], and an address of the box with a port of its own takes the place of the client's.
    Full,
}

impl Reach {
    /// The word of the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Reach::Nat => "nat",
            Reach::Mac => "mac",
            Reach::Full => "full",
        }
    }
}

/// Which of several servers gets a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// Each in proportion to its weight.
    #[default]
    Weighted,
    /// The one that has the fewest for its weight.
    Least,
    /// The same for each client address as long as it is usable.
    Hash,
}

/// How it is found out whether the servers of a service accept connections: the box opens one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HealthCheck {
    /// From one attempt to the next.
    pub every: Duration,
    /// How many in succession must succeed until a server that was down gets connections.
    pub rise: u8,
    /// How many in succession must fail until a server that was up gets none.
    pub fall: u8,
}

/// A server of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceServer {
    /// Its address, of the version that the service's address has; an IPv4 address in its IPv6-mapped form.
    pub address: crate::wire::Addr,
    /// Its port.
    pub port: u16,
    /// How many connections it gets in comparison with others of its route; none anew, if 0.
    pub weight: u16,
}

/// Where clients go that ask for some names, or offer some protocols.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRoute {
    /// The names: whole ones, or `*.` and a name for everything below it. None stand for every client, with a name or without, that offers one of the
    /// protocols.
    pub names: Vec<String>,
    /// Protocols of which the client must offer one (ALPN, RFC 7301); it need offer none if there are none here.
    pub alpn: Vec<String>,
    /// The servers, at least one.
    pub servers: Vec<ServiceServer>,
}

/// An address and port that the box owns, and where connections to it go by the name their clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// The address; an IPv4 address in its IPv6-mapped form.
    pub address: crate::wire::Addr,
    /// The port.
    pub port: u16,
    /// The VLAN of its clients and servers, by the identifier of the tag; 0 without a tag.
    pub vlan: u16,
    /// The Ethernet address at which the box has the address; one that follows from it unless given.
    pub mac: Option<crate::wire::Mac>,
    /// What clients speak.
    pub protocol: Protocol,
    /// What servers are told of the client.
    pub header: ProxyHeader,
    /// Networks of proxies whose connections begin with the header of the PROXY protocol, which says who the client is.
    pub proxies: Vec<Network>,
    /// Of clients that say where they want to go: who they may be, if there are any here; else they need not say.
    pub users: Vec<ServiceUser>,
    /// Where those may go.
    pub allow: Vec<Allowance>,
    /// Where clients go by name.
    pub routes: Vec<ServiceRoute>,
    /// Where clients go that name nothing that is known, or speak something else; if there is no such server, they are turned away.
    pub default: Vec<ServiceServer>,
    /// The router by which the servers are reached, where they are not on the LAN itself.
    pub next_hop: Option<crate::wire::Addr>,
    /// How long a client may take to name what it asks for.
    pub patience: Duration,
    /// How servers are reached.
    pub reach: Reach,
    /// Addresses of the box that take the place of clients' where `reach` says so, the service's own if there are none; the first is also the one in whose
    /// name the box asks servers where they are.
    pub pool: Vec<crate::wire::Addr>,
    /// Which of several servers gets a connection.
    pub balance: Balance,
    /// How it is found out whether servers accept connections; it is not, if `None`.
    pub check: Option<HealthCheck>,
    /// Whether clients may be on the LAN too; then `reach` is [`Reach::Full`].
    pub of_lan: bool,
    /// The side that servers are on; on the WAN they are reached by [`Reach::Full`].
    pub side: crate::Side,
}

impl ServiceConfig {
    /// A service at this address and port that has no servers yet, and defaults for all else.
    pub fn at(address: crate::wire::Addr, port: u16) -> Self {
        Self {
            address,
            port,
            vlan: 0,
            mac: None,
            protocol: Protocol::default(),
            header: ProxyHeader::default(),
            proxies: Vec::new(),
            users: Vec::new(),
            allow: Vec::new(),
            routes: Vec::new(),
            default: Vec::new(),
            next_hop: None,
            patience: Duration::from_secs(10),
            reach: Reach::default(),
            pool: Vec::new(),
            balance: Balance::default(),
            check: None,
            of_lan: false,
            side: crate::Side::Lan,
        }
    }
}

/// The engine's whole configuration.
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
    /// Buckets of the flow table, of any number; the table holds [`Config::FLOWS_PER_BUCKET`] times as many flows.
    pub table_buckets: usize,
    /// Most entries of the SYN cache; zero turns it off.
    pub syn_cache_max: usize,
    /// The MSS values a cookie without timestamps can express, rising.
    pub mss_table: Vec<u16>,
    /// The window scales a cookie without timestamps can express, rising from 0 ("none" is always expressible besides).
    pub wscale_table: Vec<u8>,
    /// The MSS values a cookie with timestamps can express, rising, at most 32.
    pub ts_mss_table: Vec<u16>,
    /// MSS announced for a server nothing is known of (20 less for IPv6 clients).
    pub own_mss: u16,
    /// Window scale announced for a server nothing is known of, and to a client without timestamps unless an entry of the SYN cache, no
    /// more than half full, keeps another; 0 to 14.
    pub own_wscale: u8,
    /// Whether SACK is announced for a server nothing is known of.
    pub own_sack: bool,
    /// The hop limit of what the box says in a server's name before that has answered; zero: what its last SYN-ACK arrived with, or 255.
    pub own_ttl: u8,
    /// Upper limit of every MSS option that passes the box.
    pub mss_clamp: Option<u16>,
    /// Lifetimes.
    pub timeouts: Timeouts,
    /// Limits on unanswered SYNs.
    pub rate: RateLimit,
    /// Limits on connections and SYN-ACKs.
    pub limits: Limits,
    /// How a client's handshake ends, unless a destination says otherwise.
    pub handshake: Handshake,
    /// Servers whose handshakes end in a way of their own; of several that cover one, the longest prefix, then the one with a port.
    pub destinations: Vec<Destination>,
    /// Servers for which more is settled, a million of them and more. Of two that say something about the same destination the later counts,
    /// and any of them before `destinations`.
    pub rules: Vec<DestinationRule>,
    /// Bytes a client may at most send before its server has answered ([`Handshake::Early`]).
    pub early_window: u16,
    /// Whether the server of such a client gets an echo of its SYN-ACK's timestamp.
    pub early_echo: EarlyEcho,
    /// Frames held at most until their servers have answered; at most 65535.
    pub held_frames: usize,
    /// What becomes of a SYN that offers Multipath TCP (RFC 8684).
    pub multipath: Extension,
    /// What becomes of a SYN that offers TCP Fast Open (RFC 7413).
    pub fast_open: Extension,
    /// What becomes of a SYN that is signed (TCP-MD5, RFC 2385; TCP-AO, RFC 5925): only its sender could sign another.
    pub signed: Action,
    /// Segments a second that pass from the WAN unproved (signed SYNs, those with an extension, segments of connections
    /// that may be running), or answered with a reset ([`Stray::Reset`]); and as many SYN-ACKs whose SYNs left another way.
    pub passed_rate: u32,
    /// SYNs a second for ports nothing is known of that are passed to their servers, so that their own answer is the first; 0: none.
    pub introductions: u32,
    /// SYNs a second, at most, that go to ports which lately refused or were silent, to learn whether they still do: clients' own that are passed
    /// unproved, and the box's in place of clients that proved themselves by a reset; 0: none.
    pub retries: u32,
    /// What becomes of connections of sources that have proved themselves lately.
    pub proved: Proved,
    /// For how long a source counts as proved after it has proved itself, or completed a connection that passed for that; zero: not at all.
    pub proved_memory: Duration,
    /// How many sources each worker can remember to have proved themselves; rounded up to a power of two.
    pub proved_sources: usize,
    /// Pairs of cache lines of the filter of SYNs that were answered lately: a power of two. A program of the kernel that answers SYNs knows filters of the
    /// default size alone. Smaller ones are for tests, which make thousands of engines.
    pub recent_syns: usize,
    /// Words for a second's SYNs in the filter of those that were refused lately: a power of two, up to 131 072. Less than that is for tests.
    pub refused_syns: usize,
    /// SYNs of one proved source that pass in a second, repeated ones included; zero: none.
    pub proved_syns: u32,
    /// Connections of one proved source that may be half-open at once: passed, and not completed by their client; zero: none. Each worker remembers
    /// twelve of a source at the most.
    pub proved_half_open: usize,
    /// Connections of all proved sources to one destination that may be half-open at once; zero: none.
    pub proved_half_open_all: u32,
    /// How long after the start connections that run already are adopted.
    pub adopt_grace: Duration,
    /// What becomes of connections of which one direction does not cross the box.
    pub asymmetric: Asymmetric,
    /// What becomes of segments of unknown connections then.
    pub stray: Stray,
    /// What becomes of ICMP errors that quote TCP of no connection we know.
    pub icmp_errors: Action,
    /// What becomes of later fragments from the WAN whose first fragment was not seen to pass.
    pub stray_fragments: Action,
    /// How long a port that refused is remembered to be closed.
    pub closed_memory: Duration,
    /// What becomes of SYNs from the WAN.
    pub mode: Mode,
    /// When that changes, where it is [`Mode::Auto`].
    pub auto: Auto,
    /// Addresses and ports that the box owns.
    pub services: Vec<ServiceConfig>,
    /// Connections to services whose first bytes can be kept at once, before their servers have them; at most 65535. Zero: there can be no services.
    pub service_buffers: usize,
    /// Bytes of a connection to a service that can be kept, and in which its client must name what it asks for; at most 65535.
    pub first_bytes: u16,
    /// Whether 540 established flows are made at the start (for load generators).
    pub test_connections: bool,
}

impl Config {
    /// Flows the table holds for each of its buckets.
    pub const FLOWS_PER_BUCKET: usize = 8;

    /// Whether flows can have a second key, as those of services do.
    pub fn has_redirects(&self) -> bool {
        self.service_buffers > 0
    }

    /// How many flows the table holds.
    pub fn flow_capacity(&self) -> usize {
        self.table_buckets * Self::FLOWS_PER_BUCKET
    }

    /// The share of one of `workers` workers: tables, caches and the limits on guesses divided and rounded up; what servers are to bear of proved
    /// sources divided and rounded down, but one at the least; other limits kept per worker, but for [`Limits`], which all workers keep together.
    ///
    /// # Panics
    /// If `workers` is zero.
    #[must_use]
    pub fn share(&self, workers: usize) -> Config {
        assert!(workers > 0, "a share of no workers");
        let split = |n: usize| n.div_ceil(workers);
        let split_limit = |n: u32| n.div_ceil(workers.try_into().unwrap_or(u32::MAX));
        // What a server is to bear at most: all workers together let through no more, but for one each.
        let bound = |n: usize| (n / workers).max(n.min(1));
        let RateLimit { failures, guesses, .. } = self.rate;
        let rate = RateLimit { failures: split_limit(failures), guesses: split_limit(guesses), ..self.rate.clone() };
        Config {
            rate,
            table_buckets: split(self.table_buckets),
            syn_cache_max: split(self.syn_cache_max),
            held_frames: split(self.held_frames),
            service_buffers: split(self.service_buffers),
            proved_syns: bound(self.proved_syns as usize) as u32,
            proved_half_open: bound(self.proved_half_open),
            proved_half_open_all: bound(self.proved_half_open_all as usize) as u32,
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
            syn_cache_max: 65_536,
            mss_table: vec![216, 536, 1220, 1360, 1400, 1440, 1460, 8940],
            wscale_table: vec![0, 2, 4, 6, 7, 8, 10],
            ts_mss_table: vec![
                64, 216, 256, 344, 512, 536, 600, 712, 800, 940, 1024, 1100, 1160, 1200, 1220, 1240, 1260, 1280, 1300,
                1320, 1340, 1360, 1380, 1400, 1420, 1440, 1452, 1460, 4036, 8900, 8940, 8960,
            ],
            own_mss: 1460,
            own_wscale: 7,
            own_sack: true,
            own_ttl: 0,
            mss_clamp: None,
            timeouts: Timeouts::default(),
            rate: RateLimit::default(),
            limits: Limits::default(),
            handshake: Handshake::default(),
            destinations: Vec::new(),
            rules: Vec::new(),
            early_window: 16_384,
            early_echo: EarlyEcho::default(),
            held_frames: 4096,
            multipath: Extension::default(),
            fast_open: Extension::default(),
            signed: Action::default(),
            passed_rate: 1000,
            introductions: 0,
            retries: 1000,
            proved: Proved::default(),
            proved_memory: Duration::from_secs(86_400),
            proved_sources: 65_536,
            recent_syns: 65_536,
            refused_syns: 131_072,
            proved_syns: 100,
            proved_half_open: 8,
            proved_half_open_all: 256,
            adopt_grace: Duration::from_secs(60),
            asymmetric: Asymmetric::default(),
            stray: Stray::default(),
            icmp_errors: Action::default(),
            stray_fragments: Action::default(),
            closed_memory: Duration::from_secs(10),
            mode: Mode::default(),
            auto: Auto::default(),
            services: Vec::new(),
            service_buffers: 0,
            first_bytes: 16_384,
            test_connections: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_the_guesses_that_one_prefix_and_all_may_make() {
        let whole = Config::default();
        for workers in [1, 2, 5, 24, 100] {
            let rate = whole.share(workers).rate;
            for (share, all) in [(rate.failures, whole.rate.failures), (rate.guesses, whole.rate.guesses)] {
                let together = share as usize * workers;
                assert!((all as usize..all as usize + workers).contains(&together), "{workers} workers: {together}");
            }
            assert_eq!((rate.add, rate.burst), (whole.rate.add, whole.rate.burst));
        }
    }

    #[test]
    fn workers_together_let_no_more_pass_to_servers_than_one_but_for_one_each() {
        let whole = Config { proved_half_open: 6, ..Config::default() };
        for workers in [1, 2, 4, 5, 24, 300] {
            let share = whole.share(workers);
            for (share, all) in [
                (share.proved_syns as usize, whole.proved_syns as usize),
                (share.proved_half_open, whole.proved_half_open),
                (share.proved_half_open_all as usize, whole.proved_half_open_all as usize),
            ] {
                assert!(share > 0 && share * workers <= all.max(workers), "{workers} workers: {share} of {all}");
            }
        }
        let shut = Config { proved_syns: 0, proved_half_open: 0, proved_half_open_all: 0, ..whole }.share(3);
        assert_eq!((shut.proved_syns, shut.proved_half_open, shut.proved_half_open_all), (0, 0, 0));
    }
}
