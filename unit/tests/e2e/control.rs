//! The operator at work on a running box: what he says of servers reaches their clients and nobody who is connected already, a drained box
//! can be taken out without anybody noticing, and its socket is nobody else's.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use control::wire::{self, Operation};
use control::{Client, ClientError, Entry, Event, Reply, Request, Status};
use harness::{leftovers, test};
use nix::sys::signal::Signal;
use unit::netns::traffic::{self, Server};
use unit::netns::{self, Appliance, Backend, Rig, TcpInfo};

/// A box with a socket of its own.
struct Box {
    proxy: Appliance,
    socket: PathBuf,
}

impl Box {
    fn start(rig: &Rig, config: &str) -> Box {
        let socket = leftovers::file("control.sock");
        Box { proxy: start(rig, config, &socket), socket }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).expect("a box listens")
    }

    /// What a reply of `synctl` says, and its status.
    fn synctl(&self, line: &str) -> (String, i32) {
        let Output { status, stdout, stderr } = synctl(&self.socket, line).output().expect("running synctl");
        let said = [stdout, stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        (said, status.code().expect("an end"))
    }

    fn status(&self) -> Status {
        match self.client().ask(&Request::Status) {
            Ok(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }
}

fn start(rig: &Rig, config: &str, socket: &Path) -> Appliance {
    let argument = format!("--control={}", socket.display());
    Appliance::start_with(rig, Backend::Packet, config, &[&argument])
}

fn synctl(socket: &Path, line: &str) -> Command {
    let mut command = Command::new(netns::program("synctl"));
    command.arg("--socket").arg(socket).args(line.split_whitespace());
    command
}

/// Says something and waits until the server has repeated it.
fn talk(mut stream: &TcpStream, bytes: usize) {
    let said: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| (&mut &*stream).write_all(&said).expect("sending"));
        let mut heard = vec![0; bytes];
        stream.read_exact(&mut heard).expect("receiving");
        assert!(heard == said, "the bytes are the same");
    });
}

/// What the client was told in the server's name: MSS (less what timestamps take), SACK, window scale.
fn told(stream: &TcpStream) -> (u32, bool, u8) {
    let info = TcpInfo::of(stream);
    let options = info.options();
    let timestamps = if options.contains("ts") { 12 } else { 0 };
    (info.get("snd_mss") + timestamps, options.contains("sack"), info.scales()[0])
}

/// What the operator says over the control port, and what it answers.
fn command(port: &mut TcpStream, operations: &[Operation]) -> String {
    let mut bytes = Vec::new();
    operations.iter().for_each(|operation| wire::write(operation, &mut bytes));
    port.write_all(&bytes).expect("sending requests");
    let mut answers = vec![0; 2 * operations.len()];
    port.read_exact(&mut answers).expect("receiving answers");
    String::from_utf8(answers).expect("text").replace('\n', "")
}

fn servers(rig: &Rig) -> [Server; 2] {
    [netns::SERVER_V4, netns::SERVER_V6].map(|address| rig.server.serve(address, 0, traffic::echo))
}

