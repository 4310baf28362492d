//! SYNs that the XDP program answers, and acknowledgements that it drops: the program itself beside the engine, and a box whose program answers.

use harness::{note, test};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use pktio::failure::Decision;
use pktio::{Answering, FailurePlan, FastPath, OnFailure, Rehearsal, SynPlan};
use std::collections::VecDeque;
use std::env;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tcpstate::config::{Handshake, Mode, Proved, RateLimit};
use tcpstate::{
    Config, CookieClock, DropReason, Egress, Event, FlowMap, Head, Instant, Policy, Proxy, Secrets, SharedSyns, Side,
    Verdict, Words,
};
use unit::netns::tags::{CUSTOMER, PROVIDER, Tag};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let n = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize].clone()
    }
}

/// The one's complement sum of these bytes as 16-bit words, folded.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let total: u32 = words.sum();
    let once = (total & 0xffff) + (total >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The clock of workers, and of the program.
fn present() -> Instant {
    let reading = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("it is there since Linux 2.6.39");
    Instant::default() + Duration::from(reading)
}

/// Who talks to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ends {
    v6: bool,
    /// Tags: protocol and control information.
    tags: Vec<(u16, u16)>,
    server: (u8, u16),
    client: (u32, u16),
    /// The stations on both sides.
    macs: [u8; 2],
}

/// What a segment says.
#[derive(Clone, Debug)]
struct Said {
    seq: u32,
    ack: u32,
    /// The thirteenth and fourteenth byte without the length of the header.
    flags: u16,
    options: Vec<u8>,
    payload: usize,
    ttl: u8,
    class: u8,
    /// Bytes behind the packet.
    padding: usize,
}

impl Ends {
    fn addresses(&self) -> [Vec<u8>; 2] {
        let client = self.client.0.to_be_bytes();
        if self.v6 {
            let server = [&[0xfd, 0x77][..], &[0; 13], &[self.server.0]].concat();
            let client = [&[0xfd, 0x78, 0, 0, 0, client[0], 0, client[1]][..], &[0; 6], &client[2..]].concat();
            return [server, client];
        }
        [vec![10, 77, 0, self.server.0], client.into()]
    }

    /// The frame from one side to the other.
    fn frame(&self, from: Side, said: &Said) -> Vec<u8> {
        let [server, client] = self.addresses();
        let ports = [self.server.1, self.client.1];
        let is_wan = from == Side::Wan;
        let ([source, destination], ports) =
            if is_wan { ([client, server], [ports[1], ports[0]]) } else { ([server, client], ports) };
        let [lan, wan] = self.macs;
        let mut frame = Vec::new();
        for station in if is_wan { [lan, wan] } else { [wan, lan] } {
            // From 128 on it is a group.
            frame.extend([2 | station >> 7, 0, 0, 0, 0, station]);
        }
        for (protocol, control) in &self.tags {
            frame.extend(protocol.to_be_bytes());
            frame.extend(control.to_be_bytes());
        }
        let mut tcp = Vec::new();
        ports.into_iter().for_each(|port| tcp.extend(port.to_be_bytes()));
        [said.seq, said.ack].into_iter().for_each(|number| tcp.extend(number.to_be_bytes()));
        let offset = (20 + said.options.len() as u16) << 10;
        tcp.extend((offset | said.flags).to_be_bytes());
        tcp.extend([0xfa, 0xf0, 0, 0, 0, 0]);
        tcp.extend(&said.options);
        tcp.resize(tcp.len() + said.payload, 0x5a);
        let length = tcp.len() as u16;
        let pseudo = [&source[..], &destination, &[0, 6], &length.to_be_bytes()].concat();
        let check = !sum(&[&pseudo[..], &tcp].concat());
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60 | said.class >> 4, said.class << 4, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, said.ttl]);
            frame.extend([source, destination].concat());
        } else {
            frame.extend([8, 0]);
            let at = frame.len();
            frame.extend([0x45, said.class]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 7, 0x40, 0, said.ttl, 6, 0, 0]);
            frame.extend([source, destination].concat());
            let check = !sum(&frame[at..]);
            frame[at + 10..at + 12].copy_from_slice(&check.to_be_bytes());
        }
        frame.extend(tcp);
        frame.resize(frame.len() + said.padding, 0xa5);
        frame
    }
}

/// The options of a SYN, as common stacks send them and otherwise.
fn syn_options(random: &mut Random) -> Vec<u8> {
    let mss = random.of(&[1460u16, 1460, 1440, 1400, 536, 1220, 8960, 0, 40, 100, 250, 65535, 1461]);
    let [high, low] = mss.to_be_bytes();
    let scale = random.of(&[7u8, 8, 0, 6, 14, 15, 255, 2]);
    let clock = random.next().to_be_bytes();
    let mss = &[2, 4, high, low][..];
    let scale = &[1, 3, 3, scale][..];
    let sack = &[1, 1, 4, 2][..];
    let stamps = &[&[1, 1, 8, 10][..], &clock].concat()[..];
    let sack_stamps = &[&[4, 2, 8, 10][..], &clock].concat()[..];
    let layouts: [&[&[u8]]; 22] = [
        // Linux and Android, with and without timestamps; FreeBSD; Windows; Apple's; OpenBSD; NetBSD; small devices; none.
        &[mss, sack_stamps, scale],
        &[mss, sack_stamps, scale],
        &[mss, sack_stamps, scale],
        &[mss, sack, scale],
        &[mss, scale, sack_stamps],
        &[mss, scale, sack],
        &[mss, scale, sack],
        &[mss, scale, stamps, &[4, 2, 0, 0]],
        &[mss, sack, scale, stamps],
        &[mss, stamps, scale],
        &[mss, scale],
        &[mss, sack],
        &[mss],
        &[],
        // Whatever else: twice, short, unknown, of other lengths, with extensions.
        &[mss, mss, stamps, stamps, scale],
        &[mss, &[1, 1, 8, 10, 0, 0, 0, 1]],
        &[mss, &[1, 1, 1, 1], scale],
        &[mss, sack_stamps, scale, &[34, 2, 1, 1]],
        &[mss, &[30, 4, 0, 1], scale],
        &[mss, &[19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0]],
        &[&[4, 2, 0, 0], scale, mss],
        &[stamps],
    ];
    random.of(&layouts).concat()
}

