//! What a process leaves that is killed in the middle of a change. A child makes each kind of change under single stepping. After each of its instructions
//! that has changed the memory of the table, a copy of that memory is adopted, as the next process would find it: a flow is then as it was before
//! the change, or as it is behind it, and nothing else has changed.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

use super::*;
use crate::seq::SeqNum;

const KEYS: Keys = (1, 2);
const NOW: Instant = Instant::from_secs(1000);
const CAPACITY: usize = 4;
const BUCKETS: usize = 8;

/// Instructions of a change at most.
const MOST_STEPS: u32 = 100_000;

/// Which change the child makes.
const CHANGE: &str = "TABLE_CHANGE";

/// The flows, by number: the even ones are between IPv6 addresses.
fn key(n: u32) -> FlowKey {
    let v6 = n.is_multiple_of(2);
    let [lan, wan] = if v6 { [[9, 9, n, 1], [7, 7, n, n]] } else { [[0, 0, 0xffff, 1], [0, 0, 0xffff, n]] };
    FlowKey { lan, wan, lan_port: 80, wan_port: n as u16, v6, ..FlowKey::default() }
}

/// The second key of a flow.
fn second(n: u32) -> Redirect {
    let key = FlowKey { lan_port: 8080, ..key(n) };
    let mut redirect = Redirect::new(&key, key.hash(KEYS), Side::Wan, Side::Lan);
    redirect.seq_delta = SeqDelta::between(0, n);
    redirect
}

fn enter(table: &mut Table, n: u32) -> Id {
    let fill = |flow: &mut Flow| {
        flow.set(FlowFlags::PROXIED, true);
        flow.outer_isn = SeqNum::new(100 + n);
        flow.mss = 1400 + n as u16;
    };
    let id = table.insert(&key(n), key(n).hash(KEYS), Side::Wan, State::ServerSynSent, fill).expect("there is room");
    table.enter(id, 50 + n);
    id
}

fn find(table: &Table, n: u32) -> Id {
    table.find(&key(n), key(n).hash(KEYS)).expect("it is there")
}

/// Numbers of both ends, and flags: words that are each valid alone.
fn advance(flow: &mut Flow) {
    for side in Side::BOTH {
        let end = flow.endpoint_mut(side);
        end.next = SeqNum::new(0x0101_0101);
        end.acked = SeqNum::new(0x0202_0202);
        end.ts_value = 0x0303_0303;
    }
    flow.set(FlowFlags::CARRIED, true);
}

/// What the server's answer brings, and belongs to the state.
fn answered(flow: &mut Flow) -> State {
    flow.seq_delta = SeqDelta::between(0, 0x0404_0404);
    flow.ts_delta = SeqDelta::between(0, 0x0505_0505);
    flow.ts_base = 0x0606_0606;
    flow.mss = 536;
    advance(flow);
    State::WindowPending
}

/// How much of a change may be found alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// All or nothing.
    Record,
    /// Each field of a record that is changed.
    Word,
}

struct Change {
    what: &'static str,
    unit: Unit,
    /// What is done before, not under single stepping.
    prepare: fn(&mut Table),
    make: fn(Table) -> Table,
}

fn with(mut table: Table, change: impl FnOnce(&mut Table)) -> Table {
    change(&mut table);
    table
}

/// Leaves a change of flow 1 unfinished, as a process that was killed.
fn abandon(table: &mut Table) {
    let id = find(table, 1);
    let (records, undo) = table.slab.records.split_at_mut(CAPACITY);
    undo[0] = records[id.0 as usize];
    (undo[0].link_next, undo[0].slot) = (id.0, UNDO);
    answered(&mut records[id.0 as usize]);
}

const CHANGES: [Change; 10] = [
    Change {
        what: "a flow is entered",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| _ = enter(table, 3)),
    },
    Change {
        what: "a flow between IPv6 addresses takes a place that is used again",
        unit: Unit::Record,
        prepare: |table| {
            let id = enter(table, 3);
            table.remove(id);
        },
        make: |table| with(table, |table| _ = enter(table, 4)),
    },
    Change {
        what: "numbers and flags",
        unit: Unit::Word,
        prepare: |_| (),
        make: |table| with(table, |table| table.update(find(table, 1), advance)),
    },
    Change {
        what: "a state, and what belongs to it",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| _ = table.follow_state(find(table, 1), answered)),
    },
    Change {
        what: "the same of a flow between IPv6 addresses",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| _ = table.follow_state(find(table, 2), answered)),
    },
    Change {
        what: "a flow is removed",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| table.remove(find(table, 2))),
    },
    Change {
        what: "a timer",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| table.schedule(find(table, 1), 5000)),
    },
    Change {
        what: "a second key",
        unit: Unit::Record,
        prepare: |_| (),
        make: |table| with(table, |table| assert!(table.redirect(find(table, 1), second(1)))),
    },
    Change {
        what: "the table is adopted",
        unit: Unit::Record,
        prepare: |table| assert!(table.redirect(find(table, 1), second(1))),
        make: |table| Table::adopt(BUCKETS, table.into_slab(), KEYS, NOW),
    },
    Change {
        what: "the table is adopted after a change that was not finished",
        unit: Unit::Record,
        prepare: abandon,
        make: |table| Table::adopt(BUCKETS, table.into_slab(), KEYS, NOW),
    },
];

/// Memory of a table, which is never freed.
fn memory(content: &[u64]) -> &'static mut [u64] {
    let words = Slab::words(CAPACITY, true);
    let memory = vec![0; words + 8].leak();
    let skip = memory.as_ptr().align_offset(64);
    let memory = &mut memory[skip..skip + words];
    memory[..content.len()].copy_from_slice(content);
    memory
}

