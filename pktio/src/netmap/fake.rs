//! A simulated kernel module in ordinary memory: checks user space's pointers as the module does, and synchronises as late as a test wants.
//! Another, which only counts, allocates memory, rings and buffers to the ports that are registered, as the module's allocators do.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use netmap_sys::netmap::{NS_BUF_CHANGED, NS_MOREFRAG, netmap_ring, netmap_slot};

use super::device::Request;
use super::name::Name;
use super::port::{Buffers, Kernel, NETMAP_HEADROOM, NetmapPort};
use super::ring::Ring;
use super::{Failure, Granted, register_both};
use crate::offload::Completer;
use crate::offload::testing::{Header, partial, whole};
use crate::pool::{BufferMemory, MemoryOwner, Pool};
use crate::port::{Capabilities, Port};

const BUFFER: usize = 512;

/// Shared memory with rings and buffers.
struct Shared {
    base: NonNull<u8>,
    layout: Layout,
    rings: usize,
    slots: usize,
    extra: usize,
    /// The offsets of the idle buffers that the pool gave back when it was dropped.
    regained: Mutex<Vec<usize>>,
}

// SAFETY: plain memory; the tests use it from one thread.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl MemoryOwner for Shared {
    fn regain(&self, idle: &mut dyn Iterator<Item = usize>) {
        self.regained.lock().unwrap().extend(idle);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl Shared {
    /// Memory for `rings` rings of `slots` slots, each slot with a buffer, and `extra` buffers.
    fn new(rings: usize, slots: usize, extra: usize) -> Arc<Shared> {
        let ring = size_of::<netmap_ring>() + slots * size_of::<netmap_slot>();
        let ring = ring.next_multiple_of(256);
        let first = (rings * ring).next_multiple_of(4096);
        let buffers = 2 + rings * slots + extra;
        let layout = Layout::from_size_align(first + buffers * BUFFER, 4096).unwrap();
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        for at in 0..rings {
            // SAFETY: inside the memory just allocated, aligned, and not shared yet.
            unsafe {
                let place = base.add(at * ring).cast::<netmap_ring>().as_ptr();
                (*place).buf_ofs = (first - at * ring) as i64;
                (*place).num_slots = slots as u32;
                (*place).nr_buf_size = BUFFER as u32;
                let slot = (&raw mut (*place).slot).cast::<netmap_slot>();
                for i in 0..slots {
                    (*slot.add(i)).buf_idx = (2 + at * slots + i) as u32;
                }
            }
        }
        Arc::new(Shared { base, layout, rings, slots, extra, regained: Mutex::default() })
    }

    fn ring(&self, at: usize) -> NonNull<netmap_ring> {
        let ring = (size_of::<netmap_ring>() + self.slots * size_of::<netmap_slot>()).next_multiple_of(256);
        // SAFETY: the ring exists.
        unsafe { self.base.add(at * ring) }.cast()
    }

    fn buffers(&self) -> Buffers {
        let ring = self.ring(0);
        // SAFETY: inside the memory.
        let base = unsafe { ring.cast::<u8>().add((*ring.as_ptr()).buf_ofs as usize) };
        Buffers { base, size: BUFFER, count: (2 + self.rings * self.slots + self.extra) as u32 }
    }

    /// The numbers of all buffers that slots refer to.
    fn in_slots(&self) -> Vec<u32> {
        let slots = (0..self.rings).flat_map(|at| (0..self.slots).map(move |i| (at, i)));
        // SAFETY: inside the memory.
        slots.map(|(at, i)| unsafe { (*slot(self.ring(at), i)).buf_idx }).collect()
    }
}

fn slot(ring: NonNull<netmap_ring>, at: usize) -> *mut netmap_slot {
    // SAFETY: the callers pass slots that exist.
    unsafe { (&raw mut (*ring.as_ptr()).slot).cast::<netmap_slot>().add(at) }
}

/// The kernel's side of a ring.
struct Endpoint {
    ring: NonNull<netmap_ring>,
    slots: u32,
    current: u32,
    tail: u32,
}

// SAFETY: as `Shared`.
unsafe impl Send for Endpoint {}

impl Endpoint {
    /// The head that user space has published. On a pointer outside the ring, which only a test writes, resets the ring as the module does;
    /// panics where the module would reset it for another reason.
    fn head(&self) -> io::Result<u32> {
        // SAFETY: inside the memory.
        let (head, cur) = unsafe { ((*self.ring.as_ptr()).head, (*self.ring.as_ptr()).cur) };
        let n = self.slots;
        if head >= n || cur >= n {
            // SAFETY: as above.
            unsafe { ((*self.ring.as_ptr()).head, (*self.ring.as_ptr()).cur) = (self.current, self.current) };
            self.publish();
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let ours = (head + n - self.current) % n;
        assert!(ours <= (self.tail + n - self.current) % n, "slots taken that belong to the kernel");
        assert!((cur + n - head) % n <= (self.tail + n - head) % n, "a wake-up point that belongs to the kernel");
        Ok(head)
    }

    fn publish(&self) {
        // SAFETY: inside the memory.
        unsafe { (*self.ring.as_ptr()).tail = self.tail };
    }
}

/// A NIC: pushed frames are received, sent frames can be popped.
pub(super) struct Nic {
    shared: Arc<Shared>,
    receive: Endpoint,
    transmit: Endpoint,
    pub inbox: VecDeque<Vec<u8>>,
    pub outbox: Vec<Vec<u8>>,
    /// Frames it will send at one synchronisation.
    pub budget: usize,
    /// Buffers of the frames received or sent last, by number.
    pub seen: Vec<u32>,
    pub calls: usize,
}

impl Nic {
    fn receive(&mut self) -> io::Result<()> {
        self.calls += 1;
        let (buffers, n) = (self.shared.buffers(), self.receive.slots);
        self.receive.current = self.receive.head()?;
        while let Some(frame) = self.inbox.front() {
            let room = (self.receive.current + n - 1 - self.receive.tail) % n;
            let parts: Vec<&[u8]> = frame.chunks(BUFFER).collect();
            if parts.len() as u32 > room {
                break;
            }
            for (i, part) in parts.iter().enumerate() {
                // SAFETY: the slot is the kernel's, and so is its buffer.
                unsafe {
                    let slot = slot(self.receive.ring, self.receive.tail as usize);
                    let number = (*slot).buf_idx;
                    assert!((2..buffers.count).contains(&number), "a slot was given back without a buffer");
                    self.seen.push(number);
                    let to = buffers.base.add(number as usize * BUFFER).as_ptr();
                    std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                    (*slot).len = part.len() as u16;
                    (*slot).flags = if i + 1 < parts.len() { NS_MOREFRAG } else { 0 };
                }
                self.receive.tail = (self.receive.tail + 1) % n;
            }
            self.inbox.pop_front();
        }
        self.receive.publish();
        Ok(())
    }

    fn transmit(&mut self) -> io::Result<()> {
        self.calls += 1;
        let (buffers, n) = (self.shared.buffers(), self.transmit.slots);
        let head = self.transmit.head()?;
        let mut sent = 0;
        while self.transmit.current != head && sent < self.budget {
            let mut frame = Vec::new();
            loop {
                // SAFETY: user space has handed the slot over.
                let slot = unsafe { &mut *slot(self.transmit.ring, self.transmit.current as usize) };
                assert!((2..buffers.count).contains(&slot.buf_idx) && slot.len as usize <= BUFFER);
                self.seen.push(slot.buf_idx);
                // SAFETY: the slot gave this many bytes of the buffer to the kernel.
                let bytes = unsafe {
                    let from = buffers.base.add(slot.buf_idx as usize * BUFFER);
                    std::slice::from_raw_parts(from.as_ptr(), slot.len.into())
                };
                frame.extend_from_slice(bytes);
                self.transmit.current = (self.transmit.current + 1) % n;
                let more = slot.flags & NS_MOREFRAG != 0;
                slot.flags &= !NS_BUF_CHANGED;
                if !more {
                    break;
                }
                assert_ne!(self.transmit.current, head, "a frame without its end");
            }
            self.outbox.push(frame);
            sent += 1;
        }
        self.transmit.tail = (self.transmit.current + n - 1) % n;
        self.transmit.publish();
        Ok(())
    }
}

/// Asked by a port.
pub(super) struct Ask(Arc<Mutex<Nic>>);

impl Kernel for Ask {
    fn receive(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().receive()
    }

    fn transmit(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().transmit()
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

/// A port in `shared` whose rings are those from number `at` on, and the NIC behind it.
fn plug(shared: &Arc<Shared>, at: usize, swaps: bool) -> (NetmapPort<Ask>, Arc<Mutex<Nic>>) {
    let slots = shared.slots as u32;
    let [receive, transmit] = [0, 1].map(|i| shared.ring(at + i));
    let half = |ring, tail| Endpoint { ring, slots, current: 0, tail };
    let nic = Nic {
        shared: shared.clone(),
        receive: half(receive, 0),
        transmit: half(transmit, slots - 1),
        inbox: VecDeque::new(),
        outbox: Vec::new(),
        budget: usize::MAX,
        seen: Vec::new(),
        calls: 0,
    };
    nic.receive.publish();
    nic.transmit.publish();
    let nic = Arc::new(Mutex::new(nic));
    let room = size_of::<netmap_ring>() + slots as usize * size_of::<netmap_slot>();
    // SAFETY: the memory lives as long as the NIC, and each ring is used once.
    let rings = [receive, transmit].map(|ring| unsafe { Ring::new(ring, room) }.unwrap());
    let can = Capabilities { multi_buffer: true, max_frame: 4 * BUFFER, ..Capabilities::default() };
    // SAFETY: the rings' buffers are this port's, and the pool is one over them where it swaps.
    (unsafe { NetmapPort::new(Ask(nic.clone()), rings, shared.buffers(), swaps, can) }, nic)
}

/// Two ports in one memory, with the pool of its extra buffers.
struct Bench {
    shared: Arc<Shared>,
    ports: [NetmapPort<Ask>; 2],
    nics: [Arc<Mutex<Nic>>; 2],
    pool: Pool,
}

impl Bench {
    fn swapping(slots: usize, extra: usize) -> Bench {
        let shared = Shared::new(4, slots, extra);
        let ((lan, lan_nic), (wan, wan_nic)) = (plug(&shared, 0, true), plug(&shared, 2, true));
        let buffers = shared.buffers();
        // SAFETY: the memory is kept by its owner.
        let memory = unsafe { BufferMemory::new(buffers.base, buffers.count as usize, BUFFER, shared.clone()) };
        let first = 2 + 4 * slots;
        // SAFETY: the extra buffers are in no ring.
        let pool =
            unsafe { Pool::partly(memory, NETMAP_HEADROOM, (first..first + extra).map(|i| i * BUFFER), 4 * slots) };
        Bench { shared, ports: [lan, wan], nics: [lan_nic, wan_nic], pool }
    }

    fn copying(slots: usize, frames: usize) -> Bench {
        let (one, other) = (Shared::new(2, slots, 0), Shared::new(2, slots, 0));
        let ((lan, lan_nic), (wan, wan_nic)) = (plug(&one, 0, false), plug(&other, 0, false));
        Bench {
            shared: one,
            ports: [lan, wan],
            nics: [lan_nic, wan_nic],
            pool: Pool::heap(frames, 768, NETMAP_HEADROOM),
        }
    }

    fn push(&self, port: usize, frame: &[u8]) {
        self.nics[port].lock().unwrap().inbox.push_back(frame.to_vec());
    }

    /// What the NIC of this port has sent.
    fn sent(&self, port: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nics[port].lock().unwrap().outbox)
    }

    /// Forwards what there is from one port to the other, up to `max` frames; what finds no place is lost.
    fn forward(&mut self, from: usize, max: usize) -> usize {
        let mut batch = Vec::new();
        self.ports[from].receive(&mut batch, max, &mut self.pool);
        let taken = self.ports[1 - from].transmit(&mut batch, &mut self.pool);
        batch.into_iter().for_each(|frame| self.pool.put(frame));
        self.ports[1 - from].flush(&mut self.pool);
        taken
    }

    /// Every buffer of the memory is in one slot or idle, and nowhere twice.
    fn assert_conserved(self) {
        let Bench { shared, ports, nics, pool } = self;
        assert_eq!(pool.idle() + pool.lent(), pool.total());
        drop(ports);
        drop(nics);
        drop(pool);
        let mut all = shared.in_slots();
        all.extend(shared.regained.lock().unwrap().iter().map(|offset| (offset / BUFFER) as u32));
        all.sort_unstable();
        assert!(all.iter().copied().eq(2..shared.buffers().count), "{all:?}");
    }
}

#[test]
fn checksums_that_senders_leave_to_a_nic_are_completed() {
    use Header::{Ethernet, Tcp, V4, V6};
    for mut bench in [Bench::swapping(8, 16), Bench::copying(8, 16)] {
        bench.ports = bench.ports.map(|port| port.completing(Some(Completer::new("vale0:1"))));
        for headers in [[Ethernet, V4(0), Tcp(3)], [Ethernet, V6, Tcp(0)]] {
            // In one slot and in several, and one that is whole.
            for length in [5, 2 * BUFFER] {
                let payload = frame(1, length);
                bench.push(0, &partial(&headers, &payload));
                bench.push(0, &whole(&headers, &payload));
                assert_eq!(bench.forward(0, 8), 2);
                assert_eq!(bench.sent(1), [whole(&headers, &payload), whole(&headers, &payload)]);
            }
        }
        assert_eq!(bench.ports[0].statistics().checksums_completed, 4);
        bench.assert_conserved();
    }
}

/// A frame of `len` bytes with a content of its own.
fn frame(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number * 31 + i) as u8).collect()
}

#[test]
fn a_frame_is_forwarded_by_changing_places() {
    let mut bench = Bench::swapping(8, 16);
    bench.push(0, &frame(1, 100));
    assert_eq!(bench.forward(0, 64), 1);
    assert_eq!(bench.sent(1), [frame(1, 100)]);
    let received = bench.nics[0].lock().unwrap().seen.clone();
    assert_eq!(received, bench.nics[1].lock().unwrap().seen, "the very buffer it was received in");
    assert!(bench.ports[0].capabilities().zero_copy);
    bench.assert_conserved();
}

#[test]
fn between_memories_frames_are_copied() {
    let mut bench = Bench::copying(8, 16);
    for i in 0..5 {
        bench.push(1, &frame(i, 60 + i));
    }
    assert_eq!(bench.forward(1, 64), 5);
    assert_eq!(bench.sent(0), (0..5).map(|i| frame(i, 60 + i)).collect::<Vec<_>>());
    assert_eq!(bench.pool.idle(), bench.pool.total());
    assert!(!bench.ports[0].capabilities().zero_copy);
}

#[test]
fn frames_in_several_slots_pass_whole() {
    for mut bench in [Bench::swapping(16, 32), Bench::copying(16, 32)] {
        for len in [BUFFER, BUFFER + 1, 3 * BUFFER, 4 * BUFFER, 60] {
            bench.push(0, &frame(len, len));
            assert_eq!(bench.forward(0, 64), 1, "{len} bytes");
            assert_eq!(bench.sent(1), [frame(len, len)], "{len} bytes");
        }
        bench.push(0, &frame(9, 4 * BUFFER + 1));
        bench.push(0, &frame(1, 60));
        assert_eq!(bench.forward(0, 64), 1, "one that is too long is left out");
        assert_eq!(bench.ports[0].statistics().truncated, 1);
        assert_eq!(bench.pool.idle() + bench.pool.lent(), bench.pool.total());
    }
}

#[test]
fn rings_wrap_and_no_buffer_is_lost() {
    let mut bench = Bench::swapping(8, 24);
    let mut chance = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        (chance % below as u64) as usize
    };
    let (mut pushed, mut lost, mut sent) = ([0; 2], 0, [0; 2]);
    for round in 0..5000 {
        for (port, pushed) in pushed.iter_mut().enumerate() {
            for _ in 0..draw(6) {
                bench.push(port, &frame(*pushed, if draw(8) == 0 { 2 * BUFFER } else { 64 }));
                *pushed += 1;
            }
            bench.nics[1 - port].lock().unwrap().budget = if round < 4990 { draw(6) } else { usize::MAX };
            let before = bench.ports[port].statistics().received;
            let taken = bench.forward(port, 1 + draw(7));
            lost += (bench.ports[port].statistics().received - before) as usize - taken;
        }
        for (port, sent) in sent.iter_mut().enumerate() {
            for frame in bench.sent(port) {
                assert!(frame.windows(2).all(|two| two[1] == two[0].wrapping_add(1)), "the bytes of one frame");
                *sent += 1;
            }
        }
    }
    for port in [0, 1, 0, 1] {
        bench.forward(port, 64);
        sent[1 - port] += bench.sent(1 - port).len();
    }
    let waiting: usize = bench.nics.iter().map(|nic| nic.lock().unwrap().inbox.len()).sum();
    let unbuffered: usize = bench.ports.iter().map(|port| port.statistics().no_buffer as usize).sum();
    assert!(lost > 0 && sent[0] > 5000 && sent[1] > 5000, "{lost} {sent:?}");
    assert!(pushed[0] + pushed[1] >= sent[0] + sent[1] + lost + unbuffered + waiting - 64);
    for nic in &bench.nics {
        nic.lock().unwrap().inbox.clear();
    }
    bench.assert_conserved();
}

