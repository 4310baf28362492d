//! This machine's own stack as the LAN of a box, behind a NIC that the machine goes on using.
//!
//! ```text
//!   the machine's stack (addresses, routes, rules, neighbours, sockets: all at eth0, as before)
//!      │ sends by eth0                         ▲ receives from eth0
//!      ▼ filter at eth0's egress               │ filter at stack-eth0's ingress
//!   stack-eth0 ════ veth pair ════ host-eth0   │
//!                                     │        │
//!                     the box: LAN host-eth0, WAN eth0 (AF_XDP)
//! ```
//!
//! Nothing of the NIC moves. A program at its egress hands what the stack sends to one end of a veth pair, whose other end is the box's LAN
//! port; another program lets what the box sends there arrive as if the NIC had received it. What the box itself sends and receives by the
//! NIC passes neither. So what manages the interface (a DHCP client, systemd-networkd, an operator) does not have to know of the box, and a
//! connection that is open never loses its address.
//!
//! Until [`HostPort::engage`], and from the end of the process on, the program at the egress lets frames pass: the kernel empties a program
//! array when the process that made it has ended. What is left after a kill is of no effect; the next start, or
//! [`restore`](super::restore()), removes it, as a file beside those of [`claim`](super::claim) says.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::ProgramArray;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use tracing::{debug, info, warn};

use super::Interface;
use super::claim::{DIRECTORY, Lock, Namespace, held, lock};
use super::ethtool::Ethtool;
use super::filters::{Then, Way, attach, detach, disciplines, filters, make_hook, remove_hook};
use super::protect::check;
use super::record::{self, END};
use super::rtnetlink::{Link, Rtnetlink};
use super::veth::{Pair, remove};
use crate::error::OpenError;

/// The programs, compiled by the build script. Aligned, since the loader reads ELF headers in place.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/host.o"));

/// How a file's name begins.
const PREFIX: &str = "host-";

/// The first line of a file.
const VERSION: &str = "synproxy-host 1";

/// The line of a file that says that the NIC had no place for filters before.
const HOOK: &str = "clsact";

/// The name of the filter at the NIC's egress.
const FILTER: &str = "synproxy-host";

/// Queueing disciplines that shape nothing.
const PLAIN: [&str; 8] = ["noqueue", "noop", "mq", "pfifo_fast", "fq_codel", "fq", "clsact", "ingress"];

/// The longest name of an interface, in bytes.
const LONGEST_NAME: usize = libc::IFNAMSIZ - 1;

/// The stack's side of a NIC: the veth pair and the filters. Dropping this removes them.
pub(crate) struct HostPort {
    nic: Link,
    /// The ends of the pair: the box's, the stack's.
    ends: [String; 2],
    /// The pair was made.
    is_made: bool,
    /// The place for filters was made.
    hook: bool,
    programs: Option<Ebpf>,
    netlink: Rtnetlink,
    record: Record,
}

