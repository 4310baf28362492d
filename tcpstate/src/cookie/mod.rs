//! SYN cookies: the terms of a connection, proved by the client's own acknowledgement, remembered nowhere.
//!
//! With timestamps, most significant bit first:
//!
//! ```text
//! ISN    epoch 1 | promised scale 4 | MAC 27
//! TSval  time 19 | ECN 2, high bits | MSS 5 | ECN 1, low bit | SACK 1 | client scale 4
//! ```
//!
//! Without:
//!
//! ```text
//! ISN    epoch 1 | code k | MAC 31 - k       code = (MSS, client scale or none, SACK) as one mixed-radix number
//! ```
//!
//! The MAC covers the 4-tuple (by its keyed hash, which the flow table needs too), the client's ISN, the code bits and whether timestamps are
//! used, but not the time, so that a repeated SYN is answered with the same ISN. Its keys are those of the epoch and of the option tables in
//! use then (`keys`, `codec`). Scale code 15 means "none". Without timestamps there is no room for
//! ECN.
//!
//! The epoch bit tells the present epoch from the one before. Within [two seconds](NEAR) of a boundary a bit is also read as that of the epoch that begins
//! next, or of the one that has just ended to open: a box or a process whose clock differs by so much may have made the cookie. After a step of the clock the
//! epochs from before the step open for as long as their cookies were to live.
//!
//! A TSval is the latest time, on a clock of one millisecond a tick (RFC 7323 section 5.4), whose low 13 bits are the code: at most 8.2 s ago and
//! never ahead of the clock. So it tells nothing of a client's distance, and who watches it sees a clock of the usual rate. The low six bits are
//! those in which Linux keeps its own terms, so that who looks for a server that keeps them there ([`keeps_terms`]) finds a box like this, too.

mod codec;
mod keys;
pub mod terms;

use core::time::Duration;
use std::sync::Arc;

use zeroize::Zeroize;

use crate::Instant;
use crate::cookie::terms::{Ecn, Terms};
use crate::keyed::{self, Keys};
use crate::seq::{SeqNum, WindowScale};
pub use codec::OptionTables;
use keys::Secret;
pub use keys::{CookieClock, EPOCH_BITS, Rotation};

const SCALE_NONE: u32 = 15;
const MAC_BITS_WITH_TIMESTAMPS: u32 = 27;
/// Low bits of a TSval that hold a code.
const TS_CODE_BITS: u32 = 13;
const TS_CODE: u32 = (1 << TS_CODE_BITS) - 1;

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

/// What the cookies of an epoch are made with.
pub(crate) struct Minting {
    pub(crate) is_odd: bool,
    /// The words of the block that tells the kernel's program of it (`proxy::kernel_syns`): two of the keys; the number of MSS values with timestamps, of those without, of window scales and "none", and
    /// the bits of a code without timestamps, a byte each; none; eight words of MSS values with timestamps and eight of those without; the digits of
    /// 16 window scales.
    pub(crate) words: [u64; 22],
    /// Whether all MSS values for clients without timestamps are among them.
    pub(crate) has_plain: bool,
}

/// The option tables in use now, formerly and soon: each with the epoch from which on cookies are made with it, rising.
#[derive(Clone)]
struct Generations(Vec<(u64, Arc<OptionTables>)>);

impl Generations {
    /// The tables of an epoch.
    fn at(&self, epoch: u64) -> &Arc<OptionTables> {
        let begun = self.0.partition_point(|(from, _)| *from <= epoch);
        &self.0[begun.saturating_sub(1)].1
    }

    /// Other tables from an epoch on, of which none before it matters that ended before `oldest`. What was to begin later never does.
    fn change(&mut self, tables: &OptionTables, from: u64, oldest: u64) {
        let kept = self.0.partition_point(|(begun, _)| *begun < from).max(1);
        self.0.truncate(kept);
        if self.0.last().is_some_and(|(_, last)| **last != *tables) {
            self.0.push((from, Arc::new(tables.clone())));
        }
        let ended = self.0.partition_point(|(from, _)| *from <= oldest).saturating_sub(1);
        self.0.drain(..ended);
    }
}

/// How near the boundary of two epochs both readings of the epoch bit are tried: 2.1 s, in microseconds.
pub const NEAR: u64 = 1 << 21;

