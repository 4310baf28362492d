//! A proxied connection beside a direct one: the same hosts, the same script, once with the kernel's bridge in the
//! middle and once with the proxy. What the wires show of the handshake and what the kernels at both ends say of the
//! connection must be the same, but for what [`MAY_DIFFER`] names.
//!
//! The hosts differ in every option of either end, the cables in MTU and VLAN tags, the proxy in backend and cache; any
//! two values of any two of these meet in some cell of [`CELLS`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{note, test};
use unit::netns::mangle::{self, Mangler};
use unit::netns::sockets::{self, Making};
use unit::netns::tags::{CUSTOMER, PROVIDER};
use unit::netns::{self, Appliance, Backend, CACHE_OFF, CACHE_ON, Namespace, Rig, Tag, Tap, TcpInfo, tap, traffic};

/// One combination of hosts, cables and proxy.
struct Cell {
    ip: u8,
    /// The options that are on at the client and at the server: a letter each, as in [`OPTIONS`].
    options: [&'static str; 2],
    mtu: u32,
    tags: &'static [Tag],
    cache: &'static str,
    backend: Backend,
    handshake: Handshake,
}

/// When a client may send.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handshake {
    Honest,
    Early,
}
use Handshake::{Early, Honest};

/// The options of a host: a letter, and the setting, which is 0 or 1.
const OPTIONS: [(char, &str); 4] = [
    ('t', "net.ipv4.tcp_timestamps"),
    ('s', "net.ipv4.tcp_sack"),
    ('w', "net.ipv4.tcp_window_scaling"),
    ('e', "net.ipv4.tcp_ecn"),
];

const UNTAGGED: &[Tag] = &[];
const VLAN: &[Tag] = &[CUSTOMER];
const QINQ: &[Tag] = &[PROVIDER, CUSTOMER];

/// The most memory each end lends to what it receives. It makes the client's window scale 8 and the server's 9, on
/// every machine.
const MEMORY: [&str; 2] = ["4096 131072 8388608", "4096 131072 16777216"];

/// A covering array of strength two over eleven factors of two values and three of three; a test counts.
#[rustfmt::skip]
const CELLS: [Cell; 12] = [
    cell(4, "tswe", "tswe", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest),
    cell(6, "----", "----", 9000, QINQ, CACHE_ON, Backend::Generic, Early),
    cell(4, "t--e", "t-w-", 1280, VLAN, CACHE_OFF, Backend::Packet, Early),
    cell(6, "-sw-", "-s-e", 1280, VLAN, CACHE_OFF, Backend::Packet, Honest),
    cell(6, "-s-e", "----", 1500, UNTAGGED, CACHE_OFF, Backend::Driver, Early),
    cell(4, "--we", "tswe", 9000, QINQ, CACHE_OFF, Backend::Generic, Honest),
    cell(4, "ts--", "ts--", 9000, UNTAGGED, CACHE_ON, Backend::Packet, Honest),
    cell(6, "tsw-", "--w-", 1500, VLAN, CACHE_ON, Backend::Generic, Early),
    cell(6, "ts--", "t-we", 1280, QINQ, CACHE_ON, Backend::Driver, Honest),
    cell(4, "--w-", "-s-e", 9000, VLAN, CACHE_ON, Backend::Driver, Early),
    cell(6, "----", "ts--", 1280, UNTAGGED, CACHE_OFF, Backend::Generic, Early),
    cell(6, "t-we", "--we", 1500, QINQ, CACHE_ON, Backend::Packet, Early),
];

#[allow(clippy::too_many_arguments, reason = "a row of a table")]
const fn cell(
    ip: u8,
    client: &'static str,
    server: &'static str,
    mtu: u32,
    tags: &'static [Tag],
    cache: &'static str,
    backend: Backend,
    handshake: Handshake,
) -> Cell {
    Cell { ip, options: [client, server], mtu, tags, cache, backend, handshake }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Cell { ip, options: [client, server], mtu, tags, cache, backend, handshake } = self;
        let tags = ["untagged", "VLAN", "QinQ"][tags.len()];
        let cache = if *cache == CACHE_ON { "cache" } else { "cookies" };
        write!(f, "IPv{ip}, client {client}, server {server}, MTU {mtu}, {tags}, {cache}, {backend:?}, {handshake:?}")
    }
}

