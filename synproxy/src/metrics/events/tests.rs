use super::*;
use crate::metrics::top_talkers::{Level, Name, SynTarget};
use std::path::PathBuf;

const PATIENCE: Duration = Duration::from_secs(20);

/// SYNs to one service in a window of two seconds.
fn window(syns: u64) -> SynReport {
    let service = Name { address: [0, 0, 0xffff, 0xc000_0201], v6: false, port: 80 };
    let mut report = SynReport { period: Duration::from_secs(2), syns, ..SynReport::default() };
    for level in Level::ALL {
        report.targets[level as usize] = vec![SynTarget { name: level.of(service), syns, surplus: 0, opened: 0 }];
    }
    report
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn events(board: &Arc<Board>, settings: &confparse::Events) -> Events {
    let (_, inbox) = channel();
    Events::start(inbox, settings, ["xdp:lan0", "wan0"], Arc::clone(board), None).unwrap()
}

#[test]
fn what_workers_publish_becomes_an_attack_and_is_kept_counted_and_written() {
    let board = Arc::new(Board::new(2));
    let file: PathBuf = std::env::temp_dir().join(format!("spx-events-all-{}", std::process::id()));
    let settings = confparse::Events {
        file: Some(file.clone()),
        attack_end_after: Duration::from_secs(1),
        ..confparse::Events::default()
    };
    let events = events(&board, &settings);
    let journal = events.journal();
    let names = || journal.after(0).iter().map(|record| record.event.name()).collect::<Vec<_>>();
    until("an attack begins", || {
        board.slot(0).publish_syns(window(3000));
        board.slot(1).publish_syns(window(1000));
        names().contains(&"attack-begin")
    });
    let begin = journal.after(0).remove(0);
    assert_eq!((begin.number, begin.appliance.as_str()), (1, "lan0-wan0"));
    assert_eq!(begin.event.attack().map(|attack| attack.pps), Some(2000), "both workers' windows together");
    until("it is counted", || board.supervisor().get(Notice::Attacks) == 1);
    until("it ends", || {
        board.slot(0).publish_syns(window(0));
        board.slot(1).publish_syns(window(0));
        names().last() == Some(&"attack-end")
    });
    assert_eq!(board.supervisor().get(EventKind::AttackBegin), 1);
    let kept = journal.after(0);
    assert_eq!(journal.after(kept.len() as u64 - 1).len(), 1, "only the later ones");
    events.finish();
    let written = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let written: Vec<Record> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written, kept);
    assert!(humantime::parse_rfc3339(&written[0].time).is_ok(), "{}", written[0].time);
}

#[test]
fn a_window_is_forgotten_when_its_worker_publishes_no_other() {
    let board = Arc::new(Board::new(2));
    let mut watch = Watch::new(Arc::clone(&board));
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    assert_eq!(watch.look(at(0), None), (None, Vec::new()));
    board.slot(0).publish_syns(window(1000));
    assert!(watch.look(at(1), None).0.is_some());
    assert_eq!(watch.look(at(2), None).0, None, "nothing is new");
    board.slot(1).publish_syns(window(500));
    let both = watch.look(at(3), Some(window(100))).0;
    let mut expected = Load::default();
    [1000, 500, 100].iter().for_each(|&syns| expected.add(&window(syns)));
    assert_eq!(both, Some(expected));
    board.slot(1).publish_syns(window(500));
    let mut expected = Load::default();
    expected.add(&window(500));
    assert_eq!(watch.look(at(9), None).0, Some(expected));
}

#[test]
fn losses_count_only_if_they_last_and_matter() {
    let board = Arc::new(Board::new(1));
    let mut watch = Watch::new(Arc::clone(&board));
    let begin = Instant::now();
    let mut snapshot = Snapshot::default();
    let mut second = 0;
    let mut look = |received: u64, lost: u64| {
        second += 1;
        let add = |snapshot: &mut Snapshot, metric, more| {
            let metric = Metric::Wan(metric);
            snapshot.set(metric, snapshot.get(metric) + more);
        };
        add(&mut snapshot, PortMetric::Received, received);
        add(&mut snapshot, PortMetric::ReceiveFull, lost);
        board.slot(0).publish(&snapshot);
        board.slot(0).publish_syns(window(1));
        watch.look(begin + Duration::from_secs(second), None).0.map(|load| load.is_lossy)
    };
    assert_eq!(look(0, 0), None);
    assert_eq!([look(1000, 500), look(1000, 500), look(1000, 10)], [Some(false), Some(false), Some(true)]);
    assert_eq!([look(1000, 9), look(1000, 500)], [Some(false), Some(false)]);
}