/// Keeps what the engine sends by itself.
#[derive(Default)]
struct Sent(Vec<(Side, Vec<u8>)>);

impl Egress for Sent {
    fn emit(&mut self, to: Side, write: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut frame = vec![0; 128];
        let length = write(&mut frame);
        frame.truncate(length);
        self.0.push((to, frame));
        true
    }
}

/// What an engine does with a frame: the verdict, the frame as it is then, and what it sends besides.
type Done = (Verdict, Vec<u8>, Vec<(Side, Vec<u8>)>);

fn take(proxy: &mut Proxy, side: Side, frame: &[u8], now: Instant) -> Done {
    let mut buffer = [&[0; 64], frame, &[0; 128]].concat();
    let mut head = Head::new(&mut buffer, 64, frame.len(), frame.len());
    let mut sent = Sent::default();
    let verdict = proxy.on_single(side, &mut head, now, &mut sent);
    let bytes = head.bytes().to_vec();
    while let Some(ticket) = proxy.next_release() {
        proxy.void(ticket);
    }
    (verdict, bytes, sent.0)
}

/// Where the program runs.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Xdp,
    Tc,
}

/// What answers SYNs.
enum Program {
    Xdp(Box<Rehearsal>),
    Tc(Box<FastPath>),
}

impl Program {
    /// The program, its memory of one worker, and the map of flows.
    fn load(hook: Hook, config: &Config, flow_keys: (u64, u64)) -> (Program, [Words; 3], Words) {
        let flow_words = FlowMap::words_needed(config.flow_capacity());
        let plan = SynPlan { words: SharedSyns::words_needed(config) };
        match hook {
            Hook::Xdp => {
                let failure = FailurePlan { on_failure: OnFailure::Closed, flow_keys, flow_words, forward_words: 0 };
                let mut program = Rehearsal::answering(&failure, 1, plan).expect("the verifier accepts it");
                let (memory, flows) = (program.syn_memories()[0], program.take_flow_maps()[0]);
                program.set_flows_entered();
                (Program::Xdp(Box::new(program)), memory.map(Words::from), Words::from(flows))
            }
            Hook::Tc => {
                // What is decided and what is done about it are two runs, which the copy of the frame on one core joins.
                let core = sched_getcpu().expect("it is there");
                let mut cores = CpuSet::new();
                cores.set(core).expect("one of so many");
                sched_setaffinity(Pid::from_raw(0), &cores).expect("this thread runs there");
                let answering = Answering { plan, flow_words, workers: 1 };
                let program = FastPath::load(Proxy::words_to_hand_down(64), flow_keys, Some(answering));
                let program = program.expect("the verifier accepts it");
                let memory = program.syn_memories().expect("it can be mapped")[0];
                let flows = program.flow_maps().expect("it can be mapped")[0];
                program.flows_entered().expect("it can be mapped")[0].store(1, Ordering::Relaxed);
                (Program::Tc(Box::new(program)), memory.map(Words::from), Words::from(flows))
            }
        }
    }

    fn decides(&mut self, frame: &[u8], answer: &mut [u8]) -> Decision {
        match self {
            Program::Xdp(program) => program.decides(frame, answer),
            Program::Tc(program) => program.decides(frame, answer),
        }
    }
}

/// An engine that shares its memory with the program, its twin, which answers everything itself, and the program.
struct Beside {
    shared: Proxy,
    alone: Proxy,
    program: Program,
    answered: u64,
    dropped: u64,
    left: u64,
    /// TSvals that differ because the clock has gone on.
    ticks: u64,
}

impl Beside {
    fn new(hook: Hook, config: &Config, epoch_offset: u64) -> Self {
        let secrets = Secrets::new([7; 48]);
        // What is adopted, and cookies of a former process, are over.
        let start = Instant::from_micros(present().as_micros() - 1_000_000_000);
        let (program, memory, flows) = Program::load(hook, config, secrets.hash_keys());
        let [answers, recent_syns, limits] = memory;
        let clock = CookieClock::showing(start.as_micros() + epoch_offset, start);
        let [mut shared, alone] = [(); 2].map(|()| {
            let policy = Arc::new(Policy::with_clock(config, clock, start));
            Proxy::with_policy(config, policy, &secrets, start, tcpstate::Memory::anonymous(config))
        });
        shared.publish_flows(flows);
        shared.share_syns(SharedSyns { answers, recent_syns, limits, by_hash: false });
        Self { shared, alone, program, answered: 0, dropped: 0, left: 0, ticks: 0 }
    }

    /// Both engines do what is due.
    fn pass_time(&mut self, now: Instant) {
        for proxy in [&mut self.shared, &mut self.alone] {
            while proxy.on_timeout(now, &mut Sent::default()) {}
        }
    }

