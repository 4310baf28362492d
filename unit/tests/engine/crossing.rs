//! Both ends open at once (RFC 9293 section 3.5, figure 7), the WAN first: peers that open a path through a firewall or an address translator.
//!
//! Scripts show each way it can go; behind them every loss of one or two segments is tried between two small TCPs, of which the LAN's may stand behind a
//! firewall that takes no bare SYN.

use std::time::Duration;

use tcpstate::config::Handshake;
use tcpstate::{DropReason, Event, Side, Verdict};
use unit::in_every_mode;
use unit::script::*;

/// The timestamps of a client's segment behind this SYN-ACK, if it uses any.
fn echoed(offered: &Got, later: u32) -> Option<(u32, u32)> {
    offered.ts().map(|(value, _)| (CLIENT_TS + later, value))
}

/// A client sends its SYN and gets the box's SYN-ACK.
#[track_caller]
fn connect(client: &Host, theirs: Terms) -> Got {
    client.sends(theirs.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
    client.gets(syn_ack(ANY, CLIENT_ISN + 1).window(0).any_options())
}

/// Of a client whose distance is not known, as the SYN cache has no entry, the box probes for it. Returns whether it does.
#[track_caller]
fn is_probed(world: &World, client: &Host, offered: &Got) -> bool {
    let probed = !world.mode().cache;
    if probed {
        client.gets(ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
    }
    probed
}

/// Answers the probe, if there is one.
#[track_caller]
fn answers_probe(world: &World, client: &Host, offered: &Got) {
    if is_probed(world, client, offered) {
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(offered, 1)));
    }
}

/// The SYN-ACK that a LAN host gets for its own SYN, in the name of a client with the same options.
fn crossed(terms: Terms, value: u32) -> Seg {
    terms.on(syn_ack(CLIENT_ISN, SERVER_ISN + 1), (value, SERVER_TS)).any_window().ttl(CLIENT_TTL)
}

/// The connection that both ends have opened, for a transfer of data.
fn joined(offered: &Got, server_syn: Got, update: Got) -> Joined {
    let ts_shift = update.ts().map_or(0, |(value, _)| value.wrapping_sub(SERVER_TS));
    Joined {
        client_isn: CLIENT_ISN,
        server_isn: SERVER_ISN,
        cookie: offered.seq,
        ts_shift,
        stamps: (CLIENT_TS + 60, SERVER_TS + 60),
        offered: offered.clone(),
        server_syn,
        update,
    }
}

