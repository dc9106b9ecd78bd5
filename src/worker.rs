//! Takes jobs, runs them, answers, and settles.
//!
//! One pool is served by three tasks, started in this order and stopped in the reverse one:
//!
//! ```text
//!   queue_probe: measures the queue, for the metrics, and sees whether its messages come
//!   dispatcher:  owns the jobs in hand, a task each ──► pipeline: admit → slot → execute → result → ack
//!        ▲ deliveries (flow::channel)
//!   intake:      subscribes, and subscribes again
//! ```
//!
//! - [`hold`] is why a pool takes no jobs for now; [`pace`] is how often it starts one.
//! - [`circuits`] are the circuit breakers before what is outside; [`programs`] are those of commands that cannot be
//!   started here.
//! - [`ledger`] knows a redelivered job that is in hand here, or has ended here.
//! - [`in_hand`] tells operators how far each job in hand is.
//! - [`orders`] knows which jobs operators have cancelled.
//! - [`admit`] decides, from a delivery alone, what is to become of it: run, wait, count again, or end without a run.
//! - [`settle`] decides, from an outcome alone, what the result is and what comes after it.
//! - [`outgoing`] makes the messages of both, [`outbox`] sees one confirmed, [`pipeline`] does it all in order.
//! - [`parcel`] is all that an attempt sends at its end, [`post`] sends it, and [`spool`] keeps it on disk while the
//!   broker is away; [`replay`] sends what an earlier worker could not.
//! - [`pulse`] tells a consumer that is connected and gets nothing.
//! - [`audience`] knows who listens to what commands write.
//! - [`trail`] is an attempt's way, written down for who follows traces.
//! - [`event`] is what the rest of the program hears of it.
//!
//! Invariants: a delivery is acked only after its result was confirmed, or after the message was published again; at
//! most `slots` commands run and at most `prefetch` jobs are in hand, over any number of reconnects; a job that was
//! not acked goes back.

mod admit;
pub mod audience;
mod circuits;
mod dispatcher;
pub mod event;
mod hold;
pub mod in_hand;
mod intake;
mod ledger;
pub mod log;
pub mod orders;
mod outbox;
mod outgoing;
mod pace;
mod parcel;
mod pipeline;
mod post;
mod probe;
mod programs;
mod pulse;
mod replay;
mod settle;
mod slots;
pub mod spool;
pub mod trail;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use tokio::sync::Mutex;

use crate::config::Pool;
use crate::executor::Spawners;
use crate::flow::LockAccount;
use crate::flow::channel::Channels;
use crate::message::WorkerInfo;
use crate::supervise::{Child, Restart, Shutdown, TaskAccounts, TaskError};
use crate::transport::topology::{Declare, Names, Topology};
use crate::transport::{Transport, TransportError};
use event::Observer;

pub use audience::Audience;
pub use circuits::Circuits;
use dispatcher::Dispatcher;
pub use hold::{HoldReason, Holds, Patience};
pub use in_hand::InHand;
use intake::Intake;
pub use ledger::Ledgers;
use orders::Orders;
pub(crate) use outgoing::again;
use pipeline::Pipeline;
use probe::QueueProbe;
pub use programs::Elsewhere;
use pulse::Pulse;
pub use pulse::Watch;
use replay::{Replay, Waiting};
use spool::Spool;
use trail::Tracer;

/// The locks that every job goes through.
pub static LOCKS: [&LockAccount; 4] = [&ledger::LOCK, &orders::LOCK, &pulse::LOCK, &spool::LOCK];

/// What all pools of a worker share.
#[derive(Clone)]
pub struct Worker<T> {
    /// Where jobs come from and results go.
    pub transport: T,
    /// The namespace's names.
    pub names: Names,
    /// Who starts commands.
    pub spawners: Spawners,
    /// What operators have ordered.
    pub orders: Orders,
    /// Who listens.
    pub audience: Audience,
    /// Who we are, in results; its `pool` is filled in a pool at a time.
    pub identity: Identity,
    /// The jobs in hand, for operators who ask.
    pub in_hand: InHand,
    /// Told of everything.
    pub observer: Arc<dyn Observer>,
    /// What holds pools from taking jobs.
    pub holds: Holds,
    /// Its circuit breakers.
    pub circuits: Circuits,
    /// Where channels are counted.
    pub channels: Channels,
    /// Where tasks are counted.
    pub tasks: TaskAccounts,
    /// How it ends.
    pub ending: Ending,
    /// What is remembered of messages, by pool.
    pub ledgers: Ledgers,
    /// Where results wait on disk while the broker is away; `None` for memory alone.
    pub spool: Option<Spool>,
    /// How queues and their consumers are watched.
    pub watch: Watch,
    /// Who writes down what jobs go through; `None` for nobody.
    pub tracer: Option<Tracer>,
}

/// Who a worker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unique among the workers that live at one time.
    pub id: String,
    /// The machine's name.
    pub host: String,
}

