//! What the proxy cannot translate, or not promise for a server that is not asked yet: signed connections pass, Multipath TCP
//! and Fast Open fall back to plain TCP.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use harness::{note, test};
use nix::errno::Errno;
use unit::netns::sockets::{self, Making};
use unit::netns::{self, Appliance, Backend, Rig, traffic};

/// Both families: the client's address and the server's.
const ENDS: [(IpAddr, IpAddr); 2] = [(netns::CLIENT_V4, netns::SERVER_V4), (netns::CLIENT_V6, netns::SERVER_V6)];

#[test]
fn a_signed_connection_passes_as_over_the_bridge() {
    const KEY: &[u8] = b"a secret between routers";
    for middle in netns::MIDDLES {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        for (client, server) in ENDS {
            let listener = rig
                .server
                .run(|| Making::default().listen(server, |socket| sockets::sign_with_md5(socket, client, KEY)));
            let listener = match listener {
                Err(error) if error.raw_os_error() == Some(Errno::ENOPROTOOPT as i32) => {
                    harness::ignore("this kernel has no TCP-MD5");
                }
                other => other.expect("a listener that wants signatures"),
            };
            let address = listener.local_addr().expect("a bound socket has an address");
            // Twice: at the second connection the server is known.
            for _ in 0..2 {
                let before = rig.counters();
                thread::scope(|scope| {
                    let served =
                        scope.spawn(|| sockets::accept(&listener, Duration::from_secs(5)).and_then(traffic::exchanged));
                    let outcome = rig.client.run(|| {
                        let prepare = |socket: &_| sockets::sign_with_md5(socket, server, KEY);
                        let stream = Making::default().connect(client, address, prepare)?;
                        traffic::exchange(&stream, 1 << 20, 1 << 20)
                    });
                    outcome.unwrap_or_else(|e| panic!("{server}, {middle:?}: the client: {e}"));
                    let served = served.join().expect("a server");
                    served.unwrap_or_else(|e| panic!("{server}, {middle:?}: the server: {e}"));
                });
                for (after, before) in rig.counters().iter().zip(&before) {
                    let risen = after.since(before);
                    for fault in ["TcpExtTCPMD5NotFound", "TcpExtTCPMD5Unexpected", "TcpExtTCPMD5Failure"] {
                        assert_eq!(risen.get(fault), 0, "{server}, {middle:?}: {fault}");
                    }
                }
            }
        }
    }
}

