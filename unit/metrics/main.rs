//! The metrics with a real Prometheus, which scrapes a box under a flood: the format is clean, every expression of the dashboard has a value, the
//! panel of the attack moves, and the alerts do what they are for; and the page with a real browser. Run by `make test-metrics` and `make test-page`,
//! which fetch Prometheus and Chromium; no part of a plain `cargo test`. `PROMETHEUS` names the directory of the one's programs, `CHROMEDRIVER`
//! the driver of the other.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::{ignore, leftovers, note, test};
use serde_json::{Value, json};
use unit::netns::{self, Appliance, Backend, Rig, program, traffic};

/// Where the box serves its metrics and Prometheus its interface, both inside the box's own namespace.
const METRICS: &str = "127.0.0.1:9117";
const INTERFACE: &str = "127.0.0.1:9090";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// SYNs a second of the flood.
const FLOOD: u32 = 20_000;

/// One of Prometheus' programs.
fn prometheus(name: &str) -> PathBuf {
    let Some(directory) = std::env::var_os("PROMETHEUS") else {
        ignore("PROMETHEUS names no directory with its programs")
    };
    PathBuf::from(directory).join(name)
}

/// What lies in `packaging/`.
fn packaging(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(path)
}

/// The body of a page served there.
fn get(address: &str, path: &str) -> String {
    ask(address, "GET", path, "")
}

/// The body of the answer to a request.
fn ask(address: &str, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connecting to the page");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {len}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("asking");
    let mut answer = Vec::new();
    let (mut piece, mut whole) = ([0; 65536], usize::MAX);
    // Not everybody closes the connection behind an answer.
    while answer.len() < whole {
        let read = stream.read(&mut piece).expect("reading the answer");
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
        if whole == usize::MAX
            && let Some(at) = answer.windows(4).position(|end| end == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&answer[..at]).to_ascii_lowercase();
            let length =
                head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            whole = length.map_or(usize::MAX - 1, |length| at + 4 + length);
        }
    }
    let answer = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a header");
    assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}\n{body}");
    // Prometheus may send its answers in chunks.
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut whole, mut rest) = (String::new(), body);
    while let Some((size, behind)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("the size of a chunk");
        if size == 0 {
            break;
        }
        whole.push_str(&behind[..size]);
        rest = behind[size..].trim_start_matches("\r\n");
    }
    whole
}

/// A program that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A session of a browser, driven by the WebDriver protocol.
struct Browser<'a> {
    rig: &'a Rig,
    session: String,
    _driver: Running,
}

/// Where the browser's driver listens, in the box's namespace.
const DRIVER: &str = "127.0.0.1:9515";

impl<'a> Browser<'a> {
    /// A new one in the namespace of `rig`'s middle. To be used there too.
    fn start(rig: &'a Rig, driver: &Path) -> Self {
        let port = DRIVER.rsplit(':').next().expect("a port");
        let mut command = rig.middle.command(driver);
        command.arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = Running(command.spawn().expect("starting the driver"));
        rig.middle.run(|| until("the driver listens", || TcpStream::connect(DRIVER).is_ok()));
        let wanted = r#"{"capabilities":{"alwaysMatch":{"goog:chromeOptions":{"args":
            ["--headless=new","--no-sandbox","--disable-gpu","--disable-dev-shm-usage","--window-size=1280,1400"]}}}}"#;
        let answer = rig.middle.run(|| ask(DRIVER, "POST", "/session", wanted));
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let session =
            answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}")).to_owned();
        Self { rig, session, _driver: driver }
    }

    /// Sends a command of the session.
    fn command(&self, method: &str, command: &str, body: &str) -> Value {
        let answer = ask(DRIVER, method, &format!("/session/{}{command}", self.session), body);
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer["value"].get("error").is_none(), "{command}: {answer}");
        answer["value"].clone()
    }

    /// What this expression of JavaScript is worth on the page.
    fn value(&self, expression: &str) -> Value {
        let script = serde_json::json!({ "script": format!("return {expression}"), "args": [] });
        self.command("POST", "/execute/sync", &script.to_string())
    }

    /// Sends a command of the browser's own protocol.
    fn emulate(&self, what: &str, how: Value) -> Value {
        let body = json!({ "cmd": what, "params": how });
        self.command("POST", "/goog/cdp/execute", &body.to_string())
    }

    /// A picture of the whole page, written to this file.
    fn picture(&self, file: &Path) {
        let picture = self.emulate("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        let bytes = base64(picture["data"].as_str().expect("a picture"));
        assert!(bytes.starts_with(b"\x89PNG") && bytes.len() > 10_000, "{} bytes of picture", bytes.len());
        fs::write(file, bytes).expect("writing the picture");
    }
}

