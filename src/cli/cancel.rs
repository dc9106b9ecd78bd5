//! `synthex cancel`: ends jobs, wherever they are.

use std::collections::BTreeMap;

use clap::Args;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, show, who};
use super::print;
use crate::message::{Job, JobId, Order};

/// Cancel jobs that were submitted before now.
///
/// Those that run are ended as at their timeout and keep their output; those that wait end when a worker gets to them,
/// delayed ones when their delay is over. Each has a result with the status "cancelled". The cancel is in force for 7
/// days, also on workers that start later; what is submitted again from now on runs, under the same id too. A job
/// without a timestamp counts as older. Times are those of the machines that submit and cancel: keep their clocks
/// right.
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
    Ok(Exit::Done)
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
