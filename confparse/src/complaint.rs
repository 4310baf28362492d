//! A complaint: where, what, what was expected, and what may have been meant; shown with the line it speaks of.

use core::fmt;
use std::sync::Arc;

/// How much a complaint matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Worth knowing: the value is accepted and changes nothing.
    Note,
    /// Accepted, and probably not meant.
    Warning,
    /// The text is refused.
    Error,
}

/// One thing said about one place of the text.
///
/// Its display opens with `file:line:column: ` and may have several lines; it is safe to print, whatever the text held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// How much it matters.
    pub level: Level,
    /// The file's name as given.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1; a tab counts as one.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right, and the nearest known word; may be empty.
    pub expected: String,
    /// The part of the line that is shown.
    excerpt: String,
    /// What stands under it: tabs where the line has tabs, so that the carets fall right however wide a tab is.
    carets: String,
}

impl Complaint {
    /// The most errors, and the most warnings, reported of one text.
    pub const MOST: usize = 50;
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Error => "",
            Level::Warning => "warning: ",
            Level::Note => "note: ",
        };
        write!(f, "{}:{}:{}: {level}{}", tame(&self.file), self.line, self.column, self.message)?;
        let gutter = self.line.to_string().len();
        write!(f, "\n {} | {}", self.line, self.excerpt)?;
        write!(f, "\n {:gutter$} | {}", "", self.carets)?;
        if !self.expected.is_empty() {
            write!(f, "\n {:gutter$} = {}", "", self.expected)?;
        }
        Ok(())
    }
}

/// Why a text was refused: at least one error, and the warnings besides, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// The complaints; at most [`Complaint::MOST`] errors and as many warnings.
    pub complaints: Vec<Complaint>,
    /// How many errors more there were.
    pub omitted: usize,
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, complaint) in self.complaints.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{complaint}")?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more errors", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Collects complaints about one text.
pub(crate) struct Report<'t> {
    text: &'t str,
    file: Arc<str>,
    line_starts: Vec<usize>,
    /// Each with the byte offset it is sorted by.
    complaints: Vec<(usize, Complaint)>,
    errors: usize,
    warnings: usize,
}

impl<'t> Report<'t> {
    pub(crate) fn new(text: &'t str, name: &str) -> Self {
        let line_starts = core::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, file: name.into(), line_starts, complaints: Vec::new(), errors: 0, warnings: 0 }
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// The line of a byte offset, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at)
    }

    /// The line and the column of a byte offset, in characters, both from 1.
    pub(crate) fn line_and_column(&self, at: usize) -> (usize, usize) {
        let line = self.line(at);
        (line, self.text[self.line_starts[line - 1]..at].chars().count() + 1)
    }

    /// Adds an error about the bytes `place`. `words` yields message and expectation, and is called only if it will be shown.
    pub(crate) fn error(&mut self, place: (usize, usize), words: impl FnOnce() -> (String, String)) {
        self.errors += 1;
        if self.errors <= Complaint::MOST {
            self.add(Level::Error, place, words());
        }
    }

    /// Adds a warning, likewise.
    pub(crate) fn warn(&mut self, place: (usize, usize), words: impl FnOnce() -> (String, String)) {
        self.warnings += 1;
        if self.warnings <= Complaint::MOST {
            self.add(Level::Warning, place, words());
        }
    }

    /// Adds a note, likewise.
    pub(crate) fn note(&mut self, place: (usize, usize), words: impl FnOnce() -> (String, String)) {
        self.warnings += 1;
        if self.warnings <= Complaint::MOST {
            self.add(Level::Note, place, words());
        }
    }

    /// All complaints in the order of the text, and the number of errors that were left out.
    pub(crate) fn finish(mut self) -> (Vec<Complaint>, usize) {
        self.complaints.sort_by_key(|(at, _)| *at);
        let complaints = self.complaints.into_iter().map(|(_, complaint)| complaint).collect();
        (complaints, self.errors.saturating_sub(Complaint::MOST))
    }

    fn add(&mut self, level: Level, (from, to): (usize, usize), (message, expected): (String, String)) {
        let (line, column) = self.line_and_column(from);
        let rest = &self.text[self.line_starts[line - 1]..];
        let whole = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let width = self.text[from..to.max(from)].split('\n').next().unwrap_or_default().chars().count();
        let (excerpt, carets) = excerpt(whole, column - 1, width);
        let expected = tame(&expected);
        let complaint = Complaint { level, file: self.file.clone(), line, column, message, expected, excerpt, carets };
        self.complaints.push((from, complaint));
    }
}

/// The part of `line` around `column` (from 0, in characters) that fits a screen, and the carets for below it.
fn excerpt(line: &str, column: usize, width: usize) -> (String, String) {
    const BEFORE: usize = 60;
    const SHOWN: usize = 110;
    let skip = if column > SHOWN - 20 { column - BEFORE } else { 0 };
    let mut shown: String = line.chars().skip(skip).take(SHOWN).collect();
    let mut carets: String = shown.chars().take(column - skip).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let room = shown.chars().count().saturating_sub(column - skip);
    carets.push_str(&"^".repeat(width.min(room).max(1)));
    if line.chars().nth(skip + SHOWN).is_some() {
        shown.push('…');
    }
    if skip > 0 {
        shown.insert(0, '…');
        carets.insert(0, ' ');
    }
    (tame(&shown), carets)
}

/// `text` without what could steer a terminal or reorder what it shows; tabs stay.
pub(crate) fn tame(text: &str) -> String {
    let steers = |c: char| {
        c != '\t'
            && (c.is_control()
                || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
    };
    text.chars().map(|c| if steers(c) { '\u{fffd}' } else { c }).collect()
}

/// A word of the text, to be quoted in a message: tame, and of bounded length.
pub(crate) fn quote(word: &str) -> String {
    format!("`{}`", shorten(word, 40))
}

/// A sentence that may repeat the text as it stands, for a message of one line: tame, and of bounded length.
pub(crate) fn sentence(text: &str) -> String {
    shorten(text, 160)
}

fn shorten(text: &str, most: usize) -> String {
    let short: String = text.chars().take(most).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    format!("{}{more}", tame(&short).replace('\t', "\u{fffd}"))
}
