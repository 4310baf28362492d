//! What part of the flow table each network and each destination holds with connections that have carried little, as an estimate of fixed size.
//!
//! The engine looks at connections in an order that no client can choose, and notes each as a sample. The last samples are kept, and counted by the
//! networks of the client, from its address to the largest network that one owner is likely to have, and by the server's address. So nothing is
//! counted when a connection begins or ends, and what is counted can neither drift nor grow.
//!
//! Each network has two counters, of which the lower counts (a count-min sketch, Cormode and Muthukrishnan 2005), since another may share one. A network that
//! shares both is taken to hold more than it does: of 16 million one, and with keyed places nobody can choose which.

use std::collections::VecDeque;

use crate::keyed::Keys;
use crate::wire::Addr;

/// Samples kept at most. A network that holds a hundredth of the table is among them 41 times, give or take six.
const SAMPLES: usize = 4096;
/// Counters of each level, twice: a power of two.
const COUNTERS: usize = 4096;
/// Sizes of networks of one address family at most, and one for the destination.
const LEVELS: usize = 5;
const DESTINATION: usize = LEVELS - 1;

/// Sizes of networks of IPv4 clients, and what a connection weighs in each: an address may hold a sixteenth of the table, a /24 an eighth, and a /16
/// a quarter, before it takes places of others no more.
const IPV4: [(u32, u32); 3] = [(32, 16), (24, 8), (16, 4)];
/// The same of IPv6 clients. A /64 is one link, a /56 one customer, a /48 one site (RFC 6177), and a /32 what a provider gets.
const IPV6: [(u32, u32); 4] = [(64, 16), (56, 16), (48, 8), (32, 4)];

/// Samples that a network must have before it is said to hold more than its part: fewer may be chance.
const SIGNIFICANT: u32 = 32;

/// Where the counters of a connection's networks and destination are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    places: [[u16; 2]; LEVELS],
    v6: bool,
}

const _: () = assert!(2 * LEVELS * COUNTERS <= 1 << 16 && SAMPLES < 1 << 16, "places and counts are words of 16 bits");

/// What part of the table the networks and the destination of a connection hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// The product of the network's part and the destination's, as a power of two: of two connections the one with the higher number goes first. As
    /// chance moves the samples, smaller differences mean nothing.
    pub(crate) rank: u32,
    /// Whether one of its networks holds more than its part of the table.
    pub(crate) is_exceeded: bool,
}

/// What one look at a connection has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sample {
    /// It is over, and nobody's.
    Over,
    /// It has carried more than a little, or nobody has proved that its client is there.
    Uncounted,
    /// It has carried little.
    Little(Holder),
}

/// The estimate.
#[derive(Clone)]
pub(crate) struct Shares {
    keys: Keys,
    /// Of the last connections that were looked at.
    samples: VecDeque<Sample>,
    most: usize,
    /// How many of these are over.
    over: u32,
    /// Of each level those of the one kind and of the other.
    counts: Box<[u16]>,
}

impl Shares {
    /// Without a sample yet, for a table of `flows`.
    pub(crate) fn new(keys: Keys, flows: usize) -> Self {
        // Of a small table so many that each flow counts about once.
        let most = flows.clamp(1, SAMPLES);
        Self {
            keys,
            samples: VecDeque::with_capacity(most),
            most,
            over: 0,
            counts: vec![0; 2 * LEVELS * COUNTERS].into(),
        }
    }

    /// The counters of a connection from `client` to `server`.
    pub(crate) fn holder(&self, client: &Addr, server: &Addr, v6: bool) -> Holder {
        let mut places = [[0; 2]; LEVELS];
        let (sizes, word): (&[_], _) = if v6 {
            (&IPV6, u64::from(client[0]) << 32 | u64::from(client[1]))
        } else {
            (&IPV4, u64::from(client[3]) << 32)
        };
        for (level, (place, &(prefix, _))) in places.iter_mut().zip(sizes).enumerate() {
            *place = self.place(level, &[word & u64::MAX << (64 - prefix), (2 * level + usize::from(v6)) as u64]);
        }
        let [a, b, c, d] = server.map(u64::from);
        places[DESTINATION] = self.place(DESTINATION, &[a << 32 | b, c << 32 | d]);
        Holder { places, v6 }
    }

