//! The fast path: a program of the kernel forwards frames from one packet port to the other by itself, super-frames whole, and what it forwards does
//! not come to the ports. `bpf/pass.c` says how; which frames these are, and what it writes into them, is up to the one that shares its words.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{ProgramError, SchedClassifier, SocketFilter, TcAttachType, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use crate::failure::Decision;
use crate::netdev::Interface;
use crate::options::SynPlan;
use crate::pins::{KeptFlows, Pins};
use crate::xdp::{self, BUCKET, ENTERED, LINE, MAP, SERVICE_WORDS, SynMemory};

/// The programs, compiled by the build script. Aligned, since the loader reads ELF headers in place.
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pass.o"));

/// Words of the map that the programs and the ports share: `struct control`.
const CONTROL: usize = 8;
// Its words.
const KEYS: usize = 0;
const STOPPED: usize = 2;
const FRAMES: usize = 4;
const BYTES_FORWARDED: usize = 6;

/// Bytes of an Ethernet header, which a packet socket counts in a frame's length.
const LINK_HEADER: u32 = 14;

/// What the programs at tc return.
const REDIRECT: u32 = 7;
const SHOT: u32 = 2;

const SORTERS: [&str; 2] = ["sort_lan", "sort_wan"];
const PASSERS: [&str; 2] = ["pass_lan", "pass_wan"];

/// The fast path between two ports, LAN and WAN. Dropping it detaches it from the interfaces; it stays at the sockets of the ports until these are closed,
/// so that they must be dropped first.
pub struct FastPath {
    ebpf: Ebpf,
    /// The links of the programs, where they are pinned.
    _links: Vec<PinnedLink>,
    /// Those of a former process, until the sockets of this one decide.
    former: Vec<FdLink>,
    words: &'static [AtomicU64],
    control: &'static [AtomicU64],
    /// By what it answers SYNs, if it does.
    syns: Option<Answering>,
}

/// By what the programs answer SYNs of the WAN.
#[derive(Debug, Clone, Copy)]
pub struct Answering {
    /// Words of what they know of SYNs.
    pub plan: SynPlan,
    /// Words of each worker's part of the map of flows.
    pub flow_words: usize,
    /// How many workers share them.
    pub workers: usize,
}

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastPath").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

impl FastPath {
    /// Loads the programs for [`run`](FastPath::run) and [`decides`](FastPath::decides) alone. Their entries have `words` words, a power of two of buckets;
    /// the keys are those of the hash that names flows.
    ///
    /// # Errors
    ///
    /// Those of the kernel or of the library.
    pub fn load(words: usize, keys: (u64, u64), syns: Option<Answering>) -> Result<FastPath, Box<dyn Error>> {
        FastPath::new([1, 1], 0, words, keys, None, syns)
    }

    fn new(
        [lan, wan]: [u32; 2],
        link_header: u32,
        words: usize,
        keys: (u64, u64),
        pins: Option<&Pins>,
        syns: Option<Answering>,
    ) -> Result<FastPath, Box<dyn Error>> {
        let [blocks, pairs, places] = xdp::syn_sizes(syns.map(|syns| syns.plan));
        let workers = u32::try_from(syns.map_or(1, |syns| syns.workers.max(1)))?;
        let lines = u32::try_from(syns.map_or(0, |syns| 8 * syns.flow_words / LINE))?;
        let buckets = u32::try_from(words * 8 / BUCKET)?;
        let mark = mark(keys);
        let mut loader = EbpfLoader::new();
        if let Some(path) = pins.and_then(|pins| pins.former_map(buckets)) {
            loader.map_pin_path(MAP, path);
        }
        let mut ebpf = loader
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("lan_port", &lan, true)
            .override_global("wan_port", &wan, true)
            .override_global("down_buckets", &buckets, true)
            .override_global("mark", &mark, true)
            .override_global("link_header", &link_header, true)
            .map_max_entries(MAP, buckets)
            .override_global("is_wan", &1_u32, true)
            .override_global("owned_queues", &workers, true)
            .override_global("flow_key0", &keys.0, true)
            .override_global("flow_key1", &keys.1, true)
            .override_global("flow_lines", &lines, true)
            .override_global("answers_syns", &u32::from(syns.is_some()), true)
            .override_global("blocks_each", &blocks, true)
            .override_global("buckets_each", &places, true)
            .map_max_entries("answers", workers * blocks)
            .map_max_entries("noted", workers * pairs)
            .map_max_entries("buckets", workers * places)
            .map_max_entries("service", 2 * workers)
            .map_max_entries("flows", (workers * lines).max(1))
            .load(PROGRAM)?;
        for name in SORTERS {
            let program: &mut SocketFilter = program(&mut ebpf, name)?;
            program.load()?;
        }
        for name in PASSERS {
            let program: &mut SchedClassifier = program(&mut ebpf, name)?;
            program.load()?;
        }
        let words = xdp::words(&ebpf, MAP, Some(words))?;
        let control = xdp::words(&ebpf, "shared", Some(CONTROL))?;
        control[KEYS].store(keys.0, Ordering::Relaxed);
        control[KEYS + 1].store(keys.1, Ordering::Relaxed);
        Ok(FastPath { ebpf, _links: Vec::new(), former: Vec::new(), words, control, syns })
    }

