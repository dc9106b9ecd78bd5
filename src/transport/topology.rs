//! What has to be on the broker, as data.
//!
//! [`Topology::new`] is the one place that says which exchanges, queues and bindings there are and with which
//! arguments. The AMQP transport declares it, the in-process broker acts on it, `synthex config apply` prints it.
//! Arguments are constants, not settings: a queue redeclared with other arguments is an error on RabbitMQ.

use std::collections::BTreeSet;
use std::time::Duration;

/// Deliveries after which the broker itself dead-letters a job: a far backstop, since adopted redeliveries count too.
const DELIVERY_LIMIT_BACKSTOP: i64 = 1000;
/// Deliveries of a dead letter, or of a batch's result, before the broker drops it: never, in effect, since looking must not destroy. The value
/// -1 says so to RabbitMQ 4, but on 3.10 it drops a message at its first return.
const LOOKING_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// How long orders are kept.
pub const ORDERS_KEPT: Duration = Duration::from_secs(7 * DAY);
/// Most bytes of orders that are kept: some hundreds of thousands.
const ORDERS_MAX_BYTES: i64 = 100_000_000;
/// A stream forgets whole segments only, and never the one it writes to: small ones, or it would keep orders for years.
const ORDERS_SEGMENT_BYTES: i64 = 1_000_000;
/// How long a batch is known of.
const BATCHES_KEPT: Duration = Duration::from_secs(14 * DAY);
/// How long the results of a batch wait for somebody to fetch them.
pub const BATCH_RESULTS_KEPT: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 3600;
/// How long a job may stay unsettled, for brokers that let a queue say so.
pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Everything that has to be declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Exchanges, in an order in which they can be declared.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings, after both.
    pub bindings: Vec<Binding>,
}

/// Whether to make a topology or to take what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Declare {
    /// Declare what is missing.
    #[default]
    Active,
    /// Declare nothing; fail clearly when something is missing.
    Passive,
}

/// An exchange, durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Where a message goes that no binding takes.
    pub alternate: Option<String>,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExchangeKind {
    /// By equal key.
    Direct,
    /// To every bound queue.
    Fanout,
    /// By pattern: words separated by dots, `*` one word, `#` any number.
    Topic,
}

impl ExchangeKind {
    /// The word AMQP has for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Topic => "topic",
        }
    }
}

/// What becomes of a message that was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// It goes to one consumer, and is gone when that has settled it.
    #[default]
    Quorum,
    /// It stays: a log, of which each consumer reads all from where it wants to begin. To settle only asks for more.
    Stream {
        /// How long a message stays, at least.
        max_age: Duration,
    },
}

/// A queue, durable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// What becomes of a message that was read. All that follows is of quorum queues only.
    pub kind: QueueKind,
    /// Where rejected, expired and too often delivered messages go, at least once.
    pub dead_letter: Option<DeadLetter>,
    /// How long a message stays before it is dead-lettered.
    pub ttl: Option<Duration>,
    /// Deliveries before the broker dead-letters a message.
    pub delivery_limit: Option<i64>,
    /// Most messages it holds; over that it refuses what is published.
    pub max_length: Option<u32>,
    /// How long a delivery may stay unsettled.
    pub consumer_timeout: Option<Duration>,
    /// How long it stays when nobody consumes it. The in-process broker, which no process outlives, has it stay.
    pub expires: Option<Duration>,
}

/// Where a queue's dead letters go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The exchange.
    pub exchange: String,
    /// The routing key; `None` keeps the one the message was published with.
    pub routing_key: Option<String>,
}

/// A binding of a queue to an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The queue.
    pub queue: String,
    /// The key; ignored by a fanout exchange.
    pub routing_key: String,
}

/// A queue argument's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A long string.
    Text(String),
    /// A signed 64-bit integer.
    Integer(i64),
}