#[test]
fn a_stalled_kernel_is_counted_and_not_waited_for() {
    let mut bench = Bench::swapping(8, 32);
    bench.nics[1].lock().unwrap().budget = 0;
    for i in 0..20 {
        bench.push(0, &frame(i, 64));
    }
    let taken: usize = (0..4).map(|_| bench.forward(0, 7)).sum();
    assert_eq!(taken, 7, "a ring of eight slots takes seven");
    assert!(bench.ports[1].statistics().transmit_full > 0 && bench.ports[1].is_backlogged());
    assert!(bench.nics[1].lock().unwrap().calls < 20);

    bench.nics[1].lock().unwrap().budget = usize::MAX;
    let mut pool = std::mem::replace(&mut bench.pool, Pool::heap(1, 64, 0));
    bench.ports[1].flush(&mut pool);
    bench.pool = pool;
    assert!(!bench.ports[1].is_backlogged());
    assert_eq!(bench.sent(1).len(), 7);
    bench.nics[0].lock().unwrap().inbox.clear();
    bench.assert_conserved();
}

#[test]
fn a_batch_longer_than_the_ring_passes_a_switch_that_takes_it_at_once() {
    for mut bench in [Bench::swapping(8, 96), Bench::copying(8, 96)] {
        let mut batch = Vec::new();
        for i in 0..20 {
            let mut one = bench.pool.take().unwrap();
            one.fill(&frame(i, 64));
            batch.push(one);
        }
        assert_eq!(bench.ports[0].transmit(&mut batch, &mut bench.pool), 20);
        bench.ports[0].flush(&mut bench.pool);
        assert_eq!(bench.sent(0), (0..20).map(|i| frame(i, 64)).collect::<Vec<_>>(), "in their order");
        assert_eq!(bench.ports[0].statistics().transmit_full, 0);
        bench.nics[0].lock().unwrap().calls = 0;

        // One that takes a frame a call is asked twice and no more.
        bench.nics[0].lock().unwrap().budget = 1;
        for i in 0..20 {
            let mut one = bench.pool.take().unwrap();
            one.fill(&frame(i, 64));
            batch.push(one);
        }
        assert_eq!(
            bench.ports[0].transmit(&mut batch, &mut bench.pool),
            8,
            "a ring of seven, and the one that was taken"
        );
        assert_eq!(bench.ports[0].statistics().transmit_full, 1);
        assert_eq!(bench.nics[0].lock().unwrap().calls, 2);
        batch.drain(..).for_each(|frame| bench.pool.put(frame));
        assert_eq!(bench.pool.idle() + bench.pool.lent(), bench.pool.total());
    }
}

