//! Looks at what is on a broker, and at what our user may do there, and changes none of it.
//!
//! AMQP has no question for either, but answers to what is asked of it in earnest:
//!
//! - whether something is there: a passive declaration, which needs no right;
//! - whether it has the arguments that we would give it: the same declaration in earnest, which changes nothing of what
//!   is there, and is refused (406) where an argument differs;
//! - whether we may publish to an exchange: a binding that does not exist is taken off it, for which the right to write
//!   to it is asked first (as RabbitMQ does for `exchange.unbind`, and for nothing else that changes so little);
//! - whether we may declare: a private queue, which is deleted at once;
//! - what time it is there: a message that dies in a private queue, on which the broker writes when.

use std::time::Duration;

use jiff::Timestamp;
use lapin::options::{ExchangeUnbindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::topology::Declarer;
use super::{Amqp, is_missing, operation_error, reply, reply_code, short, words};
use crate::message::{Envelope, HeaderValue, JobId, Properties};
use crate::transport::topology::{Declare, Exchange, Queue, Topology};
use crate::transport::{Publication, PublishError, Routing, Subscription, Transport, TransportError};

/// How long a message may take through two private queues.
const CLOCK_WITHIN: Duration = Duration::from_secs(5);
/// Another end for a binding that is not there; every broker has it.
const ANY_EXCHANGE: &str = "amq.direct";
/// Where a broker says when a message died.
const DEATHS: &str = "x-death";

/// A part of a topology, and how it is on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `exchange` or `queue`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// How it is.
    pub presence: Presence,
}

/// How something is on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// As it would be declared.
    Same,
    /// It is not there.
    Missing,
    /// It is there with other arguments: the broker's words name one.
    Differs(String),
    /// It is there, and the broker does not let us ask how: its words.
    Hidden(String),
    /// It is there, and the broker cannot reach it: its words.
    Unavailable(String),
}

/// Whether our user may do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// It may.
    Granted,
    /// It may not: the broker's words.
    Refused(String),
    /// There is nothing there to have a right to.
    Nothing,
}

impl Amqp {
    /// Looks at each exchange and queue. What is deleted at this very moment may be there again afterwards.
    ///
    /// # Errors
    /// When the broker cannot be reached, or is lost.
    pub async fn inspect(&self, topology: &Topology) -> Result<Vec<Found>, TransportError> {
        let mut found = Vec::new();
        for exchange in &topology.exchanges {
            let presence = self.presence(&Thing::Exchange(exchange)).await?;
            let (kind, name) = ("exchange", exchange.name.clone());
            found.push(Found { kind, name, presence });
        }
        for queue in &topology.queues {
            let presence = self.presence(&Thing::Queue(queue)).await?;
            let (kind, name) = ("queue", queue.name.clone());
            found.push(Found { kind, name, presence });
        }
        Ok(found)
    }

    async fn presence(&self, thing: &Thing<'_>) -> Result<Presence, TransportError> {
        match self.declare_one(thing, Declare::Passive).await? {
            Ok(()) => {}
            Err(error) if is_missing(&error) => return Ok(Presence::Missing),
            Err(error) => return hidden(thing, &error),
        }
        match self.declare_one(thing, Declare::Active).await? {
            Ok(()) => Ok(Presence::Same),
            Err(error) if reply_code(&error) == Some(reply::PRECONDITION_FAILED) => {
                Ok(Presence::Differs(words(&error)))
            }
            Err(error) => hidden(thing, &error),
        }
    }

    /// On a channel of its own, which a refusal closes.
    async fn declare_one(&self, thing: &Thing<'_>, how: Declare) -> Result<lapin::Result<()>, TransportError> {
        let session = self.shared.publisher.connection().await?;
        let declarer = Declarer::new(&session).await?;
        match thing {
            Thing::Exchange(exchange) => declarer.try_exchange(exchange, how).await,
            Thing::Queue(queue) => declarer.try_queue(queue, how).await,
        }
    }

    /// Whether we may publish to an exchange; an empty name is the default exchange.
    ///
    /// # Errors
    /// When the broker cannot be reached, or is lost.
    pub async fn may_publish(&self, exchange: &str) -> Result<Right, TransportError> {
        if exchange.is_empty() {
            return self.may_publish_to_queues().await;
        }
        let channel = self.shared.publisher.connection().await?.channel().await?;
        let nowhere = JobId::random().to_string();
        let unbound = channel
            .exchange_unbind(
                short(exchange)?,
                ANY_EXCHANGE.into(),
                short(&nowhere)?,
                ExchangeUnbindOptions::default(),
                FieldTable::default(),
            )
            .await;
        let Err(error) = unbound else { return Ok(Right::Granted) };
        match (reply_code(&error), words(&error)) {
            // The right to read the other end is asked for after it.
            (Some(reply::ACCESS_REFUSED), words) if !is_about(exchange, &words) => Ok(Right::Granted),
            (Some(reply::ACCESS_REFUSED), words) => Ok(Right::Refused(words)),
            (Some(reply::NOT_FOUND), _) => Ok(Right::Nothing),
            _ => Err(operation_error(
                &format!("ask whether we may publish to {exchange:?}"),
                &error,
            )),
        }
    }

