//! `/dev/netmap`: registering a port, mapping its memory, and giving it back.
//!
//! Registration uses the request that netmap has had since version 11 of the ABI (`NIOCREGIF`, `net/netmap_legacy.h`); its structures are
//! those of `netmap_sys`. A module of version 14 requires that version in the request; earlier ones accept both.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use netmap_sys::netmap::{
    IFNAMSIZ, NETMAP_NO_TX_POLL, NETMAP_RING_MASK, NIOCREGIF, NIOCRXSYNC, NIOCTXSYNC, NR_EXCLUSIVE, NR_REG_ONE_NIC,
    NR_REG_PIPE_MASTER, NR_REG_PIPE_SLAVE, netmap_if, netmap_ring, nmreq,
};

use super::name::Name;
use super::port::{Buffers, Kernel};
use super::ring::Ring;
use crate::mapping::Mapping;
use crate::pool::MemoryOwner;

/// The version of the ABI in a request, and the one for modules that do not know it.
const VERSION: u32 = 14;
const EARLIER_VERSION: u32 = 11;

const DEVICE: &CStr = c"/dev/netmap";

/// The layout that the kernel's ABI has had since version 11 (`net/netmap.h`, `net/netmap_legacy.h`).
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<nmreq>() == 60 && offset_of!(nmreq, nr_ringid) == 40 && offset_of!(nmreq, nr_flags) == 52);
    assert!(size_of::<netmap_if>() == 56 && offset_of!(netmap_if, ni_tx_rings) == 24);
    assert!(offset_of!(netmap_if, ni_bufs_head) == 32 && offset_of!(netmap_if, ring_ofs) == 56);
};

/// What is requested of a port.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Request {
    /// The ring pair, from 0.
    pub queue: u16,
    /// Ring pairs the port is to have; only a switch's port can be made with any number.
    pub queues: u16,
    /// The memory the port is to lie in; with 0 the kernel chooses.
    pub memory: u16,
    /// Slots a receive and a transmit ring are to have; only switches and pipes honour it.
    pub slots: [u32; 2],
    /// Buffers beyond those in the rings.
    pub extra: u32,
}

/// A port that belongs to this process until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    device: File,
    /// The port's structure in the memory, in bytes from its beginning.
    interface: usize,
    /// Bytes of the memory.
    size: usize,
    /// Which memory it is.
    pub memory: u16,
    /// Ring pairs the port has.
    pub queues: u16,
    queue: u16,
    /// Buffers beyond those in the rings that were granted.
    pub extra: u32,
    /// The module refuses an interface whose frames do not fit a buffer and whose driver does not support several.
    pub checks_mtu: bool,
}

impl Registered {
    /// Registers one ring pair of the port `name`.
    ///
    /// # Errors
    ///
    /// The kernel's; `NotFound` without the device.
    pub fn new(name: &Name<'_>, wanted: Request) -> io::Result<Registered> {
        let path = DEVICE.to_str().expect("ASCII");
        let device = OpenOptions::new().read(true).write(true).open(path)?;
        // SAFETY: plain numbers, for which zero is valid.
        let mut request: nmreq = unsafe { std::mem::zeroed() };
        let (port, mode, ring) = match *name {
            Name::Interface(port) => (port, NR_REG_ONE_NIC, wanted.queue),
            Name::Switch(port) => {
                (request.nr_tx_rings, request.nr_rx_rings) = (wanted.queues, wanted.queues);
                (port, NR_REG_ONE_NIC, wanted.queue)
            }
            Name::Pipe { parent, number, master } => {
                (parent, if master { NR_REG_PIPE_MASTER } else { NR_REG_PIPE_SLAVE }, number)
            }
        };
        if port.len() >= IFNAMSIZ {
            return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
        }
        for (to, from) in request.nr_name.iter_mut().zip(port.bytes()) {
            *to = from as libc::c_char;
        }
        [request.nr_rx_slots, request.nr_tx_slots] = wanted.slots;
        // poll(2) shall not send frames: `flush` does.
        request.nr_ringid = ring & NETMAP_RING_MASK as u16 | NETMAP_NO_TX_POLL as u16;
        // Otherwise the module gives the same rings to several processes, which would move the same head.
        request.nr_flags = mode | NR_EXCLUSIVE;
        request.nr_arg2 = wanted.memory;
        request.nr_arg3 = wanted.extra;
        let register = |version| {
            let mut request = request;
            request.nr_version = version;
            // SAFETY: the request is a complete local structure, which the kernel reads and writes.
            let result = unsafe { libc::ioctl(device.as_raw_fd(), NIOCREGIF as _, &raw mut request) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok((request, version)) }
        };
        // EINVAL means an unknown version, among other things.
        let (request, version) = match register(VERSION) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => register(EARLIER_VERSION)?,
            answer => answer?,
        };
        Ok(Registered {
            device,
            interface: request.nr_offset as usize,
            size: request.nr_memsize as usize,
            memory: request.nr_arg2,
            queues: request.nr_rx_rings.min(request.nr_tx_rings),
            queue: if mode == NR_REG_ONE_NIC { wanted.queue } else { 0 },
            extra: request.nr_arg3,
            checks_mtu: version == VERSION,
        })
    }
}

