//! Opens ports: prepares their interfaces, takes the best I/O backend that works, and reports why the
//! better ones were not taken.

use std::fmt;
use std::thread;

use tracing::{debug, info, warn};

use crate::error::OpenError;
use crate::failure::OnFailure;
use crate::frame::{HEADROOM, MOST_MEMBERS};
use crate::guard::Guard;
use crate::members::Members;
use crate::names::{Asked, HOST, Name, members_of};
use crate::netdev::{self, HostPort, Interface, Settings};
use crate::netmap;
use crate::options::{FastPathWay, Mode, Options};
use crate::packet::{Answering, FastPath, PacketOptions, PacketPort};
use crate::pcap::PcapPort;
use crate::pins::{self, KeptFlows, Pins};
use crate::plan::{choose_fast_path, forwarding, is_shedding, is_wan, partner, raise_memory_limit, syn_plan};
use crate::pool::Pool;
use crate::port::{Pair, Port, Ports};
use crate::prepare::Preparation;
use crate::privilege;
use crate::rss::Twin;
use crate::xdp::{
    self, AttachedProgram, FrontProgram, Layout, LoadedMaps, LoadedProgram, Purpose, Refusal, UmemMemory,
};

/// The ports of every worker, the software twin of the interfaces' RSS (or why it is not symmetric), and what restores the interfaces.
type Prepared = (Vec<Ports>, Result<Twin, String>, Guard);

/// Two open interfaces.
///
/// The ports must be dropped before the guard; the order of the fields ensures it as long as they stay together.
#[derive(Debug)]
pub struct Opened {
    /// One pair for each worker, by queue.
    pub pairs: Vec<Pair>,
    /// The software twin of both interfaces' symmetric RSS; or why it is not symmetric.
    pub spread: Result<Twin, String>,
    /// Restores the interfaces when it is dropped.
    pub guard: Guard,
    /// Which backend was taken, and why no better one; one sentence each.
    pub notes: Vec<String>,
}

/// One interface, open without another: for programs that only send frames or only count them.
///
/// The ports must be dropped before the guard; the order of the fields ensures it as long as they stay together.
#[derive(Debug)]
pub struct Alone {
    /// One for each worker, by queue.
    pub queues: Vec<Queue>,
    /// Restores the interface when it is dropped.
    pub guard: Guard,
    /// Which backend was taken, and why no better one; one sentence each.
    pub notes: Vec<String>,
}

/// One queue of an interface that is open alone, and its frames.
pub struct Queue {
    /// The port.
    pub port: Box<dyn Port>,
    /// The frames.
    pub pool: Pool,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("port", &self.port.capabilities()).field("pool", &self.pool).finish()
    }
}

/// The buffers that a port's frames lie in, as the MTU decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes of a buffer.
    pub bytes: usize,
    /// Whether a frame may lie in several.
    pub are_chained: bool,
}

/// The buffers for this MTU; `None` if it is too large for any.
pub fn buffers_for(mtu: usize) -> Option<Buffers> {
    let options = Options::default();
    let layout = Layout::for_mtu(mtu, 1, options.frames_per_port, options.batch).ok()?;
    Some(Buffers { bytes: layout.chunk, are_chained: layout.multi_buffer })
}

/// Opens both ports for `options.workers` workers and prepares their interfaces.
///
/// # Errors
///
/// When a name has the wrong form, an interface is missing, down or given twice, a privilege is missing, or no backend works.
/// Everything that was changed is restored.
pub fn open(lan: &str, wan: &str, options: &Options) -> Result<Opened, OpenError> {
    open_prepared(lan, wan, options, &mut Preparation::default())
}

/// As [`open`], with what was [prepared](crate::prepare()) for these ports and options.
///
/// Where a former process has left its XDP programs attached, they stay until [`Guard::take_over`], and no frame comes before.
///
/// # Errors
///
/// As [`open`].
pub fn open_prepared(
    lan: &str,
    wan: &str,
    options: &Options,
    preparation: &mut Preparation,
) -> Result<Opened, OpenError> {
    check(options)?;
    let members = [members_of(lan), members_of(wan)];
    if members.iter().any(|members| members.len() > 1) {
        return open_members(members, [lan, wan], options, preparation);
    }
    let names = [Name::parse(lan)?, Name::parse(wan)?];
    let devices = match (&names[0], &names[1]) {
        (Name::Host, Name::Any(nic) | Name::Xdp(nic)) => {
            preparation.left.clear();
            return open_host(nic, options);
        }
        (Name::Host, _) | (_, Name::Host) => {
            return Err(OpenError::Unsupported {
                what: format!("{HOST} is this machine's own stack, behind a NIC that works by AF_XDP"),
                hint: format!("write `{HOST} NIC`; an interface of that name is `xdp:{HOST}` or `packet:{HOST}`"),
            });
        }
        (Name::Netmap(lan_name), Name::Netmap(wan_name)) => {
            return open_netmap([(lan, *lan_name), (wan, *wan_name)], options);
        }
        (Name::Netmap(_), _) | (_, Name::Netmap(_)) => {
            return Err(OpenError::Unsupported {
                what: "netmap shares its frames with no other backend".into(),
                hint: "name netmap ports on both sides (`netmap:NAME` or `valeX:Y`)".into(),
            });
        }
        (Name::Pcap(lan), Name::Pcap(wan)) => {
            let (sets, note) = open_captures(&[*lan, *wan], options)?;
            let spread = Err("a capture file has one queue".into());
            let pairs = sets.into_iter().map(|set| pair(set, options.batch)).collect();
            return Ok(Opened { pairs, spread, guard: Guard::empty(), notes: vec![note] });
        }
        (Name::Pcap(_), _) | (_, Name::Pcap(_)) => {
            return Err(OpenError::Unsupported {
                what: "a capture file and an interface cannot be bridged".into(),
                hint: "name two captures (`pcap:in=FILE:out=FILE`) or two interfaces".into(),
            });
        }
        (Name::Any(lan) | Name::Xdp(lan) | Name::Packet(lan), Name::Any(wan) | Name::Xdp(wan) | Name::Packet(wan)) => {
            [*lan, *wan]
        }
    };
    let wants_xdp = names.iter().any(|n| matches!(n, Name::Xdp(_)));
    let wants_packet = names.iter().any(|n| matches!(n, Name::Packet(_)));
    if wants_xdp && wants_packet {
        return Err(OpenError::Unsupported {
            what: "AF_XDP and AF_PACKET cannot share their frames".into(),
            hint: "name the same backend for both ports".into(),
        });
    }

    let wanted = if wants_packet { Some(Wanted::Packet) } else { wants_xdp.then_some(Wanted::Xdp) };
    open_all(&devices, [lan, wan], wanted, options, preparation)
}

