//! What the documents say is there is there: every test that `docs/traps.md` names, every source, and what every link leads to.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

use tcpstate::DropReason;
use unit::documents::{Item, Trial, items};

/// Every source of the tree, without what is built.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut rooms: Vec<PathBuf> =
        ["tcpstate", "pktio", "confparse", "synproxy", "tools", "unit"].iter().map(|room| root.join(room)).collect();
    let mut files = Vec::new();
    while let Some(room) = rooms.pop() {
        for entry in read_dir(&room).expect("a room can be read") {
            let path = entry.expect("an entry can be read").path();
            match path.is_dir() {
                true if path.ends_with("target") => {}
                true => rooms.push(path),
                false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
                false => {}
            }
        }
    }
    files
}

/// Whether a source declares a test of this name: one that runs in every mode, or a function under the attribute that makes it a test.
fn has_test(text: &str, name: &str) -> bool {
    let declared = format!("fn {name}(");
    text.match_indices(&declared).any(|(at, _)| {
        let paragraph = text[..at].rsplit("\n\n").next().unwrap_or_default();
        text[at + declared.len()..].starts_with("world, ") || paragraph.contains("#[test")
    })
}

#[test]
fn every_trap_names_a_test_and_every_test_it_names_is_there() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/traps.md");
    let document = read_to_string(document).expect("there is a list of traps");
    let read = |path: PathBuf| {
        let text = read_to_string(&path).expect("a source can be read");
        (path, text)
    };
    let sources: Vec<(PathBuf, String)> = sources().into_iter().map(read).collect();
    let (mut traps, mut wrong) = (0, Vec::new());
    for (number, line) in document.lines().enumerate().filter(|(_, line)| line.starts_with("* ")) {
        traps += 1;
        let mut named = 0;
        for name in line.split('`').skip(1).step_by(2) {
            let Some((module, test)) = name.rsplit_once("::") else { continue };
            named += 1;
            let module = Path::new(&module.replace("::", "/")).to_owned();
            let files = [module.with_extension("rs"), module.join("mod.rs")];
            if !sources.iter().any(|(path, text)| files.iter().any(|file| path.ends_with(file)) && has_test(text, test))
            {
                wrong.push(format!("docs/traps.md:{}: there is no test {name}", number + 1));
            }
        }
        if named == 0 {
            wrong.push(format!("docs/traps.md:{}: no test keeps this", number + 1));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(traps >= 40, "only {traps} traps");
}

#[test]
fn every_test_that_a_report_names_is_there() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/field.md");
    let document = read_to_string(document).expect("there is a list of reports");
    let sources: Vec<(PathBuf, String)> =
        sources().into_iter().map(|path| (path.clone(), read_to_string(path).expect("a source can be read"))).collect();
    let mut named = 0;
    for name in document.split('`').skip(1).step_by(2) {
        let Some((module, test)) = name.rsplit_once("::") else { continue };
        let file = Path::new(&module.replace("::", "/")).with_extension("rs");
        let there = sources.iter().any(|(path, text)| path.ends_with(&file) && has_test(text, test));
        assert!(there, "docs/field.md: there is no test {name}");
        named += 1;
    }
    assert!(named >= 15, "only {named} tests");
}

/// The documents people read, as paths from the root of the tree.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let pages = |folder: &Path| -> Vec<PathBuf> {
        let entries = read_dir(folder).expect("a folder can be read");
        entries.map(|entry| entry.expect("an entry can be read").path()).collect()
    };
    let mut all = pages(&root);
    all.extend(pages(&root.join("docs")));
    all.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    all
}

/// The part of an address that names a heading: lower case, without punctuation, spaces as hyphens.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
    kept.trim().replace(' ', "-")
}

/// The targets of a document's links, with the numbers of their lines. Code is left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut in_code) = (Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        for rest in line.split("](").skip(1) {
            found.push((number + 1, rest.split(')').next().unwrap_or_default().to_owned()));
        }
    }
    found
}

