//! Many jobs from one place: where they come from, how they are published, what becomes of their results.
//!
//! The same for a fleet (`synthex batch`) and for one machine (`synthex run`), since all of it is generic over the
//! [`Transport`](crate::transport::Transport):
//!
//! ```text
//! Source ─► Item ─► published, at most so many unfinished ─► results, from the batch's own queue ─► Sinks, then ack
//! ```
//!
//! An [`Item`] is known by its place in the input, so the same input read again gives the same items: that is what makes
//! it possible to go on with a batch whose submitter was killed. A [`Sink`] has written a result before its message is
//! acked, so no result is lost with the submitter.
//!
//! What is shown to people is not known here: who shows it is told [`Progress`].

mod engine;
pub mod halt;
mod herald;
mod id;
mod inbox;
pub mod input;
pub mod journal;
mod outgoing;
pub mod registry;
pub mod results;
pub mod sinks;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::message::{FailureKind, JobId, JobResult, Status};
use crate::transport::BoxFuture;

pub use engine::plan::{AttachError, Cancel, MAX_IN_FLIGHT};
pub use engine::{BatchError, End, Engine, OnAbort, OnBad, Plan, Results, attach};
pub use herald::Herald;
pub use id::{BatchId, Submission};
pub use outgoing::Ids;
pub use table::Table;

/// One job of a batch before it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its place in the input, from 1. Bad ones have one, too.
    pub seq: u64,
    /// What people call it.
    pub name: Name,
    /// The job as JSON, or why it is none.
    pub job: Result<Bytes, BadItem>,
}

/// What people call an item. All of it is empty where nobody knows any more: the input is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// Where it comes from, for messages: `jobs.jsonl:3`.
    pub origin: String,
    /// What tells it from the others: the command of a template, else the origin.
    pub title: String,
    /// What the template was filled with, if there is one: fields with spaces between.
    pub fields: Option<String>,
}

impl Name {
    /// What its lines are marked with: what differs from item to item.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.fields.as_deref().unwrap_or(&self.title)
    }
}

/// Why an item is not a job.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BadItem {
    /// The id that it brings all the same, if it can be read.
    pub id: Option<JobId>,
    /// What sort of fault it is.
    pub kind: FailureKind,
    /// The field at fault, where there is one.
    pub field: Option<String>,
    /// What is wrong with it and what is allowed.
    pub message: String,
}

/// Where items come from, in the same order each time.
pub trait Source: Send {
    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// When reading fails; no more is asked for then.
    ///
    /// # Cancel safety
    /// Must be cancel safe: nothing that was read is lost.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Item>>> + Send;
}

/// The end of an attempt at an item.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'a> {
    /// The item's place in the input.
    pub seq: u64,
    /// Which submission of it this is, from 1; more than 1 once it was submitted again because it had failed.
    pub submission: u8,
    /// What people call it.
    pub name: &'a Name,
    /// How the attempt ended; the item is finished only if the result is final.
    pub result: &'a JobResult,
    /// The result as it came, one line without its end.
    pub json: &'a [u8],
}

/// Where results go.
pub trait Sink: Send {
    /// Hears that an item will have no result now: it is not a job, or had its last result in an earlier run. For those
    /// that keep to the order of the input.
    fn skip(&mut self, seq: u64) {
        let _ = seq;
    }

    /// Takes one: keeps it in memory until the next [`Sink::flush`], which comes soon.
    ///
    /// # Errors
    /// When it cannot be taken; the batch is stopped then.
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()>;

    /// Hears that no more comes, and takes hold of what it has kept back; a last [`Sink::flush`] follows.
    ///
    /// # Errors
    /// When that cannot be taken.
    fn conclude(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Writes what was taken, so that a kill of this process no longer loses it.
    ///
    /// # Errors
    /// When it cannot be written; the batch is stopped then, and what was taken comes again when it is resumed.
    ///
    /// # Cancel safety
    /// Not cancel safe: part of it may be written.
    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>>;
}

/// What happens to a batch, for who shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// How many items there are in all: the source has ended, or knew it from the start.
    Total(u64),
    /// An item is not a job.
    Bad {
        /// Where it is.
        origin: String,
        /// What is wrong.
        error: BadItem,
    },
    /// The broker has confirmed so many more jobs.
    Published(u64),
    /// So many items had ended before this submitter began.
    Resumed {
        /// Final results of earlier runs, by status, without what is submitted again.
        finished: BTreeMap<Status, u64>,
        /// Published by an earlier run, and awaited.
        awaited: u64,
    },
    /// An attempt has ended.
    Finished {
        /// How.
        status: Status,
        /// Whether it was the item's last.
        is_final: bool,
        /// Of the run.
        duration: Duration,
        /// What tells the item from the others.
        title: String,
    },
    /// Nothing can be published or received now; `None` once it goes on.
    Stalled(Option<String>),
}

/// Takes [`Progress`]. Called in the loop that publishes: must not block.
pub trait Watcher: Send {
    /// Takes one event.
    fn on(&mut self, progress: &Progress);
}
