//! A watchdog device of the kernel (`/dev/watchdog`): it starts the machine again when nothing was written to it for its time-out.

use super::exit::Failure;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};

/// How often the device is written to. Time-outs are set in seconds.
pub const BEAT_EVERY: Duration = Duration::from_millis(250);

/// What disarms the device when it is closed, unless it is made so that nothing does (the kernel's "magic close").
const DISARM: &[u8] = b"V";

/// An open watchdog device.
#[derive(Debug)]
pub struct WatchdogDevice {
    file: File,
    path: PathBuf,
    has_beaten: bool,
    has_complained: bool,
}

impl WatchdogDevice {
    /// Opens the device, which arms it.
    ///
    /// # Errors
    /// When it cannot be opened: it is not there, or another program has it.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|error| Failure::Device { path: path.to_owned(), error })?;
        info!("{}: the machine starts again if a worker stays stuck for the device's time-out", path.display());
        Ok(Self { file, path: path.to_owned(), has_beaten: false, has_complained: false })
    }

    /// No worker is stuck.
    pub fn beat(&mut self) {
        self.write(b".");
        self.has_beaten = true;
    }

    /// Ends it without consequence.
    pub fn disarm(mut self) {
        self.write(DISARM);
    }

    fn write(&mut self, bytes: &[u8]) {
        match self.file.write_all(bytes) {
            Ok(()) => self.has_complained = false,
            Err(error) if !self.has_complained => {
                warn!("{}: {error}", self.path.display());
                self.has_complained = true;
            }
            Err(_) => {}
        }
    }
}

impl Drop for WatchdogDevice {
    fn drop(&mut self) {
        // A start that fails is no reason to start the machine again.
        if !self.has_beaten {
            self.write(DISARM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_device_gets_beats_and_the_word_that_disarms_it() {
        let path = std::env::temp_dir().join(format!("synproxy-watchdog-{}", std::process::id()));
        assert!(matches!(WatchdogDevice::open(&path), Err(Failure::Device { .. })));
        fs::write(&path, b"").unwrap();
        let mut device = WatchdogDevice::open(&path).unwrap();
        (0..3).for_each(|_| device.beat());
        assert_eq!(fs::read(&path).unwrap(), b"...");
        device.disarm();
        assert_eq!(fs::read(&path).unwrap(), b"...V");
        let mut device = WatchdogDevice::open(&path).unwrap();
        device.beat();
        drop(device);
        assert_eq!(fs::read(&path).unwrap(), b"...V.", "one that is dropped stays armed");
        drop(WatchdogDevice::open(&path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"...V.V", "unless it has never got a beat");
        fs::remove_file(&path).unwrap();
    }
}
