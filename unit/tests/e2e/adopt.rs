//! Connections that ran before the proxy stood in their way: they run on, if they show themselves soon enough.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use harness::test;
use unit::netns::{self, Appliance, Backend, Namespace, Rig, traffic};

/// Both families: the client's address and the server's.
const ENDS: [(IpAddr, IpAddr); 2] = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];

/// A question of eight bytes and its answer.
fn asks(stream: &TcpStream, question: u64) -> io::Result<()> {
    let mut stream = stream;
    let mut answer = [0; 8];
    stream.write_all(&question.to_be_bytes())?;
    stream.read_exact(&mut answer)?;
    assert_eq!(u64::from_be_bytes(answer), question, "an answer to another question");
    Ok(())
}

/// Connections of both families and both directions that ran over the bridge before the proxy took its place.
fn running_connections(rig: &Rig) -> Vec<(String, TcpStream, traffic::Server)> {
    let openers: [(&str, &Namespace, &Namespace, [IpAddr; 2]); 2] = [
        ("from the WAN", &rig.client, &rig.server, ENDS.map(|(_, server)| server)),
        ("from the LAN", &rig.server, &rig.client, ENDS.map(|(client, _)| client)),
    ];
    let mut running = Vec::new();
    for (way, opener, acceptor, ips) in openers {
        for ip in ips {
            let server = acceptor.serve(ip, 0, traffic::echo);
            let stream = opener.connect(server.address).expect("connecting over the bridge");
            asks(&stream, 1).expect("asking over the bridge");
            running.push((format!("{way}, {ip}"), stream, server));
        }
    }
    running
}

#[test]
fn connections_that_run_already_run_on() {
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        let rig = Rig::new();
        rig.bridge();
        let running = running_connections(&rig);
        // One of them is busy while the cable is moved.
        let bulk = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
        let busy = rig.client.connect(bulk.address).expect("connecting over the bridge");
        thread::scope(|scope| {
            let busy = scope.spawn(|| traffic::exchange(&busy, 64 << 20, 16 << 20));
            thread::sleep(Duration::from_millis(100));
            rig.unbridge();
            let _proxy = Appliance::start(&rig, Backend::Driver, cache);
            for (what, stream, _) in &running {
                for question in 2..20 {
                    asks(stream, question).unwrap_or_else(|e| panic!("{what}, {cache}: question {question}: {e}"));
                }
            }
            busy.join().expect("an exchange").unwrap_or_else(|e| panic!("busy, {cache}: {e}"));
            for (what, stream, _) in &running {
                stream.shutdown(Shutdown::Write).expect("finishing");
                traffic::expect_end(stream).unwrap_or_else(|e| panic!("{what}, {cache}: the end: {e}"));
            }
        });
    }
}

#[test]
fn without_grace_connections_that_run_already_do_not() {
    let rig = Rig::new();
    rig.bridge();
    let running = running_connections(&rig);
    rig.unbridge();
    let proxy = Appliance::start(&rig, Backend::Driver, "adopt_grace = 0;");
    thread::scope(|scope| {
        for (what, stream, _) in &running {
            scope.spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
                let outcome = asks(stream, 2).map_err(|error| error.kind());
                assert_eq!(outcome, Err(ErrorKind::WouldBlock), "{what}");
            });
        }
    });
    // Where the ends hear of each other again they end.
    drop(proxy);
    rig.bridge();
}
