//! What a page says that can be tried: commands, configurations, JSON and requests to the control socket, found in fenced blocks and in code
//! spans, with the notes that say how they are tried. `unit/tests/e2e/documents.rs` tries them.
//!
//! A note is a comment that a reader does not see. On a line of its own it is about what follows it, up to the next blank line or to the end of the
//! fenced block; in a line with other text it is about that line. Each has the form `<!-- WORD: TEXT -->`:
//!
//! | note | the commands |
//! |---|---|
//! | `not run: REASON` | are not run; `docs/verification.md` lists all of these |
//! | `run by: FILE` | are run by that file, which contains each of their words |
//! | `example: REASON` | are no commands, although they look like some |
//! | `before: LINE` | are run after this shell line; several are run in their order |
//! | `box: ARGUMENTS` | find a box that was started with these arguments before the ports; with `none` they find none |
//! | `at: HOST` | are run at `client` or `server` instead of at the box |
//! | `ends: STATUS` | end with this status instead of 0 |
//! | `stop: LINE` | run until they are stopped: once this shell line succeeds they are interrupted |
//! | `with: WORD=TEXT` | are run with TEXT in place of WORD |
//! | `shape: LINES` | print at least this many of the lines that are shown, instead of all |
//! | `connections: N` | find so many connections through the box |
//!
//! A box is what `synproxy LAN WAN` leaves running; a command that ends in `&` stays likewise.

use std::fmt;

/// Programs that a command begins with.
const PROGRAMS: [&str; 38] = [
    "bpftool",
    "cargo",
    "curl",
    "echo",
    "ethtool",
    "for",
    "honest",
    "install",
    "ip",
    "iptables",
    "journalctl",
    "kill",
    "make",
    "modprobe",
    "mount",
    "nc",
    "netmapsend",
    "nft",
    "nmcli",
    "ping",
    "pkt-gen",
    "promtool",
    "replay",
    "setcap",
    "ss",
    "synctl",
    "synflood",
    "synproxy",
    "sysctl",
    "systemctl",
    "systemd-analyze",
    "taskset",
    "tcpsendrecv",
    "tar",
    "tc",
    "ulimit",
    "unshare",
    "vale-ctl",
];

/// How something is tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Why it is not.
    pub not_run: Option<String>,
    /// The file that runs it.
    pub run_by: Option<String>,
    /// It is no command.
    pub is_example: bool,
    /// Shell lines to be run first.
    pub before: Vec<String>,
    /// The arguments of the box it finds, or `none`.
    pub running: Option<String>,
    /// Where it is run: `client` or `server`; at the box without.
    pub host: Option<String>,
    /// The status it ends with.
    pub ends: i32,
    /// It runs until this shell line succeeds.
    pub stop: Option<String>,
    /// Words of the page, and what stands for them.
    pub with: Vec<(String, String)>,
    /// How many of the lines that are shown it prints; all without.
    pub shape: Option<usize>,
    /// Connections through the box that it finds.
    pub connections: usize,
}

/// What is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trial {
    /// A shell line, and what the page shows of its output.
    Command(String, Vec<String>),
    /// A configuration, or a part of one.
    Configuration(String),
    /// A document in JSON.
    Json(String),
    /// A request to the control socket, and the kind of its reply.
    Request(String, String),
}

/// Something to be tried, where it stands, and how it is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The number of its line.
    pub line: usize,
    /// What it is.
    pub trial: Trial,
    /// How it is tried.
    pub notes: Notes,
}

/// A fault of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The number of the line.
    pub line: usize,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.why)
    }
}

impl Notes {
    /// Takes in the notes of a line; returns the line without them, and whether there were any.
    fn take(&mut self, line: &str) -> Result<(String, bool), String> {
        let (mut text, mut rest, mut found) = (String::new(), line, false);
        while let Some((before, after)) = rest.split_once("<!-- ") {
            let (note, after) = after.split_once(" -->").ok_or("a comment has to end in its line")?;
            self.read(note)?;
            text += before;
            (rest, found) = (after, true);
        }
        text += rest;
        Ok((text, found))
    }

    fn read(&mut self, note: &str) -> Result<(), String> {
        let (word, text) = note.split_once(": ").ok_or_else(|| format!("no note: {note}"))?;
        let text = text.trim().to_owned();
        match word {
            "not run" => self.not_run = Some(text),
            "run by" => self.run_by = Some(text),
            "example" => self.is_example = true,
            "before" => self.before.push(text),
            "box" => self.running = Some(text),
            "at" => self.host = Some(text),
            "ends" => self.ends = text.parse().map_err(|_| format!("no status: {text}"))?,
            "stop" => self.stop = Some(text),
            "shape" => self.shape = Some(text.parse().map_err(|_| format!("no number of lines: {text}"))?),
            "connections" => {
                self.connections = text.parse().map_err(|_| format!("no number of connections: {text}"))?
            }
            "with" => {
                let (word, text) = text.split_once('=').ok_or_else(|| format!("not WORD=TEXT: {text}"))?;
                self.with.push((word.to_owned(), text.to_owned()));
            }
            _ => return Err(format!("no note is called {word}")),
        }
        Ok(())
    }
}