in_every_mode! {
    fn a_syn_of_the_lan_behind_the_clients_proof_is_answered_in_its_name(world, client, server) {
        let terms = Terms::linux(world.mss());
        let offered = connect(&client, terms);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 1)));
        // The firewall of the LAN takes no bare SYN.
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        world.after_ms(30);
        server.sends(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        answers_probe(&world, &client, &offered);
        let got = server.gets(crossed(terms, CLIENT_TS + 1));
        let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).window(64_240 >> 7).any_options().ttl(SERVER_TTL));
        // It asks again: its answer was lost.
        server.sends(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        server.gets(crossed(terms, CLIENT_TS + 1));
        server.sends(ack(SERVER_ISN + 1, CLIENT_ISN + 1).maybe_ts(Some((SERVER_TS + 1, CLIENT_TS + 1))));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
        let mut transfer = Transfer::new(&client, &server, joined(&offered, got, update));
        transfer.client(PSH, 100);
        transfer.server(PSH, 300);
        transfer.closes_from_the_client();
        assert_eq!(world.happened(Event::SimultaneousOpen), 1);
    }

    fn a_syn_of_the_lan_before_the_clients_proof_is_remembered_and_passed_on(world, client, server) {
        let terms = Terms::linux(world.mss());
        let offered = connect(&client, terms);
        world.after_ms(20);
        server.passes(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        world.after_ms(20);
        // The client has our SYN-ACK: this is its acknowledgement, and soon its challenge of the LAN's SYN.
        let proof = ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 40));
        client.sends(proof.clone());
        server.gets(nothing());
        // The LAN measures the client's round trip of 40 ms, half of which had passed; or the answer to a probe ends it.
        if is_probed(&world, &client, &offered) {
            world.after_ms(40);
            client.sends(proof.clone());
        } else {
            world.after_ms(15);
            server.gets(nothing());
            world.tick(Duration::from_millis(8));
        }
        let got = server.gets(crossed(terms, CLIENT_TS + 40));
        let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).window(64_240 >> 7).any_options());
        client.sends(proof);
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        let mut transfer = Transfer::new(&client, &server, joined(&offered, got, update));
        transfer.server(0, 0);
        transfer.client(PSH, 100);
        transfer.server(PSH, 300);
        transfer.closes_from_the_server();
        world.after_secs(130);
        world.has_flows(0, 0);
    }

    fn a_client_that_never_had_our_answer_opens_with_the_lan_itself(world, client, server) {
        let terms = Terms::linux(world.mss());
        let _lost = connect(&client, terms);
        server.passes(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        client.passes(terms.on(syn_ack(CLIENT_ISN, SERVER_ISN + 1), (CLIENT_TS + 5, SERVER_TS)));
        server.passes(ack(SERVER_ISN + 1, CLIENT_ISN + 1).maybe_ts(Some((SERVER_TS + 9, CLIENT_TS + 5))));
        client.passes(data(CLIENT_ISN + 1, SERVER_ISN + 1, 10).maybe_ts(Some((CLIENT_TS + 9, SERVER_TS + 9))));
        world.has_flows(0, 1);
        assert_eq!(world.happened(Event::SimultaneousOpen), 0);
    }

    fn a_client_that_is_gone_refuses_the_lan(world, client, server) {
        let terms = Terms::linux(world.mss());
        let _ = connect(&client, terms);
        server.passes(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        client.passes(rst_ack(0, SERVER_ISN + 1));
        assert_eq!(world.population().syn_cached, 0);
    }

    fn an_error_about_the_lans_syn_reaches_the_lan(world, client, server) {
        let terms = Terms::linux(world.mss());
        let _ = connect(&client, terms);
        let frame = server.frame(&terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        server.passes(frame.clone());
        client.passes(icmp_error(&client.ends(), world.mode().tags, Complaint::HostUnreachable, &frame, 8));
    }

    fn a_repeated_syn_of_the_client_keeps_what_the_lan_has_sent(world, client, server) {
        let terms = Terms { wscale: Some(3), ..Terms::linux(world.mss()) };
        let offered = connect(&client, terms);
        server.passes(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        world.after_ms(100);
        client.sends(terms.on(syn(CLIENT_ISN), (CLIENT_TS, 0)));
        if world.mode().cache {
            let again = client.gets(syn_ack(offered.seq, CLIENT_ISN + 1).window(0).any_options());
            client.sends(ack(CLIENT_ISN + 1, again.seq + 1).maybe_ts(echoed(&again, 1)));
        } else {
            // Without an entry the LAN's SYN is all that is known: the client's passes, and the LAN may take it.
            server.gets(unchanged());
            client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 1)));
        }
        world.tick(Duration::from_millis(1));
        // Which of its SYN-ACKs it acknowledges is not known, so its distance is not.
        client.gets(ack(offered.seq, CLIENT_ISN + 1).any_window().any_options());
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 1)));
        let got = server.gets(crossed(terms, CLIENT_TS + 1));
        assert_eq!(got.wscale(), Some(3));
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
    }

    fn a_reset_of_the_client_while_the_lan_waits_ends_the_lans_attempt(world, client, server) {
        let terms = Terms::linux(world.mss());
        let offered = connect(&client, terms);
        world.after_ms(40);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 40)));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        server.sends(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        is_probed(&world, &client, &offered);
        assert_eq!(world.dropped(DropReason::Consumed), 1);
        client.sends(rst(CLIENT_ISN + 1));
        server.gets(rst_ack(CLIENT_ISN + 1, SERVER_ISN + 1));
        world.after_secs(50);
        world.has_flows(0, 0);
    }

    fn a_lan_whose_firewall_lets_our_syn_pass_answers_it(world, client, server) {
        let terms = Terms::linux(world.mss());
        let offered = connect(&client, terms);
        world.after_ms(40);
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 40)));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        // The two cross on the LAN's cable.
        server.sends(terms.on(syn(SERVER_ISN), (SERVER_TS, 0)));
        is_probed(&world, &client, &offered);
        server.sends(terms.on(syn_ack(SERVER_ISN, CLIENT_ISN + 1), (SERVER_TS + 1, CLIENT_TS + 40)));
        server.gets(ack(CLIENT_ISN + 1, SERVER_ISN + 1).any_window().any_options());
        client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).any_window().any_options());
        world.has_flows(1, 0);
    }

    fn a_lan_without_the_clients_options_gets_none_of_them(world, client, server) {
        let offered = connect(&client, Terms::linux(world.mss()));
        client.sends(ack(CLIENT_ISN + 1, offered.seq + 1).maybe_ts(echoed(&offered, 1)));
        server.gets(segment(SYN, CLIENT_ISN, 0).any_window().any_options());
        server.sends(Terms::bare(536).on(syn(SERVER_ISN), (0, 0)));
        answers_probe(&world, &client, &offered);
        // The room for the timestamps that the box inserts.
        server.gets(syn_ack(CLIENT_ISN, SERVER_ISN + 1).any_window().mss(world.mss() - 12));
        let update = client.gets(ack(offered.seq + 1, CLIENT_ISN + 1).window(8192 >> 7).any_options());
        assert!(update.ts().is_some());
    }

    fn a_signed_syn_of_the_lan_passes_as_it_is(world, client, server) {
        let _ = connect(&client, Terms::linux(world.mss()));
        let signature = [19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1];
        server.passes(syn(SERVER_ISN).mss(1460).raw(&signature));
        client.passes(syn_ack(CLIENT_ISN, SERVER_ISN + 1).mss(1460).raw(&signature));
        world.has_flows(0, 1);
    }
}