#[test]
fn an_empty_pool_loses_the_frame_and_not_the_slot() {
    let mut bench = Bench::swapping(8, 1);
    let held = bench.pool.take().unwrap();
    bench.push(0, &frame(1, 64));
    assert_eq!(bench.forward(0, 64), 0);
    assert_eq!(bench.ports[0].statistics().no_buffer, 1);
    bench.pool.put(held);
    bench.push(0, &frame(2, 64));
    assert_eq!(bench.forward(0, 64), 1);
    assert_eq!(bench.sent(1), [frame(2, 64)]);
    bench.assert_conserved();
}

#[test]
fn what_a_hostile_peer_writes_into_the_rings_goes_nowhere() {
    for swaps in [true, false] {
        let mut bench = if swaps { Bench::swapping(8, 16) } else { Bench::copying(8, 16) };
        let ring = bench.shared.ring(0);
        let write = |at: usize, buffer: u32, len: u16, flags: u16| {
            // SAFETY: inside the memory; the NIC does not look while the test writes.
            unsafe { *slot(ring, at) = netmap_slot { buf_idx: buffer, len, flags, ptr: u64::MAX } };
        };
        // The NIC would put its own tail back, so one frame is taken at a time, for which it need not be asked.
        let receive = |bench: &mut Bench, tail: u32| {
            // SAFETY: as above.
            unsafe { (*ring.as_ptr()).tail = tail };
            let mut batch = Vec::new();
            let count = bench.ports[0].receive(&mut batch, 1, &mut bench.pool);
            batch.into_iter().for_each(|frame| bench.pool.put(frame));
            (count, bench.ports[0].statistics().truncated)
        };
        let bad = [(0, 64), (1, 64), (u32::MAX, 64), (4, BUFFER as u16 + 1), (4, u16::MAX)];
        for (at, (buffer, len)) in bad.into_iter().enumerate() {
            write(at, buffer, len, 0);
            assert_eq!(receive(&mut bench, at as u32 + 1), (0, at as u64 + 1), "buffer {buffer}, {len} bytes");
        }
        // A frame without an end that fills the ring is thrown away with it.
        for at in 0..8 {
            write(at, 3 + at as u32, 64, NS_MOREFRAG);
        }
        assert_eq!(receive(&mut bench, 4), (0, 6));
        // A tail outside the ring leaves nothing to receive.
        for tail in [8, u32::MAX] {
            // SAFETY: as above.
            unsafe { (*ring.as_ptr()).tail = tail };
            assert_eq!(bench.ports[0].receivable(), 0, "tail {tail}");
        }
    }
}

