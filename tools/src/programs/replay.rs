//! `replay`: what would the box have done? Reads captures, shows the frames to the engine, and writes what it would send out, each
//! frame with its verdict and reason.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::replay::{Fate, Network, Origin, Outcome, Replay, Skipped};
use clap::{Parser, ValueEnum};
use pktio::pcap::{Direction, Label, PcapFileError, PcapNgWriter, PcapReader, Record};
use tcpstate::{Config, PerSide, Side};

const AFTER_HELP: &str = "\
Which port a frame came in by:
  one FILE        its interface says so by its name, lan or wan (or out and in, as older captures have it; more names by --lan-interface
                  and --wan-interface), or its addresses do, with --lan
  two FILEs       the first was captured at the LAN port, the second at the WAN port
Frames that a capture marks as sent by the box are left out, so that what `synproxy -i`, `-l` and `-w` write can be replayed.

Cookies are made with secrets that come from the seed: the acknowledgement of a handshake that another box answered is a bad cookie
here. Frames that a capture has cut are replayed by their heads, as the first buffer of a frame in several.

Exit status:
  0  done
  1  a file cannot be read or written, or is damaged; what came before the damage has been replayed
  2  the command line is wrong
  3  the configuration is wrong";

/// Replays captures (pcap or pcapng, Ethernet) through the engine, and writes what the box would send out.
#[derive(Parser, Debug)]
#[command(version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// One capture of both ports, or one of the LAN port and one of the WAN port
    #[arg(value_name = "FILE", num_args = 1..=2, required = true)]
    files: Vec<PathBuf>,
    /// Writes the frames sent to FILE, as pcapng with the interfaces lan and wan, verdict and reason as each frame's comment
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Writes frames dropped and held too, as received
    #[arg(long, requires = "output")]
    all: bool,
    /// Hosts of NETWORK (as 10.0.0.0/8) are in the LAN; may be given several times
    #[arg(long, value_name = "NETWORK")]
    lan: Vec<Network>,
    /// An interface of this name is the LAN port
    #[arg(long, value_name = "NAME", conflicts_with = "lan")]
    lan_interface: Vec<String>,
    /// An interface of this name is the WAN port
    #[arg(long, value_name = "NAME", conflicts_with = "lan")]
    wan_interface: Vec<String>,
    /// Reads the configuration from FILE; without it every key has its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What the secrets are made of
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// How fast
    #[arg(long, value_name = "PACE", default_value = "fast")]
    pace: Pace,
    /// Lets the clock run on so long after the last frame
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    after: u64,
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pace {
    /// As it was captured
    Original,
    /// As fast as possible; times are the capture's all the same
    Fast,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match arguments.config.as_deref().map_or(Ok(Config::default()), load) {
        Ok(config) => config,
        Err(complaint) => {
            eprintln!("{complaint}");
            return ExitCode::from(3);
        }
    };
    match replay(&arguments, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("replay: {complaint}");
            ExitCode::FAILURE
        }
    }
}

/// The engine's part of a configuration.
fn load(path: &Path) -> Result<Config, String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    let parsed = confparse::parse(&text, &path.display().to_string()).map_err(|errors| errors.to_string())?;
    Ok(parsed.config.engine)
}

/// A capture, read frame by frame.
struct Source {
    reader: PcapReader,
    origin: Origin,
    next: Record,
    /// By which port the next frame came in; `None` at the end.
    side: Option<Side>,
    outbound: u64,
    unknown: u64,
    /// Why it ended before its end.
    damage: Option<PcapFileError>,
}

impl Source {
    fn open(path: &Path, origin: Origin) -> Result<Source, PcapFileError> {
        let reader = PcapReader::open(path)?;
        let mut source =
            Source { reader, origin, next: Record::default(), side: None, outbound: 0, unknown: 0, damage: None };
        source.advance();
        Ok(source)
    }

    /// Reads on to the next frame that came in by one of the ports.
    fn advance(&mut self) {
        self.side = None;
        loop {
            match self.reader.read(&mut self.next) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.damage = Some(error);
                    return;
                }
            }
            match self.origin.side(&self.next, self.reader.interface_name(self.next.interface)) {
                Ok(side) => {
                    self.side = Some(side);
                    return;
                }
                Err(Skipped::Outbound) => self.outbound += 1,
                Err(Skipped::Unknown) => self.unknown += 1,
            }
        }
    }
}

