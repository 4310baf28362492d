//! The fast path: a program of the kernel forwards frames from one packet port to the other by itself, super-frames whole, and what it forwards does
//! not come to the ports. `bpf/pass.c` says how; which frames these are, and what it writes into them, is up to the one that shares its words.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, SocketFilter, TcAttachType, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};

use crate::netdev::Interface;
use crate::pins::{KeptFlows, MAP, Pins};
use crate::xdp::{self, BUCKET};

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
}

impl fmt::Debug for FastPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FastPath").field("words", &self.words.len()).finish_non_exhaustive()
    }
}

impl FastPath {
    /// Loads the programs for [`run`](FastPath::run) alone. Their entries have `words` words, a power of two of buckets; the keys are those of the hash that
    /// names flows.
    ///
    /// # Errors
    ///
    /// Those of the kernel or of the library.
    pub fn load(words: usize, keys: (u64, u64)) -> Result<FastPath, Box<dyn Error>> {
        FastPath::new([1, 1], 0, words, keys, None)
    }

    fn new(
        [lan, wan]: [u32; 2],
        link_header: u32,
        words: usize,
        keys: (u64, u64),
        pins: Option<&Pins>,
    ) -> Result<FastPath, Box<dyn Error>> {
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
        Ok(FastPath { ebpf, _links: Vec::new(), former: Vec::new(), words, control })
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
    ) -> Result<FastPath, Box<dyn Error>> {
        let mut fast_path = FastPath::new(interfaces.map(Interface::index), LINK_HEADER, words, keys, pins)?;
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
        // `struct __sk_buff`, of which the kernel takes little but `cb`.
        const CONTEXT: usize = 192;
        const CB: std::ops::Range<usize> = 48..68;
        const REDIRECT: u32 = 7;
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
        if sorter.test_run(options).expect("it can be run").return_value != 0 {
            return None;
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
        assert_eq!(result.return_value, REDIRECT, "what does not go up leaves by the other port");
        out.truncate(result.data_size_out as usize);
        Some(out)
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
    const LAYOUT: u64 = 1;
    let mixed = (key0 ^ key1.rotate_left(29)).wrapping_add(LAYOUT).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29) >> 32) as u32 & !3 | 4
}
