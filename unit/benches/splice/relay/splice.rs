//! `splice(2)` from one socket into a pipe and out of it into the other: no byte is copied into the process. A direction has a pipe while
//! something of it is on its way; pipes are kept for the next. Without SPLICE_F_MORE, which would hold back the last segment for 200 ms.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{FcntlArg, fcntl};

use super::{Mover, Pair, Pumped, TURN, blocks, end};

/// Bytes a pipe can hold: 128 pages, as published measurements take it.
const PIPE: usize = 512 << 10;

#[derive(Default)]
pub struct Splice {
    idle: Vec<Pipe>,
}

/// Empty unless it stands in a direction's way.
pub struct Pipe {
    out: PipeReader,
    into: PipeWriter,
}

impl Pipe {
    fn open() -> io::Result<Pipe> {
        let (out, into) = io::pipe()?;
        // Where very many are full, the kernel lets them be no larger than they are.
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
        Ok(Pipe { out, into })
    }
}

/// The pipe of a direction, and what is in it.
#[derive(Default)]
pub struct Piped {
    pipe: Option<Pipe>,
    bytes: usize,
}

impl Splice {
    pub fn new() -> Splice {
        Splice::default()
    }
}

/// Moves at most so many bytes, and does not wait.
fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<Option<usize>> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are open during the call; no offsets are given.
    let moved = unsafe { libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), most, flags) };
    blocks(if moved < 0 {
        Err(rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO))
    } else {
        Ok(moved as usize)
    })
}

impl Mover for Splice {
    type Pending = Piped;

    fn pump(&mut self, pair: &mut Pair<Piped>, from: usize) -> io::Result<Pumped> {
        let (sender, receiver) = (&pair.ends[from], &pair.ends[1 - from]);
        let way = &mut pair.ways[from].pending;
        let pipe = match way.pipe.take().or_else(|| self.idle.pop()) {
            Some(pipe) => pipe,
            None => Pipe::open()?,
        };
        let mut moved = 0;
        let outcome = loop {
            while way.bytes > 0 {
                match splice(&pipe.out, receiver, way.bytes)? {
                    Some(put) => (way.bytes, moved) = (way.bytes - put, moved + put),
                    None => {
                        way.pipe = Some(pipe);
                        return Ok(Pumped::Blocked);
                    }
                }
            }
            if moved >= TURN {
                break Pumped::Again;
            }
            match splice(sender, &pipe.into, PIPE)? {
                None => break Pumped::Drained,
                Some(0) => break end(receiver)?,
                Some(got) => way.bytes = got,
            }
        };
        self.idle.push(pipe);
        Ok(outcome)
    }

    fn recycle(&mut self, pending: Piped) {
        // What a broken connection has left in its pipe would come out of the next.
        if pending.bytes == 0 {
            self.idle.extend(pending.pipe);
        }
    }
}