/// Opens the member links of an aggregation on both sides.
fn open_members(
    members: [Vec<&str>; 2],
    ports: [&str; 2],
    options: &Options,
    preparation: &mut Preparation,
) -> Result<Opened, OpenError> {
    let refuse = |what: String| {
        let hint = "name the members of both sides, each behind its partner's place: `lan0,lan1 wan0,wan1`".into();
        Err(OpenError::Unsupported { what, hint })
    };
    if members[0].len() != members[1].len() {
        return refuse(format!("{} member(s) on the LAN and {} on the WAN", members[0].len(), members[1].len()));
    }
    if members[0].len() > MOST_MEMBERS {
        return refuse(format!("{} members of a port are more than {MOST_MEMBERS}", members[0].len()));
    }
    let (mut devices, mut wanted) = (Vec::new(), None);
    for name in members.iter().flatten() {
        let (device, asked) = match Name::parse(name)? {
            Name::Any(device) => (device, None),
            Name::Xdp(device) => (device, Some(Wanted::Xdp)),
            Name::Packet(device) => (device, Some(Wanted::Packet)),
            _ => return refuse(format!("{name} is no interface of the kernel, as a member is")),
        };
        if wanted.is_some() && asked.is_some() && wanted != asked {
            return refuse("AF_XDP and AF_PACKET cannot share their frames".into());
        }
        wanted = wanted.or(asked);
        devices.push(device);
    }
    open_all(&devices, ports, wanted, options, preparation)
}

/// Opens interfaces of the kernel, the members of the LAN, then those of the WAN; `ports` are the ports' names as the operator gave them.
fn open_all(
    devices: &[&str],
    ports: [&str; 2],
    wanted: Option<Wanted>,
    options: &Options,
    preparation: &mut Preparation,
) -> Result<Opened, OpenError> {
    let located = devices.iter().map(|device| Interface::locate(device)).collect::<Result<Vec<_>, _>>()?;
    let is_fit = located.iter().map(Interface::index).eq(preparation.fit.iter().copied());
    let (interfaces, settings) = claim(&located, is_fit, ports, options)?;
    let mut notes = Vec::new();
    for at in 0..interfaces.len() / 2 {
        let (lan, wan) = (&interfaces[at], &interfaces[at + interfaces.len() / 2]);
        if lan.mtu() != wan.mtu() {
            let text = format!(
                "the MTU of {} is {} and that of {} is {}: longer frames will be lost; set both to the same",
                lan.name(),
                lan.mtu(),
                wan.name(),
                wan.mtu()
            );
            warn!("{text}");
            notes.push(text);
        }
    }
    let interfaces: Vec<&Interface> = interfaces.iter().collect();
    let (sets, spread, guard) = open_interfaces(&interfaces, settings, wanted, options, preparation, &mut notes)?;
    let pairs = sets.into_iter().map(|set| pair(set, options.batch)).collect();
    Ok(Opened { pairs, spread, guard, notes })
}

/// Opens a NIC as the WAN port, and this machine's own stack behind it as the LAN port.
fn open_host(nic: &str, options: &Options) -> Result<Opened, OpenError> {
    let mut host = HostPort::new(nic, options.workers)?;
    // AF_PACKET would see the frames that arrive at the stack a second time; so there is no fast path of packet sockets. Nor of XDP: what the stack
    // sends does not come by a port of the kernel's.
    let options = Options { host: true, fast_path: None, ..options.clone() };
    let devices = [host.port(), nic];
    let mut opened = open_all(&devices, [HOST, nic], Some(Wanted::Xdp), &options, &mut Preparation::default())?;
    // From here on the frames of both directions wait for the workers.
    host.engage()?;
    opened.guard.host = Some(host);
    Ok(opened)
}

