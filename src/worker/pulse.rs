//! Tells a consumer that is connected and gets nothing from one that has nothing to get.
//!
//! A broker can keep a connection alive and deliver nothing on it (a queue whose leader moved, a consumer that was
//! forgotten). Nothing fails then, so it is told by what should happen: the queue has messages, the pool has room for
//! them, and for some time ([`Watch`]) none came. The session is rebuilt then.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::flow::{Lock, LockAccount};

/// Beats for each delivery and each end of a job.
pub(super) static LOCK: LockAccount = LockAccount::new("pulse");

/// How a pool's queue and its consumer are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// How often the queue is measured.
    pub every: Duration,
    /// How long it may have messages, and the pool room for them, without a delivery.
    pub stall: Duration,
}

impl Default for Watch {
    /// The queue: below a usual scrape interval, far above what a broker would notice. The consumer: a well broker needs
    /// milliseconds, and a rebuilt session costs nothing but the moment it takes.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

/// A pool's consumer, by what comes of it.
pub(super) struct Pulse {
    /// Deliveries that fit in hand.
    prefetch: usize,
    stall: Duration,
    in_hand: AtomicUsize,
    /// Since when nothing came, though something could have; `None` while there is no consumer.
    quiet_since: Lock<Option<Instant>>,
    stalled: Notify,
}

impl Pulse {
    pub(super) fn new(prefetch: u16, stall: Duration) -> Self {
        Self {
            prefetch: prefetch.into(),
            stall,
            in_hand: AtomicUsize::new(0),
            quiet_since: Lock::new(&LOCK, None),
            stalled: Notify::new(),
        }
    }

    /// How long it may get nothing.
    pub(super) fn stall(&self) -> Duration {
        self.stall
    }

    /// There is a consumer, or a delivery came, or one was settled and made room for another.
    pub(super) fn beat(&self) {
        *self.quiet_since.lock() = Some(Instant::now());
    }

    /// There is no consumer.
    pub(super) fn stop(&self) {
        *self.quiet_since.lock() = None;
    }

    /// One more delivery is in hand, until what is returned is dropped.
    pub(super) fn take(&self) -> InHand<'_> {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(self)
    }

    /// The queue has so many messages ready: has the session rebuilt if they should have come.
    pub(super) fn look(&self, ready: u32) {
        let has_room = self.in_hand.load(Ordering::Relaxed) < self.prefetch;
        let quiet_since = *self.quiet_since.lock();
        let is_quiet = quiet_since.is_some_and(|since| since.elapsed() >= self.stall);
        if ready > 0 && has_room && is_quiet {
            self.stalled.notify_one();
        }
    }

    /// Waits until the session is to be rebuilt.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn stalled(&self) {
        self.stalled.notified().await;
    }
}

/// A delivery in hand.
pub(super) struct InHand<'a>(&'a Pulse);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.in_hand.fetch_sub(1, Ordering::Relaxed);
        let mut quiet_since = self.0.quiet_since.lock();
        if quiet_since.is_some() {
            *quiet_since = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    /// Whether a consumer with room for one delivery is taken for stalled, after `quiet`, with so many messages ready.
    async fn is_stalled(quiet: Duration, ready: u32, prepare: impl FnOnce(&Pulse)) -> bool {
        let pulse = Pulse::new(1, STALL);
        pulse.beat();
        prepare(&pulse);
        tokio::time::advance(quiet).await;
        pulse.look(ready);
        pulse.stalled().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_consumer_that_gets_nothing_of_what_there_is_and_has_room_is_stalled() {
        assert!(is_stalled(STALL, 1, |_| {}).await);
        assert!(!is_stalled(STALL, 0, |_| {}).await, "there is nothing to get");
        assert!(!is_stalled(STALL / 2, 1, |_| {}).await, "it may yet come");
        assert!(!is_stalled(STALL, 1, Pulse::stop).await, "it is being rebuilt already");
        let busy = |pulse: &Pulse| std::mem::forget(pulse.take());
        assert!(!is_stalled(STALL, 1, busy).await, "its hands are full");
        let was_busy = |pulse: &Pulse| drop(pulse.take());
        assert!(is_stalled(STALL, 1, was_busy).await);
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_was_just_made_takes_a_while_to_be_filled() {
        let pulse = Pulse::new(1, STALL);
        pulse.beat();
        let long_job = pulse.take();
        tokio::time::advance(STALL * 10).await;
        drop(long_job);
        pulse.look(5);
        assert!(pulse.stalled().now_or_never().is_none());
    }
}
