//! What files say: the sample beside the workspace, those of older installations, and every way to write the same thing.

use confparse::{Account, Config, Control, Level, Parsed, Syslog, Takes, Value, parse};
use core::num::NonZeroU32;
use core::time::Duration;
use std::sync::Arc;
use tcpstate::config::{
    AutoSettings, DestinationRule, Handshake, Mode, Network, SackConflict, Settings, Source, TimeoutSettings,
};

const SAMPLE: &str = include_str!("../../../conf.txt");

fn accepted(text: &str) -> Config {
    let Parsed { config, warnings, .. } = parse(text, "conf.txt").unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(warnings, [], "{}", warnings[0]);
    config
}

fn framed(body: &str) -> String {
    format!("synproxyconf = {{ {body} }};")
}

#[test]
fn the_sample_says_the_defaults_but_for_the_mode_of_a_new_installation() {
    assert_eq!(accepted(SAMPLE), sample());
    assert_eq!(Config::default().engine.mode, Mode::Cache, "a file without the key does what it did");
}

/// What the sample says.
fn sample() -> Config {
    let default = Config::default();
    Config { engine: tcpstate::Config { mode: Mode::Auto, ..default.engine }, ..default }
}

#[test]
fn the_sample_has_every_key_with_its_default() {
    for key in Config::KEYS {
        let default = key.default_text();
        let flat: String = SAMPLE.split_whitespace().collect::<Vec<_>>().join(" ");
        let stands = match &default {
            Some(default) => flat.contains(&format!(" {} = {default};", key.name)),
            // What is off unless given stands in a comment.
            None => flat.contains(&format!("# {}", key.name)),
        };
        assert!(stands, "`{}` with {default:?}", key.name);
    }
}

#[test]
fn the_sample_sets_what_it_shows() {
    // Each key is changed in the text alone, and has to make a difference: none of them stands in a comment.
    for key in Config::KEYS.iter().filter(|key| key.default_text().is_some()) {
        let other = match (key.takes, key.value(&Config::default())) {
            (Takes::Word(words), Some(Value::Word(now))) => {
                words.iter().find(|word| **word != now).expect("a choice").to_string()
            }
            (Takes::List { .. }, _) => "{ 0, 3 }".to_owned(),
            (Takes::PowerOfTwo { .. }, _) => "2".to_owned(),
            (Takes::Services, _) => {
                "{ { address = \"192.0.2.1\"; port = 443; default = { \"192.0.2.2:443\" }; } }".to_owned()
            }
            (Takes::Address, _) => "\"192.0.2.1\"".to_owned(),
            (Takes::Socket | Takes::State, _) => "\"/a\"".to_owned(),
            (Takes::Listener, _) => "\"127.0.0.1:1\"".to_owned(),
            (Takes::Account, _) => "\"nobody\"".to_owned(),
            (Takes::Servers { .. }, _) => "{ \"192.0.2.1\" }".to_owned(),
            (Takes::File | Takes::Command | Takes::Syslog, _) => "\"/dev/x\"".to_owned(),
            (Takes::Networks, _) => "{ \"192.0.2.0/24\", \"2001:db8::/32\" }".to_owned(),
            (Takes::Files, _) => "{ \"/etc/a.txt\" }".to_owned(),
            (Takes::Destinations, _) => "{ { network = \"192.0.2.1\"; own_mss = 1000; } }".to_owned(),
            _ => "3".to_owned(),
        };
        let start = SAMPLE.find(&format!("    {} = ", key.name)).expect("a line of its own");
        let end = start + SAMPLE[start..].find(';').expect("an end");
        let text = format!("{}    {} = {other}{}", &SAMPLE[..start], key.name, &SAMPLE[end..]);
        // Services need them.
        let text =
            if key.name == "services" { text.replace("service_buffers = 0", "service_buffers = 1") } else { text };
        let config = parse(&text, "conf.txt").unwrap_or_else(|errors| panic!("{errors}")).config;
        assert_ne!(config, sample(), "`{}`", key.name);
        assert_ne!(key.value(&config), key.value(&Config::default()), "`{}`", key.name);
    }
}