/// Opens one interface, with a queue for each of `options.workers` workers, and prepares it.
///
/// # Errors
///
/// As [`open`].
pub fn open_alone(name: &str, options: &Options) -> Result<Alone, OpenError> {
    check(options)?;
    let (device, wanted) = match Name::parse(name)? {
        Name::Any(device) => (device, None),
        Name::Xdp(device) => (device, Some(Wanted::Xdp)),
        Name::Packet(device) => (device, Some(Wanted::Packet)),
        Name::Netmap(netmap) => return open_netmap_alone((name, netmap), options),
        Name::Host => {
            return Err(OpenError::Unsupported {
                what: format!("{HOST} is this machine's own stack, the LAN port of a box"),
                hint: "name an interface".into(),
            });
        }
        Name::Pcap(spec) => {
            return open_captures(&[spec], options).map(|(sets, note)| Alone::of(sets, Guard::empty(), vec![note]));
        }
    };
    let (interface, settings) = claim_alone(device)?;
    let mut notes = Vec::new();
    let mut nothing = Preparation::default();
    let (sets, _, mut guard) = open_interfaces(&[&interface], settings, wanted, options, &mut nothing, &mut notes)?;
    guard.take_over().map_err(|source| OpenError::Io { what: format!("{device}: its XDP program"), source })?;
    Ok(Alone::of(sets, guard, notes))
}

/// Claims the interfaces of both ports, once they are found fit to be ports, if that is not known. They are up then.
fn claim(
    located: &[Interface],
    is_fit: bool,
    ports: [&str; 2],
    options: &Options,
) -> Result<(Vec<Interface>, Settings), OpenError> {
    for (at, one) in located.iter().enumerate() {
        if located[..at].iter().any(|other| other.index() == one.index()) {
            return Err(OpenError::SameInterface { interface: one.name().into() });
        }
    }
    let interfaces: Vec<&Interface> = located.iter().collect();
    if !is_fit {
        netdev::check(&interfaces, options.force || options.host)?;
    }
    let mut settings = Settings::claim(&interfaces, &format!("the box between {} and {}", ports[0], ports[1]))?;
    if let Some(wan) = interfaces.last().filter(|_| options.host) {
        settings.share(wan.index());
    }
    // A process that was killed may have left them down.
    let found = interfaces.iter().map(|interface| Interface::find(interface.name())).collect::<Result<_, _>>()?;
    Ok((found, settings))
}

/// Claims one interface for a program that has it without another.
fn claim_alone(device: &str) -> Result<(Interface, Settings), OpenError> {
    let settings = Settings::claim(&[&Interface::locate(device)?], &format!("a program that has {device} open"))?;
    Ok((Interface::find(device)?, settings))
}

impl Alone {
    fn of(sets: Vec<Ports>, guard: Guard, notes: Vec<String>) -> Alone {
        let queues = sets.into_iter().map(|(mut ports, pool)| Queue { port: ports.remove(0), pool });
        Alone { queues: queues.collect(), guard, notes }
    }
}

/// The ports of the interfaces of both sides, those of the LAN first.
fn pair((mut ports, pool): Ports, batch: usize) -> Pair {
    let side = |members: Vec<Box<dyn Port>>| match <[Box<dyn Port>; 1]>::try_from(members) {
        Ok([single]) => single,
        Err(several) => Box::new(Members::new(several, batch)) as Box<dyn Port>,
    };
    let of_wan = ports.split_off(ports.len() / 2);
    let wan = side(of_wan);
    Pair { lan: side(ports), wan, pool }
}

/// A backend that the name of a port asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Xdp,
    Packet,
}

