//! Why a pool takes no jobs for now: an operator has paused it, or a job that may be killing workers runs alone.
//!
//! A held pool's intake ends its subscription in good order and subscribes again when it is free; jobs in hand that were
//! not started go back to the queue as they came; running commands go on.
//!
//! A job *alone* is one that was redelivered so often that it may be the reason. It takes the claim, of which there is
//! one a worker, waits until no other command runs, in any pool, and holds all pools until it has ended. So when it
//! kills the worker, it takes no neighbour's attempt with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Commands that may run at once in one worker, over all pools: far more than any machine has processes for.
const TURNS: u32 = 1 << 20;

/// What holds a worker's pools. Clones are handles on the same.
#[derive(Clone)]
pub struct Holds {
    reasons: Arc<watch::Sender<Reasons>>,
    turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Reasons {
    paused: BTreeSet<String>,
    alone: bool,
}

/// Why a pool takes no jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// An operator wants it so.
    Paused,
    /// A job runs alone.
    Alone,
}

impl HoldReason {
    /// The reason in words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Alone => "a job that was lost again and again runs alone",
        }
    }
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            reasons: Arc::default(),
            turns: Arc::new(Semaphore::new(usize::try_from(TURNS).unwrap_or(usize::MAX))),
        }
    }
}

impl Holds {
    /// Pauses a pool, or ends its pause.
    pub fn pause(&self, pool: &str, paused: bool) {
        self.reasons.send_if_modified(|reasons| {
            if paused {
                reasons.paused.insert(pool.to_owned())
            } else {
                reasons.paused.remove(pool)
            }
        });
    }

    /// Why a pool takes no jobs now, if it does not.
    #[must_use]
    pub fn reason(&self, pool: &str) -> Option<HoldReason> {
        self.reasons.borrow().of(pool)
    }

    /// Waits until a pool takes no jobs, and says why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn held(&self, pool: &str) -> HoldReason {
        let mut reasons = self.reasons.subscribe();
        loop {
            let reason = reasons.borrow_and_update().of(pool);
            if let Some(reason) = reason {
                return reason;
            }
            // Its sender is ours.
            let _ = reasons.changed().await;
        }
    }

    /// Waits until a pool takes jobs.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn free(&self, pool: &str) {
        let mut reasons = self.reasons.subscribe();
        // Its sender is ours.
        let _ = reasons.wait_for(|reasons| reasons.of(pool).is_none()).await;
    }

    /// Waits for the right to run a command beside others.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn turn(&self) -> OwnedSemaphorePermit {
        let turn = self.turns.clone().acquire_owned().await;
        turn.expect("nobody closes this semaphore")
    }

    /// Claims the worker for one job, unless another has it.
    pub(super) fn claim(&self) -> Option<Claim> {
        let claimed = self.reasons.send_if_modified(|reasons| {
            let was_free = !reasons.alone;
            reasons.alone = true;
            was_free
        });
        claimed.then(|| Claim { holds: self.clone() })
    }
}

impl Reasons {
    fn of(&self, pool: &str) -> Option<HoldReason> {
        match self {
            Self { alone: true, .. } => Some(HoldReason::Alone),
            Self { paused, .. } if paused.contains(pool) => Some(HoldReason::Paused),
            Self { .. } => None,
        }
    }
}

/// The claim on a whole worker; dropped, all pools go on.
pub(super) struct Claim {
    holds: Holds,
}

impl Claim {
    /// Waits until no other command runs. None starts as long as what is returned is held.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn alone(&self) -> OwnedSemaphorePermit {
        let turns = self.holds.turns.clone().acquire_many_owned(TURNS).await;
        turns.expect("nobody closes this semaphore")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.holds.reasons.send_modify(|reasons| reasons.alone = false);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_pause_holds_its_pool_and_no_other() {
        let holds = Holds::default();
        holds.pause("a", true);
        assert_eq!(holds.held("a").now_or_never(), Some(HoldReason::Paused));
        assert_eq!((holds.reason("b"), holds.held("b").now_or_never()), (None, None));
        assert_eq!(holds.free("a").now_or_never(), None);
        holds.pause("a", false);
        assert_eq!((holds.reason("a"), holds.free("a").now_or_never()), (None, Some(())));
    }

    #[tokio::test]
    async fn who_has_the_claim_waits_for_those_that_run_and_holds_off_all_others() {
        let holds = Holds::default();
        let running = holds.turn().await;
        let claim = holds.claim().expect("nobody else has it");
        assert!(holds.claim().is_none(), "one a worker");
        assert_eq!(holds.reason("any"), Some(HoldReason::Alone));
        assert!(claim.alone().now_or_never().is_none(), "one still runs");
        drop(running);
        let alone = claim.alone().await;
        assert!(holds.turn().now_or_never().is_none(), "none starts beside it");
        drop((alone, claim));
        assert!(holds.turn().now_or_never().is_some() && holds.reason("any").is_none());
        assert!(holds.claim().is_some());
    }
}
