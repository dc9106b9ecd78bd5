//! What the subcommands that operate a fleet have in common: a client that gives orders and asks workers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use nix::unistd::{Uid, User};
use tokio::time::timeout;

use super::broker_args::{BrokerArgs, ClientError, ConnectArgs, Patience};
use super::exit::{Exit, Failure};
use super::print;
use crate::batch::{BatchId, registry};
use crate::control::fleet::{self, Question, Target, Wait};
use crate::control::snapshot::Snapshot;
use crate::events;
use crate::message::nearest;
use crate::message::{Inventory, JobId, Order, Reply, Request, WorkerState, now};
use crate::transport::amqp::Amqp;
use crate::transport::topology::Names;
use crate::transport::{Publication, PublishError, QueueDepth, Transport};

#[derive(Args)]
pub(super) struct OperatorArgs {
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// A client of the broker.
pub(super) struct Operator<'a> {
    args: &'a OperatorArgs,
    broker: Amqp,
    pub(super) names: Names,
}

impl<'a> Operator<'a> {
    pub(super) fn new(args: &'a OperatorArgs) -> Result<Self, Failure> {
        Ok(Self {
            args,
            broker: args.broker.client(&args.connect)?,
            names: Names::new(args.broker.namespace.clone()),
        })
    }

    /// Says goodbye to the broker, and passes on what came of it all.
    pub(super) async fn end<T>(self, outcome: Result<T, Failure>) -> Result<T, Failure> {
        self.broker.close().await;
        outcome
    }

    /// The patience for one thing to do: an operator may wait for workers much longer than a broker may be away.
    fn patience(&self) -> Result<Patience, Failure> {
        self.args.connect.patience(&self.args.broker)
    }

    /// The broker.
    pub(super) fn broker(&self) -> &Amqp {
        &self.broker
    }

    /// The names of its exchanges and queues.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// Does `work` until the broker answers, as long as a client tries to reach it.
    pub(super) async fn persist<T, E: ClientError>(
        &self,
        mut work: impl AsyncFnMut() -> Result<T, E>,
    ) -> Result<T, Failure> {
        let namespace = self.namespace();
        let work = async || work().await.map_err(|error| OperatorError { error, namespace });
        self.patience()?.persist(work).await
    }

    /// How many messages wait in a queue; `None` when there is no such queue.
    pub(super) async fn queue_depth(&self, queue: &str) -> Result<Option<QueueDepth>, Failure> {
        self.persist(async || self.broker.queue_depth(queue).await).await
    }

    /// Publishes; whether there was anybody to take it.
    pub(super) async fn publish(&self, publication: &Publication) -> Result<bool, Failure> {
        let publish = async || match self.broker.publish(publication).await {
            Err(PublishError::Unroutable { .. }) => Ok(false),
            published => published.map(|()| true),
        };
        self.persist(publish).await
    }

    /// Gives an order; it is in force when this returns.
    pub(super) async fn order(&self, order: &Order) -> Result<(), Failure> {
        if self.publish(&fleet::order(&self.names, order)).await? {
            return Ok(());
        }
        let message = format!(
            "there is no queue {:?} on this broker that keeps orders; start a worker, or declare it with `synthex \
             config apply`",
            self.names.orders()
        );
        Err(Failure::new(Exit::Config, message))
    }

    /// The queue of a pool. An order about a pool that nobody has declared is a slip.
    pub(super) async fn check_pool(&self, pool: &str) -> Result<QueueDepth, Failure> {
        let queue = self.names.pool_queue(pool);
        if let Some(found) = self.queue_depth(&queue).await? {
            return Ok(found);
        }
        Err(no_queue(&self.broker, &self.names, pool).await)
    }

    /// Whether an id is that of a batch: of one that has its queue, or that submitters have spoken of. Their log is read if
    /// that takes a moment: who asks has something else to do.
    pub(super) async fn is_batch(&self, id: &JobId) -> Result<bool, Failure> {
        let Ok(batch) = id.as_str().parse::<BatchId>() else {
            return Ok(false);
        };
        let queue = self.names.batch_results(batch.as_str());
        if self.queue_depth(&queue).await?.is_some() {
            return Ok(true);
        }
        let reading = registry::known(&self.broker, &self.names, &batch);
        Ok(matches!(timeout(BATCHES_WITHIN, reading).await, Ok(Ok(Some(_)))))
    }

    /// What the names of all exchanges and queues begin with.
    pub(super) fn namespace(&self) -> &str {
        &self.args.broker.namespace
    }

    /// The broker's hosts, for people.
    pub(super) fn hosts(&self) -> Result<String, Failure> {
        Ok(self.args.broker.addresses()?.hosts())
    }

    /// A place for answers.
    pub(super) async fn inbox(&self) -> Result<Inbox, Failure> {
        let open = async || self.broker.inbox().await;
        let (name, subscription) = self.persist(open).await?;
        Ok(Inbox { name, subscription })
    }

    /// A place for answers and for what is published of a job's output.
    pub(super) async fn overhear(&self, job: &JobId) -> Result<Inbox, Failure> {
        let topics = events::output_topics(&self.names, job);
        let open = async || self.broker.overhear(&topics, events::OVERHEARD_MAX).await;
        let (name, subscription) = self.persist(open).await?;
        Ok(Inbox { name, subscription })
    }

