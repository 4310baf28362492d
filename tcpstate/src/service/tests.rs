//! The parsers against generated input and another parser; routes and servers against what they promise.

use super::access::Access;
use super::names::{Name, Protocols, is_pattern};
use super::negotiation::{Failure, Host, Next};
use super::proxy_header::{Header, Told};
use super::*;
use crate::config::{ServiceRoute, ServiceServer, ServiceUser};
use crate::wire::FlowKey;
use proptest::prelude::*;

/// A group of servers with these weights.
fn group(weights: &[u16], balance: Balance) -> Group {
    let member = |(&weight, n): (&u16, u16)| {
        Member::new(n, &ServiceServer { address: [0, 0, 0xffff, n.into()], port: 1, weight })
    };
    Group { members: weights.iter().zip(0..).map(member).collect(), balance }
}

fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &(body.len() as u16).to_be_bytes(), body].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    let entry = [&[0], &(name.len() as u16).to_be_bytes()[..], name].concat();
    extension(0, &[&(entry.len() as u16).to_be_bytes(), &entry[..]].concat())
}

/// A ClientHello's handshake message.
fn hello(session: &[u8], suites: &[u16], extensions: &[u8]) -> Vec<u8> {
    let suites: Vec<u8> = suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
    let body = [
        &[3, 3][..],
        &[0xab; 32],
        &[session.len() as u8],
        session,
        &(suites.len() as u16).to_be_bytes(),
        &suites,
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        extensions,
    ]
    .concat();
    let len = (body.len() as u32).to_be_bytes();
    [&[1], &len[1..], &body].concat()
}

/// A message in records of these lengths, over and over.
fn records(message: &[u8], lengths: &[usize]) -> Vec<u8> {
    let (mut rest, mut out, mut lengths) = (message, Vec::new(), lengths.iter().cycle());
    while !rest.is_empty() {
        let len = rest.len().min(*lengths.next().unwrap());
        out.extend([22, 3, 1]);
        out.extend((len as u16).to_be_bytes());
        out.extend(&rest[..len]);
        rest = &rest[len..];
    }
    out
}

/// What a parser says of all beginnings of a text, which must not change its mind.
fn says(protocol: Protocol, bytes: &[u8], steps: &[usize], most: usize) -> Reading {
    let (mut at, mut steps) = (0, steps.iter().cycle());
    loop {
        let before = at;
        at = (at + steps.next().unwrap()).min(bytes.len());
        let reading = protocol.read(&bytes[..at], at - before, most, &Protocols::default());
        if reading != Reading::More || at == bytes.len() {
            return reading;
        }
    }
}

/// What is said where nothing but a name, or none, is asked for.
fn asks(name: Option<Name>) -> Reading {
    Reading::Asks(Asked { name, offers: 0 })
}

fn name(text: &str) -> Option<Name> {
    Name::new(text.as_bytes())
}