/// Whether a text is a command: a program with arguments, perhaps behind variables of its environment.
fn is_command(text: &str) -> bool {
    let is_variable = |word: &str| {
        word.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut words = text.split_whitespace().skip_while(|word| is_variable(word));
    words.next().is_some_and(|word| PROGRAMS.contains(&word)) && words.next().is_some()
}

/// What stands in a line behind a command, separated by two blanks and a `#`, is for the reader.
fn without_comment(line: &str) -> &str {
    line.split_once(" #").map_or(line, |(command, _)| command).trim()
}

/// All that can be tried of a page.
///
/// # Errors
/// The faults of the page: commands in a block that does not say that it has some, commands with parts left out, and notes that are none.
pub fn items(page: &str) -> Result<Vec<Item>, Vec<Fault>> {
    let mut reader = Reader::default();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        reader.line = number + 1;
        let Some(language) = line.trim_start().strip_prefix("```") else {
            reader.prose(line);
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let inside: Vec<&str> =
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.trim_start().starts_with("```")).collect();
        let inside: Vec<&str> = inside.iter().map(|line| line.get(indent..).unwrap_or_default()).collect();
        reader.block(language.trim(), &inside);
    }
    if reader.faults.is_empty() { Ok(reader.items) } else { Err(reader.faults) }
}

#[derive(Default)]
struct Reader {
    /// The number of the line.
    line: usize,
    /// The notes about what is being read.
    notes: Notes,
    items: Vec<Item>,
    faults: Vec<Fault>,
}

impl Reader {
    fn fault(&mut self, why: impl Into<String>) {
        self.faults.push(Fault { line: self.line, why: why.into() });
    }

    fn add(&mut self, line: usize, trial: Trial, notes: &Notes) {
        if !notes.is_example {
            self.items.push(Item { line, trial, notes: notes.clone() });
        }
    }

    fn command(&mut self, line: usize, text: &str, output: Vec<String>, notes: &Notes) {
        if !notes.is_example && (text.contains('…') || text.contains("...")) {
            self.faults.push(Fault { line, why: format!("parts of a command are left out: {text}") });
        }
        self.add(line, Trial::Command(text.to_owned(), output), notes);
    }

    fn prose(&mut self, line: &str) {
        if line.trim().is_empty() {
            self.notes = Notes::default();
            return;
        }
        let mut notes = self.notes.clone();
        let text = match notes.take(line) {
            Ok((text, true)) if text.trim().is_empty() => {
                self.notes = notes;
                return;
            }
            Ok((text, _)) => text,
            Err(why) => return self.fault(why),
        };
        let spans: Vec<String> = text.split('`').skip(1).step_by(2).map(|span| span.replace("\\|", "|")).collect();
        // In a table the kinds of the replies are in the next cell, in the order of the requests.
        let replies: Vec<&str> =
            text.split(" | ").nth(1).map_or(Vec::new(), |cell| cell.split('`').skip(1).step_by(2).collect());
        let mut requests = 0;
        for span in &spans {
            if is_command(span) {
                self.command(self.line, span, Vec::new(), &notes);
            } else if span.starts_with("{\"command\"") {
                let reply = replies.get(requests).or(replies.last()).map_or(String::new(), |reply| (*reply).to_owned());
                requests += 1;
                if !span.contains('…') {
                    self.add(self.line, Trial::Request(span.clone(), reply), &notes);
                }
            }
        }
    }

    fn block(&mut self, language: &str, lines: &[&str]) {
        let notes = std::mem::take(&mut self.notes);
        let first = self.line + 1;
        match language {
            "sh" => {
                let mut lines = lines.iter().enumerate();
                while let Some((at, line)) = lines.next() {
                    let mut whole = (*line).to_owned();
                    while let Some(begun) = whole.strip_suffix('\\') {
                        let more = lines.next().map_or("", |(_, line)| line.trim_start());
                        whole = format!("{begun}{more}");
                    }
                    if !without_comment(&whole).is_empty() && !whole.starts_with('#') {
                        self.command(first + at, without_comment(&whole), Vec::new(), &notes);
                    }
                }
            }
            "console" => {
                fn begins(line: &str) -> bool {
                    line.starts_with("$ ")
                }
                let mut at = lines.iter().position(|line| begins(line)).unwrap_or(lines.len());
                if at > 0 {
                    self.fault("what is shown belongs to no command");
                }
                while at < lines.len() {
                    let output: Vec<String> = lines[at + 1..]
                        .iter()
                        .take_while(|line| !begins(line))
                        .map(|line| (*line).to_owned())
                        .collect();
                    let next = at + 1 + output.len();
                    self.command(first + at, lines[at][2..].trim(), output, &notes);
                    at = next;
                }
            }
            "conf" => self.add(first, Trial::Configuration(lines.join("\n")), &notes),
            "json" => self.add(first, Trial::Json(lines.join("\n")), &notes),
            "" if !notes.is_example => {
                let commands = lines
                    .iter()
                    .filter(|line| !line.starts_with(' ') && (is_command(line) || line.starts_with("$ ")))
                    .count();
                if commands > 0 {
                    self.fault("a block with commands does not say that it is `sh` or `console`");
                }
            }
            _ => {}
        }
    }
}