impl Drop for Browser<'_> {
    /// The browser ends with its session, not with its driver.
    fn drop(&mut self) {
        let path = format!("/session/{}", self.session);
        let end = || self.rig.middle.run(|| ask(DRIVER, "DELETE", &path, ""));
        // A driver that does not answer is no second panic of a test that has failed.
        let _ = panic::catch_unwind(AssertUnwindSafe(end));
    }
}

/// The least contrast of any text of the page with what is behind it.
const CONTRAST: &str = r"(() => {
    const light = colour => colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
    const parts = colour => colour.match(/[\d.]+/g).map(Number);
    const ground = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c.slice(0, 3); } return [255, 255, 255]; };
    const texts = [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && e.offsetParent);
    return Math.min(...texts.map(e => { const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(ground(e))]; return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
})()";

/// The bytes of a text in base 64.
fn base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'=').map(value).collect();
    let whole = digits.chunks(4).flat_map(|four| {
        let bits = four.iter().fold(0u32, |bits, &digit| bits << 6 | u32::from(digit)) << (6 * (4 - four.len()));
        bits.to_be_bytes()[1..four.len()].to_vec()
    });
    whole.collect()
}

/// The values of an expression now, of each series.
fn query(expression: &str) -> Vec<f64> {
    let escaped: String = expression
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let answer: Value = serde_json::from_str(&get(INTERFACE, &format!("/api/v1/query?query={escaped}"))).expect("JSON");
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    let series = answer["data"]["result"].as_array().expect("a vector");
    series
        .iter()
        .map(|series| series["value"][1].as_str().and_then(|text| text.parse().ok()).expect("a number"))
        .collect()
}

/// The expressions of the dashboard's panels, each with its title.
fn dashboard() -> Vec<(String, String)> {
    let text = fs::read_to_string(packaging("grafana/synproxy.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("the dashboard is JSON");
    let panels = board["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title");
        let targets = panel["targets"].as_array().expect("targets");
        targets.iter().map(move |target| (title.to_owned(), target["expr"].as_str().expect("an expression").to_owned()))
    });
    targets.map(|(title, expr)| (title, expr.replace("$__rate_interval", "10s").replace("$instance", ".*"))).collect()
}

/// Waits until this holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(250));
    }
}

/// One exchange of an honest client.
fn talk(address: SocketAddr) {
    let mut stream = traffic::connect(address).expect("connecting");
    stream.write_all(b"hello").expect("sending");
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).expect("receiving");
}

/// A flood of segments of this kind from sources that do not exist.
fn flood(rig: &Rig, kind: &str) -> Running {
    let mut flood = rig.client.command(program("synflood"));
    flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
    flood.args(["--from-mac", "02:00:00:00:00:66", "--kind", kind, "--seconds", "60"]);
    flood.args(["--rate", &FLOOD.to_string()]);
    Running(flood.stdout(Stdio::null()).spawn().expect("starting the flood"))
}