/// Where outcomes go.
struct Sink {
    writer: Option<PcapNgWriter<BufWriter<File>>>,
    all: bool,
    error: Option<io::Error>,
}

impl Sink {
    fn take(&mut self, outcome: &Outcome) {
        let Some(writer) = &mut self.writer else { return };
        let direction = match outcome.fate {
            Fate::Sent => Direction::Outbound,
            Fate::Held | Fate::Dropped if self.all => Direction::Inbound,
            Fate::Held | Fate::Dropped => return,
        };
        let label = Label {
            interface: outcome.side as u32,
            time: outcome.time,
            direction: Some(direction),
            queue: None,
            comment: outcome.comment,
        };
        if let Err(error) = writer.write(&label, [outcome.bytes], outcome.original_len) {
            self.error.get_or_insert(error);
            self.writer = None;
        }
    }

    fn flush(&mut self) {
        if let Some(Err(error)) = self.writer.as_mut().map(PcapNgWriter::flush) {
            self.error.get_or_insert(error);
            self.writer = None;
        }
    }
}

fn replay(arguments: &Arguments, config: &Config) -> Result<(), String> {
    let mut sources = open(arguments).map_err(|error| error.to_string())?;
    let name = |path: &PathBuf| path.display().to_string();
    let writer = arguments.output.as_ref().map(|path| {
        let create = File::create(path).map(BufWriter::new);
        create
            .and_then(|file| PcapNgWriter::new(file, &["lan".into(), "wan".into()]))
            .map_err(|error| format!("{}: {error}", name(path)))
    });
    let mut sink = Sink { writer: writer.transpose()?, all: arguments.all, error: None };
    let mut replay = Replay::new(config, arguments.seed);
    let (begin, mut first) = (Instant::now(), None);
    // Of two captures the earlier frame goes first.
    while let Some(source) =
        sources.iter_mut().filter(|source| source.side.is_some()).min_by_key(|source| source.next.time)
        && let Some(side) = source.side
    {
        if arguments.pace == Pace::Original {
            sink.flush();
            let since = source.next.time.saturating_sub(*first.get_or_insert(source.next.time));
            thread::sleep(since.saturating_sub(begin.elapsed()));
        }
        replay.frame(side, &source.next, &mut |outcome| sink.take(outcome));
        source.advance();
    }
    replay.wait(Duration::from_secs(arguments.after), &mut |outcome| sink.take(outcome));
    sink.flush();

    print!("{}", replay.summary());
    let mut complaints = Vec::new();
    for (source, path) in sources.iter_mut().zip(&arguments.files) {
        let path = name(path);
        let left_out = [
            (source.outbound, "had been sent by the box"),
            (source.unknown, "do not tell which port they came in by; see --help"),
            (source.reader.skipped(), "were captured on a link that is no Ethernet"),
        ];
        for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
            println!("{path}: {count} frames left out, which {why}");
        }
        complaints.extend(source.damage.take().map(|damage| damage.to_string()));
    }
    if let (Some(error), Some(path)) = (sink.error, &arguments.output) {
        complaints.push(format!("{}: {error}", name(path)));
    }
    if complaints.is_empty() { Ok(()) } else { Err(complaints.join("\nreplay: ")) }
}

fn open(arguments: &Arguments) -> Result<Vec<Source>, PcapFileError> {
    let names = |known: [&str; 2], more: &[String]| known.map(str::to_owned).iter().chain(more).cloned().collect();
    let whole = if !arguments.lan.is_empty() {
        Origin::Networks(arguments.lan.clone())
    } else {
        Origin::Interfaces(PerSide::new(
            names(["lan", "out"], &arguments.lan_interface),
            names(["wan", "in"], &arguments.wan_interface),
        ))
    };
    let origins = match arguments.files.len() {
        1 => vec![whole],
        _ => Side::BOTH.map(Origin::Port).to_vec(),
    };
    arguments.files.iter().zip(origins).map(|(path, origin)| Source::open(path, origin)).collect()
}
