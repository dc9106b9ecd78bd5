//! Measures a pool's queue now and then, for the metrics and for the [`Pulse`] of its consumer.

use std::sync::Arc;
use std::time::Duration;

use super::event::{Event, Observer};
use super::pulse::Pulse;
use crate::supervise::{Shutdown, TaskError};
use crate::transport::Transport;

/// How soon again while there is nothing to measure: the queue is not declared yet, or the broker is away.
const SOON: Duration = Duration::from_secs(1);

pub(super) struct QueueProbe<T> {
    pub(super) pool: Arc<str>,
    pub(super) transport: T,
    pub(super) queue: String,
    pub(super) every: Duration,
    pub(super) pulse: Arc<Pulse>,
    pub(super) observer: Arc<dyn Observer>,
}

impl<T: Transport> QueueProbe<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        loop {
            let pause = tokio::select! {
                () = shutdown.draining() => return Ok(()),
                found = self.measure() => if found { self.every } else { SOON },
            };
            tokio::select! {
                () = shutdown.draining() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether there was a queue to measure. A broker that is away is the intake's business.
    async fn measure(&self) -> bool {
        match self.transport.queue_depth(&self.queue).await {
            Ok(Some(depth)) => {
                self.pulse.look(depth.messages);
                self.observer.on(&Event::QueueMeasured {
                    pool: self.pool.clone(),
                    depth,
                });
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::debug!(queue = self.queue, "failed to {error}");
                false
            }
        }
    }
}
