//! Declares a topology, or checks that it is there.

use std::time::{Duration, Instant};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind as LapinKind};
use tracing::warn;

use super::session::Session;
use super::{is_missing, operation_error, reply, reply_code, short, words};
use crate::transport::topology::{Argument, Declare, Exchange, ExchangeKind, Queue, Topology};
use crate::transport::{QueueDepth, TransportError};

/// RabbitMQ gives a quorum queue's leader 250 ms to tell its size, and says then that there is nothing in it and nobody at
/// it (`rabbit_quorum_queue:stat/1`). So an empty answer that took about as long is doubted.
const NO_ANSWER_AFTER: Duration = Duration::from_millis(200);
/// How often a queue is asked before such an answer is believed: a far broker takes as long for a queue that is empty.
const LOOKS: usize = 5;

/// Declares all of it. What is there already with other arguments is taken as it is, with a warning that has the
/// broker's word for the argument: refusing to work would not change the queue.
pub(super) async fn declare(session: &Session, topology: &Topology, how: Declare) -> Result<(), TransportError> {
    let mut declarer = Declarer::new(session).await?;
    for exchange in &topology.exchanges {
        declarer.exchange(exchange, how).await?;
    }
    for queue in &topology.queues {
        declarer.queue(queue, how).await?;
    }
    if how == Declare::Active {
        for binding in &topology.bindings {
            bind(
                &declarer.channel,
                &binding.queue,
                &binding.exchange,
                &binding.routing_key,
            )
            .await?;
        }
    }
    Ok(())
}

/// Binds a queue; again is the same as once.
pub(super) async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), TransportError> {
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel
        .queue_bind(short(queue)?, short(exchange)?, short(key)?, options, arguments)
        .await
        .map_err(|error| operation_error(&format!("bind queue {queue:?} to {exchange:?}"), &error))
}

/// Asks for a queue's size; `None` when there is no such queue.
pub(super) async fn depth(session: &Session, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
    let channel = session.channel().await?; // its own: a missing queue closes it
    for _ in 1..LOOKS {
        let asked = Instant::now();
        let depth = look(&channel, queue).await?;
        let is_empty = depth.is_some_and(|depth| depth.messages == 0 && depth.consumers == 0);
        if !is_empty || asked.elapsed() < NO_ANSWER_AFTER {
            return Ok(depth);
        }
    }
    look(&channel, queue).await
}

async fn look(channel: &Channel, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let answer = channel
        .queue_declare(short(queue)?, options, FieldTable::default())
        .await;
    match answer {
        Ok(found) => Ok(Some(QueueDepth {
            messages: found.message_count(),
            consumers: found.consumer_count(),
        })),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(operation_error(&format!("look at queue {queue:?}"), &error)),
    }
}

/// Removes a queue, whatever is in it. RabbitMQ says nothing of one that is not there.
pub(super) async fn remove(session: &Session, queue: &str) -> Result<(), TransportError> {
    let channel = session.channel().await?;
    let removed = channel.queue_delete(short(queue)?, QueueDeleteOptions::default()).await;
    match removed {
        Err(error) if !is_missing(&error) => Err(operation_error(&format!("remove queue {queue:?}"), &error)),
        _ => Ok(()),
    }
}

/// Declares on one channel, and on a new one after the broker has closed it over a conflict.
pub(super) struct Declarer<'a> {
    session: &'a Session,
    channel: Channel,
}

impl<'a> Declarer<'a> {
    pub(super) async fn new(session: &'a Session) -> Result<Self, TransportError> {
        let channel = session.channel().await?;
        Ok(Self { session, channel })
    }

    async fn exchange(&mut self, exchange: &Exchange, how: Declare) -> Result<(), TransportError> {
        let operation = operation(how, "exchange", &exchange.name);
        match self.try_exchange(exchange, how).await? {
            Err(error) if is_conflict(how, &error) => {
                self.after_conflict(&operation, &error).await?;
                let passive = self.try_exchange(exchange, Declare::Passive).await?;
                passive.map_err(|error| operation_error(&operation, &error))
            }
            other => other.map_err(|error| operation_error(&operation, &error)),
        }
    }

    async fn queue(&mut self, queue: &Queue, how: Declare) -> Result<(), TransportError> {
        let operation = operation(how, "queue", &queue.name);
        match self.try_queue(queue, how).await? {
            Err(error) if is_conflict(how, &error) => {
                self.after_conflict(&operation, &error).await?;
                let passive = self.try_queue(queue, Declare::Passive).await?;
                passive.map_err(|error| operation_error(&operation, &error))
            }
            other => other.map_err(|error| operation_error(&operation, &error)),
        }
    }

    async fn after_conflict(&mut self, operation: &str, error: &lapin::Error) -> Result<(), TransportError> {
        warn!(
            "{operation}: it is there with other arguments and is used as it is: {}; to change it, drain it, \
             delete it and let it be declared again",
            words(error)
        );
        self.channel = self.session.channel().await?;
        Ok(())
    }

    pub(super) async fn try_exchange(
        &self,
        exchange: &Exchange,
        how: Declare,
    ) -> Result<lapin::Result<()>, TransportError> {
        let mut arguments = FieldTable::default();
        if let Some(alternate) = &exchange.alternate {
            arguments.insert(
                "alternate-exchange".into(),
                AMQPValue::LongString(alternate.as_str().into()),
            );
        }
        let options = ExchangeDeclareOptions {
            passive: how == Declare::Passive,
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let kind = match exchange.kind {
            ExchangeKind::Direct => LapinKind::Direct,
            ExchangeKind::Fanout => LapinKind::Fanout,
            ExchangeKind::Topic => LapinKind::Topic,
        };
        let name = short(&exchange.name)?;
        Ok(self.channel.exchange_declare(name, kind, options, arguments).await)
    }

    pub(super) async fn try_queue(&self, queue: &Queue, how: Declare) -> Result<lapin::Result<()>, TransportError> {
        let options = QueueDeclareOptions {
            passive: how == Declare::Passive,
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let name = short(&queue.name)?;
        let declared = self
            .channel
            .queue_declare(name, options, table(queue.arguments()))
            .await;
        Ok(declared.map(|_| ()))
    }
}

/// What is asked of the broker; where we only look, also who makes what is missing.
fn operation(how: Declare, what: &str, name: &str) -> String {
    match how {
        Declare::Active => format!("declare {what} {name:?}"),
        Declare::Passive => format!("find {what} {name:?}, which `synthex config apply` declares"),
    }
}

fn is_conflict(how: Declare, error: &lapin::Error) -> bool {
    how == Declare::Active && reply_code(error) == Some(reply::PRECONDITION_FAILED)
}

fn table(arguments: Vec<(&'static str, Argument)>) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        let value = match value {
            Argument::Text(text) => AMQPValue::LongString(text.into()),
            Argument::Integer(number) => AMQPValue::LongLongInt(number),
        };
        table.insert(name.into(), value);
    }
    table
}