// ---- every loss ----

/// What a host of the model has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Closed,
    SynSent,
    SynReceived,
    Established,
}

/// A small TCP (RFC 9293 section 3.10), which opens actively, sends five bytes and waits for as many.
struct Peer {
    host: Host,
    terms: Terms,
    stage: Stage,
    starts: u64,
    isn: u32,
    /// Of the other end: its first number and its options.
    peer: Option<(u32, Terms)>,
    /// When what is unacknowledged is repeated, and how long the next wait is.
    due: u64,
    wait: u64,
    window: u32,
    acked: bool,
    received: bool,
    last_stamp: u32,
    firewalled: bool,
    was_reset: bool,
    sent: bool,
}

const HELLO: u32 = 5;

impl Peer {
    fn new(host: &Host, terms: Terms, isn: u32, starts: u64, firewalled: bool) -> Self {
        Peer {
            host: host.clone(),
            terms,
            stage: Stage::Closed,
            starts,
            isn,
            peer: None,
            due: starts,
            wait: 1000,
            window: 0,
            acked: false,
            received: false,
            last_stamp: 0,
            firewalled,
            was_reset: false,
            sent: false,
        }
    }

    fn is_done(&self) -> bool {
        self.acked && self.received
    }

    fn next(&self) -> u32 {
        self.peer.map_or(0, |(isn, _)| isn.wrapping_add(1 + if self.received { HELLO } else { 0 }))
    }

    /// Both offered it.
    fn stamped(&self) -> bool {
        self.terms.ts && self.peer.is_some_and(|(_, terms)| terms.ts)
    }

    fn stamps(&self, now: u64) -> Option<(u32, u32)> {
        self.stamped().then_some((self.isn.wrapping_add(now as u32), self.last_stamp))
    }

    fn ack(&self, now: u64, seq: u32) -> Vec<u8> {
        let field = if self.peer.is_some_and(|(_, terms)| terms.wscale.is_some()) && self.terms.wscale.is_some() {
            self.terms.window >> self.terms.wscale.unwrap_or(0)
        } else {
            self.terms.window
        };
        self.host.frame(&ack(seq, self.next()).window(field).maybe_ts(self.stamps(now)))
    }

    fn opening(&self, now: u64) -> Vec<u8> {
        let stamp = self.isn.wrapping_add(now as u32);
        match self.peer.filter(|_| self.stage == Stage::SynReceived) {
            None => self.host.frame(&self.terms.on(syn(self.isn), (stamp, 0))),
            Some((peer, theirs)) => {
                let agreed = Terms {
                    wscale: self.terms.wscale.filter(|_| theirs.wscale.is_some()),
                    sack: self.terms.sack && theirs.sack,
                    ts: self.stamped(),
                    ..self.terms
                };
                self.host.frame(&agreed.on(syn_ack(self.isn, peer.wrapping_add(1)), (stamp, self.last_stamp)))
            }
        }
    }

