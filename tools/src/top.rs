//! `synctl top`: what the box does right now, on a screen. Here are what is shown and how it is drawn; asking the box and the terminal are
//! `watch`'s matter.

use control::{Counts, Talker, Top};
use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::layout::Rect;
use ratatui::style::{Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use std::collections::BTreeMap;
use tcpstate::DropReason;

/// What talkers are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Their frames.
    #[default]
    Frames,
    /// Those of them that are SYNs.
    Calls,
    /// The bytes.
    Bytes,
}

impl Sort {
    fn next(self) -> Sort {
        match self {
            Sort::Frames => Sort::Calls,
            Sort::Calls => Sort::Bytes,
            Sort::Bytes => Sort::Frames,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Sort::Frames => "frames",
            Sort::Calls => "SYNs",
            Sort::Bytes => "bytes",
        }
    }

    fn of(self, talker: &Talker) -> u64 {
        match self {
            Sort::Frames => talker.frames,
            Sort::Calls => talker.calls,
            Sort::Bytes => talker.bytes,
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Draw anew.
    Draw,
    /// End.
    Leave,
}

/// What is on the screen.
#[derive(Clone, Debug, Default)]
pub struct Screen {
    /// The latest answer, and the one that rates are told against.
    now: Option<Top>,
    before: Option<Top>,
    sort: Sort,
    totals: bool,
    frozen: bool,
}

impl Screen {
    /// A new answer of the box, which is not looked at while the screen is frozen.
    pub fn hear(&mut self, top: Top) {
        if !self.frozen {
            self.before = self.now.replace(top);
        }
    }

    /// A key was pressed.
    pub fn press(&mut self, key: char) -> Next {
        match key {
            'q' => return Next::Leave,
            's' => self.sort = self.sort.next(),
            't' => self.totals = !self.totals,
            'p' | ' ' => self.frozen = !self.frozen,
            _ => {}
        }
        Next::Draw
    }

    /// The seconds between the two answers that rates are reckoned from.
    fn period(&self) -> Option<f64> {
        let period = self.now.as_ref()?.stats.uptime - self.before.as_ref()?.stats.uptime;
        Some(period).filter(|&period| period > 0.0)
    }

    /// A count now, and what it was before, as what is shown of it.
    fn shown(&self, now: u64, before: u64) -> Option<f64> {
        if self.totals { Some(now as f64) } else { Some(now.saturating_sub(before) as f64 / self.period()?) }
    }

    /// Draws everything.
    pub fn draw(&self, frame: &mut Frame) {
        let area = frame.area();
        frame.render_widget(Paragraph::new(self.lines(area)), area);
    }

    /// The screen as text, for where there is no terminal.
    pub fn text(&self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory does not fail");
        terminal.draw(|frame| self.draw(frame)).expect("memory does not fail");
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
        let (total, past) = (&top.stats.total, before.map_or(&empty, |stats| &stats.total));
        lines.extend(self.ports(total, past));
        lines.push(Line::default());
        lines.extend(self.flows(total, past));
        if let [_, _, ..] = top.stats.workers.as_slice() {
            lines.push(Line::default());
            let past = before.map_or(&[][..], |stats| &stats.workers);
            lines.extend(self.workers(&top.stats.workers, past));
        }
        lines.push(Line::default());
        let left = usize::from(area.height).saturating_sub(lines.len());
        let drops = self.drops(total, past);
        let talkers = 2 + top.sources.len().max(top.targets.len()).max(1);
        // Whichever has less to say leaves the rest to the other.
        let for_drops = left.saturating_sub(talkers).max(left.saturating_sub(1) / 2).max(2);
        lines.extend(drops.into_iter().take(for_drops));
        lines.push(Line::default());
        let left = usize::from(area.height).saturating_sub(lines.len());
        lines.extend(self.talkers(top, area.width.into(), left));
        lines
    }

    fn title(&self, width: usize) -> Line<'static> {
        let up = self.now.as_ref().map_or(String::new(), |top| format!(" up {:.0} s", top.stats.uptime));
        let left = format!("synproxy{up}");
        let manner = if self.totals { "since the start" } else { "a second" };
        let state = if self.frozen { format!("{manner}, FROZEN") } else { manner.to_owned() };
        let keys = "q quit  s sort  t totals  p freeze";
        let gap = width.saturating_sub(left.len() + 2 + state.len() + keys.len()).max(1);
        Line::from(format!("{left}, {state}{}{keys}", " ".repeat(gap))).style(Style::new().reversed())
    }

    fn ports(&self, total: &Counts, past: &Counts) -> Vec<Line<'static>> {
        let head = if self.totals {
            ["frames in", "GB in", "frames out", "GB out"]
        } else {
            ["frames in/s", "Mbit/s in", "frames out/s", "Mbit/s out"]
        };
        let mut lines =
            vec![Line::from(format!("{:<12}{}", "port", head.map(|word| format!("{word:>15}")).concat())).bold()];
        for (name, port, past) in [("lan", &total.lan, &past.lan), ("wan", &total.wan, &past.wan)] {
            let count = |key: &str| self.shown(get(port, key), get(past, key));
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

    fn flows(&self, total: &Counts, past: &Counts) -> Vec<Line<'static>> {
        let flows = total.flows;
        let event = |key: &str| whole(self.shown(get(&total.events, key), get(&past.events, key)));
        let opened = format!(
            "SYNs answered {}, proved by cookie {} by cache {}, joined {}, refused {}",
            event("syn-answered"),
            event("cookie-good"),
            event("cache-hit"),
            event("spliced"),
            event("refused")
        );
        vec![
            Line::from(vec![
                Span::from("flows       ").bold(),
                Span::from(format!(
                    "{} proxied, {} direct, {} half-open, {} frames held",
                    flows.proxied, flows.direct, flows.half_open, total.held
                )),
            ]),
            Line::from(vec![Span::from("handshakes  ").bold(), Span::from(opened)]),
        ]
    }

    fn workers(&self, now: &[Counts], past: &[Counts]) -> Vec<Line<'static>> {
        let empty = Counts::default();
        let columns = ["received", "flows", "half-open", "dropped", "handed over", "ns/frame"];
        let head = format!("{:<8}{}", "worker", columns.map(|word| format!("{word:>12}")).concat());
        let mut lines = vec![Line::from(head).bold()];
        for (number, worker) in now.iter().enumerate() {
            let past = past.get(number).unwrap_or(&empty);
            let received = |counts: &Counts| get(&counts.lan, "received") + get(&counts.wan, "received");
            let dropped = |counts: &Counts| counts.drops.values().chain(counts.losses.values()).sum();
            let handed = |counts: &Counts| get(&counts.crossed, "handed-over");
            let frames = worker.timed_frames.saturating_sub(past.timed_frames);
            let time = worker.timed_nanoseconds.saturating_sub(past.timed_nanoseconds);
            let cells = [
                whole(self.shown(received(worker), received(past))),
                (worker.flows.proxied + worker.flows.direct).to_string(),
                worker.flows.half_open.to_string(),
                whole(self.shown(dropped(worker), dropped(past))),
                whole(self.shown(handed(worker), handed(past))),
                time.checked_div(frames).map_or("-".into(), |time| time.to_string()),
            ];
            lines.push(Line::from(format!("{number:<8}{}", cells.map(|cell| format!("{cell:>12}")).concat())));
        }
        lines
    }

