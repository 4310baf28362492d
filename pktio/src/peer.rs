//! Who is at the other end of a local socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The most groups a process can have (`NGROUPS_MAX`).
const MOST: usize = 65_536;

/// The supplementary groups that the process at the other end had when it connected (`SO_PEERGROUPS`, since Linux 4.13), by number.
///
/// # Errors
/// Those of `getsockopt(2)`: the socket is not a connected Unix one, or the kernel is older.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 64];
    loop {
        let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the list is writable for as many bytes as `bytes` says, and any bits are numbers.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut bytes,
            )
        };
        let needed = bytes as usize / size_of::<u32>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // It says how long the list has to be. The groups of a connected socket do not change.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > MOST {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_groups_of_the_peer_are_those_of_its_process() {
        let (near, _far) = UnixStream::pair().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut own: Vec<u32> = line.split_whitespace().map(|group| group.parse().unwrap()).collect();
        let mut found = peer_groups(&near).unwrap();
        own.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, own);
        assert!(peer_groups(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