impl Topology {
    /// The topology of a namespace that serves `pools`.
    #[must_use]
    pub fn new<'a>(names: &Names, pools: impl IntoIterator<Item = &'a str>) -> Self {
        let mut topology = Self::default();
        topology.exchange(names.unroutable(), ExchangeKind::Fanout, None);
        topology.exchange(names.dead(), ExchangeKind::Fanout, None);
        topology.exchange(names.jobs(), ExchangeKind::Direct, Some(names.unroutable()));
        for topic in [names.results(), names.events(), names.control()] {
            topology.exchange(topic, ExchangeKind::Topic, None);
        }
        topology.dead_letters(names);
        topology.orders(names);
        topology.batches(names);
        for tier in &TIERS {
            topology.delay(names, tier);
        }
        for pool in pools.into_iter().collect::<BTreeSet<_>>() {
            topology.pool(names, pool);
        }
        topology
    }

    /// What orders and requests to workers need.
    #[must_use]
    pub fn control(names: &Names) -> Self {
        let mut topology = Self::default();
        topology.exchange(names.control(), ExchangeKind::Topic, None);
        topology.orders(names);
        topology
    }

    /// What events need.
    #[must_use]
    pub fn events(names: &Names) -> Self {
        let mut topology = Self::default();
        topology.exchange(names.events(), ExchangeKind::Topic, None);
        topology
    }

    /// What one batch needs besides its pool's: where its results wait, and where others hear of it.
    #[must_use]
    pub fn batch(names: &Names, id: &str) -> Self {
        let mut topology = Self::default();
        topology.batches(names);
        topology.queues.push(Queue {
            name: names.batch_results(id),
            delivery_limit: Some(LOOKING_DELIVERY_LIMIT),
            expires: Some(BATCH_RESULTS_KEPT),
            ..Queue::default()
        });
        topology
    }

    fn exchange(&mut self, name: String, kind: ExchangeKind, alternate: Option<String>) {
        self.exchanges.push(Exchange { name, kind, alternate });
    }

    fn bind(&mut self, exchange: String, queue: String, routing_key: &str) {
        self.bindings.push(Binding {
            exchange,
            queue,
            routing_key: routing_key.to_owned(),
        });
    }

    fn dead_letters(&mut self, names: &Names) {
        self.queues.push(Queue {
            name: names.dead(),
            delivery_limit: Some(LOOKING_DELIVERY_LIMIT),
            ..Queue::default()
        });
        self.bind(names.dead(), names.dead(), "");
        self.bind(names.unroutable(), names.dead(), "");
    }

    fn orders(&mut self, names: &Names) {
        self.queues.push(Queue {
            name: names.orders(),
            kind: QueueKind::Stream { max_age: ORDERS_KEPT },
            ..Queue::default()
        });
        self.bind(names.control(), names.orders(), "order.#");
    }

    fn batches(&mut self, names: &Names) {
        self.exchange(names.batches(), ExchangeKind::Fanout, None);
        self.queues.push(Queue {
            name: names.batches(),
            kind: QueueKind::Stream { max_age: BATCHES_KEPT },
            ..Queue::default()
        });
        self.bind(names.batches(), names.batches(), "");
    }

    fn delay(&mut self, names: &Names, tier: &Tier) {
        let name = names.delay(tier);
        self.exchange(name.clone(), ExchangeKind::Fanout, None);
        self.queues.push(Queue {
            name: name.clone(),
            ttl: Some(tier.ttl),
            dead_letter: Some(DeadLetter {
                exchange: names.jobs(),
                routing_key: None, // the pool's key survives
            }),
            ..Queue::default()
        });
        self.bind(name.clone(), name, "");
    }

    fn pool(&mut self, names: &Names, pool: &str) {
        self.queues.push(Queue {
            name: names.pool_queue(pool),
            dead_letter: Some(DeadLetter {
                exchange: names.dead(),
                routing_key: None,
            }),
            delivery_limit: Some(DELIVERY_LIMIT_BACKSTOP),
            consumer_timeout: Some(CONSUMER_TIMEOUT),
            ..Queue::default()
        });
        self.bind(names.jobs(), names.pool_queue(pool), pool);
    }
}

