//! Several member links of an aggregation (a bond, a LAG; IEEE 802.1AX) as one port of a worker.
//!
//! Member i of the LAN and member i of the WAN are one cable that the box is put into, so a frame that came in by member i leaves by member i
//! of either side: forwarded to its partner, or answered to where it came from. The number goes with the frame, in the first byte of its
//! buffer's headroom, also from worker to worker. A segment that the engine sends of its own accord when a frame has come goes the way of
//! that frame; one that a timer sends goes by the member that last received something, which therefore has a link.

use crate::failure::FailureSwitch;
use crate::frame::{Batch, MOST_MEMBERS};
use crate::left::LeftSocket;
use crate::pool::Pool;
use crate::port::{Capabilities, Handover, Port, PortStatistics};
use crate::shed::{ShedFilter, ShedLevel};
use std::os::fd::RawFd;

/// The members of a port: the same queue of each of them.
pub(crate) struct Members {
    ports: Vec<Box<dyn Port>>,
    /// What is to leave by each. Empty between calls.
    outgoing: Vec<Batch>,
    /// The member that is asked first, so that none starves.
    first: usize,
    /// The member that last received something.
    last: usize,
}

impl Members {
    /// These ports as one.
    ///
    /// # Panics
    ///
    /// Without a port, or with more than [`MOST_MEMBERS`].
    pub(crate) fn new(ports: Vec<Box<dyn Port>>, batch: usize) -> Members {
        assert!((1..=MOST_MEMBERS).contains(&ports.len()), "a port has members, and not too many");
        let outgoing = ports.iter().map(|_| Batch::with_capacity(4 * batch)).collect();
        Members { ports, outgoing, first: 0, last: 0 }
    }
}

impl Port for Members {
    fn receive(&mut self, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let (mut received, members) = (0, self.ports.len());
        for turn in 0..members {
            let member = (self.first + turn) % members;
            let from = batch.len();
            let got = self.ports[member].receive(batch, max - received, pool);
            for frame in batch.iter_mut().skip(from) {
                frame.set_member(member as u8);
            }
            if got > 0 {
                self.last = member;
            }
            received += got;
            if received >= max {
                break;
            }
        }
        self.first = (self.first + 1) % members;
        received
    }

    fn transmit(&mut self, batch: &mut Batch, pool: &mut Pool) -> usize {
        for frame in batch.drain(..) {
            let member = usize::from(frame.member());
            let member = if member < self.ports.len() { member } else { self.last };
            self.outgoing[member].push(frame);
        }
        let mut sent = 0;
        for (port, outgoing) in self.ports.iter_mut().zip(&mut self.outgoing) {
            sent += port.transmit(outgoing, pool);
            // In order at least within a member, as on its link.
            outgoing.drain(..).for_each(|frame| batch.push(frame));
        }
        sent
    }

    fn failure_switch(&mut self) -> Option<&mut dyn FailureSwitch> {
        // One worker serves all of them, so that any tells of it.
        self.ports.first_mut()?.failure_switch()
    }

    fn completed(&self) -> u64 {
        self.ports.iter().map(|port| port.completed()).sum()
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.ports.iter_mut().for_each(|port| port.flush(pool));
    }

    fn poll_fd(&self) -> Option<RawFd> {
        self.ports[0].poll_fd()
    }

    fn members(&self) -> &[Box<dyn Port>] {
        &self.ports
    }

    fn is_exhausted(&self) -> bool {
        self.ports.iter().all(|port| port.is_exhausted())
    }

    fn is_backlogged(&self) -> bool {
        self.ports.iter().any(|port| port.is_backlogged())
    }

    fn shed_filter(&mut self) -> Option<&mut dyn ShedFilter> {
        if self.ports.iter_mut().all(|port| port.shed_filter().is_some()) { Some(self) } else { None }
    }

    fn handover(&mut self) -> Option<&mut dyn Handover> {
        if self.ports.iter_mut().all(|port| port.handover().is_some()) { Some(self) } else { None }
    }