/// Post-quantum key shares, GREASE, an outer hello of ECH: what clients send today.
fn extensions() -> impl Strategy<Value = Vec<u8>> {
    let grease = any::<u8>().prop_map(|n| extension(u16::from(n & 0xf0 | 0xa) * 0x101, &[0]));
    let share = (0usize..1500).prop_map(|len| extension(51, &vec![7; len]));
    let ech = (0usize..300).prop_map(|len| extension(0xfe0d, &vec![9; len]));
    let other = (prop::sample::select(vec![10u16, 13, 16, 23, 43, 45]), prop::collection::vec(any::<u8>(), 0..40))
        .prop_map(|(kind, body)| extension(kind, &body));
    prop::collection::vec(prop_oneof![grease, share, ech, other], 0..8).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn the_name_of_a_hello_is_found_across_records_and_segments(
        before in extensions(), after in extensions(), named: bool, session in 0usize..=32,
        lengths in prop::collection::vec(1usize..3000, 1..5), steps in prop::collection::vec(1usize..2000, 1..5),
    ) {
        let own = if named { server_name(b"WWW.Example.org") } else { Vec::new() };
        let message = hello(&vec![1; session], &[0x1301, 0x0a0a], &[before, own, after].concat());
        let bytes = records(&message, &lengths);
        let expected = asks(if named { name("www.example.org") } else { None });
        prop_assert_eq!(says(Protocol::Tls, &bytes, &steps, 65_535), expected);
        // Without its last byte it is not there yet, and never is where no more can come.
        let short = &bytes[..bytes.len() - 1];
        prop_assert_eq!(tls::read(short, 65_535, &Protocols::default()), Reading::More);
        prop_assert_eq!(tls::read(short, short.len(), &Protocols::default()), Reading::Other);
    }

    /// Where both take a hello, both find the same name; and nothing is taken that the other finds broken.
    #[test]
    fn another_parser_finds_the_same_name(
        before in extensions(), after in extensions(), text in "[a-z0-9.-]{1,40}", damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let message = hello(&[], &[0x1301], &[before, server_name(text.as_bytes()), after].concat());
        let mut bytes = records(&message, &[16_000]);
        for (at, flip) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        let Reading::Asks(Asked { name: found, .. }) = tls::read(&bytes, 65_535, &Protocols::default()) else { return Ok(()) };
        let record = match tls_parser::parse_tls_plaintext(&bytes) {
            Ok((_, record)) => record,
            // The hello is there, and its record has more behind it, for which the other waits.
            Err(tls_parser::Err::Incomplete(_)) => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(format!("{error:?}"))),
        };
        let tls_parser::TlsMessage::Handshake(tls_parser::TlsMessageHandshake::ClientHello(hello)) = &record.msg[0] else {
            return Err(TestCaseError::fail("no hello"));
        };
        // It also reads what the others mean, and stops at what means nothing.
        let Ok((&[], all)) = tls_parser::parse_tls_client_hello_extensions(hello.ext.unwrap_or_default()) else { return Ok(()) };
        let theirs = all.iter().find_map(|extension| match extension {
            tls_parser::TlsExtension::SNI(names) => names.iter().find(|(kind, _)| kind.0 == 0).map(|(_, name)| *name),
            _ => None,
        });
        if let Some(found) = found {
            prop_assert_eq!(theirs.and_then(Name::new), Some(found));
        }
    }

    #[test]
    fn any_bytes_are_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0usize..4, steps in prop::collection::vec(1usize..50, 1..3)) {
        let begin: &[u8] = [&b"\x16\x03\x01"[..], b"GET /", b"", b"\x16\x03\x01\x00\x20\x01\x00\x00\x1c\x03\x03"][kind];
        let bytes = [begin, &bytes].concat();
        for protocol in [Protocol::Tls, Protocol::Http] {
            let _ = says(protocol, &bytes, &steps, 1000);
            prop_assert_ne!(says(protocol, &bytes, &steps, bytes.len()), Reading::More, "no more can come");
        }
    }

    #[test]
    fn the_host_of_a_request_is_found(
        filler in "[a-z]{0,2000}", before in prop::collection::vec("[A-Za-z-]{1,10}: [ -~]{0,30}", 0..5), crlf: bool,
        steps in prop::collection::vec(1usize..300, 1..4), port in prop::option::of(any::<u16>()),
    ) {
        prop_assume!(before.iter().all(|line| !line.to_ascii_lowercase().starts_with("host:")));
        let end = if crlf { "\r\n" } else { "\n" };
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        let lines = before.iter().map(|line| format!("{line}{end}")).collect::<String>();
        let text = format!("GET /{filler} HTTP/1.1{end}{lines}HOST: WWW.example.org{port}{end}{end}body");
        prop_assert_eq!(says(Protocol::Http, text.as_bytes(), &steps, 65_535), asks(name("www.example.org")));
    }

    #[test]
    fn connections_are_divided_by_weight(weights in prop::collection::vec(0u16..10, 1..6), away in any::<prop::sample::Index>()) {
        let all: u32 = weights.iter().map(|&weight| u32::from(weight)).sum();
        let away = away.index(weights.len()) as u16;
        for balance in [Balance::Weighted, Balance::Hash, Balance::Least] {
            let group = group(&weights, balance);
            let mut counts = vec![0u32; weights.len()];
            let mut moved = 0;
            for n in 0..4000u64 {
                let hash = n.wrapping_mul(0xdead_beef_1234_5677);
                let loads = counts.clone();
                let load = |server: u16| loads[usize::from(server)];
                let choice = Choice { connection: hash, client: hash, rank: &|_| 3, load: &load, is_drained: &|_| false };
                let Some(chosen) = group.choose(&choice) else { break };
                counts[usize::from(chosen.server)] += 1;
                // One that is away gets nothing as long as another is there; by hash, the others keep their clients.
                let without = Choice { rank: &|server| u8::from(server != away), ..choice };
                let other = group.choose(&without).unwrap();
                let is_alone = all == u32::from(weights[usize::from(away)]);
                prop_assert!(other.server != away || is_alone);
                moved += u32::from(other != chosen && chosen.server != away);
            }
            prop_assert!(balance != Balance::Hash || moved == 0);
            for (&count, &weight) in counts.iter().zip(&weights) {
                let fair = 4000 * u32::from(weight) / all.max(1);
                let most = if balance == Balance::Least { 12 } else { 60 + fair / 3 };
                prop_assert!(count.abs_diff(fair) < most && (weight > 0 || count == 0), "{balance:?}: {counts:?} of {weights:?}");
            }
        }
    }
}