    /// A frame reaches the engines alone.
    fn goes_up(&mut self, side: Side, frame: &[u8], now: Instant) -> Done {
        let done = take(&mut self.shared, side, frame, now);
        assert_eq!(done, take(&mut self.alone, side, frame, now), "{frame:02x?}");
        done
    }

    /// A frame comes from the WAN: what the program does with it the engine would do as well.
    fn comes(&mut self, frame: &[u8]) -> Done {
        let now = present();
        self.pass_time(now);
        let mut answer = [0; 2048];
        let decision = self.program.decides(frame, &mut answer);
        if decision == Decision::Leaves {
            self.left += 1;
            return self.goes_up(Side::Wan, frame, now);
        }
        let done = take(&mut self.alone, Side::Wan, frame, now);
        match decision {
            Decision::Answers(length) => {
                self.answered += 1;
                assert_eq!(done.0, Verdict::Reflect, "{frame:02x?}");
                if answer[..length] != done.1[..] {
                    // The program's clock is a little later; a TSval goes on by 8192 ms.
                    self.ticks += 1;
                    let differ = answer[..length].iter().zip(&done.1).filter(|(one, other)| one != other).count();
                    assert!(
                        length == done.1.len() && differ <= 6 && self.ticks < 5,
                        "{frame:02x?}\n{:02x?}\n{:02x?}",
                        &answer[..length],
                        done.1
                    );
                }
            }
            _ => {
                self.dropped += 1;
                assert_eq!(done.0, Verdict::Drop(DropReason::BadCookie), "{frame:02x?}");
            }
        }
        done
    }

    /// Everything was counted as the twin counts it.
    fn compare(&mut self) {
        self.pass_time(present());
        let (one, other) = (self.shared.counters(), self.alone.counters());
        let by_kernel = [(Event::KernelAnswered, self.answered), (Event::KernelDropped, self.dropped)];
        for &event in Event::ALL {
            let expected = by_kernel.iter().find(|(own, _)| *own == event).map_or(other.happened(event), |(_, n)| *n);
            assert_eq!(one.happened(event), expected, "{event:?}");
        }
        for &reason in DropReason::ALL {
            assert_eq!(one.dropped(reason), other.dropped(reason), "{reason:?}");
        }
        assert_eq!(self.shared.population(), self.alone.population());
        for target in 0..self.shared.targets().len() as u32 {
            assert_eq!(self.shared.target_counts(target), self.alone.target_counts(target));
        }
    }
}

/// Configurations in which the engine answers by cookies.
fn config(n: u64) -> Config {
    let rate = |burst, add, secs| RateLimit {
        size: 1024,
        burst,
        add,
        period: Duration::from_secs(secs),
        ..RateLimit::default()
    };
    let plain = Config {
        mode: Mode::Cookie,
        table_buckets: 256,
        learn_capacity: 64,
        rate: rate(100_000, 100_000, 1),
        // No test of a cookie is refused: how many were, depends on the time.
        ..Config::default()
    };
    let plain = Config { rate: RateLimit { guesses: 1 << 30, failures: 1 << 25, ..plain.rate }, ..plain };
    match n % 5 {
        0 => plain,
        1 => Config { handshake: Handshake::Early, mss_clamp: Some(1300), own_ttl: 77, early_window: 5000, ..plain },
        2 => Config {
            mode: Mode::Cache,
            syn_cache_max: 4,
            mss_table: vec![216, 1000, 1459],
            wscale_table: vec![0, 7],
            ts_mss_table: vec![64, 1400],
            ..plain
        },
        3 => Config {
            mode: Mode::Cache,
            syn_cache_max: 0,
            rate: RateLimit {
                burst: 40,
                add: 1,
                period: Duration::from_secs(100_000),
                prefix4: 20,
                prefix6: 40,
                ..plain.rate
            },
            mss_table: (0..40).map(|n| 200 + 40 * n).collect(),
            ..plain
        },
        _ => Config { proved: Proved::Pass, own_sack: false, own_wscale: 3, ..plain },
    }
}

/// A server's SYN-ACK for what a SYN of the box asks, which lies in this frame.
fn answer_of(random: &mut Random, ends: &Ends, syn: &[u8], style: u64) -> Vec<u8> {
    let ip = 14 + 4 * ends.tags.len();
    let tcp = ip + if ends.v6 { 40 } else { 20 };
    let seq = u32::from_be_bytes(syn[tcp + 4..tcp + 8].try_into().expect("four bytes"));
    let offers = |kind: u8| syn[tcp + 20..].windows(2).any(|two| two[0] == kind && (2..=10).contains(&two[1]));
    let mut options = vec![2, 4, 5, if style.is_multiple_of(3) { 0x78 } else { 0xb4 }];
    if offers(4) && style % 5 != 1 {
        options.extend([1, 1, 4, 2]);
    }
    // One server refuses timestamps.
    if offers(8) && style % 7 != 2 && ends.server.0 != 3 {
        options.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 1]);
    }
    if offers(3) && style % 11 != 3 {
        options.extend([1, 3, 3, (style % 10) as u8 ^ ends.server.0]);
    }
    let ace = u16::from_be_bytes([syn[tcp + 12], syn[tcp + 13]]) >> 6 & 7;
    let agreed = match (ace, style % 3) {
        (3, 1 | 2) | (7, 1) => 1,
        (7, 2) => 2,
        _ => 0,
    };
    let said = Said {
        seq: random.next() as u32,
        ack: seq.wrapping_add(1),
        flags: 0x12 | agreed << 6,
        options,
        payload: 0,
        ttl: 64 - (style % 4) as u8,
        class: if style % 4 == 1 { 0x28 } else { 0 },
        padding: 0,
    };
    ends.frame(Side::Lan, &said)
}

