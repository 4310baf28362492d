//! What an operator would otherwise do by hand before bridging two interfaces: promiscuous mode, queue count, offloads,
//! pause frames, waiting for the link. RSS is configured in `rss`.
//!
//! [`Settings`] puts everything back when it is dropped, and what it would put back is written down before it is changed
//! ([`claim`](super::claim)). No external program is called. An ability that a device lacks is skipped; a request that it refuses is an
//! error or a warning where it matters.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::Interface;
use super::addresses::warn_of_addresses;
use super::claim::{Claim, claim};
use super::ethtool::{Ethtool, Feature, PauseFrames, Queues};
use super::originals::Originals;
use super::rss::{self, RssConfig};
use super::rtnetlink::Rtnetlink;
use crate::error::OpenError;
use crate::patience::patiently;
use crate::privilege;
use crate::rss::Twin;

/// How long to wait for a link that is not there yet.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// How often to look for it.
const LINK_STEP: Duration = Duration::from_millis(20);

/// Offloads that break a bridge. Receive merging makes frames longer than any link carries; tags parsed by the device are
/// lost to XDP; a segmenting sender hides what is on the wire. Receive checksums stay: they report and change nothing.
pub(super) const OFFLOADS: [&str; 17] = [
    "rx-gro",
    "rx-gro-hw",
    "rx-gro-list",
    "rx-udp-gro-forwarding",
    "rx-lro",
    "rx-vlan-hw-parse",
    "rx-vlan-stag-hw-parse",
    "rx-vlan-filter",
    "rx-vlan-stag-filter",
    "tx-vlan-hw-insert",
    "tx-vlan-stag-hw-insert",
    "tx-generic-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-udp-segmentation",
];

/// The offload that takes the tag out of a frame where XDP cannot see it.
const TAG_PARSING: &str = "rx-vlan-hw-parse";

/// The changed settings of interfaces that this process has for itself. Dropping it puts them back.
///
/// Drop it after the ports, so that the sockets are closed before the queues change.
#[derive(Debug)]
pub(crate) struct Settings {
    ports: Vec<Prepared>,
    /// Opened in the network namespace of the interfaces, so that a later change of namespace does not matter.
    ethtool: Option<Ethtool>,
    /// The same, for what ethtool does not tell.
    netlink: Option<Rtnetlink>,
    /// Nothing is put back.
    is_kept: bool,
}

/// An interface that is prepared.
#[derive(Debug)]
struct Prepared {
    claim: Claim,
    originals: Originals,
    /// Promiscuous mode, where the interface's flag is not set for it. The membership ends when its socket is closed, also when the process
    /// is killed.
    membership: Option<OwnedFd>,
    /// The flag of promiscuous mode.
    promiscuous: Kept<bool>,
    /// The index of the bridge or other device that it is a member of; 0 for none.
    master: Kept<u32>,
    mtu: Kept<usize>,
    queues: Kept<Queues>,
    pause: Kept<PauseFrames>,
    /// How frames are spread over the queues, where workers rely on it.
    rss: Kept<RssConfig>,
    /// Whether the fields that are hashed for RSS stay those of others.
    hashes_otherwise: bool,
    /// Offloads that cannot be switched off.
    stubborn: Vec<String>,
    /// This machine sends by the interface as well.
    is_shared: bool,
    /// Programs of the kernel send super-frames by it.
    sends_super_frames: bool,
}

impl Prepared {
    /// Who sends by the interface besides the workers.
    fn senders(&self) -> Senders {
        Senders { stack: self.is_shared, programs: self.sends_super_frames }
    }
}

/// Who sends by an interface besides the workers, whose own frames have nothing left to do: what the others leave to the interface stays as it is.
#[derive(Debug, Clone, Copy, Default)]
struct Senders {
    /// The stack of this machine.
    stack: bool,
    /// Programs of the kernel, which send the frames of others as they came.
    programs: bool,
}

/// A setting that the box works with, and that others may change meanwhile.
#[derive(Debug)]
struct Kept<T> {
    /// As the box needs it; `None` where it does not matter or cannot be read.
    wanted: Option<T>,
    /// What somebody has changed it to and it could not be set back from.
    refused: Option<T>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Kept { wanted: None, refused: None }
    }
}

impl<T: PartialEq> Kept<T> {
    fn of(wanted: Option<T>) -> Self {
        Kept { wanted, refused: None }
    }

