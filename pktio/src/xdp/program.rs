//! The XDP program: loaded, attached to an interface, and told which sockets to redirect to.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use aya::maps::{DevMap, Map, MapData, MapError, PerCpuArray, RingBuf, XskMap};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use aya_obj::Object;

use super::failure::{self, LINE, Place, ServiceMap, XdpFailureSwitch};
use super::forward::{self, Forwarded, ForwardedThere, MAP};
use super::layout::Layout;
use super::refusal::{Refusal, chain, descriptors_ran_out, os_error};
use super::samples::ShedSamples;
use super::shed::{ShedMaps, random_key};
use super::syns::{self, SynMemory};
use super::tags::{instruction, prelude};
use crate::bpf::{self, How};
use crate::failure::{FailurePlan, OnFailure};
use crate::netdev::{Attachment, FORWARDED_BEYOND_MTU, Interface, is_attached_as};
use crate::options::SynPlan;
use crate::patience::patiently;
use crate::pins::{KeptFlows, Pins};
use tracing::debug;

/// The XDP program, compiled by the build script. Aligned, since the loader reads ELF headers in place.
static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/redirect.o"));

/// The least ring that the kernel makes, in bytes: it rounds up to pages.
const PAGE: u32 = 4096;

/// What a program is for.
#[derive(Clone, Copy)]
pub(crate) struct Purpose<'a> {
    /// Whether it is that of the WAN port.
    pub is_wan: bool,
    /// Whether it has a shed filter.
    pub sheds: bool,
    /// What it does with frames that no worker takes.
    pub failure: Option<&'a FailurePlan>,
    /// Whether it is in driver mode.
    pub driver: bool,
    /// What it answers SYNs by, if it does.
    pub syns: Option<SynPlan>,
}

/// What a program is made for: one that was loaded before is taken if it is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    interface: u32,
    other: u32,
    workers: usize,
    multi_buffer: bool,
    is_wan: bool,
    sheds: bool,
    driver: bool,
    failure: Option<FailurePlan>,
    syns: Option<SynPlan>,
}

impl Made {
    fn of(interface: &Interface, other: &Interface, layout: &Layout, purpose: Purpose<'_>) -> Made {
        let Purpose { is_wan, sheds, failure, driver, syns } = purpose;
        Made {
            interface: interface.index(),
            other: other.index(),
            workers: layout.workers,
            multi_buffer: layout.multi_buffer,
            is_wan,
            sheds,
            driver,
            failure: failure.cloned(),
            syns,
        }
    }
}

/// The maps of a program, as the library has loaded them.
pub(crate) struct LoadedMaps {
    made: Made,
    key: [u64; 2],
    ebpf: Ebpf,
}

/// A program with its maps, on no interface yet. To load it takes most of the time of a start, and nothing of the interface, so a process that is to
/// follow another does it before.
pub(crate) struct LoadedProgram {
    made: Made,
    ebpf: Ebpf,
    program: OwnedFd,
    /// What it is known by, and the first program of the box, whose maps it shares, if this is another.
    id: u32,
    first: Option<u32>,
    /// It puts tags into frames.
    has_tags: bool,
    /// How many frames found no socket: [`Unclaimed`].
    unclaimed: Unclaimed,
    /// The maps of its shed filter, if it has one.
    shed: Option<Arc<ShedMaps>>,
    /// What the programs of both ports and the workers tell each other, where they do the part of one that fails.
    service: Option<Arc<ServiceMap>>,
    /// What the programs of both ports have forwarded by themselves, if they do.
    forwarded: Option<Forwarded>,
}

/// The XDP program of one interface; dropping this detaches it.
pub(crate) struct AttachedProgram {
    /// The program runs in driver mode.
    pub driver: bool,
    loaded: LoadedProgram,
    /// `None` while the program of a former process is there, whose place this one is to take.
    attachment: Option<Attachment>,
    /// The number of that program.
    left: Option<u32>,
    /// Its answers to SYNs would be lost, so it is to give none.
    leaves_syns: bool,
}

impl fmt::Debug for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedProgram").field("driver", &self.driver).finish_non_exhaustive()
    }
}

/// Which maps of flows are a program's own, and not those of the first program of the box: that of flows, and that of the entries of flows that are handed down.
pub(super) enum OwnMaps {
    /// None.
    None,
    /// Both, empty.
    New,
    /// Both; that of the entries a former process has left there.
    Former(PathBuf),
}