/// Opens interfaces of the kernel with the best backend that works, or the wanted one.
fn open_interfaces(
    interfaces: &[&Interface],
    settings: Settings,
    wanted: Option<Wanted>,
    options: &Options,
    preparation: &mut Preparation,
    notes: &mut Vec<String>,
) -> Result<Prepared, OpenError> {
    raise_memory_limit();
    if preparation.left.len() != options.workers {
        // The number of queues changes.
        preparation.left.clear();
    }
    let mut guard = Guard::of(settings);
    let noted = notes.len();
    let said = guard.settings.announce_wait(interfaces);
    let asked = wanted.map_or(Asked::Best, |wanted| if wanted == Wanted::Xdp { Asked::Xdp } else { Asked::Packet });
    let chosen = choose_fast_path(interfaces, asked, options);
    if let Ok(Some((FastPathWay::Tc, _))) = chosen {
        guard.settings.send_super_frames();
    }
    let spread = guard.settings.prepare(interfaces, options.workers, options.spread.as_ref(), notes)?;
    let chosen = chosen.inspect_err(|reason| warn!("the kernel forwards no connections by itself: {reason}"));
    let way = chosen.ok().flatten().map(|(way, why)| {
        notes.extend(why);
        way
    });
    if let (Some(FastPathWay::Tc), Some(plan), [lan, wan]) = (way, options.fast_path, interfaces) {
        let pins = pins_of([lan, wan]);
        let attach = |syns| FastPath::attach([lan, wan], plan.words, plan.flow_keys, pins.as_ref(), syns);
        let syns = syn_plan(1, 2, options).zip(options.failure.as_ref()).map(|(plan, failure)| Answering {
            plan,
            flow_words: failure.flow_words,
            workers: options.workers,
        });
        guard.fast_path = attach(syns)
            .or_else(|reason| match syns {
                None => Err(reason),
                Some(_) => attach(None).inspect(|_| {
                    let name = wan.name();
                    warn!(
                        "{name}: the workers answer all SYNs, since the kernel refuses the program that would: {}",
                        xdp::chain(&*reason)
                    );
                }),
            })
            .inspect_err(|reason| warn!("the kernel forwards no connections by itself: {}", xdp::chain(&**reason)))
            .ok();
        if let (Some(at_tc), Some(failure)) = (guard.fast_path.as_ref().filter(|_| plan.has_front), &options.failure)
            && let Some(Answering { plan, workers, .. }) = at_tc.answering()
        {
            guard.front = FrontProgram::load(wan, at_tc.maps(), workers, failure, plan)
                .inspect_err(|reason| {
                    let reason = xdp::chain(&**reason);
                    info!("{}: SYNs are answered at tc alone, however many come: {reason}", wan.name())
                })
                .ok();
        }
        guard.kept_flows =
            pins.zip(guard.fast_path.as_ref()).and_then(|(pins, fast_path)| kept(fast_path.keep_flows(pins)));
    }
    if guard.fast_path.is_none() {
        // What a process with another configuration has left at tc.
        interfaces.iter().for_each(|interface| pins::detach_left(interface.index()));
    }
    let sets = if wanted == Some(Wanted::Packet) || guard.fast_path.is_some() {
        preparation.left.clear();
        guard.settings.detach_left_programs();
        open_packet(interfaces, options, &mut guard, notes)?
    } else {
        match open_xdp_anyhow(interfaces, options, way, preparation, &mut guard, notes) {
            Ok(sets) => {
                if let (Some(program), [lan, wan]) =
                    (guard.programs.first().filter(|program| program.forwards()), interfaces)
                {
                    guard.kept_flows = pins_of([lan, wan]).and_then(|pins| kept(program.keep_flows(pins)));
                }
                sets
            }
            // AF_PACKET behind another XDP program would see only the frames that it passes.
            Err(Refusal::Busy { what, hint }) => return Err(OpenError::Busy { what, hint }),
            Err(Refusal::Descriptors(source)) => return Err(OpenError::Io { what: "AF_XDP".into(), source }),
            Err(reason) => {
                let lack = lack_for_xdp(&reason);
                if wanted == Some(Wanted::Xdp) || options.mode != Mode::Auto {
                    return Err(OpenError::Unsupported {
                        what: format!("AF_XDP does not work: {}", lack.unwrap_or_else(|| reason.to_string())),
                        hint: "name the interfaces without `xdp:` and without a mode to take what works".into(),
                    });
                }
                match lack {
                    Some(lack) => {
                        // What each mode of each interface was refused with says nothing more.
                        notes.truncate(noted);
                        debug!("AF_XDP was not taken: {reason}");
                        warn!("AF_PACKET instead of AF_XDP, which is faster: {lack}");
                    }
                    None => notes.push(format!("AF_XDP was not taken: {reason}")),
                }
                preparation.left.clear();
                guard.settings.detach_left_programs();
                open_packet(interfaces, options, &mut guard, notes)?
            }
        }
    };
    // Attaching a program makes the link of some devices flap, so this comes last.
    guard.settings.await_links(interfaces, &options.stop, said, notes);
    guard.settings.note();
    for (side, interface) in interfaces.iter().enumerate() {
        let Some((ports, _)) = sets.first() else { continue };
        let taken = ports[side].capabilities();
        let way = match (taken.backend, taken.driver_mode, taken.zero_copy) {
            ("xdp", true, true) => "AF_XDP, driver mode, zero copy",
            ("xdp", true, false) => "AF_XDP, driver mode, copying",
            ("xdp", false, _) => "AF_XDP, generic mode",
            _ => "AF_PACKET",
        };
        let buffers = if taken.multi_buffer { ", frames in several buffers" } else { "" };
        notes.push(format!("{}: {way}{buffers}, {} queue(s)", interface.name(), sets.len()));
        if guard.programs.get(side).is_some_and(|program| program.loses_tags(interface)) {
            notes.push(format!(
                "{}: VLAN tags that the other end of a veth leaves to the device do not reach AF_XDP; `ethtool -K PEER txvlan off` \
                 puts them into the frames",
                interface.name()
            ));
        }
    }
    for note in notes.iter() {
        info!("{note}");
    }
    Ok((sets, spread, guard))
}

/// Where what outlives the process is pinned, if it can be.
fn pins_of(ports: [&Interface; 2]) -> Option<Pins> {
    Pins::of(ports)
        .inspect_err(|reason| {
            info!("connections that the kernel forwards by itself do not outlive the process: {reason}")
        })
        .ok()
}

/// What outlives the process, if anything does.
fn kept(result: Result<KeptFlows, Box<dyn std::error::Error>>) -> Option<KeptFlows> {
    result
        .inspect_err(|reason| {
            let reason = xdp::chain(&**reason);
            warn!("connections that the kernel forwards by itself do not outlive the process: {reason}")
        })
        .ok()
}

/// What the process lacks for AF_XDP, where that is why it was refused: capabilities, each with what it is for, or a limit.
fn lack_for_xdp(reason: &Refusal) -> Option<String> {
    let missing: Vec<_> = privilege::missing().into_iter().filter(|it| it.name != "CAP_IPC_LOCK").collect();
    if let Refusal::Limit(text) = reason {
        return Some(text.clone());
    }
    let purposes: Vec<String> = missing.iter().map(|it| format!("{} (for {})", it.name, it.purpose)).collect();
    (!purposes.is_empty()).then(|| format!("the process lacks {}", purposes.join(", ")))
}

