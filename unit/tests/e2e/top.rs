//! What the operator sees of a box at work: the connections there are, who talks most, and what would become of a frame.

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::terminal::Terminal;
use harness::{leftovers, note, test};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use tools::watch;
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};
use unit::script::{self, FlowKey};

/// A box with a control socket.
struct Watched {
    rig: Rig,
    proxy: Option<Appliance>,
    socket: PathBuf,
}

impl Watched {
    fn new(name: &str) -> Watched {
        Watched::with(name, Backend::Driver, netns::CACHE_ON)
    }

    fn with(name: &str, backend: Backend, config: &str) -> Watched {
        let rig = Rig::new();
        let socket = leftovers::file(&format!("{name}.sock"));
        let control = format!("--control={}", socket.display());
        let proxy = Appliance::start_with(&rig, backend, config, &[&control]);
        Watched { rig, proxy: Some(proxy), socket }
    }

    /// `synctl` with these arguments.
    fn asks(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("synctl"));
        command.arg("--socket").arg(&self.socket).args(arguments);
        command
    }

    /// `synctl top` on a terminal of 80 columns and 24 rows.
    fn top(&self) -> Terminal {
        let mut terminal = Terminal::start(&self.asks(&["top"]), (80, 24));
        terminal.shows("the second screen", |lines| lines.iter().any(|line| line == "nothing"));
        assert!(terminal.is_taken());
        terminal
    }

    /// What `synctl` prints to these arguments.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.asks(arguments).output().expect("synctl runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "synctl {arguments:?}: {}: {err}", output.status);
        out.into_owned()
    }

    /// The count under this name in `stats --json`, over all workers.
    fn count(&self, name: &str) -> u64 {
        let stats = self.says(&["stats", "--json"]);
        let total = &stats[stats.find("\"total\"").expect("a total")..];
        let at = total.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("no {name} in {stats}"));
        let digits: String = total[at + name.len() + 3..].chars().take_while(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The proxy removes it; one that was killed does not.
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn a_connection_is_listed_and_told_apart_from_others() {
    let it = Watched::new("flows");
    for (ip, client) in [(netns::SERVER_V4, "10.77.0.0/24"), (netns::SERVER_V6, "fd77::/64")] {
        let server = it.rig.server.serve(ip, 0, traffic::exchanged);
        let port = server.address.port().to_string();
        let stream = it.rig.client.connect(server.address).expect("a connection through the box");
        let ours = stream.local_addr().expect("an address");
        let (ours, wan_port) = (ours.to_string(), ours.port().to_string());
        // Until the server has answered it is not there yet.
        let deadline = Instant::now() + Duration::from_secs(5);
        let listed = loop {
            let listed = it.says(&["flows", "--wan", client, "--lan-port", &port, "--state", "established"]);
            if !listed.is_empty() || Instant::now() > deadline {
                break listed;
            }
            thread::sleep(Duration::from_millis(20));
        };
        let lines: Vec<&str> = listed.lines().collect();
        assert_eq!(lines.len(), 2, "{listed}");
        assert!(lines[0].starts_with("WAN "), "{listed}");
        let cells: Vec<&str> = lines[1].split_whitespace().collect();
        // The client's answer to the window may still be under way, and whether it knows the window only a later segment tells.
        assert!(["ack-withheld", "window-pending", "established"].contains(&cells[2]), "{listed}");
        assert_eq!([cells[0], cells[1], cells[3]], [ours.as_str(), &server.address.to_string(), "wan"], "{listed}");
        let json = it.says(&["flows", "--wan", client, "--json"]);
        assert!(json.contains(&format!("\"wan\":\"{ours}\"")) && json.contains("\"proxied\":true"), "{json}");
        for other in [["--lan-port", "1"], ["--wan", "192.0.2.0/24"], ["--state", "reset"]] {
            assert_eq!(it.says(&["flows", "--wan-port", &wan_port, other[0], other[1]]), "", "{other:?}");
        }
        drop(stream);
    }
}

#[test]
fn a_frame_is_explained_and_nothing_is_changed_by_asking() {
    let it = Watched::new("explain");
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let ends = FlowKey {
        src: netns::CLIENT_V4,
        dst: netns::SERVER_V4,
        sport: 40_000,
        dport: server.address.port(),
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        ttl: 64,
    };
    let hex = |seg: &script::Seg| -> String {
        script::build(&ends, 0, seg).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let before = ["syn-answered", "cookie-good", "bad-cookie", "received"].map(|name| it.count(name));
    let said = it.says(&["explain", &hex(&script::syn(1000).mss(1460).sack_ok())]);
    assert!(said.contains("verdict: reflect: "), "{said}");
    assert!(said.contains("limit of the source's network: granted"), "{said}");
    assert!(said.lines().any(|line| line.starts_with("flags ") && line.ends_with("SYN ACK")), "{said}");
    let json = it.says(&["explain", "--json", "--side", "lan", "ff"]);
    assert!(json.contains("\"reason\":\"malformed\""), "{json}");
    let after = ["syn-answered", "cookie-good", "bad-cookie"].map(|name| it.count(name));
    assert_eq!(before[..3], after);
    // What was explained then happens.
    let stream = it.rig.client.connect(server.address).expect("a connection through the box");
    drop(stream);
}

#[test]
fn who_talks_most_is_told() {
    let it = Watched::new("top");
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let begin = Instant::now();
    let top = loop {
        let stream = it.rig.client.connect(server.address).expect("a connection through the box");
        traffic::exchange(&stream, 1 << 20, 1 << 20).expect("bytes through the box");
        let top = it.says(&["top", "--json"]);
        let told = top.contains(&format!("\"name\":\"{}\"", netns::CLIENT_V4))
            && top.contains(&format!("\"name\":\"{}\"", server.address));
        if told || begin.elapsed() > Duration::from_secs(8) {
            break top;
        }
        thread::sleep(Duration::from_millis(100));
    };
    assert!(top.contains(&format!("\"name\":\"{}\"", netns::CLIENT_V4)), "{top}");
    assert!(top.contains(&format!("\"name\":\"{}\"", server.address)), "{top}");
    let screen = it.says(&["top", "--once"]);
    assert!(screen.contains("half-open  frames held") && screen.contains("WAN, by frames"), "{screen}");
}

#[test(light)]
fn connections_that_the_kernel_forwards_are_among_those_who_talk_most() {
    let it = Watched::with("below", Backend::Packet, &format!("fast_path = tc; {}", netns::CACHE_ON));
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let stream = it.rig.client.connect(server.address).expect("a connection through the box");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for seed in 0.. {
                traffic::send(&stream, seed, 4000).expect("sending");
                traffic::receive(&stream, seed, Some(4000)).expect("the same bytes come back");
                if over.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        // The worker has seen the beginning; of what the next windows show it has seen nothing.
        let begin = Instant::now();
        let told = loop {
            thread::sleep(Duration::from_millis(500));
            let top = it.says(&["top", "--json"]);
            let names = [netns::CLIENT_V4.to_string(), server.address.to_string()];
            let are_told = names.iter().all(|name| top.contains(&format!("\"name\":\"{name}\"")));
            if begin.elapsed() > Duration::from_secs(5) && are_told || begin.elapsed() > Duration::from_secs(20) {
                break are_told.then_some(top).ok_or("not told");
            }
        };
        over.store(true, Ordering::Relaxed);
        let top = told.expect("who talks by the kernel");
        note!("{top}");
        let (forwarded, seen) = (it.count("kernel-forwarded"), it.count("received"));
        assert!(forwarded > 10 * seen, "{forwarded} forwarded by the kernel, {seen} by the worker");
    });
}

/// Keys and signals that end it.
#[derive(Clone, Copy, Debug)]
enum End {
    Key(&'static [u8]),
    Signal(Signal),
}

#[test(long)]
fn whatever_ends_the_screen_gives_the_terminal_back() {
    const INTERRUPT: u8 = 3;
    const ESCAPE: u8 = 27;
    let mut it = Watched::new("terminal");
    for end in [
        End::Key(b"q"),
        End::Key(&[INTERRUPT]),
        End::Key(&[ESCAPE]),
        End::Signal(Signal::SIGINT),
        End::Signal(Signal::SIGTERM),
        End::Signal(Signal::SIGHUP),
    ] {
        let mut terminal = it.top();
        match end {
            End::Key(keys) => terminal.press(keys),
            End::Signal(signal) => signal::kill(Pid::from_raw(terminal.pid() as i32), signal).expect("it runs"),
        }
        let status = terminal.ends();
        assert!(status.success(), "{end:?}: {status}");
        terminal.is_given_back();
    }
    // The window is closed: there is nothing left to give back, and nobody to run for.
    let mut terminal = it.top();
    terminal.cut();
    let _ = terminal.ends();

    // One that does not answer keeps nobody at the screen.
    let mut terminal = it.top();
    let proxy = it.proxy.take().expect("it runs");
    proxy.signal(Signal::SIGSTOP);
    terminal.shows("that no answer comes", |lines| lines[0].contains("NO ANSWER FOR"));
    terminal.press(b"q");
    let status = terminal.ends();
    proxy.signal(Signal::SIGCONT);
    assert!(status.success(), "{status}");
    terminal.is_given_back();

    let mut terminal = it.top();
    drop(proxy);
    let status = terminal.ends();
    assert_eq!(status.code(), Some(4));
    terminal.is_given_back();
    let said = terminal.lines().join("\n");
    assert!(said.contains("synctl: the box does not answer"), "{said}");
}

/// In whose environment this is, is the program on the terminal.
const DRAWS: &str = "E2E_TOP_DRAWS";

#[test]
fn a_panic_while_drawing_gives_the_terminal_back() {
    if env::var_os(DRAWS).is_some() {
        let drawn = watch::on_screen(|terminal| {
            terminal.draw(|frame| frame.render_widget("drawn", frame.area())).expect("a terminal");
            // Until the other side has seen it, and says so by a key.
            io::stdin().read_exact(&mut [0]).expect("a key");
            terminal.draw(|_| panic!("while drawing")).map(drop)
        });
        unreachable!("{drawn:?}");
    }
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args(["--exact", "top::a_panic_while_drawing_gives_the_terminal_back", "--nocapture"]).env(DRAWS, "yes");
    // Or it asks cargo for the programs, which another may keep waiting.
    command.env("SYNPROXY_BIN_DIR", program("synproxy").parent().expect("a program lies in a directory"));
    // Whatever it is told here: a backtrace is longer than the screen.
    command.env("RUST_BACKTRACE", "0");
    let mut terminal = Terminal::start(&command, (80, 24));
    terminal.shows("what is drawn", |lines| lines[0] == "drawn");
    assert!(terminal.is_taken());
    terminal.press(b"g");
    assert!(!terminal.ends().success());
    terminal.is_given_back();
    let said = terminal.lines().join("\n");
    assert!(said.contains("while drawing"), "{said}");
}

#[test]
fn the_screen_is_readable_in_a_small_window_and_follows_its_size() {
    let it = Watched::new("screen");
    let server = it.rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
    let mut terminal = Terminal::start(&it.asks(&["top"]), (80, 24));
    let target = server.address.to_string();
    let deadline = Instant::now() + Duration::from_secs(8);
    while !terminal.lines().iter().any(|line| line.contains(&target)) && Instant::now() < deadline {
        let stream = it.rig.client.connect(server.address).expect("a connection through the box");
        traffic::exchange(&stream, 1 << 20, 1 << 20).expect("bytes through the box");
        terminal.shows("a screen", |lines| lines[0].contains("q quit"));
    }
    let source = netns::CLIENT_V4.to_string();
    terminal.shows("who talks", |lines| lines.iter().any(|line| line.starts_with(&source) && line.contains(&target)));
    let lines = terminal.lines();
    assert!(lines[0].ends_with("freeze") && lines[1].ends_with("Mbit/s out"), "{lines:#?}");
    if env::var_os("SHOW").is_some() {
        note!("{}", lines.join("\n"));
    }
    terminal.resize((120, 40));
    terminal.shows("a wider title", |lines| lines[0].chars().count() == 120 && lines[0].ends_with("freeze"));
    terminal.resize((40, 10));
    terminal.shows("a narrower title", |lines| lines.len() == 10 && lines[0].starts_with("up "));
    terminal.resize((80, 24));
    // What reads the keys loses one that is pressed in the very moment in which the window changes.
    terminal.shows("the first title", |lines| lines[0].chars().count() == 80 && lines[0].ends_with("freeze"));
    terminal.press(b"tps");
    terminal.shows("that it is frozen", |lines| {
        lines[0].contains("since the start, FROZEN") && lines.iter().any(|line| line.starts_with("WAN, by SYNs"))
    });
    terminal.press(b"q");
    assert!(terminal.ends().success());
    terminal.is_given_back();
}
