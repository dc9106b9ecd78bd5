//! `synthex drain`: ends a worker, or the work of a pool, in good order.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};

use super::exit::{Exit, Failure};
use super::operator::{Inbox, Operator, OperatorArgs, out};
use super::{pause, print};
use crate::control::fleet::Target;
use crate::message::nearest;
use crate::message::{Reply, Request, Span, WorkerState};

/// How long a worker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long to collect the answers of a pool's workers.
const ANSWERS: Duration = Duration::from_secs(2);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Have a worker, or all workers of a pool, finish what runs and start nothing more.
///
/// A worker then ends, as after its first SIGTERM: what is not done at the end of its stop_grace is given back. The workers
/// of a pool go on and serve their other pools; the pool is paused until `synthex resume`. Waits until it is done.
#[derive(Args)]
#[command(override_usage = "synthex drain [OPTIONS] <WORKER_ID>\n       synthex drain [OPTIONS] --pool <POOL>")]
pub(super) struct DrainArgs {
    /// The worker's id, as `synthex workers` shows it
    #[arg(value_name = "WORKER_ID", required_unless_present = "pool", conflicts_with = "pool")]
    worker: Option<String>,
    /// Pause this pool, and wait until no worker has jobs of it in hand
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Give up waiting after this time, exit code 75; the drain goes on
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    wait_timeout: Span,
    /// Print what was drained as a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: DrainArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let drain = Drain {
        operator: &operator,
        limit: args.wait_timeout,
        deadline: Instant::now() + args.wait_timeout.get(),
    };
    let drained = async {
        let done = match (&args.worker, &args.pool) {
            (Some(worker), _) => drain.worker(worker).await?,
            (None, Some(pool)) => drain.pool(pool).await?,
            (None, None) => return Err(Failure::new(Exit::Usage, "expected a worker's id or --pool")),
        };
        if args.json {
            out(&done.to_string()).await?;
        }
        Ok(Exit::Done)
    }
    .await;
    operator.end(drained).await
}

struct Drain<'a> {
    operator: &'a Operator<'a>,
    limit: Span,
    deadline: Instant,
}

impl Drain<'_> {
    /// Asks it to drain, and waits until its queue for requests is gone.
    async fn worker(&self, worker: &str) -> Result<serde_json::Value, Failure> {
        let mut inbox = self.operator.inbox().await?;
        self.ask_to_drain(&mut inbox, worker).await?;
        print::note(&format!("worker {worker} drains"));
        while self.is_there(&mut inbox, worker).await? {
            self.look_again(|| format!("worker {worker} has not ended")).await?;
        }
        print::note(&format!("worker {worker} has ended"));
        Ok(serde_json::json!({ "worker": worker, "drained": true }))
    }

    /// Whether its queue for requests is there.
    async fn is_there(&self, inbox: &mut Inbox, worker: &str) -> Result<bool, Failure> {
        let target = Target::Worker(worker);
        let answers = self.operator.ask(inbox, target, &Request::Ping {}, ANSWER).await?;
        Ok(answers.is_some())
    }

    async fn ask_to_drain(&self, inbox: &mut Inbox, worker: &str) -> Result<(), Failure> {
        let request = Request::Drain {
            worker: worker.to_owned(),
        };
        let replies = self
            .operator
            .ask(inbox, Target::Worker(worker), &request, ANSWER)
            .await?;
        match replies.as_deref() {
            Some([Reply::Refused { message }, ..]) => {
                let message = format!("worker {worker} does not drain: {message}");
                Err(Failure::new(Exit::Failure, message))
            }
            // It has the request, and will obey when it gets to it.
            Some(_) => Ok(()),
            None => {
                let workers = self.operator.workers(inbox, ANSWERS).await?;
                let hint = nearest::hint(worker, workers.iter().map(|worker| &*worker.id));
                let message = format!("there is no worker {worker:?}; `synthex workers` lists those that answer{hint}");
                Err(Failure::new(Exit::Failure, message))
            }
        }
    }

    /// Pauses it, and waits until no worker has a job of it in hand: neither one that answers, nor one that is too busy
    /// for that, as a quorum queue counts a consumer that was cancelled until it has settled all that it had.
    async fn pool(&self, pool: &str) -> Result<serde_json::Value, Failure> {
        self.operator.check_pool(pool).await?;
        self.operator.order(&pause::pause(pool.to_owned())).await?;
        print::note(&format!("pool {pool:?} is paused"));
        let mut inbox = self.operator.inbox().await?;
        loop {
            let workers = self.operator.workers(&mut inbox, ANSWERS).await?;
            let busy: Vec<&str> = workers
                .iter()
                .filter(|worker| is_busy(worker, pool))
                .map(|worker| &*worker.id)
                .collect();
            let consumers = self.operator.check_pool(pool).await?.consumers;
            if busy.is_empty() && consumers == 0 {
                print::note(&format!("pool {pool:?} is drained: no worker has a job of it in hand"));
                return Ok(serde_json::json!({ "pool": pool, "drained": true }));
            }
            let still = || format!("pool {pool:?} is not drained: {consumers} consumers, and busy {busy:?}");
            self.look_again(still).await?;
        }
    }

    /// Waits a moment, or gives up with what there is to say.
    async fn look_again(&self, still: impl FnOnce() -> String) -> Result<(), Failure> {
        if Instant::now() + LOOK_AGAIN > self.deadline {
            let message = format!("{} within {} (--wait-timeout); the drain goes on", still(), self.limit);
            return Err(Failure::new(Exit::TimedOut, message));
        }
        sleep(LOOK_AGAIN).await;
        Ok(())
    }
}

/// Whether a worker has jobs of a pool, or may still take some because the pause has not reached it.
fn is_busy(worker: &WorkerState, pool: &str) -> bool {
    let mut pools = worker.pools.iter().filter(|state| state.pool == pool);
    pools.any(|state| state.in_hand > 0 || state.running > 0 || !state.paused || state.consuming)
}
