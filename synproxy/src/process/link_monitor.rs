//! The link monitor: notices when an interface loses its link or is gone, passes the loss on to the other port if it is to, and when
//! somebody has changed what the box has set at the interfaces.

use super::exit::Failure;
use super::privileges;
use confparse::{LinkLoss, PortLoss};
use pktio::Guard;
use pktio::netdev::{Interface, LinkReader, LinkState, LinkWatch};
use std::thread;
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// How often the settings are compared with what the box has set, and the links read if no message of the kernel says that one has changed.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long a port that was taken up, or whose settings were changed, may take to find its link again: no other loss counts until then.
const SETTLE: Duration = Duration::from_secs(10);

/// How long a port must have its link again before the other one is taken up, and the most that this becomes while it flaps.
const HOLD: Duration = Duration::from_secs(1);
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// A link that is lost again within this time flaps.
const FLAPS_WITHIN: Duration = Duration::from_secs(60);

/// How often the thread that waits for messages of the kernel wakes up without one.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long the thread that waits for messages of the kernel lets several of them become one.
const GATHER: Duration = Duration::from_millis(10);

/// What is known of a port's link, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkReport {
    /// How it is.
    pub condition: Condition,
    /// Since when.
    pub since: Instant,
    /// How often it was lost while the box ran.
    pub lost: u64,
    /// How often the port was taken down because the other one had lost its link.
    pub taken_down: u64,
    /// How often somebody has changed settings of the interface that the box had set.
    pub settings_changed: u64,
}

/// How a port's link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is somebody at the other end.
    Up,
    /// The interface is up, and there is nobody.
    NoCarrier,
    /// Somebody has taken the interface down.
    Down,
    /// The box has taken it down, because the other port has lost its link.
    TakenDown,
}

impl From<Condition> for ::control::LinkCondition {
    fn from(condition: Condition) -> Self {
        match condition {
            Condition::Up => Self::Up,
            Condition::NoCarrier => Self::NoCarrier,
            Condition::Down => Self::Down,
            Condition::TakenDown => Self::TakenDown,
        }
    }
}

/// The interfaces of the box.
#[derive(Default)]
pub struct LinkMonitor<'a> {
    reader: Option<LinkReader>,
    /// One pair, or one for each member of an aggregation: each is a cable of its own.
    pairs: Vec<Pair>,
    port_loss: PortLoss,
    guard: Option<&'a mut Guard>,
    settings_due: Option<Instant>,
}

/// Two ports between which the box is, and what becomes of a lost link of one.
#[derive(Default)]
struct Pair {
    /// LAN and WAN, where they are interfaces of the kernel's.
    ports: [Option<Port>; 2],
    policy: Policy,
}

struct Port {
    name: String,
    index: u32,
    settings_changed: u64,
}

impl<'a> LinkMonitor<'a> {
    /// What restores the interfaces, if anything does.
    pub fn guard(&mut self) -> Option<&mut Guard> {
        self.guard.as_deref_mut()
    }

    /// Monitors the interfaces behind the names of these ports, LAN first, whose settings `guard` has; a capture file has none, nor has a
    /// port of a netmap switch or pipe, nor this machine's own stack.
    pub fn new(ports: [&str; 2], guard: &'a mut Guard, link_loss: LinkLoss, port_loss: PortLoss) -> Self {
        let port = |port: &str| {
            let name = interface_of(port)?;
            let interface = Interface::locate(name).ok()?;
            Some(Port { name: interface.name().to_owned(), index: interface.index(), settings_changed: 0 })
        };
        let reader = LinkReader::new().inspect_err(|error| warn!("links are not monitored: {error}")).ok();
        let [lan, wan] = ports.map(pktio::members_of);
        let pair = |(lan, wan): (&str, &str)| {
            let policy = Policy { forwards: link_loss == LinkLoss::Forward, ..Policy::default() };
            Pair { ports: [lan, wan].map(port), policy }
        };
        Self {
            reader,
            pairs: lan.into_iter().zip(wan).map(pair).collect(),
            port_loss,
            guard: Some(guard),
            settings_due: None,
        }
    }