impl HostPort {
    /// Makes the pair of the NIC named `name`, with as many queues as there are workers, and attaches the filters, which are of no effect
    /// yet. What a killed process has left behind is removed first.
    ///
    /// # Errors
    ///
    /// When there is no such interface, it is no Ethernet interface, it is down, another box has it, another program's filter at its egress
    /// might come in between, or the kernel refuses.
    pub(crate) fn new(name: &str, queues: usize) -> Result<HostPort, OpenError> {
        let nic = Interface::locate(name)?;
        check(&[&nic], true)?;
        nic.must_be_up()?;
        let link = nic.link().clone();
        let name = link.name.clone();
        let failed = |what: &str| {
            let what = format!("{name}: {what}");
            let interface = name.clone();
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => OpenError::Permission { interface },
                _ => OpenError::Io { what, source },
            }
        };
        if link.address.len() != 6 || link.flags & libc::IFF_LOOPBACK as u32 != 0 {
            return Err(OpenError::Unsupported {
                what: format!("{name} is no Ethernet interface"),
                hint: "name the NIC by which clients reach this machine".into(),
            });
        }
        let mut netlink = Rtnetlink::new().map_err(failed("a socket"))?;
        let record = Record::take(&link, &mut netlink)?;
        refuse_other_filters(&name, link.index, &mut netlink)?;
        let ends = names(&name, link.index);
        let mut port = HostPort { nic: link, ends, is_made: false, hook: false, programs: None, netlink, record };
        port.make(nic.mtu(), queues).map_err(|source| match source.raw_os_error() {
            Some(libc::EEXIST) => OpenError::Busy {
                what: format!("there is an interface {} or {} already", port.ends[0], port.ends[1]),
                hint: "remove or rename it: the box makes interfaces of these names".into(),
            },
            _ => failed("a veth pair to this machine's stack")(source),
        })?;
        port.load().map_err(|source| OpenError::Io { what: format!("{name}: the programs of tc"), source })?;
        Ok(port)
    }

    /// The end of the pair that is the box's LAN port.
    pub(crate) fn port(&self) -> &str {
        &self.ends[0]
    }

    /// From now on, what this machine sends by the NIC goes to the box.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn engage(&mut self) -> Result<(), OpenError> {
        let name = &self.nic.name;
        let failed = |source| OpenError::Io { what: format!("{name}: the programs of tc"), source };
        self.programs.as_mut().map_or(Ok(()), switch).map_err(failed)?;
        info!("{name}: what this machine sends and receives passes the box; {} is its LAN port", self.ends[0]);
        if let Ok(found) = disciplines(&mut self.netlink, self.nic.index)
            && let Some(kind) = found.iter().find(|kind| !PLAIN.contains(&kind.as_str()))
        {
            warn!("{name} has the queueing discipline {kind}: what the box sends does not pass it");
        }
        Ok(())
    }

    /// From now on, what this machine sends leaves by the NIC.
    pub(crate) fn disengage(&mut self) {
        // The program array is empty as soon as nobody has a descriptor of it.
        self.programs = None;
    }

    fn make(&mut self, mtu: usize, queues: usize) -> io::Result<()> {
        let alias = format!("synproxy: between {} and this machine's stack", self.nic.name);
        self.record.save(&self.nic, &self.ends, false);
        let [one, other] = [0, 1].map(|end| self.ends[end].as_str());
        let pair = Pair { names: [one, other], alias: &alias, mtu, queues };
        pair.make(&mut self.netlink)?;
        self.is_made = true;
        merge_received(&self.ends[1]);
        Ok(())
    }

    fn load(&mut self) -> io::Result<()> {
        let nic = self.netlink.indexed(self.nic.index)?;
        let stack = self.netlink.named(&self.ends[1])?.index;
        let [a, b, c, d, e, f]: [u8; 6] =
            nic.now.as_slice().try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        let (first, last) = (u32::from_ne_bytes([a, b, c, d]), u32::from(u16::from_ne_bytes([e, f])));
        let mut programs = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("stack_end", &stack, true)
            .override_global("address_first", &first, true)
            .override_global("address_last", &last, true)
            .load(PROGRAMS)
            .map_err(io::Error::other)?;
        for name in ["leave", "leave_by_box", "arrive"] {
            program(&mut programs, name)?.load().map_err(program_error)?;
        }
        let netlink = &mut self.netlink;
        make_hook(netlink, stack)?;
        let arrive = program(&mut programs, "arrive")?.fd().map_err(program_error)?.try_clone()?;
        attach(netlink, stack, Way::Ingress, arrive.as_fd(), FILTER, Then::ArriveAt(nic.index)).map_err(|error| {
            // The module of the action cannot be loaded.
            let advice = if error.raw_os_error() == Some(libc::ENOENT) { " (the kernel lacks act_mirred)" } else { "" };
            io::Error::other(format!("{error}{advice}"))
        })?;
        let has_hook = disciplines(netlink, nic.index)?.iter().any(|kind| kind == "clsact");
        self.record.save(&nic, &self.ends, !has_hook);
        self.hook = make_hook(netlink, nic.index)?;
        let leave = program(&mut programs, "leave")?.fd().map_err(program_error)?.try_clone()?;
        attach(netlink, nic.index, Way::Egress, leave.as_fd(), FILTER, Then::Verdict)?;
        self.programs = Some(programs);
        Ok(())
    }
}