    /// Sets it back if it is another one `now`: what it was set back from, and with what success. A value that could not be set back is reported
    /// once.
    fn check(
        &mut self,
        now: io::Result<T>,
        set: impl FnOnce(&T) -> io::Result<()>,
        words: impl FnOnce(&T, &T) -> Words,
    ) -> Option<(String, bool)> {
        let (wanted, now) = (self.wanted.as_ref()?, now.ok()?);
        if now == *wanted {
            self.refused = None;
            return None;
        }
        if self.refused.as_ref() == Some(&now) {
            return None;
        }
        let (result, words) = (set(wanted), words(wanted, &now));
        let is_set_back = result.is_ok();
        if !is_set_back {
            self.refused = Some(now);
        }
        Some((words.say(result), is_set_back))
    }
}

/// What there is to say of a setting that somebody has changed.
struct Words {
    /// What somebody has done.
    changed: String,
    /// Why it is set back.
    reason: &'static str,
    /// What follows if it cannot be set back.
    otherwise: &'static str,
}

impl Words {
    fn say(&self, result: io::Result<()>) -> String {
        let Words { changed, reason, otherwise } = self;
        match result {
            Ok(()) => format!("somebody has {changed}; set back, since {reason}"),
            Err(error) => format!("somebody has {changed}, which cannot be set back ({error}): {otherwise}"),
        }
    }
}

/// A setting that somebody else has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The index of the interface.
    pub index: u32,
    /// What has changed, and what was done about it, in words.
    pub what: String,
    /// Whether it is again as the box needs it.
    pub is_set_back: bool,
}

impl Settings {
    /// No settings, for ports without an interface.
    pub(crate) fn none() -> Settings {
        Settings { ports: Vec::new(), ethtool: None, netlink: None, is_kept: false }
    }

    /// Claims `interfaces` for `holder`. What a former process has left changed stays so.
    ///
    /// # Errors
    ///
    /// When another process has one of them.
    pub(crate) fn claim(interfaces: &[&Interface], holder: &str) -> Result<Settings, OpenError> {
        let ethtool = Ethtool::new().map_err(|source| OpenError::Io { what: "a socket".into(), source })?;
        let prepared = |claim: Claim| Prepared {
            originals: claim.left().clone(),
            claim,
            membership: None,
            promiscuous: Kept::default(),
            master: Kept::default(),
            mtu: Kept::default(),
            queues: Kept::default(),
            pause: Kept::default(),
            rss: Kept::default(),
            hashes_otherwise: true,
            stubborn: Vec::new(),
            is_shared: false,
            sends_super_frames: false,
        };
        let ports = claim(interfaces, holder)?.into_iter().map(prepared).collect();
        Ok(Settings { ports, ethtool: Some(ethtool), netlink: Rtnetlink::new().ok(), is_kept: false })
    }

    /// The number of the XDP program that a former process has left attached to the interface of this index.
    pub(crate) fn left_program(&self, index: u32) -> Option<u32> {
        self.ports.iter().find(|port| port.claim.index() == index)?.claim.left().programs.first().copied()
    }

    /// Writes down that the program of this number is about to be attached to the interface of this index, and stays if the process is killed.
    pub(crate) fn note_program(&mut self, index: u32, id: u32) {
        let Some(port) = self.ports.iter_mut().find(|port| port.claim.index() == index) else { return };
        port.originals.programs.push(id);
        port.claim.save(&port.originals);
    }

    /// Detaches the XDP programs that a former process has left, where nothing replaces them.
    pub(crate) fn detach_left_programs(&self) {
        for port in &self.ports {
            let name = port.claim.name();
            match port.originals.detach(port.claim.index()) {
                Ok(false) => {}
                Ok(true) => info!("{name}: the XDP program of a former process is detached"),
                Err(error) => warn!("{name}: the XDP program of a former process stays: {error}"),
            }
        }
    }

    /// Leaves everything as it is when this is dropped, for a successor, and the files that say how it was.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }

    /// To be called before [`Settings::prepare`]: this machine goes on using the claimed interface of this index. Its addresses are no mistake,
    /// and what its stack leaves to a NIC to do with sent frames does not concern the box, whose own frames have nothing left to do. So what a former
    /// box has switched off does not stay so.
    pub(crate) fn share(&mut self, index: u32) {
        for port in self.ports.iter_mut().filter(|port| port.claim.index() == index) {
            port.is_shared = true;
            if let Some(ethtool) = &self.ethtool {
                port.claim.put_back_left(ethtool);
                port.originals = port.claim.left().clone();
            }
        }
    }

