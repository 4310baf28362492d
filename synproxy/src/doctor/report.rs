//! What was found, for people and for programs: the summary, the speed, and the findings, the gravest first.

use super::speed::{Class, Mode, expected};
use super::{Finding, Level, Scene};
use serde::Serialize;
use std::fmt;

/// Everything that is reported.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// In one line: whether a box works, how, and how many findings there are.
    pub summary: String,
    /// The modes of both ports and what one worker reaches; `None` unless both interfaces exist.
    pub speed: Option<Speed>,
    /// How many errors there are.
    pub errors: usize,
    /// How many warnings.
    pub warnings: usize,
    /// How many notes.
    pub notes: usize,
    /// The findings, in the order of the table.
    pub findings: Vec<Finding>,
}

/// The modes of both ports, LAN first, and what each of the workers reaches.
#[derive(Debug, Serialize)]
pub(super) struct Speed {
    pub modes: [Mode; 2],
    pub workers: usize,
    #[serde(flatten)]
    pub class: Class,
}

impl Report {
    pub(super) fn of(scene: &Scene) -> Report {
        let findings = scene.examine();
        let count = |level| findings.iter().filter(|finding| finding.level == level).count();
        let (errors, warnings, notes) = (count(Level::Error), count(Level::Warning), count(Level::Note));
        let speed = expected(scene).map(|(modes, class)| Speed { modes, workers: scene.workers, class: *class });
        let state = match (errors, scene.running_box(), &speed) {
            (0, Some((process, _)), _) => format!("a box runs here, process {process}"),
            (0, None, Some(speed)) => {
                let workers =
                    if speed.workers == 1 { "1 worker".to_owned() } else { format!("{} workers", speed.workers) };
                format!("a box works here, by {}, with {workers}", speed.class.mode.name())
            }
            _ => "a box cannot start here".to_owned(),
        };
        let counted = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let [lan, wan] = &scene.names;
        let summary = format!(
            "{lan} and {wan}: {state}; {}, {}, {}",
            counted(errors, "error"),
            counted(warnings, "warning"),
            counted(notes, "note")
        );
        Report { summary, speed, errors, warnings, notes, findings }
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.summary)?;
        if let Some(Speed { class: Class { syns, segments, bulk, basis, .. }, .. }) = &self.speed {
            writeln!(
                f,
                "a worker: {syns} million SYNs answered a second, {segments} million small segments, {bulk} Gbit/s of full frames"
            )?;
            writeln!(f, "          ({basis})")?;
        }
        for level in [Level::Error, Level::Warning, Level::Note] {
            for finding in self.findings.iter().filter(|finding| finding.level == level) {
                writeln!(f, "\n{}: {}  [{}]", level.name(), finding.finding, finding.id)?;
                writeln!(f, "    {}", finding.why)?;
                if let Some(command) = &finding.command {
                    writeln!(f, "    $ {command}")?;
                }
            }
        }
        let fine = self.findings.iter().filter(|finding| finding.level == Level::Ok);
        for (at, finding) in fine.enumerate() {
            let gap = if at == 0 { "\n" } else { "" };
            writeln!(f, "{gap}ok: {}  [{}]", finding.finding, finding.id)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stage;
    use super::*;

    #[test]
    fn the_first_line_says_whether_a_box_works() {
        let mut stage = Stage::new("summary");
        let report = Report::of(&stage.scene);
        assert_eq!(
            report.summary,
            "lan0 and wan0: a box works here, by AF_XDP, driver mode, zero copy, with 2 workers; 0 errors, 0 warnings, 0 notes"
        );
        assert!(
            report.to_string().lines().nth(1).unwrap().starts_with("a worker: 4 to 8 million SYNs answered a second, ")
        );
        stage.port(0).is_up = false;
        stage.port(1).has_pause = true;
        let report = Report::of(&stage.scene);
        assert_eq!(report.summary, "lan0 and wan0: a box cannot start here; 1 error, 0 warnings, 1 note");
        let text = report.to_string();
        let [down, pause, fine] =
            ["\nerror: lan0 is down  [up]\n", "    $ ethtool -A wan0 ", "\nok: "].map(|it| text.find(it).unwrap());
        assert!(down < pause && pause < fine, "{text}");
    }

    #[test]
    fn a_program_reads_the_same() {
        let mut stage = Stage::new("json");
        stage.port(0).is_up = false;
        let json: serde_json::Value = serde_json::from_str(&Report::of(&stage.scene).json()).unwrap();
        assert_eq!(
            (&json["errors"], &json["speed"]["mode"], &json["speed"]["workers"]),
            (&1.into(), &"zero-copy".into(), &2.into())
        );
        let finding = json["findings"].as_array().unwrap().iter().find(|it| it["id"] == "up").unwrap();
        assert_eq!(finding["level"], "error");
        assert_eq!(finding["port"], "lan0");
        assert_eq!(finding["command"], "ip link set dev lan0 up");
        assert!(finding["finding"].is_string() && finding["why"].is_string());
    }

    #[test]
    fn without_an_interface_there_is_no_speed() {
        let mut stage = Stage::new("none");
        stage.scene.ports = [None, None];
        let report = Report::of(&stage.scene);
        assert!(report.speed.is_none() && report.errors == 2, "{report}");
        assert!(report.summary.contains("a box cannot start here"), "{report}");
    }
}