impl Cell {
    /// The value of every factor.
    fn values(&self) -> Vec<String> {
        let on = self.options.iter().flat_map(|on| OPTIONS.map(|(letter, _)| on.contains(letter).to_string()));
        let Cell { ip, mtu, tags, cache, backend, handshake, .. } = self;
        let others = [
            ip.to_string(),
            mtu.to_string(),
            tags.len().to_string(),
            cache.to_string(),
            format!("{backend:?}"),
            format!("{handshake:?}"),
        ];
        on.chain(others).collect()
    }

    /// The hosts and cables, with nothing between them yet.
    fn rig(&self) -> Rig {
        let rig = Rig::tagged(self.mtu, self.tags);
        for ((host, on), memory) in [&rig.client, &rig.server].into_iter().zip(self.options).zip(MEMORY) {
            host.sysctl("net.ipv4.tcp_rmem", memory);
            for (letter, key) in OPTIONS {
                host.sysctl(key, if on.contains(letter) { "1" } else { "0" });
            }
        }
        rig
    }

    /// Of the client and of the server.
    fn addresses(&self) -> [IpAddr; 2] {
        match self.ip {
            4 => [netns::CLIENT_V4, netns::SERVER_V4],
            _ => [netns::CLIENT_V6, netns::SERVER_V6],
        }
    }

    /// Whether the proxy, between SYN and ACK, knows of the client only what fits into a sequence number.
    fn is_forgotten(&self) -> bool {
        self.cache == CACHE_OFF && !self.options.iter().all(|on| on.contains('t'))
    }

    /// Whether the client is probed, because a cookie does not tell its distance.
    fn is_probed(&self) -> bool {
        self.cache == CACHE_OFF && self.handshake == Honest
    }

    /// Whether the server takes the option of this letter.
    fn server_takes(&self, letter: char) -> bool {
        self.options[1].contains(letter)
    }
}

/// Something observed: at which end, when, what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    end: &'static str,
    when: &'static str,
    what: &'static str,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}, {}: {}", self.end, self.when, self.what)
    }
}

/// All that was observed of a connection.
type Seen = BTreeMap<Fact, String>;

const CLIENT: &str = "client";
const SERVER: &str = "server";

// When.
const SYN: &str = "SYN";
const SYN_ACK: &str = "SYN-ACK";
const ACK: &str = "first ACK";
const BORN: &str = "connected";
const ASKED: &str = "question answered";
const MOVED: &str = "bulk moved";
const OVER: &str = "in all";

/// A difference between a proxied connection and a direct one that is no fault.
struct Allowance {
    because: &'static str,
    facts: &'static [(&'static str, &'static str, &'static str)],
    /// Whether two values, bridged and proxied, differ as they may.
    may: fn(cell: &Cell, bridged: &str, proxied: &str) -> bool,
}