#[test]
fn a_ring_that_the_module_has_reset_goes_on_where_we_were() {
    let mut bench = Bench::swapping(8, 32);
    let scribble = |bench: &Bench, at: usize| {
        // SAFETY: inside the memory; nothing reads while the test writes.
        unsafe { (*bench.shared.ring(at).as_ptr()).head = 100 };
    };
    for i in 0..14 {
        bench.push(0, &frame(i, 64));
    }
    assert_eq!(bench.forward(0, 7), 7, "the whole ring, given back, and the module has not looked since");
    scribble(&bench, 0);
    assert_eq!(bench.forward(0, 7), 0, "the module refuses");
    assert_eq!(bench.forward(0, 7), 7, "and has its slots back");
    assert_eq!(bench.sent(1), (0..14).map(|i| frame(i, 64)).collect::<Vec<_>>());

    bench.nics[1].lock().unwrap().budget = 0;
    bench.push(0, &frame(14, 64));
    assert_eq!(bench.forward(0, 7), 1);
    bench.nics[1].lock().unwrap().budget = usize::MAX;
    scribble(&bench, 3);
    for sent in [0, 1] {
        bench.ports[1].flush(&mut bench.pool);
        assert_eq!(bench.sent(1).len(), sent, "frames given to the kernel before are sent at the next call");
    }
    assert_eq!(bench.ports[1].statistics().transmit_errors, 1);
    bench.assert_conserved();
}

