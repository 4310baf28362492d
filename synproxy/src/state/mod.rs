//! What outlives the process: flow tables, learned servers, refused ports, proved sources, limits and secrets, in memory that the next process takes over.
//!
//! A [`Store`](store::Store) has a [header](header) and, of each worker, a file of [tables](tables). The header says whose the state is and which *generation*
//! of files is valid: one word, so that a process which is killed while it moves flows to other files leaves the former ones in force.
//!
//! Tables that are as large as configured, of as many workers that find their connections in the same way, are used where they lie. Flows of others move to
//! new files. Whatever is found is parsed like any other input.

pub mod header;
mod keeper;
mod store;
mod succession;
mod successor;
mod tables;

pub use header::SPREAD;
pub use keeper::{Keeper, StateWatch};
pub use store::{trim, trim_all};
pub use successor::give;

use crate::dataplane::steering::Strategy;
use crate::process::clock;
use crate::process::exit::Failure;
use confparse::{Config, StateDir};
use header::{Expected, Header, Kept, Refused, WORDS};
use pktio::region::{Region, RegionError, RegionLock};
use pktio::{LeftSockets, interface_of, netdev::Interface};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use store::{Store, StoreError};
use tables::{Place, Shape, Tables};
use tcpstate::owner::Naming;
use tcpstate::{Adopted, Memory, Remains, Secrets};
use tracing::{info, warn};

/// What another process has left, and this one may take over.
struct Found {
    /// The generation of its files.
    generation: u64,
    /// How old it is, in microseconds.
    age: u64,
    /// The version of the layout of its tables.
    layout: u64,
}

/// The state of a box.
pub struct State {
    store: Store,
    header: Header,
    expected: Expected,
    kept: Kept,
    found: Option<Found>,
    /// What keeps other processes out of it: of the tables, and then of the header.
    locks: Vec<RegionLock>,
    /// The sockets that another process has left with it.
    left: Vec<LeftSockets>,
}

/// What became of the state of another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Takeover {
    /// How old the state was, in milliseconds; zero if there was none.
    pub age: u64,
    /// Flows for which a smaller table had no room.
    pub no_room: u64,
    /// Records that were in use and are those of no flow, as far as flows have moved; those of tables that are used where they lie are counted by the engine.
    pub refused: u64,
}

/// How the box is started.
pub struct Start<'a> {
    /// The names of the ports.
    pub ports: [&'a str; 2],
    /// The network namespace, where it is not the machine's.
    pub namespace: Option<u64>,
    /// Whether the state of another process is to be dropped.
    pub fresh: bool,
    /// Whether a process that has the state is asked to end.
    pub takeover: bool,
    /// The user and the group the process changes to.
    pub owner: (Option<u32>, Option<u32>),
    /// Secrets for a state that begins.
    pub secrets: Secrets,
    /// How interfaces spread connections in a state that begins.
    pub spread: [u8; SPREAD],
}

impl State {
    /// Finds the state of the box between these ports, or begins one. `None` where there can be none, or is to be none.
    ///
    /// # Errors
    /// When the place that the configuration names will not do.
    pub fn open(config: &Config, start: Start<'_>) -> Result<Option<Self>, Failure> {
        let Start { ports, namespace, fresh, takeover, owner, secrets, spread } = start;
        // Captures are read once.
        if ports.iter().any(|port| port.starts_with("pcap:")) {
            return Ok(None);
        }
        let Some(store) = Store::find(&config.state_dir, &name(ports, namespace), owner)? else { return Ok(None) };
        let is_named = config.state_dir != StateDir::Auto;
        let found = store.header(WORDS, takeover).map(|(region, left)| (Header::of(region), left));
        let ((header, lock), left) = match found {
            Ok((Ok(found), left)) => (found, left),
            Err(error @ StoreError::Held(_)) if takeover => {
                return Err(Failure::State(format!(
                    "{error}, and does not end: it is stopped or stuck, or runs without a state"
                )));
            }
            Err(StoreError::Failed(error)) if is_named || takeover => {
                return Err(Failure::State(format!("no state: {error}")));
            }
            Err(error @ StoreError::Held(_)) => return nothing(&error.to_string()),
            Err(error) => return nothing(&error.to_string()),
            Ok((Err(error), _)) => return nothing(&error.to_string()),
        };
        header.succession().begin();
        let expected = expected(config, ports);
        let examined = if fresh { Err(Refused::None) } else { header.examine(&expected) };
        let (kept, found) = match examined {
            Ok((kept, generation, age)) => (kept, Some(Found { generation, age, layout: header.layout() })),
            Err(refused) => {
                match refused {
                    Refused::None => {}
                    refused => warn!("the state in {} is not taken over: {refused}", store.describe()),
                }
                let kept = Kept::new(secrets, spread);
                begin(&store, &header, &expected, &kept);
                (kept, None)
            }
        };
        Ok(Some(Self { store, header, expected, kept, found, locks: vec![lock], left }))
    }