/// Everything else is the same, or the test fails; and so it does when one of these differs nowhere any more. (What two
/// bridged connections differ in is not compared, see [`is_chance`].)
const MAY_DIFFER: [Allowance; 14] = [
    Allowance {
        because: "a server that is connected early must not measure the client's distance by the LAN's",
        facts: &[(SERVER, ACK, "options")],
        may: |cell, bridged, proxied| cell.handshake == Early && bridged.strip_suffix(" with an echo") == Some(proxied),
    },
    Allowance {
        because: "honest: the window is shut until the server has granted one",
        facts: &[(CLIENT, SYN_ACK, "window")],
        may: |cell, _, proxied| cell.handshake == Honest && proxied == "0",
    },
    Allowance {
        because: "early: it is as wide as what may come before is kept",
        facts: &[(CLIENT, SYN_ACK, "window")],
        may: |cell, bridged, proxied| cell.handshake == Early && (1..=number(bridged)).contains(&number(proxied)),
    },
    Allowance {
        because: "early: the server gets two SYNs, so that it answers twice, and no round trip is measured by that",
        facts: &[
            (SERVER, BORN, "segs_in"),
            (SERVER, ASKED, "segs_in"),
            (SERVER, BORN, "total_retrans"),
            (SERVER, ASKED, "total_retrans"),
            (SERVER, OVER, "TcpExtTCPSynRetrans"),
        ],
        may: |cell, bridged, proxied| cell.handshake == Early && number(proxied) == number(bridged) + 1,
    },
    Allowance {
        because: "then it follows in a segment of its own; where the client's distance is not known, so does a probe",
        facts: &[(CLIENT, BORN, "segs_in"), (CLIENT, ASKED, "segs_in")],
        may: |cell, bridged, proxied| {
            let probes = i64::from(cell.is_probed());
            (1..=1 + probes).contains(&(number(proxied) - number(bridged)))
        },
    },
    Allowance {
        because: "the client answers the probe",
        facts: &[(CLIENT, BORN, "segs_out"), (CLIENT, ASKED, "segs_out")],
        may: |cell, bridged, proxied| cell.is_probed() && number(proxied) == number(bridged) + 1,
    },
    Allowance {
        because: "which, being no SYN, tells it in units of its scale",
        facts: &[(CLIENT, BORN, "snd_wnd")],
        may: |cell, bridged, proxied| {
            let scaled = cell.options.iter().all(|on| on.contains('w'));
            let unit = 1
                << if !scaled {
                    0
                } else if cell.is_forgotten() {
                    7
                } else {
                    9
                };
            number(proxied) == number(bridged) / unit * unit
        },
    },
    Allowance {
        because: "with cookies a client's SYN is forgotten; what its acknowledgement grants is known, in its units",
        facts: &[(SERVER, SYN, "window")],
        may: |_, _, proxied| number(proxied) > 0,
    },
    Allowance {
        because: "a cookie in the sequence number alone knows a client's MSS no better than its table",
        facts: &[
            (SERVER, BORN, "snd_mss"),
            (SERVER, ASKED, "snd_mss"),
            (SERVER, MOVED, "snd_mss"),
            (CLIENT, MOVED, "rcv_mss"),
        ],
        may: |cell, bridged, proxied| cell.is_forgotten() && number(proxied) < number(bridged),
    },
    Allowance {
        because: "nor has it room for the server's window scale: such clients are told `own_wscale`, which is 7",
        facts: &[
            (CLIENT, SYN_ACK, "options"),
            (CLIENT, BORN, "scales"),
            (CLIENT, ASKED, "scales"),
            (CLIENT, MOVED, "scales"),
        ],
        may: |cell, bridged, proxied| {
            let own = bridged.replace("scale 9", "scale 7").replace("[9, ", "[7, ");
            cell.is_forgotten() && proxied == own
        },
    },
    Allowance {
        because: "nor for ECN",
        facts: &[
            (SERVER, SYN, "flags"),
            (CLIENT, SYN_ACK, "flags"),
            (CLIENT, BORN, "options"),
            (CLIENT, ASKED, "options"),
            (CLIENT, MOVED, "options"),
            (SERVER, BORN, "options"),
            (SERVER, ASKED, "options"),
            (SERVER, MOVED, "options"),
        ],
        may: |cell, bridged, proxied| {
            const ECN: [&str; 5] = ["", "ECE", "CWR", "ecn", "ecnseen"];
            let words = |text| str::split(text, ['+', ' ']).filter(|word| !ECN.contains(word));
            cell.is_forgotten() && words(bridged).eq(words(proxied)) && proxied.len() < bridged.len()
        },
    },
    Allowance {
        because: "so none of its packets says that it understands marks",
        facts: &[
            (CLIENT, ASKED, "received_e0_bytes"),
            (CLIENT, MOVED, "received_e0_bytes"),
            (SERVER, ASKED, "received_e0_bytes"),
            (SERVER, MOVED, "received_e0_bytes"),
        ],
        may: |cell, _, proxied| cell.is_forgotten() && proxied == "0",
    },
    Allowance {
        because: "what the server is known to refuse is neither promised nor asked for; an MSS may be rounded",
        facts: &[(SERVER, SYN, "options")],
        may: is_asked_for_less,
    },
    Allowance {
        because: "the proxy's own segments have plain headers, and DF, so that the identification means nothing",
        facts: &[(CLIENT, SYN_ACK, "ip"), (SERVER, SYN, "ip"), (SERVER, ACK, "ip")],
        may: |_, bridged, proxied| {
            let words =
                |ip| str::split(ip, ", ").filter(|word| !["DF", "id 0", "options", "extensions"].contains(word));
            words(bridged).eq(words(proxied)) && !proxied.contains("options") && !proxied.contains("extensions")
        },
    },
];

