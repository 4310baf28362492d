//! io_uring: one multishot receive a socket into buffers that all share, and one send a direction at a time, of all that is due, copied or not. A
//! direction that has [`MOST`] on its way receives nothing until half of that has gone.

use std::alloc::{self, Layout};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::net::{self, AddressFamily, Shutdown, SocketFlags, SocketType, sockopt};

use super::Task;

/// Buffers of a worker, a power of two, and the bytes of each: what a super-frame holds.
const BUFFERS: u16 = 2048;
const BUFFER: usize = 64 << 10;

/// What a direction may have on its way.
const MOST: usize = 512 << 10;

/// In the place of a buffer's number: the one that a direction has for itself, so that it goes on where all others are taken, by directions that perhaps
/// wait for this one.
const OWN: u16 = u16::MAX;

/// How much that one holds.
const OWN_BUFFER: usize = 16 << 10;

/// Buffers that one send takes.
const AT_ONCE: usize = 16;

/// From how many bytes on a send does not copy, where it is asked not to: below, pinning pages costs more than the copy.
const WORTH: usize = 16 << 10;

/// What a completion is about: the lowest bits of its name. Then comes whose end it is, and which pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Accept,
    Connect,
    Receive,
    Send,
    Cancel,
}

impl About {
    const ALL: [About; 5] = [About::Accept, About::Connect, About::Receive, About::Send, About::Cancel];

    fn name(self, at: usize, from: usize) -> u64 {
        (at as u64) << 4 | (from as u64) << 3 | self as u64
    }
}

/// The buffers that the kernel fills, and the ring by which it is told which are free.
struct Buffers {
    memory: *mut u8,
    ring: *mut BufRingEntry,
    tail: u16,
    taken: usize,
}

impl Buffers {
    const MEMORY: Layout = layout(BUFFERS as usize * BUFFER);
    const RING: Layout = layout(BUFFERS as usize * size_of::<BufRingEntry>());

    fn new() -> Buffers {
        // SAFETY: neither layout is empty. The memory lives as long as the process.
        let (memory, ring) = unsafe { (alloc::alloc_zeroed(Self::MEMORY), alloc::alloc_zeroed(Self::RING)) };
        assert!(!memory.is_null() && !ring.is_null(), "no memory for buffers");
        let mut buffers = Buffers { memory, ring: ring.cast(), tail: 0, taken: BUFFERS.into() };
        (0..BUFFERS).for_each(|number| buffers.give(number));
        buffers
    }

    fn at(&self, number: u16) -> *mut u8 {
        // SAFETY: the kernel names buffers that it was given.
        unsafe { self.memory.add(usize::from(number) * BUFFER) }
    }

    /// Leaves a buffer to the kernel.
    fn give(&mut self, number: u16) {
        let address = self.at(number) as u64;
        // SAFETY: the place is within the ring, and the kernel does not look at it before the tail says so. The tail lies in the ring's first entry, in
        // a field that an entry has no use for.
        unsafe {
            let entry = &mut *self.ring.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(address);
            entry.set_len(BUFFER as u32);
            entry.set_bid(number);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.ring).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
        self.taken -= 1;
    }
}

/// Whole pages.
const fn layout(bytes: usize) -> Layout {
    match Layout::from_size_align(bytes, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    }
}

/// A send on its way: what the kernel reads while it is, and how much it is.
struct Message {
    header: libc::msghdr,
    parts: [libc::iovec; AT_ONCE],
    bytes: usize,
}

/// One direction.
struct Way {
    message: Box<Message>,
    /// See [`OWN`]; whether it is in use; whether the receive that waits is one into it.
    own: Box<[u8]>,
    is_own_taken: bool,
    is_alone: bool,
    /// Filled, in their order, and how far.
    due: VecDeque<(u16, usize)>,
    /// Of sends that the kernel has not done with.
    lent: VecDeque<Vec<u16>>,
    /// Received and not yet taken by the receiver's socket.
    bytes: usize,
    receives: bool,
    is_cancelled: bool,
    is_starved: bool,
    sends: bool,
    has_ended: bool,
    is_over: bool,
}

