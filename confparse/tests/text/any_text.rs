//! Whatever the text, there is an answer; and what is described is read back as it was.

use core::net::{IpAddr, SocketAddr};

use confparse::{
    Account, ClientList, ClientLists, Complaint, Config, Control, Errors, Events, Failures, FastPath, Front, Ldp,
    Level, LinkLoss, LogLevel, OnFailure, Parsed, Poll, PortLoss, StateDir, Syslog, parse,
};
use core::num::NonZeroU32;
use core::time::Duration;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use std::sync::Arc;
use std::thread;
use tcpstate::Side;
use tcpstate::config::{
    Action, Allowance, AllowedHost, AllowedPlace, Asymmetric, Auto, AutoSettings, Balance, Destination,
    DestinationRule, EarlyEcho, Extension, Handshake, HealthCheck, Limits, Mode, Network, Protocol, Proved,
    ProxyHeader, RateLimit, Reach, SackConflict, ServiceConfig, ServiceRoute, ServiceServer, ServiceUser, Settings,
    Source, Stray, TimeoutSettings, Timeouts,
};

const SAMPLE: &str = include_str!("../../../conf.txt");
const OLDER: &str = include_str!("../../corpus/older.conf");

/// Holds of every answer. The complaints can be printed and point into the text; what is accepted can be described.
fn answers(text: &str) {
    let lines = text.split('\n').count();
    let sound = |complaint: &Complaint| {
        assert!((1..=lines).contains(&complaint.line), "line {} of {lines}", complaint.line);
        assert!(complaint.column >= 1);
        let shown = complaint.to_string();
        assert!(shown.len() < 4000, "{shown}");
        assert!(shown.starts_with(&format!("c:{}:{}: ", complaint.line, complaint.column)));
        assert!(shown.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{shown:?}");
    };
    match parse(text, "c") {
        Ok(Parsed { config, warnings, .. }) => {
            warnings.iter().for_each(sound);
            assert!(warnings.iter().all(|warning| warning.level < Level::Error) && warnings.len() <= Complaint::MOST);
            read_back(&config);
        }
        Err(errors) => {
            let Errors { complaints, .. } = &errors;
            complaints.iter().for_each(sound);
            assert!(complaints.iter().any(|complaint| complaint.level == Level::Error));
            assert!(complaints.len() <= 2 * Complaint::MOST);
        }
    }
}

fn read_back(config: &Config) {
    let text = config.describe();
    match parse(&text, "described") {
        Ok(parsed) => assert_eq!(&parsed.config, config, "{text}"),
        Err(errors) => panic!("{errors}\n{text}"),
    }
}

fn sources() -> impl Strategy<Value = Source> {
    select(&[Source::Default, Source::HashIp, Source::HashIpPort, Source::Commanded][..])
}

fn powers() -> impl Strategy<Value = usize> {
    (0..=30u32).prop_map(|n| 1 << n)
}

fn rising<T: Ord + std::fmt::Debug + Copy + From<u8>>(
    entries: impl Strategy<Value = T>,
    from_zero: bool,
    most: usize,
) -> impl Strategy<Value = Vec<T>> {
    vec(entries, 1..=most).prop_map(move |mut list| {
        list.sort_unstable();
        if from_zero {
            list[0] = T::from(0);
        }
        list
    })
}

fn accounts() -> impl Strategy<Value = Option<Account>> {
    prop_oneof![
        Just(None),
        (1..=2_147_483_647u32).prop_map(|id| NonZeroU32::new(id).map(Account::Id)),
        "[^\\p{C}\\p{Z}:]{1,20}".prop_map(|name| Some(Account::Name(name))),
        r#"["\\/#*a ]{1,8}"#.prop_map(|name| Some(Account::Name(name))),
    ]
}

fn seconds() -> impl Strategy<Value = Duration> {
    (1..=2_147_483_647u64).prop_map(Duration::from_secs)
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    vec(seconds(), 11).prop_map(|t| Timeouts {
        connected: t[0],
        one_fin: t[1],
        both_fin: t[2],
        time_wait: t[3],
        reseted: t[4],
        ul_syn_sent: t[5],
        ul_syn_rcvd: t[6],
        dl_half_open: t[7],
        dl_syn_sent: t[8],
        syn_retx: t[9],
        syn_retx_max: t[10],
    })
}

fn rates() -> impl Strategy<Value = RateLimit> {
    let int = 1..=2_147_483_647u32;
    (powers(), int.clone(), int.clone(), int, 0..=32u8, 0..=128u8).prop_map(
        |(size, period, add, burst, prefix4, prefix6)| RateLimit {
            size,
            period: Duration::from_micros(period.into()),
            add,
            burst,
            prefix4,
            prefix6,
            ..RateLimit::default()
        },
    )
}

/// Servers as a text can say them, no two alike, in the order the reader gives them.
fn destinations() -> impl Strategy<Value = Vec<Destination>> {
    let bits = prop_oneof![any::<u128>(), any::<u32>().prop_map(|address| 0xffff << 32 | u128::from(address))];
    let port = proptest::option::of(1..=u16::MAX);
    let one = (bits, 0..=128u8, port, any::<bool>()).prop_map(|(bits, prefix, port, early)| {
        let bits = bits & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let address = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
        let handshake = if early { Handshake::Early } else { Handshake::Honest };
        Destination { address, prefix, port, handshake }
    });
    vec(one, 0..12).prop_map(|list| {
        let mut kept: Vec<Destination> = Vec::new();
        for new in list {
            let alike = |d: &Destination| (d.address, d.prefix, d.port) == (new.address, new.prefix, new.port);
            if !kept.iter().any(alike) {
                kept.push(new);
            }
        }
        kept.sort_by_key(|destination| destination.handshake == Handshake::Honest);
        kept
    })
}

/// Rules as a text can say them, no two for the same servers, and none that contradicts a list.
fn rules() -> impl Strategy<Value = Vec<DestinationRule>> {
    let network = prop_oneof![any::<u128>(), any::<u32>().prop_map(|address| 0xffff << 32 | u128::from(address))];
    let place = (proptest::option::of(0..=4094u16), network, 0..=128u8, proptest::option::of(1..=u16::MAX));
    let one = (place, settings()).prop_map(|((vlan, bits, prefix, port), settings)| {
        let bits = bits & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
        let address = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
        DestinationRule { vlan, network: Network { address, prefix }, port, settings: Arc::new(settings) }
    });
    vec(one, 0..6).prop_map(|list| {
        let mut kept: Vec<DestinationRule> = Vec::new();
        for new in list {
            let name = |rule: &DestinationRule| (rule.vlan, rule.network, rule.port);
            if !kept.iter().any(|rule| name(rule) == name(&new)) {
                kept.push(new);
            }
        }
        kept
    })
}

prop_compose! {
    fn settings()(
        (sack, mss, wscale) in (option::of(sources()), option::of(sources()), option::of(sources())),
        (multipath, fast_open) in (option::of(extensions()), option::of(extensions())),
        (signed, icmp_errors, stray_fragments) in (option::of(policies()), option::of(policies()), option::of(policies())),
        stray in option::of(select(&[Stray::Drop, Stray::Reset][..])),
        asymmetric in option::of(asymmetries()),
        proved in option::of(proofs()),
        handshake in option::of(select(&[Handshake::Honest, Handshake::Early][..])),
        sack_conflict in option::of(select(&[SackConflict::Remove, SackConflict::Retain][..])),
        (own_mss, mss_clamp, early_window) in (option::of(1..=u16::MAX), option::of(1..=u16::MAX), option::of(1..=u16::MAX)),
        (own_wscale, own_sack, own_ttl) in (option::of(0..=14u8), option::of(any::<bool>()), option::of(any::<u8>())),
        early_echo in option::of(echoes()),
        closed_memory in option::of(prop_oneof![Just(Duration::ZERO), seconds()]),
        t in vec(option::of(seconds()), 11),
        mode in option::of(select(&Mode::ALL[..])),
        (enter, rate, leave) in (option::of(1..=2_147_483_647u32), option::of(0..=2_147_483_647u32), option::of(1..=2_147_483_647u32)),
        times in vec(option::of((1..=2_147_483_647u64).prop_map(Duration::from_millis)), 3),
    ) -> Settings {
        let auto = AutoSettings {
            enter_half_open: enter,
            enter_syn_rate: rate,
            leave_half_open: leave,
            stay: times[0],
            grace: times[1],
            in_flight: times[2],
        };
        let timeouts = TimeoutSettings {
            connected: t[0],
            one_fin: t[1],
            both_fin: t[2],
            time_wait: t[3],
            reseted: t[4],
            ul_syn_sent: t[5],
            ul_syn_rcvd: t[6],
            dl_half_open: t[7],
            dl_syn_sent: t[8],
            syn_retx: t[9],
            syn_retx_max: t[10],
        };
        Settings {
            sack, mss, wscale, sack_conflict, own_mss, own_wscale, own_sack, own_ttl, mss_clamp, timeouts, handshake, early_window,
            early_echo, multipath, fast_open, signed, proved, asymmetric, stray, icmp_errors, stray_fragments, closed_memory,
            mode, auto,
        }
    }
}

prop_compose! {
    /// What says how connections are treated, in an engine that is otherwise the default.
    fn treatments()(
        handshake in select(&[Handshake::Honest, Handshake::Early][..]),
        destinations in destinations(),
        rules in rules(),
        (early_window, early_echo) in (1..=u16::MAX, echoes()),
        held_frames in 0..=65535usize,
        (multipath, fast_open) in (extensions(), extensions()),
        (signed, icmp_errors, stray_fragments) in (policies(), policies(), policies()),
        (passed_rate, introductions, retries) in (0..=2_147_483_647u32, 0..=2_147_483_647u32, 0..=2_147_483_647u32),
        stray in select(&[Stray::Drop, Stray::Reset][..]),
        asymmetric in asymmetries(),
        (proved, proved_memory, proved_sources) in (proofs(), prop_oneof![Just(Duration::ZERO), seconds()], 1..=1usize << 24),
        (proved_syns, proved_half_open, proved_half_open_all) in (0..=2_147_483_647u32, 0..=768usize, 0..=2_147_483_647u32),
        (adopt_grace, closed_memory) in (seconds(), prop_oneof![Just(Duration::ZERO), seconds()]),
        mode in select(&Mode::ALL[..]),
        (enter, rate, leave) in (1..=2_147_483_647u32, 0..=2_147_483_647u32, 1..=2_147_483_647u32),
        times in vec((1..=2_147_483_647u64).prop_map(Duration::from_millis), 3),
    ) -> tcpstate::Config {
        let auto = Auto {
            enter_half_open: enter.max(leave),
            enter_syn_rate: rate,
            leave_half_open: leave,
            stay: times[0],
            grace: times[1],
            in_flight: times[2],
        };
        let contradicts = |rule: &DestinationRule| {
            let Network { address, prefix } = rule.network;
            let alike = |d: &Destination| (d.address, d.prefix, d.port) == (address, prefix, rule.port);
            rule.vlan.is_none() && destinations.iter().any(alike)
        };
        let rules = rules.into_iter().filter(|rule| !contradicts(rule)).collect();
        tcpstate::Config {
            handshake, destinations, rules, early_window, early_echo, held_frames, multipath, fast_open, signed, passed_rate, introductions,
            retries, proved, proved_memory, proved_sources, proved_syns, proved_half_open, proved_half_open_all, adopt_grace, asymmetric, stray, icmp_errors, stray_fragments, closed_memory, mode, auto, ..tcpstate::Config::default()
        }
    }
}

fn asymmetries() -> impl Strategy<Value = Asymmetric> {
    select(&[Asymmetric::Pass, Asymmetric::Drop, Asymmetric::Bypass][..])
}

fn proofs() -> impl Strategy<Value = Proved> {
    select(&[Proved::Translate, Proved::Pass][..])
}

fn extensions() -> impl Strategy<Value = Extension> {
    select(&[Extension::Strip, Extension::Pass][..])
}

fn echoes() -> impl Strategy<Value = EarlyEcho> {
    select(&[EarlyEcho::Auto, EarlyEcho::Exact, EarlyEcho::None][..])
}

fn policies() -> impl Strategy<Value = Action> {
    select(&[Action::Pass, Action::Drop][..])
}

prop_compose! {
    fn engines()(
        (sack, mss, wscale) in (sources(), sources(), sources()),
        sack_conflict in select(&[SackConflict::Remove, SackConflict::Retain][..]),
        (learn_capacity, table_buckets) in (powers(), 1..1usize << 28),
        syn_cache_max in 0..=2_147_483_647usize,
        // 2 * (14 + 1) * 128 stays below 4096.
        mss_table in rising(any::<u16>(), false, 128),
        wscale_table in rising(0..=14u8, true, 14),
        ts_mss_table in rising(any::<u16>(), false, 32),
        (own_mss, own_wscale, own_sack, own_ttl) in (1..=u16::MAX, 0..=14u8, any::<bool>(), any::<u8>()),
        mss_clamp in proptest::option::of(1..=u16::MAX),
        timeouts in timeouts(),
        (rate, limits) in (rates(), limits()),
        test_connections in any::<bool>(),
        treatment in treatments(),
        (services, service_buffers, first_bytes) in (services(), 1..=65535usize, 512..=u16::MAX),
    ) -> tcpstate::Config {
        tcpstate::Config {
            services, service_buffers, first_bytes,
            sack, mss, wscale, sack_conflict, learn_capacity, table_buckets, syn_cache_max, mss_table, wscale_table,
            ts_mss_table, own_mss, own_wscale, own_sack, own_ttl, mss_clamp, timeouts, rate, limits, test_connections,
            ..treatment
        }
    }
}

/// Services as they are read: of different addresses, each with servers of the same version.
fn services() -> impl Strategy<Value = Vec<ServiceConfig>> {
    let place = || (any::<[u32; 3]>(), 1..=u16::MAX, 0..=1000u16);
    let reach = select(&[Reach::Nat, Reach::Mac, Reach::Full][..]);
    let balance = select(&[Balance::Weighted, Balance::Least, Balance::Hash][..]);
    let check = option::of((1..=3600u64, 1..=100u8, 1..=100u8));
    let turned = any::<(bool, bool)>();
    let proxies = vec(any::<[u32; 3]>(), 0..3);
    let target = (0..3usize, any::<[u32; 3]>(), "(\\*\\.)?[a-z][a-z0-9-]{0,9}", option::of(1..=u16::MAX));
    let allow = vec((any::<[u32; 3]>(), vec(target, 1..4)), 1..4);
    let users = vec(("[a-z][!-9;-~]{0,5}", "[ -~]{1,6}"), 0..3);
    let more = (reach, vec(any::<[u32; 3]>(), 0..3), balance, check, turned, proxies, (allow, users));
    let name = "(\\*\\.)?[a-z][a-z0-9-]{0,9}(\\.[a-z]{1,9}){0,2}";
    let alpn = select(&["h2", "http/1.1", "acme-tls/1", "alpn:"][..]);
    let route = (vec(name, 1..4), vec(alpn, 0..3), vec(place(), 1..4));
    let shape = (any::<bool>(), 1..=u16::MAX, 0..=4094u16, option::of(any::<[u8; 6]>()), 0..4usize, 0..3usize);
    let servers = (vec(route, 0..4), vec(place(), 1..3), option::of(any::<[u32; 3]>()), 1..=3600u64);
    let service = (shape, servers, more);
    vec(service, 0..4).prop_map(|all| {
        let services = all.into_iter().zip(1..).map(
            |(
                (
                    (v6, port, vlan, mac, protocol, header),
                    (routes, default, next_hop, patience),
                    (reach, pool, balance, check, turned, proxies, (allow, users)),
                ),
                n,
            )| {
                let protocol = [Protocol::Tls, Protocol::Http, Protocol::Socks, Protocol::Connect][protocol];
                let asks = protocol.asks_for_place();
                let reach = if asks && reach == Reach::Mac { Reach::Nat } else { reach };
                let of = |[a, b, c]: [u32; 3], low: u32| {
                    if v6 { [0x2001_0db8, a, b, c & !0xff | low] } else { [0, 0, 0xffff, c & !0xff | low] }
                };
                let server = |(words, own, weight)| {
                    // Servers with the service's address have its port.
                    let port = if reach == Reach::Mac { port } else { own };
                    ServiceServer { address: of(words, 0x80), port, weight }
                };
                let mac = mac.map(|[a, b, c, d, e, f]: [u8; 6]| [a & !1 | 2, b, c, d, e, f]);
                ServiceConfig {
                    vlan,
                    mac,
                    protocol,
                    header: [ProxyHeader::None, ProxyHeader::V1, ProxyHeader::V2][if asks { 0 } else { header }],
                    users: users
                        .into_iter()
                        .filter(|_| asks)
                        .map(|(name, password)| ServiceUser { name, password })
                        .collect(),
                    allow: allow
                        .into_iter()
                        .filter(|_| asks)
                        .map(|(clients, places)| Allowance {
                            clients: Network { address: of(clients, 0x85), prefix: 128 },
                            to: places
                                .into_iter()
                                .map(|(kind, words, name, port)| AllowedPlace {
                                    host: match kind {
                                        0 => AllowedHost::Any,
                                        1 => AllowedHost::Network(Network { address: of(words, 0x86), prefix: 128 }),
                                        _ => AllowedHost::Names(name),
                                    },
                                    port,
                                })
                                .collect(),
                        })
                        .collect(),
                    routes: routes
                        .into_iter()
                        .filter(|_| !asks)
                        .map(|(names, alpn, servers)| ServiceRoute {
                            names,
                            alpn: alpn.into_iter().filter(|_| protocol == Protocol::Tls).map(str::to_owned).collect(),
                            servers: servers.into_iter().map(server).collect(),
                        })
                        .collect(),
                    proxies: proxies
                        .into_iter()
                        .map(|words| Network { address: of(words, 0x84), prefix: 128 })
                        .collect(),
                    default: default.into_iter().filter(|_| !asks).map(server).collect(),
                    next_hop: next_hop.or(asks.then_some([7, 8, 9])).map(|words| of(words, 0x81)),
                    patience: Duration::from_secs(patience),
                    reach,
                    pool: match reach {
                        Reach::Full => pool.into_iter().map(|words| of(words, 0x82)).collect(),
                        Reach::Mac => vec![of([3, 4, 5], 0x83)],
                        Reach::Nat => Vec::new(),
                    },
                    balance,
                    check: check.filter(|_| !asks).map(|(every, rise, fall)| HealthCheck {
                        every: Duration::from_secs(every),
                        rise,
                        fall,
                    }),
                    of_lan: turned.0 && reach == Reach::Full,
                    side: if turned.1 && reach == Reach::Full { Side::Wan } else { Side::Lan },
                    ..ServiceConfig::at(of([1, 2, 0x0a00_0000], n), port)
                }
            },
        );
        services.collect()
    })
}

/// A list of clients, of networks as they are read: without bits beyond their prefixes.
fn client_lists() -> impl Strategy<Value = ClientList> {
    let network = (any::<[u16; 8]>(), any::<bool>(), 0..=128u8).prop_map(|(groups, is_v4, prefix)| {
        let text = match is_v4 {
            true => format!("10.{}.{}.9/{}", groups[0] & 255, groups[1] & 255, prefix % 33),
            false => format!("{}/{prefix}", std::net::Ipv6Addr::from(groups)),
        };
        confparse::network(&text).expect("a network")
    });
    let file = "/[a-z\\\\\" #*/é-]{0,50}".prop_map(Into::into);
    (vec(network, 0..4), vec(file, 0..3)).prop_map(|(networks, files)| ClientList { networks, files })
}

fn limits() -> impl Strategy<Value = Limits> {
    (vec(0..=10_000_000u32, 6), 1..=256u32).prop_map(|(limits, network_factor)| Limits {
        source_rate: limits[0],
        source_flows: limits[1],
        network_factor,
        destination_rate: limits[2],
        destination_flows: limits[3],
        syn_acks: limits[4],
        destination_syn_acks: limits[5],
    })
}

fn failures() -> impl Strategy<Value = Failures> {
    let on_failure = select(vec![OnFailure::Closed, OnFailure::Untranslated, OnFailure::Open]);
    let text = || option::of("/[a-z\\\\\" #*/é-]{0,50}");
    (on_failure, select(vec![PortLoss::Exit, PortLoss::Wait]), text(), text()).prop_map(
        |(on_failure, port_loss, device, bypass_hook)| Failures {
            on_failure,
            port_loss,
            watchdog_device: device.map(Into::into),
            bypass_hook,
        },
    )
}

prop_compose! {
    fn configs()(
        engine in engines(),
        several in 1..=64usize,
        (shed, syns_in_kernel, link_loss) in (any::<bool>(), any::<bool>(), select(&[LinkLoss::Ignore, LinkLoss::Forward][..])),
        failures in failures(),
        (poll, fast_path) in (select(vec![Poll::Adaptive, Poll::Busy, Poll::Interrupt]), select(vec![FastPath::Off, FastPath::Auto, FastPath::Xdp, FastPath::Tc])),
        fast_path_flows in 1..=1usize << 20,
        front in (0..=1_000_000_000u32, seconds()).prop_map(|(rate, calm)| Front { rate, calm }),
        (user, group) in (accounts(), accounts()),
        port in 1..=u16::MAX,
        listen in prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)],
        control in prop_oneof![
            Just(Control::Auto),
            Just(Control::None),
            "/[a-z\\\\\" #*/é-]{0,50}".prop_map(|path| Control::At(path.into())),
        ],
        (control_group, control_read, control_operate, control_admin) in (accounts(), accounts(), accounts(), accounts()),
        state_dir in prop_oneof![
            Just(StateDir::Auto),
            Just(StateDir::None),
            Just(StateDir::Descriptors),
            "/[a-z\\\\\" #*/é-]{0,50}".prop_map(|path| StateDir::Below(path.into())),
        ],
        state_keep in seconds(),
        log_level in select(vec![LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace]),
        metrics in option::of((any::<IpAddr>(), 1..=u16::MAX).prop_map(SocketAddr::from)),
        (file, command) in (option::of("/[a-z\\\\\" #*/é-]{0,50}"), option::of("/[a-z\\\\\" #*/é-]{0,50}")),
        syslog in option::of(prop_oneof![
            "/[a-z\\\\\" #*/é-]{0,50}".prop_map(|path| Syslog::Socket(path.into())),
            (any::<IpAddr>(), 1..=u16::MAX).prop_map(|address| Syslog::Udp(address.into())),
        ]),
        (attack_begin, attack_end, capacity) in (1..=2_147_483_647u64, 1..=2_147_483_647u64, 0..=2_147_483_647u64),
        (command_timeout, attack_end_after, update_every) in (seconds(), seconds(), seconds()),
        commands in 1..=64usize,
        (block, allow, always) in (client_lists(), client_lists(), client_lists()),
        (rx, tx, bufs) in (1..=65536u32, 1..=65536u32, 1..=1_048_576u32),
        (rcvbuf, sndbuf) in (0..=2_147_483_647u32, 0..=2_147_483_647u32),
        ts_wscale_table in rising(0..=14u8, true, 20),
        ts_bits in 0..=12u8,
    ) -> Config {
        let lists = ClientLists { block, allow, always };
        let ldp = Ldp {
            netmap_nr_rx_slots: rx,
            netmap_nr_tx_slots: tx,
            socket_num_bufs: bufs,
            socket_rcvbuf: rcvbuf,
            socket_sndbuf: sndbuf,
        };
        let events = Events {
            file: file.map(Into::into),
            syslog,
            command,
            commands,
            command_timeout,
            attack_begin,
            attack_end,
            attack_end_after,
            update_every,
            capacity,
        };
        let is_turned = engine.services.iter().any(|own| own.of_lan || own.side == Side::Wan);
        let workers = if is_turned { 1 } else { several };
        Config { engine, workers, poll, fast_path, fast_path_flows, front, shed, syns_in_kernel, link_loss, failures, user, group, port, listen, control, control_group, control_read, control_operate, control_admin, state_dir, state_keep, metrics, log_level, lists, ldp, events, ts_wscale_table, ts_bits }
    }
}

