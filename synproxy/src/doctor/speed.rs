//! Which I/O backend and mode a box will work with between two interfaces, and about how fast that is.

use super::Scene;
use super::kernel::{has_af_xdp, has_bpf};
use super::limits::lacks_for_xdp;
use pktio::netdev::Description;
use pktio::{Asked, buffers_for};
use serde::Serialize;

/// An I/O backend and its mode, the faster the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// AF_XDP in driver mode with zero copy.
    ZeroCopy,
    /// AF_XDP in driver mode, copying.
    Driver,
    /// AF_XDP in generic mode.
    Generic,
    /// AF_PACKET.
    Packet,
}

impl Mode {
    /// Its name, as the log has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::ZeroCopy => "AF_XDP, driver mode, zero copy",
            Mode::Driver => "AF_XDP, driver mode, copying",
            Mode::Generic => "AF_XDP, generic mode",
            Mode::Packet => "AF_PACKET",
        }
    }
}

/// What one worker reaches with a mode, as far as it is known. Rates are in millions a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Class {
    /// The mode.
    pub mode: Mode,
    /// SYNs answered.
    pub syns: Range,
    /// Small segments of established connections forwarded.
    pub segments: Range,
    /// Gigabits a second of frames of 1500 bytes.
    pub bulk: Range,
    /// Where the figures come from.
    pub basis: &'static str,
}

/// From the first, where it is known, to the last.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range(pub Option<f32>, pub f32);

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Range(Some(first), last) => write!(f, "{first} to {last}"),
            Range(None, last) => write!(f, "less than {last}"),
        }
    }
}

const fn between(first: f32, last: f32) -> Range {
    Range(Some(first), last)
}

const fn below(last: f32) -> Range {
    Range(None, last)
}

/// Every class; `docs/performance.md` has the same table, with the measurements.
pub const CLASSES: [Class; 4] = [
    Class {
        mode: Mode::ZeroCopy,
        syns: between(4.0, 8.0),
        segments: between(4.5, 9.0),
        bulk: between(50.0, 100.0),
        basis: "calculated, from the engine's times and the published cost of a port; not measured on a NIC",
    },
    Class {
        mode: Mode::Driver,
        syns: between(0.7, 0.9),
        segments: between(0.8, 0.9),
        bulk: between(4.5, 5.0),
        basis: "measured on veth, where the kernel's transmission takes nine tenths of the time; a NIC's driver may be faster",
    },
    Class {
        mode: Mode::Generic,
        syns: below(0.7),
        segments: below(0.8),
        bulk: below(4.5),
        basis: "not measured: each frame costs the kernel more than in driver mode",
    },
    Class {
        mode: Mode::Packet,
        syns: below(0.3),
        segments: below(0.3),
        bulk: below(3.0),
        basis: "not measured: several times slower than driver mode",
    },
];

/// Drivers that have AF_XDP zero copy, for kernels that do not say which have.
const ZERO_COPY: [&str; 13] = [
    "fbnic",
    "hinic3",
    "i40e",
    "ice",
    "idpf",
    "igb",
    "igc",
    "ixgbe",
    "mlx5_core",
    "nfp",
    "stmmac",
    "tsnep",
    "virtio_net",
];

/// Drivers that run XDP programs and have no zero copy, for kernels that do not say which do.
const NATIVE: [&str; 20] = [
    "atlantic",
    "bnxt_en",
    "cpsw",
    "ena",
    "enetc",
    "fec",
    "fsl_dpaa2_eth",
    "funeth",
    "gve",
    "hv_netvsc",
    "ixgbevf",
    "lan966x",
    "mlx4_en",
    "mvneta",
    "mvpp2",
    "netsec",
    "qede",
    "sfc",
    "tun",
    "veth",
];