#[test(alone)]
fn the_page_shows_a_flood_in_a_browser() {
    let Some(driver) = std::env::var_os("CHROMEDRIVER").map(PathBuf::from) else {
        ignore("CHROMEDRIVER names no driver of a browser")
    };
    let rig = Rig::alone();
    rig.middle.sh("ip link set lo up");
    let config = format!("metrics = \"{METRICS}\"; {}", netns::CACHE_ON);
    let appliance = Appliance::start(&rig, Backend::Driver, &config);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let browser = Browser::start(&rig, &driver);
    let pictures = PathBuf::from(std::env::var_os("PICTURES").unwrap_or_else(|| std::env::temp_dir().into()));
    let text = |id: &str| browser.value(&format!("document.getElementById('{id}').innerText")).to_string();
    rig.middle.run(|| {
        browser.command("POST", "/url", &format!("{{\"url\":\"http://{METRICS}/\"}}"));
        until("the page is calm", || text("state") == "\"calm\"");
    });
    let syns = flood(&rig, "syn");
    rig.client.run(|| (0..20).for_each(|_| talk(server.address)));
    let lasting: Vec<_> =
        rig.client.run(|| (0..5).map(|_| traffic::connect(server.address).expect("connecting")).collect());
    rig.middle.run(|| {
        until("the page names the attack", || text("state").contains("under attack"));
        until("the targets are named", || text("targets").contains(&netns::SERVER_V4.to_string()));
        until("the destination's mode is told", || text("destinations").contains("cache"));
        until("the sources are named", || text("sources").contains('.'));
        for client in &lasting {
            let own = client.local_addr().expect("an address").to_string();
            until("the connection is listed", || text("list").contains(&own));
        }
        let secrets = browser.value("document.body.innerText.includes('syn-cached')");
        assert_eq!(secrets, false, "the flood is not listed");
    });
    let guesses = flood(&rig, "ack");
    rig.middle.run(|| {
        until("the drops are told by reason", || !text("drops").contains("none"));
        thread::sleep(Duration::from_secs(5));
        for (name, [width, height]) in [("desk", [1280, 1000]), ("phone", [390, 844])] {
            let mobile = name == "phone";
            let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile});
            browser.emulate("Emulation.setDeviceMetricsOverride", size);
            thread::sleep(Duration::from_secs(1));
            browser.picture(&pictures.join(format!("{name}.png")));
            assert_eq!(browser.value("window.innerWidth"), width, "{name}");
            let overflows = browser.value("document.documentElement.scrollWidth > window.innerWidth");
            assert_eq!(overflows, false, "nothing is cut off: {name}");
        }
        // In the dark too, and as colour-blind readers see it; every text stands out from its ground (WCAG 2.2, 1.4.3).
        for (name, scheme, vision) in [
            ("light", "light", "none"),
            ("dark", "dark", "none"),
            ("deuteranopia", "light", "deuteranopia"),
            ("achromatopsia", "dark", "achromatopsia"),
        ] {
            browser.emulate(
                "Emulation.setEmulatedMedia",
                json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
            );
            browser.emulate("Emulation.setEmulatedVisionDeficiency", json!({ "type": vision }));
            thread::sleep(Duration::from_secs(1));
            browser.picture(&pictures.join(format!("{name}.png")));
            let contrast = browser.value(CONTRAST).as_f64().expect("a number");
            assert!(contrast >= 4.5, "{name}: {contrast}");
        }
        // Who does not see the colours sees the dashes.
        let dashes =
            browser.value("[...document.querySelectorAll('polyline')].map(l => l.getAttribute('stroke-dasharray'))");
        assert_eq!(dashes.as_array().map(Vec::len), Some(3), "{dashes}");
        assert!(dashes[0] != dashes[1] && dashes[1] != dashes[2] && dashes[0] != dashes[2], "{dashes}");
        // It fetches nothing from elsewhere.
        let fetched = browser.value("performance.getEntriesByType('resource').map(r => new URL(r.name).host)");
        let own = fetched.as_array().expect("a list").iter().all(|host| host == METRICS);
        assert!(own, "{fetched}");
    });
    drop((syns, guesses));
    rig.middle.run(|| until("it is calm again", || text("state") == "\"calm\""));
    drop(browser);
    assert!(appliance.stop().status.success());
}

#[test]
fn the_rules_do_what_their_tests_say() {
    for arguments in [["check", "rules", "synproxy.rules.yml"], ["test", "rules", "synproxy.test.yml"]] {
        let mut command = Command::new(prometheus("promtool"));
        let output = command.args(arguments).current_dir(packaging("prometheus")).output().expect("running promtool");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        note!("{said}");
        assert!(output.status.success(), "{said}");
    }
}