    /// What was dropped or lost, most first, with its meaning.
    fn drops(&self, total: &Counts, past: &Counts) -> Vec<Line<'static>> {
        let pairs = [(&total.drops, &past.drops), (&total.losses, &past.losses)];
        let counted = pairs.into_iter().flat_map(|(now, past)| {
            now.iter().map(|(name, &count)| (name.clone(), self.shown(count, get(past, name)).unwrap_or_default()))
        });
        let mut counted: Vec<(String, f64)> = counted.filter(|(_, count)| *count > 0.0).collect();
        counted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut lines =
            vec![Line::from(format!("{:<24}{:>15}", "dropped", if self.totals { "" } else { "a second" })).bold()];
        if counted.is_empty() {
            let known = self.totals || self.period().is_some();
            lines.push(Line::from(if known { "nothing" } else { "-" }));
        }
        for (name, count) in counted {
            let meaning = meaning(&name);
            lines.push(Line::from(format!("{name:<24}{:>15}  {meaning}", whole(Some(count)))));
        }
        lines
    }

    /// Sources and targets side by side.
    fn talkers(&self, top: &Top, width: usize, height: usize) -> Vec<Line<'static>> {
        let column = width / 2;
        let sorted = |talkers: &[Talker]| {
            let mut talkers: Vec<Talker> = talkers.to_vec();
            talkers.sort_by_key(|talker| std::cmp::Reverse((self.sort.of(talker), talker.frames)));
            talkers
        };
        let head = |what: &str| row(column, what, ["frames/s", "SYNs/s", "Mbit/s"].map(str::to_owned));
        let cell = |talker: Option<&Talker>| {
            let Some(talker) = talker else { return " ".repeat(column) };
            let rate = |count: u64| (top.period > 0.0).then(|| count as f64 / top.period);
            let bits = rate(talker.bytes).map(|bytes| bytes * 8.0 / 1e6);
            row(column, &talker.name, [whole(rate(talker.frames)), whole(rate(talker.calls)), tenth(bits)])
        };
        let (sources, targets) = (sorted(&top.sources), sorted(&top.targets));
        let by = self.sort.name();
        let mut lines =
            vec![Line::from(format!("{}{}", head(&format!("WAN, by {by}")), head(&format!("LAN, by {by}")))).bold()];
        let rows = sources.len().max(targets.len());
        let rows = (0..rows).map(|n| Line::from(format!("{}{}", cell(sources.get(n)), cell(targets.get(n)))));
        lines.extend(rows.take(height.saturating_sub(1)));
        lines
    }
}