/// Whether the options of the SYN that the server got are what the client offered, less what the server refuses.
fn is_asked_for_less(cell: &Cell, bridged: &str, proxied: &str) -> bool {
    let said = |options| str::split(options, ", ").filter(|&option| option != "nop").collect::<BTreeSet<_>>();
    let (bridged, proxied) = (said(bridged), said(proxied));
    let rounded = |option: &str| option.starts_with("mss ") && cell.is_forgotten();
    let refused = |option: &str| match option.split(' ').next() {
        Some("timestamps") => !cell.server_takes('t'),
        Some("sack") => !cell.server_takes('s'),
        Some("scale") => !cell.server_takes('w'),
        _ => rounded(option),
    };
    proxied.difference(&bridged).all(|option| rounded(option))
        && bridged.difference(&proxied).all(|option| refused(option))
}

fn number(text: &str) -> i64 {
    text.parse().expect("a number")
}

/// Whether two direct connections differ in this already, or for a reason that lies in the test: times, how a bulk
/// transfer happens to be cut into segments, and windows once there was data: they follow the memory that frames take,
/// which on a veth is what their last sender took for them. (Instead, what one end has granted is compared with what
/// the other took it for, see [`note`].)
fn is_chance(fact: &Fact) -> bool {
    const TIMES: [&str; 6] = ["rto", "ato", "rtt", "rttvar", "rcv_rtt", "min_rtt"];
    const MEMORY: [&str; 3] = ["rcv_ssthresh", "rcv_wnd", "snd_wnd"];
    const LASTING: [&str; 8] = ["options", "scales", "granted", "snd_mss", "rcv_mss", "pmtu", "advmss", "delivered_ce"];
    TIMES.contains(&fact.what)
        || (fact.when != BORN && MEMORY.contains(&fact.what))
        || (fact.when == MOVED && !LASTING.contains(&fact.what))
}

/// Counters that stay as they are, or rise for a reason; names, or the beginnings of names.
const COMPLAINTS: [&str; 26] = [
    "Ip6InCEPkts",
    "IpExtInCEPkts",
    "IpExtInCsumErrors",
    "IpExtInTruncatedPkts",
    "IpInAddrErrors",
    "IpInHdrErrors",
    "TcpActiveOpens",
    "TcpAttemptFails",
    "TcpEstabResets",
    "TcpInCsumErrors",
    "TcpInErrs",
    "TcpOutRsts",
    "TcpExtOfoPruned",
    "TcpExtOutOfWindowIcmps",
    "TcpExtPAWS",
    "TcpExtPFMemallocDrop",
    "TcpExtRcvPruned",
    "TcpExtSyncookies",
    "TcpExtTCPAbort",
    "TcpExtTCPACKSkipped",
    "TcpExtTCPChallengeACK",
    "TcpExtTCPMD5",
    "TcpExtTCPSACKDiscard",
    "TcpExtTCPSYNChallenge",
    "TcpExtTCPSynRetrans",
    "TcpExtTSEcrRejected",
];

#[test]
fn every_pair_of_values_occurs() {
    let rows: Vec<Vec<String>> = CELLS.iter().map(Cell::values).collect();
    let factors = rows[0].len();
    let values = |factor: usize| rows.iter().map(move |row| &row[factor]).collect::<BTreeSet<_>>();
    let counts: Vec<usize> = (0..factors).map(|factor| values(factor).len()).collect();
    assert_eq!(counts, [2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 2, 3, 2]);
    for one in 0..factors {
        for other in one + 1..factors {
            let pairs: BTreeSet<_> = rows.iter().map(|row| (&row[one], &row[other])).collect();
            let all = counts[one] * counts[other];
            assert_eq!(pairs.len(), all, "factors {one} and {other} meet only as {pairs:?}");
        }
    }
}

