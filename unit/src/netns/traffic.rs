//! Bytes for TCP to carry, recognisable at every position, and servers that take them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use harness::note;
use nix::sys::socket;

use super::Namespace;

/// How long any single read or write may take before a test calls the connection stuck.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes a call.
const CHUNK: usize = 64 << 10;

/// The byte at `position` of the stream named `seed`. No two parts of a stream are alike, so a byte lost, doubled or
/// moved shows.
fn byte_words(seed: u64, word: u64) -> [u8; 8] {
    // SplitMix64's finaliser: every bit of the position reaches every bit of the word.
    let mut z = word.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Fills `buffer` with the bytes of stream `seed` from `position` on, which is a multiple of eight.
fn fill(buffer: &mut [u8], seed: u64, position: u64) {
    for (word, bytes) in (position / 8..).zip(buffer.chunks_mut(8)) {
        bytes.copy_from_slice(&byte_words(seed, word)[..bytes.len()]);
    }
}

/// Sends the first `bytes` bytes of stream `seed`; the connection stays open.
///
/// # Errors
/// The socket's.
pub fn send(mut stream: &TcpStream, seed: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < bytes {
        let part = &mut buffer[..CHUNK.min((bytes - position) as usize)];
        fill(part, seed, position);
        stream.write_all(part)?;
        position += part.len() as u64;
    }
    Ok(())
}

/// Receives the first `bytes` bytes of stream `seed`, or all there are until the peer closes, and returns how many.
///
/// # Errors
/// The socket's, `UnexpectedEof` when the peer closes early, and `InvalidData`, with the position, where a byte is not
/// what was sent.
pub fn receive(mut stream: &TcpStream, seed: u64, bytes: Option<u64>) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut expected = vec![0; CHUNK + 8];
    let mut position = 0u64;
    while bytes.is_none_or(|bytes| position < bytes) {
        let want = bytes.map_or(CHUNK, |bytes| CHUNK.min((bytes - position) as usize));
        let got = stream.read(&mut buffer[..want])?;
        if got == 0 {
            return match bytes {
                None => Ok(position),
                Some(_) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed after {position} bytes"))),
            };
        }
        let skip = (position % 8) as usize;
        fill(&mut expected[..skip + got], seed, position - skip as u64);
        if let Some(wrong) = (0..got).find(|&i| buffer[i] != expected[skip + i]) {
            let message = format!("byte {} is wrong", position + wrong as u64);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        position += got as u64;
    }
    Ok(position)
}

/// Has the connection end with a reset when it is closed.
///
/// # Errors
/// The socket's.
pub fn abort_at_close(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    socket::setsockopt(stream, socket::sockopt::Linger, &linger).map_err(io::Error::from)
}

/// Reads until the peer closes, and asserts that nothing came before.
///
/// # Errors
/// The socket's, and `InvalidData` when there was a byte.
pub fn expect_end(stream: &TcpStream) -> io::Result<()> {
    let mut stream = stream;
    match stream.read(&mut [0; 1])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a byte where the end was expected")),
    }
}

fn patient(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Namespace {
    /// Connects from inside to `address`; the stream has timeouts, so that a stuck connection fails the test.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` after [`PATIENCE`].
    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| connect(address))
    }

    /// Starts a server inside, at `ip` on a free port (or `port`, if it is not 0); every connection gets a thread that
    /// runs `serve`.
    ///
    /// # Panics
    /// If the address cannot be had.
    pub fn serve(
        &self,
        ip: IpAddr,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Server {
        let listener = self.run(|| TcpListener::bind((ip, port))).expect("listening");
        // Room for bursts: std asks for 128, and listening again only raises it.
        socket::listen(&listener, socket::Backlog::new(4096).expect("below the kernel's limit")).expect("listening");
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        let serve = Arc::new(serve);
        let thread = thread::spawn(move || {
            let mut connections = Vec::new();
            // Dropping the server shuts the listener down, which ends `accept`.
            while let Ok((stream, _)) = accepting.accept() {
                let serve = Arc::clone(&serve);
                connections.push(thread::spawn(move || patient(stream).and_then(|stream| serve(stream))));
                if connections.len() >= 256 {
                    let (done, open) = connections.into_iter().partition(|c: &JoinHandle<_>| c.is_finished());
                    connections = open;
                    done.into_iter().for_each(|connection| report(connection.join()));
                }
            }
            connections.into_iter().for_each(|connection| report(connection.join()));
        });
        Server {
            address: listener.local_addr().expect("a bound socket has an address"),
            listener,
            thread: Some(thread),
        }
    }
}

/// Connects from the calling thread's namespace, with the timeouts of [`Namespace::connect`].
///
/// # Errors
/// The kernel's.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    patient(TcpStream::connect_timeout(&address, PATIENCE)?)
}

/// Connections fail where clients reset them, which some tests do on purpose: it is said, and shown if a test fails.
fn report(outcome: thread::Result<io::Result<()>>) {
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => note!("server: {error}"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A server that accepts until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The listening socket, whose options the connections inherit.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        let outcome = self.thread.take().map(JoinHandle::join);
        // A second panic would hide the first.
        if let Some(Err(panic)) = outcome
            && !thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Serves: answers every byte with itself until the client has finished, then closes.
///
/// # Errors
/// The socket's.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            got => stream.write_all(&buffer[..got])?,
        }
    }
}

/// How fast, in Mbit/s.
pub fn megabits(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8e-6 / time.as_secs_f64()
}

/// Bulk, one way after the other, between a client and a server: `up` bytes to the server, its receipt, `down` bytes
/// back. Returns both speeds in Mbit/s.
///
/// # Errors
/// What the sockets and the comparison of bytes say.
pub fn exchange(stream: &TcpStream, up: u64, down: u64) -> io::Result<[f64; 2]> {
    let start = Instant::now();
    (&mut &*stream).write_all(&[up.to_be_bytes(), down.to_be_bytes()].concat())?;
    send(stream, up, up)?;
    let mut receipt = [0];
    (&mut &*stream).read_exact(&mut receipt)?;
    let turned = Instant::now();
    receive(stream, down, Some(down))?;
    let end = Instant::now();
    stream.shutdown(Shutdown::Write)?;
    expect_end(stream)?;
    Ok([megabits(up, turned - start), megabits(down, end - turned)])
}

/// Serves [`exchange`].
///
/// # Errors
/// What the sockets and the comparison of bytes say.
pub fn exchanged(stream: TcpStream) -> io::Result<()> {
    let mut lengths = [0; 16];
    (&mut &stream).read_exact(&mut lengths)?;
    let [up, down] = [0, 8].map(|i| u64::from_be_bytes(std::array::from_fn(|j| lengths[i + j])));
    receive(&stream, up, Some(up))?;
    (&mut &stream).write_all(&[1])?;
    send(&stream, down, down)?;
    expect_end(&stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_out_of_place_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (here, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 1 << 16];
        fill(&mut bytes, 1, 0);
        bytes.remove(40_000);
        there.write_all(&bytes).unwrap();
        drop(there);
        let error = receive(&here, 1, None).unwrap_err();
        assert!(error.to_string().starts_with("byte 40000"), "{error}");
    }
}
