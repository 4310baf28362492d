//! `synproxy doctor LAN WAN` (or `doctor host NIC`): looks at two interfaces and at the machine, changes nothing, needs no running box, and says what will work, about
//! how fast, and what to change, each with the command that does it.
//!
//! A [`Check`] is a row of a table: what it looks at, why that matters, what mends it, and the function that examines a [`Scene`]. The page
//! `docs/doctor.md` and the man page are made from the same table. What a scene knows of the interfaces comes from the kernel
//! ([`pktio::netdev::describe()`]); the rest comes from files below a root directory, which tests replace.

mod cores;
mod driver;
mod failure;
mod interfaces;
mod kernel;
mod limits;
mod queues;
mod report;
mod root;
mod speed;
#[cfg(test)]
mod testing;

use crate::process::cli::DoctorArguments;
use crate::process::exit::Failure;
use crate::process::footprint::Needed;
use crate::process::settings;
use confparse::{Failures, FastPath, Poll};
use pktio::netdev::{Described, Description, Holder, QueueCounts, XdpFeatures, describe};
use pktio::{Asked, HOST, OpenError, interface_of, members_of};
use report::Report;
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;

pub use root::Root;
pub use speed::{CLASSES, Class, Mode};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing is to be changed.
    Ok,
    /// Worth knowing; the box works as it should.
    Note,
    /// The box works, but worse than it could.
    Warning,
    /// The box does not start, or passes no frames.
    Error,
}

impl Level {
    /// Its name, as it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// A row of the table of checks.
#[derive(Debug)]
pub struct Check {
    /// Its name.
    pub id: &'static str,
    /// What it looks at.
    pub looks_at: &'static str,
    /// The gravest level of its findings.
    pub worst: Level,
    /// Why that matters.
    pub why: &'static str,
    /// What mends it: a command for a shell, with `PORT` for an interface; or a sentence where no command does.
    pub remedy: &'static str,
    /// Examines a scene. What it returns has this check's name.
    examine: fn(&Scene) -> Vec<Found>,
}

/// What an examination has found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    level: Level,
    /// The interface, where it is about one.
    port: Option<String>,
    text: String,
    command: Option<String>,
}

impl Found {
    fn new(level: Level, text: impl Into<String>) -> Found {
        Found { level, port: None, text: text.into(), command: None }
    }

    fn ok(text: impl Into<String>) -> Vec<Found> {
        vec![Found::new(Level::Ok, text)]
    }

    /// It is about this interface.
    fn at(self, port: &Description) -> Found {
        Found { port: Some(port.name.clone()), ..self }
    }

    /// This command mends it.
    fn mended_by(self, command: impl Into<String>) -> Found {
        Found { command: Some(command.into()), ..self }
    }
}

/// These findings or, if there are none, that all is well.
fn or_ok(found: Vec<Found>, text: impl Into<String>) -> Vec<Found> {
    if found.is_empty() { Found::ok(text) } else { found }
}

/// A finding, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of its check.
    pub id: &'static str,
    /// How grave it is.
    pub level: Level,
    /// The interface, where it is about one.
    pub port: Option<String>,
    /// What was found, in a sentence.
    pub finding: String,
    /// Why it matters.
    pub why: &'static str,
    /// The command that mends it, for a shell.
    pub command: Option<String>,
}