#[test]
fn a_worker_that_serves_no_port_for_a_while_is_stalled_until_it_does_again() {
    let board = Arc::new(Board::new(2));
    let mut watch = Watch::new(Arc::clone(&board));
    let begin = Instant::now();
    let mut look = |second: u64, iterations: [u64; 2]| {
        for (worker, iterations) in iterations.into_iter().enumerate() {
            let mut snapshot = Snapshot::default();
            snapshot.set(WorkerMetric::PollIterations, iterations);
            board.slot(worker).publish(&snapshot);
        }
        watch.look(begin + Duration::from_secs(second), None).1
    };
    // Worker 1 has not begun yet.
    assert!((0..20).all(|second| look(second, [second, 0]).is_empty()));
    assert!((20..25).all(|second| look(second, [20, second]).is_empty()));
    assert_eq!(look(25, [20, 25]), [Event::WorkerStalled { worker: 0, seconds: 5 }]);
    assert!((26..99).all(|second| look(second, [20, second]).is_empty()), "once");
    assert_eq!(look(99, [21, 99]), [Event::WorkerResumed { worker: 0 }]);
}

#[test]
fn too_many_events_are_dropped_and_counted_and_nobody_waits() {
    let (sender, inbox) = channel();
    for worker in 0..WAITING + 5 {
        sender.send(Event::WorkerResumed { worker });
    }
    assert_eq!(sender.delivery.get(DeliveryMetric::Dropped), 5);
    let board = Arc::new(Board::new(1));
    let settings = confparse::Events::default();
    let events = Events::start(inbox, &settings, ["lan0", "wan0"], Arc::clone(&board), None).unwrap();
    until("all are reported", || board.supervisor().get(EventKind::WorkerResumed) == WAITING as u64);
    assert_eq!(board.supervisor().get(DeliveryMetric::Dropped), 5);
    let kept = events.journal().after(0);
    assert_eq!((kept.len(), kept.last().map(|record| record.number)), (KEPT, Some(WAITING as u64)));
    events.finish();
    sender.send(Event::WorkerResumed { worker: 0 });
}

#[test]
fn an_output_that_hangs_delays_no_other_and_loses_what_does_not_fit() {
    let board = Arc::new(Board::new(1));
    let directory = std::env::temp_dir();
    let file = directory.join(format!("spx-events-beside-{}", std::process::id()));
    let settings = confparse::Events {
        file: Some(file.clone()),
        command: Some("/bin/sleep 1000".to_owned()),
        commands: 1,
        command_timeout: Duration::from_secs(1000),
        ..confparse::Events::default()
    };
    let (sender, inbox) = channel();
    let events = Events::start(inbox, &settings, ["lan0", "wan0"], Arc::clone(&board), None).unwrap();
    for worker in 0..400 {
        sender.send(Event::WorkerResumed { worker });
        thread::sleep(Duration::from_micros(100));
    }
    let lines = || fs::read_to_string(&file).unwrap_or_default().lines().count() as u64;
    until("the file has them all, but for what it lost itself", || {
        lines() + board.supervisor().get(DeliveryMetric::FileLost) == 400
    });
    until("what waits for the command is bounded", || {
        board.supervisor().get(DeliveryMetric::CommandLost) >= 400 - 256 - 64 - 2
    });
    assert_eq!(board.supervisor().get(DeliveryMetric::CommandRun), 1);
    let begin = Instant::now();
    events.finish();
    assert!(begin.elapsed() < Duration::from_secs(5), "the end does not wait for it");
    fs::remove_file(&file).unwrap();
}

#[test]
fn links_are_reported_when_they_change() {
    let (sender, inbox) = channel();
    let mut supervision = Supervision::new(sender, ["xdp:lan0", "wan0"]);
    let report = |condition, lost, settings_changed| {
        Some(LinkReport { condition, since: Instant::now(), lost, taken_down: 0, settings_changed })
    };
    let took = |inbox: &Inbox| {
        let events = inbox.queue.try_iter().map(|message| match message {
            Message::Event(event) => event.to_string(),
            Message::Settings(_) | Message::End => panic!("nobody changes or ends it"),
        });
        events.collect::<Vec<_>>()
    };
    supervision.links([report(Condition::Up, 0, 0), None]);
    assert!(took(&inbox).is_empty(), "all is well");
    supervision.links([report(Condition::NoCarrier, 1, 0), report(Condition::Down, 0, 0)]);
    assert_eq!(took(&inbox), ["lan0 is no-carrier; lost 1 times", "wan0 is down; lost 0 times"]);
    supervision.links([report(Condition::Up, 1, 2), report(Condition::Down, 0, 0)]);
    assert_eq!(took(&inbox), ["lan0 is up; lost 1 times", "somebody has changed settings of lan0, 2 times"]);
    // It was lost and came back between two looks.
    supervision.links([report(Condition::Up, 2, 2), None]);
    assert_eq!(took(&inbox), ["lan0 is up; lost 2 times"]);
}
