//! The terminal of `synctl top`: polls the box once per second, reads keys, and always restores the terminal.

use crate::top::{Action, Screen};
use control::{Client, ClientError, Reply, Request, Top};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The interval between requests to the box.
const EVERY: Duration = Duration::from_secs(1);

/// How long an orderly exit may take after a signal.
const GRACE: Duration = Duration::from_secs(1);

/// The longest wait for a key before other events are handled.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// Why `top` ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A request to the box failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The terminal failed.
    #[error(transparent)]
    Terminal(#[from] io::Error),
    /// The signal handler cannot be installed.
    #[error("cannot install the signal handler: {0}")]
    Signals(#[from] ctrlc::Error),
}

/// Requests everything `top` shows.
///
/// # Errors
/// If the request fails, or the reply is of another kind.
pub fn ask(client: &mut Client) -> Result<Top, ClientError> {
    match client.ask(&Request::Top)? {
        Reply::Top(top) => Ok(*top),
        other => Err(ClientError::Unexpected(format!("{other:?}"))),
    }
}

/// Polls twice, one second apart, and returns the screen as text; for output that is not a terminal.
///
/// # Errors
/// If a request fails.
pub fn once(client: &mut Client) -> Result<String, ClientError> {
    let mut screen = Screen::default();
    screen.update(ask(client)?);
    thread::sleep(EVERY);
    screen.update(ask(client)?);
    Ok(screen.text(100, 60))
}

/// Draws the screen until a key or a signal ends it. The terminal is restored, also after a panic.
///
/// # Errors
/// If a request or the terminal fails.
pub fn watch(mut client: Client) -> Result<(), WatchError> {
    // The first reply comes before the screen is taken, so that an error message stays visible.
    let mut screen = Screen::default();
    screen.update(ask(&mut client)?);
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = stop.clone();
    ctrlc::set_handler(move || {
        on_signal.store(true, Ordering::Relaxed);
        // If the terminal is gone, the main thread may block reading keys; exit from here.
        thread::sleep(GRACE);
        ratatui::restore();
        process::exit(1);
    })?;
    let answers = poll_box(client)?;
    on_screen(|terminal| draw(&answers, terminal, &mut screen, &stop))?
}

/// Runs `work` on the terminal and restores the terminal afterwards, also after a panic.
///
/// # Errors
/// If there is no terminal, or it cannot be configured.
pub fn on_screen<T>(work: impl FnOnce(&mut DefaultTerminal) -> T) -> io::Result<T> {
    let mut terminal = ratatui::try_init()?;
    let end = work(&mut terminal);
    ratatui::restore();
    Ok(end)
}

/// Polls the box once per second in a thread of its own, up to the first error, so that a slow reply does not delay keys.
fn poll_box(mut client: Client) -> io::Result<Receiver<Result<Top, ClientError>>> {
    let (sender, answers) = mpsc::sync_channel(1);
    let poll = move || {
        loop {
            thread::sleep(EVERY);
            let answer = ask(&mut client);
            let is_last = answer.is_err();
            if sender.send(answer).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new().name("top-poll".to_owned()).spawn(poll)?;
    Ok(answers)
}

fn draw(
    answers: &Receiver<Result<Top, ClientError>>,
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    stop: &AtomicBool,
) -> Result<(), WatchError> {
    let mut last_answer = Instant::now();
    let mut redraw = true;
    while !stop.load(Ordering::Relaxed) {
        if redraw {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        redraw = event::poll(KEYS_EVERY)?;
        if redraw
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            let key = match key.code {
                // In raw mode Ctrl-C is a key, not a signal.
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => 'q',
                KeyCode::Esc => 'q',
                KeyCode::Char(key) => key,
                _ => continue,
            };
            if screen.press(key) == Action::Quit {
                return Ok(());
            }
        }
        if let Ok(answer) = answers.try_recv() {
            screen.update(answer?);
            last_answer = Instant::now();
            redraw = true;
        }
        redraw |= screen.wait(last_answer.elapsed().saturating_sub(EVERY));
    }
    Ok(())
}
