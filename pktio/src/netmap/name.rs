//! The names of netmap ports.

/// The name of a netmap port, without the prefix `netmap:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    /// A NIC.
    Interface(&'a str),
    /// A port of a VALE switch.
    Switch(&'a str),
    /// One end of a pipe.
    Pipe {
        /// The port in whose memory the pipe lies; it need not exist otherwise.
        parent: &'a str,
        /// The pipe's number there.
        number: u16,
        /// Which end.
        master: bool,
    },
}

impl<'a> Name<'a> {
    /// Parses `name`; `None` when it names no port.
    pub(crate) fn parse(name: &'a str) -> Option<Name<'a>> {
        let word = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && !"/{}:@".contains(c));
        if let Some(rest) = name.strip_prefix("vale") {
            let (switch, port) = rest.split_once(':')?;
            return ((switch.is_empty() || word(switch)) && word(port)).then_some(Name::Switch(name));
        }
        match name.split_once(['{', '}']) {
            Some((parent, number)) => {
                let number = number.parse().ok().filter(|&number: &u16| number < 4096)?;
                let master = name.as_bytes()[parent.len()] == b'{';
                word(parent).then_some(Name::Pipe { parent, number, master })
            }
            None => word(name).then_some(Name::Interface(name)),
        }
    }

    /// The NIC to be prepared, if the port is one.
    pub(crate) fn interface(&self) -> Option<&'a str> {
        match *self {
            Name::Interface(name) => Some(name),
            Name::Switch(_) | Name::Pipe { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_netmap() {
        assert_eq!(Name::parse("eth0"), Some(Name::Interface("eth0")));
        assert_eq!(Name::parse("vale0:1"), Some(Name::Switch("vale0:1")));
        assert_eq!(Name::parse("vale:x"), Some(Name::Switch("vale:x")));
        assert_eq!(Name::parse("pipe{1"), Some(Name::Pipe { parent: "pipe", number: 1, master: true }));
        assert_eq!(Name::parse("pipe}1"), Some(Name::Pipe { parent: "pipe", number: 1, master: false }));
        for name in ["", "eth 0", "a/b", "p{", "p{x", "p{4096", "{1", "vale0:", "vale0", "vale/:1", "eth0:1"] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }
}
