//! How many restarts are too many.
//!
//! A fault that passes is cured by a restart; one that stays would be restarted for ever. The
//! budget tells them apart by rate, as OTP supervisors do
//! (<https://www.erlang.org/doc/system/sup_princ.html#maximum-restart-intensity>).

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Allows at most `restarts` restarts in any stretch of time as long as `within`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Restarts allowed; 0 gives up at the first fault.
    pub restarts: u32,
    /// How long a restart counts.
    pub within: Duration,
}

/// Keeps the restarts that still count. It never holds more than the budget allows.
pub(super) struct Ledger {
    budget: Budget,
    granted: VecDeque<Instant>,
}

impl Ledger {
    pub(super) fn new(budget: Budget) -> Self {
        let granted = VecDeque::new();
        Self { budget, granted }
    }

    /// Says whether one more restart is within the budget, and enters it if so.
    pub(super) fn grant(&mut self, now: Instant) -> bool {
        while self
            .granted
            .front()
            .is_some_and(|&then| now - then >= self.budget.within)
        {
            self.granted.pop_front();
        }
        let granted = self.granted.len() < self.budget.restarts as usize;
        if granted {
            self.granted.push_back(now);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(restarts: u32, at: &[u64]) -> Vec<bool> {
        let budget = Budget {
            restarts,
            within: Duration::from_secs(10),
        };
        let (mut ledger, start) = (Ledger::new(budget), Instant::now());
        at.iter()
            .map(|&seconds| ledger.grant(start + Duration::from_secs(seconds)))
            .collect()
    }

    #[test]
    fn grants_so_many_and_not_one_more() {
        assert_eq!(grants(2, &[0, 1, 9]), [true, true, false]);
        assert_eq!(grants(0, &[0]), [false]);
    }

    #[test]
    fn forgets_a_restart_when_its_time_is_over_and_not_before() {
        assert_eq!(grants(1, &[0, 9, 10, 19, 20]), [true, false, true, false, true]);
    }

    #[test]
    fn the_time_slides() {
        assert_eq!(grants(2, &[0, 8, 10, 12, 18]), [true, true, true, false, true]);
    }
}