/// The place of the TCP header.
fn tcp_at(ends: &Ends) -> usize {
    14 + 4 * ends.tags.len() + if ends.v6 { 40 } else { 20 }
}

/// Whether a frame is a SYN-ACK between these ends.
fn is_syn_ack(ends: &Ends, frame: &[u8]) -> bool {
    let tcp = tcp_at(ends);
    frame.len() >= tcp + 20 && frame[tcp + 13] & 0x17 == 0x12
}

/// A client acknowledges, by a segment with these flags, what its SYN with the number `seq` was answered. Its server answers, or refuses.
fn prove(beside: &mut Beside, random: &mut Random, (ends, seq, answer): (&Ends, u32, &[u8]), flags: u16, style: u64) {
    let tcp = tcp_at(ends);
    let number = |frame: &[u8]| u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().expect("four bytes"));
    // Timestamps of a SYN-ACK of the box begin with a word of their own.
    let words: Vec<&[u8]> = answer[tcp + 20..].chunks_exact(4).collect();
    let options = match words.iter().position(|word| word[2..] == [8, 10]) {
        Some(at) => [&[1, 1, 8, 10, 0, 0, 0, 7][..], words[at + 1]].concat(),
        None => Vec::new(),
    };
    let ack = number(answer).wrapping_add(1);
    let said = Said { seq: seq.wrapping_add(1), ack, flags, options, payload: 0, ttl: 64, class: 0, padding: 0 };
    let (verdict, frame, sent) = beside.comes(&ends.frame(Side::Wan, &said));
    let forwarded = (verdict == Verdict::Forward).then_some(frame);
    let to_server = forwarded.or_else(|| sent.into_iter().find(|(to, _)| *to == Side::Lan).map(|(_, frame)| frame));
    let Some(syn) = to_server.filter(|frame| frame.get(tcp + 13).is_some_and(|flags| flags & 0x17 == 2)) else {
        return;
    };
    let reply = if ends.server.0 == 9 {
        let refusal = Said { seq: 0, ack: number(&syn).wrapping_add(1), flags: 0x14, options: Vec::new(), ..said };
        ends.frame(Side::Lan, &refusal)
    } else {
        answer_of(random, ends, &syn, style ^ u64::from(ends.server.0))
    };
    let _ = beside.goes_up(Side::Lan, &reply, present());
}