    /// The counters of a level for what these words name. The hash need not be a strong one: what it decides shows only in which of many connections
    /// ends.
    fn place(&self, level: usize, words: &[u64; 2]) -> [u16; 2] {
        let mix = |word: u64| {
            let product = u128::from(word ^ self.keys.0) * u128::from(self.keys.1 | 1);
            product as u64 ^ (product >> 64) as u64
        };
        let hash = mix(mix(words[0]) ^ words[1]) as usize;
        let own = 2 * level * COUNTERS;
        [own + hash % COUNTERS, own + COUNTERS + hash / COUNTERS % COUNTERS].map(|place| place as u16)
    }

    /// Notes a connection that was looked at; the oldest sample is forgotten for it.
    pub(crate) fn note(&mut self, sample: Sample) {
        if self.samples.len() == self.most {
            match self.samples.pop_front() {
                Some(Sample::Little(oldest)) => self.count(&oldest, u16::wrapping_sub),
                Some(Sample::Over) => self.over -= 1,
                Some(Sample::Uncounted) | None => {}
            }
        }
        match &sample {
            Sample::Little(holder) => self.count(holder, u16::wrapping_add),
            Sample::Over => self.over += 1,
            Sample::Uncounted => {}
        }
        self.samples.push_back(sample);
    }

    /// Of so many connections those that are not over.
    pub(crate) fn living(&self, connections: u64) -> u64 {
        let samples = self.samples.len().max(1) as u64;
        connections - connections * u64::from(self.over) / samples
    }

    fn count(&mut self, holder: &Holder, step: fn(u16, u16) -> u16) {
        for level in holder.levels() {
            for place in holder.places[level] {
                let count = &mut self.counts[usize::from(place)];
                *count = step(*count, 1);
            }
        }
    }

    /// What the networks and the destination of a connection hold.
    pub(crate) fn share(&self, holder: &Holder) -> Share {
        let count = |level: usize| {
            let [one, other] = holder.places[level].map(|place| self.counts[usize::from(place)]);
            u32::from(one.min(other))
        };
        let sizes: &[_] = if holder.v6 { &IPV6 } else { &IPV4 };
        let (mut part, mut is_exceeded) = (0, false);
        for (level, &(_, weight)) in sizes.iter().enumerate() {
            let held = count(level);
            part = part.max(held * weight);
            is_exceeded |= held >= SIGNIFICANT && held * weight > self.samples.len() as u32;
        }
        Share { rank: (1 + part * (1 + count(DESTINATION))).ilog2(), is_exceeded }
    }
}

