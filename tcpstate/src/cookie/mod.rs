//! SYN cookies: the terms of a connection, proved by the client's own acknowledgement, remembered nowhere.
//!
//! With timestamps, most significant bit first:
//!
//! ```text
//! ISN    epoch 1 | promised scale 4 | MAC 27
//! TSval  time 20, in units of 4.096 ms | client scale 4 | MSS 5 | SACK 1 | ECN 2
//! ```
//!
//! Without:
//!
//! ```text
//! ISN    epoch 1 | code k | MAC 31 - k       code = (MSS, client scale or none, SACK) as one mixed-radix number
//! ```
//!
//! The MAC covers the ends (by their keyed hash, which the flow table needs too), the client's ISN, the code bits and whether timestamps are
//! used, but not the time, so that a repeated SYN is answered with the same ISN. Scale code 15 means "none". Without timestamps there is no room for
//! ECN.

pub mod terms;

use crate::cookie::terms::{Ecn, Terms};
use crate::keyed::{self, Keys};
use crate::seq::{SeqNum, WindowScale};
use crate::{Config, Instant};
use core::time::Duration;

/// An epoch lasts 2^26 µs, 67 s: longer than the 63 s a client's SYN timer may wait. A cookie opens in its own epoch
/// and the next.
pub const EPOCH_BITS: u32 = 26;
const SCALE_NONE: u32 = 15;
const MAC_BITS_WITH_TIMESTAMPS: u32 = 27;

/// A SYN-ACK's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynAckNumbers {
    /// The initial sequence number.
    pub isn: SeqNum,
    /// The TSval, if timestamps are used.
    pub ts_value: Option<u32>,
}

impl SynAckNumbers {
    /// A number as good, but that of no cookie.
    pub fn disguised(self) -> Self {
        Self { isn: SeqNum::new(self.isn.get() ^ 1), ..self }
    }
}

/// A change of the secret that cookies are signed with: it takes effect when an epoch begins, on every worker at the same moment, so that
/// what was minted before opens for as long as it would have.
#[derive(Clone, Debug)]
pub struct Rotation {
    master: Keys,
    from: u64,
}

impl Rotation {
    /// Time for all workers to hear of it.
    const NOTICE: Duration = Duration::from_secs(5);

    /// A change to a secret of 16 random bytes, which is asked for `now`.
    pub fn new(random: [u8; 16], now: Instant) -> Self {
        let (high, low) = random.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        Self { master: (word(high), word(low)), from: epoch_of(now + Self::NOTICE) + 1 }
    }

    /// From when on cookies are signed with it, 5 to 72 s after it was asked for.
    pub fn begins(&self) -> Instant {
        Instant::from_micros(self.from << EPOCH_BITS)
    }

    /// When the last cookie signed with the former secret stops to open. Another change before that would end cookies early.
    pub fn ends(&self) -> Instant {
        Instant::from_micros((self.from + 1) << EPOCH_BITS)
    }
}

/// Mints cookies and opens them.
#[derive(Clone)]
pub struct Cookies {
    /// The secret, and since which epoch it is.
    master: (u64, Keys),
    /// The one before.
    former: Keys,
    epoch: u64,
    /// Keys of the even and of the odd one among the current and the previous epoch.
    keys: [Keys; 2],
    option_table: OptionTable,
    ts_mss: MssTable,
    constant_scale: WindowScale,
}

impl Cookies {
    /// A jar of this configuration's tables.
    pub fn new(config: &Config, master: Keys, now: Instant) -> Self {
        let mut cookies = Self {
            master: (0, master),
            former: master,
            epoch: epoch_of(now),
            keys: [(0, 0); 2],
            option_table: OptionTable::new(&config.mss_table, &config.wscale_table),
            ts_mss: MssTable::new(&config.ts_mss_table),
            constant_scale: WindowScale::clamped(config.own_wscale),
        };
        cookies.keys = cookies.keys_at(cookies.epoch);
        cookies
    }

    /// Changes keys when an epoch has ended. Call it once a turn, and before minting or opening.
    #[inline(always)]
    pub fn advance(&mut self, now: Instant) {
        let epoch = epoch_of(now);
        if epoch != self.epoch {
            self.begin(epoch);
        }
    }