/// Loads the maps, and the program's text with what it has to know, for so many workers. `own` says which maps of flows are
/// its own. `syns` is what it answers SYNs
/// by, if it does, and whether its answers leave by a redirect to the port itself.
///
/// # Errors
///
/// The library's.
pub(super) fn loader(
    workers: usize,
    plan: Option<&FailurePlan>,
    is_wan: bool,
    key: [u64; 2],
    sheds: bool,
    own: OwnMaps,
    syns: Option<(SynPlan, bool)>,
) -> Result<Ebpf, EbpfError> {
    let queues = number(workers.max(1));
    let flow_lines = number(plan.map_or(0, |plan| 8 * plan.flow_words / LINE));
    let (flow_key0, flow_key1) = plan.map_or((0, 0), |plan| plan.flow_keys);
    let on_failure = failure::number(plan.map_or(OnFailure::Closed, |plan| plan.on_failure));
    let entries = number(plan.map_or(0, |plan| 8 * plan.forward_words / forward::BUCKET));
    let forwards = u32::from(entries > 0);
    let (patience, shedding, is_wan) = (failure::patience(plan), u32::from(sheds), u32::from(is_wan));
    let answers = u32::from(syns.is_some());
    let by_redirect = u32::from(syns.is_some_and(|(_, by_redirect)| by_redirect));
    let [blocks, pairs, buckets] = syns::sizes(syns.map(|(plan, _)| plan));
    let mut loader = EbpfLoader::new();
    // Why it refuses a program, and not every state it went through: that takes megabytes, and the library tries again and again with
    // more room for it, for minutes.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let has_flows = !matches!(own, OwnMaps::None);
    if let OwnMaps::Former(path) = own {
        loader.map_pin_path(MAP, path);
    }
    if !sheds {
        // The program does not look at them then.
        loader.map_max_entries("proved", 1).map_max_entries("recent", 1).map_max_entries("samples", PAGE);
    }
    loader
        .override_global("owned_queues", &queues, true)
        .override_global("sheds", &shedding, true)
        .override_global("key0", &key[0], true)
        .override_global("key1", &key[1], true)
        .override_global("on_failure", &on_failure, true)
        .override_global("patience", &patience, true)
        .override_global("is_wan", &is_wan, true)
        .override_global("flow_key0", &flow_key0, true)
        .override_global("flow_key1", &flow_key1, true)
        .override_global("flow_lines", &flow_lines, true)
        .override_global("forwards", &forwards, true)
        .override_global("down_buckets", &entries.max(1), true)
        .map_max_entries(MAP, if has_flows { entries.max(1) } else { 1 })
        .map_max_entries("forwarded", 2 * queues)
        .override_global("answers_syns", &answers, true)
        .override_global("answers_by_redirect", &by_redirect, true)
        .override_global("blocks_each", &blocks, true)
        .override_global("buckets_each", &buckets, true)
        .map_max_entries("answers", queues * blocks)
        .map_max_entries("noted", queues * pairs)
        .map_max_entries("buckets", queues * buckets)
        .map_max_entries("control", queues)
        .map_max_entries("sockets", queues)
        .map_max_entries("service", 2 * queues)
        .map_max_entries("flows", if has_flows { (queues * flow_lines).max(1) } else { 1 })
        .load(PROGRAM)
}

/// What the kernel takes as 32 bits.
fn number(n: usize) -> u32 {
    u32::try_from(n).expect("a 32-bit number")
}

fn failed(error: impl Error + 'static) -> Refusal {
    Refusal::failed(error)
}

