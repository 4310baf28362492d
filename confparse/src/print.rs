//! A configuration as text: every key with its value, and values as they stand in a file.

use std::fmt::Write as _;

use tcpstate::config::{DestinationRule, Settings};

use crate::keys::{KEYS, Key, SECTIONS};
use crate::rules::{RULE_KEYS, RuleKey, SECTIONS_OF_BLOCKS};
use crate::servers::{Servers, unambiguous};
use crate::services;
use crate::{Account, Config, Control, StateDir, Value, quoted};

/// `config` as a file.
pub(crate) fn describe(config: &Config) -> String {
    let mut out = String::from("synproxyconf = {\n");
    let keys_of = |section| KEYS.iter().filter(move |key| key.section == section);
    let line = |out: &mut String, indent: &str, key: &Key| {
        let _ = match key.value(config) {
            Some(Value::Flag(true)) => writeln!(out, "{indent}{};", key.name),
            Some(Value::Flag(false)) | None => writeln!(out, "{indent}# {} is off", key.name),
            Some(value) => writeln!(out, "{indent}{} = {};", key.name, text(&value)),
        };
    };
    for key in keys_of(None) {
        line(&mut out, "    ", key);
    }
    for (section, _) in SECTIONS {
        let _ = writeln!(out, "    {section} = {{");
        for key in keys_of(Some(section)) {
            line(&mut out, "        ", key);
        }
        out.push_str("    };\n");
    }
    out.push_str("};\n");
    out
}

impl Key {
    /// Its default as it would stand in a file; `None` if it is off unless given.
    pub fn default_text(&self) -> Option<String> {
        match self.value(&Config::default())? {
            Value::Flag(false) => None,
            value => Some(text(&value)),
        }
    }

    /// Its value in `config` as it would stand in a file; `set` for a flag that is set; `None` if it is off.
    pub fn text(&self, config: &Config) -> Option<String> {
        match self.value(config)? {
            Value::Flag(false) => None,
            Value::Flag(true) => Some("set".to_owned()),
            value => Some(text(&value)),
        }
    }
}

/// A value as it stands in a file.
fn text(value: &Value) -> String {
    match value {
        Value::Flag(_) => String::new(),
        Value::Word(word) => (*word).to_owned(),
        Value::Number(n) => n.to_string(),
        Value::List(list) => {
            let list: Vec<_> = list.iter().map(u64::to_string).collect();
            format!("{{ {} }}", list.join(", "))
        }
        Value::Address(address) => quoted(&unambiguous(*address)),
        Value::Listener(None) => quoted("off"),
        Value::Listener(Some(address)) => format!("\"{address}\""),
        Value::Text(None) | Value::Syslog(None) => quoted("off"),
        Value::Text(Some(text)) => quoted(text),
        Value::Syslog(Some(syslog)) => quoted(&syslog.to_string()),
        Value::Socket(Control::Auto) => quoted("auto"),
        Value::Socket(Control::None) => quoted("none"),
        Value::Socket(Control::At(path)) => quoted(&path.to_string_lossy()),
        Value::State(StateDir::Auto) => quoted("auto"),
        Value::State(StateDir::None) => quoted("none"),
        Value::State(StateDir::Descriptors) => quoted("descriptors"),
        Value::State(StateDir::Below(path)) => quoted(&path.to_string_lossy()),
        Value::Servers(servers) if servers.is_empty() => "{ }".to_owned(),
        Value::Servers(servers) => {
            let servers: Vec<_> = servers.iter().map(|server| format!("\"{server}\"")).collect();
            format!("{{ {} }}", servers.join(", "))
        }
        Value::Destinations(rules) if rules.is_empty() => "{ }".to_owned(),
        Value::Destinations(rules) => {
            let blocks: Vec<_> = rules.iter().map(|rule| format!("        {{ {} }}", block(rule))).collect();
            format!("{{\n{},\n    }}", blocks.join(",\n"))
        }
        Value::Services(services) if services.is_empty() => "{ }".to_owned(),
        Value::Services(services) => {
            let blocks: Vec<_> =
                services.iter().map(|service| format!("        {{ {} }}", services::block(service))).collect();
            format!("{{\n{},\n    }}", blocks.join(",\n"))
        }
        Value::Texts(texts) => {
            let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
            format!("{{ {} }}", texts.join(", "))
        }
        Value::Files(files) if files.is_empty() => "{ }".to_owned(),
        Value::Files(files) => {
            let files: Vec<_> = files.iter().map(|file| quoted(&file.to_string_lossy())).collect();
            format!("{{ {} }}", files.join(", "))
        }
        Value::Account(None) => "0".to_owned(),
        Value::Account(Some(Account::Id(id))) => id.to_string(),
        Value::Account(Some(Account::Name(name))) => quoted(name),
    }
}

/// A rule as its block stands in a file, without the braces.
fn block(rule: &DestinationRule) -> String {
    let mut out = format!("network = \"{}\";", Servers::of_network(&rule.network));
    // Writing to a string cannot fail.
    if let Some(port) = rule.port {
        let _ = write!(out, " port = {port};");
    }
    if let Some(vlan) = rule.vlan {
        let _ = write!(out, " vlan = {vlan};");
    }
    let all = |section: Option<&str>| {
        let keys = RULE_KEYS.iter().filter(move |key| key.section == section);
        keys.filter_map(|key| Some(format!("{} = {};", key.name, settled(key, &rule.settings)?)))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let own = all(None);
    if !own.is_empty() {
        let _ = write!(out, " {own}");
    }
    for section in SECTIONS_OF_BLOCKS {
        let settled = all(Some(section));
        if !settled.is_empty() {
            let _ = write!(out, " {section} = {{ {settled} }};");
        }
    }
    out
}

/// The value that is settled, as it stands in a file.
fn settled(key: &RuleKey, settings: &Settings) -> Option<String> {
    let mut config = Config::default();
    let is_settled = (key.give)(settings, &mut config.engine);
    is_settled.then(|| key.key().value(&config)).flatten().map(|value| text(&value))
}
