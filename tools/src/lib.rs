//! What the load generators share: segments to stamp out by the million, and what sends them: a socket, or the kernel's test loop; how a
//! box's answers are shown; and the replay of captures, for whoever wants to know what the box would do.

pub mod live;
pub mod raw;
pub mod replay;
pub mod show;
pub mod spray;
pub mod top;
pub mod views;
pub mod watch;
