//! Sees to it that a message is confirmed: publishes it again until it is, under the same `message_id`.
//!
//! While the broker takes nothing (the circuit is open), messages wait together instead of each trying for itself, and all
//! go on when the one that tries is confirmed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::flow::breaker::{Breaker, Position};
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::supervise::Shutdown;
use crate::transport::topology::{Declare, Topology};
use crate::transport::{Publication, PublishError, Transport, TransportError};

/// The first wait after a publish that failed.
const RETRY_INITIAL: Duration = Duration::from_millis(100);
/// How often a message that is not confirmed is mentioned: a broker that is away for an hour must not fill the log.
const REMIND: Duration = Duration::from_secs(60);
/// How often the broker may say no to a reply before it is dropped. While the broker is away, nobody says no.
const REPLY_REFUSALS: u32 = 3;

/// How a reply fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replied {
    /// The broker has it.
    Confirmed,
    /// Its address is gone, full or forbidden.
    Dropped,
    /// The worker stops; the message may or may not have arrived.
    GaveUp,
}

pub(super) struct Outbox<T> {
    pub(super) transport: T,
    pub(super) pool: Arc<str>,
    /// What our own messages need to find, made again when somebody has deleted it.
    pub(super) topology: Arc<Topology>,
    pub(super) declare: Declare,
    /// Around every publish, of all pools.
    pub(super) circuit: Arc<Breaker>,
}

impl<T: Transport> Outbox<T> {
    /// Publishes until confirmed, however long the broker is away or an exchange is missing; false only when told to
    /// abort.
    ///
    /// # Cancel safety
    /// Not cancel safe: a publish that is dropped has an unknown outcome.
    pub(super) async fn deliver(&self, publication: &Publication, stop: &Shutdown) -> bool {
        self.deliver_noting(publication, stop, &Notify::new()).await
    }

    /// The same, and notifies `trouble` when the first attempt fails, or is not made for now.
    ///
    /// # Cancel safety
    /// Not cancel safe, as above.
    pub(super) async fn deliver_noting(&self, publication: &Publication, stop: &Shutdown, trouble: &Notify) -> bool {
        let mut wait = self.wait();
        loop {
            let Some(published) = self.attempt(publication, stop, trouble).await else {
                return false;
            };
            let Err(error) = published else { return true };
            trouble.notify_one();
            self.repair(&error).await;
            if !wait.after(&error, stop).await {
                return false;
            }
        }
    }

    /// Publishes a reply until it is confirmed, or clear that its address takes none: a stranger's queue must not hold
    /// a job up. Notifies `trouble` when the first attempt fails and another may not.
    ///
    /// # Cancel safety
    /// Not cancel safe, as above.
    pub(super) async fn reply(&self, publication: &Publication, stop: &Shutdown, trouble: &Notify) -> Replied {
        let mut wait = self.wait();
        let mut refusals = 0;
        loop {
            let Some(published) = self.attempt(publication, stop, trouble).await else {
                return Replied::GaveUp;
            };
            let error = match published {
                Ok(()) => return Replied::Confirmed,
                Err(PublishError::Unroutable { .. }) => return Replied::Dropped,
                Err(error) => error,
            };
            trouble.notify_one();
            refusals += u32::from(is_answer(&error));
            if refusals >= REPLY_REFUSALS {
                return Replied::Dropped;
            }
            if !wait.after(&error, stop).await {
                return Replied::GaveUp;
            }
        }
    }

    /// Publishes once; whether it is confirmed before the worker has to stop at once.
    ///
    /// # Cancel safety
    /// Not cancel safe, as above.
    pub(super) async fn try_deliver(&self, publication: &Publication, stop: &Shutdown) -> bool {
        tokio::select! {
            () = stop.aborting() => false,
            published = self.transport.publish(publication) => published.is_ok(),
        }
    }

    /// Publishes once, when the circuit lets it; `None` when told to abort.
    async fn attempt(
        &self,
        publication: &Publication,
        stop: &Shutdown,
        trouble: &Notify,
    ) -> Option<Result<(), PublishError>> {
        if stop.is_aborting() {
            return None;
        }
        tokio::select! {
            biased; // on the embedded broker it is done at once, and nothing is waited for
            published = self.publish(publication, trouble) => Some(published),
            () = stop.aborting() => None,
        }
    }

    async fn publish(&self, publication: &Publication, trouble: &Notify) -> Result<(), PublishError> {
        let pass = match self.circuit.try_pass() {
            Some(pass) => pass,
            None => {
                trouble.notify_one();
                self.circuit.pass().await
            }
        };
        let published = self.transport.publish(publication).await;
        match &published {
            Err(error) if !is_answer(error) => pass.failed(),
            _ => pass.succeeded(),
        }
        published
    }

    fn wait(&self) -> Wait<'_> {
        Wait {
            pool: &self.pool,
            circuit: &self.circuit,
            backoff: Backoff::new(RETRY_INITIAL, RECONNECT_MAX),
            told: None,
        }
    }

    /// Declares the topology again when a message did not find what was declared once.
    async fn repair(&self, error: &PublishError) {
        let is_missing = matches!(
            error,
            PublishError::Unroutable { .. } | PublishError::Transport(TransportError::Refused { .. })
        );
        if is_missing
            && self.declare == Declare::Active
            && let Err(error) = self.transport.declare(&self.topology, Declare::Active).await
        {
            tracing::debug!(pool = &*self.pool, "failed to {error}");
        }
    }
}

/// Whether the broker has answered, and said no.
fn is_answer(error: &PublishError) -> bool {
    match error {
        PublishError::Unroutable { .. } | PublishError::Refused { .. } => true,
        PublishError::Transport(error) => error.is_refusal(),
        PublishError::Unknown { .. } => false,
    }
}

/// The pauses of one message, and what is said in them.
struct Wait<'a> {
    pool: &'a str,
    circuit: &'a Breaker,
    backoff: Backoff,
    told: Option<Instant>,
}

impl Wait<'_> {
    /// Waits before the next try; false when told to abort.
    async fn after(&mut self, error: &PublishError, stop: &Shutdown) -> bool {
        if self.told.is_none_or(|told| told.elapsed() >= REMIND) {
            self.told = Some(Instant::now());
            tracing::warn!(
                pool = self.pool,
                "failed to {error}; trying again until it is confirmed"
            );
        }
        if self.circuit.position() != Position::Closed {
            return true; // to wait with all others
        }
        tokio::select! {
            () = stop.aborting() => false,
            () = tokio::time::sleep(self.backoff.next_delay()) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::TransportError;

    /// Who may not log in for now, as while a password is changed, has not been told anything about the message.
    #[test]
    fn only_an_answer_about_the_message_is_a_refusal() {
        let text = || "x".to_owned();
        let (host, reason, operation) = (text(), text(), text());
        let login = TransportError::LoginRefused { host, reason };
        assert!(!is_answer(&PublishError::Transport(login)));
        let reason = text();
        let refused = TransportError::Refused { operation, reason };
        assert!(is_answer(&PublishError::Transport(refused)));
    }
}