/// What the next process has of a flow: its record but for what is made anew, and its second key.
type Outcome = Vec<Option<(Flow, Option<Redirect>)>>;

/// What the next process finds in this memory.
fn adopted(content: &[u64]) -> Outcome {
    let slab = Slab::mapped(memory(content), CAPACITY, true, true).expect("as much as is needed");
    let table = Table::adopt(BUCKETS, slab, KEYS, NOW);
    let found = |n| {
        let id = table.find(&key(n), key(n).hash(KEYS))?;
        let mut flow = table[id];
        (flow.slot, flow.link_next, flow.link_prev, flow.generation, flow.held) = (0, 0, 0, 0, 0);
        // One that is on no timer yet is due at once: it is as if it had not been entered.
        (flow.deadline != 0).then(|| (flow, table.redirected(id).copied()))
    };
    (1..=4).map(found).collect()
}

/// Whether each word of a record is that of one of two others.
fn is_mixed(own: &Outcome, before: &Outcome, after: &Outcome) -> bool {
    use zerocopy::IntoBytes;
    own.iter().zip(before.iter().zip(after)).all(|three| match three {
        (Some((own, _)), (Some((before, _)), Some((after, _)))) => {
            let words = |flow: &Flow| flow.as_bytes().chunks(4).map(<[u8]>::to_vec).collect::<Vec<_>>();
            let (own, before, after) = (words(own), words(before), words(after));
            own.iter().zip(before.iter().zip(&after)).all(|(own, (before, after))| own == before || own == after)
        }
        (own, (before, _)) => own == before,
    })
}

/// The child of the test below: makes a change between two stops.
#[test]
#[ignore = "it is a child of `whenever_a_process_is_killed_its_flows_are_whole`"]
fn child() {
    let Some(change) = env::var(CHANGE).ok().and_then(|number| CHANGES.get(number.parse::<usize>().ok()?)) else {
        return;
    };
    let words = memory(&[]);
    // Before it says so: a thread that nobody traces cannot be waited for.
    ptrace::traceme().expect("being traced");
    // Behind the line of the test itself, whose end is missing.
    println!("\n@ {} {} {}", gettid(), words.as_ptr() as usize, words.len());
    let mut table = Table::new(BUCKETS, Slab::mapped(words, CAPACITY, true, false).expect("as much as is needed"), NOW);
    enter(&mut table, 1);
    enter(&mut table, 2);
    (change.prepare)(&mut table);
    signal::raise(Signal::SIGSTOP).expect("stopping");
    let table = (change.make)(table);
    signal::raise(Signal::SIGSTOP).expect("stopping");
    drop(table);
}

/// The memory of the table of a child that makes a change: before it, and then whenever an instruction has changed it. And how many instructions there were.
fn step_through(number: usize) -> (Vec<Vec<u64>>, u32) {
    let name = format!("{}::child", module_path!().split_once("::").expect("it is a module").1);
    let mut child = Command::new(env::current_exe().expect("a program"))
        .args(["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHANGE, number.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starting a child");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let said = lines.find_map(|line| Some(line.strip_prefix("@ ")?.to_owned())).expect("it says where its table is");
    let mut numbers = said.split(' ').map(|number| number.parse::<u64>().expect("a number"));
    let [thread, address, words] = std::array::from_fn(|_| numbers.next().expect("three numbers"));
    let thread = Pid::from_raw(thread as i32);
    let wait = || waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it is traced");
    assert_eq!(wait(), WaitStatus::Stopped(thread, Signal::SIGSTOP));
    let memory = File::open(format!("/proc/{}/mem", child.id())).expect("the memory of a child");
    let mut bytes = vec![0; 8 * words as usize];
    let mut look = || {
        memory.read_exact_at(&mut bytes, address).expect("its table");
        bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes"))).collect::<Vec<_>>()
    };
    let (mut found, mut steps) = (vec![look()], 0);
    loop {
        ptrace::step(thread, None).expect("it is stopped");
        match wait() {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            WaitStatus::Stopped(_, Signal::SIGSTOP) => break,
            other => panic!("{other:?}"),
        }
        steps += 1;
        assert!(steps < MOST_STEPS, "it does not come to an end");
        let next = look();
        if Some(&next) != found.last() {
            found.push(next);
        }
    }
    child.kill().expect("ending the child");
    // Its end is told to who traces the thread, and only then to who started the child.
    assert!(matches!(wait(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
    assert_eq!(child.wait().expect("it ends").signal(), Some(Signal::SIGKILL as i32));
    (found, steps)
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "an emulated program cannot be traced")]
fn whenever_a_process_is_killed_its_flows_are_whole() {
    for (number, change) in CHANGES.iter().enumerate() {
        let (found, steps) = step_through(number);
        println!("{}: {steps} instructions, {} of them changed the table", change.what, found.len() - 1);
        assert!(found.len() > 1, "{}: nothing has changed", change.what);
        let [before, after] = [0, found.len() - 1].map(|at| adopted(&found[at]));
        for (at, content) in found.iter().enumerate() {
            let own = adopted(content);
            let is_whole =
                own == before || own == after || change.unit == Unit::Word && is_mixed(&own, &before, &after);
            assert!(is_whole, "{}, after change {at}:\n{own:?}\nbefore:\n{before:?}\nafter:\n{after:?}", change.what);
        }
    }
}
