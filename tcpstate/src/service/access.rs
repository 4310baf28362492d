//! Who may connect to whom through the box, and who must say who it is. Nobody may anything that no rule says.

use super::names::{Name, Patterns};
use crate::config::{Allowance, AllowedHost, Network, ServiceUser};
use crate::wire::Addr;

/// A place where clients may go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: PlaceHost,
    /// Its port, or every port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PlaceHost {
    Any,
    Network(Network),
    Names(Patterns),
}

/// What is known of a request whose server is named and has no address yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByName {
    /// It may go there whatever the address is.
    Allowed,
    /// That depends on the address.
    Depends,
    /// It may not.
    Forbidden,
}

/// See the module.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Names and passwords.
    users: Vec<(Vec<u8>, Vec<u8>)>,
    /// The same as they stand in a request of HTTP.
    basic: Vec<Vec<u8>>,
    rules: Vec<(Network, Vec<Place>)>,
}

/// Without passwords.
impl core::fmt::Debug for Access {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} users, {:?}", self.users.len(), self.rules)
    }
}

impl Access {
    /// That of a configuration.
    pub fn new(users: &[ServiceUser], allowed: &[Allowance]) -> Self {
        let pair = |user: &ServiceUser| (user.name.clone().into_bytes(), user.password.clone().into_bytes());
        let basic = |user: &ServiceUser| base64(format!("{}:{}", user.name, user.password).as_bytes());
        let rule = |allowance: &Allowance| {
            let places = allowance.to.iter().map(|place| Place {
                host: match &place.host {
                    AllowedHost::Any => PlaceHost::Any,
                    AllowedHost::Network(network) => PlaceHost::Network(*network),
                    AllowedHost::Names(pattern) => PlaceHost::Names(Patterns::new([(pattern.as_str(), 0)].into_iter())),
                },
                port: place.port,
            });
            (allowance.clients, places.collect())
        };
        Self {
            users: users.iter().map(pair).collect(),
            basic: users.iter().map(basic).collect(),
            rules: allowed.iter().map(rule).collect(),
        }
    }

    /// Whether clients must say who they are.
    pub fn asks_who(&self) -> bool {
        !self.users.is_empty()
    }

    /// Whether this is a user with its password.
    pub fn knows(&self, name: &[u8], password: &[u8]) -> bool {
        // All are compared, and each to its end, so that the time it takes says nothing of them.
        self.users.iter().fold(false, |known, (user, own)| known | (is_same(user, name) & is_same(own, password)))
    }

    /// Whether this is the value of a Proxy-Authorization field (RFC 7617) of such a user.
    pub fn knows_basic(&self, value: &[u8]) -> bool {
        let Some((scheme, token)) = value.split_at_checked(6) else { return false };
        let token = token.trim_ascii();
        scheme.eq_ignore_ascii_case(b"basic ")
            && self.basic.iter().fold(false, |known, own| known | is_same(own, token))
    }

    fn places(&self, client: &Addr, port: u16) -> impl Iterator<Item = &Place> {
        let of_client = self.rules.iter().filter(|(network, _)| network.covers(client));
        of_client.flat_map(|(_, places)| places).filter(move |place| place.port.is_none_or(|own| own == port))
    }

    /// Whether a client may go to this port of a server with this name.
    pub fn by_name(&self, client: &Addr, name: &Name, port: u16) -> ByName {
        let mut depends = false;
        for place in self.places(client, port) {
            match &place.host {
                PlaceHost::Any => return ByName::Allowed,
                PlaceHost::Names(names) if names.find(name).is_some() => return ByName::Allowed,
                PlaceHost::Names(_) => {}
                PlaceHost::Network(_) => depends = true,
            }
        }
        if depends { ByName::Depends } else { ByName::Forbidden }
    }

