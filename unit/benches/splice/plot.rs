//! Plots as SVG: panels side by side, an arm in each line of a panel.

use std::fmt::Write;

/// A panel: its name, and for each arm its name and its values, the first of which is drawn larger.
pub struct Panel {
    pub name: String,
    pub lines: Vec<(&'static str, Vec<f64>)>,
}

/// The size of things, in pixels.
const WIDTH: f64 = 400.0;
const LINE: f64 = 17.0;
const HEAD: f64 = 26.0;
const FOOT: f64 = 26.0;
const NAMES: f64 = 130.0;
const GAP: f64 = 16.0;
const COLUMNS: usize = 3;

/// Draws panels with an axis each, logarithmic if there are several values a line, from zero otherwise.
pub fn panels(title: &str, unit: &str, panels: &[Panel]) -> String {
    let lines = panels.iter().map(|panel| panel.lines.len()).max().unwrap_or(0);
    let height = HEAD + LINE * lines as f64 + FOOT;
    let rows = panels.len().div_ceil(COLUMNS);
    let (all_width, all_height) = (COLUMNS as f64 * (WIDTH + GAP) + GAP, HEAD + GAP + rows as f64 * (height + GAP));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_width:.0} {all_height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{GAP}\" y=\"{HEAD}\" font-size=\"15\">{title}, {unit}</text>\n"
    );
    for (at, panel) in panels.iter().enumerate() {
        let left = GAP + (at % COLUMNS) as f64 * (WIDTH + GAP);
        let top = HEAD + GAP + (at / COLUMNS) as f64 * (height + GAP);
        draw(&mut text, panel, left, top);
    }
    text += "</svg>\n";
    text
}

fn draw(text: &mut String, panel: &Panel, left: f64, top: f64) {
    let values = || panel.lines.iter().flat_map(|(_, values)| values).copied().filter(|value| *value > 0.0);
    let most = values().fold(0.0, f64::max);
    let least = values().fold(most, f64::min);
    if most <= 0.0 {
        return;
    }
    let is_log = panel.lines.iter().any(|(_, values)| values.len() > 1);
    let (from, to) = match is_log {
        true => (least.log10().floor(), most.log10().ceil().max(least.log10().floor() + 1.0)),
        false => (0.0, most * 1.08),
    };
    let span = WIDTH - NAMES;
    let place = |value: f64| {
        let at = if is_log { value.max(least).log10() } else { value };
        left + NAMES + (at - from) / (to - from) * span
    };
    let bottom = top + HEAD + LINE * panel.lines.len() as f64;
    let mut put = |part: String| writeln!(text, "{part}").expect("a string takes everything");
    put(format!("<text x=\"{left:.0}\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", top + 14.0, panel.name));
    let ticks: Vec<f64> = match is_log {
        true => (from as i32..=to as i32).map(|power| 10f64.powi(power)).collect(),
        false => (0..=4).map(|part| most * f64::from(part) / 4.0).collect(),
    };
    for tick in ticks {
        let x = if is_log { left + NAMES + (tick.log10() - from) / (to - from) * span } else { place(tick) };
        put(format!("<path d=\"M{x:.1} {:.1}V{bottom:.1}\" stroke=\"#ddd\"/>", top + HEAD - 4.0));
        put(format!(
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{}</text>",
            bottom + 14.0,
            short(tick)
        ));
    }
    for (line, (name, values)) in panel.lines.iter().enumerate() {
        let y = top + HEAD + LINE * (line as f64 + 0.5);
        let colour = match *name {
            "no relay" => "#888",
            name if name.starts_with("ours") => "#06c",
            _ => "#c60",
        };
        put(format!("<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", left + NAMES - 6.0, y + 4.0));
        let (Some(first), Some(last)) = (values.first(), values.last()) else { continue };
        if is_log {
            put(format!("<path d=\"M{:.1} {y:.1}H{:.1}\" stroke=\"{colour}\"/>", place(*first), place(*last)));
            for (at, value) in values.iter().enumerate() {
                let radius = if at == 0 { 4.5 } else { 2.5 };
                put(format!("<circle cx=\"{:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{colour}\"/>", place(*value)));
            }
        } else {
            let x = left + NAMES;
            put(format!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"11\" fill=\"{colour}\"/>",
                y - 5.5,
                place(*first) - x
            ));
        }
    }
}

/// A number in little room.
fn short(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        1e6.. => format!("{:.0}M", value / 1e6),
        1e3.. => format!("{:.0}k", value / 1e3),
        10.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