impl Queue {
    /// The arguments it is declared with.
    #[must_use]
    pub fn arguments(&self) -> Vec<(&'static str, Argument)> {
        match self.kind {
            QueueKind::Quorum => self.quorum_arguments(),
            QueueKind::Stream { max_age } => stream_arguments(max_age),
        }
    }

    fn quorum_arguments(&self) -> Vec<(&'static str, Argument)> {
        let mut arguments = vec![("x-queue-type", Argument::Text("quorum".into()))];
        if let Some(dead_letter) = &self.dead_letter {
            arguments.push(("x-dead-letter-exchange", Argument::Text(dead_letter.exchange.clone())));
            if let Some(key) = &dead_letter.routing_key {
                arguments.push(("x-dead-letter-routing-key", Argument::Text(key.clone())));
            }
            arguments.push(("x-dead-letter-strategy", Argument::Text("at-least-once".into())));
        }
        if self.dead_letter.is_some() || self.max_length.is_some() {
            // At-least-once dead-lettering needs it: a queue that drops its head cannot promise anything.
            arguments.push(("x-overflow", Argument::Text("reject-publish".into())));
        }
        let integers = [
            ("x-message-ttl", self.ttl.map(millis)),
            ("x-delivery-limit", self.delivery_limit),
            ("x-max-length", self.max_length.map(i64::from)),
            ("x-consumer-timeout", self.consumer_timeout.map(millis)),
            ("x-expires", self.expires.map(millis)),
        ];
        for (name, value) in integers {
            arguments.extend(value.map(|value| (name, Argument::Integer(value))));
        }
        arguments
    }
}

fn stream_arguments(max_age: Duration) -> Vec<(&'static str, Argument)> {
    vec![
        ("x-queue-type", Argument::Text("stream".into())),
        ("x-max-age", Argument::Text(format!("{}s", max_age.as_secs()))),
        ("x-max-length-bytes", Argument::Integer(ORDERS_MAX_BYTES)),
        (
            "x-stream-max-segment-size-bytes",
            Argument::Integer(ORDERS_SEGMENT_BYTES),
        ),
    ]
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The names of a namespace's exchanges and queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    namespace: String,
}

impl Names {
    /// Names that begin with `namespace`.
    #[must_use]
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
        }
    }

    /// Where producers publish jobs, with the pool as the key.
    #[must_use]
    pub fn jobs(&self) -> String {
        format!("{}.jobs", self.namespace)
    }

    /// The queue of a pool's jobs.
    #[must_use]
    pub fn pool_queue(&self, pool: &str) -> String {
        format!("{}.jobs.{pool}", self.namespace)
    }

    /// Where jobs go whose pool nobody declared.
    #[must_use]
    pub fn unroutable(&self) -> String {
        format!("{}.unroutable", self.namespace)
    }

    /// The exchange and the queue of dead letters.
    #[must_use]
    pub fn dead(&self) -> String {
        format!("{}.dead", self.namespace)
    }

    /// Every result, with the key `<pool>.<status>`.
    #[must_use]
    pub fn results(&self) -> String {
        format!("{}.results", self.namespace)
    }

    /// Lifecycle events.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.events", self.namespace)
    }

    /// Orders and requests to workers: keys `order.<order>`, `request.all` and `request.worker.<id>`.
    #[must_use]
    pub fn control(&self) -> String {
        format!("{}.control", self.namespace)
    }

    /// The log of orders.
    #[must_use]
    pub fn orders(&self) -> String {
        format!("{}.control.log", self.namespace)
    }

    /// The exchange and the log of what happens to batches.
    #[must_use]
    pub fn batches(&self) -> String {
        format!("{}.batches", self.namespace)
    }

    /// The queue of a batch's results.
    #[must_use]
    pub fn batch_results(&self, id: &str) -> String {
        format!("{}.batch.{id}", self.namespace)
    }

    /// The exchange and the queue of a delay tier.
    #[must_use]
    pub fn delay(&self, tier: &Tier) -> String {
        format!("{}.delay.{}", self.namespace, tier.name)
    }
}