/// Segments of everybody, beside the engine.
fn run(hook: Hook, n: u64, frames: u64) -> [u64; 3] {
    let mut random = Random(n.wrapping_mul(77).wrapping_add(1));
    let random = &mut random;
    let config = config(n);
    let mut beside = Beside::new(hook, &config, random.below(1 << 27));
    let tags: [&[(u16, u16)]; 6] =
        [&[], &[], &[], &[(0x8100, 0x6007)], &[(0x88a8, 5), (0x8100, 0xf009)], &[(0x8100, 0x2000)]];
    let style = random.next();
    let mut recent: VecDeque<(Ends, u32, Vec<u8>)> = VecDeque::new();
    // Acknowledgements of nothing, so many that the program drops the next ones.
    let before = Instant::from_micros(present().as_micros() - 2_000_000);
    for n in 0..1500 {
        let ends = Ends { v6: false, tags: Vec::new(), server: (1, 80), client: (0x0d00_0000 + n, 9), macs: [1, 2] };
        let said = Said { seq: n, ack: n, flags: 0x10, options: Vec::new(), payload: 0, ttl: 64, class: 0, padding: 0 };
        beside.pass_time(before);
        let _ = beside.goes_up(Side::Wan, &ends.frame(Side::Wan, &said), before);
    }
    // Each server is known by an answer to a client with all options.
    let all = [
        &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7][..],
        &[2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2],
    ];
    for (n, tags) in tags[2..].iter().flat_map(|tags| (0..24).map(move |n| (n, tags))) {
        let server = [(1, 80), (2, 443), (3, 81)][n % 3];
        let ends =
            Ends { v6: n % 2 == 0, tags: tags.to_vec(), server, client: (0x0e00_0000 + n as u32, 99), macs: [1, 2] };
        let options = all[n / 12].to_vec();
        let said = Said { seq: 5, ack: 0, flags: 0x1c2, options, payload: 0, ttl: 64, class: 0, padding: 0 };
        let (_, answer, _) = beside.comes(&ends.frame(Side::Wan, &said));
        if is_syn_ack(&ends, &answer) {
            prove(&mut beside, random, (&ends, 5, &answer), 0x10, style);
        }
    }
    beside.compare();
    for step in 0..frames {
        let ends = match recent.get(random.below(64) as usize) {
            Some((ends, ..)) if random.one_in(8) => ends.clone(),
            _ => Ends {
                v6: random.one_in(2),
                tags: random.of(&tags).to_vec(),
                server: random.of(&[(1, 80), (1, 80), (2, 443), (3, 81), (9, 9)]),
                client: match random.below(8).min(4) {
                    0 => (0x0b00_0001 + random.below(4) as u32, 1000 + random.below(4) as u16),
                    1 => (0x0c00_0001 | (random.below(1 << 16) as u32) << 8, random.next() as u16),
                    2 => (random.next() as u32, random.next() as u16),
                    4 => (0x5000_0000 | random.next() as u32 & 0x0fff_ffff, random.next() as u16),
                    _ => (random.of(&[0, u32::MAX, 0x7f00_0001, 0xe000_0001, 0x0a4d_0001, 0xf000_0001]), 7),
                },
                macs: [random.of(&[1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 131]), random.of(&[2, 2, 2, 2, 2, 4, 4, 130])],
            },
        };
        let syn = |random: &mut Random, seq| Said {
            seq,
            ack: random.next() as u32 & random.of(&[0, u32::MAX]),
            flags: random
                .of(&[2, 2, 2, 2, 2, 2, 2, 2, 0xc2, 0xc2, 0xc2, 0x1c2, 0x1c2, 0x42, 0x102, 0x0a, 0x822, 0x06, 3]),
            options: syn_options(random),
            payload: if random.one_in(20) { 3 } else { 0 },
            ttl: random.of(&[64, 64, 64, 64, 64, 64, 64, 1, 2, 0, 3, 255]),
            class: random.next() as u8,
            padding: random.of(&[0, 0, 0, 1, 6, 20]),
        };
        let done = match random.below(20) {
            // An acknowledgement of what was answered, so that flows begin and servers are learned.
            0..2 if !recent.is_empty() => {
                let at = random.below(recent.len() as u64) as usize;
                let (ends, seq, answer) = recent[at].clone();
                let flags = random.of(&[0x10, 0x10, 0x10, 0x18, 0x14, 0x11]);
                prove(&mut beside, random, (&ends, seq, &answer), flags, style);
                continue;
            }
            // Any other acknowledgement, or a reset, of few or many clients.
            2..5 => {
                let flags = random.of(&[0x10, 0x10, 0x18, 0x11, 0x04, 0x14, 0x12, 0x00]);
                let said = Said {
                    flags,
                    payload: random.below(40) as usize,
                    options: if random.one_in(2) { vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2] } else { Vec::new() },
                    ..syn(random, step as u32)
                };
                let _ = beside.comes(&ends.frame(Side::Wan, &said));
                continue;
            }
            // A station is heard on the WAN.
            5 if random.one_in(50) => {
                let mut heard = vec![0xff; 6];
                heard.extend([2, 0, 0, 0, 0, random.of(&[3, 4])]);
                heard.extend([8, 6, 0, 1]);
                heard.resize(60, 0);
                let _ = beside.comes(&heard);
                continue;
            }
            // Something damaged, or cut off.
            6 => {
                let mut frame = ends.frame(Side::Wan, &syn(random, step as u32));
                let ip = 14 + 4 * ends.tags.len();
                if !ends.v6 && random.one_in(3) {
                    // A fragment, or IP options, with a right checksum.
                    if random.one_in(2) {
                        frame[ip + 6] = random.of(&[0x20, 0x60, 0, 0x80]);
                        frame[ip + 7] = random.of(&[0, 0, 1]);
                    } else {
                        frame.splice(ip + 20..ip + 20, [1, 1, 1, 0]);
                        frame[ip] = 0x46;
                        frame[ip + 3] += 4;
                    }
                    let header = ip + 4 * usize::from(frame[ip] & 15);
                    frame[ip + 10..ip + 12].fill(0);
                    let check = !sum(&frame[ip..header]);
                    frame[ip + 10..ip + 12].copy_from_slice(&check.to_be_bytes());
                } else if random.one_in(4) {
                    frame.truncate(14 + random.below(frame.len() as u64 - 14) as usize);
                } else {
                    let at = random.below(frame.len() as u64) as usize;
                    frame[at] ^= 1 << random.below(8);
                }
                let _ = beside.comes(&frame);
                continue;
            }
            _ => {
                let known = recent.iter().find(|(other, ..)| *other == ends).map(|(_, seq, _)| *seq);
                let seq = known.filter(|_| random.one_in(2)).unwrap_or(random.next() as u32);
                let frame = ends.frame(Side::Wan, &syn(random, seq));
                let done = beside.comes(&frame);
                (done, seq)
            }
        };
        let ((_, answer, _), seq) = done;
        if is_syn_ack(&ends, &answer) {
            recent.push_front((ends, seq, answer));
            recent.truncate(64);
        }
        if step % 64 == 0 {
            beside.compare();
        }
    }
    beside.compare();
    [beside.answered, beside.dropped, beside.left]
}

#[test]
fn the_program_answers_and_drops_as_the_engine_would_and_leaves_the_rest() {
    harness::needs_root();
    let frames = std::env::var("SYNS").ok().and_then(|frames| frames.parse().ok()).unwrap_or(20_000);
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let rounds = 10;
    for hook in [Hook::Xdp, Hook::Tc] {
        let mut all = [0; 3];
        for n in 0..rounds {
            let counts = run(hook, 5 * seed + n, frames / rounds);
            println!("{hook:?} {n}: {} answered, {} dropped, {} left", counts[0], counts[1], counts[2]);
            all.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
        }
        assert!(all[0] > frames / 20 && all[1] > frames / 100, "{hook:?}: {all:?}");
    }
}

#[test]
fn the_verifier_is_soon_done_with_the_program_that_answers() {
    harness::needs_root();
    let config = config(0);
    let (Program::Xdp(program), ..) = Program::load(Hook::Xdp, &config, (1, 2)) else {
        unreachable!("it was asked for")
    };
    let verified = program.verified_instructions();
    println!("{verified} instructions");
    assert!(verified < 100_000, "{verified} instructions");
}

