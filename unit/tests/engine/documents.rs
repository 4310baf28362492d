//! What the documents say of the tests is true: every test that `docs/traps.md` names is there.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

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
            let file = Path::new(&module.replace("::", "/")).with_extension("rs");
            if !sources.iter().any(|(path, text)| path.ends_with(&file) && has_test(text, test)) {
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