    /// The workers that answer, by id.
    pub(super) async fn workers(&self, inbox: &mut Inbox, wait: Duration) -> Result<Vec<WorkerState>, Failure> {
        let answers = self.ask(inbox, Target::All, &Request::Ping {}, wait).await?;
        Ok(fleet::states(answers.unwrap_or_default()))
    }

    /// The jobs of the workers that answer, by worker; of one id, or all.
    pub(super) async fn inventories(
        &self,
        inbox: &mut Inbox,
        id: Option<&JobId>,
        wait: Wait,
    ) -> Result<Vec<Inventory>, Failure> {
        let request = Request::Jobs { id: id.cloned() };
        let answers = self.ask_within(inbox, Target::All, &request, wait).await?;
        Ok(fleet::inventories(answers.unwrap_or_default()))
    }

    /// The fleet now: all pools that are served, and these.
    pub(super) async fn snapshot(&self, inbox: &mut Inbox, pools: &[String], wait: Wait) -> Result<Snapshot, Failure> {
        let inventories = self.inventories(inbox, None, wait).await?;
        let at = now();
        let served = inventories.iter().flat_map(|inventory| &inventory.worker.pools);
        let names: BTreeSet<&String> = served.map(|pool| &pool.pool).chain(pools).collect();
        let mut depths = BTreeMap::new();
        for pool in names {
            let queue = self.names.pool_queue(pool);
            let depth = self.persist(async || self.broker.queue_depth(&queue).await).await?;
            depths.insert(pool.clone(), depth);
        }
        Ok(Snapshot::new(at, inventories, &depths))
    }

    /// Asks workers: `None` if there is none, no answer if none comes in time.
    pub(super) async fn ask(
        &self,
        inbox: &mut Inbox,
        target: Target<'_>,
        request: &Request,
        wait: Duration,
    ) -> Result<Option<Vec<Reply>>, Failure> {
        self.ask_within(inbox, target, request, Wait::at_most(wait)).await
    }

    async fn ask_within(
        &self,
        inbox: &mut Inbox,
        target: Target<'_>,
        request: &Request,
        wait: Wait,
    ) -> Result<Option<Vec<Reply>>, Failure> {
        let question = Question::new(&self.names, target, request, &inbox.name);
        if !self.publish(&question.publication).await? {
            return Ok(None);
        }
        let answers = question.answers(&mut inbox.subscription, wait).await;
        answers
            .map(Some)
            .map_err(|error| Failure::new(Exit::Unavailable, format!("failed to {error}")))
    }
}

/// A private queue.
pub(super) struct Inbox {
    pub(super) name: String,
    pub(super) subscription: <Amqp as Transport>::Subscription,
}

/// What goes wrong for an operator. Of all things that may be missing, there is one that a fresh broker, or a slip in the
/// namespace, brings about, whatever is asked.
struct OperatorError<'a, E> {
    error: E,
    namespace: &'a str,
}

impl<E: ClientError> ClientError for OperatorError<'_, E> {
    fn is_transient(&self) -> bool {
        self.error.is_transient()
    }

    fn into_failure(self) -> Failure {
        let is_missing_exchange = self.error.is_missing_exchange();
        let failure = self.error.into_failure();
        if !is_missing_exchange {
            return failure;
        }
        let message = format!(
            "nothing is declared in namespace {}: start a worker, run `synthex config apply`, or check --namespace ({})",
            self.namespace, failure.message
        );
        Failure::new(failure.exit, message)
    }
}

/// How long the log of batches may take to read.
const BATCHES_WITHIN: Duration = Duration::from_secs(2);
/// How long a hint may take.
const HINT_WITHIN: Wait = Wait {
    most: Duration::from_secs(1),
    between: Duration::from_millis(300),
};

/// What to say of a pool that nobody has declared, and what to do.
pub(super) async fn no_queue(broker: &Amqp, names: &Names, pool: &str) -> Failure {
    let (queue, hint) = (names.pool_queue(pool), nearest_pool(broker, names, pool).await);
    let message = format!(
        "pool {pool:?} has no queue {queue:?} on this broker; start a worker for it, or declare it with `synthex config \
         apply`{hint}"
    );
    Failure::new(Exit::Config, message)
}

/// The nearest pool that a worker serves. A hint is not worth an error.
async fn nearest_pool(broker: &Amqp, names: &Names, pool: &str) -> String {
    let ask = async {
        let (name, mut inbox) = broker.inbox().await.ok()?;
        let question = Question::new(names, Target::All, &Request::Ping {}, &name);
        broker.publish(&question.publication).await.ok()?;
        question.answers(&mut inbox, HINT_WITHIN).await.ok()
    };
    let answers = timeout(2 * HINT_WITHIN.most, ask).await;
    let workers = fleet::states(answers.ok().flatten().unwrap_or_default());
    let served = workers.iter().flat_map(|worker| &worker.pools);
    nearest::hint(pool, served.map(|state| &*state.pool))
}

/// Who gives orders, for people: user and machine.
pub(super) fn who() -> String {
    let uid = Uid::current();
    let user = User::from_uid(uid).ok().flatten();
    let user = user.map_or_else(|| uid.to_string(), |user| user.name);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}")
}

/// Writes a line of data.
pub(super) async fn out(text: &str) -> Result<(), Failure> {
    print::line(text)
        .await
        .map_err(|error| Failure::io("write to stdout", &error))
}

/// Writes an order as data.
pub(super) async fn show(order: &Order) -> Result<(), Failure> {
    out(&String::from_utf8_lossy(&order.encode())).await
}