/// What the SYNs of common stacks offer: with timestamps, and without.
fn stacks() -> [(&'static str, Vec<u8>, Vec<u8>); 6] {
    let mss = |mss: u16| [&[2, 4][..], &mss.to_be_bytes()].concat();
    let scale = |shift: u8| vec![1, 3, 3, shift];
    let (sack, sack_end) = (vec![1, 1, 4, 2], vec![4, 2, 0, 0]);
    let clock = [0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0];
    let stamps = [&[1, 1, 8, 10][..], &clock].concat();
    let sack_stamps = [&[4, 2, 8, 10][..], &clock].concat();
    let one = |parts: &[&Vec<u8>]| parts.iter().copied().flatten().copied().collect::<Vec<u8>>();
    [
        ("Linux", one(&[&mss(1460), &sack_stamps, &scale(7)]), one(&[&mss(1460), &sack, &scale(7)])),
        ("Android", one(&[&mss(1400), &sack_stamps, &scale(9)]), one(&[&mss(1400), &sack, &scale(9)])),
        ("Windows", one(&[&mss(1460), &scale(8), &sack_stamps]), one(&[&mss(1460), &scale(8), &sack])),
        ("FreeBSD, NetBSD", one(&[&mss(1460), &scale(6), &sack_stamps]), one(&[&mss(1460), &scale(6), &sack_end])),
        ("OpenBSD", one(&[&mss(1460), &sack, &scale(6), &stamps]), one(&[&mss(1460), &sack, &scale(6)])),
        ("macOS, iOS", one(&[&mss(1460), &scale(6), &stamps, &sack_end]), one(&[&mss(1460), &scale(6), &sack_end])),
    ]
}

/// A SYN with these options.
fn syn_with(options: Vec<u8>) -> Said {
    Said { seq: 77, ack: 0, flags: 2, options, payload: 0, ttl: 64, class: 0, padding: 0 }
}

/// Makes a server known to the box, by a client with all options.
fn introduce(beside: &mut Beside, ends: &Ends) {
    for (client, (_, stamped, plain)) in (0..).zip(stacks()) {
        for (offset, options) in [(0, stamped), (1, plain)] {
            let ends = Ends { client: (0x0e00_0001 + 2 * client + offset, 99), ..ends.clone() };
            let (_, answer, _) = beside.comes(&ends.frame(Side::Wan, &syn_with(options)));
            if is_syn_ack(&ends, &answer) {
                prove(beside, &mut Random(1), (&ends, 77, &answer), 0x10, 0);
            }
        }
    }
}

#[test]
fn syns_of_every_common_stack_are_answered_by_the_program() {
    harness::needs_root();
    let tagged: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 5)], &[(0x88a8, 5), (0x8100, 9)]];
    for (hook, v6, tags) in [Hook::Xdp, Hook::Tc]
        .into_iter()
        .flat_map(|hook| tagged.into_iter().flat_map(move |tags| [false, true].map(|v6| (hook, v6, tags))))
    {
        let config = config(0);
        let mut beside = Beside::new(hook, &config, 0);
        let ends = Ends { v6, tags: tags.to_vec(), server: (1, 80), client: (0x0d00_0001, 999), macs: [1, 2] };
        introduce(&mut beside, &ends);
        for (client, (name, stamped, plain)) in (0x0f00_0001..).zip(stacks()) {
            for (kind, options) in [("with timestamps", stamped), ("without", plain)] {
                let answered = beside.answered;
                // A second may end just now; the next SYN says how again.
                for port in 1..=3 {
                    let ends = Ends { client: (client, port), ..ends.clone() };
                    let _ = beside.comes(&ends.frame(Side::Wan, &syn_with(options.clone())));
                }
                let by_program = beside.answered - answered;
                assert!(by_program >= 2, "{hook:?} v6 {v6} {tags:x?}: {name} {kind}: {by_program} of 3");
            }
        }
        beside.compare();
    }
}

/// Answers of so many epochs, which change one behind the other without a pause, so that the program meets hundreds of changes in the middle of an answer.
const EPOCHS: usize = 2000;