#[test]
fn a_proxied_connection_is_like_a_direct_one() {
    let cells: Vec<_> = CELLS.iter().map(|cell| (cell, &STRAIGHT)).collect();
    let mut idle: Vec<&str> = MAY_DIFFER.iter().map(|one| one.because).collect();
    // Some differences are in one cell alone, and there a matter of chance: whether a server is told an echo follows from numbers that it has chosen.
    for _ in 0..4 {
        let differ = compare_all(&cells);
        idle.retain(|one| !differ.contains(one));
        if idle.is_empty() {
            return;
        }
    }
    panic!("take off the list, as nothing differs any more because {}", idle.join("; because "));
}

#[test]
fn a_connection_from_the_lan_is_a_direct_one() {
    let from_lan = Twist { from_lan: true, ..STRAIGHT };
    compare_all(&CELLS.iter().map(|cell| (cell, &from_lan)).collect::<Vec<_>>());
}

#[test]
fn so_it_is_with_full_jumbo_frames_that_grow_by_timestamps() {
    // The first connection is promised the timestamps that the server turns out to refuse: the proxy adds them.
    compare_all(&[
        (&cell(4, "ts--", "-s--", 9000, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &STRAIGHT),
        (&cell(4, "ts--", "--we", 9000, UNTAGGED, CACHE_ON, Backend::Generic, Early), &STRAIGHT),
        (&cell(6, "tsw-", "-sw-", 9000, VLAN, CACHE_OFF, Backend::Packet, Honest), &STRAIGHT),
    ]);
}

#[test]
fn so_it_is_with_packets_that_may_be_fragmented() {
    let unset = Twist {
        arrange: |rig| {
            rig.sysctl("net.ipv4.ip_no_pmtu_disc", "1");
            Vec::new()
        },
        ..STRAIGHT
    };
    compare_all(&[
        (&cell(4, "tsw-", "tsw-", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &unset),
        (&cell(4, "-sw-", "-sw-", 1500, VLAN, CACHE_OFF, Backend::Packet, Honest), &unset),
    ]);
}

#[test]
fn so_it_is_with_frames_padded_to_the_least_ethernet_carries() {
    let padded =
        Twist { arrange: |rig| [Rig::LAN, Rig::WAN].map(|port| rig.mangle(port, mangle::padded)).into(), ..STRAIGHT };
    // Without timestamps an acknowledgement is 54 bytes long.
    compare_all(&[
        (&cell(4, "-sw-", "-sw-", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &padded),
        (&cell(4, "----", "----", 1500, UNTAGGED, CACHE_OFF, Backend::Packet, Honest), &padded),
        (&cell(4, "ts--", "----", 1500, UNTAGGED, CACHE_ON, Backend::Generic, Honest), &padded),
    ]);
}

#[test]
fn so_it_is_with_segments_in_fragments() {
    let fragmented = |proof| Twist {
        arrange: |rig| [Rig::LAN, Rig::WAN].map(|port| rig.mangle(port, mangle::fragmented)).into(),
        proof,
        ..STRAIGHT
    };
    let [v4, v6] = ["IpReasmOKs", "Ip6ReasmOKs"].map(fragmented);
    compare_all(&[
        (&cell(4, "tsw-", "tsw-", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &v4),
        (&cell(4, "-sw-", "tsw-", 1500, UNTAGGED, CACHE_OFF, Backend::Packet, Honest), &v4),
        (&cell(6, "tsw-", "tsw-", 1500, UNTAGGED, CACHE_ON, Backend::Generic, Honest), &v6),
        (&cell(6, "-sw-", "tsw-", 1500, UNTAGGED, CACHE_OFF, Backend::Driver, Honest), &v6),
    ]);
}

#[test]
fn so_it_is_with_congestion_on_the_way() {
    let congested = Twist {
        arrange: |rig| vec![rig.mangle(Rig::WAN, mangle::congested)],
        proof: "TcpExtTCPDeliveredCE",
        ..STRAIGHT
    };
    compare_all(&[
        (&cell(4, "tswe", "tswe", 1500, UNTAGGED, CACHE_OFF, Backend::Driver, Honest), &congested),
        (&cell(6, "-swe", "-swe", 1500, UNTAGGED, CACHE_ON, Backend::Packet, Early), &congested),
    ]);
}

#[test]
fn so_it_is_with_ipv4_options_and_ipv6_extension_headers() {
    let more = Twist { socket: sockets::send_more_headers, ..STRAIGHT };
    compare_all(&[
        (&cell(4, "tsw-", "tsw-", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &more),
        (&cell(4, "-sw-", "-sw-", 1500, UNTAGGED, CACHE_OFF, Backend::Packet, Honest), &more),
        (&cell(6, "tsw-", "tsw-", 1500, UNTAGGED, CACHE_ON, Backend::Driver, Honest), &more),
        (&cell(6, "-sw-", "-sw-", 1500, UNTAGGED, CACHE_OFF, Backend::Packet, Honest), &more),
    ]);
}

#[test]
fn datagrams_in_fragments_are_bridged() {
    for backend in Backend::ALL {
        let rig = Rig::new();
        let _proxy = Appliance::start(&rig, backend, CACHE_ON);
        for (client, server) in [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)] {
            let [here, there] = [(&rig.client, client), (&rig.server, server)].map(|(host, ip)| {
                let socket = host.run(|| UdpSocket::bind((ip, 0))).expect("binding");
                socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                socket
            });
            let mut buffer = [0; 9000];
            for size in [1473, 4000, 8000] {
                let sent: Vec<u8> = (0..size).map(|n: usize| (n * 7) as u8).collect();
                for (from, to) in [(&here, &there), (&there, &here)] {
                    from.send_to(&sent, to.local_addr().expect("bound")).expect("sending");
                    let got = to.recv(&mut buffer).unwrap_or_else(|e| panic!("{backend:?}, {client}, {size}: {e}"));
                    assert!(buffer[..got] == sent, "{backend:?}, {client}: {size} bytes arrived as {got} others");
                }
            }
        }
    }
}

/// Runs cells, two at a time, and fails with all that differs and may not. Returns why others may.
fn compare_all(cells: &[(&Cell, &Twist)]) -> BTreeSet<&'static str> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new((Vec::new(), BTreeSet::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((cell, twist)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (differences, allowed) = compare(cell, twist);
                    let mut found = found.lock().expect("nobody panics while holding it");
                    found.0.extend(differences);
                    found.1.extend(allowed);
                }
            });
        }
    });
    let (differences, allowed) = found.into_inner().expect("nobody panics while holding it");
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    allowed
}

