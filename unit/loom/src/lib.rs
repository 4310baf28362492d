//! No wake-up is lost, in whatever order the cores see each other's stores, and no signal stays for ever: `handoff/waker.rs` itself with
//! loom's atomics, run through all orders. A lost wake-up would leave the sleeper asleep for ever, which loom reports as a
//! deadlock.
//!
//! Nor is a box left without a process, or ended for nobody, when one process asks another for its state: `state/succession.rs` itself.
//!
//! No program of the kernel acts on an entry of which it has read a part before and a part after it was written: `memory/publish.rs` itself, and readers that
//! read in the order of `pktio/bpf/syns.h` and `pktio/bpf/forward.h`, as x86 does, where no load overtakes another.

#![cfg(test)]

use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::cell::Cell;

#[path = "../../../synproxy/src/dataplane/handoff/waker.rs"]
mod waker;

#[path = "../../../synproxy/src/state/succession.rs"]
mod succession;

#[path = "../../../tcpstate/src/memory/publish.rs"]
mod publish;

use succession::Succession;
use waker::{Waker, published};

/// An eventfd: a count that ends the wait, and is taken as a whole.
#[derive(Default)]
struct Event {
    count: Mutex<u64>,
    risen: Condvar,
}

impl Event {
    fn write(&self) {
        *self.count.lock().unwrap() += 1;
        self.risen.notify_one();
    }

    fn poll(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.risen.wait(count).unwrap();
        }
    }

    fn read(&self) -> u64 {
        std::mem::take(&mut self.count.lock().unwrap())
    }
}

/// A worker's place as the others see it: frames pushed to it so far, in a queue that guarantees less than the real one.
struct Place {
    pushed: AtomicUsize,
    waker: Waker,
    event: Event,
}

impl Place {
    fn new() -> Arc<Self> {
        Arc::new(Self { pushed: AtomicUsize::new(0), waker: Waker::new(), event: Event::default() })
    }

    /// Hands over so many frames and wakes once; as `Endpoint::hand_over` and `Endpoint::wake_receivers`.
    fn hand_over(&self, frames: usize) {
        for _ in 0..frames {
            self.pushed.fetch_add(1, Ordering::Relaxed);
        }
        published();
        if self.waker.claim() {
            self.event.write();
        }
    }

    /// Takes frames until there have been so many, and sleeps whenever there is none; as a worker does with `Endpoint::take`, `begin_sleep` and `end_sleep`.
    fn take(&self, frames: usize, due: &Cell<u64>) {
        let mut taken = 0;
        while taken < frames {
            let pushed = self.pushed.load(Ordering::Relaxed);
            if pushed > taken {
                taken = pushed;
                continue;
            }
            if self.waker.begin_sleep(|| self.pushed.load(Ordering::Relaxed) > taken) {
                self.event.poll();
            }
            self.waker.end_sleep(due, || self.event.read());
        }
    }

    /// At the end no signal is left that would cut a sleep short.
    fn is_quiet(&self, due: &Cell<u64>) {
        assert!(self.waker.begin_sleep(|| false));
        self.waker.end_sleep(due, || self.event.read());
        assert_eq!(*self.event.count.lock().unwrap(), 0, "a signal that is never removed");
    }
}

/// Every order with at most so many changes of thread that nothing asked for: more take minutes, and have shown nothing more.
fn in_every_order(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(run);
}

#[test]
fn a_worker_that_gets_a_frame_while_it_falls_asleep_is_woken() {
    in_every_order(|| {
        let place = Place::new();
        let sender = {
            let place = Arc::clone(&place);
            thread::spawn(move || {
                place.hand_over(1);
                place.hand_over(2);
            })
        };
        let due = Cell::new(0);
        place.take(3, &due);
        sender.join().unwrap();
        place.is_quiet(&due);
    });
}

#[test]
fn of_two_that_wake_at_once_both_frames_are_taken() {
    in_every_order(|| {
        let place = Place::new();
        let senders = [(); 2].map(|()| {
            let place = Arc::clone(&place);
            thread::spawn(move || place.hand_over(1))
        });
        let due = Cell::new(0);
        place.take(2, &due);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        place.is_quiet(&due);
    });
}

