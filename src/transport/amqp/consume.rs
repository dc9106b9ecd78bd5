//! A consumer and the settling of its deliveries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery as LapinDelivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Acker, Channel, Consumer};

use super::session::{Connector, Session};
use super::{operation_error, short, topology, wire, words};
use crate::transport::{
    Barrier, BoxFuture, BrokerEvent, BrokerObserver, Delivery, STREAM_OFFSET, SettleError, Settlement, Settler,
    StreamOffset, Subscribe, Subscription, SubscriptionEnd, Topic, TransportError,
};

/// Without a delivery for so long, nothing is taken to be under way.
const SETTLED: Duration = Duration::from_millis(100);
/// How long deliveries may keep coming before the consumer is cancelled all the same.
const SETTLING_MAX: Duration = Duration::from_secs(1);

/// How long a settlement may take to be written. On a connection that is just being lost it may never be, and nobody
/// says so.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Replies that may wait in an inbox unsettled.
const INBOX_PREFETCH: u16 = 256;

/// A live consumer on a session of its own, which lives as long as it and its deliveries.
pub struct AmqpSubscription {
    source: Source,
    consumer: Consumer,
    /// Came to a consumer that has been replaced since, and not taken yet.
    overdue: VecDeque<LapinDelivery>,
    live: Arc<Live>,
    state: State,
    end: SubscriptionEnd,
    observer: BrokerObserver,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Consuming,
    /// Asked for no more; what is on its way still comes.
    Cancelled,
    Ended,
}

/// What is consumed, and how.
struct Source {
    queue: String,
    prefetch: u16,
    /// In a stream.
    from: Option<StreamOffset>,
    /// Other consumers may get what is not settled here, marked as redelivered: no stream, no private queue.
    is_shared: bool,
    arguments: FieldTable,
}

/// What must stay open until the last delivery is settled.
struct Live {
    channel: Channel,
    /// The broker has taken back what it had handed out.
    taken_away: AtomicBool,
    /// It reads a stream.
    of_stream: bool,
    _session: Session,
}

impl Live {
    /// What can be done with a delivery: a stream closes the channel over anything but an ack, and loses nothing by that.
    fn possible(&self, how: Settlement) -> Settlement {
        if self.of_stream { Settlement::Ack } else { how }
    }
}

