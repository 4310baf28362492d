//! The client's end of a connection: opened through whatever stands in the middle, ready for an order.

use std::io::{self, Error, Read, Write};
use std::net::{IpAddr, SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use unit::netns;

use crate::pattern::Name;
use crate::server::{self, Order, What};

/// How long anything may take before a connection counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How clients get to the server.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Where they connect to.
    pub address: SocketAddrV4,
    /// Whether they say there by SOCKS 5 where they want to go.
    pub by_socks: bool,
}

/// The server's own address.
pub fn server() -> SocketAddrV4 {
    let IpAddr::V4(address) = netns::SERVER_V4 else { unreachable!("it is one of the fourth version") };
    SocketAddrV4::new(address, server::PORT)
}

/// A connection whose ClientHello has come back from the server.
#[derive(Debug)]
pub struct Line {
    pub stream: TcpStream,
    /// Names it, and the stream of its bytes.
    pub seed: u64,
}

impl Line {
    /// Connects, and waits for the server's first bytes.
    pub fn open(entry: Entry) -> io::Result<Line> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut stream = connect(entry)?;
        let hello = Name::Echo.hello(false);
        stream.write_all(&hello)?;
        let mut answer = vec![0; hello.len()];
        stream.read_exact(&mut answer)?;
        if answer != hello {
            return Err(Error::other("a ClientHello came back that is another one"));
        }
        Ok(Line { stream, seed: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    /// Says what the server is to do, and with how many bytes.
    pub fn order(&mut self, what: What, bytes: u64) -> io::Result<()> {
        self.stream.write_all(&Order { what, seed: self.seed, bytes }.written())
    }
}

/// Connects, and says where to if that is asked for.
pub fn connect(entry: Entry) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&entry.address.into(), PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if entry.by_socks {
        // RFC 1928: one method, none; connect, IPv4.
        stream.write_all(&[5, 1, 0])?;
        let mut answer = [0; 10];
        stream.read_exact(&mut answer[..2])?;
        let (address, port) = (server().ip().octets(), server().port().to_be_bytes());
        stream.write_all(&[&[5, 1, 0, 1][..], &address, &port].concat())?;
        stream.read_exact(&mut answer)?;
        if answer[..2] != [5, 0] {
            return Err(Error::other(format!("SOCKS: refused with {}", answer[1])));
        }
    }
    Ok(stream)
}
