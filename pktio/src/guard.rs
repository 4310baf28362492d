//! Everything that was done to interfaces, to be undone at exit.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;

use crate::failure::FailurePlan;
use crate::netdev::{Changed, HostPort, Settings};
use crate::packet::FastPath;
use crate::pins::KeptFlows;
use crate::xdp::{AttachedProgram, FrontProgram, ShedSamples, SynMemory};

/// Restores the interfaces when it is dropped: removes what leads this machine's own frames through the box, detaches the XDP programs, then puts the settings back, and lets other processes have them.
///
/// Drop it after the ports, so that the sockets are closed before the queues change.
pub struct Guard {
    // Dropped in this order: as long as the XDP program is there, the stack receives nothing from the NIC.
    pub(crate) host: Option<HostPort>,
    pub(crate) programs: Vec<AttachedProgram>,
    /// The XDP program in front of the fast path at tc, attached or not.
    pub(crate) front: Option<FrontProgram>,
    pub(crate) fast_path: Option<FastPath>,
    /// What outlives the process of the connections that the kernel forwards by itself.
    pub(crate) kept_flows: Option<KeptFlows>,
    pub(crate) settings: Settings,
}

impl Guard {
    /// A guard with nothing to restore, for ports without an interface.
    pub(crate) fn empty() -> Guard {
        Guard::of(Settings::none())
    }

    /// A guard of these settings, with no program attached yet.
    pub(crate) fn of(settings: Settings) -> Guard {
        Guard { host: None, programs: Vec::new(), front: None, fast_path: None, kept_flows: None, settings }
    }

    /// Puts the XDP programs in the place of those that a former process has left, at once and without a gap: to be called when the workers take frames.
    /// Until then those decide what passes. Where there are none, the programs are there since the opening, and nothing happens.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take_over(&mut self) -> io::Result<()> {
        let settings = &mut self.settings;
        self.programs
            .iter_mut()
            .try_for_each(|program| program.replace(&mut |index, id| settings.note_program(index, id)))?;
        if let Some(flows) = &mut self.kept_flows {
            flows.take_over();
        }
        Ok(())
    }

    /// To be called when the workers have ended: what this machine sends leaves by its NIC again, if the LAN port was its own stack.
    pub fn release_host(&mut self) {
        if let Some(host) = &mut self.host {
            host.disengage();
        }
    }

    /// Looks whether somebody has changed settings of the interfaces that the box works with, and sets them again as it needs them. A change that
    /// cannot be set back is reported once.
    pub fn check_settings(&mut self) -> Vec<Changed> {
        self.settings.check()
    }

    /// Takes the interface of this index down, or up again. One that is down at the end is taken up then.
    ///
    /// # Errors
    ///
    /// The kernel's; `ENODEV` when it is none of the ports' interfaces.
    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        self.settings.set_up(index, up)
    }

    /// The samples of the SYNs that the WAN port's XDP program drops, the first time this is called; `None` for a port without a shed filter of
    /// its own.
    pub fn take_shed_samples(&mut self) -> Option<ShedSamples> {
        self.programs.iter_mut().find_map(AttachedProgram::take_shed_samples)
    }

    /// Each worker's part of the map of flows that the XDP programs of both ports ask while a worker fails, and the program that answers SYNs; none where
    /// there is no such map.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn flow_maps(&self, workers: usize, plan: &FailurePlan) -> io::Result<Vec<&'static [AtomicU64]>> {
        if let Some(fast_path) = &self.fast_path {
            return fast_path.flow_maps();
        }
        // The first program's map is that of both.
        self.programs.first().map_or(Ok(Vec::new()), |program| program.flow_maps(workers, plan.flow_words))
    }

    /// The memory of each worker by which the WAN port's program answers SYNs; none where no program does.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn syn_memories(&self, workers: usize) -> io::Result<Vec<SynMemory>> {
        if let Some(fast_path) = &self.fast_path {
            return fast_path.syn_memories();
        }
        let answers = self.programs.iter().find(|program| program.answers_syns());
        answers.map_or(Ok(Vec::new()), |program| program.syn_memories(workers))
    }

    /// Whether an XDP program can answer the SYNs of the WAN in front of the programs at tc that do.
    pub fn has_front(&self) -> bool {
        self.front.is_some()
    }

    /// Has that program answer them from now on, or no more: it is attached, or detached, which takes some tens of milliseconds. Those at tc answer all the
    /// while what reaches them. Without such a program nothing happens.
    ///
    /// # Errors
    ///
    /// The kernel's; `EBUSY` when somebody else's XDP program is attached.
    pub fn answer_in_front(&mut self, in_front: bool) -> io::Result<()> {
        self.front.as_mut().map_or(Ok(()), |front| front.set_attached(in_front))
    }

    /// Leaves the XDP programs and the settings as they are when this is dropped, for a successor, which replaces the ones and goes on with the others,
    /// as after a kill; how they were is written down. False, changing nothing, where that cannot be: where this machine sends by the same
    /// interface, and where a program does not go on when the process has ended.
    pub fn keep(&mut self) -> bool {
        if self.host.is_some() || !self.programs.iter().all(AttachedProgram::stays) {
            return false;
        }
        self.programs.iter_mut().for_each(AttachedProgram::keep);
        self.settings.keep();
        if let Some(flows) = &mut self.kept_flows {
            flows.keep();
        }
        true
    }

    /// The words of the entries of connections that the kernel forwards by itself, where it was asked for and works: zero at first, or as a former process
    /// has left them ([`goes_on`](Guard::goes_on)). The words stay mapped until the process ends.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn hand_down_words(&self) -> io::Result<Option<&'static [AtomicU64]>> {
        if let Some(fast_path) = &self.fast_path {
            return Ok(Some(fast_path.words()));
        }
        // The first program's map is that of both.
        self.programs.first().filter(|program| program.forwards()).map(AttachedProgram::hand_down_words).transpose()
    }

    /// Whether the entries are those of a former process, which the kernel goes on to forward by.
    pub fn goes_on(&self) -> bool {
        self.kept_flows.as_ref().is_some_and(KeptFlows::goes_on)
    }

    /// The words of the entries that a former process has left in a map of its own, of another size. Its programs write them until those of this process take
    /// their place.
    pub fn former_hand_down_words(&self) -> Option<&'static [AtomicU64]> {
        self.kept_flows.as_ref().and_then(KeptFlows::former)
    }

    /// Frames for which the XDP programs found no socket because they arrived on a queue that no worker owns.
    pub fn unclaimed(&self) -> u64 {
        self.programs.iter().map(|program| program.unclaimed().unserved()).sum()
    }

    /// Frames for which the XDP programs found no socket because they arrived while the box was starting or ending.
    pub fn early_or_late(&self) -> u64 {
        self.programs.iter().map(|program| program.unclaimed().early_or_late()).sum()
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("programs", &self.programs).field("settings", &self.settings).finish()
    }
}