/// Another reading of an epoch bit: the keys and option tables of an epoch that is neither the present one nor the one before.
#[derive(Clone)]
struct Reading {
    epoch: u64,
    keys: Keys,
    tables: Arc<OptionTables>,
    /// Until then, of the worker's clock, it is tried.
    until: Instant,
}

/// Epochs that may be tried besides the two: one at a boundary, and two of before a step of the clock.
const READINGS: usize = 3;

/// Mints cookies and opens them.
#[derive(Clone)]
pub struct Cookies {
    secret: Secret,
    generations: Generations,
    clock: CookieClock,
    epoch: u64,
    /// Until then the epoch, and how near its boundaries are, stays as it is.
    until: Instant,
    /// What else an epoch bit may mean.
    readings: Vec<Reading>,
    /// Keys of the even and of the odd one among the current and the previous epoch.
    keys: [Keys; 2],
    /// Their option tables.
    tables: [Arc<OptionTables>; 2],
    /// Bits of their codes without timestamps.
    code_bits: [u32; 2],
    /// The smallest MSS of the present tables, without timestamps and with.
    smallest_mss: [u16; 2],
    /// How often what cookies are made with has changed, on a circle.
    changes: u32,
}

impl Cookies {
    /// Cookies with these option tables and this secret, in the epochs of this clock.
    pub fn new(tables: &OptionTables, master: Keys, clock: CookieClock, now: Instant) -> Self {
        let tables = Arc::new(tables.clone());
        let mut cookies = Self {
            secret: Secret::new(master),
            generations: Generations(vec![(0, Arc::clone(&tables))]),
            clock,
            epoch: 0,
            until: now,
            readings: Vec::with_capacity(READINGS),
            keys: [(0, 0); 2],
            tables: [Arc::clone(&tables), tables],
            code_bits: [0; 2],
            smallest_mss: [0; 2],
            changes: 0,
        };
        cookies.begin(now);
        cookies
    }

    /// From now on epochs are those of this clock, which differs little from the former, or has made a step: then cookies from before it open for two
    /// epochs more. A clock that has gone back a little stands still until it is on time again.
    pub fn set_clock(&mut self, clock: CookieClock, now: Instant) {
        let step = clock.ahead_of(self.clock);
        if step == 0 || (step < 0 && step.unsigned_abs() <= NEAR) {
            return;
        }
        self.advance(now);
        if step.unsigned_abs() > NEAR {
            self.readings.clear();
            let until = now + Duration::from_micros(2 << EPOCH_BITS);
            for epoch in [self.epoch, self.epoch.wrapping_sub(1)] {
                let reading = self.reading(epoch, until);
                self.readings.push(reading);
            }
        }
        self.clock = clock;
        self.begin(now);
    }

    /// Changes keys and option tables when an epoch has ended. Call it once an iteration, and before minting or opening.
    #[inline(always)]
    pub fn advance(&mut self, now: Instant) {
        if now >= self.until {
            self.begin(now);
        }
    }

    /// Changes the secret when its time comes. One change has to have ended before the next.
    pub fn rotate(&mut self, rotation: &Rotation) {
        self.secret.rotate(rotation);
        // A worker that receives it too late agrees with the others from now on.
        self.renew();
    }

    /// Makes cookies with other option tables from the beginning of an epoch on; those made before open with the terms they were made for. A change
    /// that was to begin then or later is dropped. After a change that comes too late, for an epoch that has begun, the cookies of that
    /// epoch that were made before open no more.
    pub fn retable(&mut self, tables: &OptionTables, from: u64) {
        self.generations.change(tables, from, self.epoch.saturating_sub(2));
        self.renew();
    }

    /// Finds the epoch and its part that a time lies in.
    #[inline(never)]
    fn begin(&mut self, now: Instant) {
        const LENGTH: u64 = 1 << EPOCH_BITS;
        let time = self.clock.at(now);
        let (epoch, into) = (time >> EPOCH_BITS, time % LENGTH);
        let (ends, near) = match into {
            0..NEAR => (NEAR, Some(epoch.wrapping_sub(2))),
            into if into < LENGTH - NEAR => (LENGTH - NEAR, None),
            _ => (LENGTH, Some(epoch + 1)),
        };
        self.until = now + Duration::from_micros(ends - into);
        self.epoch = epoch;
        self.readings.retain(|reading| reading.until > now);
        self.until = self.readings.iter().fold(self.until, |until, reading| until.min(reading.until));
        if let Some(near) = near {
            self.readings.truncate(READINGS - 1);
            let reading = self.reading(near, self.until);
            self.readings.push(reading);
        }
        self.renew();
    }

