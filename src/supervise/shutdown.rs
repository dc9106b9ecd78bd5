//! The two signals to stop.
//!
//! *Drain*: take no more, finish what runs, end. *Abort*: end now, give back what is not finished.
//! Both are given once and stay given; asking whether they were costs nothing.
//!
//! Invariant: whoever sees the abort sees the drain too, so a loop that only obeys the drain also
//! ends.

use tokio_util::sync::CancellationToken;

/// Carries the drain and the abort signal to a loop. Clones share the signals.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Shutdown {
    /// Makes a pair of signals that were not given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks to take no more, finish and end.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Asks to end now. Implies the drain.
    pub fn abort(&self) {
        // In this order, or a loop could see an abort without a drain.
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Waits for the drain (or the abort, which implies it).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the signal stays given.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Waits for the abort.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the signal stays given.
    pub async fn aborting(&self) {
        self.abort.cancelled().await;
    }

    /// Says whether the drain (or the abort) was given.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Says whether the abort was given.
    pub fn is_aborting(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Makes a pair that gets the signals of this one, and can be given its own without touching
    /// this one.
    pub fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            abort: self.abort.child_token(),
        }
    }

    /// Makes a token that is cancelled by the abort, for what knows only one way to stop.
    /// Cancelling the token aborts nothing else.
    pub fn abort_token(&self) -> CancellationToken {
        self.abort.child_token()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_drain_is_no_abort() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_draining());
        assert_eq!(shutdown.draining().now_or_never(), None);

        shutdown.clone().drain();
        assert!(shutdown.is_draining());
        assert_eq!(shutdown.draining().now_or_never(), Some(()));
        assert!(!shutdown.is_aborting());
        assert_eq!(shutdown.aborting().now_or_never(), None);
    }

    #[tokio::test]
    async fn an_abort_implies_the_drain() {
        let shutdown = Shutdown::new();
        let token = shutdown.abort_token();
        shutdown.abort();
        assert!(shutdown.is_draining() && shutdown.is_aborting() && token.is_cancelled());
        assert_eq!(shutdown.draining().now_or_never(), Some(()));
        assert_eq!(shutdown.aborting().now_or_never(), Some(()));
    }

    #[test]
    fn a_child_gets_the_signals_and_gives_none_back() {
        let parent = Shutdown::new();
        let (spared, stopped) = (parent.child(), parent.child());
        parent.abort_token().cancel();
        stopped.abort();
        assert!(!parent.is_draining() && !parent.is_aborting() && !spared.is_draining());

        parent.drain();
        assert!(spared.is_draining() && !spared.is_aborting());
        parent.abort();
        assert!(spared.is_aborting());
        assert!(parent.child().is_aborting(), "a late child hears of it too");
    }
}