    /// The fast path between these interfaces, LAN and WAN, attached to them. Until ports [join](super::PacketPort::join) it forwards nothing.
    ///
    /// # Errors
    ///
    /// As [`load`](FastPath::load); before Linux 6.6 programs cannot be attached so (tcx).
    pub(crate) fn attach(
        interfaces: [&Interface; 2],
        words: usize,
        keys: (u64, u64),
        pins: Option<&Pins>,
        syns: Option<Answering>,
    ) -> Result<FastPath, Box<dyn Error>> {
        let mut fast_path = FastPath::new(interfaces.map(Interface::index), LINK_HEADER, words, keys, pins, syns)?;
        for (name, interface) in PASSERS.into_iter().zip(interfaces) {
            let program: &mut SchedClassifier = program(&mut fast_path.ebpf, name)?;
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            let link = program.attach_with_options(interface.name(), TcAttachType::Ingress, order)?;
            if let Some(pins) = pins {
                fast_path.former.extend(pins.take_link(name));
                let link: FdLink = program.take_link(link)?.try_into()?;
                fast_path._links.push(pins.put_link(name, link)?);
            }
        }
        Ok(fast_path)
    }

    /// Detaches the programs of a former process: to be called when the sockets of this one decide. Until then those carry out what these note.
    pub(crate) fn take_over(&mut self) {
        self.former.clear();
    }

