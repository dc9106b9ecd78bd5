//! How jobs come in and how results go out.
//!
//! [`Transport`] is the one trait the worker knows. It has two implementations: [`memory`], an in-process broker that
//! `synthex run` embeds, and [`amqp`], which talks to RabbitMQ. Both pass one conformance suite
//! (`tests/conformance.rs`), so whatever is promised here holds for both:
//!
//! - a subscription never has more than `prefetch` deliveries unsettled;
//! - a [`Delivery`] that is dropped unsettled goes back to its queue, and comes again with `redelivered` set;
//! - [`Transport::publish`] returns `Ok` only for a message that the broker has taken responsibility for;
//! - the end of a subscription means "subscribe again", never "shut down";
//! - each subscription to a stream gets all that is in it from where it asked to begin, in order, whoever else reads it.
//!
//! What to declare is data ([`topology`]). What a message means is not known here.

pub mod amqp;
pub mod memory;
pub mod topology;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::message::{Envelope, HeaderValue};
use topology::{Declare, Topology};

/// The header in which a broker says where in its stream a message is.
const STREAM_OFFSET: &str = "x-stream-offset";

/// A boxed future, for the few places where a trait object has to return one.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A broker, seen from a worker or a client.
///
/// Cloning is cheap and gives another handle to the same broker.
pub trait Transport: Clone + Send + Sync + 'static {
    /// What [`Transport::subscribe`] and [`Transport::inbox`] return.
    type Subscription: Subscription;

    /// Declares `topology`, or only checks that it is there.
    ///
    /// # Errors
    /// When the broker cannot be reached, refuses, or (passive) lacks a part of the topology.
    fn declare(&self, topology: &Topology, how: Declare) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Consumes a queue: declares the topology, sets the prefetch and starts the consumer, as one session.
    ///
    /// # Errors
    /// When any step fails; nothing of the session is left behind then.
    ///
    /// # Cancel safety
    /// Cancel safe: a session that is not finished is dropped whole.
    fn subscribe(&self, request: &Subscribe)
    -> impl Future<Output = Result<Self::Subscription, TransportError>> + Send;

    /// Opens a private queue for replies and returns its name, good as a `reply_to`, with its subscription.
    ///
    /// The queue is gone with the subscription.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    fn inbox(&self) -> impl Future<Output = Result<(String, Self::Subscription), TransportError>> + Send {
        self.listen(&[])
    }

    /// Opens a private queue as [`Transport::inbox`] does, which also gets what is published to these topics from then
    /// on.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses, and when there is no such exchange.
    fn listen(
        &self,
        topics: &[Topic],
    ) -> impl Future<Output = Result<(String, Self::Subscription), TransportError>> + Send;

    /// Opens a private queue as [`Transport::listen`] does, for one who may miss something: at most `most` messages wait
    /// in it to be handed out, and for one more the oldest is dropped. So one who hangs costs the broker no more than
    /// that, and those who publish nothing.
    ///
    /// # Errors
    /// As [`Transport::listen`].
    fn overhear(
        &self,
        topics: &[Topic],
        most: u32,
    ) -> impl Future<Output = Result<(String, Self::Subscription), TransportError>> + Send;

    /// Publishes one message, persistent, and waits until the broker has confirmed it.
    ///
    /// # Errors
    /// See [`PublishError`]; [`PublishError::Unknown`] means that the message may or may not have arrived: publish
    /// it again under the same `message_id`.
    ///
    /// # Cancel safety
    /// Not cancel safe: a publish that is dropped has an unknown outcome.
    fn publish(&self, publication: &Publication) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Publishes several messages as [`Transport::publish`] does each, and tells of each, in their order. Their confirms
    /// are awaited together, so it is for many at a time; but not for all there are: they are all in memory, and nothing is
    /// known of any until all have their answers. Messages for one queue keep their order.
    ///
    /// Those that share a `message_id`, or have none, are told of a missing queue together if one of them is.
    ///
    /// # Cancel safety
    /// Not cancel safe, as above.
    fn publish_many(&self, publications: &[Publication]) -> impl Future<Output = Vec<Result<(), PublishError>>> + Send {
        async move {
            let mut told = Vec::with_capacity(publications.len());
            for publication in publications {
                told.push(self.publish(publication).await);
            }
            told
        }
    }

    /// Removes a queue with all that is in it, for who made it for himself; one that is not there is no error.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses.
    fn remove_queue(&self, queue: &str) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Which version the broker is; `None` if it does not say.
    fn version(&self) -> impl Future<Output = Option<Version>> + Send;

    /// How many messages wait in a queue and how many consumers it has; `None` when there is no such queue.
    ///
    /// Of a stream: how many messages are in it, of which the broker may not have counted those of the last seconds;
    /// and nothing of its consumers.
    ///
    /// # Errors
    /// When the broker cannot be reached or refuses to tell.
    fn queue_depth(&self, queue: &str) -> impl Future<Output = Result<Option<QueueDepth>, TransportError>> + Send;
}

