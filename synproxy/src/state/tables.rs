//! The regions of one worker in one file: a page that says what lies where, and the regions behind it, each from a page on.

use super::header::Refused;
use crate::dataplane::memory;
use pktio::region::{Region, RegionError, RegionLock, atomics};
use tcpstate::{Adopted, Config, GatheredSlab, Memory, Remains, Secrets, ServerSlab, Slab, Words};

/// Words of a page.
const PAGE: usize = 512;

/// "tables  " in ASCII.
const MAGIC: u64 = 0x7461_626c_6573_2020;

/// The regions that outlive the process: flow records, servers, recent SYNs, limits, refused SYNs, refused ports, proved sources, first bytes of connections
/// to services. What counts for limits on connections is counted anew from the flows.
const REGIONS: usize = 8;

/// The last one, whose contents belong to flow records where they lie.
const GATHERED: usize = REGIONS - 1;

/// How large the tables of one worker are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    flows: usize,
    servers: usize,
    /// Words of each region.
    words: [usize; REGIONS],
}

impl Shape {
    /// Those of an engine of this configuration, which may be a [share](Config::share).
    pub fn of(config: &Config) -> Self {
        let (flows, servers) = (config.flow_capacity(), config.learn_capacity);
        let [recent_syns, limits, refused_syns, refused_ports, proved_sources, _] = Memory::words_needed(config);
        let (slab, servers_words) = (Slab::words(flows, config.has_redirects()), ServerSlab::words(servers));
        let gathered = GatheredSlab::words(config.service_buffers, config.first_bytes);
        let words = [slab, servers_words, recent_syns, limits, refused_syns, refused_ports, proved_sources, gathered];
        Self { flows, servers, words }
    }

    /// Words of the whole file; `None` if there are more than any file has.
    pub fn total(&self) -> Option<usize> {
        self.words.iter().try_fold(PAGE, |sum, words| sum.checked_add(words.checked_next_multiple_of(PAGE)?))
    }

    /// Where a region lies in the file.
    fn place(&self, region: usize) -> std::ops::Range<usize> {
        let from = PAGE + self.words[..region].iter().map(|words| words.next_multiple_of(PAGE)).sum::<usize>();
        from..from + self.words[region]
    }
}

/// Whose tables they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The generation of the files.
    pub generation: u64,
    /// The number of the worker, and of how many.
    pub worker: usize,
    /// See `worker`.
    pub workers: usize,
    /// What stands for the way in which connections find their workers.
    pub steering: u64,
}

impl Place {
    /// The name of the file.
    pub fn name(&self) -> String {
        file_name(self.generation, self.worker)
    }
}

/// The name of a worker's file.
pub fn file_name(generation: u64, worker: usize) -> String {
    format!("tables-{generation}-{worker}")
}

/// The generation in the name of a file, if it is one of tables.
pub fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("tables-")?.split_once('-')?.0.parse().ok()
}

/// A file of tables.
pub struct Tables {
    region: Region,
    /// Whose they are.
    pub place: Place,
    /// How large they are.
    pub shape: Shape,
}

impl Tables {
    /// Empty tables in new memory that is large enough.
    pub fn begin(region: Region, place: Place, shape: Shape) -> Self {
        Self { region, place, shape }
    }

    /// The tables that another process has left, if that is what they are.
    ///
    /// # Errors
    /// Why not.
    pub fn read(mut region: Region, name: &str) -> Result<Self, Refused> {
        let no = |what: &str| Refused::File(format!("{name} {what}"));
        let length = region.len();
        let Some((head, _)) = region.words().split_first_chunk::<PAGE>() else { return Err(no("is too short")) };
        let number = |at: usize| usize::try_from(head[at]).map_err(|_| no("has a number that is too large"));
        if head[0] != MAGIC {
            return Err(no("is no file of tables"));
        }
        let place = Place { generation: head[1], worker: number(2)?, workers: number(3)?, steering: head[4] };
        let (flows, servers) = (number(5)?, number(6)?);
        let mut words = [0; REGIONS];
        for (n, words) in words.iter_mut().enumerate() {
            *words = number(7 + n)?;
        }
        let shape = Shape { flows, servers, words };
        // More flows than fit the index of any table would be more than any table has.
        if flows >= 1 << 31 || shape.total().is_none_or(|total| total > length) {
            return Err(no("is shorter than its tables"));
        }
        Ok(Self { region, place, shape })
    }

