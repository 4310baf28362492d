//! The XDP generator, the fastest load without special hardware: an XDP program writes the frames, and the kernel's test loop runs
//! it on real frames, several million times per second on one core. [`Sink`], at the other end, drops and counts them.

// System calls about an XDP program, and memory that it shares.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, DevMap, PerCpuArray};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader, Pod};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::flood_template::{FloodTemplate, Kind, Sources, Target};

static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generator.o"));

/// The longest frame, in bytes.
pub const LONGEST: usize = 128;
/// The most frames per system call.
const MOST_PER_CALL: u64 = 10_000_000;
/// The most frames of a replay.
pub const MAX_FRAMES: usize = 4096;
/// The Ethernet source of every flood. [`Sink`] recognizes the flood, and the replies to it, by this address.
pub const ATTACKER: [u8; 6] = [2, 0, 0, 0, 0, 0x66];

/// The most random words of a frame.
const STAMPS: usize = 12;

/// A frame, laid out as the XDP program reads it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Frame {
    bytes: [u8; LONGEST],
    port: u32,
    length: u32,
}

// SAFETY: `repr(C)`, 128 bytes and two aligned u32: integers without padding, valid for any bit pattern.
unsafe impl Pod for Frame {}

/// A random word of a frame, laid out as the XDP program reads it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Stamp {
    at: u16,
    mask: u16,
    set: u16,
    in_ip: u16,
}

/// The random words of a frame, and the checksums over the rest.
#[derive(Default)]
struct Stamps {
    words: [Stamp; STAMPS],
    count: u32,
    ip_sum_at: u32,
    tcp_sum_at: u32,
    ip_sum: u32,
    tcp_sum: u32,
}

// SAFETY: `repr(C)` with four u16: integers without padding, valid for any bit pattern.
unsafe impl Pod for Stamp {}

/// A generator, loaded into the kernel and ready to run.
pub struct XdpGenerator {
    ebpf: Ebpf,
    /// The frame the test loop starts with.
    template: Vec<u8>,
}

impl XdpGenerator {
    /// A flood with random sources, ports and numbers, at `rate` frames per second or, without one, as fast as the loop runs. At most
    /// four 16-bit words of an IPv6 source are random; [`Sources::ANY_V4`] means 64.0.0.0/3, which has no special ranges. The program
    /// waits actively to keep a rate, so the core is always busy.
    ///
    /// # Errors
    /// The loader's: no permission, or the kernel rejects the program.
    pub fn flood(
        kind: Kind,
        target: Target,
        sources: Sources,
        rate: Option<f64>,
        seed: u64,
    ) -> io::Result<XdpGenerator> {
        let mut template = FloodTemplate::new(kind, target, sources, false, SmallRng::seed_from_u64(seed));
        let mut frame = vec![0; template.frame_len()];
        template.stamp(&mut frame);
        let stamps = Stamps::of(&frame, kind, sources, &template);
        XdpGenerator::load(&[(frame, 0)], &stamps, rate, seed)
    }

    /// Sends these frames unchanged in a loop, each by the port of its index (0 or 1). All frames must have the same length.
    ///
    /// # Errors
    /// The loader's; `InvalidInput` for no frames, more than [`MAX_FRAMES`], longer than [`LONGEST`], or of different lengths.
    pub fn replay(frames: &[(Vec<u8>, u32)]) -> io::Result<XdpGenerator> {
        XdpGenerator::load(frames, &Stamps::default(), None, 1)
    }