    /// Leaves the entries to what outlives the process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn keep_flows(&self, pins: Pins) -> Result<KeptFlows, Box<dyn Error>> {
        KeptFlows::new(pins, &self.ebpf, self.words)
    }

    /// The words of the entries, zero at first, or as a former process has left them. They stay mapped until the process ends.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    /// Each worker's part of the map of flows, where the programs answer SYNs.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn flow_maps(&self) -> io::Result<Vec<&'static [AtomicU64]>> {
        self.syns.map_or(Ok(Vec::new()), |syns| xdp::map_flows(&self.ebpf, syns.workers, syns.flow_words))
    }

    /// The memory of each worker by which the programs answer SYNs; none if they do not.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn syn_memories(&self) -> io::Result<Vec<SynMemory>> {
        self.syns.map_or(Ok(Vec::new()), |syns| xdp::map_syns(&self.ebpf, syns.workers, syns.plan))
    }

    /// The word of each worker that says that all of its flows are in the map; none where the programs answer no SYNs.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn flows_entered(&self) -> io::Result<Vec<&'static AtomicU64>> {
        let Some(syns) = self.syns else { return Ok(Vec::new()) };
        let words = xdp::words(&self.ebpf, "service", Some(2 * SERVICE_WORDS * syns.workers))?;
        // Of the WAN.
        Ok((0..syns.workers).map(|worker| &words[(2 * worker + 1) * SERVICE_WORDS + ENTERED]).collect())
    }

    /// By what the programs answer SYNs, if they do.
    pub(crate) fn answering(&self) -> Option<Answering> {
        self.syns
    }

    /// The maps of the programs, for another program that answers SYNs by them.
    pub(crate) fn maps(&self) -> &Ebpf {
        &self.ebpf
    }

    /// The frames and bytes that were forwarded from a side, and what is not 0 while nothing is to be.
    pub(super) fn forwarded(&self, side: usize) -> [&'static AtomicU64; 3] {
        [FRAMES, BYTES_FORWARDED, STOPPED].map(|word| &self.control[word + side])
    }

    /// Lets the program decide which frames a socket of this side gets.
    pub(super) fn sort(&self, side: usize, socket: &OwnedFd) -> io::Result<()> {
        let program = self.ebpf.program(SORTERS[side]).ok_or_else(|| io::Error::other("the program is missing"))?;
        let program: &SocketFilter = program.try_into().map_err(io::Error::other)?;
        program.attach(socket).map_err(io::Error::other)
    }

    /// What the programs make of a frame from a side (0: LAN, 1: WAN): the frame that leaves by the other port, or `None` if it goes up. For tests: no
    /// interface is needed, and nothing is sent.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run them.
    pub fn run(&self, side: usize, frame: &[u8]) -> Option<Vec<u8>> {
        let (result, out) = self.carry_out(side, frame)?;
        assert_eq!(result, REDIRECT, "what does not go up leaves by the other port");
        Some(out)
    }

    /// What the programs decide on a frame of the WAN of a connection that is not handed down; the answer is written to `answer`. For tests, of threads
    /// that stay on their core.
    ///
    /// # Panics
    ///
    /// When the kernel cannot run them.
    pub fn decides(&self, frame: &[u8], answer: &mut [u8]) -> Decision {
        match self.carry_out(1, frame) {
            None => Decision::Leaves,
            Some((REDIRECT, out)) => {
                answer[..out.len()].copy_from_slice(&out);
                Decision::Answers(out.len())
            }
            Some((SHOT, _)) => Decision::Drops,
            other => panic!("the programs returned {other:?}"),
        }
    }

    /// What the program at tc returns for a frame and makes of it, unless it goes up.
    fn carry_out(&self, side: usize, frame: &[u8]) -> Option<(u32, Vec<u8>)> {
        // `struct __sk_buff`, of which the kernel takes little but `cb`.
        const CONTEXT: usize = 192;
        const CB: std::ops::Range<usize> = 48..68;
        let mut noted = [0; CONTEXT];
        let sorter: &SocketFilter =
            self.ebpf.program(SORTERS[side]).expect("it is there").try_into().expect("it is a filter");
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&[0; CONTEXT]),
            ctx_out: Some(&mut noted),
            repeat: 1,
            ..TestRunOptions::default()
        };
        match sorter.test_run(options) {
            Ok(decided) if decided.return_value == 0 => {}
            Ok(_) => return None,
            // The kernel runs no program on a frame that is shorter than the header its type tells of. It is not for the programs.
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
                return None;
            }
            Err(error) => panic!("the programs cannot be run: {error}"),
        }
        let mut context = [0; CONTEXT];
        context[CB].copy_from_slice(&noted[CB]);
        let passer: &SchedClassifier =
            self.ebpf.program(PASSERS[side]).expect("it is there").try_into().expect("it is a classifier");
        let mut out = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = passer.test_run(options).expect("it can be run");
        out.truncate(result.data_size_out as usize);
        Some((result.return_value, out))
    }
}

/// The program of this name.
fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, Box<dyn Error>>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error: Error + 'static>,
{
    Ok(ebpf.program_mut(name).ok_or("the program is missing")?.try_into()?)
}

/// What marks the notes of the programs: nothing that a frame brings along, and the same in a process that takes over, whose sockets decide before the
/// former programs at tc are gone. The last two bits are free.
fn mark((key0, key1): (u64, u64)) -> u32 {
    /// To be changed with the layout of the notes.
    const LAYOUT: u64 = 3;
    let mixed = (key0 ^ key1.rotate_left(29)).wrapping_add(LAYOUT).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29) >> 32) as u32 & !3 | 4
}
