//! netmap: rings of a NIC, a software switch or a pipe, in memory shared with the kernel module.
//!
//! A port is named `netmap:eth0` (a NIC: one ring pair a worker), `vale0:1` (a port of the software switch `vale0`) or `netmap:pipe{1` and
//! `netmap:pipe}1` (the two ends of a pipe). When both ports of a worker lie in the same memory, which all NICs and the ends of pipes
//! do, a frame is forwarded by changing places with the buffer in a slot; elsewhere it is copied.
//!
//! Building needs neither the module nor its headers; without `/dev/netmap` opening says so.

mod device;
#[cfg(test)]
mod fake;
mod port;
mod ring;

use std::io;
use std::sync::Arc;

use device::{Memory, Module, Registered, Rings, Wish};
use port::NetmapPort;

use crate::frame::{HEADROOM, Pool, Region};
use crate::netdev::Interface;
use crate::open::{OpenError, Options};
use crate::port::{Capabilities, Pair, Port};

/// Room in front of an idle frame, in bytes: for the header of a further buffer. Received frames begin where their buffer does.
const ROOM: usize = 64;

/// The longest frame that is passed in several slots to a switch or a pipe, which have no MTU, in bytes: an MTU of 9000, and two tags.
const LONGEST: usize = 9022;

/// Locally administered addresses that a switch is to find behind the ports.
const LAN_STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WAN_STATION: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// The first EtherType for local experiments (IEEE 802): nobody listens to it.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

/// The name of a netmap port, without the prefix `netmap:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// A NIC.
    Interface(&'a str),
    /// A port of a VALE switch.
    Switch(&'a str),
    /// One end of a pipe.
    Pipe {
        /// The port in whose memory the pipe lies; it need not exist elsewhere.
        parent: &'a str,
        /// The pipe's number there.
        number: u16,
        /// Which end.
        master: bool,
    },
}

impl<'a> Name<'a> {
    /// Takes `name` apart; `None` when it names no port.
    pub(crate) fn parse(name: &'a str) -> Option<Name<'a>> {
        let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && !"/{}:@".contains(c));
        if let Some(rest) = name.strip_prefix("vale") {
            let (switch, port) = rest.split_once(':')?;
            return ((switch.is_empty() || word(switch)) && word(port)).then_some(Name::Switch(name));
        }
        match name.split_once(['{', '}']) {
            Some((parent, number)) => {
                let number = number.parse().ok().filter(|&number: &u16| number < 4096)?;
                let master = name.as_bytes()[parent.len()] == b'{';
                word(parent).then_some(Name::Pipe { parent, number, master })
            }
            None => word(name).then_some(Name::Interface(name)),
        }
    }

    /// The NIC to be prepared, where it is one.
    pub(crate) fn interface(&self) -> Option<&'a str> {
        match *self {
            Name::Interface(name) => Some(name),
            Name::Switch(_) | Name::Pipe { .. } => None,
        }
    }
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
    let mut pairs =
        (0..options.workers).map(|queue| open_pair(names, queue, options, notes)).collect::<Result<Vec<_>, _>>()?;
    notes.dedup();
    if let Some(Pair { lan, wan, pool }) = pairs.first_mut() {
        for ((_, name), (port, station)) in names.iter().zip([(lan, LAN_STATION), (wan, WAN_STATION)]) {
            if let Name::Switch(_) = name {
                introduce(&mut **port, station, pool);
            }
        }
    }
    Ok(pairs)
}