    /// Starts a thread that calls `notify` when the kernel reports a change of a link, until that returns false. Without it changes are
    /// noticed a second later at most.
    pub fn watch(&self, notify: impl Fn() -> bool + Send + 'static) {
        let indexes: Vec<u32> = self.ports().map(|port| port.index).collect();
        if indexes.is_empty() {
            return;
        }
        let watch = LinkWatch::new(indexes).and_then(|mut watch| {
            let run = move || {
                privileges::enter_control_thread();
                loop {
                    match watch.wait(LONGEST_WAIT) {
                        Ok(false) => {}
                        Ok(true) if notify() => thread::sleep(GATHER),
                        Ok(true) => return,
                        Err(error) => return debug!("links are not watched any more: {error}"),
                    }
                }
            };
            thread::Builder::new().name("links".to_owned()).spawn(run)
        });
        if let Err(error) = watch {
            debug!("links are not watched: {error}");
        }
    }

    /// From now on this becomes of the other port when one has lost its link. A port that was taken down for that is taken up again if nothing
    /// is to become of it. This becomes of the box when an interface is gone.
    pub fn set_link_loss(&mut self, link_loss: LinkLoss, port_loss: PortLoss) {
        self.port_loss = port_loss;
        self.pairs.iter_mut().for_each(|pair| pair.policy.forwards = link_loss == LinkLoss::Forward);
    }

    fn ports(&self) -> impl Iterator<Item = &Port> {
        self.pairs.iter().flat_map(|pair| pair.ports.iter().flatten())
    }

    /// When to check again, whatever the kernel reports.
    pub fn due(&self, now: Instant) -> Instant {
        let own = if self.ports().next().is_some() { self.settings_due.unwrap_or(now) } else { now + CHECK_EVERY };
        self.pairs.iter().filter_map(|pair| pair.policy.due(now)).fold(own, Instant::min)
    }

    /// Checks once, logs what has changed, and does what is to be done about it.
    ///
    /// # Errors
    /// When an interface is gone. A later interface of the same name is another one.
    pub fn check(&mut self, now: Instant) -> Result<(), Failure> {
        for pair in &mut self.pairs {
            let mut states = [None; 2];
            for (port, state) in pair.ports.iter_mut().zip(&mut states) {
                let (Some(port), Some(reader)) = (port, &mut self.reader) else { continue };
                match reader.read(port.index) {
                    Ok(Some((name, found))) => {
                        if name != port.name {
                            info!("{} is called {name} now", port.name);
                            port.name = name;
                        }
                        *state = Some(found);
                    }
                    Ok(None) => {
                        let waits = self.port_loss == PortLoss::Wait;
                        return Err(Failure::Gone { interface: port.name.clone(), waits });
                    }
                    Err(error) => debug!("{}: {error}", port.name),
                }
            }
            for change in pair.policy.step(now, states) {
                pair.carry_out(change, self.guard.as_deref_mut(), now);
            }
        }
        if self.settings_due.is_none_or(|due| now >= due) {
            self.settings_due = Some(now + CHECK_EVERY);
            self.check_settings(now);
        }
        Ok(())
    }

    /// What is known of each port's link. An aggregation is as well as the worst of its members.
    pub fn reports(&self) -> [Option<LinkReport>; 2] {
        let report = |pair: &Pair, side: usize| {
            let changed = pair.ports[side].as_ref()?.settings_changed;
            pair.policy.sides[side].report(changed)
        };
        [0, 1].map(|side| self.pairs.iter().filter_map(|pair| report(pair, side)).reduce(LinkReport::with))
    }

    fn check_settings(&mut self, now: Instant) {
        let Some(guard) = &mut self.guard else { return };
        for changed in guard.check_settings() {
            warn!("{}", changed.what);
            for pair in &mut self.pairs {
                for (side, port) in pair.ports.iter_mut().enumerate() {
                    let Some(port) = port.as_mut().filter(|port| port.index == changed.index) else { continue };
                    port.settings_changed += 1;
                    if changed.is_set_back {
                        pair.policy.disturb(side, now);
                    }
                }
            }
        }
    }
}

