//! What outputs deliver, where to, and what became of it.

use crate::metrics::descriptors::DeliveryMetric;
use ::control::Record;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A record, and the line of JSON that says it.
#[derive(Debug)]
pub struct Line {
    /// The record.
    pub record: Record,
    /// The line, without its end.
    pub json: String,
}

/// Something that takes records one after the other.
pub trait Sink: Send + 'static {
    /// Delivers a record.
    ///
    /// # Errors
    /// Why that was not possible; the record is lost then.
    fn deliver(&mut self, line: &Line) -> io::Result<()>;
}

/// What became of events; counted by several threads.
#[derive(Default)]
pub(super) struct Delivery([AtomicU64; DeliveryMetric::COUNT]);

impl Delivery {
    pub(super) fn count(&self, metric: DeliveryMetric) {
        self.0[metric as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, metric: DeliveryMetric) -> u64 {
        self.0[metric as usize].load(Ordering::Relaxed)
    }
}
