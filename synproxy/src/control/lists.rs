//! The lists of clients as the operator sets them. After every change each worker gets an immutable copy to look clients up in; connections that run
//! are not affected.

use crate::dataplane::commands::{Answer, Command, CommandSender};
use ::control::{ClientList, ListPage};
use confparse::{ClientLists, MAX_NETWORKS, written};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, mem};
use tcpstate::config::Network;
use tcpstate::{List, Lists};
use tracing::warn;

/// Networks in one page.
const PAGE: usize = 10_000;

/// The longest file of networks, in bytes.
const LONGEST_FILE: u64 = 256 << 20;

/// A network in a list: 17 bytes, in the order of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    address: [u8; 16],
    prefix: u8,
}

impl From<&Network> for Entry {
    /// As one that is equal whenever the same addresses are meant: bits beyond the prefix are zero.
    fn from(network: &Network) -> Self {
        let bits = network.address.iter().fold(0, |bits, &word| bits << 32 | u128::from(word));
        let beyond = u128::MAX.checked_shr(network.prefix.into()).unwrap_or(0);
        Self { address: (bits & !beyond).to_be_bytes(), prefix: network.prefix }
    }
}

impl From<Entry> for Network {
    fn from(entry: Entry) -> Self {
        let mut address = [0; 4];
        for (word, bytes) in address.iter_mut().zip(entry.address.as_chunks().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        Self { address, prefix: entry.prefix }
    }
}

/// The networks of each list, sorted, each once.
#[derive(Default)]
pub struct Listed([Vec<Entry>; List::ALL.len()]);

impl Listed {
    /// What the configuration lists: its networks, and those of its files.
    ///
    /// # Errors
    /// The key of a file that cannot be read or holds something else, and what is wrong, one fault a line; or that there are too many networks.
    pub fn load(lists: &ClientLists) -> Result<Self, (&'static str, String)> {
        let mut listed = Self::default();
        for list in List::ALL {
            let key = match list {
                List::Block => "block_files",
                List::Allow => "allow_files",
                List::Always => "always_files",
            };
            let own = lists.of(list);
            let mut entries: Vec<Entry> = own.networks.iter().map(Entry::from).collect();
            for file in &own.files {
                let name = file.display().to_string();
                let wrong = |error: std::io::Error| (key, format!("{name}: {error}"));
                if fs::metadata(file).map_err(wrong)?.len() > LONGEST_FILE {
                    return Err((key, format!("{name}: longer than {LONGEST_FILE} bytes")));
                }
                let text = fs::read(file).map_err(wrong)?;
                let networks = confparse::networks(&String::from_utf8_lossy(&text), &name);
                entries.extend(networks.map_err(|wrong| (key, wrong))?.iter().map(Entry::from));
            }
            listed.set(list, entries);
            if listed.len() > MAX_NETWORKS {
                return Err((key, format!("more than {MAX_NETWORKS} networks in all lists")));
            }
        }
        Ok(listed)
    }

    fn set(&mut self, list: List, mut entries: Vec<Entry>) {
        entries.sort_unstable();
        entries.dedup();
        entries.shrink_to_fit();
        self.0[list as usize] = entries;
    }

