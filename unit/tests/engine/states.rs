//! Every state against every kind of segment, from both sides: the diagram of states and the tables a reviewer reads (`docs/states.md`),
//! both written by what the engine did.
//!
//! `STATES=accept cargo test -p unit --test engine states::` writes it; without it a difference fails the test. It is compared byte by byte
//! here, because what it is compared with is a document people read as it is, not a file of a test's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use tcpstate::config::Handshake;
use tcpstate::{Config, ConnectionStatus, Event, Proxy, Side, State, Verdict, Words};
use unit::script::{
    ACK, CLIENT_ISN, Complaint, ECE, FIN, Host, Mode, PSH, RST, SERVER_ISN, SYN, Seg, Terms, URG, World, ack, data,
    fin, fragment, icmp_error_raw, packet_of, read, rst, rst_ack, segment, syn, syn_ack, tcp_at,
};

/// The initial sequence number of a second SYN of the client with the same 4-tuple.
const NEW_ISN: u32 = CLIENT_ISN.wrapping_add(0x1000_0000);
/// What an end acknowledges that has got nothing from the other.
const NONSENSE: u32 = 0x1357_9BDF;

/// Where one end stands, in its own numbers.
#[derive(Clone, Copy)]
struct View {
    isn: u32,
    /// The number of the next byte it sends.
    next: u32,
    /// The number it expects of its peer.
    expected: u32,
    /// The number of the peer's last segment, which is in flight.
    flying: u32,
}

/// A world in which a connection has come to some state.
struct Scene {
    world: World,
    client: Host,
    server: Host,
    wan: View,
    lan: View,
    /// Our number, where we answered for the server.
    ours: Option<u32>,
    /// Our number for a second SYN.
    ours_again: Option<u32>,
}

/// A kind of segment: its name, the label under which the diagram groups it, and the frame.
type Arrival = (&'static str, &'static str, Vec<u8>);

/// A state to be in: its name, how it came about, and the way there.
type Stage = (&'static str, &'static str, fn() -> Scene);

const STAGES: &[Stage] = &[
    ("No connection", "No segment with this 4-tuple has come; the SYN cache is on.", || fresh(|_| ())),
    (
        "No connection, and the time of adoption",
        "No segment with this 4-tuple has come; the box has just started.",
        || fresh(adopting),
    ),
    ("No connection, a cookie outstanding", "The box has answered the client's SYN with the SYN cache off.", || {
        answered(|config| {
            remembering(config);
            config.syn_cache_max = 0;
        })
    }),
    ("SynCached", "The box has answered the client's SYN and keeps it in the SYN cache.", || answered(remembering)),
    (
        "ServerTried",
        "The client has reset what the box's SYN-ACK opened, and acknowledged its number; the box has sent its SYN to the server.",
        server_tried,
    ),
    ("ServerSynSent", "The client has proved its address; the box has sent its SYN to the server.", || {
        server_syn_sent(|_| ())
    }),
    ("ServerSynSent, data held", "The same with early handshakes, and the client has sent 100 bytes.", held),
    ("AckWithheld", "The server has sent its SYN-ACK; the client's round-trip time is unknown.", owed),
    ("WindowPending", "The box has sent the server its ACK; the client has sent nothing since.", window_pending),
    ("Established", "Either end has sent 200 bytes, 100 of which are acknowledged.", established),
    (
        "HandedDown",
        "As Established, and the kernel forwards the usual segments of an end once what came before has left.",
        handed_down,
    ),
    (
        "Established, a new SYN answered",
        "A SYN with another number came, got a challenge ACK, and came again.",
        reopened_alive,
    ),
    ("FinWait, the client first", "The client has sent FIN.", || closing(&[Side::Wan])),
    ("FinWait, the server first", "The server has sent FIN.", || closing(&[Side::Lan])),
    ("LastAck", "Both ends have sent FIN; neither FIN is acknowledged.", || closing(&Side::BOTH)),
    (
        "LastAck, one acknowledgement missing",
        "Both ends have sent FIN; the server has acknowledged the client's.",
        last_owed,
    ),
    ("TimeWait", "Both FINs are acknowledged.", time_wait),
    (
        "TimeWait, a new SYN answered",
        "As TimeWait, and the client has sent a new SYN, which the box has answered.",
        reopened_over,
    ),
    ("Reset", "The client has reset the connection.", was_reset),
    (
        "Reset, the number among the bytes in flight",
        "As Established, and a RST of the client came with a number below that of bytes it has sent.",
        reset_in_doubt,
    ),
    ("SynSent, from the LAN", "The LAN has sent a SYN.", || syn_sent(Side::Lan)),
    ("SynSent, from the WAN", "The WAN has sent a signed SYN.", || syn_sent(Side::Wan)),
    ("SynReceived, from the LAN", "The WAN has sent its SYN-ACK.", || syn_received(Side::Lan)),
    ("SynReceived, from the WAN", "The LAN has sent its SYN-ACK to the WAN's signed SYN.", || syn_received(Side::Wan)),
    ("Established, passed through, from the LAN", "Either end has sent 200 bytes.", || passed(Side::Lan)),
    ("Established, passed through, from the WAN", "Either end has sent 200 bytes.", || passed(Side::Wan)),
    ("Unconfirmed", "The LAN has sent a segment of an unknown connection within the time of adoption.", unconfirmed),
    (
        "Unconfirmed, a new SYN answered",
        "As Unconfirmed, and a client has sent a SYN, which the box has answered.",
        reopened_unconfirmed,
    ),
    ("Established, adopted", "As Unconfirmed, and the WAN has sent a matching segment.", adopted),
];

