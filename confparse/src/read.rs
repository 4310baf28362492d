//! Reads a text: pest finds its shape, the table of keys gives it meaning.
//!
//! A mistake in the shape ends the reading with one complaint. Everything else is complained of and read past, so that one run
//! shows all there is to mend.

use crate::complaint::{Complaint, Level, Report, quote};
use crate::keys::{ACCOUNTS, KEYS, Key, LONGEST_SOCKET, SECTIONS, Takes, Value, account, present_name};
use crate::rules::{PLACE_KEYS, PORT, RULE_KEYS, RuleKey, SECTIONS_OF_BLOCKS, VLAN};
use crate::servers::{Servers, in_full, may_have_port};
use crate::services;
use crate::{Account, Config, Control, Errors, FRAMES_OF_A_WORKER, MAX_TEXT, Parsed, Places, StateDir, Syslog};
use core::net::SocketAddr;
use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tcpstate::config::{DestinationRule, Handshake, Network, ServiceConfig, Settings};

/// The most bits of a cookie that the tables may take. With the epoch bit they leave 19 for the proof.
const MOST_CODE_BITS: u32 = 12;
/// The most that are taken without a warning: 24 are left for the proof.
const FREE_CODE_BITS: u32 = 7;
/// What is longer, in bytes, was not meant to be any word we know.
const LONGEST_WORD: usize = 40;
/// The bits a cookie with timestamps keeps for its proof: its tables lie in the timestamp.
const TIMESTAMP_MAC_BITS: u32 = 27;
/// Flows of the table are kept in memory at this many bytes each, at least.
const FLOW_BYTES: u64 = 128;
/// The most blocks that settle a mode: each is counted, and shown, for itself.
const MOST_TARGETS: usize = 1024;
/// A flow table from this size on is worth a warning.
const LARGE_TABLE: u64 = 8 << 30;

// The derived enumeration is what the grammar's rules are named; it has no documentation of its own.
#[allow(missing_docs)]
mod grammar {
    #[derive(pest_derive::Parser)]
    #[grammar = "conf.pest"]
    pub struct Grammar;
}
use grammar::{Grammar, Rule};

type Pair<'t> = pest::iterators::Pair<'t, Rule>;
type Place = (usize, usize);

pub(crate) fn read(text: &str, name: &str) -> Result<Parsed, Errors> {
    // Some editors open a file with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        report: Report::new(text, name),
        config: Config::default(),
        given: [None; KEYS.len()],
        servers: Vec::new(),
        ruled: Vec::new(),
    };
    if text.len() > MAX_TEXT {
        let mut report = Report::new("", name);
        report.error((0, 0), || {
            (format!("the file has {} bytes, and {MAX_TEXT} is the most", text.len()), String::new())
        });
        return Err(refuse(report));
    }
    match Grammar::parse(Rule::file, text) {
        Err(error) => reader.misshapen(text, &error),
        Ok(pairs) => pairs.for_each(|file| reader.file(file)),
    }
    if reader.report.has_errors() {
        return Err(refuse(reader.report));
    }
    let given = KEYS.iter().zip(reader.given).filter_map(|(key, place)| {
        let (line, column) = reader.report.line_and_column(place?.0);
        Some((key.section, key.name, line, column))
    });
    let places = Places { file: name.into(), given: given.collect() };
    let (warnings, _) = reader.report.finish();
    Ok(Parsed { config: reader.config, warnings, places })
}

fn refuse(report: Report<'_>) -> Errors {
    let (complaints, omitted) = report.finish();
    debug_assert!(complaints.iter().any(|complaint: &Complaint| complaint.level == Level::Error));
    Errors { complaints, omitted }
}

struct Reader<'t> {
    report: Report<'t>,
    config: Config,
    /// Where each key of the table was last given.
    given: [Option<Place>; KEYS.len()],
    /// The servers that count: in which key they stand, and where.
    servers: Vec<(&'static str, Place, Servers)>,
    /// The blocks of `destinations` that count.
    ruled: Vec<Ruled>,
}

/// A block of `destinations`: where it stands, which servers it is for, and how it settles their handshake.
struct Ruled {
    at: Place,
    servers: Servers,
    vlan: Option<u16>,
    handshake: Option<Handshake>,
}

/// A block as it is read.
#[derive(Default)]
struct Block {
    network: Option<Servers>,
    port: Option<u16>,
    vlan: Option<u16>,
    settings: Settings,
    /// The keys that were given, and where.
    given: Vec<(Option<&'static str>, &'static str, Place)>,
    /// Whether anything was wrong with it.
    bad: bool,
}

