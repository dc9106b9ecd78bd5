//! How a batch is to be carried out, and the place where its results come.

use std::sync::Arc;
use std::time::Duration;

use super::super::herald::Herald;
use super::super::outgoing::{Address, Ids};
use super::super::{BatchId, halt::Halt};
use super::Declare;
use crate::message::{TraceContext, WorkerInfo};
use crate::transport::topology::{Names, Topology};
use crate::transport::{BoxFuture, Subscribe, Transport, TransportError};

/// Items that are read and not finished, at most.
pub const MAX_IN_FLIGHT: u32 = 1000;
/// Results on their way to us.
const PREFETCH: u16 = 1000;
/// How often results are written, at most: each time takes another thread's help.
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// Orders that what was submitted ends; comes back once the order is in force.
pub type Cancel = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// What is done with an item that is no job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBad {
    /// It has a result, `rejected`, and the others run.
    #[default]
    Skip,
    /// Nothing after it is submitted.
    Stop,
}

/// What the abort of a batch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnAbort {
    /// It ends at once.
    End,
    /// What was submitted is cancelled, and has so long to tell of its end.
    Cancel(Duration),
}

/// How a batch is to be carried out.
pub struct Plan<T> {
    /// Where jobs go.
    pub transport: T,
    pub(in crate::batch) address: Address,
    /// How many items there are, if that is known before they are read: then a batch that ends early with the last one has
    /// left nothing out.
    pub expected: Option<u64>,
    /// Most items that are read and not finished.
    pub max_in_flight: usize,
    /// What to do with an item that is no job.
    pub on_bad: OnBad,
    /// When to end early.
    pub halts: Vec<Halt>,
    /// What has failed is submitted again.
    pub retry_failed: bool,
    /// Cancels what was submitted.
    pub cancel: Cancel,
    /// What an abort means.
    pub on_abort: OnAbort,
    /// Who makes results of items that are no jobs.
    pub here: WorkerInfo,
    /// How often results are written and acked, at most.
    pub flush_every: Duration,
    /// Whether they are written at once where nothing else is under way; not where each time waits for the disk.
    pub flush_idle: bool,
    /// Who tells others of it; nobody for a broker that nobody else sees.
    pub herald: Option<Herald>,
}

impl<T: Transport> Plan<T> {
    /// A plan with the defaults: nothing ends it early, and an abort ends it at once.
    #[must_use]
    pub fn new(transport: T, names: &Names, pool: &str, batch: &BatchId, here: WorkerInfo) -> Self {
        Self {
            transport,
            address: Address::new(names, pool, batch),
            expected: None,
            max_in_flight: MAX_IN_FLIGHT as usize,
            on_bad: OnBad::Skip,
            halts: Vec::new(),
            retry_failed: false,
            cancel: Box::new(|| Box::pin(std::future::ready(()))),
            on_abort: OnAbort::End,
            here,
            flush_every: FLUSH_EVERY,
            flush_idle: true,
            herald: None,
        }
    }

    /// Calls jobs that bring no id of their own this way.
    pub fn call(&mut self, ids: Ids) {
        self.address.ids = ids;
    }

    /// Gives jobs a priority.
    pub fn prioritize(&mut self, priority: Option<u8>) {
        self.address.priority = priority;
    }

    /// Makes jobs a part of what they are to be done for, if that is part of a trace.
    pub fn trace(&mut self, cause: Option<TraceContext>) {
        self.address.cause = cause;
    }
}

/// Where the results of a batch come.
pub struct Results<T: Transport> {
    pub(super) subscription: T::Subscription,
    pub(super) request: Subscribe,
    pub(super) backlog: u64,
}

/// Why a batch's results cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Somebody else takes them.
    #[error("take results from queue {0:?}: another submitter takes them now")]
    Busy(String),
    /// The broker.
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Declares what the batch needs and takes its results from now on. Those that are there already come first.
///
/// # Errors
/// [`AttachError::Busy`] also for a moment after another submitter was killed, until the broker has noticed.
pub async fn attach<T: Transport>(transport: &T, names: &Names, batch: &BatchId) -> Result<Results<T>, AttachError> {
    let queue = names.batch_results(batch.as_str());
    let topology = Arc::new(Topology::batch(names, batch.as_str()));
    transport.declare(&topology, Declare::Active).await?;
    let depth = transport.queue_depth(&queue).await?;
    if depth.is_some_and(|depth| depth.consumers > 0) {
        return Err(AttachError::Busy(queue));
    }
    let request = Subscribe {
        queue,
        prefetch: PREFETCH,
        consumer_timeout: None,
        from: None,
        topology,
        declare: Declare::Active,
    };
    Ok(Results {
        subscription: transport.subscribe(&request).await?,
        request,
        backlog: depth.map_or(0, |depth| depth.messages.into()),
    })
}