/// Refuses options that cannot work.
fn check(options: &Options) -> Result<(), OpenError> {
    let refuse = |what: String, hint: &str| Err(OpenError::Unsupported { what, hint: hint.into() });
    if options.workers == 0 || options.workers > 1024 {
        return refuse(format!("{} workers", options.workers), "take between 1 and 1024");
    }
    if options.batch == 0 || options.frames_per_port < 4 * options.batch || options.frames_per_port > 1 << 20 {
        return refuse(
            format!("{} frames a port for batches of {}", options.frames_per_port, options.batch),
            "take at least four batches and at most 1048576 frames",
        );
    }
    Ok(())
}

/// AF_XDP, with a program that forwards if that is the `way` and the kernel takes one, and without it otherwise.
fn open_xdp_anyhow(
    interfaces: &[&Interface],
    options: &Options,
    way: Option<FastPathWay>,
    preparation: &mut Preparation,
    guard: &mut Guard,
    notes: &mut Vec<String>,
) -> Result<Vec<Ports>, Refusal> {
    let noted = notes.len();
    let opened = open_xdp(interfaces, &forwarding(options, way), preparation, guard, notes);
    let reason = match (&opened, way) {
        (Err(reason @ (Refusal::Failed(_) | Refusal::Unsupported(_))), Some(FastPathWay::Xdp)) => reason.to_string(),
        _ => return opened,
    };
    notes.truncate(noted);
    let opened = open_xdp(interfaces, &forwarding(options, None), preparation, guard, notes)?;
    warn!("the kernel forwards no connections by itself: {reason}");
    Ok(opened)
}

/// AF_XDP in the best mode that works.
fn open_xdp(
    interfaces: &[&Interface],
    options: &Options,
    preparation: &mut Preparation,
    guard: &mut Guard,
    notes: &mut Vec<String>,
) -> Result<Vec<Ports>, Refusal> {
    let mtu = interfaces.iter().map(|interface| interface.mtu()).max().unwrap_or(0);
    let layout = Layout {
        busy_poll: options.busy_poll,
        ..Layout::for_mtu(mtu, options.workers, options.frames_per_port, options.batch)?
    };
    let mut programs: Vec<AttachedProgram> = Vec::new();
    let mut prepared = std::mem::take(&mut preparation.programs).into_iter();
    for side in 0..interfaces.len() {
        let at = (side, prepared.next());
        let program = attach(interfaces, at, options, &layout, &programs, &mut guard.settings, notes)?;
        programs.push(program);
    }
    let mut memory = std::mem::take(&mut preparation.memory);
    let left = &mut preparation.left;
    if options.failure.as_ref().is_some_and(|plan| plan.on_failure != OnFailure::Closed) {
        // In generic mode the kernel sends as it sends everything.
        let sends =
            |(interface, program): &(&&Interface, &AttachedProgram)| !program.driver || interface.takes_redirected();
        let partners = programs.iter().cycle().skip(interfaces.len() / 2);
        for (interface, _) in interfaces.iter().zip(partners).filter(|it| !sends(it)) {
            let name = interface.name();
            warn!(
                "{name} takes no frame that the kernel sends past the box, so what is for {name} is lost while no worker takes frames; \
                 at the other end of a veth, `ethtool -K PEER gro on` mends it"
            );
        }
    }
    if programs.iter().any(AttachedProgram::forwards) {
        // Many drivers say whether they take redirected frames only now that a program is attached.
        let lacks =
            |(interface, program): &(&&Interface, &AttachedProgram)| program.driver && !interface.takes_redirected();
        match interfaces.iter().zip(&programs).find(lacks) {
            None => {
                notes.push("the kernel forwards established connections by itself, in the XDP program".into());
                let others = interfaces.iter().cycle().skip(1);
                programs.iter().zip(others).for_each(|(program, other)| program.forward_to(other));
            }
            Some((interface, _)) => {
                let name = interface.name();
                warn!(
                    "the kernel forwards no connections by itself: {name} takes no frame that an XDP program redirects; at the other end of a veth, \
                     `ethtool -K PEER gro on` mends it"
                );
                programs.iter_mut().for_each(AttachedProgram::leave_flows);
            }
        }
    }
    for (interface, program) in interfaces.iter().zip(&mut programs).filter(|(_, program)| program.answers_syns()) {
        // Only a veth tells before the program is attached, and loses what its other end does not take.
        if program.driver && interface.hides_tags() && !interface.takes_redirected() {
            let name = interface.name();
            warn!(
                "{name}: the workers answer all SYNs: the other end of this veth takes no frame from the kernel's program; `ethtool -K PEER gro on` there mends it"
            );
            program.leave_syns();
        }
    }
    let super_frames = interfaces.iter().zip(&programs).any(|(one, program)| one.has_super_frames(program.driver));
    let copying = Layout { super_frames, ..layout.clone() };
    // A socket that is taken over stays as it was bound.
    let copies = options.mode == Mode::Auto && left.iter().any(|left| xdp::fits(left, interfaces, false, &copying));
    let may_try =
        programs.iter().all(|program| program.driver) && matches!(options.mode, Mode::Auto | Mode::ZeroCopy) && !copies;
    if let Some(reason) = may_try.then(|| lack_of_zero_copy(interfaces)).flatten() {
        // To try it would take the memory of all frames, twice, and end the same.
        if options.mode == Mode::ZeroCopy {
            return Err(Refusal::Unsupported(format!("no zero copy: {reason}")));
        }
        notes.push(format!("no zero copy: {reason}"));
    } else if may_try {
        let parked = guard.settings.hardware_rings(interfaces);
        let frames = layout.frames_per_port.max(2 * parked + layout.batch);
        let larger = Layout { frames_per_port: frames, ..layout.clone() };
        match xdp::open(interfaces, &mut programs, true, &larger, &mut memory, left) {
            Ok(sets) => {
                give_back(memory);
                if frames > layout.frames_per_port {
                    notes.push(format!("{frames} frames a port, since the devices park up to {parked} in their rings"));
                }
                guard.programs.extend(programs);
                return Ok(sets);
            }
            Err(Refusal::Unsupported(reason)) if options.mode == Mode::Auto => {
                notes.push(format!("no zero copy: {reason}"));
            }
            Err(Refusal::Unsupported(reason)) => return Err(Refusal::Unsupported(format!("no zero copy: {reason}"))),
            Err(refusal) => return Err(refusal),
        }
    }
    let sets = xdp::open(interfaces, &mut programs, false, &copying, &mut memory, left)?;
    give_back(memory);
    guard.programs.extend(programs);
    Ok(sets)
}

