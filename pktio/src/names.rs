//! The names of ports: which interface one means, and which I/O backend it asks for.

use crate::error::OpenError;
use crate::netmap;

/// The parsed name of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// The best backend that works.
    Any(&'a str),
    Xdp(&'a str),
    Packet(&'a str),
    Netmap(netmap::Name<'a>),
    Pcap(&'a str),
    /// This machine's own stack.
    Host,
}

/// The name of the port that is this machine's own stack, behind the NIC that is the WAN port.
pub const HOST: &str = "host";

impl<'a> Name<'a> {
    /// Parses a name.
    ///
    /// # Errors
    ///
    /// When it has the wrong form.
    pub(crate) fn parse(name: &'a str) -> Result<Name<'a>, OpenError> {
        let syntax = || OpenError::Syntax { name: name.into() };
        let parsed = match name.split_once(':') {
            Some(("xdp", rest)) => Name::Xdp(rest),
            Some(("packet", rest)) => Name::Packet(rest),
            Some(("pcap", rest)) => Name::Pcap(rest),
            Some(("netmap", rest)) => return netmap::Name::parse(rest).map(Name::Netmap).ok_or_else(syntax),
            Some((scheme, _)) if scheme.starts_with("vale") => {
                return netmap::Name::parse(name).map(Name::Netmap).ok_or_else(syntax);
            }
            // An old alias (eth0:1) is no interface, and no other name has a colon.
            Some(_) => return Err(syntax()),
            None if name == HOST => Name::Host,
            None => Name::Any(name),
        };
        let rest = match parsed {
            Name::Any(rest) | Name::Xdp(rest) | Name::Packet(rest) | Name::Pcap(rest) => rest,
            Name::Host => return Ok(parsed),
            Name::Netmap(_) => unreachable!("netmap parses its own names"),
        };
        let printable = rest.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/');
        if rest.is_empty() || (!printable && !matches!(parsed, Name::Pcap(_))) { Err(syntax()) } else { Ok(parsed) }
    }
}

/// The I/O backend that the name of a port asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The best that works.
    Best,
    /// AF_XDP.
    Xdp,
    /// AF_PACKET.
    Packet,
}

/// The interface of the kernel that the name of a port means, and the I/O backend it asks for. `None` for a port of netmap, for a
/// capture file and for this machine's own stack.
///
/// # Errors
///
/// When the name has the wrong form.
pub fn interface_of(name: &str) -> Result<Option<(&str, Asked)>, OpenError> {
    Ok(match Name::parse(name)? {
        Name::Any(device) => Some((device, Asked::Best)),
        Name::Xdp(device) => Some((device, Asked::Xdp)),
        Name::Packet(device) => Some((device, Asked::Packet)),
        Name::Netmap(_) | Name::Pcap(_) | Name::Host => None,
    })
}

/// The names of the members of a port: one, or several where it is an aggregation.
pub fn members_of(port: &str) -> Vec<&str> {
    // The name of a file may have a comma.
    if port.starts_with("pcap:") { vec![port] } else { port.split(',').collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_backend() {
        assert_eq!(Name::parse("eth0").unwrap(), Name::Any("eth0"));
        assert_eq!(Name::parse("xdp:eth0").unwrap(), Name::Xdp("eth0"));
        assert_eq!(Name::parse("packet:eth0.7").unwrap(), Name::Packet("eth0.7"));
        assert_eq!(Name::parse("pcap:/tmp/a b.pcap").unwrap(), Name::Pcap("/tmp/a b.pcap"));
        assert_eq!(Name::parse("host").unwrap(), Name::Host);
        assert_eq!(Name::parse("xdp:host").unwrap(), Name::Xdp("host"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_right_form() {
        for name in [
            "",
            "xdp:",
            "eth0:1",
            "ring:eth0",
            "eth 0",
            "a/b",
            "netmap:",
            "netmap:a/b",
            "vale0:",
            "vale:",
            "netmap:p{x",
        ] {
            let error = Name::parse(name).unwrap_err();
            assert!(matches!(error, OpenError::Syntax { .. }), "{name}: {error}");
            assert!(error.to_string().contains("[xdp:|netmap:|packet:|pcap:]NAME"), "{error}");
        }
    }

    #[test]
    fn an_aggregation_names_its_members() {
        assert_eq!(members_of("lan0,xdp:lan1"), ["lan0", "xdp:lan1"]);
        assert_eq!(members_of("pcap:in=a,b"), ["pcap:in=a,b"]);
    }
}