/// What is unusual about a rig: how it is built, and how the sockets are made.
struct Twist {
    /// The host on the LAN connects, not the one on the WAN. Then nothing may differ.
    from_lan: bool,
    /// What must stay as long as the rig.
    arrange: fn(&Rig) -> Vec<Mangler>,
    socket: fn(&OwnedFd) -> io::Result<()>,
    /// What has to be seen, or the twist was none: a counter that must rise at both ends, in both middles.
    proof: &'static str,
}

const STRAIGHT: Twist = Twist { from_lan: false, arrange: |_| Vec::new(), socket: |_| Ok(()), proof: "TcpInSegs" };

/// Runs a cell both ways; tells what differs and may not, and why the rest may.
fn compare(cell: &Cell, twist: &Twist) -> (Vec<String>, Vec<&'static str>) {
    let start = Instant::now();
    let rig = cell.rig();
    let _manglers = (twist.arrange)(&rig);
    rig.bridge();
    let bridged = observe(&rig, cell, twist, 0);
    rig.unbridge();
    let handshake = if cell.handshake == Early { "early" } else { "honest" };
    let proxy = Appliance::start(&rig, cell.backend, &format!("{} handshake = {handshake};", cell.cache));
    // The server's second answer, as its connection and its kernel count it.
    let proxied = observe(&rig, cell, twist, if cell.handshake == Early && !twist.from_lan { 2 } else { 0 });
    let report = proxy.stop();
    note!("{cell}: {:.1} s", start.elapsed().as_secs_f64());
    let (bridged, proxied) = match (bridged, proxied) {
        (Ok(bridged), Ok(proxied)) => (bridged, proxied),
        (Err(error), _) => return (vec![format!("{cell}: bridged: {error}")], Vec::new()),
        (_, Err(error)) => {
            return (vec![format!("{cell}: proxied: {error}\n{}", report.log.join("\n"))], Vec::new());
        }
    };
    let nothing = String::from("nothing");
    let (mut differences, mut allowed) = (Vec::new(), Vec::new());
    for fact in bridged.keys().chain(proxied.keys()).collect::<BTreeSet<_>>() {
        let [bridged, proxied] = [&bridged, &proxied].map(|seen| seen.get(fact).unwrap_or(&nothing));
        if bridged == proxied || is_chance(fact) {
            continue;
        }
        let here = (fact.end, fact.when, fact.what);
        let allows =
            |allowance: &&Allowance| allowance.facts.contains(&here) && (allowance.may)(cell, bridged, proxied);
        match MAY_DIFFER.iter().filter(|_| !twist.from_lan).find(allows) {
            Some(allowance) => allowed.push(allowance.because),
            None => differences.push(format!("{cell}: {fact}: proxied {proxied}, bridged {bridged}")),
        }
    }
    (differences, allowed)
}

