//! One queue: what waits in it, in order, and whose turn it is to get the next message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

use super::consumer::ConsumerId;
use super::letter::{Letter, Message};
use crate::transport::topology::{Argument, Queue};

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
    /// By position, so that what comes back finds its place. All wait equally long: the first expires first.
    ready: BTreeMap<u64, Message>,
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
            ready: BTreeMap::new(),
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

    /// Puts a letter at the end.
    pub(super) fn push(&mut self, letter: Arc<Letter>, now: Instant) {
        let position = self.next_position;
        self.next_position += 1;
        let message = Message {
            letter,
            position,
            returns: 0,
            expires: self.declared.ttl.and_then(|ttl| now.checked_add(ttl)),
        };
        self.ready.insert(position, message);
    }

    /// Puts a message back where it was.
    pub(super) fn put_back(&mut self, message: Message) {
        self.ready.insert(message.position, message);
    }

    pub(super) fn pop(&mut self) -> Option<Message> {
        self.ready.pop_first().map(|(_, message)| message)
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

    /// The next consumer, if there is something for it. It has to join again for its next message.
    pub(super) fn next_turn(&mut self) -> Option<ConsumerId> {
        if self.ready.is_empty() {
            return None;
        }
        self.turns.pop_front()
    }
}
