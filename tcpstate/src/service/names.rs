//! Names that clients ask for and protocols that they offer, and what routes have for them.

use core::cmp::Ordering;

/// The most bytes of a name (RFC 1035 section 3.1).
pub const LONGEST: usize = 253;

/// The name of a host: ASCII letters in lower case, digits, hyphens, underscores and dots, without a dot at the end.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Name {
    /// The name that these bytes are, in any case, with or without a dot at the end. `None` if they are none, as an address is not (RFC 6066 section
    /// 3).
    pub fn new(text: &[u8]) -> Option<Self> {
        let text = text.strip_suffix(b".").unwrap_or(text);
        let mut bytes = [0; LONGEST];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        bytes.make_ascii_lowercase();
        let is_of_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let labels = || text.split(|&byte| byte == b'.');
        let is_name = text.iter().all(is_of_name)
            && labels().all(|label| !label.is_empty() && label.len() <= 63)
            // The last label of a name is not a number; that of an IPv4 address is.
            && labels().next_back().is_some_and(|label| !label.iter().all(u8::is_ascii_digit));
        is_name.then_some(Self { bytes, len: text.len() as u8 })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len.into()]
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Name {}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // It is ASCII.
        f.write_str(str::from_utf8(self.bytes()).unwrap_or_default())
    }
}

/// The name in an authority (RFC 3986 section 3.2): without what stands in front of an `@`, and without its port.
pub(super) fn of_authority(text: &[u8]) -> Option<Name> {
    let text = text.rsplit(|&byte| byte == b'@').next()?;
    let mut parts = text.splitn(2, |&byte| byte == b':');
    let host = parts.next()?;
    let has_port = parts.next().is_none_or(|port| port.iter().all(u8::is_ascii_digit));
    Name::new(host).filter(|_| has_port)
}

/// Whether this is a pattern: a name, or `*.` and a name.
pub fn is_pattern(text: &str) -> bool {
    Name::new(text.strip_prefix("*.").unwrap_or(text).as_bytes()).is_some() && !text.ends_with('.')
}

/// The most protocols that routes of a service can have.
pub const MOST_PROTOCOLS: usize = 64;

/// The protocols that routes of a service ask for (ALPN, RFC 7301), each with a bit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protocols(Vec<Box<[u8]>>);

impl Protocols {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bit of this protocol, zero if it is none of these.
    pub fn find(&self, protocol: &[u8]) -> u64 {
        self.0.iter().position(|own| **own == *protocol).map_or(0, |at| 1 << at)
    }

    /// The bit of this protocol, which is one of these from now on; zero if there is no room.
    pub fn add(&mut self, protocol: &[u8]) -> u64 {
        if self.find(protocol) == 0 && self.0.len() < MOST_PROTOCOLS {
            self.0.push(protocol.into());
        }
        self.find(protocol)
    }
}

/// Whether this can be the name of a protocol in a route: visible characters of ASCII without `=`, as those that are registered have, 255 at most.
pub fn is_protocol(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'=')
}

/// Patterns, each with the number of a route: names, and names behind `*.`, which stand for everything below them. A name counts before a pattern
/// with an asterisk, and of those the longest does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Sorted.
    exact: Vec<(Box<[u8]>, u32)>,
    /// What stands behind `*.`; sorted.
    below: Vec<(Box<[u8]>, u32)>,
}

impl Patterns {
    /// These patterns. Of two that are the same the first counts; what is no pattern is left out.
    pub fn new<'a>(patterns: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut own = Self::default();
        for (text, route) in patterns {
            let (list, text) = match text.strip_prefix("*.") {
                Some(rest) => (&mut own.below, rest),
                None => (&mut own.exact, text),
            };
            if let Some(name) = Name::new(text.as_bytes()) {
                list.push((name.bytes().into(), route));
            }
        }
        for list in [&mut own.exact, &mut own.below] {
            // Stable.
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list.dedup_by(|later, earlier| later.0 == earlier.0);
        }
        own
    }

    /// The route of a name: as many look-ups as it has labels, at most.
    pub fn find(&self, name: &Name) -> Option<u32> {
        let in_list = |list: &[(Box<[u8]>, u32)], name: &[u8]| {
            let at = list.binary_search_by(|(own, _)| -> Ordering { (**own).cmp(name) }).ok()?;
            Some(list[at].1)
        };
        let bytes = name.bytes();
        let parents = || bytes.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| &bytes[at + 1..]);
        in_list(&self.exact, bytes).or_else(|| parents().find_map(|parent| in_list(&self.below, parent)))
    }
}