/// What a drop reason means; nothing for what was lost on the way.
fn meaning(name: &str) -> &'static str {
    let reason = DropReason::ALL.iter().find(|reason| reason.label() == name);
    reason.map_or("", |reason| reason.meaning().trim())
}

/// A talker's row, as wide as its column.
fn row(width: usize, name: &str, cells: [String; 3]) -> String {
    let cells = format!("{:>8}{:>8}{:>7}", cells[0], cells[1], cells[2]);
    let room = width.saturating_sub(cells.len() + 1);
    // The end of an address tells more than its beginning.
    let name = match name.chars().count() {
        long if long > room => format!("…{}", name.chars().skip(long + 1 - room.max(1)).collect::<String>()),
        _ => name.to_owned(),
    };
    format!("{name:<room$}{cells} ")
}

fn get(counts: &BTreeMap<String, u64>, key: &str) -> u64 {
    counts.get(key).copied().unwrap_or_default()
}

/// A number without its fraction, or that there is none yet; what is too long for a column, in thousands and so on.
fn whole(number: Option<f64>) -> String {
    match number {
        None => "-".into(),
        Some(number) if number >= 1e12 => format!("{:.1}T", number / 1e12),
        Some(number) if number >= 1e10 => format!("{:.1}G", number / 1e9),
        Some(number) if number >= 1e7 => format!("{:.1}M", number / 1e6),
        // What is rare is not nothing.
        Some(number) if number > 0.0 && number < 9.95 && number.fract() != 0.0 => format!("{number:.1}"),
        Some(number) => format!("{number:.0}"),
    }
}

fn tenth(number: Option<f64>) -> String {
    number.map_or("-".into(), |number| format!("{number:.1}"))
}
