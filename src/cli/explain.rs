//! `synthex explain`: why a job does not run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;

use super::broker_args::broker_failure;
use super::dead::failure as dead_failure;
use super::exit::{Exit, Failure};
use super::operator::{Inbox, Operator, OperatorArgs, out};
use super::print;
use crate::control::dead::{DeadError, DeadLetters, Letter, Selector};
use crate::control::delayed;
use crate::control::explain::{self, Explanation, Facts, Verdict};
use crate::control::fleet::Wait;
use crate::control::standing::Standing;
use crate::message::nearest;
use crate::message::{Inventory, JobId, Span, now};
use crate::transport::{QueueDepth, Transport};

/// The pool of who names none.
const DEFAULT_POOL: &str = "default";
/// How long the pieces that are not about workers may take in all.
const LOOK_WITHIN: Duration = Duration::from_secs(60);

/// Say where a job is, and why it does not run.
///
/// Asks the workers, and looks at dead letters, delay queues and orders, without changing any of them. A pool's queue is
/// not looked into, for that would count as an attempt of each job in it: of a job that is nowhere else, what is said is
/// what keeps the queue. Exit code 1 when nothing is known of the job.
#[derive(Args)]
pub(super) struct ExplainArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
    /// The pool that it was submitted to [default: those that workers serve, and "default"]
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// How long to wait for workers' answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: ExplainArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let explained = tell(&operator, &args).await;
    operator.end(explained).await
}

async fn tell(operator: &Operator<'_>, args: &ExplainArgs) -> Result<Exit, Failure> {
    let mut inbox = operator.inbox().await?;
    let mut facts = gather(operator, &mut inbox, args).await?;
    let mut explanation = explain::explain(&args.id, &facts, now());
    // What is in no place of its own may be no job at all.
    if !explanation.verdict.is_sure() && operator.is_batch(&args.id).await? {
        facts.is_batch = true;
        explanation = explain::explain(&args.id, &facts, now());
    }
    let is_known = explanation.verdict != Verdict::Unknown;
    if !is_known {
        explanation
            .message
            .push_str(&hint(operator, &mut inbox, &args.id).await?);
    }
    show(&explanation, args.json).await?;
    Ok(if is_known { Exit::Done } else { Exit::Failure })
}

async fn show(explanation: &Explanation, json: bool) -> Result<(), Failure> {
    if json {
        return out(&print::json(explanation)).await;
    }
    out(&explanation.message).await?;
    if let Some(remedy) = &explanation.remedy {
        print::note(remedy);
    }
    Ok(())
}

/// What cannot be looked at, for want of a right or because it is not there, is told and left out: the rest may do.
async fn gather(operator: &Operator<'_>, inbox: &mut Inbox, args: &ExplainArgs) -> Result<Facts, Failure> {
    let (broker, names, id) = (operator.broker(), operator.names(), &args.id);
    let wait = Wait::at_most(args.wait.get());
    let inventories = operator.inventories(inbox, Some(id), wait).await?;
    let mut facts = Facts {
        pools: pools(operator, &inventories, args.pool.as_ref()).await?,
        inventories,
        ..Facts::default()
    };
    let is_in_hand = facts.inventories.iter().any(|inventory| !inventory.jobs.is_empty());
    if is_in_hand {
        return Ok(facts); // what is sure need not be looked for
    }
    let looking = async {
        let standing = Standing::read(broker, names, Some(id)).await;
        facts.standing = part("orders", standing.map_err(DeadError::from))?;
        facts.letters = part("dead letters", letters(operator, id).await)?;
        if facts.letters.is_empty() {
            facts.look = part("delayed jobs", delayed::look(broker, names, id).await)?;
        }
        Ok(facts)
    };
    tokio::time::timeout(LOOK_WITHIN, looking).await.unwrap_or_else(|_| {
        let message =
            format!("looking for job {id} took longer than {LOOK_WITHIN:?}; try again when the broker is less busy");
        Err(Failure::new(Exit::TimedOut, message))
    })
}

async fn letters(operator: &Operator<'_>, id: &JobId) -> Result<Vec<Letter>, DeadError> {
    let selector = Selector {
        ids: BTreeSet::from([id.to_string()]),
        ..Selector::default()
    };
    let dead = DeadLetters::new(operator.broker().clone(), operator.names().clone());
    let (letters, _) = dead.list(&selector, usize::MAX).await?;
    Ok(letters)
}

/// What was found, or nothing with a word about it where the broker refuses.
fn part<T: Default>(what: &str, found: Result<T, DeadError>) -> Result<T, Failure> {
    match found {
        Ok(found) => Ok(found),
        Err(DeadError::NoQueue(_)) => Ok(T::default()),
        Err(DeadError::Transport(error)) if error.is_refusal() => {
            print::note(&format!("{what} are left out: failed to {error}"));
            Ok(T::default())
        }
        Err(DeadError::Transport(error)) => Err(broker_failure(&error)),
        Err(error) => Err(dead_failure(error)),
    }
}

/// The pools that the job may be in, each with its queue.
async fn pools(
    operator: &Operator<'_>,
    inventories: &[Inventory],
    named: Option<&String>,
) -> Result<Vec<(String, Option<QueueDepth>)>, Failure> {
    let served = inventories.iter().flat_map(|inventory| &inventory.worker.pools);
    let names: BTreeSet<String> = match named {
        Some(pool) => BTreeSet::from([pool.clone()]),
        None => served
            .map(|state| state.pool.clone())
            .chain([DEFAULT_POOL.to_owned()])
            .collect(),
    };
    let mut pools = BTreeMap::new();
    for pool in names {
        let queue = operator.names().pool_queue(&pool);
        let depth = operator
            .persist(async || operator.broker().queue_depth(&queue).await)
            .await?;
        if depth.is_some() || named.is_some() {
            pools.insert(pool, depth);
        }
    }
    Ok(pools.into_iter().collect())
}

/// The nearest id of the jobs that workers have.
async fn hint(operator: &Operator<'_>, inbox: &mut Inbox, id: &JobId) -> Result<String, Failure> {
    let inventories = operator
        .inventories(inbox, None, Wait::at_most(Duration::from_secs(1)))
        .await?;
    let known = inventories.iter().flat_map(|inventory| &inventory.jobs);
    Ok(nearest::hint(id.as_str(), known.map(|job| job.id.as_str())))
}
