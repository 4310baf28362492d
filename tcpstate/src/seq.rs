//! Sequence numbers, windows and scales as types of their own, so that none is read on the wrong side or in the wrong unit.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use core::ops::{Add, Neg, Shl, Sub};

/// A sequence number (RFC 9293 section 3.4): a point on a circle of 2^32, with distances but no total order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SeqNum(u32);

impl SeqNum {
    /// The sequence number of this value.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The value, as on the wire.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The distance forward from `origin` to this number.
    pub const fn beyond(self, origin: SeqNum) -> u32 {
        self.0.wrapping_sub(origin.0)
    }

    /// Whether `other` is less than 2^31 ahead: the order of RFC 9293 section 3.4, `<`.
    pub const fn before(self, other: SeqNum) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether this number is less than 2^31 ahead of `other`.
    pub const fn after(self, other: SeqNum) -> bool {
        other.before(self)
    }

    /// The later of two bare 32-bit numbers.
    pub const fn later(one: u32, other: u32) -> u32 {
        if SeqNum(one).before(SeqNum(other)) { other } else { one }
    }

    /// Whether this number is in the range from `first` forward to `last`, both included.
    pub const fn within(self, first: SeqNum, last: SeqNum) -> bool {
        self.beyond(first) <= last.beyond(first)
    }
}

impl Add<u32> for SeqNum {
    type Output = SeqNum;

    fn add(self, count: u32) -> SeqNum {
        SeqNum(self.0.wrapping_add(count))
    }
}

impl Sub<u32> for SeqNum {
    type Output = SeqNum;

    fn sub(self, count: u32) -> SeqNum {
        SeqNum(self.0.wrapping_sub(count))
    }
}

/// The difference between two numberings of the same bytes, or between two timestamp clocks, modulo 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct SeqDelta(u32);

impl SeqDelta {
    /// What must be added to `from` to reach `to`.
    pub const fn between(from: u32, to: u32) -> Self {
        Self(to.wrapping_sub(from))
    }

    /// A bare 32-bit number plus this difference.
    pub const fn shift(self, number: u32) -> u32 {
        number.wrapping_add(self.0)
    }
}

impl Neg for SeqDelta {
    type Output = SeqDelta;

    fn neg(self) -> SeqDelta {
        SeqDelta(self.0.wrapping_neg())
    }
}

impl Add<SeqDelta> for SeqNum {
    type Output = SeqNum;

    fn add(self, delta: SeqDelta) -> SeqNum {
        SeqNum(delta.shift(self.0))
    }
}

impl Sub<SeqDelta> for SeqNum {
    type Output = SeqNum;

    fn sub(self, delta: SeqDelta) -> SeqNum {
        self + -delta
    }
}

/// A window field as on the wire, not scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct RawWindow(pub u16);

/// A window in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Window(pub u32);

/// A window scale option's shift count, 0 to 14. `Option<WindowScale>` tells an absent option from shift 0: without the option from one end
/// neither end scales (RFC 7323 section 2.2).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct WindowScale(u8);

impl WindowScale {
    /// The largest shift (RFC 7323 section 2.3).
    pub const MAX: WindowScale = WindowScale(14);

    /// A scale from an option's value; RFC 7323 section 2.3: a larger one is used as 14.
    pub const fn clamped(shift: u8) -> Self {
        if shift > 14 { Self::MAX } else { Self(shift) }
    }

    /// The shift count, 0 to 14.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl Shl<WindowScale> for RawWindow {
    type Output = Window;

    fn shl(self, scale: WindowScale) -> Window {
        Window(u32::from(self.0) << scale.0)
    }
}

impl Window {
    /// The field for this window under `scale`: rounded down, so that no more is granted; saturating; but never zero for a window that is
    /// open, because a sender stopped for good is worse than one scale unit too many.
    pub fn field(self, scale: WindowScale) -> RawWindow {
        let shifted = u16::try_from(self.0 >> scale.0).unwrap_or(u16::MAX);
        RawWindow(if shifted == 0 && self.0 != 0 { 1 } else { shifted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_the_shorter_way_round_the_circle() {
        let near_wrap = SeqNum::new(u32::MAX - 5);
        let wrapped = near_wrap + 10;
        assert!(near_wrap.before(wrapped) && wrapped.after(near_wrap));
        assert!(!near_wrap.before(near_wrap));
        assert_eq!(wrapped.beyond(near_wrap), 10);
        assert!(SeqNum::new(0).within(near_wrap, wrapped));
        assert!(!SeqNum::new(100).within(near_wrap, wrapped));
    }

    #[test]
    fn a_delta_undoes_itself() {
        let (inner, outer) = (SeqNum::new(0xffff_fff0), SeqNum::new(0x10));
        let outward = SeqDelta::between(inner.get(), outer.get());
        assert_eq!(inner + outward, outer);
        assert_eq!(outer - outward, inner);
    }

    #[test]
    fn a_window_is_rounded_down_saturates_and_keeps_zero_and_non_zero_apart() {
        let scale = WindowScale::clamped(7);
        assert_eq!(Window(65_000).field(scale), RawWindow(507));
        assert_eq!(Window(100).field(scale), RawWindow(1));
        assert_eq!(Window(0).field(scale), RawWindow(0));
        assert_eq!(Window(u32::MAX).field(WindowScale::default()), RawWindow(u16::MAX));
        assert_eq!(WindowScale::clamped(200), WindowScale::MAX);
    }
}
