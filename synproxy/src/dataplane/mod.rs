//! The packet path: worker threads, each with one queue of both ports, a frame pool and an engine.
//!
//! [`pool`] starts and supervises the threads, [`worker`] is the loop of one of them, and [`engine`] is what it calls for every frame. Other threads
//! send [`commands`] to the workers. [`steering`] finds the worker that owns a flow and [`handoff`] carries frames and updates between workers.
//! [`polling`] decides when a worker may sleep, [`modes`] what becomes of SYNs by their destination, [`load`] and [`shedding`] which SYNs it drops under
//! overload, and [`front`] when an XDP program answers SYNs in front of tc. [`hold_buffer`] stores the frames that wait for a server, [`waiting`] those
//! that wait for what the kernel has forwarded before them, and [`frame_buffer`] one that came by no port. [`resolver`] looks up names of servers.
//! [`watchdog`] tells by each worker's [`pulse`] that none is stuck.

pub mod commands;
pub mod egress;
pub mod engine;
pub mod frame_buffer;
pub mod front;
pub mod handoff;
pub mod hold_buffer;
pub mod load;
pub mod memory;
pub mod modes;
pub mod polling;
pub mod pool;
pub mod pulse;
pub mod resolver;
pub mod shedding;
pub mod steering;
pub mod waiting;
pub mod watchdog;
pub mod worker;
