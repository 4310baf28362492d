//! A forwarder in a cable that makes of every frame others that mean the same, padded or in fragments, or that mislead who
//! follows the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use pktio::{Batch, Opened, Options, Port};

use super::{Namespace, Rig, queue_counts};

/// What is made of a frame.
pub type Mangle = fn(&[u8]) -> Vec<Vec<u8>>;

/// A forwarder at work; stopped when dropped.
#[derive(Debug)]
pub struct Mangler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where it stands; goes when the thread has gone.
    _namespace: Namespace,
}

impl Rig {
    /// Puts a forwarder that does this to every frame, either way, into the cable at [`Rig::WAN`] or [`Rig::LAN`].
    ///
    /// # Panics
    /// Without root.
    pub fn mangle(&self, port: &str, mangle: Mangle) -> Mangler {
        let namespace = Namespace::new("mangler");
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        let (name, several) = (namespace.name(), queue_counts(self.queues));
        self.middle.sh(&format!(
            "ip link set {port} netns {name} name near0
             ip link add {port} {several} type veth peer name far0 {several} netns {name}; ip link set {port} up"
        ));
        namespace.sh("ip link set near0 up; ip link set far0 up");
        let handle = namespace.handle.try_clone().expect("duplicating a descriptor");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (opened, is_open) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            setns(handle, CloneFlags::CLONE_NEWNET).expect("entering one's own namespace");
            let Opened { pairs, guard, .. } =
                pktio::open("packet:near0", "packet:far0", &Options::default()).expect("opening a cable");
            opened.send(()).expect("the starter waits");
            let pair = pairs.into_iter().next().expect("one worker, one pair");
            let (mut ports, mut pool) = ([pair.lan, pair.wan], pair.pool);
            let mut waiting = [VecDeque::new(), VecDeque::new()];
            let mut batch = Batch::new();
            while !stopped.load(Ordering::Relaxed) {
                for (from, to) in [(0, 1), (1, 0)] {
                    ports[from].receive(&mut batch, 64, &mut pool);
                    for frame in batch.drain(..) {
                        waiting[to].extend(mangle(frame.bytes()));
                        pool.put(frame);
                    }
                    while let Some(bytes) = waiting[to].front()
                        && let Some(mut frame) = pool.take()
                    {
                        frame.fill(bytes);
                        batch.push(frame);
                        waiting[to].pop_front();
                    }
                    ports[to].transmit(&mut batch, &mut pool);
                    batch.drain(..).for_each(|frame| pool.put(frame));
                    ports[to].flush(&mut pool);
                }
                pktio::wait([&ports[0], &ports[1]], Some(Duration::from_millis(1))).expect("waiting");
            }
            drop(ports);
            drop(guard);
        });
        is_open.recv().expect("the forwarder opens its interfaces");
        Mangler { stop, thread: Some(thread), _namespace: namespace }
    }
}

impl Drop for Mangler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// As Ethernet wants it: no frame shorter than 60 bytes. What is added is not zero, so that it shows where it is taken
/// for data.
pub fn padded(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frame = frame.to_vec();
    frame.resize(frame.len().max(60), 0xa5);
    vec![frame]
}

/// As a router does that has too much to carry: about every eighth long packet of TCP whose ends speak ECN gets a mark
/// (RFC 3168).
pub fn congested(frame: &[u8]) -> Vec<Vec<u8>> {
    let mut frame = frame.to_vec();
    if frame.len() > 1200 {
        // As good as drawn: the last bits of the TCP checksum.
        let drawn = |at: usize, frame: &[u8]| frame[at + 17].is_multiple_of(8);
        match frame[12..15] {
            [0x08, 0x00, 0x45] if frame[23] == 6 && matches!(frame[15] & 3, 1 | 2) && drawn(34, &frame) => {
                frame[15] |= 3;
                let sum = header_checksum(&frame);
                frame[24..26].copy_from_slice(&sum);
            }
            [0x86, 0xdd, _] if frame[20] == 6 && matches!((frame[15] >> 4) & 3, 1 | 2) && drawn(54, &frame) => {
                frame[15] |= 0x30;
            }
            _ => {}
        }
    }
    vec![frame]
}

