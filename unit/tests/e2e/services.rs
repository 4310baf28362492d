//! Services between real kernels: the box has an address of its own, and the server is the one of the name that the client asks for. With real clients
//! and servers of TLS and HTTP: `make test-services`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::{note, test};
use pktio::impair::Impairment;
use unit::netns::{self, Appliance, Backend, Rig, traffic};

const SERVICE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const SERVICE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100));
const MB: u64 = 1 << 20;

/// Two servers more beside the rig's own.
fn add_servers(rig: &Rig) {
    for n in [11, 12] {
        rig.server.sh(&format!("ip addr add 10.77.0.{n}/24 dev s0; ip addr add fd77::{n}/64 dev s0 nodad"));
    }
}

fn server(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, n))
}

/// A box with these blocks.
fn start(rig: &Rig, blocks: &str) -> Appliance {
    start_with(rig, blocks, &[])
}

fn start_with(rig: &Rig, blocks: &str, arguments: &[&str]) -> Appliance {
    let config = format!("conntablesize = 1024; service_buffers = 64; services = {{ {blocks} }};");
    Appliance::start_with(rig, Backend::Packet, &config, arguments)
}

/// What comes until an empty line, with it.
fn head(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

/// A ClientHello that asks for a name, with a key share as long as those of post-quantum key exchange: more than a segment.
fn hello(name: &str) -> Vec<u8> {
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes(), &(body.len() as u16).to_be_bytes(), body].concat();
    let entry = [&[0], &(name.len() as u16).to_be_bytes()[..], name.as_bytes()].concat();
    let names = [&(entry.len() as u16).to_be_bytes(), &entry[..]].concat();
    let extensions = [extension(0x0a0a, &[]), extension(51, &[7; 1800]), extension(0, &names)].concat();
    let suites = [&[3, 3][..], &[9; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&suites, &(extensions.len() as u16).to_be_bytes()[..], &extensions].concat();
    let message = [&[1, 0], &(body.len() as u16).to_be_bytes()[..], &body].concat();
    [&[22, 3, 1], &(message.len() as u16).to_be_bytes()[..], &message].concat()
}

/// Connects to a service, sends `first`, and returns all that comes.
fn ask(rig: &Rig, to: SocketAddr, first: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = rig.client.connect(to)?;
    stream.write_all(first)?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    Ok(all)
}

#[test(light)]
fn a_tls_client_reaches_the_server_of_the_name_it_asks_for() {
    let rig = Rig::new();
    add_servers(&rig);
    let says = |name: &'static str, len: usize| {
        move |mut stream: TcpStream| {
            stream.read_exact(&mut vec![0; len])?;
            stream.write_all(format!("{name} to {}", stream.peer_addr()?.ip()).as_bytes())
        }
    };
    let (a, b) = (hello("a.example").len(), hello("www.b.example").len());
    let servers = [rig.server.serve(server(11), 4430, says("A", a)), rig.server.serve(server(12), 4430, says("B", b))];
    let other = rig.server.serve(IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11)), 4430, says("A", a));
    let routes = "routes = { \"a.example = 10.77.0.11:4430\", \"*.b.example = 10.77.0.12:4430\" };";
    let blocks = format!(
        "{{ address = \"10.77.0.100\"; port = 443; {routes} patience = 2; }},
         {{ address = \"fd77:0:0:0:0:0:0:100\"; port = 443; routes = {{ \"a.example = [fd77::11]:4430\" }}; patience = 2; }}"
    );
    let proxy = start(&rig, &blocks);
    let v4 = SocketAddr::new(SERVICE_V4, 443);
    rig.judge([0, 0], || {
        for (name, expected) in [("a.example", "A"), ("www.b.example", "B")] {
            let answer = ask(&rig, v4, &hello(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(answer, format!("{expected} to 10.77.0.1").as_bytes(), "{name}");
        }
        let answer = ask(&rig, SocketAddr::new(SERVICE_V6, 443), &hello("a.example")).expect("over IPv6");
        assert_eq!(answer, b"A to fd77::1");
        // Nobody has that name: an alert and the end, no reset.
        assert_eq!(ask(&rig, v4, &hello("c.example")).expect("an end"), [21, 3, 3, 0, 2, 2, 112]);
    });
    // What is no TLS, or nothing at all, ends, the latter when the client's time is over.
    assert_eq!(ask(&rig, v4, b"SSH-2.0-x\r\n").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let began = Instant::now();
    assert_eq!(ask(&rig, v4, b"").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
    // Its other ports are closed, and it answers echo requests.
    let closed = rig.client.connect(SocketAddr::new(SERVICE_V4, 444));
    assert_eq!(closed.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    rig.client.sh("ping -c 1 -W 5 10.77.0.100; ping -c 1 -W 5 fd77::100");
    drop((servers, other));
    assert!(proxy.stop().status.success());
}

/// A server that takes the header of the PROXY protocol and a request, and exchanges bulk.
fn bulk(stream: TcpStream, client: &str) -> io::Result<()> {
    let head = String::from_utf8(head(&stream)?).expect("text");
    assert!(head.starts_with(&format!("PROXY TCP4 {client} 10.77.0.100 ")), "{head}");
    assert!(head.contains("\r\nPOST /x HTTP/1.1\r\n"), "{head}");
    traffic::exchanged(stream)
}

/// Bulk in so many connections of so many bytes each way.
fn exchange_bulk(rig: &Rig, bad: Option<Impairment>, connections: u32, bytes: u64) {
    add_servers(rig);
    let relay = bad.map(|bad| rig.impair_port(Rig::LAN, bad, 7));
    let serve = |stream| bulk(stream, "10.77.0.1");
    let servers = [rig.server.serve(server(11), 8080, serve), rig.server.serve(server(12), 8080, serve)];
    let blocks = "{ address = \"10.77.0.100\"; port = 80; protocol = http; proxy = v1;
        default = { \"10.77.0.11:8080\", \"10.77.0.12:8080*2\" }; }";
    let proxy = start(rig, blocks);
    let exchange = || {
        let stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 80)).expect("connecting to a service");
        for part in ["POST /x HT", "TP/1.1\r\nHost: any.exam", "ple\r\n\r\n"] {
            (&stream).write_all(part.as_bytes()).expect("asking");
            std::thread::sleep(Duration::from_millis(20));
        }
        traffic::exchange(&stream, bytes, bytes).expect("bulk through a service")
    };
    for _ in 0..connections {
        let speeds = if relay.is_some() { exchange() } else { rig.judge([0, 0], exchange) };
        note!("up {:.0} Mbit/s, down {:.0} Mbit/s", speeds[0], speeds[1]);
    }
    drop(servers);
    assert!(proxy.stop().status.success());
}

#[test]
fn bulk_flows_through_a_service_with_a_header_in_front() {
    exchange_bulk(&Rig::new(), None, 1, 16 * MB);
}

#[test(light)]
fn every_byte_of_a_service_arrives_on_a_bad_link_too() {
    let bad = Impairment { loss: 0.03, duplicate: 0.02, reorder: 0.03, ..Impairment::default() };
    exchange_bulk(&Rig::new(), Some(bad), 8, 50_000);
}

/// Each direction of a connection arrives at some worker, which hands it over to the one that owns the connection.
#[test(alone)]
fn several_workers_share_the_connections_of_a_service() {
    for queues in [2, 3] {
        exchange_bulk(&Rig::queued(queues), None, 6, MB);
    }
}

/// The server sees an address of the box, and the client's in the header; of two servers one refuses, which the box finds out by itself.
#[test(light)]
fn a_server_that_sees_the_box_only_answers_to_it() {
    let rig = Rig::new();
    add_servers(&rig);
    let server = rig.server.serve(server(11), 8080, |stream| {
        let peer = stream.peer_addr()?;
        assert!(peer.ip().to_string().starts_with("10.77.0.20") && peer.port() >= 1024, "{peer}");
        bulk(stream, "10.77.0.1")
    });
    let blocks = "{ address = \"10.77.0.100\"; port = 80; protocol = http; proxy = v1; reach = full;
        pool = { \"10.77.0.200\", \"10.77.0.201\" }; check = 1; fall = 1; rise = 1; balance = least;
        default = { \"10.77.0.11:8080\", \"10.77.0.12:8080\" }; }";
    let proxy = start(&rig, blocks);
    let ask = || -> io::Result<()> {
        let stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 80))?;
        (&stream).write_all(b"POST /x HTTP/1.1\r\nHost: any.example\r\n\r\n")?;
        traffic::exchange(&stream, 200_000, 200_000).map(drop)
    };
    // The one that refuses is known after its first try.
    let began = Instant::now();
    while ask().is_err() {
        assert!(began.elapsed() < Duration::from_secs(30), "one server answers");
        std::thread::sleep(Duration::from_millis(200));
    }
    std::thread::sleep(Duration::from_millis(1500));
    rig.judge([0, 0], || (0..8).for_each(|n| ask().unwrap_or_else(|error| panic!("connection {n}: {error}"))));
    drop(server);
    assert!(proxy.stop().status.success());
}

/// A proxy in front of the box says who its client is, and the server hears it; who should say it and does not is reset.
#[test(light)]
fn a_trusted_proxy_in_front_says_who_the_client_is() {
    let rig = Rig::new();
    add_servers(&rig);
    let server = rig.server.serve(server(11), 8080, |stream| {
        let head = String::from_utf8(head(&stream)?).expect("text");
        assert!(head.starts_with("PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\nPOST /x HTTP/1.1\r\n"), "{head}");
        traffic::exchanged(stream)
    });
    let blocks =
        "{ address = \"10.77.0.100\"; port = 80; protocol = http; proxy = v1; proxy_from = { \"10.77.0.0/28\" };
        default = { \"10.77.0.11:8080\" }; }";
    let proxy = start(&rig, blocks);
    let service = SocketAddr::new(SERVICE_V4, 80);
    rig.judge([0, 0], || {
        for parts in [
            ["PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", "POST /x HTTP/1.1\r\n\r\n"],
            ["PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\nPOST /x HTTP", "/1.1\r\n\r\n"],
        ] {
            let stream = rig.client.connect(service).expect("connecting to a service");
            for part in parts {
                (&stream).write_all(part.as_bytes()).expect("asking");
                std::thread::sleep(Duration::from_millis(20));
            }
            traffic::exchange(&stream, 200_000, 200_000).expect("bulk");
        }
    });
    let without = ask(&rig, service, b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n");
    assert_eq!(without.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    drop(server);
    assert!(proxy.stop().status.success());
}

/// Clients that say where they want to go, by SOCKS and by CONNECT: what they send behind that already and all that follows arrives, over a bad link too; and who
/// cannot be connected is told why.
#[test(light)]
fn clients_that_say_where_they_want_to_go_get_there_or_hear_why_not() {
    let rig = Rig::new();
    add_servers(&rig);
    let bad = Impairment { loss: 0.02, duplicate: 0.02, reorder: 0.02, ..Impairment::default() };
    let _relay = rig.impair_port(Rig::WAN, bad, 11);
    let server = rig.server.serve(server(11), 8080, |stream| {
        assert_eq!(stream.peer_addr()?.ip().to_string(), "10.77.0.200");
        let head = head(&stream)?;
        assert!(head.starts_with(b"POST /x HTTP/1.1\r\n"));
        traffic::exchanged(stream)
    });
    let more = "reach = full; pool = { \"10.77.0.200\" }; next_hop = \"10.77.0.2\"; allow = { \"10.77.0.1 = 10.77.0.8/29:8080\" };";
    let blocks = format!(
        "{{ address = \"10.77.0.100\"; port = 1080; protocol = socks; {more} }},
         {{ address = \"10.77.0.100\"; port = 3128; protocol = connect; {more} }}"
    );
    let proxy = start(&rig, &blocks);
    let request = |last: u8| [&[5, 1, 0, 1, 10, 77, 0, last][..], &8080u16.to_be_bytes()].concat();
    let socks = SocketAddr::new(SERVICE_V4, 1080);
    for n in 0..6 {
        let mut stream = rig.client.connect(socks).expect("connecting to a service");
        // All at once, or one after the other.
        let (mut method, mut reply) = ([0; 2], [0; 10]);
        let post = b"POST /x HTTP/1.1\r\n\r\n";
        if n % 2 == 0 {
            stream.write_all(&[&[5, 1, 0], &request(11)[..], post].concat()).expect("asking");
            stream.read_exact(&mut method).expect("a method");
        } else {
            stream.write_all(&[5, 1, 0]).expect("greeting");
            stream.read_exact(&mut method).expect("a method");
            stream.write_all(&request(11)).expect("asking");
        }
        stream.read_exact(&mut reply).expect("an answer");
        assert_eq!((method, &reply[..8]), ([5, 0], &[5, 0, 0, 1, 10, 77, 0, 200][..]));
        if n % 2 == 1 {
            stream.write_all(post).expect("what the server waits for");
        }
        traffic::exchange(&stream, 60_000, 60_000).expect("bulk through SOCKS");
    }
    let connect = |host: &str| format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    for _ in 0..2 {
        let mut stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 3128)).expect("connecting to a service");
        stream.write_all(&connect("10.77.0.11:8080")).expect("asking");
        let answer = head(&stream).expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", answer.escape_ascii());
        stream.write_all(b"POST /x HTTP/1.1\r\n\r\n").expect("what the server waits for");
        traffic::exchange(&stream, 60_000, 60_000).expect("bulk through CONNECT");
    }
    // Nobody listens there; it is not allowed; BIND. Each ends without a reset.
    for (asked, code) in [(request(12), 5), (request(2), 2), ([&[5, 2], &request(11)[2..]].concat(), 7)] {
        let answer = ask(&rig, socks, &[&[5, 1, 0], &asked[..]].concat()).expect("an answer and an end");
        assert_eq!(answer, [5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{asked:?}");
    }
    let answer =
        ask(&rig, SocketAddr::new(SERVICE_V4, 3128), &connect("10.77.0.12:8080")).expect("an answer and an end");
    assert!(answer.starts_with(b"HTTP/1.1 502 "), "{}", answer.escape_ascii());
    drop(server);
    assert!(proxy.stop().status.success());
}

/// The kernel forwards connections to services by itself once they are established, however their servers are reached, and no host sees a difference.
#[test]
fn established_connections_of_services_go_on_in_the_kernel() {
    for (way, backend) in [("tc", Backend::Packet), ("xdp", Backend::Driver)] {
        // Super-frames, whose checksums their senders leave to a device, go the way of tc.
        let rig = if way == "tc" { Rig::new().with_default_offloads(false) } else { super::handed_down::rig_for_xdp() };
        add_servers(&rig);
        rig.server.sh(
            "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2; ip link set lo up; ip addr add 10.77.0.102/32 dev lo",
        );
        let serve = |stream: TcpStream| {
            let head = head(&stream)?;
            assert!(head.ends_with(b"POST /x HTTP/1.1\r\nHost: x\r\n\r\n"), "{}", head.escape_ascii());
            traffic::exchanged(stream)
        };
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11));
        let servers = [
            rig.server.serve(server(11), 8080, serve),
            rig.server.serve(v6, 8080, serve),
            rig.server.serve(server(102), 82, serve),
        ];
        let block =
            |address: &str, port: u16, more: &str| format!("{{ address = \"{address}\"; port = {port}; {more} }}");
        let http = "protocol = http; proxy = v1;";
        let pool = "reach = full; pool = { \"10.77.0.200\" };";
        let blocks = [
            block("10.77.0.100", 80, &format!("{http} default = {{ \"10.77.0.11:8080\" }};")),
            block("10.77.0.100", 81, &format!("{http} {pool} default = {{ \"10.77.0.11:8080\" }};")),
            block(
                "10.77.0.102",
                82,
                "protocol = http; reach = mac; pool = { \"10.77.0.201\" }; default = { \"10.77.0.11:82\" };",
            ),
            block(
                "10.77.0.100",
                1080,
                &format!("protocol = socks; {pool} next_hop = \"10.77.0.2\"; allow = {{ \"10.77.0.1 = *:8080\" }};"),
            ),
            block("fd77::100", 80, &format!("{http} default = {{ \"[fd77::11]:8080\" }};")),
            block(
                "fd77::100",
                81,
                &format!("{http} reach = full; pool = {{ \"fd77::200\" }}; default = {{ \"[fd77::11]:8080\" }};"),
            ),
        ];
        let config = format!(
            "fast_path = {way}; conntablesize = 1024; service_buffers = 64; services = {{ {} }};",
            blocks.join(", ")
        );
        let proxy = Appliance::start(&rig, backend, &config);
        let bytes = 8 * MB;
        let places = [
            (SERVICE_V4, 80),
            (SERVICE_V4, 81),
            (server(102), 82),
            (SERVICE_V4, 1080),
            (SERVICE_V6, 80),
            (SERVICE_V6, 81),
        ];
        for (address, port) in places {
            rig.judge([0, 0], || {
                let mut stream = rig.client.connect(SocketAddr::new(address, port)).expect("connecting to a service");
                if port == 1080 {
                    stream.write_all(&[5, 1, 0, 5, 1, 0, 1, 10, 77, 0, 11, 31, 144]).expect("asking");
                    stream.read_exact(&mut [0; 12]).expect("an answer");
                }
                stream.write_all(b"POST /x HTTP/1.1\r\nHost: x\r\n\r\n").expect("asking");
                let speeds = traffic::exchange(&stream, bytes, bytes).expect("bulk through a service");
                note!("{way}, {address} {port}: up {:.0} Mbit/s, down {:.0} Mbit/s", speeds[0], speeds[1]);
            });
        }
        drop(servers);
        let report = proxy.stop();
        assert!(report.status.success());
        let [handed_down, forwarded] =
            ["handed-down", "forwarded by the kernel, bytes"].map(|name| super::handed_down::counted(&report, name));
        note!("{way}: handed down {handed_down} times, {forwarded} bytes");
        assert!(handed_down >= places.len() as u64, "{way}: {handed_down} times:\n{}", report.log.join("\n"));
        // On a loaded machine segments are lost, and what comes up then stays for a while.
        assert!(forwarded > places.len() as u64 * bytes / 2, "{way}: {forwarded} bytes:\n{}", report.log.join("\n"));
    }
}

/// The servers have the service's address themselves, on an interface that does not answer for it.
#[test(light)]
fn servers_with_the_service_s_own_address_are_told_apart_by_their_ethernet_addresses() {
    let rig = Rig::new();
    add_servers(&rig);
    rig.server.sh(
        "sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2; ip link set lo up; ip addr add 10.77.0.100/32 dev lo",
    );
    let server = rig.server.serve(SERVICE_V4, 80, |stream| bulk(stream, "10.77.0.1"));
    let blocks = "{ address = \"10.77.0.100\"; port = 80; protocol = http; proxy = v1; reach = mac; check = 1;
        pool = { \"10.77.0.200\" }; default = { \"10.77.0.11:80\" }; }";
    let proxy = start(&rig, blocks);
    rig.judge([0, 0], || {
        for _ in 0..4 {
            let stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 80)).expect("connecting to a service");
            (&stream).write_all(b"POST /x HTTP/1.1\r\nHost: any.example\r\n\r\n").expect("asking");
            traffic::exchange(&stream, 200_000, 200_000).expect("bulk");
        }
        // The server is asked meanwhile, and refuses nothing.
        std::thread::sleep(Duration::from_millis(2500));
    });
    drop(server);
    let report = proxy.stop();
    assert!(report.status.success());
    assert!(report.figure("server-asked") >= Some(2) && report.figure("server-down").unwrap_or(0) == 0);
}

/// Each of two ends may be on either side, also on the same one.
#[test(light)]
fn clients_and_servers_are_on_any_side() {
    let rig = Rig::new();
    add_servers(&rig);
    rig.client.sh("ip addr add 10.77.0.21/24 dev c0");
    let serve = |stream: TcpStream| {
        let head = head(&stream)?;
        assert!(head.starts_with(b"POST /x HTTP/1.1\r\n"));
        traffic::exchanged(stream)
    };
    let servers = [rig.server.serve(server(11), 8080, serve), rig.client.serve(server(21), 8080, serve)];
    let more = "protocol = http; reach = full; clients_on = both; pool = { \"10.77.0.200\" }; check = 1;";
    let blocks = format!(
        "{{ address = \"10.77.0.100\"; port = 80; {more} default = {{ \"10.77.0.11:8080\" }}; }},
         {{ address = \"10.77.0.100\"; port = 81; {more} servers_on = wan; default = {{ \"10.77.0.21:8080\" }}; }}"
    );
    // With several workers the two directions would have to meet in one.
    let proxy = start_with(&rig, &blocks, &["--workers=1"]);
    for (port, client, what) in [
        (80, &rig.client, "as usual"),
        (80, &rig.server, "both on the LAN"),
        (81, &rig.client, "both on the WAN"),
        (81, &rig.server, "the other way round"),
    ] {
        for _ in 0..3 {
            let stream = client.connect(SocketAddr::new(SERVICE_V4, port)).unwrap_or_else(|e| panic!("{what}: {e}"));
            (&stream).write_all(b"POST /x HTTP/1.1\r\nHost: any.example\r\n\r\n").expect("asking");
            traffic::exchange(&stream, 300_000, 300_000).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    drop(servers);
    assert!(proxy.stop().status.success());
}

/// What a client was acknowledged before its server is known survives a kill of the box, and the connection goes on.
#[test(light)]
fn a_client_that_has_half_asked_when_the_box_is_killed_gets_its_server() {
    let rig = Rig::new();
    add_servers(&rig);
    let state = super::restart::StateDir::new();
    let [key, place] = state.arguments();
    let blocks = "conntablesize = 1024; service_buffers = 64; services = {
        { address = \"10.77.0.100\"; port = 80; protocol = http; proxy = v1; default = { \"10.77.0.11:8080\" }; } };";
    let begin = || Appliance::start_with(&rig, Backend::Packet, blocks, &[&key, &place]);
    let server = rig.server.serve(server(11), 8080, |stream| bulk(stream, "10.77.0.1"));
    let former = begin();
    let mut stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 80)).expect("connecting to a service");
    stream.write_all(b"POST /x HTTP/1.1\r\nHo").expect("asking");
    std::thread::sleep(Duration::from_millis(300));
    drop(former.end(nix::sys::signal::Signal::SIGKILL));
    let next = begin();
    stream.write_all(b"st: any.example\r\n\r\n").expect("asking");
    traffic::exchange(&stream, 100_000, 100_000).expect("bulk over a restart");
    drop(server);
    assert!(next.stop().status.success());
}

/// A server that is not there, and one that refuses.
#[test(light)]
fn a_client_whose_server_cannot_be_reached_is_reset() {
    let rig = Rig::new();
    let blocks = "{ address = \"10.77.0.100\"; port = 80; protocol = http; default = { \"10.77.0.2:9\" }; }";
    let proxy = start(&rig, blocks);
    let refused = ask(&rig, SocketAddr::new(SERVICE_V4, 80), b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n");
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // Half a connection ends as a whole one does.
    let server = rig.server.serve(netns::SERVER_V4, 9, |mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    });
    let mut stream = rig.client.connect(SocketAddr::new(SERVICE_V4, 80)).expect("connecting");
    let request = b"GET / HTTP/1.0\r\n\r\n";
    stream.write_all(request).expect("asking");
    stream.shutdown(Shutdown::Write).expect("an end of one's own");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("the answer after the end");
    assert_eq!(all, request);
    drop(server);
    assert!(proxy.stop().status.success());
}
