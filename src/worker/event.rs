//! What happens to jobs, as one enum that metrics, logs and tests all read.
//!
//! The worker tells an [`Observer`]; it never asks one anything. What a thing means for a counter, or how a log line
//! reads, is the observer's business, so production code holds no test hooks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::hold::HoldReason;
use crate::flow::breaker::Position;
use crate::message::{FailureKind, JobId, JobResult, Order, Request, Status, Stream, TraceId};
use crate::supervise::SupervisorEvent;
use crate::transport::{BrokerEvent, QueueDepth};

/// Something that happened. `pool` is the only label that metrics may take from it.
#[derive(Clone, Debug)]
pub enum Event {
    /// A delivery was taken from a pool's queue; it is unacked until [`Event::DeliverySettled`].
    DeliveryTaken {
        /// The pool.
        pool: Arc<str>,
    },
    /// A delivery was acked, given back or lost with its session.
    DeliverySettled {
        /// The pool.
        pool: Arc<str>,
    },
    /// A job has a slot and its command is being started.
    JobStarted {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// Its attempt, from 1.
        attempt: u32,
        /// From the producer's timestamp, or the end of its delay, to now; `None` without a timestamp.
        waited: Option<Duration>,
        /// The job's own.
        labels: BTreeMap<String, String>,
    },
    /// A job's command has ended and its slot is free. Only after [`Event::JobStarted`].
    JobEnded {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// What the run cost.
        run: RunAccount,
    },
    /// An attempt has its result, published and confirmed. Also for jobs that were never started.
    JobFinished {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// Its attempt, from 1.
        attempt: u32,
        /// How it ended.
        status: Status,
        /// Whether it was the job's last attempt.
        is_final: bool,
        /// Of the run; zero when it was not started.
        duration: Duration,
        /// What went wrong, if anything.
        error: Option<(FailureKind, String)>,
        /// The job's own.
        labels: BTreeMap<String, String>,
        /// The trace that the job is a part of, if it is of one.
        trace_id: Option<TraceId>,
    },
    /// A failed attempt was published again, to be run after a delay.
    JobRetried {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// How long it waits.
        delay: Duration,
    },
    /// A job went (back) to a delay queue because its time has not come.
    JobDelayed {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// How long it still has to wait.
        remaining: Duration,
    },
    /// A redelivered job was published again with its attempt raised, before anything was started.
    JobRecounted {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// The attempt it now has.
        attempt: u32,
    },
    /// A redelivered message of a job that is in hand here, or has ended here: nothing is run for it.
    JobAdopted {
        /// The pool.
        pool: Arc<str>,
        /// The message's id, as its producer gave it.
        message_id: Option<String>,
    },
    /// A job goes back to its queue because the worker stops.
    JobGivenBack {
        /// The pool.
        pool: Arc<str>,
        /// The job, where it was decoded.
        job_id: Option<JobId>,
        /// Whether it was running and had to be killed.
        was_running: bool,
    },
    /// A job was dead-lettered.
    JobDeadLettered {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// Why: the word of its status.
        reason: String,
    },
    /// A result waits for its confirm; ended by [`Event::ResultSettled`].
    ResultPending {
        /// The pool.
        pool: Arc<str>,
    },
    /// A result is confirmed, or given up because the worker stops.
    ResultSettled {
        /// The pool.
        pool: Arc<str>,
    },
    /// The `reply_to` of a job led nowhere: its queue is gone, full or forbidden.
    ResultUnroutable {
        /// The pool.
        pool: Arc<str>,
        /// The job.
        job_id: JobId,
        /// The address.
        reply_to: String,
    },
    /// What the outbox on disk holds has changed.
    OutboxChanged {
        /// Results in it that are not confirmed.
        records: usize,
        /// Bytes of its files.
        bytes: u64,
    },
    /// The outbox on disk could not be written or read, or was not tried as it could not be just before.
    OutboxFailed,
    /// A circuit breaker has another position.
    CircuitChanged {
        /// Which.
        circuit: Circuit,
        /// Of several, the worst.
        position: Position,
    },
    /// The first of those who wait for a rate has waited for it.
    RateLimited {
        /// The pool.
        pool: Arc<str>,
        /// How long.
        waited: Duration,
    },
    /// A pool's consumer is live.
    Consuming {
        /// The pool.
        pool: Arc<str>,
    },
    /// A pool's consumer has ended; the worker subscribes again unless it stops.
    ConsumerLost {
        /// The pool.
        pool: Arc<str>,
        /// Why, as far as it is known.
        reason: String,
        /// When it will be tried again; `None` when the worker stops.
        retry_in: Option<Duration>,
    },
    /// A pool's consumer was ended because the pool is to take no jobs for now; [`Event::Consuming`] when it goes on.
    ConsumerHeld {
        /// The pool.
        pool: Arc<str>,
        /// Why.
        reason: HoldReason,
    },
    /// A pool's queue was measured.
    QueueMeasured {
        /// The pool.
        pool: Arc<str>,
        /// Its size.
        depth: QueueDepth,
    },
    /// An operator's message was read.
    Control {
        /// Which.
        message: ControlMessage,
    },
    /// Cancels were forgotten because there are too many: their jobs will run.
    CancelsForgotten {
        /// How many.
        count: usize,
    },
    /// Somebody came to listen to a command: what is kept of its output so far.
    OutputKept {
        /// The run.
        run: RunOf,
        /// In the order of each stream, stdout first.
        kept: Arc<[Kept]>,
        /// Who is to be told.
        listeners: Arc<[Listener]>,
    },
    /// A command that somebody listens to has written something.
    OutputHeard {
        /// The run.
        run: RunOf,
        /// Where to.
        stream: Stream,
        /// How many bytes it wrote there before.
        offset: u64,
        /// What.
        bytes: Bytes,
    },
    /// A command that somebody listened to writes no more.
    OutputClosed {
        /// The number of its run.
        run: u64,
    },
    /// An attempt that somebody listened to, or waited for, has its result, published and confirmed.
    OutputEnded {
        /// The run, or what would have been one.
        run: RunOf,
        /// How it ended.
        status: Status,
        /// Whether it was the job's last attempt.
        is_final: bool,
        /// All bytes of stdout.
        stdout_bytes: u64,
        /// All bytes of stderr.
        stderr_bytes: u64,
    },
    /// A message was published for whoever listens.
    EventPublished {
        /// What it was about.
        about: About,
    },
    /// A message for whoever listens was dropped: there were too many, or the broker did not take it.
    EventDropped {
        /// What it was about.
        about: About,
    },
    /// Output was dropped that somebody listens to: it came faster than it could be sent.
    OutputUnsent {
        /// How many bytes.
        bytes: u64,
    },
    /// Spans of traces were taken by the receiver.
    SpansExported {
        /// How many.
        count: usize,
    },
    /// Spans of traces are lost: the receiver is down, slow or refuses them.
    SpansDropped {
        /// How many.
        count: usize,
    },
    /// The worker takes no more jobs.
    Draining,
    /// A task of the worker itself was started, has ended, or failed.
    Supervised(SupervisorEvent),
    /// The transport told something.
    Broker(BrokerEvent),
}

