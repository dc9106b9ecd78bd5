//! Keeps a pool's consumer alive and hands its deliveries on.
//!
//! The end of a subscription means "subscribe again". It obeys the drain: it takes no more and gives back what it had
//! not handed on; deliveries handed on keep their session open by themselves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Ending;
use super::event::{Event, Observer};
use super::pipeline::Pipeline;
use crate::config::Pool;
use crate::flow::channel::Sender;
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::supervise::{Shutdown, TaskError};
use crate::transport::topology::Topology;
use crate::transport::{Delivery, Subscribe, Subscription, Transport, TransportError};

/// The first wait after a failed or lost subscription.
const RECONNECT_INITIAL: Duration = Duration::from_millis(200);
/// A consumer that lived this long was well: the next loss begins with a short wait again.
const WELL: Duration = Duration::from_secs(5);
/// How long giving back in good order may take; a broker that does not answer must not hold up the stop.
const GIVE_BACK_GRACE: Duration = Duration::from_secs(3);
/// What settling may need on top of the longest run and its grace before the broker takes a delivery away.
const SETTLE_MARGIN: Duration = Duration::from_secs(300);

pub(super) struct Intake<T> {
    pub(super) pool: Arc<Pool>,
    pub(super) transport: T,
    pub(super) queue: String,
    pub(super) topology: Arc<Topology>,
    pub(super) deliveries: Sender<Delivery>,
    /// Knows how to give back what was not handed on.
    pub(super) pipeline: Arc<Pipeline<T>>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) ending: Ending,
}

impl<T: Transport> Intake<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        // All pools stop taking jobs at once; the tree tells one after the other, each when the last has finished.
        let stop = shutdown.child();
        let told_with_all = async {
            self.ending.draining().await;
            stop.drain();
            std::future::pending().await
        };
        tokio::select! {
            ended = self.take(&stop) => ended,
            never = told_with_all => never,
        }
    }

    async fn take(&self, shutdown: &Shutdown) -> Result<(), TaskError> {
        let request = self.request();
        let mut backoff = Backoff::new(RECONNECT_INITIAL, RECONNECT_MAX);
        let mut was_live = false;
        while !shutdown.is_draining() {
            let subscribed = tokio::select! {
                () = shutdown.draining() => break,
                subscribed = self.transport.subscribe(&request) => subscribed,
            };
            let reason = match subscribed {
                Ok(subscription) => {
                    let since = Instant::now();
                    was_live = true;
                    self.consume(subscription, shutdown).await;
                    if since.elapsed() >= WELL {
                        backoff.reset();
                    }
                    "the consumer has ended".to_owned()
                }
                Err(error) if was_live || error.is_transient() => format!("failed to {error}"),
                Err(error) => return self.give_up(error),
            };
            self.wait(reason, &mut backoff, shutdown).await;
        }
        Ok(())
    }

    fn request(&self) -> Subscribe {
        Subscribe {
            queue: self.queue.clone(),
            prefetch: self.pool.prefetch,
            consumer_timeout: Some(self.pool.max_timeout + self.pool.kill_grace + SETTLE_MARGIN),
            topology: self.topology.clone(),
            declare: self.pool.declare,
        }
    }

    /// Hands deliveries on until the subscription ends or the worker drains.
    async fn consume(&self, mut subscription: T::Subscription, shutdown: &Shutdown) {
        self.tell(Event::Consuming {
            pool: self.pool.name.clone(),
        });
        loop {
            let delivery = tokio::select! {
                () = shutdown.draining() => break,
                delivery = subscription.next() => delivery,
            };
            let Some(delivery) = delivery else { return };
            tokio::select! {
                () = shutdown.draining() => break, // the delivery is dropped, and so given back
                sent = self.deliveries.send(delivery) => if sent.is_err() { return },
            }
        }
        // Over time the rest is dropped with its subscription, and so given back as well, though marked as redelivered.
        let _ = tokio::time::timeout(GIVE_BACK_GRACE, self.give_back_rest(&mut subscription, shutdown)).await;
    }

    /// Takes what is still on its way and gives it back.
    async fn give_back_rest(&self, subscription: &mut T::Subscription, shutdown: &Shutdown) {
        subscription.cancel().await;
        while let Some(delivery) = subscription.next().await {
            self.pipeline.hand_back(delivery, shutdown).await;
        }
    }

    async fn wait(&self, reason: String, backoff: &mut Backoff, shutdown: &Shutdown) {
        let delay = backoff.next_delay();
        let retry_in = (!shutdown.is_draining()).then_some(delay);
        self.tell(Event::ConsumerLost {
            pool: self.pool.name.clone(),
            reason,
            retry_in,
        });
        tokio::select! {
            () = shutdown.draining() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    /// A first subscription that fails for a reason no waiting mends: the worker stops and says why.
    fn give_up(&self, error: TransportError) -> Result<(), TaskError> {
        self.tell(Event::ConsumerLost {
            pool: self.pool.name.clone(),
            reason: format!("failed to {error}"),
            retry_in: None,
        });
        self.ending.fail(error);
        Ok(())
    }

    fn tell(&self, event: Event) {
        self.observer.on(&event);
    }
}
