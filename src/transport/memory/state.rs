//! The broker's whole state, and what each operation does to it.
//!
//! Every operation is short and synchronous; its caller holds the lock. Time comes in as `now`. Messages move when
//! something happens to them: a publish or a settlement hands out what it can at once ([`State::dispatch`]). Only time
//! passes unasked, so every operation first lets expire what is due ([`State::expire`]), and who waits, waits no
//! longer than until the next expiry.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::consumer::{Consumer, ConsumerId, Tag};
use super::exchange::Exchanges;
use super::letter::{Letter, Message, Reason};
use super::queue::{Lifetime, QueueId, QueueState};
use crate::transport::topology::{DeadLetter, Queue};
use crate::transport::{
    Publication, PublishError, QueueDepth, Routing, SettleError, Settlement, StreamOffset, TransportError,
};

#[derive(Default)]
pub(super) struct State {
    pub(super) exchanges: Exchanges,
    /// The queue each name means; every one is in `queues`, and no binding or timer outlives its queue.
    pub(super) names: HashMap<String, QueueId>,
    pub(super) queues: BTreeMap<QueueId, QueueState>,
    consumers: BTreeMap<ConsumerId, Consumer>,
    unsettled: BTreeMap<Tag, Unsettled>,
    /// Queues whose messages expire.
    pub(super) timed: Vec<QueueId>,
    /// Nothing expires before this; what was first may be gone by then.
    next_expiry: Option<Instant>,
    /// Dead letters that had nowhere to go; each declare tries again. At-least-once dead-lettering keeps them too.
    pub(super) stranded: Vec<Letter>,
    last_id: u64,
}

/// A message that a consumer has.
struct Unsettled {
    message: Message,
    queue: QueueId,
    consumer: ConsumerId,
}

/// What a consumer finds when it looks.
pub(super) enum Next {
    Delivery(Taken),
    /// Nothing now; look again when told, or then.
    Wait(Option<Instant>),
    Ended,
}

/// A message that a consumer has taken; it makes its own copy of the letter, without the lock.
pub(super) struct Taken {
    pub(super) tag: Tag,
    pub(super) letter: Arc<Letter>,
    /// How often it came back.
    pub(super) returns: u32,
    /// Where it is, if it is in a stream.
    pub(super) offset: Option<u64>,
}

impl State {
    pub(super) fn add_queue(&mut self, queue: Queue, lifetime: Lifetime) -> QueueId {
        let id = QueueId(self.new_id());
        self.names.insert(queue.name.clone(), id);
        self.queues.insert(id, QueueState::new(queue, lifetime));
        id
    }

