//! `synctl top`: the content of the screen and how it is drawn. `watch` polls the box and owns the terminal.

use crate::show::{losses, span};
use control::{Counts, Talker, Top};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use std::collections::BTreeMap;
use std::iter;
use std::time::Duration;
use tcpstate::DropReason;

/// The sort order of top talkers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By frames.
    #[default]
    Frames,
    /// By SYNs.
    Syns,
    /// By bytes.
    Bytes,
}

impl Sort {
    fn next(self) -> Sort {
        match self {
            Sort::Frames => Sort::Syns,
            Sort::Syns => Sort::Bytes,
            Sort::Bytes => Sort::Frames,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Frames => "frames",
            Sort::Syns => "SYNs",
            Sort::Bytes => "bytes",
        }
    }

    fn of(self, talker: &Talker) -> u64 {
        match self {
            Sort::Frames => talker.frames,
            Sort::Syns => talker.syns,
            Sort::Bytes => talker.bytes,
        }
    }
}

/// What to do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Draw the screen again.
    Redraw,
    /// End the program.
    Quit,
}

/// The state of the screen.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    /// The latest reply, and the one before, from which rates are computed.
    now: Option<Top>,
    before: Option<Top>,
    sort: Sort,
    totals: bool,
    frozen: bool,
    /// Seconds since the box owes a reply; none below [`LATE_AFTER`].
    unanswered: Option<u64>,
}

/// A reply that is late by more than this is reported on the screen.
const LATE_AFTER: Duration = Duration::from_secs(2);

impl Screen {
    /// Shows a new reply, unless the screen is frozen.
    pub fn update(&mut self, top: Top) {
        self.unanswered = None;
        if !self.frozen {
            self.before = self.now.replace(top);
        }
    }

    /// A reply is late by `waiting`. Returns whether the screen changes.
    pub fn wait(&mut self, waiting: Duration) -> bool {
        let unanswered = (waiting >= LATE_AFTER).then_some(waiting.as_secs());
        std::mem::replace(&mut self.unanswered, unanswered) != unanswered
    }

    /// Handles a key.
    pub fn press(&mut self, key: char) -> Action {
        match key {
            'q' => return Action::Quit,
            's' => self.sort = self.sort.next(),
            't' => self.totals = !self.totals,
            'p' | ' ' => self.frozen = !self.frozen,
            _ => {}
        }
        Action::Redraw
    }

    /// The seconds between the two replies from which rates are computed.
    fn period(&self) -> Option<f64> {
        let period = self.now.as_ref()?.stats.uptime - self.before.as_ref()?.stats.uptime;
        Some(period).filter(|&period| period > 0.0)
    }

    /// The value to show for a counter: its total, or its rate since the reply before.
    fn value(&self, now: u64, before: u64) -> Option<f64> {
        if self.totals { Some(now as f64) } else { Some(now.saturating_sub(before) as f64 / self.period()?) }
    }

    /// Draws the whole screen.
    pub fn draw(&self, frame: &mut Frame) {
        let area = frame.area();
        frame.render_widget(Paragraph::new(self.lines(area)), area);
    }

    /// The screen as text, for output that is not a terminal.
    pub fn text(&self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("the test backend cannot fail");
        terminal.draw(|frame| self.draw(frame)).expect("the test backend cannot fail");
        let cells = terminal.backend().buffer().content();
        let rows = cells.chunks(width.into()).map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
        let rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        format!("{}\n", rows.join("\n").trim_end())
    }

