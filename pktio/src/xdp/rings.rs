//! The AF_XDP socket as the kernel has it: the memory of the frames (UMEM), and the four rings of a socket, which this process and the kernel read and write
//! at the same time (`Documentation/networking/af_xdp.rst`, `linux/if_xdp.h`).
//!
//! A ring has a number of entries that is a power of two, and two counts that only grow: of what was put in, which the producer writes, and of what was taken
//! out, which the consumer writes. Each writes its own after it has written or read the entries, and reads the other's before.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mapping::Mapping;
use crate::pool::MemoryOwner;
use crate::region;

/// An entry of the receive and of the transmit ring: where a frame begins in the memory, its length in bytes, and options.
pub(super) type Descriptor = libc::xdp_desc;

/// The memory of the frames of one worker's sockets, in equal chunks. It lies in a memory file, so that another process can take it over with the sockets;
/// behind the chunks there is a byte for each, which says then whether it is idle.
pub(super) struct Umem {
    mapping: Mapping,
    file: File,
    chunks: usize,
    chunk: usize,
}

impl MemoryOwner for Umem {
    fn leave(&self, idle: &mut dyn Iterator<Item = usize>) -> Option<OwnedFd> {
        let file = self.file.try_clone().ok()?.into();
        let marks = (0..self.chunks).map(|chunk| self.mark(chunk));
        // SAFETY: each is a byte of the mapping, which nothing else refers to.
        marks.for_each(|mark| unsafe { mark.write(0) });
        // SAFETY: as above.
        idle.for_each(|offset| unsafe { self.mark(offset / self.chunk).write(1) });
        Some(file)
    }
}

impl Umem {
    /// Locks memory for so many chunks, a power of two of bytes each, and returns it with the socket where the kernel knows of it, which is the first to be
    /// bound.
    ///
    /// # Errors
    ///
    /// When there is no such memory (`ENOMEM`), or this process may not lock it (`ENOBUFS`).
    pub(super) fn new(chunks: usize, chunk: usize) -> io::Result<(Umem, OwnedFd)> {
        let umem = Umem::over(region::sealed_file("synproxy-frames", length(chunks, chunk))?, chunks, chunk)?;
        let socket = new_socket()?;
        let registered = libc::xdp_umem_reg {
            addr: umem.base().as_ptr() as u64,
            len: (chunks * chunk) as u64,
            chunk_size: chunk as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(socket.as_raw_fd(), libc::XDP_UMEM_REG, &registered)?;
        Ok((umem, socket))
    }

    /// The memory that another process has [left](MemoryOwner::leave), whose sockets know it already, and where its idle chunks begin.
    ///
    /// # Errors
    ///
    /// When it is no such file.
    pub(super) fn of_left(file: File, chunks: usize, chunk: usize) -> io::Result<(Umem, Vec<usize>)> {
        if !region::is_sealed(file.as_fd()) || file.metadata()?.len() < length(chunks, chunk) as u64 {
            return Err(io::Error::other("it is no memory file of so many frames"));
        }
        let umem = Umem::over(file, chunks, chunk)?;
        // SAFETY: each mark is a byte of the mapping, and the process that wrote it does so no more.
        let is_idle = |at: &usize| unsafe { umem.mark(*at).read() } == 1;
        let idle = (0..chunks).filter(is_idle).map(|at| at * chunk).collect();
        Ok((umem, idle))
    }

    fn over(file: File, chunks: usize, chunk: usize) -> io::Result<Umem> {
        let mapping = Mapping::shared(file.as_fd(), length(chunks, chunk))?;
        Ok(Umem { mapping, file, chunks, chunk })
    }

    fn mark(&self, chunk: usize) -> *mut u8 {
        assert!(chunk < self.chunks);
        // SAFETY: the bytes lie behind the chunks in the mapping, one for each.
        unsafe { self.mapping.base().as_ptr().add(self.chunks * self.chunk + chunk) }
    }

    /// Where it begins.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// Bytes of a chunk.
    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }
}

