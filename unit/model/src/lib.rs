//! How one process of a box follows another, as a model that a checker goes through: three processes, each of which may be started, asked to end (SIGTERM), be asked
//! by another that takes over, be killed at any step, and end by itself; and the process that puts the interfaces back when nobody follows. The steps are
//! those of `synproxy/src/appliance.rs`, in its order; what they share is what the kernel keeps: the lock of the state, the lock of the interfaces, the
//! socket of the queue, which the kernel closes later than it is closed, or which is given to the process that asked, and the program on the interface with its
//! settings.
//!
//! What is held in every order: no two processes use the tables; a program that gives frames to a worker is that of the process which has the tables; the
//! interface is bare only while nobody runs; nobody takes back what is another's; and from every state a box can come up.

#![cfg(test)]

use stateright::{Checker, Model, Property};

/// How many processes are started, each once.
const PROCESSES: usize = 3;
/// How many of them are killed at most.
const KILLS: u8 = 2;

/// How far a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum At {
    /// It was not started.
    Waiting,
    /// It has its programs and its memory, and wants the lock of the state.
    Prepared,
    /// It has the lock of the state, and wants that of the interfaces.
    HasState,
    /// It has both, and wants the socket of the queue.
    HasInterfaces,
    /// It has the socket, and adopts the tables.
    HasSocket,
    /// Its workers use the tables, and the former program is still on the interface.
    Adopted,
    /// Its program is on the interface.
    Ready,
    /// It is to end: its workers have ended and no longer use the tables or the socket.
    WorkersEnded,
    /// It has let go of the interfaces.
    LeftInterfaces,
    /// It has let go of the state.
    LeftState,
    /// It has ended or was killed.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Process {
    at: At,
    /// It was started to take over from one that runs.
    takes_over: bool,
    /// It is to end. Then: whether its successor finds the interfaces as they are.
    ends: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    processes: Vec<Process>,
    /// Who has the lock of the state, and who asks for it.
    state: Option<usize>,
    asked: Option<usize>,
    /// Who has the lock of the interfaces; the last is the one that puts them back.
    interfaces: Option<usize>,
    /// Who has the socket of the queue, and whether the kernel is still closing it.
    socket: Option<usize>,
    is_closing: bool,
    /// Who listens for sockets that are given: the last that was to take over. It may have gone since.
    listener: Option<usize>,
    /// The socket has come to its owner by that way, which has not taken it yet.
    is_given: bool,
    /// Whose program is on the interface.
    program: Option<usize>,
    /// Whether the settings are those of a box.
    is_set: bool,
    /// Who has left the interfaces as they are, as long as nobody has had them since.
    left_by: Option<usize>,
    /// Of each process, whether the one that it started waits to put the interfaces back.
    keepers: [bool; PROCESSES],
    kills: u8,
    /// A program was taken off that gave frames to a worker, or settings were put back under a box.
    has_harmed: bool,
}

/// Who has the lock of the interfaces to put them back.
const KEEPER: usize = PROCESSES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Start {
        process: usize,
        takes_over: bool,
    },
    Step(usize),
    /// It is told to end by a service manager, or by a person who has everything back at once.
    Tell {
        process: usize,
        is_followed: bool,
    },
    /// It hears that another asks for the state.
    Hear(usize),
    Kill(usize),
    /// The kernel has closed the socket.
    Closed,
    /// A process that was given the socket, but does not get the state, closes it.
    GivesUp,
    /// The ten seconds of a process's keeper are over: it locks the interfaces if nobody has had them since.
    KeeperBegins(usize),
    KeeperEnds,
}

/// Whether a successor's word is taken back by who gets the state: a fault that the model is to find when this is false.
#[derive(Clone, Copy)]
struct Takeover {
    forgets_what_was_asked: bool,
}