    /// To be called before [`Settings::prepare`]: programs of the kernel send frames of others by all claimed interfaces, super-frames whole. Without the
    /// ability to cut them, or to hand them on, an interface would have the kernel cut each in front of it.
    pub(crate) fn send_super_frames(&mut self) {
        for port in &mut self.ports {
            port.sends_super_frames = true;
            if let Some(ethtool) = &self.ethtool
                && port.claim.left().offloads.iter().any(|name| is_segmentation(name))
            {
                port.claim.put_back_left(ethtool);
                port.originals = port.claim.left().clone();
            }
        }
    }

    /// Prepares the claimed `interfaces` for `queues` workers. With random bytes for a key, makes their RSS symmetric as well, and returns
    /// its software twin or the reason why it is not.
    ///
    /// # Errors
    ///
    /// When there is no permission, or an interface cannot have as many queues. What was changed until then is put back when this is
    /// dropped.
    pub(crate) fn prepare(
        &mut self,
        interfaces: &[&Interface],
        queues: usize,
        random: Option<&[u8; 64]>,
        notes: &mut Vec<String>,
    ) -> Result<Result<Twin, String>, OpenError> {
        let Some(ethtool) = &self.ethtool else { return Ok(Err("no port is a network card".into())) };
        let original = match (random, <[&Interface; 2]>::try_from(interfaces)) {
            (None, _) => Err("it was not asked for".to_owned()),
            (_, Err(_)) => Err("not both ports are network cards".to_owned()),
            (Some(random), Ok(both)) => rss::read_both(ethtool, both).map(|original| (original, both, random)),
        };
        // No backend does without.
        if let Some(interface) = interfaces.first()
            && privilege::missing().iter().any(|it| it.name == "CAP_NET_RAW")
        {
            return Err(OpenError::Permission { interface: interface.name().into() });
        }
        let mut plans = Vec::new();
        for (side, (interface, port)) in interfaces.iter().zip(&mut self.ports).enumerate() {
            let plan = Plan::of(ethtool, interface.name(), queues, port.senders())?;
            let programs = std::mem::take(&mut port.originals.programs);
            let mut originals = Originals { programs, ..plan.originals() };
            if let Ok((original, ..)) = &original {
                originals.rss = original.get(side).cloned();
                originals.hashed = rss::hashed_otherwise(ethtool, interface.name());
            }
            originals.promiscuous = ethtool.is_promiscuous(interface.name()).is_ok_and(|is| !is);
            port.originals = originals.after(port.claim.left());
            plans.push(plan);
        }
        for port in &self.ports {
            if !port.originals.is_empty() {
                port.claim.save(&port.originals);
            }
        }
        for ((interface, port), plan) in interfaces.iter().zip(&mut self.ports).zip(&plans) {
            if !port.is_shared {
                warn_of_addresses(interface.name());
            }
            // A machine that goes on using the interface keeps its flags.
            let flag = (!port.is_shared).then(|| ethtool.set_promiscuous(interface.name(), true));
            if let Some(Ok(())) = flag {
                port.promiscuous = Kept::of(Some(true));
            } else {
                port.originals.promiscuous = port.claim.left().promiscuous;
                port.membership = Some(promiscuous(interface)?);
            }
            port.master = Kept::of(Some(interface.link().master.unwrap_or(0)));
            // The buffers are sized for this one.
            port.mtu = Kept::of(Some(interface.mtu()));
            let follows = !port.claim.left().programs.is_empty();
            plan.carry_out(ethtool, interface.name(), queues, follows, notes)?;
        }
        let twin =
            original.and_then(|(original, both, random)| rss::make_symmetric(ethtool, both, &original, queues, random));
        if twin.is_ok() {
            for (interface, port) in interfaces.iter().zip(&mut self.ports) {
                port.rss = Kept::of(RssConfig::read(ethtool, interface.name()).ok());
                port.hashes_otherwise = false;
            }
        }
        Ok(twin)
    }