impl Reader<'_> {
    fn file(&mut self, file: Pair<'_>) {
        let mut closed = (0, 0);
        let mut ended = false;
        for part in file.into_inner() {
            match part.as_rule() {
                Rule::entry => self.entry(None, part),
                Rule::close => closed = place(&part),
                Rule::semi => ended = true,
                _ => {}
            }
        }
        if !ended {
            self.report
                .error((closed.1, closed.1), || ("a `;` is missing after the last `}`".to_owned(), String::new()));
        }
        self.weigh_cookie();
        self.weigh_table();
        self.weigh_tokens();
        self.weigh_servers();
        self.weigh_blocks();
        self.weigh_services();
        self.weigh_held_frames();
        self.weigh_intervals();
        self.weigh_attacks();
        self.weigh_thresholds();
    }

    /// Where a key was last given, if it was.
    fn given(&self, section: Option<&str>, name: &str) -> Option<Place> {
        self.given[KEYS.iter().position(|key| key.section == section && key.name == name)?]
    }

    /// The key and the value of `key;` or `key = value;`.
    fn parts<'t>(&mut self, entry: Pair<'t>) -> Option<(Pair<'t>, Option<Pair<'t>>)> {
        let (mut word, mut value, mut ended, mut end) = (None, None, false, 0);
        for part in entry.into_inner() {
            match part.as_rule() {
                Rule::semi => ended = true,
                Rule::eq => end = place(&part).1,
                Rule::word if word.is_none() => {
                    end = place(&part).1;
                    word = Some(part);
                }
                _ => {
                    end = place(&part).1;
                    value = Some(part);
                }
            }
        }
        let word = word?;
        if !ended {
            self.report
                .error((end, end), || (format!("a `;` is missing after {}", quote(word.as_str())), String::new()));
        }
        Some((word, value))
    }

    /// An entry at the top level or in a section.
    fn entry(&mut self, section: Option<&'static str>, entry: Pair<'_>) {
        let Some((word, value)) = self.parts(entry) else { return };
        if section.is_none() && SECTIONS.iter().any(|(name, _)| *name == word.as_str()) {
            return self.section(&word, value);
        }
        let Some(index) = KEYS.iter().position(|key| key.section == section && key.name == present_name(word.as_str()))
        else {
            return self.unknown_key(section, &word);
        };
        let key = &KEYS[index];
        if let Some(before) = self.given[index].replace(place(&word)) {
            let line = self.report.line(before.0);
            self.report.warn(place(&word), || {
                (format!("`{}` was given on line {line} already", key.name), "the last one counts".to_owned())
            });
        }
        if let Some(value) = self.value(key, &word, value) {
            if let Some(reason) = key.idle
                && key.value(&Config::default()).as_ref() != Some(&value)
            {
                self.report.note(place(&word), || (format!("`{}` has no effect", key.name), reason.to_owned()));
            }
            (key.set)(&mut self.config, value);
        }
    }

    fn section(&mut self, word: &Pair<'_>, value: Option<Pair<'_>>) {
        let name = SECTIONS.iter().map(|(name, _)| *name).find(|name| *name == word.as_str());
        match value {
            Some(value) if value.as_rule() == Rule::section => {
                value
                    .into_inner()
                    .filter(|part| part.as_rule() == Rule::setting)
                    .for_each(|part| self.entry(name, part));
            }
            // `{}` is an empty section as well as an empty list.
            Some(value) if value.as_rule() == Rule::list && !value.clone().into_inner().any(|part| is_item(&part)) => {}
            value => {
                let place = value.as_ref().map_or(place(word), place);
                self.report.error(place, || {
                    let example = KEYS.iter().find(|key| key.section == name).map_or("", |key| key.name);
                    let name = word.as_str();
                    (format!("`{name}` is a section"), format!("expected `{name} = {{ {example} = …; }};`"))
                });
            }
        }
    }

    fn unknown_key(&mut self, section: Option<&'static str>, word: &Pair<'_>) {
        self.report.error(place(word), || {
            let text = word.as_str();
            let message = match section {
                None => format!("unknown key {}", quote(text)),
                Some(section) => format!("unknown key {} in `{section}`", quote(text)),
            };
            let home = KEYS.iter().find(|key| key.name == text).map(|key| key.section);
            let here = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
            let sections = SECTIONS.iter().map(|(name, _)| *name).filter(|_| section.is_none());
            let expected = match home {
                Some(None) => format!("`{text}` belongs outside the sections"),
                Some(Some(home)) => format!("`{text}` belongs in `{home} = {{ … }};`"),
                None => match nearest(text, here.chain(sections))
                    .or_else(|| nearest(text, KEYS.iter().map(|key| key.name)))
                {
                    Some(known) => format!("did you mean `{known}`?"),
                    None => match section {
                        None => "expected a key of `synproxyconf`".to_owned(),
                        Some(section) => {
                            let names: Vec<_> = KEYS
                                .iter()
                                .filter(|key| key.section == Some(section))
                                .map(|key| format!("`{}`", key.name))
                                .collect();
                            format!("expected one of {}", names.join(", "))
                        }
                    },
                },
            };
            (message, expected)
        });
    }

    /// The value of `key`, if it is one the key takes.
    fn value(&mut self, key: &'static Key, word: &Pair<'_>, value: Option<Pair<'_>>) -> Option<Value> {
        let Some(value) = value else {
            if key.takes == Takes::Flag {
                return Some(Value::Flag(true));
            }
            self.report
                .error(place(word), || (format!("`{}` needs a value", key.name), format!("expected {}", key.range())));
            return None;
        };
        match (key.takes, value.as_rule()) {
            (Takes::Number { min, max }, Rule::number) => self.number(key, &value, min, max).map(Value::Number),
            (Takes::PowerOfTwo { max }, Rule::number) => {
                let n = self.number(key, &value, 1, max)?;
                if n.is_power_of_two() {
                    return Some(Value::Number(n));
                }
                self.report.error(place(&value), || {
                    let above = n.next_power_of_two();
                    let near = if above <= max { format!("{} or {above}", above / 2) } else { (above / 2).to_string() };
                    (
                        format!("`{}` must be a power of two, and {n} is none", key.name),
                        format!("expected {near}, for example"),
                    )
                });
                None
            }
            (Takes::List { max, from_zero, most }, Rule::list) => self.list(key, &value, max, from_zero, most),
            (Takes::Word(words), Rule::word) => {
                let found = words.iter().find(|known| **known == value.as_str());
                if found.is_none() {
                    self.report.error(place(&value), || {
                        let near =
                            nearest(value.as_str(), words.iter().copied()).or_else(|| switch(words, value.as_str()));
                        let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                        let message = format!("{} is nothing `{}` knows", quote(value.as_str()), key.name);
                        (message, format!("expected {}{hint}", key.range()))
                    });
                }
                found.map(|word| Value::Word(word))
            }
            (Takes::Account, Rule::number) => self.number(key, &value, ACCOUNTS.0, ACCOUNTS.1).map(account),
            (Takes::Account, Rule::string) => self.account_name(key, &value),
            (Takes::Address, Rule::string) => self.address(key, &value),
            (Takes::Listener, Rule::string) => self.listener(key, &value),
            (Takes::Socket, Rule::string) => self.socket(key, &value),
            (Takes::State, Rule::string) => self.state_dir(key, &value),
            (Takes::File | Takes::Command, Rule::string) => self.path(key, &value),
            (Takes::Syslog, Rule::string) => self.syslog(key, &value),
            (Takes::Servers { most }, Rule::list) => self.server_list(key, &value, most),
            (Takes::Network, _) => {
                let servers = self.server(key, &value)?;
                if servers.port.is_some() {
                    self.report.error(place(&value), || {
                        let (Servers { port, .. }, network) = (servers, Servers { port: None, ..servers });
                        let port = port.unwrap_or_default();
                        let expected = format!("expected `network = \"{network}\"; port = {port};`");
                        (format!("`{}` has a port", key.name), expected)
                    });
                    return None;
                }
                Some(Value::Servers(vec![servers]))
            }
            (Takes::Networks, Rule::list) => {
                let (items, mut good) = self.items(key, &value);
                let networks: Vec<_> = items.iter().map(|item| self.network(key, item)).collect();
                good &= networks.iter().all(Option::is_some);
                good.then(|| Value::Servers(networks.into_iter().flatten().collect()))
            }
            (Takes::Files, Rule::list) => {
                let (items, mut good) = self.items(key, &value);
                let files: Vec<_> = items.iter().map(|item| self.listed_file(key, item)).collect();
                good &= files.iter().all(Option::is_some);
                good.then(|| Value::Files(files.into_iter().flatten().collect()))
            }
            (Takes::Texts(_), Rule::list) => {
                let (items, good) = self.items(key, &value);
                let mut texts = Vec::new();
                for item in &items {
                    if item.as_rule() != Rule::string {
                        self.mismatch(key, key.takes, item.as_rule(), item);
                        return None;
                    }
                    texts.push(unquoted(item));
                }
                good.then_some(Value::Texts(texts))
            }
            (Takes::Services, Rule::blocks) => self.services(key, &value),
            (Takes::Services, Rule::list) if !value.clone().into_inner().any(|part| is_item(&part)) => {
                Some(Value::Services(Vec::new()))
            }
            (Takes::Destinations, Rule::blocks) => self.blocks(key, &value),
            (Takes::Destinations, Rule::list) if !value.clone().into_inner().any(|part| is_item(&part)) => {
                self.ruled.clear();
                Some(Value::Destinations(Vec::new()))
            }
            (takes, rule) => {
                self.mismatch(key, takes, rule, &value);
                None
            }
        }
    }

    /// A value of a kind the key does not take.
    fn mismatch(&mut self, key: &'static Key, takes: Takes, rule: Rule, value: &Pair<'_>) {
        self.report.error(place(value), || {
            let kind = match rule {
                Rule::number => "a number",
                Rule::string => "a string",
                Rule::word => "a word",
                Rule::section => "a section",
                Rule::blocks => "a list of blocks",
                _ => "a list",
            };
            if takes == Takes::Flag {
                return (format!("`{}` takes no value", key.name), format!("expected `{};`", key.name));
            }
            let hint = match (takes, rule) {
                _ if value.as_str().len() > LONGEST_WORD => String::new(),
                (Takes::List { .. }, Rule::number) => format!("; write `{{ {} }}`", value.as_str()),
                (
                    Takes::Account
                    | Takes::Socket
                    | Takes::State
                    | Takes::Listener
                    | Takes::File
                    | Takes::Command
                    | Takes::Syslog,
                    Rule::word,
                ) => {
                    format!("; write `\"{}\"`", value.as_str())
                }
                (Takes::Destinations | Takes::Services, Rule::section) => {
                    "; each block has braces of its own".to_owned()
                }
                (Takes::Networks | Takes::Files | Takes::Texts(_), Rule::string) => {
                    format!("; write `{{ {} }}`", value.as_str())
                }
                (Takes::Servers { .. }, Rule::string) => format!("; write `{{ {} }}`", value.as_str()),
                (Takes::Servers { .. }, Rule::number) => format!("; write `{{ \"{}\" }}`", value.as_str()),
                (Takes::Word(_), Rule::string) => "; a word stands without quotes".to_owned(),
                (Takes::Number { .. } | Takes::PowerOfTwo { .. }, Rule::string) => {
                    "; a number stands without quotes".to_owned()
                }
                (Takes::Word(words), Rule::number) => match switch(words, value.as_str()) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                },
                _ => String::new(),
            };
            (format!("`{}` does not take {kind}", key.name), format!("expected {}{hint}", key.range()))
        });
    }

    /// A decimal number without sign or unit, within the key's range.
    fn number(&mut self, key: &'static Key, pair: &Pair<'_>, min: u64, max: u64) -> Option<u64> {
        let text = pair.as_str();
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            self.report.error(place(pair), || {
                let unit = if key.unit.is_empty() { String::new() } else { format!(", in {}", key.unit) };
                let hint = plain(key, text).map_or(String::new(), |n| format!("; write `{n}`"));
                (format!("{} is no plain number", quote(text)), format!("expected digits alone{unit}{hint}"))
            });
            return None;
        }
        // What does not fit is out of every range.
        let n = text.parse().unwrap_or(u64::MAX);
        if (min..=max).contains(&n) {
            return Some(n);
        }
        self.report.error(place(pair), || {
            let side = if n < min { "little" } else { "much" };
            (format!("{} is too {side} for `{}`", quote(text), key.name), format!("expected {}", key.range()))
        });
        None
    }

    /// The items of a list, and whether there is a comma between any two.
    fn items<'t>(&mut self, key: &'static Key, list: &Pair<'t>) -> (Vec<Pair<'t>>, bool) {
        let mut items = Vec::new();
        let mut good = true;
        // The item before, if no comma followed it.
        let mut loose: Option<Place> = None;
        for part in list.clone().into_inner() {
            if part.as_rule() == Rule::comma {
                loose = None;
            }
            if !is_item(&part) {
                continue;
            }
            if let Some((_, end)) = loose.replace(place(&part)) {
                self.report.error((end, end), || (format!("a `,` is missing in `{}`", key.name), String::new()));
                good = false;
            }
            items.push(part);
        }
        (items, good)
    }

    fn list(&mut self, key: &'static Key, list: &Pair<'_>, max: u64, from_zero: bool, most: usize) -> Option<Value> {
        let mut values: Vec<u64> = Vec::new();
        let (items, mut good) = self.items(key, list);
        for part in items {
            if part.as_rule() != Rule::number {
                self.report.error(place(&part), || {
                    (format!("{} is no number", quote(part.as_str())), format!("expected {}", key.range()))
                });
                good = false;
                continue;
            }
            let Some(n) = self.number(key, &part, 0, max) else {
                good = false;
                continue;
            };
            match values.last() {
                Some(&last) if n < last => {
                    self.report.error(place(&part), || {
                        (format!("`{}` values must rise, and {n} comes after {last}", key.name), String::new())
                    });
                    good = false;
                }
                Some(&last) if n == last => self.report.warn(place(&part), || {
                    (
                        format!("{n} stands twice in `{}`", key.name),
                        "it takes room in the cookie and says nothing new".to_owned(),
                    )
                }),
                None if from_zero && n != 0 && good => {
                    self.report.error(place(&part), || {
                        (
                            format!("`{}` must begin with 0, and this is {n}", key.name),
                            format!("expected {}", key.range()),
                        )
                    });
                    good = false;
                }
                None if !from_zero && n == 0 => self.report.warn(place(&part), || {
                    (
                        format!("an MSS of 0 in `{}` leaves a client no room for data", key.name),
                        "expected 64 or more".to_owned(),
                    )
                }),
                _ => {}
            }
            values.push(n);
        }
        if good && values.is_empty() {
            self.report
                .error(place(list), || (format!("`{}` is empty", key.name), format!("expected {}", key.range())));
            return None;
        }
        if values.len() > most {
            self.report.error(place(list), || {
                (
                    format!("`{}` has {} values, and {most} is the most", key.name, values.len()),
                    format!("expected {}", key.range()),
                )
            });
            return None;
        }
        good.then_some(Value::List(values))
    }

    /// Addresses and networks in quotes.
    fn server_list(&mut self, key: &'static Key, list: &Pair<'_>, most: usize) -> Option<Value> {
        let (items, mut good) = self.items(key, list);
        self.servers.retain(|(name, ..)| *name != key.name);
        for item in &items {
            match self.server(key, item) {
                Some(servers) => self.servers.push((key.name, place(item), servers)),
                None => good = false,
            }
        }
        if items.len() > most {
            self.report.error(place(list), || {
                let message = format!("`{}` has {} entries, and {most} is the most", key.name, items.len());
                (message, "`destinations` takes any number".to_owned())
            });
            return None;
        }
        let own = self.servers.iter().filter(|(name, ..)| *name == key.name);
        good.then(|| Value::Servers(own.map(|(.., servers)| *servers).collect()))
    }

    /// The blocks of `destinations`.
    fn blocks(&mut self, key: &'static Key, blocks: &Pair<'_>) -> Option<Value> {
        self.ruled.clear();
        let mut rules = Vec::new();
        let good = self.each_block(key, blocks, |this, part| {
            let rule = this.block(part);
            let is_good = rule.is_some();
            rules.extend(rule);
            is_good
        });
        good.then_some(Value::Destinations(rules))
    }

    /// Reads each block of a list, and complains where no comma stands between two; whether all were good.
    fn each_block(
        &mut self,
        key: &'static Key,
        blocks: &Pair<'_>,
        mut read: impl FnMut(&mut Self, &Pair<'_>) -> bool,
    ) -> bool {
        let mut good = true;
        // The block before, if no comma followed it.
        let mut loose: Option<Place> = None;
        for part in blocks.clone().into_inner() {
            match part.as_rule() {
                Rule::comma => loose = None,
                Rule::block => {
                    if let Some((_, end)) = loose.replace(place(&part)) {
                        self.report
                            .error((end, end), || (format!("a `,` is missing in `{}`", key.name), String::new()));
                        good = false;
                    }
                    good &= read(self, &part);
                }
                _ => {}
            }
        }
        good
    }

    /// The blocks of `services`.
    fn services(&mut self, key: &'static Key, blocks: &Pair<'_>) -> Option<Value> {
        let mut services: Vec<ServiceConfig> = Vec::new();
        let good = self.each_block(key, blocks, |this, part| {
            let Some(service) = this.service(part) else { return false };
            let clash = services::clash(&services, &service);
            services.push(service);
            clash
                .map(|complaint| this.report.error((place(part).0, place(part).0 + 1), || (complaint, String::new())))
                .is_none()
        });
        if services.len() > services::MOST {
            self.report.error(place(blocks), || {
                (format!("`services` has {} blocks, and {} is the most", services.len(), services::MOST), String::new())
            });
            return None;
        }
        good.then_some(Value::Services(services))
    }

    /// One block of `services`.
    fn service(&mut self, pair: &Pair<'_>) -> Option<ServiceConfig> {
        let mut draft = services::Draft::default();
        let mut bad = false;
        for member in pair.clone().into_inner().filter(|part| part.as_rule() == Rule::member) {
            let Some((word, value)) = self.parts(member) else {
                bad = true;
                continue;
            };
            let Some(key) = services::KEYS.iter().find(|key| key.name == word.as_str()) else {
                bad = true;
                self.report.error(place(&word), || {
                    let near = nearest(word.as_str(), services::KEYS.iter().map(|key| key.name));
                    let all: Vec<_> = services::KEYS.iter().map(|key| format!("`{}`", key.name)).collect();
                    let expected = match near {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("expected one of {}", all.join(", ")),
                    };
                    (format!("unknown key {} in a block of `services`", quote(word.as_str())), expected)
                });
                continue;
            };
            let at = value.as_ref().map_or(place(&word), place);
            match self.value(key, &word, value) {
                None => bad = true,
                Some(value) => {
                    if let Err(complaint) = draft.take(key.name, value) {
                        bad = true;
                        self.report.error(at, || complaint);
                    }
                }
            }
        }
        if bad {
            return None;
        }
        match draft.finish() {
            Ok(service) => Some(service),
            Err(complaint) => {
                self.report.error((place(pair).0, place(pair).0 + 1), || complaint);
                None
            }
        }
    }

    /// Services need memory, and those with clients or servers on the other side a single worker.
    fn weigh_services(&mut self) {
        let config = &self.config;
        let Some(at) = self.given(None, "services").filter(|_| !config.engine.services.is_empty()) else { return };
        if config.engine.service_buffers == 0 {
            self.report.error(at, || {
                let expected =
                    "expected `service_buffers = 256;`, for example: 256 connections at once, of 16 KiB each";
                ("`services` need buffers for the first bytes of their connections".to_owned(), expected.to_owned())
            });
        }
        let is_turned = config.engine.services.iter().any(|own| own.of_lan || own.side == tcpstate::Side::Wan);
        if is_turned && config.workers != 1 {
            self.report.error(at, || {
                let message = "`clients_on = both` and `servers_on = wan` need a single worker: others would not find their connections";
                (message.to_owned(), "expected `threadcount = 1;`".to_owned())
            });
        }
    }

    /// One block of `destinations`.
    fn block(&mut self, pair: &Pair<'_>) -> Option<DestinationRule> {
        let mut block = Block::default();
        for member in pair.clone().into_inner().filter(|part| part.as_rule() == Rule::member) {
            self.member(&mut block, None, member);
        }
        // A long block is not worth a long underline.
        let at = (place(pair).0, place(pair).0 + 1);
        let Some(network) = block.network else {
            if !block.bad {
                self.report.error(at, || {
                    let expected =
                        "expected `network = \"192.0.2.0/24\";`, for example; `0.0.0.0/0` and `::/0` are all servers";
                    ("this block does not say which servers it is for".to_owned(), expected.to_owned())
                });
            }
            return None;
        };
        if block.bad {
            return None;
        }
        if block.settings == Settings::default() {
            self.report.warn(at, || ("this block settles nothing".to_owned(), String::new()));
        }
        let servers = Servers { port: block.port, ..network };
        self.ruled.push(Ruled { at, servers, vlan: block.vlan, handshake: block.settings.handshake });
        let destination = servers.destination(Handshake::default());
        Some(DestinationRule {
            vlan: block.vlan,
            network: Network { address: destination.address, prefix: destination.prefix },
            port: block.port,
            settings: Arc::new(block.settings),
        })
    }

    /// A key of a block, or of a section in one.
    fn member(&mut self, block: &mut Block, section: Option<&'static str>, member: Pair<'_>) {
        let Some((word, value)) = self.parts(member) else { return };
        let name = word.as_str();
        if let Some(section) = SECTIONS_OF_BLOCKS.into_iter().find(|own| section.is_none() && *own == name) {
            return self.block_section(block, section, &word, value);
        }
        let ruled = RULE_KEYS.iter().find(|key| key.section == section && key.name == name);
        let own = PLACE_KEYS.iter().find(|key| section.is_none() && key.name == name);
        let Some(key) = ruled.map(RuleKey::key).or(own.copied()) else {
            block.bad = true;
            return self.unknown_in_block(section, &word);
        };
        if let Some((.., before)) = block.given.iter().rfind(|given| (given.0, given.1) == (section, key.name)) {
            let line = self.report.line(before.0);
            self.report.warn(place(&word), || {
                let message = format!("`{}` was given on line {line} already", key.name);
                (message, "the last one counts".to_owned())
            });
        }
        block.given.push((section, key.name, place(&word)));
        let Some(value) = self.value(key, &word, value) else {
            block.bad = true;
            return;
        };
        match (ruled, &value) {
            (Some(ruled), _) => ruled.set(&mut block.settings, value),
            (None, Value::Servers(servers)) => block.network = servers.first().copied(),
            // Their ranges are those of 16 bits, or less.
            (None, Value::Number(n)) if key.name == PORT.name => block.port = u16::try_from(*n).ok(),
            (None, Value::Number(n)) if key.name == VLAN.name => block.vlan = u16::try_from(*n).ok(),
            _ => {}
        }
    }

    /// A section in a block.
    fn block_section(&mut self, block: &mut Block, section: &'static str, word: &Pair<'_>, value: Option<Pair<'_>>) {
        match value {
            Some(value) if value.as_rule() == Rule::section => {
                let settings = value.into_inner().filter(|part| part.as_rule() == Rule::setting);
                settings.for_each(|setting| self.member(block, Some(section), setting));
            }
            Some(value) if value.as_rule() == Rule::list && !value.clone().into_inner().any(|part| is_item(&part)) => {}
            value => {
                block.bad = true;
                let place = value.as_ref().map_or(place(word), place);
                self.report.error(place, || {
                    let example = KEYS.iter().find(|key| key.section == Some(section)).map_or("", |key| key.name);
                    (format!("`{section}` is a section"), format!("expected `{section} = {{ {example} = …; }};`"))
                });
            }
        }
    }

    fn unknown_in_block(&mut self, section: Option<&'static str>, word: &Pair<'_>) {
        self.report.error(place(word), || {
            let text = word.as_str();
            let here = RULE_KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
            let own = PLACE_KEYS.iter().map(|key| key.name).chain(SECTIONS_OF_BLOCKS).filter(|_| section.is_none());
            let known =
                |name: &str| KEYS.iter().any(|key| key.name == name) || SECTIONS.iter().any(|(own, _)| *own == name);
            let home = RULE_KEYS.iter().find(|key| key.name == text).map(|key| key.section);
            let expected = match (home, section, nearest(text, here.chain(own))) {
                (Some(Some(home)), ..) => format!("`{text}` belongs in `{home} = {{ … }};`"),
                (Some(None), Some(section), _) => format!("`{text}` belongs outside `{section}`"),
                (_, None, _) if known(present_name(text)) => format!("`{text}` is the same for all servers"),
                (.., Some(near)) => format!("did you mean `{near}`?"),
                (_, None, None) => {
                    "expected `network`, `port`, `vlan`, or a key that may differ from server to server".to_owned()
                }
                (_, Some(section), None) => format!("expected a key of `{section}`"),
            };
            let place = section.map_or("a block of `destinations`".to_owned(), |section| format!("`{section}`"));
            (format!("unknown key {} in {place}", quote(text)), expected)
        });
    }

    /// An address in quotes.
    fn address(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        let Ok(address) = text.parse() else {
            self.report.error(place(string), || {
                (format!("{} is no address", quote(&text)), format!("expected {}, as `\"127.0.0.1\"`", key.range()))
            });
            return None;
        };
        if let Some((host, port)) = may_have_port(&text) {
            self.report.error(place(string), || {
                let message = format!("{} may be an address, or an address and a port", quote(&text));
                let whole = in_full(address);
                let expected = format!(
                    "expected `{} = \"{host}\"; port = {port};` for port {port}, or `\"{whole}\"` for the address alone",
                    key.name
                );
                (message, expected)
            });
            return None;
        }
        Some(Value::Address(address))
    }

    /// Where to listen.
    fn listener(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        if text == "off" {
            return Some(Value::Listener(None));
        }
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        if address.is_none() {
            self.report.error(place(string), || {
                let hint = format!("expected {}, as `\"127.0.0.1:9117\"` or `\"[::1]:9117\"`", key.range());
                (format!("{} is no address with a port", quote(&text)), hint)
            });
        }
        address.map(|address| Value::Listener(Some(address)))
    }

    /// The place of a socket.
    fn socket(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        let control = Control::from(text.as_str());
        let fits = text.starts_with('/') && text.len() <= LONGEST_SOCKET && !text.contains(char::is_control);
        if matches!(control, Control::At(_)) && !fits {
            self.report.error(place(string), || {
                (format!("{} is no place for a socket", quote(&text)), format!("expected {}", key.range()))
            });
            return None;
        }
        Some(Value::Socket(control))
    }

    /// The place of the state.
    fn state_dir(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        let directory = StateDir::from(text.as_str());
        let fits = text.starts_with('/') && !text.contains(char::is_control);
        if matches!(directory, StateDir::Below(_)) && !fits {
            self.report.error(place(string), || {
                (format!("{} is no place for the state", quote(&text)), format!("expected {}", key.range()))
            });
            return None;
        }
        Some(Value::State(directory))
    }

    /// A file or a program, or none.
    fn path(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        if text == "off" {
            return Some(Value::Text(None));
        }
        if !text.starts_with('/') || text.contains(char::is_control) {
            self.report.error(place(string), || {
                let what = if key.takes == Takes::File { "file" } else { "program" };
                (format!("{} is no path of a {what}", quote(&text)), format!("expected {}", key.range()))
            });
            return None;
        }
        Some(Value::Text(Some(text)))
    }

    /// A syslog server, or none.
    fn syslog(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let text = unquoted(string);
        if text == "off" {
            return Some(Value::Syslog(None));
        }
        let is_path = text.starts_with('/') && text.len() <= LONGEST_SOCKET && !text.contains(char::is_control);
        let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let syslog = is_path.then(|| Syslog::Socket(text.as_str().into())).or(address.map(Syslog::Udp));
        if syslog.is_none() {
            self.report.error(place(string), || {
                let hint = format!("expected {}, as `\"/dev/log\"` or `\"192.0.2.1:514\"`", key.range());
                (format!("{} is no syslog server", quote(&text)), hint)
            });
        }
        syslog.map(|syslog| Value::Syslog(Some(syslog)))
    }

    /// The servers an item names.
    fn server(&mut self, key: &'static Key, item: &Pair<'_>) -> Option<Servers> {
        let source = item.as_str();
        // What is repeated in a hint shall be worth it, and safe to print.
        let is_short = source.len() <= 2 * LONGEST_WORD && source.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if item.as_rule() != Rule::string {
            self.report.error(place(item), || {
                let hint = match Servers::read(source) {
                    Ok(_) => format!("expected `\"{source}\"`"),
                    Err(_) => format!("expected {}", key.range()),
                };
                (format!("{} is no address in quotes", quote(source)), hint)
            });
            return None;
        }
        let text = unquoted(item);
        match Servers::read(&text) {
            Ok((servers, more)) => {
                if more {
                    self.report.warn(place(item), || {
                        let message = format!("{} has bits set beyond its prefix", quote(&text));
                        (message, format!("they do not count; `{servers}` is meant"))
                    });
                }
                Some(servers)
            }
            Err(mistake) => {
                self.report.error(place(item), || {
                    let hint = if is_short { mistake.expected } else { String::new() };
                    (format!("{} {}", quote(&text), mistake.message), hint)
                });
                None
            }
        }
    }

    /// The network an item names.
    fn network(&mut self, key: &'static Key, item: &Pair<'_>) -> Option<Servers> {
        let servers = self.server(key, item)?;
        if servers.port.is_some() {
            self.report.error(place(item), || {
                let network = Servers { port: None, ..servers };
                let message = format!("a network of `{}` has a port", key.name);
                (message, format!("expected `\"{network}\"`: clients are listed by their address alone"))
            });
            return None;
        }
        Some(servers)
    }

    /// The file an item names.
    fn listed_file(&mut self, key: &'static Key, item: &Pair<'_>) -> Option<PathBuf> {
        let text = if item.as_rule() == Rule::string { unquoted(item) } else { String::new() };
        if !text.starts_with('/') || text.contains(char::is_control) {
            self.report.error(place(item), || {
                (
                    format!("{} is no path from / on in quotes", quote(item.as_str())),
                    format!("expected {}", key.range()),
                )
            });
            return None;
        }
        Some(text.into())
    }

    /// A name in quotes.
    fn account_name(&mut self, key: &'static Key, string: &Pair<'_>) -> Option<Value> {
        let name = unquoted(string);
        if name.is_empty() || name.len() > 256 || name.contains(|c: char| c.is_control() || c == ':') {
            self.report.error(place(string), || {
                (format!("{} can be nobody's name", quote(string.as_str())), format!("expected {}", key.range()))
            });
            return None;
        }
        Some(Value::Account(Some(Account::Name(name))))
    }

    /// Complains if the tables of the cookie without timestamps leave too little of it for the proof.
    fn weigh_cookie(&mut self) {
        let Some(at) = self.given(None, "mss").max(self.given(None, "wscale")) else { return };
        let (mss, wscale) = (self.config.engine.mss_table.len(), self.config.engine.wscale_table.len());
        // SACK or not, a scale or none, an MSS.
        let codes = 2 * (wscale + 1) * mss;
        let bits = codes.next_power_of_two().trailing_zeros();
        let why = format!("2 × ({wscale} scales + none) × {mss} MSS values");
        if bits > MOST_CODE_BITS {
            self.report.error(at, || {
                let message =
                    format!("`mss` and `wscale` take {bits} bits of the cookie, and {MOST_CODE_BITS} is the most");
                (message, format!("{why} are {codes} combinations; {} fit", 1u32 << MOST_CODE_BITS))
            });
        } else if bits > FREE_CODE_BITS {
            self.report.warn(at, || {
                let message =
                    format!("`mss` and `wscale` take {bits} bits of the cookie and leave {} to its MAC", 31 - bits);
                let few = 1u32 << FREE_CODE_BITS;
                let expected = format!(
                    "{why} are {codes} combinations; up to {few} leave it 24. With timestamps it keeps \
                     {TIMESTAMP_MAC_BITS}, whatever the lists are"
                );
                (message, expected)
            });
        }
    }

    /// Warns of a flow table that hardly any machine can hold.
    fn weigh_table(&mut self) {
        let flows = self.config.engine.table_buckets as u64 * tcpstate::Config::FLOWS_PER_BUCKET as u64;
        let bytes = flows * FLOW_BYTES;
        if let Some(at) = self.given(None, "conntablesize")
            && bytes >= LARGE_TABLE
        {
            self.report.warn(at, || {
                (format!("the flow table takes {} GiB of memory", bytes >> 30), format!("it holds {flows} flows"))
            });
        }
    }

    /// Warns of tokens that no bucket can take.
    fn weigh_tokens(&mut self) {
        let (add, burst) = (self.config.engine.rate.add, self.config.engine.rate.burst);
        let given = |name| self.given(Some("ratehash"), name);
        if let Some(at) = given("timer_add").max(given("initial_tokens"))
            && add > burst
        {
            self.report.warn(at, || {
                let message = format!("a bucket holds {burst} tokens, and each period adds {add}");
                (message, "what is over is lost; expected `timer_add` up to `initial_tokens`".to_owned())
            });
        }
    }

    /// Complains of servers that are named twice: warns where it is the same key, and refuses where the keys contradict each other.
    fn weigh_servers(&mut self) {
        self.servers.sort_unstable_by_key(|(_, at, _)| *at);
        let mut seen: BTreeMap<Servers, (&str, Place)> = BTreeMap::new();
        for (key, at, servers) in &self.servers {
            let Some((before, place)) = seen.insert(*servers, (key, *at)) else { continue };
            let line = self.report.line(place.0);
            if before == *key {
                self.report
                    .warn(*at, || (format!("`{servers}` stands twice in `{key}`"), format!("line {line} has it")));
            } else {
                self.report.error(*at, || {
                    let message = format!("`{servers}` is in `{key}`, and in `{before}` on line {line}");
                    (message, "expected it in one of the two".to_owned())
                });
            }
        }
    }

    /// Complains of blocks for the same servers, and of those that contradict a list.
    fn weigh_blocks(&mut self) {
        let mut seen: BTreeMap<(Servers, Option<u16>), Place> = BTreeMap::new();
        for Ruled { at, servers, vlan, handshake } in &self.ruled {
            if let Some(before) = seen.insert((*servers, *vlan), *at) {
                let line = self.report.line(before.0);
                self.report.error(*at, || {
                    let vlan = vlan.map_or(String::new(), |vlan| format!(" on VLAN {vlan}"));
                    let message = format!("`{servers}`{vlan} has a block on line {line} already");
                    (message, "expected all of it in one block".to_owned())
                });
            }
            let listed = self.servers.iter().find(|(.., listed)| vlan.is_none() && listed == servers);
            let list = match handshake {
                Some(Handshake::Early) => "early",
                Some(Handshake::Honest) => "honest",
                None => continue,
            };
            if let Some((name, place, _)) = listed
                && *name != list
            {
                let line = self.report.line(place.0);
                self.report.error(*at, || {
                    let message =
                        format!("this block says `handshake = {list}`, and `{servers}` is in `{name}` on line {line}");
                    (message, "expected one of the two".to_owned())
                });
            }
        }
    }

    /// Warns of a hold queue that takes the frames arrivals need, or that is wanted and has no place.
    fn weigh_held_frames(&mut self) {
        let Some(at) = self.given(None, "held_frames") else { return };
        let engine = &self.config.engine;
        let (frames, workers) = (engine.held_frames, self.config.workers);
        let is_early = engine.handshake == Handshake::Early
            || engine.destinations.iter().any(|destination| destination.handshake == Handshake::Early)
            || engine.rules.iter().any(|rule| rule.settings.handshake == Some(Handshake::Early));
        let (share, quarter) = (frames.div_ceil(workers), FRAMES_OF_A_WORKER / 4);
        if share > quarter {
            self.report.warn(at, || {
                let message = format!("each worker may hold {share} of its {FRAMES_OF_A_WORKER} frames");
                let most = quarter * workers;
                (message, format!("expected `held_frames` up to {most}, a quarter, so that enough are spare"))
            });
        }
        if frames == 0 && is_early {
            self.report.warn(at, || {
                let message = "with `held_frames = 0` an early handshake has no place for what clients send".to_owned();
                (message, "all of it is dropped, to be sent again".to_owned())
            });
        }
    }

    /// Warns of intervals whose longest is shorter than the first.
    fn weigh_intervals(&mut self) {
        let Some(at) = self.given(Some("timeouts"), "syn_retx_max") else { return };
        let (first, most) = (self.config.engine.timeouts.syn_retx, self.config.engine.timeouts.syn_retx_max);
        if most < first {
            self.report.warn(at, || {
                let (first, most) = (first.as_secs(), most.as_secs());
                let message = format!("`syn_retx_max` is {most} s, and the first interval is {first} s");
                (message, "every interval is the first one then".to_owned())
            });
        }
    }

    /// Warns of an attack that is over while it still begins.
    fn weigh_attacks(&mut self) {
        let mut given = ["attack_end", "attack_begin"].into_iter().filter_map(|name| self.given(Some("events"), name));
        let Some(at) = given.next() else { return };
        let (begin, end) = (self.config.events.attack_begin, self.config.events.attack_end);
        if end > begin {
            self.report.warn(at, || {
                let message = format!("`attack_end` is {end} SYNs a second, and `attack_begin` is {begin}");
                (message, "an attack between the two begins and ends again and again".to_owned())
            });
        }
    }

    /// Warns of a threshold to leave above that to enter, and of more targets than can be told apart.
    fn weigh_thresholds(&mut self) {
        let given = |name| self.given(Some("auto"), name);
        let (enter, leave) = (self.config.engine.auto.enter_half_open, self.config.engine.auto.leave_half_open);
        if let Some(at) = given("enter_half_open").max(given("leave_half_open"))
            && leave > enter
        {
            self.report.warn(at, || {
                let message = format!("`leave_half_open` is {leave}, and `enter_half_open` is {enter}");
                (message, "SYNs pass again below the lower of the two".to_owned())
            });
        }
        let settles = |rule: &&DestinationRule| {
            rule.settings.mode.is_some() || rule.settings.auto != tcpstate::config::AutoSettings::default()
        };
        let targets = self.config.engine.rules.iter().filter(settles).count();
        if let Some(at) = self.given(None, "destinations")
            && targets > MOST_TARGETS
        {
            self.report.error(at, || {
                let message = format!("{targets} blocks settle a mode, and {MOST_TARGETS} is the most");
                (message, "expected one block for networks that are treated alike".to_owned())
            });
        }
    }

    /// Says what pest found wrong.
    fn misshapen(&mut self, text: &str, error: &pest::error::Error<Rule>) {
        let (InputLocation::Pos(at) | InputLocation::Span((at, _))) = error.location;
        let rules = match &error.variant {
            ErrorVariant::ParsingError { positives, .. } => positives.as_slice(),
            ErrorVariant::CustomError { .. } => &[],
        };
        let rest = &text[at..];
        let found: String = match rest.chars().next() {
            Some(c) if c.is_alphanumeric() || c == '_' => {
                rest.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-')).take(64).collect()
            }
            Some(c) => c.to_string(),
            None => String::new(),
        };
        let mut expected = expectation(rules);
        if rules.contains(&Rule::head) && nearest(&found, ["synproxyconf"].into_iter()).is_some() {
            expected.push_str("; did you mean `synproxyconf`?");
        }
        // At the end, the place is behind the last word, not on an empty line below it.
        let place =
            if rest.is_empty() { (text.trim_end().len(), text.trim_end().len()) } else { (at, at + found.len()) };
        self.report.error(place, || {
            let message = if rest.starts_with("/*") {
                return ("this comment is never closed".to_owned(), "expected `*/` further down".to_owned());
            } else if rest.starts_with('"') && rules.contains(&Rule::string) {
                return ("this string is never closed".to_owned(), "expected `\"` further down".to_owned());
            } else if text.trim().is_empty() {
                "the file is empty".to_owned()
            } else if rest.is_empty() {
                "the file ends too early".to_owned()
            } else if rules == [Rule::EOI] || rules == [Rule::semi, Rule::EOI] || rules == [Rule::EOI, Rule::semi] {
                format!("{} comes after the end", quote(&found))
            } else {
                format!("{} is out of place", quote(&found))
            };
            (message, expected)
        });
    }
}

