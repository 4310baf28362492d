//! Two boxes in a row, each between the same clients and servers: every combination of handshake, SYN cache and mode connects, and the numbers of either
//! are right for the other.

use std::collections::VecDeque;
use std::time::Duration;

use tcpstate::Side;
use tcpstate::config::{Handshake, Mode as Does};
use unit::script::*;

/// How one of the boxes works.
#[derive(Clone, Copy, Debug)]
struct Works {
    handshake: Handshake,
    cache: bool,
    mode: Does,
}

fn all_ways() -> impl Iterator<Item = Works> {
    let handshakes = [Handshake::Honest, Handshake::Early];
    handshakes.into_iter().flat_map(|handshake| {
        let modes = [(true, Does::Cache), (false, Does::Cache), (true, Does::Cookie), (true, Does::Pass)];
        modes.map(|(cache, mode)| Works { handshake, cache, mode })
    })
}

/// The box on the WAN's side, and the one behind it.
struct Row([World; 2]);

impl Row {
    fn new(family: Family, ways: [Works; 2]) -> Self {
        Self(ways.map(|Works { handshake, cache, mode }| {
            let run = Mode { family, tags: 0, cache };
            run.world_with(|config| (config.handshake, config.mode) = (handshake, mode)).0
        }))
    }

    /// Both ends of a connection through the row.
    fn ends(&self, port: u16) -> [Host; 2] {
        let ([client, _], [_, server]) = (self.0[0].on_port(port).into(), self.0[1].on_port(port).into());
        [client, server]
    }

    /// Takes these frames, which come to a box on a side, through the row: what comes out at the client, and at the server.
    fn carries(&self, mut frames: VecDeque<(usize, Side, Vec<u8>)>) -> [Vec<Got>; 2] {
        let mut out = [Vec::new(), Vec::new()];
        loop {
            for (at, world) in self.0.iter().enumerate() {
                for (side, frame) in world.discard() {
                    match (at, side) {
                        (0, Side::Lan) => frames.push_back((1, Side::Wan, frame)),
                        (1, Side::Wan) => frames.push_back((0, Side::Lan, frame)),
                        // Errors about segments that would be too big, where none is, are left out.
                        _ => out[at].extend(read(&frame, world.now())),
                    }
                }
            }
            let Some((at, side, frame)) = frames.pop_front() else { return out };
            let _ = self.0[at].inject(side, &frame);
        }
    }
}

const ISN: [u32; 2] = [100, 0xffff_ff00];
const BYTES: [u32; 2] = [100, 200];
/// What they repeat, they repeat after so many milliseconds.
const AGAIN: u64 = 1000;

/// The client, or the server, of one connection.
struct End {
    /// 0 is the client.
    which: usize,
    host: Host,
    /// A server that keeps its terms in its TSval, and resets what does not echo one of those it sent.
    keeps: bool,
    clock: u32,
    /// The number it expects next.
    next: Option<u32>,
    established: bool,
    scale: u8,
    window: u32,
    /// What is echoed, and the TSvals that were sent with SYN or SYN-ACK.
    echo: u32,
    sent: Vec<u32>,
    acked: bool,
    received: u32,
    due: u64,
}

impl End {
    fn new(which: usize, host: Host, keeps: bool) -> Self {
        let (next, sent) = (None, Vec::new());
        let (clock, scale, window, echo) = ([5000, 0x7000_0000][which], 0, 0, 0);
        Self {
            which,
            host,
            keeps,
            clock,
            next,
            established: false,
            scale,
            window,
            echo,
            sent,
            acked: false,
            received: 0,
            due: 0,
        }
    }

    fn is_done(&self) -> bool {
        self.acked && self.received == BYTES[1 - self.which]
    }

    fn first(&self) -> u32 {
        ISN[self.which].wrapping_add(1)
    }

    fn frame(&self, seg: Seg) -> Vec<u8> {
        self.host.frame(&seg.nop().nop().ts(self.clock, self.echo))
    }

    fn ack(&self) -> Vec<u8> {
        let sent = if self.acked { BYTES[self.which] } else { 0 };
        self.frame(ack(self.first().wrapping_add(sent), self.next.unwrap_or_default()))
    }

    /// The SYN, or the SYN-ACK.
    fn opening(&mut self) -> Vec<u8> {
        self.sent.push(self.clock);
        let seg = match self.next {
            Some(next) => syn_ack(ISN[self.which], next),
            None => syn(ISN[self.which]),
        };
        self.host.frame(&Terms::linux(1400).on(seg, (self.clock, self.echo)))
    }

