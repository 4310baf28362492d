//! Translates between the engine's types and those of the control protocol and the page: connections, destinations, explanations, top talkers,
//! filters.

use crate::metrics::targets::{Baseline, Levels, Suggestion, TargetStatus};
use crate::metrics::top_talkers::{Name, Talker, TalkerReport};
use crate::process::clock;
use crate::process::link_monitor::LinkReport;
use ::control::{
    Changed, Counted, DestinationMode, Explained, Flow, FlowEnd, FlowFilter, Link, Role, Sent, ServiceServer,
    ServiceState, Suggested, Why,
};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tcpstate::config::Network;
use tcpstate::wire::Addr;
use tcpstate::{
    Connection, DropReason, End, Event, Explanation, Field, Filter, ServerStatus, ServiceStatus, Side, State, Verdict,
};

/// The longest frame that is explained, in bytes: what fits a request.
pub const MAX_FRAME: usize = 10_240;

/// The link of a port.
pub fn link(report: &LinkReport, now: Instant) -> Link {
    Link {
        condition: report.condition.into(),
        since: now.saturating_duration_since(report.since).as_secs_f64(),
        lost: report.lost,
    }
}

/// The engine's filter for the connections that a client asks for.
///
/// # Errors
/// What is wrong with a network or a state.
pub fn filter(asked: &FlowFilter) -> Result<Filter, String> {
    let states = asked.state.as_deref().map_or(&[][..], State::named);
    if let Some(name) = &asked.state
        && states.is_empty()
    {
        return Err(format!("{name:?} is no state; these are: {}", State::ALL.map(State::label).join(", ")));
    }
    Ok(Filter {
        lan: asked.lan.as_deref().map(network).transpose()?,
        wan: asked.wan.as_deref().map(network).transpose()?,
        lan_port: asked.lan_port,
        wan_port: asked.wan_port,
        states,
    })
}

/// Parses an address, or an address with a prefix length behind a slash.
fn network(text: &str) -> Result<Network, String> {
    let wrong = || format!("{text:?} is neither an address nor a network like 192.0.2.0/24");
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let (bits, mapped, most) = match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 0, 128),
    };
    let prefix = prefix.unwrap_or(most);
    if prefix > most {
        return Err(format!("{text:?}: such an address has {most} bits"));
    }
    Ok(Network { address: words(bits), prefix: mapped + prefix })
}

fn words(bits: u128) -> Addr {
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

fn side(side: Side) -> ::control::Side {
    match side {
        Side::Lan => ::control::Side::Lan,
        Side::Wan => ::control::Side::Wan,
    }
}

/// The engine's type for a side.
pub fn engine_side(side: ::control::Side) -> Side {
    match side {
        ::control::Side::Lan => Side::Lan,
        ::control::Side::Wan => Side::Wan,
    }
}

/// Describes a connection of this worker to a client of this role.
pub fn flow(connection: &Connection, worker: usize, role: Role) -> Flow {
    let shift = |shift| (role == Role::Admin).then_some(shift);
    let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let end = |End { scale, told, window, ttl }: End| FlowEnd { scale, told, window, hop_limit: ttl };
    Flow {
        wan: connection.key.socket(Side::Wan).to_string(),
        lan: connection.key.socket(Side::Lan).to_string(),
        vlan: connection.key.vlan.identifiers().collect(),
        state: connection.status.state.label().to_owned(),
        status: connection.status.to_string(),
        proxied: connection.status.proxied,
        opened_by: connection.opened_by.map(side),
        age: seconds(connection.age),
        idle: connection.idle.map(seconds),
        due: seconds(connection.due),
        wan_end: end(connection.endpoint[Side::Wan]),
        lan_end: end(connection.endpoint[Side::Lan]),
        mss: connection.mss,
        sack: connection.sack,
        timestamps: connection.timestamps,
        sequence_shift: shift(connection.seq_delta),
        timestamp_shift: shift(connection.ts_delta),
        held: connection.held,
        worker,
        server: connection.redirect.map(|key| key.socket(Side::Lan).to_string()),
        client: connection.told.map(|key| key.socket(Side::Wan).to_string()),
        source: connection.redirect.map(|key| key.socket(Side::Wan).to_string()),
    }
}

/// Parses a frame in hexadecimal digits, with blanks and colons anywhere between bytes.
///
/// # Errors
/// What is wrong with them.
pub fn frame(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace() && *byte != b':').collect();
    let wrong = || "a frame is written in pairs of hexadecimal digits".to_owned();
    let (pairs, []) = digits.as_chunks::<2>() else { return Err(wrong()) };
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    match bytes.ok_or_else(wrong)? {
        bytes if bytes.is_empty() => Err("a frame has at least one byte".to_owned()),
        bytes if bytes.len() > MAX_FRAME => Err(format!("a frame of more than {MAX_FRAME} bytes")),
        bytes => Ok(bytes),
    }
}

