//! Blackholes with a real BGP speaker: a destination that gets more than the box can take is announced with the community BLACKHOLE (RFC 7999) by
//! the command that is shipped, received by another speaker in another namespace, and withdrawn when the attack has ended. Run by `make test-bgp`,
//! which fetches GoBGP; no part of a plain `cargo test`. `GOBGP` names the directory of its programs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use harness::{ignore, leftovers, note, test};
use serde_json::Value;
use unit::netns::{self, Appliance, Backend, Namespace, Rig, program};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// BLACKHOLE (RFC 7999) and NO_EXPORT (RFC 1997).
const COMMUNITIES: [u64; 2] = [65535 << 16 | 666, 65535 << 16 | 65281];

/// One of GoBGP's programs.
fn gobgp(name: &str) -> PathBuf {
    let Some(directory) = std::env::var_os("GOBGP") else { ignore("GOBGP names no directory with its programs") };
    PathBuf::from(directory).join(name)
}

/// A program that is ended when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A BGP speaker in a namespace.
struct Speaker<'n> {
    namespace: &'n Namespace,
    _daemon: Running,
}

impl<'n> Speaker<'n> {
    /// One whose address ends in `own`, with one neighbour, whose address ends in `other`.
    fn start(namespace: &'n Namespace, own: u8, other: u8) -> Speaker<'n> {
        namespace.sh("ip link set lo up");
        let families: String = ["ipv4-unicast", "ipv6-unicast"]
            .iter()
            .map(|family| {
                format!("[[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"{family}\"\n")
            })
            .collect();
        let text = format!(
            "[global.config]\nas = 6500{own}\nrouter-id = \"10.255.0.{own}\"\n[[neighbors]]\n[neighbors.config]\n\
             neighbor-address = \"10.255.0.{other}\"\npeer-as = 6500{other}\n[neighbors.timers.config]\nconnect-retry = 1\n{families}"
        );
        let file = leftovers::file("gobgp.toml");
        fs::write(&file, text).expect("its configuration");
        let mut command = namespace.command(gobgp("gobgpd"));
        let log = File::create(leftovers::file("gobgp.log")).expect("its log");
        command.arg("-f").arg(&file).stdout(log.try_clone().expect("its log")).stderr(log);
        Speaker { namespace, _daemon: Running(command.spawn().expect("starting gobgpd")) }
    }

    /// What `gobgp` says, as JSON; nothing while it cannot say anything.
    fn says(&self, words: &[&str]) -> Option<Value> {
        let mut command = self.namespace.command(gobgp("gobgp"));
        let output = command.arg("-j").args(words).output().expect("running gobgp");
        serde_json::from_slice(&output.stdout).ok().filter(|_| output.status.success())
    }

    fn is_established(&self) -> bool {
        let neighbours = self.says(&["neighbor"]).unwrap_or_default();
        // ESTABLISHED is the sixth of the states (RFC 4271 section 8.2.2).
        neighbours[0]["state"]["session_state"] == 6
    }

    /// The prefixes of the routes of a family, and the communities of each.
    fn routes(&self, family: &str) -> Vec<(String, Vec<u64>)> {
        let Some(Value::Object(routes)) = self.says(&["global", "rib", "-a", family]) else { return Vec::new() };
        let communities = |paths: &Value| {
            let attributes = paths[0]["attrs"].as_array().cloned().unwrap_or_default();
            let all = attributes.iter().filter_map(|attribute| attribute["communities"].as_array());
            all.flatten().filter_map(Value::as_u64).collect()
        };
        routes.iter().map(|(prefix, paths)| (prefix.clone(), communities(paths))).collect()
    }
}

/// Waits until this holds.
fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within a minute");
        thread::sleep(Duration::from_millis(200));
    }
}

/// The command that is shipped.
fn script() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/bgp/synproxy-blackhole");
    path.canonicalize().expect("the command is there")
}

/// A router beside the box, with a cable between their speakers that no frame of the rig takes.
fn router(rig: &Rig) -> Namespace {
    let router = Namespace::new("router");
    rig.middle.sh(&format!("ip link add bgp0 type veth peer name bgp1 netns {}", router.name()));
    rig.middle.sh("ip addr add 10.255.0.1/24 dev bgp0; ip link set bgp0 up");
    router.sh("ip addr add 10.255.0.2/24 dev bgp1; ip link set bgp1 up");
    router
}

