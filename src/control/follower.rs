//! Reads the log of orders, from its beginning and for as long as the worker lives.
//!
//! A broker does not tell where a stream ends. It tells how many messages are in it, but may not have counted those of the
//! last seconds; so the orders that were given before are read once as many as it counted have come, and then nothing
//! more for [`QUIET`]. An order that was given so shortly before the worker's start that it comes later still is late, not
//! lost: it ends a job that has started as well.
//!
//! Where the log cannot be read (no permission, a node of a cluster without a replica of it), jobs run without orders, and
//! a warning says so. It is tried again and again, from where the reading ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Control;
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::message::Order;
use crate::supervise::{Shutdown, TaskError};
use crate::transport::{Delivery, StreamOffset, Subscribe, Subscription, Transport, TransportError};
use crate::worker::event::{ControlMessage, Event};

/// Orders on their way to us at a time.
const PREFETCH: u16 = 500;
/// Nothing comes for so long: there is no more. Many times what a broker takes between two messages of a log.
const QUIET: Duration = Duration::from_millis(300);
/// The first wait after a lost or failed subscription.
const RETRY_INITIAL: Duration = Duration::from_millis(200);
/// The wait after a refusal, which lasts until somebody changes something.
const REFUSED_WAIT: Duration = Duration::from_secs(60);
/// Refusals that may pass: a stream that somebody else is just declaring has no replica to read from yet.
const PASSING_REFUSALS: u32 = 5;
/// How long a subscription may take.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);
/// A reader that lived this long was well: the next loss begins with a short wait again.
const WELL: Duration = Duration::from_secs(5);
/// How often what is over is forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// Follows the log; a restart goes on where the last run ended.
pub(super) struct Follower<T> {
    control: Arc<Control<T>>,
    /// Where to read on.
    next: AtomicU64,
    /// How many orders were read.
    seen: AtomicU64,
}

impl<T: Transport> Follower<T> {
    pub(super) fn new(control: Arc<Control<T>>) -> Self {
        Self {
            control,
            next: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        tokio::select! {
            () = shutdown.draining() => Ok(()),
            never = self.follow() => never,
        }
    }

    async fn follow(&self) -> Result<(), TaskError> {
        let mut backoff = Backoff::new(RETRY_INITIAL, RECONNECT_MAX);
        let mut refusals = 0;
        loop {
            let since = Instant::now();
            let wait = match self.subscribe().await {
                Ok((subscription, counted)) => {
                    refusals = 0;
                    self.read(subscription, counted).await;
                    backoff.next_delay()
                }
                Err(error) if !error.is_refusal() => {
                    tracing::debug!("failed to {error}; reading orders again soon");
                    backoff.next_delay()
                }
                Err(error) => {
                    refusals += 1;
                    self.refused(&error, refusals).unwrap_or_else(|| backoff.next_delay())
                }
            };
            if since.elapsed() >= WELL {
                backoff.reset();
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The reader, and how many orders the broker counts.
    async fn subscribe(&self) -> Result<(T::Subscription, u64), TransportError> {
        let control = &*self.control;
        let queue = control.names.orders();
        let request = Subscribe {
            queue: queue.clone(),
            prefetch: PREFETCH,
            consumer_timeout: None,
            from: Some(StreamOffset::At(self.next.load(Ordering::Relaxed))),
            topology: control.topology.clone(),
            declare: control.declare,
        };
        let subscribing = async {
            let subscription = control.transport.subscribe(&request).await?;
            let depth = control.transport.queue_depth(&queue).await?;
            Ok((subscription, depth.map_or(0, |depth| depth.messages.into())))
        };
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await;
        subscribed.unwrap_or_else(|_| {
            Err(TransportError::Lost {
                operation: format!("read orders from {queue:?}"),
                reason: format!("no answer within {SUBSCRIBE_TIMEOUT:?}"),
            })
        })
    }

    /// A refusal; how long to wait if it is not one that may pass.
    fn refused(&self, error: &TransportError, refusals: u32) -> Option<Duration> {
        if refusals < PASSING_REFUSALS {
            return None;
        }
        if refusals == PASSING_REFUSALS {
            tracing::warn!("failed to {error}: cancel and pause have no effect on this worker");
            self.control.orders.set_read();
        }
        Some(REFUSED_WAIT)
    }

    /// Enters orders until the subscription ends.
    async fn read(&self, mut subscription: T::Subscription, counted: u64) {
        let orders = &self.control.orders;
        let mut tidy = tokio::time::interval(EXPIRE_EVERY);
        loop {
            let is_near_end = !orders.is_read() && self.seen.load(Ordering::Relaxed) >= counted;
            tokio::select! {
                biased; // what has come counts before that nothing comes
                delivery = subscription.next() => match delivery {
                    Some(delivery) => self.enter(delivery).await,
                    None => return,
                },
                () = tokio::time::sleep(QUIET), if is_near_end => orders.set_read(),
                _ = tidy.tick() => self.tidy(),
            }
        }
    }

    async fn enter(&self, delivery: Delivery) {
        if let Some(offset) = delivery.offset() {
            self.next.store(offset + 1, Ordering::Relaxed);
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
        match Order::decode(&delivery.envelope.body) {
            Ok(order) => self.obey(&order),
            Err(error) => {
                let key = &delivery.routing_key;
                tracing::warn!(key, "an order that cannot be read is not obeyed: {error}");
                self.tell(ControlMessage::Invalid);
            }
        }
        // An ack only asks for more; of a session that is gone, nothing more comes.
        let _ = delivery.ack().await;
    }

    fn obey(&self, order: &Order) {
        let orders = &self.control.orders;
        // Those of the time before are many, and told by what becomes of jobs.
        if orders.is_read() {
            tracing::info!(order = order.name(), at = %order.at(), "order");
        }
        let forgotten = orders.apply(order, Timestamp::now());
        self.tell(ControlMessage::of_order(order));
        if forgotten > 0 {
            tracing::warn!(
                forgotten,
                "more cancels than can be remembered: the oldest have no effect any more"
            );
            self.control.observer.on(&Event::CancelsForgotten { count: forgotten });
        }
    }

    fn tidy(&self) {
        for pool in self.control.orders.expire(Timestamp::now()) {
            tracing::warn!(pool, "the pause is seven days old and over: the pool takes jobs again");
        }
    }

    fn tell(&self, message: ControlMessage) {
        self.control.observer.on(&Event::Control { message });
    }
}