    /// Changes the secret when its time comes. One change has to have ended before the next.
    pub fn rotate(&mut self, rotation: &Rotation) {
        (self.former, self.master) = (self.master.1, (rotation.from, rotation.master));
        // A worker that hears of it too late agrees with the others from now on.
        self.keys = self.keys_at(self.epoch);
    }

    #[inline(never)]
    fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.keys = self.keys_at(epoch);
    }

    fn keys_at(&self, epoch: u64) -> [Keys; 2] {
        let mut keys = [self.key_of(epoch); 2];
        let previous = epoch.wrapping_sub(1);
        keys[(previous & 1) as usize] = self.key_of(previous);
        keys
    }

    /// Keys follow from the master secret and the epoch's number, so that all workers have the same without a word.
    fn key_of(&self, epoch: u64) -> Keys {
        let (from, master) = self.master;
        let master = if epoch < from { self.former } else { master };
        let half = |n: u64| keyed::signature(master, [epoch, n]);
        (half(0), half(1))
    }

    /// The smallest MSS a cookie can express, with or without timestamps: a smaller one would be rounded up.
    pub fn smallest_mss(&self, timestamps: bool) -> u16 {
        if timestamps { self.ts_mss.values[0] } else { self.option_table.mss[0] }
    }

    /// The scale a client is promised: `wanted` if the cookie can carry it, else the configured constant.
    pub fn promise(&self, wanted: Option<WindowScale>, timestamps: bool) -> Option<WindowScale> {
        wanted.map(|scale| if timestamps { scale } else { self.constant_scale })
    }

    /// The cookie for a SYN with this ISN on these terms; `ends` is the flow table's keyed hash of its ends.
    #[inline]
    pub fn mint(&self, key: u64, client_isn: SeqNum, terms: &Terms, now: Instant) -> SynAckNumbers {
        let slot = (self.epoch & 1) as u32;
        if terms.timestamps {
            let code = scale_code(terms.scale) << 8
                | (self.ts_mss.floor(terms.mss) as u32) << 3
                | u32::from(terms.sack) << 2
                | terms.ecn as u32;
            let promised = scale_code(terms.promised);
            let mac = self.mac(slot, key, client_isn, promised << 12 | code, true) >> (64 - MAC_BITS_WITH_TIMESTAMPS);
            let isn = slot << 31 | promised << MAC_BITS_WITH_TIMESTAMPS | mac as u32;
            SynAckNumbers { isn: SeqNum::new(isn), ts_value: Some(ts_clock(now) | code) }
        } else {
            let code = self.option_table.encode(terms);
            let mac_bits = 31 - self.option_table.bits;
            let mac = self.mac(slot, key, client_isn, code, false) >> (64 - mac_bits);
            SynAckNumbers { isn: SeqNum::new(slot << 31 | code << mac_bits | mac as u32), ts_value: None }
        }
    }

    /// The terms of the cookie `isn`, if we gave it to the ends with this hash, for a SYN with one of these ISNs, in this epoch or the last;
    /// and which ISN that is. `ts_echo` is the TSecr of the client's segment, if it carries timestamps.
    #[inline]
    pub fn open<const N: usize>(
        &self,
        key: u64,
        client_isns: [SeqNum; N],
        isn: SeqNum,
        ts_echo: Option<u32>,
    ) -> Option<(Terms, SeqNum)> {
        let is_right = |&client_isn: &SeqNum| self.wrong_bits(key, client_isn, isn, ts_echo) == 0;
        let client_isn = client_isns.into_iter().find(is_right)?;
        Some((self.terms(isn, ts_echo)?, client_isn))
    }

    /// What there is to say of a number as a cookie, for an operator: how its signature fares under each of the ISNs, and what it speaks of.
    pub fn describe<const N: usize>(
        &self,
        key: u64,
        client_isns: [SeqNum; N],
        isn: SeqNum,
        ts_echo: Option<u32>,
        now: Instant,
    ) -> String {
        let wrong = client_isns.map(|client_isn| self.wrong_bits(key, client_isn, isn, ts_echo).count_ones());
        let kind = if ts_echo.is_some() { "with timestamps" } else { "without timestamps" };
        let width = if ts_echo.is_some() { MAC_BITS_WITH_TIMESTAMPS } else { 31 - self.option_table.bits };
        let slot = isn.get() >> 31;
        let epoch = if u64::from(slot) == self.epoch & 1 { "this" } else { "the last" };
        let age = ts_echo.map_or(String::new(), |echo| format!(", {} ms old", age(echo, now) / 1000));
        let signature = match wrong.iter().min() {
            Some(0) => format!("all {width} bits of its signature are right"),
            _ => format!("{wrong:?} of {width} bits of its signature are wrong, for each number its SYN may have had"),
        };
        let terms = match self.terms(isn, ts_echo) {
            Some(terms) => format!("it speaks of {terms}"),
            None => "it speaks of nothing".into(),
        };
        format!("cookie {:#010x} {kind}, of {epoch} epoch (key {slot}){age}: {signature}; {terms}", isn.get())
    }

    /// The terms a cookie speaks of.
    #[inline(never)]
    fn terms(&self, isn: SeqNum, ts_echo: Option<u32>) -> Option<Terms> {
        match ts_echo {
            Some(echo) => Some(Terms {
                mss: self.ts_mss.get((echo >> 3 & 31) as usize)?,
                scale: scale_of(echo >> 8),
                promised: scale_of(isn.get() >> MAC_BITS_WITH_TIMESTAMPS),
                sack: echo & 4 != 0,
                timestamps: true,
                ecn: [Ecn::Silent, Ecn::Asked, Ecn::Asked, Ecn::Agreed][(echo & 3) as usize],
            }),
            None => {
                let terms = self.option_table.decode(self.option_table.code(isn))?;
                Some(Terms { promised: self.promise(terms.scale, false), ..terms })
            }
        }
    }

    /// The bits in which `isn` differs from the cookie these ends would have got with the same epoch and code: none, if
    /// it is that cookie.
    #[inline(always)]
    fn wrong_bits(&self, key: u64, client_isn: SeqNum, isn: SeqNum, ts_echo: Option<u32>) -> u32 {
        let number = isn.get();
        let (width, code) = match ts_echo {
            Some(echo) => (MAC_BITS_WITH_TIMESTAMPS, (number >> MAC_BITS_WITH_TIMESTAMPS & 15) << 12 | echo & 0xfff),
            None => (31 - self.option_table.bits, self.option_table.code(isn)),
        };
        let mac = self.mac(number >> 31, key, client_isn, code, ts_echo.is_some()) >> (64 - width);
        (number ^ mac as u32) & ((1 << width) - 1)
    }

    // The ends come first, so that what they make of the keys serves both ISNs a segment is tried with.
    #[inline(always)]
    fn mac(&self, slot: u32, key: u64, client_isn: SeqNum, code: u32, timestamps: bool) -> u64 {
        let word = u64::from(client_isn.get()) << 32 | u64::from(code) << 1 | u64::from(timestamps);
        keyed::signature(self.keys[slot as usize & 1], [key, word])
    }
}

