//! Networks on command lines: an address with a prefix length.

use std::net::IpAddr;
use std::str::FromStr;

/// A network such as 10.0.0.0/8 or fd00::/8; a host if there is no length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub address: IpAddr,
    /// The prefix length, in bits.
    pub length: u32,
}

impl Network {
    /// Whether the network contains the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u128::from(a.to_bits() ^ b.to_bits()) << 96,
            (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() ^ b.to_bits(),
            _ => return false,
        };
        differ.leading_zeros() >= self.length
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let refuse = || format!("`{text}` is no network; write it as 10.0.0.0/8 or fd00::/8");
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), str::parse).map_err(|_| refuse())?;
        if length > most { Err(refuse()) } else { Ok(Self { address, length }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_hosts() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        let has = |text: &str, host: &str| network(text).contains(host.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("0.0.0.0/0", "11.0.0.1") && !has("0.0.0.0/0", "::1"));
        assert!(has("fd00::/8", "fdff::1") && !has("fd00::/8", "fe80::1"));
        assert!(has("10.0.0.1", "10.0.0.1") && !has("10.0.0.1", "10.0.0.2"));
        for wrong in ["", "10.0.0.0/33", "10.0.0.0/-1", "fd00::/129", "10.0.0/8", "x/8"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
