//! Reload: puts another configuration into force while the box runs. What can change does, without a dropped frame; what cannot is named with
//! the reason; and a configuration that is wrong changes nothing.
//!
//! [`confparse::Effect`] says of each key when a change takes effect. The workers get one policy each and change between two poll iterations.
//! What may fail (reading, groups, listening sockets) comes first, so that a reload is done as a whole or not at all.

use super::control_port::ControlPort;
use super::lists::Listed;
use super::servers::ServerRegistry;
use crate::dataplane::commands::{Answer, Command, CommandSender};
use crate::metrics::descriptors::ControlMetric;
use crate::metrics::http::Server;
use crate::metrics::snapshot::Board;
use crate::process::cli::Overrides;
use crate::process::exit::Failure;
use crate::process::listening::Listening;
use crate::process::log::{self, AUDIT, LogControl};
use crate::process::{clock, privileges, service_manager, settings};
use ::control::{Change, Configuration, Effect, Overridden, Reloaded, Reply, Role, Setting, Why};
use confparse::{Config, Events, LinkLoss, PortLoss};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tcpstate::{Policy, Target};
use tracing::{error, info, warn};

/// The longest value that the log shows in full, in characters.
const LONGEST_SHOWN: usize = 200;

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The file of the command line, read again.
    File,
    /// A client, which has read it.
    Text {
        /// The name of its file.
        name: String,
        /// What is in it.
        text: String,
    },
}

/// What a reload changes besides the workers. It is made after the [`Reloader`], which the answers to clients need.
pub trait Surroundings: Send + Sync {
    /// Serves the statistics.
    ///
    /// # Errors
    /// When no thread can be created.
    fn serve_statistics(&self, server: Server) -> Result<Listening, Failure>;

    /// From now on the statistics say that this is the configuration: its file, if there is one, and a hash of it.
    fn set_config(&self, config: (Option<String>, u64));

    /// From now on the members of these groups may use the control socket.
    fn set_groups(&self, groups: Vec<(u32, Role)>);

    /// A policy with these targets is about to be sent to the workers.
    fn set_targets(&self, targets: Arc<[Target]>);

    /// From now on these are the lists of clients.
    fn set_lists(&self, listed: Listed);

    /// From now on this becomes of a port when the other one has lost its link.
    fn set_link_loss(&self, link_loss: LinkLoss, port_loss: PortLoss);

    /// Reports events by these settings from now on; false if that is not certain.
    fn set_events(&self, events: &Events) -> bool;
}

/// See the module.
pub struct Reloader {
    workers: CommandSender,
    servers: Arc<ServerRegistry>,
    board: Arc<Board>,
    log: LogControl,
    overrides: Overrides,
    /// Whether frames are forwarded without the engine (`--bypass`).
    bypass: bool,
    is_commanded: AtomicBool,
    /// Locked during a reload, so that another waits for it.
    running: Mutex<Running>,
    surroundings: OnceLock<Box<dyn Surroundings>>,
}

/// What is in force.
struct Running {
    config: Config,
    /// What the file says, which the command line may override.
    said: Config,
    /// The file of the command line.
    file: Option<PathBuf>,
    statistics: OwnPort,
    control_port: OwnPort,
}

/// A TCP port of the box's own: the address of the configuration and the socket, if it is open.
type OwnPort = Option<(SocketAddr, Listening)>;

impl Reloader {
    /// For a box whose file, if it has one, says this, which the command line overrides.
    pub fn new(
        (said, file): (Config, Option<PathBuf>),
        overrides: Overrides,
        bypass: bool,
        workers: CommandSender,
        servers: Arc<ServerRegistry>,
        board: Arc<Board>,
        log: LogControl,
    ) -> Self {
        let mut config = said.clone();
        overrides.apply(&mut config);
        let is_commanded = AtomicBool::new(config.commanded());
        let running = Running { config, said, file, statistics: None, control_port: None };
        Self {
            workers,
            servers,
            board,
            log,
            overrides,
            bypass,
            is_commanded,
            running: Mutex::new(running),
            surroundings: OnceLock::new(),
        }
    }