fn epoch_of(now: Instant) -> u64 {
    now.as_micros() >> EPOCH_BITS
}

/// Microseconds since a SYN-ACK with this TSval was sent, to within 2 ms: the time in it has been rounded down.
pub fn age(ts_value: u32, now: Instant) -> u32 {
    (now.as_micros() as u32).wrapping_sub(ts_value & !0xfff).saturating_sub(0x800)
}

/// The earliest TSval of ours, its code left out, that a host which has seen `last` does not take for an older one.
pub fn ts_after(last: u32) -> u32 {
    (last & !0xfff).wrapping_add(0x1000)
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

/// The rising MSS values of a cookie with timestamps: up to 32, the rest filled up.
#[derive(Clone)]
struct MssTable {
    values: [u16; 32],
    len: usize,
}

impl MssTable {
    /// A ladder of the first 32 of these.
    fn new(mss: &[u16]) -> Self {
        let mut values = [u16::MAX; 32];
        let len = mss.len().min(32);
        values[..len].copy_from_slice(&mss[..len]);
        Self { values, len }
    }

    fn get(&self, index: usize) -> Option<u16> {
        self.values[..self.len].get(index).copied()
    }

    /// As [`floor_index`], in five steps without a branch.
    #[inline(always)]
    fn floor(&self, mss: u16) -> usize {
        let mut at = 0;
        for step in [16, 8, 4, 2, 1] {
            at += if self.values[(at + step) & 31] <= mss { step } else { 0 };
        }
        at.min(self.len - 1)
    }
}

/// The mixed-radix code of a cookie without timestamps.
#[derive(Clone)]
struct OptionTable {
    mss: Vec<u16>,
    scales: Vec<u8>,
    bits: u32,
}

impl OptionTable {
    fn new(mss: &[u16], scales: &[u8]) -> Self {
        let option_table = Self { mss: mss.to_vec(), scales: scales.to_vec(), bits: 0 };
        Self { bits: (option_table.radix() - 1).checked_ilog2().map_or(1, |log| log + 1), ..option_table }
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

    /// The code in a cookie.
    fn code(&self, isn: SeqNum) -> u32 {
        (isn.get() & 0x7fff_ffff) >> (31 - self.bits)
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
            ecn: Ecn::Silent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FlowKey, Vlan};

    fn key() -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, 2], lan_port: 80, wan_port: 40000, ..FlowKey::default() }
    }

    /// The hash of these ends that the flow table would make.
    fn hash(key: &FlowKey) -> u64 {
        key.hash((5, 6))
    }

    fn cookies(now: Instant) -> Cookies {
        Cookies::new(&Config::default(), (1, 2), now)
    }

    fn every_terms(config: &Config) -> Vec<Terms> {
        let mut all = Vec::new();
        for timestamps in [false, true] {
            let mss_table = if timestamps { &config.ts_mss_table } else { &config.mss_table };
            let scales: Vec<u8> = if timestamps { (0..=14).collect() } else { config.wscale_table.clone() };
            for &mss in mss_table {
                for scale in scales.iter().map(|&s| Some(WindowScale::clamped(s))).chain([None]) {
                    for (sack, ecn) in [(false, Ecn::Silent), (true, Ecn::Asked), (true, Ecn::Agreed)] {
                        let ecn = if timestamps { ecn } else { Ecn::Silent };
                        let promised = scale.map(|_| WindowScale::clamped(config.own_wscale));
                        all.push(Terms { mss, scale, promised, sack, timestamps, ecn });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn a_change_of_the_secret_ends_no_cookie_early_and_makes_others() {
        let config = Config::default();
        let begin = Instant::from_secs(1000);
        let rotation = Rotation::new([9; 16], begin);
        let notice = rotation.begins().since(begin);
        assert!(notice >= Rotation::NOTICE && notice <= Rotation::NOTICE + Duration::from_micros(1 << EPOCH_BITS));
        let mut cookie_sets = [cookies(begin), cookies(begin), cookies(begin)];
        cookie_sets[0].rotate(&rotation);
        let (hash, isn, terms) = (hash(&key()), SeqNum::new(77), every_terms(&config)[0]);
        let opens = |cookies: &Cookies, numbers: SynAckNumbers| {
            cookies.open(hash, [isn], numbers.isn, numbers.ts_value).is_some()
        };
        let mut old = Vec::new();
        for second in 0..300 {
            let now = begin + Duration::from_secs(second);
            cookie_sets.iter_mut().for_each(|cookies| cookies.advance(now));
            // One worker hears of it at once, one a little later, one never.
            if second == 4 {
                cookie_sets[1].rotate(&rotation);
            }
            let numbers = cookie_sets.each_ref().map(|cookies| cookies.mint(hash, isn, &terms, now));
            assert_eq!(numbers[0], numbers[1], "workers agree at any time");
            assert_eq!(numbers[0] == numbers[2], now < rotation.begins());
            assert!(opens(&cookie_sets[0], numbers[1]) && opens(&cookie_sets[1], numbers[0]));
            if now < rotation.begins() {
                old.push((numbers[2], now));
            }
            for &(numbers, then) in &old {
                assert_eq!(
                    opens(&cookie_sets[0], numbers),
                    opens(&cookie_sets[2], numbers),
                    "minted at {then:?}, tried at {now:?}"
                );
            }
        }
        assert!(!opens(&cookie_sets[0], old[old.len() - 1].0) && Instant::from_secs(1300) > rotation.ends());
    }

    #[test]
    fn every_entry_of_every_table_survives_the_round_trip() {
        let config = Config::default();
        let now = Instant::from_secs(1000);
        let cookies = cookies(now);
        for terms in every_terms(&config) {
            let numbers = cookies.mint(hash(&key()), SeqNum::new(77), &terms, now);
            assert_eq!(
                cookies.open(hash(&key()), [SeqNum::new(77)], numbers.isn, numbers.ts_value),
                Some((terms, SeqNum::new(77)))
            );
        }
    }

    #[test]
    fn a_ladder_is_climbed_as_far_as_its_table_is_long() {
        for len in 1..=40u16 {
            let table: Vec<u16> = (0..len).map(|n| 64 + 200 * n).collect();
            let mss_values = MssTable::new(&table);
            let held = &table[..table.len().min(32)];
            for mss in (0..9000).chain([u16::MAX - 1, u16::MAX]) {
                assert_eq!(mss_values.floor(mss), floor_index(held, mss), "{mss} of {len}");
            }
            assert_eq!((0..40).map_while(|n| mss_values.get(n)).collect::<Vec<_>>(), held);
        }
    }

    #[test]
    fn values_between_entries_are_rounded_down() {
        let cookies = cookies(Instant::default());
        let scale = Some(WindowScale::clamped(5));
        let terms = Terms { mss: 1459, scale, promised: scale, sack: true, timestamps: false, ecn: Ecn::Silent };
        let numbers = cookies.mint(hash(&key()), SeqNum::new(1), &terms, Instant::default());
        let (opened, _) = cookies.open(hash(&key()), [SeqNum::new(1)], numbers.isn, None).unwrap();
        assert_eq!((opened.mss, opened.scale), (1440, Some(WindowScale::clamped(4))));
    }

    #[test]
    fn a_cookie_lives_in_its_epoch_and_the_next() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: false, ecn: Ecn::Silent };
        let start = Instant::from_micros((5 << EPOCH_BITS) + 10);
        let mut cookies = cookies(start);
        let numbers = cookies.mint(hash(&key()), SeqNum::new(9), &terms, start);
        for (later, opens) in [(0, true), (1, true), (2, false), (3, false)] {
            cookies.advance(Instant::from_micros((5 + later) << EPOCH_BITS));
            assert_eq!(
                cookies.open(hash(&key()), [SeqNum::new(9)], numbers.isn, None).is_some(),
                opens,
                "{later} epochs later"
            );
        }
    }

    #[test]
    fn a_repeated_syn_gets_the_same_number_and_a_later_clock() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: true, ecn: Ecn::Silent };
        let cookies = cookies(Instant::from_secs(70));
        let first = cookies.mint(hash(&key()), SeqNum::new(9), &terms, Instant::from_secs(70));
        let again = cookies.mint(hash(&key()), SeqNum::new(9), &terms, Instant::from_secs(71));
        assert_eq!(first.isn, again.isn);
        assert!(SeqNum::new(again.ts_value.unwrap()).after(SeqNum::new(first.ts_value.unwrap())));
        assert!(cookies.open(hash(&key()), [SeqNum::new(9)], first.isn, again.ts_value).is_some());
    }

    #[test]
    fn nothing_else_opens_it() {
        let terms = Terms { mss: 1460, scale: None, promised: None, sack: true, timestamps: true, ecn: Ecn::Silent };
        let now = Instant::from_secs(70);
        let cookies = cookies(now);
        let SynAckNumbers { isn, ts_value } = cookies.mint(hash(&key()), SeqNum::new(9), &terms, now);
        for bit in 0..32 {
            assert_eq!(cookies.open(hash(&key()), [SeqNum::new(9 ^ 1 << bit)], isn, ts_value), None);
        }
        assert_eq!(cookies.open(hash(&key()), [SeqNum::new(9)], isn + 1, ts_value), None);
        assert_eq!(cookies.open(hash(&key()), [SeqNum::new(9)], isn, None), None);
        assert_eq!(cookies.open(hash(&key()), [SeqNum::new(9)], isn, ts_value.map(|value| value ^ 4)), None);
        let [lan, wan] = [[0, 0, 0xffff, 3]; 2];
        for other in [
            FlowKey { lan, ..key() },
            FlowKey { wan, ..key() },
            FlowKey { lan_port: 81, ..key() },
            FlowKey { wan_port: 40001, ..key() },
            FlowKey { vlan: Vlan(1 << 24 | 5), ..key() },
            FlowKey { v6: true, ..key() },
        ] {
            assert_eq!(cookies.open(hash(&other), [SeqNum::new(9)], isn, ts_value), None, "{other:?}");
        }
    }

    #[test]
    fn the_default_book_leaves_24_bits_of_mac_without_timestamps() {
        assert_eq!(cookies(Instant::default()).option_table.bits, 7);
    }

    /// A good hash of a number (the finaliser of SplitMix64): the random numbers of the experiments.
    fn random(n: u32) -> u64 {
        let n = u64::from(n).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ n >> 31
    }

    /// Whether a number of events lies within four standard deviations of what is to be expected.
    fn is_likely(events: u32, expected: f64) -> bool {
        (f64::from(events) - expected).abs() < 4.0 * expected.sqrt()
    }

    /// Random acknowledgements open a cookie as often as the layout says: tested with so many codes that it is often
    /// enough to count.
    #[test]
    fn forgeries_succeed_as_often_as_there_are_codes() {
        // 2 x (11 scales + none) x 1024 = 24 576 codes, so 15 bits of code and 16 of MAC.
        let config = Config {
            mss_table: (0..1024).map(|n| 500 + n).collect(),
            wscale_table: (0..11).collect(),
            ..Config::default()
        };
        let cookies = Cookies::new(&config, (3, 4), Instant::default());
        assert_eq!((cookies.option_table.radix(), cookies.option_table.bits), (24_576, 15));
        let opens = |n: &u32| {
            let (seq, isn) = (SeqNum::new(random(*n) as u32), SeqNum::new((random(*n) >> 32) as u32));
            cookies.open(hash(&key()), [seq - 1, seq], isn, None).is_some()
        };
        let tries = 1 << 22;
        let forged = (0..tries).filter(opens).count() as u32;
        // Each of the two ISNs a segment can stand for has one cookie a code, in each of two epochs.
        let expected = f64::from(tries) * 2.0 * 2.0 * 24_576.0 / 2f64.powi(32);
        assert!(is_likely(forged, expected), "{expected} were to be expected, not {forged}");
    }

    /// The MACs of the layout itself are too wide for forgeries to be counted, but near misses can be: the numbers that
    /// agree with a cookie in the low bits must halve with every bit, up to where there are too few, and nothing in the
    /// layout knows where that is.
    #[test]
    fn near_misses_halve_with_every_bit() {
        let cookies = cookies(Instant::default());
        for timestamps in [false, true] {
            let width = if timestamps { 27 } else { 24 };
            let tries = 1u32 << 20;
            let mut agreeing = [0; 33];
            for n in 0..tries {
                let (random, echo) = (random(2 * n), random(2 * n + 1) as u32);
                let (seq, isn) = (SeqNum::new(random as u32), SeqNum::new((random >> 32) as u32));
                for client_isn in [seq - 1, seq] {
                    let wrong = cookies.wrong_bits(hash(&key()), client_isn, isn, timestamps.then_some(echo));
                    assert!(wrong >> width == 0);
                    agreeing[wrong.trailing_zeros() as usize] += 1;
                }
            }
            for bits in 1..=16 {
                let near: u32 = agreeing[bits..].iter().sum();
                let expected = f64::from(2 * tries) / 2f64.powi(bits as i32);
                assert!(is_likely(near, expected), "{near} agree in {bits} bits where {expected} were to be expected");
            }
        }
    }

    /// And a near miss opens nothing: every bit of the MAC counts.
    #[test]
    fn one_wrong_bit_is_enough() {
        let now = Instant::from_secs(70);
        let cookies = cookies(now);
        for terms in every_terms(&Config::default()) {
            let SynAckNumbers { isn, ts_value } = cookies.mint(hash(&key()), SeqNum::new(9), &terms, now);
            assert_eq!(cookies.wrong_bits(hash(&key()), SeqNum::new(9), isn, ts_value), 0);
            for bit in 0..if terms.timestamps { 27 } else { 24 } {
                let near = SeqNum::new(isn.get() ^ 1 << bit);
                assert_eq!(cookies.wrong_bits(hash(&key()), SeqNum::new(9), near, ts_value), 1 << bit);
                assert_eq!(cookies.open(hash(&key()), [SeqNum::new(9)], near, ts_value), None);
            }
        }
    }
}
