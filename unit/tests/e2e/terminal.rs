//! A terminal of our own: a pseudo-terminal with a program on it, and what an operator would see on its screen.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{self, LocalModes, Termios, Winsize};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

/// A pseudo-terminal, and the program it controls; killed when dropped.
pub struct Terminal {
    /// The end the program does not have; none once the line is cut.
    own: Option<OwnedFd>,
    /// The program's end, to look at its settings.
    line: File,
    /// What they were before the program began.
    before: Termios,
    screen: vt100::Parser,
    child: Child,
}

impl Terminal {
    /// Starts `command` on a terminal of this size, which controls it as a shell's would: keys make signals, and so does its end.
    pub fn start(command: &Command, (columns, rows): (u16, u16)) -> Terminal {
        let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a pseudo-terminal");
        grantpt(&own).and_then(|()| unlockpt(&own)).expect("its other end");
        let name = ptsname(&own, Vec::new()).expect("its name");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let line = options.open(OsStr::from_bytes(name.as_bytes())).expect("its other end");
        termios::tcsetwinsize(&line, winsize(columns, rows)).expect("its size");
        let before = termios::tcgetattr(&line).expect("its settings");
        let end = || Stdio::from(line.try_clone().expect("a descriptor"));
        // In a session of its own.
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            session.env(name, value);
        }
        session.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        let child = session.spawn().expect("setsid runs");
        Terminal { own: Some(own), line, before, screen: vt100::Parser::new(rows, columns, 0), child }
    }

    /// The process on it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types this.
    pub fn press(&self, keys: &[u8]) {
        let own = self.own.as_ref().expect("the line is not cut");
        assert_eq!(rustix::io::write(own, keys), Ok(keys.len()));
    }

    /// Makes it another size, as one who pulls at a window's corner does.
    pub fn resize(&mut self, (columns, rows): (u16, u16)) {
        termios::tcsetwinsize(&self.line, winsize(columns, rows)).expect("another size");
        self.screen.screen_mut().set_size(rows, columns);
    }

    /// Cuts the line: the window is closed.
    pub fn cut(&mut self) {
        self.own = None;
    }

    /// What is on the screen, a line each.
    pub fn lines(&self) -> Vec<String> {
        let (_, columns) = self.screen.screen().size();
        self.screen.screen().rows(0, columns).map(|row| row.trim_end().to_owned()).collect()
    }

    /// Looks at the screen until it shows what is wanted.
    ///
    /// # Panics
    /// When it never does; the message has the screen.
    #[track_caller]
    pub fn shows(&mut self, what: &str, is_there: impl Fn(&[String]) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_there(&self.lines()) {
            assert!(Instant::now() < deadline, "{what} is not shown:\n{}", self.lines().join("\n"));
            self.parse();
        }
    }

    /// Whether a program has it for itself: keys come as they are, the screen is another one, and has no cursor.
    pub fn is_taken(&self) -> bool {
        let screen = self.screen.screen();
        screen.alternate_screen() && screen.hide_cursor() && !self.settings().local_modes.contains(LocalModes::ICANON)
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            self.parse();
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.lines().join("\n"));
        };
        while self.parse() {}
        status
    }

    /// That it is as it was before the program began.
    #[track_caller]
    pub fn is_given_back(&self) {
        let settings = |termios: &Termios| {
            let modes = (termios.input_modes, termios.output_modes, termios.control_modes, termios.local_modes);
            format!("{modes:?}, {:?}", termios.special_codes)
        };
        assert_eq!(settings(&self.settings()), settings(&self.before));
        let screen = self.screen.screen();
        assert!(!screen.alternate_screen(), "the program's screen is still there:\n{}", self.lines().join("\n"));
        assert!(!screen.hide_cursor(), "the cursor is gone");
    }

    fn settings(&self) -> Termios {
        termios::tcgetattr(&self.line).expect("its settings")
    }

    /// Draws what has come, or waits a moment for something; returns whether anything came.
    fn parse(&mut self) -> bool {
        let Some(own) = &self.own else {
            std::thread::sleep(Duration::from_millis(10));
            return false;
        };
        let mut polled = [PollFd::from_borrowed_fd(own.as_fd(), PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let mut bytes = [0; 4096];
        match poll(&mut polled, Some(&moment))
            .and_then(|ready| if ready > 0 { rustix::io::read(own, &mut bytes) } else { Ok(0) })
        {
            Ok(count) => {
                self.screen.process(&bytes[..count]);
                count > 0
            }
            Err(error) => panic!("the terminal: {error}"),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn winsize(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}