    /// Takes the settings as they are now for those the box works with; to be called when everything is open.
    pub(crate) fn note(&mut self) {
        let Some(ethtool) = &self.ethtool else { return };
        for port in &mut self.ports {
            let Ok(name) = &ethtool.name_of(port.claim.index()) else { continue };
            port.queues = Kept::of(ethtool.queues(name).ok().map(|(now, _)| now));
            port.pause = Kept::of(ethtool.pause(name).ok());
            let on = |feature: Feature| is_to_be_off_at(&feature, port.senders()).then_some(feature.name);
            port.stubborn = ethtool.features(name).unwrap_or_default().into_iter().filter_map(on).collect();
        }
    }

    /// Looks whether somebody has changed what the box has set, and sets it again.
    pub(crate) fn check(&mut self) -> Vec<Changed> {
        let (Some(ethtool), netlink) = (&self.ethtool, &mut self.netlink) else { return Vec::new() };
        let mut changed = Vec::new();
        for port in &mut self.ports {
            // It may have another name by now.
            let Ok(name) = ethtool.name_of(port.claim.index()) else { continue };
            let found = port.check(ethtool, netlink.as_mut(), &name);
            let index = port.claim.index();
            changed.extend(found.into_iter().map(|(what, is_set_back)| Changed {
                index,
                what: format!("{name}: {what}"),
                is_set_back,
            }));
        }
        changed
    }

    /// Takes the interface of this index down, or up again. A port that is down when this is dropped, or when the process is killed, is
    /// taken up again.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENODEV` when it is none of these interfaces.
    pub(crate) fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let port = self.ports.iter_mut().find(|port| port.claim.index() == index);
        let (Some(ethtool), Some(port)) = (&self.ethtool, port) else {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        };
        let was_taken_down = port.originals.taken_down;
        if !up {
            port.claim.note_taken_down(true);
        }
        let result = ethtool.name_of(index).and_then(|name| ethtool.set_up(&name, up));
        port.originals.taken_down = if result.is_ok() { !up } else { was_taken_down };
        port.claim.note_taken_down(port.originals.taken_down);
        result
    }

    /// Says which links are missing and will be waited for; returns whether there are any.
    pub(crate) fn announce_wait(&self, interfaces: &[&Interface]) -> bool {
        let missing: Vec<&str> =
            interfaces.iter().filter(|one| !one.link().has_carrier()).map(|one| one.name()).collect();
        if !missing.is_empty() {
            info!("waiting for the link of {}, {} s at most", missing.join(" and "), LINK_PATIENCE.as_secs());
        }
        !missing.is_empty()
    }

    /// Waits until every interface has a link, ten seconds at most or until `stop`; then warns and goes on: a cable may come later. Says
    /// what is waited for, unless that was `said` already.
    pub(crate) fn await_links(
        &self,
        interfaces: &[&Interface],
        stop: &AtomicBool,
        mut said: bool,
        notes: &mut Vec<String>,
    ) {
        let Ok(mut netlink) = Rtnetlink::new() else { return };
        let begin = Instant::now();
        let mut has_link =
            |interface: &&&Interface| netlink.indexed(interface.index()).is_ok_and(|link| link.has_carrier());
        let without = loop {
            let without: Vec<&&Interface> = interfaces.iter().filter(|interface| !has_link(interface)).collect();
            if without.is_empty() || stop.load(Ordering::Relaxed) {
                return;
            }
            if begin.elapsed() >= LINK_PATIENCE {
                break without;
            }
            if !said {
                let names: Vec<&str> = without.iter().map(|interface| interface.name()).collect();
                info!("waiting for the link of {}, {} s at most", names.join(" and "), LINK_PATIENCE.as_secs());
                said = true;
            }
            thread::sleep(LINK_STEP);
        };
        for interface in without {
            let name = interface.name();
            warn!("{name} has no link; going on without");
            notes.push(format!("{name} has no link; check the cable and the other end"));
        }
    }

    /// The most frames that a device of `interfaces` keeps in its receive and transmit rings; 0 when no device reports it.
    pub(crate) fn hardware_rings(&self, interfaces: &[&Interface]) -> usize {
        let Some(ethtool) = &self.ethtool else { return 0 };
        interfaces.iter().map(|interface| ethtool.ring_frames(interface.name())).max().unwrap_or(0)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let Some(ethtool) = &self.ethtool else { return };
        for port in self.ports.iter_mut().rev() {
            port.membership = None;
            if self.is_kept {
                port.claim.keep();
                continue;
            }
            let Ok(name) = ethtool.name_of(port.claim.index()) else {
                debug!("{} is gone", port.claim.name());
                continue;
            };
            if let Some(id) = port.originals.attached(port.claim.index()) {
                // Left by a former process, and not replaced: this start has failed. It goes on deciding what passes, with the settings it had then.
                port.claim.save(&Originals { programs: vec![id], ..port.originals.clone() });
                port.claim.keep();
            } else if port.originals.put_back(ethtool, &name).has_failed {
                port.claim.keep();
            }
        }
    }
}

