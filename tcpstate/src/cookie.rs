//! SYN cookies: the terms of a connection, proved by the client's own acknowledgement, remembered nowhere.
//!
//! With timestamps, most significant bit first:
//!
//! ```text
//! ISN    epoch 1 | promised scale 4 | MAC 27
//! TSval  time 20, in units of 4.096 ms | client scale 4 | MSS 5 | SACK 1 | 0 2
//! ```
//!
//! Without:
//!
//! ```text
//! ISN    epoch 1 | code k | MAC 31 - k       code = (MSS, client scale or none, SACK) as one mixed-radix number
//! ```
//!
//! The MAC covers the ends, the client's ISN, the code bits and whether timestamps are used, but not the time,
//! so that a repeated SYN is answered with the same ISN. Scale code 15 means "none".

use crate::keyed::{self, Keys};
use crate::seq::{SeqNum, WindowScale};
use crate::terms::Terms;
use crate::wire::Ends;
use crate::{Config, Instant};

/// An epoch lasts 2^26 µs, 67 s: longer than the 63 s a client's SYN timer may wait. A cookie opens in its own epoch and the next.
const EPOCH_BITS: u32 = 26;
const SCALE_NONE: u32 = 15;
const MAC_BITS_WITH_TIMESTAMPS: u32 = 27;

/// A SYN-ACK's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minted {
    /// The initial sequence number.
    pub isn: SeqNum,
    /// The TSval, if timestamps are used.
    pub ts_value: Option<u32>,
}

/// Mints cookies and opens them.
pub struct Jar {
    master: Keys,
    epoch: u64,
    /// Keys of the even and of the odd one among the current and the previous epoch.
    keys: [Keys; 2],
    book: Book,
    ts_mss: Vec<u16>,
    constant_scale: WindowScale,
}

impl Jar {
    /// A jar of this configuration's tables.
    pub fn new(config: &Config, master: Keys, now: Instant) -> Self {
        let mut ts_mss = config.ts_mss_table.clone();
        ts_mss.truncate(32);
        let mut jar = Self {
            master,
            epoch: epoch_of(now),
            keys: [(0, 0); 2],
            book: Book::new(&config.mss_table, &config.wscale_table),
            ts_mss,
            constant_scale: WindowScale::clamped(config.own_wscale),
        };
        jar.keys = jar.keys_at(jar.epoch);
        jar
    }

    /// Changes keys when an epoch has ended. Call it once a turn, and before minting or opening.
    pub fn turn(&mut self, now: Instant) {
        let epoch = epoch_of(now);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.keys = self.keys_at(epoch);
        }
    }

    fn keys_at(&self, epoch: u64) -> [Keys; 2] {
        let mut keys = [self.key_of(epoch); 2];
        let previous = epoch.wrapping_sub(1);
        keys[(previous & 1) as usize] = self.key_of(previous);
        keys
    }

    /// Keys follow from the master secret and the epoch's number, so that all workers have the same without a word.
    fn key_of(&self, epoch: u64) -> Keys {
        let half = |n: u64| keyed::signature(self.master, [epoch, n]);
        (half(0), half(1))
    }

    /// The smallest MSS a cookie can express, with or without timestamps: a smaller one would be rounded up.
    pub fn smallest_mss(&self, timestamps: bool) -> u16 {
        if timestamps { self.ts_mss[0] } else { self.book.mss[0] }
    }

    /// The scale a client is promised: `wanted` if the cookie can carry it, else the configured constant.
    pub fn promise(&self, wanted: Option<WindowScale>, timestamps: bool) -> Option<WindowScale> {
        wanted.map(|scale| if timestamps { scale } else { self.constant_scale })
    }

    /// The cookie for a SYN with this ISN on these terms.
    pub fn mint(&self, ends: &Ends, client_isn: SeqNum, terms: &Terms, now: Instant) -> Minted {
        let slot = (self.epoch & 1) as u32;
        if terms.timestamps {
            let code = scale_code(terms.scale) << 8
                | (floor_index(&self.ts_mss, terms.mss) as u32) << 3
                | u32::from(terms.sack) << 2;
            let promised = scale_code(terms.promised);
            let mac = self.mac(slot, ends, client_isn, promised << 12 | code, true) >> (64 - MAC_BITS_WITH_TIMESTAMPS);
            let isn = slot << 31 | promised << MAC_BITS_WITH_TIMESTAMPS | mac as u32;
            Minted { isn: SeqNum::new(isn), ts_value: Some(ts_clock(now) | code) }
        } else {
            let code = self.book.encode(terms);
            let mac_bits = 31 - self.book.bits;
            let mac = self.mac(slot, ends, client_isn, code, false) >> (64 - mac_bits);
            Minted { isn: SeqNum::new(slot << 31 | code << mac_bits | mac as u32), ts_value: None }
        }
    }

    /// The terms of the cookie `isn`, if we gave it to these ends for a SYN with this ISN in this epoch or the last.
    /// `ts_echo` is the TSecr of the client's segment, if it carries timestamps.
    pub fn open(&self, ends: &Ends, client_isn: SeqNum, isn: SeqNum, ts_echo: Option<u32>) -> Option<Terms> {
        let isn = isn.get();
        let slot = isn >> 31;
        match ts_echo {
            Some(echo) => {
                let promised = isn >> MAC_BITS_WITH_TIMESTAMPS & 15;
                let code = echo & 0xfff;
                let mac =
                    self.mac(slot, ends, client_isn, promised << 12 | code, true) >> (64 - MAC_BITS_WITH_TIMESTAMPS);
                if isn & ((1 << MAC_BITS_WITH_TIMESTAMPS) - 1) != mac as u32 {
                    return None;
                }
                Some(Terms {
                    mss: *self.ts_mss.get((code >> 3 & 31) as usize)?,
                    scale: scale_of(code >> 8),
                    promised: scale_of(promised),
                    sack: code & 4 != 0,
                    timestamps: true,
                })
            }
            None => {
                let mac_bits = 31 - self.book.bits;
                let code = (isn & 0x7fff_ffff) >> mac_bits;
                let mac = self.mac(slot, ends, client_isn, code, false) >> (64 - mac_bits);
                if isn & ((1 << mac_bits) - 1) != mac as u32 {
                    return None;
                }
                let terms = self.book.decode(code)?;
                Some(Terms { promised: self.promise(terms.scale, false), ..terms })
            }
        }
    }

    fn mac(&self, slot: u32, ends: &Ends, client_isn: SeqNum, code: u32, timestamps: bool) -> u64 {
        let word = u64::from(client_isn.get()) << 32 | u64::from(code) << 1 | u64::from(timestamps);
        ends.sign(self.keys[slot as usize], word)
    }
}

