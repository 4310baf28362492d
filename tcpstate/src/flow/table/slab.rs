//! The memory of a flow table: records, the side arrays beside them, and the undo slot. It comes from outside, so that it can outlive the
//! process; what lies in it is parsed like any other input.

use core::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::Side;
use crate::flow::Flow;
use crate::keyed::Keys;
use crate::seq::{SeqDelta, SeqNum};
use crate::wire::{FlowKey, Mac, Vlan};

/// A fixed number of plain records: memory of this process, or memory that the owner of the table mapped and keeps mapped.
#[derive(Debug)]
pub enum Region<T: 'static> {
    /// Memory of this process. Whether pages that nothing was written to are resident depends on the allocator.
    Owned(Box<[T]>),
    /// Memory that is mapped for as long as the process lives, and that no other code in this process uses.
    Mapped(&'static mut [T]),
}

impl<T: FromZeros> Region<T> {
    /// `len` zeroed records of this process's memory.
    ///
    /// # Panics
    /// If there is no memory for them.
    pub fn zeroed(len: usize) -> Self {
        Region::Owned(<[T]>::new_box_zeroed_with_elems(len).expect("memory for the flow table"))
    }
}

impl<T: FromBytes + IntoBytes + Immutable + KnownLayout> Region<T> {
    /// `len` records in mapped memory, at its beginning; the words that are left over behind them. `None` if it is too small or not aligned for them.
    pub fn mapped(words: &'static mut [u64], len: usize) -> Option<(Self, &'static mut [u64])> {
        let needed = (len * size_of::<T>()).div_ceil(size_of::<u64>());
        let (own, rest) = words.split_at_mut_checked(needed)?;
        let records = <[T]>::mut_from_bytes_with_elems(&mut own.as_mut_bytes()[..len * size_of::<T>()], len).ok()?;
        Some((Region::Mapped(records), rest))
    }
}

impl<T> Deref for Region<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Region::Owned(records) => records,
            Region::Mapped(records) => records,
        }
    }
}

impl<T> DerefMut for Region<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Region::Owned(records) => records,
            Region::Mapped(records) => records,
        }
    }
}

/// A copy in this process's memory.
impl<T: Clone> Clone for Region<T> {
    fn clone(&self) -> Self {
        Region::Owned(self.to_vec().into_boxed_slice())
    }
}

/// The upper words of both IPv6 addresses of a flow, the LAN's first.
pub type UpperWords = [[u32; 3]; 2];

/// What a flow has besides its record when its server is reached under another key than its client knows: that key, the sides of the box the two
/// ends are on, and what is added to the client's numbers on their way to the server. A flow without it has one key, and zero is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Redirect {
    lan: [u32; 4],
    wan: [u32; 4],
    lan_port: u16,
    wan_port: u16,
    vlan: Vlan,
    /// Added to the client's sequence numbers.
    pub seq_delta: SeqDelta,
    /// Added to the client's timestamps.
    pub ts_delta: SeqDelta,
    /// 1 for IPv6.
    v6: u8,
    client: u8,
    server: u8,
    /// Whether a proxy has told who the client is: 4 or 6 for its address's version.
    told_version: u8,
    hash: [u32; 2],
    /// The Ethernet address by which the client reaches the box.
    pub mac: Mac,
    /// Where the first bytes of the connection are kept, plus one; zero if nowhere, [`Redirect::LOST`] if they are gone.
    pub gathered: u16,
    /// The Ethernet address by which the server reaches the client: the box's, where the box stands for it; zero where it does not.
    pub own_mac: Mac,
    /// The slot of the server among those of all services, plus one; zero if it is not known. Not true of another process.
    pub slot: u16,
    /// The address of the client as a proxy has told it.
    told: [u32; 4],
    told_port: u16,
    spare: u16,
    /// The client's number behind what the box itself has acknowledged, before the server did.
    pub kept_to: SeqNum,
}

impl Redirect {
    /// The version of the layout.
    pub const LAYOUT: u64 = 3;

    /// Instead of a place: what was kept of the connection is gone.
    pub const LOST: u16 = u16::MAX;

    /// Forgets what is not true of another table.
    pub(super) fn detach(&mut self) {
        self.gathered = if self.gathered == 0 { 0 } else { Self::LOST };
        self.slot = 0;
    }