/// One run of a job, as those who listen to it know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOf {
    /// Which run of this worker.
    pub number: u64,
    /// The pool.
    pub pool: Arc<str>,
    /// The job.
    pub job_id: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
}

/// Consecutive bytes that are kept of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which stream.
    pub stream: Stream,
    /// How many bytes were written before these.
    pub offset: u64,
    /// How many of them, just before these, were not kept.
    pub dropped: u64,
    /// The bytes.
    pub bytes: Bytes,
}

/// Who asked to hear a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The queue for answers.
    pub reply_to: String,
    /// What he knows his question by.
    pub correlation_id: Option<String>,
}

/// What a published event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are those of the routing keys")]
pub enum About {
    Job,
    Worker,
    Output,
}

impl About {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Job, Self::Worker, Self::Output];

    /// The word for it, as a label and as the first word of its routing keys.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Job => "job",
            Self::Worker => "worker",
            Self::Output => "output",
        }
    }
}

/// What a circuit breaker stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Publishing: results, and all else that a worker sends.
    Results,
    /// The disk of the outbox.
    Outbox,
    /// The start of commands; there are many, of which the worst is told.
    Programs,
}

impl Circuit {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Results, Self::Outbox, Self::Programs];

    /// The word for it, as a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Results => "results",
            Self::Outbox => "outbox",
            Self::Programs => "programs",
        }
    }
}