impl Prepared {
    /// What somebody has changed, in words, and whether it is set back. The queues come before the table that names them.
    fn check(&mut self, ethtool: &Ethtool, netlink: Option<&mut Rtnetlink>, name: &str) -> Vec<(String, bool)> {
        let index = self.claim.index();
        let master = netlink.and_then(|netlink| {
            let now = netlink.indexed(index).map(|link| link.master.unwrap_or(0));
            let of = |master: u32| match ethtool.name_of(master) {
                Ok(name) => format!("made it a member of {name}"),
                Err(_) => "taken it out of the device it was a member of".to_owned(),
            };
            self.master.check(
                now,
                |&wanted| netlink.set_master(index, wanted),
                |_, &is| Words {
                    changed: of(is),
                    reason: "frames would pass twice",
                    otherwise: "frames pass twice; end the box, or take it out",
                },
            )
        });
        let queues = self.queues.check(
            ethtool.queues(name).map(|(now, _)| now),
            |&wanted| ethtool.set_queues(name, wanted),
            |was, is| Words {
                changed: format!("changed its queues from {} to {}", was.receiving(), is.receiving()),
                reason: "each has a worker",
                otherwise: "frames on a queue without a worker are lost; restart the box",
            },
        );
        let promiscuous = self.promiscuous.check(
            ethtool.is_promiscuous(name),
            |&wanted| ethtool.set_promiscuous(name, wanted),
            |_, _| Words {
                changed: "ended its promiscuous mode".to_owned(),
                reason: "frames for others come in no other",
                otherwise: "frames for others are lost; restart the box",
            },
        );
        let mtu = self.mtu.check(
            ethtool.mtu(name),
            |&wanted| ethtool.set_mtu(name, wanted),
            |was, is| Words {
                changed: format!("changed its MTU from {was} to {is}"),
                reason: "the box has buffers for that one; another one takes a restart",
                otherwise: "longer frames are lost; restart the box",
            },
        );
        let pause = self.pause.check(
            ethtool.pause(name),
            |&wanted| ethtool.set_pause(name, wanted),
            |_, _| Words {
                changed: "changed its pause frames".to_owned(),
                reason: "a slow host would stop the link for all",
                otherwise: "a slow host stops the link for all",
            },
        );
        let rss = self.rss.check(
            RssConfig::read(ethtool, name),
            |wanted| rss::set(ethtool, name, wanted),
            |_, _| Words {
                changed: "changed how it spreads frames over its queues".to_owned(),
                reason: "both directions of a connection are to meet at one worker",
                otherwise: "workers hand over misdirected frames",
            },
        );
        let hashed = self.check_hashed(ethtool, name);
        let offloads = self.check_offloads(ethtool, name);
        [master, queues, promiscuous, mtu, pause, rss, hashed, offloads].into_iter().flatten().collect()
    }

    fn check_hashed(&mut self, ethtool: &Ethtool, name: &str) -> Option<(String, bool)> {
        if self.hashes_otherwise {
            return None;
        }
        let others = rss::hashed_otherwise(ethtool, name);
        if others.is_empty() {
            return None;
        }
        let result = rss::hash_four_tuples(ethtool, name, &others);
        let is_set_back = result.is_ok();
        self.hashes_otherwise = !is_set_back;
        let words = Words {
            changed: "changed which fields it hashes to spread frames over its queues".to_owned(),
            reason: "both directions of a connection are to meet at one worker",
            otherwise: "workers hand over misdirected frames",
        };
        Some((words.say(result), is_set_back))
    }

