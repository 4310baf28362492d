//! What the box asks of the kernel, by its own account: a box with nothing to do sleeps, and one at work wakes the kernel once a turn and
//! port at most, and only where there is something to be sent (or, where it polls the driver, to be received).

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use harness::{note, test};
use unit::netns::appliance::Report;
use unit::netns::{self, Appliance, Backend, CACHE_ON, Rig, traffic};

/// The numbers of a row of the table at the end; none where it is left out, as there was nothing to count.
fn row(report: &Report, label: &str) -> Vec<u64> {
    let rest = report.log.iter().rev().find_map(|line| line.strip_prefix(label));
    rest.unwrap_or_default().split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

fn figure(report: &Report, label: &str) -> u64 {
    *row(report, label).first().unwrap_or_else(|| panic!("no `{label}` in\n{}", report.log.join("\n")))
}

#[test]
fn a_box_with_nothing_to_do_sleeps_and_wakes_nobody() {
    for backend in [Backend::Driver, Backend::Packet] {
        let rig = Rig::new();
        let proxy = Appliance::start(&rig, backend, CACHE_ON);
        thread::sleep(Duration::from_secs(2));
        let report = proxy.stop();
        let (turns, sleeps) = (figure(&report, "poll iterations"), figure(&report, "sleeps between them"));
        let (received, sent) = (row(&report, "received, frames"), row(&report, "sent, frames"));
        let kicks: u64 = row(&report, "kernel woken up, times").iter().sum();
        note!("{backend:?}: {turns} turns, {sleeps} sleeps, {kicks} kicks, received {received:?}");
        // A sleep lasts a fifth of a second; a frame of the hosts' own costs one more, and two turns.
        let frames: u64 = received.iter().sum();
        assert!(turns <= 100 * u64::from(rig.queues()) + 4 * frames, "{backend:?}: {turns} turns");
        assert!(sleeps > 0 && kicks <= sent.iter().sum(), "{backend:?}: {sleeps} sleeps, {kicks} kicks");
    }
}

#[test(alone)]
fn the_kernel_is_woken_once_a_turn_and_port_at_most() {
    for backend in [Backend::Driver, Backend::Packet] {
        for poll in ["--poll=interrupt", "--poll=adaptive", "--poll=busy"] {
            let rig = Rig::alone();
            let proxy = Appliance::start_with(&rig, backend, CACHE_ON, &[poll]);
            let server = rig.server.serve(netns::SERVER_V4, 0, traffic::echo);
            let mut stream = rig.client.connect(server.address).expect("connecting");
            for question in 0..500_u32 {
                stream.write_all(&question.to_be_bytes()).expect("asking");
                stream.read_exact(&mut [0; 4]).expect("an answer");
            }
            let bulk = rig.server.serve(netns::SERVER_V4, 0, traffic::exchanged);
            let busy = rig.client.connect(bulk.address).expect("connecting");
            traffic::exchange(&busy, 4 << 20, 4 << 20).expect("exchanging");
            drop((stream, busy));
            let report = proxy.stop();
            let (turns, sleeps) = (figure(&report, "poll iterations"), figure(&report, "sleeps between them"));
            let (kicks, sent) = (row(&report, "kernel woken up, times"), row(&report, "sent, frames"));
            note!("{backend:?}, {poll}: {turns} turns, {sleeps} sleeps, {kicks:?} kicks for {sent:?} frames");
            let busy = poll == "--poll=busy";
            for (kicks, sent) in kicks.into_iter().zip(sent) {
                // One who polls the driver drives its receive path as well, in turns that found nothing.
                let most = if busy { 2 * turns } else { turns.min(sent) };
                assert!(kicks > 0 && kicks <= most, "{backend:?}, {poll}: {kicks} kicks");
            }
            assert_eq!(sleeps == 0, busy, "{backend:?}, {poll}: {sleeps} sleeps");
        }
    }
}
