//! What the load generators share: segments to stamp out by the million, and what sends them: a socket, or the kernel's test loop; and how a
//! box's answers are shown.

pub mod live;
pub mod raw;
pub mod show;
pub mod spray;
