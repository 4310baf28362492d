//! A file that gets a line of JSON for each event.
//!
//! Before each line the file behind the path is compared with the open one: a file that is renamed or removed is followed by a new one with the next
//! event, without a signal.

use super::sink::{Line, Sink};
use rustix::fs::OFlags;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// See the module.
pub struct EventFile {
    path: PathBuf,
    /// The open file, with its device and inode.
    open: Option<(File, (u64, u64))>,
    /// Whether the last line was not written to its end.
    is_torn: bool,
}

impl EventFile {
    /// The file at this path, which is opened with the first event.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), open: None, is_torn: false }
    }

    /// Opens the file anew if another one is behind the path than before, or none.
    fn follow(&mut self) -> io::Result<()> {
        let identity = |file: &Metadata| (file.dev(), file.ino());
        let there = fs::metadata(&self.path).ok().map(|file| identity(&file));
        if self.open.as_ref().is_some_and(|(_, open)| there == Some(*open)) {
            return Ok(());
        }
        self.open = None;
        // A pipe that nobody reads is refused instead of waited for; to a file the flag means nothing.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(&self.path)?;
        let identity = identity(&file.metadata()?);
        self.open = Some((file, identity));
        self.is_torn = false;
        Ok(())
    }
}

impl Sink for EventFile {
    fn deliver(&mut self, line: &Line) -> io::Result<()> {
        self.follow()?;
        let Some((file, _)) = &mut self.open else { return Ok(()) };
        let lead = if self.is_torn { "\n" } else { "" };
        let written = file.write_all(format!("{lead}{}\n", line.json).as_bytes());
        self.is_torn = written.is_err();
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::events::{Event, Record};

    fn line(number: u64) -> Line {
        let [time, host, appliance] = [const { String::new() }; 3];
        let record = Record { number, time, host, appliance, event: Event::WorkerResumed { worker: 0 } };
        Line { json: serde_json::to_string(&record).unwrap(), record }
    }

    #[test]
    fn a_file_that_is_renamed_removed_or_emptied_gets_what_comes_next() {
        let path = std::env::temp_dir().join(format!("spx-events-{}", std::process::id()));
        let rotated = path.with_extension("1");
        let numbers = |path: &Path| -> Vec<u64> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str::<Record>(line).unwrap().number).collect()
        };
        let mut file = EventFile::new(&path);
        file.deliver(&line(1)).unwrap();
        file.deliver(&line(2)).unwrap();
        fs::rename(&path, &rotated).unwrap();
        file.deliver(&line(3)).unwrap();
        assert_eq!((numbers(&rotated), numbers(&path)), (vec![1, 2], vec![3]));
        fs::remove_file(&path).unwrap();
        file.deliver(&line(4)).unwrap();
        assert_eq!(numbers(&path), [4]);
        // `copytruncate` of logrotate, and then its `create`.
        File::options().write(true).truncate(true).open(&path).unwrap();
        file.deliver(&line(5)).unwrap();
        assert_eq!(numbers(&path), [5]);
        fs::rename(&path, &rotated).unwrap();
        File::create(&path).unwrap();
        file.deliver(&line(6)).unwrap();
        assert_eq!((numbers(&rotated), numbers(&path)), (vec![5], vec![6]));
        fs::remove_file(&rotated).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(EventFile::new(Path::new("/nowhere/at/all")).deliver(&line(6)).is_err());
    }

    #[test]
    fn a_pipe_that_nobody_reads_and_a_full_disk_lose_events_and_hold_up_nobody() {
        let path = std::env::temp_dir().join(format!("spx-events-pipe-{}", std::process::id()));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(EventFile::new(&path).deliver(&line(1)).is_err());
        fs::remove_file(&path).unwrap();
        let mut full = EventFile::new(Path::new("/dev/full"));
        assert_eq!(full.deliver(&line(1)).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(full.is_torn, "the next line begins on a line of its own");
    }
}
