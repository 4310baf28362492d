//! Looks up the names that clients of services want to be connected to: the workers ask and go on, and get the answer as a command.
//!
//! The system's resolver blocks for as long as name servers take, so it has threads of its own, and several, so that one name without an answer keeps few others
//! waiting. What waits beyond a bound is not looked up: the engine tells the client after some time.

use super::commands::{Command, CommandSender};
use crate::process::exit::Failure;
use crate::process::privileges;
use crossbeam::channel::{self, Receiver, Sender};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use tcpstate::{NameAnswer, NameQuestion};
use tracing::debug;

/// Threads that look up names.
const THREADS: usize = 4;
/// Names that wait for one of them.
const WAITING: usize = 256;
/// Addresses of a name that count.
const ADDRESSES: usize = 16;

/// Where a worker puts its questions.
#[derive(Clone)]
pub struct Questions {
    worker: usize,
    sender: Sender<(usize, NameQuestion)>,
}

impl Questions {
    /// Has a name looked up, unless too many wait.
    pub fn ask(&self, question: NameQuestion) {
        // The engine does not wait for ever.
        let _ = self.sender.try_send((self.worker, question));
    }
}

/// The queue of questions, until threads answer it.
pub struct Resolver {
    sender: Sender<(usize, NameQuestion)>,
    receiver: Receiver<(usize, NameQuestion)>,
}

impl Default for Resolver {
    fn default() -> Self {
        let (sender, receiver) = channel::bounded(WAITING);
        Self { sender, receiver }
    }
}

impl Resolver {
    /// The questions of this worker.
    pub fn questions(&self, worker: usize) -> Questions {
        Questions { worker, sender: self.sender.clone() }
    }

    /// Begins to answer, until no worker asks any more.
    ///
    /// # Errors
    /// When the system makes no thread.
    pub fn start(self, commands: &CommandSender) -> Result<(), Failure> {
        for _ in 0..THREADS {
            let (receiver, commands) = (self.receiver.clone(), commands.clone());
            let work = move || {
                privileges::enter_control_thread();
                for (worker, question) in receiver {
                    let answer = NameAnswer { question, addresses: look_up(&question) };
                    commands.send_to(worker..worker + 1, &Command::Resolved(Arc::new(answer)));
                }
            };
            thread::Builder::new().name("resolver".to_owned()).spawn(work).map_err(Failure::Spawn)?;
        }
        Ok(())
    }
}

/// The addresses of a name, of the version that is wanted, in the system's order.
fn look_up(question: &NameQuestion) -> Vec<[u32; 4]> {
    let found = match (question.name.to_string().as_str(), 0).to_socket_addrs() {
        Ok(found) => found,
        Err(error) => {
            debug!("{}: {error}", question.name);
            return Vec::new();
        }
    };
    let words = |address: IpAddr| {
        let bits = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        [96, 64, 32, 0].map(|shift| (bits >> shift) as u32)
    };
    found.map(|found| found.ip()).filter(|ip| ip.is_ipv6() == question.v6).take(ADDRESSES).map(words).collect()
}