#[test]
fn an_answer_is_of_one_epoch_while_epochs_change() {
    harness::needs_root();
    let config = config(0);
    let mut beside = Beside::new(Hook::Xdp, &config, 0);
    let ends = Ends { v6: false, tags: Vec::new(), server: (1, 80), client: (0x0d00_0001, 999), macs: [1, 2] };
    introduce(&mut beside, &ends);
    // Without timestamps an answer depends on the epoch, and on no clock besides.
    let options = stacks()[0].2.clone();
    let asked = ends.frame(Side::Wan, &syn_with(options.clone()));
    let Beside { mut shared, mut alone, mut program, .. } = beside;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let begin = present();
    let (answers, good) = thread::scope(|scope| {
        let engine = scope.spawn(|| {
            let mut good = std::collections::HashSet::new();
            for epoch in 0..100 * EPOCHS as u64 {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                // Epochs of the future, so that the program's clock finds no entry too old.
                let now = begin + Duration::from_secs(68 * epoch);
                for proxy in [&mut shared, &mut alone] {
                    while proxy.on_timeout(now, &mut Sent::default()) {}
                }
                let (verdict, answer, _) = take(&mut alone, Side::Wan, &asked, now);
                assert_eq!(verdict, Verdict::Reflect);
                good.insert(answer);
                // Another client has the engine say how this server's SYNs are answered.
                let other = Ends { client: (0x1000_0000 + epoch as u32, 9), ..ends.clone() };
                let _ = take(&mut shared, Side::Wan, &other.frame(Side::Wan, &syn_with(options.clone())), now);
            }
            good
        });
        let mut answers = std::collections::HashMap::new();
        while answers.len() < EPOCHS && !engine.is_finished() {
            let mut answer = [0; 2048];
            if let Decision::Answers(length) = program.decides(&asked, &mut answer) {
                *answers.entry(answer[..length].to_vec()).or_insert(0) += 1;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        (answers, engine.join().expect("it does not panic"))
    });
    println!("{} answers, of {} epochs", answers.values().sum::<u32>(), answers.len());
    assert!(answers.len() > 20, "the program has hardly answered");
    answers.keys().for_each(|answer| assert!(good.contains(answer), "of no epoch: {answer:02x?}"));
}

// --- boxes

/// The configuration of a box whose kernel answers SYNs.
const ON: &str = "mode = cookie; syns_in_kernel = on;";

/// A rig whose client takes frames that the kernel's program sends, as every network card does; a veth takes them if its end has GRO.
fn answered(rig: Rig) -> Rig {
    rig.client.sh("ethtool -K c0 gro on");
    rig
}

/// So many connections, one after the other, each of which carries a question and its answer.
fn connections(rig: &Rig, server: SocketAddr, count: u32) {
    rig.client.run(|| {
        for n in 0..count {
            let mut stream = traffic::connect(server).expect("connecting");
            stream.write_all(&n.to_be_bytes()).expect("asking");
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).expect("the answer");
            assert_eq!(answer, n.to_be_bytes());
        }
    });
}

#[test]
fn clients_connect_by_syns_that_the_xdp_program_answered() {
    connect_by_the_kernel(Backend::Driver, ON);
}

#[test]
fn clients_connect_by_syns_that_the_program_at_tc_answered() {
    connect_by_the_kernel(Backend::Packet, &format!("{ON} fast_path = tc;"));
}

/// Clients connect to a box whose kernel answers most of their SYNs.
fn connect_by_the_kernel(backend: Backend, config: &str) {
    let tagged: [(&str, &[Tag]); 3] = [("no tag", &[]), ("a tag", &[CUSTOMER]), ("two tags", &[PROVIDER, CUSTOMER])];
    for (name, tags) in tagged {
        let rig = answered(Rig::tagged(1500, tags));
        let proxy = Appliance::start(&rig, backend, config);
        for address in [netns::SERVER_V4, netns::SERVER_V6] {
            let server = rig.server.serve(address, 0, traffic::echo);
            connections(&rig, server.address, 40);
            // A client without timestamps.
            rig.client.sysctl("net.ipv4.tcp_timestamps", "0");
            connections(&rig, server.address, 40);
            rig.client.sysctl("net.ipv4.tcp_timestamps", "1");
        }
        let report = proxy.stop();
        assert!(report.status.success(), "{:?}", report.log);
        let [by_kernel, all] = ["kernel-answered", "syn-answered"].map(|name| report.figure(name).unwrap_or(0));
        note!("{name}: the kernel answered {by_kernel} of {all} SYNs");
        assert!(all >= 160 && by_kernel > 80 && by_kernel < all, "{name}: {by_kernel} of {all}: {:?}", report.log);
    }
}

/// A flood of so many SYNs a second, for a minute at most.
fn flood(rig: &Rig, rate: u32) -> Child {
    let mut flood = rig.client.command(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from-mac", "02:00:00:00:00:66", "--seconds", "60", "--rate", &rate.to_string()]);
    flood.stdout(Stdio::null()).spawn().expect("starting the flood")
}

#[test(long)]
fn under_a_flood_that_the_kernel_answers_clients_connect_and_a_restart_changes_nothing() {
    let rig = answered(Rig::new());
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let mut flood = None;
    for way in [Signal::SIGKILL, Signal::SIGTERM] {
        let proxy = Appliance::start(&rig, Backend::Driver, ON);
        connections(&rig, server.address, 1);
        let flood = flood.get_or_insert_with(|| self::flood(&rig, 100_000));
        thread::sleep(Duration::from_millis(500));
        connections(&rig, server.address, 20);
        if way == Signal::SIGKILL {
            let _ = proxy.end(way);
            continue;
        }
        flood.kill().expect("it runs");
        flood.wait().expect("waiting for the flood");
        connections(&rig, server.address, 1);
        let report = proxy.end(way);
        assert!(report.status.success(), "{:?}", report.log);
        let [by_kernel, all] = ["kernel-answered", "syn-answered"].map(|name| report.figure(name).unwrap_or(0));
        note!("the kernel answered {by_kernel} of {all} SYNs");
        assert!(by_kernel > 10_000 && by_kernel > all / 2, "{by_kernel} of {all}: {:?}", report.log);
    }
}

#[test(light)]
fn where_the_kernel_cannot_answer_the_log_says_so_once_and_the_workers_do() {
    // The client's end of the veth takes no frame from the program; and AF_PACKET has none.
    let at_tc = &*format!("{ON} fast_path = tc;");
    for (backend, config, why) in [
        (Backend::Driver, ON, "ethtool -K PEER gro on"),
        (Backend::Packet, ON, "only AF_XDP and `fast_path = tc` have"),
        // Tc answers, but nothing in front of it.
        (Backend::Packet, at_tc, "answered at tc alone, however many come: the other end of this veth"),
    ] {
        let rig = Rig::new();
        let proxy = Appliance::start(&rig, backend, config);
        let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
        connections(&rig, server.address, 5);
        let report = proxy.stop();
        let said: Vec<&String> = report.log.iter().filter(|line| line.contains(why)).collect();
        assert_eq!(said.len(), 1, "{:?}", report.log);
        assert_eq!(report.figure("kernel-answered").unwrap_or(0) > 0, config == at_tc);
    }
}

/// How often the program in front of tc comes and goes, unless `SYN_SWAPS` says otherwise.
const SWAPS: usize = 3;

/// A stream of numbered datagrams, one a millisecond, to a host behind a box that bridges them.
struct Numbered {
    over: Arc<AtomicBool>,
    sending: JoinHandle<u64>,
    receiving: JoinHandle<Vec<u64>>,
}

impl Numbered {
    fn start(rig: &Rig) -> Numbered {
        let over = Arc::new(AtomicBool::new(false));
        let there = rig.server.run(|| UdpSocket::bind((netns::SERVER_V4, 0))).expect("a socket");
        let to = there.local_addr().expect("its address");
        there.set_read_timeout(Some(Duration::from_secs(1))).expect("a time-out");
        let here = rig.client.run(|| UdpSocket::bind((netns::CLIENT_V4, 0))).expect("a socket");
        let is_over = Arc::clone(&over);
        let sending = thread::spawn(move || {
            for n in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return n;
                }
                here.send_to(&u64::to_be_bytes(n), to).expect("sending");
                thread::sleep(Duration::from_millis(1));
            }
            unreachable!("there are more numbers")
        });
        let is_over = Arc::clone(&over);
        let receiving = thread::spawn(move || {
            let (mut got, mut buffer) = (Vec::new(), [0; 8]);
            loop {
                match there.recv(&mut buffer) {
                    Ok(_) => got.push(u64::from_be_bytes(buffer)),
                    // A second without one.
                    Err(_) if is_over.load(Ordering::Relaxed) => return got,
                    Err(_) => {}
                }
            }
        });
        Numbered { over, sending, receiving }
    }

    /// How many were sent, and the numbers of those that did not come and of those that came again.
    fn stop(self) -> (u64, Vec<u64>, Vec<u64>) {
        self.over.store(true, Ordering::Relaxed);
        let sent = self.sending.join().expect("it does not panic");
        let got = self.receiving.join().expect("it does not panic");
        let mut times = vec![0; sent as usize];
        got.iter().for_each(|&n| times[n as usize] += 1);
        let which = |odd: fn(u32) -> bool| (0..sent).filter(|&n| odd(times[n as usize])).collect();
        (sent, which(|times| times == 0), which(|times| times > 1))
    }
}