#[test]
fn a_ring_that_does_not_fit_its_memory_is_none() {
    let shared = Shared::new(1, 8, 0);
    let ring = shared.ring(0);
    // SAFETY: the memory is there; only one of these is ever made.
    let make = |room| unsafe { Ring::new(ring, room) }.is_some();
    assert!(make(256 + 8 * 16) && !make(256 + 8 * 16 - 1) && !make(255));
    for (slots, head) in [(0, 0), (1, 0), (1 << 17, 0), (8, 8)] {
        // SAFETY: as above.
        unsafe { ((*ring.as_ptr()).num_slots, (*ring.as_ptr()).head) = (slots, head) };
        assert!(!make(1 << 30), "{slots} slots, head {head}");
    }
}

/// The number of the memory that all NICs share.
const GLOBAL: u16 = 1;

/// What a memory has left.
#[derive(Clone, Copy, Debug)]
struct Left {
    memory: u16,
    interfaces: u32,
    rings: u32,
    buffers: u32,
}

/// A port that somebody has registered.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    memory: u16,
    queues: u16,
    slots: [u32; 2],
    /// Registrations of it.
    users: u32,
}

/// What the module's allocators have given away.
struct Allocator {
    memories: Vec<Left>,
    ports: Vec<Known>,
    made: u16,
}

