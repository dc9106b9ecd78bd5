//! Publishing with confirms.
//!
//! A pool of confirm-mode channels, each checked out by one publisher at a time: concurrent publishes on a shared
//! channel get each other's confirms, and returned messages attach to the wrong one. A channel whose publish did not
//! end well is thrown away, so that a late confirm can never be taken for the next one's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::managed::{self, Object, Pool, PoolError, RecycleError, RecycleResult};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation};
use tokio::sync::Mutex;

use super::session::{Connector, Session};
use super::{operation_error, reply, reply_code, short, wire};
use crate::transport::{BrokerEvent, BrokerObserver, Publication, PublishError, Routing, TransportError};

/// Addresses that the broker makes up; one that it did not make up ends the connection.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";
/// Publishes under way at once.
const CHANNELS: usize = 32;

pub(super) struct Publisher {
    channels: Pool<ConfirmChannels>,
    confirm_timeout: Duration,
    observer: BrokerObserver,
}

impl Publisher {
    pub(super) fn new(connector: Arc<Connector>, confirm_timeout: Duration, observer: BrokerObserver) -> Self {
        let manager = ConfirmChannels {
            connector,
            session: Mutex::new(None),
        };
        let channels = Pool::builder(manager)
            .max_size(CHANNELS)
            .build()
            .expect("a pool without time-outs of its own needs no runtime to build");
        Self {
            channels,
            confirm_timeout,
            observer,
        }
    }

    /// The connection that publishes, opened when it is not open.
    pub(super) async fn connection(&self) -> Result<Arc<Session>, TransportError> {
        self.channels.manager().session().await
    }

    pub(super) async fn close(&self) {
        self.channels.close();
        if let Some(session) = self.channels.manager().session.lock().await.take() {
            session.close().await;
        }
    }

    /// Publishes and waits for the confirm, with one deadline over all of it: a connection that the broker blocks
    /// answers nothing, not even the opening of a channel.
    pub(super) async fn publish(&self, publication: &Publication) -> Result<(), PublishError> {
        let started = Instant::now();
        let attempt = self.on_a_channel(publication);
        let confirmation = tokio::time::timeout(self.confirm_timeout, attempt)
            .await
            .map_err(|_| {
                let waited = self.confirm_timeout;
                unknown(publication, format!("no confirm within {waited:?}"))
            })??;
        (self.observer)(BrokerEvent::Confirmed {
            waited: started.elapsed(),
        });
        judge(confirmation, publication)
    }

    async fn on_a_channel(&self, publication: &Publication) -> Result<Confirmation, PublishError> {
        let mut checkout = Checkout {
            channel: Some(self.channels.get().await.map_err(pool_error)?),
            clean: false,
        };
        let confirmation = confirm(&checkout, publication).await?;
        checkout.clean = true;
        Ok(confirmation)
    }
}

async fn confirm(channel: &Channel, publication: &Publication) -> Result<Confirmation, PublishError> {
    let options = BasicPublishOptions {
        mandatory: publication.routing == Routing::Mandatory,
        ..BasicPublishOptions::default()
    };
    let sent = channel
        .basic_publish(
            short(&publication.exchange)?,
            short(&publication.routing_key)?,
            options,
            &publication.envelope.body,
            wire::properties(&publication.envelope.properties)?,
        )
        .await
        .map_err(|error| failed(publication, &error))?;
    sent.await.map_err(|error| failed(publication, &error))
}

/// Success is an ack with nothing returned in it; all else comes as `Ok` too.
fn judge(confirmation: Confirmation, publication: &Publication) -> Result<(), PublishError> {
    let (exchange, routing_key) = route(publication);
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) => {
            Err(PublishError::Unroutable { exchange, routing_key })
        }
        Confirmation::Nack(None) => Err(PublishError::Refused { exchange, routing_key }),
        Confirmation::NotRequested => Err(unknown(publication, "the channel was not in confirm mode".to_owned())),
    }
}

/// A missing exchange or permission is for people to mend, any other answer is a no to this message; without an answer
/// the outcome is unknown.
fn failed(publication: &Publication, error: &lapin::Error) -> PublishError {
    match reply_code(error) {
        Some(reply::ACCESS_REFUSED | reply::NOT_FOUND) => {
            let operation = format!("publish to exchange {:?}", publication.exchange);
            PublishError::Transport(operation_error(&operation, error))
        }
        Some(_) if is_answer_to(publication, error) => {
            let (exchange, routing_key) = route(publication);
            PublishError::Refused { exchange, routing_key }
        }
        _ => unknown(publication, error.to_string()),
    }
}

/// Whether an error is about this message. The end of the whole connection may be about another one on it, unless this
/// one has an address that is known to bring it about.
fn is_answer_to(publication: &Publication, error: &lapin::Error) -> bool {
    error.is_amqp_soft_error() || publication.routing_key.starts_with(DIRECT_REPLY_TO)
}

fn unknown(publication: &Publication, reason: String) -> PublishError {
    let (exchange, routing_key) = route(publication);
    PublishError::Unknown {
        exchange,
        routing_key,
        reason,
    }
}

fn route(publication: &Publication) -> (String, String) {
    (publication.exchange.clone(), publication.routing_key.clone())
}

fn pool_error(error: PoolError<TransportError>) -> PublishError {
    match error {
        PoolError::Backend(error) => PublishError::Transport(error),
        other => PublishError::Transport(TransportError::Lost {
            operation: "take a publishing channel".to_owned(),
            reason: other.to_string(),
        }),
    }
}

/// A channel that goes back to the pool only if its publish came to a clean end: also not when the future that holds
/// it is dropped half-way.
struct Checkout {
    channel: Option<Object<ConfirmChannels>>,
    clean: bool,
}

impl std::ops::Deref for Checkout {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        self.channel.as_ref().expect("taken only in drop")
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        if let (Some(object), false) = (self.channel.take(), self.clean) {
            drop(Object::take(object));
        }
    }
}

/// Makes confirm-mode channels on one connection, which it opens again when it is lost.
struct ConfirmChannels {
    connector: Arc<Connector>,
    session: Mutex<Option<Arc<Session>>>,
}

impl ConfirmChannels {
    /// One task connects, the others wait for it: the lock is held over the attempt on purpose.
    async fn session(&self) -> Result<Arc<Session>, TransportError> {
        let mut current = self.session.lock().await;
        if let Some(session) = current.as_ref().filter(|session| session.is_open()) {
            return Ok(session.clone());
        }
        let session = Arc::new(self.connector.connect("publisher").await?);
        *current = Some(session.clone());
        Ok(session)
    }
}

impl managed::Manager for ConfirmChannels {
    type Type = Channel;
    type Error = TransportError;

    async fn create(&self) -> Result<Channel, TransportError> {
        let channel = self.session().await?.channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .map_err(|error| operation_error("turn confirms on", &error))?;
        Ok(channel)
    }

    async fn recycle(&self, channel: &mut Channel, _: &managed::Metrics) -> RecycleResult<TransportError> {
        if channel.status().connected() {
            Ok(())
        } else {
            Err(RecycleError::message("the channel is closed"))
        }
    }
}
