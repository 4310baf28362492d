//! The table in `docs/control.md` of when a changed key takes effect is made from the list of effects, and equal to it.
//! `EFFECTS=accept cargo test -p confparse --test text effects` writes it anew.

use std::fmt::Write;
use std::path::Path;

use confparse::{Config, Effect, Key};

const BEGIN: &str = "| a change takes effect | of these keys |\n|---|---|\n";

/// Whether an effect belongs to a row.
type IsSuch = fn(Effect) -> bool;

/// The effects, as the table names them and in its order.
const ROWS: [(&str, IsSuch); 5] = [
    ("now", |effect| effect == Effect::Now),
    ("for new connections; those that run keep what they began with", |effect| effect == Effect::NewConnections),
    (
        "at the next epoch, on all workers at the same time; cookies made before open with the tables they were made with (`own_wscale`: at once for clients with timestamps)",
        |effect| effect == Effect::NextEpoch,
    ),
    ("at a restart", |effect| matches!(effect, Effect::Restart(_))),
    ("never: they are read and checked, and change nothing", |effect| matches!(effect, Effect::Nothing(_))),
];

/// The names of keys whose effect is such; a section's name stands for all of its keys.
fn names(is_such: IsSuch) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for key in Config::KEYS.iter().filter(|key| is_such(key.effect())) {
        let of_section = |other: &&Key| other.section.is_some() && other.section == key.section;
        let is_whole =
            key.section.is_some() && Config::KEYS.iter().filter(of_section).all(|other| is_such(other.effect()));
        let name = key.section.filter(|_| is_whole).map_or_else(|| key.full_name(), str::to_owned);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[test]
fn the_table_of_effects_is_that_of_the_document() {
    let mut table = BEGIN.to_owned();
    for (when, is_such) in ROWS {
        let names: Vec<_> = names(is_such).iter().map(|name| format!("`{name}`")).collect();
        if !names.is_empty() {
            writeln!(table, "| {when} | {} |", names.join(", ")).expect("memory");
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    let document = std::fs::read_to_string(&path).expect("the document is in the tree");
    let begin = document.find(BEGIN).expect("a table of effects");
    let end = begin + document[begin..].find("\n\n").expect("an end of the table") + 1;
    if std::env::var_os("EFFECTS").is_some_and(|value| value == "accept") {
        std::fs::write(&path, [&document[..begin], &table, &document[end..]].concat()).expect("writing the document");
        return;
    }
    assert!(
        document[begin..end] == table,
        "docs/control.md differs from the list; EFFECTS=accept writes it anew:\n{table}"
    );
}