impl std::fmt::Debug for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostPort").field("nic", &self.nic.name).field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        self.disengage();
        let ends = self.is_made.then_some(&self.ends);
        if clean(&mut self.netlink, self.nic.index, ends, self.hook).has_failed {
            self.record.is_kept = true;
        }
    }
}

/// The names of the pair: the box's end and the stack's.
fn names(nic: &str, index: u32) -> [String; 2] {
    let named = ["host", "stack"].map(|end| format!("{end}-{nic}"));
    if named.iter().all(|name| name.len() <= LONGEST_NAME) {
        named
    } else {
        ["host", "stack"].map(|end| format!("{end}-{index}"))
    }
}

/// Refuses an interface whose egress has a filter that might decide before ours, or be left out by it.
fn refuse_other_filters(name: &str, index: u32, netlink: &mut Rtnetlink) -> Result<(), OpenError> {
    let others = other_filters(name, index, netlink);
    let Some(first) = others.first() else { return Ok(()) };
    Err(OpenError::Busy {
        what: format!("{name} has a filter at its egress ({first})"),
        hint: format!("what it does to frames would not be done any more; `tc filter show dev {name} egress` shows it"),
    })
}

/// The filters of others at the egress of this interface, in words.
pub(super) fn other_filters(name: &str, index: u32, netlink: &mut Rtnetlink) -> Vec<String> {
    let listed = filters(netlink, index, Way::Egress).unwrap_or_else(|error| {
        debug!("{name}: its filters cannot be listed: {error}");
        Vec::new()
    });
    let others = listed.into_iter().filter(|filter| filter.name != FILTER);
    let mut found: Vec<String> =
        others.map(|filter| format!("{} {}", filter.kind, filter.name).trim().into()).collect();
    // Linux 6.6 and later have another list, which comes first.
    if let Ok((_, programs)) = SchedClassifier::query_tcx(name, TcAttachType::Egress) {
        found.extend(programs.iter().map(|program| format!("tcx {}", program.name_as_str().unwrap_or("program"))));
    }
    found
}

/// Has the kernel merge the segments that arrive at the stack's end: the NIC's own merging is off, since the box needs whole frames.
fn merge_received(stack: &str) {
    let result = Ethtool::new().and_then(|ethtool| {
        let features = ethtool.features(stack)?;
        let gro: Vec<_> = features.iter().filter(|it| it.name == "rx-gro" && it.may_change).collect();
        ethtool.set_features(stack, features.len(), &gro, true)
    });
    if let Err(error) = result {
        debug!("{stack}: segments are not merged: {error}");
    }
}

/// Puts the program that redirects into the array of the one at the egress.
fn switch(programs: &mut Ebpf) -> io::Result<()> {
    let redirect = program(programs, "leave_by_box")?.fd().map_err(program_error)?.try_clone()?;
    let running = programs.map_mut("running").ok_or(io::ErrorKind::NotFound)?;
    let mut running = ProgramArray::try_from(running).map_err(io::Error::other)?;
    running.set(0, &redirect, 0).map_err(io::Error::other)
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> io::Result<&'a mut SchedClassifier> {
    let program = programs.program_mut(name).ok_or(io::ErrorKind::NotFound)?;
    program.try_into().map_err(program_error)
}

fn program_error(error: ProgramError) -> io::Error {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error,
        ProgramError::SyscallError(error) => error.io_error,
        error => io::Error::other(error),
    }
}

/// What was removed, and whether something could not be.
#[derive(Debug, Default)]
pub(super) struct Cleaned {
    pub done: Vec<&'static str>,
    pub has_failed: bool,
}

