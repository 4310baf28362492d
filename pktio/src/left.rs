//! The AF_XDP sockets of a worker, which one process leaves to the next, open and bound, with the memory of their frames.
//!
//! A queue whose socket is closed can be bound again only when all processors have taken notice of it, twice: some 20 to 40 ms on an idle machine, in which
//! frames are lost. A socket that passes from process to process is never closed. What comes meanwhile waits in its receive ring.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::frame::MOST_MEMBERS;

/// Words of a worker, and of each of its sockets, in [`LeftSockets::words`].
const WORDS: usize = 4;
const SOCKET_WORDS: usize = 7;

/// The layout of the words.
const LAYOUT: u64 = 1;

/// In place of the time at which a worker looked: nobody acts on it.
const NEVER: u64 = u64::MAX;

/// The most sockets of a worker: two for each member of an aggregation.
const MOST_SOCKETS: usize = 2 * MOST_MEMBERS;

/// A socket that is bound to a queue, and where its port was with its rings.
#[derive(Debug)]
pub struct LeftSocket {
    pub(crate) socket: OwnedFd,
    /// Index of its interface.
    pub(crate) interface: u32,
    /// How it was bound.
    pub(crate) bound: Bound,
    /// Buffers in the fill ring and in the receive ring.
    pub(crate) filled: usize,
    /// Buffers in the transmit ring, at the device, and in the completion ring.
    pub(crate) in_flight: usize,
    /// Entries of the receive and of the transmit ring.
    pub(crate) ring: u32,
    /// Entries of the fill and of the completion ring.
    pub(crate) buffers: u32,
    /// When its worker said for the last time that it looks at its rings, as [`monotonic`] tells it, if a program of the kernel bridges frames past one that does
    /// not.
    pub(crate) looked_at: Option<Duration>,
}

/// How a socket was opened, which cannot be changed, or not without effect on what is in its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) zero_copy: bool,
    /// A frame may lie in several buffers.
    pub(crate) in_pieces: bool,
    /// Its worker drives the device's receive path.
    pub(crate) busy_poll: bool,
}

/// The sockets of one worker, and the memory of their frames.
#[derive(Debug)]
pub struct LeftSockets {
    /// The memory file: so many chunks of so many bytes, and a byte for each, which is one where the chunk is idle.
    pub(crate) memory: OwnedFd,
    pub(crate) chunks: usize,
    pub(crate) chunk: usize,
    /// The number of the queue.
    pub(crate) queue: u32,
    /// Of the LAN's interfaces, then of the WAN's.
    pub(crate) sockets: Vec<LeftSocket>,
}

impl LeftSockets {
    /// The number of the queue.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// What the next process has to know besides the [descriptors](LeftSockets::descriptors).
    pub fn words(&self) -> Vec<u64> {
        let LeftSockets { chunks, chunk, queue, sockets, .. } = self;
        let mut words = vec![LAYOUT, *chunks as u64, *chunk as u64, (*queue).into()];
        for LeftSocket { interface, bound, filled, in_flight, ring, buffers, looked_at, .. } in sockets {
            let Bound { zero_copy, in_pieces, busy_poll } = *bound;
            let bits = u64::from(zero_copy) | u64::from(in_pieces) << 1 | u64::from(busy_poll) << 2;
            words.extend([
                (*interface).into(),
                bits,
                *filled as u64,
                *in_flight as u64,
                (*ring).into(),
                (*buffers).into(),
                looked_at.map_or(NEVER, |at| at.as_nanos() as u64),
            ]);
        }
        words
    }

