//! Publishing with confirms.
//!
//! A pool of confirm-mode channels, each checked out by one publisher at a time: concurrent publishes on a shared
//! channel get each other's confirms, and returned messages attach to the wrong one. A publisher of many messages sends them
//! one after the other, and tells of all once all have their answers. A channel whose publish did not
//! end well is thrown away, so that a late confirm can never be taken for the next one's.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool::managed::{self, Object, Pool, PoolError, RecycleError, RecycleResult};
use futures_util::{FutureExt, TryFutureExt};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Confirmation, PublisherConfirm};
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
            .map_err(|_| self.no_confirm(publication))??;
        (self.observer)(BrokerEvent::Confirmed {
            waited: started.elapsed(),
        });
        judge(confirmation, publication)
    }

    /// Publishes on one channel with all confirms under way at once. The deadline is for the next step to be done, and
    /// does not pass while the broker says that it takes nothing: to send the rest again then would only double it.
    pub(super) async fn publish_many(&self, publications: &[Publication]) -> Vec<Result<(), PublishError>> {
        let started = Instant::now();
        let channel = match self.in_time(self.channels.get()).await {
            Some(Ok(channel)) => channel,
            Some(Err(error)) => return none_sent(publications, pool_error(error)),
            None => return none_sent(publications, self.no_channel()),
        };
        let mut checkout = Checkout {
            channel: Some(channel),
            clean: false,
        };
        let confirmed = self.confirm_many(&checkout, publications).await;
        checkout.clean = confirmed.iter().all(Result::is_ok);
        (self.observer)(BrokerEvent::Confirmed {
            waited: started.elapsed(),
        });
        judge_many(confirmed, publications)
    }

    /// Sends all, one after the other, since that is what keeps confirms apart, and waits for all confirms.
    async fn confirm_many(
        &self,
        channel: &Channel,
        publications: &[Publication],
    ) -> Vec<Result<Confirmation, PublishError>> {
        let mut sent = Vec::with_capacity(publications.len());
        for publication in publications {
            sent.push(send(channel, publication).await);
        }
        let mut is_late = false;
        let mut confirmed = Vec::with_capacity(publications.len());
        for (publication, sent) in publications.iter().zip(sent) {
            confirmed.push(match sent {
                Err(error) => Err(error),
                Ok(confirm) => {
                    let confirm = confirm.map_err(|error| failed(publication, &error));
                    // Once one is late, the rest are only looked at.
                    let confirm = match is_late {
                        false => self.in_time(confirm).await,
                        true => confirm.now_or_never(),
                    };
                    is_late |= confirm.is_none();
                    confirm.unwrap_or_else(|| Err(self.no_confirm(publication)))
                }
            });
        }
        confirmed
    }

    /// Waits as long as a confirm may take, and longer while the broker takes nothing from anybody.
    async fn in_time<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(self.confirm_timeout, work.as_mut()).await {
                return Some(done);
            }
            let session = self.channels.manager().session.lock().await;
            if !session
                .as_ref()
                .is_some_and(|session| session.is_open() && session.is_blocked())
            {
                return None;
            }
        }
    }

    fn no_confirm(&self, publication: &Publication) -> PublishError {
        let waited = self.confirm_timeout;
        unknown(publication, format!("no confirm within {waited:?}"))
    }

    fn no_channel(&self) -> PublishError {
        PublishError::Transport(TransportError::Lost {
            operation: "take a publishing channel".to_owned(),
            reason: format!("none was open within {:?}", self.confirm_timeout),
        })
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
    let sent = send(channel, publication).await?;
    sent.await.map_err(|error| failed(publication, &error))
}

async fn send(channel: &Channel, publication: &Publication) -> Result<PublisherConfirm, PublishError> {
    let options = BasicPublishOptions {
        mandatory: publication.routing == Routing::Mandatory,
        ..BasicPublishOptions::default()
    };
    channel
        .basic_publish(
            short(&publication.exchange)?,
            short(&publication.routing_key)?,
            options,
            &publication.envelope.body,
            wire::properties(&publication.envelope.properties)?,
        )
        .await
        .map_err(|error| failed(publication, &error))
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

/// The same for a window of messages. What was returned came with any confirm of the window, and is known by its id.
fn judge_many(
    mut confirmed: Vec<Result<Confirmation, PublishError>>,
    publications: &[Publication],
) -> Vec<Result<(), PublishError>> {
    let mut returned = BTreeSet::new();
    for confirmation in confirmed.iter_mut().flatten() {
        if let Confirmation::Ack(message) | Confirmation::Nack(message) = confirmation
            && let Some(message) = message.take()
        {
            returned.insert(message.properties.message_id().as_ref().map(ToString::to_string));
        }
    }
    let each = confirmed.into_iter().zip(publications);
    each.map(|(confirmation, publication)| {
        let is_returned = returned.contains(&publication.envelope.properties.message_id);
        if is_returned && publication.routing == Routing::Mandatory {
            let (exchange, routing_key) = route(publication);
            return Err(PublishError::Unroutable { exchange, routing_key });
        }
        judge(confirmation?, publication)
    })
    .collect()
}

/// Nothing was sent: the first is told why, the others that it was for the same reason.
fn none_sent(publications: &[Publication], error: PublishError) -> Vec<Result<(), PublishError>> {
    let others = publications.iter().skip(1).map(|_| {
        Err(PublishError::Transport(TransportError::Lost {
            operation: "publish".to_owned(),
            reason: error.to_string(),
        }))
    });
    let others: Vec<_> = others.collect();
    std::iter::once(Err(error))
        .chain(others)
        .take(publications.len())
        .collect()
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