/// The memory of one or two ports, mapped, with the registrations of their ring pairs.
#[derive(Debug)]
pub(super) struct Memory {
    mapping: Mapping,
    /// Bytes of a buffer.
    buffer: usize,
    /// The offset of buffer 0, in bytes from the memory's beginning.
    buffers: usize,
    /// The head of the list of extra buffers, which goes back to the kernel; in the first port's structure, once it is found. The lock is
    /// for the pools that give their share back at the same time.
    extra: Mutex<Option<NonNull<u32>>>,
    /// Kept open as long as the memory is used; closing them ends the ports. The memory is mapped by the descriptor of the last one, so that
    /// the others can be closed before.
    ports: Vec<Registered>,
}

// SAFETY: shared memory of the kernel; rings and frames settle who may access which part.
unsafe impl Send for Memory {}
// SAFETY: as above; through a shared reference only the list of extra buffers is written, under its lock.
unsafe impl Sync for Memory {}

/// A ring pair in mapped memory.
#[derive(Debug)]
pub(super) struct Rings {
    pub receive: Ring,
    pub transmit: Ring,
    pub buffers: Buffers,
}

/// The kernel reported an invalid layout.
fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} of the port lies outside its memory"))
}

impl Memory {
    /// Maps the memory of these registrations, which is the same for all, and finds their rings. Only the first one may have extra buffers.
    ///
    /// # Errors
    ///
    /// Those of the kernel; `InvalidData` when the layout it reports is invalid.
    pub fn map(ports: Vec<Registered>) -> io::Result<(Memory, Vec<Rings>)> {
        let mapping = Mapping::shared(ports[ports.len() - 1].device.as_fd(), ports[0].size)?;
        let mut memory = Memory { mapping, buffer: 0, buffers: 0, extra: Mutex::default(), ports };
        let rings = (0..memory.ports.len()).map(|i| memory.rings(i)).collect::<io::Result<Vec<_>>>()?;
        let Buffers { base: first, size: buffer, .. } = rings[0].buffers;
        memory.buffer = buffer;
        memory.buffers = first.as_ptr() as usize - memory.mapping.base().as_ptr() as usize;
        let list = memory.field(memory.ports[0].interface + std::mem::offset_of!(netmap_if, ni_bufs_head))?;
        memory.extra = Mutex::new(Some(list));
        Ok((memory, rings))
    }

    /// The structure at `offset`.
    fn field<T>(&self, offset: usize) -> io::Result<NonNull<T>> {
        let fits = offset.checked_add(size_of::<T>()).is_some_and(|end| end <= self.mapping.bytes());
        if !fits || !offset.is_multiple_of(align_of::<T>()) {
            return Err(broken("a structure"));
        }
        // SAFETY: inside the mapping, as just checked.
        Ok(unsafe { self.mapping.base().add(offset) }.cast())
    }

