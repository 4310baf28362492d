//! SOCKMAP: a program at the sockets sends on what arrives, in the kernel, and the process hears of the end alone.
//!
//! What is queued at a socket before it is in the map is never looked at by the program, so the process moves the first bytes of a connection itself and
//! enters both sockets when the server answers the first time: a client that waits for this answer has nothing on its way then. One that does not
//! wait shows the fault.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use aya::Ebpf;
use aya::maps::{self, MapData, SockHash};
use aya::programs::SkSkb;
use harness::leftovers;
use rustix::net::sockopt;

use super::read_write::{Kept, ReadWrite};
use super::{Mover, Pair, Pumped, blocks, end};

/// The maps of all workers.
#[derive(Clone)]
pub struct Maps(Arc<Mutex<Loaded>>);

struct Loaded {
    sockets: SockHash<MapData, u64>,
    peers: maps::HashMap<MapData, u64, u64>,
    /// With it the program would go.
    _program: Ebpf,
}

impl Maps {
    /// Compiles the program, loads it and attaches it to the map.
    pub fn load() -> io::Result<Maps> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let object = leftovers::file("sockmap.o");
        let mut clang = Command::new("clang");
        clang.args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-c", "-I"]).arg(root.join("../pktio/bpf"));
        let done = clang.arg(root.join("benches/splice/relay/sockmap.c")).arg("-o").arg(&object).status()?;
        if !done.success() {
            return Err(io::Error::other("clang does not compile sockmap.c"));
        }
        let bytes = fs::read(&object)?;
        fs::remove_file(&object)?;
        let mut loaded = Ebpf::load(&bytes).map_err(io::Error::other)?;
        let mut take = |name| loaded.take_map(name).ok_or_else(|| io::Error::other(format!("there is no map {name}")));
        let (sockets, peers) = (take("sockets")?, take("peers")?);
        let sockets = SockHash::<_, u64>::try_from(sockets).map_err(io::Error::other)?;
        let peers = maps::HashMap::try_from(peers).map_err(io::Error::other)?;
        let map = sockets.fd().try_clone()?;
        let program = loaded.program_mut("verdict").ok_or_else(|| io::Error::other("there is no program"))?;
        let program: &mut SkSkb = program.try_into().map_err(io::Error::other)?;
        program.load().map_err(io::Error::other)?;
        program.attach(&map).map_err(io::Error::other)?;
        Ok(Maps(Arc::new(Mutex::new(Loaded { sockets, peers, _program: loaded }))))
    }

    /// Has the kernel send on what comes to either end of a connection.
    fn enter(&self, pair: &Pair<Way>) -> io::Result<[u64; 2]> {
        let mut maps = self.0.lock().expect("a worker does not panic");
        let cookies = [sockopt::socket_cookie(&pair.ends[0])?, sockopt::socket_cookie(&pair.ends[1])?];
        for (from, to) in [(cookies[0], cookies[1]), (cookies[1], cookies[0])] {
            maps.peers.insert(from, to, 0).map_err(io::Error::other)?;
        }
        for (cookie, end) in cookies.iter().zip(&pair.ends) {
            maps.sockets.insert(cookie, end.as_raw_fd(), 0).map_err(io::Error::other)?;
        }
        Ok(cookies)
    }

    fn forget(&self, cookies: [u64; 2]) {
        let mut maps = self.0.lock().expect("a worker does not panic");
        // The kernel takes sockets out of the map itself when they are closed.
        cookies.iter().for_each(|cookie| drop(maps.peers.remove(cookie)));
    }
}

pub struct SockMap {
    maps: Maps,
    first: ReadWrite,
}

impl SockMap {
    pub fn new(maps: &Maps) -> SockMap {
        SockMap { maps: maps.clone(), first: ReadWrite::new() }
    }
}

/// One direction; what is known of the connection stands with the server's.
#[derive(Default)]
pub struct Way {
    kept: Kept,
    /// The names of both sockets, once they are in the map.
    cookies: Option<[u64; 2]>,
}

impl Mover for SockMap {
    type Pending = Way;

    fn pump(&mut self, pair: &mut Pair<Way>, from: usize) -> io::Result<Pumped> {
        let is_entered = pair.ways[1].pending.cookies.is_some();
        if is_entered && !pair.ways[from].hung_up {
            return Ok(Pumped::Drained);
        }
        if !is_entered && from == 1 {
            let Some(answer) = self.first.read(&pair.ends[1])? else { return Ok(Pumped::Drained) };
            if answer.is_empty() {
                return end(&pair.ends[0]);
            }
            pair.ways[1].pending.cookies = Some(self.maps.enter(pair)?);
            let put = blocks(rustix::io::write(&pair.ends[0], answer))?;
            return match put == Some(answer.len()) {
                true => Ok(Pumped::Drained),
                false => Err(io::Error::other("what the server says first is longer than a new connection takes")),
            };
        }
        let way = &mut pair.ways[from];
        self.first.pump(&pair.ends[from], &pair.ends[1 - from], &mut way.pending.kept, way.hung_up)
    }

    fn recycle(&mut self, pending: Way) {
        pending.cookies.into_iter().for_each(|cookies| self.maps.forget(cookies));
    }
}