/// The state of a box: who has its lock, which is the kernel's and orders everything, and the word by which others ask.
#[derive(Default)]
struct Kept {
    owner: AtomicU64,
    word: AtomicU64,
}

impl Kept {
    /// Has the state until another process asks for it.
    fn has_until_asked(&self, own: u32) {
        assert_eq!(self.owner.load(Ordering::SeqCst), u64::from(own));
        while self.succession().asked().is_none() {
            thread::yield_now();
        }
        self.owner.store(0, Ordering::SeqCst);
    }

    /// Asks until it has the state, and takes back what was asked of the former owner.
    fn takes_over(&self, own: u32) {
        while self.owner.compare_exchange(0, own.into(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
            self.succession().ask(own);
            thread::yield_now();
        }
        self.succession().begin();
    }

    fn succession(&self) -> Succession<'_> {
        Succession::of(&self.word)
    }
}

#[test]
fn who_has_taken_over_is_not_ended_by_its_own_word() {
    in_every_order(|| {
        let kept = Arc::new(Kept { owner: AtomicU64::new(1), word: AtomicU64::new(0) });
        let former = {
            let kept = Arc::clone(&kept);
            thread::spawn(move || kept.has_until_asked(1))
        };
        kept.takes_over(2);
        assert_eq!(kept.succession().asked(), None, "nobody else has asked");
        former.join().unwrap();
    });
}

/// An entry of three words, and the word on which all entries depend.
#[derive(Default)]
struct Offer {
    generation: AtomicU64,
    stamp: AtomicU64,
    words: [AtomicU64; 2],
}

impl Offer {
    /// What each entry holds is the number of its stamp.
    fn write(&self, stamp: u64) {
        publish::replace(&self.stamp, stamp, || self.words.iter().for_each(|word| word.store(stamp, Ordering::Relaxed)));
    }

    /// What the program would act on.
    fn read(&self) -> Option<(u64, [u64; 2])> {
        let load = |word: &AtomicU64| word.load(Ordering::Acquire);
        let generation = load(&self.generation);
        let stamp = load(&self.stamp);
        if stamp == 0 || stamp / 10 != generation {
            return None;
        }
        let words = [load(&self.words[0]), load(&self.words[1])];
        (load(&self.generation) == generation && load(&self.stamp) == stamp).then_some((stamp, words))
    }
}

#[test]
fn an_entry_is_read_as_it_was_written_or_not_at_all() {
    in_every_order(|| {
        let offer = Arc::new(Offer::default());
        offer.generation.store(1, Ordering::Relaxed);
        offer.write(11);
        let writer = {
            let offer = Arc::clone(&offer);
            thread::spawn(move || {
                offer.write(12);
                // What was there holds no more, and is written anew.
                publish::end(&offer.generation, 2);
                offer.write(21);
            })
        };
        if let Some((stamp, words)) = offer.read() {
            assert_eq!(words, [stamp; 2]);
        }
        writer.join().unwrap();
        assert_eq!(offer.read(), Some((21, [21; 2])));
    });
}

#[test]
fn of_two_that_want_a_slot_one_gets_it_and_who_finds_a_name_finds_its_words() {
    const CLAIMED: u64 = 1;
    in_every_order(|| {
        let slot = Arc::new((AtomicU64::new(0), [AtomicU64::new(0), AtomicU64::new(0)]));
        let workers = [5, 6].map(|name| {
            let slot = Arc::clone(&slot);
            thread::spawn(move || {
                let (tag, words) = &*slot;
                let is_claimed = publish::claim(tag, 0, CLAIMED);
                if is_claimed {
                    words.iter().for_each(|word| word.store(name, Ordering::Relaxed));
                    publish::show(tag, name);
                }
                is_claimed
            })
        });
        let (tag, words) = &*slot;
        let name = tag.load(Ordering::Acquire);
        if name > CLAIMED {
            words.iter().for_each(|word| assert_eq!(word.load(Ordering::Acquire), name));
        }
        let claims = workers.map(|worker| worker.join().unwrap());
        assert_eq!(claims.into_iter().filter(|claimed| *claimed).count(), 1);
    });
}
