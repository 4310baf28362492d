//! The text of a file that says how something was before the box changed it, replaced so that a kill at any moment leaves the former text or the
//! new one, and neither mixed nor none. Renaming another file to its name would do the same, but the lock is the file's, and the user that a process
//! has become may not make files where it lies.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;

/// The last line of a text that is complete.
pub(super) const END: &str = "end";

/// Between a text and what is in front of it; no text has an empty line.
const GAP: &str = "\n\n";

/// More than any text takes while it is replaced, in bytes.
const LONGEST: u64 = 1 << 20;

/// The text of a file: the last one that is complete; all there is if none is.
///
/// # Errors
///
/// The kernel's.
pub(super) fn read(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(LONGEST).read_to_end(&mut bytes)?;
    let all = String::from_utf8_lossy(&bytes);
    Ok(last(&all).unwrap_or(&all).to_owned())
}

/// The last complete text.
fn last(all: &str) -> Option<&str> {
    // What is written behind it next begins with the line's end that it may lack.
    let is_line = |at: usize| matches!(all.as_bytes().get(at + 1 + END.len()), None | Some(b'\n'));
    let (at, _) = all.rmatch_indices(&format!("\n{END}")).find(|(at, _)| is_line(*at))?;
    let end = (at + END.len() + 2).min(all.len());
    let begin = all[..end].rfind(GAP).map_or(0, |at| at + GAP.len());
    Some(&all[begin..end])
}

/// Replaces the text. One that lacks its last line counts as none.
///
/// # Errors
///
/// The kernel's; then it is the former text that is there, or the new one behind it.
pub(super) fn write(file: &File, text: &str) -> io::Result<()> {
    let former = file.metadata()?.len();
    let [(behind, copy), (at, text)] = steps(former, text);
    if let Err(error) = file.write_all_at(&copy, behind) {
        file.set_len(former)?;
        return Err(error);
    }
    file.write_all_at(&text, at)?;
    file.set_len(text.len() as u64)
}

/// Leaves a file without a text.
///
/// # Errors
///
/// The kernel's.
pub(super) fn clear(file: &File) -> io::Result<()> {
    file.set_len(0)
}

/// What is written where, one after the other: the text behind whatever there is and behind its own place; then in its place. What is behind that is cut
/// off at last.
fn steps(former: u64, text: &str) -> [(u64, Vec<u8>); 2] {
    let behind = former.max(text.len() as u64);
    [(behind, [GAP, text].concat().into_bytes()), (0, text.as_bytes().to_vec())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file has when a process that replaces its text is killed, at any moment: in the middle of a system call, too, which ends at a page.
    fn killed(former: &[u8], text: &str) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut file = former.to_vec();
        for (at, bytes) in steps(former.len() as u64, text) {
            let at = at as usize;
            for length in 0..=bytes.len() {
                file.resize(file.len().max(at + length), 0);
                file[at..at + length].copy_from_slice(&bytes[..length]);
                found.push(file.clone());
            }
        }
        found
    }

    #[test]
    fn a_kill_leaves_the_former_text_or_the_new_one() {
        let (short, long) = ("one\na 1\nend\n", "one\na 1\nb 2 3 4 5 6 7 8\nend\n");
        for (former, text) in [(short, long), (long, short), (long, long), (short, short)] {
            for left in killed(former.as_bytes(), text) {
                let left_text = String::from_utf8_lossy(&left);
                let found = last(&left_text).expect("one of them is complete");
                assert!([former, text, text.trim_end()].contains(&found), "{found:?} in {left_text:?}");
                // The next process goes on from there, and may be killed, too.
                for again in killed(&left, "one\nc\nend\n") {
                    let text = String::from_utf8_lossy(&again);
                    let next = last(&text).expect("one of them is complete");
                    assert!([found.trim_end(), "one\nc\nend"].contains(&next.trim_end()), "{next:?} in {text:?}");
                }
            }
        }
        let new = killed(b"", short);
        assert!(
            new.iter()
                .all(|left| last(&String::from_utf8_lossy(left))
                    .is_none_or(|found| found.trim_end() == short.trim_end()))
        );
    }
}