#[test]
fn every_key_is_explained() {
    for key in Config::KEYS {
        assert!(!key.help.is_empty() && !key.range().is_empty(), "`{}`", key.name);
        assert!(key.section.is_none_or(|name| Config::SECTIONS.iter().any(|(section, _)| *section == name)));
        assert_eq!(
            Config::KEYS.iter().filter(|other| (other.section, other.name) == (key.section, key.name)).count(),
            1,
            "`{}`",
            key.name
        );
    }
}

/// The configuration that came with the system this one follows.
#[test]
fn a_file_of_an_older_installation_is_read_unchanged() {
    let text = include_str!("../../corpus/older.conf");
    let Parsed { config, warnings, .. } = parse(text, "conf.txt").unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(warnings, []);
    let engine = &config.engine;
    assert_eq!((engine.sack, engine.mss, engine.wscale), (Source::HashIpPort, Source::HashIpPort, Source::HashIpPort));
    assert_eq!(engine.sack_conflict, SackConflict::Remove);
    assert_eq!((engine.table_buckets, engine.learn_capacity, engine.syn_cache_max), (131_072, 131_072, 0));
    assert_eq!(engine.mss_table, [216, 1200, 1400, 1460]);
    assert_eq!(engine.wscale_table, [0, 2, 4, 7]);
    assert_eq!(engine.ts_mss_table, [216, 344, 536, 712, 940, 1360, 1440, 1452]);
    assert_eq!((engine.own_mss, engine.own_wscale, engine.own_sack, engine.mss_clamp), (1460, 7, true, Some(1460)));
    assert_eq!(engine.timeouts.dl_half_open, Duration::from_secs(240));
    assert_eq!(engine.rate.period, Duration::from_secs(1));
    assert_eq!((config.user, config.group), (Some(Account::Name("root".to_owned())), None));
    assert_eq!((config.workers, config.port), (1, 12345));
}

#[test]
fn clients_are_listed_by_network_and_by_file() {
    let config = accepted(&framed(
        "lists = { block = { \"192.0.2.0/24\", \"2001:db8::1\" }; block_files = { \"/etc/synproxy/b.txt\" }; allow = { }; };",
    ));
    let block = config.lists.of(tcpstate::List::Block);
    let written: Vec<_> = block.networks.iter().map(confparse::written).collect();
    assert_eq!(written, ["192.0.2.0/24", "2001:db8::1"]);
    assert_eq!(block.files, [std::path::PathBuf::from("/etc/synproxy/b.txt")]);
    assert_eq!(config.lists.allow, confparse::ClientList::default());
    assert_eq!(accepted(&config.describe()), config);
    for (wrong, why) in [
        ("block = { \"192.0.2.1:80\" };", "has a port"),
        ("block = \"192.0.2.1\";", "write `{ \"192.0.2.1\" }`"),
        ("block = { 1 };", "no address in quotes"),
        ("block_files = { \"b.txt\" };", "a list of paths from / on"),
        ("blocks = { };", "did you mean `block`?"),
    ] {
        let errors = parse(&framed(&format!("lists = {{ {wrong} }};")), "c").expect_err(wrong).to_string();
        assert!(errors.contains(why), "{errors}");
    }
}

#[test]
fn lines_may_end_in_cr_lf() {
    assert_eq!(accepted(&SAMPLE.replace('\n', "\r\n")), sample());
    let older = include_str!("../../corpus/older.conf");
    assert_eq!(accepted(&older.replace('\n', "\r\n")), accepted(older));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    assert_eq!(accepted("\u{feff}synproxyconf = { };"), Config::default());
    let errors = parse("\u{feff}synproxyconf = { prot = 1; };", "c").expect_err("refused");
    assert_eq!((errors.complaints[0].line, errors.complaints[0].column), (1, 18));
}

#[test]
fn comments_are_of_three_kinds_and_stand_anywhere() {
    let config = accepted(
        "# one\nsynproxyconf // two\n = /* three\n # still three // and here */ {\n\
         port /**/ = # four }; \n 1 /***/ ; // five\nmss = { 1, // six\n 2 /* * / */ };\n} /* } */ ; # last",
    );
    assert_eq!(config.port, 1);
    assert_eq!(config.engine.mss_table, [1, 2]);
}