/// The version of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// As the broker writes it: `3.10.8`.
    pub text: String,
    /// Its first two numbers.
    pub numbers: (u32, u32),
}

impl Version {
    /// Reads a version; `None` if it does not begin with two numbers.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self {
            numbers: (next()?, next()?),
            text: text.to_owned(),
        })
    }
}

/// A live consumer.
pub trait Subscription: Send + 'static {
    /// The next delivery; `None` when this consumer has ended, for whatever reason: subscribe again.
    ///
    /// # Cancel safety
    /// Cancel safe: no delivery is lost when the future is dropped.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>> + Send;

    /// Why it ended, once [`Subscription::next`] has said so.
    fn end(&self) -> SubscriptionEnd {
        SubscriptionEnd::Lost("the broker has ended the consumer".to_owned())
    }

    /// A question to ask now and then, which the broker answers only after it has dealt with every settlement that was
    /// written before.
    fn barrier(&self) -> Barrier;

    /// Has as many more come as the prefetch says, although those taken so far are not settled; they stay valid. It is
    /// for looking through a queue: what went back before the end would come first again.
    ///
    /// # Errors
    /// When the broker is gone or refuses, as for an inbox, which goes with its first consumer. The subscription may
    /// have ended then.
    ///
    /// # Cancel safety
    /// Not cancel safe: dropped half-way, the subscription may get nothing more.
    fn extend(&mut self) -> impl Future<Output = Result<(), TransportError>> + Send;

    /// Asks for no more deliveries. Those already on their way still come from [`Subscription::next`], then `None`;
    /// deliveries taken before stay valid. One that the broker sends at this very moment may come again as redelivered
    /// instead: settle nothing meanwhile, since that makes room for more.
    fn cancel(&mut self) -> impl Future<Output = ()> + Send;
}

/// Asks a session's broker something: true once it has dealt with every settlement written before, false if that will
/// not be known.
pub type Barrier = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Why a subscription ended, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriptionEnd {
    /// The connection, the channel or the queue is gone.
    Lost(String),
    /// A message came that the client library cannot read, and it ends the connection over it, again each time the
    /// message comes.
    Unreadable(String),
}

/// What to consume, and how.
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// The queue.
    pub queue: String,
    /// Most deliveries unsettled at any moment, at least 1.
    pub prefetch: u16,
    /// How long a delivery may stay unsettled, where the broker lets a consumer say so (RabbitMQ 4.3 on).
    pub consumer_timeout: Option<Duration>,
    /// Where to begin in a stream, which has to be said there; `None` for other queues.
    pub from: Option<StreamOffset>,
    /// What has to be there first.
    pub topology: Arc<Topology>,
    /// Whether to declare it or only to check it.
    pub declare: Declare,
}

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamOffset {
    /// Its oldest message.
    First,
    /// What is published from now on.
    Next,
    /// This message, or the oldest one if it is gone. [`Delivery::offset`] tells of each where it is.
    At(u64),
}