fn adopting(config: &mut Config) {
    config.adopt_grace = Duration::from_secs(3600);
}

/// As the program's default is.
fn remembering(config: &mut Config) {
    config.closed_memory = Duration::from_secs(10);
}

fn server_tried() -> Scene {
    let mut scene = answered(remembering);
    scene.world.after_ms(50);
    scene.goes(Side::Wan, &rst_ack(scene.wan.next, scene.wan.expected));
    scene.lan.flying = CLIENT_ISN;
    scene
}

fn fresh(change: impl FnOnce(&mut Config)) -> Scene {
    let (world, client, server) = Mode::V4.cached().world_with(change);
    // Long enough after the start that nothing is presumed of SYNs answered before it.
    world.after_secs(140);
    let view = |isn: u32, expected| View { isn, next: isn.wrapping_add(1), expected, flying: expected };
    let wan = view(CLIENT_ISN, NONSENSE);
    let lan = view(SERVER_ISN, CLIENT_ISN + 1);
    Scene { world, client, server, wan, lan, ours: None, ours_again: None }
}

impl Scene {
    /// A segment that must do what the stage needs; what comes out is not looked at.
    fn goes(&self, side: Side, seg: &Seg) -> Vec<(Side, Vec<u8>)> {
        let verdict = self.world.inject(side, &self.host(side).frame(seg));
        assert!(!matches!(verdict, Verdict::Drop(_)), "{seg} on the way to a state: {verdict:?}");
        self.world.discard()
    }

    fn host(&self, side: Side) -> &Host {
        if side == Side::Wan { &self.client } else { &self.server }
    }

    fn view(&self, side: Side) -> View {
        if side == Side::Wan { self.wan } else { self.lan }
    }

    fn view_mut(&mut self, side: Side) -> &mut View {
        if side == Side::Wan { &mut self.wan } else { &mut self.lan }
    }

    /// `side` sends so many bytes and acknowledges all but the last `unacked` bytes it has been sent; the peer now expects what follows.
    fn sends(&mut self, side: Side, len: usize, unacked: u32) {
        let View { next, expected, .. } = self.view(side);
        self.goes(side, &data(next, expected.wrapping_sub(unacked), len));
        self.sent(side, len as u32);
    }

    fn finishes(&mut self, side: Side) {
        let View { next, expected, .. } = self.view(side);
        self.goes(side, &fin(next, expected));
        self.sent(side, 1);
    }

    fn sent(&mut self, side: Side, len: u32) {
        let view = self.view_mut(side);
        view.next = view.next.wrapping_add(len);
        let peer = self.view_mut(side.other());
        peer.flying = peer.expected;
        peer.expected = peer.expected.wrapping_add(len);
    }