#[test(alone)]
fn prometheus_sees_a_box_under_flood() {
    let program_path = prometheus("prometheus");
    let rig = Rig::alone();
    rig.middle.sh("ip link set lo up");
    let config = format!("metrics = \"{METRICS}\"; {}", netns::CACHE_ON);
    let appliance = Appliance::start(&rig, Backend::Driver, &config);
    let server = rig.server.serve(netns::SERVER_V4, 80, traffic::echo);
    let address = server.address;

    // The format, by Prometheus' own judge.
    let text = rig.middle.run(|| get(METRICS, "/metrics"));
    let mut judge = Command::new(prometheus("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("running promtool");
    judge.stdin.take().expect("piped").write_all(text.as_bytes()).expect("giving it the metrics");
    let judged = judge.wait_with_output().expect("its judgement");
    let said = String::from_utf8_lossy(&judged.stdout).into_owned() + &String::from_utf8_lossy(&judged.stderr);
    assert!(judged.status.success() && said.trim().is_empty(), "promtool check metrics: {said}");

    let directory = leftovers::file("prometheus");
    fs::create_dir(&directory).expect("a directory for Prometheus");
    let rules = packaging("prometheus/synproxy.rules.yml").canonicalize().expect("the rules");
    let settings = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\n\
         scrape_configs:\n- job_name: synproxy\n  static_configs: [{{targets: [\"{METRICS}\"]}}]\n",
        rules.display()
    );
    fs::write(directory.join("prometheus.yml"), settings).expect("its configuration");
    let mut command = rig.middle.command(&program_path);
    let log = File::create(directory.join("log")).expect("its log");
    command
        .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
        .arg(format!("--web.listen-address={INTERFACE}"))
        .stdout(log.try_clone().expect("its log"))
        .stderr(log);
    let scraper = Running(command.spawn().expect("starting Prometheus"));

    rig.middle.run(|| {
        until("Prometheus is ready", || TcpStream::connect(INTERFACE).is_ok());
        until("it has scraped the box", || query("up{job=\"synproxy\"}") == [1.0]);
        until("there is a rate", || !query("rate(synproxy_events_total{event=\"syn-answered\"}[10s])").is_empty());
    });
    let talk = || talk(address);
    rig.client.run(|| (0..20).for_each(|_| talk()));
    let attack = &dashboard()[0];
    let calm = rig.middle.run(|| query(&attack.1));
    assert!(attack.0.starts_with("Attack") && calm.iter().all(|&rate| rate < 100.0), "{calm:?}");

    let syns = flood(&rig, "syn");
    rig.middle.run(|| {
        until("the panel of the attack moves", || query(&attack.1).iter().any(|&rate| rate > f64::from(FLOOD) / 4.0));
        until("the record of unproved SYNs follows", || {
            query("synproxy:unproved_syns:rate1m").iter().any(|&rate| rate > 1000.0)
        });
    });
    // Honest clients of this very moment, so that every panel has something to show.
    rig.client.run(|| (0..20).for_each(|_| talk()));
    rig.middle.run(|| {
        until("the histograms have what they were given", || {
            query("rate(synproxy_server_connect_seconds_count[10s])").iter().any(|&rate| rate > 0.0)
        });
        let empty: Vec<_> = dashboard()
            .into_iter()
            .filter(|(_, expression)| !query(expression).iter().any(|value| value.is_finite()))
            .collect();
        assert!(empty.is_empty(), "panels without a value: {empty:#?}");
    });
    // Prometheus has scraped it each second, under the flood, and asked the workers nothing: what it was given is published anyway.
    let longest = |command: &str| {
        let text = rig.middle.run(|| get(METRICS, "/metrics"));
        let series = format!("synproxy_longest_command_seconds{{worker=\"0\",command=\"{command}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&series)).map(str::parse::<f64>);
        value.unwrap_or_else(|| panic!("{series}: {text}")).expect("a number")
    };
    for command in ["status", "flows", "top", "explain", "policy"] {
        assert_eq!(longest(command), 0.0, "{command}");
    }
    note!("publishing took {:.1} µs at most", 1e6 * longest("publish"));
    assert!(longest("publish") > 0.0);
    // What the kernel counts of every ring, by worker, interface and ring.
    for (port, interface) in [("lan", "xdp:lan0"), ("wan", "xdp:wan0")] {
        for (name, ring) in [
            ("rx_dropped_frames", "receive"),
            ("rx_ring_full_frames", "receive"),
            ("rx_invalid_descs", "fill"),
            ("rx_fill_ring_empty_descs", "fill"),
            ("tx_invalid_descs", "transmit"),
            ("tx_ring_empty_descs", "transmit"),
        ] {
            let series = format!(
                "synproxy_xdp_{name}_total{{interface=\"{interface}\",port=\"{port}\",ring=\"{ring}\",worker=\"0\"}}"
            );
            assert_eq!(rig.middle.run(|| query(&series)).len(), 1, "{series}");
        }
    }
    // The kernel has looked for frames to send and found none behind each batch, so it does count.
    assert!(rig.middle.run(|| query("sum(synproxy_xdp_tx_ring_empty_descs_total)"))[0] > 0.0);
    drop((syns, scraper));

    // A scrape of a busy box is quick, and complete.
    let begin = Instant::now();
    let text = rig.middle.run(|| get(METRICS, "/metrics"));
    note!("{} bytes of metrics in {:?}", text.len(), begin.elapsed());
    assert!(
        text.contains("synproxy_port_info{port=\"wan\",interface=\"xdp:wan0\",backend=\"xdp, driver mode, copy\"} 1")
    );
    assert!(appliance.stop().status.success());
}

fn main() -> ExitCode {
    harness::main()
}