    /// How cookies of this epoch are read until then.
    fn reading(&self, epoch: u64, until: Instant) -> Reading {
        let tables = Arc::clone(self.generations.at(epoch));
        Reading { epoch, keys: self.secret.keys_of(epoch, tables.digest), tables, until }
    }

    /// Sets what is in use in the present epoch and the one before.
    fn renew(&mut self) {
        self.changes = self.changes.wrapping_add(1);
        for epoch in [self.epoch.wrapping_sub(1), self.epoch] {
            let slot = (epoch & 1) as usize;
            self.tables[slot] = Arc::clone(self.generations.at(epoch));
            self.keys[slot] = self.secret.keys_of(epoch, self.tables[slot].digest);
            self.code_bits[slot] = self.tables[slot].plain.bits;
        }
        for n in 0..self.readings.len() {
            let Reading { epoch, until, .. } = self.readings[n];
            self.readings[n] = self.reading(epoch, until);
        }
        self.smallest_mss = [false, true].map(|timestamps| self.present().smallest_mss(timestamps));
    }

    /// How often what cookies are made with has changed, on a circle.
    pub(crate) fn changes(&self) -> u32 {
        self.changes
    }

    /// Until when they are made with the same.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// What they are made with now, for a program that makes the same.
    pub(crate) fn minting(&self) -> Minting {
        let slot = (self.epoch & 1) as usize;
        let OptionTables { plain, ts_mss, .. } = self.present();
        let mut words = [0; 22];
        (words[0], words[1]) = self.keys[slot];
        let mut put = |at: usize, bits: u32, n: usize, value: u64| {
            words[at + n / (64 / bits as usize)] |= value << (bits as usize * n % 64)
        };
        let lengths = [ts_mss.len(), plain.mss.len().min(32), plain.radix_of_scales(), plain.bits as usize];
        lengths.into_iter().enumerate().for_each(|(n, length)| put(2, 8, n, length as u64));
        ts_mss.values.iter().enumerate().for_each(|(n, &mss)| put(4, 16, n, mss.into()));
        (0..32).for_each(|n| put(12, 16, n, plain.mss.get(n).copied().unwrap_or(u16::MAX).into()));
        (0..15).for_each(|n| put(20, 8, n, plain.digit(WindowScale::clamped(n as u8)) as u64));
        let has_plain = plain.mss.len() <= 32 && plain.radix_of_scales() < 256;
        Minting { is_odd: slot == 1, words, has_plain }
    }

    /// The option tables of the cookies that are made now.
    #[inline(always)]
    fn present(&self) -> &OptionTables {
        &self.tables[(self.epoch & 1) as usize]
    }

    /// The option tables of this cookie.
    #[inline(always)]
    fn tables_of(&self, isn: SeqNum) -> &OptionTables {
        &self.tables[(isn.get() >> 31) as usize]
    }

    /// The smallest MSS a cookie can express, with or without timestamps: a smaller one would be rounded up.
    #[inline(always)]
    pub fn smallest_mss(&self, timestamps: bool) -> u16 {
        self.smallest_mss[usize::from(timestamps)]
    }

    /// The scale a client is promised: `wanted` if the cookie can carry it, else the one that is the same for all.
    #[inline(always)]
    pub fn promise(&self, wanted: Option<WindowScale>, timestamps: bool) -> Option<WindowScale> {
        self.present().promise(wanted, timestamps)
    }

