//! What a stretch of time has cost the machine: CPU time of all its cores, spent by anything (processes, softirqs, kernel threads), less what it
//! spends when nothing is to do; and memory.

use std::time::{Duration, Instant};

use unit::machine;

/// A stretch of time that begins now.
pub struct Stretch {
    begin: Instant,
    idle: Duration,
    stolen: Duration,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub passed: Duration,
    /// Time in which the cores were not idle.
    pub busy: Duration,
}

impl Stretch {
    pub fn begin() -> Stretch {
        Stretch { begin: Instant::now(), idle: machine::idle(), stolen: machine::stolen() }
    }

    /// Idle time is counted by the kernel to the microsecond, where busy time of a core is guessed from what runs at a tick; so the busy time is the
    /// rest, without what the hypervisor gave to others.
    pub fn end(&self) -> Cost {
        let passed = self.begin.elapsed();
        let idle = machine::idle().saturating_sub(self.idle) + machine::stolen().saturating_sub(self.stolen);
        let all = passed * machine::cores();
        Cost { passed, busy: all.saturating_sub(idle) }
    }
}

impl Cost {
    /// Without what the machine spends in as much time when nothing is to do.
    pub fn without(self, idle_share: f64) -> Cost {
        Cost { busy: self.busy.saturating_sub(self.passed.mul_f64(idle_share)), ..self }
    }

    pub fn add(&mut self, other: Cost) {
        self.passed += other.passed;
        self.busy += other.busy;
    }
}

/// The share of a core that is busy while nothing is to do.
pub fn idle_share(span: Duration) -> f64 {
    let stretch = Stretch::begin();
    std::thread::sleep(span);
    let cost = stretch.end();
    cost.busy.as_secs_f64() / cost.passed.as_secs_f64()
}