impl LoadedMaps {
    /// Loads the maps of the program for `interface`. The `other` port is where frames go that no worker takes and that pass. Of the programs of one
    /// box the first has the map of flows for all.
    ///
    /// # Errors
    ///
    /// The error of the kernel or of the library.
    pub(crate) fn load(
        interface: &Interface,
        other: &Interface,
        layout: &Layout,
        purpose: Purpose<'_>,
        is_first: bool,
    ) -> Result<LoadedMaps, Refusal> {
        let Purpose { is_wan, sheds, failure, driver, syns } = purpose;
        let key = if sheds { random_key().map_err(failed)? } else { [0; 2] };
        // Without descriptors the library takes the kernel for an old one, and asks for maps in ways that are invalid.
        let former = failure.filter(|plan| is_first && plan.forward_words > 0).and_then(|plan| {
            let ports = if is_wan { [other, interface] } else { [interface, other] };
            Pins::of(ports).ok()?.former_map(number(plan.forward_words * 8 / forward::BUCKET))
        });
        let own = match (is_first, former) {
            (false, _) => OwnMaps::None,
            (true, None) => OwnMaps::New,
            (true, Some(path)) => OwnMaps::Former(path),
        };
        let mut ebpf = loader(
            layout.workers,
            failure,
            is_wan,
            key,
            sheds,
            own,
            syns.map(|plan| (plan, driver && interface.hides_tags())),
        )
        .map_err(|error| descriptors_ran_out().map_or_else(|| failed(error), Refusal::Descriptors))?;
        if failure.is_some_and(|plan| plan.on_failure != OnFailure::Closed || plan.forward_words > 0) {
            let map = ebpf.map_mut("other_port").ok_or_else(|| Refusal::Failed("the program lacks its map".into()))?;
            let mut map = DevMap::try_from(map).map_err(failed)?;
            map.set(0, other.index(), None, 0).map_err(failed)?;
        }
        if syns.is_some() {
            let map = ebpf.map_mut("own_port").ok_or_else(|| Refusal::Failed("the program lacks its map".into()))?;
            let mut map = DevMap::try_from(map).map_err(failed)?;
            map.set(0, interface.index(), None, 0).map_err(failed)?;
        }
        Ok(LoadedMaps { made: Made::of(interface, other, layout, purpose), key, ebpf })
    }
}

impl LoadedProgram {
    /// Loads the program over these maps of its own, and those that it shares with the `first` program of the box.
    ///
    /// # Errors
    ///
    /// The error of the kernel or of the library.
    pub(crate) fn load(
        maps: LoadedMaps,
        interface: &Interface,
        first: Option<&LoadedProgram>,
    ) -> Result<LoadedProgram, Refusal> {
        let LoadedMaps { made, key, mut ebpf } = maps;
        let shared = first.map(|first| &first.ebpf);
        let tagged = match made.driver && interface.hides_tags() {
            true => text(&ebpf, &made, shared)
                .and_then(|text| {
                    let how = How { has_frags: made.multi_buffer, bound_to: Some(made.interface) };
                    let text = [&prelude().map_err(failed)?[..], &text].concat();
                    bpf::load_xdp(&text, name(&made), how).map_err(failed)
                })
                .inspect_err(|error| debug!("{}: tags beside the frames are lost: {error}", interface.name()))
                .ok(),
            false => None,
        };
        let has_tags = tagged.is_some();
        let program = tagged.map_or_else(|| plain(&ebpf, &made, shared), Ok)?;
        let shed = match made.sheds {
            true => Some(Arc::new(ShedMaps::of(&ebpf, made.workers, key).map_err(failed)?)),
            false => None,
        };
        let service = match (&made.failure, first) {
            (None, _) => None,
            (Some(_), Some(first)) => first.service.clone(),
            (Some(_), None) => Some(Arc::new(ServiceMap::of(&ebpf, made.workers).map_err(failed)?)),
        };
        let id = bpf::id_of(program.as_fd()).map_err(failed)?;
        let forwarded = match (made.failure.as_ref().filter(|plan| plan.forward_words > 0), first) {
            (None, _) => None,
            (Some(_), Some(first)) => first.forwarded,
            (Some(_), None) => Some(Forwarded::of(&ebpf, made.workers).map_err(failed)?),
        };
        let first = first.map(|first| first.id);
        let unclaimed = Unclaimed::take(&mut ebpf).map_err(failed)?;
        Ok(LoadedProgram { made, ebpf, id, first, program, has_tags, unclaimed, shed, service, forwarded })
    }

    /// Whether it is what would be loaded for these, over the maps of the `first` program of the box.
    pub(crate) fn is_for(
        &self,
        interface: &Interface,
        other: &Interface,
        layout: &Layout,
        purpose: Purpose<'_>,
        first: Option<&LoadedProgram>,
    ) -> bool {
        self.made == Made::of(interface, other, layout, purpose) && self.first == first.map(|first| first.id)
    }
}

/// The name of the program.
fn name(made: &Made) -> &'static str {
    if made.multi_buffer { "redirect_frags" } else { "redirect" }
}

fn text(ebpf: &Ebpf, made: &Made, shared: Option<&Ebpf>) -> Result<Vec<u64>, Refusal> {
    instructions(ebpf, name(made), shared.map(|first| (first, &SHARED[..])))
        .map_err(|error| Refusal::Failed(chain(&*error)))
}