    /// The cookie for a SYN with this ISN on these terms; `key` is the flow table's keyed hash of its 4-tuple.
    #[inline]
    pub fn mint(&self, key: u64, client_isn: SeqNum, terms: &Terms, now: Instant) -> SynAckNumbers {
        let slot = (self.epoch & 1) as u32;
        let tables = self.present();
        if terms.timestamps {
            let ecn = terms.ecn as u32;
            let code = (ecn >> 1) << 11
                | (tables.ts_mss.floor(terms.mss) as u32) << 6
                | (ecn & 1) << 5
                | u32::from(terms.sack) << 4
                | scale_code(terms.scale);
            let promised = scale_code(terms.promised);
            let mac = self.mac(slot, key, client_isn, promised << TS_CODE_BITS | code, true)
                >> (64 - MAC_BITS_WITH_TIMESTAMPS);
            let isn = slot << 31 | promised << MAC_BITS_WITH_TIMESTAMPS | mac as u32;
            SynAckNumbers { isn: SeqNum::new(isn), ts_value: Some(ts_latest(code, ts_clock(now))) }
        } else {
            let code = tables.plain.encode(terms);
            let mac_bits = 31 - tables.plain.bits;
            let mac = self.mac(slot, key, client_isn, code, false) >> (64 - mac_bits);
            SynAckNumbers { isn: SeqNum::new(slot << 31 | code << mac_bits | mac as u32), ts_value: None }
        }
    }

    /// The terms of the cookie `isn`, if it was minted for the 4-tuple with this hash, for a SYN with one of these ISNs, in this epoch or the last;
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
        match client_isns.into_iter().find(is_right) {
            Some(client_isn) => Some((self.terms(isn, ts_echo)?, client_isn)),
            None if self.readings.is_empty() => None,
            None => self.open_otherwise(key, client_isns, isn, ts_echo),
        }
    }

    /// The same under the other readings of its epoch bit.
    #[cold]
    #[inline(never)]
    fn open_otherwise<const N: usize>(
        &self,
        key: u64,
        client_isns: [SeqNum; N],
        isn: SeqNum,
        ts_echo: Option<u32>,
    ) -> Option<(Terms, SeqNum)> {
        let slot = u64::from(isn.get() >> 31);
        self.readings.iter().filter(|reading| reading.epoch & 1 == slot).find_map(|reading| {
            let Reading { keys, tables, .. } = reading;
            let is_right =
                |&client_isn: &SeqNum| wrong_bits(*keys, tables.plain.bits, key, client_isn, isn, ts_echo) == 0;
            let client_isn = client_isns.into_iter().find(is_right)?;
            Some((terms_of(tables, isn, ts_echo)?, client_isn))
        })
    }

    /// Describes a number as a cookie, for an operator: whether its signature holds under each of the ISNs, and the terms it encodes.
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
        let width = if ts_echo.is_some() { MAC_BITS_WITH_TIMESTAMPS } else { 31 - self.tables_of(isn).plain.bits };
        let slot = isn.get() >> 31;
        let epoch = if u64::from(slot) == self.epoch & 1 { "this" } else { "the last" };
        let clock = ts_clock(now);
        let age = ts_echo.map_or(String::new(), |echo| {
            let most = clock.wrapping_sub(echo);
            format!(", {} to {most} ms old", most.saturating_sub(TS_CODE))
        });
        let signature = match wrong.iter().min() {
            Some(0) => format!("all {width} bits of its signature are right"),
            _ => format!("{wrong:?} of {width} bits of its signature are wrong, for each number its SYN may have had"),
        };
        let terms = match self.terms(isn, ts_echo) {
            Some(terms) => format!("it encodes {terms}"),
            None => "it encodes no terms".into(),
        };
        format!("cookie {:#010x} {kind}, of {epoch} epoch (key {slot}){age}: {signature}; {terms}", isn.get())
    }

    /// The terms a cookie encodes.
    #[inline(never)]
    fn terms(&self, isn: SeqNum, ts_echo: Option<u32>) -> Option<Terms> {
        terms_of(self.tables_of(isn), isn, ts_echo)
    }

    /// The bits in which `isn` differs from the cookie this 4-tuple would have got with the same epoch and code: none, if
    /// it is that cookie.
    #[inline(always)]
    fn wrong_bits(&self, key: u64, client_isn: SeqNum, isn: SeqNum, ts_echo: Option<u32>) -> u32 {
        let slot = (isn.get() >> 31) as usize & 1;
        wrong_bits(self.keys[slot], self.code_bits[slot], key, client_isn, isn, ts_echo)
    }

    #[inline(always)]
    fn mac(&self, slot: u32, key: u64, client_isn: SeqNum, code: u32, timestamps: bool) -> u64 {
        mac(self.keys[slot as usize & 1], key, client_isn, code, timestamps)
    }
}

