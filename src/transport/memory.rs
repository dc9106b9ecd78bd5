//! The in-process broker: what `synthex run` embeds, and what tests use where RabbitMQ adds nothing.
//!
//! It acts on the same [`Topology`] that is declared on RabbitMQ: direct, fanout and topic exchanges with alternates,
//! the default exchange, streams, queues in order with prefetch, time to live, length and delivery limits, dead letters with
//! `x-death` headers. Where RabbitMQ's quorum queues have a habit, it has the same: a message that comes back takes
//! its old place, and `x-delivery-count` says how often it did. The conformance suite holds the two together.
//!
//! It does not write to disk: what is in it ends with the process. It knows no priorities and no users, and a message
//! takes its old place in a queue without a delivery limit too, where RabbitMQ from 3.10 on puts it at the end.
//!
//! Invariants:
//! - one lock over the whole state, held for short synchronous sections only; no work grows with what is queued;
//! - no task and no timer of its own: what is due expires when somebody looks, and whoever waits for a delivery waits
//!   no longer than until the next expiry, on Tokio's clock.
//!
//! [`state`] has the operations, [`declare`] those of a topology, [`exchange`] the routing, [`queue`] and [`consumer`] the order and the credit,
//! [`letter`] the headers.

mod consumer;
mod declare;
mod exchange;
mod letter;
mod queue;
mod state;

use std::sync::{Arc, MutexGuard};

use tokio::sync::Notify;
use tokio::task::coop;
use tokio::time::{Instant, timeout_at};

use super::topology::{Declare, Topology};
use super::{
    Barrier, BoxFuture, Delivery, Publication, PublishError, QueueDepth, SettleError, Settlement, Settler, Subscribe,
    Subscription, Topic, Transport, TransportError, Version,
};
use crate::flow::{Lock, LockAccount};
use consumer::{ConsumerId, Tag};
use state::{Next, State, Taken};

/// All of the embedded broker is behind one lock.
pub static LOCK: LockAccount = LockAccount::new("embedded_broker");

/// Replies that may wait in an inbox's subscription unsettled; more wait in its queue.
const INBOX_PREFETCH: u16 = 256;

/// An in-process broker. A clone is another handle to the same one; it lives as long as its last handle,
/// subscription or delivery.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Lock<State>>,
}

impl Default for Memory {
    fn default() -> Self {
        let state = Arc::new(Lock::new(&LOCK, State::default()));
        Self { state }
    }
}

impl Memory {
    /// A broker that has nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Does what a restart of the broker does: ends every subscription, and gives every unsettled delivery back to
    /// its queue, as redelivered. Deliveries taken before are no longer live, and to settle one is a [`SettleError`].
    /// Inboxes are gone, with what was in them; everything else that was declared or published stays.
    pub fn close_sessions(&self) {
        self.at_now(State::close_sessions);
    }

    fn open_private(
        &self,
        topics: &[Topic],
        most: Option<u32>,
    ) -> Result<(String, MemorySubscription), TransportError> {
        let changed = Arc::new(Notify::new());
        let (name, consumer) = self.at_now(|state, now| {
            let name = state.inbox(most);
            let consumer = state.consume(&name, INBOX_PREFETCH, None, changed.clone())?;
            let bound = state.bind_all(&name, topics);
            // An inbox goes with its consumer.
            bound.inspect_err(|_| state.remove(consumer, now))?;
            Ok::<_, TransportError>((name, consumer))
        })?;
        let subscription = MemorySubscription {
            broker: self.clone(),
            consumer,
            changed,
        };
        Ok((name, subscription))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug, but what was in the state is still the best there is.
        self.state.lock()
    }

    /// Does something to the state as it is now, when all that is due has expired.
    fn at_now<R>(&self, operation: impl FnOnce(&mut State, Instant) -> R) -> R {
        let now = Instant::now();
        let mut state = self.lock();
        state.expire(now);
        operation(&mut state, now)
    }
}

impl Transport for Memory {
    type Subscription = MemorySubscription;

    async fn declare(&self, topology: &Topology, how: Declare) -> Result<(), TransportError> {
        self.at_now(|state, now| state.declare(topology, how, now))
    }

    /// A prefetch of 0 counts as 1. The consumer timeout has no effect: a delivery may stay unsettled for ever.
    async fn subscribe(&self, request: &Subscribe) -> Result<MemorySubscription, TransportError> {
        let changed = Arc::new(Notify::new());
        let consumer = self.at_now(|state, now| {
            state.declare(&request.topology, request.declare, now)?;
            state.consume(&request.queue, request.prefetch, request.from, changed.clone())
        })?;
        Ok(MemorySubscription {
            broker: self.clone(),
            consumer,
            changed,
        })
    }

    async fn listen(&self, topics: &[Topic]) -> Result<(String, MemorySubscription), TransportError> {
        self.open_private(topics, None)
    }

    async fn overhear(&self, topics: &[Topic], most: u32) -> Result<(String, MemorySubscription), TransportError> {
        self.open_private(topics, Some(most))
    }