#[test]
fn requests_that_name_no_host_or_two_ask_for_none() {
    let host = |text: &str| http::read(text.as_bytes(), text.len(), 9999);
    assert_eq!(host("GET / HTTP/1.0\r\n\r\n"), asks(None));
    assert_eq!(host("GET / HTTP/1.1\r\nHost: a.b\r\nHost: c.d\r\n\r\n"), asks(None));
    assert_eq!(host("GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"), asks(None));
    assert_eq!(host("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"), asks(None));
    // RFC 9112 section 3.2.2: a whole URI counts before the field.
    assert_eq!(host("GET http://u@x.org:8/p HTTP/1.1\r\nHost: y.org\r\n\r\n"), asks(name("x.org")));
    assert_eq!(host("CONNECT x.org:443 HTTP/1.1\r\nHost: y.org\r\n\r\n"), asks(name("x.org")));
    assert_eq!(host("\r\nGET / HTTP/1.1\r\nHost: y.org.\r\n\r\n"), asks(name("y.org")));
    assert_eq!(host("\x16\x03\x01"), Reading::Other);
    assert_eq!(host("get / HTTP/1.1\r\n"), Reading::Other);
    assert_eq!(host("GET / HTTP/1.1\r\nbad line\r\n\r\n"), Reading::Other);
    assert_eq!(host("PRI * HTTP/2.0\r\n\r\n"), Reading::More, "of the other version");
}

#[test]
fn names_and_patterns() {
    assert!(["a", "a.b", "A.B.", "xn--a_b.c", "1.a"].iter().all(|text| name(text).is_some()));
    let longest = "a.".repeat(126) + "a";
    assert!(name(&longest).is_some() && name(&(longest + "a")).is_none());
    let bad = ["", ".", "a..b", ".a", "10.0.0.1", "1", "a b", "ä.b", "a/b", "*.a"];
    assert!(bad.iter().all(|text| name(text).is_none()), "{bad:?}");
    assert!(is_pattern("*.a.b") && is_pattern("a") && !is_pattern("*") && !is_pattern("*a.b") && !is_pattern("a.*"));
    let patterns = Patterns::new([("a.b", 0), ("*.b", 1), ("*.a.b", 2), ("a.b", 3), ("c", 4)].into_iter());
    let find = |text: &str| patterns.find(&name(text).unwrap());
    assert_eq!(
        ["a.b", "A.B", "x.a.b", "y.x.a.b", "x.b", "b", "c", "x.c"].map(find),
        [Some(0), Some(0), Some(2), Some(2), Some(1), None, Some(4), None]
    );
}