    fn check_offloads(&mut self, ethtool: &Ethtool, name: &str) -> Option<(String, bool)> {
        let senders = self.senders();
        let features = ethtool.features(name).ok()?;
        let on = |feature: &&Feature| is_to_be_off_at(feature, senders) && !self.stubborn.contains(&feature.name);
        let on: Vec<&Feature> = features.iter().filter(on).collect();
        if on.is_empty() {
            return None;
        }
        let names = on.iter().map(|feature| feature.name.as_str()).collect::<Vec<_>>().join(", ");
        let result = ethtool.set_features(name, features.len(), &on, false);
        let is_set_back = result.is_ok();
        let what = match result {
            Ok(()) => {
                format!("somebody has switched {names} on; switched off again, since it makes frames that cannot pass")
            }
            Err(error) => {
                self.stubborn.extend(on.iter().map(|feature| feature.name.clone()));
                format!("somebody has switched {names} on, and it cannot be switched off ({error}): frames are lost")
            }
        };
        Some((what, is_set_back))
    }
}

/// Whether an offload is asked for that breaks a bridge and can be switched off.
pub(super) fn is_to_be_off(feature: &Feature) -> bool {
    feature.may_change && feature.is_requested && OFFLOADS.contains(&feature.name.as_str())
}

/// The same, for an interface by which others may send besides the workers.
fn is_to_be_off_at(feature: &Feature, senders: Senders) -> bool {
    let stays = senders.stack && feature.name.starts_with("tx-") || senders.programs && is_segmentation(&feature.name);
    is_to_be_off(feature) && !stays
}

/// Whether an offload cuts sent super-frames.
fn is_segmentation(name: &str) -> bool {
    name.starts_with("tx-") && name.ends_with("-segmentation")
}

/// What is to be changed at an interface, and how it was.
struct Plan {
    /// The numbers of queues there are, and those there shall be.
    queues: Option<(Queues, Queues)>,
    features: Vec<Feature>,
    pause: Option<PauseFrames>,
    senders: Senders,
}

impl Plan {
    fn of(ethtool: &Ethtool, name: &str, queues: usize, senders: Senders) -> Result<Plan, OpenError> {
        let pause = ethtool.pause(name).ok().filter(|pause| *pause != PauseFrames([0; 3]));
        let features = ethtool.features(name).unwrap_or_default();
        if features.is_empty() {
            debug!("{name} does not report its offloads");
        }
        Ok(Plan { queues: plan_queues(ethtool, name, queues)?, features, pause, senders })
    }

    fn originals(&self) -> Originals {
        let offloads = self.features.iter().filter(|feature| is_to_be_off_at(feature, self.senders));
        Originals {
            offloads: offloads.map(|feature| feature.name.clone()).collect(),
            queues: self.queues.map(|(now, _)| now),
            pause: self.pause,
            ..Originals::default()
        }
    }

    fn carry_out(
        &self,
        ethtool: &Ethtool,
        name: &str,
        workers: usize,
        follows: bool,
        notes: &mut Vec<String>,
    ) -> Result<(), OpenError> {
        if let Some((now, wanted)) = self.queues {
            set_queues(ethtool, name, [now, wanted], workers, follows)?;
        }
        let on: Vec<&Feature> = self.features.iter().filter(|feature| is_to_be_off_at(feature, self.senders)).collect();
        if !on.is_empty()
            && let Err(error) = ethtool.set_features(name, self.features.len(), &on, false)
        {
            warn!("{name}: could not switch off its offloads: {error}");
            notes.push(format!("{name}: offloads stay on ({error}); merged frames will be dropped"));
        }
        let parses_tags = |feature: &Feature| feature.name == TAG_PARSING && feature.is_active;
        if self.features.iter().any(parses_tags) && ethtool.features(name).is_ok_and(|now| now.iter().any(parses_tags))
        {
            warn!("{name}: rx-vlan-offload cannot be switched off: VLAN tags would vanish from frames");
            notes.push(format!("{name}: rx-vlan-offload cannot be switched off; do not send tagged frames through it"));
        }
        // One slow port must not stop the other's link.
        if self.pause.is_some()
            && let Err(error) = ethtool.set_pause(name, PauseFrames([0; 3]))
        {
            debug!("{name}: pause frames stay on: {error}");
        }
        Ok(())
    }
}