    /// What is added to the server's numbers on their way out.
    fn outward(&self) -> u32 {
        self.ours.map_or(0, |ours| ours.wrapping_sub(SERVER_ISN))
    }

    fn status(&self) -> Option<ConnectionStatus> {
        self.world.status(Side::Wan, &self.client.frame(&ack(0, 0)))
    }

    /// A number as the distance from the initial sequence number of the host that chose it.
    fn symbol(&self, number: u32) -> String {
        // How far a number may be from whose it is: another cookie may lie anywhere.
        let (near, far) = (200_000, 0x0200_0000);
        let bases = [
            ("c'", Some(NEW_ISN), far),
            ("b'", self.ours_again, near),
            ("c", Some(CLIENT_ISN), far),
            ("s", Some(SERVER_ISN), far),
            ("b", self.ours, near),
        ];
        if number == 0 {
            return "0".to_owned();
        }
        for (name, base, most) in bases {
            let Some(base) = base else { continue };
            match number.wrapping_sub(base) as i32 {
                0 => return name.to_owned(),
                over if (1..most).contains(&over) => return format!("{name}+{over}"),
                under @ -2000..0 => return format!("{name}{under}"),
                _ => {}
            }
        }
        "another".to_owned()
    }
}

fn offer(seg: Seg) -> Seg {
    Terms::windows(1460).on(seg, (0, 0))
}

fn answered(change: impl FnOnce(&mut Config)) -> Scene {
    let mut scene = fresh(change);
    let answer = scene.goes(Side::Wan, &offer(syn(CLIENT_ISN)));
    let ours = read(&answer[0].1, scene.world.now()).expect("a SYN-ACK").seq;
    scene.ours = Some(ours);
    scene.wan.expected = ours.wrapping_add(1);
    scene.wan.flying = ours;
    scene
}

fn server_syn_sent(change: impl FnOnce(&mut Config)) -> Scene {
    let mut scene = answered(change);
    scene.world.after_ms(50);
    scene.goes(Side::Wan, &ack(scene.wan.next, scene.wan.expected));
    scene.lan.flying = CLIENT_ISN;
    scene
}

fn held() -> Scene {
    let mut scene = server_syn_sent(|config| config.handshake = Handshake::Early);
    scene.goes(Side::Wan, &data(scene.wan.next, scene.wan.expected, 100));
    scene.wan.next = scene.wan.next.wrapping_add(100);
    scene
}

fn owed() -> Scene {
    // Without cookie's clock or an entry of the cache, the distance is not known.
    let scene = server_syn_sent(|config| config.syn_cache_max = 0);
    scene.goes(Side::Lan, &offer(syn_ack(SERVER_ISN, scene.lan.expected)));
    scene
}

/// The longest time for which the ACK is withheld has passed; the next timer is a second later.
fn window_pending() -> Scene {
    let scene = owed();
    scene.world.after_ms(720);
    scene.world.discard();
    scene
}

fn established() -> Scene {
    let mut scene = owed();
    scene.goes(Side::Wan, &ack(scene.wan.next, scene.wan.expected));
    exchange(&mut scene);
    scene
}

fn handed_down() -> Scene {
    let mut scene = owed();
    let words = Words::zeroed(Proxy::words_to_hand_down(8));
    scene.world.operate(|proxy, _| proxy.hand_down_in(words));
    scene.goes(Side::Wan, &ack(scene.wan.next, scene.wan.expected));
    exchange(&mut scene);
    scene
}

/// Either end sends 100 bytes twice; the first 100 are acknowledged.
fn exchange(scene: &mut Scene) {
    for unacked in [0, 100] {
        for side in [Side::Wan, Side::Lan] {
            scene.sends(side, 100, unacked);
        }
    }
}

fn syn_again(scene: &mut Scene) {
    let answer = scene.goes(Side::Wan, &offer(syn(NEW_ISN)));
    let answer = read(&answer[0].1, scene.world.now()).expect("an answer");
    scene.ours_again = (answer.flags & SYN != 0).then_some(answer.seq);
}

fn reopened_alive() -> Scene {
    let mut scene = established();
    syn_again(&mut scene);
    scene.world.after_secs(1);
    syn_again(&mut scene);
    assert!(scene.ours_again.is_some(), "the second SYN is answered");
    scene
}

