//! What holds of any message of the kernel's, and of any file about an interface.

use super::claim::{holder, settings_of};
use super::rtnetlink::{self, Link, address_of_words, attributes, messages};
use super::xdp_features::parse_features;

/// Any datagram of netlink: each of its messages is read to an end, as one about a link, about a route, and about what a driver can do.
pub fn netlink(data: &[u8]) {
    let mut read = 0;
    for (head, message) in messages(data) {
        read += head.len() + message.len();
        assert!(attributes(message).map(|(_, value)| value.len() + 4).sum::<usize>() <= message.len());
        if let Some(link) = Link::parse(message) {
            assert!(link.name.len() <= message.len() && link.address.len() <= message.len());
            assert!(!link.has_carrier() || link.is_up());
        }
        assert!(rtnetlink::ports_of_route(message).count() <= message.len() / 4);
        let _ = (rtnetlink::is_default_route(message), parse_features(message));
        let words: Vec<u32> = message.chunks(4).take(5).filter_map(rtnetlink::word).collect();
        assert_eq!(address_of_words(&words).is_some(), matches!(words.len(), 1 | 4));
    }
    assert!(read <= data.len(), "{read} bytes read of {}", data.len());
}

/// Any file about an interface: what it says is written and read back the same, and who holds the interface is shown in one line.
pub fn originals(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let shown = holder(&text);
    assert!(!shown.contains(char::is_control) && shown.chars().count() < 300, "{shown:?}");
    let Some(originals) = settings_of(&text, "me") else { return };
    let mut again = format!("synproxy-port 1\ntaken-down {}\ninterface lan0 me\n", u8::from(originals.taken_down));
    originals.write(&mut again);
    again.push_str("end\n");
    assert_eq!(settings_of(&again, "me"), Some(originals));
}