/// Gives back memory that was made for a start and not needed, which takes milliseconds. Nobody waits for it.
fn give_back(memory: Vec<UmemMemory>) {
    if !memory.is_empty() {
        thread::spawn(move || drop(memory));
    }
}

/// Which driver says that it has no zero copy.
fn lack_of_zero_copy(interfaces: &[&Interface]) -> Option<String> {
    let lacks = |interface: &&&Interface| netdev::has_zero_copy(interface.index()) == Some(false);
    interfaces.iter().find(lacks).map(|interface| format!("the driver of {} has none", interface.name()))
}

/// Attaches the XDP program to one of the interfaces, in driver mode if that is wanted and works; the one that was loaded for it before, if it is the
/// same.
fn attach(
    interfaces: &[&Interface],
    (side, mut prepared): (usize, Option<LoadedProgram>),
    options: &Options,
    layout: &Layout,
    attached: &[AttachedProgram],
    settings: &mut Settings,
    notes: &mut Vec<String>,
) -> Result<AttachedProgram, Refusal> {
    let count = interfaces.len();
    let (interface, other) = (interfaces[side], interfaces[partner(side, count)]);
    let name = interface.name();
    let left = settings.left_program(interface.index());
    // What the machine's own stack gets goes on past a box that ends, by other means.
    let failure = options.failure.as_ref().filter(|_| !options.host);
    let first = attached.first().map(AttachedProgram::loaded);
    let mut syns = syn_plan(side, count, options);
    let mut new = |driver| {
        let mut new = |syns| {
            let sheds = is_shedding(side, count, options);
            let purpose = Purpose { is_wan: is_wan(side, count), sheds, failure, driver, syns };
            let prepared = prepared.take().filter(|it| it.is_for(interface, other, layout, purpose, first));
            let loaded = match prepared {
                Some(loaded) => loaded,
                None => {
                    let maps = LoadedMaps::load(interface, other, layout, purpose, side == 0)?;
                    LoadedProgram::load(maps, interface, first)?
                }
            };
            let mut note = |id| settings.note_program(interface.index(), id);
            AttachedProgram::new(loaded, interface, first, left, &mut note)
        };
        match new(syns) {
            Err(Refusal::Failed(reason)) if syns.take().is_some() => {
                warn!("{name}: the workers answer all SYNs, since the kernel refuses the program that would: {reason}");
                new(None)
            }
            result => result,
        }
    };
    // The veth pair before this machine's stack works in driver mode, and in no other: the kernel takes frames that a filter has redirected past
    // a generic program.
    let mode = if options.host && side == 0 { Mode::Driver } else { options.mode };
    if mode != Mode::Generic {
        match new(true) {
            Ok(program) => return Ok(program),
            Err(refusal @ (Refusal::Busy { .. } | Refusal::Limit(_) | Refusal::Descriptors(_))) => return Err(refusal),
            Err(reason) if mode == Mode::Auto => notes.push(format!("{name}: not in driver mode: {reason}")),
            Err(reason) => return Err(Refusal::Unsupported(format!("{name}: no driver mode: {reason}"))),
        }
    }
    new(false).map_err(|refusal| match refusal {
        Refusal::Busy { .. } | Refusal::Limit(_) | Refusal::Descriptors(_) => refusal,
        _ => Refusal::Unsupported(format!("{name}: no generic mode: {refusal}")),
    })
}