#[test]
fn multipath_falls_back_to_plain_tcp_unless_it_may_pass() {
    const PASS: &str = "mptcp = pass;";
    for middle in netns::MIDDLES.into_iter().chain([Some(PASS)]) {
        let rig = Rig::new();
        let _proxy = netns::stand(&rig, middle);
        for (client, server) in ENDS {
            let listener = match rig.server.run(|| Making::MULTIPATH.listen(server, |_| Ok(()))) {
                Err(error) if [Errno::EPROTONOSUPPORT, Errno::ENOPROTOOPT].contains(&errno(&error)) => {
                    harness::ignore("this kernel has no Multipath TCP");
                }
                other => other.expect("a listener"),
            };
            let address = listener.local_addr().expect("a bound socket has an address");
            for _ in 0..2 {
                let before = rig.client.counters();
                thread::scope(|scope| {
                    let served =
                        scope.spawn(|| sockets::accept(&listener, Duration::from_secs(5)).and_then(traffic::exchanged));
                    let outcome = rig.client.run(|| {
                        let stream = Making::MULTIPATH.connect(client, address, |_| Ok(()))?;
                        traffic::exchange(&stream, 1 << 20, 1 << 20)
                    });
                    outcome.unwrap_or_else(|e| panic!("{server}, {middle:?}: the client: {e}"));
                    let served = served.join().expect("a server");
                    served.unwrap_or_else(|e| panic!("{server}, {middle:?}: the server: {e}"));
                });
                let risen = rig.client.counters().since(&before);
                let names = ["MPTcpExtMPCapableSYNTX", "MPTcpExtMPCapableSYNACKRX", "MPTcpExtMPCapableFallbackSYNACK"];
                let handshake = names.map(|name| risen.get(name));
                note!("{server}, {middle:?}: offered, agreed, fell back {handshake:?}");
                let expected = if middle.is_none_or(|config| config == PASS) { [1, 1, 0] } else { [1, 0, 1] };
                assert_eq!(handshake, expected, "{server}, {middle:?}: offered, agreed, fell back");
            }
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Connects with the first bytes in the SYN, where the server has given a cookie for that, and checks that they arrive once.
fn connects_with_data(rig: &Rig, ends: (IpAddr, SocketAddr), what: &str) {
    const BYTES: u64 = 20_000;
    let outcome = rig.client.run(|| {
        let stream = Making::default().connect(ends.0, ends.1, sockets::connect_with_data)?;
        traffic::send(&stream, 1, BYTES)?;
        stream.shutdown(Shutdown::Write)?;
        traffic::receive(&stream, 2, None)
    });
    assert_eq!(outcome.unwrap_or_else(|e| panic!("{}, {what}: {e}", ends.1)), BYTES, "{}, {what}", ends.1);
}

#[test]
fn data_in_a_syn_is_delivered_once() {
    const PASS: &str = "fastopen = pass;";
    for config in [netns::CACHE_ON, netns::CACHE_OFF, PASS] {
        let rig = Rig::new();
        rig.sysctl("net.ipv4.tcp_fastopen", "3");
        rig.bridge();
        let servers = ENDS.map(|(client, server)| {
            let served = rig.server.serve(server, 0, |stream| {
                // As many bytes back as came, and these are the right ones.
                let bytes = traffic::receive(&stream, 1, None)?;
                traffic::send(&stream, 2, bytes)
            });
            sockets::accept_with_data(served.listener()).expect("a listener takes data in a SYN");
            (client, served)
        });
        let connects = |what: &str| {
            let before = rig.counters();
            for (client, server) in &servers {
                for _ in 0..3 {
                    connects_with_data(&rig, (*client, server.address), what);
                }
            }
            let after = rig.counters();
            let active = after[0].since(&before[0]);
            let [taken, not] = ["TcpExtTCPFastOpenActive", "TcpExtTCPFastOpenActiveFail"].map(|name| active.get(name));
            note!("{what}, {config}: of {taken} SYNs the data was acknowledged, of {not} not");
            [taken, not]
        };
        // The first connection of each family asks for a cookie.
        assert_eq!(connects("bridge"), [4, 0], "the bridge itself");
        // The cookies are good still, and the clients use them.
        rig.unbridge();
        let _proxy = Appliance::start(&rig, Backend::Driver, config);
        let [taken, not] = connects("proxy, with the bridge's cookies");
        if config == PASS {
            assert_eq!([taken, not], [6, 0], "data of SYNs that pass was acknowledged, and was not");
        } else {
            assert!(taken == 0 && not > 0, "{config}: the data of {taken} SYNs was acknowledged, of {not} not");
        }
    }
}

#[test]
fn without_a_cookie_nothing_is_sent_in_a_syn_through_the_proxy() {
    for cache in [netns::CACHE_ON, netns::CACHE_OFF] {
        let rig = Rig::new();
        rig.sysctl("net.ipv4.tcp_fastopen", "3");
        let _proxy = Appliance::start(&rig, Backend::Driver, cache);
        for (client, server) in ENDS {
            let served = rig.server.serve(server, 0, |stream| {
                let bytes = traffic::receive(&stream, 1, None)?;
                traffic::send(&stream, 2, bytes)
            });
            sockets::accept_with_data(served.listener()).expect("a listener takes data in a SYN");
            for _ in 0..3 {
                connects_with_data(&rig, (client, served.address), cache);
            }
        }
    }
}