    /// The flow records, of this layout, to be read; `None` if they cannot be, or are not as large as they should be.
    pub fn remains(&mut self, layout: u64) -> Option<Remains<'_>> {
        let (flows, place, version) = (self.shape.flows, self.shape.place(0), Memory::record_layout(layout));
        // Its size says whether flows could have a second key.
        let has_size = |redirects| Remains::words(version, flows, redirects) == Some(self.shape.words[0]);
        let redirects = if has_size(false) {
            false
        } else if has_size(true) && Memory::same_regions(layout)[GATHERED] {
            true
        } else {
            return None;
        };
        Remains::of(self.region.words().get(place)?, version, flows, redirects)
    }

    /// A copy of a region's words.
    fn region(&mut self, region: usize) -> &[u64] {
        let place = self.shape.place(region);
        self.region.words().get(place).unwrap_or_default()
    }

    /// The memory of an engine of this configuration, as another process has left it, and what keeps others out of it.
    ///
    /// # Errors
    /// When the system has no memory for what does not outlive the process.
    ///
    /// # Panics
    /// If the shape is not that of the configuration.
    pub fn adopt(self, config: &Config) -> Result<(Memory, RegionLock), RegionError> {
        self.into_memory(config, [true; REGIONS], |slab| slab)
    }

    /// The memory of an engine of this configuration. `is_used` says in which regions another process has left something; the flow records are those that
    /// `fill` makes of them.
    fn into_memory(
        self,
        config: &Config,
        is_used: [bool; REGIONS],
        fill: impl FnOnce(Slab) -> Slab,
    ) -> Result<(Memory, RegionLock), RegionError> {
        let shape = Shape::of(config);
        assert_eq!(self.shape, shape, "the tables are as large as configured");
        let Place { generation, worker, workers, steering } = self.place;
        let (words, lock) = self.region.into_locked_words();
        let (head, mut rest) = words.split_at_mut(PAGE);
        let numbers = [generation, worker as u64, workers as u64, steering, shape.flows as u64, shape.servers as u64];
        let sizes = shape.words.iter().map(|&words| words as u64);
        for (word, value) in head[1..].iter_mut().zip(numbers.into_iter().chain(sizes)) {
            *word = value;
        }
        head[0] = MAGIC;
        let regions = shape.words.map(|words| {
            let (region, behind) = std::mem::take(&mut rest).split_at_mut(words.next_multiple_of(PAGE));
            rest = behind;
            &mut region[..words]
        });
        let [slab, servers, others @ .., gathered] = regions;
        let enough = "as many words as it needs, from a page on";
        let slab = fill(Slab::mapped(slab, shape.flows, config.has_redirects(), is_used[0]).expect(enough));
        let servers = ServerSlab::mapped(servers, shape.servers, is_used[1]).expect(enough);
        let [recent_syns, limits, refused_syns, refused_ports, proved_sources] =
            others.map(|words| Words::from(atomics(words)));
        let (places, room) = (config.service_buffers, config.first_bytes);
        let gathered = GatheredSlab::mapped(gathered, places, room, is_used[GATHERED]).expect(enough);
        let quotas = memory::quotas(config)?;
        let memory = Memory {
            slab,
            servers,
            recent_syns,
            limits,
            refused_syns,
            refused_ports,
            proved_sources,
            quotas,
            gathered,
        };
        Ok((memory, lock))
    }

    /// The memory of an engine of this configuration, empty but for what fits of what other workers have left: their flows that `is_mine` says are this
    /// worker's, and the other tables of one of them, where they have the same size. Also what became of the flows.
    ///
    /// # Errors
    /// As [`Tables::adopt`].
    pub fn import(
        mut self,
        config: &Config,
        secrets: &Secrets,
        remains: &[Remains<'_>],
        others: &[Vec<u64>; REGIONS],
        is_mine: impl Fn(&tcpstate::wire::FlowKey, u64) -> bool,
    ) -> Result<((Memory, RegionLock), Adopted), RegionError> {
        let mut is_used = [false; REGIONS];
        for (n, other) in others.iter().enumerate().take(GATHERED).skip(1) {
            is_used[n] = !other.is_empty() && self.fill(n, other);
        }
        let mut adopted = Adopted::default();
        let memory = self.into_memory(config, is_used, |slab| {
            let (slab, became) = slab.import(config, secrets, remains, is_mine);
            adopted = became;
            slab
        })?;
        Ok((memory, adopted))
    }

    /// Writes a region of the same size; false if it has another.
    fn fill(&mut self, region: usize, words: &[u64]) -> bool {
        let place = self.shape.place(region);
        place.len() == words.len() && self.region.fill(place.start, words)
    }

    /// Copies of all regions but the flow records, as far as those of this layout are the present ones; the others are empty.
    pub fn copies(&mut self, layout: u64) -> [Vec<u64>; REGIONS] {
        let same = Memory::same_regions(layout);
        std::array::from_fn(|n| if n == 0 || !same[n] { Vec::new() } else { self.region(n).to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const PLACE: Place = Place { generation: 3, worker: 1, workers: 2, steering: 9 };

    fn config() -> Config {
        Config { table_buckets: 4, learn_capacity: 8, proved_sources: 4, ..Config::default() }
    }

    /// A region with these words.
    fn region(words: &[u64]) -> Region {
        let mut region = Region::anonymous(words.len()).unwrap();
        assert!(region.fill(0, words));
        region
    }

    /// The words of a file of tables that were used.
    fn file() -> Vec<u64> {
        let shape = Shape::of(&config());
        let mut words = vec![0; shape.total().unwrap()];
        words[..5].copy_from_slice(&[MAGIC, 3, 1, 2, 9]);
        words[5..7].copy_from_slice(&[shape.flows as u64, shape.servers as u64]);
        for (word, size) in words[7..].iter_mut().zip(shape.words) {
            *word = size as u64;
        }
        words
    }

    #[test]
    fn what_was_written_is_read() {
        let config = config();
        let (shape, words) = (Shape::of(&config), file());
        let tables = Tables::read(region(&words), "x").unwrap();
        assert_eq!((tables.place, tables.shape), (PLACE, shape));
        assert!(tables.adopt(&config).is_ok());
        // A file may be longer than its tables.
        let longer = [words.as_slice(), &[7; 600]].concat();
        assert!(Tables::read(region(&longer), "x").is_ok());
        assert_eq!(generation_of(&PLACE.name()), Some(3));
        assert_eq!(["box", "tables-x-1", "tables-1"].map(generation_of), [None; 3]);
    }

    #[test]
    fn a_file_that_is_short_or_foreign_is_refused_by_name() {
        let refused = |words: &[u64]| Tables::read(region(words), "tables-3-1").err().unwrap().to_string();
        let words = file();
        assert_eq!(refused(&words[..PAGE - 1]), "tables-3-1 is too short");
        assert_eq!(refused(&words[..words.len() - 512]), "tables-3-1 is shorter than its tables");
        let mut foreign = words.clone();
        foreign[0] ^= 1;
        assert_eq!(refused(&foreign), "tables-3-1 is no file of tables");
        for at in 5..7 + REGIONS {
            for large in [u64::MAX, u64::MAX / 2, 1 << 60, 1 << 40, u64::MAX - 511] {
                let mut words = words.clone();
                words[at] = large;
                // The number of servers says nothing of its own: it must be that of the configuration.
                assert!(at == 6 || refused(&words).starts_with("tables-3-1 "), "{at} {large:x}");
            }
        }
    }

    #[test]
    fn what_another_version_wrote_is_read_as_far_as_it_is_the_same() {
        let services = Config { service_buffers: 4, ..config() };
        let tables = |config: &Config| {
            let shape = Shape::of(config);
            Tables::begin(Region::anonymous(shape.total().unwrap()).unwrap(), PLACE, shape)
        };
        assert!(services.has_redirects() && !config().has_redirects());
        let second_keys = Memory::LAYOUT ^ 1 << 60;
        for (config, layout, is_read) in [
            (&config(), Memory::LAYOUT, true),
            (&services, Memory::LAYOUT, true),
            (&config(), second_keys, true),
            (&services, second_keys, false),
            (&config(), Memory::LAYOUT + (1 << 32), false),
        ] {
            assert_eq!(tables(config).remains(layout).is_some(), is_read, "{layout:x}");
        }
        // A slab of neither size.
        let mut odd = tables(&config());
        odd.shape.words[0] -= 1;
        assert!(odd.remains(Memory::LAYOUT).is_none());
        // Another layout of the limits, and all but them are there.
        let is_copied = tables(&config()).copies(Memory::LAYOUT ^ 1 << 8).map(|copy| !copy.is_empty());
        assert_eq!(is_copied, [false, true, true, false, true, true, true, false]);
    }

    /// Whatever is in a file, it is read, and flows move from it, without harm.
    #[test]
    fn any_file_is_survived() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        let (config, words) = (config(), file());
        for n in 0..300 {
            let mut words = words.clone();
            for _ in 0..1 + random() % 2000 {
                // Mostly where something is said.
                let most = if random() % 2 == 0 { PAGE + 600 } else { words.len() };
                let at = 1 + random() as usize % (most - 1);
                words[at] = random() >> (random() % 64);
            }
            if n % 2 == 0 {
                words[5..14].copy_from_slice(&file()[5..14]);
            }
            let end = catch_unwind(AssertUnwindSafe(|| {
                let Ok(mut tables) = Tables::read(region(&words), "x") else { return };
                let copies = tables.copies(Memory::LAYOUT);
                let Some(remains) = tables.remains(Memory::LAYOUT) else { return };
                let shape = Shape::of(&config);
                let new = Tables::begin(Region::anonymous(shape.total().unwrap()).unwrap(), PLACE, shape);
                let secrets = Secrets::new([1; 48]);
                new.import(&config, &secrets, &[remains], &copies, |_, _| true).unwrap();
            }));
            assert!(end.is_ok(), "file {n}");
        }
    }
}