/// As an attacker does who guesses well: behind every packet with data comes a RST in its sender's name whose number lies in the middle of
/// that data. Its receiver, who has got the data, takes it for old.
pub fn with_forged_resets(frame: &[u8]) -> Vec<Vec<u8>> {
    let whole = frame.to_vec();
    let length = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (tcp, end) = match frame.get(12..15) {
        Some([0x08, 0x00, 0x45]) if frame.len() >= 54 && frame[23] == 6 => (34, 14 + length(16)),
        Some([0x86, 0xdd, _]) if frame.len() >= 74 && frame[20] == 6 => (54, 54 + length(18)),
        _ => return vec![whole],
    };
    let data = end.saturating_sub(tcp + usize::from(frame[tcp + 12] >> 4) * 4);
    if data < 2 {
        return vec![whole];
    }
    let mut reset = frame[..tcp + 20].to_vec();
    let seq = u32::from_be_bytes(std::array::from_fn(|n| frame[tcp + 4 + n])).wrapping_add(data as u32 / 2);
    reset[tcp + 4..tcp + 8].copy_from_slice(&seq.to_be_bytes());
    // No acknowledgement, no options, RST, no window, nothing urgent.
    reset[tcp + 8..tcp + 20].copy_from_slice(&[0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0]);
    let length = if tcp == 34 { 16..18 } else { 18..20 };
    reset[length].copy_from_slice(&(if tcp == 34 { 40u16 } else { 20 }).to_be_bytes());
    crate::script::seal(&mut reset);
    vec![whole, reset]
}

/// A TCP packet in fragments of at most [`PIECE`] bytes of IP payload, first to last; everything else as it is.
pub fn fragmented(frame: &[u8]) -> Vec<Vec<u8>> {
    match frame.get(12..15) {
        // No options, TCP.
        Some([0x08, 0x00, 0x45]) if frame.len() > 34 && frame[23] == 6 => fragmented_v4(frame),
        Some([0x86, 0xdd, _]) if frame.len() > 54 && frame[20] == 6 => fragmented_v6(frame),
        _ => vec![frame.to_vec()],
    }
}

/// A multiple of eight, from which on no second fragment can lie over a first one's headers.
const PIECE: usize = 512;

/// The pieces of a payload: where each begins, its bytes, whether more follow.
fn pieces(payload: &[u8]) -> impl Iterator<Item = (u16, &[u8], bool)> {
    let count = payload.len().div_ceil(PIECE);
    payload.chunks(PIECE).enumerate().map(move |(n, piece)| ((n * PIECE) as u16, piece, n + 1 < count))
}

fn fragmented_v4(frame: &[u8]) -> Vec<Vec<u8>> {
    let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let is_fragment = u16::from_be_bytes([frame[20], frame[21]]) & 0x3fff != 0;
    let Some(payload) = frame.get(34..14 + total).filter(|payload| payload.len() > PIECE && !is_fragment) else {
        return vec![frame.to_vec()];
    };
    let fragment = |(offset, piece, more): (u16, &[u8], bool)| {
        let mut fragment = [&frame[..34], piece].concat();
        fragment[16..18].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
        fragment[20..22].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        let sum = header_checksum(&fragment);
        fragment[24..26].copy_from_slice(&sum);
        fragment
    };
    pieces(payload).map(fragment).collect()
}

/// What the checksum of an IPv4 header without options has to be.
fn header_checksum(frame: &[u8]) -> [u8; 2] {
    let words = frame[14..34].chunks(2).enumerate().filter(|(n, _)| *n != 5);
    let sum: u32 = words.map(|(_, word)| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
}

fn fragmented_v6(frame: &[u8]) -> Vec<Vec<u8>> {
    let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
    let Some(payload) = frame.get(54..54 + length).filter(|payload| payload.len() > PIECE) else {
        return vec![frame.to_vec()];
    };
    // Whatever differs from one packet to the next: sequence and acknowledgement numbers, timestamps.
    let id = payload[4..12]
        .chunks(4)
        .fold(0u32, |id, word| id.rotate_left(7) ^ u32::from_be_bytes(word.try_into().expect("four bytes")));
    let fragment = |(offset, piece, more): (u16, &[u8], bool)| {
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        let header = [&[6, 0, high, low], &id.to_be_bytes()[..]].concat();
        let mut fragment = [&frame[..54], &header, piece].concat();
        fragment[18..20].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
        fragment[20] = 44;
        fragment
    };
    pieces(payload).map(fragment).collect()
}