/// Bytes of the memory file.
fn length(chunks: usize, chunk: usize) -> usize {
    chunks * chunk + chunks.next_multiple_of(chunk)
}

/// Entries of the rings of a socket, each a power of two.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Of the receive and of the transmit ring.
    pub frames: u32,
    /// Of the fill and of the completion ring.
    pub buffers: u32,
}

/// How and where a socket is bound.
#[derive(Clone, Copy)]
pub(super) struct Binding {
    /// Index of the interface.
    pub interface: u32,
    pub queue: u32,
    /// `XDP_COPY`, `XDP_ZEROCOPY`, `XDP_USE_NEED_WAKEUP`, `XDP_USE_SG`.
    pub flags: u16,
    /// The first socket of the same memory, if this is another: mode and flags are those of the first.
    pub first: Option<RawFd>,
}

/// A socket that is bound to a queue, and its rings. The queue is free again some time after this is dropped.
pub(super) struct Rings {
    // Unmapped before the socket is closed.
    pub rx: Consumer<Descriptor>,
    pub tx: Producer<Descriptor>,
    /// Chunks for frames to be received.
    pub fill: Producer<u64>,
    /// Chunks of frames that were sent: where each frame began.
    pub completion: Consumer<u64>,
    pub sizes: Sizes,
    pub socket: OwnedFd,
}

impl Rings {
    /// Gives a socket its rings. That of the memory, or a new one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn new(socket: OwnedFd, sizes: Sizes) -> io::Result<Rings> {
        let fd = socket.as_raw_fd();
        for (ring, size) in [
            (libc::XDP_UMEM_FILL_RING, sizes.buffers),
            (libc::XDP_UMEM_COMPLETION_RING, sizes.buffers),
            (libc::XDP_RX_RING, sizes.frames),
            (libc::XDP_TX_RING, sizes.frames),
        ] {
            set(fd, ring, &size)?;
        }
        Rings::of_left(socket, sizes)
    }

    /// The rings of a socket that has them, of these sizes.
    ///
    /// # Errors
    ///
    /// The kernel's: `EBUSY` where it is bound, before Linux 6.4.
    pub(super) fn of_left(socket: OwnedFd, sizes: Sizes) -> io::Result<Rings> {
        let fd = socket.as_raw_fd();
        // SAFETY: all its fields are integers.
        let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
        if get(fd, libc::XDP_MMAP_OFFSETS, &mut offsets)? < size_of_val(&offsets) {
            // Without flags in the rings: Linux before 5.4.
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let at = |offset: u64| libc::off_t::try_from(offset).expect("a constant below 2^33");
        Ok(Rings {
            rx: Consumer::over(Ring::map(&socket, libc::XDP_PGOFF_RX_RING, &offsets.rx, sizes.frames)?),
            tx: Producer::over(Ring::map(&socket, libc::XDP_PGOFF_TX_RING, &offsets.tx, sizes.frames)?),
            fill: Producer::over(Ring::map(&socket, at(libc::XDP_UMEM_PGOFF_FILL_RING), &offsets.fr, sizes.buffers)?),
            completion: Consumer::over(Ring::map(
                &socket,
                at(libc::XDP_UMEM_PGOFF_COMPLETION_RING),
                &offsets.cr,
                sizes.buffers,
            )?),
            sizes,
            socket,
        })
    }

    /// Binds the socket.
    ///
    /// # Errors
    ///
    /// The kernel's: `EBUSY` where the queue is another socket's, or has been until just now.
    pub(super) fn bind(&self, binding: Binding) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            // The kernel takes no others beside this one.
            sxdp_flags: if binding.first.is_some() { libc::XDP_SHARED_UMEM } else { binding.flags },
            sxdp_ifindex: binding.interface,
            sxdp_queue_id: binding.queue,
            sxdp_shared_umem_fd: binding.first.map_or(0, |fd| fd as u32),
        };
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is a structure of the length given.
        done(unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), len) })
    }
}