    /// The second key `key` with its keyed hash, of a client on the one side and a server on the other or the same.
    pub fn new(key: &FlowKey, hash: u64, client: Side, server: Side) -> Self {
        let FlowKey { lan, wan, lan_port, wan_port, vlan, v6 } = *key;
        let (client, server, v6) = (client as u8, server as u8, v6.into());
        let hash = [hash as u32, (hash >> 32) as u32];
        Self { lan, wan, lan_port, wan_port, vlan, v6, client, server, hash, ..Self::default() }
    }

    /// The keyed hash of the second key.
    pub fn hash(&self) -> u64 {
        u64::from(self.hash[1]) << 32 | u64::from(self.hash[0])
    }

    /// Notes who the client is: the end on the WAN of this key, as a proxy has told it; `None` if it has not.
    pub fn tell(&mut self, client: Option<&FlowKey>) {
        let (told, port, version) =
            client.map_or_else(Default::default, |key| (key.wan, key.wan_port, if key.v6 { 6 } else { 4 }));
        (self.told, self.told_port, self.told_version) = (told, port, version);
    }

    /// Who the client is, if a proxy has told it: the end on the WAN.
    pub fn told(&self) -> Option<FlowKey> {
        let v6 = self.told_version == 6;
        let is_told = v6 || self.told_version == 4 && self.told[..3] == [0, 0, 0xffff];
        is_told.then(|| FlowKey { wan: self.told, wan_port: self.told_port, v6, ..FlowKey::default() })
    }

    /// The key under which the server knows the connection.
    pub fn key(&self) -> FlowKey {
        let Self { lan, wan, lan_port, wan_port, vlan, v6, .. } = *self;
        FlowKey { lan, wan, lan_port, wan_port, vlan, v6: v6 == 1 }
    }

    /// Whether what another process left can be a second key: its sides parse, and its hash is that of its key.
    pub(super) fn is_plausible(&self, keys: Keys) -> bool {
        self.sides().is_some() && self.key().hash(keys) == self.hash()
    }

    /// The sides of the client and of the server; `None` if the bytes stand for none.
    pub fn sides(&self) -> Option<(Side, Side)> {
        let side = |byte| Side::BOTH.get(usize::from(byte)).copied();
        Some((side(self.client)?, side(self.server)?)).filter(|_| self.v6 <= 1)
    }
}

/// What a process that takes the slab over has to know before it reads a record; a cache line, so that the records behind it lie on lines of their own.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub(super) struct Head {
    /// Records from this place on were never used.
    pub(super) used: u32,
    spare: [u32; 15],
}

/// The memory of a flow table of a fixed capacity.
#[derive(Clone, Debug)]
pub struct Slab {
    /// One line.
    pub(super) head: Region<Head>,
    /// The records, and behind them the undo slot.
    pub(super) records: Region<Flow>,
    /// Beside each record, of a flow between IPv6 addresses; untouched, and so not resident, where flows are IPv4.
    pub(super) upper: Region<UpperWords>,
    /// Beside each record, of a flow whose server has a key of its own; empty where there is no service.
    pub(super) redirects: Region<Redirect>,
    /// Whether records of another process may lie in it.
    pub(super) is_used: bool,
}

impl Slab {
    /// Zeroed memory of this process for `capacity` flows, all of which may have a second key if `redirects` says so.
    pub fn anonymous(capacity: usize, redirects: bool) -> Self {
        Self {
            head: Region::zeroed(1),
            records: Region::zeroed(capacity + 1),
            upper: Region::zeroed(capacity),
            redirects: Region::zeroed(if redirects { capacity } else { 0 }),
            is_used: false,
        }
    }

    /// Mapped memory for `capacity` flows: zeroed, or, if it `is_used`, with the records of a former process. `None` if it is too small or its beginning
    /// not aligned to 64 bytes.
    pub fn mapped(words: &'static mut [u64], capacity: usize, redirects: bool, is_used: bool) -> Option<Self> {
        let (head, rest) = Region::mapped(words, 1)?;
        let (records, rest) = Region::mapped(rest, capacity + 1)?;
        let (upper, rest) = Region::mapped(rest, capacity)?;
        let (redirects, _) = Region::mapped(rest, if redirects { capacity } else { 0 })?;
        Some(Self { head, records, upper, redirects, is_used })
    }

