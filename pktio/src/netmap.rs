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

use std::io;
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
    let completers = names.map(completer);
    let mut pairs = (0..options.workers)
        .map(|queue| open_pair(names, &completers, queue, options, notes))
        .collect::<Result<Vec<_>, _>>()?;
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
    let queues = u16::try_from(options.workers).expect("at most 1024 workers");
    // The kernel always keeps one slot.
    let slots = options.netmap_slots.map(|slots| slots.max(2));
    let completer = completer(name);
    let open = |queue: u16| -> Result<Box<dyn Port>, OpenError> {
        let registered = register(name, Request { queue, queues, memory: 0, slots, extra: 0 })?;
        if registered.queues <= queue {
            return Err(OpenError::Unsupported {
                what: format!("{} has {} ring pair(s), not {queues}", name.0, registered.queues),
                hint: "use as many queues as it has ring pairs".into(),
            });
        }
        let io = |source| OpenError::Io { what: format!("{}: netmap", name.0), source };
        let checks_mtu = registered.checks_mtu;
        let (memory, mut rings) = Memory::map(vec![registered]).map_err(io)?;
        let Rings { receive, transmit, buffers } = rings.remove(0);
        let can = capabilities(&name.1, checks_mtu, queue, buffers.size)?;
        let module = Module::new(&Arc::new(memory), 0);
        // SAFETY: the rings and their buffers are this port's alone, and the module keeps their memory mapped.
        let port = unsafe { NetmapPort::new(module, [receive, transmit], buffers, false, can) };
        Ok(Box::new(port.completing(completer.clone())))
    };
    (0..queues).map(open).collect()
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

/// One ring pair of both ports.
fn open_pair(
    names: [(&str, Name<'_>); 2],
    completers: &[Option<Completer>; 2],
    queue: usize,
    options: &Options,
    notes: &mut Vec<String>,
) -> Result<Pair, OpenError> {
    let [workers, queue] = [options.workers, queue].map(|n| u16::try_from(n).expect("at most 1024 workers"));
    // The kernel always keeps one slot.
    let slots = options.netmap_slots.map(|slots| slots.max(2));
    let request = Request { queue, queues: workers, memory: 0, slots, extra: options.frames_per_port as u32 };
    let (lan, wan) = register_both(names, request)?;
    for (port, (name, _)) in [(&lan, names[0]), (&wan, names[1])] {
        if port.queues <= queue {
            return Err(OpenError::Unsupported {
                what: format!("{name} has {} ring pair(s), not {workers}", port.queues),
                hint: "start as many workers as it has ring pairs".into(),
            });
        }
    }
    let io = |source| OpenError::Io { what: format!("{} and {}: netmap", names[0].0, names[1].0), source };
    let checks_mtu = lan.checks_mtu && wan.checks_mtu;
    let capable = |buffers: [usize; 2]| -> Result<[Capabilities; 2], OpenError> {
        let [lan, wan] = [0, 1].map(|i| capabilities(&names[i].1, checks_mtu, queue, buffers[i]));
        Ok([lan?, wan?])
    };
    if lan.memory == wan.memory {
        let (memory, rings) = Memory::map(vec![lan, wan]).map_err(io)?;
        let [one, other]: [Rings; 2] = rings.try_into().expect("two ports, two ring pairs");
        note_slots(names, queue, [&one, &other], notes);
        if one.buffers.base == other.buffers.base && one.buffers.size == other.buffers.size {
            let can = capable([one.buffers.size; 2])?;
            return swapping(memory, [one, other], can, completers, options, notes);
        }
        return Err(io(io::Error::new(io::ErrorKind::InvalidData, "one memory, but not the same buffers")));
    }
    notes.push("netmap: the ports lie in different memories, so frames are copied from one to the other".into());
    let [(lan, lan_rings), (wan, wan_rings)] =
        [Memory::map(vec![lan]).map_err(io)?, Memory::map(vec![wan]).map_err(io)?];
    note_slots(names, queue, [&lan_rings[0], &wan_rings[0]], notes);
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
    let [lan_completer, wan_completer] = completers.clone();
    let boxed = |(module, Rings { receive, transmit, buffers }), can: Capabilities, completer| -> Box<dyn Port> {
        // SAFETY: the rings and their buffers are this port's alone, and the module keeps their memory mapped.
        let port = unsafe { NetmapPort::new(module, [receive, transmit], buffers, false, can) };
        Box::new(port.completing(completer))
    };
    let (lan, wan) = (boxed(lan_port, lan_can, lan_completer), boxed(wan_port, wan_can, wan_completer));
    Ok(Pair { lan, wan, pool })
}

/// What completes the checksums that the port's senders leave to a NIC. The programs at a switch or a pipe may be virtual machines.
fn completer((written, name): (&str, Name<'_>)) -> Option<Completer> {
    let is_link = name.interface().is_some_and(|nic| Interface::find(nic).is_ok_and(|nic| nic.has_link_checksums()));
    (!is_link).then(|| Completer::new(written))
}

/// Registers both ports, the first one with the extra buffers.
fn register_both(names: [(&str, Name<'_>); 2], request: Request) -> Result<(Registered, Registered), OpenError> {
    let lan = register(names[0], request)?;
    let alone = Request { extra: 0, ..request };
    let wan = match names[1].1 {
        // A switch's port lies in memory of its own unless another is named.
        Name::Switch(_) => {
            register(names[1], Request { memory: lan.memory, ..alone }).or_else(|_| register(names[1], alone))
        }
        Name::Interface(_) | Name::Pipe { .. } => register(names[1], alone),
    };
    let (lan, wan) = match wan {
        // The extra buffers may have left none for the rings of the second port; allocate the rings of both first.
        Err(_) if lan.extra < request.extra => {
            drop(lan);
            let wan = register(names[1], alone)?;
            (register(names[0], request)?, wan)
        }
        wan => (lan, wan?),
    };
    if lan.memory == wan.memory {
        return Ok((lan, wan));
    }
    // Extra buffers are of use only where buffers are swapped.
    drop(lan);
    Ok((register(names[0], alone)?, wan))
}

/// Notes the length of the rings for the log; those of all queues are the same.
fn note_slots(names: [(&str, Name<'_>); 2], queue: u16, rings: [&Rings; 2], notes: &mut Vec<String>) {
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

/// Ports in the same memory: the pool is made of its extra buffers.
fn swapping(
    memory: Memory,
    rings: [Rings; 2],
    capabilities: [Capabilities; 2],
    completers: &[Option<Completer>; 2],
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
    let buffer_memory =
        unsafe { BufferMemory::new(buffers.base, buffers.count as usize, buffers.size, memory.clone()) };
    // SAFETY: the kernel granted the extra buffers to this process, each once; those in the rings are counted as lent.
    let mut pool = unsafe { Pool::partly(buffer_memory, NETMAP_HEADROOM, extra, in_rings as usize) };
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
    let boxed = |index: usize, Rings { receive, transmit, buffers }: Rings, can: Capabilities| -> Box<dyn Port> {
        // SAFETY: as above; the pool lies over these buffers.
        let port = unsafe { NetmapPort::new(Module::new(&memory, index), [receive, transmit], buffers, true, can) };
        Box::new(port.completing(completers[index].clone()))
    };
    let (lan, wan) = (boxed(0, lan, lan_can), boxed(1, wan, wan_can));
    Ok(Pair { lan, wan, pool })
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
        ..Capabilities::default()
    })
}

fn register((written, name): (&str, Name<'_>), request: Request) -> Result<Registered, OpenError> {
    Registered::new(&name, request).map_err(|source| match source.raw_os_error() {
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
}
