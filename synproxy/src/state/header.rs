//! The header of the state: a page that says whose the state is, how old it is, and where it lies, and that holds the secrets.
//!
//! Whatever its words are, reading them is safe; what they say is checked before anything is taken over. A process that is killed at a change leaves the
//! former value or the new one: single words change at once, and the secrets have two places, each with a number and a checksum, of which the later counts.

use super::succession::Succession;
use pktio::region::{Region, RegionError, RegionLock};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use tcpstate::{CookieClock, Instant, Rotation, Secrets};

/// Words of the page.
pub const WORDS: usize = 512;

/// "synproxy" in ASCII.
const MAGIC: u64 = 0x7379_6e70_726f_7879;

/// The version of this page's layout.
const VERSION: u64 = 1;

/// The processes in a row that may take the state over and end before they are ready.
const ATTEMPTS: u64 = 5;

/// Bytes that decide how the interfaces spread connections over their queues.
pub const SPREAD: usize = 64;

// The places of the words.
const AT_MAGIC: usize = 0;
const AT_VERSION: usize = 1;
/// The version of the regions' layout.
const AT_LAYOUT: usize = 2;
/// Which files hold the regions; zero while none do.
const AT_GENERATION: usize = 3;
/// What the ports are.
const AT_PORTS: usize = 4;
/// Which boot of the machine, two words.
const AT_BOOT: usize = 5;
/// When a process last said that it uses the state, on the worker's clock, in microseconds.
const AT_BEAT: usize = 7;
/// How many processes have taken it over since one was ready.
const AT_ATTEMPTS: usize = 8;
/// The version of the program that wrote it, four words of text.
const AT_BUILD: usize = 9;
/// The process that asks the one which uses the state to end; zero if none does.
const AT_SUCCESSOR: usize = 13;
/// The generation that is to be next, and the layout of its regions: of both it is the generation that counts which [`AT_GENERATION`] names, so that one
/// store changes them together.
const AT_NEXT: [usize; 2] = [14, 15];
/// The two places of the secrets.
const AT_KEPT: [usize; 2] = [64, 128];

const AT_END: usize = AT_KEPT[1] + KEPT;
const _: () = assert!(
    AT_END <= WORDS && AT_BUILD + 4 <= AT_SUCCESSOR && AT_NEXT[1] < AT_KEPT[0] && AT_KEPT[0] + KEPT <= AT_KEPT[1]
);

/// Words of a place of the secrets: its number, the secrets, the spread, two rotations of three words, and the checksum.
const KEPT: usize = 1 + 6 + SPREAD / 8 + 2 * 3 + 1;

/// What outlives the process besides tables. Dropping it wipes it.
#[derive(Clone)]
pub struct Kept {
    /// The secrets of the engine.
    pub secrets: Secrets,
    /// What decides how the interfaces spread connections.
    pub spread: [u8; SPREAD],
    /// The last two changes of the cookies' secret, the older first.
    rotations: [Option<([u8; 16], u64)>; 2],
}

impl Kept {
    /// New secrets.
    pub fn new(secrets: Secrets, spread: [u8; SPREAD]) -> Self {
        Self { secrets, spread, rotations: [None; 2] }
    }

    /// The changes of the cookies' secret, the older first.
    pub fn rotations(&self, clock: CookieClock) -> impl Iterator<Item = Rotation> {
        self.rotations.into_iter().flatten().map(move |(random, from)| Rotation::restored(random, from, clock))
    }

    /// Another change of the cookies' secret.
    pub fn rotate(&mut self, rotation: &Rotation) {
        self.rotations = [self.rotations[1], Some(rotation.parts())];
    }

    fn write(&self, number: u64) -> [u64; KEPT] {
        let mut words = [0; KEPT];
        words[0] = number;
        let (secrets, rest) = words[1..].split_at_mut(6);
        fill(secrets, self.secrets.bytes());
        let (spread, rest) = rest.split_at_mut(SPREAD / 8);
        fill(spread, &self.spread);
        for (rotation, place) in self.rotations.iter().zip(rest.chunks_mut(3)) {
            if let Some((random, from)) = rotation {
                fill(&mut place[..2], random);
                // Zero says that there is none.
                place[2] = from.saturating_add(1);
            }
        }
        words[KEPT - 1] = checksum(&words[..KEPT - 1]);
        words
    }