/// Loads the program that does not ask for tags.
fn plain(ebpf: &Ebpf, made: &Made, shared: Option<&Ebpf>) -> Result<OwnedFd, Refusal> {
    let how = How { has_frags: made.multi_buffer, bound_to: None };
    bpf::load_xdp(&text(ebpf, made, shared)?, name(made), how).map_err(failed)
}

impl AttachedProgram {
    /// Attaches a program to its interface, in driver mode or in generic mode. Where a former process has `left` one in the same mode, that one stays
    /// until [`AttachedProgram::replace`]. `first` is the first program of the box, if this is another. `note` is told the number of the program before
    /// it is attached.
    ///
    /// # Errors
    ///
    /// The error of the kernel or of the library.
    pub(crate) fn new(
        mut loaded: LoadedProgram,
        interface: &Interface,
        first: Option<&LoadedProgram>,
        left: Option<u32>,
        note: &mut dyn FnMut(u32),
    ) -> Result<AttachedProgram, Refusal> {
        let driver = loaded.made.driver;
        let is_watched = loaded.made.failure.is_some();
        if is_watched && left.is_some_and(|left| is_attached_as(interface.index(), left, driver)) {
            return Ok(AttachedProgram { driver, loaded, attachment: None, left, leaves_syns: false });
        }
        let mut attach = |program: BorrowedFd<'_>| {
            if is_watched {
                note(bpf::id_of(program)?);
            }
            attach_patiently(interface.index(), || match is_watched {
                true => Attachment::by_netlink(program, interface.index(), driver, left),
                false => Attachment::by_link(program, interface.index(), driver),
            })
        };
        let attachment = match attach(loaded.program.as_fd()) {
            Err(error) if loaded.has_tags => {
                debug!("{}: tags beside the frames are lost: {error}", interface.name());
                loaded.program = plain(&loaded.ebpf, &loaded.made, first.map(|first| &first.ebpf))?;
                loaded.has_tags = false;
                attach(loaded.program.as_fd())
            }
            result => result,
        };
        let attachment = attachment.map_err(|error| attach_refusal(&error, interface))?;
        Ok(AttachedProgram { driver, loaded, attachment: Some(attachment), left: None, leaves_syns: false })
    }

    /// Takes the place of the program that a former process has left, at once and without a gap. `note` is told the number of this one and of its
    /// interface before.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn replace(&mut self, note: &mut dyn FnMut(u32, u32)) -> io::Result<()> {
        if self.attachment.is_none() {
            let (index, program) = (self.loaded.made.interface, self.loaded.program.as_fd());
            note(index, bpf::id_of(program)?);
            let attachment =
                attach_patiently(index, || Attachment::by_netlink(program, index, self.driver, self.left))?;
            self.attachment = Some(attachment);
        }
        Ok(())
    }

    /// The program as it was loaded.
    pub(crate) fn loaded(&self) -> &LoadedProgram {
        &self.loaded
    }

    /// Whether tags that the other end hands over beside its frames are lost.
    pub(crate) fn loses_tags(&self, interface: &Interface) -> bool {
        interface.hides_tags() && !self.loaded.has_tags
    }

    /// Whether it may stay on the interface when the process has ended.
    pub(crate) fn stays(&self) -> bool {
        self.loaded.made.failure.is_some()
    }

    /// Leaves the program on the interface when this is dropped, for a successor.
    pub(crate) fn keep(&mut self) {
        self.attachment.iter_mut().for_each(Attachment::keep);
    }

    /// The maps of the shed filter, if the program was loaded with one.
    pub(super) fn shed_maps(&self) -> Option<&Arc<ShedMaps>> {
        self.loaded.shed.as_ref()
    }

    /// What the program and the worker of this queue tell each other, if it does the part of one that fails. The first member of a port tells what
    /// happened.
    pub(super) fn failure_switch(&self, queue: u32, is_first: bool) -> Option<XdpFailureSwitch> {
        let place = Place { queue, is_wan: self.loaded.made.is_wan };
        let is_watched = failure::patience(self.loaded.made.failure.as_ref()) != 0;
        self.loaded.service.as_ref().map(|map| XdpFailureSwitch::new(Arc::clone(map), place, is_first, is_watched))
    }

    /// Each worker's part of the map of flows; none if the program knows no flows.
    pub(crate) fn flow_maps(&self, workers: usize, words: usize) -> io::Result<Vec<&'static [AtomicU64]>> {
        if self.loaded.service.is_none() {
            return Ok(Vec::new());
        }
        failure::map_flows(&self.loaded.ebpf, workers, words)
    }

    /// Whether it forwards connections by itself that workers hand down.
    pub(crate) fn forwards(&self) -> bool {
        self.loaded.forwarded.is_some()
    }

    /// Lets it forward frames as long as the `other` port sends them, if it forwards any.
    pub(crate) fn forward_to(&self, other: &Interface) {
        if let Some(forwarded) = self.loaded.forwarded {
            let longest = (other.mtu() + FORWARDED_BEYOND_MTU) as u64;
            let in_pieces = if !self.driver || other.takes_redirected_pieces() { longest } else { 0 };
            forwarded.set_longest(self.loaded.made.is_wan, [longest, in_pieces]);
        }
    }

    /// Nobody is given the words of its entries, so that it forwards nothing.
    pub(crate) fn leave_flows(&mut self) {
        self.loaded.forwarded = None;
    }

    /// The words of its entries.
    pub(crate) fn hand_down_words(&self) -> io::Result<&'static [AtomicU64]> {
        forward::entries(&self.loaded.ebpf)
    }

    /// Leaves the entries to what outlives the process.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn keep_flows(&self, pins: Pins) -> Result<KeptFlows, Box<dyn Error>> {
        KeptFlows::new(pins, &self.loaded.ebpf, forward::entries(&self.loaded.ebpf)?)
    }

    /// What it forwards past the worker of this queue, if it does.
    pub(super) fn forwarded(&self, queue: u32) -> Option<ForwardedThere> {
        let place = Place { queue, is_wan: self.loaded.made.is_wan };
        self.loaded.forwarded.map(|forwarded| forwarded.of_place(place))
    }

    /// Whether it answers SYNs where a worker says how.
    pub(crate) fn answers_syns(&self) -> bool {
        self.loaded.made.syns.is_some() && !self.leaves_syns
    }

    /// From now on nobody is given the memory that it answers SYNs by, so that it answers none.
    pub(crate) fn leave_syns(&mut self) {
        self.leaves_syns = true;
    }

    /// The memory of each worker that it answers SYNs by; none if it does not.
    pub(crate) fn syn_memories(&self, workers: usize) -> io::Result<Vec<SynMemory>> {
        let plan = self.loaded.made.syns.filter(|_| !self.leaves_syns);
        plan.map_or(Ok(Vec::new()), |plan| syns::map(&self.loaded.ebpf, workers, plan))
    }

    /// The samples of the SYNs that the shed filter drops, the first time.
    pub(crate) fn take_shed_samples(&mut self) -> Option<ShedSamples> {
        let maps = self.loaded.shed.as_ref()?;
        let ring = RingBuf::try_from(self.loaded.ebpf.take_map("samples")?);
        ring.map(|ring| ShedSamples::new(ring, Arc::clone(maps)))
            .inspect_err(|error| debug!("what is shed is not sampled: {error}"))
            .ok()
    }

    /// Redirects the frames of `queue` to the socket `fd`.
    pub(super) fn redirect(&mut self, queue: u32, fd: RawFd) -> Result<(), String> {
        let map = self.loaded.ebpf.map_mut("sockets").ok_or("the program lacks its map")?;
        let mut map = XskMap::try_from(map).map_err(|e| chain(&e))?;
        map.set(queue, fd, 0).map_err(|e| chain(&e))
    }

    /// The frames that had no socket since the program was loaded.
    pub(crate) fn unclaimed(&self) -> &Unclaimed {
        &self.loaded.unclaimed
    }
}