/// Removes the filter at the NIC with this index, its place too if `hook` says that it was made for it, and the pair.
fn clean(netlink: &mut Rtnetlink, nic: u32, ends: Option<&[String; 2]>, hook: bool) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let mut note = |what: &'static str, result: io::Result<()>| match result {
        Ok(()) => cleaned.done.push(what),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {}
        Err(error) => {
            warn!("could not remove the {what}: {error}");
            cleaned.has_failed = true;
        }
    };
    let ours = filters(netlink, nic, Way::Egress).unwrap_or_default();
    if ours.iter().any(|filter| filter.name == FILTER) {
        note("filter of this machine's frames", detach(netlink, nic, Way::Egress));
    }
    let is_empty = |netlink: &mut Rtnetlink, way| filters(netlink, nic, way).is_ok_and(|found| found.is_empty());
    if hook && is_empty(netlink, Way::Egress) && is_empty(netlink, Way::Ingress) {
        note("place for filters", remove_hook(netlink, nic));
    }
    if let Some([one, other]) = ends
        && let (Ok(one), Ok(other)) = (netlink.named(one), netlink.named(other))
        && one.kind == "veth"
        && one.below == Some(other.index)
    {
        note("veth pair to this machine's stack", remove(netlink, one.index));
    }
    cleaned
}

/// The file that says what was made at a NIC. Its lock makes the process the only one that does.
#[derive(Debug)]
struct Record {
    /// `None` where there can be no file.
    file: Option<(File, PathBuf)>,
    namespace: Namespace,
    identity: String,
    is_kept: bool,
}

impl Record {
    /// Takes the file of a NIC, and removes what a killed process has left there.
    fn take(nic: &Link, netlink: &mut Rtnetlink) -> Result<Record, OpenError> {
        let ethtool = Ethtool::new().map_err(|source| OpenError::Io { what: "a socket".into(), source })?;
        let namespace = Namespace::of_this_thread(&ethtool);
        let identity = namespace.identity(nic);
        let path = path(&namespace, PREFIX, nic.index);
        let file = loop {
            match lock(&path, true) {
                Ok(Lock::Taken(file)) => break file,
                Ok(Lock::Held(text)) => return Err(held(&nic.name, &text)),
                Ok(Lock::Absent) => {}
                Err(error) => {
                    warn!("{}: {error}: what is made for {} is removed at a clean end only", path.display(), nic.name);
                    return Ok(Record { file: None, namespace, identity, is_kept: false });
                }
            }
        };
        let mut record = Record { file: Some((file, path)), namespace, identity, is_kept: false };
        let done = record.clean(nic.index, netlink).done;
        if !done.is_empty() {
            info!("{}: {} of a process that was killed removed", nic.name, done.join(", "));
        }
        Ok(record)
    }

    /// Removes what the file says that a process has made.
    fn clean(&mut self, nic: u32, netlink: &mut Rtnetlink) -> Cleaned {
        let Some((file, _)) = &mut self.file else { return Cleaned::default() };
        let text = record::read(file).unwrap_or_default();
        let Some((ends, hook)) = made(&text, &self.identity) else { return Cleaned::default() };
        // What the process has noted of its LAN port goes with the port.
        let port = netlink.named(&ends[0]).map(|end| path(&self.namespace, super::claim::PREFIX, end.index));
        let cleaned = clean(netlink, nic, Some(&ends), hook);
        if let Ok(port) = port
            && !cleaned.has_failed
        {
            let _ = fs::remove_file(port);
        }
        cleaned
    }

