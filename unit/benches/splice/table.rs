//! What was measured, as one table in Markdown, and beside it what was to be reached.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::arms::Arm;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    More,
    Less,
    /// It is told, and not judged.
    Neither,
}

/// What a row is about, for those that are judged together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Latency,
    /// CPU time for each gigabyte.
    Cpu,
    Goodput,
    Other,
}

/// A row: a value for each arm that has one.
#[derive(Clone, Debug)]
pub struct Row {
    pub group: String,
    pub name: String,
    pub kind: Kind,
    pub good: Good,
    pub digits: usize,
    pub values: BTreeMap<Arm, f64>,
}

impl Row {
    /// Whether one value is at least as good as another.
    fn is_as_good(&self, one: f64, other: f64) -> bool {
        match self.good {
            Good::More => one >= other,
            Good::Less => one <= other,
            Good::Neither => true,
        }
    }

    /// Whether this arm is as good as every other but the limit.
    fn is_first(&self, arm: Arm) -> bool {
        let Some(own) = self.values.get(&arm) else { return false };
        let mut others = self.values.iter().filter(|(other, _)| **other != Arm::NoRelay);
        others.all(|(_, value)| self.is_as_good(*own, *value))
    }

    /// The arm's value as a multiple of the limit's.
    fn beside_limit(&self, arm: Arm) -> Option<f64> {
        Some(self.values.get(&arm)? / self.values.get(&Arm::NoRelay)?)
    }
}

/// The rows as Markdown; of each the best relay's value is bold.
pub fn markdown(rows: &[Row], arms: &[Arm]) -> String {
    let mut text = String::from("| |");
    arms.iter().for_each(|arm| write!(text, " {} |", arm.name()).expect("a string takes everything"));
    text += "\n|---|";
    arms.iter().for_each(|_| text += "---:|");
    text += "\n";
    let mut group = "";
    for row in rows {
        if row.group != group {
            group = &row.group;
            writeln!(text, "| **{group}** |{}", " |".repeat(arms.len())).expect("a string takes everything");
        }
        write!(text, "| {} |", row.name).expect("a string takes everything");
        for arm in arms {
            let cell = match row.values.get(arm) {
                None => " |".to_owned(),
                Some(value) if row.good != Good::Neither && *arm != Arm::NoRelay && row.is_first(*arm) => {
                    format!(" **{value:.*}** |", row.digits)
                }
                Some(value) => format!(" {value:.*} |", row.digits),
            };
            text += &cell;
        }
        text += "\n";
    }
    text
}

/// What was to be reached, and what was: a list in Markdown.
pub fn goals(rows: &[Row], arms: &[Arm]) -> String {
    let mut text = String::from("| goal | reached |\n|---|---|\n");
    let mut line = |goal: &str, reached: String| {
        writeln!(text, "| {goal} | {reached} |").expect("a string takes everything");
    };
    for arm in [Arm::KernelTc, Arm::KernelXdp].into_iter().filter(|arm| arms.contains(arm)) {
        for (kind, what) in [(Kind::Latency, "latency"), (Kind::Cpu, "CPU for each GB")] {
            let rows: Vec<&Row> = rows.iter().filter(|row| row.kind == kind && row.values.contains_key(&arm)).collect();
            let first = rows.iter().filter(|row| row.is_first(arm)).count();
            let near = rows.iter().filter(|row| row.beside_limit(arm).is_some_and(|ratio| ratio <= 1.1)).count();
            let reached = format!("first in {first} of {all} rows; within 10 % in {near} of {all}", all = rows.len());
            line(&format!("{}: {what}, first of all relays and within 10 % of no relay", arm.name()), reached);
        }
        let rows: Vec<&Row> =
            rows.iter().filter(|row| row.kind == Kind::Goodput && row.values.contains_key(&arm)).collect();
        let first = rows.iter().filter(|row| row.is_first(arm)).count();
        line(&format!("{}: goodput of every other arm or more", arm.name()), format!("{first} of {} rows", rows.len()));
    }
    if arms.contains(&Arm::User) && arms.contains(&Arm::ReadWrite) {
        for (kind, what) in [(Kind::Latency, "latency"), (Kind::Cpu, "CPU for each GB")] {
            let both = |row: &&Row| {
                row.kind == kind && row.values.contains_key(&Arm::User) && row.values.contains_key(&Arm::ReadWrite)
            };
            let rows: Vec<&Row> = rows.iter().filter(both).collect();
            let ahead = rows.iter().filter(|row| row.is_as_good(row.values[&Arm::User], row.values[&Arm::ReadWrite]));
            line(
                &format!("{}: {what}, ahead of {}", Arm::User.name(), Arm::ReadWrite.name()),
                format!("{} of {} rows", ahead.count(), rows.len()),
            );
        }
    }
    let value = |name: &str, arm: Arm| rows.iter().find(|row| row.name == name)?.values.get(&arm).copied();
    for arm in [Arm::KernelTc, Arm::KernelXdp, Arm::User] {
        if let (Some(ours), Some(other)) = (value(RATE, arm), value(RATE, Arm::HaProxy)) {
            let goal = format!("{}: routed connections a second, twice {}'s", arm.name(), Arm::HaProxy.name());
            line(&goal, format!("{:.2} times", ours / other));
        }
        if let (Some(ours), Some(other)) = (value(OWN, arm), value(OWN, Arm::HaProxy)) {
            let goal =
                format!("{}: CPU for a routed connection, at most half of {}'s", arm.name(), Arm::HaProxy.name());
            line(&goal, format!("{:.2} times", ours / other));
        }
    }
    text
}

/// Names of rows that goals are about.
pub const RATE: &str = "connections a second";
pub const OWN: &str = "CPU for each, above no relay's, µs";
