//! The capabilities that opening ports takes, and which of them this process lacks.

use std::fs;

/// A capability, and what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privilege {
    /// Its name, as in capabilities(7).
    pub name: &'static str,
    /// What takes it.
    pub purpose: &'static str,
    /// Its number.
    bit: u32,
}

/// Every capability that opening interfaces takes. Root has them all.
pub const NEEDED: [Privilege; 5] = [
    Privilege { name: "CAP_NET_RAW", purpose: "AF_XDP and AF_PACKET sockets", bit: 13 },
    Privilege { name: "CAP_NET_ADMIN", purpose: "attaching the XDP program, and settings of the interfaces", bit: 12 },
    Privilege { name: "CAP_BPF", purpose: "loading the XDP program and its maps", bit: 39 },
    Privilege {
        name: "CAP_PERFMON",
        purpose: "the pointer arithmetic of the XDP program, which the verifier refuses without it",
        bit: 38,
    },
    Privilege { name: "CAP_IPC_LOCK", purpose: "locked memory for frames beyond `ulimit -l`", bit: 14 },
];

/// It includes `CAP_BPF` and `CAP_PERFMON`, which kernels before 5.8 do not know.
const SYS_ADMIN: u32 = 21;

/// Those of [`NEEDED`] that the calling thread lacks. Empty where the kernel does not say what it has.
pub fn missing() -> Vec<&'static Privilege> {
    fs::read_to_string("/proc/thread-self/status").map(|status| missing_of(&status)).unwrap_or_default()
}

/// Those of [`NEEDED`] that a thread of this status (the text of `/proc/PID/status`) lacks.
pub fn missing_of(status: &str) -> Vec<&'static Privilege> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()) else {
        return Vec::new();
    };
    let has = |bit: u32| effective & 1 << bit != 0;
    let includes = |it: &Privilege| matches!(it.name, "CAP_BPF" | "CAP_PERFMON") && has(SYS_ADMIN);
    NEEDED.iter().filter(|it| !(has(it.bit) || includes(it))).collect()
}

/// Names of capabilities, in a sentence.
pub(crate) fn names(privileges: &[&Privilege]) -> String {
    let names: Vec<&str> = privileges.iter().map(|it| it.name).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

/// Why opening a port is not permitted, and what to do.
pub(crate) fn lack() -> String {
    let missing = missing();
    let needed = names(&NEEDED.each_ref());
    if missing.is_empty() {
        return format!("the process has {needed}, so a security module or the container forbids it");
    }
    format!("the process lacks {}; run as root, or grant {needed}", names(&missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let missing = |bits: u64| {
            let status = format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{bits:016x}\nCapBnd:\t0\n");
            names(&missing_of(&status))
        };
        let all: u64 = NEEDED.iter().map(|it| 1 << it.bit).sum();
        assert_eq!(missing(all), "");
        assert_eq!(missing(0), "CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON and CAP_IPC_LOCK");
        for it in NEEDED {
            assert_eq!(missing(all & !(1 << it.bit)), it.name);
        }
        assert_eq!(missing(1 << SYS_ADMIN | 1 << 13), "CAP_NET_ADMIN and CAP_IPC_LOCK");
        assert_eq!(names(&missing_of("no such line")), "");
    }
}