fn closing(sides: &[Side]) -> Scene {
    let mut scene = established();
    for &side in sides {
        let View { next, expected, .. } = scene.view(side);
        let acked = expected.wrapping_sub(u32::from(sides[0] != side));
        scene.goes(side, &fin(next, acked));
        scene.sent(side, 1);
    }
    scene
}

fn last_owed() -> Scene {
    let mut scene = established();
    scene.finishes(Side::Wan);
    scene.finishes(Side::Lan);
    scene
}

fn time_wait() -> Scene {
    let scene = last_owed();
    scene.goes(Side::Wan, &ack(scene.wan.next, scene.wan.expected));
    scene
}

fn reopened_over() -> Scene {
    let mut scene = time_wait();
    syn_again(&mut scene);
    scene
}

fn was_reset() -> Scene {
    let scene = established();
    scene.goes(Side::Wan, &rst(scene.wan.next));
    scene
}

fn reset_in_doubt() -> Scene {
    let scene = established();
    scene.goes(Side::Wan, &rst(scene.wan.next.wrapping_sub(50)));
    scene
}

fn syn_sent(opener: Side) -> Scene {
    let mut scene = fresh(|_| ());
    let isn = scene.view(opener).isn;
    // RFC 2385: a signature of sixteen bytes.
    let signature = [&[19, 18][..], &[0x5A; 16]].concat();
    let first = if opener == Side::Wan { syn(isn).mss(1460).raw(&signature) } else { offer(syn(isn)) };
    scene.goes(opener, &first);
    for (side, other) in [(Side::Wan, scene.lan.isn), (Side::Lan, scene.wan.isn)] {
        let view = scene.view_mut(side);
        (view.expected, view.flying) = (other.wrapping_add(1), other);
    }
    scene
}

fn syn_received(opener: Side) -> Scene {
    let scene = syn_sent(opener);
    let View { isn, expected, .. } = scene.view(opener.other());
    scene.goes(opener.other(), &offer(syn_ack(isn, expected)));
    scene
}

fn passed(opener: Side) -> Scene {
    let mut scene = syn_received(opener);
    let View { next, expected, .. } = scene.view(opener);
    scene.goes(opener, &ack(next, expected));
    exchange(&mut scene);
    scene
}

fn unconfirmed() -> Scene {
    let mut scene = fresh(adopting);
    scene.wan = View { isn: CLIENT_ISN, next: CLIENT_ISN + 201, expected: SERVER_ISN + 201, flying: SERVER_ISN + 101 };
    scene.lan = View { isn: SERVER_ISN, next: SERVER_ISN + 101, expected: CLIENT_ISN + 201, flying: CLIENT_ISN + 101 };
    scene.goes(Side::Lan, &data(SERVER_ISN + 101, CLIENT_ISN + 201, 100));
    scene.lan.next = SERVER_ISN + 201;
    scene
}

fn reopened_unconfirmed() -> Scene {
    let mut scene = unconfirmed();
    syn_again(&mut scene);
    scene
}

fn adopted() -> Scene {
    let mut scene = unconfirmed();
    scene.sends(Side::Wan, 100, 0);
    scene
}