    fn lines(&self, area: Rect) -> Vec<Line<'static>> {
        let mut lines = vec![self.title(area.width.into())];
        let Some(top) = &self.now else { return lines };
        let empty = Counts::default();
        let before = self.before.as_ref().map(|before| &before.stats);
        let (total, earlier) = (&top.stats.total, before.map_or(&empty, |stats| &stats.total));
        lines.extend(self.ports(total, earlier));
        lines.push(Line::default());
        lines.extend(self.flows(total, earlier));
        if let [_, _, ..] = top.stats.workers.as_slice() {
            lines.push(Line::default());
            let earlier = before.map_or(&[][..], |stats| &stats.workers);
            lines.extend(self.workers(&top.stats.workers, earlier));
        }
        lines.push(Line::default());
        let left = usize::from(area.height).saturating_sub(lines.len());
        let width = area.width.into();
        let drops = self.drops(total, earlier, width);
        let talkers = 1 + self.talkers(top, width, usize::MAX).len();
        // The shorter list leaves its lines to the longer one.
        let for_drops = left.saturating_sub(talkers).max(left.saturating_sub(1) / 2).max(2);
        lines.extend(drops.into_iter().take(for_drops));
        lines.push(Line::default());
        let left = usize::from(area.height).saturating_sub(lines.len());
        lines.extend(self.talkers(top, width, left));
        lines
    }

    fn title(&self, width: usize) -> Line<'static> {
        let up = self.now.as_ref().map_or("synproxy".to_owned(), |top| format!("up {}", span(top.stats.uptime)));
        let manner = if self.totals { "since the start" } else { "a second" };
        let state = match self.unanswered {
            Some(seconds) => format!("NO ANSWER FOR {seconds} s"),
            None if self.frozen => format!("{manner}, FROZEN"),
            None => manner.to_owned(),
        };
        let keys = "q quit  s sort  t totals  p freeze";
        let gap = width.saturating_sub(up.len() + 2 + state.len() + keys.len()).max(1);
        Line::from(format!("{up}, {state}{}{keys}", " ".repeat(gap))).style(Style::new().reversed())
    }

    fn ports(&self, total: &Counts, earlier: &Counts) -> Vec<Line<'static>> {
        let head = if self.totals {
            ["frames in", "GB in", "frames out", "GB out"]
        } else {
            ["frames in/s", "Mbit/s in", "frames out/s", "Mbit/s out"]
        };
        let mut lines =
            vec![Line::from(format!("{:<12}{}", "port", head.map(|word| format!("{word:>15}")).concat())).bold()];
        for (name, port, earlier) in [("lan", &total.lan, &earlier.lan), ("wan", &total.wan, &earlier.wan)] {
            let count = |key: &str| self.value(get(port, key), get(earlier, key));
            let bytes = |key: &str| count(key).map(|bytes| if self.totals { bytes / 1e9 } else { bytes * 8.0 / 1e6 });
            let cells = [
                whole(count("received")),
                tenth(bytes("received-bytes")),
                whole(count("sent")),
                tenth(bytes("sent-bytes")),
            ];
            lines.push(Line::from(format!("{name:<12}{}", cells.map(|cell| format!("{cell:>15}")).concat())));
        }
        lines
    }

    fn flows(&self, total: &Counts, earlier: &Counts) -> Vec<Line<'static>> {
        const SEEN: [(&str, &str); 5] = [
            ("answered", "syn-answered"),
            ("by cookie", "cookie-good"),
            ("by cache", "cache-hit"),
            ("joined", "spliced"),
            ("refused", "refused"),
        ];
        let line = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>13}")).collect();
            Line::from(format!("{name:<12}{cells}"))
        };
        let per = if self.totals { "" } else { "/s" };
        let event = |key: &str| whole(self.value(get(&total.events, key), get(&earlier.events, key)));
        let flows = total.flows;
        vec![
            line("flows", &["proxied", "direct", "half-open", "frames held"].map(str::to_owned)).bold(),
            line("", &[flows.proxied, flows.direct, flows.half_open, total.held].map(|count| count.to_string())),
            line("handshakes", &SEEN.map(|(name, _)| format!("{name}{per}"))).bold(),
            line("", &SEEN.map(|(_, key)| event(key))),
        ]
    }

    fn workers(&self, now: &[Counts], earlier: &[Counts]) -> Vec<Line<'static>> {
        let empty = Counts::default();
        let columns = ["received", "flows", "half-open", "dropped", "handed over", "ns/frame"];
        let head = format!("{:<8}{}", "worker", columns.map(|word| format!("{word:>12}")).concat());
        let mut lines = vec![Line::from(head).bold()];
        for (number, worker) in now.iter().enumerate() {
            let earlier = earlier.get(number).unwrap_or(&empty);
            let received = |counts: &Counts| get(&counts.lan, "received") + get(&counts.wan, "received");
            let dropped = |counts: &Counts| counts.drops.values().chain(losses(counts).values()).sum();
            let handed = |counts: &Counts| get(&counts.crossed, "handed-over");
            let frames = worker.timed_frames.saturating_sub(earlier.timed_frames);
            let time = worker.timed_nanoseconds.saturating_sub(earlier.timed_nanoseconds);
            let cells = [
                whole(self.value(received(worker), received(earlier))),
                (worker.flows.proxied + worker.flows.direct).to_string(),
                worker.flows.half_open.to_string(),
                whole(self.value(dropped(worker), dropped(earlier))),
                whole(self.value(handed(worker), handed(earlier))),
                time.checked_div(frames).map_or("-".into(), |time| time.to_string()),
            ];
            lines.push(Line::from(format!("{number:<8}{}", cells.map(|cell| format!("{cell:>12}")).concat())));
        }
        lines
    }

    /// Drops and losses with their meaning, the most frequent first.
    fn drops(&self, total: &Counts, earlier: &Counts, width: usize) -> Vec<Line<'static>> {
        let losses = losses(total);
        let pairs = [(&total.drops, &earlier.drops), (&losses, &earlier.losses)];
        let counted = pairs.into_iter().flat_map(|(now, earlier)| {
            now.iter().map(|(name, &count)| (name.clone(), self.value(count, get(earlier, name)).unwrap_or_default()))
        });
        let mut counted: Vec<(String, f64)> = counted.filter(|(_, count)| *count > 0.0).collect();
        counted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut lines =
            vec![Line::from(format!("{:<23}{:>10}", "dropped", if self.totals { "" } else { "a second" })).bold()];
        if counted.is_empty() {
            let known = self.totals || self.period().is_some();
            lines.push(Line::from(if known { "nothing" } else { "-" }));
        }
        for (name, count) in counted {
            let line = format!("{name:<23}{:>10}  {}", whole(Some(count)), meaning(&name));
            lines.push(Line::from(cut(line.trim_end(), width)));
        }
        lines
    }

    /// Sources and targets: side by side where their names fit, otherwise one list below the other.
    fn talkers(&self, top: &Top, width: usize, height: usize) -> Vec<Line<'static>> {
        let sorted = |talkers: &[Talker]| {
            let mut talkers: Vec<Talker> = talkers.to_vec();
            talkers.sort_by_key(|talker| std::cmp::Reverse((self.sort.of(talker), talker.frames)));
            talkers
        };
        let list = |what: &str, talkers: &[Talker], room: usize| -> Vec<String> {
            let rate = |count: u64| (top.period > 0.0).then(|| count as f64 / top.period);
            let head = row(
                room,
                &format!("{what}, by {}", self.sort.name()),
                ["frames/s", "SYN/s", "Mbit/s"].map(str::to_owned),
            );
            let cells = |talker: &Talker| {
                let bits = rate(talker.bytes).map(|bytes| bytes * 8.0 / 1e6);
                [short(rate(talker.frames)), short(rate(talker.syns)), tenth(bits)]
            };
            let rows = sorted(talkers).into_iter().map(|talker| row(room, &talker.name, cells(&talker)));
            iter::once(head).chain(rows).collect()
        };
        // Checks only the rows that fit into the height.
        let fit = |talkers: &[Talker], room: usize| {
            sorted(talkers).iter().take(height.saturating_sub(1)).all(|talker| talker.name.chars().count() <= room)
        };
        let spare = width.saturating_sub(2 * CELLS + GAP);
        // Room for an IPv4 address on the left and one with a port on the right; a wider screen gives both more.
        let more = spare.saturating_sub(15 + 21);
        let (left, right) = (15 + more / 2, 21 + more.div_ceil(2));
        let is_wide = left + right <= spare;
        if is_wide && (height < TWO_LISTS || fit(&top.sources, left) && fit(&top.targets, right)) {
            let (sources, targets) = (list("WAN", &top.sources, left), list("LAN", &top.targets, right));
            let rows = (0..sources.len().max(targets.len()).min(height)).map(|n| {
                let [source, target] = [sources.get(n), targets.get(n)].map(|row| row.map_or("", String::as_str));
                format!("{source:<0$}{target}", left + CELLS + GAP)
            });
            return headed(rows);
        }
        let room = width.saturating_sub(CELLS).min(47);
        let [sources, targets] = [("WAN", &top.sources), ("LAN", &top.targets)].map(|(what, of)| list(what, of, room));
        // The shorter list leaves its lines to the longer one.
        let half = height / 2;
        let for_sources = sources.len().min(half.max(height.saturating_sub(targets.len())));
        let for_targets = height.saturating_sub(for_sources);
        let mut lines = headed(sources.into_iter().take(for_sources));
        lines.extend(headed(targets.into_iter().take(for_targets)));
        lines
    }
}