impl Allocator {
    /// A module whose NICs have so many buffers.
    fn new(buffers: u32) -> Rc<RefCell<Allocator>> {
        // `if_num` and `ring_num` of the module.
        let global = Left { memory: GLOBAL, interfaces: 100, rings: 200, buffers };
        Rc::new(RefCell::new(Allocator { memories: vec![global], ports: Vec::new(), made: GLOBAL }))
    }

    fn left(&mut self, memory: u16) -> &mut Left {
        self.memories.iter_mut().find(|left| left.memory == memory).expect("it exists")
    }

    /// The memory of a switch's port that is made by this request (`netmap_mem_private_new`, with the two pipes that it allows for).
    fn make(&mut self, Request { queues, slots: [receive, transmit], extra, .. }: Request) -> u16 {
        let rings = 2 * (u32::from(queues) + 1) + 16;
        let buffers = ((8 + u32::from(queues) + 1) * (receive + transmit) + 2 + extra).max(4098);
        self.made += 1;
        self.memories.push(Left { memory: self.made, interfaces: 10, rings, buffers: buffers - 2 });
        self.made
    }
}

/// One ring pair that was given to a program.
struct Given {
    module: Rc<RefCell<Allocator>>,
    name: String,
    memory: u16,
    queues: u16,
    buffers: u32,
    extra: u32,
}