#[test]
fn while_syns_come_in_masses_an_xdp_program_answers_them_in_front_of_tc_and_coming_and_going_it_loses_nothing() {
    let swaps = env::var("SYN_SWAPS").ok().and_then(|text| text.parse().ok()).unwrap_or(SWAPS);
    let rig = answered(Rig::new());
    let config = format!("{ON} fast_path = tc; fast_path_flood = 3000; fast_path_calm = 1;");
    let proxy = Appliance::start(&rig, Backend::Packet, &config);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    connections(&rig, server.address, 1);
    let is_there = || rig.middle.sh("ip -d link show dev wan0").contains("prog/xdp");
    assert!(!is_there());
    let numbered = Numbered::start(&rig);
    let over = AtomicBool::new(false);
    let asked = thread::scope(|scope| {
        let lasting: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut stream = rig.client.connect(server.address).expect("connecting");
                    for n in 0_u32.. {
                        if over.load(Ordering::Relaxed) {
                            return n;
                        }
                        stream.write_all(&n.to_be_bytes()).expect("asking");
                        let mut answer = [0; 4];
                        stream.read_exact(&mut answer).expect("the answer");
                        assert_eq!(answer, n.to_be_bytes());
                        thread::sleep(Duration::from_millis(1));
                    }
                    unreachable!("there are more numbers")
                })
            })
            .collect();
        let ending = Ending(&over);
        for _ in 0..swaps {
            let mut flood = flood(&rig, 20_000);
            netns::within(traffic::PATIENCE, "the program comes", is_there);
            connections(&rig, server.address, 10);
            flood.kill().expect("it runs");
            flood.wait().expect("waiting for the flood");
            netns::within(traffic::PATIENCE, "the program goes", || !is_there());
        }
        drop(ending);
        lasting.into_iter().map(|thread| thread.join().expect("a client does not panic")).sum::<u32>()
    });
    let (sent, lost, doubled) = numbered.stop();
    let report = proxy.stop();
    assert!(report.status.success(), "{:?}", report.log);
    note!(
        "{swaps} times: {asked} questions answered; of {sent} datagrams {} were lost and {} came twice",
        lost.len(),
        doubled.len()
    );
    assert!(lost.is_empty() && doubled.is_empty(), "of {sent}: lost {lost:?}, doubled {doubled:?}");
    let said = |what: &str| report.log.iter().filter(|line| line.contains(what)).count();
    assert_eq!([said("answers them in front of tc"), said("answered at tc again")], [swaps; 2], "{:?}", report.log);
    let [by_kernel, all] = ["kernel-answered", "syn-answered"].map(|name| report.figure(name).unwrap_or(0));
    assert!(by_kernel > all / 2, "{by_kernel} of {all}");
}

/// Tells clients that it is over when dropped, also by a panic.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