    /// A message to a queue that is not there reaches nobody.
    async fn may_publish_to_queues(&self) -> Result<Right, TransportError> {
        match self.publish(&empty_message(&JobId::random().to_string())).await {
            Ok(()) => Ok(Right::Granted),
            Err(PublishError::Transport(TransportError::Refused { reason, .. })) => Ok(Right::Refused(reason)),
            Err(PublishError::Transport(error)) => Err(error),
            Err(error) => Err(lost("ask whether we may answer producers", &error.to_string())),
        }
    }

    /// Whether we may declare a queue whose name begins so.
    ///
    /// # Errors
    /// When the broker cannot be reached, or is lost.
    pub async fn may_declare(&self, prefix: &str) -> Result<Right, TransportError> {
        let name = format!("{prefix}{}", JobId::random());
        let channel = self.shared.publisher.connection().await?.channel().await?;
        let declared = channel
            .queue_declare(short(&name)?, private(), FieldTable::default())
            .await;
        match declared {
            Ok(_) => {
                // It goes with the connection all the same.
                let _ = channel.queue_delete(short(&name)?, QueueDeleteOptions::default()).await;
                Ok(Right::Granted)
            }
            Err(error) if reply_code(&error) == Some(reply::ACCESS_REFUSED) => Ok(Right::Refused(words(&error))),
            Err(error) => Err(operation_error("ask whether we may declare queues", &error)),
        }
    }

    /// What time it is at the broker, in whole seconds.
    ///
    /// # Errors
    /// When the broker does not say within a few seconds, for want of a right too.
    pub async fn clock(&self) -> Result<Timestamp, TransportError> {
        let (inbox, mut subscription) = self.inbox().await?;
        let channel = self.shared.publisher.connection().await?.channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(0));
        arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
        arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString(inbox.into()));
        let operation = "ask for the broker's time";
        let queue = channel
            .queue_declare("".into(), private(), arguments)
            .await
            .map_err(|error| operation_error(operation, &error))?;
        let name = queue.name().to_string();
        let sent = self.publish(&empty_message(&name)).await;
        sent.map_err(|error| lost(operation, &error.to_string()))?;
        let came = tokio::time::timeout(CLOCK_WITHIN, subscription.next()).await;
        // It goes with the connection all the same.
        let _ = channel.queue_delete(short(&name)?, QueueDeleteOptions::default()).await;
        let letter = came.ok().flatten().map(|delivery| delivery.envelope.properties.clone());
        letter
            .as_ref()
            .and_then(died_at)
            .ok_or_else(|| lost(operation, "it does not say when a message died"))
    }
}

enum Thing<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
}

/// A refusal says something of the thing, and so does its absence for now; any other error says something of the connection.
fn hidden(thing: &Thing<'_>, error: &lapin::Error) -> Result<Presence, TransportError> {
    let name = match thing {
        Thing::Exchange(exchange) => &exchange.name,
        Thing::Queue(queue) => &queue.name,
    };
    match operation_error(&format!("look at {name:?}"), error) {
        TransportError::Refused { reason, .. } => Ok(Presence::Hidden(reason)),
        TransportError::Unavailable { reason, .. } => Ok(Presence::Unavailable(reason)),
        other => Err(other),
    }
}

/// Whether the broker's words name this exchange.
fn is_about(exchange: &str, words: &str) -> bool {
    words.contains(&format!("exchange '{exchange}'"))
}

/// When the message died, by the latest entry of its header.
fn died_at(properties: &Properties) -> Option<Timestamp> {
    let HeaderValue::List(deaths) = properties.headers.get(DEATHS)? else {
        return None;
    };
    let HeaderValue::Table(newest) = deaths.first()? else {
        return None;
    };
    match newest.get("time")? {
        HeaderValue::Int(seconds) => Timestamp::from_second(*seconds).ok(),
        _ => None,
    }
}

fn private() -> QueueDeclareOptions {
    QueueDeclareOptions {
        exclusive: true,
        auto_delete: true,
        ..QueueDeclareOptions::default()
    }
}

fn empty_message(queue: &str) -> Publication {
    Publication {
        exchange: String::new(),
        routing_key: queue.to_owned(),
        routing: Routing::Optional,
        envelope: Envelope::default().into(),
    }
}

fn lost(operation: &str, reason: &str) -> TransportError {
    TransportError::Lost {
        operation: operation.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_about_the_exchange_that_it_names() {
        let words = "ACCESS_REFUSED - access to exchange 'n.jobs' in vhost '/' refused for user 'u'";
        assert!(is_about("n.jobs", words));
        assert!(!is_about("n.job", words) && !is_about("jobs", words));
    }

    #[test]
    fn the_time_of_a_death_is_that_of_its_latest_entry() {
        let death = |time: HeaderValue| HeaderValue::Table([("time".to_owned(), time)].into());
        let letter = |deaths: HeaderValue| Properties {
            headers: [(DEATHS.to_owned(), deaths)].into(),
            ..Properties::default()
        };
        let deaths = vec![death(HeaderValue::Int(1_700_000_000)), death(HeaderValue::Int(1))];
        let at = died_at(&letter(HeaderValue::List(deaths)));
        assert_eq!(at, Timestamp::from_second(1_700_000_000).ok());
        assert_eq!(died_at(&letter(HeaderValue::List(vec![death("late".into())]))), None);
        assert_eq!(died_at(&letter("late".into())), None);
    }
}
