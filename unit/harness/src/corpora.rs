//! The corpora of the fuzz targets, replayed: whatever a fuzzer has found once stays found, without a fuzzer.

use std::fs;
use std::path::Path;

/// Runs the body of the fuzz target of this name over its corpus.
///
/// # Panics
/// Where the body does, and says over which file; or if the corpus is not there.
pub fn replay(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
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
