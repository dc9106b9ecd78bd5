//! Sees to it that a message is confirmed: publishes it again until it is, under the same `message_id`.

use std::sync::Arc;
use std::time::Duration;

use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::supervise::Shutdown;
use crate::transport::{Publication, PublishError, Transport};

/// The first wait after a publish that failed.
const RETRY_INITIAL: Duration = Duration::from_millis(100);

/// How a message fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// The broker has it.
    Confirmed,
    /// Nobody takes it, and nobody will.
    Unroutable,
    /// The worker stops; the message may or may not have arrived.
    GaveUp,
}

pub(super) struct Outbox<T> {
    transport: T,
    pool: Arc<str>,
}

impl<T: Transport> Outbox<T> {
    pub(super) fn new(transport: T, pool: Arc<str>) -> Self {
        Self { transport, pool }
    }

    /// Publishes until confirmed, however long the broker is away; gives up only when told to abort.
    ///
    /// # Cancel safety
    /// Not cancel safe: a publish that is dropped has an unknown outcome.
    pub(super) async fn deliver(&self, publication: &Publication, stop: &Shutdown) -> Delivered {
        let mut backoff = Backoff::new(RETRY_INITIAL, RECONNECT_MAX);
        let mut reported = false;
        loop {
            let published = tokio::select! {
                () = stop.aborting() => return Delivered::GaveUp,
                published = self.transport.publish(publication) => published,
            };
            let error = match published {
                Ok(()) => return Delivered::Confirmed,
                Err(PublishError::Unroutable { .. }) => return Delivered::Unroutable,
                Err(error) => error,
            };
            if !reported {
                // Once a message: a broker that is away for an hour must not fill the log.
                tracing::warn!(pool = &*self.pool, "failed to {error}; trying until it is confirmed");
                reported = true;
            }
            tokio::select! {
                () = stop.aborting() => return Delivered::GaveUp,
                () = tokio::time::sleep(backoff.next_delay()) => {}
            }
        }
    }

    /// Publishes once; whether it is confirmed before the worker has to stop at once.
    ///
    /// # Cancel safety
    /// Not cancel safe: a publish that is dropped has an unknown outcome.
    pub(super) async fn try_deliver(&self, publication: &Publication, stop: &Shutdown) -> bool {
        tokio::select! {
            () = stop.aborting() => false,
            published = self.transport.publish(publication) => published.is_ok(),
        }
    }
}