    /// The rings of the port with this number.
    fn rings(&self, port: usize) -> io::Result<Rings> {
        let Registered { interface, queue, .. } = self.ports[port];
        // SAFETY: the structure lies inside the mapping; plain numbers, which only the kernel writes.
        let head = unsafe { self.field::<netmap_if>(interface)?.read() };
        // Before version 14 there was one ring to the host, and no field for it.
        let host = head.ni_spare1[0].max(1);
        let receive = u64::from(head.ni_tx_rings) + u64::from(host) + u64::from(queue);
        let [receive, transmit] = [receive, queue.into()].map(|at| self.ring(interface, at));
        let (receive, buffers) = receive?;
        Ok(Rings { receive, transmit: transmit?.0, buffers })
    }

    /// The ring whose offset is at place `at` of the port's list, and the buffers its slots refer to.
    fn ring(&self, interface: usize, at: u64) -> io::Result<(Ring, Buffers)> {
        let list = interface + size_of::<netmap_if>();
        let entry = usize::try_from(at).ok().and_then(|at| at.checked_mul(8)).and_then(|at| list.checked_add(at));
        // SAFETY: inside the mapping.
        let offset = unsafe { self.field::<i64>(entry.ok_or_else(|| broken("a ring"))?)?.read() };
        let place = i64::try_from(interface).ok().and_then(|interface| interface.checked_add(offset));
        let place = place.and_then(|place| usize::try_from(place).ok()).ok_or_else(|| broken("a ring"))?;
        if offset == 0 {
            return Err(broken("the queue"));
        }
        let ring = self.field::<netmap_ring>(place)?;
        // SAFETY: inside the mapping; the kernel wrote these fields when the port was registered.
        let (to_buffers, size) = unsafe { ((*ring.as_ptr()).buf_ofs, (*ring.as_ptr()).nr_buf_size as usize) };
        let first = (place as i64).checked_add(to_buffers).and_then(|first| usize::try_from(first).ok());
        let first = first.filter(|&first| first < self.mapping.bytes()).ok_or_else(|| broken("the buffers"))?;
        if !(64..=65_472).contains(&size) || !size.is_multiple_of(64) || !first.is_multiple_of(64) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("buffers of {size} bytes")));
        }
        // SAFETY: inside the mapping, as just checked.
        let base = unsafe { self.mapping.base().add(first) };
        let count = u32::try_from((self.mapping.bytes() - first) / size).unwrap_or(u32::MAX);
        // SAFETY: mapped as long as this lives, which `Module` ensures; each ring of a port is found once.
        let ring = unsafe { Ring::new(ring, self.mapping.bytes() - place) }.ok_or_else(|| broken("a ring"))?;
        Ok((ring, Buffers { base, size, count }))
    }

    fn list(&self) -> MutexGuard<'_, Option<NonNull<u32>>> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the extra buffers off their list; returns their offsets from buffer 0.
    pub fn take_extra(&self, buffers: Buffers) -> Vec<usize> {
        let mut taken = Vec::new();
        let extra = self.list();
        let Some(extra) = *extra else { return taken };
        // SAFETY: the field lies inside the mapping; nothing else reads or writes it while the port is registered.
        let mut next = unsafe { extra.read() };
        while (2..buffers.count).contains(&next) && taken.len() < self.ports[0].extra as usize {
            let offset = next as usize * buffers.size;
            taken.push(offset);
            // SAFETY: the buffer exists, was granted by the kernel, and begins with the number of the next.
            next = unsafe { buffers.base.add(offset).cast::<u32>().read() };
        }
        // SAFETY: as above.
        unsafe { extra.write(0) };
        taken
    }
}