    /// The memory, and then the sockets.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let sockets = self.sockets.iter().map(|one| one.socket.as_fd());
        [self.memory.as_fd()].into_iter().chain(sockets).collect()
    }

    /// What another process has said of these descriptors; `None` if it makes no sense, or is of another version.
    pub fn from_words(words: &[u64], descriptors: Vec<OwnedFd>) -> Option<LeftSockets> {
        let (&[LAYOUT, chunks, chunk, queue], rest) = words.split_first_chunk::<WORDS>()? else {
            return None;
        };
        let (rest, []) = rest.as_chunks::<SOCKET_WORDS>() else { return None };
        let mut descriptors = descriptors.into_iter();
        let memory = descriptors.next()?;
        if rest.is_empty() || rest.len() > MOST_SOCKETS || descriptors.len() != rest.len() {
            return None;
        }
        let (chunks, chunk) = (usize::try_from(chunks).ok()?, usize::try_from(chunk).ok()?);
        let is_fit = chunk.is_power_of_two() && (1..=1 << 26).contains(&chunks) && (2048..=4096).contains(&chunk);
        if !is_fit {
            return None;
        }
        let mut lent = 0_usize;
        let mut sockets = Vec::new();
        for (&[interface, bits, filled, in_flight, ring, buffers, looked_at], socket) in rest.iter().zip(descriptors) {
            let size = |entries: u64| u32::try_from(entries).ok().filter(|entries| entries.is_power_of_two());
            let count = |buffers: u64| usize::try_from(buffers).ok().filter(|buffers| *buffers <= chunks);
            let (filled, in_flight) = (count(filled)?, count(in_flight)?);
            lent += filled + in_flight;
            sockets.push(LeftSocket {
                socket,
                interface: interface.try_into().ok()?,
                bound: Bound { zero_copy: bits & 1 != 0, in_pieces: bits & 2 != 0, busy_poll: bits & 4 != 0 },
                filled,
                in_flight,
                ring: size(ring)?,
                buffers: size(buffers)?,
                looked_at: (looked_at != NEVER).then(|| Duration::from_nanos(looked_at)),
            });
        }
        let queue = queue.try_into().ok()?;
        (lent <= chunks).then_some(LeftSockets { memory, chunks, chunk, queue, sockets })
    }
}

/// The time of a clock that all processes of a machine share and nobody sets.
pub(crate) fn monotonic() -> Duration {
    // SAFETY: the structure holds integers alone.
    let mut now: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: the time is written into a local structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| File::open("/dev/null").expect("it is there").into()).collect()
    }

    fn left() -> LeftSockets {
        let socket = |interface, filled| LeftSocket {
            socket: descriptors(1).remove(0),
            interface,
            bound: Bound { zero_copy: true, in_pieces: false, busy_poll: true },
            filled,
            in_flight: 3,
            ring: 4096,
            buffers: 16384,
            looked_at: (interface == 7).then_some(Duration::from_nanos(123_456_789_123)),
        };
        LeftSockets {
            memory: descriptors(1).remove(0),
            chunks: 16384,
            chunk: 2048,
            queue: 1,
            sockets: vec![socket(7, 4000), socket(8, 4096)],
        }
    }

    #[test]
    fn what_is_said_is_what_is_understood() {
        let said = left();
        let understood = LeftSockets::from_words(&said.words(), descriptors(3)).expect("it makes sense");
        assert_eq!(said.words(), understood.words());
        assert_eq!(understood.sockets[1].bound, said.sockets[1].bound);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let words = left().words();
        let with = |at: usize, value: u64| {
            let mut words = words.clone();
            words[at] = value;
            LeftSockets::from_words(&words, descriptors(3)).is_some()
        };
        assert!(with(3, 0));
        // Layout, chunks, bytes of a chunk, queue; interface, buffers in rings, entries of rings.
        for (at, value) in [
            (0, 2),
            (1, 0),
            (1, 4000),
            (1, u64::MAX),
            (2, 0),
            (2, 3000),
            (2, 8192),
            (3, 1 << 40),
            (4, 1 << 40),
            (6, 16384),
            (6, u64::MAX),
            (8, 0),
            (9, 3),
        ] {
            assert!(!with(at, value), "word {at}: {value}");
        }
        for (words, count) in
            [(&words[..], 2), (&words[..], 4), (&words[..17], 3), (&words[..11], 3), (&words[..4], 1), (&[], 1)]
        {
            assert!(LeftSockets::from_words(words, descriptors(count)).is_none());
        }
    }

    proptest! {
        #[test]
        fn no_words_bring_it_down(words in prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..40), count in 0usize..5) {
            let _ = LeftSockets::from_words(&words, descriptors(count));
        }
    }
}
