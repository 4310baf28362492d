//! netmap: rings of a NIC, a software switch or a pipe, in memory shared with the kernel module.
//!
//! A port is named `netmap:eth0` (a NIC: one ring pair for each worker), `vale0:1` (a port of the software switch `vale0`) or
//! `netmap:pipe{1` and `netmap:pipe}1` (the two ends of a pipe). When both ports of a worker lie in the same memory, as all NICs and the
//! ends of pipes do, a frame is forwarded by swapping its buffer with the one in a slot; otherwise it is copied.
//!
//! Building needs neither the kernel module nor its headers; without `/dev/netmap`, opening fails with an error that names the module.

mod device;
#[cfg(test)]
mod fake;
mod name;
mod port;
mod ring;

use std::fs;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::error::OpenError;
use crate::frame::HEADROOM;
use crate::netdev::Interface;
use crate::offload::Completer;
use crate::options::Options;
use crate::pool::{BufferMemory, Pool};
use crate::port::{Capabilities, Pair, Port};
use device::{Memory, Module, Registered, Request, Rings};
pub(crate) use name::Name;
use port::{NETMAP_HEADROOM, NetmapPort};

/// The longest frame that is passed in several slots to a switch or a pipe, which have no MTU, in bytes: an MTU of 9000, and two tags.
const LONGEST: usize = 9022;