/// Everything that can come from one side.
fn arrivals(scene: &Scene, side: Side) -> Vec<Arrival> {
    let host = scene.host(side);
    let View { isn, next, expected, flying } = scene.view(side);
    let (at, known) = (|by: u32| next.wrapping_add(by), |by: u32| expected.wrapping_add(by));
    let before = |by: u32| next.wrapping_sub(by);
    let damaged = |seg: Seg| {
        let mut frame = host.frame(&seg);
        let at = 14 + tcp_at(packet_of(&frame)) + 16;
        frame[at] ^= 0x55;
        frame
    };
    let quote = |seq: u32, complaint| {
        // What the peer sent, as it looked on this side.
        let mut ends = host.ends();
        let here = ends;
        (ends.src, ends.dst, ends.sport, ends.dport) = (here.dst, here.src, here.dport, here.sport);
        let quoted = scene.world.host(side, ends).frame(&data(seq, next, 100));
        icmp_error_raw(&here, 0, complaint, &packet_of(&quoted)[..28], &[])
    };
    let whole = host.frame(&data(next, expected, 100));
    let mut all: Vec<Arrival> = Vec::new();
    let mut seg = |name, word, seg: Seg| all.push((name, word, host.frame(&seg)));
    seg("SYN, the number of the first", "SYN", offer(syn(isn)));
    seg("SYN, another number", "SYN", offer(syn(NEW_ISN)));
    seg("SYN that asks for ECN", "SYN", offer(syn(NEW_ISN)).flags(ECE | unit::script::CWR));
    seg("SYN-ACK", "SYN-ACK", offer(syn_ack(isn, expected)));
    seg("SYN-ACK, wrong acknowledgement", "SYN-ACK", offer(syn_ack(isn, known(77_777))));
    seg("SYN-ACK, another number", "SYN-ACK", offer(syn_ack(isn.wrapping_add(4_000_000), expected)));
    if let (Side::Wan, Some(ours)) = (side, scene.ours) {
        seg("the ACK of the handshake", "ACK", ack(isn.wrapping_add(1), ours.wrapping_add(1)));
        seg("the handshake's ACK with data", "data", data(isn.wrapping_add(1), ours.wrapping_add(1), 50));
        seg("the handshake's keepalive", "ACK", ack(isn, ours.wrapping_add(1)));
    }
    if let (Side::Wan, Some(again)) = (side, scene.ours_again) {
        seg("the ACK that proves the new SYN", "ACK", ack(NEW_ISN.wrapping_add(1), again.wrapping_add(1)));
    }
    seg("ACK", "ACK", ack(next, expected));
    seg("ACK of something older", "ACK", ack(next, expected.wrapping_sub(50)));
    seg("ACK far below", "ACK", ack(next, expected.wrapping_sub(1 << 27)));
    seg("ACK of what was never sent", "ACK", ack(next, known(100_000)));
    seg("keepalive", "ACK", ack(before(1), expected));
    seg("probe of a shut window", "data", data(before(1), expected, 1));
    seg("data", "data", data(next, expected, 100));
    seg("data behind a gap", "data", data(at(100), expected, 100));
    seg("data, repeated", "data", data(before(100), expected, 100));
    seg("data beyond the window", "data", data(at(1 << 20), expected, 100));
    seg("blind data, wrong acknowledgement", "data", data(at(50), expected ^ 0x4000_0000, 100));
    seg("data with URG", "data", data(next, expected, 10).flags(URG));
    seg("FIN", "FIN", fin(next, expected));
    seg("FIN, repeated", "FIN", fin(before(1), expected));
    seg("FIN with data", "FIN", data(next, expected, 100).flags(FIN));
    seg("RST, exact", "RST", rst(next));
    seg("RST among the bytes in flight", "RST", rst(next.wrapping_sub(50)));
    seg("RST within the window", "RST", rst(at(1000)));
    seg("RST outside the window", "RST", rst(at(1 << 24)));
    seg("RST|ACK, exact", "RST", rst_ack(next, expected));
    seg("RST|ACK, number zero", "RST", rst_ack(0, expected));
    seg("RST|ACK, wrong acknowledgement, number zero", "RST", rst_ack(0, known(77_777)));
    seg("no flag", "", segment(0, next, expected));
    seg("PSH alone", "", segment(PSH, next, expected));
    seg("FIN alone", "", segment(FIN, next, expected));
    seg("FIN, PSH and URG", "", segment(FIN | PSH | URG, next, expected));
    seg("SYN and FIN", "", segment(SYN | FIN, next, expected));
    seg("SYN and RST", "", segment(SYN | RST | ACK, next, expected));
    all.push(("SYN, damaged", "SYN", damaged(offer(syn(NEW_ISN)))));
    all.push(("FIN, damaged", "FIN", damaged(fin(next, expected))));
    all.push(("RST, damaged", "RST", damaged(rst(next))));
    all.push(("first fragment of data", "data", fragment(&whole, 77, 0..40, true)));
    all.push(("later fragment", "", fragment(&whole, 78, 40..120, false)));
    all.push(("ICMP, host unreachable", "ICMP", quote(flying, Complaint::HostUnreachable)));
    all.push(("ICMP, port unreachable", "ICMP", quote(flying, Complaint::PortUnreachable)));
    all.push(("ICMP, too big", "ICMP", quote(flying, Complaint::TooBig(1280))));
    all.push(("ICMP, nothing in flight", "ICMP", quote(flying.wrapping_sub(1 << 24), Complaint::HostUnreachable)));
    all
}