/// Pieces that texts are made of.
const PIECES: &[&str] = &[
    "synproxyconf",
    "=",
    "{",
    "}",
    ";",
    ",",
    "\"",
    "\\",
    "/*",
    "*/",
    "//",
    "#",
    "\n",
    "\r\n",
    "\t",
    " ",
    "0",
    "14",
    "-1",
    "1s",
    "99999999999999999999",
    "mss",
    "wscale",
    "tsmss",
    "tswscale",
    "own_mss",
    "user",
    "early",
    "honest",
    "pen_frames",
    "held_frames",
    "destinations",
    "lists",
    "block",
    "block_files",
    "limits",
    "lists = { block = { \"192.0.2.0/24\" }; allow_files = { \"/a\" }; };",
    "limits = { source_rate = 9; };",
    "network",
    "port",
    "vlan",
    "services = { { address = \"192.0.2.1\"; port = 80; default = { \"192.0.2.2:80*2\" }; } };",
    "routes",
    "routes = { \"a.b *.c = 192.0.2.2:80 [2001:db8::1]:80\" };",
    "mac = { \"02:00:00:00:00:01\" };",
    "service_buffers = 4;",
    "reach = full;",
    "pool = { \"192.0.2.200\" };",
    "balance = hash;",
    "clients_on = both; servers_on = wan;",
    "check = 5; rise = 2; fall = 3;",
    "destinations = { { network = \"192.0.2.0/24\"; handshake = early; } };",
    "{ network = \"::/0\"; port = 1; timeouts = { connected = 9; }; }",
    "\"192.0.2.10:80\"",
    "\"192.0.2.0/24\"",
    "\"[2001:db8::/32]:1\"",
    "\"::ffff:1.2.3.4/97\"",
    "[",
    "]",
    ":",
    "timeouts",
    "connected",
    "mode",
    "auto",
    "stay",
    "ratehash",
    "size",
    "ldp",
    "test_connections",
    "haship",
    "enable",
    "quux",
    "\u{feff}",
    "\u{0}",
    "\u{1b}",
    "ä",
    "\u{202e}",
    "🦀",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_described_is_read_back(config in configs()) {
        read_back(&config);
    }

    #[test]
    fn any_text_has_an_answer(text in "\\PC*|(?s).{0,200}") {
        answers(&text);
        answers(&format!("synproxyconf = {{ {text} }};"));
    }

    #[test]
    fn any_pieces_have_an_answer(pieces in vec(select(PIECES), 0..60)) {
        answers(&pieces.concat());
        answers(&format!("synproxyconf = {{ {} }};", pieces.join(" ")));
    }

    #[test]
    fn a_mutated_file_has_an_answer(
        older in any::<bool>(),
        edits in vec((any::<Index>(), 0..12usize, select(PIECES)), 1..6),
    ) {
        let mut text: Vec<char> = if older { OLDER } else { SAMPLE }.chars().collect();
        for (at, cut, piece) in edits {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.chars());
        }
        answers(&text.into_iter().collect::<String>());
    }
}