#[test]
fn headers_of_the_proxy_protocol_are_what_the_specification_shows() {
    let mapped = |last| [0, 0, 0xffff, last];
    let key = FlowKey {
        wan: mapped(0xc0a8_0001),
        lan: mapped(0xc0a8_000b),
        wan_port: 56324,
        lan_port: 443,
        ..FlowKey::default()
    };
    let v1 = Header::new(ProxyHeader::V1, &key);
    assert_eq!(v1.bytes(), b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
    let v2 = Header::new(ProxyHeader::V2, &key);
    let expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\xa8\0\x01\xc0\xa8\0\x0b\xdc\x04\x01\xbb";
    assert_eq!(v2.bytes(), expected);
    let longest = FlowKey { wan: [u32::MAX; 4], lan: [u32::MAX; 4], wan_port: 65535, lan_port: 65535, v6: true, ..key };
    assert_eq!(Header::new(ProxyHeader::V1, &longest).bytes().len(), 11 + 39 + 1 + 39 + 1 + 5 + 1 + 5 + 2);
    assert_eq!(Header::new(ProxyHeader::V2, &longest).bytes().len(), 52);
    assert_eq!(Header::new(ProxyHeader::None, &key).bytes(), b"");
}

proptest! {
    /// What is written is read, however it comes in pieces and whatever stands behind it.
    #[test]
    fn a_header_of_the_proxy_protocol_is_read_as_it_was_written(
        ends: [[u32; 4]; 2], ports: [u16; 2], v6: bool, kind in 0usize..2, behind in prop::collection::vec(any::<u8>(), 0..40), extra in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let of = |words: [u32; 4]| if v6 { words } else { [0, 0, 0xffff, words[3]] };
        let key = FlowKey { wan: of(ends[0]), lan: of(ends[1]), wan_port: ports[0], lan_port: ports[1], v6, ..FlowKey::default() };
        let mut header = Header::new([ProxyHeader::V1, ProxyHeader::V2][kind], &key).bytes().to_vec();
        if kind == 1 {
            // What else version 2 can say.
            header[15] += extra.len() as u8;
            header.extend(extra);
        }
        let bytes = [&header[..], &behind].concat();
        for len in 0..=bytes.len() {
            let expected = if len < header.len() { Told::More } else { Told::Ends(header.len(), Some(key)) };
            prop_assert_eq!(proxy_header::read(&bytes[..len], 1000), expected);
        }
        prop_assert_eq!(proxy_header::read(&header[..header.len() - 1], header.len() - 1), Told::Other, "no more can come");
    }

    #[test]
    fn any_bytes_are_a_header_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0usize..4) {
        let begin: &[u8] = [&b"PROXY TCP4 "[..], b"PROXY ", b"\r\n\r\n\0\r\nQUIT\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11"][kind];
        let bytes = [begin, &bytes].concat();
        if let Told::Ends(len, _) = proxy_header::read(&bytes, 300) {
            prop_assert!(len > 0 && len <= bytes.len());
            prop_assert_eq!(proxy_header::read(&bytes[..len], len), proxy_header::read(&bytes, 300));
        }
        prop_assert_ne!(proxy_header::read(&bytes, bytes.len()), Told::More);
    }
}

#[test]
fn headers_that_tell_of_nobody_and_broken_ones() {
    let read = |bytes: &[u8]| proxy_header::read(bytes, 1000);
    assert_eq!(read(b"PROXY UNKNOWN\r\nx"), Told::Ends(15, None));
    assert_eq!(read(b"PROXY UNKNOWN ffff::1 ::2 1 2\r\n"), Told::Ends(31, None));
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let v2 = |rest: &[u8]| read(&[signature, rest].concat());
    assert_eq!(v2(&[0x20, 0, 0, 0]), Told::Ends(16, None), "the proxy speaks for itself");
    assert_eq!(v2(&[0x21, 0, 0, 2, 7, 7]), Told::Ends(18, None), "it does not say");
    for broken in [&[0x11, 0x11, 0, 12][..], &[0x22, 0x11, 0, 12], &[0x21, 0x11, 0xff, 0xff]] {
        assert_eq!(v2(broken), Told::Other);
    }
    for broken in
        [&[0x21, 0x12, 0, 0][..], &[0x21, 0x11, 0, 1, 9], &[0x21, 0x21, 0, 12, 1, 1, 1, 1, 2, 2, 2, 2, 0, 1, 0, 2]]
    {
        assert_eq!(v2(broken), Told::Other);
    }
    for broken in [
        "GET / HTTP/1.1\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        "PROXY TCP4 ::1 ::2 1 2\r\n",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        "PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        "PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        "PROXY \r\n",
    ] {
        assert_eq!(read(broken.as_bytes()), Told::Other, "{broken:?}");
    }
    assert_eq!(read(&[&b"PROXY TCP4 "[..], &[b'1'; 100]].concat()), Told::Other, "a line has an end");
}

