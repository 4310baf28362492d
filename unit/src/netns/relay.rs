//! A bad network: a forwarder of our own between the client and the box, that loses, delays and reorders by a seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use pktio::impair::{Impair, Impairment};
use pktio::{Batch, Opened, Options, Port};

use super::Namespace;

/// A relay at work; stopped when dropped.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where it stands; goes when the thread has gone.
    _namespace: Namespace,
}

impl Relay {
    /// Forwards between two interfaces of `namespace`, doing to every frame what `impairment` says, in both directions.
    ///
    /// # Panics
    /// If the interfaces cannot be opened.
    pub fn start(namespace: Namespace, interfaces: [&str; 2], impairment: Impairment, seed: u64) -> Relay {
        let handle = namespace.handle.try_clone().expect("duplicating a descriptor");
        let [one, other] = interfaces.map(|interface| format!("packet:{interface}"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (opened, is_open) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            setns(handle, CloneFlags::CLONE_NEWNET).expect("entering one's own namespace");
            let Opened { pairs, guard, .. } = pktio::open(&one, &other, &Options::default()).expect("opening a relay");
            let pair = pairs.into_iter().next().expect("one worker, one pair");
            let mut pool = pair.pool;
            let mut ports = [(pair.lan, seed), (pair.wan, !seed)].map(|(port, seed)| {
                Impair::new(port, seed).transmitting(impairment).real_time().expect("a clock for the relay")
            });
            opened.send(()).expect("the starter waits");
            let mut batch = Batch::new();
            while !stopped.load(Ordering::Relaxed) {
                for (from, to) in [(0, 1), (1, 0)] {
                    ports[from].receive(&mut batch, 64, &mut pool);
                    ports[to].transmit(&mut batch, &mut pool);
                    batch.drain(..).for_each(|frame| pool.put(frame));
                }
                ports.iter_mut().for_each(|port| port.flush(&mut pool));
                pktio::wait([&ports[0], &ports[1]], Some(Duration::from_millis(1))).expect("waiting");
            }
            drop(ports);
            drop(guard);
        });
        is_open.recv().expect("the relay opens its interfaces");
        Relay { stop, thread: Some(thread), _namespace: namespace }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}
