//! `synthex workers`: who is there, and how they are.

use clap::Args;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, out};
use super::{print, table};
use crate::message::{PoolState, Span, WorkerState};

const HEADING: [&str; 7] = ["WORKER", "POOL", "STATE", "RUNNING", "IN HAND", "VERSION", "SINCE"];

/// List the workers that answer now.
///
/// Workers answer while all their slots are full. Waits until no more answers come, at most --wait; a worker that is
/// slower than that is not in the list.
#[derive(Args)]
pub(super) struct WorkersArgs {
    /// How long to wait for answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// Print one JSON object a worker
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: WorkersArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let listed = list(&operator, &args).await;
    operator.end(listed).await
}

async fn list(operator: &Operator<'_>, args: &WorkersArgs) -> Result<Exit, Failure> {
    let mut inbox = operator.inbox().await?;
    let workers = operator.workers(&mut inbox, args.wait.get()).await?;
    if args.json {
        for worker in &workers {
            out(&print::json(worker)).await?;
        }
        return Ok(Exit::Done);
    }
    if workers.is_empty() {
        print::note(&format!("no worker answered within {}", args.wait));
        return Ok(Exit::Done);
    }
    out(&rows(&workers)).await?;
    Ok(Exit::Done)
}

/// A row for each pool of each worker.
pub(super) fn rows(workers: &[WorkerState]) -> String {
    let row = |worker: &WorkerState, pool: &PoolState| {
        [
            worker.id.clone(),
            pool.pool.clone(),
            state(worker, pool).to_owned(),
            format!("{}/{}", pool.running, pool.slots),
            pool.in_hand.to_string(),
            worker.version.clone(),
            worker.started_at.to_string(),
        ]
    };
    let rows = workers
        .iter()
        .flat_map(|worker| worker.pools.iter().map(move |pool| row(worker, pool)));
    table::table(HEADING, rows)
}

/// What a worker does in a pool, in a word or two.
pub(super) fn state(worker: &WorkerState, pool: &PoolState) -> &'static str {
    match (worker.draining, pool.paused, pool.consuming) {
        (true, _, _) => "draining",
        (_, true, _) => "paused",
        (_, _, true) => "consuming",
        _ => "not consuming",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_each_pool() {
        let pool = |name: &str, paused| PoolState {
            pool: name.to_owned(),
            slots: 4,
            running: 2,
            in_hand: 3,
            paused,
            consuming: true,
            started: None,
            finished: std::collections::BTreeMap::new(),
        };
        let worker = WorkerState {
            id: "host-1-abc".to_owned(),
            host: "host".to_owned(),
            version: "0.1.0".to_owned(),
            started_at: "2030-01-31T12:00:00Z".parse().unwrap(),
            draining: false,
            clock: None,
            pools: vec![pool("default", false), pool("slow", true)],
        };
        let expected = "\
WORKER      POOL     STATE      RUNNING  IN HAND  VERSION  SINCE
host-1-abc  default  consuming  2/4      3        0.1.0    2030-01-31T12:00:00Z
host-1-abc  slow     paused     2/4      3        0.1.0    2030-01-31T12:00:00Z";
        assert_eq!(rows(&[worker]), expected);
    }
}
