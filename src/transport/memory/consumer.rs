//! One consumer: its credit, and what was handed to it but not taken yet.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::Notify;

use super::queue::QueueId;

/// A consumer, for as long as the broker lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ConsumerId(pub(super) u64);

/// A message in a consumer's hands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(pub(super) u64);

pub(super) struct Consumer {
    pub(super) queue: QueueId,
    /// Handed to it, not taken yet.
    pub(super) buffer: VecDeque<Tag>,
    /// False once it was cancelled.
    pub(super) accepting: bool,
    /// Told when there is something new to see.
    pub(super) changed: Arc<Notify>,
    prefetch: usize,
    credit: usize,
}

impl Consumer {
    pub(super) fn new(queue: QueueId, prefetch: u16, changed: Arc<Notify>) -> Self {
        let prefetch = usize::from(prefetch.max(1));
        Self {
            queue,
            buffer: VecDeque::new(),
            accepting: true,
            changed,
            prefetch,
            credit: prefetch,
        }
    }

    /// The one that comes in its place: answers for what was not taken, and for nothing that was.
    pub(super) fn successor(&mut self) -> Self {
        let buffer = std::mem::take(&mut self.buffer);
        Self {
            queue: self.queue,
            credit: self.prefetch - buffer.len(),
            buffer,
            accepting: self.accepting,
            changed: self.changed.clone(),
            prefetch: self.prefetch,
        }
    }

    /// Whether it may get a message.
    pub(super) fn has_credit(&self) -> bool {
        self.accepting && self.credit > 0
    }

    /// Hands it a message; true when it may get another.
    pub(super) fn hand(&mut self, tag: Tag) -> bool {
        self.credit -= 1; // only consumers with credit have a turn
        self.buffer.push_back(tag);
        self.changed.notify_one();
        self.credit > 0
    }

    /// One of its messages was settled; true when it has a turn again, after it had none.
    pub(super) fn release(&mut self) -> bool {
        self.credit += 1;
        self.accepting && self.credit == 1
    }
}