/// Describes what this worker's engine does with a frame that came in by `from` as `before_engine`, and that it left as `after_engine`. A client
/// below [`Role::Admin`] gets no number but those of the frame itself and of configuration: the others are cookies, or belong to a connection.
pub fn explained(
    worker: usize,
    from: Side,
    before_engine: &[u8],
    after_engine: &[u8],
    explanation: Explanation,
    role: Role,
) -> Explained {
    let Explanation { mut steps, verdict, events, before, after, mut sent, released } = explanation;
    let leaves_by = match verdict {
        Verdict::Forward | Verdict::Hold(_) => from,
        Verdict::Reflect | Verdict::Drop(_) => from.other(),
    };
    let (name, reason, meaning) = match verdict {
        Verdict::Forward => ("forward", None, format!("it leaves by the {} port", port(from.other()))),
        Verdict::Reflect => ("reflect", None, format!("the answer goes back out of the {} port", port(from))),
        Verdict::Hold(_) => ("hold", None, "it is held until its server answers".to_owned()),
        Verdict::Drop(reason) => ("drop", Some(reason.label().to_owned()), reason.meaning().to_owned()),
    };
    let counted = |&(event, count): &(Event, u64)| Counted {
        name: event.label().to_owned(),
        count,
        meaning: event.meaning().to_owned(),
    };
    let received = tcpstate::fields(from, before_engine);
    let mut fields = match verdict {
        Verdict::Drop(_) => compared(&received, &received),
        _ => compared(&received, &tcpstate::fields(leaves_by, after_engine)),
    };
    if role != Role::Admin {
        let own: BTreeSet<u64> =
            received.iter().flat_map(|(_, value)| numbers(value)).map(|(_, number)| number).collect();
        steps.iter_mut().for_each(|step| *step = withhold(step, &own).into_owned());
        for field in fields.iter_mut().filter(|field| field.after != field.before) {
            let is_secret = ["sequence number", "acknowledgement", "timestamps", "SACK blocks"].contains(&&*field.name);
            field.after = field.after.take().map(|after| if is_secret { WITHHELD.to_owned() } else { after });
        }
        sent.clear();
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Explained {
        worker,
        steps,
        verdict: name.to_owned(),
        reason,
        meaning,
        counted: events.iter().map(counted).collect(),
        fields,
        sent: sent.iter().map(|(to, bytes)| Sent { to: side(*to), frame: hex(bytes) }).collect(),
        before: before.map(|connection| flow(&connection, worker, role)),
        after: after.map(|connection| flow(&connection, worker, role)),
        released,
    }
}

/// Stands for a number that a client may not see.
const WITHHELD: &str = "(withheld)";

/// The largest number that is shown to everybody, whatever it is: ports, sizes and counts. A cookie is below it once in 65536 times.
const PLAIN: u64 = 65_535;

/// The decimal and hexadecimal (`0x…`) numbers in a text, each with its place.
fn numbers(text: &str) -> impl Iterator<Item = (std::ops::Range<usize>, u64)> {
    let mut at = 0;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).map(move |word| {
        let from = at;
        at += word.len() + text[from + word.len()..].chars().next().map_or(0, char::len_utf8);
        (from..from + word.len(), word)
    });
    words.filter_map(|(range, word)| {
        let number = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        number.ok().map(|number| (range, number))
    })
}

/// The text without the numbers that are neither plain nor among `own`.
fn withhold<'t>(text: &'t str, own: &BTreeSet<u64>) -> Cow<'t, str> {
    let secret: Vec<_> =
        numbers(text).filter(|(_, number)| *number > PLAIN && !own.contains(number)).map(|(range, _)| range).collect();
    let mut text = Cow::Borrowed(text);
    for range in secret.into_iter().rev() {
        text.to_mut().replace_range(range, WITHHELD);
    }
    text
}

fn port(side: Side) -> &'static str {
    match side {
        Side::Lan => "LAN",
        Side::Wan => "WAN",
    }
}