/// Messages of an exchange, by their routing keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// The exchange.
    pub exchange: String,
    /// The key, or the pattern of keys if it is a topic exchange.
    pub routing_key: String,
}

/// A message on its way out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Publication {
    /// The exchange; empty for the default exchange, where the routing key is a queue's name.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// What happens when no queue takes it.
    pub routing: Routing,
    /// The message, which several may share.
    pub envelope: Arc<Envelope>,
}

/// Whether a message must reach a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Routing {
    /// Somebody must get it: no queue is an error ([`PublishError::Unroutable`]).
    Mandatory,
    /// Nobody need listen (topic exchanges, direct reply-to).
    Optional,
}

/// A queue's size as the broker tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Messages ready, not counting those with a consumer.
    pub messages: u32,
    /// Consumers attached.
    pub consumers: u32,
}

/// A message that was handed to us and has to be settled, once.
///
/// Every way to settle takes the delivery by value, so settling twice does not compile. Dropped unsettled, it goes
/// back to its queue.
#[must_use = "a delivery that is dropped goes back to its queue"]
pub struct Delivery {
    /// The message, which whoever has it in hand may share.
    pub envelope: Arc<Envelope>,
    /// The routing key it came with.
    pub routing_key: String,
    /// The broker has handed it out before.
    pub redelivered: bool,
    settler: Box<dyn Settler>,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("message_id", &self.envelope.properties.message_id)
            .field("redelivered", &self.redelivered)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// A delivery that `settler` will settle.
    pub fn new(
        envelope: impl Into<Arc<Envelope>>,
        routing_key: String,
        redelivered: bool,
        settler: Box<dyn Settler>,
    ) -> Self {
        Self {
            envelope: envelope.into(),
            routing_key,
            redelivered,
            settler,
        }
    }

    /// Where it is in its stream; `None` if it comes from another queue.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match self.envelope.properties.headers.get(STREAM_OFFSET) {
            Some(HeaderValue::Int(offset)) => u64::try_from(*offset).ok(),
            _ => None,
        }
    }

    /// Whether it can still be settled: false once its session is gone and the broker will hand it out again.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.settler.is_live()
    }

    /// Parts with the message and keeps what settles it: for who holds many that he has looked at.
    #[must_use = "what is dropped goes back to its queue"]
    pub fn into_settler(self) -> Box<dyn Settler> {
        self.settler
    }

    /// Says that the message has been dealt with.
    ///
    /// # Errors
    /// [`SettleError`] when the acknowledgement cannot have arrived: the message will come again.
    pub async fn ack(self) -> Result<(), SettleError> {
        self.settler.settle(Settlement::Ack).await
    }

    /// Gives the message back to its queue.
    ///
    /// # Errors
    /// [`SettleError`] when the session is gone; the message is back in its queue then as well.
    pub async fn give_back(self) -> Result<(), SettleError> {
        self.settler.settle(Settlement::GiveBack).await
    }

    /// Has the broker dead-letter the message (reason `rejected`).
    ///
    /// # Errors
    /// [`SettleError`] when the session is gone: the message will come again.
    pub async fn reject(self) -> Result<(), SettleError> {
        self.settler.settle(Settlement::Reject).await
    }
}

/// The three ways to settle a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// `basic.ack`
    Ack,
    /// `basic.nack` with requeue
    GiveBack,
    /// `basic.reject` without requeue
    Reject,
}

/// A transport's side of one delivery. Dropped without [`Settler::settle`], it gives the delivery back.
pub trait Settler: Send + Sync + 'static {
    /// Settles the delivery.
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<(), SettleError>>;

    /// Whether the delivery's session is still there.
    fn is_live(&self) -> bool;
}

