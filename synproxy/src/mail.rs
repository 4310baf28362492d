//! Orders on their way to the workers, and answers on their way back.
//!
//! Each worker has a mailbox, which it looks into between two turns: while it is empty that is one relaxed load. A letter ends
//! its sleep. It reads one letter a turn, so that no number of them keeps it from its frames for longer than one.

use crate::talkers::Talk;
use crossbeam::channel::{self, Sender};
use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tcpstate::{Connection, Excerpt, Filter, Rotation, ServerTable, Side};

/// Letters a mailbox holds.
const PLACES: usize = 64;

/// How long a worker is given to answer: it looks into its mailbox every few microseconds, or is woken.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a worker is asked to do.
#[derive(Clone, Debug)]
pub enum Order {
    /// To answer.
    Hello,
    /// To go by this, whatever was said of servers before.
    ServerTable(Arc<ServerTable>),
    /// To keep new connections from the proxy, or not to any more.
    Drain(bool),
    /// To sign cookies with another secret when its time comes.
    Rotate(Rotation),
    /// To tell of a slice of its connections.
    List {
        /// Where the slice begins.
        from: u32,
        /// Which are meant.
        filter: Filter,
    },
    /// To give what is needed to tell what would become of a frame.
    Explain {
        /// The port it would come in by.
        side: Side,
        /// The frame.
        frame: Arc<[u8]>,
    },
    /// To tell who talks most.
    Talk,
}

impl Order {
    /// How many kinds there are.
    pub const KINDS: usize = 7;

    /// The commands of the operator that give each kind, in their order.
    pub const COMMANDS: [&str; Order::KINDS] =
        ["status", "backends", "drain", "rotate-secrets", "flows", "explain", "top"];

    /// Its kind: the place of its command.
    pub fn kind(&self) -> usize {
        match self {
            Order::Hello => 0,
            Order::ServerTable(_) => 1,
            Order::Drain(_) => 2,
            Order::Rotate(_) => 3,
            Order::List { .. } => 4,
            Order::Explain { .. } => 5,
            Order::Talk => 6,
        }
    }
}

/// What it says to that.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is done, and this is what was said of servers before, to be freed by whoever has the time.
    Former(Arc<ServerTable>),
    /// To [`Order::List`]: connections, and where the next slice begins.
    Listed(Vec<Connection>, Option<u32>),
    /// To [`Order::Explain`]: whatever the frame's fate depends on, for who asks to have it told.
    Excerpt(Box<Excerpt>),
    /// To [`Order::Talk`].
    Talk(Talk),
}

/// An order, and where the answer goes.
struct Letter {
    order: Order,
    number: usize,
    reply: Sender<(usize, Answer)>,
}

/// Where a worker's letters lie until it reads them.
pub struct Mailbox {
    has_mail: CachePadded<AtomicBool>,
    letters: ArrayQueue<Letter>,
    bell: OwnedFd,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { has_mail: CachePadded::default(), letters: ArrayQueue::new(PLACES), bell })
    }

    /// What is readable while there are letters.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Whether there may be letters.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Relaxed)
    }

    /// Reads one letter, if there is one, and sends the answer back.
    #[cold]
    pub fn read(&self, obey: impl FnOnce(Order) -> Answer) {
        // The signs go before the letter is looked for, so that one put there meanwhile puts them up again.
        self.has_mail.store(false, Ordering::SeqCst);
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        let Some(letter) = self.letters.pop() else { return };
        if !self.letters.is_empty() {
            self.show();
        }
        // Whoever does not wait any more does not need to know.
        let _ = letter.reply.try_send((letter.number, obey(letter.order)));
    }

    /// Says that there are letters.
    fn show(&self) {
        self.has_mail.store(true, Ordering::SeqCst);
        // It counts to 2^64, and is emptied with every letter: the write cannot fail for want of room.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn put(&self, letter: Letter) -> bool {
        let put = self.letters.push(letter).is_ok();
        self.show();
        put
    }
}

