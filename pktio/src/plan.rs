//! What is decided before interfaces are touched, the same way for [`prepare`](crate::prepare()) and [`open`](crate::open()): which program each
//! interface gets, and where the kernel forwards connections.

use std::io;

use tracing::debug;

use crate::failure::FailurePlan;
use crate::names::Asked;
use crate::netdev::Interface;
use crate::options::{FastPathPlan, FastPathWay, Options, SynPlan};

/// The interface at the other side of this one, of so many: the members of the LAN come first, and then their partners.
pub(crate) fn partner(side: usize, count: usize) -> usize {
    (side + count / 2) % count
}

/// Whether an interface is one of the WAN's.
pub(crate) fn is_wan(side: usize, count: usize) -> bool {
    count > 1 && side >= count / 2
}

/// Whether the program of an interface has a shed filter: floods come from the WAN.
pub(crate) fn is_shedding(side: usize, count: usize, options: &Options) -> bool {
    options.shed && is_wan(side, count)
}

/// What the program of an interface answers SYNs by: it does at the WAN port. Members of an aggregation would each need a memory of their own.
pub(crate) fn syn_plan(side: usize, count: usize, options: &Options) -> Option<SynPlan> {
    let knows_flows = options.failure.is_some() && !options.host;
    options.syns.filter(|_| is_wan(side, count) && count == 2 && knows_flows)
}

/// Version and patch level of the kernel.
fn kernel_release() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Where the kernel shall forward connections by itself, and why there, if that was left to us. An error says why it shall not.
pub(crate) fn choose_fast_path(
    interfaces: &[&Interface],
    asked: Asked,
    options: &Options,
) -> Result<Option<(FastPathWay, Option<String>)>, &'static str> {
    let Some(FastPathPlan { way, .. }) = options.fast_path else { return Ok(None) };
    if interfaces.len() != 2 {
        return Err("not those of an aggregation");
    }
    // At tc it takes tcx, and older verifiers refuse the program of XDP.
    if kernel_release().is_some_and(|release| release < (6, 6)) {
        return Err("that takes Linux 6.6");
    }
    let virtual_port = interfaces.iter().find(|interface| !interface.has_link_checksums());
    let (way, why) = fast_path_way(way, asked, virtual_port.map(|interface| interface.name()))?;
    Ok(Some((way, why.map(|why| format!("fast path: {why}")))))
}

/// Where the kernel forwards connections by itself, if `way` says what is wanted and `asked` what the names of the ports ask for; and why there, if that was
/// left to us. `virtual_port` is the name of a port to which senders may leave checksums and segmentation, if there is one.
///
/// # Errors
///
/// Says why it cannot.
pub fn fast_path_way(
    way: FastPathWay,
    asked: Asked,
    virtual_port: Option<&str>,
) -> Result<(FastPathWay, Option<String>), &'static str> {
    Ok(match (way, asked) {
        (FastPathWay::Xdp, Asked::Packet) | (FastPathWay::Tc, Asked::Xdp) => {
            return Err("the ports are named for another I/O backend than `fast_path` needs");
        }
        (FastPathWay::Auto, Asked::Packet) => (FastPathWay::Tc, None),
        (FastPathWay::Auto, Asked::Xdp) => (FastPathWay::Xdp, None),
        (FastPathWay::Auto, Asked::Best) => match virtual_port {
            Some(name) => {
                (FastPathWay::Tc, Some(format!("tc, since senders may leave checksums and segmentation to {name}")))
            }
            None => (FastPathWay::Xdp, Some("XDP, since the frames of both ports come over links".into())),
        },
        (way, _) => (way, None),
    })
}

/// Options by which the XDP program forwards connections, if it is to.
pub(crate) fn forwarding(options: &Options, way: Option<FastPathWay>) -> Options {
    let forward_words = options.fast_path.filter(|_| way == Some(FastPathWay::Xdp)).map_or(0, |plan| plan.words);
    let failure = options.failure.clone().map(|plan| FailurePlan { forward_words, ..plan });
    Options { failure, ..options.clone() }
}

/// Raises the limit of locked memory as far as possible: AF_XDP's buffers count against it.
pub(crate) fn raise_memory_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is a valid structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } == 0 {
        return;
    }
    debug!("RLIMIT_MEMLOCK could not be lifted: {}", io::Error::last_os_error());
    let mut limit = unlimited;
    // SAFETY: the limit is written to a local structure, then read back from it.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
        }
    }
}