impl Granted for Given {
    fn memory(&self) -> u16 {
        self.memory
    }

    fn queues(&self) -> u16 {
        self.queues
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let mut module = self.module.borrow_mut();
        let left = module.left(self.memory);
        left.interfaces += 1;
        left.rings += 2;
        left.buffers += self.buffers + self.extra;
        let port = module.ports.iter().position(|port| port.name == self.name).expect("it is registered");
        module.ports[port].users -= 1;
        if module.ports[port].users == 0 {
            module.ports.remove(port);
        }
        let memory = self.memory;
        if memory != GLOBAL && module.ports.iter().all(|port| port.memory != memory) {
            module.memories.retain(|left| left.memory != memory);
        }
    }
}

/// Registers one ring pair, as `NIOCREGIF` does.
fn give(module: &Rc<RefCell<Allocator>>, name: &Name<'_>, wanted: Request) -> io::Result<Given> {
    let mut state = module.borrow_mut();
    let (Name::Switch(name) | Name::Interface(name)) = *name else { panic!("no pipes here") };
    let is_switch = name.starts_with("vale");
    let known = match state.ports.iter().find(|port| port.name == name) {
        Some(known) => known.clone(),
        None => {
            let (memory, queues, slots) = match (is_switch, wanted.memory) {
                (true, 0) => (state.make(wanted), wanted.queues.min(16), wanted.slots),
                (true, memory) => (memory, wanted.queues.min(16), wanted.slots),
                (false, _) => (GLOBAL, 32, [512; 2]),
            };
            Known { name: name.into(), memory, queues, slots, users: 0 }
        }
    };
    let buffers = known.slots[0] + known.slots[1];
    let left = state.left(known.memory);
    if left.interfaces == 0 || left.rings < 2 || left.buffers < buffers {
        return Err(io::Error::from_raw_os_error(libc::ENOMEM));
    }
    left.interfaces -= 1;
    left.rings -= 2;
    left.buffers -= buffers;
    // As many as there are (`netmap_extra_alloc`).
    let extra = wanted.extra.min(left.buffers);
    left.buffers -= extra;
    match state.ports.iter_mut().find(|port| port.name == name) {
        Some(port) => port.users += 1,
        None => state.ports.push(Known { users: 1, ..known.clone() }),
    }
    drop(state);
    let Known { memory, queues, .. } = known;
    Ok(Given { module: module.clone(), name: name.into(), memory, queues, buffers, extra })
}

