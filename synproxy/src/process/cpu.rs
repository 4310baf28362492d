//! The cores the workers run on, and their scheduling priority.

use core_affinity::CoreId;
use rustix::io::Errno;
use rustix::process::Pid;
use tracing::{debug, warn};

/// The cores for the workers. The default leaves placement to the scheduler.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    /// Those of the machine, which workers take in order.
    all: Vec<CoreId>,
    /// Whether a core is left for everything else.
    spare: bool,
}

impl Cores {
    /// A core for each of this many workers or, where there are more workers than cores, an equal share of one: the scheduler
    /// would let several wait for one core while another is idle.
    pub fn for_each(workers: usize) -> Self {
        let all = core_affinity::get_core_ids().unwrap_or_default();
        let spare = all.len() > workers;
        Self { all, spare }
    }

    /// The core of one worker, and whether it has that core for itself.
    pub fn of(&self, number: usize) -> (Option<CoreId>, bool) {
        (self.all.iter().cycle().nth(number).copied(), self.spare)
    }
}

/// Sets the priority (nice value, -20 to 19) of the calling thread and of every thread it starts from now on. A worker that waits for
/// its core for a few milliseconds finds its rings full. Without the permission the worker keeps its ordinary priority.
pub fn prioritise(nice: i8) {
    match rustix::process::setpriority_process(None, nice.into()) {
        Ok(()) => debug!("priority {nice}"),
        Err(Errno::PERM | Errno::ACCESS) => {
            warn!(
                "no `--nice {nice}`: the process lacks CAP_SYS_NICE (for a priority above the ordinary one); `--nice 0` needs none"
            );
        }
        Err(error) => warn!("no `--nice {nice}`: {error}"),
    }
}

/// Gives every thread of the process the priority of the calling one, as far as it may: the process ends, and another waits for that.
pub fn hurry() {
    let Ok(own) = rustix::process::getpriority_process(None) else { return };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)) {
        // A thread may have ended; without the permission they all keep theirs.
        let _ = rustix::process::setpriority_process(Some(task), own);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_the_cores_in_order_and_have_them_for_themselves_while_one_is_left() {
        let all = core_affinity::get_core_ids().unwrap();
        let (first, last) = (all.first().copied(), all.last().copied());
        let many = Cores::for_each(all.len() + 1);
        assert_eq!((many.of(0), many.of(all.len())), ((first, false), (first, false)));
        assert_eq!(Cores::for_each(all.len()).of(all.len() - 1), (last, false));
        assert_eq!(Cores::for_each(all.len() - 1).of(0), (first, true));
        assert_eq!(Cores::default().of(0), (None, false));
    }
}
