//! A broker under test, and the few things every test does with it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use synthex::message::Envelope;
use synthex::transport::memory::Memory;
use synthex::transport::topology::{Binding, DeadLetter, Declare, Exchange, ExchangeKind, Queue, Topology};
use synthex::transport::{
    Delivery, Publication, PublishError, QueueDepth, Routing, Subscribe, Subscription, Transport,
};

use crate::support::broker::{Vhost, patiently};

/// How long nothing has to come to count as nothing: many times what a delivery takes on a private node.
pub const QUIET: Duration = Duration::from_millis(300);
/// How long anything may take that has to come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often a broker is asked for what it tells nobody unasked.
const POLL: Duration = Duration::from_millis(20);

/// A broker under test.
pub struct Bench<T> {
    pub broker: T,
    sessions: Sessions,
}

/// Who can end every session of a broker, as a restart does.
pub enum Sessions {
    Memory(Memory),
    Amqp(Vhost),
}

impl<T: Transport> Bench<T> {
    pub fn new(broker: T, sessions: Sessions) -> Self {
        Self { broker, sessions }
    }

    /// Ends every session.
    pub async fn close_sessions(&self) {
        match &self.sessions {
            Sessions::Memory(broker) => broker.close_sessions(),
            Sessions::Amqp(vhost) => vhost.close_connections("a test ends all sessions").await,
        }
    }

    pub async fn declare(&self, topology: &Topology) {
        patiently(async || self.broker.declare(topology, Declare::Active).await).await;
    }

    pub async fn publish(&self, publication: &Publication) -> Result<(), PublishError> {
        soon("a confirm", self.broker.publish(publication)).await
    }

    /// Publishes to a queue, through the default exchange.
    pub async fn send(&self, queue: &str, text: &str) {
        let sent = self.publish(&to("", queue, text)).await;
        sent.unwrap_or_else(|error| panic!("send {text:?}: {error}"));
    }

    /// Subscribes to a queue that is there.
    pub async fn subscribe(&self, queue: &str, prefetch: u16) -> T::Subscription {
        let subscribed = soon("a subscription", self.broker.subscribe(&request(queue, prefetch))).await;
        subscribed.unwrap_or_else(|error| panic!("subscribe to {queue}: {error}"))
    }

    /// The depth of a queue that is there.
    pub async fn depth(&self, queue: &str) -> QueueDepth {
        let depth = self.broker.queue_depth(queue).await.expect("the broker tells");
        depth.unwrap_or_else(|| panic!("queue {queue} is not there"))
    }

    /// Waits until so many messages wait in a queue. A broker may count behind what it does.
    pub async fn waits_for_messages(&self, queue: &str, messages: u32) {
        eventually(&format!("{messages} messages in {queue}"), async || {
            self.depth(queue).await.messages == messages
        })
        .await;
    }
}

/// A request for a queue that is there.
pub fn request(queue: &str, prefetch: u16) -> Subscribe {
    Subscribe {
        queue: queue.to_owned(),
        prefetch,
        consumer_timeout: None,
        from: None,
        topology: Arc::default(),
        declare: Declare::Active,
    }
}

/// A message that somebody must get.
pub fn to(exchange: &str, routing_key: &str, text: &str) -> Publication {
    Publication {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        routing: Routing::Mandatory,
        envelope: Envelope {
            body: text.to_owned().into(),
            ..Envelope::default()
        }
        .into(),
    }
}

/// A topology of queues alone.
pub fn queues(queues: impl IntoIterator<Item = Queue>) -> Topology {
    Topology {
        queues: queues.into_iter().collect(),
        ..Topology::default()
    }
}

/// A queue that, as a pool's does, has a delivery limit out of reach: without one, RabbitMQ from 3.10 on puts what comes
/// back at the end instead of at its place.
pub fn queue(name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        delivery_limit: Some(1000),
        ..Queue::default()
    }
}

/// `source`, whose dead letters go to the queue `graves`, and come there with `routing_key`.
pub fn with_graves(source: Queue, routing_key: Option<&str>) -> Topology {
    let dead_letter = Some(DeadLetter {
        exchange: "graves".into(),
        routing_key: routing_key.map(str::to_owned),
    });
    Topology {
        exchanges: vec![exchange("graves", ExchangeKind::Fanout)],
        queues: vec![Queue { dead_letter, ..source }, queue("graves")],
        bindings: vec![binding("graves", "graves", "")],
    }
}

pub fn exchange(name: &str, kind: ExchangeKind) -> Exchange {
    Exchange {
        name: name.to_owned(),
        kind,
        alternate: None,
    }
}

pub fn binding(exchange: &str, queue: &str, routing_key: &str) -> Binding {
    Binding {
        exchange: exchange.to_owned(),
        queue: queue.to_owned(),
        routing_key: routing_key.to_owned(),
    }
}

/// The next delivery, which has to come.
pub async fn take(subscription: &mut impl Subscription) -> Delivery {
    let next = soon("a delivery", subscription.next()).await;
    next.expect("the subscription has not ended")
}

/// Takes so many deliveries without settling one.
pub async fn take_all(subscription: &mut impl Subscription, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..count {
        deliveries.push(take(subscription).await);
    }
    deliveries
}

/// Checks that nothing comes for [`QUIET`], and that the subscription has not ended.
pub async fn nothing_comes(subscription: &mut impl Subscription) {
    if let Ok(next) = tokio::time::timeout(QUIET, subscription.next()).await {
        panic!("nothing was to come, but {:?} did", next.as_ref().map(text));
    }
}

/// A delivery's body.
pub fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.envelope.body).into_owned()
}

pub fn texts(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(text).collect()
}

pub async fn ack(delivery: Delivery) {
    delivery.ack().await.expect("the session is live");
}

/// Awaits what has to happen.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("{what} did not come within {PATIENCE:?}"))
}

/// Asks until the answer is yes.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(POLL).await;
        }
    };
    soon(what, asking).await;
}
