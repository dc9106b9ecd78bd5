//! `synthex jobs`: what workers have in hand.

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, out};
use super::{print, table};
use crate::control::fleet::Wait;
use crate::control::snapshot::{JobRow, Snapshot};
use crate::message::{JobState, Span, nearest};

const HEADING: [&str; 8] = ["JOB", "POOL", "STATE", "ATTEMPT", "PROGRAM", "AGE", "LEFT", "WORKER"];

/// List the jobs that workers have in hand, those that run longest first.
///
/// AGE is the time since a command was started, or of one that waits since it was taken; LEFT is what is left to its
/// timeout. Of a command its program is shown, never its arguments. Jobs that wait in queues are counted by `synthex
/// pools`; `synthex explain` says where a job is.
#[derive(Args)]
pub(super) struct JobsArgs {
    /// Only jobs of this pool
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// Only jobs that are so far
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// Only jobs of this worker
    #[arg(long, value_name = "WORKER_ID")]
    worker: Option<String>,
    /// How long to wait for answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// Print one JSON object a job
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// For a slot
    Waiting,
    /// Its command runs
    Running,
    /// Its result is on its way to the broker
    Settling,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Running => Self::Running,
            State::Settling => Self::Settling,
        }
    }
}

pub(super) async fn run(args: JobsArgs) -> Result<Exit, Failure> {
    let operator = Operator::new(&args.operator)?;
    let listed = list(&operator, &args).await;
    operator.end(listed).await
}

async fn list(operator: &Operator<'_>, args: &JobsArgs) -> Result<Exit, Failure> {
    if let Some(pool) = &args.pool {
        operator.check_pool(pool).await?;
    }
    let mut inbox = operator.inbox().await?;
    let wait = Wait::at_most(args.wait.get());
    let snapshot = operator.snapshot(&mut inbox, &[], wait).await?;
    let is_meant = |row: &&JobRow| {
        args.pool.as_ref().is_none_or(|pool| *pool == row.job.pool)
            && args.worker.as_ref().is_none_or(|worker| *worker == row.worker)
            && args.state.is_none_or(|state| JobState::from(state) == row.job.state)
    };
    if let Some(worker) = &args.worker {
        check_worker(worker, &snapshot, args.wait)?;
    }
    let rows: Vec<&JobRow> = snapshot.jobs.iter().filter(is_meant).collect();
    if args.json {
        for row in &rows {
            out(&print::json(row)).await?;
        }
    } else if rows.is_empty() {
        print::note("no worker that answered has such a job in hand");
    } else {
        out(&table(&rows, snapshot.at)).await?;
    }
    if snapshot.jobs_left_out > 0 {
        print::note(&format!(
            "{} more jobs are in hand than are listed",
            snapshot.jobs_left_out
        ));
    }
    Ok(Exit::Done)
}

/// A worker that does not answer is more than one that has no job.
fn check_worker(worker: &str, snapshot: &Snapshot, wait: Span) -> Result<(), Failure> {
    let mut answered = snapshot.workers.iter().map(|state| &*state.id);
    if answered.any(|id| id == worker) {
        return Ok(());
    }
    let hint = nearest::hint(worker, snapshot.workers.iter().map(|state| &*state.id));
    let message =
        format!("no worker {worker:?} answered within {wait}; `synthex workers` lists those that answer{hint}");
    Err(Failure::new(Exit::Failure, message))
}

/// A row a job.
pub(super) fn table(rows: &[&JobRow], now: Timestamp) -> String {
    let row = |row: &&JobRow| {
        let job = &row.job;
        [
            job.id.to_string(),
            job.pool.clone(),
            job.state.as_str().to_owned(),
            job.attempt.to_string(),
            job.program.clone().unwrap_or_default(),
            age(row, now),
            left(row, now),
            row.worker.clone(),
        ]
    };
    table::table(HEADING, rows.iter().map(row))
}

/// How long it runs, or waits.
pub(super) fn age(row: &JobRow, now: Timestamp) -> String {
    seconds(
        now.duration_since(row.job.started_at.unwrap_or(row.job.taken_at))
            .as_secs(),
    )
}

/// What is left to the timeout of one that runs.
pub(super) fn left(row: &JobRow, now: Timestamp) -> String {
    match (row.job.state, row.job.deadline) {
        (JobState::Running, Some(deadline)) => seconds(deadline.duration_since(now).as_secs()),
        _ => String::new(),
    }
}

/// A time in the two largest units, such as `2m05s`.
pub(super) fn seconds(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::message::JobInHand;

    #[test]
    fn a_table_has_a_row_a_job() {
        let now: Timestamp = "2030-01-31T12:00:00Z".parse().unwrap();
        let at = |seconds| now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap();
        let job = |id: &str, state, started: Option<i64>| JobRow {
            worker: "w".to_owned(),
            job: JobInHand {
                id: id.parse().unwrap(),
                attempt: 2,
                pool: "p".to_owned(),
                state,
                program: started.map(|_| "/usr/bin/render".to_owned()),
                labels: BTreeMap::new(),
                taken_at: at(-7),
                started_at: started.map(at),
                deadline: started.map(|_| at(3_725)),
            },
        };
        let rows = [
            job("a", JobState::Running, Some(-125)),
            job("b", JobState::Waiting, None),
            job("c", JobState::Settling, Some(-90_000)),
        ];
        let expected = "\
JOB  POOL  STATE     ATTEMPT  PROGRAM          AGE    LEFT   WORKER
a    p     running   2        /usr/bin/render  2m05s  1h02m  w
b    p     waiting   2        -                7s     -      w
c    p     settling  2        /usr/bin/render  1d01h  -      w";
        assert_eq!(table(&rows.each_ref()[..], now), expected);
    }
}