    fn load(frames: &[(Vec<u8>, u32)], stamps: &Stamps, rate: Option<f64>, seed: u64) -> io::Result<XdpGenerator> {
        let length = frames.first().map_or(0, |(frame, _)| frame.len());
        if !(34..=LONGEST).contains(&length)
            || frames.len() > MAX_FRAMES
            || frames.iter().any(|(f, _)| f.len() != length)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no frames, too many, too long, or of different lengths",
            ));
        }
        let count = frames.len() as u32;
        let seed = seed | 1;
        let gap = rate.map_or(0, |rate| (1024e9 / rate).max(1.0) as u64);
        let mut ebpf = EbpfLoader::new()
            .override_global("frame_count", &count, true)
            .override_global("stamp_count", &stamps.count, true)
            .override_global("stamps", &stamps.words[..], true)
            .override_global("ip_sum_at", &stamps.ip_sum_at, true)
            .override_global("tcp_sum_at", &stamps.tcp_sum_at, true)
            .override_global("ip_sum", &stamps.ip_sum, true)
            .override_global("tcp_sum", &stamps.tcp_sum, true)
            .override_global("seed", &seed, true)
            .override_global("gap", &gap, true)
            .load(PROGRAM)
            .map_err(io::Error::other)?;
        let mut table: Array<_, Frame> = Array::try_from(map(&mut ebpf, "frames")?).map_err(io::Error::other)?;
        for (index, (frame, port)) in (0..).zip(frames) {
            let mut bytes = [0; LONGEST];
            bytes[..length].copy_from_slice(frame);
            table.set(index, Frame { bytes, port: *port, length: length as u32 }, 0).map_err(io::Error::other)?;
        }
        program(&mut ebpf, "generate")?.load().map_err(io::Error::other)?;
        Ok(XdpGenerator { ebpf, template: frames[0].0.clone() })
    }

    /// Assigns port `index` (0 or 1) to the interface with this index in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel's: no such interface.
    pub fn port(&mut self, index: u32, interface: u32) -> io::Result<()> {
        let mut ports = DevMap::try_from(map(&mut self.ebpf, "ports")?).map_err(io::Error::other)?;
        ports.set(index, interface, None, 0).map_err(io::Error::other)
    }

    /// The number of frames generated so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count(&self) -> io::Result<u64> {
        count_of(&self.ebpf, "generated")
    }

    /// Sends frames on the calling core until `end`, until `count` have been sent, or until `stop` is set.
    ///
    /// # Errors
    /// As [`XdpGenerator::run`].
    pub fn run_until(&self, end: Instant, count: u64, stop: &AtomicBool) -> io::Result<()> {
        // Adapted to a quarter of a second per call, so that the end is met in time.
        let (mut stride, first) = (200_000, self.count()?);
        loop {
            let begin = Instant::now();
            let left = count.saturating_sub(self.count()? - first);
            if left == 0 || begin >= end || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let before = self.count()?;
            self.run(left.min(stride) as u32)?;
            let rate = (self.count()? - before) as f64 / begin.elapsed().as_secs_f64();
            let next = end.saturating_duration_since(Instant::now()).min(Duration::from_millis(250));
            stride = ((rate * next.as_secs_f64()) as u64).clamp(64, MOST_PER_CALL);
        }
    }

    /// Sends `count` frames on the calling core. Returns when they have been sent or a signal has arrived. The kernel needs some 20 ms to
    /// start.
    ///
    /// # Errors
    /// The kernel's: no permission, or Linux before 5.18.
    pub fn run(&self, count: u32) -> io::Result<()> {
        /// `union bpf_attr` of `BPF_PROG_TEST_RUN`.
        #[repr(C)]
        #[derive(Default)]
        struct TestRun {
            program: u32,
            retval: u32,
            data_size_in: u32,
            data_size_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
            ctx_size_in: u32,
            ctx_size_out: u32,
            ctx_in: u64,
            ctx_out: u64,
            flags: u32,
            cpu: u32,
            batch_size: u32,
            padding: u32,
        }
        const BPF_PROG_TEST_RUN: libc::c_long = 10;
        const LIVE_FRAMES: u32 = 2;
        let program: &Xdp =
            self.ebpf.program("generate").and_then(|p| p.try_into().ok()).ok_or(io::ErrorKind::NotFound)?;
        let run = TestRun {
            program: program.fd().map_err(io::Error::other)?.as_fd().as_raw_fd() as u32,
            data_size_in: self.template.len() as u32,
            data_in: self.template.as_ptr().addr() as u64,
            repeat: count,
            flags: LIVE_FRAMES,
            ..TestRun::default()
        };
        // SAFETY: the kernel reads `run`, laid out as `union bpf_attr`, and the template it points at; both outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw const run, size_of::<TestRun>()) };
        match io::Error::last_os_error() {
            _ if done == 0 => Ok(()),
            error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            error => Err(error),
        }
    }
}