    /// Whether a client may go to this port of a server with this address.
    pub fn by_address(&self, client: &Addr, address: &Addr, port: u16) -> bool {
        self.places(client, port).any(|place| match &place.host {
            PlaceHost::Any => true,
            PlaceHost::Network(network) => network.covers(address),
            PlaceHost::Names(_) => false,
        })
    }
}

/// Whether two texts are the same, in a time that depends on the length of the second alone.
fn is_same(own: &[u8], other: &[u8]) -> bool {
    let difference = other
        .iter()
        .enumerate()
        .fold(0, |difference, (at, &byte)| difference | (byte ^ own.get(at).copied().unwrap_or(!byte)));
    difference == 0 && own.len() == other.len()
}

/// In the alphabet of RFC 4648 section 4.
fn base64(bytes: &[u8]) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = Vec::new();
    for three in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(padded);
        for n in 0..4u32 {
            let digit = ALPHABET[(bits >> (18 - 6 * n)) as usize & 63];
            out.push(if n as usize <= three.len() { digit } else { b'=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AllowedPlace;

    #[test]
    fn users_are_known_by_their_whole_name_and_password() {
        let user = |name: &str, password: &str| ServiceUser { name: name.into(), password: password.into() };
        let access = Access::new(&[user("alice", "a b"), user("bob", "")], &[]);
        assert!(access.asks_who() && access.knows(b"alice", b"a b") && access.knows(b"bob", b""));
        for (name, password) in
            [("alice", ""), ("alice", "a"), ("alice", "a b "), ("bob", "a b"), ("", ""), ("bo", "b")]
        {
            assert!(!access.knows(name.as_bytes(), password.as_bytes()), "{name} {password}");
        }
        // RFC 4648 section 10.
        assert_eq!(
            ["", "f", "fo", "foo", "foob"].map(|text| String::from_utf8(base64(text.as_bytes())).unwrap()),
            ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]
        );
        assert!(access.knows_basic(b"Basic YWxpY2U6YSBi") && access.knows_basic(b"basic  Ym9iOg== "));
        assert!(
            !access.knows_basic(b"Basic YWxpY2U6")
                && !access.knows_basic(b"Bearer YWxpY2U6YSBi")
                && !access.knows_basic(b"Bas")
        );
    }

    #[test]
    fn nobody_may_anything_that_no_rule_says() {
        let network = |last: u32, prefix| Network { address: [0, 0, 0xffff, last], prefix };
        let (client, other) = ([0, 0, 0xffff, 0x0a00_0001], [0, 0, 0xffff, 0x0b00_0001]);
        let place = |host, port| AllowedPlace { host, port };
        let access = Access::new(
            &[],
            &[Allowance {
                clients: network(0x0a00_0000, 104),
                to: vec![
                    place(AllowedHost::Network(network(0xc000_0200, 120)), Some(80)),
                    place(AllowedHost::Names("*.a.example".into()), None),
                    place(AllowedHost::Any, Some(22)),
                ],
            }],
        );
        let server = [0, 0, 0xffff, 0xc000_0205];
        assert!(access.by_address(&client, &server, 80) && access.by_address(&client, &other, 22));
        assert!(!access.by_address(&client, &server, 81) && !access.by_address(&client, &other, 80));
        assert!(!access.by_address(&other, &server, 80) && !access.by_address(&other, &server, 22));
        let name = |text: &str| Name::new(text.as_bytes()).unwrap();
        assert_eq!(access.by_name(&client, &name("x.a.example"), 443), ByName::Allowed);
        assert_eq!(access.by_name(&client, &name("b.example"), 22), ByName::Allowed);
        assert_eq!(access.by_name(&client, &name("b.example"), 80), ByName::Depends);
        assert_eq!(access.by_name(&client, &name("b.example"), 443), ByName::Forbidden);
        assert_eq!(access.by_name(&other, &name("x.a.example"), 443), ByName::Forbidden);
        assert!(!Access::default().by_address(&client, &server, 80));
    }
}
