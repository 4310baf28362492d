//! A flow table that one network fills with real connections: clients of other networks get in, and what they have goes on.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use harness::{note, test};
use nix::sys::socket::{setsockopt, sockopt};
use unit::netns::sockets::Making;
use unit::netns::{self, Appliance, Backend, Rig};

/// Flows of the table: eight for each of 32 buckets.
const FLOWS: usize = 256;
/// Honest clients, who come one after the other.
const HONEST: usize = 60;

/// What a connection that fills the table does after it was opened.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// It sends one byte.
    Byte,
    /// It asks for more than it reads.
    Unread,
}

/// Returns to every connection what it sends, whatever becomes of others.
fn echo_all(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        thread::spawn(move || {
            let _ = stream.set_read_timeout(None);
            let (mut stream, mut bytes) = (stream, vec![0; 65_536]);
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                if stream.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        });
    }
}

fn asks(mut stream: &TcpStream, number: usize) -> std::io::Result<()> {
    let question = [number as u8; 100];
    stream.write_all(&question)?;
    let mut answer = [0; 100];
    stream.read_exact(&mut answer)?;
    assert_eq!(question, answer);
    Ok(())
}

fn is_filled(usage: Use) {
    let rig = Rig::new();
    if rig.queues() > 1 {
        harness::ignore("each of several workers has a part of the table, and this fills one table");
    }
    let proxy = Appliance::start(&rig, Backend::Packet, "conntablesize = 32; halfopen_cache_max = 64; shed = off;");
    let attacker = IpAddr::V4(Ipv4Addr::new(10, 88, 1, 1));
    rig.client.sh(&format!("ip addr add {attacker}/32 dev c0"));
    // No honest network holds more than its part.
    let honest_address = |number: usize| IpAddr::V4(Ipv4Addr::new(10, 100 + (number % 20) as u8, 0, 1));
    for number in 0..20 {
        rig.client.sh(&format!("ip addr add {}/32 dev c0", honest_address(number)));
    }
    rig.server.sh(&format!("ip route add 10.64.0.0/10 via {} onlink dev s0", netns::CLIENT_V4));
    let listener = rig.server.run(|| TcpListener::bind(SocketAddr::new(netns::SERVER_V4, 80)).expect("listening"));
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || echo_all(&listener));

    let before = rig.client.connect(address).expect("connecting in peace");
    asks(&before, 0).expect("an answer in peace");
    let (held, honest) = rig.client.run(|| {
        let open = || {
            // So small a buffer that the window shuts however fast the answer comes.
            let shuts = |socket: &OwnedFd| match usage {
                Use::Byte => Ok(()),
                Use::Unread => Ok(setsockopt(socket, sockopt::RcvBuf, &4096)?),
            };
            let stream = Making::default().connect(attacker, address, shuts).ok()?;
            stream.set_nonblocking(true).ok()?;
            let writes = |bytes: &[u8]| (&stream).write(bytes).is_ok();
            let _ = match usage {
                Use::Byte => writes(&[1]),
                Use::Unread => (0..64).all(|_| writes(&[1; 65_536])),
            };
            Some(stream)
        };
        let mut held: Vec<_> = (0..2 * FLOWS).filter_map(|_| open()).collect();
        // That a connection moves nothing is seen four seconds after it was inspected first. Until then the last eighth is all that honest clients have.
        for _ in 0..25 {
            held.extend((0..4).filter_map(|_| open()));
            thread::sleep(Duration::from_millis(300));
        }
        let mut honest = Vec::new();
        for number in 0..HONEST {
            // The attackers do not give up either.
            held.extend((0..4).filter_map(|_| open()));
            let stream = Making::default().connect(honest_address(number), address, |_| Ok(()));
            let stream = stream.unwrap_or_else(|e| panic!("{usage:?}: client {number}: {e}"));
            asks(&stream, number).unwrap_or_else(|e| panic!("{usage:?}: client {number} is not answered: {e}"));
            honest.push(stream);
            asks(&before, number).unwrap_or_else(|e| panic!("{usage:?}: beside client {number}, one is cut: {e}"));
            thread::sleep(Duration::from_millis(300));
        }
        (held, honest)
    });
    let cut = (0..HONEST).filter(|&number| asks(&honest[number], number).is_err()).count();
    assert_eq!(cut, 0, "{usage:?}: clients who rested for some seconds are cut");
    drop((held, honest, before));
    let report = proxy.stop();
    let counted = ["evicted-idle", "evicted-stalled", "evicted-slow", "evicted-silent", "turned-away"]
        .map(|name| (name, report.figure(name).unwrap_or(0)));
    note!("{usage:?}: {counted:?}");
    let evicted: u64 = counted[..3].iter().map(|(_, count)| count).sum();
    assert!(evicted > 0 && counted[4].1 > 0, "{report:?}");
}

#[test(long)]
fn a_byte_on_each_of_its_connections_keeps_nobody_out() {
    is_filled(Use::Byte);
}

#[test(long)]
fn readers_who_read_nothing_keep_nobody_out() {
    is_filled(Use::Unread);
}
