//! Whose a frame is where several workers share the work, and what a worker does with one that is not its own. How it gets to the
//! other is `handoff`'s matter.
//!
//! Where both network cards spread connections over their queues by the same symmetric hash, the queue a frame arrives on is its owner,
//! and only what a card cannot parse (fragments, ICMP errors, several tags, extension headers) is looked at: the software twin of the
//! hash says where the card would have sent the rest of the connection. Everything is, until the cards have shown that they do as
//! they were told; from then on samples of all others are compared with the twin. Where too many do not fit, the cards are trusted no
//! more, and the twin names the owner of every frame, so that whatever did fit stays where it is. Where the cards cannot, a keyed hash, the same in both directions, names the owner.

use crate::handoff::{Desk, Word};
use pktio::rss::Twin;
use pktio::{Batch, Pool};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tcpstate::owner::{plain, share};
use tcpstate::wire::FlowKey;
use tcpstate::{Instant, Metadata, Owners, Secrets, Side};
use tracing::warn;

/// Calls of every worker until which all its frames are compared with the twin, and handed over where they do not fit: what was opened by
/// a card that is found out is then where the twin says, and stays there. After them one frame in [`SAMPLE`] is compared.
const PROBATION: u64 = 64;
const SAMPLE: u64 = 256;

/// How many of the last 64 samples may not fit before the cards are trusted no more: a single frame may have been on its way while
/// the queues were set.
const MISFITS_ALLOWED: u32 = 8;

/// How frames find their owners.
#[derive(Clone, Debug)]
pub enum Strategy {
    /// The cards choose the owner's queue.
    Rss(Twin),
    /// A keyed hash names the owner, and strays are handed over.
    HandOff,
    /// As [`Strategy::HandOff`], and nothing is left where it arrived, were it its owner: for tests.
    Everything,
}

/// What the workers know of the cards together.
struct Cards {
    twin: Twin,
    /// Read by every worker for every batch, and written once at most.
    trusted: AtomicBool,
}

impl Cards {
    fn owner(&self, key: &FlowKey) -> usize {
        // IPv4 addresses are in the last word.
        let words = if key.v6 { 0..4 } else { 3..4 };
        self.twin.queue(&key.lan[words.clone()], &key.wan[words], Some([key.lan_port, key.wan_port]))
    }
}

/// One worker's samples.
#[derive(Default)]
struct Samples {
    /// Frames that could have been one.
    seen: u64,
    /// Calls among these.
    calls: u64,
    /// The last of them, a bit each, set in those that did not fit.
    last: u64,
}

impl Samples {
    /// Whether the next frame is one.
    fn is_due(&mut self, is_call: bool) -> bool {
        self.seen += 1;
        self.calls += u64::from(is_call);
        self.is_probation() || self.seen.is_multiple_of(SAMPLE)
    }

    /// Whether the cards have yet to show that they do as they were told.
    fn is_probation(&self) -> bool {
        self.calls <= PROBATION
    }

    /// Notes one; returns whether too many did not fit.
    fn note(&mut self, fits: bool) -> bool {
        self.last = self.last << 1 | u64::from(!fits);
        self.last.count_ones() > MISFITS_ALLOWED
    }
}

/// Declares what is counted at the crossing, in the order of its cells.
macro_rules! crossed {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// What passed between a worker and the others.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Crossed {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl Crossed {
            /// How many counters there are.
            pub const COUNT: usize = [$(stringify!($field)),+].len();

            /// The counters, in order.
            pub fn to_cells(self) -> [u64; Self::COUNT] {
                [$(self.$field),+]
            }

            /// The counters, each with its name.
            pub fn named(self) -> [(&'static str, u64); Self::COUNT] {
                [$((stringify!($field), self.$field)),+]
            }

            /// The counters, from [`Crossed::to_cells`].
            pub fn from_cells([$($field),+]: [u64; Self::COUNT]) -> Self {
                Self { $($field),+ }
            }
        }
    };
}

crossed! {
    /// Frames handed over to their owners.
    handed_over,
    /// Frames taken over from those that received them.
    taken_over,
    /// Frames lost because the lane to their owner was full.
    full,
    /// Frames lost because their owner had no buffer for them.
    lost,
    /// Frames compared with where the cards' hash should have brought them.
    sampled,
    /// Those that had arrived elsewhere.
    misfits,
    /// Words told to other workers, each counted once: what was learned of servers, and who has proved itself.
    told,
    /// Words heard from others.
    heard,
    /// Words lost because the lane to a worker was full.
    unheard,
}

/// How one worker tells whose a frame is.
enum Naming {
    ByCards { cards: Arc<Cards>, samples: Samples },
    ByHash { everything: bool },
}

/// One worker's way to and from the others.
pub struct Crossing {
    desk: Desk,
    owners: Owners,
    naming: Naming,
    counted: Crossed,
    /// Calls from the WAN that were for others.
    calls: u64,
}

