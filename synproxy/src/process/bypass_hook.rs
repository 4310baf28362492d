//! Who switches a bypass around the box, as network cards with relays have it: told to open it when no worker serves the ports, and to close it when
//! they do.
//!
//! A program gets the word as its last argument. It runs under the box's user, and one word is told after the other. A file below `/sys` gets 1 or 0;
//! it is opened at the start, while the process may.

use super::exit::Failure;
use crossbeam::channel::{self, Receiver, Sender};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long the program may run.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked after.
const STEP: Duration = Duration::from_millis(10);

/// What a bypass is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// Frames go around the box.
    Open,
    /// They go through it.
    Close,
}

/// Tells the bypass; dropping it waits until it was told the last word.
#[derive(Debug)]
pub struct BypassHook {
    told: Option<Bypass>,
    words: Option<Sender<Bypass>>,
    thread: Option<JoinHandle<()>>,
}

enum Way {
    File { file: File, path: PathBuf },
    Program { program: String, arguments: Vec<String> },
}

impl BypassHook {
    /// A hook that has told nobody anything yet.
    ///
    /// # Errors
    /// When the file cannot be opened, or a thread not be started.
    pub fn new(hook: &str) -> Result<Self, Failure> {
        let way = if hook.starts_with("/sys/") {
            let path = PathBuf::from(hook);
            let file = OpenOptions::new().write(true).open(&path);
            let file = file.map_err(|error| Failure::Device { path: path.clone(), error })?;
            Way::File { file, path }
        } else {
            let mut words = hook.split_whitespace().map(str::to_owned);
            Way::Program { program: words.next().unwrap_or_default(), arguments: words.collect() }
        };
        let (sender, words) = channel::unbounded();
        let run = move || serve(&way, &words);
        let thread = thread::Builder::new().name("bypass".to_owned()).spawn(run).map_err(Failure::Spawn)?;
        Ok(Self { told: None, words: Some(sender), thread: Some(thread) })
    }

    /// Tells it this word, unless it was the last one.
    pub fn tell(&mut self, word: Bypass) {
        if self.told != Some(word)
            && let Some(words) = &self.words
        {
            self.told = Some(word);
            // It fails only if the thread has ended, which it does not before the sender.
            let _ = words.send(word);
        }
    }
}

impl Drop for BypassHook {
    fn drop(&mut self) {
        self.words = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells every word, but for those that a later one has made untrue.
fn serve(way: &Way, words: &Receiver<Bypass>) {
    while let Ok(word) = words.recv() {
        let word = words.try_iter().last().unwrap_or(word);
        let result = match way {
            Way::File { file, path } => {
                let value: &[u8] = if word == Bypass::Open { b"1\n" } else { b"0\n" };
                let written = file.write_all_at(value, 0).or_else(|_| (&mut &*file).write_all(value));
                written.map_err(|error| format!("{}: {error}", path.display()))
            }
            Way::Program { program, arguments } => run(program, arguments, word),
        };
        match result {
            Ok(()) => info!("the bypass was told to {}", name(word)),
            Err(error) => warn!("the bypass was not told to {}: {error}", name(word)),
        }
    }
}

fn name(word: Bypass) -> &'static str {
    match word {
        Bypass::Open => "open",
        Bypass::Close => "close",
    }
}

fn run(program: &str, arguments: &[String], word: Bypass) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).arg(name(word)).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let end = Instant::now() + TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("{program}: {status}")),
            Ok(None) if Instant::now() < end => thread::sleep(STEP),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} was killed, having run for {} s", TIMEOUT.as_secs()));
            }
            Err(error) => return Err(format!("{program}: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_program_is_told_each_change_once_and_the_last_word_before_the_end() {
        let told = std::env::temp_dir().join(format!("synproxy-bypass-{}", std::process::id()));
        let script = told.with_extension("sh");
        fs::write(&script, format!("echo \"$@\" >> {}\n", told.display())).unwrap();
        let mut hook = BypassHook::new(&format!("/bin/sh {} card0", script.display())).unwrap();
        for word in [Bypass::Close, Bypass::Close, Bypass::Open] {
            hook.tell(word);
            let end = Instant::now() + Duration::from_secs(20);
            let lines = || fs::read_to_string(&told).unwrap_or_default().lines().count();
            let wanted = if word == Bypass::Open { 2 } else { 1 };
            while lines() < wanted && Instant::now() < end {
                thread::sleep(STEP);
            }
        }
        drop(hook);
        assert_eq!(fs::read_to_string(&told).unwrap(), "card0 close\ncard0 open\n");
        fs::remove_file(&told).unwrap();
        fs::remove_file(&script).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_or_fails_is_said_and_no_more() {
        assert!(run("/no/such/program", &[], Bypass::Open).unwrap_err().starts_with("/no/such/program: "));
        assert!(run("/bin/false", &[], Bypass::Open).unwrap_err().contains("exit status"));
        assert!(matches!(BypassHook::new("/sys/no/such/file"), Err(Failure::Device { .. })));
    }
}