/// Registers two ports for so many workers, each of which wants 8192 spare buffers; returns the memories, and the spare buffers of all.
fn registered(
    module: &Rc<RefCell<Allocator>>,
    ports: [&'static str; 2],
    workers: u16,
) -> Result<([u16; 2], u32), String> {
    let names = ports.map(|port| (port, Name::parse(port).expect("a port's name")));
    let wanted = Request { queues: workers, slots: [256, 64], extra: u32::from(workers) * 8192, ..Request::default() };
    let both = register_both(names, wanted, &|name, request| give(module, name, request));
    let told = match both {
        Ok([lan, wan]) => {
            assert_eq!([lan.len(), wan.len()], [usize::from(workers); 2]);
            assert!(lan[1..].iter().chain(&wan).all(|given| given.extra == 0), "the first has them all");
            Ok(([lan[0].memory, wan[0].memory], lan[0].extra))
        }
        Err(Failure::Kernel((port, _), error)) => Err(format!("{port}: {error}")),
        Err(Failure::FewRings { port, has, workers }) => Err(format!("{port}: {has} of {workers}")),
    };
    // Everything was given back.
    let state = module.borrow();
    assert!(state.ports.is_empty() && state.memories.len() == 1, "{:?} {:?}", state.ports, state.memories);
    told
}

#[test]
fn every_worker_on_a_switch_gets_its_rings_and_its_share_of_spare_buffers() {
    for workers in 1..=16 {
        let given = registered(&Allocator::new(163_840), ["vale0:1", "vale1:1"], workers);
        match workers {
            // One memory for both ports, made large enough by the request of the first.
            1..=5 => assert_eq!(given, Ok(([2, 2], u32::from(workers) * 8192)), "{workers}"),
            // Such a memory is made for ten registrations (`priv_if_num`): the ports are copied between two of them.
            6..=10 => {
                let ([lan, wan], spare) = given.expect("two memories");
                assert!(lan != wan && spare == 0, "{workers}");
            }
            _ => assert!(given.expect_err("no memory for so many").contains("Cannot allocate memory"), "{workers}"),
        }
    }
    assert_eq!(
        registered(&Allocator::new(163_840), ["vale0:1", "vale1:1"], 17),
        Err("vale0:1: 16 of 17".into()),
        "a switch's port has at most 16 ring pairs"
    );
}

#[test]
fn the_spare_buffers_of_network_cards_are_what_the_rings_of_all_workers_leave() {
    for workers in [1, 4, 8, 16] {
        let rings = u32::from(workers) * 2 * 1024;
        // As many as wanted, fewer, and none beyond the rings.
        for spare in [u32::from(workers) * 8192, 1000, 0] {
            let given = registered(&Allocator::new(rings + spare), ["eth0", "eth1"], workers);
            assert_eq!(given, Ok(([GLOBAL; 2], spare)), "{workers} workers, {spare} buffers beyond the rings");
        }
        assert!(registered(&Allocator::new(rings - 1), ["eth0", "eth1"], workers).is_err(), "{workers}");
    }
}

#[test]
fn spare_buffers_are_taken_only_where_both_ports_lie_in_one_memory() {
    // A switch's port that is made beside a card lies in the card's memory; one that is made before it does not.
    let module = Allocator::new(163_840);
    assert_eq!(registered(&module, ["eth0", "vale0:1"], 3), Ok(([GLOBAL; 2], 3 * 8192)));
    let ([lan, wan], spare) = registered(&module, ["vale0:1", "eth0"], 3).expect("two memories");
    assert!(lan != wan && spare == 0, "{lan} {wan} {spare}");
}