/// Lines, the first of them bold.
fn headed(lines: impl IntoIterator<Item = String>) -> Vec<Line<'static>> {
    let line = |(n, line)| if n == 0 { Line::from(line).bold() } else { Line::from(line) };
    lines.into_iter().enumerate().map(line).collect()
}

/// The meaning of a drop reason; empty for a loss.
fn meaning(name: &str) -> &'static str {
    let reason = DropReason::ALL.iter().find(|reason| reason.label() == name);
    reason.map_or("", |reason| reason.meaning().trim())
}

/// The width of a talker's numbers, and the gap between two lists.
const CELLS: usize = 8 + 6 + 7;
const GAP: usize = 2;

/// The least height for two lists one below the other; with less, long names are cut instead.
const TWO_LISTS: usize = 10;

/// A talker's row; `room` is the width of the name.
fn row(room: usize, name: &str, cells: [String; 3]) -> String {
    // The end of an address is more specific than its beginning.
    let name = match name.chars().count() {
        long if long > room => format!("…{}", name.chars().skip(long + 1 - room.max(1)).collect::<String>()),
        _ => name.to_owned(),
    };
    format!("{name:<room$}{:>8}{:>6}{:>7}", cells[0], cells[1], cells[2])
}

/// Cuts a line to `width` at a word boundary, marked by an ellipsis.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let fits: String = line.chars().take(width).collect();
    let words = fits.rfind(' ').map_or("", |end| fits[..end].trim_end());
    format!("{}…", words.trim_end_matches([',', ':']))
}

