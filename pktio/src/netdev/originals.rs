//! The settings that an interface had before the box changed them: how they are put back, and how they are written down.

use std::fmt::Write;
use std::io;

use tracing::{debug, warn};

use super::ethtool::{Ethtool, PauseFrames, Queues};
use super::program;
use super::rss::{self, RssConfig};

/// The settings of an interface that the box changes, as they were. What it leaves alone is not in here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Originals {
    /// Offloads that were asked for.
    pub offloads: Vec<String>,
    /// The numbers of queues.
    pub queues: Option<Queues>,
    /// Pause frames.
    pub pause: Option<PauseFrames>,
    /// RSS: how frames are spread over the queues.
    pub rss: Option<RssConfig>,
    /// What is hashed for RSS, by type of flow.
    pub hashed: Vec<(u32, u32)>,
    /// It was not promiscuous by its own flag, and the box has set that.
    pub promiscuous: bool,
    /// It was up, and the box has taken it down.
    pub taken_down: bool,
    /// The numbers of the XDP programs that the box attaches so that they stay when it is killed.
    pub programs: Vec<u32>,
}

/// What became of an attempt to put settings back.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PutBack {
    /// The settings that differed and are as they were.
    pub done: Vec<&'static str>,
    /// Whether one could not be put back.
    pub has_failed: bool,
}

impl Originals {
    /// Whether nothing was changed.
    pub(super) fn is_empty(&self) -> bool {
        *self == Originals::default()
    }

    /// These, where a former box has left the interface changed and how it was is known: what that one has changed was as it says, whatever
    /// it is now.
    pub(super) fn after(self, left: &Originals) -> Originals {
        let mut offloads = left.offloads.clone();
        offloads.extend(self.offloads.into_iter().filter(|own| !left.offloads.contains(own)));
        let mut hashed = left.hashed.clone();
        hashed.extend(self.hashed.into_iter().filter(|(own, _)| !left.hashed.iter().any(|(flow, _)| flow == own)));
        Originals {
            offloads,
            queues: left.queues.or(self.queues),
            pause: left.pause.or(self.pause),
            rss: left.rss.clone().or(self.rss),
            hashed,
            promiscuous: left.promiscuous || self.promiscuous,
            taken_down: self.taken_down,
            programs: self.programs,
        }
    }

    /// Puts back what differs. A failure is logged: nothing more can be done about it here.
    ///
    /// The order matters: a table of queues must name no queue that is not there, and the number of queues changes the table.
    pub(super) fn put_back(&self, ethtool: &Ethtool, name: &str) -> PutBack {
        let mut result = PutBack::default();
        let mut done = |what: &'static str, outcome: io::Result<bool>| match outcome {
            Ok(false) => {}
            Ok(true) => {
                debug!("{name}: {what} put back");
                if !result.done.contains(&what) {
                    result.done.push(what);
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => debug!("{name} is gone"),
            Err(error) => {
                warn!("{name}: could not put its {what} back: {error}");
                result.has_failed = true;
            }
        };
        if self.taken_down {
            done("state", ethtool.is_up(name).and_then(|is_up| if_so(!is_up, || ethtool.set_up(name, true))));
        }
        if self.promiscuous {
            let is = ethtool.is_promiscuous(name);
            done("promiscuous mode", is.and_then(|is| if_so(is, || ethtool.set_promiscuous(name, false))));
        }
        for &(flow, fields) in &self.hashed {
            let differs = rss::hashed(ethtool, name, flow).is_ok_and(|now| now != fields);
            done("spreading over the queues", if_so(differs, || rss::set_hashed(ethtool, name, flow, fields)));
        }
        let differs = |original: &RssConfig| RssConfig::read(ethtool, name).map(|now| now != *original);
        if let Some(original) = &self.rss {
            done(
                "spreading over the queues",
                differs(original).and_then(|differs| if_so(differs, || rss::set_default(ethtool, name))),
            );
        }
        if let Some(original) = self.pause {
            let now = ethtool.pause(name);
            done("pause frames", now.and_then(|now| if_so(now != original, || ethtool.set_pause(name, original))));
        }
        done("offloads", put_back_offloads(ethtool, name, &self.offloads));
        if let Some(original) = self.queues {
            let now = ethtool.queues(name).map(|(now, _)| now);
            done("queue count", now.and_then(|now| if_so(now != original, || ethtool.set_queues(name, original))));
        }
        if let Some(original) = &self.rss {
            done(
                "spreading over the queues",
                differs(original).and_then(|differs| if_so(differs, || rss::set(ethtool, name, original))),
            );
        }
        result
    }

    /// The lines that [`Originals::parse`] reads, but for that about the state.
    pub(super) fn write(&self, text: &mut String) {
        let mut line = |name: &str, values: &mut dyn Iterator<Item = String>| {
            let _ = writeln!(text, "{name} {}", values.collect::<Vec<_>>().join(" "));
        };
        if !self.offloads.is_empty() {
            line("offloads", &mut self.offloads.iter().cloned());
        }
        if let Some(Queues(counts)) = self.queues {
            line("queues", &mut counts.iter().map(u32::to_string));
        }
        if let Some(PauseFrames(pause)) = self.pause {
            line("pause", &mut pause.iter().map(u32::to_string));
        }
        if self.promiscuous {
            line("promiscuous", &mut ["0".to_owned()].into_iter());
        }
        for (flow, fields) in &self.hashed {
            line("hashed", &mut [flow, fields].into_iter().map(u32::to_string));
        }
        if let Some(rss) = &self.rss {
            line("rss", &mut rss.words().into_iter());
        }
        if !self.programs.is_empty() {
            line("programs", &mut self.programs.iter().map(u32::to_string));
        }
    }

    /// The program among these that is still attached to the interface of this index.
    pub(super) fn attached(&self, index: u32) -> Option<u32> {
        self.programs.iter().copied().find(|id| program::is_attached(index, *id))
    }

    /// Detaches the program that is still attached; returns whether there was one.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn detach(&self, index: u32) -> io::Result<bool> {
        self.programs.iter().try_fold(false, |was, id| Ok(was | program::detach(index, *id)?))
    }

