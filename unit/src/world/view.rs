//! What a host has seen of a connection: what two runs, one with the box proxying and one with a bridge, are compared by.

use std::collections::BTreeSet;

use crate::oracle::layers::{Tag, networks};
use crate::oracle::{CE, Segment};

/// What one end of a connection has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// MSS of the peer's SYN or SYN-ACK.
    pub mss: Option<u16>,
    /// Window scale of the same.
    pub scale: Option<u8>,
    /// Whether it permitted SACK.
    pub sack: bool,
    /// Whether it had timestamps.
    pub stamps: bool,
    /// Whether it spoke of ECN: ECE, CWR and AE flags.
    pub ecn: [bool; 3],
    /// Its window.
    pub first_window: u16,
    /// Segments without SYN that had timestamps, and that had none, were there.
    pub stamped: [bool; 2],
    /// Some were marked as ECN-capable; some as having met congestion.
    pub capable: [bool; 2],
    /// The largest payload.
    pub largest: usize,
    /// Resets.
    pub resets: usize,
    /// Networks its frames came in: tag protocols and identifiers.
    pub networks: BTreeSet<Vec<Tag>>,
    /// Priorities in the tags.
    pub priorities: BTreeSet<[u16; 2]>,
    /// Bytes the application has read.
    pub read: u64,
    /// How the connection ended here.
    pub ending: Option<String>,
}

impl View {
    /// Takes note of a segment.
    pub fn note(&mut self, segment: &Segment) {
        if !segment.sums_right() {
            return;
        }
        self.networks.insert(networks(segment.tags));
        self.priorities.insert(segment.tags.map(|tag| tag.map_or(0, |(_, control)| control >> 12)));
        if segment.rst {
            self.resets += 1;
            return;
        }
        if segment.syn {
            let options = &segment.options;
            (self.mss, self.scale) = (options.mss, options.scale);
            (self.sack, self.stamps) = (options.sack_permitted, options.stamps.is_some());
            self.ecn = [segment.ece, segment.cwr, segment.ae];
            self.first_window = segment.window;
            return;
        }
        self.stamped[usize::from(segment.options.stamps.is_none())] = true;
        self.capable[0] |= segment.ecn != 0;
        self.capable[1] |= segment.ecn == CE;
        self.largest = self.largest.max(segment.payload.len());
    }

    /// Every field with its name and value, to be compared one by one.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("mss", format!("{:?}", self.mss)),
            ("scale", format!("{:?}", self.scale)),
            ("sack", format!("{:?}", self.sack)),
            ("stamps", format!("{:?}", self.stamps)),
            ("ecn", format!("{:?}", self.ecn)),
            ("first window", format!("{:?}", self.first_window)),
            ("stamped", format!("{:?}", self.stamped)),
            ("capable", format!("{:?}", self.capable)),
            ("largest", format!("{:?}", self.largest)),
            ("resets", format!("{:?}", self.resets)),
            ("networks", format!("{:04x?}", self.networks)),
            ("priorities", format!("{:x?}", self.priorities)),
            ("read", format!("{:?}", self.read)),
            ("ending", format!("{:?}", self.ending)),
        ]
    }
}
