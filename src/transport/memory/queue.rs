//! One queue: what waits in it, in order, and whose turn it is to get the next message.
//!
//! A stream is a queue whose messages stay: each of its readers has a place of its own, the position of its next message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::consumer::ConsumerId;
use super::letter::{Letter, Message};
use crate::transport::StreamOffset;
use crate::transport::topology::{Argument, Queue, QueueKind};

/// A queue, for as long as the broker lives; a name may come to mean another queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct QueueId(pub(super) u64);

/// How long a queue stays.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    /// As long as the broker.
    Durable,
    /// Until its consumer ends.
    Inbox,
}

pub(super) struct QueueState {
    pub(super) declared: Queue,
    pub(super) lifetime: Lifetime,
    pub(super) consumers: u32,
    /// Most messages that wait; for one more the oldest is dropped.
    pub(super) newest: Option<u32>,
    /// By position, so that what comes back finds its place. All wait equally long: the first expires first.
    ready: BTreeMap<u64, Message>,
    /// Of a stream: the position of each reader's next message.
    places: BTreeMap<ConsumerId, u64>,
    next_position: u64,
    /// Consumers that may get a message, each once.
    turns: VecDeque<ConsumerId>,
}

impl QueueState {
    pub(super) fn new(declared: Queue, lifetime: Lifetime) -> Self {
        Self {
            declared,
            lifetime,
            consumers: 0,
            newest: None,
            ready: BTreeMap::new(),
            places: BTreeMap::new(),
            next_position: 0,
            turns: VecDeque::new(),
        }
    }

    /// How it differs from `asked`; `None` when it does not.
    pub(super) fn conflict(&self, asked: &Queue) -> Option<String> {
        if self.declared == *asked {
            return None;
        }
        let (has, asks) = (self.declared.arguments(), asked.arguments());
        let value = |arguments: &[(&str, Argument)], name: &str| {
            let found = arguments.iter().find(|(known, _)| *known == name);
            found.map_or_else(
                || "none".to_owned(),
                |(_, value)| match value {
                    Argument::Text(text) => format!("{text:?}"),
                    Argument::Integer(number) => number.to_string(),
                },
            )
        };
        let names = has.iter().chain(&asks).map(|(name, _)| *name);
        names
            .map(|name| (name, value(&has, name), value(&asks, name)))
            .find(|(_, is, asked)| is != asked)
            .map(|(name, is, asked)| format!("it is there with {name} {is}, not {asked}"))
    }

    /// How long a message stays; `None` is for ever.
    pub(super) fn stay(&self) -> Option<Duration> {
        match self.declared.kind {
            QueueKind::Quorum => self.declared.ttl,
            QueueKind::Stream { max_age } => Some(max_age),
        }
    }

    pub(super) fn is_stream(&self) -> bool {
        matches!(self.declared.kind, QueueKind::Stream { .. })
    }

    /// Takes a reader in. A stream is read from the place it asks for.
    pub(super) fn admit(&mut self, consumer: ConsumerId, from: StreamOffset) {
        self.consumers += 1;
        self.join_turns(consumer);
        if self.is_stream() {
            let place = match from {
                StreamOffset::First => 0,
                StreamOffset::Next => self.next_position,
                StreamOffset::At(offset) => offset,
            };
            self.places.insert(consumer, place);
        }
    }

    /// Puts a letter at the end.
    pub(super) fn push(&mut self, letter: Arc<Letter>, now: Instant) {
        let position = self.next_position;
        self.next_position += 1;
        let message = Message {
            letter,
            position,
            returns: 0,
            expires: self.stay().and_then(|stay| now.checked_add(stay)),
        };
        self.ready.insert(position, message);
        if self.newest.is_some_and(|most| self.ready.len() > most as usize) {
            self.pop();
        }
    }

    /// Puts a message back where it was.
    pub(super) fn put_back(&mut self, message: Message) {
        self.ready.insert(message.position, message);
    }

    fn pop(&mut self) -> Option<Message> {
        self.ready.pop_first().map(|(_, message)| message)
    }

    /// The next message for a consumer whose turn it is.
    pub(super) fn take(&mut self, consumer: ConsumerId) -> Option<Message> {
        let Some(place) = self.places.get_mut(&consumer) else {
            return self.pop();
        };
        let (position, message) = self.ready.range(*place..).next()?;
        *place = position + 1;
        Some(message.clone())
    }

    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<Message> {
        self.first_expiry().filter(|at| *at <= now)?;
        self.pop()
    }

    /// When the first message's time is over.
    pub(super) fn first_expiry(&self) -> Option<Instant> {
        self.ready.first_key_value()?.1.expires
    }

    pub(super) fn depth(&self) -> usize {
        self.ready.len()
    }

    /// Whether it refuses what is published.
    pub(super) fn is_full(&self) -> bool {
        let limit = self.declared.max_length;
        limit.is_some_and(|limit| self.ready.len() >= limit as usize)
    }

    /// Whether a message that came back `returns` times has come back too often.
    pub(super) fn is_over_limit(&self, returns: u32) -> bool {
        let limit = self.declared.delivery_limit;
        limit.is_some_and(|limit| limit >= 0 && i64::from(returns) > limit)
    }

    pub(super) fn join_turns(&mut self, consumer: ConsumerId) {
        self.turns.push_back(consumer);
    }

    pub(super) fn leave_turns(&mut self, consumer: ConsumerId) {
        self.turns.retain(|waiting| *waiting != consumer);
    }

    /// Lets a consumer go.
    pub(super) fn dismiss(&mut self, consumer: ConsumerId) {
        self.consumers -= 1;
        self.leave_turns(consumer);
        self.places.remove(&consumer);
    }

    /// Puts a consumer in the place of another, which has no turn any more.
    pub(super) fn replace(&mut self, old: ConsumerId, new: ConsumerId) {
        self.leave_turns(old);
        if let Some(place) = self.places.remove(&old) {
            self.places.insert(new, place);
        }
    }

    /// The next consumer, if there is something for it. It has to join again for its next message.
    pub(super) fn next_turn(&mut self) -> Option<ConsumerId> {
        let last = *self.ready.last_key_value()?.0;
        let wants = |consumer: &ConsumerId| self.places.get(consumer).is_none_or(|place| *place <= last);
        let turn = self.turns.iter().position(wants)?;
        self.turns.remove(turn)
    }
}
