//! Which core a worker runs on, and before whom.

use core_affinity::CoreId;
use tracing::{debug, info};

/// Where workers run. By default wherever the scheduler puts them.
#[derive(Clone, Debug, Default)]
pub struct Cores {
    /// Those there are, which workers take in turn.
    all: Vec<CoreId>,
    /// Whether one is left for everything else.
    spare: bool,
}

impl Cores {
    /// A core of its own for each of this many workers or, where they are more than the cores, the same share of one: left to the scheduler,
    /// several would wait for one core while another is idle.
    pub fn for_each(workers: usize) -> Self {
        let all = core_affinity::get_core_ids().unwrap_or_default();
        let spare = all.len() > workers;
        Self { all, spare }
    }

    /// The core of one worker, and whether it has that for itself.
    pub fn of(&self, number: usize) -> (Option<CoreId>, bool) {
        (self.all.iter().cycle().nth(number).copied(), self.spare)
    }
}

/// Gives the calling thread, and every thread it starts from now on, this priority (nice value, -20 to 19). A worker that waits behind others
/// for a few milliseconds finds its rings full. Where it is not permitted the worker goes on as it is.
pub fn prioritise(nice: i8) {
    match rustix::process::setpriority_process(None, nice.into()) {
        Ok(()) => debug!("priority {nice}"),
        Err(error) => info!("the workers keep their ordinary priority: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_the_cores_in_turn_and_have_them_for_themselves_while_one_is_left() {
        let all = core_affinity::get_core_ids().unwrap();
        let (first, last) = (all.first().copied(), all.last().copied());
        let many = Cores::for_each(all.len() + 1);
        assert_eq!((many.of(0), many.of(all.len())), ((first, false), (first, false)));
        assert_eq!(Cores::for_each(all.len()).of(all.len() - 1), (last, false));
        assert_eq!(Cores::for_each(all.len() - 1).of(0), (first, true));
        assert_eq!(Cores::default().of(0), (None, false));
    }
}