    /// The sockets that the process which has left the state has left with it.
    pub fn take_left(&mut self) -> Vec<LeftSockets> {
        std::mem::take(&mut self.left)
    }

    /// What the state of a box that runs keeps besides tables, as far as another process may know it before it has the state.
    pub fn peek(config: &Config, start: &Start<'_>) -> Option<Kept> {
        let store = Store::find(&config.state_dir, &name(start.ports, start.namespace), start.owner).ok()??;
        let header = Header::of(Region::of_another(store.directory()?.join(store::HEADER)).ok()?).ok()?.0;
        Some(header.examine(&expected(config, start.ports)).ok()?.0)
    }

    /// The secrets, and what else outlives the process besides tables.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The memory of so many workers' engines of this configuration, which is the [share](tcpstate::Config::share) of each: what another process has left, or new.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn memories(
        &mut self,
        share: &tcpstate::Config,
        workers: usize,
        strategy: Option<&Strategy>,
    ) -> Result<(Vec<Memory>, Takeover), RegionError> {
        let Expected { boot, keep, now, .. } = self.expected;
        self.store.tidy(|words| header::is_left(words, boot, keep, now));
        let shape = Shape::of(share);
        let wanted = Wanted { share, workers, shape, strategy, steering: steering(strategy, workers) };
        let Some(found) = self.found.take() else {
            return self.fresh(&wanted).map(|memories| (memories, Takeover::default()));
        };
        let age = (found.age / 1000).max(1);
        match self.take_over(&found, &wanted) {
            Ok(result) => {
                let (memories, takeover) = result?;
                Ok((memories, Takeover { age, ..takeover }))
            }
            Err(refused) => {
                warn!("the state in {} is not taken over: {refused}", self.store.describe());
                self.fresh(&wanted).map(|memories| (memories, Takeover::default()))
            }
        }
    }

    /// Takes over what is there; the outer error says why it cannot be.
    fn take_over(
        &mut self,
        found: &Found,
        wanted: &Wanted<'_>,
    ) -> Result<Result<(Vec<Memory>, Takeover), RegionError>, Refused> {
        let mut former = Vec::new();
        loop {
            let name = tables::file_name(found.generation, former.len());
            let tables = Tables::read(self.store.existing(&name)?, &name)?;
            let is_right = (tables.place.generation, tables.place.worker) == (found.generation, former.len())
                && former.first().is_none_or(|first: &Tables| first.place.workers == tables.place.workers);
            if !is_right {
                return Err(Refused::File(format!("{name} is another worker's")));
            }
            let workers = tables.place.workers;
            former.push(tables);
            if former.len() >= workers {
                break;
            }
        }
        // One that cannot be read would be left out without a word.
        if former.iter_mut().any(|tables| tables.remains(found.layout).is_none()) {
            return Err(match found.layout == Memory::LAYOUT {
                true => Refused::File("its flow records are not as large as they should be".into()),
                false => self.header.refused_layout(),
            });
        }
        self.header.attempt();
        // What a process that was killed at an import has left behind.
        self.store.sweep(|name| tables::generation_of(name).is_some_and(|generation| generation != found.generation));
        let is_in_place = found.layout == Memory::LAYOUT
            && former.len() == wanted.workers
            && former.iter().all(|tables| tables.shape == wanted.shape && tables.place.steering == wanted.steering);
        info!(
            "taking over the state of {} in {}, last used {:.1} s ago{}",
            if former.len() == 1 { "1 worker".to_owned() } else { format!("{} workers", former.len()) },
            self.store.describe(),
            found.age as f64 / 1e6,
            if is_in_place { "" } else { "; its flows move to tables of another size or of other workers" }
        );
        if is_in_place {
            let adopted = former.into_iter().map(|tables| tables.adopt(wanted.share)).collect::<Result<_, _>>();
            return Ok(adopted.map(|adopted| (self.lock(adopted), Takeover::default())));
        }
        Ok(self.import(former, found, wanted))
    }

    /// Moves flows to new files.
    fn import(
        &mut self,
        mut former: Vec<Tables>,
        found: &Found,
        wanted: &Wanted<'_>,
    ) -> Result<(Vec<Memory>, Takeover), RegionError> {
        let others: Vec<_> = former.iter_mut().map(|tables| tables.copies(found.layout)).collect();
        if found.layout != Memory::LAYOUT {
            info!("another version wrote it: what has another layout than its connections begins anew");
        }
        let remains: Vec<Remains<'_>> = former.iter_mut().filter_map(|tables| tables.remains(found.layout)).collect();
        let generation = found.generation.wrapping_add(1).max(1);
        let new = self.create(generation, wanted)?;
        let secrets = &self.kept.secrets;
        let import = |(worker, tables): (usize, Tables)| {
            let is_mine = |key: &tcpstate::wire::FlowKey, hash| {
                wanted.strategy.map_or(0, |strategy| strategy.owner(key, hash, wanted.workers)) == worker
            };
            tables.import(wanted.share, secrets, &remains, &others[worker % others.len()], is_mine)
        };
        let results: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = new.into_iter().enumerate().map(|work| scope.spawn(|| import(work))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that moves flows does not panic")).collect()
        });
        let results = results.into_iter().collect::<Result<Vec<((Memory, RegionLock), Adopted)>, _>>()?;
        self.header.commit(generation);
        self.store.sweep(|name| tables::generation_of(name).is_some_and(|other| other != generation));
        let sum = |count: fn(&Adopted) -> u64| results.iter().map(|(_, adopted)| count(adopted)).sum();
        // Each worker has looked at every record.
        let refused = results.iter().map(|(_, adopted)| adopted.refused).max().unwrap_or(0);
        let takeover = Takeover { age: 0, no_room: sum(|adopted| adopted.no_room), refused };
        if takeover.no_room > 0 {
            warn!("{} connections of the former process are lost: the tables are too small for them", takeover.no_room);
        }
        Ok((self.lock(results.into_iter().map(|(memory, _)| memory).collect()), takeover))
    }

    /// Keeps the locks of these tables.
    fn lock(&mut self, tables: Vec<(Memory, RegionLock)>) -> Vec<Memory> {
        let (memories, locks): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        self.locks.splice(0..0, locks);
        memories
    }

    /// New tables, where there are none to take over.
    fn fresh(&mut self, wanted: &Wanted<'_>) -> Result<Vec<Memory>, RegionError> {
        begin(&self.store, &self.header, &self.expected, &self.kept);
        let tables = self.create(1, wanted)?;
        let adopted = tables.into_iter().map(|tables| tables.adopt(wanted.share)).collect::<Result<_, _>>()?;
        self.header.commit(1);
        Ok(self.lock(adopted))
    }

    /// Leaves nothing of a state that this process has begun: it has not come to use it. One that another process has left stays for the next.
    pub fn abandon_if_new(self) {
        if self.found.is_none() {
            self.abandon();
        }
    }

    /// Leaves nothing of it.
    pub fn abandon(self) {
        Keeper::new(self).remove();
    }

    /// New files for all workers; none if there is no room for one of them.
    fn create(&self, generation: u64, wanted: &Wanted<'_>) -> Result<Vec<Tables>, RegionError> {
        let Wanted { workers, shape, steering, .. } = *wanted;
        let words = shape.total().ok_or(RegionError::TooLarge { words: usize::MAX })?;
        let create = |worker| {
            let place = Place { generation, worker, workers, steering };
            Ok(Tables::begin(self.store.create(&place.name(), words)?, place, shape))
        };
        let tables = (0..workers).map(create).collect::<Result<Vec<_>, _>>();
        if tables.is_err() {
            self.store.sweep(|name| tables::generation_of(name) == Some(generation));
        }
        tables
    }
}

