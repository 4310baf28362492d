//! AF_XDP sockets pass from one owner to the next without being closed.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::world::{LAN, Links, Running, World};
use harness::test;
use pktio::{
    FailurePlan, FastPathWay, Guard, LeftSockets, Mode, OnFailure, Opened, Options, Pair, Preparation, open_prepared,
};

/// Numbered datagrams from the WAN's host to the LAN's, one every five milliseconds: what comes of a pause at once has to fit its socket.
struct Numbered {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u32>,
    receiver: JoinHandle<Vec<u32>>,
}

impl Numbered {
    fn start(world: &World) -> Numbered {
        const PORT: u16 = 7000;
        let socket = world.within("lan", || UdpSocket::bind((LAN, PORT)).unwrap()).join().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = world.within("wan", move || {
            let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
            let mut sent = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                socket.send_to(&sent.to_be_bytes(), (LAN, PORT)).unwrap();
                sent += 1;
                thread::sleep(Duration::from_millis(5));
            }
            sent
        });
        let receiver = thread::spawn(move || {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut seen = Vec::new();
            let mut bytes = [0; 4];
            while socket.recv(&mut bytes).is_ok() {
                seen.push(u32::from_be_bytes(bytes));
            }
            seen
        });
        Numbered { stop, sender, receiver }
    }

    /// Returns how many were sent, and those that came.
    fn stop(self) -> (u32, Vec<u32>) {
        self.stop.store(true, Ordering::Relaxed);
        (self.sender.join().unwrap(), self.receiver.join().unwrap())
    }
}

fn options(mode: Mode, workers: usize, frames_per_port: usize) -> Options {
    let failure = FailurePlan { on_failure: OnFailure::Closed, flow_keys: (1, 2), flow_words: 0, forward_words: 0 };
    Options { mode, workers, frames_per_port, failure: Some(failure), ..Options::default() }
}

fn open(world: &World, options: Options, left: Vec<LeftSockets>) -> Opened {
    let open = move || {
        let mut preparation = Preparation::default();
        preparation.left = left;
        let mut opened = open_prepared("lan", "wan", &options, &mut preparation).unwrap();
        opened.guard.take_over().unwrap();
        opened
    };
    world.within("box", open).join().unwrap()
}

/// What the owner of these ports leaves, as another process is told of it.
fn leave(mut pairs: Vec<Pair>) -> Vec<LeftSockets> {
    let told = |pair: &mut Pair| {
        let left = pktio::leave_sockets(&mut *pair.lan, &mut *pair.wan, &mut pair.pool).expect("they can be left");
        let descriptors: Vec<OwnedFd> =
            left.descriptors().iter().map(|one| one.try_clone_to_owned().unwrap()).collect();
        LeftSockets::from_words(&left.words(), descriptors).expect("it makes sense")
    };
    pairs.iter_mut().map(told).collect()
}

/// Ends the owner of these ports, and returns what it leaves; the programs stay.
fn end(mut guard: Guard, pairs: Vec<Pair>) -> Vec<LeftSockets> {
    let left = leave(pairs);
    assert!(guard.keep());
    left
}

#[test(long)]
fn sockets_pass_from_owner_to_owner_with_what_is_in_their_rings() {
    for (links, mode, workers) in [
        (Links::default(), Mode::Driver, 1),
        (Links { mtu: 9000, queues: 2, ..Links::default() }, Mode::Driver, 2),
        (Links { offloads: true, ..Links::default() }, Mode::Generic, 1),
    ] {
        let world = World::new(links);
        let options = || options(mode, workers, Options::default().frames_per_port);
        let mut opened = open(&world, options(), Vec::new());
        let mut bridge = Running::start(opened.pairs);
        assert_eq!(world.ping(3), 3);
        let datagrams = Numbered::start(&world);
        let mut stale = 0;
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(50));
            let pairs = bridge.pairs();
            // What comes from now on waits, for as long as it takes: nobody bridges it.
            thread::sleep(Duration::from_millis(100));
            let total: Vec<usize> = pairs.iter().map(|pair| pair.pool.total()).collect();
            let left = end(opened.guard, pairs);
            assert_eq!(left.len(), workers);
            opened = open(&world, options(), left);
            assert!(opened.pairs.iter().map(|pair| pair.pool.total()).eq(total), "frames were lost");
            assert_eq!(opened.pairs[0].wan.statistics().received, 0, "counters begin anew");
            bridge = Running::start(opened.pairs);
            thread::sleep(Duration::from_millis(50));
            let pairs = bridge.pairs();
            stale += pairs.iter().map(|pair| pair.wan.statistics().failure_dropped).sum::<u64>();
            bridge = Running::start(pairs);
        }
        let (sent, seen) = datagrams.stop();
        // Not beside the datagrams: queues of the hosts lose some of both.
        world.transfer(2_000_000);
        bridge.stop();
        drop(opened.guard);
        assert!(seen.is_sorted(), "{mode:?}: one has overtaken another");
        let missing = u64::from(sent) - seen.len() as u64;
        assert_eq!((missing, stale), (0, 0), "{mode:?}: of {sent} datagrams; and what was found too old");
    }
}