/// A queue whose messages all wait equally long, because a per-message TTL would block behind the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// The last part of its queue's name.
    pub name: &'static str,
    /// How long a message waits in it.
    pub ttl: Duration,
}

/// The delay tiers, shortest first. A wait is made of hops through them, each at most what is left, so it ends late
/// by less than the shortest tier.
pub const TIERS: [Tier; 10] = [
    tier("250ms", 250),
    tier("1s", 1_000),
    tier("5s", 5_000),
    tier("20s", 20_000),
    tier("1m", 60_000),
    tier("5m", 300_000),
    tier("20m", 1_200_000),
    tier("1h", 3_600_000),
    tier("6h", 21_600_000),
    tier("1d", 86_400_000),
];

const fn tier(name: &'static str, millis: u64) -> Tier {
    Tier {
        name,
        ttl: Duration::from_millis(millis),
    }
}

/// The tier for the next hop of a wait: the longest that does not overshoot, else the shortest.
#[must_use]
pub fn tier_for(wait: Duration) -> &'static Tier {
    TIERS.iter().rev().find(|tier| tier.ttl <= wait).unwrap_or(&TIERS[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_never_overshoots_by_more_than_the_shortest_tier() {
        for wait in [1, 249, 250, 999, 1_000, 59_999, 60_000, 86_400_000 * 30] {
            let wait = Duration::from_millis(wait);
            let mut left = wait;
            let mut hops = 0;
            while !left.is_zero() {
                let hop = tier_for(left).ttl;
                assert!(hop <= left || hop == TIERS[0].ttl);
                left = left.saturating_sub(hop);
                hops += 1;
            }
            assert!(hops < 50, "{wait:?} took {hops} hops");
        }
    }

    #[test]
    fn a_pool_named_twice_is_declared_once() {
        let topology = Topology::new(&Names::new("n"), ["p", "p"]);
        let named = |queue: &&Queue| queue.name == "n.jobs.p";
        assert_eq!(topology.queues.iter().filter(named).count(), 1);
    }

    #[test]
    fn dead_lettering_is_at_least_once_and_keeps_the_pool_key() {
        let topology = Topology::new(&Names::new("n"), ["p"]);
        for queue in topology.queues.iter().filter(|q| q.dead_letter.is_some()) {
            let arguments = queue.arguments();
            let has = |name, value: &str| arguments.contains(&(name, Argument::Text(value.into())));
            assert!(has("x-dead-letter-strategy", "at-least-once"), "{queue:?}");
            assert!(has("x-overflow", "reject-publish"), "{queue:?}");
            assert!(arguments.iter().all(|(name, _)| *name != "x-dead-letter-routing-key"));
        }
    }

    #[test]
    fn orders_are_kept_for_seven_days_in_segments_that_are_soon_full() {
        let topology = Topology::new(&Names::new("n"), []);
        let log = topology.queues.iter().find(|queue| queue.name == "n.control.log");
        let arguments = log.expect("it is declared").arguments();
        assert!(arguments.contains(&("x-queue-type", Argument::Text("stream".into()))));
        assert!(arguments.contains(&("x-max-age", Argument::Text("604800s".into()))));
        assert!(
            arguments
                .iter()
                .any(|(name, _)| *name == "x-stream-max-segment-size-bytes")
        );
        assert!(
            arguments
                .iter()
                .all(|(name, _)| !name.contains("dead") && *name != "x-delivery-limit")
        );
    }

    #[test]
    fn looking_at_dead_letters_never_destroys_them() {
        let topology = Topology::new(&Names::new("n"), []);
        let dead = topology.queues.iter().find(|q| q.name == "n.dead");
        assert_eq!(
            dead.and_then(|queue| queue.delivery_limit),
            Some(LOOKING_DELIVERY_LIMIT)
        );
    }
}