impl AmqpSubscription {
    /// Builds the whole session: connection, topology, prefetch, consumer.
    pub(super) async fn open(
        connector: &Connector,
        request: &Subscribe,
        observer: BrokerObserver,
    ) -> Result<Self, TransportError> {
        let session = connector.connect(&format!("consumer of {}", request.queue)).await?;
        topology::declare(&session, &request.topology, request.declare).await?;
        let channel = session.channel().await?;
        let mut arguments = FieldTable::default();
        if let Some(timeout) = request.consumer_timeout {
            let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
            arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(millis));
        }
        if let Some(from) = request.from {
            arguments.insert(STREAM_OFFSET.into(), offset(from));
        }
        let source = Source {
            queue: request.queue.clone(),
            prefetch: request.prefetch,
            from: request.from,
            is_shared: request.from.is_none(),
            arguments,
        };
        Self::live(session, channel, source, observer).await
    }

    /// Opens a queue that only this connection sees and that goes with it; with `most`, it drops its oldest messages.
    pub(super) async fn open_private(
        connector: &Connector,
        topics: &[Topic],
        most: Option<u32>,
        observer: BrokerObserver,
    ) -> Result<(String, Self), TransportError> {
        let session = connector.connect("inbox").await?;
        let channel = session.channel().await?;
        let options = QueueDeclareOptions {
            exclusive: true,
            auto_delete: true,
            ..QueueDeclareOptions::default()
        };
        let mut arguments = FieldTable::default();
        if let Some(most) = most {
            arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(most.into()));
            arguments.insert("x-overflow".into(), AMQPValue::LongString("drop-head".into()));
        }
        let queue = channel
            .queue_declare("".into(), options, arguments)
            .await
            .map_err(|error| operation_error("declare a private reply queue", &error))?;
        let name = queue.name().to_string();
        for topic in topics {
            topology::bind(&channel, &name, &topic.exchange, &topic.routing_key).await?;
        }
        let source = Source {
            queue: name.clone(),
            prefetch: INBOX_PREFETCH,
            from: None,
            is_shared: false,
            arguments: FieldTable::default(),
        };
        Ok((name, Self::live(session, channel, source, observer).await?))
    }

    async fn live(
        session: Session,
        channel: Channel,
        source: Source,
        observer: BrokerObserver,
    ) -> Result<Self, TransportError> {
        // Per consumer, never global: quorum queues end the connection over global prefetch. The channel's next consumers
        // have it too.
        channel
            .basic_qos(source.prefetch, BasicQosOptions::default())
            .await
            .map_err(|error| operation_error("set the prefetch", &error))?;
        let consumer = source.consume(&channel).await?;
        let of_stream = source.from.is_some();
        observer(BrokerEvent::Connected {
            host: session.host().to_owned(),
        });
        Ok(Self {
            source,
            consumer,
            overdue: VecDeque::new(),
            live: Arc::new(Live {
                channel,
                taken_away: AtomicBool::new(false),
                of_stream,
                _session: session,
            }),
            state: State::Consuming,
            end: SubscriptionEnd::Lost("closed by us".to_owned()),
            observer,
        })
    }

    /// Takes what is under way, until nothing more comes for a while.
    async fn settle_down(&mut self) {
        while let Ok(next) = tokio::time::timeout(SETTLED, self.consumer.next()).await {
            match next {
                Some(Ok(delivery)) => self.overdue.push_back(delivery),
                Some(Err(error)) => return self.finish(why(&error)),
                None => return self.end_by_broker(),
            }
        }
    }

    /// Puts another consumer in the place of this one: the broker counts unsettled deliveries for each by itself. The
    /// stream of a cancelled consumer ends after all that it was sent.
    async fn replace(&mut self) -> lapin::Result<Result<(), TransportError>> {
        let tag = self.consumer.tag();
        self.live
            .channel
            .basic_cancel(tag, BasicCancelOptions::default())
            .await?;
        while let Some(delivery) = self.consumer.next().await {
            self.overdue.push_back(delivery?);
        }
        let replaced = self.source.consume(&self.live.channel).await;
        Ok(replaced.map(|consumer| self.consumer = consumer))
    }

    fn finish(&mut self, end: SubscriptionEnd) {
        if self.state != State::Ended {
            self.state = State::Ended;
            let (SubscriptionEnd::Lost(reason) | SubscriptionEnd::Unreadable(reason)) = end.clone();
            self.end = end;
            (self.observer)(BrokerEvent::Disconnected { reason });
        }
    }

    fn end_by_broker(&mut self) {
        // What it had is in its queue again, or gone with it, though the channel would still take an ack.
        self.live.taken_away.store(true, Ordering::Relaxed);
        self.lose("the broker cancelled the consumer: its queue is gone or has moved");
    }

    fn lose(&mut self, reason: &str) {
        self.finish(SubscriptionEnd::Lost(reason.to_owned()));
    }

    fn delivery(&self, delivery: LapinDelivery) -> Delivery {
        let settler = AmqpSettler {
            acker: delivery.acker,
            settled: false,
            live: self.live.clone(),
        };
        Delivery::new(
            wire::envelope(delivery.properties, delivery.data),
            delivery.routing_key.to_string(),
            delivery.redelivered,
            Box::new(settler),
        )
    }
}

impl Subscription for AmqpSubscription {
    async fn next(&mut self) -> Option<Delivery> {
        // lapin's stream pends for ever when it is polled after its end.
        while self.state != State::Ended {
            let next = match self.overdue.pop_front() {
                Some(overdue) => Some(Ok(overdue)),
                None => self.consumer.next().await,
            };
            match next {
                Some(Ok(delivery)) if delivery.acker.usable() => {
                    return Some(self.delivery(delivery));
                }
                Some(Ok(_)) => {} // of a channel that is gone: it comes again
                Some(Err(error)) => self.finish(why(&error)),
                None if self.state == State::Cancelled => self.lose("cancelled by us"),
                None => self.end_by_broker(),
            }
        }
        None
    }

    fn end(&self) -> SubscriptionEnd {
        self.end.clone()
    }

    /// A channel does things in their order, so its answer to anything comes after the settlements before it. The
    /// prefetch is asked for once more: that changes nothing.
    fn barrier(&self) -> Barrier {
        let (channel, prefetch) = (self.live.channel.clone(), self.source.prefetch);
        Box::new(move || {
            let channel = channel.clone();
            Box::pin(async move { channel.basic_qos(prefetch, BasicQosOptions::default()).await.is_ok() })
        })
    }

