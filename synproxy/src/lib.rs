//! The appliance as a library: an inline TCP SYN proxy between a LAN port and a WAN port.
//!
//! The engine (`tcpstate`) decides what happens to a frame and the I/O backends (`pktio`) receive and transmit it. This crate
//! joins the two and adds what an operator needs. Imports point one way: [`dataplane`] uses [`control`], which uses
//! [`metrics`], which uses [`process`], as [`doctor`] does; [`appliance`] assembles all of them, and `main` calls [`appliance::run`].

#![forbid(unsafe_code)]

pub mod appliance;
pub mod control;
pub mod dataplane;
pub mod doctor;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod metrics;
pub mod process;
pub mod state;
