//! Jobs on their way to the broker, in windows whose confirms are awaited together.
//!
//! A few windows are under way at once, since a broker takes as long to confirm many as one. What was not taken waits for
//! the next attempt, and nothing else is sent meanwhile: what is refused now will be refused in a moment.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::batch::Submission;
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::transport::{BoxFuture, Publication, PublishError, Transport};

/// Jobs in a window.
pub(super) const WINDOW: usize = 256;
/// Windows under way at once.
const WINDOWS: usize = 4;
/// The first wait after a refusal.
const RETRY_INITIAL: Duration = Duration::from_millis(100);

pub(super) struct Windows<T> {
    transport: T,
    /// What is to be sent, in order.
    waiting: Vec<(Submission, Publication)>,
    /// What has to be sent again, and when.
    again: Vec<(Submission, Publication)>,
    again_at: Instant,
    under_way: FuturesUnordered<BoxFuture<'static, Outcome>>,
    backoff: Backoff,
    /// When the broker last answered, or had nothing to answer.
    answered: Instant,
    held: bool,
}

type Outcome = (Vec<Submission>, Vec<Publication>, Vec<Result<(), PublishError>>);

/// What became of a window.
pub(super) struct Sent {
    /// The broker has these.
    pub(super) confirmed: Vec<Submission>,
    /// Why it has not the others: the first reason, or the worst.
    pub(super) refused: Option<PublishError>,
}

impl<T: Transport> Windows<T> {
    pub(super) fn new(transport: T) -> Self {
        Self {
            transport,
            waiting: Vec::new(),
            again: Vec::new(),
            again_at: Instant::now(),
            under_way: FuturesUnordered::new(),
            backoff: Backoff::new(RETRY_INITIAL, RECONNECT_MAX),
            answered: Instant::now(),
            held: false,
        }
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.again.is_empty() && self.under_way.is_empty()
    }

    /// Whether more may be added now.
    pub(super) fn have_room(&self) -> bool {
        self.again.is_empty() && self.waiting.len() < WINDOW && self.under_way.len() < WINDOWS
    }

    /// Whether the broker did not take what was sent last.
    pub(super) fn are_refused(&self) -> bool {
        !self.again.is_empty()
    }

    pub(super) fn add(&mut self, submission: Submission, job: Publication) {
        self.waiting.push((submission, job));
    }

    /// Sends nothing for now, or goes on.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Sends what waits, as far as windows are free.
    pub(super) fn send(&mut self) {
        while !self.waiting.is_empty() && self.again.is_empty() && !self.held && self.under_way.len() < WINDOWS {
            if self.under_way.is_empty() {
                self.answered = Instant::now();
            }
            let count = self.waiting.len().min(WINDOW);
            let (submissions, jobs): (Vec<_>, Vec<_>) = self.waiting.drain(..count).unzip();
            let transport = self.transport.clone();
            self.under_way.push(Box::pin(async move {
                let told = transport.publish_many(&jobs).await;
                (submissions, jobs, told)
            }));
        }
    }

    /// The next window that has all its answers. Sends again what is due; waits for ever while there is nothing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Sent {
        loop {
            if self.under_way.is_empty() {
                if self.again.is_empty() || self.held {
                    return std::future::pending().await;
                }
                tokio::time::sleep_until(self.again_at).await;
                let later = std::mem::take(&mut self.waiting);
                self.waiting = std::mem::take(&mut self.again);
                self.waiting.extend(later);
                self.send();
            }
            if let Some(outcome) = self.under_way.next().await {
                return self.settle(outcome);
            }
        }
    }

    fn settle(&mut self, (submissions, jobs, told): Outcome) -> Sent {
        self.answered = Instant::now();
        let mut sent = Sent {
            confirmed: Vec::with_capacity(submissions.len()),
            refused: None,
        };
        for ((submission, job), told) in submissions.into_iter().zip(jobs).zip(told) {
            match told {
                Ok(()) => sent.confirmed.push(submission),
                Err(error) => {
                    self.again.push((submission, job));
                    if sent.refused.as_ref().is_none_or(super::is_passing) {
                        sent.refused = Some(error);
                    }
                }
            }
        }
        if sent.refused.is_some() {
            self.again_at = Instant::now() + self.backoff.next_delay();
        } else {
            self.backoff.reset();
        }
        sent
    }

    /// Forgets what has to be sent again and need not: it had arrived after all.
    pub(super) fn forget(&mut self, needless: impl Fn(Submission) -> bool) {
        self.again.retain(|(submission, _)| !needless(*submission));
    }

    /// Drops what is not under way.
    pub(super) fn drop_unsent(&mut self) -> Vec<Submission> {
        let unsent = self.again.drain(..).chain(self.waiting.drain(..));
        unsent.map(|(submission, _)| submission).collect()
    }

    /// How long the broker has not answered to anything.
    pub(super) fn silent_for(&self) -> Duration {
        if self.under_way.is_empty() {
            return Duration::ZERO;
        }
        self.answered.elapsed()
    }
}
