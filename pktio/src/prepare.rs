//! What a start can make before it has the interfaces: XDP programs with their maps, verified, and the memory of the frames. It is most of the time of
//! a start, so a process that is to follow another makes it while the other still works.

use std::fmt;
use std::thread;

use tracing::debug;

use crate::left::LeftSockets;
use crate::names::{Asked, interface_of, members_of};
use crate::netdev::{self, Interface};
use crate::options::{FastPathWay, Mode, Options};
use crate::plan::{choose_fast_path, forwarding, is_shedding, is_wan, partner, raise_memory_limit, syn_plan};
use crate::xdp::{Layout, LoadedMaps, LoadedProgram, Purpose, Refusal, UmemMemory};

/// Programs and memory that [`open_prepared`](crate::open_prepared) takes if they are what it needs, and makes otherwise.
#[derive(Default)]
pub struct Preparation {
    /// Of the LAN's interfaces, then of the WAN's.
    pub(crate) programs: Vec<LoadedProgram>,
    /// Of each worker.
    pub(crate) memory: Vec<UmemMemory>,
    /// The sockets that a former process has left, to be taken as they are.
    pub left: Vec<LeftSockets>,
    /// The indexes of the interfaces, where all of them have been found fit to be ports.
    pub(crate) fit: Vec<u32>,
}

impl fmt::Debug for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (programs, memory) = (self.programs.len(), self.memory.len());
        f.debug_struct("Preparation").field("programs", &programs).field("memory", &memory).finish()
    }
}

/// Makes for these ports what takes nothing of their interfaces, which another process may have. What cannot be made is left to the opening, which
/// says why.
pub fn prepare(lan: &str, wan: &str, options: &Options) -> Preparation {
    let (mut devices, mut wants_xdp) = (Vec::new(), false);
    for name in members_of(lan).into_iter().chain(members_of(wan)) {
        match interface_of(name) {
            Ok(Some((device, asked))) if asked != Asked::Packet => {
                devices.push(device);
                wants_xdp |= asked == Asked::Xdp;
            }
            _ => return Preparation::default(),
        }
    }
    let way = locate(&devices).ok().and_then(|interfaces| {
        let interfaces: Vec<&Interface> = interfaces.iter().collect();
        let asked = if wants_xdp { Asked::Xdp } else { Asked::Best };
        choose_fast_path(&interfaces, asked, options).ok().flatten().map(|(way, _)| way)
    });
    // Which takes packet sockets.
    if way == Some(FastPathWay::Tc) {
        return Preparation { fit: fit(&devices, options).unwrap_or_default(), ..Preparation::default() };
    }
    let options = &forwarding(options, way);
    raise_memory_limit();
    let (programs, memory, fit) = thread::scope(|scope| {
        let memory = scope.spawn(|| memory(&devices, options));
        let fit = scope.spawn(|| fit(&devices, options));
        let programs = programs(&devices, options);
        let (memory, fit) = (memory.join(), fit.join());
        (programs, memory.expect("a thread that makes memory does not panic"), fit.expect("nor does one that looks"))
    });
    let or_none = |error: Refusal| debug!("nothing is prepared: {error}");
    Preparation {
        programs: programs.map_err(or_none).unwrap_or_default(),
        memory: memory.map_err(or_none).unwrap_or_default(),
        fit: fit.unwrap_or_default(),
        left: Vec::new(),
    }
}

/// The interfaces, if they are fit to be ports. To see whether the machine is reached by one takes long where it has room for many connections.
fn fit(devices: &[&str], options: &Options) -> Option<Vec<u32>> {
    let interfaces = locate(devices).ok()?;
    netdev::check(&interfaces.iter().collect::<Vec<_>>(), options.force).ok()?;
    Some(interfaces.iter().map(Interface::index).collect())
}

fn layout(interfaces: &[Interface], options: &Options) -> Result<Layout, Refusal> {
    let mtu = interfaces.iter().map(Interface::mtu).max().unwrap_or(0);
    Layout::for_mtu(mtu, options.workers, options.frames_per_port, options.batch)
}

fn locate(devices: &[&str]) -> Result<Vec<Interface>, Refusal> {
    let located = devices.iter().map(|device| Interface::locate(device));
    located.collect::<Result<_, _>>().map_err(|error| Refusal::Failed(error.to_string()))
}

fn memory(devices: &[&str], options: &Options) -> Result<Vec<UmemMemory>, Refusal> {
    let layout = layout(&locate(devices)?, options)?;
    let frames = devices.len() * layout.frames_per_port;
    (0..layout.workers).map(|_| UmemMemory::new(frames, layout.chunk)).collect()
}

fn programs(devices: &[&str], options: &Options) -> Result<Vec<LoadedProgram>, Refusal> {
    let interfaces = locate(devices)?;
    let layout = layout(&interfaces, options)?;
    let count = interfaces.len();
    let purpose = |side| Purpose {
        is_wan: is_wan(side, count),
        sheds: is_shedding(side, count, options),
        failure: options.failure.as_ref(),
        driver: options.mode != Mode::Generic,
        syns: syn_plan(side, count, options),
    };
    // To make the maps takes most of the time.
    let maps = thread::scope(|scope| {
        let load = |side: usize| {
            LoadedMaps::load(&interfaces[side], &interfaces[partner(side, count)], &layout, purpose(side), side == 0)
        };
        let threads: Vec<_> = (0..count).map(|side| scope.spawn(move || load(side))).collect();
        let maps = threads.into_iter().map(|thread| thread.join().expect("a thread that makes maps does not panic"));
        maps.collect::<Result<Vec<_>, _>>()
    })?;
    let mut programs: Vec<LoadedProgram> = Vec::new();
    for (maps, interface) in maps.into_iter().zip(&interfaces) {
        let program = LoadedProgram::load(maps, interface, programs.first())?;
        programs.push(program);
    }
    Ok(programs)
}