/// Whether something printed has the shape of something shown: the same words in the same order, whatever the numbers, addresses, units and
/// rules between them are.
pub fn has_shape(printed: &str, shown: &str) -> bool {
    const UNITS: [&str; 12] = ["ns", "us", "ms", "min", "KiB", "MiB", "GiB", "kbit", "Mbit", "Gbit", "kpps", "Mpps"];
    fn words(line: &str) -> impl Iterator<Item = &str> {
        let parts = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
        let is_address = |part: &str| part.chars().all(|c| c.is_ascii_hexdigit());
        let is_word = |part: &str| {
            part.len() > 1 && part.chars().all(|c| !c.is_ascii_digit()) && part.chars().any(char::is_alphabetic)
        };
        parts
            .map(|part| part.trim_matches('-'))
            .filter(move |part| is_word(part) && !is_address(part) && !UNITS.contains(part))
    }
    words(printed).eq(words(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(page: &str) -> Vec<(usize, String)> {
        let command = |item: &Item| match &item.trial {
            Trial::Command(text, _) => Some((item.line, text.clone())),
            _ => None,
        };
        items(page).expect("a page without faults").iter().filter_map(command).collect()
    }

    #[test]
    fn commands_are_in_blocks_and_in_spans() {
        let page = "See `synctl stats`, `synctl`, `stats --json` and `TESTS=x make test`.\n\n```sh\n# a comment\nip link set eth0 up   # up\nfor i in a; do \\\n  echo $i; done\n```\n\n```console\n$ synctl flows\nWAN LAN\n$ synctl top --once\n```\n";
        let found = commands(page);
        let texts: Vec<(usize, &str)> = found.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (1, "synctl stats"),
                (1, "TESTS=x make test"),
                (5, "ip link set eth0 up"),
                (6, "for i in a; do echo $i; done"),
                (11, "synctl flows"),
                (13, "synctl top --once")
            ]
        );
    }

    #[test]
    fn a_note_is_about_what_follows_or_about_its_line() {
        let page = "<!-- not run: it takes a NIC -->\n<!-- with: N=2 -->\nUse `ethtool -G eth0 rx N`\nor `ethtool -g eth0`.\n\n`ip link show`, <!-- ends: 1 --> and\n`ip route show`\n";
        let items = items(page).expect("a page without faults");
        let not_run: Vec<bool> = items.iter().map(|item| item.notes.not_run.is_some()).collect();
        assert_eq!(not_run, [true, true, false, false]);
        assert_eq!(items[0].notes.with, [("N".to_owned(), "2".to_owned())]);
        assert_eq!([items[2].notes.ends, items[3].notes.ends], [1, 0]);
    }

    #[test]
    fn what_cannot_be_tried_is_a_fault() {
        for (page, why) in [
            ("```\nsynctl stats --json\n```\n", "does not say"),
            ("`ip link set … down`\n", "left out"),
            ("<!-- runs: never -->\n", "no note is called runs"),
            ("```console\nsynctl flows\n```\n", "belongs to no command"),
        ] {
            let faults = items(page).expect_err(page);
            assert!(faults.len() == 1 && faults[0].why.contains(why), "{page}: {faults:?}");
        }
        assert_eq!(items("<!-- example: prose -->\n`ip link set … down`\n"), Ok(Vec::new()));
    }

    #[test]
    fn a_table_of_requests_says_what_is_replied() {
        let items = items("| `{\"command\":\"status\"}` | `status` |\n").expect("a page without faults");
        assert_eq!(items[0].trial, Trial::Request("{\"command\":\"status\"}".to_owned(), "status".to_owned()));
    }

    #[test]
    fn numbers_do_not_matter_to_a_shape_and_words_do() {
        assert!(has_shape("lan0  12 frames/s, 3.5 s", "lan0      700 frames/s, 12 s"));
        assert!(has_shape("answered=1000 lost=0", "answered=7 lost=12"));
        assert!(has_shape("10.0.0.1:80  established  wan", "[fd77::1]:443   established   wan"));
        assert!(!has_shape("lost 12 frames", "sent 12 frames"));
    }
}