/// Two conversations with one server, of which the second is observed: the first connection to a server that nobody
/// knows yet may be offered other options than the server would have offered.
fn observe(rig: &Rig, cell: &Cell, twist: &Twist, repetitions: i64) -> io::Result<Seen> {
    let (mut hosts, mut addresses) = ([&rig.client, &rig.server], cell.addresses());
    if twist.from_lan {
        hosts.reverse();
        addresses.reverse();
    }
    let [opener, acceptor] = hosts;
    let listener = acceptor.run(|| Making::default().listen(addresses[1], twist.socket))?;
    let connect = |to| opener.run(|| Making::default().connect(addresses[0], to, twist.socket));
    converse(hosts, &listener, connect)?;
    for _ in 0..5 {
        let before = hosts.map(Namespace::counters);
        let mut seen = converse(hosts, &listener, connect)?;
        let mut repeated = 0;
        for ((end, after), before) in [CLIENT, SERVER].into_iter().zip(hosts.map(Namespace::counters)).zip(before) {
            let risen = after.since(&before);
            for what in COMPLAINTS {
                seen.insert(Fact { end, when: OVER, what }, said(what, risen.sum(what)));
            }
            if risen.get(twist.proof) == 0 {
                return Err(io::Error::other(format!("{} did not rise at the {end}", twist.proof)));
            }
            let asked = Fact { end, when: ASKED, what: "total_retrans" };
            repeated += risen.get("TcpExtTCPSynRetrans") + seen.get(&asked).map_or(0, |count| number(count));
        }
        if repeated <= repetitions {
            return Ok(seen);
        }
        note!(
            "{cell}: once more, because {repeated} segments of a quiet connection were sent again: a crowded machine"
        );
    }
    Err(io::Error::other("in none of five connections did a question and its answer arrive at the first attempt"))
}

