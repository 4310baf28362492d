//! The fuzz targets' corpora, replayed: whatever a fuzzer has found once stays found, without a fuzzer.

use std::fs;
use std::path::Path;
use unit::fuzzing;

/// Runs a target over its corpus.
fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is committed") {
        let path = entry.expect("a corpus can be listed").path();
        let data = fs::read(&path).expect("a corpus can be read");
        // A panic names the promise that was broken; this names the input.
        let _named = Named(&path);
        body(&data);
        count += 1;
    }
    assert!(count >= 10, "{count} files in {}", folder.display());
}

/// Says which file it was when the test fails over it.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("while replaying {}", self.0.display());
        }
    }
}

#[test]
fn any_frame_is_parsed_as_others_parse_it() {
    replay("parser", fuzzing::parser);
}

#[test]
fn any_options_are_translated_with_their_checksum() {
    replay("options", fuzzing::options);
}

#[test]
fn any_sequence_of_frames_is_survived_and_forgotten() {
    replay("engine", fuzzing::engine);
}

#[test]
fn any_text_is_accepted_or_rejected_with_an_error() {
    replay("configuration", fuzzing::configuration);
}