/// The fields of a frame before and after the engine, one row each.
fn compared(before: &[Field], after: &[Field]) -> Vec<Changed> {
    let find =
        |fields: &[Field], name: &str| fields.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone());
    let added = after.iter().filter(|(name, _)| before.iter().all(|(own, _)| own != name));
    let names = before.iter().chain(added).map(|(name, _)| *name);
    names.map(|name| Changed { name: name.to_owned(), before: find(before, name), after: find(after, name) }).collect()
}

/// The first talkers of either list.
pub fn talkers(report: &TalkerReport) -> [Vec<::control::Talker>; 2] {
    [&report.sources, &report.targets].map(|talkers| talkers.iter().take(LISTED).map(talker).collect())
}

/// How many talkers a client gets, of each kind.
const LISTED: usize = 32;

fn talker(Talker { name, frames, surplus, syns, bytes }: &Talker) -> ::control::Talker {
    let Name { address, v6, port } = *name;
    let bits = address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
    let ip = if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
    let name = if port == 0 { ip.to_string() } else { SocketAddr::new(ip, port).to_string() };
    ::control::Talker { name, frames: *frames, surplus: *surplus, syns: *syns, bytes: *bytes }
}

/// The refusal of a request that is not well-formed.
pub fn malformed(what: String) -> ::control::Reply {
    ::control::Reply::refuse(Why::Malformed, what)
}

/// An address as the engine has it.
pub fn engine_address(address: IpAddr) -> [u32; 4] {
    let bits = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
}

fn socket_address(address: &[u32; 4], v6: bool, port: u16) -> SocketAddr {
    let bits = address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
    let ip = if v6 { IpAddr::V6(bits.into()) } else { IpAddr::V4((bits as u32).into()) };
    SocketAddr::new(ip, port)
}

/// Services as all workers know them together: what they have counted is added up, and the first is taken at its word for the rest.
pub fn services(of_workers: impl Iterator<Item = Vec<ServiceStatus>>) -> Vec<ServiceState> {
    let mut all: Vec<ServiceState> = Vec::new();
    for services in of_workers {
        for own in services.iter().map(service) {
            // Between two policies workers may know different ones.
            let Some(known) = all.iter_mut().find(|known| known.service == own.service) else {
                all.push(own);
                continue;
            };
            known.opened += own.opened;
            known.routed += own.routed;
            known.refused += own.refused;
            known.timed_out += own.timed_out;
            for server in own.servers {
                match known.servers.iter_mut().find(|known| known.server == server.server) {
                    None => known.servers.push(server),
                    Some(known) => {
                        known.connections += server.connections;
                        known.given += server.given;
                    }
                }
            }
        }
    }
    all
}

fn service(status: &ServiceStatus) -> ServiceState {
    let ServiceStatus { address, port, v6, vlan, protocol, reach, counts, servers } = status;
    let tag = if *vlan == 0 { String::new() } else { format!(" vlan {vlan}") };
    ServiceState {
        service: format!("{}{tag}", socket_address(address, *v6, *port)),
        protocol: protocol.label().to_owned(),
        reach: reach.label().to_owned(),
        opened: counts.opened,
        routed: counts.routed,
        refused: counts.refused,
        timed_out: counts.timeouts,
        servers: servers.iter().map(server).collect(),
    }
}

fn server(status: &ServerStatus) -> ServiceServer {
    let ServerStatus { address, port, v6, weight, is_up, is_checked, is_drained, is_known, connections, given } =
        *status;
    ServiceServer {
        server: socket_address(&address, v6, port).to_string(),
        up: is_up,
        checked: is_checked,
        drained: is_drained || weight == 0,
        known: is_known,
        weight,
        connections: connections.into(),
        given,
    }
}

fn those_there_were(counts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counts.filter(|&(_, count)| count > 0).map(|(label, count)| (label.to_owned(), count)).collect()
}

/// A destination and its mode.
pub fn destination(status: &TargetStatus) -> DestinationMode {
    let TargetStatus { target, wanted, present, since, switches, counts, all, in_flight, syn_rate, .. } = status;
    let drops = DropReason::ALL.iter().map(|&reason| (reason.label(), all.dropped(reason)));
    let events = Event::ALL.iter().map(|&event| (event.label(), all.happened(event)));
    DestinationMode {
        destination: target.to_string(),
        mode: wanted.label().to_owned(),
        now: present.label().to_owned(),
        since: clock::now().since(*since).as_secs_f64(),
        switches: *switches,
        half_open: counts.half_open,
        in_flight: *in_flight,
        syn_rate: *syn_rate,
        passed: counts.passed,
        answered: counts.answered,
        proved: counts.proved,
        limited: counts.limited,
        drops: those_there_were(drops),
        events: those_there_were(events),
    }
}