impl Drop for Cookies {
    fn drop(&mut self) {
        self.keys.zeroize();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.keys.zeroize();
    }
}

/// The terms a cookie encodes that was made with these tables.
#[inline(always)]
fn terms_of(tables: &OptionTables, isn: SeqNum, ts_echo: Option<u32>) -> Option<Terms> {
    match ts_echo {
        Some(echo) => Some(Terms {
            mss: tables.ts_mss.get((echo >> 6 & 31) as usize)?,
            scale: scale_of(echo),
            promised: scale_of(isn.get() >> MAC_BITS_WITH_TIMESTAMPS),
            sack: echo & 1 << 4 != 0,
            timestamps: true,
            ecn: Ecn::parse(echo >> 11 << 1 & 6 | echo >> 5 & 1)?,
        }),
        None => {
            let terms = tables.plain.decode(tables.plain.code(isn))?;
            Some(Terms { promised: tables.promise(terms.scale, false), ..terms })
        }
    }
}

/// The bits in which `isn` differs from a cookie made with these keys, and a code of so many bits where there are no timestamps.
#[inline(always)]
fn wrong_bits(keys: Keys, code_bits: u32, key: u64, client_isn: SeqNum, isn: SeqNum, ts_echo: Option<u32>) -> u32 {
    let number = isn.get();
    let (width, code) = match ts_echo {
        Some(echo) => {
            let promised = number >> MAC_BITS_WITH_TIMESTAMPS & 15;
            (MAC_BITS_WITH_TIMESTAMPS, promised << TS_CODE_BITS | echo & TS_CODE)
        }
        None => {
            let width = 31 - code_bits;
            (width, (number & 0x7fff_ffff) >> width)
        }
    };
    let mac = mac(keys, key, client_isn, code, ts_echo.is_some()) >> (64 - width);
    (number ^ mac as u32) & ((1 << width) - 1)
}

// The 4-tuple comes first, so that what it makes of the keys serves both ISNs a segment is tried with.
#[inline(always)]
fn mac(keys: Keys, key: u64, client_isn: SeqNum, code: u32, timestamps: bool) -> u64 {
    let word = u64::from(client_isn.get()) << 32 | u64::from(code) << 1 | u64::from(timestamps);
    keyed::signature(keys, [key, word])
}

/// The clock of our TSvals: milliseconds (RFC 7323 section 5.4).
#[inline(always)]
pub fn ts_clock(now: Instant) -> u32 {
    (now.as_micros() / 1000) as u32
}

/// The latest TSval, not later than `clock`, with this code.
#[inline(always)]
fn ts_latest(code: u32, clock: u32) -> u32 {
    clock.wrapping_sub(clock.wrapping_sub(code) & TS_CODE)
}

/// The TSval of a SYN-ACK that is sent again, which bore `ts_value` the last time.
pub fn ts_again(ts_value: u32, now: Instant) -> u32 {
    ts_not_before(ts_latest(ts_value & TS_CODE, ts_clock(now)), ts_value)
}

/// A TSval with the code of `ts_value`, if need be a later one than that, which a host that has seen `shown` does not take for older (RFC 7323 section 5.5).
pub fn ts_not_before(ts_value: u32, shown: u32) -> u32 {
    if SeqNum::new(ts_value).before(SeqNum::new(shown)) {
        shown.wrapping_add(ts_value.wrapping_sub(shown) & TS_CODE)
    } else {
        ts_value
    }
}

/// Whether the TSval of a SYN-ACK looks as if its low bits were terms that its sender keeps nowhere else: Linux's SYN cookies, nftables' SYN proxy and
/// this box write the client's window scale and SACK there. Such a sender must get its TSval back exactly. A clock looks so once in 32 times.
pub fn keeps_terms(ts_value: u32, scale: Option<WindowScale>, sack: bool) -> bool {
    ts_value & 0x1f == scale_code(scale) | u32::from(sack) << 4
}

fn scale_code(scale: Option<WindowScale>) -> u32 {
    scale.map_or(SCALE_NONE, |scale| u32::from(scale.get()))
}

