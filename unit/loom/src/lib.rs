//! No wake-up is lost, in whatever order the cores see each other's stores, and none is heard for ever: the sleeper's word itself
//! (`handoff/bell.rs`) with loom's atomics, taken through all orders. A wake-up that was lost would leave the sleeper asleep for ever,
//! which loom reports as a deadlock.

#![cfg(test)]

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::cell::Cell;

#[path = "../../../synproxy/src/dataplane/handoff/waker.rs"]
mod bell;

use bell::{Bell, published};

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

/// A worker's place as the others see it: frames pushed to it so far, in a lane that promises less than the real one.
struct Place {
    pushed: AtomicUsize,
    bell: Bell,
    event: Event,
}

impl Place {
    fn new() -> Arc<Self> {
        Arc::new(Self { pushed: AtomicUsize::new(0), bell: Bell::new(), event: Event::default() })
    }

    /// Hands over so many frames, and rings once; as `Desk::hand_over` and `Desk::ring`.
    fn hand_over(&self, frames: usize) {
        for _ in 0..frames {
            self.pushed.fetch_add(1, Ordering::Relaxed);
        }
        published();
        if self.bell.is_to_be_rung() {
            self.event.write();
        }
    }

    /// Takes frames until there have been so many, and sleeps whenever there is none; as a worker does with `Desk::take`, `doze` and `wake`.
    fn take(&self, frames: usize, due: &Cell<u64>) {
        let mut taken = 0;
        while taken < frames {
            let pushed = self.pushed.load(Ordering::Relaxed);
            if pushed > taken {
                taken = pushed;
                continue;
            }
            if self.bell.doze(|| self.pushed.load(Ordering::Relaxed) > taken) {
                self.event.poll();
            }
            self.bell.wake(due, || self.event.read());
        }
    }

    /// Once all is said, a sleep is not cut short more than once.
    fn is_quiet(&self, due: &Cell<u64>) {
        assert!(self.bell.doze(|| false));
        self.bell.wake(due, || self.event.read());
        assert_eq!(*self.event.count.lock().unwrap(), 0, "a ring nobody takes away");
    }
}

/// Every order with at most so many changes of thread that nothing asked for: more take minutes, and have shown nothing more.
fn in_every_order(run: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(run);
}

#[test]
fn whoever_is_handed_something_while_it_falls_asleep_is_woken() {
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
fn of_two_who_ring_at_once_both_are_heard() {
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