impl Identity {
    fn in_pool(&self, pool: &str) -> WorkerInfo {
        WorkerInfo {
            id: self.id.clone(),
            host: self.host.clone(),
            pool: pool.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl<T: Transport> Worker<T> {
    /// The tasks that serve a pool, in the order in which they have to be started.
    #[must_use]
    pub fn children(&self, pool: &Arc<Pool>) -> Vec<Child> {
        self.tasks.announce("job"); // shown before the first one comes
        let capacity = usize::from(pool.prefetch);
        let (deliveries, taken) = self.channels.bounded("deliveries", capacity);
        let pulse = Arc::new(Pulse::new(pool.prefetch, self.watch.stall));
        let pipeline = Arc::new(Pipeline::new(self, pool, pulse.clone()));
        let dispatcher = Arc::new(Dispatcher {
            pool: pool.clone(),
            deliveries: Mutex::new(taken),
            pipeline: pipeline.clone(),
            tasks: self.tasks.clone(),
            ending: self.ending.clone(),
        });
        let intake = Arc::new(Intake {
            pool: pool.clone(),
            transport: self.transport.clone(),
            queue: self.names.pool_queue(&pool.name),
            topology: self.topology(pool),
            deliveries,
            pipeline,
            pulse: pulse.clone(),
            holds: self.holds.clone(),
            orders: self.orders.clone(),
            observer: self.observer.clone(),
            ending: self.ending.clone(),
        });
        let probe = Arc::new(QueueProbe {
            pool: pool.name.clone(),
            transport: self.transport.clone(),
            queue: self.names.pool_queue(&pool.name),
            every: self.watch.every,
            pulse,
            observer: self.observer.clone(),
        });
        vec![
            permanent("queue_probe", probe, QueueProbe::run),
            permanent("dispatcher", dispatcher, Dispatcher::run),
            permanent("intake", intake, Intake::run),
        ]
    }
}

impl<T: Transport> Worker<T> {
    /// The task that publishes what workers that are gone have left in the outbox; to be made before any that consumes, for
    /// the messages it answers are known from then on. `None` when there is no outbox.
    #[must_use]
    pub fn replay(&self, declare: Declare) -> Option<Child> {
        let spool = self.spool.clone()?;
        let replay = Arc::new(Replay {
            transport: self.transport.clone(),
            names: self.names.clone(),
            declare,
            waiting: Waiting::new(&spool, &self.ledgers),
            spool,
            circuit: self.circuits.results.clone(),
            observer: self.observer.clone(),
        });
        let run = move |shutdown| Replay::run(replay.clone(), shutdown);
        Some(Child::new("replay", Restart::Transient, run))
    }
}

impl<T> Worker<T> {
    /// What a pool needs to find on the broker.
    fn topology(&self, pool: &Pool) -> Arc<Topology> {
        Arc::new(Topology::new(&self.names, [&*pool.name]))
    }
}

/// A child that is started again whenever it ends unasked, on the same shared state.
fn permanent<S, F>(name: &'static str, state: Arc<S>, run: fn(Arc<S>, Shutdown) -> F) -> Child
where
    S: Send + Sync + 'static,
    F: Future<Output = Result<(), TaskError>> + Send + 'static,
{
    Child::new(name, Restart::Permanent, move |shutdown| run(state.clone(), shutdown))
}

/// How a worker came to its end: what it gave back, and whether something made it stop by itself.
#[derive(Clone, Default)]
pub struct Ending(Arc<Account>);

#[derive(Default)]
struct Account {
    cut: AtomicU32,
    given_back: AtomicU32,
    left: std::sync::Mutex<Vec<String>>,
    fatal: OnceLock<TransportError>,
    stop: Shutdown,
}

impl Ending {
    /// An empty account; a fatal error drains `stop`.
    #[must_use]
    pub fn new(stop: Shutdown) -> Self {
        Self(Arc::new(Account {
            stop,
            ..Account::default()
        }))
    }

    /// Jobs that were begun and given back: their command was killed, or their result was not confirmed.
    #[must_use]
    pub fn cut(&self) -> u32 {
        self.0.cut.load(Ordering::Relaxed)
    }

    /// Jobs that were not started and went back.
    #[must_use]
    pub fn given_back(&self) -> u32 {
        self.0.given_back.load(Ordering::Relaxed)
    }

    /// Jobs that did not end when they were killed, by the names of their tasks.
    #[must_use]
    pub fn left(&self) -> Vec<String> {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The error that no waiting would have mended, if there was one.
    #[must_use]
    pub fn fatal(&self) -> Option<&TransportError> {
        self.0.fatal.get()
    }

    /// Waits until the worker stops taking jobs.
    async fn draining(&self) {
        self.0.stop.draining().await;
    }

    fn count_cut(&self) {
        self.0.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn count_given_back(&self) {
        self.0.given_back.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self, jobs: Vec<String>) {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner).extend(jobs);
    }

    fn fail(&self, error: TransportError) {
        // The first error is the one to tell.
        let _ = self.0.fatal.set(error);
        self.0.stop.drain();
    }
}