impl Stamps {
    /// The random words of a flood's frame, whose checksums are correct.
    fn of(frame: &[u8], kind: Kind, sources: Sources, template: &FloodTemplate) -> Stamps {
        let (network, tcp) = template.headers();
        let v4 = frame[network - 2..network] == [0x08, 0x00];
        let source = network + if v4 { 12 } else { 8 };
        let sum_at = template.checksum_at();
        let mut stamps = Stamps { tcp_sum_at: sum_at as u32, ..Stamps::default() };
        let mut add = |at: usize, mask: u16, set: u16| {
            let in_ip = u16::from(v4 && at < tcp);
            let (mask, set) = (mask.to_be(), set.to_be());
            stamps.words[stamps.count as usize] = Stamp { at: at as u16, mask, set, in_ip };
            stamps.count += 1;
        };
        for (word, mask, set) in sources.words() {
            add(source + 2 * word, mask, set);
        }
        add(tcp, 0x7fff, 0x8000);
        // UDP has a length there; the payload follows its header.
        let numbers = if kind == Kind::Udp { tcp + 8 } else { tcp + 4 };
        add(numbers, 0xffff, 0);
        add(numbers + 2, 0xffff, 0);
        if kind != Kind::Syn {
            add(numbers + 4, 0xffff, 0);
            add(numbers + 6, 0xffff, 0);
        }
        let sum_of_rest = |frame: &[u8], at: usize, stamps: &[Stamp]| {
            let stamped = stamps.iter().map(|stamp| !word(frame, stamp.at.into()));
            stamped.fold(!word(frame, at), |sum, word| fold(u32::from(sum) + u32::from(word)))
        };
        let (tcp_stamps, count) = (stamps.words, stamps.count as usize);
        stamps.tcp_sum = sum_of_rest(frame, sum_at, &tcp_stamps[..count]).into();
        if v4 {
            let ip: Vec<Stamp> = tcp_stamps[..count].iter().copied().filter(|stamp| stamp.in_ip != 0).collect();
            stamps.ip_sum_at = network as u32 + 10;
            stamps.ip_sum = sum_of_rest(frame, network + 10, &ip).into();
        }
        stamps
    }
}

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([frame[at], frame[at + 1]])
}

fn fold(sum: u32) -> u16 {
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Drops and counts the frames an interface receives from or for [`ATTACKER`].
pub struct Sink {
    ebpf: Ebpf,
}

impl Sink {
    /// Attaches to the interface with this index in the network namespace of the calling thread, in driver mode, until dropped.
    ///
    /// # Errors
    /// The loader's: no permission, no such interface.
    pub fn attach(interface: u32) -> io::Result<Sink> {
        let mut ebpf = EbpfLoader::new().load(PROGRAM).map_err(io::Error::other)?;
        let program = program(&mut ebpf, "sink")?;
        program.load().map_err(io::Error::other)?;
        program.attach_to_if_index(interface, XdpMode::Driver).map_err(io::Error::other)?;
        Ok(Sink { ebpf })
    }

    /// Whether to drop all other TCP segments too.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drop_all(&mut self, all: bool) -> io::Result<()> {
        let mut setting: Array<_, u32> = Array::try_from(map(&mut self.ebpf, "drop_all")?).map_err(io::Error::other)?;
        setting.set(0, u32::from(all), 0).map_err(io::Error::other)
    }

    /// The number of frames dropped so far.
    ///
    /// # Errors
    /// The kernel's.
    pub fn count(&self) -> io::Result<u64> {
        count_of(&self.ebpf, "dropped")
    }
}

fn count_of(ebpf: &Ebpf, name: &str) -> io::Result<u64> {
    let map = ebpf.map(name).ok_or(io::ErrorKind::NotFound)?;
    let counts: PerCpuArray<_, u64> = PerCpuArray::try_from(map).map_err(io::Error::other)?;
    Ok(counts.get(&0, 0).map_err(io::Error::other)?.iter().sum())
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> io::Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> io::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).ok_or(io::ErrorKind::NotFound)?;
    program.try_into().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The checksum arithmetic of the XDP program, with all random words zero, on a frame of every kind.
    #[test]
    fn precomputed_sums_complete_the_checksums() {
        let kinds = [Kind::Syn, Kind::SynAck, Kind::Ack, Kind::Fin, Kind::Rst, Kind::Udp];
        for (kind, vlan) in kinds.into_iter().flat_map(|kind| [(kind, None), (kind, Some(7))]) {
            for address in ["10.0.0.1", "fd00::1"] {
                let target =
                    Target { address: address.parse().unwrap(), port: 80, mac: [2; 6], from_mac: ATTACKER, vlan };
                let sources = if target.address.is_ipv4() { Sources::ANY_V4 } else { Sources::ANY_V6 };
                let mut template = FloodTemplate::new(kind, target, sources, false, SmallRng::seed_from_u64(3));
                let mut frame = vec![0; template.frame_len()];
                template.stamp(&mut frame);
                let stamps = Stamps::of(&frame, kind, sources, &template);
                for (sum, at) in [(stamps.tcp_sum, stamps.tcp_sum_at), (stamps.ip_sum, stamps.ip_sum_at)] {
                    if at == 0 {
                        continue;
                    }
                    let covered = |stamp: &&Stamp| at == stamps.tcp_sum_at || stamp.in_ip != 0;
                    let words = stamps.words[..stamps.count as usize].iter().filter(covered);
                    let total = words
                        .fold(sum as u16, |sum, stamp| fold(u32::from(sum) + u32::from(word(&frame, stamp.at.into()))));
                    assert_eq!(!total, word(&frame, at as usize), "{kind:?} to {address}");
                }
            }
        }
    }
}