/// Counts the frames for which a program found no socket.
#[derive(Clone)]
pub(crate) struct Unclaimed(Arc<PerCpuArray<MapData, u64>>);

impl Unclaimed {
    /// Takes the map out of those of its program.
    fn take(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let map = ebpf.take_map("unclaimed").ok_or(MapError::InvalidName { name: "unclaimed".into() })?;
        Ok(Self(Arc::new(PerCpuArray::try_from(map)?)))
    }

    fn count(&self, index: u32) -> u64 {
        self.0.get(&index, 0).map_or(0, |counts| counts.iter().sum())
    }

    /// Those that came on a queue that no worker serves.
    pub(crate) fn unserved(&self) -> u64 {
        self.count(0)
    }

    /// Those that came to a worker's queue before its socket was there, or after.
    pub(crate) fn early_or_late(&self) -> u64 {
        self.count(1)
    }
}

/// The descriptor of a map.
fn fd_of<'a>(ebpf: &'a Ebpf, name: &str) -> Option<BorrowedFd<'a>> {
    Some(match ebpf.map(name)? {
        Map::Array(data) | Map::PerCpuArray(data) | Map::XskMap(data) | Map::DevMap(data) | Map::RingBuf(data) => {
            data.fd().as_fd()
        }
        _ => return None,
    })
}

