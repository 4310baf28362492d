//! What a namespace's kernel has counted, under the names `nstat` prints.

use std::collections::BTreeMap;
use std::fs;

/// Counters of one namespace: `TcpOutRsts`, `TcpExtPAWSEstab` and their like.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<String, i64>);

/// What rises at an end host only when somebody on the way made a mistake with numbers, timestamps or checksums.
pub const FAULTS: [&str; 7] = [
    "TcpInCsumErrors",
    "TcpInErrs",
    "TcpExtTCPSACKDiscard",
    "TcpExtPAWSActive",
    "TcpExtPAWSEstab",
    "TcpExtTSEcrRejected",
    "TcpExtTCPSYNChallenge",
];

impl Counters {
    /// Reads the counters of the calling thread's namespace.
    ///
    /// # Panics
    /// If /proc is not what Linux makes it.
    pub fn read() -> Counters {
        let mut counters = BTreeMap::new();
        for file in ["snmp", "netstat"] {
            // The thread's, because /proc/net is the process's.
            let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("reading counters");
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.chunks_exact(2) {
                let (names, values) = (pair[0].split_whitespace(), pair[1].split_whitespace());
                let group = pair[0].split(':').next().unwrap_or_default();
                for (name, value) in names.zip(values).skip(1) {
                    // TcpMaxConn is -1; nothing else is signed.
                    counters.insert(format!("{group}{name}"), value.parse().expect("a counter is a number"));
                }
            }
        }
        let text = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap_or_default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(char::is_whitespace)) {
            counters.insert(name.into(), value.trim().parse().expect("a counter is a number"));
        }
        Counters(counters)
    }

    /// One counter; zero where this kernel does not have it.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// The sum of all counters whose names begin so.
    pub fn sum(&self, beginning: &str) -> i64 {
        self.0.iter().filter(|(name, _)| name.starts_with(beginning)).map(|(_, count)| count).sum()
    }

    /// What has been counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Counters) -> Counters {
        Counters(self.0.iter().map(|(name, now)| (name.clone(), now - before.get(name))).collect())
    }

    /// The same, without the SACK blocks discarded that were told twice: a D-SACK (RFC 2883) in a segment that the other end's kernel
    /// cuts into many is in each of them. The first is believed; all others are dubious, and may be discarded as blocks that are none.
    #[must_use]
    pub fn excused(&self, other: &Counters) -> Counters {
        /// Segments that are cut out of one, at most.
        const CUT: i64 = 64;
        let mut excused = self.clone();
        let told = other.get("TcpExtTCPDSACKOldSent") + other.get("TcpExtTCPDSACKOfoSent");
        let dubious = self.get("TcpExtTCPDSACKIgnoredDubious").min(CUT * told);
        if let Some(discarded) = excused.0.get_mut("TcpExtTCPSACKDiscard").filter(|count| **count <= dubious) {
            *discarded = 0;
        }
        excused
    }

    /// All TCP counters that are not zero, for whoever must find out why.
    pub fn tell(&self) -> String {
        let risen = self.0.iter().filter(|(name, count)| name.starts_with("Tcp") && **count != 0);
        risen.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// Those of [`FAULTS`] that are not zero, and the resets beyond `resets`.
    pub fn faults(&self, resets: i64) -> Vec<String> {
        let faults = FAULTS.iter().filter(|name| self.get(name) != 0);
        let unexpected = (self.get("TcpOutRsts") > resets).then_some(&"TcpOutRsts");
        faults.chain(unexpected).map(|name| format!("{name} = {}", self.get(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters<const N: usize>(counts: [(&str, i64); N]) -> Counters {
        Counters(counts.map(|(name, count)| (name.into(), count)).into())
    }

    #[test]
    fn a_block_discarded_is_a_fault_unless_it_is_a_d_sack_that_was_told_and_told_again() {
        let blocks = |discarded, dubious| {
            counters([("TcpExtTCPSACKDiscard", discarded), ("TcpExtTCPDSACKIgnoredDubious", dubious)])
        };
        let told = counters([("TcpExtTCPDSACKOldSent", 1)]);
        assert!(blocks(2, 43).excused(&told).faults(0).is_empty());
        for (counters, other) in [(blocks(2, 0), told.clone()), (blocks(2, 43), counters([])), (blocks(65, 99), told)] {
            assert_eq!(counters.excused(&other).faults(0).len(), 1, "{counters:?} {other:?}");
        }
    }

    #[test]
    fn resets_are_faults_beyond_those_that_are_due() {
        let two = counters([("TcpOutRsts", 2)]);
        assert_eq!((two.faults(2).len(), two.faults(1).len()), (0, 1));
    }
}