/// What a transport tells about its connections and confirms, for metrics and logs.
#[derive(Clone, Debug)]
pub enum BrokerEvent {
    /// A session is live.
    Connected {
        /// Host and port, without credentials.
        host: String,
    },
    /// A live session has ended.
    Disconnected {
        /// Why, as far as it is known.
        reason: String,
    },
    /// The broker has confirmed (or refused) a message.
    Confirmed {
        /// From the publish to its confirm.
        waited: Duration,
    },
}

/// Takes [`BrokerEvent`]s; must not block.
pub type BrokerObserver = Arc<dyn Fn(BrokerEvent) + Send + Sync>;

/// A delivery could not be settled because its session has ended; the broker hands the message out again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("settle a delivery: its session has ended, the broker will deliver it again")]
pub struct SettleError;

/// Why a message was not, or perhaps not, published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue takes messages of that key, and somebody had to.
    #[error("publish to exchange {exchange:?} with key {routing_key:?}: no queue takes it")]
    Unroutable {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// The broker said no (`basic.nack`): a queue is full or failed. It may say yes later.
    #[error("publish to exchange {exchange:?} with key {routing_key:?}: the broker refused it")]
    Refused {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
    },
    /// Nobody knows whether it arrived: the connection was lost, or no confirm came in time.
    #[error("publish to exchange {exchange:?} with key {routing_key:?}: {reason}")]
    Unknown {
        /// The exchange.
        exchange: String,
        /// The routing key.
        routing_key: String,
        /// What happened.
        reason: String,
    },
    /// There was no connection to publish on.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

impl PublishError {
    /// Whether publishing it again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unroutable { .. } => false,
            Self::Refused { .. } | Self::Unknown { .. } => true,
            Self::Transport(error) => error.is_transient(),
        }
    }
}

/// Why a broker could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No host of the list answered.
    #[error("reach the broker at {host}: {reason}")]
    Unreachable {
        /// The hosts that were tried, without credentials.
        host: String,
        /// What happened at the last of them.
        reason: String,
    },
    /// The broker does not let us in: password, user or virtual host.
    #[error(
        "log in to the broker at {host}: {reason}; check user, password and virtual host of --amqp-url, or --password-file"
    )]
    LoginRefused {
        /// The host.
        host: String,
        /// The broker's words.
        reason: String,
    },
    /// The two sides do not agree on TLS: a certificate that cannot be trusted, the broker's or ours.
    #[error("set up TLS with the broker at {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file that the connection needs cannot be used.
    #[error("read {what} from {}: {reason}", path.display())]
    File {
        /// What is in it, and which setting names it.
        what: String,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The broker refuses an operation: missing queue, missing permission, conflicting arguments.
    #[error("{operation}: {reason}")]
    Refused {
        /// What was asked of the broker, with the name of the queue or exchange.
        operation: String,
        /// The broker's words.
        reason: String,
    },
    /// The broker has the queue, and cannot reach it: the queue's node is down, or is only just starting.
    #[error("{operation}: {reason}")]
    Unavailable {
        /// What was asked of the broker, with the name of the queue.
        operation: String,
        /// The broker's words.
        reason: String,
    },
    /// The connection was lost on the way.
    #[error("{operation}: {reason}")]
    Lost {
        /// What was asked of the broker.
        operation: String,
        /// What happened.
        reason: String,
    },
    /// The client itself can go on no longer; the process has to start afresh.
    #[error("reach the broker at {host}: {reason}")]
    Exhausted {
        /// The hosts that were tried, without credentials.
        host: String,
        /// What is used up.
        reason: String,
    },
    /// The address cannot be understood.
    #[error("understand the broker address: {reason}")]
    Address {
        /// What is wrong with it, without credentials.
        reason: String,
    },
}

impl TransportError {
    /// Whether the broker says that it has no such exchange.
    #[must_use]
    pub fn is_missing_exchange(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason.starts_with("NOT_FOUND - no exchange"))
    }

    /// Whether trying again later may help without anybody changing a setting.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Lost { .. }
        )
    }

    /// Whether the broker has let us in, and said no to what was asked: about the operation, not about the connection.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}