#[test]
fn every_link_in_a_document_leads_to_a_file_and_a_heading() {
    let mut wrong = Vec::new();
    for path in documents() {
        let text = read_to_string(&path).expect("a document can be read");
        for (line, target) in links(&text).into_iter().filter(|(_, target)| !target.contains("://")) {
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let linked =
                if file.is_empty() { path.clone() } else { path.parent().expect("it is in a folder").join(file) };
            let has_heading = || {
                let linked = read_to_string(&linked).unwrap_or_default();
                linked.lines().any(|line| line.starts_with('#') && slug(line.trim_start_matches('#')) == heading)
            };
            if !linked.exists() {
                wrong.push(format!("{}:{line}: there is no file {target}", path.display()));
            } else if !heading.is_empty() && !has_heading() {
                wrong.push(format!("{}:{line}: there is no heading {target}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_source_that_a_document_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crates = ["tcpstate/", "pktio/", "confparse/", "control/", "synproxy/", "tools/", "unit/"];
    let mut wrong = Vec::new();
    for path in documents() {
        let text = read_to_string(&path).expect("a document can be read");
        for (number, line) in text.lines().enumerate() {
            let named = line.split('`').skip(1).step_by(2);
            for name in named.filter(|name| crates.iter().any(|folder| name.starts_with(folder))) {
                let is_path = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
                if is_path && !root.join(name).exists() {
                    wrong.push(format!("{}:{}: there is no {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All that can be tried of the pages, with the pages' names.
fn tried() -> Vec<(String, Item)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all = Vec::new();
    for path in documents() {
        let name = path.strip_prefix(&root).expect("pages are below the root").display().to_string();
        let text = read_to_string(&path).expect("a document can be read");
        let items = items(&text).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
        all.extend(items.into_iter().map(|item| (name.clone(), item)));
    }
    all
}

#[test]
fn commands_that_no_test_runs_are_few_and_listed() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verification.md");
    let page = read_to_string(page).expect("there is a page on tests");
    let mut count = 0;
    for (name, item) in tried() {
        let (Trial::Command(text, _), Some(reason)) = (&item.trial, &item.notes.not_run) else { continue };
        count += 1;
        let row = format!("| [{}]({}) | `{text}` | {reason} |", name, name.strip_prefix("docs/").unwrap_or(&name));
        assert!(page.contains(&row), "docs/verification.md lacks the row\n{row}");
    }
    let section = page.split("### Commands that no test runs").nth(1).expect("there is a list");
    let rows = section
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .count();
    assert_eq!(rows, count, "docs/verification.md lists a command that is run, or is nowhere");
    assert!(count <= 10, "{count} commands are not run");
}

#[test]
fn a_command_that_another_test_runs_is_in_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, item) in tried() {
        let (Trial::Command(text, _), Some(file)) = (&item.trial, &item.notes.run_by) else { continue };
        let text = item.notes.with.iter().fold(text.clone(), |text, (word, other)| text.replace(word, other));
        let source =
            read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{name}:{}: {file}: {error}", item.line));
        // Tests put commands together from their words.
        let absent: Vec<&str> =
            text.split_whitespace().skip(1).filter(|word| *word != "&" && !source.contains(word)).collect();
        assert!(absent.is_empty(), "{name}:{}: {file} does not run `{text}`: {absent:?}", item.line);
    }
}

/// The section of a page on drops: what stands below the meaning.
fn by_hand<'a>(page: &'a str, label: &str) -> Option<&'a str> {
    let section = page.split("\n## ").skip(1).find_map(|section| section.strip_prefix(label)?.strip_prefix("\n\n"))?;
    section.split_once("\n\n").map(|(_, rest)| rest.trim_end())
}

#[test]
fn every_drop_reason_has_a_section_that_says_what_to_do() {
    const PARTS: [&str; 3] = ["* **Usual causes**: ", "* **What to do**: ", "* **Keys**: "];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("docs/drops.md");
    let page = read_to_string(&path).expect("there is a page on drops");
    let head = page.split("\n## ").next().expect("a page has a beginning");
    let sections = DropReason::ALL.iter().map(|reason| {
        let rest = by_hand(&page, reason.label()).map_or_else(|| PARTS.join("\n").replace(": ", ":"), str::to_owned);
        format!("\n## {}\n\n{}\n\n{rest}\n", reason.label(), reason.meaning().trim())
    });
    let document = head.to_owned() + &sections.collect::<String>();
    if std::env::var_os("DROPS").is_some_and(|value| value == "accept") {
        std::fs::write(&path, &document).expect("the page can be written");
    }
    assert!(
        page == document,
        "docs/drops.md differs from the drop reasons; DROPS=accept writes headings and meanings anew"
    );
    let sample = read_to_string(root.join("conf.txt")).expect("there is a sample");
    let mut wrong = Vec::new();
    for reason in DropReason::ALL {
        let rest = by_hand(&page, reason.label()).unwrap_or_default();
        let parts: Vec<&str> = rest.lines().collect();
        if parts.len() != PARTS.len()
            || !parts.iter().zip(PARTS).all(|(line, part)| line.len() > part.len() && line.starts_with(part))
        {
            wrong.push(format!("{}: not {PARTS:?}", reason.label()));
            continue;
        }
        for key in parts[2].split('`').skip(1).step_by(2).filter(|key| !sample.contains(&format!(" {key} = "))) {
            wrong.push(format!("{}: there is no key {key}", reason.label()));
        }
    }
    assert!(wrong.is_empty(), "docs/drops.md: {}", wrong.join("\n"));
}