impl Way {
    fn new() -> Way {
        // SAFETY: all of it is numbers and pointers that may be null.
        let message = unsafe { std::mem::zeroed() };
        Way {
            message: Box::new(message),
            own: Box::default(),
            is_own_taken: false,
            is_alone: false,
            due: VecDeque::new(),
            lent: VecDeque::new(),
            bytes: 0,
            receives: false,
            is_cancelled: false,
            is_starved: false,
            sends: false,
            has_ended: false,
            is_over: false,
        }
    }
}

/// A client and its server; with what the kernel still does for it.
struct Pair {
    ends: [OwnedFd; 2],
    ways: [Way; 2],
    /// What the kernel connects to.
    address: Box<libc::sockaddr_in>,
    operations: usize,
    is_broken: bool,
    /// The kernel has been told to stop what it does for it.
    is_ending: bool,
}

pub struct Uring {
    task: Task,
    copies: bool,
    listener: OwnedFd,
    ring: IoUring,
    buffers: Buffers,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    /// Directions that found no buffer.
    starved: VecDeque<(usize, usize)>,
}

impl Uring {
    pub fn new(task: Task, listener: OwnedFd, copies: bool) -> io::Result<Uring> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(16 << 10)
            .build(4096)?;
        let buffers = Buffers::new();
        // SAFETY: ring and buffers live as long as the process.
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.ring as u64, BUFFERS, 0, 0)? };
        Ok(Uring {
            task,
            copies,
            listener,
            ring,
            buffers,
            pairs: Vec::new(),
            free: Vec::new(),
            starved: VecDeque::new(),
        })
    }

    pub fn run(mut self) -> io::Result<()> {
        self.accept()?;
        let mut done = Vec::new();
        loop {
            if self.task.spins {
                let none = Timespec::from(Duration::ZERO);
                match self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&none)) {
                    Err(error) if error.raw_os_error() != Some(libc::ETIME) => return Err(error),
                    _ => {}
                }
            } else {
                match self.ring.submit_and_wait(1) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
            done.clear();
            done.extend(self.ring.completion());
            for entry in &done {
                self.take(entry)?;
            }
            while self.buffers.taken < usize::from(BUFFERS) / 2
                && let Some((at, from)) = self.starved.pop_front()
            {
                self.receive(at, from)?;
            }
        }
    }

    fn submit(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: what an entry points to lives until its completion has come: messages and addresses in boxes of their pair, which goes only when no
        // operation of it is left; buffers as long as the process.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.ring.submit()?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        let accept = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
        self.submit(accept.build().user_data(About::Accept.name(0, 0)))
    }

    fn take(&mut self, entry: &cqueue::Entry) -> io::Result<()> {
        let (name, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        let about = About::ALL[(name & 7) as usize];
        let (at, from) = ((name >> 4) as usize, (name >> 3 & 1) as usize);
        if about == About::Accept {
            if !cqueue::more(flags) {
                self.accept()?;
            }
            return if result >= 0 { self.begin(result) } else { Ok(()) };
        }
        let Some(pair) = &mut self.pairs[at] else { return Ok(()) };
        if !cqueue::more(flags) {
            pair.operations -= 1;
        }
        let way = &mut pair.ways[from];
        match about {
            About::Accept | About::Cancel => {}
            About::Connect if result < 0 => pair.is_broken = true,
            About::Connect => {
                self.receive(at, 0)?;
                self.receive(at, 1)?;
            }
            About::Receive => {
                if !cqueue::more(flags) {
                    (way.receives, way.is_cancelled) = (false, false);
                    if std::mem::take(&mut way.is_alone) && result <= 0 {
                        way.is_own_taken = false;
                    }
                }
                match result {
                    1.. => {
                        let number = cqueue::buffer_select(flags).unwrap_or(OWN);
                        self.buffers.taken += usize::from(number != OWN);
                        way.due.push_back((number, result as usize));
                        way.bytes += result as usize;
                        if way.receives && way.bytes >= MOST && !way.is_cancelled {
                            way.is_cancelled = true;
                            pair.operations += 1;
                            let cancel = opcode::AsyncCancel::new(About::Receive.name(at, from));
                            self.submit(cancel.build().user_data(About::Cancel.name(at, from)))?;
                        }
                    }
                    0 => way.has_ended = true,
                    _ => match -result {
                        libc::ENOBUFS => {
                            way.is_starved = true;
                            self.starved.push_back((at, from));
                            self.receive_alone(at, from)?;
                        }
                        libc::ECANCELED => {}
                        _ => pair.is_broken = true,
                    },
                }
            }
            // The kernel has done with the oldest of these.
            About::Send if cqueue::notif(flags) => self.take_back(at, from),
            About::Send => {
                way.sends = false;
                if result < 0 || result as usize != way.message.bytes {
                    pair.is_broken = true;
                } else {
                    way.bytes -= result as usize;
                }
                if !cqueue::more(flags) {
                    self.take_back(at, from);
                }
            }
        }
        self.go_on(at, from)
    }

    /// A new client.
    fn begin(&mut self, client: i32) -> io::Result<()> {
        // SAFETY: the kernel has just made it, for us.
        let client = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(client) };
        sockopt::set_tcp_nodelay(&client, true)?;
        let server = net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_tcp_nodelay(&server, true)?;
        let at = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() - 1
        });
        let address = Box::new(libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: self.task.server.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*self.task.server.ip()).to_be() },
            sin_zero: [0; 8],
        });
        let to = ptr::from_ref(&*address).cast::<libc::sockaddr>();
        let connect = opcode::Connect::new(Fd(server.as_raw_fd()), to, size_of::<libc::sockaddr_in>() as u32);
        let ways = [Way::new(), Way::new()];
        self.pairs[at] =
            Some(Pair { ends: [client, server], ways, address, operations: 1, is_broken: false, is_ending: false });
        self.submit(connect.build().user_data(About::Connect.name(at, 0)))
    }

    /// Has the kernel receive what comes from this end.
    fn receive(&mut self, at: usize, from: usize) -> io::Result<()> {
        let Some(pair) = &mut self.pairs[at] else { return Ok(()) };
        let way = &mut pair.ways[from];
        way.is_starved = false;
        if pair.is_broken || way.receives || way.has_ended {
            return Ok(());
        }
        way.receives = true;
        pair.operations += 1;
        let receive = opcode::RecvMulti::new(Fd(pair.ends[from].as_raw_fd()), 0);
        self.submit(receive.build().user_data(About::Receive.name(at, from)))
    }

    /// The same into the direction's own buffer, once.
    fn receive_alone(&mut self, at: usize, from: usize) -> io::Result<()> {
        let Some(pair) = &mut self.pairs[at] else { return Ok(()) };
        let way = &mut pair.ways[from];
        if pair.is_broken || way.receives || way.has_ended || way.is_own_taken {
            return Ok(());
        }
        if way.own.is_empty() {
            way.own = vec![0; OWN_BUFFER].into();
        }
        (way.receives, way.is_own_taken, way.is_alone) = (true, true, true);
        pair.operations += 1;
        let end = Fd(pair.ends[from].as_raw_fd());
        let receive = opcode::Recv::new(end, way.own.as_mut_ptr(), OWN_BUFFER as u32);
        self.submit(receive.build().user_data(About::Receive.name(at, from)))
    }

    /// Does what is to be done now for what comes from this end.
    fn go_on(&mut self, at: usize, from: usize) -> io::Result<()> {
        let Some(pair) = &mut self.pairs[at] else { return Ok(()) };
        if pair.is_broken || pair.ways.iter().all(|way| way.is_over) {
            return self.end(at);
        }
        let way = &mut pair.ways[from];
        if !way.sends && !way.due.is_empty() {
            let (message, count) = (&mut *way.message, way.due.len().min(AT_ONCE));
            let mut lent = Vec::with_capacity(count);
            message.bytes = 0;
            for (part, (number, len)) in message.parts.iter_mut().zip(way.due.drain(..count)) {
                let bytes = if number == OWN { way.own.as_mut_ptr() } else { self.buffers.at(number) };
                *part = libc::iovec { iov_base: bytes.cast(), iov_len: len };
                message.bytes += len;
                lent.push(number);
            }
            message.header.msg_iov = message.parts.as_mut_ptr();
            message.header.msg_iovlen = count;
            way.lent.push_back(lent);
            way.sends = true;
            pair.operations += 1;
            let receiver = Fd(pair.ends[1 - from].as_raw_fd());
            // So that the kernel comes back only when all is sent.
            let (whole, header) = (libc::MSG_WAITALL as u32, ptr::from_ref(&message.header));
            let send = if self.copies || message.bytes < WORTH {
                opcode::SendMsg::new(receiver, header).flags(whole).build()
            } else {
                opcode::SendMsgZc::new(receiver, header).flags(whole).build()
            };
            return self.submit(send.user_data(About::Send.name(at, from)));
        }
        if way.sends {
            return Ok(());
        }
        if way.has_ended && way.due.is_empty() && !way.is_over {
            way.is_over = true;
            if net::shutdown(&pair.ends[1 - from], Shutdown::Write).is_err() {
                pair.is_broken = true;
            }
            if pair.is_broken || pair.ways.iter().all(|way| way.is_over) {
                return self.end(at);
            }
        } else if way.is_starved {
            return self.receive_alone(at, from);
        } else if way.bytes < MOST / 2 {
            return self.receive(at, from);
        }
        Ok(())
    }

    /// Ends a connection, once the kernel does nothing more for it.
    fn end(&mut self, at: usize) -> io::Result<()> {
        let Some(pair) = &mut self.pairs[at] else { return Ok(()) };
        if pair.operations > 0 {
            // Without a fault only sent buffers are still out, or a receive that hears of its end by itself.
            if !pair.is_broken || pair.is_ending {
                return Ok(());
            }
            pair.is_ending = true;
            let mut names = Vec::new();
            for (from, way) in pair.ways.iter().enumerate() {
                names.extend(way.receives.then(|| About::Receive.name(at, from)));
                names.extend(way.sends.then(|| About::Send.name(at, from)));
            }
            pair.operations += names.len();
            return names.into_iter().try_for_each(|name| {
                let cancel = opcode::AsyncCancel::new(name).build();
                self.submit(cancel.user_data(About::Cancel.name(at, (name >> 3 & 1) as usize)))
            });
        }
        if let Some(pair) = self.pairs[at].take() {
            if pair.is_broken {
                for end in &pair.ends {
                    let _ = sockopt::set_socket_linger(end, Some(Duration::ZERO));
                }
            }
            let [one, other] = pair.ways;
            for way in [one, other] {
                let due = way.due.iter().map(|(number, _)| *number);
                let all = due.chain(way.lent.into_iter().flatten());
                all.filter(|number| *number != OWN).for_each(|number| self.buffers.give(number));
            }
            drop(pair.address);
            self.starved.retain(|(starved, _)| *starved != at);
            self.free.push(at);
        }
        Ok(())
    }

    /// The buffers of the oldest send are free again.
    fn take_back(&mut self, at: usize, from: usize) {
        let Some(pair) = &mut self.pairs[at] else { return };
        let way = &mut pair.ways[from];
        for number in way.lent.pop_front().unwrap_or_default() {
            match number {
                OWN => way.is_own_taken = false,
                number => self.buffers.give(number),
            }
        }
    }
}