    /// 64-bit words that mapped memory for `capacity` flows needs.
    pub const fn words(capacity: usize, redirects: bool) -> usize {
        let redirects = if redirects { capacity } else { 0 };
        let bytes = size_of::<Head>() + (capacity + 1) * size_of::<Flow>() + capacity * size_of::<UpperWords>();
        bytes.div_ceil(8) + (redirects * size_of::<Redirect>()).div_ceil(8)
    }

    /// A copy of its words, as they lie in mapped memory: for tests that damage them.
    pub fn to_words(&self) -> Vec<u64> {
        let (head, records) = (self.head.as_bytes(), self.records.as_bytes());
        let bytes = [head, records, self.upper.as_bytes(), self.redirects.as_bytes()].concat();
        bytes.chunks(8).map(|chunk| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))).collect()
    }

    /// Memory of this process with these words, as another process would find them in mapped memory: for tests that have damaged them. `None` if they are
    /// too few.
    pub fn of_words(words: &[u64], capacity: usize, redirects: bool) -> Option<Self> {
        let mut slab = Self::anonymous(capacity, redirects);
        let mut bytes = words.as_bytes();
        let parts = [
            slab.head.as_mut_bytes(),
            slab.records.as_mut_bytes(),
            slab.upper.as_mut_bytes(),
            slab.redirects.as_mut_bytes(),
        ];
        for part in parts {
            let (own, rest) = bytes.split_at_checked(part.len())?;
            part.copy_from_slice(own);
            bytes = rest;
        }
        slab.is_used = true;
        Some(slab)
    }

    /// Whether records of another process may lie in it.
    pub fn is_used(&self) -> bool {
        self.is_used
    }

    /// How many flows there is room for.
    pub fn capacity(&self) -> usize {
        self.records.len() - 1
    }

    /// The bytes of the records and the undo slot, as another process would find them: for tests that damage them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.is_used = true;
        self.head[0].used = self.capacity() as u32;
        self.records.as_mut_bytes()
    }
}

/// How the records of one version of the layout are read.
#[derive(Clone, Copy)]
struct Layout {
    version: u32,
    /// Bytes of a record.
    bytes: usize,
    /// The present record for one of that version; `None` if those bytes are none.
    read: fn(&[u8]) -> Option<Flow>,
}

/// The version that is written.
const PRESENT: Layout =
    Layout { version: crate::flow::LAYOUT, bytes: size_of::<Flow>(), read: |bytes| Flow::read_from_bytes(bytes).ok() };

/// The version before, which is converted. A change of the record raises its version and puts the former layout here; a layout that no slab in a file ever
/// had needs none.
const FORMER: Option<Layout> = None;

/// The slab that another process has left, to be read and not written: for flows that move to another table. Whatever the bytes are, it is read without a
/// panic and in bounded time.
pub struct Remains<'a> {
    layout: Layout,
    /// Records from this place on were never used.
    used: usize,
    capacity: usize,
    records: &'a [u8],
    upper: &'a [UpperWords],
    redirects: &'a [Redirect],
}

impl<'a> Remains<'a> {
    /// Whether records of this version can be read: of the present one and of the one before.
    pub fn can_read(version: u32) -> bool {
        Self::layout(version).is_some()
    }

    /// 64-bit words of a slab for `capacity` flows whose records have this version, as [`Slab::words`]; `None` if the version cannot be read, or for too many.
    pub fn words(version: u32, capacity: usize, redirects: bool) -> Option<usize> {
        let records = capacity.checked_add(1)?.checked_mul(Self::layout(version)?.bytes)?;
        let rest = Slab::words(capacity, redirects) - ((capacity + 1) * size_of::<Flow>()).div_ceil(8);
        records.div_ceil(8).checked_add(rest)
    }

    fn layout(version: u32) -> Option<Layout> {
        [Some(PRESENT), FORMER].into_iter().flatten().find(|layout| layout.version == version)
    }

    /// What lies in these words, whose records have this version: a slab for `capacity` flows, all of which may have a second key if `redirects` says so.
    /// `None` if they are too few, not aligned to 64 bytes, or the version cannot be read.
    pub fn of(words: &'a [u64], version: u32, capacity: usize, redirects: bool) -> Option<Self> {
        Self::with(Self::layout(version)?, words, capacity, redirects)
    }

