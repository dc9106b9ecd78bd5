//! RabbitMQ, and any other AMQP 0-9-1 broker with its extensions.
//!
//! A consumer lives in a session of its own ([`session`]): connection, channel, topology, prefetch and consumer are
//! built together and dropped together, so an acknowledgement can never reach the wrong channel. lapin's automatic
//! recovery stays off: it loses events and hangs. Who subscribes decides when to subscribe again.
//!
//! Publishing uses another connection ([`publish`]), because a broker that is short of memory or disk stops *all* that
//! a publishing connection writes, acknowledgements included.
//!
//! Between lapin and its socket stands a [`screen`]: it has no headers reach lapin that would end the process.

mod access;
mod address;
mod consume;
mod greeting;
mod inspect;
mod publish;
mod screen;
mod session;
mod socket;
mod tls;
mod topology;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use lapin::types::ShortString;

use super::topology::{Declare, Topology};
use super::{
    BrokerObserver, Publication, PublishError, QueueDepth, Subscribe, Topic, Transport, TransportError, Version,
};
pub use access::{Access, AddressSource};
pub use address::Addresses;
use consume::AmqpSubscription;
pub use inspect::{Found, Presence, Right};
use publish::Publisher;
use session::Connector;
pub use tls::{NamedFile, TlsOptions};

/// How long one host may take from the first packet to an open connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a confirm may take before its publish counts as unknown.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach the broker.
#[derive(Clone)]
pub struct AmqpConfig {
    /// The hosts, with user, password, virtual host and certificates.
    pub access: Access,
    /// What the broker's own pages call our connections.
    pub connection_name: String,
    /// How long one host may take to let us in.
    pub connect_timeout: Duration,
    /// How long a confirm may take.
    pub confirm_timeout: Duration,
    /// Told of connections and confirms.
    pub observer: BrokerObserver,
}

impl AmqpConfig {
    /// A configuration with the default deadlines that tells nobody.
    #[must_use]
    pub fn new(access: impl Into<Access>) -> Self {
        Self {
            access: access.into(),
            connection_name: concat!("synthex ", env!("CARGO_PKG_VERSION")).to_owned(),
            connect_timeout: CONNECT_TIMEOUT,
            confirm_timeout: CONFIRM_TIMEOUT,
            observer: Arc::new(|_| {}),
        }
    }
}

/// The AMQP transport. Connects when it is first used.
#[derive(Clone)]
pub struct Amqp {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Arc<Connector>,
    publisher: Publisher,
    observer: BrokerObserver,
}

impl Amqp {
    /// A transport that will connect as `config` says.
    #[must_use]
    pub fn new(config: AmqpConfig) -> Self {
        let observer = config.observer.clone();
        let confirm_timeout = config.confirm_timeout;
        let connector = Arc::new(Connector::new(config));
        let publisher = Publisher::new(connector.clone(), confirm_timeout, observer.clone());
        Self {
            shared: Arc::new(Shared {
                connector,
                publisher,
                observer,
            }),
        }
    }

    /// Closes the publishing connection in the way the broker expects, so that it logs no abrupt end.
    pub async fn close(&self) {
        self.shared.publisher.close().await;
    }
}

impl Transport for Amqp {
    type Subscription = AmqpSubscription;

    async fn declare(&self, topology: &Topology, how: Declare) -> Result<(), TransportError> {
        let connection = self.shared.publisher.connection().await?;
        topology::declare(&connection, topology, how).await
    }

    async fn subscribe(&self, request: &Subscribe) -> Result<AmqpSubscription, TransportError> {
        AmqpSubscription::open(&self.shared.connector, request, self.shared.observer.clone()).await
    }

    async fn listen(&self, topics: &[Topic]) -> Result<(String, AmqpSubscription), TransportError> {
        AmqpSubscription::open_private(&self.shared.connector, topics, None, self.shared.observer.clone()).await
    }

    async fn overhear(&self, topics: &[Topic], most: u32) -> Result<(String, AmqpSubscription), TransportError> {
        AmqpSubscription::open_private(&self.shared.connector, topics, Some(most), self.shared.observer.clone()).await
    }

    async fn publish(&self, publication: &Publication) -> Result<(), PublishError> {
        self.shared.publisher.publish(publication).await
    }

    async fn publish_many(&self, publications: &[Publication]) -> Vec<Result<(), PublishError>> {
        self.shared.publisher.publish_many(publications).await
    }

    async fn remove_queue(&self, queue: &str) -> Result<(), TransportError> {
        let connection = self.shared.publisher.connection().await?;
        topology::remove(&connection, queue).await
    }

    async fn version(&self) -> Option<Version> {
        Version::read(&self.shared.connector.version().await?)
    }

    async fn queue_depth(&self, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
        let connection = self.shared.publisher.connection().await?;
        topology::depth(&connection, queue).await
    }
}

/// AMQP reply codes that decide what an error means.
mod reply {
    pub(super) const ACCESS_REFUSED: u16 = 403;
    pub(super) const NOT_FOUND: u16 = 404;
    pub(super) const RESOURCE_LOCKED: u16 = 405;
    pub(super) const PRECONDITION_FAILED: u16 = 406;
    pub(super) const NOT_ALLOWED: u16 = 530;
    pub(super) const NOT_IMPLEMENTED: u16 = 540;
}

/// The broker's reply code, when the error is its answer.
fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// Whether the broker has no such exchange or queue. It answers with the same code where it has the queue and cannot reach
/// it, so that only its words tell: "NOT_FOUND - no queue …" of one that is not there, "NOT_FOUND - home node … of durable
/// queue … is down or inaccessible", "… due to timeout" and others of one that is.
fn is_missing(error: &lapin::Error) -> bool {
    reply_code(error) == Some(reply::NOT_FOUND) && words(error).starts_with("NOT_FOUND - no ")
}

/// An error of an operation on an open connection: the broker's refusal, or the connection's end.
fn operation_error(operation: &str, error: &lapin::Error) -> TransportError {
    let operation = operation.to_owned();
    let reason = words(error);
    match reply_code(error) {
        Some(reply::NOT_FOUND) if !is_missing(error) => TransportError::Unavailable { operation, reason },
        Some(
            reply::ACCESS_REFUSED
            | reply::NOT_FOUND
            | reply::RESOURCE_LOCKED
            | reply::PRECONDITION_FAILED
            | reply::NOT_ALLOWED
            | reply::NOT_IMPLEMENTED,
        ) => TransportError::Refused { operation, reason },
        _ => TransportError::Lost { operation, reason },
    }
}

/// What an error says, without lapin's own words around it.
fn words(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => error.get_message().to_string().trim_end_matches('.').to_owned(),
        lapin::ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

/// A name as AMQP carries it: at most 255 bytes.
fn short(name: &str) -> Result<ShortString, TransportError> {
    ShortString::try_new(name).map_err(|_| TransportError::Refused {
        operation: format!("use the name {name:?}"),
        reason: format!("it has {} bytes, AMQP allows 255", name.len()),
    })
}
