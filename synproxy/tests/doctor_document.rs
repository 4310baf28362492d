//! `docs/doctor.md` is made from the table of checks, and equal to it. `DOCTOR=accept cargo test -p synproxy --test doctor_document`
//! writes it anew.

use std::fmt::Write;
use std::path::Path;
use synproxy::doctor::{Check, checks};

/// A cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn document() -> String {
    let mut text = "\
# Doctor

`synproxy doctor LAN WAN` looks at two interfaces and at the machine, and says whether a box works between them, by which I/O backend and mode, about how fast, and what to change, each with the
command that does it. It changes nothing and needs no running box; where one runs, it says so. Root sees everything; another user sees what a box of that user would have.

```
$ synproxy doctor eth0 eth1
eth0 and eth1: a box cannot start here; 1 error, 1 warning, 1 note
a worker: 4 to 8 million SYNs answered a second, 4.5 to 9 million small segments, 50 to 100 Gbit/s of full frames
          (calculated, from the engine's times and the published cost of a port; not measured on a NIC)

error: eth1 is down  [up]
    The box does not start on an interface that is down.
    $ ip link set dev eth1 up

warning: eth0 has rings of 512 received and 512 sent frames, and can have 8160 and 8160  [rings]
    ...
```

| level | meaning |
|---|---|
| error | the box does not start, or passes no frames |
| warning | the box works, but worse than it could |
| note | worth knowing; the box works as it should |
| ok | nothing is to be changed |

The exit status is 1 if there is an error, else 0. With `--config FILE` and `--workers N` it judges by the workers, the polling and the tables of the box that is to run. With `--json` it prints one
object: `summary`, `errors`, `warnings`, `notes`, `speed` (`modes` of LAN and WAN, `workers`, and per worker `syns`, `segments` and `bulk` as `[from, to]`, with `basis`) and `findings`,
each with `id`, `level`, `port` (or null), `finding`, `why` and `command` (or null). The figures are those of [performance.md](performance.md#what-to-expect-of-a-port).

Commands take effect at once and last until the next start of the machine; what is to last belongs in the configuration of the network or of the service. A command that begins with `ulimit` or `taskset`
belongs in the shell, or the unit, that starts the box. Of what the box sets itself at its start and puts back at its end (offloads, pause frames, queues, RSS) the doctor only makes notes.

It cannot see into switches, into another host's end of a cable, or into interfaces of another network namespace. Programs pinned in a BPF file system have no process; where `ip link set dev PORT xdp off`
is refused for one, remove its pin.

This page is made from the table of checks (`synproxy/src/doctor/`) by `DOCTOR=accept cargo test -p synproxy --test doctor_document`; the same test fails when the page and the table differ.
"
    .to_owned();
    let mut last = "";
    for (heading, Check { id, looks_at, worst, why, remedy, .. }) in checks() {
        if heading != last {
            let _ = writeln!(
                text,
                "\n## {heading}\n\n| check | looks at | at worst | why | what to do |\n|---|---|---|---|---|"
            );
            last = heading;
        }
        let (looks_at, why, remedy) = (cell(looks_at), cell(why), cell(remedy));
        let _ = writeln!(text, "| `{id}` | {looks_at} | {} | {why} | {} |", worst.name(), remedies(&remedy));
    }
    text
}

/// What mends it: commands as such, sentences as such.
fn remedies(text: &str) -> String {
    let is_command = |part: &str| {
        let first = part.split(' ').next().unwrap_or_default();
        [
            "ip",
            "ethtool",
            "kill",
            "synproxy",
            "echo",
            "for",
            "mount",
            "sysctl",
            "systemctl",
            "setcap",
            "ulimit",
            "taskset",
            "nmcli",
            "unshare",
            "install",
        ]
        .contains(&first)
    };
    let part = |part: &str| if is_command(part) { format!("`{part}`") } else { part.to_owned() };
    text.split(", or ").map(part).collect::<Vec<_>>().join(", or ")
}

#[test]
fn the_page_on_the_doctor_is_made_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/doctor.md");
    let document = document();
    if std::env::var_os("DOCTOR").is_some_and(|value| value == "accept") {
        std::fs::write(&path, &document).expect("the page can be written");
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == document, "docs/doctor.md differs from the table; DOCTOR=accept writes it anew");
}
