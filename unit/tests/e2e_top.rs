//! What the operator sees of a box at work: the connections there are, who talks most, and what would become of a frame.

use std::path::PathBuf;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use unit::netns::{self, Appliance, Backend, Rig, program, traffic};
use unit::script::{self, Ends};

/// A box with a control socket.
struct Watched {
    rig: Rig,
    _proxy: Appliance,
    socket: PathBuf,
}

impl Watched {
    fn new(name: &str) -> Watched {
        let rig = Rig::new();
        let socket = std::env::temp_dir().join(format!("spx{}-{name}.sock", process::id()));
        let control = format!("--control={}", socket.display());
        let proxy = Appliance::start_with(&rig, Backend::Driver, netns::CACHE_ON, &[&control]);
        Watched { rig, _proxy: proxy, socket }
    }

    /// What `synctl` prints to these arguments.
    fn says(&self, arguments: &[&str]) -> String {
        let mut command = process::Command::new(program("synctl"));
        let output = command.arg("--socket").arg(&self.socket).args(arguments).output().expect("synctl runs");
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
        // Until the server has answered it is being called.
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
        assert_eq!(cells[..4], [ours.as_str(), &server.address.to_string(), "established", "wan"], "{listed}");
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
    let ends = Ends {
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
    assert!(screen.contains(" proxied, ") && screen.contains("WAN, by frames"), "{screen}");
}
