//! `replay`: runs captures through the engine and writes what the box would have sent, each frame with verdict and reason.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use crate::network::Network;
use crate::replay::{Fate, Origin, Outcome, Replay, Skipped};
use clap::{Parser, ValueEnum};
use pktio::pcap::{Direction, Label, PcapFileError, PcapNgWriter, PcapReader, Record};
use tcpstate::{Config, PerSide, Side};

const AFTER_HELP: &str = "\
How the receiving port of a frame is found:
  one FILE   by the name of its capture interface: lan or wan (in older captures out or in), or a name given by --lan-interface or
             --wan-interface; with --lan by its addresses
  two FILEs  the first was captured at the LAN port, the second at the WAN port
Frames marked as sent by the box are left out, so the files written by `synproxy -i`, `-l` and `-w` can be replayed.

SYN cookies are signed with secrets derived from the seed, so a handshake answered by a real box ends in a bad cookie here. Truncated
frames are replayed as the first buffer of a longer frame.

Exit status:
  0  success
  1  a file cannot be read or written, or is damaged; everything before the damage was replayed
  2  the command line is wrong
  3  the configuration is wrong";

/// Replays captures (pcap or pcapng, Ethernet) through the proxy engine and writes the frames it would send
#[derive(Parser, Debug)]
#[command(name = "replay", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// One capture of both ports, or one of the LAN port and one of the WAN port
    #[arg(value_name = "FILE", num_args = 1..=2, required = true)]
    files: Vec<PathBuf>,
    /// Writes the frames sent to FILE, a pcapng file with interfaces lan and wan; each frame's comment is its verdict and reason
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also writes dropped and held frames, as received
    #[arg(long, requires = "output")]
    all: bool,
    /// Addresses in NETWORK (such as 10.0.0.0/8) are on the LAN; can be repeated
    #[arg(long, value_name = "NETWORK")]
    lan: Vec<Network>,
    /// The capture interface of this name is the LAN port; can be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "lan")]
    lan_interface: Vec<String>,
    /// The capture interface of this name is the WAN port; can be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "lan")]
    wan_interface: Vec<String>,
    /// Reads the configuration from FILE; without it all keys have their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The seed of the secrets
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The speed
    #[arg(long, value_name = "PACE", default_value = "fast")]
    pace: Pace,
    /// Runs the clock for SECONDS after the last frame
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=86_400))]
    after: u64,
}

/// The speed of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pace {
    /// As captured
    Original,
    /// As fast as possible; the engine's clock is still that of the capture
    Fast,
}

/// Parses the command line and runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match arguments.config.as_deref().map_or(Ok(Config::default()), load) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(3);
        }
    };
    match replay(&arguments, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Loads the engine's part of a configuration file.
fn load(path: &Path) -> Result<Config, String> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&text);
    let parsed = confparse::parse(&text, &path.display().to_string()).map_err(|errors| errors.to_string())?;
    Ok(parsed.config.engine)
}

/// A capture file, read frame by frame.
struct Source {
    reader: PcapReader,
    origin: Origin,
    next: Record,
    /// The receiving port of the next frame; `None` at the end.
    side: Option<Side>,
    outbound: u64,
    unknown: u64,
    /// The error that ended it early.
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

    /// Reads up to the next frame with a receiving port.
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

/// Writes outcomes to the output file.
struct Sink {
    writer: Option<PcapNgWriter<BufWriter<File>>>,
    all: bool,
    error: Option<io::Error>,
}

impl Sink {
    fn write(&mut self, outcome: &Outcome) {
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
    // With two captures, the earlier frame goes first.
    while let Some(source) =
        sources.iter_mut().filter(|source| source.side.is_some()).min_by_key(|source| source.next.time)
        && let Some(side) = source.side
    {
        if arguments.pace == Pace::Original {
            sink.flush();
            let since = source.next.time.saturating_sub(*first.get_or_insert(source.next.time));
            thread::sleep(since.saturating_sub(begin.elapsed()));
        }
        replay.frame(side, &source.next, &mut |outcome| sink.write(outcome));
        source.advance();
    }
    replay.wait(Duration::from_secs(arguments.after), &mut |outcome| sink.write(outcome));
    sink.flush();

    print!("{}", replay.summary());
    let mut errors = Vec::new();
    for (source, path) in sources.iter_mut().zip(&arguments.files) {
        let path = name(path);
        let left_out = [
            (source.outbound, "were sent by the box"),
            (source.unknown, "do not tell which port they came in by; see --help"),
            (source.reader.skipped(), "were captured on a link other than Ethernet"),
        ];
        for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
            println!("{path}: {count} frames left out, which {why}");
        }
        errors.extend(source.damage.take().map(|damage| damage.to_string()));
    }
    if let (Some(error), Some(path)) = (sink.error, &arguments.output) {
        errors.push(format!("{}: {error}", name(path)));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors.join("\nreplay: ")) }
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
