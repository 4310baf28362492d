//! Traffic control: the filters that see each frame an interface receives or sends, as programs of eBPF (tc-bpf(8)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::rtnetlink::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, Rtnetlink, attributes, push_attribute, text, word};

// linux/rtnetlink.h
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
/// Bytes of `struct tcmsg`.
const TCMSG: usize = 20;

// linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
const HANDLE: u32 = 0xffff_0000;
const CLSACT: u32 = 0xffff_fff1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's result is the verdict (`TCA_BPF_FLAG_ACT_DIRECT`).
const DIRECT: u32 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_INGRESS_REDIR: u32 = 3;
/// Frames of every protocol.
const ETH_P_ALL: u16 = 3;

/// The place of our filters among others: early, with room in front. The number of each is 1.
const PRIORITY: u16 = 10;

/// Which frames of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Those it receives.
    Ingress,
    /// Those it sends.
    Egress,
}

impl Way {
    fn parent(self) -> u32 {
        match self {
            Way::Ingress => 0xffff_fff2,
            Way::Egress => 0xffff_fff3,
        }
    }
}

/// What becomes of a frame when the program of a filter has seen it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Then {
    /// What its result says.
    Verdict,
    /// It arrives at the interface of this index, which does not hand it to an XDP program in generic mode again.
    ArriveAt(u32),
}

/// A filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    /// What kind it is (`bpf`, `u32`).
    pub kind: String,
    /// The name of its program, where it has one.
    pub name: String,
    /// Its priority.
    pub priority: u16,
}

/// Gives an interface the queueing discipline that filters are attached to; returns whether it had none.
///
/// # Errors
///
/// The kernel's.
pub(super) fn make_hook(netlink: &mut Rtnetlink, index: u32) -> io::Result<bool> {
    let mut body = head(index, CLSACT, HANDLE, 0);
    push_attribute(&mut body, TCA_KIND, b"clsact\0");
    match netlink.change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &body) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes it away again, with every filter.
///
/// # Errors
///
/// The kernel's.
pub(super) fn remove_hook(netlink: &mut Rtnetlink, index: u32) -> io::Result<()> {
    netlink.change(RTM_DELQDISC, 0, &head(index, CLSACT, HANDLE, 0))
}

/// Attaches a program under this name.
///
/// # Errors
///
/// The kernel's; `EEXIST` when there is a filter in its place.
pub(super) fn attach(
    netlink: &mut Rtnetlink,
    index: u32,
    way: Way,
    program: BorrowedFd<'_>,
    name: &str,
    then: Then,
) -> io::Result<()> {
    let mut options = Vec::new();
    push_attribute(&mut options, TCA_BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
    push_attribute(&mut options, TCA_BPF_NAME, &[name.as_bytes(), &[0]].concat());
    match then {
        Then::Verdict => push_attribute(&mut options, TCA_BPF_FLAGS, &DIRECT.to_ne_bytes()),
        Then::ArriveAt(other) => {
            // struct tc_mirred: index, capabilities, action, references, bindings, what to do, interface.
            let parameters = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_INGRESS_REDIR, other].map(u32::to_ne_bytes).concat();
            let (mut of_action, mut action, mut actions) = (Vec::new(), Vec::new(), Vec::new());
            push_attribute(&mut of_action, TCA_MIRRED_PARMS, &parameters);
            push_attribute(&mut action, TCA_ACT_KIND, b"mirred\0");
            push_attribute(&mut action, TCA_ACT_OPTIONS, &of_action);
            push_attribute(&mut actions, 1, &action);
            push_attribute(&mut options, TCA_BPF_ACT, &actions);
        }
    }
    let mut body = place(index, way);
    push_attribute(&mut body, TCA_KIND, b"bpf\0");
    push_attribute(&mut body, TCA_OPTIONS, &options);
    netlink.change(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Detaches our program.
///
/// # Errors
///
/// The kernel's; `ENOENT` when it is not there.
pub(super) fn detach(netlink: &mut Rtnetlink, index: u32, way: Way) -> io::Result<()> {
    netlink.change(RTM_DELTFILTER, 0, &place(index, way))
}

/// The filters of an interface; none where it has no place for any.
///
/// # Errors
///
/// The kernel's.
pub(super) fn filters(netlink: &mut Rtnetlink, index: u32, way: Way) -> io::Result<Vec<Filter>> {
    let mut found = Vec::new();
    let listed = netlink.request(RTM_GETTFILTER, NLM_F_DUMP, &head(index, way.parent(), 0, 0), |message| {
        found.extend(parse_filter(message));
    });
    match listed {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {}
        listed => listed?,
    }
    Ok(found)
}

/// The filter of a message; `None` for one that says only that there are some of a priority.
fn parse_filter(message: &[u8]) -> Option<Filter> {
    let (head, rest) = message.split_at_checked(TCMSG)?;
    let of = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let options = of(rest, TCA_OPTIONS)?;
    let kind = text(of(rest, TCA_KIND)?);
    let name = of(options, TCA_BPF_NAME).filter(|_| kind == "bpf").map(text).unwrap_or_default();
    Some(Filter { kind, name, priority: (word(&head[16..])? >> 16) as u16 })
}

/// The kinds of the queueing disciplines of an interface, each once.
///
/// # Errors
///
/// The kernel's.
pub(super) fn disciplines(netlink: &mut Rtnetlink, index: u32) -> io::Result<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    netlink.request(RTM_GETQDISC, NLM_F_DUMP, &head(index, 0, 0, 0), |message| {
        let Some((head, rest)) = message.split_at_checked(TCMSG) else { return };
        let kind = attributes(rest).find(|(kind, _)| *kind == TCA_KIND).map(|(_, value)| text(value));
        // The kernel lists those of every interface.
        found.extend(kind.filter(|kind| word(&head[4..]) == Some(index) && !found.contains(kind)));
    })?;
    Ok(found)
}

/// Where our filter is.
fn place(index: u32, way: Way) -> Vec<u8> {
    head(index, way.parent(), 1, u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be()))
}

/// A `struct tcmsg`.
fn head(index: u32, parent: u32, handle: u32, information: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend([index, handle, parent, information].map(u32::to_ne_bytes).concat());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_as_far_as_its_message_goes() {
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_NAME, b"mine\0");
        let mut message = head(7, Way::Egress.parent(), 1, u32::from(PRIORITY) << 16);
        push_attribute(&mut message, TCA_KIND, b"bpf\0");
        let without = message.len();
        push_attribute(&mut message, TCA_OPTIONS, &options);
        let filter = Filter { kind: "bpf".into(), name: "mine".into(), priority: PRIORITY };
        assert_eq!(parse_filter(&message), Some(filter));
        for length in 0..=without {
            assert_eq!(parse_filter(&message[..length]), None, "{length}");
        }
    }

    #[test]
    fn the_loopback_has_no_filter() {
        let mut netlink = Rtnetlink::new().unwrap();
        let lo = netlink.named("lo").unwrap();
        assert_eq!(filters(&mut netlink, lo.index, Way::Egress).unwrap(), []);
        assert!(disciplines(&mut netlink, lo.index).unwrap().iter().all(|kind| kind == "noqueue"));
    }
}
