//! No cyclic dependencies between the files of a crate: what two files need of each other is in a third. A file and the modules below it may need each
//! other, since the names that it exports again are theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::Path;

/// A file's place among the modules of its crate, or a path of Rust, from the root down.
type Names = Vec<String>;

/// Files by their places: what they need of others is read from their code.
type Files = BTreeMap<Names, String>;

/// Adds every file below `folder`, without tests and comments.
fn read(folder: &Path, place: &Names, found: &mut Files) {
    for entry in read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8").to_owned();
        let below = [&place[..], std::slice::from_ref(&stem)].concat();
        if stem.ends_with("tests") {
            continue;
        }
        if path.is_dir() {
            read(&path, &below, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let is_root = matches!(&*stem, "lib" | "main" | "mod");
            let text = read_to_string(&path).expect("a source can be read");
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            found.insert(if is_root { place.clone() } else { below }, code.join("\n"));
        }
    }
}

/// The paths that begin at `text`, which stands behind `before`: one, or several in braces. Each is with the name that it has from now on. Returns the
/// text behind them.
fn paths<'a>(mut text: &'a str, before: &Names, found: &mut Vec<(String, Names)>) -> &'a str {
    let mut path = before.clone();
    loop {
        text = text.trim_start();
        if let Some(inner) = text.strip_prefix('{') {
            text = inner;
            loop {
                text = paths(text, &path, found).trim_start();
                match text.strip_prefix(',') {
                    Some(rest) => text = rest,
                    None => return text.strip_prefix('}').unwrap_or(text),
                }
            }
        }
        let (word, rest) = word(text);
        path.push(word.to_owned());
        match rest.strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                let (name, rest) = match rest.trim_start().strip_prefix("as ") {
                    Some(rest) => self::word(rest.trim_start()),
                    None => (word, rest),
                };
                found.push((name.to_owned(), path));
                return rest;
            }
        }
    }
}

/// A word, or the asterisk that stands for all of them, and what is behind it.
fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.split_at(if text.starts_with('*') { 1 } else { end })
}

/// What the code of a file names by paths that begin at the root, above it or below it, and whether it does so in a `use`.
fn named(place: &Names, code: &str, files: &Files) -> Vec<(String, Names, bool)> {
    let mut all = Vec::new();
    let mut add = |at: usize, is_use| {
        let mut found = Vec::new();
        paths(&code[at..], &Names::new(), &mut found);
        all.extend(found.into_iter().map(|(name, path)| (name, path, is_use)));
    };
    for beginning in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(beginning) {
            let before = &code[..at];
            if !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                add(at, before.ends_with("use "));
            }
        }
    }
    for (at, _) in code.match_indices("use ") {
        let first = word(&code[at + 4..]).0;
        if files.contains_key(&[&place[..], &[first.to_owned()]].concat()) {
            add(at + 4, true);
        }
    }
    all
}

/// The file that declares what `path`, named by the file at `place`, leads to, if that is a file of this crate. A name that a file has from another leads on.
fn declared(place: &Names, path: &[String], files: &Files, depth: usize) -> Option<Names> {
    let (mut from, mut rest) = (place.clone(), path);
    while let Some((word, further)) = rest.split_first() {
        match &**word {
            "crate" => from.clear(),
            "super" => drop(from.pop()),
            "self" => {}
            _ => break,
        }
        rest = further;
    }
    from.extend_from_slice(rest);
    let length = (0..=from.len()).rev().find(|&length| files.contains_key(&from[..length]))?;
    let (file, names) = (from[..length].to_vec(), &from[length..]);
    let Some(name) = names.first().filter(|_| depth > 0) else { return Some(file) };
    let uses = named(&file, &files[&file], files).into_iter().filter(|(_, _, is_use)| *is_use);
    let onward = uses.into_iter().find(|(own, path, _)| own == name && !(file == *place && path[..] == *rest));
    Some(onward.and_then(|(_, path, _)| declared(&file, &path, files, depth - 1)).unwrap_or(file))
}

/// What each file needs but for those that it is a part of.
fn needs(files: &Files) -> BTreeMap<Names, BTreeSet<Names>> {
    let of = |place: &Names, code: &str| {
        let named = named(place, code, files).into_iter();
        let needed = named.filter_map(|(_, path, _)| declared(place, &path, files, 8));
        needed.filter(|file| !place.starts_with(file)).collect()
    };
    files.iter().map(|(place, code)| (place.clone(), of(place, code))).collect()
}

/// Files that need each other, if there are any: what is left when files that need none of the others are taken away, and those that none needs.
fn cycle(mut needs: BTreeMap<Names, BTreeSet<Names>>) -> Vec<String> {
    loop {
        let before = needs.len();
        let (there, needed): (BTreeSet<Names>, BTreeSet<Names>) =
            (needs.keys().cloned().collect(), needs.values().flatten().cloned().collect());
        needs.values_mut().for_each(|files| files.retain(|file| there.contains(file)));
        needs.retain(|file, files| !files.is_empty() && needed.contains(file));
        if needs.len() == before {
            let text =
                |files: &BTreeSet<Names>| files.iter().map(|file| file.join("::")).collect::<Vec<_>>().join(", ");
            return needs.iter().map(|(file, files)| format!("{} needs {}", file.join("::"), text(files))).collect();
        }
    }
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut wrong = Vec::new();
    for name in ["tcpstate", "pktio", "confparse", "control", "synproxy", "tools"] {
        let mut files = Files::new();
        read(&root.join(name).join("src"), &Names::new(), &mut files);
        let needs = needs(&files);
        let count: usize = needs.values().map(BTreeSet::len).sum();
        assert!(count > files.len(), "{name}: {count} dependencies between {} files", files.len());
        wrong.extend(cycle(needs).into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_cycle_is_found() {
    let file = |name: &str, code: &str| (name.split("::").map(str::to_owned).collect::<Names>(), code.to_owned());
    let mut files = BTreeMap::from([
        (Names::new(), "pub use z::Y;".to_owned()),
        file("a", "use crate::b::{self, c::Thing as Other, *};"),
        file("b", "pub mod c; pub use c::Thing;"),
        file("b::c", "use super::Parent; use std::mem; use super::{d as f, e::{Other}};"),
        file("b::d", ""),
        file("b::e", "fn f() { crate::z::g(not_crate::a::h) }"),
        file("z", ""),
    ]);
    assert_eq!(cycle(needs(&files)), [""; 0]);
    files.extend([file("z", "use crate::{b::d, a::X};")]);
    let closed = ["a needs b, b::c", "b needs b::c", "b::c needs b::e", "b::e needs z", "z needs a"];
    assert_eq!(cycle(needs(&files)), closed);
    // A name that another file exports again.
    files.extend([file("z", "use crate::{b::d};"), file("b::d", "use crate::Y;"), file("z", "use crate::b::d::G;")]);
    assert_eq!(cycle(needs(&files)), ["b::d needs z", "z needs b::d"]);
}
