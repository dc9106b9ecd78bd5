//! Owns a pool's running jobs: starts a task for each delivery, and on a drain waits for them, kills the rest.
//!
//! It outlives any number of intakes and their sessions. At most `prefetch` jobs are in hand, also while jobs of a
//! session that was lost are still ending.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::Ending;
use super::pipeline::{Pipeline, Taken};
use crate::config::Pool;
use crate::flow::channel::Receiver;
use crate::supervise::{Outcome, Shutdown, TaskAccounts, TaskEnd, TaskError, TaskGroup};
use crate::transport::Transport;

/// How long jobs may take to end once they are told to end now: killing, reaping and giving back. Shorter than the
/// time after which the supervisor cuts the dispatcher off.
const ABORT_GRACE: Duration = Duration::from_secs(3);

pub(super) struct Dispatcher<T> {
    pub(super) pool: Arc<Pool>,
    /// Held for as long as a dispatcher runs; one that is restarted takes it over.
    pub(super) deliveries: Mutex<Receiver<Taken>>,
    pub(super) pipeline: Arc<Pipeline<T>>,
    pub(super) tasks: TaskAccounts,
    pub(super) ending: Ending,
}

impl<T: Transport> Dispatcher<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        let mut deliveries = self.deliveries.lock().await;
        let places = Arc::new(Semaphore::new(usize::from(self.pool.prefetch)));
        let mut jobs = TaskGroup::new(self.tasks.clone());
        // Jobs drain with us, but are aborted when their grace is over: their signals are their own.
        let stop = shutdown.child();
        let mut grace = pin!(self.grace(&shutdown));
        let mut draining = pin!(shutdown.draining());
        loop {
            let next = next(&places, &mut deliveries);
            tokio::select! {
                () = &mut draining => break,
                () = &mut grace, if !stop.is_aborting() => stop.abort(),
                Some(end) = jobs.next_end(), if !jobs.is_empty() => report(&end),
                next = next => match next {
                    Some((place, taken)) => self.start(&mut jobs, place, taken, &stop),
                    None => break, // every intake is gone
                },
            }
        }
        self.finish(&mut deliveries, &mut jobs, &stop, grace).await
    }

    /// Ends when the grace is over. It begins for all pools at once, though the tree stops one after the other.
    async fn grace(&self, shutdown: &Shutdown) {
        tokio::select! {
            () = self.ending.draining() => {}
            () = shutdown.draining() => {}
        }
        tokio::time::sleep(self.pool.stop_grace).await;
    }

    fn start(&self, jobs: &mut TaskGroup, place: OwnedSemaphorePermit, taken: Taken, stop: &Shutdown) {
        let message_id = taken.delivery.envelope.properties.message_id.clone();
        let pipeline = self.pipeline.clone();
        let stop = stop.clone();
        jobs.spawn("job", message_id.unwrap_or_default(), async move {
            pipeline.handle(taken, &stop).await;
            drop(place);
            Ok(())
        });
    }

    /// Gives back what waits, waits for the jobs in hand, then has them killed and given back.
    async fn finish(
        &self,
        deliveries: &mut Receiver<Taken>,
        jobs: &mut TaskGroup,
        stop: &Shutdown,
        grace: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), TaskError> {
        let in_good_order = async {
            while let Ok(taken) = deliveries.try_recv() {
                self.pipeline.hand_back(taken.delivery, stop).await;
            }
            while let Some(end) = jobs.next_end().await {
                report(&end);
            }
        };
        tokio::select! {
            () = in_good_order => return Ok(()),
            () = grace, if !stop.is_aborting() => stop.abort(),
            () = stop.aborting() => {}
        }
        self.ending.leave(jobs.stop(ABORT_GRACE).await);
        Ok(())
    }
}

/// A place in hand, then a delivery: no delivery is taken that could not be handled.
///
/// # Cancel safety
/// Cancel safe: receiving is the last wait.
async fn next(places: &Arc<Semaphore>, deliveries: &mut Receiver<Taken>) -> Option<(OwnedSemaphorePermit, Taken)> {
    let place = places.clone().acquire_owned().await.ok()?;
    let delivery = deliveries.recv().await?;
    Some((place, delivery))
}

/// A job's failure is a result; what gets here is a bug. Its delivery went back when its task was dropped.
fn report(end: &TaskEnd) {
    if end.outcome != Outcome::Completed {
        let error = end.error.as_deref().unwrap_or("no reason given");
        tracing::error!(
            message_id = end.detail,
            "a job's task {}: {error}; its job was given back",
            end.outcome.as_str()
        );
    }
}