fn epoch_of(now: Instant) -> u64 {
    now.as_micros() >> EPOCH_BITS
}

/// The clock of our TSvals: microseconds with the low twelve bits clear, where a cookie keeps its code.
pub fn ts_clock(now: Instant) -> u32 {
    now.as_micros() as u32 & !0xfff
}

fn scale_code(scale: Option<WindowScale>) -> u32 {
    scale.map_or(SCALE_NONE, |scale| u32::from(scale.get()))
}

fn scale_of(code: u32) -> Option<WindowScale> {
    (code & 15 != SCALE_NONE).then(|| WindowScale::clamped((code & 15) as u8))
}

/// The index of the largest entry of a rising table that does not exceed `value`; 0 if all do.
fn floor_index<T: PartialOrd + Copy>(table: &[T], value: T) -> usize {
    table.partition_point(|&entry| entry <= value).saturating_sub(1)
}

/// The mixed-radix code of a cookie without timestamps.
struct Book {
    mss: Vec<u16>,
    scales: Vec<u8>,
    bits: u32,
}

impl Book {
    fn new(mss: &[u16], scales: &[u8]) -> Self {
        let book = Self { mss: mss.to_vec(), scales: scales.to_vec(), bits: 0 };
        Self { bits: (book.radix() - 1).checked_ilog2().map_or(1, |log| log + 1), ..book }
    }

    fn radix(&self) -> u32 {
        (self.mss.len() * (self.scales.len() + 1) * 2) as u32
    }

    fn encode(&self, terms: &Terms) -> u32 {
        let mss = floor_index(&self.mss, terms.mss);
        // Digit 0 is "none", digit n the table's entry n - 1.
        let scale = terms.scale.map_or(0, |scale| floor_index(&self.scales, scale.get()) + 1);
        ((mss * (self.scales.len() + 1) + scale) * 2 + usize::from(terms.sack)) as u32
    }