/// What tables the workers are to have.
struct Wanted<'a> {
    share: &'a tcpstate::Config,
    workers: usize,
    shape: Shape,
    strategy: Option<&'a Strategy>,
    steering: u64,
}

/// No state, for a reason that the log gets.
fn nothing(why: &str) -> Result<Option<State>, Failure> {
    warn!("a restart will lose connections: {why}");
    Ok(None)
}

/// Begins a state that has nothing in it.
fn begin(store: &Store, header: &Header, expected: &Expected, kept: &Kept) {
    header.begin(expected, kept);
    store.sweep(|name| tables::generation_of(name).is_some());
}

/// The name of the state of a box.
fn name(ports: [&str; 2], namespace: Option<u64>) -> String {
    let path = control::default_path(ports[0], ports[1], namespace);
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a state is compared with before it is taken over by the box between these ports.
fn expected(config: &Config, ports: [&str; 2]) -> Expected {
    let keep = config.state_keep.as_secs();
    Expected { ports: identity(ports), boot: header::boot(), keep, now: clock::now() }
}

/// A number that stands for the ports: their names and the addresses their interfaces were made with.
fn identity(ports: [&str; 2]) -> u64 {
    let address = |port: &str| {
        let device = interface_of(port).ok()??.0.to_owned();
        Some(Interface::locate(&device).ok()?.address().to_vec())
    };
    let bytes = ports.into_iter().flat_map(|port| {
        let name = port.split_once(':').map_or(port, |(_, name)| name);
        [name.as_bytes().to_vec(), vec![0], address(port).unwrap_or_default(), vec![0]].concat()
    });
    hash(bytes)
}

/// A number that stands for the way in which connections find their workers.
fn steering(strategy: Option<&Strategy>, workers: usize) -> u64 {
    match strategy {
        None => 0,
        Some(Strategy::Rss(twin)) => twin.fingerprint(),
        Some(Strategy::HandOff(naming) | Strategy::Everything(naming)) => {
            let of_wan_end = if *naming == Naming::WanEnd { 1 << 32 } else { 0 };
            of_wan_end | workers as u64
        }
    }
}

/// FNV-1a.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
