//! `synthex run`: jobs through the same worker on the embedded broker.
//!
//! Bodies are published unread, so a bad one is rejected by the worker as everywhere else. At most
//! [`IN_FLIGHT`] jobs are unfinished at once, so memory does not grow with the input.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Ended, Parts, Spawners, StartError, TraceOptions};
use crate::config::Pool;
use crate::message::{Envelope, JobId, JobResult, Properties, TraceContext};
use crate::supervise::Shutdown;
use crate::transport::memory::{Memory, MemorySubscription};
use crate::transport::topology::{Declare, Names, Topology};
use crate::transport::{Delivery, Publication, Routing, Subscription, Transport};
use crate::worker::orders::Orders;

/// Most jobs that are queued or running, over what the pool's prefetch needs to be busy.
const IN_FLIGHT: usize = 1024;
/// How often results are written, at most: each time takes another thread's help. One that comes alone is written at once.
const FLUSH_EVERY: Duration = Duration::from_millis(5);
/// How long results may still be written once a run was stopped and all its jobs have ended.
const LAST_RESULTS: Duration = Duration::from_secs(5);
/// The namespace of a broker that nobody else sees.
const NAMESPACE: &str = "synthex";

/// A job to run, still unread.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Its id, unless it brings its own.
    pub id: JobId,
    /// Where it comes from, for messages: `jobs.jsonl:3`.
    pub origin: String,
    /// The job as JSON.
    pub body: Bytes,
}

/// Where jobs come from.
pub trait Source: Send {
    /// The next job; `None` at the end.
    ///
    /// # Errors
    /// When reading fails; no more is asked for then.
    ///
    /// # Cancel safety
    /// Must be cancel safe.
    fn next(&mut self) -> impl Future<Output = io::Result<Option<Submission>>> + Send;
}