/// The maps that the programs of both ports share.
pub(super) const SHARED: [&str; 4] = ["flows", "service", MAP, "forwarded"];

/// The instructions of the program of this name, over the maps of `ebpf`, but for those of these names that it shares with another object.
///
/// The library loads a program only as it is compiled, and with maps of its own.
pub(super) fn instructions(
    ebpf: &Ebpf,
    name: &str,
    shared: Option<(&Ebpf, &[&str])>,
) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut object = Object::parse(PROGRAM)?;
    let maps = std::mem::take(&mut object.maps);
    let fds = maps.iter().map(|(name, map)| {
        let owner = shared.filter(|(_, names)| names.contains(&name.as_str())).map_or(ebpf, |(other, _)| other);
        let fd = fd_of(owner, name).ok_or("the program lacks its map")?;
        Ok((name.as_str(), fd.as_raw_fd(), map))
    });
    let fds = fds.collect::<Result<Vec<_>, &str>>()?;
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(fds.into_iter(), &sections)?;
    object.relocate_calls(&sections)?;
    let program = object.programs.get(name).ok_or("the program is missing")?;
    let function = object.functions.get(&program.function_key()).ok_or("the program is missing")?;
    let one = |it: &aya_obj::generated::bpf_insn| instruction(it.code, it.dst_reg(), it.src_reg(), it.off, it.imm);
    Ok(function.instructions.iter().map(one).collect())
}

/// Attaches a program to an interface. That of a process that has just ended may still be attached for a moment: in the same mode (`EBUSY`) or in the
/// other one (`EEXIST`).
pub(super) fn attach_patiently<T>(interface: u32, attach: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let is_held = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
    patiently(&format!("the XDP hook of interface {interface}"), attach, is_held)
}

