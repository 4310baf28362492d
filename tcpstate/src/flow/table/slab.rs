//! The memory of a flow table: records, the side arrays beside them, and the undo slot. It comes from outside, so that it can outlive the
//! process; what lies in it is parsed like any other input.

use core::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::Side;
use crate::flow::Flow;
use crate::keyed::Keys;
use crate::seq::SeqDelta;
use crate::wire::{FlowKey, Vlan};

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
    spare: u8,
    hash: [u32; 2],
}

impl Redirect {
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

/// The memory of a flow table of a fixed capacity.
#[derive(Clone, Debug)]
pub struct Slab {
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
            records: Region::zeroed(capacity + 1),
            upper: Region::zeroed(capacity),
            redirects: Region::zeroed(if redirects { capacity } else { 0 }),
            is_used: false,
        }
    }

    /// Mapped memory for `capacity` flows: zeroed, or, if it `is_used`, with the records of a former process. `None` if it is too small or its beginning
    /// not aligned to 64 bytes.
    pub fn mapped(words: &'static mut [u64], capacity: usize, redirects: bool, is_used: bool) -> Option<Self> {
        let (records, rest) = Region::mapped(words, capacity + 1)?;
        let (upper, rest) = Region::mapped(rest, capacity)?;
        let (redirects, _) = Region::mapped(rest, if redirects { capacity } else { 0 })?;
        Some(Self { records, upper, redirects, is_used })
    }

    /// 64-bit words that mapped memory for `capacity` flows needs.
    pub const fn words(capacity: usize, redirects: bool) -> usize {
        let redirects = if redirects { capacity } else { 0 };
        let bytes = (capacity + 1) * size_of::<Flow>() + capacity * size_of::<UpperWords>();
        bytes.div_ceil(8) + (redirects * size_of::<Redirect>()).div_ceil(8)
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
        self.records.as_mut_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