/// Where results go.
pub trait Sink: Send {
    /// Takes a result of the job that came from `origin`; `json` is the same as a line without its end. May take as
    /// long as it likes: that holds jobs back.
    ///
    /// # Errors
    /// When it cannot be written; the run is stopped then.
    ///
    /// # Cancel safety
    /// Dropped when the run is to end at once; the result may be lost then.
    fn result(&mut self, origin: &str, result: &JobResult, json: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Writes what was taken, now and then, and at the end.
    ///
    /// # Errors
    /// When it cannot be written; the run is stopped then.
    ///
    /// # Cancel safety
    /// As above.
    fn flush(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}

/// How a local run ended.
pub struct LocalEnd {
    /// How its worker ended.
    pub ended: Ended,
    /// Whether it was stopped before the source's end: there may be jobs that nobody has read.
    pub cut_short: bool,
    /// Jobs without a final result, by origin: the run was stopped before.
    pub unfinished: Vec<String>,
    /// An error that stopped the run: of the source or of the sink.
    pub error: Option<io::Error>,
}

/// What a local run needs to know.
pub struct LocalOptions {
    /// The pool to run jobs in.
    pub pool: Pool,
    /// Who starts commands.
    pub spawners: Spawners,
    /// Where to serve metrics; `None` for nowhere.
    pub metrics_addr: Option<String>,
    /// Where traces go; `None` for nowhere.
    pub traces: Option<TraceOptions>,
    /// What the run is a part of, if it is part of a trace.
    pub cause: Option<TraceContext>,
}

/// Runs every job of `source` on this machine and gives each result to `sink`.
///
/// # Errors
/// [`StartError`], before any job was run.
pub async fn run(options: LocalOptions, source: impl Source, sink: impl Sink) -> Result<LocalEnd, StartError> {
    let shutdown = Shutdown::new();
    let (broker, names) = (Memory::default(), Names::new(NAMESPACE));
    broker
        .declare(&Topology::new(&names, [&*options.pool.name]), Declare::Active)
        .await?;
    let (reply_to, inbox) = broker.inbox().await?;
    let mut desk = Desk {
        broker: broker.clone(),
        jobs: names.jobs(),
        pool: options.pool.name.to_string(),
        cause: options.cause,
        reply_to,
        inbox,
        source,
        sink,
        open: BTreeMap::new(),
        in_flight: IN_FLIGHT.max(usize::from(options.pool.prefetch) * 2),
        published: 0,
        exhausted: false,
        cut_short: false,
        failed: None,
        unflushed: false,
        flushed: Instant::now(),
    };
    let parts = Parts::new(std::slice::from_ref(&options.pool), options.spawners, None)?;
    let parts = parts.traced(options.traces, "synthex", NAMESPACE);
    let listener = parts.bind(options.metrics_addr.as_deref()).await?;
    let worker = parts.worker(broker, NAMESPACE, Orders::none(), &shutdown);
    let tree = parts.tree(&worker, Vec::new(), vec![options.pool], listener, &shutdown);
    let stopped = CancellationToken::new();
    let (report, error) = tokio::join!(
        async {
            let report = tree.run(shutdown.clone()).await;
            stopped.cancel();
            report
        },
        async {
            let outcome = tokio::select! {
                outcome = desk.work(&shutdown, &stopped) => outcome,
                () = shutdown.aborting() => Ok(()),
                () = async { stopped.cancelled().await; tokio::time::sleep(LAST_RESULTS).await } => Ok(()),
            };
            match outcome {
                Ok(()) => shutdown.drain(),
                Err(_) => shutdown.abort(), // nobody takes what runs would end with
            }
            outcome.err().or_else(|| desk.failed.take())
        },
    );
    Ok(LocalEnd {
        ended: Ended {
            report,
            ending: worker.ending,
        },
        // A worker that stopped first ends the desk before it has seen the drain.
        cut_short: desk.cut_short || (!desk.exhausted && error.is_none()),
        unfinished: desk.open.into_values().collect(),
        error,
    })
}

/// Gives jobs out and takes results in, in one loop.
struct Desk<Src, Snk> {
    broker: Memory,
    jobs: String,
    pool: String,
    cause: Option<TraceContext>,
    reply_to: String,
    inbox: MemorySubscription,
    source: Src,
    sink: Snk,
    /// Origins of unfinished jobs, by the correlation id each was given.
    open: BTreeMap<String, String>,
    in_flight: usize,
    published: u64,
    exhausted: bool,
    /// Stopped before the source said that it has no more.
    cut_short: bool,
    /// Why the source gave no more.
    failed: Option<io::Error>,
    /// Whether the sink has results that it did not write, and when it last wrote some.
    unflushed: bool,
    flushed: Instant,
}

impl<Src: Source, Snk: Sink> Desk<Src, Snk> {
    async fn work(&mut self, shutdown: &Shutdown, stopped: &CancellationToken) -> io::Result<()> {
        while !(self.exhausted && self.open.is_empty()) {
            let wants_more = !self.exhausted && self.open.len() < self.in_flight;
            tokio::select! {
                Some(delivery) = self.inbox.next() => self.take(delivery).await?,
                () = tokio::time::sleep_until(self.flushed + FLUSH_EVERY), if self.unflushed => self.flush().await?,
                job = self.source.next(), if wants_more => match job {
                    Ok(job) => self.give(job).await?,
                    // The jobs before it still have their results.
                    Err(error) => (self.exhausted, self.failed) = (true, Some(error)),
                },
                () = shutdown.draining(), if !self.exhausted => (self.exhausted, self.cut_short) = (true, true),
                () = stopped.cancelled() => return self.take_rest().await,
            }
        }
        self.flush().await
    }

    /// Results that were published before the worker stopped.
    async fn take_rest(&mut self) -> io::Result<()> {
        while let Some(Some(delivery)) = self.inbox.next().now_or_never() {
            self.take(delivery).await?;
        }
        self.flush().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.sink.flush().await?;
        (self.unflushed, self.flushed) = (false, Instant::now());
        Ok(())
    }

    async fn give(&mut self, submission: Option<Submission>) -> io::Result<()> {
        let Some(Submission { id, origin, body }) = submission else {
            self.exhausted = true;
            return Ok(());
        };
        self.published += 1;
        let correlation_id = format!("{:020}", self.published);
        self.open.insert(correlation_id.clone(), origin);
        let publication = self.job(&id, correlation_id, body);
        self.broker.publish(&publication).await.map_err(io::Error::other)
    }

    fn job(&self, id: &JobId, correlation_id: String, body: Bytes) -> Publication {
        let mut properties = Properties {
            correlation_id: Some(correlation_id),
            reply_to: Some(self.reply_to.clone()),
            ..Properties::of_job(id)
        };
        if let Some(cause) = &self.cause {
            cause.write(&mut properties);
        }
        Publication {
            exchange: self.jobs.clone(),
            routing_key: self.pool.clone(),
            routing: Routing::Mandatory,
            envelope: Envelope { body, properties },
        }
    }

    async fn take(&mut self, delivery: Delivery) -> io::Result<()> {
        let correlation_id = delivery.envelope.properties.correlation_id.clone().unwrap_or_default();
        let result = JobResult::decode(&delivery.envelope.body).map_err(io::Error::other)?;
        let origin = self.open.get(&correlation_id).map_or("", String::as_str);
        self.sink.result(origin, &result, &delivery.envelope.body).await?;
        self.unflushed = true;
        if result.is_final {
            self.open.remove(&correlation_id);
        }
        // A reply that is not acked comes again, and the inbox goes with this loop: nothing to do about it.
        let _ = delivery.ack().await;
        Ok(())
    }
}