impl Holder {
    /// The levels that it counts on.
    fn levels(&self) -> impl Iterator<Item = usize> + use<> {
        let networks = if self.v6 { IPV6.len() } else { IPV4.len() };
        (0..networks).chain([DESTINATION])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::random;

    fn v4(address: u32) -> Addr {
        [0, 0, 0xffff, address]
    }

    const SERVER: Addr = [0, 0, 0xffff, 0x0a00_0001];

    const KEYS: Keys = (0x0123_4567_89ab_cdef, 0xfeed_beef_dead_cafe);

    fn shares() -> Shares {
        Shares::new(KEYS, 1 << 20)
    }

    fn share(shares: &Shares, client: u32) -> Share {
        shares.share(&shares.holder(&v4(client), &SERVER, false))
    }

    #[test]
    fn samples_that_are_forgotten_leave_no_trace() {
        let (mut shares, mut random) = (Shares::new(KEYS, 100), random(1));
        for _ in 0..10_000 {
            let client = [random() as u32, random() as u32, 0, 1];
            let v6 = random() & 1 == 1;
            let holder = shares.holder(&client, &v4(random() as u32 % 7), v6);
            shares.note(match random() & 3 {
                0 => Sample::Over,
                1 => Sample::Uncounted,
                _ => Sample::Little(holder),
            });
            let counted: u32 = shares.counts.iter().map(|&count| u32::from(count)).sum();
            let levels = shares.samples.iter().map(|sample| match sample {
                Sample::Little(holder) => holder.levels().count(),
                Sample::Over | Sample::Uncounted => 0,
            });
            assert_eq!(counted as usize, 2 * levels.sum::<usize>());
            assert_eq!(shares.over as usize, shares.samples.iter().filter(|&&it| it == Sample::Over).count());
        }
        (0..100).for_each(|_| shares.note(Sample::Uncounted));
        assert!(shares.over == 0 && shares.counts.iter().all(|&count| count == 0));
    }

    #[test]
    fn of_the_connections_those_that_are_over_hold_nothing() {
        let mut shares = shares();
        assert_eq!(shares.living(1000), 1000);
        (0..300).for_each(|_| shares.note(Sample::Over));
        (0..100).for_each(|_| shares.note(Sample::Little(shares.holder(&v4(1), &SERVER, false))));
        assert_eq!(shares.living(1000), 250);
        // The part is one of the table, not of the connections that are not over.
        assert!(share(&shares, 1).is_exceeded);
        (0..1300).for_each(|_| shares.note(Sample::Over));
        assert!(!share(&shares, 1).is_exceeded);
    }

    /// The share of a client of each family after 4096 samples, of which `held` are of clients that `client` makes of their number.
    fn held_by(held: u32, v6: bool, client: impl Fn(u32) -> Addr) -> Share {
        let (mut shares, mut random) = (shares(), random(7));
        for n in 0..4096 {
            let other = [random() as u32 | 1 << 31, random() as u32, 0, random() as u32];
            let holder = shares.holder(&if n < held { client(n) } else { other }, &SERVER, v6);
            shares.note(Sample::Little(holder));
        }
        shares.share(&shares.holder(&client(0), &SERVER, v6))
    }

    #[test]
    fn a_network_of_any_size_takes_no_more_than_its_part() {
        // From one address, from every address of a /24, and of a /16.
        for (held, client) in [
            (300, (|_| v4(0x0b00_0001)) as fn(u32) -> Addr),
            (600, |n| v4(0x0b00_0000 + n % 256)),
            (1200, |n| v4(0x0b00_0000 + n * 53)),
        ] {
            assert!(held_by(held, false, client).is_exceeded, "{held}");
            assert!(!held_by(held / 2, false, client).is_exceeded, "{held}");
        }
        // From one link, customer, site and provider.
        for (held, client) in [
            (300, (|n| [0x2001_0db8, 0x11, n, n]) as fn(u32) -> Addr),
            (300, |n| [0x2001_0db8, 0x1100 + n % 256, n, n]),
            (600, |n| [0x2001_0db8, 0x0001_0000 + n * 97, n, n]),
            (1200, |n| [0x2001_0db8, n << 16, n, n]),
        ] {
            assert!(held_by(held, true, client).is_exceeded, "{held}");
            assert!(!held_by(held / 2, true, client).is_exceeded, "{held}");
        }
    }

    #[test]
    fn a_busy_network_s_connections_do_not_count_and_a_neighbour_counts_less() {
        let mut shares = shares();
        for _ in 0..2000 {
            shares.note(Sample::Uncounted);
            shares.note(Sample::Little(shares.holder(&v4(0x0b00_0001), &SERVER, false)));
        }
        let [holder, neighbour, stranger] =
            [0x0b00_0001, 0x0b00_0002, 0x0c00_0001].map(|client| share(&shares, client));
        assert!(holder.rank > neighbour.rank && neighbour.rank > stranger.rank);
        assert_eq!(stranger, Share { rank: 0, is_exceeded: false });
        // Of two clients alike the one of the server that is held most goes first.
        let other = shares.holder(&v4(0x0b00_0001), &v4(9), false);
        assert!(shares.share(&other).rank < holder.rank);
    }

    #[test]
    fn few_samples_say_nothing_of_a_part() {
        let mut shares = shares();
        for _ in 0..SIGNIFICANT - 1 {
            shares.note(Sample::Little(shares.holder(&v4(1), &SERVER, false)));
        }
        assert!(!share(&shares, 1).is_exceeded);
    }
}