impl LinkReport {
    /// Of two members of a port: the condition of the one that has no link, and what both have counted.
    fn with(self, other: LinkReport) -> LinkReport {
        let worse = if self.condition == Condition::Up { other } else { self };
        LinkReport {
            lost: self.lost + other.lost,
            taken_down: self.taken_down + other.taken_down,
            settings_changed: self.settings_changed + other.settings_changed,
            ..worse
        }
    }
}

impl Pair {
    fn carry_out(&mut self, change: Change, guard: Option<&mut Guard>, now: Instant) {
        let name = |side: usize| self.ports[side].as_ref().map_or("", |port| port.name.as_str());
        match change {
            Change::Lost(side, Condition::Down) => warn!("{} is down; nothing passes until it is up again", name(side)),
            Change::Lost(side, _) => warn!("{} has lost its link; nothing passes until it is back", name(side)),
            Change::Flapped(side) => warn!("{} had lost its link, and has it again", name(side)),
            Change::Returned(side, after) => info!("{} is up again, after {:.1} s", name(side), after.as_secs_f64()),
            Change::Overruled(side) => info!("{} was taken up by somebody; it stays up", name(side)),
            Change::TakeDown(side) => {
                warn!("{} is taken down, since {} has no link (`link_loss = forward`)", name(side), name(1 - side));
                self.set_up(side, false, guard, now);
            }
            Change::TakeUp(side) => {
                let why = if self.policy.forwards { "has its link again" } else { "is not to matter to it any more" };
                info!("{} is taken up again, since {} {why}", name(side), name(1 - side));
                self.set_up(side, true, guard, now);
            }
        }
    }

    fn set_up(&mut self, side: usize, up: bool, guard: Option<&mut Guard>, now: Instant) {
        let (Some(port), Some(guard)) = (&self.ports[side], guard) else { return };
        if let Err(error) = guard.set_up(port.index, up) {
            warn!("{} cannot be taken {}: {error}", port.name, if up { "up" } else { "down" });
            self.policy.failed(side, up, now);
        }
    }
}

/// The name of the interface behind a port, if it is one of the kernel's.
fn interface_of(port: &str) -> Option<&str> {
    match port.split_once(':') {
        // What becomes of the link of the machine's own NIC is for the machine to decide.
        None if port == pktio::HOST => None,
        None => Some(port),
        Some(("xdp" | "packet", name)) => Some(name),
        Some(("netmap", name)) if !name.contains(['{', '}']) => Some(name),
        Some(_) => None,
    }
}

/// Something that has happened to a port, LAN 0 and WAN 1, or is to be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It has lost its link.
    Lost(usize, Condition),
    /// It had lost its link between two looks.
    Flapped(usize),
    /// It has its link again, after this time.
    Returned(usize, Duration),
    /// Somebody has taken it up that was taken down.
    Overruled(usize),
    /// It is to be taken down.
    TakeDown(usize),
    /// It is to be taken up again.
    TakeUp(usize),
}

/// What becomes of a lost link. It knows no interface, and no clock but that of its caller.
#[derive(Default)]
struct Policy {
    /// Whether the loss of one port takes the other one down.
    forwards: bool,
    sides: [Side; 2],
}

/// What is known of a port.
#[derive(Clone, Copy, Default)]
struct Side {
    state: Option<LinkState>,
    /// Since when it has its link, or has none.
    since: Option<Instant>,
    /// It is lost, and the log has said so.
    is_lost: bool,
    /// The box has taken it down.
    is_taken_down: bool,
    /// It stays up although the other port has no link: somebody wanted it so, or it cannot be taken down.
    stays_up: bool,
    /// Until then a missing link is the box's own doing.
    settles: Option<Instant>,
    /// How long it must have its link before the other port is taken up.
    hold: Duration,
    /// When it was lost.
    lost_at: Option<Instant>,
    /// When it last had its link again.
    returned: Option<Instant>,
    lost: u64,
    taken_down: u64,
}