#[test]
fn what_is_commanded_reaches_new_clients_and_nobody_who_is_connected() {
    const COMMANDED: &str = "sackmode = commanded; mssmode = commanded; wscalemode = commanded; port = 777;";
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        let rig = Rig::new();
        rig.middle.sh("ip link set lo up");
        let the_box = Box::start(&rig, &format!("{cache} {COMMANDED}"));
        let mut port = rig.middle.connect("127.0.0.1:777".parse().expect("an address")).expect("the control port");
        for server in servers(&rig) {
            let (address, number) = (server.address.ip(), server.address.port());
            let connect = || rig.client.connect(server.address).expect("connecting");
            let own = connect();
            let default_mss = if address.is_ipv4() { 1460 } else { 1440 };
            assert_eq!(told(&own), (default_mss, true, 7), "{address}: nothing is said of it");

            let entry = Entry { address, port: 0, protocol: 0, mss: 1000, sack: false, wscale: 3 };
            let particular = Entry { port: number, protocol: 6, mss: 1100, wscale: 4, ..entry };
            assert_eq!(command(&mut port, &[Operation::Add(particular), Operation::Add(entry)]), "11");
            let first = connect();
            assert_eq!(told(&first), (1100, false, 4), "{address}: the port counts more, though it was said before");
            talk(&first, 100_000);

            let changed = Entry { sack: true, wscale: 9, mss: 1200, ..particular };
            let operations = [
                Operation::Modify(changed),
                Operation::Add(changed),
                Operation::Modify(Entry { wscale: 15, ..changed }),
            ];
            assert_eq!(command(&mut port, &operations), "100");
            let second = connect();
            assert_eq!(told(&second), (1200, true, 9), "{address}");
            assert_eq!(the_box.synctl("backends list").0.lines().count(), 2);
            assert_eq!(command(&mut port, &[Operation::Delete(changed.key())]), "1");
            let third = connect();
            assert_eq!(told(&third), (1000, false, 3), "{address}: every port");
            let (said, status) = the_box.synctl(&format!("backends mod {address} --protocol 0 --mss 1300 --wscale 2"));
            assert_eq!(status, 0, "{said}");
            let fourth = connect();
            assert_eq!(told(&fourth), (1300, true, 2), "{address}: by either way");
            assert_eq!(command(&mut port, &[Operation::Flush(None)]), "1");
            assert_eq!(told(&connect()), (default_mss, true, 7), "{address}: nothing is said any more");
            for stream in [own, first, second, third, fourth] {
                talk(&stream, 200_000);
            }
        }
        assert_eq!(the_box.status().servers, Some(0));
        let report = the_box.proxy.stop();
        assert!(report.status.success() && !the_box.socket.exists());
    }
}

#[test]
fn a_drained_box_can_be_taken_out_and_nobody_notices() {
    let config = "timeouts = { time_wait = 1; both_fin = 1; one_fin = 1; reseted = 1; };";
    let rig = Rig::new();
    let the_box = Box::start(&rig, config);
    let servers = servers(&rig);
    let connect = |server: &Server| rig.client.connect(server.address).expect("connecting");
    let old: Vec<TcpStream> = servers.iter().map(connect).collect();
    assert_eq!(the_box.synctl("drain").1, 0);
    let new: Vec<TcpStream> = servers.iter().map(connect).collect();
    old.iter().chain(&new).for_each(|stream| talk(stream, 100_000));
    await_published();
    let drain = the_box.status().drain.expect("it drains");
    let flows = the_box.status().flows;
    assert_eq!((drain.left, flows.proxied, flows.direct), (2, 2, 2), "two are translated, two pass");
    let (said, status) = the_box.synctl("drain --wait 0");
    assert!(status == 1 && said.contains("2 connections left"), "{said}");

    old.iter().for_each(|stream| stream.shutdown(std::net::Shutdown::Both).expect("closing"));
    drop(old);
    let (said, status) = the_box.synctl("drain --wait 20");
    assert!(status == 0 && said.ends_with("drained\n"), "{said}");
    let report = the_box.proxy.stop();
    assert!(report.status.success(), "{:?}", report.log);
    rig.bridge();
    new.iter().for_each(|stream| talk(stream, 100_000));
}

#[test]
fn a_box_that_drains_no_more_answers_again() {
    let rig = Rig::new();
    let the_box = Box::start(&rig, "");
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    for (line, proxied) in [("drain", 0), ("drain --off", 1)] {
        assert_eq!(the_box.synctl(line).1, 0);
        let stream = rig.client.connect(server.address).expect("connecting");
        talk(&stream, 1000);
        await_published();
        assert_eq!(the_box.status().flows.proxied, proxied, "{line}");
    }
}

/// Workers show their counters ten times a second.
fn await_published() {
    std::thread::sleep(Duration::from_millis(300));
}

