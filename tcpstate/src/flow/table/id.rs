//! Where a flow is in the table.

/// The place of a flow in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Id(pub(crate) u32);

impl Id {
    /// No flow's place: it is not known.
    pub(crate) const NOWHERE: Id = Id(NIL);
    /// No flow's place: there is none.
    pub(crate) const ABSENT: Id = Id(NIL - 1);
}

/// No place: the end of a list.
pub(crate) const NIL: u32 = u32::MAX;