impl MemoryOwner for Memory {
    /// The kernel takes the extra buffers back by a list, in which each buffer holds the number of the next. Several pools may lie in the
    /// memory: each puts its buffers in front of those that are in the list.
    fn regain(&self, idle: &mut dyn Iterator<Item = usize>) {
        let extra = self.list();
        let Some(extra) = *extra else { return };
        // SAFETY: the field lies inside the mapping; only this process writes it, under the lock.
        let mut next = unsafe { extra.read() };
        for offset in idle {
            // SAFETY: the buffer lies in the mapping and is no longer used.
            unsafe { self.mapping.base().add(self.buffers + offset).cast::<u32>().write(next) };
            next = (offset / self.buffer) as u32;
        }
        // SAFETY: the field lies inside the mapping; the kernel reads it when the port is closed.
        unsafe { extra.write(next) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let extra = *self.list();
        if let (Some(extra), 2..) = (extra, self.ports.len()) {
            // SAFETY: the field lies inside the mapping, which outlives this port.
            let list = unsafe { extra.read_volatile() };
            drop(self.ports.remove(0));
            // The module has taken the list back but leaves its head in place: an interface that is attached to a switch next, and gets
            // this structure, would release buffers at its end that may belong to another port by then.
            // SAFETY: as above.
            unsafe {
                if extra.read_volatile() == list {
                    extra.write_volatile(0);
                }
            }
        }
    }
}

/// The kernel module, called through the descriptor of one port.
#[derive(Debug)]
pub(super) struct Module {
    /// The descriptor of the port, which `memory` keeps open.
    fd: RawFd,
    _memory: Arc<Memory>,
}

impl Module {
    /// The module, for the port with this number.
    pub fn new(memory: &Arc<Memory>, port: usize) -> Module {
        Module { fd: memory.ports[port].device.as_raw_fd(), _memory: Arc::clone(memory) }
    }

