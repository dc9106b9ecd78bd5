//! Sends parcels: everything in one is confirmed, in order, before its job may be acked.
//!
//! The usual parcel is confirmed within milliseconds and touches no disk. One that is not (its first publish failed, or
//! no confirm came within [`MOMENT`]) is written to the outbox on disk ([`spool`](super::spool)) while it goes on being
//! published: should the worker die before the broker is back, the next one sends it.
//!
//! Obeys the abort.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;

use super::event::{Event, Observer};
use super::outbox::{Outbox, Replied};
use super::parcel::{Mail, Parcel, Purpose};
use super::spool::{Kept, Spool};
use crate::supervise::Shutdown;
use crate::transport::Transport;

/// How long a parcel may be on its way before it is written to disk. Confirms take milliseconds; what is not there by
/// then has to do with the broker.
const MOMENT: Duration = Duration::from_secs(1);

pub(super) struct Post<T> {
    pub(super) outbox: Outbox<T>,
    /// Where parcels wait for a broker that is away; `None` for memory alone.
    pub(super) spool: Option<Spool>,
    pub(super) observer: Arc<dyn Observer>,
}

/// Says that a parcel was confirmed. Its record on disk, if it has one, stays until [`Receipt::close`].
#[must_use = "a parcel whose receipt is not closed is sent again by the next worker"]
pub(super) struct Receipt(Option<Kept>);

impl Receipt {
    /// Lets the record go. To be called after the ack: cut off between the two, a result comes twice; the other way
    /// round, a job would run twice.
    pub(super) async fn close(self) {
        if let Some(kept) = self.0 {
            kept.confirmed().await;
        }
    }
}

impl<T: Transport> Post<T> {
    /// Sends a parcel; `None` when told to abort before all of it is confirmed.
    ///
    /// # Cancel safety
    /// Not cancel safe: parts of it may have been sent. What was written to disk stays there.
    pub(super) async fn send(&self, parcel: &Parcel, stop: &Shutdown) -> Option<Receipt> {
        let trouble = Notify::new();
        let mut publishing = std::pin::pin!(self.publish(parcel, stop, &trouble));
        let Some(spool) = &self.spool else {
            return publishing.await.then_some(Receipt(None));
        };
        tokio::select! {
            biased;
            done = &mut publishing => return done.then_some(Receipt(None)),
            () = trouble.notified() => {}
            () = tokio::time::sleep(MOMENT) => {}
        }
        let (done, kept) = tokio::join!(publishing, spool.keep(parcel));
        done.then_some(Receipt(kept))
    }

    /// Publishes the result to all who should have it, then what comes after it; false when told to abort.
    async fn publish(&self, parcel: &Parcel, stop: &Shutdown, trouble: &Notify) -> bool {
        let is_answer = |mail: &&Mail| matches!(mail.purpose, Purpose::Result | Purpose::Reply);
        let count = parcel.mail.iter().take_while(is_answer).count(); // they come first
        let (answers, follow_ups) = parcel.mail.split_at(count);
        if !self.publish_answers(parcel, answers, stop, trouble).await {
            return false;
        }
        for mail in follow_ups {
            if !self.publish_one(parcel, mail, stop, trouble).await {
                return false;
            }
        }
        true
    }

    async fn publish_answers(&self, parcel: &Parcel, answers: &[Mail], stop: &Shutdown, trouble: &Notify) -> bool {
        let _unconfirmed = Unconfirmed::new(self, parcel);
        let answers = answers.iter().map(|mail| self.publish_one(parcel, mail, stop, trouble));
        join_all(answers).await.into_iter().all(|done| done)
    }

    async fn publish_one(&self, parcel: &Parcel, mail: &Mail, stop: &Shutdown, trouble: &Notify) -> bool {
        let publication = &mail.publication;
        if mail.purpose != Purpose::Reply {
            let done = self.outbox.deliver_noting(publication, stop, trouble).await;
            if let Some(event) = told_of(parcel, &mail.purpose).filter(|_| done) {
                self.observer.on(&event);
            }
            return done;
        }
        // A `reply_to` that leads nowhere is counted and never holds the job up.
        let replied = self.outbox.reply(publication, stop, trouble).await;
        if replied == Replied::Dropped {
            self.observer.on(&Event::ResultUnroutable {
                pool: parcel.pool.as_str().into(),
                job_id: parcel.job_id.clone(),
                reply_to: publication.routing_key.clone(),
            });
        }
        replied != Replied::GaveUp
    }
}

/// What is told once a message is confirmed.
fn told_of(parcel: &Parcel, purpose: &Purpose) -> Option<Event> {
    let pool = || parcel.pool.as_str().into();
    match purpose {
        Purpose::Result | Purpose::Reply => None,
        Purpose::Retry { delay } => Some(Event::JobRetried {
            pool: pool(),
            job_id: parcel.job_id.clone(),
            delay: *delay,
        }),
        Purpose::DeadLetter { reason } => Some(Event::JobDeadLettered {
            pool: pool(),
            job_id: parcel.job_id.clone(),
            reason: reason.clone(),
        }),
    }
}

/// Tells that a result waits for its confirm, and, however that ends, that it no longer does.
struct Unconfirmed<'a> {
    observer: &'a dyn Observer,
    pool: Arc<str>,
}

impl<'a> Unconfirmed<'a> {
    fn new<T>(post: &'a Post<T>, parcel: &Parcel) -> Self {
        let pool: Arc<str> = parcel.pool.as_str().into();
        post.observer.on(&Event::ResultPending { pool: pool.clone() });
        Self {
            observer: &*post.observer,
            pool,
        }
    }
}

impl Drop for Unconfirmed<'_> {
    fn drop(&mut self) {
        self.observer.on(&Event::ResultSettled {
            pool: self.pool.clone(),
        });
    }
}
