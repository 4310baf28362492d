//! Accurate ECN (RFC 9768) between two kernels that speak it, `net.ipv4.tcp_ecn = 3`: Linux does since 7.0. `make test-guest` has such a kernel where this machine
//! has none.

use std::net::TcpStream;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use harness::{note, test};
use unit::netns::{self, MIDDLES, Rig, Tap, TcpInfo, mangle, stand, traffic};

/// Bytes each way.
const BYTES: u64 = 600 << 10;

/// What came of a connection, asked when all has been acknowledged.
struct Outcome {
    /// The kernels' words: of the client, of the server.
    ends: [TcpInfo; 2],
    /// The ACE fields that the server sent, and those that reached the client, without those of SYN-ACKs.
    fields: [Vec<String>; 2],
}

/// One connection with bulk both ways.
fn connection(rig: &Rig, server: &traffic::Server, told: &Mutex<mpsc::Receiver<TcpInfo>>) -> Outcome {
    let taps = [Tap::open(&rig.server), Tap::open(&rig.client)];
    let stream = rig.client.connect(server.address).expect("connecting");
    let kept = stream.try_clone().expect("a second handle");
    rig.judge([0, 0], || traffic::exchange(&stream, BYTES, BYTES).expect("bulk"));
    let there = told.lock().expect("nobody panics").recv().expect("the server tells");
    let here = TcpInfo::of(&kept);
    let fields = taps.map(|tap| {
        let segments =
            tap.segments(|from, _| from == server.address).into_iter().filter(|told| !told.flags.contains("SYN"));
        segments
            .map(|told| told.flags.split('+').filter(|flag| matches!(*flag, "AE" | "CWR" | "ECE")).collect())
            .collect()
    });
    Outcome { ends: [here, there], fields }
}

/// Whether `all` has `part` in it, in its order.
fn has_in_order(all: &[String], part: &[String]) -> bool {
    let mut rest = all.iter();
    part.iter().all(|wanted| rest.any(|field| field == wanted))
}

fn through(middle: Option<&str>) {
    let rig = Rig::new();
    for host in [&rig.client, &rig.server] {
        let set = host.command("sysctl").args(["-qw", "net.ipv4.tcp_ecn=3"]).output().expect("starting sysctl");
        if !set.status.success() {
            harness::ignore("this kernel speaks no accurate ECN; `make test-guest` has one that does");
        }
    }
    // Marks between the box and the client, in both directions.
    let _router = rig.mangle(Rig::WAN, mangle::congested);
    let _proxy = stand(&rig, middle);
    let (sender, told) = mpsc::channel();
    let (sender, told) = (Mutex::new(sender), Mutex::new(told));
    let server = rig.server.serve(netns::SERVER_V4, 0, move |stream: TcpStream| {
        let kept = stream.try_clone()?;
        traffic::exchanged(stream)?;
        // The last acknowledgements are still on their way.
        thread::sleep(Duration::from_millis(300));
        let _ = sender.lock().expect("nobody panics").send(TcpInfo::of(&kept));
        Ok(())
    });
    let what = middle.unwrap_or("a bridge");
    let mut counted = 0;
    for number in 0..4 {
        let Outcome { ends: [here, there], fields: [sent, came] } = connection(&rig, &server, &told);
        let modes = [here.ecn(), there.ecn()];
        if middle.is_none() && modes != ["accurate"; 2] {
            harness::ignore(format_args!(
                "this kernel speaks no accurate ECN ({modes:?}); `make test-guest` has one that does"
            ));
        }
        // Of the server the box knows nothing before the first connection.
        let is_accurate = middle.is_none() || number > 0;
        let marks = [&here, &there].map(|end| {
            (
                end.get("received_ce"),
                end.get("delivered_ce"),
                end.get("received_ce_bytes"),
                end.get("delivered_ce_bytes"),
            )
        });
        note!(
            "{what}, #{number}: {modes:?}, (received, delivered, bytes received, delivered) {marks:?}, {} ACE fields of {}",
            came.len(),
            sent.len()
        );
        if !is_accurate {
            continue;
        }
        assert_eq!(modes, ["accurate"; 2], "{what}, #{number}");
        assert!(
            has_in_order(&came, &sent),
            "{what}: the server's ACE fields reach the client in their order:\n{sent:?}\n{came:?}"
        );
        for (receiver, sender) in [(&there, &here), (&here, &there)] {
            assert!(receiver.get("received_ce") > 0, "{what}: marks arrive");
            if middle.is_none() {
                // By bytes, in the options 172 and 174.
                assert_eq!(
                    receiver.get("received_ce_bytes"),
                    sender.get("delivered_ce_bytes"),
                    "{what}, #{number}: {marks:?}"
                );
            } else {
                // By segments, in the ACE field of three bits alone (docs/deviations.md): of an acknowledgement of eight segments or more Linux takes the
                // highest number that it may mean.
                let (is, may_be) = (receiver.get("received_ce"), sender.get("delivered_ce"));
                assert!(may_be >= is && (may_be - is).is_multiple_of(8), "{what}, #{number}: {marks:?}");
            }
        }
        counted += 1;
    }
    assert!(counted >= 3);
}

#[test]
fn counts_of_marks_reach_the_other_end_as_over_a_bridge() {
    for middle in MIDDLES.into_iter().chain([Some("handshake = early;")]) {
        through(middle);
    }
}