    fn ask(&self, request: libc::c_uint) -> io::Result<()> {
        // SAFETY: the request takes no argument, and the descriptor is open.
        let result = unsafe { libc::ioctl(self.fd, request as _, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Kernel for Module {
    fn receive(&mut self) -> io::Result<()> {
        self.ask(NIOCRXSYNC)
    }

    fn transmit(&mut self) -> io::Result<()> {
        self.ask(NIOCTXSYNC)
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::FromRawFd;

    /// The layout of a memory made by the module: one ring pair of four slots, and one to the host.
    const SIZE: usize = 1 << 16;
    const INTERFACE: usize = 256;
    const RINGS: usize = INTERFACE + size_of::<netmap_if>();
    const TRANSMIT: usize = 1024;
    const RECEIVE: usize = 2048;
    const BUFFERS: usize = 8192;
    const BUFFER: usize = 512;

    fn put<T: Copy>(memory: &mut [u8], at: usize, value: T) {
        // SAFETY: plain numbers, of which all bytes are written; the slice is as long as they need.
        unsafe { memory[at..at + size_of::<T>()].as_mut_ptr().cast::<T>().write_unaligned(value) };
    }

    /// A registered port with its memory, after `change` has modified it.
    fn registered(extra: u32, change: impl FnOnce(&mut [u8])) -> Registered {
        use std::mem::offset_of;
        let mut memory = vec![0; SIZE];
        put(&mut memory, INTERFACE + offset_of!(netmap_if, ni_tx_rings), 1u32);
        put(&mut memory, INTERFACE + offset_of!(netmap_if, ni_spare1), 1u32);
        for (place, ring) in [(0, TRANSMIT), (2, RECEIVE)] {
            put(&mut memory, RINGS + 8 * place, (ring - INTERFACE) as i64);
            put(&mut memory, ring + offset_of!(netmap_ring, buf_ofs), (BUFFERS - ring) as i64);
            put(&mut memory, ring + offset_of!(netmap_ring, num_slots), 4u32);
            put(&mut memory, ring + offset_of!(netmap_ring, nr_buf_size), BUFFER as u32);
        }
        // Three extra buffers, each with the number of the next.
        put(&mut memory, INTERFACE + offset_of!(netmap_if, ni_bufs_head), 20u32);
        for (buffer, next) in [(20, 22u32), (22, 21), (21, 0)] {
            put(&mut memory, BUFFERS + buffer * BUFFER, next);
        }
        change(&mut memory);
        // SAFETY: the name ends with a zero; the descriptor is new, and belongs to nothing else.
        let mut device = unsafe { File::from_raw_fd(libc::memfd_create(c"netmap".as_ptr(), 0)) };
        device.write_all(&memory).expect("memory");
        Registered { device, interface: INTERFACE, size: SIZE, memory: 1, queues: 1, queue: 0, extra, checks_mtu: true }
    }

    #[test]
    fn extra_buffers_are_taken_from_the_list_and_go_back_by_one() {
        let number = |at: &[usize]| at.iter().map(|at| at / BUFFER).collect::<Vec<_>>();
        let (memory, rings) = Memory::map(vec![registered(3, |_| ())]).expect("a memory");
        let buffers = rings[0].buffers;
        assert_eq!((buffers.size, buffers.count as usize), (BUFFER, (SIZE - BUFFERS) / BUFFER));
        let taken = memory.take_extra(buffers);
        assert_eq!(number(&taken), [20, 22, 21]);
        assert_eq!(memory.take_extra(buffers), [], "they were taken already");
        // Other buffers are in the rings now; two pools give their share back.
        memory.regain(&mut [40, 21].map(|number| number * BUFFER).into_iter());
        memory.regain(&mut [30].map(|number| number * BUFFER).into_iter());
        assert_eq!(number(&memory.take_extra(buffers)), [30, 21, 40]);

        let (memory, rings) = Memory::map(vec![registered(2, |_| ())]).expect("a memory");
        assert_eq!(number(&memory.take_extra(rings[0].buffers)), [20, 22], "no more than were granted");
    }

    #[test]
    fn the_list_that_was_given_back_is_not_left_for_the_next_port() {
        use std::os::unix::fs::FileExt;
        let (first, mut second) = (registered(3, |_| ()), registered(0, |_| ()));
        // One memory, two ports: the second one's descriptor is another way to it.
        second.device = first.device.try_clone().expect("a descriptor");
        let meta = first.device.try_clone().expect("a descriptor");
        let list = || {
            let mut head = [0; 4];
            let at = INTERFACE + std::mem::offset_of!(netmap_if, ni_bufs_head);
            meta.read_exact_at(&mut head, at as u64).expect("memory");
            u32::from_ne_bytes(head)
        };
        let (memory, _) = Memory::map(vec![first, second]).expect("a memory");
        memory.regain(&mut [40, 21].map(|number| number * BUFFER).into_iter());
        assert_eq!(list(), 21, "the module reads it when the port is closed");
        drop(memory);
        assert_eq!(list(), 0);
    }

    #[test]
    fn what_would_lie_outside_the_memory_is_refused() {
        use std::mem::offset_of;
        let map = |change: &dyn Fn(&mut [u8])| Memory::map(vec![registered(0, change)]).map(drop);
        assert!(map(&|_| ()).is_ok());
        let offsets = [0, 1, -1, i64::MIN, i64::MAX, SIZE as i64, (SIZE - INTERFACE - 64) as i64];
        for (place, offset) in [0, 2].into_iter().flat_map(|place| offsets.map(|offset| (place, offset))) {
            let refused = map(&|memory| put(memory, RINGS + 8 * place, offset)).expect_err("a ring outside");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "ring {place} at {offset}");
        }
        for offset in [-(RECEIVE as i64) - 64, SIZE as i64, i64::MAX, 7] {
            let refused = map(&|memory| put(memory, RECEIVE + offset_of!(netmap_ring, buf_ofs), offset));
            assert_eq!(refused.expect_err("buffers outside").kind(), io::ErrorKind::InvalidData, "at {offset}");
        }
        for (field, values) in [
            (offset_of!(netmap_ring, nr_buf_size), [0, 63, 100, u32::MAX]),
            (offset_of!(netmap_ring, num_slots), [0, 1, u32::MAX, 1 << 16]),
        ] {
            for value in values {
                let refused = map(&|memory| put(memory, TRANSMIT + field, value)).expect_err("such a ring");
                assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{value} at {field}");
            }
        }
        for rings in [5, 1 << 20, u32::MAX] {
            let of_many = |memory: &mut [u8]| put(memory, INTERFACE + offset_of!(netmap_if, ni_tx_rings), rings);
            assert!(map(&of_many).is_err(), "a list of {rings} rings");
        }
        let mut outside = registered(0, |_| ());
        outside.interface = SIZE - 8;
        assert_eq!(
            Memory::map(vec![outside]).map(drop).expect_err("a list outside").kind(),
            io::ErrorKind::InvalidData
        );
    }
}