    /// What it sends of its own accord.
    fn turn(&mut self, now: u64) -> Vec<Vec<u8>> {
        if self.stage == Stage::Closed && !self.was_reset && now >= self.starts {
            self.stage = Stage::SynSent;
        }
        let sends = match self.stage {
            Stage::Closed => false,
            Stage::SynSent | Stage::SynReceived => true,
            Stage::Established => !self.acked && self.window >= HELLO,
        };
        if !sends || now < self.due {
            return vec![];
        }
        self.due = now + self.wait;
        self.wait *= 2;
        vec![match self.stage {
            Stage::Established => {
                self.sent = true;
                let hello = data(self.isn.wrapping_add(1), self.next(), HELLO as usize);
                self.host.frame(&hello.maybe_ts(self.stamps(now)))
            }
            _ => self.opening(now),
        }]
    }

    fn becomes_established(&mut self, now: u64) {
        self.stage = Stage::Established;
        (self.due, self.wait) = (now, 1000);
    }

    /// What it answers to a segment.
    fn receives(&mut self, got: &Got, now: u64) -> Vec<Vec<u8>> {
        let (has, first) = (|flag| got.flags & flag != 0, self.isn.wrapping_add(1));
        if self.firewalled && got.flags & (SYN | ACK) == SYN || self.stage == Stage::Closed {
            return vec![];
        }
        let refuse = |peer: &Self| vec![peer.host.frame(&rst(got.ack))];
        let challenge = |peer: &Self| vec![peer.ack(now, first.wrapping_add(if peer.sent { HELLO } else { 0 }))];
        if self.stage == Stage::SynSent {
            if has(ACK) && got.ack != first {
                return if has(RST) { vec![] } else { refuse(self) };
            }
            if has(RST) {
                self.was_reset |= has(ACK);
                self.stage = if has(ACK) { Stage::Closed } else { self.stage };
                return vec![];
            }
            if !has(SYN) {
                return vec![];
            }
            let theirs = Terms {
                mss: got.mss(),
                wscale: got.wscale(),
                sack: got.sack_ok(),
                ts: got.ts().is_some(),
                window: got.window,
            };
            self.peer = Some((got.seq, theirs));
            self.window = got.window.into();
            self.last_stamp = got.ts().map_or(0, |(value, _)| value);
            if has(ACK) {
                self.becomes_established(now);
                return vec![self.ack(now, first)];
            }
            self.stage = Stage::SynReceived;
            (self.due, self.wait) = (now, 1000);
            return vec![];
        }
        let Some((peer, theirs)) = self.peer else { return vec![] };
        if has(RST) {
            if got.seq == self.next() {
                (self.stage, self.was_reset) = (Stage::Closed, true);
            }
            return vec![];
        }
        let acceptable = got.ack == first || got.ack == first.wrapping_add(HELLO);
        if self.stage == Stage::SynReceived && has(ACK) && !acceptable {
            return refuse(self);
        }
        if has(SYN) {
            let completes = self.stage == Stage::SynReceived && has(ACK) && got.ack == first && got.seq == peer;
            if !completes {
                return challenge(self);
            }
            self.becomes_established(now);
            return vec![self.ack(now, first)];
        }
        // What is late or early is answered; a bare acknowledgement is taken, as its numbers lie within the window.
        let in_order = got.seq == self.next();
        if !acceptable || !in_order && !got.payload.is_empty() {
            return challenge(self);
        }
        assert_eq!(got.ts().is_some(), self.stamped(), "timestamps are on every segment or on none: {got}");
        if self.stage == Stage::SynReceived {
            self.becomes_established(now);
        }
        let scale = if self.terms.wscale.is_some() { theirs.wscale.unwrap_or(0) } else { 0 };
        self.window = u32::from(got.window) << scale;
        self.last_stamp = got.ts().map_or(0, |(value, _)| value);
        self.acked |= got.ack == first.wrapping_add(HELLO);
        if got.payload.is_empty() {
            return vec![];
        }
        assert_eq!(got.payload.len(), HELLO as usize);
        self.received = true;
        challenge(self)
    }
}

/// One way it goes: what is lost, and in what circumstances.
#[derive(Clone, Copy, Debug)]
struct Case {
    early: bool,
    cache: bool,
    client: Terms,
    server: Terms,
    /// One way on the WAN, and how much later the LAN opens, in ms.
    delay: u64,
    gap: u64,
    firewalled: bool,
    /// Frames that are lost: on the WAN and on the LAN, by their number there, whichever way they go.
    lost: [(usize, usize); 2],
}