#[test]
fn what_others_have_been_bridged_past_is_dropped() {
    let world = World::new(Links::default());
    let options = || {
        let failure = FailurePlan { on_failure: OnFailure::Open, flow_keys: (1, 2), flow_words: 64, forward_words: 0 };
        Options { mode: Mode::Generic, failure: Some(failure), ..Options::default() }
    };
    let mut opened = open(&world, options(), Vec::new());
    for pair in &mut opened.pairs {
        // The program knows the flows now, of which there are none.
        for port in [&mut pair.lan, &mut pair.wan] {
            port.failure_switch().expect("it is watched").set_flows_entered();
        }
    }
    let bridge = Running::start(opened.pairs);
    assert_eq!(world.ping(3), 3);
    let datagrams = Numbered::start(&world);
    thread::sleep(Duration::from_millis(50));
    let left = leave(bridge.pairs());
    // Some wait for the worker, and the others are bridged.
    thread::sleep(Duration::from_millis(200));
    assert!(opened.guard.keep());
    drop(opened.guard);
    let opened = open(&world, options(), left);
    let bridge = Running::start(opened.pairs);
    thread::sleep(Duration::from_millis(50));
    let (sent, seen) = datagrams.stop();
    let stale = bridge.stop()[0].wan.failure_dropped;
    drop(opened.guard);
    assert!(seen.is_sorted(), "one has overtaken another");
    assert!(stale > 0 && seen.len() > 20, "{stale} too old, {} of {sent} came", seen.len());
}

#[test]
fn a_program_that_forwards_by_itself_takes_none() {
    let world = World::new(Links::default());
    for host in ["lan", "wan"] {
        world.run(host, "ethtool -K e0 gro on");
    }
    let former = open(&world, options(Mode::Driver, 1, 4096), Vec::new());
    let bridge = Running::start(former.pairs);
    assert_eq!(world.ping(3), 3);
    let left = end(former.guard, bridge.pairs());
    let words = pktio::FastPathPlan { way: FastPathWay::Xdp, words: 200, flow_keys: (1, 2), has_front: false };
    let options = Options { fast_path: Some(words), ..options(Mode::Driver, 1, 4096) };
    let mut opened = open(&world, options.clone(), left);
    let pair = &mut opened.pairs[0];
    for port in [&mut pair.lan, &mut pair.wan] {
        assert!(port.kernel_forwarding().is_some(), "it forwards");
    }
    let pairs = std::mem::take(&mut opened.pairs);
    let mut pairs = {
        let bridge = Running::start(pairs);
        assert_eq!(world.ping(3), 3);
        bridge.pairs()
    };
    // And leaves none.
    let pair = &mut pairs[0];
    assert!(pktio::leave_sockets(&mut *pair.lan, &mut *pair.wan, &mut pair.pool).is_none());
    let end = std::time::Instant::now() + Duration::from_secs(5);
    let is_drained = |port: &mut Box<dyn pktio::Port>| port.kernel_forwarding().is_some_and(|port| port.is_drained());
    while !(is_drained(&mut pair.lan) && is_drained(&mut pair.wan)) {
        assert!(std::time::Instant::now() < end, "what came in is counted wrong");
        let mut batch = pktio::Batch::new();
        for port in [&mut pair.lan, &mut pair.wan] {
            port.receive(&mut batch, 64, &mut pair.pool);
        }
        batch.drain(..).for_each(|frame| pair.pool.put(frame));
    }
    drop((pairs, opened));
}

#[test]
fn what_the_next_owner_does_not_want_is_closed_and_opened_anew() {
    let world = World::new(Links { queues: 2, ..Links::default() });
    // The hosts get by with one queue, so that the box may have fewer than it has now.
    for host in ["lan", "wan"] {
        world.run(host, "ethtool -L e0 rx 1 tx 1");
    }
    for (mode, workers, frames_per_port) in
        [(Mode::Driver, 2, 4096), (Mode::Driver, 1, 4096), (Mode::Generic, 2, 4096), (Mode::Driver, 2, 8192)]
    {
        let former = open(&world, options(Mode::Driver, 2, 4096), Vec::new());
        let bridge = Running::start(former.pairs);
        assert_eq!(world.ping(3), 3);
        let left = end(former.guard, bridge.pairs());
        let opened = open(&world, options(mode, workers, frames_per_port), left);
        let bridge = Running::start(opened.pairs);
        assert_eq!(world.ping(3), 3, "{mode:?}, {workers} workers, {frames_per_port} frames");
        bridge.stop();
        drop(opened.guard);
    }
}

#[test]
fn another_process_s_words_about_other_files_are_not_believed() {
    let world = World::new(Links::default());
    let options = || options(Mode::Driver, 1, 4096);
    let former = open(&world, options(), Vec::new());
    let true_left = end(former.guard, former.pairs).remove(0);
    // A file that is no memory file in place of the memory.
    let mut descriptors: Vec<OwnedFd> =
        true_left.descriptors().iter().map(|one| one.try_clone_to_owned().unwrap()).collect();
    descriptors[0] = std::fs::File::open("/proc/self/exe").unwrap().into();
    let words = true_left.words();
    drop(true_left);
    let left = LeftSockets::from_words(&words, descriptors).expect("the words make sense");
    let opened = open(&world, options(), vec![left]);
    let bridge = Running::start(opened.pairs);
    assert_eq!(world.ping(3), 3);
    bridge.stop();
    drop(opened.guard);
}
