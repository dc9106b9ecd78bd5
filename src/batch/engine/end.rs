//! How a batch ended.

use std::collections::BTreeMap;
use std::io;

use crate::batch::BadItem;
use crate::batch::halt::Halt;
use crate::batch::journal::Changed;
use crate::message::Status;
use crate::transport::PublishError;

/// How a batch ended.
#[derive(Debug, Default)]
pub struct End {
    /// How many items ended in which way, over all runs of the batch.
    pub counts: BTreeMap<Status, u64>,
    /// How many items there are, if the input was read to its end.
    pub total: Option<u64>,
    /// How many jobs the broker has confirmed in this run.
    pub submitted: u64,
    /// How many items are submitted, and have no final result.
    pub awaited: u64,
    /// Where those of them come from that are known.
    pub unfinished: Vec<String>,
    /// It was stopped before all was submitted.
    pub cut_short: bool,
    /// What was submitted was cancelled: the order is in force.
    pub cancelled: bool,
    /// Why it ended early.
    pub halted: Option<Halt>,
    /// The item that was no job and ended it, and why.
    pub bad: Option<(String, BadItem)>,
    /// Why the source gave no more.
    pub source: Option<io::Error>,
    /// What went wrong with the batch itself.
    pub error: Option<BatchError>,
}

/// What goes wrong with a batch, not with its jobs.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Results cannot be written.
    #[error(transparent)]
    Sink(io::Error),
    /// What was confirmed cannot be written down.
    #[error(transparent)]
    Journal(io::Error),
    /// The input is another one.
    #[error(transparent)]
    Changed(#[from] Changed),
    /// The broker does not take jobs, and waiting does not help.
    #[error("failed to {0}")]
    Publish(#[from] PublishError),
    /// An item was submitted 255 times.
    #[error("{0} was submitted 255 times and failed each time; begin anew with another results file")]
    TooOften(String),
}
