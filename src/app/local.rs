//! `synthex run`: jobs through the same worker on the embedded broker.
//!
//! The batch is carried out as on a fleet ([`crate::batch`]), but for what a broker that nobody else sees cannot do: what was
//! submitted by an earlier process is gone with it, and who cancels tells the worker himself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{Ended, Parts, Spawners, StartError, identity};
use crate::batch::halt::Halt;
use crate::batch::journal::Journal;
use crate::batch::{self, AttachError, BatchId, Cancel, End, Engine, Ids, OnBad, Plan, Sink, Source, Table, Watcher};
use crate::config::Pool;
use crate::message::{Order, WorkerInfo};
use crate::supervise::Shutdown;
use crate::transport::Transport;
use crate::transport::memory::Memory;
use crate::transport::topology::{Declare, Names, Topology};
use crate::worker::orders::Orders;
use crate::worker::{Audience, Identity};
use crate::worker::{Circuits, Elsewhere};

/// Most jobs that are queued or running unless asked otherwise, over what the pool's prefetch needs to be busy.
const IN_FLIGHT: usize = 1024;
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
    /// Most jobs that are read and not finished; `None` for enough to keep the pool busy.
    pub max_in_flight: Option<usize>,
    /// What to do with an item that is no job.
    pub on_bad: OnBad,
    /// When to end early.
    pub halts: Vec<Halt>,
    /// What has failed in an earlier run is run again.
    pub retry_failed: bool,
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
pub async fn run(
    pool: Pool,
    spawners: Spawners,
    metrics_addr: Option<&str>,
    work: Work<'_, impl Source>,
) -> Result<LocalEnd, StartError> {
    let shutdown = Shutdown::new();
    let (broker, names) = (Memory::default(), Names::new(NAMESPACE));
    broker
        .declare(&Topology::new(&names, [&*pool.name]), Declare::Active)
        .await?;
    let results = batch::attach(&broker, &names, &work.batch)
        .await
        .map_err(|error| match error {
            AttachError::Transport(error) => error,
            AttachError::Busy(queue) => unreachable!("nobody else sees {queue}"),
        })?;
    let orders = Orders::none();
    let mut plan = Plan::new(broker.clone(), &names, &pool.name, &work.batch, here(&pool));
    plan.call(Ids::OfOrigin);
    plan.max_in_flight = work
        .max_in_flight
        .unwrap_or_else(|| IN_FLIGHT.max(usize::from(pool.prefetch) * 2));
    (plan.on_bad, plan.halts, plan.retry_failed) = (work.on_bad, work.halts, work.retry_failed);
    plan.cancel = cancel(orders.clone(), &work.batch);
    let mut engine = Engine::new(plan, work.source, work.sinks, work.watcher, work.past, Some(results));
    let parts = Parts::new(
        std::slice::from_ref(&pool),
        NAMESPACE,
        spawners,
        None,
        Audience::nobody(),
    )?;
    let listener = parts.bind(metrics_addr).await?;
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
