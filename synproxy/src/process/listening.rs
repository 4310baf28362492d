//! A listening TCP socket that a thread serves, and that can be closed while the process runs.

use super::exit::Failure;
use super::privileges;
use rustix::net::Shutdown;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use tracing::{debug, warn};

/// Whether a socket has been closed by its owner.
#[derive(Clone, Debug, Default)]
pub struct Closed(Arc<AtomicBool>);

impl Closed {
    /// Whether it has.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Listening {
    socket: TcpListener,
    closed: Closed,
    thread: JoinHandle<()>,
}

impl Listening {
    /// Has `work` serve the socket in a thread of this name, without capabilities and at ordinary priority. It returns soon after [`Closed`]
    /// says so: from then on the socket accepts nothing, and is always ready to be read from.
    ///
    /// # Errors
    /// When no thread can be created.
    pub fn serve(
        name: &str,
        socket: TcpListener,
        work: impl FnOnce(&TcpListener, &Closed) + Send + 'static,
    ) -> Result<Self, Failure> {
        let (closed, own) = (Closed::default(), socket.try_clone().map_err(Failure::Spawn)?);
        let ends = closed.clone();
        let work = move || {
            privileges::enter_control_thread();
            work(&own, &ends);
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work).map_err(Failure::Spawn)?;
        Ok(Self { socket, closed, thread })
    }

    /// Where it listens; `None` if the system cannot tell.
    pub fn address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()
    }

    /// Closes the socket, and waits for its thread. Connections that were accepted are the thread's affair.
    pub fn close(self) {
        self.closed.0.store(true, Ordering::Release);
        // It wakes a thread that waits in `accept` or `poll`: tcp(7) does not say so, but Linux has always done it.
        if let Err(error) = rustix::net::shutdown(&self.socket, Shutdown::Both) {
            debug!("a listening socket was not shut down: {error}");
        }
        if self.thread.join().is_err() {
            warn!("a thread that served a socket had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_closed_socket_frees_its_address_at_once() {
        let bound = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = bound.local_addr().unwrap();
        let mut socket = Some(bound);
        for _ in 0..3 {
            let own = socket.take().unwrap_or_else(|| TcpListener::bind(address).unwrap());
            let listening = Listening::serve("test", own, |socket, closed| {
                while !closed.get() {
                    drop(socket.accept());
                }
            })
            .unwrap();
            assert_eq!(listening.address(), Some(address));
            TcpStream::connect(address).unwrap();
            assert!(TcpListener::bind(address).is_err());
            listening.close();
            assert!(TcpStream::connect(address).is_err());
        }
    }
}