    /// What it sends of its own accord.
    fn turn(&mut self, now: u64) -> Option<Vec<u8>> {
        let may_open = !self.established && (self.which == 0 || self.next.is_some());
        let may_send = self.established && !self.acked && self.window >= BYTES[self.which];
        // The server answers.
        let may_send = may_send && (self.which == 0 || self.received > 0);
        if now < self.due || !may_open && !may_send {
            return None;
        }
        self.due = now + AGAIN;
        Some(if may_open {
            self.opening()
        } else {
            self.frame(data(self.first(), self.next.unwrap(), BYTES[self.which] as usize))
        })
    }

    /// What it answers.
    fn receives(&mut self, got: &Got, now: u64) -> Option<Vec<u8>> {
        assert_eq!(got.flags & RST, 0, "the {} is reset: {got}", self.which);
        assert_eq!(got.checksums, (true, true), "{got}");
        let (value, echo) = got.ts().expect("timestamps on every segment");
        if got.flags & SYN != 0 {
            if self.which == 1 && !self.established {
                self.next = Some(got.seq.wrapping_add(1));
                // The first is echoed, as Linux does.
                self.echo = if self.sent.is_empty() { value } else { self.echo };
                self.scale = got.wscale().unwrap();
                self.due = now + AGAIN;
                return Some(self.opening());
            }
            if self.which == 0 && !self.established {
                self.next = Some(got.seq.wrapping_add(1));
                (self.established, self.echo) = (true, value);
                self.scale = got.wscale().unwrap();
                // Not scaled (RFC 7323 section 2.2).
                self.window = got.window.into();
                self.due = now;
            }
            return Some(self.ack());
        }
        let next = self.next?;
        if !self.established {
            // Linux 6.18: an echo between the first TSval of its SYN-ACKs and the last, or none.
            let is_taken = match self.keeps {
                true => self.sent.contains(&echo),
                false => echo == 0 || self.sent.first() <= Some(&echo) && Some(&echo) <= self.sent.last(),
            };
            if got.ack != self.first() || !is_taken {
                return self.keeps.then(|| self.host.frame(&rst(got.ack)));
            }
            (self.established, self.due) = (true, now);
        }
        self.window = u32::from(got.window) << self.scale;
        self.acked |= got.ack == self.first().wrapping_add(BYTES[self.which]);
        self.echo = value;
        let len = got.payload.len() as u32;
        if len > 0 && got.seq == next {
            self.next = Some(next.wrapping_add(len));
            self.received += len;
            self.due = now;
        }
        (len > 0 || got.seq != self.next?).then(|| self.ack())
    }
}

/// A connection through the row exchanges its bytes in time.
fn connects(row: &Row, port: u16, keeps: bool) {
    let mut ends = row.ends(port);
    let [client, server] = &mut ends;
    let mut ends = [End::new(0, client.clone(), false), End::new(1, server.clone(), keeps)];
    let into = |which: usize, frame: Vec<u8>| if which == 0 { (0, Side::Wan, frame) } else { (1, Side::Lan, frame) };
    for now in (0..20_000).step_by(10) {
        let mut frames: VecDeque<_> = ends.iter_mut().filter_map(|end| Some(into(end.which, end.turn(now)?))).collect();
        loop {
            let out = row.carries(std::mem::take(&mut frames));
            for (which, got) in (0..).zip(&out).flat_map(|(which, all)| all.iter().map(move |got| (which, got))) {
                frames.extend(ends[which].receives(got, now).map(|frame| into(which, frame)));
            }
            if frames.is_empty() {
                break;
            }
        }
        if ends.iter().all(End::is_done) {
            return;
        }
        for world in &row.0 {
            world.tick(Duration::from_millis(10));
        }
        ends.iter_mut().for_each(|end| end.clock += 10);
    }
    let state = ends.map(|end| (end.established, end.window, end.acked, end.received));
    panic!("port {port}: established, window, acknowledged, received: {state:?}");
}

#[test]
fn two_boxes_in_a_row_connect_in_every_combination() {
    let pairs = all_ways().flat_map(|outer| all_ways().map(move |inner| [outer, inner]));
    for (n, ways) in pairs.enumerate() {
        for keeps in [false, true] {
            // Which address family it is changes nothing between the boxes.
            let family = if (n % 2 == 0) == keeps { Family::V4 } else { Family::V6 };
            println!("{family:?}, {:?} in front of {:?}, keeps its terms: {keeps}", ways[0], ways[1]);
            let row = Row::new(family, ways);
            // The first finds both knowing nothing.
            for port in 1..4 {
                connects(&row, port, keeps);
            }
            // What is said after the end is nobody's.
            row.carries(VecDeque::new());
        }
    }
}
