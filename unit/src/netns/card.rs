//! A virtual machine's network card without the machine: what the kernel of one namespace sends by a tap arrives at a tap of another, with the
//! virtio header that says which checksum and which segmentation the sender has left to its card. QEMU and vhost do the same between the
//! rings of a guest and the tap of its host.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::libc;

use super::Namespace;

/// What a guest's driver negotiates: checksums (`TUN_F_CSUM`), and segmentation over IPv4 and IPv6 (`TUN_F_TSO4`, `TUN_F_TSO6`).
const OFFLOADS: libc::c_ulong = 1 | 2 | 4;

/// A virtio header, an Ethernet header with tags, and the longest packet.
const LONGEST: usize = 10 + 22 + (64 << 10);

/// The card; unplugged when dropped.
#[derive(Debug)]
pub struct Card {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Card {
    /// Plugs a card that is `inner` in the guest and `outer` in the host, both taps, which are made if they are not there.
    ///
    /// # Panics
    /// Without root or /dev/net/tun.
    pub fn plug((guest, inner): (&Namespace, &str), (host, outer): (&Namespace, &str)) -> Card {
        let stop = Arc::new(AtomicBool::new(false));
        let ends = [(guest, inner), (host, outer)].map(|(namespace, name)| Arc::new(tap(namespace, name)));
        let [one, other] = ends;
        let carry = |from: &Arc<File>, to: &Arc<File>| {
            let (from, to, stop) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            thread::spawn(move || carry(&from, &to, &stop))
        };
        let threads = vec![carry(&one, &other), carry(&other, &one)];
        Card { stop, threads }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A second panic would hide the first.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Carries frames until it is stopped. One that the other end does not take is lost, as on a full ring.
fn carry(mut from: &File, mut to: &File, stop: &AtomicBool) {
    let mut frame = vec![0; LONGEST];
    while !stop.load(Ordering::Relaxed) {
        match from.read(&mut frame) {
            Ok(length) => drop(to.write(&frame[..length])),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut entry = libc::pollfd { fd: from.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry, as is said.
                unsafe { libc::poll(&raw mut entry, 1, 50) };
            }
            // The interface is down.
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn tap(namespace: &Namespace, interface: &str) -> File {
    namespace.run(|| {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let tap = options.open("/dev/net/tun").expect("/dev/net/tun");
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_flags: flags as libc::c_short };
        let mut request = libc::ifreq { ifr_name: name, ifr_ifru };
        // SAFETY: the request is a structure of the kind this call reads and writes, and lives as long as the call.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "{interface}: {}", std::io::Error::last_os_error());
        // SAFETY: the argument is a number.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
        assert_eq!(result, 0, "{interface}: {}", std::io::Error::last_os_error());
        tap
    })
}