/// One connection: a question and its answer, bulk one way and the other, and a good end. The sleeps let
/// acknowledgements that are delayed (40 ms) come.
fn converse(
    hosts: [&Namespace; 2],
    listener: &TcpListener,
    connect: impl Fn(SocketAddr) -> io::Result<TcpStream>,
) -> io::Result<Seen> {
    const BULK: u64 = 1 << 20;
    let address = listener.local_addr()?;
    let taps = hosts.map(Tap::open);
    let client = connect(address)?;
    client.set_nodelay(true)?;
    let server = sockets::accept(listener, traffic::PATIENCE)?;
    server.set_nodelay(true)?;
    await_window(&client);
    let mut seen = handshake(taps, client.local_addr()?, address);
    note(&mut seen, BORN, [&client, &server]);

    traffic::send(&client, 1, 1000)?;
    traffic::receive(&server, 1, Some(1000))?;
    traffic::send(&server, 2, 1000)?;
    traffic::receive(&client, 2, Some(1000))?;
    thread::sleep(Duration::from_millis(60));
    note(&mut seen, ASKED, [&client, &server]);

    for (from, to) in [(&client, &server), (&server, &client)] {
        thread::scope(|scope| {
            let sending = scope.spawn(|| traffic::send(from, 3, BULK));
            traffic::receive(to, 3, Some(BULK))?;
            sending.join().expect("a sender does not panic")
        })?;
    }
    thread::sleep(Duration::from_millis(60));
    note(&mut seen, MOVED, [&client, &server]);

    client.shutdown(Shutdown::Write)?;
    traffic::expect_end(&server)?;
    drop(server);
    traffic::expect_end(&client)?;
    thread::sleep(Duration::from_millis(20));
    Ok(seen)
}

/// A number; of congestion marks, which are chance, only whether there were any.
fn said(what: &str, number: i64) -> String {
    match what {
        "delivered_ce" | "IpExtInCEPkts" | "Ip6InCEPkts" => String::from(if number > 0 { "some" } else { "none" }),
        _ => number.to_string(),
    }
}

/// Waits until the client may send, and for a moment more, so that nothing is on its way.
fn await_window(client: &TcpStream) {
    let start = Instant::now();
    while TcpInfo::of(client).get("snd_wnd") == 0 && start.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
}

/// What came in at both ends to open the connection. The last acknowledgement of the connection before it may still arrive.
fn handshake([client, server]: [Tap; 2], caller: SocketAddr, address: SocketAddr) -> Seen {
    let mut seen = Seen::new();
    let mut at_server = server.segments(|from, to| (from, to) == (caller, address)).into_iter();
    let syn = at_server.next();
    let ack = at_server.find(|told| !told.flags.contains("SYN"));
    let at_client = client.segments(|from, to| (from, to) == (address, caller)).into_iter().next();
    for (end, when, told) in [(SERVER, SYN, syn), (SERVER, ACK, ack), (CLIENT, SYN_ACK, at_client)] {
        let Some(tap::Told { flags, window, data, options, ip, ecn, label }) = told else { continue };
        let facts = [
            ("flags", flags),
            ("window", window.to_string()),
            ("data", data.to_string()),
            ("options", options),
            ("ip", ip),
            ("ecn", ecn.to_string()),
            ("label", label.to_string()),
        ];
        seen.extend(facts.map(|(what, value)| (Fact { end, when, what }, value)));
    }
    seen
}

/// Notes what both kernels say, and whether the windows they send by are those they grant.
fn note(seen: &mut Seen, when: &'static str, streams: [&TcpStream; 2]) {
    let infos = streams.map(TcpInfo::of);
    for (end, info, peer) in [(CLIENT, infos[0], infos[1]), (SERVER, infos[1], infos[0])] {
        let words = [
            ("options", info.options()),
            ("scales", format!("{:?}", info.scales())),
            ("granted", granted(&info, &peer)),
        ];
        let numbers = info.fields().map(|(what, value)| (what, said(what, value.into())));
        seen.extend(words.into_iter().chain(numbers).map(|(what, value)| (Fact { end, when, what }, value)));
    }
}

/// Whether the window `sender` believes in is the one that `receiver` has granted: no byte more, and less only by the
/// rounding of their scales.
fn granted(sender: &TcpInfo, receiver: &TcpInfo) -> String {
    let scale = sender.scales()[0].max(receiver.scales()[1]);
    // Without scaling a kernel takes more in mind than it can say.
    let most = receiver.get("rcv_wnd").min(0xffff << scale);
    let window = sender.get("snd_wnd");
    let right = window <= most && most - window < 1 << scale;
    if right { "as promised".into() } else { format!("{window} of {most}") }
}