impl Crossing {
    /// A crossing for each of `workers`, for frames of up to `longest` bytes. `secrets` are the proxy's.
    ///
    /// # Errors
    /// When the system gives no descriptors.
    pub fn open(workers: usize, longest: usize, strategy: Strategy, secrets: &Secrets) -> io::Result<Vec<Crossing>> {
        let everything = matches!(strategy, Strategy::Everything);
        let cards = match strategy {
            Strategy::Rss(twin) => Some(Arc::new(Cards { twin, trusted: AtomicBool::new(true) })),
            _ => None,
        };
        let naming = || match &cards {
            Some(cards) => Naming::ByCards { cards: Arc::clone(cards), samples: Samples::default() },
            None => Naming::ByHash { everything },
        };
        let crossing = |desk| Crossing {
            desk,
            owners: Owners::new(secrets),
            naming: naming(),
            counted: Crossed::default(),
            calls: 0,
        };
        Ok(Desk::open(workers, longest)?.into_iter().map(crossing).collect())
    }

    /// Takes what others own out of a batch that came in on `side`, and hands it over to them.
    pub fn hand_over(&mut self, side: Side, now: Instant, batch: &mut Batch, metas: &mut [Metadata], pool: &mut Pool) {
        let mut kept = 0;
        for i in 0..batch.len() {
            let Some(owner) = self.receiver(side, &metas[i], batch[i].bytes(), now) else {
                if kept < i {
                    batch.swap(kept, i);
                    metas.swap(kept, i);
                }
                kept += 1;
                continue;
            };
            let is_call = side == Side::Wan && metas[i].attempt().is_some();
            self.calls += u64::from(is_call);
            let has_place = self.desk.hand_over(owner, side, &batch[i], is_call);
            *if has_place { &mut self.counted.handed_over } else { &mut self.counted.full } += 1;
        }
        for stray in batch.drain(kept..) {
            pool.put(stray);
        }
        self.desk.ring();
    }

    /// To whom a frame is to be handed over; `None` if it stays.
    #[inline]
    fn receiver(&mut self, side: Side, meta: &Metadata, frame: &[u8], now: Instant) -> Option<usize> {
        let (own, workers) = (self.desk.number(), self.desk.workers());
        let owner = match &mut self.naming {
            Naming::ByCards { cards, samples } => {
                if cards.trusted.load(Ordering::Relaxed)
                    && let Some(key) = plain(meta)
                {
                    if samples.is_due(meta.attempt().is_some()) {
                        let fits = cards.owner(key) == own;
                        self.counted.sampled += 1;
                        self.counted.misfits += u64::from(!fits);
                        if samples.note(fits) && cards.trusted.swap(false, Ordering::Relaxed) {
                            warn!(
                                "the network cards do not spread frames as they were told: from now on every frame is looked at, and handed over to its owner"
                            );
                        }
                    }
                    if !samples.is_probation() {
                        return None;
                    }
                }
                self.owners.owner(side, meta, frame, now, |key, _| cards.owner(key))
            }
            Naming::ByHash { everything } => {
                let owner = self.owners.owner(side, meta, frame, now, |_, hash| share(hash, workers));
                if *everything {
                    return Some(owner.unwrap_or(own));
                }
                owner
            }
        };
        owner.filter(|&owner| owner != own)
    }

    /// Appends up to `max` frames of `side` that others have handed over, and returns how many.
    pub fn take_over(&mut self, side: Side, batch: &mut Batch, max: usize, pool: &mut Pool) -> usize {
        let taken = self.desk.take(side, batch, max, pool);
        self.counted.taken_over += taken.frames as u64;
        self.counted.lost += taken.lost as u64;
        taken.frames
    }

    /// Tells all other workers. Nobody passes on what was told.
    pub fn tell(&mut self, word: Word) {
        let (told, unheard) = self.desk.tell(word);
        self.counted.told += told as u64;
        self.counted.unheard += unheard as u64;
    }

    /// The next word that another worker has told.
    #[inline]
    pub fn receive_update(&mut self) -> Option<Word> {
        let word = self.desk.receive_update();
        self.counted.heard += u64::from(word.is_some());
        word
    }

    /// Lets the worker sleep, unless something has been handed over. `sleep` ends when what it is given becomes readable.
    pub fn asleep(&self, sleep: impl FnOnce(Option<RawFd>) -> io::Result<()>) -> io::Result<()> {
        let slept = self.desk.doze().map_or(Ok(()), |bell| sleep(Some(bell.as_raw_fd())));
        self.desk.wake();
        slept
    }

    /// Calls from the WAN that were for others, whether there was room for them or not.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// What has been counted so far.
    pub fn counted(&self) -> Crossed {
        self.counted
    }
}