    /// Writes down what will be made.
    fn save(&self, nic: &Link, ends: &[String; 2], hook: bool) {
        let Some((file, path)) = &self.file else { return };
        let mut text = format!("{VERSION}\n");
        let _ = writeln!(text, "holder {} the box between host and {}", std::process::id(), nic.name);
        let _ = writeln!(text, "interface {} {}\npair {} {}", nic.name, self.identity, ends[0], ends[1]);
        if hook {
            let _ = writeln!(text, "{HOOK}");
        }
        let _ = writeln!(text, "{END}");
        if let Err(error) = record::write(file, &text) {
            warn!("{}: {error}: after a kill a veth pair and a filter stay at {}", path.display(), nic.name);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some((file, path)) = self.file.as_ref().filter(|_| !self.is_kept) else { return };
        // The user the process has become may not be allowed to remove it; an empty file says nothing.
        if let Err(error) = record::clear(file).and_then(|()| fs::remove_file(path)) {
            debug!("{} stays: {error}", path.display());
        }
    }
}

fn path(namespace: &Namespace, prefix: &str, index: u32) -> PathBuf {
    Path::new(DIRECTORY).join(namespace.file_name(prefix, index))
}

/// The pair, and whether the place for filters was made, in a file that is complete and about this interface.
fn made(text: &str, identity: &str) -> Option<([String; 2], bool)> {
    let mut lines = text.lines();
    if lines.next() != Some(VERSION) || lines.next_back() != Some(END) {
        return None;
    }
    let (mut ends, mut hook, mut is_the_same) = (None, false, false);
    for line in lines {
        match line.split_once(' ') {
            Some(("interface", rest)) => is_the_same = rest.split(' ').nth(1) == Some(identity),
            Some(("pair", rest)) => ends = rest.split_once(' ').map(|(one, other)| [one.to_owned(), other.to_owned()]),
            None if line == HOOK => hook = true,
            _ => {}
        }
    }
    ends.filter(|_| is_the_same).map(|ends| (ends, hook))
}

/// What came of [`restore`].
pub(super) enum Left {
    /// Nothing was left.
    Nothing,
    /// This was removed.
    Removed(Cleaned),
    /// A process has the interface; what is known of it.
    Held(String),
}

/// Removes what a killed process has left at the interface of this index.
///
/// # Errors
///
/// Those of opening the file.
pub(super) fn restore(
    link: Option<&Link>,
    index: u32,
    namespace: Namespace,
    netlink: &mut Rtnetlink,
) -> io::Result<Left> {
    let path = path(&namespace, PREFIX, index);
    match lock(&path, false)? {
        Lock::Absent => Ok(Left::Nothing),
        Lock::Held(text) => Ok(Left::Held(text)),
        Lock::Taken(file) => {
            let identity = link.map(|link| namespace.identity(link)).unwrap_or_default();
            let mut record = Record { file: Some((file, path)), namespace, identity, is_kept: false };
            let cleaned = record.clean(index, netlink);
            record.is_kept = cleaned.has_failed;
            Ok(Left::Removed(cleaned))
        }
    }
}

/// The indexes of the interfaces that have a file.
///
/// # Errors
///
/// Those of reading the directory.
pub(super) fn files(namespace: &Namespace) -> io::Result<Vec<u32>> {
    super::claim::files(namespace, PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "synproxy-host 1\nholder 12 the box between host and eth0\ninterface eth0 me\npair host-eth0 stack-eth0\nclsact\nend\n";

    #[test]
    fn names_are_those_of_the_nic_as_far_as_they_fit() {
        assert_eq!(names("eth0", 7), ["host-eth0", "stack-eth0"]);
        assert_eq!(names("enp0s31f6", 7), ["host-enp0s31f6", "stack-enp0s31f6"]);
        assert_eq!(names("enx001122334455", 7), ["host-7", "stack-7"]);
        assert!(names("enx001122334455", i32::MAX as u32).iter().all(|name| name.len() <= LONGEST_NAME + 1));
    }

    #[test]
    fn a_file_counts_only_if_it_is_complete_and_of_the_same_interface() {
        let ends = ["host-eth0".to_owned(), "stack-eth0".to_owned()];
        assert_eq!(made(TEXT, "me"), Some((ends.clone(), true)));
        assert_eq!(made(&TEXT.replace("clsact\n", ""), "me"), Some((ends, false)));
        assert_eq!(made(TEXT, "another"), None);
        assert_eq!(made(&TEXT.replace("host 1", "host 2"), "me"), None);
        for length in 0..TEXT.len() - 1 {
            assert_eq!(made(&TEXT[..length], "me"), None, "{length}");
        }
    }
}