/// The way to all workers.
#[derive(Clone)]
pub struct Post {
    boxes: Arc<[Arc<Mailbox>]>,
}

impl Post {
    /// Empty mailboxes for this many workers.
    ///
    /// # Errors
    /// When the system gives no descriptors for the bells.
    pub fn open(workers: usize) -> io::Result<Self> {
        let boxes = (0..workers).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { boxes })
    }

    /// This worker's mailbox.
    pub fn mailbox(&self, worker: usize) -> Arc<Mailbox> {
        Arc::clone(&self.boxes[worker])
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.boxes.len()
    }

    /// Gives every worker this order, and waits for what each says: `None` of one that has not answered within a second.
    ///
    /// A worker that has not answered may still obey later.
    pub fn ask(&self, order: &Order) -> Vec<Option<Answer>> {
        self.ask_some(0..self.workers(), order)
    }

    /// As [`Post::ask`], of these workers only; the answers come in their order.
    pub fn ask_some(&self, workers: std::ops::Range<usize>, order: &Order) -> Vec<Option<Answer>> {
        let mut answers: Vec<Option<Answer>> = workers.clone().map(|_| None).collect();
        let (reply, replies) = channel::bounded(answers.len().max(1));
        for (number, worker) in workers.enumerate() {
            self.boxes[worker].put(Letter { order: order.clone(), number, reply: reply.clone() });
        }
        drop(reply);
        let deadline = Instant::now() + PATIENCE;
        // It ends early when every letter has been read, or has found no place.
        while let Ok((number, answer)) = replies.recv_deadline(deadline) {
            answers[number] = Some(answer);
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::thread;

    /// Reads this mailbox as a worker does, asleep in between, until it has read so many letters; returns how often it slept in vain.
    fn serve(mailbox: &Mailbox, letters: usize) -> usize {
        let (mut read, mut in_vain) = (0, 0);
        while read < letters {
            mailbox.read(|order| {
                assert!(matches!(order, Order::Hello));
                read += 1;
                Answer::Done
            });
            if read == letters {
                break;
            }
            let bell = mailbox.bell();
            let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
            in_vain += usize::from(poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&patience)).unwrap() == 0);
        }
        in_vain
    }

    #[test]
    fn every_worker_is_asked_and_each_answers_for_itself() {
        const EACH: usize = 2000;
        let post = Post::open(3).unwrap();
        let workers: Vec<_> = (0..3).map(|n| post.mailbox(n)).collect();
        thread::scope(|scope| {
            let served: Vec<_> = workers.iter().map(|mailbox| scope.spawn(|| serve(mailbox, 2 * EACH))).collect();
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let answers = post.ask(&Order::Hello);
                        assert!(answers.len() == 3 && answers.iter().all(Option::is_some), "{answers:?}");
                    }
                });
            }
            for served in served {
                assert_eq!(served.join().unwrap(), 0, "a letter has not ended the sleep");
            }
        });
    }

    #[test]
    fn a_worker_that_is_silent_keeps_nobody_from_the_others_answers() {
        let post = Post::open(2).unwrap();
        let mailbox = post.mailbox(1);
        thread::scope(|scope| {
            scope.spawn(|| serve(&mailbox, 1));
            assert!(matches!(post.ask(&Order::Hello)[..], [None, Some(Answer::Done)]));
        });
    }

    #[test]
    fn a_full_mailbox_takes_no_more_and_what_it_holds_is_still_read() {
        let post = Post::open(1).unwrap();
        let mailbox = post.mailbox(0);
        let (reply, replies) = channel::bounded(2 * PLACES);
        let letter = || Letter { order: Order::Hello, number: 0, reply: reply.clone() };
        assert_eq!((0..2 * PLACES).filter(|_| mailbox.put(letter())).count(), PLACES);
        assert_eq!(serve(&mailbox, PLACES), 0);
        assert_eq!(replies.len(), PLACES);
        mailbox.read(|_| unreachable!("it is empty"));
    }
}
