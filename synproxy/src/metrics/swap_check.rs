//! Notices LAN and WAN that are swapped: then everything works, and nothing is protected.

use super::snapshot::Snapshot;
use std::time::{Duration, Instant};
use tcpstate::Event;
use tracing::{info, warn};

/// How many connections must have been opened from the LAN, and how long ago the first of them, while none was opened from the WAN.
const CONNECTIONS: u64 = 10;
const PERIOD: Duration = Duration::from_secs(30);

/// Watches the counters for it.
#[derive(Debug, Default)]
pub struct SwapCheck {
    /// When the first connection from the LAN was noticed.
    first: Option<Instant>,
    are_swapped: bool,
}

impl SwapCheck {
    /// Looks at the total of all workers, and logs what has changed.
    pub fn check(&mut self, total: &Snapshot, now: Instant) {
        let from_wan = total.get(Event::WanSyn);
        let from_lan = total.get(Event::Direct);
        if from_wan > 0 {
            if std::mem::take(&mut self.are_swapped) {
                info!("a connection was opened from the WAN, so LAN and WAN are not swapped");
            }
            return;
        }
        if from_lan == 0 || self.are_swapped {
            return;
        }
        let first = *self.first.get_or_insert(now);
        if from_lan >= CONNECTIONS && now >= first + PERIOD {
            self.are_swapped = true;
            warn!(
                "{from_lan} connections were opened from the LAN and none from the WAN: are the two swapped? The servers belong behind the \
                 first interface, LAN; only what is opened from the other one is protected"
            );
        }
    }

    /// Whether LAN and WAN seem to be swapped.
    pub fn are_swapped(&self) -> bool {
        self.are_swapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(lan: u64, wan: u64) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set(Event::Direct, lan);
        snapshot.set(Event::WanSyn, wan);
        snapshot
    }

    #[test]
    fn connections_from_the_lan_alone_are_a_hint_after_a_while_and_one_from_the_wan_takes_it_back() {
        let (mut check, begin) = (SwapCheck::default(), Instant::now());
        check.check(&opened(0, 0), begin);
        check.check(&opened(500, 0), begin + Duration::from_secs(100));
        assert!(!check.are_swapped(), "the first was only just opened");
        check.check(&opened(500, 0), begin + Duration::from_secs(130));
        assert!(check.are_swapped());
        check.check(&opened(500, 1), begin + Duration::from_secs(140));
        assert!(!check.are_swapped());
        check.check(&opened(5000, 1), begin + Duration::from_secs(1000));
        assert!(!check.are_swapped());
    }

    #[test]
    fn a_few_connections_say_nothing() {
        let (mut check, begin) = (SwapCheck::default(), Instant::now());
        for second in 0..1000 {
            check.check(&opened(CONNECTIONS - 1, 0), begin + Duration::from_secs(second));
        }
        assert!(!check.are_swapped());
    }
}