    fn read(words: &[u64; KEPT]) -> Option<(u64, Self)> {
        if words[0] == 0 || checksum(&words[..KEPT - 1]) != words[KEPT - 1] {
            return None;
        }
        let (secrets, rest) = words[1..].split_at(6);
        let (spread, rest) = rest.split_at(SPREAD / 8);
        let rotation = |n: usize| {
            let from = rest[3 * n + 2].checked_sub(1)?;
            Some((bytes(&rest[3 * n..3 * n + 2]), from))
        };
        let kept =
            Self { secrets: Secrets::new(bytes(secrets)), spread: bytes(spread), rotations: [0, 1].map(rotation) };
        Some((words[0], kept))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // The secrets wipe themselves.
        self.spread = [0; SPREAD];
        self.rotations = [None; 2];
        std::hint::black_box(&self.rotations);
    }
}

fn fill(words: &mut [u64], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
}

fn bytes<const N: usize>(words: &[u64]) -> [u8; N] {
    let mut bytes = [0; N];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    bytes
}

/// Tells a place that was written whole from one that was not (FNV-1a).
fn checksum(words: &[u64]) -> u64 {
    words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Why the state of another process is not taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No process has left any.
    #[error("there is none")]
    None,
    /// It is something else, or was written by a program whose header has another layout.
    #[error("it is no state of this program, or of a version with another header")]
    Foreign,
    /// The machine was restarted.
    #[error("it is of another boot of this machine")]
    OtherBoot,
    /// The interfaces are not the same.
    #[error("it is of other interfaces")]
    OtherPorts,
    /// The secrets are damaged.
    #[error("its secrets are damaged")]
    Damaged,
    /// It is too old.
    #[error("it is {age} s old, and `state_keep` is {keep} s")]
    Old {
        /// How old it is.
        age: u64,
        /// How old it may be.
        keep: u64,
    },
    /// Its last use lies in the future.
    #[error("it was last used at a time that is yet to come")]
    Future,
    /// Tables of its layout cannot be read.
    #[error(
        "its tables have layout {found:#x}, written by version {build}, which this version ({own:#x}) does not read"
    )]
    Layout {
        /// Its layout.
        found: u64,
        /// The present layout.
        own: u64,
        /// The version that wrote it.
        build: String,
    },
    /// Processes that took it over ended at once.
    #[error("the last {0} processes that took it over ended before they were ready")]
    Attempts(u64),
    /// A file is missing, or is not what it should be.
    #[error("{0}")]
    File(String),
}

/// What a state is compared with before it is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// A number that stands for the ports.
    pub ports: u64,
    /// Which boot of the machine this is.
    pub boot: u128,
    /// For how many seconds it is kept.
    pub keep: u64,
    /// The time.
    pub now: Instant,
}

