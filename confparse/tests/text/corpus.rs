//! Replays the corpus: `good-*` and `older` are accepted, `bad-*` refused, and of none is more said than can be read.

use confparse::parse;
use std::fs;
use std::path::Path;

#[test]
fn the_corpus_is_judged_as_named() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut seen = 0;
    for entry in fs::read_dir(corpus).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let bytes = fs::read(&path).expect("a file");
        let answer = parse(&String::from_utf8_lossy(&bytes), &name);
        match &answer {
            Err(errors) => assert!(name.starts_with("bad-"), "{errors}"),
            Ok(parsed) => {
                assert!(!name.starts_with("bad-"), "{name} is accepted");
                let again = parse(&parsed.config.describe(), &name).expect("what is described is read");
                assert_eq!(again.config, parsed.config, "{name}");
            }
        }
        seen += 1;
    }
    assert!(seen >= 12, "{seen} files");
}