/// AF_PACKET, which works everywhere.
fn open_packet(
    interfaces: &[&Interface],
    options: &Options,
    guard: &mut Guard,
    notes: &mut Vec<String>,
) -> Result<Vec<Ports>, OpenError> {
    // A packet socket sends four bytes beyond the MTU and the Ethernet header, and those only for an outer 0x8100. The MTU stays as
    // the operator set it: changing it makes many links flap, and after a killed process it would rise with each start.
    for interface in interfaces {
        let (name, mtu) = (interface.name(), interface.mtu());
        notes.push(format!(
            "{name}: AF_PACKET sends a full-length frame with one tag of type 0x8100, not with another type or two tags; \
             if there are such, `ip link set dev {name} mtu {}` before the start",
            mtu + 8
        ));
        if interface.has_xdp() {
            warn!(
                "{name}: another program's XDP program is attached, and AF_PACKET sees only the frames that it passes"
            );
        }
    }
    let mut fast_path = guard.fast_path.take();
    // What the kernel forwards passes the queueing discipline, and what the worker sends later must not overtake it.
    let packet = PacketOptions {
        ring_frames: options.frames_per_port / 2,
        bypasses_qdisc: fast_path.is_none(),
        awaits_fast_path: fast_path.is_some(),
        ..PacketOptions::default()
    };
    let open = |interface: &&Interface| {
        let name = interface.name();
        PacketPort::open_queues(name, options.workers, &packet).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: name.into() },
            _ => OpenError::Io { what: format!("{name}: AF_PACKET"), source },
        })
    };
    let longest = interfaces.iter().map(|interface| interface.max_frame()).max().unwrap_or(0);
    let mut sets: Vec<Ports> =
        (0..options.workers).map(|_| (Vec::new(), heap_pool(interfaces.len(), longest, options))).collect();
    let mut opened = thread::scope(|scope| {
        let threads: Vec<_> = interfaces.iter().map(|interface| scope.spawn(move || open(interface))).collect();
        let opened = threads.into_iter().map(|thread| thread.join().expect("a thread that opens does not panic"));
        opened.collect::<Result<Vec<_>, _>>()
    })?;
    if let Some(fast_path) = &mut fast_path {
        for (side, port) in
            opened.iter_mut().enumerate().flat_map(|(side, ports)| ports.iter_mut().map(move |port| (side, port)))
        {
            port.join(fast_path, side).map_err(|source| OpenError::Io { what: "the fast path".into(), source })?;
        }
        fast_path.take_over();
        notes.push("the kernel forwards established connections by itself, at tc".into());
    }
    guard.fast_path = fast_path;
    for queues in opened {
        for ((ports, _), port) in sets.iter_mut().zip(queues) {
            ports.push(Box::new(port));
        }
    }
    Ok(sets)
}

