//! Why a pool takes no jobs for now: an operator has paused it, or a job that may be killing workers runs alone.
//!
//! A held pool's intake ends its subscription in good order and subscribes again when it is free; then jobs in hand that
//! were not started go back to the queue as they came, and running commands go on. In this order: a job that goes back
//! while there is a consumer would come again at once, and a quorum queue loses sight of what it hands to a consumer that is
//! just being cancelled, and counts it as redelivered.
//!
//! A job *alone* is one that was redelivered so often that it may be the reason. It takes the claim, of which there is
//! one a worker, waits until the worker has nothing else of the broker's, running or not, and holds all pools until it
//! has ended. So when it kills the worker, it takes no neighbour's attempt with it.
//!
//! How long it waits is [`Patience`], and weighs three things. A worker that waits leaves slots empty, so no wait may be as
//! long as a command may run, which is a day. A job must not wait for ever, though it stands beside commands that always run
//! longer than the wait: so each wait is twice as long as the one before, and after the last the job runs beside others, at
//! the cost of one attempt of theirs if it does kill the worker. And another worker may be empty already: so between two
//! waits the job goes back to its queue, for any worker to take. The waits begin anew with each attempt, of which
//! `delivery_limit` bounds the number.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a worker takes no jobs for the sake of one that is to run alone.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The first time; each time after it twice as long as before.
    pub first: Duration,
    /// So many times; then the job runs beside others.
    pub times: u32,
    /// How long the job is away between two times.
    pub between: Duration,
}

/// 20 s, enough for most commands, to 5 min 20 s: in all, a worker waits for 10 min 20 s.
impl Default for Patience {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(20),
            times: 5,
            between: Duration::from_secs(20),
        }
    }
}

impl Patience {
    /// How long a job that was put off so often may hold the worker; `None` when it may not any more.
    fn after(self, put_offs: u32) -> Option<Duration> {
        let doubled = 2_u32.saturating_pow(put_offs);
        (put_offs < self.times).then(|| self.first.saturating_mul(doubled))
    }
}

/// What holds a worker's pools. Clones are handles on the same.
#[derive(Clone, Default)]
pub struct Holds {
    patience: Patience,
    reasons: Arc<watch::Sender<Reasons>>,
    /// Deliveries that the worker has, and consumers that may get more.
    present: Arc<watch::Sender<usize>>,
    /// Pools that have a consumer.
    consuming: Arc<watch::Sender<BTreeSet<Arc<str>>>>,
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

impl Holds {
    /// Nothing is held. A job that is to run alone is waited for so long.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            ..Self::default()
        }
    }

    /// How long a job that was put off so often may wait until it is alone; `None` when it has to run as others do.
    pub(super) fn patience(&self, put_offs: u32) -> Option<Duration> {
        self.patience.after(put_offs)
    }

    /// How long a job is away that could not be alone.
    pub(super) fn pause_between(&self) -> Duration {
        self.patience.between
    }

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

    /// Waits until a pool takes no jobs, and has no consumer any more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn stopped(&self, pool: &str) {
        self.held(pool).await;
        let mut consuming = self.consuming.subscribe();
        // Its sender is ours.
        let _ = consuming.wait_for(|pools| !pools.contains(pool)).await;
    }

    /// Tells that a pool has a consumer, until what is returned is dropped.
    pub(super) fn consume(&self, pool: &Arc<str>) -> Consuming {
        self.consuming.send_modify(|pools| {
            pools.insert(pool.clone());
        });
        Consuming {
            consuming: self.consuming.clone(),
            pool: pool.clone(),
        }
    }

    /// Counts a delivery that the worker has, or a consumer, until what is returned is dropped.
    pub(super) fn enter(&self) -> Present {
        self.present.send_modify(|count| *count += 1);
        Present(self.present.clone())
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

/// A pool's consumer.
pub(super) struct Consuming {
    consuming: Arc<watch::Sender<BTreeSet<Arc<str>>>>,
    pool: Arc<str>,
}

impl Drop for Consuming {
    fn drop(&mut self) {
        self.consuming.send_modify(|pools| {
            pools.remove(&self.pool);
        });
    }
}

/// A delivery that the worker has, or a consumer that may get one.
pub(super) struct Present(Arc<watch::Sender<usize>>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The claim on a whole worker; dropped, all pools go on.
pub(super) struct Claim {
    holds: Holds,
}

impl Claim {
    /// Waits until the worker has nothing but the job that has the claim; as all pools are held, it stays so. False if
    /// that takes too long: a long command, or a result that nobody takes, must not keep the worker from all else.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn alone(&self, patience: Duration) -> bool {
        let mut present = self.holds.present.subscribe();
        let alone = present.wait_for(|count| *count <= 1);
        tokio::time::timeout(patience, alone).await.is_ok()
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
    async fn a_pool_has_stopped_when_it_is_held_and_its_consumer_is_gone() {
        let holds = Holds::default();
        let consuming = holds.consume(&"a".into());
        assert!(holds.stopped("a").now_or_never().is_none());
        holds.pause("a", true);
        assert!(holds.stopped("a").now_or_never().is_none(), "it still consumes");
        drop(consuming);
        assert!(holds.stopped("a").now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_the_claim_waits_until_nothing_else_is_there_and_holds_off_all_others() {
        let holds = Holds::default();
        let (own, other) = (holds.enter(), holds.enter());
        let claim = holds.claim().expect("nobody else has it");
        assert!(holds.claim().is_none(), "one a worker");
        assert_eq!(holds.reason("any"), Some(HoldReason::Alone));
        let patience = Duration::from_secs(5);
        let begun = tokio::time::Instant::now();
        assert!(claim.alone(patience).now_or_never().is_none(), "another is still there");
        assert!(!claim.alone(patience).await, "it does not wait for ever");
        assert_eq!(begun.elapsed(), patience);
        drop(other);
        assert_eq!(claim.alone(patience).now_or_never(), Some(true));
        drop((claim, own));
        assert!(holds.reason("any").is_none() && holds.claim().is_some());
    }

    #[test]
    fn each_wait_is_twice_as_long_as_the_one_before_and_there_is_a_last_one() {
        let waits: Vec<u64> = (0..)
            .map_while(|put_offs| Some(Patience::default().after(put_offs)?.as_secs()))
            .collect();
        assert_eq!(waits, [20, 40, 80, 160, 320]);
        assert_eq!(Patience::default().after(u32::MAX), None);
    }
}