/// What happened: to be read, and merged where it is the same.
#[derive(Clone, PartialEq, Eq)]
struct Outcome {
    what: String,
    next: String,
    counted: String,
}

fn side_name(side: Side) -> &'static str {
    if side == Side::Wan { "WAN" } else { "LAN" }
}

/// A TCP header read by hand: flags, sequence and acknowledgement number, window, bytes of payload.
fn tcp(frame: &[u8]) -> Option<(u16, u32, u32, u16, usize)> {
    let packet = packet_of(frame);
    let at = tcp_at(packet);
    if packet[9] != 6 {
        return None;
    }
    let tcp = &packet[at..];
    let be32 = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let be16 = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    Some((be16(12) & 0x1FF, be32(4), be32(8), be16(14), tcp.len() - usize::from(tcp[12] >> 4) * 4))
}

/// Describes a frame.
fn describe(scene: &Scene, frame: &[u8]) -> String {
    let Some((flags, seq, acked, window, len)) = tcp(frame) else {
        let packet = packet_of(frame);
        let quote = &packet[28..];
        let at = tcp_at(quote) + 4;
        let seq = u32::from_be_bytes([quote[at], quote[at + 1], quote[at + 2], quote[at + 3]]);
        return format!("ICMP {}/{} quoting {}", packet[20], packet[21], scene.symbol(seq));
    };
    let names = [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (ECE, "ECE")];
    let names: Vec<_> = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    let mut text = format!("{} {}", names.join("\\|"), scene.symbol(seq));
    if flags & ACK != 0 {
        let _ = write!(text, " ack {}", scene.symbol(acked));
    }
    let _ = write!(text, " win {window}");
    if len > 0 {
        let _ = write!(text, " len {len}");
    }
    text
}

/// Whether `out` is `frame` with its numbers led to the other side, and nothing else of its meaning changed.
fn is_translated(scene: &Scene, side: Side, frame: &[u8], out: &[u8]) -> bool {
    let by = scene.outward();
    let (Some(came), Some(went)) = (tcp(frame), tcp(out)) else { return false };
    let (seq, acked) =
        if side == Side::Lan { (came.1.wrapping_add(by), came.2) } else { (came.1, came.2.wrapping_sub(by)) };
    let payload = |frame: &[u8], len| packet_of(frame)[packet_of(frame).len() - len..].to_vec();
    (went.0, went.1, went.2, went.4) == (came.0, seq, acked, came.4) && payload(frame, came.4) == payload(out, went.4)
}

fn counters(world: &World) -> Vec<u64> {
    Event::ALL.iter().map(|&event| world.happened(event)).collect()
}

fn counted(world: &World, before: &[u64]) -> String {
    let passed = [Event::LanSegment, Event::WanSegment, Event::WanSyn];
    let names = Event::ALL
        .iter()
        .zip(before)
        .filter(|(event, before)| !passed.contains(event) && world.happened(**event) != **before);
    names.map(|(event, _)| event.label()).collect::<Vec<_>>().join(", ")
}

fn label(status: Option<ConnectionStatus>) -> String {
    status.map_or("no connection".to_owned(), |status| status.to_string())
}

/// The name of a state in the diagram.
fn node(status: Option<ConnectionStatus>) -> String {
    match status {
        None => "[*]".to_owned(),
        Some(ConnectionStatus { state, .. }) => format!("{state:?}"),
    }
}

/// Who may move a connection from one state to another, and by what.
type Transitions = BTreeMap<(String, String), BTreeSet<String>>;

