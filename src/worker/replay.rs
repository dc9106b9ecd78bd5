//! Publishes what workers that are gone have left in the outbox on disk.
//!
//! The broker hands their jobs out again, marked as redelivered. From before the first is consumed, each such message is
//! in hand here ([`ledger`](super::ledger)): its delivery waits until its result is confirmed, and is only acked then.
//!
//! Obeys the drain: what is not confirmed by then stays on disk, for the next worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;

use super::event::{Event, Observer};
use super::ledger::{Held, Ledgers};
use super::outbox::Outbox;
use super::parcel::Parcel;
use super::post::Post;
use super::spool::{Entry, Left, Spool};
use crate::flow::breaker::Breaker;
use crate::supervise::{Shutdown, TaskError};
use crate::transport::Transport;
use crate::transport::topology::{Declare, Names, Topology};

/// Parcels under way at once: the most of them that are in memory.
const AT_ONCE: usize = 16;

pub(super) struct Replay<T> {
    pub(super) transport: T,
    pub(super) names: Names,
    pub(super) declare: Declare,
    pub(super) spool: Spool,
    pub(super) waiting: Waiting,
    pub(super) circuit: Arc<Breaker>,
    pub(super) observer: Arc<dyn Observer>,
}

/// The parcels to publish, each with the place of the message it answers.
pub(super) struct Waiting(Mutex<VecDeque<(Entry, Held)>>);

impl Waiting {
    pub(super) fn new(spool: &Spool, ledgers: &Ledgers) -> Self {
        let hold = |left: &Left| (left.entry, ledgers.of(&left.pool).expect(left.key.into()));
        Self(Mutex::new(spool.left().iter().map(hold).collect()))
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<(Entry, Held)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Transport> Replay<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        let results = self.waiting.queue().len();
        if results == 0 {
            return Ok(());
        }
        tracing::info!(results, "publishing results that an earlier worker left in the outbox");
        // Taken one by one: after a panic, a new run goes on with the rest.
        let waiting = std::iter::from_fn(|| self.waiting.queue().pop_front());
        let all = futures_util::stream::iter(waiting)
            .for_each_concurrent(AT_ONCE, |(entry, held)| self.replay(entry, held, &shutdown));
        tokio::select! {
            biased;
            () = shutdown.draining() => {}
            () = all => tracing::info!(results, "published what an earlier worker left in the outbox"),
        }
        Ok(())
    }

    /// Sends one parcel to its end and lets it go; also one that cannot be read, whose job comes again.
    async fn replay(&self, entry: Entry, held: Held, shutdown: &Shutdown) {
        if let Some(parcel) = self.spool.read(entry).await {
            let Some(receipt) = self.post(&parcel).send(&parcel, shutdown).await else {
                return;
            };
            if let Some(result) = parcel.result() {
                self.observer.on(&Event::finished(
                    parcel.pool.as_str().into(),
                    &result,
                    parcel.trace_id(),
                ));
            }
            if let Err(error) = held.ack().await {
                tracing::debug!(job.id = %parcel.job_id, "failed to {error}"); // it has not come again, or was lost again
            }
            receipt.close().await;
        }
        self.spool.confirm(entry).await;
    }

    fn post(&self, parcel: &Parcel) -> Post<T> {
        Post {
            outbox: Outbox {
                transport: self.transport.clone(),
                pool: parcel.pool.as_str().into(),
                // Not its pool's queue: that is for workers that serve the pool.
                topology: Arc::new(Topology::new(&self.names, [])),
                declare: self.declare,
                circuit: self.circuit.clone(),
            },
            spool: None, // it is on disk
            observer: self.observer.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