#[test(alone)]
fn a_destination_beyond_capacity_is_announced_as_a_blackhole_and_withdrawn_again() {
    gobgp("gobgpd");
    let rig = Rig::alone();
    let router = router(&rig);
    let own = Speaker::start(&rig.middle, 1, 2);
    let other = Speaker::start(&router, 2, 1);
    until("the speakers know each other", || own.is_established() && other.is_established());
    let state = leftovers::file("blackholes");
    let command = format!("{} -g {} -s {}", script().display(), gobgp("gobgp").display(), state.display());
    let config = format!(
        "{} events = {{ on_event = \"{command}\"; attack_begin = 500; attack_end = 100; attack_end_after = 3; capacity = 2000; }};",
        netns::CACHE_ON
    );
    let appliance = Appliance::start(&rig, Backend::Driver, &config);
    let _server = rig.server.serve(netns::SERVER_V4, 80, unit::netns::traffic::echo);
    rig.client.sh(&format!("ping -n -q -c 2 -i 0.05 {}", netns::SERVER_V4));

    let flood = |rate: u32| {
        let mut flood = rig.client.command(program("synflood"));
        flood.args(["--interface", "c0", "--to", &netns::SERVER_V4.to_string(), "--to-mac", netns::SERVER_MAC]);
        flood.args(["--from-mac", "02:00:00:00:00:66", "--seconds", "120", "--rate", &rate.to_string()]);
        Running(flood.stdout(Stdio::null()).spawn().expect("starting the flood"))
    };
    // An attack that the box can take is its own affair.
    let small = flood(1000);
    let says = |event: &str| appliance.log().iter().any(|line| line.contains(event));
    until("the attack begins", || says("attack-begin"));
    thread::sleep(Duration::from_secs(6));
    assert_eq!(other.routes("ipv4"), []);
    let large = flood(10_000);
    let blackhole = [(format!("{}/32", netns::SERVER_V4), COMMUNITIES.to_vec())];
    until("the router knows of the blackhole", || other.routes("ipv4") == blackhole);
    drop((small, large));
    until("it is withdrawn", || other.routes("ipv4").is_empty());
    until("the attack has ended", || says("attack-end"));
    note!("{}", appliance.log().join("\n"));
    assert!(appliance.stop().status.success());
    let left: Vec<_> = fs::read_dir(&state).expect("its notes").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["lock"], "nothing is announced any more");
    fs::remove_dir_all(&state).expect("removing its notes");
}

/// Runs the command with an event, beside a speaker.
fn give(own: &Speaker, state: &Path, options: &[&str], event: &str) {
    let input = leftovers::file("event");
    fs::write(&input, event).expect("writing an event");
    let mut command = own.namespace.command(script());
    command.args(["-g", gobgp("gobgp").to_str().expect("a path"), "-s", state.to_str().expect("a path")]).args(options);
    let output = command.stdin(File::open(&input).expect("an event")).output().expect("running the command");
    fs::remove_file(&input).expect("removing the event");
    assert!(output.status.success(), "{event}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test(alone)]
fn a_blackhole_stays_as_long_as_any_attack_wants_it() {
    gobgp("gobgpd");
    let rig = Rig::alone();
    let router = router(&rig);
    let own = Speaker::start(&rig.middle, 1, 2);
    let other = Speaker::start(&router, 2, 1);
    until("the speakers know each other", || own.is_established() && other.is_established());
    let state = leftovers::file("blackholes");
    let event = |name: &str, mid: u32, exceeds: bool, prefix: &str| {
        let status = if exceeds { "attack-exceeded-capability" } else { "attack-successfully-mitigated" };
        format!(
            "{{\"number\":1,\"event\":\"{name}\",\"mid\":{mid},\"status\":\"{status}\",\"target-prefix\":[\"{prefix}\"],\
             \"top-targets\":[{{\"target-prefix\":\"203.0.113.9/32\",\"lower-port\":80,\"pps\":9}}]}}\n"
        )
    };
    let tell = |name, mid, exceeds, prefix| give(&own, &state, &[], &event(name, mid, exceeds, prefix));
    let prefixes = |family: &str| other.routes(family).into_iter().map(|(prefix, _)| prefix).collect::<Vec<_>>();
    let (v4, v6) = ("192.0.2.7/32", "2001:db8::7/128");

    give(&own, &state, &[], "{\"number\":1,\"event\":\"link-changed\",\"port\":\"wan\"}\n");
    tell("attack-begin", 1, false, v4);
    tell("attack-update", 1, true, v4);
    tell("attack-update", 2, true, v4);
    tell("attack-update", 3, true, v6);
    tell("attack-update", 4, true, "198.51.100.0/24");
    until("both hosts are announced, and not the network", || {
        (prefixes("ipv4"), prefixes("ipv6")) == (vec![v4.to_owned()], vec![v6.to_owned()])
    });
    assert_eq!(other.routes("ipv6")[0].1, COMMUNITIES);
    // The box can take it again: that may be because nothing gets here any more.
    tell("attack-update", 1, false, v4);
    tell("attack-end", 1, false, v4);
    tell("attack-end", 3, false, v6);
    tell("attack-end", 99, false, v4);
    until("one is withdrawn", || prefixes("ipv6").is_empty());
    assert_eq!(prefixes("ipv4"), [v4], "another attack on the host lasts");
    give(&own, &state, &["-w", "-c", "65000:1"], &event("attack-update", 5, true, "198.51.100.0/24"));
    let wanted = ("198.51.100.0/24".to_owned(), vec![65000 << 16 | 1]);
    until("a network is announced where that is wanted", || other.routes("ipv4").contains(&wanted));
    // What a box leaves behind that has ended during an attack.
    let mut clear = own.namespace.command(script());
    clear.args(["-g", gobgp("gobgp").to_str().expect("a path"), "-s", state.to_str().expect("a path"), "clear"]);
    assert!(clear.status().expect("running the command").success());
    until("all is withdrawn", || prefixes("ipv4").is_empty());
    fs::remove_dir_all(&state).expect("removing its notes");
}

#[test]
fn the_command_is_a_sound_script() {
    let output = Command::new("sh").arg("-n").arg(script()).output().expect("running a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn main() -> ExitCode {
    harness::main()
}