    fn capabilities(&self) -> Capabilities {
        let all = || self.ports.iter().map(|port| port.capabilities());
        let mut one = self.ports[0].capabilities();
        one.zero_copy = all().all(|other| other.zero_copy);
        one.driver_mode = all().all(|other| other.driver_mode);
        one.exclusive = all().any(|other| other.exclusive);
        one.multi_buffer = all().any(|other| other.multi_buffer);
        one.max_frame = all().map(|other| other.max_frame).min().unwrap_or(0);
        one
    }

    fn statistics(&self) -> PortStatistics {
        self.ports.iter().map(|port| port.statistics()).sum()
    }
}

impl Handover for Members {
    fn leave(&mut self, pool: &mut Pool, sockets: &mut Vec<LeftSocket>) -> bool {
        self.ports.iter_mut().all(|port| port.handover().is_some_and(|port| port.leave(pool, sockets)))
    }
}

/// What one member's program does, every member's does.
impl ShedFilter for Members {
    fn set_level(&mut self, level: ShedLevel) {
        for port in &mut self.ports {
            if let Some(filter) = port.shed_filter() {
                filter.set_level(level);
            }
        }
    }

    fn add_proved_source(&mut self, source: [u8; 16]) {
        for port in &mut self.ports {
            if let Some(filter) = port.shed_filter() {
                filter.add_proved_source(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::NO_MEMBER;
    use crate::memory;

    #[test]
    fn frames_leave_by_the_member_they_came_by_and_others_by_the_one_that_lives() {
        let mut pool = Pool::heap(64, 256, 64);
        let (near, mut far): (Vec<_>, Vec<_>) = (0..2).map(|_| memory::pair(16)).unzip();
        let boxed = near.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
        let mut members = Members::new(boxed, 16);
        let mut batch = Batch::new();
        for (member, text) in [(1, b"one"), (0, b"two"), (1, b"six")] {
            assert!(far[member].push(text));
        }
        assert_eq!(members.receive(&mut batch, 64, &mut pool), 3);
        assert_eq!(batch.iter_mut().map(|frame| frame.member()).collect::<Vec<_>>(), [0, 1, 1]);
        let mut own = pool.adopt(b"own").unwrap();
        own.set_member(NO_MEMBER);
        batch.push(own);
        assert_eq!(members.transmit(&mut batch, &mut pool), 4);
        members.flush(&mut pool);
        let received = |far: &mut memory::MemoryWire| std::iter::from_fn(|| far.pop()).collect::<Vec<_>>();
        assert_eq!(received(&mut far[0]), [b"two"]);
        assert_eq!(received(&mut far[1]), [b"one", b"six", b"own"]);
        assert_eq!((members.statistics().received, members.statistics().sent), (3, 4));
        assert!(batch.is_empty());
        assert_eq!(pool.idle(), pool.total());
    }

    #[test]
    fn each_member_has_its_turn_and_a_full_one_refuses_its_own_frames_alone() {
        let mut pool = Pool::heap(64, 256, 64);
        let (near, mut far): (Vec<_>, Vec<_>) = [2, 16].into_iter().map(memory::pair).unzip();
        let boxed = near.into_iter().map(|port| Box::new(port) as Box<dyn Port>).collect();
        let mut members = Members::new(boxed, 16);
        for _ in 0..2 {
            far.iter_mut().for_each(|far| assert!(far.push(b"x")));
        }
        let mut batch = Batch::new();
        let seen: Vec<u8> = (0..4)
            .map(|_| {
                assert_eq!(members.receive(&mut batch, 1, &mut pool), 1);
                let mut frames = batch.drain(..);
                let frame = frames.next().expect("one");
                let member = frame.member();
                drop(frames);
                pool.put(frame);
                member
            })
            .collect();
        assert_eq!(seen, [0, 1, 0, 1]);
        for member in [0, 0, 0, 1] {
            let mut frame = pool.adopt(b"x").unwrap();
            frame.set_member(member);
            batch.push(frame);
        }
        assert_eq!(members.transmit(&mut batch, &mut pool), 3);
        assert_eq!(
            batch
                .drain(..)
                .map(|frame| {
                    let member = frame.member();
                    pool.put(frame);
                    member
                })
                .collect::<Vec<_>>(),
            [0]
        );
    }
}