#[test]
fn a_file_cut_off_anywhere_has_an_answer() {
    // The last of all to end, so each core takes its share.
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                for text in [SAMPLE, OLDER] {
                    text.char_indices().skip(first).step_by(threads).for_each(|(end, _)| answers(&text[..end]));
                }
            });
        }
    });
}

#[test]
fn deep_nesting_and_giant_files_have_an_answer() {
    let n = confparse::MAX_TEXT;
    for piece in
        ["{", "synproxyconf={", "a={", "/*", "(", "\"", "a", "0", "-", "a;", "a=1;", "#", "# \n", "\n", "mss={0,", "🦀"]
    {
        let most = n / piece.len() - 8;
        answers(&piece.repeat(most));
        answers(&format!("synproxyconf={{{}", piece.repeat(most)));
        answers(&format!("synproxyconf={{mss={{{}", piece.repeat(most)));
    }
    answers(&format!("synproxyconf={{mss={{{}}};}};", "9,".repeat(n / 2 - 30)));
    answers(&format!("synproxyconf={{early={{{}}};}};", "\"1.2.3.4/9\",".repeat(n / 12 - 30)));
    answers(&format!("synproxyconf={{destinations={{{}}};}};", "{network=\"1.2.3.4/9\";a=1;},".repeat(n / 27 - 30)));
    answers(&format!("synproxyconf={{destinations={{{}", "{".repeat(n - 60)));
    for value in ["\"x", "x", "9", "1s", "{9,"] {
        for key in ["user", "early", "port", "mss", "sackmode", "ldp", "test_connections", "quux", "conntablesize"] {
            answers(&format!("synproxyconf={{{key}={value}{}\";}};", "x".repeat(n - 60)));
            answers(&format!("synproxyconf={{{key}={value}{};}};", "x".repeat(n - 60)));
            answers(&format!("synproxyconf={{{key}={value}{};}};", "9".repeat(n - 60)));
        }
    }
}