    async fn extend(&mut self) -> Result<(), TransportError> {
        if self.state != State::Consuming {
            return Ok(());
        }
        let replaced = match self.replace().await {
            Ok(replaced) => replaced,
            Err(error) => {
                self.finish(why(&error));
                let operation = format!("consume queue {:?}", self.source.queue);
                return Err(operation_error(&operation, &error));
            }
        };
        if let Err(error) = &replaced {
            self.lose(&error.to_string());
        }
        replaced
    }

    /// What a quorum queue sends while its consumer is being cancelled reaches nobody, and comes again as redelivered. A
    /// consumer that settles nothing soon has all that it can get, so that nothing is under way.
    async fn cancel(&mut self) {
        if self.state != State::Consuming {
            return;
        }
        if self.source.is_shared {
            let _ = tokio::time::timeout(SETTLING_MAX, self.settle_down()).await;
        }
        if self.state == State::Ended {
            return;
        }
        self.state = State::Cancelled;
        let tag = self.consumer.tag();
        let cancelled = self.live.channel.basic_cancel(tag, BasicCancelOptions::default()).await;
        if let Err(error) = cancelled {
            self.finish(why(&error));
        }
    }
}

/// Deliveries that are still held keep the session open, so what nobody took has to go back by itself.
impl Drop for AmqpSubscription {
    fn drop(&mut self) {
        if self.state == State::Consuming {
            let tag = self.consumer.tag();
            // As below: the first poll hands the frame to the connection's writer.
            let _ = self
                .live
                .channel
                .basic_cancel(tag, BasicCancelOptions::default())
                .now_or_never();
        }
        for delivery in self.overdue.drain(..) {
            let _ = send(&delivery.acker, self.live.possible(Settlement::GiveBack)).now_or_never();
        }
        while let Some(Some(Ok(delivery))) = self.consumer.next().now_or_never() {
            let _ = send(&delivery.acker, self.live.possible(Settlement::GiveBack)).now_or_never();
        }
        self.lose("closed by us");
    }
}

/// A stream's offset, as a consumer asks for it.
fn offset(from: StreamOffset) -> AMQPValue {
    match from {
        StreamOffset::First => AMQPValue::LongString("first".into()),
        StreamOffset::Next => AMQPValue::LongString("next".into()),
        StreamOffset::At(offset) => AMQPValue::LongLongInt(i64::try_from(offset).unwrap_or(i64::MAX)),
    }
}

fn why(error: &lapin::Error) -> SubscriptionEnd {
    match error.kind() {
        lapin::ErrorKind::ParsingError(_) => SubscriptionEnd::Unreadable(words(error)),
        _ => SubscriptionEnd::Lost(words(error)),
    }
}

impl Source {
    async fn consume(&self, channel: &Channel) -> Result<Consumer, TransportError> {
        let queue = short(&self.queue)?;
        channel
            .basic_consume(queue, "".into(), BasicConsumeOptions::default(), self.arguments.clone())
            .await
            .map_err(|error| operation_error(&format!("consume queue {:?}", self.queue), &error))
    }
}

/// Settles through the delivery's own acker, never by a bare tag on whatever channel is current.
struct AmqpSettler {
    acker: Acker,
    settled: bool,
    live: Arc<Live>,
}

impl Settler for AmqpSettler {
    fn settle(mut self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<(), SettleError>> {
        Box::pin(async move {
            self.settled = true;
            if !self.is_live() {
                return Err(SettleError);
            }
            let sending = send(&self.acker, self.live.possible(how));
            match tokio::time::timeout(SETTLE_TIMEOUT, sending).await {
                Ok(Ok(true)) => Ok(()),
                // `Ok(false)`: nothing was sent, because the channel is gone.
                Ok(Ok(false) | Err(_)) | Err(_) => Err(SettleError),
            }
        })
    }

    fn is_live(&self) -> bool {
        self.acker.usable() && !self.live.taken_away.load(Ordering::Relaxed)
    }
}

impl Drop for AmqpSettler {
    fn drop(&mut self) {
        if !self.settled && self.is_live() {
            // The first poll hands the frame to the connection's writer; nobody has to wait for the rest.
            let _ = send(&self.acker, self.live.possible(Settlement::GiveBack)).now_or_never();
        }
    }
}

async fn send(acker: &Acker, how: Settlement) -> lapin::Result<bool> {
    match how {
        Settlement::Ack => acker.ack(BasicAckOptions::default()).await,
        Settlement::GiveBack => {
            let requeue = BasicNackOptions {
                requeue: true,
                ..BasicNackOptions::default()
            };
            acker.nack(requeue).await
        }
        Settlement::Reject => acker.reject(BasicRejectOptions::default()).await,
    }
}
