//! What the machine is, and what its cores have been doing.

use std::fs;
use std::time::Duration;

/// CPU time of a thread so far, softirqs that ran on top of it included.
pub fn time_of(task: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{task}/schedstat")).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// Time the cores of the machine have spent on anything at all.
pub fn busy() -> Duration {
    // user, nice, system, irq, softirq.
    spent(&[0, 1, 2, 5, 6])
}

/// Time the cores had nothing to do, or waited for a disk.
pub fn idle() -> Duration {
    spent(&[3, 4])
}

/// Time in which cores had something to do and the hypervisor did not let them.
pub fn stolen() -> Duration {
    spent(&[7])
}

/// The cores of the machine, whichever of them the calling thread may use.
pub fn cores() -> u32 {
    let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let is_core =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    text.lines().filter(is_core).count() as u32
}

/// The sum of these fields of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
fn spent(fields: &[usize]) -> Duration {
    let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let all: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).flat_map(str::parse).collect();
    let sum: u64 = fields.iter().filter_map(|&at| all.get(at)).sum();
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Duration::from_secs_f64(sum as f64 / ticks as f64)
}

/// Memory that programs could still have, in bytes.
pub fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// The calling thread's number.
pub fn own_thread() -> u32 {
    nix::unistd::gettid().as_raw() as u32
}

/// A line that tells the machine.
pub fn told() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name| {
        let line = cpu.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release: String = kernel.trim().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    format!(
        "{} (family {}), {} cores, Linux {}",
        field("model name").unwrap_or_default(),
        field("cpu family").unwrap_or_default(),
        std::thread::available_parallelism().map_or(0, usize::from),
        release.trim_end_matches('.'),
    )
}