#[test]
fn quotes_keep_comments_and_backslashes_keep_quotes() {
    let name = |text: &str| accepted(&framed(&format!("user = {text};"))).user;
    let is = |name: &str| Some(Account::Name(name.to_owned()));
    assert_eq!(name("\"a # b // c /* d\""), is("a # b // c /* d"));
    assert_eq!(name(r#""a\"b""#), is("a\"b"));
    assert_eq!(name(r#""a\\""#), is("a\\"));
    assert_eq!(name(r#""\n""#), is("n"));
}

#[test]
fn white_space_is_optional() {
    let config = accepted("synproxyconf={port=1;mss={1,2,};ratehash={size=2;};test_connections;};");
    assert_eq!((config.port, config.engine.rate.size, config.engine.test_connections), (1, 2, true));
}

#[test]
fn a_section_may_be_empty_and_may_come_twice() {
    let config =
        accepted(&framed("ldp = { }; timeouts = {}; timeouts = { connected = 5; }; timeouts = { one_fin = 6; };"));
    assert_eq!(config.engine.timeouts.connected, Duration::from_secs(5));
    assert_eq!(config.engine.timeouts.one_fin, Duration::from_secs(6));
    assert_eq!(config.engine.timeouts.both_fin, tcpstate::Config::default().timeouts.both_fin);
}

#[test]
fn of_a_key_given_twice_the_last_counts() {
    let parsed = parse(&framed("port = 1;\nmss = { 9 };\nport = 2;\nmss = { 3, 4 };"), "c").expect("accepted");
    assert_eq!((parsed.config.port, parsed.config.engine.mss_table), (2, vec![3, 4]));
    assert_eq!(parsed.warnings.len(), 2);
    assert!(parsed.warnings.iter().all(|warning| warning.level == Level::Warning));
}

#[test]
fn the_control_port_is_opened_at_an_address() {
    assert_eq!(accepted(&framed("listen = \"::1\";")).listen.to_string(), "::1");
    for wrong in ["\"localhost\"", "\"\"", "\"127.0.0.1:80\"", "127", "any", "{ }"] {
        let errors = parse(&framed(&format!("listen = {wrong};")), "c").unwrap_err();
        assert_eq!(errors.complaints.len(), 1, "{errors}");
        assert!(errors.complaints[0].expected.contains("an address in quotes"), "{errors}");
    }
}

#[test]
fn the_socket_is_somewhere_or_nowhere() {
    let place = |text: &str| parse(&framed(&format!("control = {text};")), "c").map(|parsed| parsed.config.control);
    assert_eq!(place("\"auto\""), Ok(Control::Auto));
    assert_eq!(place("\"none\""), Ok(Control::None));
    let long = format!("/{}", "x".repeat(106));
    for path in ["/run/x.sock", r"/a \\ b", long.as_str()] {
        let config = accepted(&framed(&format!("control = \"{path}\"; control_group = \"adm\";")));
        assert_eq!(config.control, Control::At(path.replace(r"\\", r"\").into()));
        assert_eq!(config.control_group, Some(Account::Name("adm".to_owned())));
        assert_eq!(accepted(&config.describe()), config);
    }
    for wrong in ["auto", "1", "{ }", "\"\"", "\"run/x\"", &format!("\"{long}x\""), "\"/a\nb\""] {
        let errors = place(wrong).expect_err(wrong);
        assert_eq!(errors.complaints.len(), 1, "{errors}");
        assert!(errors.complaints[0].expected.contains("a path from / on"), "{errors}");
    }
}

#[test]
fn events_go_to_a_file_a_syslog_server_and_a_command() {
    let parsed = |text: &str| parse(&framed(&format!("events = {{ {text} }};")), "c");
    let config = accepted(&framed(
        "events = { file = \"/var/log/x y.json\"; syslog = \"[2001:db8::1]:514\"; on_event = \"/bin/x -v\"; attack_begin = 900; };",
    ));
    assert_eq!(config.events.file, Some("/var/log/x y.json".into()));
    assert_eq!(config.events.syslog, Some(Syslog::Udp("[2001:db8::1]:514".parse().expect("an address"))));
    assert_eq!((config.events.command.as_deref(), config.events.attack_begin), (Some("/bin/x -v"), 900));
    assert_eq!(accepted(&config.describe()), config);
    let off = accepted(&framed("events = { file = \"off\"; syslog = \"off\"; command = \"off\"; };"));
    assert_eq!(off, Config::default());
    for wrong in [
        "file = \"x.json\";",
        "file = off;",
        "command = \"x\";",
        "syslog = \"localhost:514\";",
        "syslog = \"192.0.2.1:0\";",
        "syslog = \"192.0.2.1\";",
        "command_timeout = 0;",
        "attack_begin = 0;",
    ] {
        assert_eq!(parsed(wrong).expect_err(wrong).complaints.len(), 1, "{wrong}");
    }
    let warned = parsed("attack_begin = 10; attack_end = 11;").expect("accepted").warnings;
    assert_eq!(warned.len(), 1, "{warned:?}");
}

#[test]
fn every_number_keeps_to_its_range() {
    for key in Config::KEYS {
        let (min, max) = match key.takes {
            Takes::Number { min, max } => (min, max),
            Takes::PowerOfTwo { max } => (1, max),
            Takes::Account => (0, 2_147_483_647),
            _ => continue,
        };
        let reads = |n: u64| {
            let entry = format!("{} = {n};", key.name);
            let body = key.section.map_or(entry.clone(), |section| format!("{section} = {{ {entry} }};"));
            parse(&framed(&body), "c").ok().map(|parsed| key.value(&parsed.config))
        };
        if key.takes != Takes::Account {
            assert_eq!(reads(min), Some(Some(Value::Number(min))), "`{}`", key.name);
            assert_eq!(reads(max), Some(Some(Value::Number(max))), "`{}`", key.name);
        }
        assert!(reads(max).is_some(), "`{}`", key.name);
        assert_eq!(reads(max + 1), None, "`{}`", key.name);
        assert!(min == 0 || reads(min - 1).is_none(), "`{}`", key.name);
        if matches!(key.takes, Takes::PowerOfTwo { .. }) {
            assert_eq!(reads(3), None, "`{}`", key.name);
        }
    }
}

#[test]
fn every_word_is_taken_and_told_apart() {
    for key in Config::KEYS {
        let Takes::Word(words) = key.takes else { continue };
        for word in words {
            let config = accepted(&framed(&format!("{} = {word};", key.name)));
            assert_eq!(key.value(&config), Some(Value::Word(word)));
        }
    }
}

#[test]
fn lists_may_have_any_length() {
    for n in 1..=32u16 {
        let list: Vec<String> = (1..=n).map(|i| (i * 100).to_string()).collect();
        let text = framed(&format!("tsmss = {{ {} }};", list.join(",")));
        assert_eq!(accepted(&text).engine.ts_mss_table.len(), usize::from(n));
    }
    let scales: Vec<String> = (0..=14).map(|i| i.to_string()).collect();
    let text = framed(&format!("mss = {{ 536, 1220, 1460 }}; wscale = {{ {} }};", scales.join(",")));
    assert_eq!(accepted(&text).engine.wscale_table.len(), 15);
}

#[test]
fn a_cookie_keeps_nineteen_bits_for_its_proof() {
    let with = |mss: usize, scales: usize| {
        let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        let mss = (1..=mss).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        parse(&framed(&format!("mss = {{ {mss} }}; wscale = {{ {} }};", list(scales))), "c")
    };
    let said = |parsed: Parsed| parsed.warnings.into_iter().map(|warning| warning.message).collect::<Vec<_>>();
    // 2 * (7 + 1) * 8 = 128 is the last that is free; 2 * (7 + 1) * 256 = 4096 the last that is allowed.
    assert_eq!(said(with(8, 7).expect("accepted")), [""; 0]);
    assert_eq!(
        said(with(9, 7).expect("accepted")),
        ["`mss` and `wscale` take 8 bits of the cookie and leave 23 to its MAC"]
    );
    assert_eq!(
        said(with(256, 7).expect("accepted")),
        ["`mss` and `wscale` take 12 bits of the cookie and leave 19 to its MAC"]
    );
    assert!(with(257, 7).is_err());
    assert_eq!(said(with(1, 1).expect("accepted")), [""; 0]);
}

/// The destinations a body says, as address, prefix, port, and whether the handshake is early.
fn destinations(body: &str) -> Vec<([u32; 4], u8, Option<u16>, bool)> {
    let list = accepted(&framed(body)).engine.destinations;
    list.iter().map(|d| (d.address, d.prefix, d.port, d.handshake == Handshake::Early)).collect()
}

#[test]
fn servers_are_addresses_or_networks_with_a_port_or_without() {
    let mapped = |address| [0, 0, 0xffff, address];
    let six = |last| [0x2001_0db8, 0, 0, last];
    assert_eq!(
        destinations(
            "early = { \"192.0.2.10\", \"192.0.2.10:80\", \"192.0.2.0/24\", \"192.0.2.0/24:65535\", \"0.0.0.0/0\", \
             \"2001:db8::1\", \"[2001:db8::1]:443\", \"2001:db8::/32\", \"[2001:db8::/33]:1\", \"::/0\" };"
        ),
        [
            (mapped(0xc000_020a), 128, None, true),
            (mapped(0xc000_020a), 128, Some(80), true),
            (mapped(0xc000_0200), 120, None, true),
            (mapped(0xc000_0200), 120, Some(65535), true),
            (mapped(0), 96, None, true),
            (six(1), 128, None, true),
            (six(1), 128, Some(443), true),
            (six(0), 32, None, true),
            (six(0), 33, Some(1), true),
            ([0; 4], 0, None, true),
        ]
    );
    assert_eq!(destinations("early = { \"[2001:db8::1]\" };"), [(six(1), 128, None, true)]);
    // An IPv4 address in its mapped form is what it stands for.
    assert_eq!(destinations("early = { \"::ffff:192.0.2.0/120\" };"), destinations("early = { \"192.0.2.0/24\" };"));
}

#[test]
fn a_server_is_found_by_what_was_written() {
    let config = accepted(&framed("honest = { \"192.0.2.0/25:80\", \"2001:db8:ffff::/48\" };"));
    let [four, six] = config.engine.destinations[..] else { panic!("two") };
    assert!(four.covers(&[0, 0, 0xffff, 0xc000_027f], 80));
    assert!(!four.covers(&[0, 0, 0xffff, 0xc000_027f], 81));
    assert!(!four.covers(&[0, 0, 0xffff, 0xc000_0280], 80));
    assert!(!four.covers(&[0, 0, 0, 0xc000_027f], 80));
    assert!(six.covers(&[0x2001_0db8, 0xffff_0001, 2, 3], 7));
    assert!(!six.covers(&[0x2001_0db8, 0xfffe_0001, 2, 3], 7));
}

#[test]
fn the_lists_of_servers_come_in_any_order_and_replace_what_they_said_before() {
    let one = destinations("early = { \"192.0.2.1\" }; honest = { \"192.0.2.0/24\" };");
    assert_eq!(one, destinations("honest = { \"192.0.2.0/24\" }; early = { \"192.0.2.1\" };"));
    assert_eq!((one.len(), one[0].3, one[1].3), (2, true, false));
    let text = framed("early = { \"192.0.2.1\" }; honest = { \"192.0.2.2\" }; early = { \"192.0.2.3\" };");
    let Parsed { config, warnings, .. } = parse(&text, "c").expect("accepted");
    assert_eq!((config.engine.destinations.len(), warnings.len()), (2, 1));
    // What stands in a list no more contradicts nothing.
    let text = framed("early = { \"192.0.2.1\" }; honest = { \"192.0.2.1\" }; early = { };");
    assert_eq!(parse(&text, "c").expect("accepted").config.engine.destinations.len(), 1);
}

#[test]
fn a_list_of_servers_has_an_end() {
    let list = |n: u32| {
        let list: Vec<_> = (1..=n).map(|i| format!("\"10.0.{}.{}\"", i >> 8, i & 255)).collect();
        parse(&framed(&format!("early = {{ {} }};", list.join(", "))), "c")
    };
    assert_eq!(list(128).expect("accepted").config.engine.destinations.len(), 128);
    assert_eq!(list(129).expect_err("refused").complaints[0].message, "`early` has 129 entries, and 128 is the most");
}

/// The rules a body says, and the warnings it gets.
fn rules(body: &str) -> (Vec<DestinationRule>, Vec<String>) {
    let Parsed { config, warnings, .. } = parse(&framed(body), "c").unwrap_or_else(|errors| panic!("{errors}"));
    (config.engine.rules, warnings.into_iter().map(|warning| warning.message).collect())
}

#[test]
fn a_block_settles_what_it_says_and_leaves_the_rest_open() {
    let (rules, warnings) = rules(
        "destinations = {
             { network = \"192.0.2.0/24\"; port = 443; vlan = 7; handshake = early; own_sack = disable; mss_clamp = 1300;
               timeouts = { connected = 3600; syn_retx = 2; }; },
             { vlan = 0; closed_memory = 0; network = \"2001:db8::1\"; },
         };",
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    let network = |address, prefix| Network { address, prefix };
    let seconds = |n| Some(Duration::from_secs(n));
    let timeouts = TimeoutSettings { connected: seconds(3600), syn_retx: seconds(2), ..TimeoutSettings::default() };
    let first = Settings {
        handshake: Some(Handshake::Early),
        own_sack: Some(false),
        mss_clamp: Some(1300),
        timeouts,
        ..Settings::default()
    };
    let second = Settings { closed_memory: seconds(0), ..Settings::default() };
    let expected = [
        (Some(7), network([0, 0, 0xffff, 0xc000_0200], 120), Some(443), first),
        (Some(0), network([0x2001_0db8, 0, 0, 1], 128), None, second),
    ]
    .map(|(vlan, network, port, settings)| DestinationRule { vlan, network, port, settings: Arc::new(settings) });
    assert_eq!(rules, expected);
}

#[test]
fn blocks_come_in_any_number_and_the_last_list_counts() {
    let blocks = |n: u32| {
        let block = |i: u32| format!("{{ network = \"10.{}.{}.0/24\"; own_mss = {}; }}", i >> 8, i & 255, i % 9 + 1);
        format!("destinations = {{ {} }};", (0..n).map(block).collect::<Vec<_>>().join(", "))
    };
    assert_eq!(rules(&blocks(5000)).0.len(), 5000);
    let (left, warnings) = rules(&format!("{} destinations = {{ }};", blocks(2)));
    assert_eq!((left.len(), warnings.len()), (0, 1));
}

#[test]
fn a_block_and_a_list_may_name_the_same_servers_unless_they_contradict_each_other() {
    let with = |block: &str| {
        let body =
            format!("early = {{ \"192.0.2.1:80\" }}; destinations = {{ {{ network = \"192.0.2.1\"; {block} }} }};");
        parse(&framed(&body), "c").map_err(|errors| errors.complaints[0].message.clone())
    };
    assert!(with("port = 80; own_mss = 1;").is_ok() && with("port = 80; handshake = early;").is_ok());
    assert!(with("handshake = honest;").is_ok() && with("port = 80; vlan = 3; handshake = honest;").is_ok());
    assert_eq!(
        with("port = 80; handshake = honest;").expect_err("refused"),
        "this block says `handshake = honest`, and `192.0.2.1:80` is in `early` on line 1"
    );
}

#[test]
fn the_former_name_of_a_key_is_read() {
    assert_eq!(accepted(&framed("pen_frames = 7;")).engine.held_frames, 7);
    let of_events = accepted(&framed("events = { command = \"/bin/x\"; };"));
    assert_eq!(of_events.events.command.as_deref(), Some("/bin/x"));
    assert!(of_events.describe().contains("on_event"), "it is shown by its present name");
    let twice = parse(&framed("pen_frames = 7; held_frames = 8;"), "c").expect("accepted");
    assert_eq!((twice.config.engine.held_frames, twice.warnings.len()), (8, 1));
}

#[test]
fn a_block_may_want_the_control_plane_and_the_hold_queue() {
    let block = |settings| framed(&format!("destinations = {{ {{ network = \"::/0\"; {settings} }} }};"));
    assert!(accepted(&block("mssmode = commanded;")).commanded());
    assert!(!accepted(&block("mssmode = haship;")).commanded());
    let text = block("handshake = early;").replacen('{', "{ held_frames = 0;", 1);
    assert_eq!(parse(&text, "c").expect("accepted").warnings.len(), 1);
}

#[test]
fn held_frames_leave_most_frames_to_those_that_arrive() {
    let said = |body: &str| {
        let warnings = parse(&framed(body), "c").expect("accepted").warnings;
        warnings.into_iter().map(|warning| warning.message).collect::<Vec<_>>()
    };
    assert_eq!(said("held_frames = 4096;"), [""; 0]);
    assert_eq!(said("held_frames = 4097;"), ["each worker may hold 4097 of its 16384 frames"]);
    assert_eq!(said("held_frames = 8192; threadcount = 2;"), [""; 0]);
    assert_eq!(said("threadcount = 2; held_frames = 8194;"), ["each worker may hold 4097 of its 16384 frames"]);
    let none = "with `held_frames = 0` an early handshake has no place for what clients send";
    assert_eq!(said("held_frames = 0;"), [""; 0]);
    assert_eq!(said("held_frames = 0; handshake = early;"), [none]);
    assert_eq!(said("held_frames = 0; early = { \"192.0.2.1\" };"), [none]);
}

#[test]
fn root_by_number_is_no_change() {
    assert_eq!(accepted(&framed("user = 0; group = 00;")).user, None);
    assert_eq!(accepted(&framed("user = 7;")).user, NonZeroU32::new(7).map(Account::Id));
}

#[test]
fn the_control_plane_is_wanted_if_any_mode_is_commanded() {
    assert!(!Config::default().commanded());
    for key in ["sackmode", "mssmode", "wscalemode"] {
        assert!(accepted(&framed(&format!("{key} = commanded;"))).commanded());
    }
}

#[test]
fn keys_without_effect_are_silent_at_their_defaults() {
    accepted(&framed("ts_bits = 5; tswscale = { 0, 1, 3, 5, 6, 8, 9, 10 }; ldp = { socket_num_bufs = 1024; };"));
    let parsed = parse(&framed("ts_bits = 6;"), "c").expect("accepted");
    assert_eq!((parsed.config.ts_bits, parsed.warnings[0].level), (6, Level::Note));
}

#[test]
fn columns_count_characters_from_one_on_every_line() {
    for (text, place) in [
        ("oops", (1, 1)),
        ("synproxyconf = { oops = 1; };", (1, 18)),
        ("synproxyconf = {\noops = 1; };", (2, 1)),
        ("synproxyconf = {\r\n\t oops = 1; };", (2, 3)),
        ("synproxyconf = { /* ä€🦀 */ oops = 1; };", (1, 28)),
    ] {
        let first = &parse(text, "c").expect_err("refused").complaints[0];
        assert_eq!((first.line, first.column), place, "{text}");
    }
}

#[test]
fn an_address_that_could_be_one_with_a_port_is_taken_where_it_leaves_no_doubt_and_printed_so() {
    for (written, printed) in [
        ("2001:db8:0:0:0:0:1:443", "2001:db8:0:0:0:0:1:443"),
        ("2001:db8::1:443/128", "2001:db8:0:0:0:0:1:443"),
        ("2001:db8::1:440/125", "2001:db8::1:440/125"),
        ("[2001:db8::1:443]:80", "[2001:db8::1:443]:80"),
        ("2001:db8::1:2", "2001:db8::1:2"),
        ("2001:db8::1:44f", "2001:db8::1:44f"),
        ("2001:db8::443", "2001:db8::443"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ] {
        let config = accepted(&framed(&format!("early = {{ \"{written}\" }};")));
        assert!(config.describe().contains(&format!("early = {{ \"{printed}\" }};")), "{}", config.describe());
        assert_eq!(accepted(&config.describe()), config, "{written}");
    }
    let config = accepted(&framed("listen = \"0:0:0:0:0:0:1:80\";"));
    assert_eq!(accepted(&config.describe()), config);
}

#[test]
fn what_only_the_machine_can_tell_is_complained_of_where_the_key_stands() {
    let text = "synproxyconf = {\n  user = \"a\"; ratehash = { size = 4; };\n  user = \"b\";\n};";
    let places = parse(text, "conf.txt").expect("accepted").places;
    assert_eq!(places.complain(None, "user", "nobody"), "conf.txt:3:3: nobody", "the last one counts");
    assert_eq!(places.complain(Some("ratehash"), "size", "too much"), "conf.txt:2:28: too much");
    assert_eq!(places.complain(None, "group", "nobody"), "conf.txt: nobody");
}

#[test]
fn a_block_may_have_a_mode_and_thresholds_of_its_own() {
    let text = framed(
        r#"mode = pass; auto = { enter_half_open = 90; leave_half_open = 9; };
           destinations = { { network = "192.0.2.0/24"; mode = auto; auto = { stay = 500; enter_half_open = 20; }; } };"#,
    );
    let config = accepted(&text);
    assert_eq!((config.engine.mode, config.engine.auto.enter_half_open), (Mode::Pass, 90));
    let own =
        AutoSettings { enter_half_open: Some(20), stay: Some(Duration::from_millis(500)), ..AutoSettings::default() };
    let settings = Settings { mode: Some(Mode::Auto), auto: own, ..Settings::default() };
    assert_eq!(*config.engine.rules[0].settings, settings);
}