    /// Makes a queue that ends with its consumer, and returns its name; with `most`, it drops its oldest messages.
    pub(super) fn inbox(&mut self, most: Option<u32>) -> String {
        let name = format!("amq.gen-{}", self.new_id());
        let queue = Queue {
            name: name.clone(),
            ..Queue::default()
        };
        let id = self.add_queue(queue, Lifetime::Inbox);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.newest = most;
        }
        name
    }

    pub(super) fn consume(
        &mut self,
        queue: &str,
        prefetch: u16,
        from: Option<StreamOffset>,
        changed: Arc<Notify>,
    ) -> Result<ConsumerId, TransportError> {
        let Some(&queue_id) = self.names.get(queue) else {
            return Err(refused(format!("consume queue {queue:?}"), "there is no such queue"));
        };
        let id = ConsumerId(self.new_id());
        let consumer = Consumer::new(queue_id, prefetch, changed);
        self.consumers.insert(id, consumer);
        if let Some(queue) = self.queues.get_mut(&queue_id) {
            queue.admit(id, from.unwrap_or(StreamOffset::Next));
        }
        self.dispatch(queue_id);
        Ok(id)
    }

    pub(super) fn depth(&self, queue: &str) -> Option<QueueDepth> {
        let queue = &self.queues[self.names.get(queue)?];
        Some(QueueDepth {
            messages: u32::try_from(queue.depth()).unwrap_or(u32::MAX),
            consumers: queue.consumers,
        })
    }

    pub(super) fn publish(&mut self, publication: &Publication, now: Instant) -> Result<(), PublishError> {
        let (exchange, routing_key) = (&publication.exchange, &publication.routing_key);
        let Some(queues) = self.route(exchange, routing_key) else {
            let operation = format!("publish to exchange {exchange:?}");
            return Err(refused(operation, "there is no such exchange").into());
        };
        if queues.is_empty() {
            return match publication.routing {
                Routing::Optional => Ok(()),
                Routing::Mandatory => Err(PublishError::Unroutable {
                    exchange: exchange.clone(),
                    routing_key: routing_key.clone(),
                }),
            };
        }
        let mut full = false;
        let letter = Arc::new(Letter::from(publication));
        for id in queues {
            if self.queues[&id].is_full() {
                full = true; // the others get it all the same, as on RabbitMQ
            } else {
                self.enqueue(id, letter.clone(), now);
            }
        }
        if full {
            return Err(PublishError::Refused {
                exchange: exchange.clone(),
                routing_key: routing_key.clone(),
            });
        }
        Ok(())
    }

    pub(super) fn next(&mut self, id: ConsumerId) -> Next {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return Next::Ended;
        };
        let Some(tag) = consumer.buffer.pop_front() else {
            if consumer.accepting {
                return Next::Wait(self.next_expiry);
            }
            return Next::Ended;
        };
        let Unsettled { message, queue, .. } = &self.unsettled[&tag];
        let is_stream = self.queues.get(queue).is_some_and(QueueState::is_stream);
        Next::Delivery(Taken {
            tag,
            letter: message.letter.clone(),
            returns: message.returns,
            offset: is_stream.then_some(message.position),
        })
    }

    pub(super) fn is_unsettled(&self, tag: Tag) -> bool {
        self.unsettled.contains_key(&tag)
    }

    pub(super) fn settle(&mut self, tag: Tag, how: Settlement, now: Instant) -> Result<(), SettleError> {
        let settled = self.unsettled.remove(&tag).ok_or(SettleError)?;
        if let Some(consumer) = self.consumers.get_mut(&settled.consumer)
            && consumer.release()
            && let Some(queue) = self.queues.get_mut(&settled.queue)
        {
            queue.join_turns(settled.consumer);
        }
        match how {
            Settlement::Ack => {}
            Settlement::GiveBack => self.put_back(settled.queue, settled.message, now),
            Settlement::Reject => {
                self.dead_letter(settled.queue, &settled.message, Reason::Rejected, now);
            }
        }
        self.dispatch(settled.queue);
        Ok(())
    }

    /// Puts another consumer, with all its credit, in the place of one.
    pub(super) fn extend(&mut self, id: ConsumerId) -> Result<ConsumerId, TransportError> {
        let Some(mut old) = self.consumers.remove(&id) else {
            return Ok(id); // it has ended, and says so
        };
        let queue_id = old.queue;
        let Some(queue) = self.queues.get_mut(&queue_id) else {
            return Err(refused("extend a subscription".to_owned(), "its queue is gone"));
        };
        if queue.lifetime == Lifetime::Inbox {
            self.consumers.insert(id, old);
            return Err(refused(
                "extend a subscription".to_owned(),
                "an inbox goes with its consumer",
            ));
        }
        let successor = old.successor();
        self.last_id += 1;
        let next = ConsumerId(self.last_id);
        queue.replace(id, next);
        if successor.has_credit() {
            queue.join_turns(next);
        }
        for tag in &successor.buffer {
            if let Some(unsettled) = self.unsettled.get_mut(tag) {
                unsettled.consumer = next;
            }
        }
        self.consumers.insert(next, successor);
        self.dispatch(queue_id);
        Ok(next)
    }

    /// Gives a consumer nothing more. Its queue goes with it if it is an inbox.
    pub(super) fn cancel(&mut self, id: ConsumerId) {
        let Some(consumer) = self.consumers.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut consumer.accepting, false) {
            return;
        }
        let queue_id = consumer.queue;
        if let Some(queue) = self.queues.get_mut(&queue_id) {
            queue.dismiss(id);
            if queue.lifetime == Lifetime::Inbox {
                let name = &queue.declared.name;
                self.names.remove(name);
                self.queues.remove(&queue_id);
                self.exchanges.forget(queue_id);
            }
        }
    }

    /// Removes a queue with what is in it; its consumers end.
    pub(super) fn remove_queue(&mut self, queue: &str) {
        let Some(id) = self.names.remove(queue) else {
            return;
        };
        self.queues.remove(&id);
        self.exchanges.forget(id);
        self.timed.retain(|timed| *timed != id);
        self.unsettled.retain(|_, unsettled| unsettled.queue != id);
        let gone = self.consumers.extract_if(.., |_, consumer| consumer.queue == id);
        for (_, consumer) in gone {
            consumer.changed.notify_one();
        }
    }

    /// Ends a consumer and gives back what it has not taken. What it has taken stays its own.
    pub(super) fn remove(&mut self, id: ConsumerId, now: Instant) {
        self.cancel(id);
        let Some(consumer) = self.consumers.remove(&id) else {
            return;
        };
        for tag in consumer.buffer {
            if let Some(unsettled) = self.unsettled.remove(&tag) {
                self.put_back(unsettled.queue, unsettled.message, now);
            }
        }
        self.dispatch(consumer.queue);
    }

    /// Ends every consumer and gives everything back, taken or not.
    pub(super) fn close_sessions(&mut self, now: Instant) {
        let ids: Vec<_> = self.consumers.keys().copied().collect();
        for id in ids {
            self.cancel(id);
        }
        for consumer in std::mem::take(&mut self.consumers).into_values() {
            consumer.changed.notify_one();
        }
        for (_, unsettled) in std::mem::take(&mut self.unsettled) {
            self.put_back(unsettled.queue, unsettled.message, now);
        }
    }

    /// Dead-letters what is due.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.next_expiry.is_none_or(|at| at > now) {
            return;
        }
        for index in 0..self.timed.len() {
            let id = self.timed[index];
            while let Some(message) = self.pop_expired(id, now) {
                self.dead_letter(id, &message, Reason::Expired, now);
            }
        }
        let firsts = self.timed.iter().map(|id| self.queues[id].first_expiry());
        self.next_expiry = firsts.flatten().min();
    }

    fn pop_expired(&mut self, id: QueueId, now: Instant) -> Option<Message> {
        self.queues.get_mut(&id)?.pop_expired(now)
    }

    /// The queues for a key; `None` when there is no such exchange.
    fn route(&self, exchange: &str, key: &str) -> Option<Vec<QueueId>> {
        if exchange.is_empty() {
            return Some(self.names.get(key).copied().into_iter().collect());
        }
        self.exchanges.route(exchange, key)
    }

    fn enqueue(&mut self, id: QueueId, letter: Arc<Letter>, now: Instant) {
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.push(letter, now);
        }
        self.dispatch(id);
        self.watch(id);
    }

    /// Hands out what a queue has, as far as its consumers have credit, to each in turn.
    fn dispatch(&mut self, id: QueueId) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return;
        };
        while let Some(consumer_id) = queue.next_turn() {
            let Some(consumer) = self.consumers.get_mut(&consumer_id) else {
                continue;
            };
            let Some(message) = queue.take(consumer_id) else {
                return;
            };
            self.last_id += 1;
            let tag = Tag(self.last_id);
            let unsettled = Unsettled {
                message,
                queue: id,
                consumer: consumer_id,
            };
            self.unsettled.insert(tag, unsettled);
            if consumer.hand(tag) {
                queue.join_turns(consumer_id);
            }
        }
    }

    /// Puts a message back, or dead-letters it when it came back too often. Hands nothing out.
    fn put_back(&mut self, id: QueueId, mut message: Message, now: Instant) {
        let Some(queue) = self.queues.get_mut(&id) else {
            return; // an inbox that is gone
        };
        if queue.is_stream() {
            return; // it is still there
        }
        message.returns = message.returns.saturating_add(1);
        if queue.is_over_limit(message.returns) {
            self.dead_letter(id, &message, Reason::DeliveryLimit, now);
        } else if message.expires.is_some_and(|at| at <= now) {
            self.dead_letter(id, &message, Reason::Expired, now);
        } else {
            queue.put_back(message);
            self.watch(id);
        }
    }

    /// Sends a message where its queue sends dead letters; nowhere if it sends none.
    fn dead_letter(&mut self, id: QueueId, message: &Message, reason: Reason, now: Instant) {
        let Some(queue) = self.queues.get(&id).map(|queue| &queue.declared) else {
            return;
        };
        let Some(DeadLetter { exchange, routing_key }) = &queue.dead_letter else {
            return;
        };
        let letter = &message.letter;
        let dead = letter.dead(&queue.name, reason, exchange, routing_key.as_deref());
        self.send_dead(dead, now);
    }

    /// Takes no notice of `max_length`: there is no publisher to refuse a dead letter to.
    pub(super) fn send_dead(&mut self, letter: Letter, now: Instant) {
        let queues = self.route(&letter.exchange, &letter.routing_key);
        let queues = queues.unwrap_or_default();
        if queues.is_empty() {
            self.stranded.push(letter);
            return;
        }
        let letter = Arc::new(letter);
        for id in queues {
            if !letter.is_cycle(&self.queues[&id].declared.name) {
                self.enqueue(id, letter.clone(), now);
            }
        }
    }

    /// Moves the next expiry forward if a queue has an earlier one, and tells everybody who waits for the old one.
    fn watch(&mut self, id: QueueId) {
        let first = self.queues.get(&id).and_then(QueueState::first_expiry);
        let Some(first) = first else {
            return;
        };
        if self.next_expiry.is_none_or(|at| first < at) {
            self.next_expiry = Some(first);
            for consumer in self.consumers.values() {
                consumer.changed.notify_one();
            }
        }
    }

    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// The refusal of an operation.
pub(super) fn refused(operation: String, reason: impl Into<String>) -> TransportError {
    TransportError::Refused {
        operation,
        reason: reason.into(),
    }
}