    /// How many networks there are in all lists.
    pub fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lists for the workers.
    pub fn compile(&self) -> Lists {
        let networks = List::ALL.into_iter().zip(&self.0);
        Lists::new(networks.flat_map(|(list, entries)| entries.iter().map(move |&entry| (list, entry.into()))))
    }
}

/// A list that arrives in parts.
struct Upload {
    list: List,
    number: u64,
    entries: Vec<Entry>,
}

/// The networks, and the workers that use them.
pub struct ListRegistry {
    /// Locked until the workers have a change, so that they get changes in order.
    state: Mutex<State>,
    workers: CommandSender,
}

struct State {
    listed: Listed,
    /// The bytes of what the workers have.
    bytes: usize,
    upload: Option<Upload>,
}

impl ListRegistry {
    /// These networks, which the workers have already as `compiled`.
    pub fn new(listed: Listed, compiled: &Lists, workers: CommandSender) -> Self {
        Self { state: Mutex::new(State { listed, bytes: compiled.bytes(), upload: None }), workers }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many networks each list has.
    pub fn counts(&self) -> ::control::Lists {
        let state = self.state();
        let [block, allow, always] = state.listed.0.each_ref().map(Vec::len);
        ::control::Lists { block, allow, always, bytes: state.bytes }
    }

    /// Some of the networks of a list, from the `from`th on.
    pub fn page(&self, list: ClientList, from: usize) -> ListPage {
        let state = self.state();
        let entries = &state.listed.0[engine_list(list) as usize];
        let rest = entries.get(from..).unwrap_or_default();
        let networks = rest.iter().take(PAGE).map(|&entry| written(&entry.into())).collect();
        ListPage { networks, next: (rest.len() > PAGE).then(|| from + PAGE) }
    }

    /// Adds networks to a list; says what was done.
    ///
    /// # Errors
    /// Why nothing was done.
    pub fn add(&self, list: ClientList, networks: &[String]) -> Result<String, String> {
        let added = read(networks)?;
        let mut state = self.state();
        if state.listed.len() + added.len() > MAX_NETWORKS {
            return Err(format!("{MAX_NETWORKS} networks are the most"));
        }
        let entries = &mut state.listed.0[engine_list(list) as usize];
        let before = entries.len();
        if let [one] = added[..] {
            if let Err(at) = entries.binary_search(&one) {
                entries.insert(at, one);
            }
        } else {
            entries.extend(added);
            entries.sort();
            entries.dedup();
        }
        let new = entries.len() - before;
        self.publish(&mut state);
        Ok(format!("{new} of {} networks were not in the list `{}` yet", networks.len(), list.name()))
    }

    /// Removes networks from a list; says what was done.
    ///
    /// # Errors
    /// Why nothing was done.
    pub fn remove(&self, list: ClientList, networks: &[String]) -> Result<String, String> {
        let mut removed = read(networks)?;
        removed.sort_unstable();
        let mut state = self.state();
        let entries = &mut state.listed.0[engine_list(list) as usize];
        if let Some(absent) = removed.iter().find(|entry| entries.binary_search(entry).is_err()) {
            return Err(format!("{} is not in the list `{}`", written(&(*absent).into()), list.name()));
        }
        entries.retain(|entry| removed.binary_search(entry).is_err());
        self.publish(&mut state);
        Ok(format!("{} networks removed from the list `{}`", networks.len(), list.name()))
    }

    /// Takes a part of what replaces a list; with the `last` the list changes. Says what was done.
    ///
    /// # Errors
    /// Why nothing was done.
    pub fn replace(&self, list: ClientList, networks: &[String], number: u64, last: bool) -> Result<String, String> {
        let part = read(networks)?;
        let (mut state, name, list) = (self.state(), list.name(), engine_list(list));
        let upload = match &mut state.upload {
            Some(upload) if (upload.list, upload.number) == (list, number) => upload,
            former => former.insert(Upload { list, number, entries: Vec::new() }),
        };
        upload.entries.extend(part);
        if upload.entries.len() > MAX_NETWORKS {
            state.upload = None;
            return Err(format!("{MAX_NETWORKS} networks are the most"));
        }
        if !last {
            return Ok(format!("{} networks received", upload.entries.len()));
        }
        let entries = mem::take(&mut upload.entries);
        state.upload = None;
        let others = state.listed.len() - state.listed.0[list as usize].len();
        if others + entries.len() > MAX_NETWORKS {
            return Err(format!("{MAX_NETWORKS} networks are the most, and the other lists have {others}"));
        }
        state.listed.set(list, entries);
        self.publish(&mut state);
        let count = state.listed.0[list as usize].len();
        Ok(format!("the list `{name}` has {count} networks"))
    }

    /// Puts these networks in the place of all lists: the configuration was read again.
    pub fn reload(&self, listed: Listed) {
        let mut state = self.state();
        (state.listed, state.upload) = (listed, None);
        self.publish(&mut state);
    }

    /// Gives the workers what has changed.
    fn publish(&self, state: &mut State) {
        let lists = Arc::new(state.listed.compile());
        state.bytes = lists.bytes();
        let mut missing = 0;
        for answer in self.workers.send(&Command::SetLists(lists)) {
            match answer {
                // The worker has sent its former lists back to be freed here.
                Some(Answer::FormerLists(former)) => drop(former),
                Some(_) => {}
                None => missing += 1,
            }
        }
        if missing > 0 {
            warn!("{missing} workers have not confirmed the change of the lists yet");
        }
    }
}

/// The engine's word for a list.
fn engine_list(list: ClientList) -> List {
    match list {
        ClientList::Block => List::Block,
        ClientList::Allow => List::Allow,
        ClientList::Always => List::Always,
    }
}

/// The networks that these texts name.
fn read(networks: &[String]) -> Result<Vec<Entry>, String> {
    networks.iter().map(|text| confparse::network(text).map(|network| Entry::from(&network))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> ListRegistry {
        ListRegistry::new(Listed::default(), &Lists::default(), CommandSender::open(0).unwrap())
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn networks_are_added_and_removed_once_and_shown_in_order() {
        let (registry, block) = (registry(), ClientList::Block);
        assert!(
            registry.add(block, &texts(&["192.0.2.9/24", "10.0.0.1", "2001:db8::/32"])).unwrap().starts_with("3 of 3")
        );
        assert!(registry.add(block, &texts(&["192.0.2.0/24"])).unwrap().starts_with("0 of 1"));
        assert_eq!(registry.page(block, 0).networks, ["10.0.0.1", "192.0.2.0/24", "2001:db8::/32"]);
        assert_eq!((registry.counts().block, registry.counts().allow), (3, 0));
        let absent = registry.remove(block, &texts(&["10.0.0.1", "10.0.0.0/24"]));
        assert_eq!(absent, Err("10.0.0.0/24 is not in the list `block`".to_owned()));
        registry.remove(block, &texts(&["10.0.0.1"])).unwrap();
        assert_eq!(registry.page(block, 1), ListPage { networks: texts(&["2001:db8::/32"]), next: None });
        let wrong = registry.add(block, &texts(&["nowhere"])).unwrap_err();
        assert!(wrong.contains("no address"), "{wrong}");
    }

    #[test]
    fn a_list_that_arrives_in_parts_changes_with_the_last() {
        let (registry, allow) = (registry(), ClientList::Allow);
        registry.add(allow, &texts(&["10.0.0.1"])).unwrap();
        registry.replace(allow, &texts(&["10.0.0.2"]), 7, false).unwrap();
        // Another upload takes its place.
        registry.replace(allow, &texts(&["10.0.0.3"]), 8, false).unwrap();
        assert_eq!(registry.page(allow, 0).networks, ["10.0.0.1"]);
        registry.replace(allow, &texts(&["10.0.0.4", "10.0.0.3"]), 8, true).unwrap();
        assert_eq!(registry.page(allow, 0).networks, ["10.0.0.3", "10.0.0.4"]);
        registry.replace(allow, &[], 9, true).unwrap();
        assert_eq!(registry.counts().allow, 0);
    }

    #[test]
    fn a_long_list_is_shown_in_pages() {
        let (registry, always) = (registry(), ClientList::Always);
        let networks: Vec<_> = (0..PAGE + 5).map(|n| format!("10.0.{}.{}", n >> 8, n & 255)).collect();
        registry.replace(always, &networks, 1, true).unwrap();
        let first = registry.page(always, 0);
        assert_eq!((first.networks.len(), first.next), (PAGE, Some(PAGE)));
        let second = registry.page(always, PAGE);
        assert_eq!((second.networks.len(), second.next), (5, None));
        assert_eq!(registry.page(always, usize::MAX).networks.len(), 0);
    }

    #[test]
    fn files_of_the_configuration_are_read_and_complained_of_by_line() {
        let path = std::env::temp_dir().join(format!("spx-lists-{}", std::process::id()));
        fs::write(&path, "10.0.0.0/8\n# nothing\n192.0.2.1\n192.0.2.1\n").unwrap();
        let mut lists = ClientLists::default();
        lists.block.files = vec![path.clone()];
        lists.block.networks = vec![confparse::network("2001:db8::1").unwrap()];
        let Ok(listed) = Listed::load(&lists) else { panic!("it can be read") };
        assert_eq!((listed.len(), listed.is_empty()), (3, false));
        let registry = registry();
        registry.add(ClientList::Block, &texts(&["10.9.9.9"])).unwrap();
        registry.reload(listed);
        assert_eq!(registry.page(ClientList::Block, 0).networks, ["10.0.0.0/8", "192.0.2.1", "2001:db8::1"]);
        fs::write(&path, "10.0.0.0/8\nx\n").unwrap();
        let Err((key, wrong)) = Listed::load(&lists) else { panic!("there is a fault") };
        assert!(key == "block_files" && wrong.starts_with(&format!("{}:2: `x`", path.display())), "{wrong}");
        fs::remove_file(&path).unwrap();
        assert!(Listed::load(&lists).is_err());
    }
}