/// The queues there are and as many as there are workers, if they differ. A device that does not report its queues has one.
fn plan_queues(ethtool: &Ethtool, name: &str, workers: usize) -> Result<Option<(Queues, Queues)>, OpenError> {
    let (now, possible) = ethtool.queues(name).unwrap_or((Queues([0; 4]), Queues([1, 1, 0, 0])));
    let too_few = || OpenError::Unsupported {
        what: format!("{name} has {} queue(s) for {workers} workers", possible.pairs()),
        hint: format!("set the number of workers to {} or less", possible.pairs().max(1)),
    };
    if possible.pairs() <= 1 {
        return if workers <= 1 { Ok(None) } else { Err(too_few()) };
    }
    let wanted = u32::try_from(workers).map_err(|_| too_few())?;
    let Queues([rx, tx, _, combined]) = possible;
    let wanted = if wanted <= combined {
        Queues([0, 0, now.0[2], wanted])
    } else if wanted <= rx.min(tx) {
        Queues([wanted, wanted, now.0[2], 0])
    } else {
        return Err(too_few());
    };
    Ok((now != wanted).then_some((now, wanted)))
}

/// Sets as many receive and transmit queues as there are workers. The kernel takes no queue away that has an AF_XDP socket, as one of the process that this one
/// `follows` has for a moment after it was closed.
fn set_queues(
    ethtool: &Ethtool,
    name: &str,
    [now, wanted]: [Queues; 2],
    workers: usize,
    follows: bool,
) -> Result<(), OpenError> {
    let receiving = now.receiving();
    let is_held = |e: &io::Error| follows && receiving > workers && e.raw_os_error() == Some(libc::EINVAL);
    match patiently(&format!("a queue of {name}"), || ethtool.set_queues(name, wanted), is_held) {
        Err(source) if receiving != workers => Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: name.into() },
            _ => OpenError::Unsupported {
                what: format!("{name} has {receiving} queue(s), and {workers} could not be set ({source})"),
                hint: format!("set the number of workers to {receiving}, or the queues with `ethtool -L {name}`"),
            },
        }),
        // There are as many receive queues as workers; the transmit queues do not matter.
        _ => Ok(()),
    }
}

/// Promiscuous mode by a packet membership, which counts together with those of others (tcpdump), and which the kernel ends with the process: for a
/// process that may not set the interface's flag. Unicast frames for others arrive in no other mode.
fn promiscuous(interface: &Interface) -> Result<OwnedFd, OpenError> {
    let name = interface.name();
    let fail = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface: name.into() },
        _ => OpenError::Io { what: format!("{name}: promiscuous mode"), source },
    };
    // Protocol 0: the socket itself receives nothing.
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened and belongs to nothing else.
    let membership = unsafe { OwnedFd::from_raw_fd(fd) };
    let request = libc::packet_mreq {
        mr_ifindex: interface.index() as libc::c_int,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the request is a structure of the length we say.
    let result = unsafe {
        libc::setsockopt(
            membership.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    Ok(membership)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_set_back_is_said_once_for_each_value() {
        let mut kept = Kept::of(Some(1500));
        let words = |was: &i32, is: &i32| Words {
            changed: format!("changed {was} to {is}"),
            reason: "why",
            otherwise: "a loss",
        };
        let refuse = |_: &i32| Err(io::Error::from_raw_os_error(libc::EINVAL));
        assert_eq!(kept.check(Ok(1500), refuse, words), None);
        let (what, is_set_back) = kept.check(Ok(9000), refuse, words).unwrap();
        assert!(
            what.starts_with("somebody has changed 1500 to 9000, which") && what.ends_with("a loss") && !is_set_back
        );
        assert_eq!(kept.check(Ok(9000), refuse, words), None);
        assert!(kept.check(Ok(1400), refuse, words).is_some());
        assert_eq!(kept.check(Err(io::Error::from_raw_os_error(libc::EIO)), refuse, words), None);
        // It was as it should be in between.
        assert_eq!(kept.check(Ok(1500), refuse, words), None);
        assert!(kept.check(Ok(1400), refuse, words).is_some());
        let set = kept.check(Ok(1300), |wanted| if *wanted == 1500 { Ok(()) } else { refuse(wanted) }, words).unwrap();
        assert_eq!(set, ("somebody has changed 1500 to 1300; set back, since why".to_owned(), true));
    }

    #[test]
    fn what_does_not_matter_is_not_compared() {
        let set = |_: &i32| panic!("it is left alone");
        let words = |_: &i32, _: &i32| panic!("there is nothing to say");
        assert_eq!(Kept::default().check(Ok(7), set, words), None);
    }
}
