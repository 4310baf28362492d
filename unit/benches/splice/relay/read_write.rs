//! `read` into a buffer, `write` out of it.

use std::io;
use std::os::fd::OwnedFd;

use super::{Mover, Pair, Pumped, TURN, blocks, end};

/// How much is read at once. Less takes more calls; more does not fit into the processor's nearer caches.
const BUFFER: usize = 128 << 10;

pub struct ReadWrite {
    /// One for all connections: what could not be written is kept apart.
    buffer: Vec<u8>,
}

/// What was read and not yet written, from a position on.
#[derive(Default)]
pub struct Kept {
    bytes: Vec<u8>,
    from: usize,
}

impl ReadWrite {
    pub fn new() -> ReadWrite {
        ReadWrite { buffer: vec![0; BUFFER] }
    }

    /// What has come, nothing at the end; none if nothing has come.
    pub fn read(&mut self, sender: &OwnedFd) -> io::Result<Option<&[u8]>> {
        let got = blocks(rustix::io::read(sender, &mut self.buffer[..]))?;
        Ok(got.map(|got| &self.buffer[..got]))
    }

    /// Moves what there is from one socket to the other; `hung_up` if the sender is to be read to its end.
    pub fn pump(&mut self, sender: &OwnedFd, receiver: &OwnedFd, kept: &mut Kept, hung_up: bool) -> io::Result<Pumped> {
        let mut moved = 0;
        loop {
            if !kept.bytes.is_empty() {
                kept.from += blocks(rustix::io::write(receiver, &kept.bytes[kept.from..]))?.unwrap_or(0);
                if kept.from < kept.bytes.len() {
                    return Ok(Pumped::Blocked);
                }
                *kept = Kept::default();
            }
            if moved >= TURN {
                return Ok(Pumped::Again);
            }
            let Some(got) = self.read(sender)? else { return Ok(Pumped::Drained) };
            if got.is_empty() {
                return end(receiver);
            }
            let put = blocks(rustix::io::write(receiver, got))?.unwrap_or(0);
            moved += put;
            if put < got.len() {
                *kept = Kept { bytes: got[put..].to_vec(), from: 0 };
                return Ok(Pumped::Blocked);
            }
            // What comes later is another edge; the end may have come together with these bytes.
            if got.len() < BUFFER && !hung_up {
                return Ok(Pumped::Drained);
            }
        }
    }
}

impl Mover for ReadWrite {
    type Pending = Kept;

    fn pump(&mut self, pair: &mut Pair<Kept>, from: usize) -> io::Result<Pumped> {
        let way = &mut pair.ways[from];
        ReadWrite::pump(self, &pair.ends[from], &pair.ends[1 - from], &mut way.pending, way.hung_up)
    }
}