fn get(counts: &BTreeMap<String, u64>, key: &str) -> u64 {
    counts.get(key).copied().unwrap_or_default()
}

/// A number without its fraction, `-` if unknown; large numbers with a unit prefix so that they fit the column.
fn whole(number: Option<f64>) -> String {
    match number {
        None => "-".into(),
        Some(number) if number >= 1e12 => format!("{:.1}T", number / 1e12),
        Some(number) if number >= 1e10 => format!("{:.1}G", number / 1e9),
        Some(number) if number >= 1e7 => format!("{:.1}M", number / 1e6),
        // Keep a digit of small rates: rare is not never.
        Some(number) if number > 0.0 && number < 9.95 && number.fract() != 0.0 => format!("{number:.1}"),
        Some(number) => format!("{number:.0}"),
    }
}

/// Like [`whole`], at most five characters.
fn short(number: Option<f64>) -> String {
    match number {
        Some(number) if (99_999.5..999_999.5).contains(&number) => format!("{:.0}k", number / 1e3),
        Some(number) if (999_999.5..1e7).contains(&number) => format!("{:.1}M", number / 1e6),
        _ => whole(number),
    }
}

/// A number with one decimal below 10 000.
fn tenth(number: Option<f64>) -> String {
    number.map_or("-".into(), |number| if number < 9999.95 { format!("{number:.1}") } else { format!("{number:.0}") })
}
