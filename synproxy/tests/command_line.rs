//! What an operator's script sees: exit statuses, and where each complaint goes. Nothing here needs an interface or a
//! permission; what happens between real interfaces is tested end to end elsewhere.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, process};

/// Runs the program with these arguments to its end.
fn synproxy(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_synproxy")).args(arguments).output().expect("the program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A directory of this test's own, removed when it ends.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = env::temp_dir().join(format!("synproxy-{}-{test}", process::id()));
        fs::create_dir_all(&path).expect("the temporary directory is writable");
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).expect("the temporary directory is writable");
        path.to_string_lossy().into_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn each_end_has_its_status_and_one_clear_line() {
    let directory = Directory::new("statuses");
    let wrong = directory.file("wrong.txt", "synproxyconf = {\n  own_mms = 3;\n};\n");
    let stranger = directory.file("stranger.txt", "synproxyconf = { user = \"no-such-user\"; };");
    for (arguments, status, opening) in [
        (&["eth0"][..], 2, "error: "),
        (&["--workers", "none", "a", "b"], 2, "error: "),
        (&["ring:a", "b"], 2, "synproxy: \"ring:a\" names no port"),
        (&["--config", &wrong, "a", "b"], 3, &format!("{wrong}:2:3: ")),
        (&["--check-config", &wrong], 3, &format!("{wrong}:2:3: ")),
        (&["--check-config", "/nowhere/conf.txt"], 3, "/nowhere/conf.txt: "),
        (&["--config", &stranger, "a", "b"], 3, "`user = \"no-such-user\"`: "),
        (&["no-such-dev", "lo"], 4, "synproxy: there is no interface \"no-such-dev\""),
        (&["lo", "lo"], 4, "synproxy: both ports are lo"),
        (&["pcap:/nowhere/in.pcap", "pcap:/nowhere/in.pcap"], 4, "synproxy: /nowhere/in.pcap: "),
    ] {
        let output = synproxy(arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.starts_with(opening), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "complaints go to stderr");
    }
    // Nothing is left for a next process by one that has not come to its ports.
    for base in ["/run/synproxy", "/dev/shm/synproxy"] {
        for name in ["ring_a-b", "no-such-dev-lo"] {
            assert!(!std::path::Path::new(base).join(name).exists(), "{base}/{name}");
        }
    }
}

#[test]
fn a_valid_file_is_said_to_be_valid() {
    let directory = Directory::new("valid");
    let file = directory.file("conf.txt", "synproxyconf = { threadcount = 2; };");
    let output = synproxy(&["--check-config", &file]);
    assert_eq!((output.status.code(), said(&output)), (Some(0), String::new()));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("{file}: the configuration is valid"));
    assert!(lines.len() == 2 && lines[1].starts_with("memory: ") && lines[1].contains("threadcount"), "{said}");
}

#[test]
fn what_this_machine_does_not_have_is_complained_of_by_the_check_too() {
    let directory = Directory::new("machine");
    let file = directory.file(
        "machine.txt",
        "synproxyconf = {\n  user = \"nosuch\";\n  group = \"nosuch\"; control_group = \"nosuch\";\n  control = \"/nowhere/a.sock\";\n  \
         mssmode = commanded; listen = \"192.0.2.77\";\n};\n",
    );
    let output = synproxy(&["--check-config", &file]);
    let said = said(&output);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((output.status.code(), lines.len()), (Some(3), 5), "{said}");
    for (line, (place, word)) in lines.iter().zip([
        ("2:3", "no such user"),
        ("3:3", "`group = \"nosuch\"`: there is no such group"),
        ("3:21", "`control_group = \"nosuch\"`: there is no such group"),
        ("4:3", "no such directory"),
        ("5:24", "no such address"),
    ]) {
        assert!(line.starts_with(&format!("{file}:{place}: ")) && line.contains(word), "{line}");
    }
}

#[test]
fn a_size_that_this_machine_cannot_hold_is_refused_in_one_line_and_nothing_is_aborted() {
    let directory = Directory::new("sizes");
    for (number, (keys, name)) in [
        // 340 GiB in all, and of the tables that each worker has more than a terabyte.
        ("conntablesize = 268435455;", "conntablesize"),
        ("threadcount = 64; learnhashsize = 1073741824;", "learnhashsize"),
        ("threadcount = 64; ratehash = { size = 1073741824; };", "ratehash.size"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = directory.file(&format!("{number}.txt"), format!("synproxyconf = {{\n  {keys}\n}};\n"));
        for arguments in [&["--check-config", &file][..], &["--config", &file, "lo", "lo"]] {
            let output = synproxy(arguments);
            let said = said(&output);
            // What is only worth a warning may stand before it.
            let last = said.lines().last().unwrap_or_default();
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(
                last.starts_with(&format!("{file}:2:")) && last.contains(name) && last.contains(" takes "),
                "{said}"
            );
        }
    }
    // The SYN cache lies in the flow table, however large it may become.
    let file = directory.file("cache.txt", "synproxyconf = { halfopen_cache_max = 2147483647; };");
    assert_eq!(synproxy(&["--check-config", &file]).status.code(), Some(0));
}

#[test]
fn the_help_tells_the_exit_statuses() {
    let output = synproxy(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for status in 0..=5 {
        assert!(help.contains(&format!("\n  {status}  ")), "{status} is missing from\n{help}");
    }
}

#[test]
fn capture_files_are_bridged_to_their_end() {
    let directory = Directory::new("captures");
    let (question, answer) = (arp(b"who-has"), arp(b"is-at"));
    let lan = directory.file("lan.pcap", pcap(&[&answer]));
    let wan = directory.file("wan.pcap", pcap(&[&question, &question]));
    let out = directory.0.join("out.pcapng").to_string_lossy().into_owned();
    for bypass in [false, true] {
        let (lan, wan) = (format!("pcap:in={lan}:out={out}"), format!("pcap:{wan}"));
        let mut arguments = vec![lan.as_str(), &wan];
        arguments.extend(bypass.then_some("--bypass"));
        let output = synproxy(&arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.lines().any(|line| line.starts_with("ready lan ")), "{said}");
        assert!(said.lines().any(|line| line.split_whitespace().eq(["received,", "frames", "1", "2"])), "{said}");
        assert_eq!(occurrences(Path::new(&out), &question), 2, "what came from the WAN left toward the LAN");
        assert_eq!(occurrences(Path::new(&out), &answer), 0);
    }
}

#[test]
fn a_quiet_log_still_says_ready_and_nothing_else() {
    let directory = Directory::new("quiet");
    let file = format!("pcap:{}", directory.file("empty.pcap", pcap(&[])));
    let output = synproxy(&["--log-level", "error", &file, &file]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("ready lan ") && said.lines().count() == 1, "{said}");
}

/// A broadcast ARP frame, as far as a bridge looks at it, with `text` for a body.
fn arp(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x08, 0x06]);
    frame.extend(text);
    frame.resize(60, 0);
    frame
}

/// A capture file of Ethernet frames in the classic format.
fn pcap(frames: &[&Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic, version 2.4, two zeros, snap length, link type Ethernet.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("frames are short");
        for word in [0, 0, length, length] {
            file.extend(u32::to_le_bytes(word));
        }
        file.extend(*frame);
    }
    file
}

/// How often `frame` lies in a file.
fn occurrences(file: &Path, frame: &[u8]) -> usize {
    let content = fs::read(file).expect("the file was written");
    content.windows(frame.len()).filter(|window| *window == frame).count()
}