/// Every check, in the order in which they are reported.
pub fn checks() -> impl Iterator<Item = (&'static str, &'static Check)> {
    let groups: [(&str, &'static [Check]); 7] = [
        ("The interfaces", interfaces::CHECKS),
        ("The drivers", driver::CHECKS),
        ("Queues and interrupts", queues::CHECKS),
        ("Cores and memory", cores::CHECKS),
        ("The kernel", kernel::CHECKS),
        ("When the box fails", failure::CHECKS),
        ("Limits of the process", limits::CHECKS),
    ];
    groups.into_iter().flat_map(|(heading, checks)| checks.iter().map(move |check| (heading, check)))
}

/// The table of checks, for `--help` and the man page.
pub fn help() -> String {
    let mut text = "Checks, and the gravest level that each can find:\n".to_owned();
    for (_, Check { id, looks_at, worst, .. }) in checks() {
        text += &format!("  {id:<16} {:<8} {looks_at}\n", worst.name());
    }
    text + "\
\nExit status:
  0  no error was found
  1  a box cannot start between these interfaces, or would pass no frames
  2  the command line is wrong
  3  the configuration is wrong, or its file cannot be read
  4  a port is none of the kernel's interfaces, or the kernel cannot be asked"
}

/// What is examined.
#[derive(Debug)]
struct Scene {
    /// The names of the interfaces as they were given, without what names an I/O backend.
    names: [String; 2],
    /// The I/O backends that are asked for.
    asked: [Asked; 2],
    /// The interfaces that exist.
    ports: [Option<Description>; 2],
    /// Why the two are not two cables.
    conflict: Option<String>,
    /// The LAN port is this machine's own stack: its interface is made when the box starts, and the machine keeps the other one.
    is_host: bool,
    /// Where files are read.
    root: Root,
    /// Workers of the box.
    workers: usize,
    /// They never sleep.
    is_busy: bool,
    /// What is to become of frames, and who is told, when the box fails.
    failures: Failures,
    /// The kernel is to answer SYNs by itself.
    syns_in_kernel: bool,
    /// Where the kernel is to forward established connections.
    fast_path: FastPath,
    /// The memory that the configuration needs.
    needed: Needed,
    /// The path of this program.
    program: String,
}

impl Scene {
    /// The interfaces that exist.
    fn ports(&self) -> impl Iterator<Item = &Description> {
        self.ports.iter().flatten()
    }

    /// Both interfaces, if both exist.
    fn both(&self) -> Option<[&Description; 2]> {
        Some([self.ports[0].as_ref()?, self.ports[1].as_ref()?])
    }

    /// The process and the name of the box that has both interfaces.
    fn running_box(&self) -> Option<(u32, &str)> {
        let [one, other] = self.both()?;
        match (&one.holder, &other.holder) {
            (Holder::Process { process: Some(process), what }, Holder::Process { process: Some(same), .. })
                if process == same =>
            {
                Some((*process, what))
            }
            _ => None,
        }
    }

    /// Findings about each interface that exists.
    fn each(&self, examine: impl FnMut(&Description) -> Option<Found>) -> Vec<Found> {
        self.ports().filter_map(examine).collect()
    }

    /// Names for a sentence: all that exist.
    fn names(&self) -> String {
        self.ports().map(|port| port.name.as_str()).collect::<Vec<_>>().join(" and ")
    }

    /// A command line of the box, with these options.
    fn start(&self, options: &str) -> String {
        let [lan, wan] = [0, 1].map(|side| {
            let prefix = match self.asked[side] {
                Asked::Best => "",
                Asked::Xdp => "xdp:",
                Asked::Packet => "packet:",
            };
            word(&format!("{prefix}{}", self.names[side]))
        });
        let workers = if self.workers > 1 && !options.contains("--workers") {
            format!(" --workers {}", self.workers)
        } else {
            String::new()
        };
        format!("synproxy{workers}{}{options} {lan} {wan}", if options.is_empty() { "" } else { " " })
    }

    /// Everything that the checks find.
    fn examine(&self) -> Vec<Finding> {
        let findings = checks().flat_map(|(_, check)| {
            (check.examine)(self).into_iter().map(|Found { level, port, text, command }| Finding {
                id: check.id,
                level,
                port,
                finding: text,
                why: check.why,
                command,
            })
        });
        findings.collect()
    }
}

/// A word of a shell's command line. Names of interfaces may have any character.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+:@/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Examines the two interfaces, or each pair of members of two aggregations, and prints what was found; returns the exit status of the process.
///
/// # Errors
/// When the command line or the configuration is wrong, or the kernel cannot be asked.
pub fn doctor(arguments: &DoctorArguments) -> Result<ExitCode, Failure> {
    let [lans, wans] = [&arguments.lan, &arguments.wan].map(|port| members_of(port));
    if lans.len() != wans.len() {
        return Err(Failure::from(OpenError::Unsupported {
            what: format!("{} member(s) on the LAN and {} on the WAN", lans.len(), wans.len()),
            hint: "name the members of both sides, each behind its partner's place: `lan0,lan1 wan0,wan1`".into(),
        }));
    }
    let mut errors = 0;
    for (at, (lan, wan)) in lans.into_iter().zip(wans).enumerate() {
        let report = Report::of(&scene(arguments, [lan, wan])?);
        errors += report.errors;
        if arguments.json {
            println!("{}", report.json());
        } else {
            print!("{}{report}", if at > 0 { "\n" } else { "" });
        }
    }
    Ok(if errors > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The scene of two ports of which each is one interface.
fn scene(arguments: &DoctorArguments, [lan, wan]: [&str; 2]) -> Result<Scene, Failure> {
    let config = settings::load(arguments.config.as_deref())?.config;
    let workers = arguments.workers.map_or(config.workers, usize::from);
    let is_host = lan == HOST;
    let parse = |name: &str| match interface_of(name)? {
        Some((device, asked)) => Ok((device.to_owned(), asked)),
        None if is_host && name == HOST => Ok((HOST.to_owned(), Asked::Best)),
        None => Err(Failure::from(OpenError::Unsupported {
            what: format!("{name} is no interface of the kernel"),
            hint: "the doctor looks at NICs, veth, taps and other interfaces that `ip link` lists".into(),
        })),
    };
    let ((lan, lan_asked), (wan, wan_asked)) = (parse(lan)?, parse(wan)?);
    if is_host && wan_asked == Asked::Packet {
        return Err(Failure::from(OpenError::Unsupported {
            what: format!("{HOST} works by AF_XDP only"),
            hint: format!("write `{HOST} {wan}`"),
        }));
    }
    let Described { ports, conflict } = describe([if is_host { &wan } else { &lan }, &wan])?;
    let port = |port: Result<Description, OpenError>| match port {
        Ok(port) => Ok(Some(port)),
        Err(OpenError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let [lan_port, wan_port] = ports;
    let (lan_port, mut wan_port) = (port(lan_port)?, port(wan_port)?);
    if let Some(nic) = wan_port.as_mut().filter(|_| is_host) {
        // What the machine leaves to its NIC the box leaves as it is.
        nic.offloads.retain(|name| !name.starts_with("tx-"));
    }
    Ok(Scene {
        names: [lan, wan],
        asked: [lan_asked, wan_asked],
        ports: [if is_host { lan_port.map(|nic| stack_behind(&nic, workers)) } else { lan_port }, wan_port],
        conflict: conflict.filter(|_| !is_host),
        is_host,
        root: Root::new(Path::new("/")),
        workers,
        is_busy: config.poll == Poll::Busy,
        fast_path: config.fast_path,
        needed: Needed::of(&config, workers, false),
        syns_in_kernel: config.syns_in_kernel,
        failures: config.failures,
        program: std::env::current_exe().map_or_else(|_| "synproxy".into(), |path| path.display().to_string()),
    })
}

/// The interface that the box makes between this machine's stack and the NIC.
fn stack_behind(nic: &Description, workers: usize) -> Description {
    Description {
        name: HOST.to_owned(),
        kind: "veth".to_owned(),
        driver: "veth".to_owned(),
        is_up: true,
        has_carrier: true,
        mtu: nic.mtu,
        holder: if nic.holder == Holder::Killed { Holder::Nobody } else { nic.holder.clone() },
        xdp_features: Some(XdpFeatures { is_native: true, has_frags: true, ..XdpFeatures::default() }),
        queues: Some(QueueCounts { receiving: workers, most_pairs: workers, are_combined: true }),
        ..Description::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_check_has_a_name_of_its_own_and_says_what_why_and_what_to_do() {
        let ids: BTreeSet<&str> = checks().map(|(_, check)| check.id).collect();
        assert_eq!(ids.len(), checks().count());
        for (_, check) in checks() {
            assert!(check.why.ends_with('.') && !check.looks_at.is_empty() && !check.remedy.is_empty(), "{}", check.id);
            assert!(check.id.len() <= 16, "{} is wider than its column", check.id);
            assert!(help().contains(check.id));
        }
    }

    #[test]
    fn a_word_of_a_command_is_one_word_whatever_it_contains() {
        assert_eq!(word("enp3s0.7"), "enp3s0.7");
        assert_eq!(word("a;reboot"), "'a;reboot'");
        assert_eq!(word("it's$(x)"), r"'it'\''s$(x)'");
        assert_eq!(word(""), "''");
    }
}