/// The mode of one interface, were the other like it, and why not a better one.
pub(super) fn mode_of(scene: &Scene, port: &Description) -> (Mode, Option<String>) {
    let packet = |why: &str| (Mode::Packet, Some(why.to_owned()));
    if scene.asked.contains(&Asked::Packet) {
        return packet("`packet:` asks for it");
    }
    if !has_bpf(&scene.root) || !has_af_xdp(&scene.root) {
        return packet("this kernel has no AF_XDP");
    }
    if lacks_for_xdp(scene) {
        return packet("the process may not do more: see `capabilities` and `locked-memory`");
    }
    let driver = port.driver.as_str();
    let (is_native, has_zero_copy) = match port.xdp_features {
        Some(features) => (features.is_native, features.has_zero_copy),
        None => (ZERO_COPY.contains(&driver) || NATIVE.contains(&driver), ZERO_COPY.contains(&driver)),
    };
    if !is_native {
        return (Mode::Generic, Some("its driver runs no XDP program".into()));
    }
    let chained = buffers_for(port.mtu).is_some_and(|buffers| buffers.are_chained);
    let may_chain = port.xdp_features.is_none_or(|features| features.has_frags);
    if chained && !may_chain {
        return (
            Mode::Generic,
            Some(format!("its driver takes no frames of an MTU of {} in several buffers", port.mtu)),
        );
    }
    if !has_zero_copy {
        return (Mode::Driver, Some("its driver has no zero copy".into()));
    }
    if chained && port.xdp_features.is_some_and(|features| features.zero_copy_frags < 2) {
        return (Mode::Driver, Some(format!("its driver has no zero copy for an MTU of {}", port.mtu)));
    }
    (Mode::ZeroCopy, None)
}

/// The modes of both interfaces, and the class of the slower one; `None` unless both exist.
pub(super) fn expected(scene: &Scene) -> Option<([Mode; 2], &'static Class)> {
    let modes = scene.both()?.map(|port| mode_of(scene, port).0);
    let slower = modes[0].max(modes[1]);
    // Both ports share their memory, so they copy unless both do not.
    let modes = modes.map(|mode| if mode == Mode::ZeroCopy && slower != Mode::ZeroCopy { Mode::Driver } else { mode });
    CLASSES.iter().find(|class| class.mode == slower).map(|class| (modes, class))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Stage;
    use super::*;
    use pktio::netdev::XdpFeatures;

    #[test]
    fn the_slower_interface_decides_and_both_copy_unless_both_do_not() {
        let mut stage = Stage::new("modes");
        let modes = |stage: &Stage| expected(&stage.scene).unwrap();
        assert_eq!(modes(&stage).0, [Mode::ZeroCopy; 2]);
        stage.port(1).xdp_features = Some(XdpFeatures { is_native: true, ..XdpFeatures::default() });
        let (both, class) = modes(&stage);
        assert_eq!((both, class.mode), ([Mode::Driver; 2], Mode::Driver));
        stage.port(1).xdp_features = Some(XdpFeatures::default());
        let (both, class) = modes(&stage);
        assert_eq!((both, class.mode), ([Mode::Driver, Mode::Generic], Mode::Generic));
        stage.scene.asked[0] = Asked::Packet;
        assert_eq!(modes(&stage).0, [Mode::Packet; 2]);
    }

    #[test]
    fn a_kernel_that_does_not_say_is_judged_by_its_drivers() {
        let mut stage = Stage::new("drivers");
        for (driver, mode) in [("ice", Mode::ZeroCopy), ("ena", Mode::Driver), ("r8169", Mode::Generic)] {
            for side in 0..2 {
                (stage.port(side).driver, stage.port(side).xdp_features) = (driver.into(), None);
            }
            assert_eq!(expected(&stage.scene).unwrap().0, [mode; 2], "{driver}");
        }
    }

    #[test]
    fn long_frames_need_drivers_that_chain_buffers() {
        let mut stage = Stage::new("frags");
        let all = XdpFeatures {
            is_native: true,
            takes_redirected: true,
            takes_redirected_pieces: true,
            has_zero_copy: true,
            has_frags: true,
            zero_copy_frags: 8,
        };
        for (features, mode) in [
            (all, Mode::ZeroCopy),
            (XdpFeatures { zero_copy_frags: 1, ..all }, Mode::Driver),
            (XdpFeatures { has_frags: false, ..all }, Mode::Generic),
        ] {
            for side in 0..2 {
                (stage.port(side).mtu, stage.port(side).xdp_features) = (9000, Some(features));
            }
            assert_eq!(expected(&stage.scene).unwrap().0, [mode; 2]);
        }
    }

    #[test]
    fn the_page_on_performance_has_the_same_figures() {
        let page = include_str!("../../../docs/performance.md");
        for Class { mode, syns, segments, bulk, basis } in CLASSES {
            let row = format!("| {} | {syns} | {segments} | {bulk} | {basis} |", mode.name());
            assert!(page.contains(&row), "docs/performance.md lacks\n{row}");
        }
    }
}
