//! The configuration of a running box as text: what is in force, what another file would change, and what a reload has changed.

use confparse::Config;
use control::{Change, Configuration, Effect, Overridden, Reloaded, Setting};
use std::collections::BTreeSet;
use std::fmt::Write;
use synproxy::control::reload::{in_protocol, overridden_by};

/// Every key in force with its value, one a line; a comment names the option of the command line that overrides it.
pub fn shown(configuration: &Configuration) -> String {
    let mut out = match &configuration.file {
        Some(file) => format!("# {file}\n"),
        None => "# started without a file\n".to_owned(),
    };
    for Setting { key, value, overridden } in &configuration.settings {
        let by = overridden.as_ref().map(|overridden| format!("    # by {}", overridden.by)).unwrap_or_default();
        let _ = match value {
            Some(value) => writeln!(out, "{key} = {value};{by}"),
            None => writeln!(out, "# {key} is off{by}"),
        };
    }
    out
}

/// What the box would change if it read `new` in the stead of what is in force.
pub fn difference(running: &Configuration, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    for key in Config::KEYS {
        let (name, value) = (key.full_name(), key.text(new));
        // A key that the box does not know is one of a later version.
        let Some(setting) = running.settings.iter().find(|setting| setting.key == name) else { continue };
        let effect = key.effect();
        let (old, effect, reason) = match &setting.overridden {
            Some(Overridden { by, file }) => (file, Effect::Nothing, Some(overridden_by(by))),
            None => (&setting.value, in_protocol(effect), effect.reason().map(str::to_owned)),
        };
        if *old != value {
            changes.push(Change { key: name, old: old.clone(), new: value, effect, reason });
        }
    }
    changes
}

/// Changes, each with its old value, its new one, and when it takes effect.
pub fn changes(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing differs\n".to_owned();
    }
    let mut out = String::new();
    for Change { key, old, new, effect, reason } in changes {
        let when = match effect {
            Effect::Now => "now",
            Effect::NewConnections => "for new connections",
            Effect::NextEpoch => "at the next epoch, in 5 to 72 s",
            Effect::Restart => "at a restart",
            Effect::Nothing => "never",
        };
        let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let _ = writeln!(out, "{key}: {when}{why}");
        let [old, new] = [old, new].map(|value| value.as_deref().unwrap_or("off"));
        // Of a list of blocks those are shown that come or go.
        let (former, next): (BTreeSet<&str>, BTreeSet<&str>) = (old.lines().collect(), new.lines().collect());
        let is_long = old.lines().count().max(new.lines().count()) > 1;
        for (sign, lines, others) in [('-', old, &next), ('+', new, &former)] {
            for line in lines.lines().filter(|line| !is_long || !others.contains(line)) {
                let _ = writeln!(out, "    {sign} {}", line.trim());
            }
        }
    }
    out
}

/// What a reload has done.
pub fn reloaded(Reloaded { file, changes: all, warnings }: &Reloaded) -> String {
    let warnings: String = warnings.iter().map(|warning| format!("{warning}\n")).collect();
    format!("{warnings}reloaded {file}\n{}", changes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a box says that runs with this configuration.
    fn running(config: &Config) -> Configuration {
        let setting = |key: &confparse::Key| Setting {
            key: key.full_name(),
            value: key.text(config),
            overridden: (key.name == "poll").then(|| Overridden { by: "--poll".to_owned(), file: key.text(config) }),
        };
        Configuration { file: None, settings: Config::KEYS.iter().map(setting).collect() }
    }

    fn parsed(body: &str) -> Config {
        confparse::parse(&format!("synproxyconf = {{ {body} }};"), "x")
            .unwrap_or_else(|errors| panic!("{errors}"))
            .config
    }

    fn told(old: &str, new: &str) -> String {
        changes(&difference(&running(&parsed(old)), &parsed(new)))
    }

    #[test]
    fn each_change_says_when_it_takes_effect() {
        assert_eq!(told("", ""), "nothing differs\n");
        assert_eq!(told("own_mss = 1400;", ""), "own_mss: for new connections\n    - 1400\n    + 1460\n");
        assert_eq!(told("", "mss_clamp = 9;"), "mss_clamp: for new connections\n    - off\n    + 9\n");
        assert_eq!(told("shed = off;", ""), "shed: now\n    - off\n    + on\n");
        assert!(told("", "mss = { 9 };").starts_with("mss: at the next epoch, in 5 to 72 s\n"));
        assert!(told("", "threadcount = 2;").starts_with("threadcount: at a restart: each worker has a queue"));
        assert!(told("", "ts_bits = 2;").starts_with("ts_bits: never: the time in a timestamp cookie"));
        assert!(told("", "poll = busy;").starts_with("poll: never: --poll of the command line overrides it\n"));
        assert!(told("", "ratehash = { size = 2; };").starts_with("ratehash.size: at a restart"));
    }

    #[test]
    fn of_many_rules_those_are_shown_that_differ() {
        let rules = |third: &str| {
            format!(
                "destinations = {{ {{ network = \"192.0.2.1\"; own_mss = 999; }}, {{ network = \"192.0.2.2\"; own_mss = 998; }}, {third} }};"
            )
        };
        let text = told(&rules(""), &rules("{ network = \"192.0.2.3\"; own_mss = 997; }"));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("    + { network = \"192.0.2.3\"; own_mss = 997; },"), "{text}");
    }

    #[test]
    fn what_is_in_force_is_shown_as_a_file_has_it() {
        let text = shown(&running(&Config::default()));
        for line in
            ["# started without a file", "own_mss = 1460;", "# mss_clamp is off", "poll = adaptive;    # by --poll"]
        {
            assert!(text.lines().any(|own| own == line), "{line}: {text}");
        }
    }
}