/// Opens a port by itself, `workers` ring pairs of it. Frames are copied in and out.
///
/// # Errors
///
/// Without the module, or when it refuses.
pub(crate) fn open_alone(name: (&str, Name<'_>), options: &Options) -> Result<Vec<Box<dyn Port>>, OpenError> {
    let queues = u16::try_from(options.workers).expect("at most 1024 workers");
    // One slot always stays the kernel's.
    let slots = options.netmap_slots.map(|slots| slots.max(2));
    let open = |queue: u16| -> Result<Box<dyn Port>, OpenError> {
        let registered = register(name, Wish { queue, queues, memory: 0, slots, extra: 0 })?;
        if registered.queues <= queue {
            return Err(OpenError::Unsupported {
                what: format!("{} has {} ring pair(s), not {queues}", name.0, registered.queues),
                hint: "use as many queues as it has ring pairs".into(),
            });
        }
        let io = |source| OpenError::Io { what: format!("{}: netmap", name.0), source };
        let judges = registered.judges_mtu;
        let (memory, mut rings) = Memory::map(vec![registered]).map_err(io)?;
        let Rings { receive, transmit, buffers } = rings.remove(0);
        let can = capabilities(&name.1, judges, queue, buffers.size)?;
        let module = Module::new(&Arc::new(memory), 0);
        // SAFETY: the rings and their buffers are this port's alone, and the module keeps their memory mapped.
        Ok(Box::new(unsafe { NetmapPort::new(module, [receive, transmit], buffers, false, can) }))
    };
    (0..queues).map(open).collect()
}

/// Has a switch learn that `station` is reached by this port: until it has learned one, some of its versions pass it nothing.
fn introduce(port: &mut dyn Port, station: [u8; 6], pool: &mut Pool) {
    let Some(mut frame) = pool.take() else { return };
    let mut bytes = [0; 60];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&station);
    bytes[12..14].copy_from_slice(&EXPERIMENTAL);
    frame.fill(&bytes);
    let mut batch = vec![frame];
    port.transmit(&mut batch, pool);
    port.flush(pool);
    batch.into_iter().for_each(|frame| pool.put(frame));
}