impl Model for Takeover {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let process = Process { at: At::Waiting, takes_over: false, ends: None };
        vec![World {
            processes: vec![process; PROCESSES],
            state: None,
            asked: None,
            interfaces: None,
            socket: None,
            is_closing: false,
            listener: None,
            is_given: false,
            program: None,
            is_set: false,
            left_by: None,
            keepers: [false; PROCESSES],
            kills: 0,
            has_harmed: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, process) in world.processes.iter().enumerate() {
            match process.at {
                // They are alike: started in their order.
                At::Waiting if number == 0 || world.processes[number - 1].at != At::Waiting => {
                    actions.extend([false, true].map(|takes_over| Action::Start { process: number, takes_over }));
                }
                At::Waiting | At::Gone => continue,
                _ => actions.push(Action::Step(number)),
            }
            let runs = process.at > At::Waiting && process.at < At::Gone;
            if runs && world.kills < KILLS {
                actions.push(Action::Kill(number));
            }
            if process.at == At::Ready && process.ends.is_none() {
                actions.extend([false, true].map(|is_followed| Action::Tell { process: number, is_followed }));
                if world.asked.is_some() {
                    actions.push(Action::Hear(number));
                }
            }
        }
        if world.is_closing {
            actions.push(Action::Closed);
        }
        if world.is_given && world.state.is_some() && world.state != world.socket {
            actions.push(Action::GivesUp);
        }
        if world.interfaces == Some(KEEPER) {
            actions.push(Action::KeeperEnds);
        } else {
            let waiting = (0..PROCESSES).filter(|number| world.keepers[*number]);
            actions.extend(waiting.map(Action::KeeperBegins));
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Start { process, takes_over } => {
                next.processes[process].at = At::Prepared;
                next.processes[process].takes_over = takes_over;
                if takes_over {
                    next.listener = Some(process);
                }
            }
            Action::Step(number) => self.step(&mut next, number),
            Action::Tell { process, is_followed } => next.processes[process].ends = Some(is_followed),
            Action::Hear(number) => {
                next.asked = None;
                next.processes[number].ends = Some(true);
            }
            Action::Kill(number) => {
                next.kills += 1;
                next.processes[number].at = At::Gone;
                // The kernel lets go of everything but the program and the settings.
                for lock in [&mut next.state, &mut next.interfaces] {
                    *lock = lock.filter(|owner| *owner != number);
                }
                if next.socket == Some(number) {
                    (next.is_given, next.is_closing) = (false, true);
                }
            }
            Action::Closed => (next.socket, next.is_closing) = (None, false),
            Action::GivesUp => (next.is_given, next.is_closing) = (false, true),
            Action::KeeperBegins(number) => {
                next.keepers[number] = false;
                if next.interfaces.is_none() && next.left_by == Some(number) {
                    next.interfaces = Some(KEEPER);
                }
            }
            Action::KeeperEnds => {
                next.put_back();
                next.interfaces = None;
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one process uses the tables", |_, world: &World| {
                let uses = |process: &&Process| (At::Adopted..=At::Ready).contains(&process.at);
                world.processes.iter().filter(uses).count() <= 1
            }),
            Property::always("who uses the tables has the state, the interfaces and the socket", |_, world: &World| {
                world.processes.iter().enumerate().all(|(number, process)| {
                    !(At::Adopted..=At::Ready).contains(&process.at)
                        || [world.state, world.interfaces, world.socket] == [Some(number); 3]
                })
            }),
            Property::always("frames go to nobody else", |_, world: &World| {
                world
                    .processes
                    .iter()
                    .enumerate()
                    .all(|(number, process)| process.at != At::Ready || (world.program == Some(number) && world.is_set))
            }),
            Property::always("what is given is had by one that runs, until it takes it or gives it up", |_, world: &World| {
                let waits = |at: At| (At::Prepared..=At::HasInterfaces).contains(&at);
                !world.is_given || world.socket.is_some_and(|owner| waits(world.processes[owner].at))
            }),
            Property::sometimes("a process takes over without a socket being closed", |_, world: &World| {
                world.processes[0].at == At::LeftInterfaces && world.is_given && world.kills == 0
            }),
            Property::sometimes("what was given is given up", |_, world: &World| {
                world.is_given && world.state.is_some_and(|owner| world.socket != Some(owner) && owner != 0)
            }),
            Property::always("nobody takes back what is another's", |_, world: &World| !world.has_harmed),
            Property::always("a restart leaves no interface bare", |_, world: &World| {
                // From the end that somebody may follow until the next is ready, or the ten seconds of a keeper are over.
                let is_leaving = |process: &Process| process.at >= At::LeftInterfaces && process.at < At::Gone;
                let left = world.processes.iter().any(|it| is_leaving(it) && it.ends == Some(true));
                !left || world.left_by.is_none_or(|by| !world.keepers[by]) || world.program.is_some()
            }),
            Property::sometimes("a process takes over", |_, world: &World| {
                world.processes[1].takes_over && world.processes[1].at == At::Ready && world.kills == 0
            }),
            Property::sometimes("the interfaces are put back by the keeper", |_, world: &World| {
                world.processes[0].ends == Some(true) && world.processes[1].at == At::Waiting && world.program.is_none()
            }),
            Property::always("nobody is ended by a word that was not for it", |_, world: &World| {
                // A process that was asked by itself, or by one that has the state already, ends for nobody.
                world
                    .processes
                    .iter()
                    .enumerate()
                    .all(|(number, process)| process.at != At::Ready || world.asked != Some(number))
            }),
        ]
    }
}