fn place(pair: &Pair<'_>) -> Place {
    (pair.as_span().start(), pair.as_span().end())
}

fn is_item(part: &Pair<'_>) -> bool {
    matches!(part.as_rule(), Rule::number | Rule::string | Rule::word)
}

/// What a string says; a backslash makes the next character literal.
fn unquoted(string: &Pair<'_>) -> String {
    let text = string.as_str();
    let mut said = String::new();
    let mut chars = text.get(1..text.len() - 1).unwrap_or_default().chars();
    while let Some(c) = chars.next() {
        said.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    said
}

/// What the grammar would have taken, in words.
fn expectation(rules: &[Rule]) -> String {
    let has = |rule| rules.contains(&rule);
    let mut words = Vec::new();
    let mut add = |say: bool, word| {
        if say && !words.contains(&word) {
            words.push(word);
        }
    };
    // pest names the first token of a rule where that is all there is to say.
    let value = has(Rule::number) && has(Rule::open);
    add(has(Rule::head), "`synproxyconf = {`");
    add(has(Rule::eq), "`=`");
    add(value, "a value");
    add(has(Rule::comma), "`,`");
    add(has(Rule::semi), "`;`");
    add(has(Rule::number) && !value, "a number");
    add(has(Rule::word) && !has(Rule::number), "a key");
    add(has(Rule::open) && !value, "`{`");
    add(has(Rule::begin) && !has(Rule::number), "`{`");
    add(has(Rule::close) || has(Rule::end), "`}`");
    add(has(Rule::EOI), "the end of the file");
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => format!("expected {last}"),
        Some((last, others)) => format!("expected {} or {last}", others.join(", ")),
    }
}

