//! Routers on one side of the box, so that the host there is in another network, behind a link of its own.
//!
//! ```text
//!   client ──1500── outer ── narrow ── inner ──1500── box ──1500── server        (or mirrored)
//!   10.78.0.1    .254   10.79.0.0/24    10.77.0.254               10.77.0.2
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{CLIENT_MAC, Namespace, Rig, SERVER_MAC, queue_counts};

/// The host's addresses behind the routers.
pub const FAR_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
/// The host's addresses behind the routers.
pub const FAR_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1));

/// Two routers and the link between them; gone when dropped.
#[derive(Debug)]
pub struct Routers {
    /// Next to the host.
    pub outer: Namespace,
    /// Next to the box.
    pub inner: Namespace,
}

impl Rig {
    /// Moves the client ([`Rig::WAN`]) or the server ([`Rig::LAN`]) behind two routers with a link of `mtu` bytes between
    /// them. Its addresses are [`FAR_V4`] and [`FAR_V6`] from then on; the other host stays where it is and knows the way.
    ///
    /// # Panics
    /// Without root, or for an interface that is neither.
    pub fn route(&self, port: &str, mtu: u32) -> Routers {
        let (host, nic, mac, near, near_nic) = match port {
            Rig::WAN => (&self.client, "c0", CLIENT_MAC, &self.server, "s0"),
            Rig::LAN => (&self.server, "s0", SERVER_MAC, &self.client, "c0"),
            other => panic!("{other} leads nowhere"),
        };
        let (outer, inner) = (Namespace::new("outer"), Namespace::new("inner"));
        for router in [&outer, &inner] {
            router.sysctl("net.ipv4.ip_forward", "1");
            router.sysctl("net.ipv6.conf.all.forwarding", "1");
            router.sysctl("net.ipv6.conf.default.forwarding", "1");
            // Whether an error is sent is to depend on the packet alone.
            router.sysctl("net.ipv4.icmp_ratelimit", "0");
            router.sysctl("net.ipv6.icmp.ratelimit", "0");
        }
        let several = queue_counts(self.queues);
        let cable = |at: &Namespace, nic: &str, mtu: u32, other: &Namespace, other_nic: &str| {
            at.sh(&format!(
                "ip link add {nic} {several} mtu {mtu} type veth peer name {other_nic} {several} mtu {mtu} netns {}
                 ethtool -K {nic} tx off txvlan off >/dev/null; ip link set {nic} up",
                other.name()
            ));
            other.sh(&format!("ethtool -K {other_nic} tx off txvlan off >/dev/null; ip link set {other_nic} up"));
        };
        // The cable that was is cut: the box gets a new one, and so does the host.
        self.middle.sh(&format!("ip link del {port}"));
        cable(&self.middle, port, 1500, &inner, "n0");
        cable(&inner, "m0", mtu, &outer, "m1");
        cable(&outer, "f0", 1500, host, nic);
        inner.sh("ip addr add 10.77.0.254/24 dev n0; ip addr add fd77::254/64 dev n0 nodad
             ip addr add 10.79.0.1/24 dev m0; ip addr add fd79::1/64 dev m0 nodad
             ip route add 10.78.0.0/24 via 10.79.0.2; ip -6 route add fd78::/64 via fd79::2");
        outer.sh("ip addr add 10.79.0.2/24 dev m1; ip addr add fd79::2/64 dev m1 nodad
             ip addr add 10.78.0.254/24 dev f0; ip addr add fd78::254/64 dev f0 nodad
             ip route add default via 10.79.0.1; ip -6 route add default via fd79::1");
        host.sh(&format!(
            "ip link set {nic} address {mac}
             ip addr add {FAR_V4}/24 dev {nic}; ip addr add {FAR_V6}/64 dev {nic} nodad
             ip route add default via 10.78.0.254; ip -6 route add default via fd78::254"
        ));
        near.sh(&format!(
            "ip route add 10.78.0.0/24 via 10.77.0.254 dev {near_nic}
             ip -6 route add fd78::/64 via fd77::254 dev {near_nic}"
        ));
        Routers { outer, inner }
    }
}
