//! What a kernel says of one of its connections (`TCP_INFO`), under the names `linux/tcp.h` and `ss -i` have.

use std::net::TcpStream;

use nix::libc;

use super::sockets::option;

/// Bytes of `struct tcp_info` that are read here; older kernels give fewer, newer ones more.
const LEN: usize = 280;

/// Where a 32-bit field lies in `struct tcp_info`. An ABI: fields are only ever added at the end.
const FIELDS: [(&str, usize); 37] = [
    ("rto", 8),
    ("ato", 12),
    ("snd_mss", 16),
    ("rcv_mss", 20),
    ("unacked", 24),
    ("sacked", 28),
    ("lost", 32),
    ("retrans", 36),
    ("pmtu", 60),
    ("rcv_ssthresh", 64),
    ("rtt", 68),
    ("rttvar", 72),
    ("snd_ssthresh", 76),
    ("snd_cwnd", 80),
    ("advmss", 84),
    ("reordering", 88),
    ("rcv_rtt", 92),
    ("rcv_space", 96),
    ("total_retrans", 100),
    ("segs_out", 136),
    ("segs_in", 140),
    ("notsent_bytes", 144),
    ("min_rtt", 148),
    ("data_segs_in", 152),
    ("data_segs_out", 156),
    ("delivered", 192),
    ("delivered_ce", 196),
    ("dsack_dups", 216),
    ("reord_seen", 220),
    ("rcv_ooopack", 224),
    ("snd_wnd", 228),
    ("rcv_wnd", 232),
    ("rehash", 236),
    ("received_ce", 248),
    ("delivered_ce_bytes", 260),
    ("received_e0_bytes", 268),
    ("received_ce_bytes", 272),
];

/// The state of a connection at one end, at one moment.
#[derive(Clone, Copy, Debug)]
pub struct TcpInfo([u8; LEN]);

impl TcpInfo {
    /// Asks the kernel. What it is too old to know is zero.
    ///
    /// # Panics
    /// If it is no TCP socket.
    pub fn of(stream: &TcpStream) -> TcpInfo {
        // SAFETY: bytes.
        TcpInfo(unsafe { option(stream, libc::TCP_INFO) }.expect("TCP_INFO of a TCP socket"))
    }

    /// What was agreed upon: `ts`, `sack`, `wscale`, `ecn`, and `ecnseen` when a segment has come that said it is
    /// capable.
    pub fn options(&self) -> String {
        const NAMES: [(u8, &str); 5] = [(1, "ts"), (2, "sack"), (4, "wscale"), (8, "ecn"), (16, "ecnseen")];
        let set = NAMES.iter().filter(|(bit, _)| self.0[5] & bit != 0).map(|(_, name)| *name);
        set.collect::<Vec<_>>().join(" ")
    }

    /// Which kind of ECN was negotiated, `off` too where the kernel does not tell (before 7.0).
    pub fn ecn(&self) -> &'static str {
        ["off", "classic", "accurate", "pending"][usize::from(self.0[276] & 3)]
    }

    /// The shifts: of the windows that come in, and of those that go out.
    pub fn scales(&self) -> [u8; 2] {
        [self.0[6] & 15, self.0[6] >> 4]
    }

    /// A field of 32 bits by its name, without `tcpi_`.
    ///
    /// # Panics
    /// If there is none of this name.
    pub fn get(&self, name: &str) -> u32 {
        let (_, at) = FIELDS.iter().find(|(field, _)| *field == name).unwrap_or_else(|| panic!("no tcpi_{name}"));
        u32::from_ne_bytes(self.0[*at..at + 4].try_into().expect("four bytes"))
    }

    /// Every field of 32 bits.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, u32)> {
        FIELDS.iter().map(|(name, _)| (*name, self.get(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    #[test]
    fn fields_lie_where_the_kernel_puts_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut there, _) = listener.accept().unwrap();
        for _ in 0..3 {
            here.write_all(&[1; 100]).unwrap();
            there.read_exact(&mut [0; 100]).unwrap();
        }
        let (here, there) = (TcpInfo::of(&here), TcpInfo::of(&there));
        assert_eq!(here.get("data_segs_out"), 3);
        assert_eq!(there.get("data_segs_in"), 3);
        assert_eq!(here.get("pmtu"), 65_535);
        // What one has granted is what the other has got.
        assert_eq!(here.get("snd_wnd"), there.get("rcv_wnd"));
        assert_eq!(here.scales()[0], there.scales()[1]);
        assert!(here.options().starts_with("ts sack wscale"), "{}", here.options());
    }
}