/// Claims the NICs among the ports of netmap. They are up then.
fn claim_nics(
    names: [(&str, netmap::Name<'_>); 2],
    options: &Options,
) -> Result<(Vec<Interface>, Settings), OpenError> {
    let located =
        names.iter().filter_map(|(_, name)| name.interface()).map(Interface::locate).collect::<Result<Vec<_>, _>>()?;
    let ports = names.map(|(written, _)| written);
    match <[Interface; 2]>::try_from(located) {
        Ok(both) => claim(&both, false, ports, options),
        Err(located) => {
            let Some(nic) = located.first() else { return Ok((Vec::new(), Settings::none())) };
            netdev::check(&[nic], options.force)?;
            let settings = Settings::claim(&[nic], &format!("the box between {} and {}", ports[0], ports[1]))?;
            Ok((vec![Interface::find(nic.name())?], settings))
        }
    }
}

/// The name of a port whose NIC, the next one of `nics`, may have been named by an alternative name, which netmap does not know.
fn by_own_name<'a>(name: netmap::Name<'a>, nics: &mut dyn Iterator<Item = &&'a Interface>) -> netmap::Name<'a> {
    match name {
        netmap::Name::Interface(given) => netmap::Name::Interface(nics.next().map_or(given, |nic| nic.name())),
        other => other,
    }
}

/// netmap, on NICs, switches and pipes.
fn open_netmap(names: [(&str, netmap::Name<'_>); 2], options: &Options) -> Result<Opened, OpenError> {
    if names[0].1 == names[1].1 {
        return Err(OpenError::SameInterface { interface: names[0].0.into() });
    }
    netmap::check(&names, options)?;
    let mut notes = Vec::new();
    let (nics, settings) = claim_nics(names, options)?;
    let nics: Vec<&Interface> = nics.iter().collect();
    let mut guard = Guard::of(settings);
    let said = guard.settings.announce_wait(&nics);
    guard.settings.detach_left_programs();
    let spread = guard.settings.prepare(&nics, options.workers, options.spread.as_ref(), &mut notes)?;
    let mut devices = nics.iter();
    let names = names.map(|(written, name)| (written, by_own_name(name, &mut devices)));
    let pairs = netmap::open(names, options, &mut notes)?;
    // A NIC that changes to netmap loses its link for a while.
    guard.settings.await_links(&nics, &options.stop, said, &mut notes);
    guard.settings.note();
    if let Some(Pair { lan, wan, .. }) = pairs.first() {
        for ((name, _), port) in names.iter().zip([lan, wan]) {
            let way = if port.capabilities().zero_copy { "frames change places" } else { "copying" };
            notes.push(format!("{name}: netmap, {way}, {} ring pair(s)", pairs.len()));
        }
    }
    for note in &notes {
        info!("{note}");
    }
    Ok(Opened { pairs, spread, guard, notes })
}

/// One netmap port, with frames that are copied to and from it.
fn open_netmap_alone((written, name): (&str, netmap::Name<'_>), options: &Options) -> Result<Alone, OpenError> {
    netmap::check(&[(written, name)], options)?;
    let mut notes = Vec::new();
    let (nic, settings) = name.interface().map(claim_alone).transpose()?.unzip();
    let nics: Vec<&Interface> = nic.iter().collect();
    let mut guard = Guard::of(settings.unwrap_or_else(Settings::none));
    let said = guard.settings.announce_wait(&nics);
    guard.settings.prepare(&nics, options.workers, None, &mut notes)?.ok();
    let ports = netmap::open_alone((written, by_own_name(name, &mut nics.iter())), options)?;
    guard.settings.await_links(&nics, &options.stop, said, &mut notes);
    notes.push(format!("{written}: netmap, copying, {} ring pair(s)", ports.len()));
    let longest = |port: &dyn Port| port.capabilities().max_frame;
    let sets = ports.into_iter().map(|port| {
        let pool = heap_pool(1, longest(&*port), options);
        (vec![port], pool)
    });
    Ok(Alone::of(sets.collect(), guard, notes))
}

/// A pool in ordinary memory for `ports` ports, whose buffers hold a frame of `longest` bytes and the growth of its headers.
fn heap_pool(ports: usize, longest: usize, options: &Options) -> Pool {
    let buffer = (HEADROOM + longest + 128).next_power_of_two().max(2048);
    let mut pool = Pool::heap(ports * options.frames_per_port, buffer, HEADROOM);
    pool.set_reserve(2 * options.batch);
    pool
}

/// A capture file for each port, and a note about it.
fn open_captures(specs: &[&str], options: &Options) -> Result<(Vec<Ports>, String), OpenError> {
    if options.workers != 1 {
        return Err(OpenError::Unsupported {
            what: format!("a capture file has one queue, not {}", options.workers),
            hint: "set the number of workers to 1".into(),
        });
    }
    let open = |spec: &&str| PcapPort::open(spec).map(|port| Box::new(port) as Box<dyn Port>);
    let ports = specs.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let longest = ports.iter().map(|port| port.capabilities().max_frame).max().unwrap_or(0);
    let pool = heap_pool(specs.len(), longest, options);
    let note = if specs.len() == 1 { "the port is a capture file" } else { "both ports are capture files" };
    Ok((vec![(ports, pool)], note.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_captures_are_opened_without_any_interface() {
        let path = std::env::temp_dir().join(format!("pktio-open-{}.pcapng", std::process::id()));
        let name = format!("pcap:out={}", path.display());
        let opened = open(&name, &name, &Options::default()).unwrap();
        assert_eq!(opened.pairs[0].lan.capabilities().backend, "pcap");
        assert!(opened.pairs[0].wan.is_exhausted());
        drop(opened);
        std::fs::remove_file(&path).unwrap();
        let error = open("pcap:/nowhere/x.pcap", &name, &Options::default()).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/x.pcap: "), "{error}");
        let error = open(&name, "lo", &Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
    }

    #[test]
    fn the_machines_own_stack_is_the_lan_port_of_a_nic_with_af_xdp() {
        for (lan, wan) in
            [("host", "host"), ("lo", "host"), ("host", "packet:lo"), ("host", "pcap:x"), ("host", "netmap:lo")]
        {
            let error = open(lan, wan, &Options::default()).unwrap_err();
            assert!(matches!(error, OpenError::Unsupported { .. }), "{lan} {wan}: {error}");
        }
        let error = open_alone("host", &Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
        let error = open("host", "lo", &Options::default()).unwrap_err();
        assert!(!matches!(error, OpenError::NotFound { .. }), "{error}");
    }

    #[test]
    fn members_are_as_many_on_both_sides_and_interfaces_of_the_kernel() {
        let nine = ["lo"; 9].join(",");
        for (lan, wan) in
            [("lo,lo", "lo"), ("lo,", "lo"), ("lo,vale0:1", "lo,lo"), ("xdp:lo,lo", "packet:lo,lo"), (&*nine, &*nine)]
        {
            let error = open(lan, wan, &Options::default()).unwrap_err();
            assert!(matches!(error, OpenError::Unsupported { .. }), "{lan} {wan}: {error}");
        }
        let error = open("lo,lo", "lo,lo", &Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::SameInterface { .. }), "{error}");
        let error = open("lo,", "lo,lo", &Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::Syntax { .. }), "{error}");
    }

    #[test]
    fn netmap_shares_frames_with_no_other_backend() {
        for (lan, wan) in [("netmap:eth0", "lo"), ("lo", "vale0:1"), ("netmap:eth0", "xdp:lo")] {
            let error = open(lan, wan, &Options::default()).unwrap_err();
            assert!(error.to_string().contains("netmap ports on both sides"), "{error}");
        }
        let error = open("vale0:1", "vale0:1", &Options::default()).unwrap_err();
        assert!(matches!(error, OpenError::SameInterface { .. }), "{error}");
    }

    #[test]
    fn options_that_cannot_work_are_refused_before_anything_is_touched() {
        for options in [
            Options { workers: 0, ..Options::default() },
            Options { frames_per_port: 64, batch: 64, ..Options::default() },
            Options { batch: 0, ..Options::default() },
        ] {
            let error = open("no-such-dev", "lo", &options).unwrap_err();
            assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
        }
    }

    #[test]
    fn a_missing_interface_is_named() {
        let error = open("no-such-dev", "lo", &Options::default()).unwrap_err();
        assert_eq!(error.to_string(), "there is no interface \"no-such-dev\"; `ip link` lists those there are");
    }
}