    /// The terms of a code, the promise left out; `None` for a number that is no code.
    fn decode(&self, code: u32) -> Option<Terms> {
        if code >= self.radix() {
            return None;
        }
        let (rest, sack) = (code as usize / 2, code & 1 == 1);
        let digit = rest % (self.scales.len() + 1);
        Some(Terms {
            mss: self.mss[rest / (self.scales.len() + 1)],
            scale: digit.checked_sub(1).map(|n| WindowScale::clamped(self.scales[n])),
            promised: None,
            sack,
            timestamps: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> Ends {
        Ends { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, 2], lan_port: 80, wan_port: 40000, ..Ends::default() }
    }

    fn jar(now: Instant) -> Jar {
        Jar::new(&Config::default(), (1, 2), now)
    }

    fn every_terms(config: &Config) -> Vec<Terms> {
        let mut all = Vec::new();
        for timestamps in [false, true] {
            let mss_table = if timestamps { &config.ts_mss_table } else { &config.mss_table };
            let scales: Vec<u8> = if timestamps { (0..=14).collect() } else { config.wscale_table.clone() };
            for &mss in mss_table {
                for scale in scales.iter().map(|&s| Some(WindowScale::clamped(s))).chain([None]) {
                    for sack in [false, true] {
                        let promised = scale.map(|_| WindowScale::clamped(config.own_wscale));
                        all.push(Terms { mss, scale, promised, sack, timestamps });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn every_entry_of_every_table_survives_the_round_trip() {
        let config = Config::default();
        let now = Instant::from_secs(1000);
        let jar = jar(now);
        for terms in every_terms(&config) {
            let minted = jar.mint(&ends(), SeqNum::new(77), &terms, now);
            assert_eq!(jar.open(&ends(), SeqNum::new(77), minted.isn, minted.ts_value), Some(terms));
        }
    }

    #[test]
    fn values_between_entries_are_rounded_down() {
        let jar = jar(Instant::default());
        let scale = Some(WindowScale::clamped(5));
        let terms = Terms { mss: 1459, scale, promised: scale, sack: true, timestamps: false };
        let minted = jar.mint(&ends(), SeqNum::new(1), &terms, Instant::default());
        let opened = jar.open(&ends(), SeqNum::new(1), minted.isn, None).unwrap();
        assert_eq!((opened.mss, opened.scale), (1440, Some(WindowScale::clamped(4))));
    }

    #[test]
    fn a_cookie_lives_in_its_epoch_and_the_next() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: false };
        let start = Instant::from_micros((5 << EPOCH_BITS) + 10);
        let mut jar = jar(start);
        let minted = jar.mint(&ends(), SeqNum::new(9), &terms, start);
        for (later, opens) in [(0, true), (1, true), (2, false), (3, false)] {
            jar.turn(Instant::from_micros((5 + later) << EPOCH_BITS));
            assert_eq!(jar.open(&ends(), SeqNum::new(9), minted.isn, None).is_some(), opens, "{later} epochs later");
        }
    }

    #[test]
    fn a_repeated_syn_gets_the_same_number_and_a_later_clock() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: true };
        let jar = jar(Instant::from_secs(70));
        let first = jar.mint(&ends(), SeqNum::new(9), &terms, Instant::from_secs(70));
        let again = jar.mint(&ends(), SeqNum::new(9), &terms, Instant::from_secs(71));
        assert_eq!(first.isn, again.isn);
        assert!(SeqNum::new(again.ts_value.unwrap()).after(SeqNum::new(first.ts_value.unwrap())));
        assert!(jar.open(&ends(), SeqNum::new(9), first.isn, again.ts_value).is_some());
    }

    #[test]
    fn nothing_else_opens_it() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: true };
        let now = Instant::from_secs(70);
        let jar = jar(now);
        let Minted { isn, ts_value } = jar.mint(&ends(), SeqNum::new(9), &terms, now);
        assert_eq!(jar.open(&ends(), SeqNum::new(10), isn, ts_value), None);
        assert_eq!(jar.open(&ends(), SeqNum::new(9), isn + 1, ts_value), None);
        assert_eq!(jar.open(&ends(), SeqNum::new(9), isn, None), None);
        assert_eq!(jar.open(&ends(), SeqNum::new(9), isn, ts_value.map(|value| value ^ 4)), None);
        assert_eq!(jar.open(&Ends { wan_port: 40001, ..ends() }, SeqNum::new(9), isn, ts_value), None);
        assert_eq!(
            jar.open(&Ends { vlan: crate::wire::Vlan(1 << 24 | 5), ..ends() }, SeqNum::new(9), isn, ts_value),
            None
        );
    }

    #[test]
    fn the_default_book_leaves_24_bits_of_mac_without_timestamps() {
        assert_eq!(jar(Instant::default()).book.bits, 7);
    }

    /// Random acknowledgements open a cookie as often as the width of the MAC says: tested where that is often enough to count.
    #[test]
    fn forgeries_succeed_as_often_as_the_mac_is_short() {
        // 8 x 256 x 2 = 4096 codes: 12 code bits, 19 MAC bits.
        let config = Config {
            mss_table: (0..128).map(|n| 500 + n).collect(),
            wscale_table: (0..15).collect(),
            ..Config::default()
        };
        let jar = Jar::new(&config, (3, 4), Instant::default());
        assert_eq!(jar.book.bits, 12);
        let tries = 8u32 << 19;
        let forged = (0..tries)
            .filter(|n| jar.open(&ends(), SeqNum::new(*n), SeqNum::new(n.wrapping_mul(0x9e37_79b1)), None).is_some())
            .count();
        assert!((1..=24).contains(&forged), "8 were to be expected of {tries}, not {forged}");
    }
}