    /// Serves the sockets that are open, and is ready to reload from now on.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn begin(
        &self,
        surroundings: Box<dyn Surroundings>,
        statistics: Option<Server>,
        control_port: Option<ControlPort>,
    ) -> Result<(), Failure> {
        let mut running = self.running();
        if let (Some(server), Some(address)) = (statistics, running.config.metrics) {
            running.statistics = Some((address, surroundings.serve_statistics(server)?));
        }
        if let (Some(port), Some(address)) = (control_port, control_address(&running.config)) {
            running.control_port = Some((address, port.serve(Arc::clone(&self.servers))?));
        }
        // It is called once.
        let _ = self.surroundings.set(surroundings);
        Ok(())
    }

    /// Whether any mode is `commanded`, so that the server table has an effect.
    pub fn is_commanded(&self) -> bool {
        self.is_commanded.load(Ordering::Relaxed)
    }

    /// The configuration that is in force.
    pub fn configuration(&self) -> Configuration {
        let running = self.running();
        let setting = |key: &confparse::Key| Setting {
            key: key.full_name(),
            value: key.text(&running.config),
            overridden: self
                .overrides
                .option(&key.full_name())
                .map(|option| Overridden { by: option.to_owned(), file: key.text(&running.said) }),
        };
        Configuration {
            file: running.file.as_ref().map(|file| file.display().to_string()),
            settings: Config::KEYS.iter().map(setting).collect(),
        }
    }

    /// Reads a configuration and puts it into force. What has changed, or why it is refused, is the answer, and goes to the log.
    pub fn reload(&self, origin: &Origin) -> Reply {
        // A reload that runs is waited for: the next one may find another file.
        let mut running = self.running();
        service_manager::reloading();
        let reloaded = self.exchange(&mut running, origin);
        match reloaded {
            Ok(reloaded) => {
                self.board.count(ControlMetric::Reloads);
                report(&reloaded);
                service_manager::ready(&format!("reloaded {}", reloaded.file));
                Reply::Reloaded(reloaded)
            }
            Err(why) => {
                self.board.count(ControlMetric::ReloadsRefused);
                error!("reload refused, nothing is changed: {why}");
                service_manager::ready(&format!("reload refused: {}", why.lines().next().unwrap_or_default()));
                Reply::refuse(Why::Refused, why)
            }
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the configuration in the stead of the one that is in force, or says why not.
    fn exchange(&self, running: &mut Running, origin: &Origin) -> Result<Reloaded, String> {
        let surroundings = self.surroundings.get().ok_or("the box is still starting")?;
        let in_words = |failure: Failure| failure.to_string();
        let (name, parsed) = match origin {
            Origin::Text { name, text } => (name.clone(), settings::parse_text(text, name).map_err(in_words)?),
            Origin::File => {
                let file = running.file.as_ref().ok_or(
                    "the box was started without --config, so there is no file to read again; `synctl reload FILE` gives it one",
                )?;
                (file.display().to_string(), settings::read_again(file).map_err(in_words)?)
            }
        };
        let listed = settings::examine(&parsed).map_err(|wrong| wrong.join("\n"))?;
        let mut warnings: Vec<String> = parsed.warnings.iter().map(ToString::to_string).collect();
        let said = parsed.config;
        let mut new = said.clone();
        self.overrides.apply(&mut new);
        let ineffective = running.said.changes(&said).into_iter().filter_map(|own| {
            let option = self.overrides.option(&own.key.full_name())?;
            Some(Change { effect: Effect::Nothing, reason: Some(overridden_by(option)), ..change(&own) })
        });
        let changes = running.config.changes(&new).iter().map(change).chain(ineffective).collect();
        let next = running.config.after_reload(&new);
        let groups = privileges::role_groups(&next).map_err(in_words)?;
        self.reopen(running, &next, &**surroundings).map_err(in_words)?;

        // Nothing fails from here on.
        running.said = said;
        let former = std::mem::replace(&mut running.config, next);
        let next = &running.config;
        warnings.extend(self.instruct_workers(&former, next, &**surroundings));
        if !self.bypass {
            // Their files may say something else although the configuration does not.
            surroundings.set_lists(listed);
        }
        let losses = |config: &Config| (config.link_loss, config.failures.port_loss);
        if losses(&former) != losses(next) {
            surroundings.set_link_loss(next.link_loss, next.failures.port_loss);
        }
        if former.events != next.events && !surroundings.set_events(&next.events) {
            warnings.push("what reports events is busy, and goes on as before; reload again".to_owned());
        }
        surroundings.set_groups(groups);
        if former.log_level != next.log_level {
            self.log.set(log::level_from_config(next.log_level));
        }
        self.is_commanded.store(next.commanded(), Ordering::Relaxed);
        surroundings.set_config((Some(name.clone()), settings::hash(next)));
        Ok(Reloaded { file: name, changes, warnings })
    }

    /// Opens the TCP ports that the configuration has, closes those it has no more, and leaves the others alone; all of them or none.
    fn reopen(&self, running: &mut Running, next: &Config, surroundings: &dyn Surroundings) -> Result<(), Failure> {
        let statistics = |address| surroundings.serve_statistics(Server::listen(address)?);
        let control_port = |address| {
            let listen = |error| Failure::Listen { what: "control port", address, error };
            ControlPort::listen(address).map_err(listen)?.serve(Arc::clone(&self.servers))
        };
        let former = running.statistics.as_ref().map(|(address, _)| *address);
        reopen(&mut running.statistics, next.metrics, statistics)?;
        reopen(&mut running.control_port, control_address(next), control_port).inspect_err(|_| {
            if let Err(failure) = reopen(&mut running.statistics, former, statistics) {
                error!("{failure}");
            }
        })
    }

    /// Has the workers follow the configuration; returns what they have not confirmed.
    fn instruct_workers(&self, former: &Config, next: &Config, surroundings: &dyn Surroundings) -> Vec<String> {
        let mut commands = Vec::new();
        if former.engine != next.engine && !self.bypass {
            let share = next.engine.share(self.workers.workers().max(1));
            let policy = Arc::new(Policy::with_clock(&share, clock::cookie_clock(), clock::now()));
            surroundings.set_targets(policy.targets().clone());
            commands.push(Command::SetPolicy(policy));
        }
        let shed = next.shed && !self.bypass;
        if (former.poll, former.shed) != (next.poll, next.shed) {
            commands.push(Command::SetOptions { poll: next.poll, shed });
        }
        let mut silent = Vec::new();
        for command in commands {
            for (worker, answer) in self.workers.send(&command).into_iter().enumerate() {
                match answer {
                    // The former policy is freed here.
                    Some(Answer::FormerPolicy(former)) => drop(former),
                    Some(_) => {}
                    None => silent.push(format!(
                        "worker {worker} has not answered within a second; it follows the new configuration when it does"
                    )),
                }
            }
        }
        silent.dedup();
        silent
    }
}

/// The address of the control port, if the configuration opens it.
fn control_address(config: &Config) -> Option<SocketAddr> {
    config.commanded().then(|| SocketAddr::new(config.listen, config.port))
}

/// Has a port be open at this address and no other. If that fails it is as it was.
fn reopen(
    port: &mut OwnPort,
    wanted: Option<SocketAddr>,
    open: impl Fn(SocketAddr) -> Result<Listening, Failure>,
) -> Result<(), Failure> {
    let former = port.as_ref().map(|(address, _)| *address);
    if former == wanted {
        return Ok(());
    }
    let close = |port: &mut OwnPort| {
        if let Some((_, listening)) = port.take() {
            listening.close();
        }
    };
    let opened = match wanted {
        None => None,
        Some(address) => match open(address) {
            // An address may include the former one, as every address does.
            Err(Failure::Listen { error, .. })
                if error.kind() == ErrorKind::AddrInUse && former.is_some_and(|own| own.port() == address.port()) =>
            {
                close(port);
                let again = open(address);
                if again.is_err() {
                    *port = former.and_then(|address| Some((address, open(address).ok()?)));
                }
                Some((address, again?))
            }
            opened => Some((address, opened?)),
        },
    };
    close(port);
    *port = opened;
    Ok(())
}

/// A change as the control protocol has it.
fn change(change: &confparse::Change) -> Change {
    let effect = change.key.effect();
    Change {
        key: change.key.full_name(),
        old: change.old.clone(),
        new: change.new.clone(),
        effect: in_protocol(effect),
        reason: effect.reason().map(str::to_owned),
    }
}

/// Why a value of the file changes nothing.
pub fn overridden_by(option: &str) -> String {
    format!("{option} of the command line overrides it")
}

/// When a change takes effect, as the control protocol has it.
pub fn in_protocol(effect: confparse::Effect) -> Effect {
    match effect {
        confparse::Effect::Now => Effect::Now,
        confparse::Effect::NewConnections => Effect::NewConnections,
        confparse::Effect::NextEpoch => Effect::NextEpoch,
        confparse::Effect::Restart(_) => Effect::Restart,
        confparse::Effect::Nothing(_) => Effect::Nothing,
    }
}

/// Tells the log what a reload has done.
fn report(reloaded: &Reloaded) {
    for warning in &reloaded.warnings {
        warn!("{warning}");
    }
    let Reloaded { file, changes, .. } = reloaded;
    let without = changes.iter().filter(|change| change.reason.is_some()).count();
    info!(target: AUDIT, "reloaded {file}: {} changes, {without} of them without effect", changes.len());
    for Change { key, old, new, effect, reason } in changes {
        let [old, new] = [old, new].map(|value| shown(value.as_deref()));
        match (effect, reason) {
            (Effect::Restart, Some(reason)) => {
                warn!(target: AUDIT, "`{key}`: {old} -> {new} takes a restart: {reason}")
            }
            (_, Some(reason)) => info!(target: AUDIT, "`{key}`: {old} -> {new} changes nothing: {reason}"),
            (Effect::NewConnections, None) => info!(target: AUDIT, "`{key}`: {old} -> {new}, for new connections"),
            (Effect::NextEpoch, None) => info!(target: AUDIT, "`{key}`: {old} -> {new}, from the next epoch on"),
            (_, None) => info!(target: AUDIT, "`{key}`: {old} -> {new}"),
        }
    }
}

/// A value in one line of bounded length.
fn shown(value: Option<&str>) -> String {
    let Some(value) = value else { return "off".to_owned() };
    let words: String = value.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = words.chars().take(LONGEST_SHOWN).collect();
    if short.len() < words.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::http::{Content, Site};
    use std::cell::RefCell;
    use std::io;
    use std::net::{TcpListener, TcpStream};

    fn open(address: SocketAddr) -> Result<Listening, Failure> {
        let listen = |error| Failure::Listen { what: "test", address, error };
        let socket = TcpListener::bind(address).map_err(listen)?;
        Listening::serve("test", socket, |socket, closed| {
            while !closed.get() {
                drop(socket.accept());
            }
        })
    }

    fn is_open(address: SocketAddr) -> bool {
        TcpStream::connect(address).is_ok()
    }

    #[test]
    fn a_port_moves_and_one_that_cannot_stays_where_it_is() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let [first, second] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let mut port = None;
        reopen(&mut port, Some(first), open).unwrap();
        assert!(is_open(first));
        reopen(&mut port, Some(second), open).unwrap();
        assert_eq!([first, second].map(is_open), [false, true]);
        assert!(reopen(&mut port, Some(taken.local_addr().unwrap()), open).is_err());
        assert!(is_open(second), "it stays where it was");
        let every: SocketAddr = ([0, 0, 0, 0], second.port()).into();
        reopen(&mut port, Some(every), open).unwrap();
        assert!(is_open(second), "an address that includes the former one");
        let refused = |address: SocketAddr| match address == second {
            true => Err(Failure::Listen { what: "test", address, error: io::ErrorKind::AddrInUse.into() }),
            false => open(address),
        };
        assert!(reopen(&mut port, Some(second), refused).is_err());
        assert_eq!(port.as_ref().map(|(address, _)| *address), Some(every));
        assert!(is_open(second), "it is open again as it was");
        reopen(&mut port, None, open).unwrap();
        assert!(!is_open(second) && port.is_none());
    }

    /// A site without content.
    struct Nothing;

    impl Site for Nothing {
        fn content(&self, _: &str) -> Option<Content> {
            None
        }
    }

    /// Notes what it is told.
    #[derive(Default)]
    struct Told(Arc<Mutex<Vec<String>>>);

    impl Surroundings for Told {
        fn serve_statistics(&self, server: Server) -> Result<Listening, Failure> {
            server.serve(Arc::new(Nothing))
        }
        fn set_config(&self, (file, _): (Option<String>, u64)) {
            self.0.lock().unwrap().push(format!("config {}", file.unwrap_or_default()));
        }
        fn set_groups(&self, groups: Vec<(u32, Role)>) {
            self.0.lock().unwrap().push(format!("groups {groups:?}"));
        }
        fn set_targets(&self, targets: Arc<[Target]>) {
            self.0.lock().unwrap().push(format!("targets {}", targets.len()));
        }
        fn set_lists(&self, listed: Listed) {
            self.0.lock().unwrap().push(format!("lists {}", listed.len()));
        }
        fn set_link_loss(&self, link_loss: LinkLoss, _: PortLoss) {
            self.0.lock().unwrap().push(format!("link_loss {link_loss:?}"));
        }
        fn set_events(&self, events: &Events) -> bool {
            self.0.lock().unwrap().push(format!("events from {}", events.attack_begin));
            true
        }
    }

    /// A reloader of a box without workers, and what it tells.
    fn reloader(overrides: Overrides, file: Option<PathBuf>) -> (Reloader, Arc<Mutex<Vec<String>>>) {
        let workers = CommandSender::open(0).unwrap();
        let servers = Arc::new(ServerRegistry::new(workers.clone(), [1, 2]));
        let board = Arc::new(Board::new(0));
        let log = LogControl::detached(::control::LogLevel::Info);
        let reloader = Reloader::new((Config::default(), file), overrides, false, workers, servers, board, log);
        let told = Told::default();
        let notes = Arc::clone(&told.0);
        reloader.begin(Box::new(told), None, None).unwrap();
        (reloader, notes)
    }

    fn text(body: &str) -> Origin {
        Origin::Text { name: "a.conf".to_owned(), text: format!("synproxyconf = {{ {body} }};") }
    }

    fn reloaded(reply: Reply) -> Reloaded {
        let Reply::Reloaded(reloaded) = reply else { panic!("{reply:?}") };
        reloaded
    }

    #[test]
    fn every_key_that_takes_no_restart_is_in_force_after_a_reload_and_no_other_is() {
        // Services need buffers, which there are none of before a restart: `services_come_and_go_with_a_reload` has them.
        for key in Config::KEYS.iter().filter(|key| key.name != "services") {
            let default = Config::default();
            // A value that the key takes and does not have.
            let value = [
                "1",
                "2",
                "3",
                "{ 0, 3 }",
                "{ 9 }",
                "\"nobody\"",
                "\"root\"",
                "\"192.0.2.1\"",
                "\"::1\"",
                if key.takes == confparse::Takes::Command { "\"/bin/true\"" } else { "\"/tmp/x.sock\"" },
            ]
            .into_iter()
            .chain(["{ \"192.0.2.1\" }", "{ \"/dev/null\" }", "{ { network = \"192.0.2.1\"; own_mss = 999; } }"])
            .map(|value| format!("{} = {value};", key.name))
            .chain([format!("{};", key.name)])
            .chain(match key.takes {
                confparse::Takes::Word(words) => words.iter().map(|word| format!("{} = {word};", key.name)).collect(),
                _ => Vec::new(),
            })
            .map(|entry| key.section.map_or(entry.clone(), |section| format!("{section} = {{ {entry} }};")))
            .find(|entry| {
                let parsed = confparse::parse(&format!("synproxyconf = {{ {entry} }};"), "x");
                parsed.is_ok_and(|parsed| key.text(&parsed.config) != key.text(&default))
            });
            // An address with a free port.
            let value = value.unwrap_or_else(|| {
                let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
                format!("{} = \"{free}\";", key.name)
            });
            let (reloader, _) = reloader(Overrides::default(), None);
            let done = reloaded(reloader.reload(&text(&value)));
            let [change] = done.changes.as_slice() else { panic!("{value}: {done:?}") };
            assert_eq!(change.key, key.full_name());
            let now = reloader.running().config.clone();
            let is_in_force = key.text(&now) == change.new;
            assert_eq!(is_in_force, change.effect != Effect::Restart, "{value}: {change:?}");
            assert_eq!(
                change.reason.is_some(),
                matches!(change.effect, Effect::Restart | Effect::Nothing),
                "{change:?}"
            );
        }
    }

    #[test]
    fn services_come_and_go_with_a_reload() {
        let (reloader, _) = reloader(Overrides::default(), None);
        let service = "services = { { address = \"192.0.2.1\"; port = 443; default = { \"192.0.2.2:443\" }; } };";
        let done = reloaded(reloader.reload(&text(&format!("{service} service_buffers = 1;"))));
        let effects: Vec<_> = done.changes.iter().map(|change| (change.key.as_str(), change.effect)).collect();
        assert_eq!(effects, [("services", Effect::NewConnections), ("service_buffers", Effect::Restart)]);
        let running = reloader.running().config.clone();
        assert_eq!((running.engine.services.len(), running.engine.service_buffers), (1, 0));
        let done = reloaded(reloader.reload(&text("own_mss = 1460;")));
        assert_eq!(done.changes.len(), 1, "{done:?}");
    }

    #[test]
    fn a_configuration_that_is_wrong_changes_nothing_and_says_where() {
        let (reloader, told) = reloader(Overrides::default(), None);
        let before = reloader.configuration();
        for (body, expected) in [
            ("own_mss = 1000;\n own_ms = 1000;", ["a.conf:2:2: ", "did you mean `own_mss`?"]),
            ("own_mss = 1000; control_read = \"no-such-group\";", ["a.conf:1:", "there is no such group"]),
            ("own_mss = 1000; metrics = \"192.0.2.77:9117\";", ["a.conf:1:", "this machine has no such address"]),
            ("own_mss = ", ["a.conf:1:", "expected"]),
        ] {
            let Reply::Error(refusal) = reloader.reload(&text(body)) else { panic!("{body}") };
            assert!(expected.iter().all(|part| refusal.message.contains(part)), "{body}: {}", refusal.message);
        }
        // One port can be opened, the other cannot: neither is.
        let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let _taken = TcpListener::bind(taken).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let body = format!("mssmode = commanded; port = {}; metrics = \"{free}\";", taken.port());
        let Reply::Error(refusal) = reloader.reload(&text(&body)) else { panic!("it is taken") };
        assert!(refusal.message.contains("no control port at") && !is_open(free), "{}", refusal.message);
        assert_eq!((reloader.configuration(), told.lock().unwrap().len()), (before, 0));
        let board = reloader.board.total();
        assert_eq!([ControlMetric::Reloads, ControlMetric::ReloadsRefused].map(|metric| board.get(metric)), [0, 5]);
    }

    #[test]
    fn a_file_is_read_again_and_one_that_is_gone_or_no_file_is_refused() {
        let path = std::env::temp_dir().join(format!("spx-reload-{}.conf", std::process::id()));
        let (reloader, told) = reloader(Overrides::default(), Some(path.clone()));
        let refused = || {
            let Reply::Error(refusal) = reloader.reload(&Origin::File) else { panic!("it is not there") };
            refusal.message
        };
        assert!(refused().contains("No such file"), "{}", refused());
        std::fs::create_dir(&path).unwrap();
        assert!(refused().contains("no file"), "{}", refused());
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(
            &path,
            "synproxyconf = { link_loss = forward; events = { attack_begin = 77; attack_end = 7; }; };",
        )
        .unwrap();
        let done = reloaded(reloader.reload(&Origin::File));
        assert_eq!((done.file.as_str(), done.changes.len()), (path.to_str().unwrap(), 3));
        for followed in ["link_loss Forward", "events from 77"] {
            assert!(told.lock().unwrap().contains(&followed.to_owned()), "{told:?}");
        }
        assert!(reloaded(reloader.reload(&Origin::File)).changes.is_empty(), "nothing has changed since");
        std::fs::remove_file(&path).unwrap();
        let (without, _) = self::reloader(Overrides::default(), None);
        let Reply::Error(refusal) = without.reload(&Origin::File) else { panic!("there is no file") };
        assert!(refusal.message.contains("without --config"), "{}", refusal.message);
    }

    #[test]
    fn what_takes_a_restart_is_told_each_time_until_it_happens() {
        let (reloader, _) = reloader(Overrides::default(), None);
        for _ in 0..2 {
            let done = reloaded(reloader.reload(&text("threadcount = 2;")));
            assert!(matches!(&done.changes[..], [change] if change.effect == Effect::Restart), "{done:?}");
        }
        assert!(reloaded(reloader.reload(&text("own_mss = 1000;"))).changes.len() == 1);
    }

    #[test]
    fn the_command_line_counts_whatever_a_file_says() {
        let line = ["synproxy", "--poll", "busy", "a", "b"];
        let overrides = <crate::process::cli::Arguments as clap::Parser>::parse_from(line).overrides();
        let (reloader, _) = reloader(overrides, None);
        let poll = || reloader.configuration().settings.into_iter().find(|setting| setting.key == "poll").unwrap();
        let overridden = |file: &str| Some(Overridden { by: "--poll".to_owned(), file: Some(file.to_owned()) });
        assert_eq!((poll().value.as_deref(), poll().overridden), (Some("busy"), overridden("adaptive")));
        let changes = reloaded(reloader.reload(&text("poll = interrupt;"))).changes;
        assert!(matches!(&changes[..], [change] if change.effect == Effect::Nothing), "{changes:?}");
        assert_eq!((poll().value.as_deref(), poll().overridden), (Some("busy"), overridden("interrupt")));
        assert!(reloaded(reloader.reload(&text("poll = interrupt;"))).changes.is_empty(), "it is no news");
    }

    #[test]
    fn long_values_are_cut_in_the_log() {
        let seen = RefCell::new(Vec::new());
        for value in [None, Some("1"), Some("{\n    1,\n    2\n}"), Some(&*"ä".repeat(999))] {
            seen.borrow_mut().push(shown(value));
        }
        let seen = seen.into_inner();
        assert_eq!(seen[..3], ["off", "1", "{ 1, 2 }"]);
        assert_eq!(seen[3].chars().count(), LONGEST_SHOWN + 1);
    }
}