#[test]
fn a_change_of_the_secret_harms_nobody_and_is_not_repeated_too_soon() {
    let rig = Rig::new();
    let the_box = Box::start(&rig, netns::CACHE_OFF);
    let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
    let before = rig.client.connect(server.address).expect("connecting");
    let (said, status) = the_box.synctl("rotate-secrets");
    assert!(status == 0 && said.contains("new secret"), "{said}");
    let after = rig.client.connect(server.address).expect("connecting");
    [before, after].iter().for_each(|stream| talk(stream, 10_000));
    let (said, status) = the_box.synctl("rotate-secrets");
    assert!(status == 1 && said.contains("another is possible in"), "{said}");
}

#[test]
fn the_socket_answers_whatever_is_said_and_only_to_whom_it_should() {
    let rig = Rig::new();
    let the_box = Box::start(&rig, "");
    // The user nobody is refused.
    let mut stranger = Command::new("setpriv");
    stranger.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let own = synctl(&the_box.socket, "status");
    let output = stranger.arg(own.get_program()).args(own.get_args()).output().expect("running setpriv");
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));

    // What is no request is answered as such, and the next one as if nothing had been.
    let mut stream = BufReader::new(UnixStream::connect(&the_box.socket).expect("connecting"));
    let mut ask = |bytes: &[u8]| {
        stream.get_mut().write_all(bytes).expect("asking");
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        line
    };
    for wrong in [
        "",
        "{",
        "[]",
        "\u{0}\u{1}",
        r#"{"command":"explode"}"#,
        r#"{"command":"drain","on":1}"#,
        "{\"command\":\"status\"} {",
    ] {
        let answer = ask(format!("{wrong}\n").as_bytes());
        assert!(answer.starts_with(r#"{"error":{"why":"malformed""#), "{wrong}: {answer}");
    }
    assert!(ask(b"\xff\xfe\n").contains("malformed"));
    assert!(ask(&[b"[".repeat(60_000), b"\n".to_vec()].concat()).contains("malformed"), "depth is bounded");
    let twice = ask(b"{\"command\":\"status\"}\n{\"command\":\"stats\"}\n");
    assert!(twice.starts_with(r#"{"status":"#), "{twice}");
    assert!(ask(b"").starts_with(r#"{"stats":"#), "in their order");
    let refused = ask(b"{\"command\":\"add-backend\",\"address\":\"10.0.0.1\",\"mss\":1,\"sack\":true,\"wscale\":1}\n");
    assert!(refused.contains(r#""why":"refused""#), "{refused}");
    // A line without an end is cut off, and so is its writer.
    let mut endless = UnixStream::connect(&the_box.socket).expect("connecting");
    let _ = endless.write_all(&b"x".repeat(4 << 20));
    let mut answer = String::new();
    let _ = endless.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.contains("malformed"), "{answer}");

    // More clients than there are places: those too many are told so, and there is room again when they have left.
    let mut crowd: Vec<_> = (0..40).map(|_| the_box.client()).collect();
    let told = crowd.iter_mut().map(|client| client.ask(&Request::Status)).filter(Result::is_err).count();
    assert!(told >= 8, "{told} were told that there is no room");
    drop(crowd);
    let begin = Instant::now();
    while let Err(complaint) = the_box.client().ask(&Request::Status) {
        assert!(matches!(complaint, ClientError::Refused(_) | ClientError::Closed(_)), "{complaint}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{complaint}");
        std::thread::sleep(Duration::from_millis(20));
    }

    let (said, status) = the_box.synctl("set log-level debug");
    assert!(status == 0 && said.contains("debug"), "{said}");
    assert_eq!(the_box.status().log_level, control::LogLevel::Debug);
    assert_eq!(the_box.synctl("flows").1, 0);
    await_published();
    let (said, status) = the_box.synctl("stats --json");
    let Ok(Reply::Stats(stats)) = serde_json::from_str(&said) else { panic!("{said}") };
    // What has been asked has taken its time, and nothing else has.
    let orders = &stats.total.orders;
    assert!(status == 0 && orders["flows"] > 0 && orders["status"] > 0 && orders["rotate-secrets"] == 0, "{orders:?}");
}

/// A server of a service that goes and comes again is an event, and what `synctl services` says; and the operator takes it away and gives it back.
#[test(light)]
fn servers_of_services_are_shown_reported_and_drained() {
    let rig = Rig::new();
    rig.server.sh("ip addr add 10.77.0.11/24 dev s0; ip addr add 10.77.0.12/24 dev s0");
    let [first, second] = [11, 12].map(|n| IpAddr::from([10, 77, 0, n]));
    let answer = |name: &'static [u8]| {
        move |mut stream: TcpStream| {
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte)?;
                head.push(byte[0]);
            }
            stream.write_all(name)
        }
    };
    let server = rig.server.serve(first, 8080, answer(b"first"));
    let _other = rig.server.serve(second, 8080, answer(b"second"));
    let config = "service_buffers = 16; services = { { address = \"10.77.0.100\"; port = 80; protocol = http; check = 1; rise = 1; fall = 1;
        default = { \"10.77.0.11:8080\", \"10.77.0.12:8080\" }; } };";
    let the_box = Box::start(&rig, config);
    let ask = || {
        let mut stream =
            rig.client.connect("10.77.0.100:80".parse().expect("an address")).expect("connecting to a service");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: any.example\r\n\r\n").expect("asking");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        said
    };
    let becomes = |what: &str| {
        let begin = Instant::now();
        loop {
            let (said, status) = the_box.synctl("services");
            if status == 0 && said.lines().any(|line| line.contains("10.77.0.11:8080") && line.contains(what)) {
                return said;
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "not {what}: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    becomes("up ");
    let heard: Vec<_> = (0..12).map(|_| ask()).collect();
    assert!(heard.iter().all(|said| said == "first" || said == "second"), "{heard:?}");
    let said = becomes("up ");
    assert!(said.contains("10.77.0.100:80, http, nat: 12 clients, 12 routed, 0 refused, 0 silent"), "{said}");

    drop(server);
    becomes("down ");
    assert_eq!(ask(), "second");
    let server = rig.server.serve(first, 8080, answer(b"first"));
    becomes("up ");
    let reported = || {
        let Ok(Reply::Events(records)) = the_box.client().ask(&Request::Events { after: 0 }) else {
            panic!("no events")
        };
        let names = records.iter().filter_map(|record| match &record.event {
            Event::ServerUp { server, service } | Event::ServerDown { server, service } => {
                assert_eq!((server.as_str(), service.as_str()), ("10.77.0.11:8080", "10.77.0.100:80"));
                Some(record.event.name())
            }
            _ => None,
        });
        names.collect::<Vec<_>>()
    };
    let begin = Instant::now();
    while reported() != ["server-down", "server-up"] {
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", reported());
        std::thread::sleep(Duration::from_millis(100));
    }

    let (said, status) = the_box.synctl("services drain 10.77.0.11:8080");
    assert_eq!(status, 0, "{said}");
    becomes("drained ");
    assert!((0..8).all(|_| ask() == "second"));
    assert_eq!(the_box.synctl("services drain 10.77.0.13:8080").1, 1, "nobody names it");
    assert_eq!(the_box.synctl("services undrain 10.77.0.11:8080").1, 0);
    becomes("up ");
    let (json, _) = the_box.synctl("services --json");
    assert!(json.contains("\"service\":\"10.77.0.100:80\""), "{json}");
    drop(server);
    assert!(the_box.proxy.stop().status.success());
}

/// `synctl`, as a user who is nobody but for these groups.
fn stranger(socket: &Path, groups: &str, line: &str) -> (i32, String) {
    let own = synctl(socket, line);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", groups]).arg(own.get_program()).args(own.get_args());
    let output = command.output().expect("running setpriv");
    (output.status.code().expect("an end"), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_group_may_ask_but_have_no_files_written() {
    let rig = Rig::new();
    let socket = leftovers::file("group.sock");
    let file = socket.with_extension("pcapng");
    let config = format!("control = \"{}\"; control_group = 65533;", socket.display());
    let proxy = Appliance::start(&rig, Backend::Packet, &config);
    assert_eq!(stranger(&socket, "--clear-groups", "status").0, 5);
    for line in ["status", "stats", "flows", "capture list", "drain", "drain --off"] {
        assert_eq!(stranger(&socket, "--groups=65533", line), (0, String::new()), "{line}");
    }
    for line in [format!("capture start wan {}", file.display()), "capture stop".to_owned()] {
        let (status, said) = stranger(&socket, "--groups=65533", &line);
        assert!(status == 5 && said.contains("only root"), "{line}: {said}");
    }
    assert!(!file.exists());
    assert!(proxy.stop().status.success() && !socket.exists());
}

#[test]
fn a_box_is_found_where_it_is_the_only_one_and_several_are_told() {
    let (rig, names) = (Rig::new(), Rig::new());
    let mut proxy = Appliance::start_with(&names, Backend::Packet, "", &["--control=auto"]);
    let number = names.middle.sh("stat -Lc %i /proc/self/ns/net");
    let usual = PathBuf::from(format!("/run/synproxy/lan0-wan0@{}.sock", number.trim()));
    assert!(usual.exists(), "{:?}", proxy.log());
    proxy.stop();
    assert!(!usual.exists());

    // Sockets of other boxes of this machine are kept out of sight.
    let directory = leftovers::file("control");
    fs::create_dir(&directory).expect("a directory");
    let find = || {
        let program = netns::program("synctl");
        let line = format!(
            "mkdir -p {0} && mount --bind {1} {0} && exec {2} status",
            control::DIRECTORY,
            directory.display(),
            program.display()
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-ec", &line]).output().expect("unshare runs");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
        (output.status.code().expect("an end"), said)
    };
    let (status, said) = find();
    assert!(status == 4 && said.contains("is synproxy running?"), "{said}");
    let sockets = ["a.sock", "b.sock"].map(|name| directory.join(name));
    let boxes = [(&rig, &sockets[0]), (&names, &sockets[1])].map(|(rig, socket)| start(rig, "", socket));
    let (status, said) = find();
    let both = ["a", "b"].map(|name| format!("\n  {}/{name}.sock", control::DIRECTORY)).concat();
    assert!(status == 4 && said.contains("several boxes run here") && said.contains(&both), "{said}");
    let [first, second] = boxes;
    // One that was killed is no box any more.
    first.end(Signal::SIGKILL);
    let (status, said) = find();
    assert!(status == 0 && said.contains(&format!("process {}", second.pid())), "{said}");
    proxy = second;
    proxy.stop();
    fs::remove_dir_all(&directory).expect("it is ours");
}

#[test]
fn a_box_that_was_killed_leaves_a_socket_that_the_next_one_replaces() {
    let rig = Rig::new();
    let Box { proxy, socket } = Box::start(&rig, "");
    assert!(!proxy.end(Signal::SIGKILL).status.success() && socket.exists());
    let output = synctl(&socket, "status").output().expect("running synctl");
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let proxy = start(&rig, "", &socket);
    let next = Box { proxy, socket };
    assert!(next.status().workers.iter().all(|answers| *answers));
    next.proxy.stop();
    assert!(!next.socket.exists());
    assert!(fs::metadata(&next.socket).is_err());
}

#[test]
fn a_port_that_nobody_commands_is_closed() {
    let rig = Rig::new();
    rig.middle.sh("ip link set lo up");
    let _box = Box::start(&rig, "port = 777;");
    let address: IpAddr = "127.0.0.1".parse().expect("an address");
    assert!(rig.middle.connect((address, 777).into()).is_err());
}