/// Runs it; what is wrong with its end.
fn run(case: &Case) -> Result<(), String> {
    let mode = Mode { cache: case.cache, ..Mode::V4 };
    let (world, client, server) = mode.world_with(|config| {
        config.handshake = if case.early { Handshake::Early } else { Handshake::Honest };
    });
    let mut peers = [
        Peer::new(&server, case.server, SERVER_ISN, case.gap, case.firewalled),
        Peer::new(&client, case.client, CLIENT_ISN, 0, false),
    ];
    let delay = |side: Side| if side == Side::Wan { case.delay } else { 0 };
    // When it arrives, whether at the box, on which side, and what.
    let mut cables: Vec<(u64, bool, Side, Vec<u8>)> = Vec::new();
    let mut counted = [0usize; 2];
    let mut leaves = |cables: &mut Vec<_>, now: u64, to_box: bool, side: Side, frame: Vec<u8>| {
        let number = counted[side as usize];
        counted[side as usize] += 1;
        if !case.lost.contains(&(side as usize, number)) {
            cables.push((now + delay(side), to_box, side, frame));
        }
    };
    for now in 0..70_000u64 {
        loop {
            for side in Side::BOTH {
                for frame in peers[side as usize].turn(now) {
                    leaves(&mut cables, now, true, side, frame);
                }
            }
            let Some(at) = cables.iter().position(|(at, ..)| *at <= now) else { break };
            let (_, to_box, side, frame) = cables.remove(at);
            if to_box {
                let _: Verdict = world.inject(side, &frame);
                for (side, frame) in world.discard() {
                    leaves(&mut cables, now, false, side, frame);
                }
                continue;
            }
            let got = read(&frame, world.now()).map_err(|error| error.to_string())?;
            if got.checksums != (true, true) {
                return Err(format!("damaged: {got}"));
            }
            for answer in peers[side as usize].receives(&got, now) {
                leaves(&mut cables, now, true, side, answer);
            }
        }
        if peers.iter().all(Peer::is_done) {
            return Ok(());
        }
        if peers.iter().any(|peer| peer.was_reset) {
            return Err(format!("reset after {now} ms: {:?}", peers.each_ref().map(|peer| peer.stage)));
        }
        world.tick(Duration::from_millis(1));
        for (side, frame) in world.discard() {
            leaves(&mut cables, now, false, side, frame);
        }
    }
    Err(format!("no end: {:?}", peers.each_ref().map(|peer| (peer.stage, peer.acked, peer.received, peer.window))))
}

/// Every pair of losses among these frames of either side.
fn losses(most: usize) -> Vec<[(usize, usize); 2]> {
    const NONE: (usize, usize) = (usize::MAX, 0);
    let all: Vec<_> = (0..2).flat_map(|side| (0..most).map(move |number| (side, number))).collect();
    let pairs = all.iter().flat_map(|one| all.iter().filter(move |other| *other > one).map(|other| [*one, *other]));
    std::iter::once([NONE; 2]).chain(all.iter().map(|one| [*one, NONE])).chain(pairs).collect()
}

fn try_all(early: bool) {
    let (linux, windows, bare) = (Terms::linux(1460), Terms::windows(1460), Terms::bare(1460));
    let mut failed = Vec::new();
    let mut tried = 0;
    for (n, lost) in losses(7).into_iter().enumerate() {
        for (delay, gap) in [(0, 0), (0, 30), (20, 0), (20, 10), (20, 30), (20, 45), (20, 90), (20, 700)] {
            for cache in [false, true] {
                // All kinds of ends for the losses in turn, and all of them without a loss.
                let ends = [(linux, linux), (windows, linux), (linux, bare), (windows, windows)];
                for (k, (client, server)) in ends.into_iter().enumerate() {
                    if n > 0 && (n + usize::from(cache)) % ends.len() != k {
                        continue;
                    }
                    let case = Case { early, cache, client, server, delay, gap, firewalled: n % 3 != 2, lost };
                    tried += 1;
                    if let Err(why) = run(&case) {
                        failed.push((case, why));
                    }
                }
            }
        }
    }
    for (case, why) in failed.iter().take(10) {
        eprintln!("{why}: {case:?}");
    }
    assert!(failed.is_empty(), "{} of {tried} do not connect", failed.len());
}

#[test]
fn whatever_is_lost_an_honest_pair_connects() {
    try_all(false);
}

#[test]
fn whatever_is_lost_an_early_pair_connects() {
    try_all(true);
}