fn observe(scene: &Scene, side: Side, (_, word, frame): &Arrival, transitions: &mut Transitions) -> Outcome {
    let (before, stood) = (counters(&scene.world), scene.status());
    let verdict = scene.world.inject(side, frame);
    let stands = scene.status();
    let mut what = Vec::new();
    for (to, out) in scene.world.discard() {
        let passes = verdict == Verdict::Forward && to == side.other();
        what.push(if passes && out == *frame {
            "passed as it is".to_owned()
        } else if passes && is_translated(scene, side, frame, &out) {
            "passed, translated".to_owned()
        } else {
            format!("{} gets {}", side_name(to), describe(scene, &out))
        });
    }
    match verdict {
        Verdict::Drop(reason) => what.insert(0, format!("dropped: {}", reason.label())),
        Verdict::Hold(_) => what.insert(0, "held".to_owned()),
        Verdict::Forward | Verdict::Reflect => {}
    }
    // A record that makes way for another of the same name is a transition, too, but no line in a drawing.
    if node(stood) != node(stands) {
        let word = format!("{} {}", side_name(side), if word.is_empty() { "oddity" } else { word });
        transitions.entry((node(stood), node(stands))).or_default().insert(word);
    }
    let next = if stood == stands { String::new() } else { label(stands) };
    Outcome { what: what.join("; "), next, counted: counted(&scene.world, &before) }
}

/// What time alone does, until it does nothing more.
fn wait(scene: &Scene, transitions: &mut Transitions) -> Vec<String> {
    let (mut said, mut waited) = (Vec::<(String, u32, Duration)>::new(), Duration::ZERO);
    let mut stood = scene.status();
    while stood.is_some() && waited < Duration::from_secs(100_000) {
        let step = Duration::from_millis(if waited.as_secs() < 10 { 100 } else { 1000 });
        waited += step;
        scene.world.tick(step);
        for (to, out) in scene.world.discard() {
            let what = format!("{} gets {}", side_name(to), describe(scene, &out));
            match said.iter_mut().find(|(known, ..)| *known == what) {
                Some((_, times, _)) => *times += 1,
                None => said.push((what, 1, waited)),
            }
        }
        let stands = scene.status();
        if stands != stood {
            said.push((format!("**{}**", label(stands)), 1, waited));
            if node(stood) != node(stands) {
                transitions.entry((node(stood), node(stands))).or_default().insert("time".to_owned());
            }
            stood = stands;
        }
    }
    let lines = said.into_iter().map(|(what, times, since)| match times {
        1 => format!("after {} s: {what}", since.as_secs_f64()),
        times => format!("from {} s: {what}, {times} times", since.as_secs_f64()),
    });
    lines.collect()
}

fn table(transitions: &mut Transitions) -> String {
    let mut text = String::new();
    for (name, description, stage) in STAGES {
        let status = label(stage().status());
        let _ = write!(text, "\n## {name}\n\n{description} Status: {status}.\n");
        for side in [Side::Wan, Side::Lan] {
            let mut rows: Vec<(Vec<&str>, Outcome)> = Vec::new();
            for n in 0..arrivals(&stage(), side).len() {
                let scene = stage();
                let arrival = &arrivals(&scene, side)[n];
                let outcome = observe(&scene, side, arrival, transitions);
                match rows.iter_mut().find(|(_, known)| *known == outcome) {
                    Some((names, _)) => names.push(arrival.0),
                    None => rows.push((vec![arrival.0], outcome)),
                }
            }
            let _ = write!(
                text,
                "\n| from the {} | what becomes of it | then | counted |\n|---|---|---|---|\n",
                side_name(side)
            );
            for (names, Outcome { what, next, counted }) in rows {
                let _ = writeln!(text, "| {} | {what} | {next} | {counted} |", names.join(" · ").replace('|', "\\|"));
            }
        }
        let waits = wait(&stage(), transitions);
        if !waits.is_empty() {
            let _ = writeln!(text, "\nLeft alone:\n");
            for line in waits {
                let _ = writeln!(text, "* {line}");
            }
        }
    }
    text
}

const INTRODUCTION: &str = "\
# Every state and every segment

`unit/tests/engine/states.rs` writes this document from what the engine does, and fails when the engine does something else. The tests run with IPv4, with the
defaults unless a state's description names another setting, and with hosts that use no timestamps and window scale 8. After an intended change run
`STATES=accept cargo test -p unit --test engine states::` and read the difference.