/// A new socket. No child process of this one inherits it: it would keep the queue.
///
/// # Errors
///
/// The kernel's: `EPERM`, `EMFILE`.
pub(super) fn new_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    done(fd)?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which network namespace a socket is of: no two have the same number.
///
/// # Errors
///
/// The kernel's: `ENOPROTOOPT` before Linux 5.14.
pub(super) fn namespace_of(fd: RawFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    get_option(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(cookie)
}

/// The option that says so, at `SOL_SOCKET`; `libc` does not name it yet.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// What the kernel counts of a socket.
///
/// # Errors
///
/// The kernel's.
pub(super) fn statistics(fd: RawFd) -> io::Result<libc::xdp_statistics> {
    // SAFETY: all its fields are integers. Kernels that have fewer leave the rest.
    let mut statistics: libc::xdp_statistics = unsafe { std::mem::zeroed() };
    get(fd, libc::XDP_STATISTICS, &mut statistics)?;
    Ok(statistics)
}

/// Whether the kernel has bound a socket in zero-copy mode.
pub(super) fn is_zero_copy(fd: RawFd) -> bool {
    let mut options = libc::xdp_options { flags: 0 };
    get(fd, libc::XDP_OPTIONS, &mut options).is_ok() && options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set<T>(fd: RawFd, option: libc::c_int, value: &T) -> io::Result<()> {
    set_option(fd, libc::SOL_XDP, option, value)
}

/// Sets an option of a socket to a value without pointers.
///
/// # Errors
///
/// The kernel's.
pub(super) fn set_option<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is of the length given.
    done(unsafe { libc::setsockopt(fd, level, option, ptr::from_ref(value).cast(), len) })
}

/// Reads an option of AF_XDP into a structure of integers; returns how many bytes of it the kernel has written.
fn get<T>(fd: RawFd, option: libc::c_int, value: &mut T) -> io::Result<usize> {
    get_option(fd, libc::SOL_XDP, option, value)
}

fn get_option<T>(fd: RawFd, level: libc::c_int, option: libc::c_int, value: &mut T) -> io::Result<usize> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the option is written into a structure of the length given.
    done(unsafe { libc::getsockopt(fd, level, option, ptr::from_mut(value).cast(), &raw mut len) })?;
    Ok(len as usize)
}

/// One ring, as both ends see it.
struct Ring<T> {
    /// The counts, and the flags, as the kernel and this process share them.
    produced: NonNull<AtomicU32>,
    consumed: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    size: u32,
    /// This end's own count, and the other's when it was read last.
    own: u32,
    other: u32,
    _mapping: Mapping,
    _entries: PhantomData<T>,
}

