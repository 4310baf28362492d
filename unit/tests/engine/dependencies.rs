//! No circle of files: what two files need of each other lies in a third below both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{read_dir, read_to_string};
use std::path::Path;

/// The place of a file among the modules of its crate, from the root down.
type Place = Vec<String>;

/// Every file below `folder` without its tests, comments and test modules.
fn files(folder: &Path, place: &Place, found: &mut BTreeMap<Place, String>) {
    for entry in read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8").to_owned();
        let below = [&place[..], std::slice::from_ref(&stem)].concat();
        if path.is_dir() {
            files(&path, &below, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !stem.ends_with("tests") {
            let is_root = matches!(&*stem, "lib" | "main" | "mod");
            let text = read_to_string(&path).expect("a source can be read");
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let code: Vec<&str> = code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
            found.insert(if is_root { place.clone() } else { below }, code.join("\n"));
        }
    }
}

/// The paths that begin at `text`, which stands behind `path`: one, or several in braces. Returns what is behind them.
fn paths<'a>(mut text: &'a str, path: &Place, found: &mut Vec<Place>) -> &'a str {
    let mut path = path.clone();
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
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        path.push(text[..end].to_owned());
        match text[end..].strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                found.push(path);
                return &text[end..];
            }
        }
    }
}

/// The files that the one at `place` names, but for those that it is a part of.
fn named(place: &Place, code: &str, files: &BTreeMap<Place, String>) -> BTreeSet<Place> {
    let mut all = Vec::new();
    for beginning in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(beginning) {
            let is_whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if is_whole {
                paths(&code[at..], &Place::new(), &mut all);
            }
        }
    }
    let resolved = all.into_iter().filter_map(|path| {
        let (mut from, mut rest) = (place.clone(), &path[..]);
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
        (1..=from.len()).rev().map(|length| from[..length].to_vec()).find(|place| files.contains_key(place))
    });
    resolved.filter(|file| !place.starts_with(file)).collect()
}

/// Files that need each other, if there are any: what is left when files that need none of the others are taken away, and those that none needs.
fn circle(mut needs: BTreeMap<Place, BTreeSet<Place>>) -> Vec<String> {
    loop {
        let before = needs.len();
        let (there, needed): (BTreeSet<Place>, BTreeSet<Place>) =
            (needs.keys().cloned().collect(), needs.values().flatten().cloned().collect());
        needs.values_mut().for_each(|files| files.retain(|file| there.contains(file)));
        needs.retain(|file, files| !files.is_empty() && needed.contains(file));
        if needs.len() == before {
            let names =
                |files: &BTreeSet<Place>| files.iter().map(|file| file.join("::")).collect::<Vec<_>>().join(", ");
            return needs.iter().map(|(file, files)| format!("{} needs {}", file.join("::"), names(files))).collect();
        }
    }
}

fn needs(files: &BTreeMap<Place, String>) -> BTreeMap<Place, BTreeSet<Place>> {
    files.iter().map(|(place, code)| (place.clone(), named(place, code, files))).collect()
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut wrong = Vec::new();
    for room in ["tcpstate", "pktio", "confparse", "control", "synproxy", "tools"] {
        let mut found = BTreeMap::new();
        files(&root.join(room).join("src"), &Place::new(), &mut found);
        let needs = needs(&found);
        let arrows: usize = needs.values().map(BTreeSet::len).sum();
        assert!(arrows * 5 > found.len(), "{room}: {arrows} arrows between {} files", found.len());
        wrong.extend(circle(needs).into_iter().map(|line| format!("{room}: {line}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let file = |name: &str, code: &str| (name.split("::").map(str::to_owned).collect::<Place>(), code.to_owned());
    let mut house = BTreeMap::from([
        file("a", "use crate::b::{self, c::Thing};"),
        file("b", "pub mod c;"),
        file("b::c", "use super::Parent; use std::mem; use super::{d, e::{Other}};"),
        file("b::d", ""),
        file("b::e", "fn f() { crate::z::g(not_crate::a::h) }"),
        file("z", ""),
    ]);
    assert_eq!(circle(needs(&house)), [""; 0]);
    house.extend([file("z", "use crate::{b::d, a::X};")]);
    assert_eq!(circle(needs(&house)), ["a needs b::c", "b::c needs b::e", "b::e needs z", "z needs a"]);
}