/// The known word that `word` most likely was meant to be.
fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > LONGEST_WORD {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    known
        .map(|known| (strsim::osa_distance(&word, known), known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(4).min(word.chars().count().div_ceil(2)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// What someone means who switches with a word or number of another language.
fn switch(words: &[&'static str], word: &str) -> Option<&'static str> {
    let meant = match word.to_lowercase().as_str() {
        "1" | "yes" | "true" | "on" | "enabled" => "enable",
        "0" | "no" | "false" | "off" | "disabled" => "disable",
        _ => return None,
    };
    words.iter().copied().find(|known| *known == meant)
}

/// The number that `text` is with its unit taken into account, if that is certain.
fn plain(key: &Key, text: &str) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    let text = text.replace('_', "");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let n: u64 = text[..digits].parse().ok()?;
    let thousand: u64 = if matches!(key.takes, Takes::PowerOfTwo { .. }) { 1024 } else { 1000 };
    let seconds = match &text[digits..] {
        "" => return Some(n),
        "k" | "K" => return n.checked_mul(thousand),
        "M" => return n.checked_mul(thousand * thousand),
        unit if unit == key.unit => return Some(n),
        "us" | "µs" if key.unit == "microseconds" => return Some(n),
        "ms" if key.unit == "microseconds" => return n.checked_mul(1000),
        "ms" if key.unit == "milliseconds" => return Some(n),
        "s" | "sec" => n,
        "m" | "min" => n.checked_mul(60)?,
        "h" => n.checked_mul(3600)?,
        "d" => n.checked_mul(86400)?,
        _ => return None,
    };
    match key.unit {
        "seconds" => Some(seconds),
        "milliseconds" => seconds.checked_mul(1000),
        "microseconds" => seconds.checked_mul(1_000_000),
        _ => None,
    }
}
