//! `synthex cancel`: ends jobs, wherever they are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use tokio::time::timeout;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, show, who};
use super::print;
use crate::control::explain::{Facts, Verdict, explain};
use crate::control::fleet::Wait;
use crate::message::{Inventory, Job, JobId, Order, now};
use crate::transport::topology::ORDERS_KEPT;

/// How long workers may take to say that they have a job.
const ANSWERS: Wait = Wait {
    most: Duration::from_secs(1),
    between: Duration::from_millis(300),
};
/// How long ids that no worker has are looked up among those of batches: a cancel is urgent.
const LOOK_WITHIN: Duration = Duration::from_secs(3);
/// How many ids are named.
const NAMED: usize = 5;

/// Cancel jobs that were submitted before now.
///
/// Those that run are ended as at their timeout and keep their output; those that wait end when a worker gets to them,
/// delayed ones when their delay is over. Each has a result with the status "cancelled". The cancel is in force for 7
/// days, also on workers that start later; what is submitted again from now on runs, under the same id too. A job
/// without a timestamp counts as older. Times are those of the machines that submit and cancel: keep their clocks
/// right. The id of a batch is refused: `synthex batch cancel` is for those.
#[derive(Args)]
#[command(override_usage = "synthex cancel [OPTIONS] <ID>...\n       synthex cancel [OPTIONS] --label <KEY=VALUE>...")]
pub(super) struct CancelArgs {
    /// Ids of jobs
    #[arg(value_name = "ID", required_unless_present = "labels", conflicts_with = "labels")]
    ids: Vec<JobId>,
    /// Cancel the jobs that have this label; given several times, all of them
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, id = "labels")]
    labels: Vec<(String, String)>,
    /// Only jobs of this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Print the orders that were given, one JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: CancelArgs) -> Result<Exit, Failure> {
    let orders = orders(&args)?;
    let operator = Operator::new(&args.operator)?;
    let given = give(&operator, &args, &orders).await;
    operator.end(given).await
}

async fn give(operator: &Operator<'_>, args: &CancelArgs, orders: &[Order]) -> Result<Exit, Failure> {
    if let Some(pool) = &args.pool {
        operator.check_pool(pool).await?;
    }
    let doubt = doubt(operator, &args.ids).await?;
    for order in orders {
        operator.order(order).await?;
        if args.json {
            show(order).await?;
        }
    }
    if !args.json {
        print::note(&match args.ids.len() {
            0 => "ordered: jobs with these labels end, wherever they are".to_owned(),
            1 => format!("ordered: job {} ends, wherever it is", args.ids[0]),
            count => format!("ordered: {count} jobs end, wherever they are"),
        });
    }
    if let Some(doubt) = doubt {
        print::note(&format!(
            "{doubt}; the order stays in force for {} days",
            ORDERS_KEPT.as_secs() / (24 * 60 * 60)
        ));
    }
    Ok(Exit::Done)
}

/// Why an order may have nobody to obey it. Ids of batches are a slip, and refused.
async fn doubt(operator: &Operator<'_>, ids: &[JobId]) -> Result<Option<String>, Failure> {
    let only = match ids {
        [] => return Ok(None),
        [id] => Some(id),
        _ => None, // a question an id would be too many
    };
    let Some(inventories) = inventories(operator, only).await? else {
        return Ok(None);
    };
    let in_hand: BTreeSet<&JobId> = inventories
        .iter()
        .flat_map(|one| &one.jobs)
        .map(|job| &job.id)
        .collect();
    let elsewhere: Vec<&JobId> = ids.iter().filter(|id| !in_hand.contains(id)).collect();
    refuse_batches(operator, &elsewhere).await?;
    if elsewhere.is_empty() || inventories.iter().any(|one| one.left_out > 0) {
        return Ok(None);
    }
    let facts = Facts {
        inventories,
        ..Facts::default()
    };
    Ok(Some(match only.map(|id| explain(id, &facts, now())) {
        Some(ended) if matches!(ended.verdict, Verdict::Finished { .. }) => ended.message,
        _ => nobody_has(&elsewhere),
    }))
}

/// What workers have; `None` for those who may give orders and not ask.
async fn inventories(operator: &Operator<'_>, id: Option<&JobId>) -> Result<Option<Vec<Inventory>>, Failure> {
    let asked = async {
        let mut inbox = operator.inbox().await?;
        operator.inventories(&mut inbox, id, ANSWERS).await
    };
    match asked.await {
        Ok(inventories) => Ok(Some(inventories)),
        Err(failure) if failure.exit == Exit::Config => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn refuse_batches(operator: &Operator<'_>, ids: &[&JobId]) -> Result<(), Failure> {
    let mut batches = Vec::new();
    let looking = async {
        for id in ids {
            if operator.is_batch(id).await? {
                batches.push(format!(
                    "{id} is a batch: `synthex batch cancel {id}`; nothing was ordered"
                ));
            }
        }
        Ok(())
    };
    timeout(LOOK_WITHIN, looking).await.unwrap_or(Ok(()))?;
    match batches.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Exit::Usage, batches.join("\n"))),
    }
}

fn nobody_has(ids: &[&JobId]) -> String {
    let [id] = ids else {
        let named: Vec<&str> = ids.iter().take(NAMED).map(|id| id.as_str()).collect();
        let more = if ids.len() > NAMED { ", …" } else { "" };
        return format!(
            "no worker has {} of these jobs now ({}{more})",
            ids.len(),
            named.join(", ")
        );
    };
    format!("no worker has job {id} now")
}

/// One order for all, or a few if there are more ids than one holds.
fn orders(args: &CancelArgs) -> Result<Vec<Order>, Failure> {
    if args.labels.len() > Job::MAX_LABELS {
        let message = format!("--label: expected at most {}, as many as a job has", Job::MAX_LABELS);
        return Err(Failure::new(Exit::Usage, message));
    }
    let (at, by) = (crate::message::now(), Some(who()));
    let order = |ids: &[JobId], labels: BTreeMap<String, String>| Order::Cancel {
        ids: ids.to_vec(),
        labels,
        batch: None,
        pool: args.pool.clone(),
        at,
        by: by.clone(),
    };
    if args.ids.is_empty() {
        return Ok(vec![order(&[], args.labels.iter().cloned().collect())]);
    }
    let chunks = args.ids.chunks(Order::MAX_IDS);
    Ok(chunks.map(|ids| order(ids, BTreeMap::new())).collect())
}

fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("expected KEY=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