    fn with(layout: Layout, words: &'a [u64], capacity: usize, redirects: bool) -> Option<Self> {
        let bytes = words.as_bytes();
        let (head, rest) = Head::ref_from_prefix(bytes).ok()?;
        let (records, rest) = rest.split_at_checked(capacity.checked_add(1)?.checked_mul(layout.bytes)?)?;
        let (upper, rest) = <[UpperWords]>::ref_from_prefix_with_elems(rest, capacity).ok()?;
        // Each array begins at a word.
        let skip = (size_of_val(upper)).next_multiple_of(size_of::<u64>()) - size_of_val(upper);
        let count = if redirects { capacity } else { 0 };
        let (redirects, _) = <[Redirect]>::ref_from_prefix_with_elems(rest.get(skip..)?, count).ok()?;
        let used = capacity.min(head.used as usize);
        Some(Self { layout, used, capacity, records, upper, redirects })
    }

    /// How many records may be in use.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// The change that was not finished, if there is one: the place of its record, and the record as it was.
    pub(super) fn unfinished(&self) -> Option<(usize, Flow)> {
        self.read(self.capacity).and_then(|copy| super::unfinished(&copy, self.used))
    }

    /// The record at this place, with what lies beside it.
    pub(super) fn get(&self, place: usize) -> Option<(Flow, UpperWords, Option<Redirect>)> {
        Some((self.read(place)?, *self.upper.get(place)?, self.redirects.get(place).copied()))
    }

    fn read(&self, place: usize) -> Option<Flow> {
        let bytes = self.layout.bytes;
        (self.layout.read)(self.records.get(place * bytes..(place + 1) * bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slabs of a version that has never been, with a word before each record: what a change of the layout has to bring.
    #[test]
    fn records_of_the_version_before_are_converted() {
        let former = Layout {
            version: PRESENT.version - 1,
            bytes: size_of::<Flow>() + 8,
            read: |bytes| Flow::read_from_bytes(bytes.get(8..)?).ok(),
        };
        let capacity = 5;
        let mut bytes = Head { used: 3, ..Head::default() }.as_bytes().to_vec();
        for born in 0..=capacity {
            bytes.extend([0xaa; 8]);
            let mut flow = Flow::default();
            flow.born = born;
            bytes.extend(flow.as_bytes());
        }
        bytes.extend([7; 5 * size_of::<UpperWords>()]);
        let words: Vec<u64> = bytes.chunks(8).map(|word| u64::read_from_bytes(word).expect("whole words")).collect();
        // Aligned to 64 bytes, as a mapping is to a page.
        let mut memory = vec![0; words.len() + 8];
        let skip = memory.as_ptr().align_offset(64);
        memory[skip..skip + words.len()].copy_from_slice(&words);
        let remains = Remains::with(former, &memory[skip..skip + words.len()], capacity as usize, false).unwrap();
        assert_eq!((remains.used(), remains.unfinished()), (3, None));
        assert_eq!(remains.get(2).map(|(flow, upper, _)| (flow.born, upper[0][0])), Some((2, 0x0707_0707)));
        assert!(Remains::with(former, &memory[skip..skip + words.len() - 1], capacity as usize, false).is_none());
        assert!(Remains::can_read(PRESENT.version) && !Remains::can_read(PRESENT.version - 2));
        assert!(!Remains::can_read(PRESENT.version + 1), "what comes after is not known");
    }

    #[test]
    fn mapped_memory_is_used_as_long_as_it_suffices() {
        for redirects in [false, true] {
            let words = Slab::words(10, redirects);
            let memory = || {
                // Aligned to 64 bytes, as a mapping is to a page.
                let memory = vec![0u64; words + 8].leak();
                let skip = memory.as_ptr().align_offset(64);
                &mut memory[skip..skip + words]
            };
            let slab = Slab::mapped(memory(), 10, redirects, false).expect("as much as is needed");
            assert_eq!((slab.capacity(), slab.upper.len()), (10, 10));
            assert_eq!(slab.redirects.len(), if redirects { 10 } else { 0 });
            assert!(Slab::mapped(memory(), 11, redirects, false).is_none());
        }
    }

    #[test]
    fn a_second_key_is_read_as_it_was_written() {
        let key =
            FlowKey { lan: [1, 2, 3, 4], wan: [5, 6, 7, 8], lan_port: 9, wan_port: 10, v6: true, ..FlowKey::default() };
        let redirect = Redirect::new(&key, 42, Side::Lan, Side::Lan);
        assert_eq!((redirect.key(), redirect.sides()), (key, Some((Side::Lan, Side::Lan))));
        assert_eq!(Redirect { server: 2, ..redirect }.sides(), None);
    }
}