/// One ring pair of both ports.
fn open_pair(
    names: [(&str, Name<'_>); 2],
    queue: usize,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Pair, OpenError> {
    let [workers, queue] = [options.workers, queue].map(|n| u16::try_from(n).expect("at most 1024 workers"));
    // One slot always stays the kernel's.
    let slots = options.netmap_slots.map(|slots| slots.max(2));
    let wish = Wish { queue, queues: workers, memory: 0, slots, extra: options.frames_per_port as u32 };
    let (lan, wan) = register_both(names, wish)?;
    for (port, (name, _)) in [(&lan, names[0]), (&wan, names[1])] {
        if port.queues <= queue {
            return Err(OpenError::Unsupported {
                what: format!("{name} has {} ring pair(s), not {workers}", port.queues),
                hint: "start as many workers as it has ring pairs".into(),
            });
        }
    }
    let io = |source| OpenError::Io { what: format!("{} and {}: netmap", names[0].0, names[1].0), source };
    let judges = lan.judges_mtu && wan.judges_mtu;
    let capable = |buffers: [usize; 2]| -> Result<[Capabilities; 2], OpenError> {
        let [lan, wan] = [0, 1].map(|i| capabilities(&names[i].1, judges, queue, buffers[i]));
        Ok([lan?, wan?])
    };
    if lan.memory == wan.memory {
        let (memory, rings) = Memory::map(vec![lan, wan]).map_err(io)?;
        let [one, other]: [Rings; 2] = rings.try_into().expect("two ports, two ring pairs");
        tell_slots(names, queue, [&one, &other], notes);
        if one.buffers.base == other.buffers.base && one.buffers.size == other.buffers.size {
            let can = capable([one.buffers.size; 2])?;
            return swapping(memory, [one, other], can, options, notes);
        }
        return Err(io(io::Error::new(io::ErrorKind::InvalidData, "one memory, but not the same buffers")));
    }
    notes.push("netmap: the ports lie in different memories, so frames are copied from one to the other".into());
    let [(lan, lan_rings), (wan, wan_rings)] =
        [Memory::map(vec![lan]).map_err(io)?, Memory::map(vec![wan]).map_err(io)?];
    tell_slots(names, queue, [&lan_rings[0], &wan_rings[0]], notes);
    let can = capable([&lan_rings, &wan_rings].map(|rings| rings[0].buffers.size))?;
    let longest = can.iter().map(|can| can.max_frame).max().unwrap_or(0);
    let buffer = (HEADROOM + longest.min(lan_rings[0].buffers.size) + 128).next_power_of_two().max(2048);
    let mut pool = Pool::heap(2 * options.frames_per_port, buffer, HEADROOM);
    pool.set_reserve(2 * options.batch);
    let [lan_port, wan_port] = [(lan, lan_rings), (wan, wan_rings)].map(|(memory, mut rings)| {
        let (memory, rings) = (Arc::new(memory), rings.remove(0));
        (Module::new(&memory, 0), rings)
    });
    let [lan_can, wan_can] = can;
    let boxed = |(module, Rings { receive, transmit, buffers }), can: Capabilities| -> Box<dyn Port> {
        // SAFETY: the rings and their buffers are this port's alone, and the module keeps their memory mapped.
        Box::new(unsafe { NetmapPort::new(module, [receive, transmit], buffers, false, can) })
    };
    Ok(Pair { lan: boxed(lan_port, lan_can), wan: boxed(wan_port, wan_can), pool })
}

/// Registers both ports, the first one with the extra buffers.
fn register_both(names: [(&str, Name<'_>); 2], wish: Wish) -> Result<(Registered, Registered), OpenError> {
    let lan = register(names[0], wish)?;
    let alone = Wish { extra: 0, ..wish };
    let wan = match names[1].1 {
        // A switch's port lies in memory of its own unless it is told where.
        Name::Switch(_) => {
            register(names[1], Wish { memory: lan.memory, ..alone }).or_else(|_| register(names[1], alone))
        }
        Name::Interface(_) | Name::Pipe { .. } => register(names[1], alone),
    };
    let (lan, wan) = match wan {
        // The extra buffers may be all there were, and none be left for rings: those of both come first then.
        Err(_) if lan.extra < wish.extra => {
            drop(lan);
            let wan = register(names[1], alone)?;
            (register(names[0], wish)?, wan)
        }
        wan => (lan, wan?),
    };
    if lan.memory == wan.memory {
        return Ok((lan, wan));
    }
    // Extra buffers are for frames that change places, and here they cannot.
    drop(lan);
    Ok((register(names[0], alone)?, wan))
}

/// The log is to say how long the rings are; those of all queues are the same.
fn tell_slots(names: [(&str, Name<'_>); 2], queue: u16, rings: [&Rings; 2], notes: &mut Vec<String>) {
    if queue == 0 {
        notes.extend(names.iter().zip(rings).map(|((name, _), Rings { receive, transmit, .. })| {
            format!(
                "{name}: rings of {} and {} slots, for receiving and for sending",
                receive.slots(),
                transmit.slots()
            )
        }));
    }
}

/// Ports in one memory: the pool is made of the extra buffers there.
fn swapping(
    memory: Memory,
    rings: [Rings; 2],
    capabilities: [Capabilities; 2],
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Pair, OpenError> {
    let buffers = rings[0].buffers;
    let extra = memory.take_extra(buffers);
    let memory = Arc::new(memory);
    let in_rings: u32 = rings.iter().map(|rings| rings.receive.slots() + rings.transmit.slots()).sum();
    let least = 4 * options.batch;
    let granted = extra.len();
    // SAFETY: the buffers lie in the mapping, which `memory` keeps, from number 0 on.
    let region = unsafe { Region::new(buffers.base, buffers.count as usize, buffers.size, memory.clone()) };
    // SAFETY: extra buffers are ours by the kernel's word, each once; those in the rings are counted as lent.
    let mut pool = unsafe { Pool::partly(region, ROOM, extra, in_rings as usize) };
    if granted < least {
        return Err(OpenError::Unsupported {
            what: format!("netmap gave {granted} buffers beyond those in the rings, and {least} are needed"),
            hint: "raise the parameter buf_num of the module".into(),
        });
    }
    if granted < options.frames_per_port {
        notes.push(format!("netmap: {granted} spare buffers instead of {}", options.frames_per_port));
    }
    pool.set_reserve(2 * options.batch);
    let [lan, wan] = rings;
    let [lan_can, wan_can] = capabilities;
    let boxed = |port, Rings { receive, transmit, buffers }: Rings, can: Capabilities| -> Box<dyn Port> {
        // SAFETY: as above; the pool lies over these buffers.
        Box::new(unsafe { NetmapPort::new(Module::new(&memory, port), [receive, transmit], buffers, true, can) })
    };
    let (lan, wan) = (boxed(0, lan, lan_can), boxed(1, wan, wan_can));
    Ok(Pair { lan, wan, pool })
}

/// What a port can do whose buffers have `buffer` bytes.
///
/// Switches and pipes pass frames in several slots on as they are. Of NICs it depends on the driver, the network stack sends each slot as
/// a frame of its own, and no request tells which it is. But a module that `judges` has refused a NIC whose MTU no buffer holds, unless
/// its driver takes several: one that is open all the same does.
///
/// # Errors
///
/// When the NIC is gone.
fn capabilities(name: &Name<'_>, judges: bool, queue: u16, buffer: usize) -> Result<Capabilities, OpenError> {
    let several = match *name {
        Name::Switch(_) | Name::Pipe { .. } => Some(LONGEST),
        Name::Interface(name) => {
            let nic = Interface::find(name)?;
            (judges && nic.mtu() > buffer).then(|| nic.max_frame())
        }
    };
    let longest = several.unwrap_or(0).max(buffer);
    Ok(Capabilities {
        multi_buffer: several.is_some(),
        max_frame: longest,
        queue: queue.into(),
        ..Capabilities::default()
    })
}

fn register((written, name): (&str, Name<'_>), wish: Wish) -> Result<Registered, OpenError> {
    Registered::new(&name, wish).map_err(|source| match source.raw_os_error() {
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
        Some(libc::ENOMEM) => OpenError::Unsupported {
            what: format!("{written}: netmap's memory is used up"),
            hint: "raise the parameters buf_num, ring_num and if_num of the module".into(),
        },
        _ => OpenError::Io { what: format!("{written}: netmap"), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_netmap() {
        assert_eq!(Name::parse("eth0"), Some(Name::Interface("eth0")));
        assert_eq!(Name::parse("vale0:1"), Some(Name::Switch("vale0:1")));
        assert_eq!(Name::parse("vale:x"), Some(Name::Switch("vale:x")));
        assert_eq!(Name::parse("pipe{1"), Some(Name::Pipe { parent: "pipe", number: 1, master: true }));
        assert_eq!(Name::parse("pipe}1"), Some(Name::Pipe { parent: "pipe", number: 1, master: false }));
        for name in ["", "eth 0", "a/b", "p{", "p{x", "p{4096", "{1", "vale0:", "vale0", "vale/:1", "eth0:1"] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }

    #[test]
    fn a_nic_takes_frames_in_several_slots_where_the_module_has_judged_its_mtu() {
        let nic = Interface::find("lo").expect("every namespace has one");
        let of = |name, judges, buffer| {
            let can = capabilities(&name, judges, 3, buffer).expect("it is there");
            assert_eq!(can.queue, 3);
            (can.multi_buffer, can.max_frame)
        };
        let (lo, switch) = (Name::Interface("lo"), Name::Switch("vale0:1"));
        assert_eq!(
            of(lo, true, 2048),
            (true, nic.max_frame()),
            "no buffer holds its frames, and it was taken all the same"
        );
        assert_eq!(of(lo, false, 2048), (false, 2048), "nobody has asked its driver");
        assert_eq!(of(lo, true, nic.mtu()), (false, nic.mtu()), "that it spreads frames was not asked");
        assert_eq!(of(switch, false, 2048), (true, LONGEST));
        assert_eq!(of(switch, false, 16_384), (true, 16_384));
        assert!(capabilities(&Name::Interface("nowhere0"), true, 0, 2048).is_err());
    }
}