/// What is said to a client in all, and where that ends, however its bytes come; what was said is never taken back.
fn talks(language: Language, bytes: &[u8], access: &Access) -> (Vec<u8>, Next) {
    let mut before = Vec::new();
    for at in 0..=bytes.len() {
        let (said, next) = language.read(&bytes[..at], 1, 9999, access);
        assert!(said.bytes().starts_with(&before));
        before = said.bytes().to_vec();
        if next != Next::More || at == bytes.len() {
            return (before, next);
        }
    }
    unreachable!("it ends with the bytes")
}

#[test]
fn socks_is_spoken_as_rfc_1928_and_1929_say() {
    let (open, known) =
        (Access::default(), Access::new(&[ServiceUser { name: "al".into(), password: "pw".into() }], &[]));
    let socks = |bytes: &[u8], access: &Access| talks(Language::Socks, bytes, access);
    let asks = |host, port, len| Next::Asks { host, port, len };
    let v4 = [0, 0, 0xffff, 0xc000_020a];
    assert_eq!(
        socks(&[5, 1, 0, 5, 1, 0, 1, 192, 0, 2, 10, 0, 80, 7, 7], &open),
        (vec![5, 0], asks(Host::Address(v4), 80, 13))
    );
    assert_eq!(
        socks(&[5, 1, 0, 5, 1, 0, 3, 3, b'a', b'.', b'b', 1, 0], &open),
        (vec![5, 0], asks(Host::Name(name("a.b").unwrap()), 256, 13))
    );
    let text = [&[5, 1, 0, 5, 1, 0, 3, 10], &b"192.0.2.10"[..], &[0, 80]].concat();
    assert_eq!(socks(&text, &open), (vec![5, 0], asks(Host::Address(v4), 80, 20)));
    let v6 = [&[5, 1, 0, 5, 1, 0, 4, 0x20, 1, 0xd, 0xb8], &[0; 11][..], &[1, 0, 80]].concat();
    assert_eq!(socks(&v6, &open), (vec![5, 0], asks(Host::Address([0x2001_0db8, 0, 0, 1]), 80, 25)));
    // Who it is.
    let signed = [&[5, 2, 0, 2, 1, 2, b'a', b'l', 2, b'p', b'w'], &[5, 1, 0, 1, 192, 0, 2, 10, 0, 80][..]].concat();
    assert_eq!(socks(&signed, &known), (vec![5, 2, 1, 0], asks(Host::Address(v4), 80, 21)));
    assert_eq!(socks(&[5, 1, 2, 1, 2, b'a', b'l', 2, b'p', b'x'], &known), (vec![5, 2, 1, 1], Next::End));
    assert_eq!(socks(&[5, 1, 0, 5], &known), (vec![5, 0xff], Next::End));
    assert_eq!(socks(&[5, 1, 2], &open), (vec![5, 0xff], Next::End));
    // BIND, UDP ASSOCIATE, a kind of address that there is not, no port, no name.
    for (bytes, failure) in [
        (&[5, 2, 0, 1, 192, 0, 2, 10, 0, 80][..], Failure::Command),
        (&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0], Failure::Command),
        (&[5, 1, 0, 2], Failure::AddressType),
        (&[5, 1, 0, 1, 192, 0, 2, 10, 0, 0], Failure::Malformed),
        (&[5, 1, 0, 3, 1, b' ', 0, 80], Failure::Malformed),
        (&[5, 1, 0, 3, 0, 0, 80], Failure::Malformed),
        (&[4, 1, 0, 3], Failure::Malformed),
    ] {
        assert_eq!(socks(&[&[5, 1, 0], bytes].concat(), &open), (vec![5, 0], Next::Fails(failure)), "{bytes:?}");
    }
    assert_eq!(socks(&[4, 1], &open).1, Next::Other);
    assert_eq!(socks(&[], &open).1, Next::More);
    assert_eq!(Language::Socks.read(&[5, 9, 0], 1, 3, &open).1, Next::Other, "no more can come");
    let key = FlowKey { wan: v4, wan_port: 1025, ..FlowKey::default() };
    assert_eq!(Language::Socks.success(&key).bytes(), [5, 0, 0, 1, 192, 0, 2, 10, 4, 1]);
    assert_eq!(Language::Socks.success(&FlowKey { v6: true, ..key }).bytes().len(), 22);
    assert_eq!(Language::Socks.failure(Failure::Refused).bytes(), [5, 5, 0, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn connect_requests_say_where_they_want_to_go() {
    let (open, known) =
        (Access::default(), Access::new(&[ServiceUser { name: "al".into(), password: "pw".into() }], &[]));
    let connect = |text: &str, access: &Access| talks(Language::Connect, text.as_bytes(), access);
    let asks = |host, port, len| (Vec::new(), Next::Asks { host, port, len });
    let named = Host::Name(name("a.b").unwrap());
    assert_eq!(connect("CONNECT a.b:443 HTTP/1.1\r\nHost: c.d:1\r\n\r\nrest", &open), asks(named, 443, 41));
    assert_eq!(
        connect("CONNECT 192.0.2.10:80 HTTP/1.0\r\n\r\n", &open),
        asks(Host::Address([0, 0, 0xffff, 0xc000_020a]), 80, 34)
    );
    assert_eq!(
        connect("CONNECT [2001:db8::1]:80 HTTP/1.1\r\n\r\n", &open),
        asks(Host::Address([0x2001_0db8, 0, 0, 1]), 80, 37)
    );
    for broken in ["a.b", "a.b:", "a.b:0", "a.b:65536", "2001:db8::1:80", "[::1:80", "u@a.b:80", ":80", "http://a.b:80"]
    {
        let (said, next) = connect(&format!("CONNECT {broken} HTTP/1.1\r\n\r\n"), &open);
        assert_eq!((said.len(), next), (0, Next::Fails(Failure::Malformed)), "{broken}");
    }
    assert_eq!(connect("GET http://a.b/ HTTP/1.1\r\n\r\n", &open).1, Next::Fails(Failure::Command));
    assert_eq!(connect("\x05\x01", &open).1, Next::Other);
    assert_eq!(connect("CONNECT a.b:443 HTTP/1.1\r\n\r\n", &known).1, Next::Fails(Failure::Stranger));
    let with =
        |value: &str| connect(&format!("CONNECT a.b:443 HTTP/1.1\r\nProxy-Authorization: {value}\r\n\r\n"), &known).1;
    assert!(matches!(with("Basic YWw6cHc="), Next::Asks { .. }));
    assert_eq!(with("Basic YWw6cHg="), Next::Fails(Failure::Stranger));
    for failure in [
        Failure::General,
        Failure::Forbidden,
        Failure::TimedOut,
        Failure::Command,
        Failure::Malformed,
        Failure::Stranger,
    ] {
        let said = Language::Connect.failure(failure);
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut response = httparse::Response::new(&mut fields);
        assert!(response.parse(said.bytes()).unwrap().is_complete());
        assert!(said.bytes().len() < negotiation::LONGEST);
    }
}

#[test]
fn protocols_that_a_hello_offers_choose_a_route_before_its_name_does() {
    let server = |last| ServiceServer { address: [0, 0, 0xffff, last], port: 443, weight: 1 };
    let route = |text: &str, last| {
        let (alpn, names): (Vec<&str>, Vec<&str>) =
            text.split(' ').filter(|word| !word.is_empty()).partition(|word| word.contains('/'));
        let of = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
        ServiceRoute { names: of(names), alpn: of(alpn), servers: vec![server(last)] }
    };
    let services = Services::new(&[ServiceConfig {
        routes: vec![route("acme-tls/1", 1), route("a.b *.c", 2), route("*.c h/2 h/3", 3)],
        ..ServiceConfig::at([0, 0, 0xffff, 100], 443)
    }]);
    let service = services.get(0).unwrap();
    let goes = |name: Option<&str>, offers: &[&str]| {
        let list: Vec<u8> = offers.iter().flat_map(|own| [&[own.len() as u8], own.as_bytes()].concat()).collect();
        let list = extension(16, &[&(list.len() as u16).to_be_bytes(), &list[..]].concat());
        let name = name.map_or_else(Vec::new, |name| server_name(name.as_bytes()));
        let bytes = records(&hello(&[], &[0x1301], &[list, extension(51, &[7; 900]), name].concat()), &[300]);
        for len in 0..bytes.len() {
            assert_eq!(service.read(&bytes[..len], 1, 9999), Reading::More);
        }
        let Reading::Asks(asked) = service.read(&bytes, 1, 9999) else { panic!("a hello") };
        let choice = Choice { connection: 1, client: 1, rank: &|_| 0, load: &|_| 0, is_drained: &|_| false };
        let member = service.route(&asked)?.choose(&choice).unwrap();
        Some(services.servers()[usize::from(member.server)].address[3])
    };
    assert_eq!(goes(Some("a.b"), &["h/2", "h/1"]), Some(2));
    assert_eq!(goes(Some("x.c"), &["h/1"]), Some(2));
    assert_eq!(goes(Some("x.c"), &["h/1", "h/3"]), Some(3));
    assert_eq!(goes(Some("a.b"), &["acme-tls/1"]), Some(1));
    assert_eq!(goes(Some("x.c"), &["acme-tls/1", "h/2"]), Some(3), "one for some names comes first");
    assert_eq!(goes(None, &["x", "acme-tls/1"]), Some(1));
    assert_eq!((goes(None, &["h/2"]), goes(Some("z"), &[])), (None, None));
    let broken = extension(16, &[0, 3, 0, 1, b'x']);
    assert_eq!(service.read(&records(&hello(&[], &[0x1301], &broken), &[999]), 1, 9999), Reading::Other);
}

#[test]
fn a_service_sends_each_name_to_its_servers_and_the_rest_to_the_default() {
    let server = |last| ServiceServer { address: [0, 0, 0xffff, last], port: 443, weight: 1 };
    let route = |names: &[&str], last| ServiceRoute {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        servers: vec![server(last)],
        ..ServiceRoute::default()
    };
    let config = ServiceConfig {
        vlan: 7,
        routes: vec![route(&["a.b", "*.c"], 1), route(&["d"], 2)],
        default: vec![server(3)],
        ..ServiceConfig::at([0, 0, 0xffff, 100], 443)
    };
    let without = ServiceConfig { default: Vec::new(), port: 444, ..config.clone() };
    let services = Services::new(&[config, without]);
    let goes = |service: u16, text: Option<&str>| {
        let name = text.and_then(name);
        let group = services.get(service).unwrap().route(&Asked { name, offers: 0 })?;
        let choice = Choice { connection: 1, client: 1, rank: &|_| 0, load: &|_| 0, is_drained: &|_| false };
        let member = group.choose(&choice).unwrap();
        Some(services.servers()[usize::from(member.server)].address[3])
    };
    assert_eq!(
        [Some("a.b"), Some("x.c"), Some("d"), Some("x"), None].map(|text| goes(0, text)),
        [1, 1, 2, 3, 3].map(Some)
    );
    assert_eq!([Some("a.b"), Some("x"), None].map(|text| goes(1, text)), [Some(1), None, None]);
    assert_eq!((services.owned().len(), services.next_hops().len()), (1, 3));
    assert_eq!(services.owner(&[0, 0, 0xffff, 100], 7).map(|owned| owned.mac[0]), Some(2));
    assert!(services.owner(&[0, 0, 0xffff, 100], 0).is_none());
}

/// What clients have sent, captured by running them: OpenSSL's and Python's, curl's with TLS and without. Behind two bytes for the fuzz target.
#[test]
fn real_clients_are_understood() {
    let captured: [(&str, &[u8]); 4] = [
        ("openssl", include_bytes!("../../../unit/fuzz/corpus/first_bytes/tls-openssl")),
        ("curl", include_bytes!("../../../unit/fuzz/corpus/first_bytes/tls-curl")),
        ("python", include_bytes!("../../../unit/fuzz/corpus/first_bytes/tls-python")),
        ("curl without TLS", include_bytes!("../../../unit/fuzz/corpus/first_bytes/http-curl")),
    ];
    for (client, bytes) in captured {
        let protocol = if bytes[1] == 0 { Protocol::Tls } else { Protocol::Http };
        for step in [1, 7, 500, 5000] {
            let found = says(protocol, &bytes[2..], &[step], 16_384);
            assert_eq!(found, asks(name("www.example.org")), "{client}, {step} bytes at once");
        }
    }
}