Sequence numbers are offsets from an initial sequence number: the client's *c*, the server's *s*, the box's own in the SYN-ACK to the client *b*; with a dash,
those of a second SYN; *another* is none of these. *Translated* means that the box mapped the numbers to the other side's and changed nothing else; both ends use
the same window scale, so windows stay as they are. Segments with the same result share a line. An empty *then* means that the state stays.
";

fn diagram(transitions: &Transitions) -> String {
    let mut text = "```mermaid\nstateDiagram-v2\n".to_owned();
    for ((from, to), words) in transitions {
        let of = |side: &str| {
            let words: Vec<_> = words.iter().filter_map(|word| word.strip_prefix(side)).collect();
            words.join(", ")
        };
        let (wan, lan) = (of("WAN "), of("LAN "));
        let mut parts = Vec::new();
        if wan == lan && !wan.is_empty() {
            parts.push(format!("either {wan}"));
        } else {
            parts.extend(
                [("WAN", wan), ("LAN", lan)].iter().filter(|(_, s)| !s.is_empty()).map(|(n, s)| format!("{n} {s}")),
            );
        }
        if words.contains("time") {
            parts.push("time".to_owned());
        }
        let _ = writeln!(text, "    {from} --> {to}: {}", parts.join(" / "));
    }
    text + "```\n"
}

/// Which state may follow which. The engine asserts that no other does, and only one of its functions writes a state.
fn successors() -> String {
    let mut text = "\nWhat may follow a state; that a record is freed may follow each. Where a state is written the engine asserts it, in builds with debug assertions (all tests).\n\n\
                    | state | may become | unreachable |\n|---|---|---|\n"
        .to_owned();
    for from in [State::Free].into_iter().chain(State::ALL) {
        let (may, never): (Vec<_>, Vec<_>) =
            State::ALL.into_iter().filter(|to| *to != from).partition(|to| from.may_become(*to));
        let names = |states: Vec<State>| states.iter().map(|state| format!("{state:?}")).collect::<Vec<_>>().join(", ");
        let from = if from == State::Free { "(a free record)".to_owned() } else { format!("{from:?}") };
        let _ = writeln!(text, "| {from} | {} | {} |", names(may), names(never));
    }
    text
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Compares a document with what it should be, or writes it.
fn settle(path: &str, wanted: &str) {
    let found = std::fs::read_to_string(root(path)).unwrap_or_default();
    if found == wanted {
        return;
    }
    if std::env::var("STATES").is_ok_and(|how| how == "accept") {
        std::fs::write(root(path), wanted).expect("the document can be written");
        return;
    }
    let differs = found.lines().zip(wanted.lines()).position(|(f, w)| f != w);
    let line = differs.unwrap_or(found.lines().count().min(wanted.lines().count()));
    panic!(
        "{path}:{}: the engine behaves otherwise than is written\n  written: {}\n  now:     {}\nIf that is meant, write it anew: \
         STATES=accept cargo test -p unit --test engine states::",
        line + 1,
        found.lines().nth(line).unwrap_or("(the end)"),
        wanted.lines().nth(line).unwrap_or("(the end)"),
    );
}

#[test]
fn every_state_meets_every_segment_as_it_is_written() {
    let mut transitions = Transitions::new();
    let table = table(&mut transitions);
    settle("docs/states.md", &format!("{INTRODUCTION}\n{}{}{table}", diagram(&transitions), successors()));
}

#[test]
fn every_state_there_is_has_a_table() {
    let seen: Vec<State> = STAGES.iter().filter_map(|(_, _, stage)| Some(stage().status()?.state)).collect();
    // A state added to the engine does not compile here until it has a name, and fails until it has a table.
    let name = |state| match state {
        State::Free => None,
        // Of services, whose two sides have other addresses: `tcpstate/src/proxy/service_tests.rs`, and a table in docs/services.md.
        State::Gathering | State::Repeating => None,
        State::SynCached
        | State::ServerSynSent
        | State::SynSent
        | State::SynReceived
        | State::AckWithheld
        | State::WindowPending
        | State::Unconfirmed
        | State::Established
        | State::FinWait
        | State::LastAck
        | State::TimeWait
        | State::Reset
        | State::ServerTried
        | State::HandedDown => Some(state),
    };
    for state in State::ALL.into_iter().filter_map(name) {
        assert!(seen.contains(&state), "{state:?} has no table");
    }
}