    /// Takes the setting of one line in; `None` when it is none.
    pub(super) fn parse(&mut self, line: &str) -> Option<()> {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let name = words.next()?;
        let numbers = |words: &mut dyn Iterator<Item = &str>| -> Option<Vec<u32>> {
            words.map(|word| word.parse().ok()).collect()
        };
        match name {
            "offloads" => self.offloads = words.map(str::to_owned).collect(),
            "queues" => self.queues = Some(Queues(numbers(&mut words)?.try_into().ok()?)),
            "pause" => self.pause = Some(PauseFrames(numbers(&mut words)?.try_into().ok()?)),
            "hashed" => {
                let [flow, fields] = numbers(&mut words)?.try_into().ok()?;
                self.hashed.push((flow, fields));
            }
            "rss" => self.rss = Some(RssConfig::of_words(&mut words)?),
            "programs" => self.programs = numbers(&mut words)?,
            "promiscuous" => self.promiscuous = words.next()? == "0",
            "taken-down" => self.taken_down = words.next()? == "1",
            _ => return None,
        }
        Some(())
    }
}

/// Does it where it is to be done; returns whether it was.
fn if_so(condition: bool, work: impl FnOnce() -> io::Result<()>) -> io::Result<bool> {
    if condition { work().map(|()| true) } else { Ok(false) }
}

/// Asks for these offloads again.
fn put_back_offloads(ethtool: &Ethtool, name: &str, offloads: &[String]) -> io::Result<bool> {
    if offloads.is_empty() {
        return Ok(false);
    }
    let features = ethtool.features(name)?;
    let missing = |feature: &&super::ethtool::Feature| {
        offloads.contains(&feature.name) && feature.may_change && !feature.is_requested
    };
    let missing: Vec<_> = features.iter().filter(missing).collect();
    if_so(!missing.is_empty(), || ethtool.set_features(name, features.len(), &missing, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let rss = RssConfig::for_tests(vec![0, 1, 2, 3], vec![0x6d, 0x5a, 0xff]);
        let every = Originals {
            offloads: vec!["rx-gro".into(), "tx-tcp-segmentation".into()],
            queues: Some(Queues([4, 4, 1, 0])),
            pause: Some(PauseFrames([1, 0, 1])),
            rss: Some(rss),
            hashed: vec![(1, 0xf0), (5, 0x30)],
            promiscuous: true,
            taken_down: false,
            programs: vec![7, 4711],
        };
        let single = Originals { queues: Some(Queues([0, 0, 0, 8])), ..Originals::default() };
        for originals in [every, single, Originals::default()] {
            let mut text = String::new();
            originals.write(&mut text);
            let mut read = Originals::default();
            text.lines().for_each(|line| read.parse(line).unwrap_or_else(|| panic!("{line}")));
            assert_eq!(read, originals, "{text}");
            assert_eq!(text.is_empty(), originals.is_empty());
        }
        let mut down = Originals::default();
        down.parse("taken-down 1").unwrap();
        assert!(down.taken_down && !down.is_empty());
    }

    #[test]
    fn what_a_former_box_has_changed_was_as_it_says_and_the_rest_as_it_is() {
        let left = Originals {
            offloads: vec!["rx-gro".into()],
            queues: Some(Queues([0, 0, 0, 8])),
            hashed: vec![(1, 0xf0)],
            taken_down: true,
            programs: vec![7],
            ..Originals::default()
        };
        let found = Originals {
            offloads: vec!["rx-lro".into(), "rx-gro".into()],
            queues: Some(Queues([0, 0, 0, 2])),
            pause: Some(PauseFrames([1, 0, 1])),
            hashed: vec![(1, 0x30), (5, 0x30)],
            promiscuous: true,
            ..Originals::default()
        };
        let expected = Originals {
            offloads: vec!["rx-gro".into(), "rx-lro".into()],
            queues: Some(Queues([0, 0, 0, 8])),
            pause: Some(PauseFrames([1, 0, 1])),
            hashed: vec![(1, 0xf0), (5, 0x30)],
            promiscuous: true,
            ..Originals::default()
        };
        assert_eq!(found.after(&left), expected);
    }

    #[test]
    fn what_is_no_setting_is_not_read() {
        for line in [
            "",
            "queues 1 2 3",
            "queues 1 2 3 x",
            "pause 1 2 3 4",
            "hashed 1",
            "rss",
            "rss 1 0 zz 1",
            "taken-down",
            "mtu 9000",
        ] {
            assert_eq!(Originals::default().parse(line), None, "{line}");
        }
    }
}