/// A message of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are those of the messages")]
pub enum ControlMessage {
    Cancel,
    Pause,
    Resume,
    Ping,
    Drain,
    Jobs,
    Watch,
    Follow,
    Output,
    /// Anything that cannot be read.
    Invalid,
}

impl ControlMessage {
    /// Every one, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Cancel,
        Self::Pause,
        Self::Resume,
        Self::Ping,
        Self::Drain,
        Self::Jobs,
        Self::Watch,
        Self::Follow,
        Self::Output,
        Self::Invalid,
    ];

    /// Which one an order is.
    #[must_use]
    pub const fn of_order(order: &Order) -> Self {
        match order {
            Order::Cancel { .. } => Self::Cancel,
            Order::Pause { .. } => Self::Pause,
            Order::Resume { .. } => Self::Resume,
        }
    }

    /// Which one a request is.
    #[must_use]
    pub const fn of_request(request: &Request) -> Self {
        match request {
            Request::Ping {} => Self::Ping,
            Request::Drain { .. } => Self::Drain,
            Request::Jobs { .. } => Self::Jobs,
            Request::Watch {} => Self::Watch,
            Request::Follow { .. } => Self::Follow,
            Request::Output { .. } => Self::Output,
        }
    }

    /// The word for it, as a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Ping => "ping",
            Self::Drain => "drain",
            Self::Jobs => "jobs",
            Self::Watch => "watch",
            Self::Follow => "follow",
            Self::Output => "output",
            Self::Invalid => "invalid",
        }
    }
}

impl Event {
    /// The end of an attempt, as its result has it.
    pub(super) fn finished(pool: Arc<str>, result: &JobResult, trace_id: Option<TraceId>) -> Self {
        let error = result.error.as_ref();
        Self::JobFinished {
            pool,
            job_id: result.job_id.clone(),
            attempt: result.attempt,
            status: result.status,
            is_final: result.is_final,
            duration: Duration::from_millis(result.duration_ms),
            error: error.map(|error| (error.kind, error.message.clone())),
            labels: result.labels.clone(),
            trace_id,
        }
    }
}

/// What one run cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunAccount {
    /// From the request to the running program; `None` when it never ran, or when that is not known.
    pub spawn: Option<Duration>,
    /// From the first signal to the end of the last process; `None` when nothing had to be ended.
    pub kill: Option<Duration>,
    /// Of the run.
    pub duration: Duration,
    /// Bytes of standard output, and how many of them were dropped.
    pub stdout: StreamAccount,
    /// Bytes of standard error, and how many of them were dropped.
    pub stderr: StreamAccount,
}

/// What a command wrote to one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamAccount {
    /// All bytes.
    pub bytes: u64,
    /// Those that were not kept.
    pub dropped: u64,
}

/// Takes events. Called on hot paths: must not block and must not panic.
pub trait Observer: Send + Sync + 'static {
    /// Takes one event.
    fn on(&self, event: &Event);
}

/// Tells several observers.
pub struct Observers(pub Vec<Arc<dyn Observer>>);

impl Observer for Observers {
    fn on(&self, event: &Event) {
        for observer in &self.0 {
            observer.on(event);
        }
    }
}
