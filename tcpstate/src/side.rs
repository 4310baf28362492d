//! The two sides of the box, and things of which there is one a side.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use core::ops::{Index, IndexMut};

/// One of the two ports: the protected one or the hostile one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Side {
    /// The first port: the servers.
    Lan = 0,
    /// The second port: all other hosts.
    Wan = 1,
}

impl Side {
    /// Both sides, LAN first.
    pub const BOTH: [Side; 2] = [Side::Lan, Side::Wan];

    /// The side across the box.
    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Lan => Side::Wan,
            Side::Wan => Side::Lan,
        }
    }
}

/// A pair indexed by [`Side`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct PerSide<T>([T; 2]);

impl<T> PerSide<T> {
    /// A pair of the LAN's and the WAN's value.
    pub const fn new(lan: T, wan: T) -> Self {
        Self([lan, wan])
    }

    /// The LAN's and the WAN's value.
    pub fn into_array(self) -> [T; 2] {
        self.0
    }
}

impl<T> Index<Side> for PerSide<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        &self.0[side as usize]
    }
}

impl<T> IndexMut<Side> for PerSide<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        &mut self.0[side as usize]
    }
}