    async fn publish(&self, publication: &Publication) -> Result<(), PublishError> {
        // It never has to wait, so without this a publisher in a loop would keep its thread to itself.
        coop::consume_budget().await;
        self.at_now(|state, now| state.publish(publication, now))
    }

    async fn remove_queue(&self, queue: &str) -> Result<(), TransportError> {
        self.at_now(|state, _| state.remove_queue(queue));
        Ok(())
    }

    async fn version(&self) -> Option<Version> {
        None
    }

    async fn queue_depth(&self, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
        Ok(self.at_now(|state, _| state.depth(queue)))
    }
}

/// A consumer of a queue in a [`Memory`]. Dropped, it gives back what was handed to it and not taken from it;
/// deliveries that were taken stay live.
pub struct MemorySubscription {
    broker: Memory,
    consumer: ConsumerId,
    changed: Arc<Notify>,
}

impl MemorySubscription {
    fn delivery(&self, taken: Taken) -> Delivery {
        let receipt = Receipt {
            broker: self.broker.clone(),
            tag: taken.tag,
            settled: false,
        };
        let envelope = taken.letter.envelope(taken.returns, taken.offset);
        let routing_key = taken.letter.routing_key.clone();
        Delivery::new(envelope, routing_key, taken.returns > 0, Box::new(receipt))
    }
}

impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Option<Delivery> {
        coop::consume_budget().await; // as in publish; nothing is taken yet
        loop {
            // Whatever changes after this look leaves a permit in `changed`, so nothing is missed in between.
            let expiry = match self.broker.at_now(|state, _| state.next(self.consumer)) {
                Next::Delivery(taken) => return Some(self.delivery(taken)),
                Next::Ended => return None,
                Next::Wait(expiry) => expiry,
            };
            match expiry {
                Some(at) => drop(timeout_at(at, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }

    /// A settlement is dealt with when it is made.
    fn barrier(&self) -> Barrier {
        Box::new(|| Box::pin(std::future::ready(true)))
    }

    async fn extend(&mut self) -> Result<(), TransportError> {
        self.consumer = self.broker.at_now(|state, _| state.extend(self.consumer))?;
        Ok(())
    }

    async fn cancel(&mut self) {
        self.broker.at_now(|state, _| state.cancel(self.consumer));
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        let consumer = self.consumer;
        self.broker.at_now(|state, now| state.remove(consumer, now));
    }
}

/// The broker's side of one delivery.
struct Receipt {
    broker: Memory,
    tag: Tag,
    settled: bool,
}

impl Receipt {
    fn settle_now(&self, how: Settlement) -> Result<(), SettleError> {
        let settle = |state: &mut State, now| state.settle(self.tag, how, now);
        self.broker.at_now(settle)
    }
}

impl Settler for Receipt {
    fn settle(mut self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<(), SettleError>> {
        self.settled = true;
        Box::pin(std::future::ready(self.settle_now(how)))
    }

    fn is_live(&self) -> bool {
        self.broker.lock().is_unsettled(self.tag)
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled {
            // An error says that the session has ended, and that gave it back already.
            let _ = self.settle_now(Settlement::GiveBack);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::message::{Envelope, HeaderValue};
    use crate::transport::Routing;
    use crate::transport::topology::{Binding, DeadLetter, Exchange, ExchangeKind, Queue};

    fn queue(name: &str) -> Queue {
        Queue {
            name: name.to_owned(),
            ..Queue::default()
        }
    }

    /// `queue`, whose dead letters go to the direct exchange `e`, which knows those bound to it by their names.
    fn with_dead_letters(queue: Queue, bound: &[&str]) -> Topology {
        let dead_letter = DeadLetter {
            exchange: "e".into(),
            routing_key: None,
        };
        let bind = |name: &&str| Binding {
            exchange: "e".into(),
            queue: (*name).to_owned(),
            routing_key: queue.name.clone(),
        };
        Topology {
            exchanges: vec![Exchange {
                name: "e".into(),
                kind: ExchangeKind::Direct,
                alternate: None,
            }],
            bindings: bound.iter().map(bind).collect(),
            queues: vec![Queue {
                dead_letter: Some(dead_letter),
                ..queue
            }],
        }
    }

    async fn with(topology: Topology) -> Memory {
        let broker = Memory::new();
        let declared = broker.declare(&topology, Declare::Active).await;
        declared.expect("the broker is new");
        broker
    }

    async fn send(broker: &Memory, queue: &str) {
        let publication = Publication {
            exchange: String::new(),
            routing_key: queue.to_owned(),
            routing: Routing::Mandatory,
            envelope: Envelope::default().into(),
        };
        broker.publish(&publication).await.expect("the queue is there");
    }

    async fn consume(broker: &Memory, queue: &str, prefetch: u16) -> MemorySubscription {
        let request = Subscribe {
            queue: queue.to_owned(),
            prefetch,
            consumer_timeout: None,
            from: None,
            topology: Arc::default(),
            declare: Declare::Active,
        };
        broker.subscribe(&request).await.expect("the queue is there")
    }

    /// The next delivery or the end, which has to come; on a paused clock the wait is over when nothing can happen.
    async fn next(subscription: &mut MemorySubscription) -> Option<Delivery> {
        let next = tokio::time::timeout(Duration::from_secs(60), subscription.next());
        next.await.expect("something comes")
    }

    async fn messages(broker: &Memory, queue: &str) -> Option<u32> {
        let depth = broker.queue_depth(queue).await.expect("memory always tells");
        depth.map(|depth| depth.messages)
    }

    #[tokio::test(start_paused = true)]
    async fn consumers_of_a_queue_take_turns() {
        let broker = with(Topology {
            queues: vec![queue("q")],
            ..Topology::default()
        })
        .await;
        let mut consumers = Vec::new();
        for _ in 0..3 {
            consumers.push(consume(&broker, "q", 10).await);
        }
        for _ in 0..6 {
            send(&broker, "q").await;
        }
        let mut held = Vec::new(); // what is dropped would go to the next one
        for consumer in &mut consumers {
            consumer.cancel().await;
            let before = held.len();
            while let Some(delivery) = next(consumer).await {
                held.push(delivery);
            }
            assert_eq!(held.len() - before, 2);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_conflicting_declare_names_the_argument() {
        let limited = |limit| Topology {
            queues: vec![Queue {
                max_length: Some(limit),
                ..queue("q")
            }],
            ..Topology::default()
        };
        let broker = with(limited(3)).await;
        let error = broker
            .declare(&limited(4), Declare::Active)
            .await
            .expect_err("another limit");
        assert_eq!(
            error.to_string(),
            "declare queue \"q\": it is there with x-max-length 3, not 4"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_already_is_told_of_what_expires_sooner() {
        let short = Queue {
            ttl: Some(Duration::from_secs(1)),
            ..queue("short")
        };
        let broker = with(Topology {
            queues: vec![queue("graves")],
            ..Topology::default()
        })
        .await;
        let mut graves = consume(&broker, "graves", 1).await;
        let mut topology = with_dead_letters(short, &[]);
        topology.bindings.push(Binding {
            exchange: "e".into(),
            queue: "graves".into(),
            routing_key: "short".into(),
        });
        let started = Instant::now();
        let (delivery, ()) = tokio::join!(next(&mut graves), async {
            // Polled second: `next` waits by now, and nothing but the publish can tell it.
            broker.declare(&topology, Declare::Active).await.expect("no conflict");
            send(&broker, "short").await;
        });
        assert!(delivery.is_some());
        assert!(
            started.elapsed() < Duration::from_millis(1_010),
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_letter_with_nowhere_to_go_waits_for_a_route() {
        let broker = with(with_dead_letters(queue("q"), &[])).await;
        send(&broker, "q").await;
        let mut jobs = consume(&broker, "q", 1).await;
        let job = next(&mut jobs).await.expect("a job");
        job.reject().await.expect("the session is live");
        assert_eq!(messages(&broker, "q").await, Some(0));

        drop(jobs);
        let routed = with_dead_letters(queue("q"), &["q"]);
        broker.declare(&routed, Declare::Active).await.expect("no conflict");
        assert_eq!(messages(&broker, "q").await, Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn deaths_of_one_kind_are_counted_in_one_entry() {
        let broker = with(with_dead_letters(queue("q"), &["q"])).await;
        send(&broker, "q").await;
        let mut jobs = consume(&broker, "q", 1).await;
        for _ in 0..3 {
            let job = next(&mut jobs).await.expect("it comes round");
            job.reject().await.expect("the session is live");
        }
        let job = next(&mut jobs).await.expect("it comes round");
        let Some(HeaderValue::List(deaths)) = job.envelope.properties.headers.get("x-death") else {
            panic!("no x-death in {:?}", job.envelope.properties.headers);
        };
        let [HeaderValue::Table(death)] = deaths.as_slice() else {
            panic!("not one entry: {deaths:?}");
        };
        assert_eq!(death.get("count"), Some(&HeaderValue::Int(3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_nobody_rejects_into_ends() {
        let timed = Queue {
            ttl: Some(Duration::from_secs(1)),
            ..queue("q")
        };
        let broker = with(with_dead_letters(timed, &["q"])).await;
        send(&broker, "q").await;
        tokio::time::advance(Duration::from_millis(999)).await;
        assert_eq!(messages(&broker, "q").await, Some(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(messages(&broker, "q").await, Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_given_back_keeps_its_time() {
        let timed = Queue {
            ttl: Some(Duration::from_secs(1)),
            ..queue("q")
        };
        let broker = with(Topology {
            queues: vec![timed],
            ..Topology::default()
        })
        .await;
        send(&broker, "q").await;
        let mut jobs = consume(&broker, "q", 1).await;
        let held = next(&mut jobs).await.expect("a job");
        drop(jobs);
        tokio::time::advance(Duration::from_millis(600)).await;
        drop(held);
        assert_eq!(messages(&broker, "q").await, Some(1));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(messages(&broker, "q").await, Some(0));
    }
}