// SAFETY: the pointers lead into the mapping, which the ring owns; entries are integers.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    fn map(socket: &OwnedFd, offset: libc::off_t, at: &libc::xdp_ring_offset, size: u32) -> io::Result<Ring<T>> {
        let len = at.desc as usize + size as usize * size_of::<T>();
        // The kernel maps a ring if it is at least so long.
        let mapping = Mapping::shared_from(socket.as_fd(), offset, len)?;
        // SAFETY: the kernel's offsets lie inside the mapping, which is as long as the last of them and the entries take.
        let place = |offset: u64| unsafe { mapping.base().add(offset as usize) };
        let (produced, consumed) = (place(at.producer).cast(), place(at.consumer).cast());
        Ok(Ring {
            produced,
            consumed,
            flags: place(at.flags).cast(),
            entries: place(at.desc).cast(),
            size,
            own: 0,
            other: 0,
            _mapping: mapping,
            _entries: PhantomData,
        })
    }

    fn word(&self, at: NonNull<AtomicU32>) -> &AtomicU32 {
        // SAFETY: it lies in the mapping, which lives as long as the ring, aligned as the kernel has it, and is only accessed atomically.
        unsafe { at.as_ref() }
    }

    fn entry(&self, n: u32) -> *mut T {
        // SAFETY: the number is taken modulo the entries, all of which lie in the mapping.
        unsafe { self.entries.as_ptr().add((n & (self.size - 1)) as usize) }
    }

    fn needs_wakeup(&self) -> bool {
        self.word(self.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// A ring that this process puts entries into.
pub(super) struct Producer<T>(Ring<T>);

impl<T: Copy> Producer<T> {
    /// From where the one before it was, if there was one.
    fn over(mut ring: Ring<T>) -> Producer<T> {
        ring.own = ring.word(ring.produced).load(Ordering::Relaxed);
        ring.other = ring.word(ring.consumed).load(Ordering::Acquire);
        Producer(ring)
    }

    /// How many entries are free: looks for more only if fewer than `wanted` are known.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> u32 {
        let known = self.0.size - self.0.own.wrapping_sub(self.0.other);
        if known >= wanted { known } else { self.room_now() }
    }

    /// How many entries are free.
    #[inline]
    pub(super) fn room_now(&mut self) -> u32 {
        // The entries are written only after the kernel has read what was there.
        self.0.other = self.0.word(self.0.consumed).load(Ordering::Acquire);
        self.0.size - self.0.own.wrapping_sub(self.0.other)
    }

    /// Writes the entry that is the `n`th of those to be [submitted](Producer::submit) next.
    ///
    /// # Safety
    ///
    /// There is room for it, and nothing in this process uses the chunk that it names any more.
    #[inline]
    pub(super) unsafe fn put(&mut self, n: u32, entry: T) {
        debug_assert!(n < self.0.size - self.0.own.wrapping_sub(self.0.other), "the room was counted before");
        // SAFETY: the entry lies in the ring, and the kernel does not read it before it is submitted.
        unsafe { self.0.entry(self.0.own.wrapping_add(n)).write(entry) };
    }

    /// Gives the kernel the next so many entries, which were put there.
    #[inline]
    pub(super) fn submit(&mut self, count: u32) {
        self.0.own = self.0.own.wrapping_add(count);
        self.0.word(self.0.produced).store(self.0.own, Ordering::Release);
    }

    /// Whether the kernel waits for a system call before it looks here.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

/// A ring that this process takes entries out of.
pub(super) struct Consumer<T>(Ring<T>);

impl<T: Copy> Consumer<T> {
    /// From where the one before it was, if there was one.
    fn over(mut ring: Ring<T>) -> Consumer<T> {
        ring.own = ring.word(ring.consumed).load(Ordering::Relaxed);
        ring.other = ring.own;
        Consumer(ring)
    }

    /// How many entries there are to be read, at most so many; looks for more only when none are known.
    #[inline]
    pub(super) fn ready(&mut self, most: u32) -> u32 {
        let mut known = self.0.other.wrapping_sub(self.0.own);
        if known == 0 {
            self.0.other = self.0.word(self.0.produced).load(Ordering::Acquire);
            known = self.0.other.wrapping_sub(self.0.own);
        }
        known.min(most)
    }

    /// The `n`th of the entries that are [ready](Consumer::ready).
    #[inline]
    pub(super) fn get(&self, n: u32) -> T {
        debug_assert!(n < self.0.other.wrapping_sub(self.0.own), "it is not ready");
        // SAFETY: the entry lies in the ring; the kernel has written it, and writes it anew only when it was released.
        unsafe { self.0.entry(self.0.own.wrapping_add(n)).read() }
    }

    /// Gives the next so many entries back, which were read.
    #[inline]
    pub(super) fn release(&mut self, count: u32) {
        self.0.own = self.0.own.wrapping_add(count);
        self.0.word(self.0.consumed).store(self.0.own, Ordering::Release);
    }
}