impl Takeover {
    fn step(&self, world: &mut World, number: usize) {
        let process = world.processes[number].clone();
        let next = match process.at {
            At::Prepared if world.state.is_none() => {
                world.state = Some(number);
                if self.forgets_what_was_asked {
                    world.asked = None;
                }
                if world.listener == Some(number) {
                    world.listener = None;
                }
                At::HasState
            }
            At::Prepared if process.takes_over => {
                world.asked = Some(number);
                At::Prepared
            }
            At::HasState if world.interfaces.is_none() => {
                (world.interfaces, world.left_by) = (Some(number), None);
                world.is_set = true;
                At::HasInterfaces
            }
            At::HasInterfaces if world.socket.is_none() || world.is_given && world.socket == Some(number) => {
                (world.socket, world.is_given) = (Some(number), false);
                At::HasSocket
            }
            At::HasSocket => At::Adopted,
            At::Adopted => {
                world.program = Some(number);
                At::Ready
            }
            At::Ready if process.ends.is_some() => At::WorkersEnded,
            At::WorkersEnded => {
                let successor = world.listener.filter(|next| world.processes[*next].at == At::Prepared);
                match (process.ends, successor) {
                    (Some(true), Some(next)) => (world.socket, world.is_given) = (Some(next), true),
                    _ => world.is_closing = true,
                }
                match process.ends {
                    // Left as they are: a keeper begins to wait.
                    Some(true) => (world.keepers[number], world.left_by) = (true, Some(number)),
                    _ => world.put_back(),
                }
                world.interfaces = None;
                At::LeftInterfaces
            }
            At::LeftInterfaces => {
                world.state = None;
                At::LeftState
            }
            At::LeftState => At::Gone,
            waits => waits,
        };
        world.processes[number].at = next;
    }
}

impl World {
    fn put_back(&mut self) {
        self.has_harmed |= self.processes.iter().any(|process| (At::HasInterfaces..=At::Ready).contains(&process.at));
        (self.program, self.is_set) = (None, false);
    }
}

#[test]
fn one_process_follows_another_in_every_order() {
    let checker = Takeover { forgets_what_was_asked: true }.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

/// From every state in which a process is left to be started, it can come up: nothing is locked for ever.
#[test]
fn a_box_comes_up_from_every_state() {
    let model = Takeover { forgets_what_was_asked: true };
    let mut seen = std::collections::HashSet::new();
    let mut todo = model.init_states();
    while let Some(world) = todo.pop() {
        if !seen.insert(world.clone()) {
            continue;
        }
        let mut actions = Vec::new();
        model.actions(&world, &mut actions);
        if let Some(started) = actions.iter().find_map(|action| match action {
            Action::Start { takes_over: true, process } => Some((*process, model.next_state(&world, *action)?)),
            _ => None,
        }) {
            let (number, mut world) = started;
            // Nobody else is started or killed, and everything happens that can.
            for _ in 0..100 {
                let mut actions = Vec::new();
                model.actions(&world, &mut actions);
                actions.retain(|it| !matches!(it, Action::Start { .. } | Action::Kill(_) | Action::Tell { .. }));
                for action in actions {
                    if let Some(next) = model.next_state(&world, action) {
                        world = next;
                    }
                }
                if world.processes[number].at == At::Ready {
                    break;
                }
            }
            assert_eq!(world.processes[number].at, At::Ready, "{world:?}");
        }
        todo.extend(actions.into_iter().filter_map(|action| model.next_state(&world, action)));
    }
}

/// The model finds a fault: a word that the former owner never heard ends the one that said it.
#[test]
fn a_word_that_is_not_taken_back_is_found() {
    let checker = Takeover { forgets_what_was_asked: false }.checker().threads(2).spawn_bfs().join();
    checker.assert_any_discovery("nobody is ended by a word that was not for it");
}
