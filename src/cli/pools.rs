//! `synthex pools`: the pools, and what waits and runs in each.

use clap::Args;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, no_queue, out};
use super::{print, table};
use crate::control::fleet::Wait;
use crate::control::snapshot::PoolRow;
use crate::message::Span;

const HEADING: [&str; 9] = [
    "POOL", "STATE", "READY", "UNACKED", "RUNNING", "WORKERS", "ENDED", "FAILED", "RATE",
];

/// List the pools that workers serve, with what waits and what runs.
///
/// READY are jobs that wait in the pool's queue, UNACKED those that workers have in hand. ENDED and FAILED are attempts
/// since the workers started; RATE is told by `synthex top`, which looks twice. The broker does not tell which queues there
/// are, so a pool that no worker serves is shown only when it is named.
#[derive(Args)]
pub(super) struct PoolsArgs {
    /// Only these pools
    #[arg(value_name = "POOL")]
    pools: Vec<String>,
    /// How long to wait for answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// Print one JSON object a pool
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: PoolsArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let listed = list(&operator, &args).await;
    operator.end(listed).await
}

/// Those that are there, and then of a slip in the name of another.
async fn list(operator: &Operator<'_>, args: &PoolsArgs) -> Result<Exit, Failure> {
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for pool in &args.pools {
        match operator.queue_depth(&operator.names().pool_queue(pool)).await? {
            Some(_) => there.push(pool.clone()),
            None => missing.push(no_queue(operator.broker(), operator.names(), pool).await.message),
        }
    }
    if missing.is_empty() || !there.is_empty() {
        show(operator, args, &there).await?;
    }
    match missing.is_empty() {
        true => Ok(Exit::Done),
        false => Err(Failure::new(Exit::Config, missing.join("\n"))),
    }
}

/// Shows these pools, or all that are served.
async fn show(operator: &Operator<'_>, args: &PoolsArgs, pools: &[String]) -> Result<(), Failure> {
    let mut inbox = operator.inbox().await?;
    let wait = Wait::at_most(args.wait.get());
    let mut rows = operator.snapshot(&mut inbox, pools, wait).await?.pools;
    rows.retain(|row| pools.is_empty() || pools.contains(&row.pool));
    if args.json {
        for row in &rows {
            out(&print::json(row)).await?;
        }
    } else if rows.is_empty() {
        print::note(&format!(
            "no worker answered within {}; name a pool to see its queue",
            args.wait
        ));
    } else {
        out(&table(&rows)).await?;
    }
    Ok(())
}

/// A row a pool.
pub(super) fn table(rows: &[PoolRow]) -> String {
    let row = |row: &PoolRow| {
        [
            row.pool.clone(),
            state(row).to_owned(),
            row.ready.map(|ready| ready.to_string()).unwrap_or_default(),
            row.unacked.to_string(),
            format!("{}/{}", row.running, row.slots),
            row.workers.to_string(),
            row.finished.values().sum::<u64>().to_string(),
            row.failures().to_string(),
            row.rate.map(|rate| format!("{rate:.1}/s")).unwrap_or_default(),
        ]
    };
    table::table(HEADING, rows.iter().map(row))
}

/// How a pool is, in a word or two.
pub(super) fn state(row: &PoolRow) -> &'static str {
    match (row.ready, row.paused, row.consuming) {
        (None, ..) => "no queue",
        (_, true, _) => "paused",
        (.., 0) => "nobody takes",
        _ => "consuming",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_a_pool() {
        let busy = PoolRow {
            pool: "render".to_owned(),
            ready: Some(120),
            unacked: 9,
            workers: 2,
            consuming: 2,
            slots: 8,
            running: 8,
            finished: [("succeeded".to_owned(), 40), ("timed_out".to_owned(), 2)].into(),
            rate: Some(2.25),
            ..PoolRow::default()
        };
        let paused = PoolRow {
            pool: "slow".to_owned(),
            ready: Some(0),
            paused: true,
            ..PoolRow::default()
        };
        let gone = PoolRow {
            pool: "x".to_owned(),
            ..PoolRow::default()
        };
        let expected = "\
POOL    STATE      READY  UNACKED  RUNNING  WORKERS  ENDED  FAILED  RATE
render  consuming  120    9        8/8      2        42     2       2.2/s
slow    paused     0      0        0/0      0        0      0       -
x       no queue   -      0        0/0      0        0      0       -";
        assert_eq!(table(&[busy, paused, gone]), expected);
    }
}