impl Policy {
    /// Takes the links as they are now, and returns what has happened and is to be done, in this order.
    fn step(&mut self, now: Instant, states: [Option<LinkState>; 2]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (number, (side, state)) in self.sides.iter_mut().zip(states).enumerate() {
            if let Some(state) = state {
                side.take(number, now, state, &mut changes);
            }
        }
        for side in 0..2 {
            if self.forwards {
                self.forward(side, now, &mut changes);
            } else if self.sides[side].is_taken_down {
                self.take_up(side, now, &mut changes);
            }
        }
        changes
    }

    /// Takes a port up that the box has taken down.
    fn take_up(&mut self, side: usize, now: Instant, changes: &mut Vec<Change>) {
        self.sides[side].is_taken_down = false;
        self.sides[side].settles = Some(now + SETTLE);
        changes.push(Change::TakeUp(side));
    }

    /// Takes the other port down if `lost` has no link, and up again if it has.
    fn forward(&mut self, lost: usize, now: Instant, changes: &mut Vec<Change>) {
        let own = self.sides[lost];
        let other = &mut self.sides[1 - lost];
        if own.is_lost && !other.is_taken_down && other.has_link() && !other.stays_up {
            other.is_taken_down = true;
            other.taken_down += 1;
            other.settles = None;
            changes.push(Change::TakeDown(1 - lost));
        } else if own.has_link() {
            other.stays_up = false;
            if other.is_taken_down && own.held(now) {
                self.take_up(1 - lost, now, changes);
            }
        }
    }

    /// The box has changed something at this port itself, which may cost it its link for a while.
    fn disturb(&mut self, side: usize, now: Instant) {
        self.sides[side].settles = Some(now + SETTLE);
    }

    /// What was to be done to this port has failed.
    fn failed(&mut self, side: usize, up: bool, now: Instant) {
        let side = &mut self.sides[side];
        if up {
            // It is tried again when the other port has had its link for as long once more.
            (side.is_taken_down, side.settles) = (true, Some(now + HOLD));
        } else {
            (side.is_taken_down, side.stays_up) = (false, true);
            side.taken_down -= 1;
        }
    }

    /// When something is to be done although no link changes.
    fn due(&self, now: Instant) -> Option<Instant> {
        let due = |(number, side): (usize, &Side)| {
            let settled = side.settles.filter(|_| !side.has_link() && !side.is_taken_down);
            let held = side.since.filter(|_| side.has_link() && self.sides[1 - number].is_taken_down);
            [settled, held.map(|since| since + side.hold)]
        };
        self.sides.iter().enumerate().flat_map(due).flatten().filter(|due| *due > now).min()
    }
}

impl Side {
    fn has_link(&self) -> bool {
        self.state.is_some_and(|state| state.has_carrier)
    }

