//! The terminal `synctl top` draws on: asks the box once a second, reads the keys, and gives the terminal back whatever ends it.

use crate::top::{Next, Screen};
use control::{Client, Complaint, Reply, Request, Top};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How often the box is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long the end may take after a signal.
const GRACE: Duration = Duration::from_secs(1);

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
    screen.receive_update(ask(client)?);
    thread::sleep(EVERY);
    screen.receive_update(ask(client)?);
    Ok(screen.text(100, 60))
}

/// Draws until a key or a signal ends it.
///
/// # Errors
/// When the box does not answer, or the terminal fails. The terminal is as it was before, also after a panic.
pub fn watch(mut client: Client) -> Result<(), Trouble> {
    // The first answer comes before the screen is taken, so that a complaint is not wiped away with it.
    let mut screen = Screen::default();
    screen.receive_update(ask(&mut client)?);
    let stop = Arc::new(AtomicBool::new(false));
    let signalled = stop.clone();
    ctrlc::set_handler(move || {
        signalled.store(true, Ordering::Relaxed);
        // Where the terminal itself is gone, its keys are read for ever: nobody is left who could see how this ends.
        thread::sleep(GRACE);
        ratatui::restore();
        process::exit(1);
    })?;
    let answers = asked(client)?;
    on_screen(|terminal| draw(&answers, terminal, &mut screen, &stop))?
}

/// Takes the terminal for as long as `work` lasts. Afterwards, and after a panic, it is as it was before.
///
/// # Errors
/// When there is no terminal, or it cannot be set.
pub fn on_screen<T>(work: impl FnOnce(&mut DefaultTerminal) -> T) -> io::Result<T> {
    let mut terminal = ratatui::try_init()?;
    let end = work(&mut terminal);
    ratatui::restore();
    Ok(end)
}

/// The box's answers, a second apart, up to the first complaint: asked for by a thread, so that one that takes its time keeps no
/// key waiting.
fn asked(mut client: Client) -> io::Result<Receiver<Result<Top, Complaint>>> {
    let (tell, answers) = mpsc::sync_channel(1);
    let ask_on = move || {
        loop {
            thread::sleep(EVERY);
            let answer = ask(&mut client);
            let is_last = answer.is_err();
            if tell.send(answer).is_err() || is_last {
                return;
            }
        }
    };
    thread::Builder::new().name("asks".to_owned()).spawn(ask_on)?;
    Ok(answers)
}

fn draw(
    answers: &Receiver<Result<Top, Complaint>>,
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    stop: &AtomicBool,
) -> Result<(), Trouble> {
    let mut heard = Instant::now();
    let mut is_new = true;
    while !stop.load(Ordering::Relaxed) {
        if is_new {
            terminal.draw(|frame| screen.draw(frame))?;
        }
        is_new = event::poll(KEYS_EVERY)?;
        if is_new
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
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
        }
        if let Ok(answer) = answers.try_recv() {
            screen.receive_update(answer?);
            heard = Instant::now();
            is_new = true;
        }
        is_new |= screen.wait(heard.elapsed().saturating_sub(EVERY));
    }
    Ok(())
}