/// The header, in memory that other processes may have written.
pub struct Header(&'static [AtomicU64]);

impl Header {
    /// The header in a region, and what keeps other processes out of it.
    ///
    /// # Errors
    /// If it is too small.
    pub fn of(region: Region) -> Result<(Self, RegionLock), RegionError> {
        if region.len() < WORDS {
            return Err(RegionError::Empty);
        }
        let (words, lock) = region.into_locked_atomics();
        Ok((Self(words), lock))
    }

    fn get(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    fn set(&self, at: usize, value: u64) {
        self.0[at].store(value, Ordering::Relaxed);
    }

    /// Checks whether what it describes may be taken over. Returns what is kept, the generation of the files, and how old it is, in microseconds.
    ///
    /// # Errors
    /// Why not.
    pub fn examine(&self, expected: &Expected) -> Result<(Kept, u64, u64), Refused> {
        let Expected { ports, boot, keep, now } = *expected;
        if self.0[..AT_END].iter().all(|word| word.load(Ordering::Relaxed) == 0) {
            return Err(Refused::None);
        }
        if self.get(AT_MAGIC) != MAGIC || self.get(AT_VERSION) != VERSION {
            return Err(Refused::Foreign);
        }
        let generation = self.get(AT_GENERATION);
        if generation == 0 {
            return Err(Refused::None);
        }
        if [self.get(AT_BOOT), self.get(AT_BOOT + 1)] != halves(boot) {
            return Err(Refused::OtherBoot);
        }
        if self.get(AT_PORTS) != ports {
            return Err(Refused::OtherPorts);
        }
        let age = now.as_micros().checked_sub(self.get(AT_BEAT)).ok_or(Refused::Future)?;
        if age / 1_000_000 > keep {
            return Err(Refused::Old { age: age / 1_000_000, keep });
        }
        if !tcpstate::Remains::can_read(tcpstate::Memory::record_layout(self.layout())) {
            return Err(self.refused_layout());
        }
        if self.get(AT_ATTEMPTS) >= ATTEMPTS {
            return Err(Refused::Attempts(ATTEMPTS));
        }
        let (_, kept) = self.kept().ok_or(Refused::Damaged)?;
        Ok((kept, generation, age))
    }

    /// The refusal of tables whose layout cannot be read.
    pub fn refused_layout(&self) -> Refused {
        Refused::Layout { found: self.layout(), own: tcpstate::Memory::LAYOUT, build: self.build() }
    }

    /// The version of the regions' layout.
    pub fn layout(&self) -> u64 {
        let generation = self.get(AT_GENERATION);
        let is_next = generation != 0 && generation == self.get(AT_NEXT[0]);
        self.get(if is_next { AT_NEXT[1] } else { AT_LAYOUT })
    }

    /// The version of the program that wrote it, as far as it is text.
    fn build(&self) -> String {
        let bytes: Vec<u8> = (AT_BUILD..AT_BUILD + 4).flat_map(|at| self.get(at).to_le_bytes()).collect();
        bytes.iter().take_while(|byte| byte.is_ascii_graphic()).map(|&byte| char::from(byte)).collect()
    }

    fn kept(&self) -> Option<(u64, Kept)> {
        let read = |at: usize| Kept::read(&std::array::from_fn(|n| self.get(at + n)));
        AT_KEPT.into_iter().filter_map(read).max_by_key(|(number, _)| *number)
    }

    /// Begins a new state, of which there are no files yet.
    pub fn begin(&self, expected: &Expected, kept: &Kept) {
        self.set(AT_GENERATION, 0);
        fence(Ordering::SeqCst);
        self.wipe();
        let [high, low] = halves(expected.boot);
        for (at, value) in [
            (AT_VERSION, VERSION),
            (AT_LAYOUT, tcpstate::Memory::LAYOUT),
            (AT_PORTS, expected.ports),
            (AT_BOOT, high),
            (AT_BOOT + 1, low),
        ] {
            self.set(at, value);
        }
        let mut build = [0; 4];
        let mut text = [0; 32];
        let version = env!("CARGO_PKG_VERSION").as_bytes();
        let length = version.len().min(text.len());
        text[..length].copy_from_slice(&version[..length]);
        fill(&mut build, &text);
        (0..).zip(build).for_each(|(n, word)| self.set(AT_BUILD + n, word));
        self.keep(kept);
        self.beat(expected.now);
        fence(Ordering::SeqCst);
        self.set(AT_MAGIC, MAGIC);
    }

    /// From now on the files of this generation hold the regions, of the present layout.
    pub fn commit(&self, generation: u64) {
        for (at, value) in self.steps(generation, tcpstate::Memory::LAYOUT) {
            self.set(at, value);
            fence(Ordering::SeqCst);
        }
    }

    /// The stores by which a generation comes to count. Whichever is the last one before a kill, generation and layout fit each other.
    fn steps(&self, generation: u64, layout: u64) -> [(usize, u64); 6] {
        [
            // The last store may have been missing the last time.
            (AT_LAYOUT, self.layout()),
            (AT_NEXT[0], 0),
            (AT_NEXT[1], layout),
            (AT_NEXT[0], generation),
            (AT_GENERATION, generation),
            // For programs that know of no next one.
            (AT_LAYOUT, layout),
        ]
    }

    /// The generation of the files.
    pub fn generation(&self) -> u64 {
        self.get(AT_GENERATION)
    }

    /// Writes what is kept where the older of both is.
    pub fn keep(&self, kept: &Kept) {
        let number = self.kept().map_or(0, |(number, _)| number) + 1;
        let words = kept.write(number);
        let at = AT_KEPT[(number % 2) as usize];
        self.set(at, 0);
        fence(Ordering::SeqCst);
        (1..KEPT).for_each(|n| self.set(at + n, words[n]));
        fence(Ordering::SeqCst);
        self.set(at, words[0]);
    }

    /// The word by which a process that runs is asked to leave the state to another.
    pub fn succession(&self) -> Succession<'_> {
        Succession::of(&self.0[AT_SUCCESSOR])
    }

    /// A process uses the state now.
    pub fn beat(&self, now: Instant) {
        self.set(AT_BEAT, now.as_micros());
    }

    /// A process begins to take it over.
    pub fn attempt(&self) {
        self.set(AT_ATTEMPTS, self.get(AT_ATTEMPTS).saturating_add(1));
    }

    /// The process that took it over is ready.
    pub fn ready(&self) {
        self.set(AT_ATTEMPTS, 0);
    }

    /// Forgets all of it, the secrets too.
    pub fn wipe(&self) {
        self.set(AT_GENERATION, 0);
        fence(Ordering::SeqCst);
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// Whether a header with these words is one of a state that no process has used for `keep` seconds.
pub fn is_left(words: &[u64], boot: u128, keep: u64, now: Instant) -> bool {
    let Some(words) = words.get(..WORDS) else { return false };
    let is_header = words[AT_MAGIC] == MAGIC && words[AT_VERSION] == VERSION;
    let is_old = now.as_micros().saturating_sub(words[AT_BEAT]) / 1_000_000 > keep;
    is_header && (is_old || [words[AT_BOOT], words[AT_BOOT + 1]] != halves(boot))
}

fn halves(word: u128) -> [u64; 2] {
    [(word >> 64) as u64, word as u64]
}

/// Which boot of the machine this is; zero where the kernel does not say.
pub fn boot() -> u128 {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_secs(5000);
    const EXPECTED: Expected = Expected { ports: 7, boot: 9 << 64 | 3, keep: 300, now: NOW };

    fn header() -> Header {
        Header::of(Region::anonymous(WORDS).unwrap()).unwrap().0
    }

    fn kept(fill: u8) -> Kept {
        Kept::new(Secrets::new([fill; 48]), [fill; SPREAD])
    }

    fn begun() -> Header {
        let header = header();
        header.begin(&EXPECTED, &kept(1));
        header.commit(1);
        header
    }

    #[test]
    fn what_was_begun_and_committed_is_taken_over_with_its_secrets_and_their_changes() {
        let header = header();
        assert_eq!(header.examine(&EXPECTED).err(), Some(Refused::None), "an empty page");
        header.begin(&EXPECTED, &kept(1));
        assert_eq!(header.examine(&EXPECTED).err(), Some(Refused::None), "no file yet");
        header.commit(4);
        let (mut found, generation, age) = header.examine(&EXPECTED).unwrap();
        assert_eq!((found.secrets.bytes(), found.spread, generation, age), (&[1; 48], [1; SPREAD], 4, 0));
        let clock = CookieClock::default();
        assert_eq!(found.rotations(clock).count(), 0);
        for n in 1..=3 {
            found.rotate(&Rotation::restored([n; 16], u64::from(n) - 1, clock));
            header.keep(&found);
        }
        header.beat(NOW + std::time::Duration::from_secs(1));
        let later = Expected { now: NOW + std::time::Duration::from_secs(301), ..EXPECTED };
        let (found, _, age) = header.examine(&later).unwrap();
        assert_eq!(age, 300_000_000);
        let rotations: Vec<_> = found.rotations(clock).map(|rotation| rotation.parts()).collect();
        assert_eq!(rotations, [([2; 16], 1), ([3; 16], 2)]);
        let words: Vec<u64> = header.0.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        let left = |boot, seconds| is_left(&words, boot, 300, NOW + std::time::Duration::from_secs(seconds));
        assert_eq!([left(EXPECTED.boot, 301), left(EXPECTED.boot, 302), left(0, 0)], [false, true, true]);
        assert!(!is_left(&words[1..], 0, 0, NOW) && !is_left(&[0; WORDS], 0, 0, NOW));
        header.wipe();
        assert_eq!(header.examine(&EXPECTED).err(), Some(Refused::None));
    }

    #[test]
    fn what_is_of_another_box_boot_time_or_layout_is_refused_by_name() {
        let header = begun();
        let refused = |expected: Expected| header.examine(&expected).err().unwrap();
        assert_eq!(refused(Expected { ports: 8, ..EXPECTED }), Refused::OtherPorts);
        assert_eq!(refused(Expected { boot: 0, ..EXPECTED }), Refused::OtherBoot);
        assert_eq!(
            refused(Expected { now: Instant::from_secs(5301), ..EXPECTED }),
            Refused::Old { age: 301, keep: 300 }
        );
        assert_eq!(refused(Expected { now: Instant::from_secs(4999), ..EXPECTED }), Refused::Future);
        header.steps(1, tcpstate::Memory::LAYOUT + (1 << 32)).into_iter().for_each(|(at, value)| header.set(at, value));
        let layout = refused(EXPECTED).to_string();
        assert!(layout.contains(env!("CARGO_PKG_VERSION")) && !layout.contains('\n'), "{layout}");
        let header = begun();
        (0..ATTEMPTS).for_each(|_| header.attempt());
        assert_eq!(header.examine(&EXPECTED).err(), Some(Refused::Attempts(ATTEMPTS)));
        header.ready();
        assert!(header.examine(&EXPECTED).is_ok());
    }

    #[test]
    fn a_generation_that_is_not_finished_leaves_the_former_with_its_layout() {
        const FORMER: u64 = 5;
        // As a program left it that knew of no next generation, and as this one does after one or two, of which the last may have been killed.
        for former in [&[][..], &[(3, 7, 6)], &[(3, 7, 5)], &[(2, 7, 6), (3, FORMER, 5)]] {
            for done in 0..=6 {
                let header = header();
                header.begin(&EXPECTED, &kept(1));
                header.set(AT_LAYOUT, FORMER);
                header.set(AT_GENERATION, 3);
                let step = |(at, value)| header.set(at, value);
                for &(generation, layout, done) in former {
                    header.steps(generation, layout).into_iter().take(done).for_each(step);
                }
                let before = (header.generation(), header.layout());
                header.steps(4, 9).into_iter().take(done).for_each(step);
                let expected = if done < 5 { before } else { (4, 9) };
                assert_eq!((header.generation(), header.layout()), expected, "killed after {done} of {former:?}");
            }
        }
    }

    #[test]
    fn a_change_of_the_secrets_that_was_not_finished_leaves_the_former() {
        let header = begun();
        header.keep(&kept(2));
        // Killed after each word of the next change.
        let (number, _) = header.kept().unwrap();
        let (at, words) = (AT_KEPT[(number as usize + 1) % 2], kept(3).write(number + 1));
        header.set(at, 0);
        for (n, &word) in words.iter().enumerate().skip(1) {
            header.set(at + n, word);
            assert_eq!(header.examine(&EXPECTED).unwrap().0.secrets.bytes(), &[2; 48]);
        }
        header.set(at, words[0]);
        assert_eq!(header.examine(&EXPECTED).unwrap().0.secrets.bytes(), &[3; 48]);
        for at in AT_KEPT {
            header.set(at + 3, 77);
        }
        assert_eq!(header.examine(&EXPECTED).err(), Some(Refused::Damaged));
    }

    #[test]
    fn any_page_is_examined_without_a_panic() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        for n in 0..2_000 {
            let header = if n % 2 == 0 { begun() } else { header() };
            for _ in 0..1 + random() % 600 {
                header.set(random() as usize % WORDS, random());
            }
            let _ = header.examine(&EXPECTED).map_err(|refused| refused.to_string());
            header.keep(&kept(5));
        }
    }
}
