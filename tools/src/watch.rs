//! The terminal `synctl top` draws on: asks the box once a second, reads the keys, and gives the terminal back whatever ends it.

use crate::top::{Next, Screen};
use control::{Client, Complaint, Reply, Request, Top};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often the box is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long a key waits at most.
const KEYS_EVERY: Duration = Duration::from_millis(100);

/// Why it ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The box does not answer.
    #[error(transparent)]
    Box(#[from] Complaint),
    /// The terminal fails.
    #[error(transparent)]
    Terminal(#[from] io::Error),
    /// Signals cannot be caught.
    #[error("signals cannot be caught: {0}")]
    Signals(#[from] ctrlc::Error),
}

/// Asks the box for everything `top` shows.
///
/// # Errors
/// When it does not answer, or something else.
pub fn ask(client: &mut Client) -> Result<Top, Complaint> {
    match client.ask(&Request::Top)? {
        Reply::Top(top) => Ok(*top),
        other => Err(Complaint::Strange(format!("{other:?}"))),
    }
}

/// Two answers a second apart, as text: for where there is no terminal.
///
/// # Errors
/// When the box does not answer.
pub fn once(client: &mut Client) -> Result<String, Complaint> {
    let mut screen = Screen::default();
    screen.hear(ask(client)?);
    thread::sleep(EVERY);
    screen.hear(ask(client)?);
    Ok(screen.text(100, 60))
}

/// Draws until a key or a signal ends it.
///
/// # Errors
/// When the box does not answer, or the terminal fails. The terminal is as it was before, also after a panic.
pub fn watch(client: &mut Client) -> Result<(), Trouble> {
    let stop = Arc::new(AtomicBool::new(false));
    let signalled = stop.clone();
    ctrlc::set_handler(move || signalled.store(true, Ordering::Relaxed))?;
    // The first answer comes before the screen is taken, so that a complaint is not wiped away with it.
    let mut screen = Screen::default();
    screen.hear(ask(client)?);
    let mut terminal = ratatui::try_init()?;
    let end = draw(client, &mut terminal, &mut screen, &stop);
    ratatui::restore();
    end
}

fn draw(
    client: &mut Client,
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    stop: &AtomicBool,
) -> Result<(), Trouble> {
    let mut due = Instant::now() + EVERY;
    while !stop.load(Ordering::Relaxed) {
        terminal.draw(|frame| screen.draw(frame))?;
        while Instant::now() < due && !stop.load(Ordering::Relaxed) {
            if !event::poll(KEYS_EVERY.min(due.saturating_duration_since(Instant::now())))? {
                continue;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let key = match key.code {
                        // In raw mode this is a key like any other.
                        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => 'q',
                        KeyCode::Esc => 'q',
                        KeyCode::Char(key) => key,
                        _ => continue,
                    };
                    if screen.press(key) == Next::Leave {
                        return Ok(());
                    }
                    terminal.draw(|frame| screen.draw(frame))?;
                }
                // Another size.
                _ => terminal.draw(|frame| screen.draw(frame)).map(drop)?,
            }
        }
        if Instant::now() >= due {
            due = Instant::now() + EVERY;
            screen.hear(ask(client)?);
        }
    }
    Ok(())
}