    /// Whether it has had its link for long enough.
    fn held(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now >= since + self.hold)
    }

    /// Takes its link as it is now.
    fn take(&mut self, number: usize, now: Instant, state: LinkState, changes: &mut Vec<Change>) {
        if self.is_taken_down && state.is_up && self.state.is_some_and(|former| !former.is_up) {
            self.is_taken_down = false;
            self.stays_up = true;
            self.settles = Some(now + SETTLE);
            changes.push(Change::Overruled(number));
        }
        let is_excused = self.is_taken_down || self.settles.is_some_and(|until| now < until);
        let former = self.state.replace(state);
        let had_link = former.map_or(state.has_carrier, |former| former.has_carrier);
        if former.is_none() {
            self.hold = HOLD;
        }
        if former.is_none() || had_link != state.has_carrier {
            self.since = Some(now);
        }
        if state.has_carrier {
            let times = former.map_or(0, |former| state.losses.wrapping_sub(former.losses));
            if had_link && times > 0 && !is_excused {
                self.lose(now, times);
                self.since = Some(now);
                changes.push(Change::Flapped(number));
            }
            if !had_link {
                self.settles = None;
                self.returned = Some(now);
                if std::mem::take(&mut self.is_lost) {
                    let after = self.lost_at.map_or(Duration::ZERO, |lost| now - lost);
                    changes.push(Change::Returned(number, after));
                }
            }
        } else if !self.is_lost && !is_excused {
            self.is_lost = true;
            self.lost_at = Some(now);
            // A port that had no link at the start has lost none.
            if former.is_some() {
                self.lose(now, 1);
                changes.push(Change::Lost(number, self.condition()));
            }
        }
    }

    /// Counts a loss; one soon after a return makes the hold longer.
    fn lose(&mut self, now: Instant, times: u32) {
        self.lost += u64::from(times);
        let flaps = self.returned.is_some_and(|returned| now < returned + FLAPS_WITHIN);
        self.hold = if flaps { (2 * self.hold).min(LONGEST_HOLD) } else { HOLD };
    }

    fn condition(&self) -> Condition {
        match self.state {
            _ if self.is_taken_down => Condition::TakenDown,
            Some(LinkState { has_carrier: true, .. }) => Condition::Up,
            Some(LinkState { is_up: true, .. }) => Condition::NoCarrier,
            _ => Condition::Down,
        }
    }

    fn report(&self, settings_changed: u64) -> Option<LinkReport> {
        Some(LinkReport {
            condition: self.condition(),
            since: self.since?,
            lost: self.lost,
            taken_down: self.taken_down,
            settings_changed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: LinkState = LinkState { is_up: true, has_carrier: true, losses: 0 };
    const NONE: LinkState = LinkState { is_up: true, has_carrier: false, losses: 1 };
    const DOWN: LinkState = LinkState { is_up: false, has_carrier: false, losses: 1 };

    /// A policy, and a clock for it.
    struct Steps {
        policy: Policy,
        begin: Instant,
    }

    impl Steps {
        fn new(forwards: bool) -> Steps {
            let mut steps = Steps { policy: Policy { forwards, ..Policy::default() }, begin: Instant::now() };
            assert_eq!(steps.at(0.0, UP, UP), []);
            steps
        }

        fn at(&mut self, seconds: f64, lan: LinkState, wan: LinkState) -> Vec<Change> {
            self.policy.step(self.begin + Duration::from_secs_f64(seconds), [Some(lan), Some(wan)])
        }

        fn due(&self, seconds: f64) -> Option<f64> {
            let due = self.policy.due(self.begin + Duration::from_secs_f64(seconds))?;
            Some((due - self.begin).as_secs_f64())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_loss_is_reported_and_counted_once() {
        let mut steps = Steps::new(false);
        assert_eq!(steps.at(1.0, NONE, UP), [Change::Lost(0, Condition::NoCarrier)]);
        assert_eq!(steps.at(2.0, NONE, UP), []);
        assert_eq!(steps.at(3.0, DOWN, UP), [], "without a link it is anyway");
        assert_eq!(steps.at(4.0, LinkState { losses: 1, ..UP }, UP), [Change::Returned(0, 3 * SECOND)]);
        assert_eq!(steps.at(5.0, LinkState { losses: 3, ..UP }, UP), [Change::Flapped(0)]);
        assert_eq!(steps.at(6.0, LinkState { losses: 3, ..UP }, DOWN), [Change::Lost(1, Condition::Down)]);
        assert_eq!((steps.policy.sides[0].lost, steps.policy.sides[1].lost), (3, 1));
    }

    #[test]
    fn a_loss_is_passed_on_and_the_port_that_was_taken_down_for_it_has_lost_nothing() {
        let mut steps = Steps::new(true);
        assert_eq!(steps.at(1.0, NONE, UP), [Change::Lost(0, Condition::NoCarrier), Change::TakeDown(1)]);
        assert_eq!(steps.at(2.0, NONE, DOWN), []);
        assert_eq!(steps.at(5.0, UP, DOWN), [Change::Returned(0, 4 * SECOND)]);
        assert_eq!(steps.due(5.0), Some(6.0));
        assert_eq!(steps.at(6.0, UP, DOWN), [Change::TakeUp(1)]);
        assert_eq!(steps.at(6.1, UP, DOWN), []);
        assert_eq!(steps.at(8.0, UP, NONE), [], "a link takes its time");
        assert_eq!(steps.at(9.0, UP, UP), []);
        let wan = steps.policy.sides[1];
        assert_eq!((wan.lost, wan.taken_down, wan.condition()), (0, 1, Condition::Up));
    }

    #[test]
    fn a_port_that_does_not_come_back_is_lost_itself() {
        let mut steps = Steps::new(true);
        steps.at(1.0, NONE, UP);
        steps.at(2.0, UP, DOWN);
        assert_eq!(steps.at(3.0, UP, DOWN), [Change::TakeUp(1)]);
        assert_eq!(steps.at(4.0, UP, NONE), []);
        assert_eq!(steps.due(4.0), Some(13.0));
        assert_eq!(steps.at(13.0, UP, NONE), [Change::Lost(1, Condition::NoCarrier), Change::TakeDown(0)]);
        assert_eq!(steps.at(14.0, DOWN, NONE), []);
        assert_eq!(steps.at(20.0, DOWN, UP), [Change::Returned(1, 7 * SECOND)]);
        assert_eq!(steps.at(21.0, DOWN, UP), [Change::TakeUp(0)]);
        assert_eq!(steps.at(22.0, UP, UP), []);
    }

    #[test]
    fn with_both_links_lost_there_is_nothing_to_pass_on() {
        let mut steps = Steps::new(true);
        assert_eq!(
            steps.at(1.0, NONE, NONE),
            [Change::Lost(0, Condition::NoCarrier), Change::Lost(1, Condition::NoCarrier)]
        );
        let change = steps.at(5.0, UP, NONE);
        assert_eq!(change, [Change::Returned(0, 4 * SECOND), Change::TakeDown(0)], "the other one is lost still");
        assert_eq!(steps.at(6.0, DOWN, UP), [Change::Returned(1, 5 * SECOND)]);
        assert_eq!(steps.at(7.0, DOWN, UP), [Change::TakeUp(0)]);
    }

    #[test]
    fn a_link_that_flaps_has_to_stay_longer_each_time() {
        let mut steps = Steps::new(true);
        let mut at = 0.0;
        for hold in [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] {
            at += 1.0;
            assert_eq!(steps.at(at, NONE, UP).last(), Some(&Change::TakeDown(1)));
            at += 1.0;
            assert_eq!(steps.at(at, UP, DOWN), [Change::Returned(0, SECOND)]);
            assert_eq!(steps.due(at), Some(at + hold));
            assert_eq!(steps.at(at + hold - 0.1, UP, DOWN), []);
            at += hold;
            assert_eq!(steps.at(at, UP, DOWN), [Change::TakeUp(1)]);
            assert_eq!(steps.at(at + 0.5, UP, UP), []);
        }
        // A minute later it counts as sound again.
        steps.at(at + 100.0, NONE, UP);
        steps.at(at + 101.0, UP, DOWN);
        assert_eq!(steps.at(at + 102.0, UP, DOWN), [Change::TakeUp(1)]);
    }

    #[test]
    fn who_takes_the_port_up_has_the_last_word_until_the_link_is_back() {
        let mut steps = Steps::new(true);
        steps.at(1.0, NONE, UP);
        assert_eq!(steps.at(1.1, NONE, DOWN), []);
        assert_eq!(steps.at(2.0, NONE, UP), [Change::Overruled(1)]);
        assert_eq!(steps.at(3.0, NONE, UP), []);
        assert_eq!(steps.at(4.0, UP, UP), [Change::Returned(0, 3 * SECOND)]);
        assert_eq!(steps.at(5.0, NONE, UP).last(), Some(&Change::TakeDown(1)));
    }

    #[test]
    fn a_port_comes_up_again_when_the_loss_of_the_other_is_not_to_matter_any_more() {
        let mut steps = Steps::new(true);
        steps.at(1.0, NONE, UP);
        steps.policy.forwards = false;
        assert_eq!(steps.at(2.0, NONE, DOWN), [Change::TakeUp(1)]);
        assert_eq!(steps.at(3.0, NONE, UP), [], "the other one is lost still");
        steps.policy.forwards = true;
        assert_eq!(steps.at(4.0, NONE, UP), [Change::TakeDown(1)]);
    }

    #[test]
    fn what_cannot_be_taken_down_stays_up() {
        let mut steps = Steps::new(true);
        assert_eq!(steps.at(1.0, NONE, UP).last(), Some(&Change::TakeDown(1)));
        steps.policy.failed(1, false, steps.begin + SECOND);
        assert_eq!(steps.at(2.0, NONE, UP), []);
        assert_eq!((steps.policy.sides[1].taken_down, steps.policy.sides[1].condition()), (0, Condition::Up));
    }

    #[test]
    fn a_loss_that_the_box_has_caused_counts_for_nothing() {
        let mut steps = Steps::new(true);
        steps.policy.disturb(0, steps.begin + SECOND);
        assert_eq!(steps.at(1.1, NONE, UP), []);
        assert_eq!(steps.at(3.0, LinkState { losses: 1, ..UP }, UP), []);
        assert_eq!(steps.policy.sides[0].lost, 0);
    }

    #[test]
    fn a_port_without_a_link_from_the_start_has_lost_none_but_is_passed_on() {
        let mut policy = Policy { forwards: true, ..Policy::default() };
        let begin = Instant::now();
        assert_eq!(policy.step(begin, [Some(NONE), Some(UP)]), [Change::TakeDown(1)]);
        assert_eq!(policy.sides[0].lost, 0);
        assert_eq!(policy.step(begin + SECOND, [Some(UP), Some(DOWN)]), [Change::Returned(0, SECOND)]);
    }

    #[test]
    fn a_port_without_an_interface_takes_no_part() {
        let mut policy = Policy { forwards: true, ..Policy::default() };
        let begin = Instant::now();
        assert_eq!(policy.step(begin, [Some(UP), None]), []);
        assert_eq!(policy.step(begin + SECOND, [Some(NONE), None]), [Change::Lost(0, Condition::NoCarrier)]);
    }

    #[test]
    fn interfaces_are_monitored_under_any_name_and_files_are_not() {
        for (port, name) in [
            ("eth0", Some("eth0")),
            ("xdp:eth0", Some("eth0")),
            ("packet:eth0.7", Some("eth0.7")),
            ("netmap:eth0", Some("eth0")),
            ("netmap:pipe{1", None),
            ("netmap:pipe}1", None),
            ("vale0:1", None),
            ("pcap:lo", None),
            ("host", None),
            ("xdp:host", Some("host")),
            ("pcap:in=lo:out=lo", None),
        ] {
            assert_eq!(interface_of(port), name, "{port}");
        }
    }

    #[test]
    fn a_port_of_several_members_is_as_well_as_the_worst_of_them() {
        let now = Instant::now();
        let report = |condition, lost| LinkReport { condition, since: now, lost, taken_down: 1, settings_changed: 0 };
        let both = report(Condition::Up, 1).with(report(Condition::NoCarrier, 2));
        assert_eq!((both.condition, both.lost, both.taken_down), (Condition::NoCarrier, 3, 2));
        assert_eq!(report(Condition::Down, 1).with(report(Condition::Up, 2)).condition, Condition::Down);
    }

    #[test]
    fn an_interface_that_is_gone_stops_the_box() {
        let port = |index| Some(Port { name: "lo".into(), index, settings_changed: 0 });
        let lo = Interface::locate("lo").unwrap().index();
        let pair = Pair { ports: [port(lo), None], ..Pair::default() };
        let mut monitor = LinkMonitor { reader: LinkReader::new().ok(), pairs: vec![pair], ..LinkMonitor::default() };
        monitor.check(Instant::now()).unwrap();
        assert!(monitor.reports()[0].is_some() && monitor.reports()[1].is_none());
        monitor.pairs[0].ports[1] = port(0x7fff_fff0);
        assert!(
            matches!(monitor.check(Instant::now()), Err(Failure::Gone { interface, waits: false }) if interface == "lo")
        );
    }
}