/// What was usual of a destination.
pub fn suggested(status: &TargetStatus) -> Suggested {
    let Baseline { half_open, syn_rate } = &status.baseline;
    let levels = |of: &Levels| [of.percentile(500), of.percentile(990), of.percentile(999), of.peak()];
    let Suggestion { enter_half_open, leave_half_open, enter_syn_rate } = status.baseline.suggest();
    Suggested {
        destination: status.target.to_string(),
        seconds: half_open.seconds(),
        half_open: levels(half_open),
        syn_rate: levels(syn_rate),
        enter_half_open,
        leave_half_open,
        enter_syn_rate,
    }
}

/// What is done for new connections to a destination.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Destination {
    /// The destination as the configuration names it; `all` for every other.
    pub destination: String,
    /// The mode: `cache`, `cookie`, or `pass`.
    pub mode: String,
    /// For how many seconds, where that is known.
    pub since: Option<f64>,
    /// Half-open connections to it, where they are counted.
    pub half_open: Option<u64>,
}

/// What the page shows of a target.
pub fn shown(status: &TargetStatus) -> Destination {
    Destination {
        destination: status.target.to_string(),
        mode: status.present.label().to_owned(),
        since: Some(clock::now().since(status.since).as_secs_f64()),
        half_open: Some(status.counts.half_open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_they_are_written() {
        let read = |text| network(text).map(|network| (network.address, network.prefix));
        assert_eq!(read("192.0.2.1"), Ok(([0, 0, 0xffff, 0xc000_0201], 128)));
        assert_eq!(read("192.0.2.0/24"), Ok(([0, 0, 0xffff, 0xc000_0200], 120)));
        assert_eq!(read("0.0.0.0/0").map(|(_, prefix)| prefix), Ok(96));
        assert_eq!(read("2001:db8::/32"), Ok(([0x2001_0db8, 0, 0, 0], 32)));
        for wrong in ["", "/", "192.0.2.0/33", "2001:db8::/129", "192.0.2.0/-1", "server", "192.0.2.0/24/1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn frames_are_read_as_tools_print_them() {
        assert_eq!(frame("00ff Aa:1b\n"), Ok(vec![0, 255, 0xaa, 0x1b]));
        for wrong in ["", "0", "0g", "+1", "00 é0"] {
            assert!(frame(wrong).is_err(), "{wrong:?}");
        }
        assert!(frame(&"00".repeat(MAX_FRAME)).is_ok());
        assert!(frame(&"00".repeat(MAX_FRAME + 1)).is_err());
    }

    #[test]
    fn a_state_is_named_as_it_is_listed() {
        for state in State::ALL {
            let asked = FlowFilter { state: Some(state.label().to_owned()), ..FlowFilter::default() };
            assert_eq!(filter(&asked).map(|filter| filter.states.contains(&state)), Ok(true));
        }
        let asked = FlowFilter { state: Some("free".to_owned()), ..FlowFilter::default() };
        assert!(filter(&asked).unwrap_err().contains("syn-cached"));
    }

    #[test]
    fn numbers_that_are_neither_plain_nor_ones_own_are_withheld() {
        let own = BTreeSet::from([100_000]);
        for (text, shown) in [
            ("seq 100000, left are 1999 of 65535", "seq 100000, left are 1999 of 65535"),
            ("sequence number 0xd1f70fd2, TSval 1591543772", "sequence number (withheld), TSval (withheld)"),
            ("adds 0x00012345: ack=4294967295,", "adds (withheld): ack=(withheld),"),
            (
                "[2001:db8::1]:443 > 198.51.100.7:40000 é 99999999",
                "[2001:db8::1]:443 > 198.51.100.7:40000 é (withheld)",
            ),
            ("TCPv4 in 5s", "TCPv4 in 5s"),
            ("", ""),
        ] {
            assert_eq!(withhold(text, &own), shown);
        }
    }

    #[test]
    fn a_field_that_is_removed_and_one_that_is_added_have_a_row_each() {
        let field = |name, value: &str| (name, value.to_owned());
        let rows = compared(&[field("ack", "1"), field("MSS", "1460")], &[field("ack", "2"), field("window", "3")]);
        let rows: Vec<_> =
            rows.iter().map(|row| (row.name.as_str(), row.before.as_deref(), row.after.as_deref())).collect();
        assert_eq!(rows, [("ack", Some("1"), Some("2")), ("MSS", Some("1460"), None), ("window", None, Some("3"))]);
    }
}
