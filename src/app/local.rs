//! `synthex run`: jobs through the same worker on the embedded broker.
//!
//! The batch is carried out as on a fleet ([`crate::batch`]), but for what a broker that nobody else sees cannot do: what was
//! submitted by an earlier process is gone with it, and who cancels tells the worker himself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{Ended, Parts, Spawners, StartError, TraceOptions, identity};
use crate::batch::halt::Halt;
use crate::batch::journal::Journal;
use crate::batch::{
    self, AttachError, BatchId, Cancel, End, Engine, Ids, MAX_IN_FLIGHT, OnBad, Plan, Results, Sink, Source, Table,
    Watcher,
};
use crate::config::Pool;
use crate::message::{Order, TraceContext, WorkerInfo};
use crate::supervise::Shutdown;
use crate::transport::memory::Memory;
use crate::transport::topology::{Declare, Names, Topology};
use crate::transport::{Transport, TransportError};
use crate::worker::orders::Orders;
use crate::worker::{Audience, Identity};
use crate::worker::{Circuits, Elsewhere};

/// How long what was taken by then may still be written once a run is to end at once; who reads it may have stopped reading.
const RESULTS_AT_ABORT: Duration = Duration::from_millis(500);
/// How long results may still be written once a run was stopped and all its jobs have ended.
const LAST_RESULTS: Duration = Duration::from_secs(5);
/// The namespace of a broker that nobody else sees.
const NAMESPACE: &str = "synthex";

/// What is to be run, and who gets the results.
pub struct Work<'a, S> {
    /// The jobs.
    pub source: S,
    /// Who gets the results.
    pub sinks: Vec<Box<dyn Sink + 'a>>,
    /// Who is told what happens.
    pub watcher: &'a mut (dyn Watcher + 'a),
    /// What is known of earlier runs.
    pub past: (Table, Option<Journal>),
    /// What the batch is called.
    pub batch: BatchId,
    /// What the jobs are a part of, if they are part of a trace.
    pub cause: Option<TraceContext>,
    /// How many there are, if that is known.
    pub expected: Option<u64>,
    /// Most jobs that are read and not finished; `None` for enough to keep the pool busy, and not many more where a halt
    /// may come.
    pub max_in_flight: Option<usize>,
    /// What to do with an item that is no job.
    pub on_bad: OnBad,
    /// When to end early.
    pub halts: Vec<Halt>,
    /// What has failed in an earlier run is run again.
    pub retry_failed: bool,
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
}

/// How a local run ended.
pub struct LocalEnd {
    /// How its worker ended.
    pub ended: Ended,
    /// How the batch did.
    pub end: End,
}

/// Runs every job of a source on this machine.
///
/// # Errors
/// [`StartError`], before any job was run.
pub async fn run(options: LocalOptions, work: Work<'_, impl Source>) -> Result<LocalEnd, StartError> {
    let pool = options.pool;
    let shutdown = Shutdown::new();
    let (broker, names) = (Memory::default(), Names::new(NAMESPACE));
    broker
        .declare(&Topology::new(&names, [&*pool.name]), Declare::Active)
        .await?;
    let results = results(&broker, &names, &work.batch).await?;
    let orders = Orders::none();
    let mut plan = Plan::new(broker.clone(), &names, &pool.name, &work.batch, here(&pool));
    plan.call(Ids::OfOrigin);
    plan.max_in_flight = in_flight(&pool, &work);
    plan.trace(work.cause);
    plan.expected = work.expected;
    (plan.on_bad, plan.halts, plan.retry_failed) = (work.on_bad, work.halts, work.retry_failed);
    plan.cancel = cancel(orders.clone(), &work.batch);
    let mut engine = Engine::new(plan, work.source, work.sinks, work.watcher, work.past, Some(results));
    let parts = Parts::new(
        std::slice::from_ref(&pool),
        NAMESPACE,
        options.spawners,
        None,
        Audience::nobody(),
    )?
    .traced(options.traces, "synthex", NAMESPACE);
    let listener = parts.bind(options.metrics_addr.as_deref()).await?;
    let mut worker = parts.worker(broker, NAMESPACE, orders, &shutdown);
    worker.circuits = Circuits::new(&worker.observer, Elsewhere::Nobody);
    let tree = parts.tree(&worker, Vec::new(), vec![pool], listener, &shutdown);
    let stopped = CancellationToken::new();
    let (report, outcome) = tokio::join!(
        async {
            let report = tree.run(shutdown.clone()).await;
            stopped.cancel();
            report
        },
        async {
            let outcome = tokio::select! {
                outcome = engine.work(&shutdown, &stopped) => outcome,
                () = async { shutdown.aborting().await; tokio::time::sleep(RESULTS_AT_ABORT).await } => Ok(()),
                () = async { stopped.cancelled().await; tokio::time::sleep(LAST_RESULTS).await } => Ok(()),
            };
            match &outcome {
                Ok(()) => shutdown.drain(),
                Err(_) => shutdown.abort(), // nobody takes what runs would end with
            }
            outcome
        },
    );
    Ok(LocalEnd {
        ended: Ended {
            report,
            ending: worker.ending,
        },
        end: engine.end(outcome),
    })
}

/// Most jobs that are queued or running. A halt comes too late for those, as the worker takes whatever is queued.
fn in_flight<S>(pool: &Pool, work: &Work<'_, S>) -> usize {
    let default = match work.halts.is_empty() {
        true => (MAX_IN_FLIGHT as usize).max(usize::from(pool.prefetch) * 2),
        false => pool.slots * 2,
    };
    work.max_in_flight.unwrap_or(default)
}

/// Where the results of the batch come.
async fn results(broker: &Memory, names: &Names, batch: &BatchId) -> Result<Results<Memory>, TransportError> {
    batch::attach(broker, names, batch).await.map_err(|error| match error {
        AttachError::Transport(error) => error,
        AttachError::Busy(queue) => unreachable!("nobody else sees {queue}"),
    })
}

/// Who makes results of items that are no jobs.
fn here(pool: &Pool) -> WorkerInfo {
    let Identity { id, host } = identity();
    WorkerInfo {
        id,
        host,
        pool: pool.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// Tells the worker in this process, which reads no log of orders.
fn cancel(orders: Orders, batch: &BatchId) -> Cancel {
    let batch = Arc::new(batch.to_string());
    Box::new(move || {
        let now = crate::message::now();
        let order = Order::Cancel {
            ids: Vec::new(),
            labels: [].into(),
            batch: Some(batch.to_string()),
            pool: None,
            at: now,
            by: None,
        };
        orders.apply(&order, now);
        std::future::ready(()).boxed()
    })
}