/// Locally administered addresses that a switch learns for the ports.
const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// The first EtherType for local experiments (IEEE 802): no host receives it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// Refuses ports that cannot be bridged or opened by so many workers, before anything is opened or changed.
///
/// # Errors
///
/// When frames are to be forwarded, for both ports in one switch and for both ends of one pipe, where every frame that leaves by one port
/// comes in by the other; and for several workers on a pipe.
pub(crate) fn check(names: &[(&str, Name<'_>)], options: &Options) -> Result<(), OpenError> {
    let workers = options.workers;
    if let (&[(lan, lan_name), (wan, wan_name)], true) = (names, options.forwards) {
        let looped = match (lan_name, wan_name) {
            (Name::Switch(one), Name::Switch(other)) => (switch(one) == switch(other)).then_some("ports of one switch"),
            (Name::Pipe { parent: one, number: n, .. }, Name::Pipe { parent: other, number: m, .. }) => {
                ((one, n) == (other, m)).then_some("the two ends of one pipe")
            }
            _ => None,
        };
        if let Some(looped) = looped {
            return Err(OpenError::Unsupported {
                what: format!(
                    "{lan} and {wan} are {looped}: a bridge between them would forward its own frames for ever"
                ),
                hint: "name ports of two switches (`vale0:1 vale1:1`) or ends of two pipes (`netmap:a{1 netmap:b{1`)"
                    .into(),
            });
        }
    }
    let (most, at_switch) = (registrations(), |(_, name): &&(&str, Name<'_>)| matches!(name, Name::Switch(_)));
    if let Some((port, _)) = names.iter().find(at_switch)
        && workers > most
    {
        return Err(OpenError::Unsupported {
            what: format!("{port}: the memory of a switch's port has room for {most} workers, not for {workers}"),
            hint: "start fewer workers, or raise the parameter priv_if_num of the module".into(),
        });
    }
    match names.iter().find(|(_, name)| matches!(name, Name::Pipe { .. })) {
        Some((pipe, _)) if workers > 1 => Err(OpenError::Unsupported {
            what: format!("{pipe} is a pipe, which has one ring pair, and {workers} workers need as many"),
            hint: "start with one worker".into(),
        }),
        _ => Ok(()),
    }
}

/// How many registrations, one for each worker, the memory of a switch's port has room for. The module has been seen not to return from one more.
fn registrations() -> usize {
    // What the module makes such a memory for by itself, unless its parameter says more.
    const ALWAYS: usize = 10;
    let parameter = fs::read_to_string("/sys/module/netmap/parameters/priv_if_num");
    parameter.ok().and_then(|number| number.trim().parse().ok()).map_or(ALWAYS, |number: usize| number.max(ALWAYS))
}

/// The switch of the port `port`, which is `SWITCH:PORT`.
fn switch(port: &str) -> &str {
    port.split_once(':').map_or(port, |(switch, _)| switch)
}

/// Opens both ports, `workers` ring pairs of each.
///
/// # Errors
///
/// Without the module, or when it refuses.
pub(crate) fn open(
    names: [(&str, Name<'_>); 2],
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Vec<Pair>, OpenError> {
    let [lan, wan] = register_both(names, request(options, true), &Registered::new)?;
    let one_memory = lan[0].memory == wan[0].memory;
    let both = Both { names, completers: names.map(completer), options };
    let mut pairs = if one_memory { both.swapping([lan, wan], notes) } else { both.copying([lan, wan], notes) }?;
    notes.dedup();
    if let Some(Pair { lan, wan, pool }) = pairs.first_mut() {
        for ((_, name), (port, mac)) in names.iter().zip([(lan, LAN_MAC), (wan, WAN_MAC)]) {
            if let Name::Switch(_) = name {
                announce(&mut **port, mac, pool);
            }
        }
    }
    Ok(pairs)
}

/// Opens one port without another, `workers` ring pairs of it. Frames are copied in and out.
///
/// # Errors
///
/// Without the module, or when it refuses.
pub(crate) fn open_alone(name: (&str, Name<'_>), options: &Options) -> Result<Vec<Box<dyn Port>>, OpenError> {
    let completer = completer(name);
    let wanted = request(options, false);
    let open = |(queue, registered): (u16, Registered)| -> Result<Box<dyn Port>, OpenError> {
        let checks_mtu = registered.checks_mtu;
        let (memory, mut rings) = Memory::map(vec![registered]).map_err(|source| failed(name.0, source))?;
        let Rings { receive, transmit, buffers } = rings.remove(0);
        let can = capabilities(&name.1, checks_mtu, queue, buffers.size)?;
        let module = Module::new(&Arc::new(memory), 0);
        // SAFETY: the rings and their buffers are this port's alone, and the module keeps their memory mapped.
        let port = unsafe { NetmapPort::new(module, [receive, transmit], buffers, false, can) };
        Ok(Box::new(port.completing(completer.clone())))
    };
    (0..).zip(register(name, 0..wanted.queues, wanted, &Registered::new)?).map(open).collect()
}

/// What is requested of each port; with the spare buffers of all workers, if frames may be swapped.
fn request(options: &Options, may_swap: bool) -> Request {
    Request {
        queues: u16::try_from(options.workers).expect("at most 1024 workers"),
        // The kernel always keeps one slot.
        slots: options.netmap_slots.map(|slots| slots.max(2)),
        // At most 1024 workers with 2^20 frames each.
        extra: if may_swap { (options.workers * options.frames_per_port) as u32 } else { 0 },
        ..Request::default()
    }
}

/// The error of a system call for these ports.
fn failed(ports: &str, source: io::Error) -> OpenError {
    OpenError::Io { what: format!("{ports}: netmap"), source }
}

/// Makes a switch learn that `mac` is reached by this port: until it has learned an address, some versions forward nothing to it.
fn announce(port: &mut dyn Port, mac: [u8; 6], pool: &mut Pool) {
    let Some(mut frame) = pool.take() else { return };
    let mut bytes = [0; 60];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&mac);
    bytes[12..14].copy_from_slice(&EXPERIMENTAL);
    frame.fill(&bytes);
    let mut batch = vec![frame];
    port.transmit(&mut batch, pool);
    port.flush(pool);
    batch.into_iter().for_each(|frame| pool.put(frame));
}

/// Two ports and how they are to be opened.
struct Both<'a> {
    names: [(&'a str, Name<'a>); 2],
    completers: [Option<Completer>; 2],
    options: &'a Options,
}

impl Both<'_> {
    /// Ports in the same memory: each worker's pool is made of its share of the extra buffers.
    fn swapping(&self, ports: [Vec<Registered>; 2], notes: &mut Vec<String>) -> Result<Vec<Pair>, OpenError> {
        let Both { names: [(lan, lan_name), (wan, _)], options, .. } = *self;
        let io = |source| failed(&format!("{lan} and {wan}"), source);
        let checks_mtu = ports.iter().flatten().all(|port| port.checks_mtu);
        let (least, share) = (4 * options.batch, ports[0][0].extra as usize / options.workers);
        let (memory, rings) = Memory::map(ports.into_iter().flatten().collect()).map_err(io)?;
        let buffers = rings[0].buffers;
        if rings.iter().any(|rings| (rings.buffers.base, rings.buffers.size) != (buffers.base, buffers.size)) {
            return Err(io(io::Error::new(io::ErrorKind::InvalidData, "one memory, but not the same buffers")));
        }
        if share < least {
            return Err(OpenError::Unsupported {
                what: format!(
                    "netmap gave {share} buffers beyond those in the rings for each worker, and {least} are needed"
                ),
                hint: format!("raise the parameter {} of the module", parameters(&lan_name)[0]),
            });
        }
        if share < options.frames_per_port {
            notes.push(format!("netmap: each worker has {share} spare buffers instead of {}", options.frames_per_port));
        }
        let mut extra = memory.take_extra(buffers);
        let memory = Arc::new(memory);
        let mut lan: Vec<Rings> = rings;
        let wan = lan.split_off(options.workers);
        self.note_slots([&lan[0], &wan[0]], notes);
        let open = |(worker, rings): (usize, [Rings; 2])| -> Result<Pair, OpenError> {
            let in_rings: u32 = rings.iter().map(|rings| rings.receive.slots() + rings.transmit.slots()).sum();
            let spare = extra.split_off(extra.len() - extra.len() / (options.workers - worker));
            // SAFETY: the buffers lie in the mapping, which `memory` keeps, from number 0 on.
            let buffer_memory =
                unsafe { BufferMemory::new(buffers.base, buffers.count as usize, buffers.size, memory.clone()) };
            // SAFETY: the kernel granted the extra buffers to this process, each once, and each is given to one worker; those in the
            // rings are counted as lent.
            let mut pool = unsafe { Pool::partly(buffer_memory, NETMAP_HEADROOM, spare, in_rings as usize) };
            pool.set_reserve(2 * options.batch);
            let can = self.capabilities(checks_mtu, worker, [buffers.size; 2])?;
            // The LAN's ports come first in the memory, then the WAN's.
            let modules = [0, options.workers].map(|first| Module::new(&memory, first + worker));
            // SAFETY: the rings and their buffers are these ports' alone, and the modules keep their memory mapped; the pool lies over these
            // buffers.
            Ok(unsafe { self.pair(modules, rings, true, can, pool) })
        };
        lan.into_iter().zip(wan).map(<[Rings; 2]>::from).enumerate().map(open).collect()
    }

    /// Ports in different memories: frames are copied from one to the other.
    fn copying(&self, ports: [Vec<Registered>; 2], notes: &mut Vec<String>) -> Result<Vec<Pair>, OpenError> {
        let options = self.options;
        notes.push("netmap: the ports lie in different memories, so frames are copied from one to the other".into());
        let checks_mtu = ports.iter().flatten().all(|port| port.checks_mtu);
        let map = |side: usize, ports| Memory::map(ports).map_err(|source| failed(self.names[side].0, source));
        let [lan, wan] = ports;
        let ((lan_memory, lan), (wan_memory, wan)) = (map(0, lan)?, map(1, wan)?);
        let memories = [lan_memory, wan_memory].map(Arc::new);
        self.note_slots([&lan[0], &wan[0]], notes);
        let open = |(worker, rings): (usize, [Rings; 2])| -> Result<Pair, OpenError> {
            let sizes = [&rings[0], &rings[1]].map(|rings| rings.buffers.size);
            let can = self.capabilities(checks_mtu, worker, sizes)?;
            let longest = can.iter().map(|can| can.max_frame).max().unwrap_or(0);
            let buffer = (HEADROOM + longest.min(sizes[0]) + 128).next_power_of_two().max(2048);
            let mut pool = Pool::heap(2 * options.frames_per_port, buffer, HEADROOM);
            pool.set_reserve(2 * options.batch);
            let modules = [0, 1].map(|side: usize| Module::new(&memories[side], worker));
            // SAFETY: the rings and their buffers are these ports' alone, and the modules keep their memories mapped.
            Ok(unsafe { self.pair(modules, rings, false, can, pool) })
        };
        lan.into_iter().zip(wan).map(<[Rings; 2]>::from).enumerate().map(open).collect()
    }

    /// What the ports of this worker can do, whose buffers have these sizes.
    fn capabilities(
        &self,
        checks_mtu: bool,
        worker: usize,
        buffers: [usize; 2],
    ) -> Result<[Capabilities; 2], OpenError> {
        // At most 1024 workers.
        let of = |side: usize| capabilities(&self.names[side].1, checks_mtu, worker as u16, buffers[side]);
        Ok([of(0)?, of(1)?])
    }

    /// The ports of one worker.
    ///
    /// # Safety
    ///
    /// As for [`NetmapPort::new`], for both ports.
    unsafe fn pair(
        &self,
        [lan_module, wan_module]: [Module; 2],
        [lan, wan]: [Rings; 2],
        swaps: bool,
        [lan_can, wan_can]: [Capabilities; 2],
        pool: Pool,
    ) -> Pair {
        let boxed = |side: usize, module, Rings { receive, transmit, buffers }: Rings, can| -> Box<dyn Port> {
            // SAFETY: guaranteed by the caller.
            let port = unsafe { NetmapPort::new(module, [receive, transmit], buffers, swaps, can) };
            Box::new(port.completing(self.completers[side].clone()))
        };
        Pair { lan: boxed(0, lan_module, lan, lan_can), wan: boxed(1, wan_module, wan, wan_can), pool }
    }

    /// Notes the length of the rings for the log; those of all queues are the same.
    fn note_slots(&self, rings: [&Rings; 2], notes: &mut Vec<String>) {
        notes.extend(self.names.iter().zip(rings).map(|((name, _), Rings { receive, transmit, .. })| {
            format!(
                "{name}: rings of {} and {} slots, for receiving and for sending",
                receive.slots(),
                transmit.slots()
            )
        }));
    }
}

/// What completes the checksums that the port's senders leave to a NIC. The programs at a switch or a pipe may be virtual machines.
fn completer((written, name): (&str, Name<'_>)) -> Option<Completer> {
    let is_link = name.interface().is_some_and(|nic| Interface::find(nic).is_ok_and(|nic| nic.has_link_checksums()));
    (!is_link).then(|| Completer::new(written))
}

/// What a port can do whose buffers have `buffer` bytes.
///
/// Switches and pipes forward frames in several slots as they are. With NICs it depends on the driver: the network stack sends each slot as
/// a frame of its own, and no request reports which it is. But a module that `checks_mtu` refuses a NIC whose MTU exceeds a buffer unless
/// its driver takes several slots; a NIC that is open with such an MTU therefore does.
///
/// # Errors
///
/// When the NIC was removed.
fn capabilities(name: &Name<'_>, checks_mtu: bool, queue: u16, buffer: usize) -> Result<Capabilities, OpenError> {
    let several = match *name {
        Name::Switch(_) | Name::Pipe { .. } => Some(LONGEST),
        Name::Interface(name) => {
            let nic = Interface::find(name)?;
            (checks_mtu && nic.mtu() > buffer).then(|| nic.max_frame())
        }
    };
    let longest = several.unwrap_or(0).max(buffer);
    Ok(Capabilities {
        multi_buffer: several.is_some(),
        max_frame: longest,
        queue: queue.into(),
        owns_frames: true,
        ..Capabilities::default()
    })
}

/// Why a port was not registered.
enum Failure<'a> {
    /// The kernel refused a ring pair of this port.
    Kernel((&'a str, Name<'a>), io::Error),
    /// The port has fewer ring pairs than there are workers.
    FewRings { port: &'a str, has: u16, workers: u16 },
}

/// What registers one ring pair of a port.
type Register<'a, R> = &'a dyn Fn(&Name<'_>, Request) -> io::Result<R>;

/// What was granted with a ring pair.
trait Granted {
    /// The memory of the port, by its number.
    fn memory(&self) -> u16;
    /// Ring pairs of the port.
    fn queues(&self) -> u16;
}

impl Granted for Registered {
    fn memory(&self) -> u16 {
        self.memory
    }

    fn queues(&self) -> u16 {
        self.queues
    }
}

/// Registers these ring pairs of a port; the first of the port is the one to get the extra buffers.
fn register<'a, R: Granted>(
    port: (&'a str, Name<'a>),
    queues: Range<u16>,
    wanted: Request,
    new: Register<'_, R>,
) -> Result<Vec<R>, Failure<'a>> {
    let one = |queue| {
        let extra = if queue == 0 { wanted.extra } else { 0 };
        let granted = new(&port.1, Request { queue, extra, ..wanted }).map_err(|error| Failure::Kernel(port, error))?;
        match granted.queues() {
            has if has < wanted.queues => Err(Failure::FewRings { port: port.0, has, workers: wanted.queues }),
            _ => Ok(granted),
        }
    };
    queues.map(one).collect()
}

/// Registers the ring pairs of all workers of both ports, the first one with the extra buffers of all workers.
///
/// One registration gets them all, since each would take what the memory has left, up to the rings of those that follow. They go to
/// the first of all, since the memory of a switch's port is made for what the request asks that makes the port.
fn register_both<'a, R: Granted>(
    [lan, wan]: [(&'a str, Name<'a>); 2],
    wanted: Request,
    new: Register<'_, R>,
) -> Result<[Vec<R>; 2], Failure<'a>> {
    let alone = Request { extra: 0, ..wanted };
    let beside = |memory| match wan.1 {
        // A switch's port lies in memory of its own unless another is named, which may be too small for the rings of both.
        Name::Switch(_) if memory != 0 => register(wan, 0..wanted.queues, Request { memory, ..alone }, new)
            .or_else(|_| register(wan, 0..wanted.queues, alone, new)),
        _ => register(wan, 0..wanted.queues, alone, new),
    };
    let at_once = || {
        let lan = register(lan, 0..wanted.queues, wanted, new)?;
        let wan = beside(lan[0].memory())?;
        Ok([lan, wan])
    };
    let both = match at_once() {
        // In memory that was there before, the extra buffers may have left none for the rings: these are allocated first, and the extra
        // buffers are what remains.
        Err(Failure::Kernel(_, error)) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let others = register(lan, 1..wanted.queues, alone, new)?;
            let wan = beside(others.first().map_or(0, R::memory))?;
            let mut lan = register(lan, 0..1, wanted, new)?;
            lan.extend(others);
            [lan, wan]
        }
        both => both?,
    };
    let [in_lan, in_wan] = both;
    if in_lan[0].memory() == in_wan[0].memory() {
        return Ok([in_lan, in_wan]);
    }
    // Extra buffers are of use only where buffers are swapped.
    drop(in_lan);
    Ok([register(lan, 0..wanted.queues, alone, new)?, in_wan])
}

/// The parameters of the module by which the memory of such a port has more buffers, rings and interfaces.
fn parameters(name: &Name<'_>) -> [&'static str; 3] {
    let is_nic = |name: &str| Interface::find(name).is_ok();
    match *name {
        Name::Interface(_) => ["buf_num", "ring_num", "if_num"],
        Name::Pipe { parent, .. } if is_nic(parent) => ["buf_num", "ring_num", "if_num"],
        // In memory of their own.
        Name::Switch(_) | Name::Pipe { .. } => ["priv_buf_num", "priv_ring_num", "priv_if_num"],
    }
}

impl From<Failure<'_>> for OpenError {
    fn from(failure: Failure<'_>) -> OpenError {
        let ((written, name), source) = match failure {
            Failure::Kernel(port, source) => (port, source),
            Failure::FewRings { port, has, workers } => {
                return OpenError::Unsupported {
                    what: format!("{port} has {has} ring pair(s), not {workers}"),
                    hint: "start as many workers (or threads) as it has ring pairs".into(),
                };
            }
        };
        match source.raw_os_error() {
            _ if source.kind() == io::ErrorKind::NotFound => OpenError::Unsupported {
                what: format!("{written}: there is no /dev/netmap, so the netmap module is not loaded"),
                hint: "load it (`modprobe netmap`), or name the interface alone to take AF_XDP or AF_PACKET".into(),
            },
            Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: written.into() },
            Some(libc::ENXIO | libc::EINVAL) => OpenError::Unsupported {
                what: format!("{written}: netmap knows no such port, no such ring of it, or has buffers shorter than its MTU ({source})"),
                hint: "`ip link` lists the interfaces; as many workers need as many rings; the module's parameter buf_size is the buffers' length".into(),
            },
            Some(libc::EBUSY) => OpenError::Busy {
                what: format!("{written} is in use by another netmap program"),
                hint: "end that one".into(),
            },
            Some(libc::ENOMEM) => {
                let [buffers, rings, interfaces] = parameters(&name);
                OpenError::Unsupported {
                    what: format!("{written}: netmap's memory is used up"),
                    hint: format!(
                        "raise the parameters {buffers}, {rings} and {interfaces} of the module, or start fewer workers"
                    ),
                }
            }
            _ => failed(written, source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_takes_frames_in_several_slots_where_the_module_has_checked_its_mtu() {
        let nic = Interface::find("lo").expect("every namespace has one");
        let of = |name, checks_mtu, buffer| {
            let can = capabilities(&name, checks_mtu, 3, buffer).expect("it is there");
            assert_eq!(can.queue, 3);
            (can.multi_buffer, can.max_frame)
        };
        let (lo, switch) = (Name::Interface("lo"), Name::Switch("vale0:1"));
        assert_eq!(
            of(lo, true, 2048),
            (true, nic.max_frame()),
            "no buffer holds its frames, and it was opened nevertheless"
        );
        assert_eq!(of(lo, false, 2048), (false, 2048), "the module has not asked its driver");
        assert_eq!(of(lo, true, nic.mtu()), (false, nic.mtu()), "its frames fit one buffer");
        assert_eq!(of(switch, false, 2048), (true, LONGEST));
        assert_eq!(of(switch, false, 16_384), (true, 16_384));
        assert!(capabilities(&Name::Interface("nowhere0"), true, 0, 2048).is_err());
    }

    #[test]
    fn ports_that_would_forward_their_own_frames_for_ever_are_refused() {
        let checked = |lan: &'static str, wan: &'static str, forwards| {
            let names = [lan, wan].map(|name| (name, Name::parse(name).expect("a port's name")));
            check(&names, &Options { forwards, ..Options::default() }).err().map(|error| error.to_string())
        };
        let refused = |lan, wan| {
            assert_eq!(checked(lan, wan, false), None, "a load has two ends in one switch");
            checked(lan, wan, true)
        };
        for [lan, wan] in [["vale0:1", "vale0:2"], ["vale:a", "vale:b"]] {
            assert!(refused(lan, wan).expect("a loop").contains("ports of one switch"), "{lan} {wan}");
        }
        for [lan, wan] in [["p{1", "p}1"], ["p}07", "p{7"]] {
            assert!(refused(lan, wan).expect("a loop").contains("the two ends of one pipe"), "{lan} {wan}");
        }
        for [lan, wan] in
            [["vale0:1", "vale1:1"], ["vale:1", "vale1:1"], ["p{1", "p{2"], ["p{1", "q}1"], ["eth0", "eth0{1"]]
        {
            assert_eq!(refused(lan, wan), None, "{lan} {wan}");
        }
    }

    #[test]
    fn a_pipe_is_for_one_worker() {
        let pipe = ("netmap:p{1", Name::parse("p{1").expect("a pipe"));
        let nic = ("netmap:eth0", Name::Interface("eth0"));
        let check = |names: &[(&str, Name<'_>)], workers| check(names, &Options { workers, ..Options::default() });
        assert!(check(&[nic, pipe], 1).is_ok() && check(&[pipe], 1).is_ok() && check(&[nic, nic], 2).is_ok());
        for names in [&[nic, pipe][..], &[pipe]] {
            let error = check(names, 2).expect_err("two workers").to_string();
            assert!(error.contains("netmap:p{1 is a pipe, which has one ring pair, and 2 workers"), "{error}");
        }
    }

    #[test]
    fn more_workers_than_a_switch_s_memory_has_room_for_are_refused() {
        let names = [("vale0:1", Name::Switch("vale0:1")), ("vale1:1", Name::Switch("vale1:1"))];
        let check = |workers| check(&names, &Options { workers, ..Options::default() });
        assert!(check(registrations()).is_ok());
        let error = check(registrations() + 1).expect_err("one too many").to_string();
        assert!(error.contains("vale0:1: the memory") && error.contains("priv_if_num"), "{error}");
    }

    #[test]
    fn each_kind_of_memory_has_parameters_of_its_own() {
        let raise = |name| {
            let refusal = Failure::Kernel(("it", name), io::Error::from_raw_os_error(libc::ENOMEM));
            OpenError::from(refusal).to_string()
        };
        for name in [Name::Switch("vale0:1"), Name::Pipe { parent: "nowhere0", number: 1, master: true }] {
            let told = raise(name);
            assert!(told.contains("priv_buf_num, priv_ring_num and priv_if_num"), "{told}");
        }
        for name in [Name::Interface("lo"), Name::Pipe { parent: "lo", number: 1, master: true }] {
            let told = raise(name);
            assert!(told.contains("buf_num, ring_num and if_num") && !told.contains("priv"), "{told}");
        }
    }
}
