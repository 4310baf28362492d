//! Files of networks: one a line, as feeds of addresses have them.

use std::fmt::Write as _;

use tcpstate::config::Network;

use crate::complaint::{quote, sentence, tame};
use crate::servers::Servers;

/// The most networks of all lists together. Four million take 160 MB at the most.
pub const MAX_NETWORKS: usize = 1 << 22;

/// Complaints of one file that are worth reading.
const MOST_COMPLAINTS: usize = 10;

/// Reads networks, one a line: an IPv4 or IPv6 address, with a prefix (`192.0.2.0/24`, `2001:db8::/32`) or alone. Empty lines and what follows a `#`,
/// a `;` or a `//` are skipped. Bits beyond a prefix do not count. `name` is the file's name for the messages.
///
/// # Errors
/// The first lines that are no networks, each with file and line, or that there are too many.
///
/// ```
/// let networks = confparse::networks("# a comment\n192.0.2.0/24 ; another\n\n2001:db8::1\n", "block.txt").unwrap();
/// assert_eq!(networks.len(), 2);
/// let error = confparse::networks("192.0.2.0/33\n", "block.txt").unwrap_err();
/// assert_eq!(error, "block.txt:1: `192.0.2.0/33` has a prefix of 33 bits: expected 0 to 32 for an IPv4 network");
/// ```
pub fn networks(text: &str, name: &str) -> Result<Vec<Network>, String> {
    let (mut networks, mut wrong, mut left_out) = (Vec::new(), Vec::new(), 0);
    for (line, text) in text.lines().enumerate() {
        let text = text.trim_start_matches('\u{feff}');
        let end = text.find(['#', ';']).unwrap_or(text.len()).min(text.find("//").unwrap_or(text.len()));
        let text = text[..end].trim();
        if text.is_empty() {
            continue;
        }
        match network(text) {
            Ok(network) => networks.push(network),
            Err(_) if wrong.len() == MOST_COMPLAINTS => left_out += 1,
            Err(mistake) => wrong.push(format!("{}:{}: {mistake}", tame(name), line + 1)),
        }
        if networks.len() > MAX_NETWORKS {
            return Err(format!("{}: more than {MAX_NETWORKS} networks", tame(name)));
        }
    }
    if wrong.is_empty() {
        return Ok(networks);
    }
    let mut message = wrong.join("\n");
    if left_out > 0 {
        // Writing to a string cannot fail.
        let _ = write!(message, "\n{}: {left_out} more lines are no networks", tame(name));
    }
    Err(message)
}

/// The network that a text names.
///
/// # Errors
/// Why it names none.
pub fn network(text: &str) -> Result<Network, String> {
    let shown = quote(text);
    match Servers::read(text) {
        Ok((Servers { port: Some(_), .. }, _)) => {
            Err(format!("{shown} has a port: clients are listed by their address alone"))
        }
        Ok((servers, _)) => Ok(servers.as_network()),
        Err(mistake) if mistake.expected.is_empty() => Err(format!("{shown} {}", mistake.message)),
        Err(mistake) => Err(format!("{shown} {}: {}", mistake.message, sentence(&mistake.expected))),
    }
}

/// A network as it is written, so that [`network`] reads it back.
pub fn written(network: &Network) -> String {
    Servers::of_network(network).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_file_as_feeds_have_them_is_read() {
        let text = "\u{feff}; a feed\r\n192.0.2.0/24 ; SBL1\r\n\r\n  2001:db8::/32  # two\n198.51.100.7 // three\n203.0.113.9/24";
        let written: Vec<_> = networks(text, "f").unwrap().iter().map(written).collect();
        assert_eq!(written, ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7", "203.0.113.0/24"]);
    }

    #[test]
    fn what_is_no_network_is_named_with_its_line_and_the_rest_is_counted() {
        let text = format!("10.0.0.0/8\nlocalhost\n10.0.0.1:80\n{}", "x\n".repeat(20));
        let error = networks(&text, "f").unwrap_err();
        let lines: Vec<_> = error.lines().collect();
        assert!(lines[0].starts_with("f:2: `localhost` is no address: expected an address"), "{error}");
        assert!(lines[1].starts_with("f:3: `10.0.0.1:80` has a port"), "{error}");
        assert_eq!((lines.len(), lines[10]), (11, "f: 12 more lines are no networks"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(address in any::<[u32; 4]>(), v4 in any::<bool>(), prefix in 0u8..=128) {
            let network = match v4 {
                true => Network { address: [0, 0, 0xffff, address[3]], prefix: 96 + prefix % 33 },
                false => Network { address, prefix },
            };
            let once = super::network(&written(&network)).unwrap();
            prop_assert_eq!(written(&once), written(&network));
            prop_assert!(once.covers(&network.address) && once.prefix == network.prefix);
        }

        #[test]
        fn any_text_has_an_answer(text in ".{0,200}") {
            let _ = networks(&text, "f");
        }
    }
}