fn scale_of(code: u32) -> Option<WindowScale> {
    (code & 15 != SCALE_NONE).then(|| WindowScale::clamped((code & 15) as u8))
}

#[cfg(test)]
mod tests {
    use super::codec::{MssTable, floor_index};
    use super::keys::NOTICE;
    use super::*;
    use crate::Config;
    use crate::wire::{FlowKey, Vlan};
    use core::time::Duration;
    use proptest::prelude::*;

    fn key() -> FlowKey {
        FlowKey { lan: [0, 0, 0xffff, 1], wan: [0, 0, 0xffff, 2], lan_port: 80, wan_port: 40000, ..FlowKey::default() }
    }

    fn epoch_of(now: Instant) -> u64 {
        now.as_micros() >> EPOCH_BITS
    }

    fn beginning_of(epoch: u64) -> Instant {
        CookieClock::default().beginning_of(epoch)
    }

    /// The hash of these ends that the flow table would make.
    fn hash(key: &FlowKey) -> u64 {
        key.hash((5, 6))
    }

    fn cookies(now: Instant) -> Cookies {
        Cookies::new(&OptionTables::new(&Config::default()), (1, 2), CookieClock::default(), now)
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
        let rotation = Rotation::new([9; 16], CookieClock::default(), begin);
        let notice = rotation.begins().since(begin);
        assert!(notice >= NOTICE && notice <= NOTICE + Duration::from_micros(1 << EPOCH_BITS));
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
            // One worker receives it at once, one a little later, one never.
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

    /// Tables of any lengths.
    fn tables() -> impl Strategy<Value = Config> {
        let rising = |most, len| {
            prop::collection::btree_set(1u16..most, 1..len).prop_map(|set| set.into_iter().collect::<Vec<_>>())
        };
        (rising(9000, 20), rising(15, 8), rising(9000, 33), 0u8..15).prop_map(|(mss, scales, ts_mss, own_wscale)| {
            Config {
                mss_table: mss,
                wscale_table: [0].into_iter().chain(scales.into_iter().map(|scale| scale as u8)).collect(),
                ts_mss_table: ts_mss,
                own_wscale,
                ..Config::default()
            }
        })
    }

    /// Whatever the phase, a box whose clock differs by two seconds opens what this one makes, for as long as it is sure to live.
    #[test]
    fn clocks_that_differ_by_two_seconds_refuse_nobody() {
        const SECOND: u64 = 1_000_000;
        let (epoch, terms) = (1u64 << EPOCH_BITS, every_terms(&Config::default()));
        let begin = Instant::from_micros(100 * epoch);
        let clock = |skew: u64| CookieClock::showing(begin.as_micros() + 2 * SECOND + skew, begin);
        for skew in [0, SECOND, 2 * SECOND, 3 * SECOND, 4 * SECOND] {
            let make = |clock| Cookies::new(&OptionTables::new(&Config::default()), (1, 2), clock, begin);
            let (mut one, mut other) = (make(clock(2 * SECOND)), make(clock(skew)));
            for step in 0..1000 {
                let now = begin + Duration::from_micros(step * epoch / 250);
                let (isn, terms) = (SeqNum::new(step as u32), &terms[step as usize % terms.len()]);
                one.advance(now);
                let numbers = one.mint(hash(&key()), isn, terms, now);
                for later in [0, SECOND, 30 * SECOND, epoch - SECOND] {
                    let mut other = other.clone();
                    other.advance(now + Duration::from_micros(later));
                    let opened = other.open(hash(&key()), [isn], numbers.isn, numbers.ts_value);
                    assert_eq!(opened.map(|(terms, _)| terms), Some(*terms), "skew {skew}, step {step}, {later} later");
                }
                other.advance(now);
            }
        }
    }

    /// A clock that is set, forward or back, by a second or by years, ends no cookie early; and what is made after that opens too.
    #[test]
    fn a_step_of_the_clock_ends_no_cookie() {
        const SECOND: u64 = 1_000_000;
        let (begin, terms) = (Instant::from_secs(5000), every_terms(&Config::default())[0]);
        let real = |shift: i64, now: Instant| {
            CookieClock::showing((1u64 << 50).wrapping_add_signed(shift) + now.as_micros(), now)
        };
        for shift in [1, -1, 3, -3, 67, -67, 3600, -3600, 1_000_000_000, -1_000_000_000] {
            for phase in 0..70 {
                let begin = begin + Duration::from_secs(phase);
                let mut cookies = Cookies::new(&OptionTables::new(&Config::default()), (1, 2), real(0, begin), begin);
                let (isn, mut minted) = (SeqNum::new(9), Vec::new());
                for second in 0..210 {
                    let now = begin + Duration::from_secs(second);
                    if second == 66 {
                        cookies.set_clock(real(shift * SECOND as i64, now), now);
                    }
                    cookies.advance(now);
                    minted.push((now, cookies.mint(hash(&key()), isn, &terms, now)));
                    for (then, numbers) in minted.iter().filter(|(then, _)| now.since(*then).as_secs() < 66) {
                        let opened = cookies.open(hash(&key()), [isn], numbers.isn, numbers.ts_value);
                        assert!(opened.is_some(), "step {shift}, phase {phase}: made at {then:?}, tried at {now:?}");
                    }
                }
                assert!(cookies.readings.len() <= 1, "the time before the step is over");
            }
        }
    }

    fn terms() -> impl Strategy<Value = Terms> {
        (1u16..9000, prop::option::of(0u8..15), prop::option::of(0u8..15), any::<bool>(), any::<bool>()).prop_map(
            |(mss, scale, promised, sack, timestamps)| {
                let scale = scale.map(WindowScale::clamped);
                let promised = scale.map(|_| WindowScale::clamped(promised.unwrap_or(3)));
                Terms { mss, scale, promised, sack, timestamps, ecn: Ecn::Silent }
            },
        )
    }

    proptest! {
        /// A cookie opens for its whole lifetime with the terms it was minted for, whether it was minted before or after a change of the tables:
        /// as if the tables never changed.
        #[test]
        fn a_change_of_the_tables_takes_no_cookie_its_terms(
            generations in prop::collection::vec(tables(), 1..5),
            start in 100u64..200,
            changes in prop::collection::vec(0u64..90, 4),
            mints in prop::collection::vec((terms(), 0u64..3), 400),
        ) {
            let begin = Instant::from_secs(start);
            let mut cookies = Cookies::new(&OptionTables::new(&generations[0]), (1, 2), CookieClock::default(), begin);
            // For each the same secret and its own tables, for ever.
            let mut constant: Vec<_> =
                generations.iter().map(|config| Cookies::new(&OptionTables::new(config), (1, 2), CookieClock::default(), begin)).collect();
            // Which of them are in use from which time on; what was to begin later than the last change never does.
            let mut plan = vec![(Instant::default(), 0)];
            let (mut pending, mut when) = (1, changes[0]);
            let (mut minted, mut forged) = (Vec::new(), 0);
            for (second, (terms, _)) in mints.iter().enumerate() {
                let now = begin + Duration::from_secs(second as u64);
                cookies.advance(now);
                constant.iter_mut().for_each(|cookies| cookies.advance(now));
                if pending < generations.len() && second as u64 == when {
                    let from = CookieClock::default().next_epoch(now);
                    cookies.retable(&OptionTables::new(&generations[pending]), from);
                    plan.retain(|&(begins, _)| begins < beginning_of(from));
                    plan.push((beginning_of(from), pending));
                    (pending, when) = (pending + 1, when + 1 + changes[pending.min(3)]);
                }
                prop_assert!(cookies.generations.0.len() <= 4, "no more are kept than matter");
                let in_use = plan.iter().rfind(|&&(begins, _)| begins <= now).map_or(0, |&(_, n)| n);
                let promised = constant[in_use].promise(terms.promised, terms.timestamps);
                prop_assert_eq!(cookies.promise(terms.promised, terms.timestamps), promised);
                let terms = Terms { promised, ..*terms };
                let isn = SeqNum::new(second as u32);
                let numbers = cookies.mint(hash(&key()), isn, &terms, now);
                prop_assert_eq!(numbers, constant[in_use].mint(hash(&key()), isn, &terms, now));
                minted.push((in_use, isn, numbers, now));
                for &(by, isn, numbers, then) in minted.iter().rev().take(150).step_by(7) {
                    let opened = cookies.open(hash(&key()), [isn], numbers.isn, numbers.ts_value);
                    let expected = constant[by].open(hash(&key()), [isn], numbers.isn, numbers.ts_value);
                    prop_assert_eq!(opened, expected, "minted at {:?}, opened at {:?}", then, now);
                    let is_near = now.as_micros() % (1 << EPOCH_BITS) < NEAR;
                    let lives = epoch_of(now) - epoch_of(then) < if is_near { 3 } else { 2 };
                    // One of millions that are dead opens by chance.
                    forged += u32::from(opened.is_some() && !lives);
                    prop_assert!(opened.is_some() || !lives, "minted at {:?}, tried at {:?}", then, now);
                    prop_assert!(forged < 10, "minted at {:?}, tried at {:?}", then, now);
                }
            }
        }

        /// A cookie minted with one set of tables never opens under another, even where a change came too late.
        #[test]
        fn a_late_change_ends_cookies_and_misreads_none(old in tables(), new in tables(), terms in terms()) {
            let now = Instant::from_secs(100);
            let mut cookies = Cookies::new(&OptionTables::new(&old), (1, 2), CookieClock::default(), now);
            let numbers = cookies.mint(hash(&key()), SeqNum::new(7), &terms, now);
            let opened = cookies.open(hash(&key()), [SeqNum::new(7)], numbers.isn, numbers.ts_value);
            prop_assert!(opened.is_some());
            cookies.retable(&OptionTables::new(&new), epoch_of(now));
            let after = cookies.open(hash(&key()), [SeqNum::new(7)], numbers.isn, numbers.ts_value);
            prop_assert!(after.is_none() || OptionTables::new(&old) == OptionTables::new(&new));
        }
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
    fn a_table_is_searched_as_far_as_it_is_long() {
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
            // Two seconds more, for those whose clocks are behind.
            cookies.advance(Instant::from_micros(((5 + later) << EPOCH_BITS) + NEAR));
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
        let again = cookies.mint(hash(&key()), SeqNum::new(9), &terms, Instant::from_secs(80));
        assert_eq!(first.isn, again.isn);
        assert!(SeqNum::new(again.ts_value.unwrap()).after(SeqNum::new(first.ts_value.unwrap())));
        assert!(cookies.open(hash(&key()), [SeqNum::new(9)], first.isn, again.ts_value).is_some());
    }

    /// RFC 7323 section 5.4: a tick is a millisecond at the least. And a middlebox that follows the clock (pf's "reassemble tcp") takes no jump.
    #[test]
    fn the_clock_shown_is_that_of_milliseconds_and_never_ahead() {
        let mut cookies = cookies(Instant::from_secs(0));
        let mut last: Option<u32> = None;
        for millis in (0..200_000u64).step_by(37) {
            let now = Instant::from_micros(millis * 1000 + 999);
            cookies.advance(now);
            let terms = Terms {
                mss: 1460,
                scale: Some(WindowScale::clamped((millis % 15) as u8)),
                promised: None,
                sack: millis % 2 == 0,
                timestamps: true,
                ecn: Ecn::Silent,
            };
            let shown = cookies.mint(hash(&key()), SeqNum::new(9), &terms, now).ts_value.unwrap();
            let behind = ts_clock(now).wrapping_sub(shown);
            assert!(behind <= TS_CODE, "{behind} ms behind at {millis}");
            assert!(keeps_terms(shown, terms.scale, terms.sack));
            last = last.max(Some(shown));
            // Who was shown any of them sees nothing earlier.
            let later = ts_not_before(shown, last.unwrap_or_default());
            assert_eq!(later & TS_CODE, shown & TS_CODE);
            assert!(!SeqNum::new(later).before(SeqNum::new(last.unwrap_or_default())));
        }
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
    fn the_default_tables_leave_24_bits_of_mac_without_timestamps() {
        assert_eq!(cookies(Instant::default()).present().plain.bits, 7);
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
        let cookies = Cookies::new(&OptionTables::new(&config), (3, 4), CookieClock::default(), Instant::from_secs(90));
        assert_eq!((cookies.present().plain.radix(), cookies.present().plain.bits), (24_576, 15));
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
