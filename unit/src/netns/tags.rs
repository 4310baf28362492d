//! VLAN tags on the cables of a rig, put on and taken off at the end hosts as a kernel's 802.1Q device would, by a
//! small program in the hosts' traffic control (`bpf/tags.c`): tests need no such device in the kernel, and the tag is
//! in the frame.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use harness::leftovers;

use super::{CLIENT_V4, Namespace, Rig, SERVER_V4, output};

/// One VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The protocol that announces it: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub protocol: u16,
    /// The VLAN, 1 to 4094; 0 for none.
    pub id: u16,
}

/// A customer's VLAN.
pub const CUSTOMER: Tag = Tag { protocol: 0x8100, id: 7 };
/// A tag that names no VLAN, but a priority alone.
pub const PRIORITY: Tag = Tag { protocol: 0x8100, id: 0 };
/// A provider's, around it (QinQ).
pub const PROVIDER: Tag = Tag { protocol: 0x88a8, id: 100 };

impl Rig {
    /// As [`Rig::with_mtu`], with `tags`, outermost first, on every frame of both cables: a host loses what comes
    /// without them. Packets are of `mtu` bytes at most, whatever the tags take.
    ///
    /// # Panics
    /// As [`Rig::new`]; without `tc` or `clang`; if the kernel refuses the program.
    pub fn tagged(mtu: u32, tags: &[Tag]) -> Rig {
        if tags.is_empty() {
            return Rig::with_mtu(mtu);
        }
        Rig::tagged_apart(mtu, tags, tags)
    }

    /// The same, with one list of tags on the client's frames and another one on the server's.
    ///
    /// # Panics
    /// As [`Rig::tagged`].
    pub fn tagged_apart(mtu: u32, up: &[Tag], down: &[Tag]) -> Rig {
        let most = up.len().max(down.len());
        // Linux gives every interface room for one 802.1Q tag beyond its MTU. A packet socket gives none to an 802.1ad
        // one.
        let rig = Rig::with_mtu(mtu + if most > 1 { 4 * most as u32 } else { 0 });
        let ends = [(&rig.client, "c0", CLIENT_V4, [up, down]), (&rig.server, "s0", SERVER_V4, [down, up])];
        for (host, interface, v4, [put, taken]) in ends {
            let object = Object::compile(put, taken);
            let object = object.0.display();
            host.sh(&format!(
                "ethtool -K {interface} tx-vlan-stag-hw-insert off >/dev/null
                 tc qdisc add dev {interface} clsact
                 tc filter add dev {interface} egress bpf da obj {object} sec classifier/out
                 tc filter add dev {interface} ingress bpf da obj {object} sec classifier/in
                 ip route change 10.77.0.0/24 dev {interface} proto kernel scope link src {v4} mtu {mtu}"
            ));
            host.sysctl(&format!("net.ipv6.conf.{interface}.mtu"), &mtu.to_string());
        }
        rig
    }
}

/// Puts `tags`, outermost first, on every frame that a host sends by an interface, before any filter but these at its egress sees the frame.
///
/// # Panics
/// Without `tc` or `clang`; if the kernel refuses the program.
pub fn put_first(host: &Namespace, interface: &str, tags: &[Tag]) {
    let object = Object::compile(tags, &[]);
    let object = object.0.display();
    // Its result, zero, is no verdict here but "does not match", so the next filter follows.
    host.sh(&format!("tc filter add dev {interface} egress pref 1 bpf obj {object} sec classifier/out"));
}

/// A compiled program. The file goes when dropped; what is loaded stays.
struct Object(PathBuf);

impl Object {
    fn compile(put: &[Tag], taken: &[Tag]) -> Object {
        let object = Object(leftovers::file("tags.o"));
        let list = |tags: &[Tag]| {
            let list: Vec<String> = tags.iter().map(|tag| format!("{{{},{}}}", tag.protocol, tag.id)).collect();
            list.join(",")
        };
        let mut clang = Command::new(env::var_os("CLANG").unwrap_or_else(|| "clang".into()));
        clang.args(["-target", "bpf", "-mcpu=v3", "-O2", "-Wall", "-Wextra", "-Werror", "-nostdinc"]);
        clang.arg(format!("-DOUT={}", list(put))).arg(format!("-DIN={}", list(taken))).arg("-c");
        clang.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf/tags.c")).arg("-o").arg(&object.0);
        output(clang, "compiling bpf/tags.c with clang");
        object
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