fn attach_refusal(error: &(dyn Error + 'static), interface: &Interface) -> Refusal {
    let name = interface.name();
    match os_error(error) {
        Some(libc::EBUSY | libc::EEXIST) => Refusal::Busy {
            what: format!("another XDP program is attached to {name}"),
            hint: format!("end the process that did it, or detach it with `ip link set dev {name} xdp off`"),
        },
        Some(libc::EOPNOTSUPP) => Refusal::Unsupported("the driver has no XDP".into()),
        Some(libc::ERANGE) => Refusal::Unsupported(format!("the driver has no XDP for an MTU of {}", interface.mtu())),
        Some(libc::ENOSPC) => Refusal::Unsupported("the driver has too few queues for XDP".into()),
        Some(code @ (libc::EMFILE | libc::ENFILE)) => Refusal::Descriptors(std::io::Error::from_raw_os_error(code)),
        _ => Refusal::Failed(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::shed::ShedLevel;
    use aya::programs::{TestRun, TestRunOptions, Xdp};

    /// The program as the WAN port loads it, not attached to an interface. Loading it takes root.
    fn program() -> (Ebpf, ShedMaps) {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let mut ebpf = loader(1, None, true, key, true, OwnMaps::New, None).expect("the program is sound");
        let maps = ShedMaps::of(&ebpf, 1, key).expect("the maps can be mapped");
        let program: &mut Xdp = ebpf.program_mut("redirect").expect("it is there").try_into().expect("it is XDP");
        program.load().expect("the verifier accepts it");
        (ebpf, maps)
    }

    /// A frame's first bytes: addresses, tags, and an IPv4 segment with `options` bytes of IP options.
    fn v4(tags: &[u16], options: usize, source: [u8; 4], seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        tags.iter().for_each(|tag| frame.extend([(tag >> 8) as u8, *tag as u8, 0, 7]));
        frame.extend([8, 0, 0x45 + (options / 4) as u8, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([&source[..], &[10, 0, 0, 1]].concat());
        frame.resize(frame.len() + options, 1);
        frame.extend(tcp(seq, flags));
        frame
    }

    /// An IPv6 segment behind these extension headers.
    fn v6(headers: &[u8], source: u8, seq: u32, flags: u8) -> Vec<u8> {
        let mut frame = vec![2; 12];
        let next = *headers.first().unwrap_or(&6);
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 60, next, 64]);
        frame.extend([[0x20; 16], [0x21; 16]].concat());
        frame[14 + 8 + 15] = source;
        for at in 0..headers.len() {
            frame.extend([*headers.get(at + 1).unwrap_or(&6), 1]);
            frame.extend([0; 14]);
        }
        frame.extend(tcp(seq, flags));
        frame
    }

    fn tcp(seq: u32, flags: u8) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0, 80];
        tcp.extend(seq.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp
    }

    const SYN: u8 = 2;

    /// The SYNs among these frames that the program dropped: fresh ones and repeated ones.
    fn dropped(ebpf: &Ebpf, maps: &ShedMaps, frames: &[Vec<u8>]) -> (u64, u64) {
        let before = maps.dropped(0);
        let program: &Xdp = ebpf.program("redirect").expect("it is there").try_into().expect("it is XDP");
        for frame in frames {
            let options = TestRunOptions { data_in: Some(frame), repeat: 1, ..TestRunOptions::default() };
            program.test_run(options).expect("it can be run");
        }
        let after = maps.dropped(0);
        (after[0] - before[0], after[1] - before[1])
    }

    #[test]
    fn the_verifier_is_soon_done_with_the_program() {
        // With everything that the program of a WAN port can have to do.
        let plan = FailurePlan {
            on_failure: OnFailure::Open,
            flow_keys: (1, 2),
            flow_words: 8 * LINE / 8,
            forward_words: forward::BUCKET / 8,
        };
        let syns = SynPlan { words: [64 * 32, 64 * 16, 64 * 2] };
        for name in ["redirect", "redirect_frags"] {
            let syns = Some((syns, true));
            let mut ebpf =
                loader(1, Some(&plan), true, [1, 2], true, OwnMaps::New, syns).expect("the program is sound");
            let program: &mut Xdp = ebpf.program_mut(name).expect("it is there").try_into().expect("it is XDP");
            program.load().expect("the verifier accepts it");
            let information = program.info().expect("the kernel has it");
            // A start waits for it: a million instructions, which is also the kernel's limit, took seconds.
            let verified = information.verified_instruction_count().expect("known since Linux 5.16");
            println!("{name}: {verified} instructions");
            assert!(verified < 120_000, "{verified} instructions");
        }
    }

    #[test]
    fn the_program_drops_syns_and_nothing_else() {
        let (ebpf, maps) = program();
        let syns = [
            v4(&[], 0, [192, 0, 2, 1], 1, SYN),
            v4(&[], 40, [192, 0, 2, 1], 2, SYN),
            v4(&[0x8100], 0, [192, 0, 2, 1], 3, SYN),
            v4(&[0x88a8, 0x8100], 8, [192, 0, 2, 1], 4, SYN),
            // An ECN-setup SYN is a SYN as well.
            v4(&[], 0, [192, 0, 2, 1], 5, SYN | 0xc0),
            v6(&[], 1, 6, SYN),
            v6(&[0, 60, 43], 1, 7, SYN),
        ];
        assert_eq!(dropped(&ebpf, &maps, &syns), (0, 0), "shedding is off");
        maps.set_level(0, ShedLevel::Fresh(0));
        assert_eq!(dropped(&ebpf, &maps, &syns), (syns.len() as u64, 0));

        let mut others: Vec<Vec<u8>> =
            [0x10, 0x12, 0x04, 0x11, 0x18, 0x03, 0x06, 0].map(|flags| v4(&[], 0, [192, 0, 2, 1], 9, flags)).into();
        others.push(v4(&[0x8100, 0x8100, 0x8100], 0, [192, 0, 2, 1], 9, SYN));
        others.push(v6(&[0, 60, 43, 60], 1, 9, SYN));
        others.push(v6(&[51], 1, 9, SYN));
        let mut udp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        udp[23] = 17;
        let mut later = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        later[21] = 1;
        let mut arp = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        arp[13] = 6;
        let mut short = v4(&[], 0, [192, 0, 2, 1], 9, SYN);
        short[14] = 0x44;
        others.extend([udp, later, arp, short]);
        assert_eq!(dropped(&ebpf, &maps, &others), (0, 0));
    }

    #[test]
    fn dropped_syns_are_sampled_with_their_addresses_and_how_many_they_stand_for() {
        let (mut ebpf, maps) = program();
        let maps = Arc::new(maps);
        maps.set_level(0, ShedLevel::Fresh(0));
        let ring = RingBuf::try_from(ebpf.take_map("samples").expect("it is there")).expect("it can be mapped");
        let mut samples = ShedSamples::new(ring, Arc::clone(&maps));
        let read = |samples: &mut ShedSamples| {
            let mut all = Vec::new();
            samples.read(|sample| all.push(sample));
            all
        };
        maps.set_every(1);
        let syns = [v4(&[7], 0, [192, 0, 2, 1], 1, SYN), v6(&[], 1, 6, SYN), v4(&[], 0, [192, 0, 2, 9], 9, 0x10)];
        assert_eq!(dropped(&ebpf, &maps, &syns), (1, 0), "an unknown type, a SYN, and an ACK");
        let syns = [v4(&[0x8100], 0, [192, 0, 2, 1], 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &syns), (1, 0));
        let got = read(&mut samples);
        let mut six = [0x20; 16];
        six[15] = 1;
        let mapped = |address: [u8; 4]| std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets();
        let sample = |source, destination| crate::shed::ShedSample {
            source,
            destination,
            source_port: 40_000,
            destination_port: 80,
            stands_for: 1,
        };
        assert_eq!(got, [sample(six, [0x21; 16]), sample(mapped([192, 0, 2, 1]), mapped([10, 0, 0, 1]))]);

        // One in eight, and a ring that is full takes no more and costs nobody anything.
        maps.set_every(8);
        let many: Vec<Vec<u8>> = (0..2000).map(|n| v4(&[], 0, [192, 0, 2, 1], 100 + n, SYN)).collect();
        assert_eq!(dropped(&ebpf, &maps, &many).0, 2000);
        let got = read(&mut samples);
        assert!((150..350).contains(&got.len()) && got.iter().all(|one| one.stands_for == 8), "{}", got.len());
        maps.set_every(1);
        let flood: Vec<Vec<u8>> = (0..7000).map(|n| v4(&[], 0, [192, 0, 2, 2], n, SYN)).collect();
        assert_eq!(dropped(&ebpf, &maps, &flood).0, 7000);
        let kept = read(&mut samples).len();
        assert!((5000..6000).contains(&kept), "{kept} samples fit the ring");

        drop(samples);
        assert_eq!(dropped(&ebpf, &maps, &[v4(&[], 0, [192, 0, 2, 3], 1, SYN)]), (1, 0), "nobody reads any more");
    }

    #[test]
    fn the_program_passes_every_syn_that_is_cut_off() {
        let (ebpf, maps) = program();
        maps.set_level(0, ShedLevel::Fresh(0));
        for whole in [v4(&[0x8100], 8, [192, 0, 2, 1], 1, SYN), v6(&[0, 60], 1, 1, SYN)] {
            let cut: Vec<Vec<u8>> = (14..whole.len()).map(|len| whole[..len].to_vec()).collect();
            assert_eq!(dropped(&ebpf, &maps, &cut), (0, 0));
            assert_eq!(dropped(&ebpf, &maps, &[whole]), (1, 0));
        }
    }

    #[test]
    fn the_program_passes_repeated_syns_and_proved_sources() {
        let (ebpf, maps) = program();
        maps.set_level(0, ShedLevel::Fresh(0));
        let syn = [v4(&[], 0, [192, 0, 2, 1], 1, SYN), v6(&[], 1, 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &syn), (2, 0));
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 0), "a second later it is a retransmission");
        assert_eq!(
            dropped(&ebpf, &maps, &[v4(&[], 0, [192, 0, 2, 1], 2, SYN)]),
            (1, 0),
            "another sequence number, another connection attempt"
        );
        let many: Vec<Vec<u8>> = (0..2560).map(|n| v4(&[], 0, [192, 0, 2, 1], 100 + n, SYN)).collect();
        maps.set_level(0, ShedLevel::Fresh(64));
        let dropped_of_many = dropped(&ebpf, &maps, &many).0;
        assert!((1800..2040).contains(&dropped_of_many), "{dropped_of_many} of 2560 were dropped, not three in four");
        maps.set_level(0, ShedLevel::Repeated);
        thread::sleep(Duration::from_millis(1000));
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 2));

        maps.add_proved_source([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        let mut six = [0x20; 16];
        six[15] = 1;
        maps.add_proved_source(six);
        assert_eq!(dropped(&ebpf, &maps, &syn), (0, 0));
        let unproved = [v4(&[], 0, [192, 0, 2, 2], 1, SYN), v6(&[], 2, 1, SYN)];
        assert_eq!(dropped(&ebpf, &maps, &unproved), (2, 0));
    }
}
