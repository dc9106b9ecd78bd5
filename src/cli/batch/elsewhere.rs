//! `synthex batch status|wait|results|cancel ID`: a batch seen from anywhere, with its submitter or after it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::order_of_cancel;
use crate::batch::registry::{self, Fetched, Overview, RegistryError};
use crate::batch::results::{Durability, ResultsFile, write_line};
use crate::batch::{BatchId, Finished, Herald, Sink, Table};
use crate::cli::broker_args::ClientError;
use crate::cli::exit::{Exit, Failure};
use crate::cli::operator::{Operator, OperatorArgs, out, show, who};
use crate::cli::print;
use crate::message::harmless::harmless;
use crate::message::{Span, Status};
use crate::transport::BoxFuture;

/// How often a batch that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub(in crate::cli) enum BatchCommand {
    /// Show how far a batch is
    ///
    /// What its submitter has taken is counted as it last said, at most a second before it went.
    Status(StatusArgs),
    /// Wait until a batch has ended, and exit as it did: 0, or 3 if some job did not succeed
    Wait(WaitArgs),
    /// Show the results of a batch that wait, as JSON lines, or take them into a file
    ///
    /// Shown on stdout they stay on the broker, to be seen again. With --results FILE they are taken from it once they are on
    /// disk, and the same file again gets what has come since.
    Results(ResultsArgs),
    /// Cancel all jobs of a batch that have not ended
    Cancel(CancelArgs),
}

#[derive(Args)]
pub(in crate::cli) struct StatusArgs {
    /// The batch
    id: BatchId,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub(in crate::cli) struct WaitArgs {
    /// The batch
    id: BatchId,
    /// Give up waiting after this time, exit code 75; the batch goes on
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub(in crate::cli) struct ResultsArgs {
    /// The batch
    id: BatchId,
    /// Append them to this file, and take them from the broker
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// Print one result object a line, as it does anyway
    #[arg(long, conflicts_with = "results")]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

#[derive(Args)]
pub(in crate::cli) struct CancelArgs {
    /// The batch
    id: BatchId,
    /// Print the order that was given, as a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(command: BatchCommand) -> Result<Exit, Failure> {
    match command {
        BatchCommand::Status(args) => {
            let operator = Operator::new(&args.operator)?;
            let exit = status(&operator, &args).await;
            operator.end(exit).await
        }
        BatchCommand::Wait(args) => {
            let operator = Operator::new(&args.operator)?;
            let exit = wait(&operator, &args).await;
            operator.end(exit).await
        }
        BatchCommand::Results(args) => {
            let operator = Operator::new(&args.operator)?;
            let exit = results(&operator, &args).await;
            operator.end(exit).await
        }
        BatchCommand::Cancel(args) => {
            let operator = Operator::new(&args.operator)?;
            let exit = cancel(&operator, &args).await;
            operator.end(exit).await
        }
    }
}

async fn status(operator: &Operator<'_>, args: &StatusArgs) -> Result<Exit, Failure> {
    let overview = overview(operator, &args.id).await?;
    tell(&args.id, &overview, args.json).await?;
    Ok(Exit::Done)
}

async fn wait(operator: &Operator<'_>, args: &WaitArgs) -> Result<Exit, Failure> {
    let waiting = until_complete(operator, &args.id);
    let overview = match args.timeout {
        None => waiting.await?,
        Some(limit) => tokio::time::timeout(limit.get(), waiting).await.map_err(|_| {
            let message = format!("batch {} has not ended within {limit}; it goes on", args.id);
            Failure::new(Exit::TimedOut, message)
        })??,
    };
    tell(&args.id, &overview, args.json).await?;
    let failed = overview.finished().keys().any(|status| *status != Status::Succeeded);
    Ok(if failed { Exit::JobsFailed } else { Exit::Done })
}

/// Looks again when something has changed: to look at all that waits in a queue is work for the broker.
async fn until_complete(operator: &Operator<'_>, id: &BatchId) -> Result<Overview, Failure> {
    let mut before = None;
    loop {
        let queue = operator.names().batch_results(id.as_str());
        let depth = operator.queue_depth(&queue).await?;
        let known = operator
            .persist(async || registry::known(operator.broker(), operator.names(), id).await)
            .await?;
        let is_news = before.as_ref() != Some(&(depth, known.clone()));
        if is_news {
            let overview = overview(operator, id).await?;
            if overview.is_complete() {
                return Ok(overview);
            }
            if overview.is_lost {
                let message =
                    format!("batch {id} has no queue {queue:?} any more: what waited there is lost, and what comes");
                return Err(Failure::new(Exit::Failure, message));
            }
        }
        before = Some((depth, known));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn results(operator: &Operator<'_>, args: &ResultsArgs) -> Result<Exit, Failure> {
    let (broker, names, id) = (operator.broker(), operator.names(), &args.id);
    let known = operator
        .persist(async || registry::known(broker, names, id).await)
        .await?;
    let known = known.ok_or_else(|| unknown(operator, id))?;
    let fetched = match &args.results {
        None => {
            let queue = names.batch_results(id.as_str());
            registry::look(broker, queue, &known, &mut Stdout(Vec::new())).await
        }
        Some(path) => {
            let mut table = Table::default();
            let file = ResultsFile::open(path, Durability::Disk, &mut table);
            let mut file = file.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
            let herald = Herald {
                names: names.clone(),
                batch: id.clone(),
                pool: known.pool.clone(),
                by: who(),
            };
            registry::fetch(broker, &herald, &known, &mut file, table).await
        }
    };
    tell_of_rest(&fetched.map_err(ClientError::into_failure)?);
    Ok(Exit::Done)
}

/// Says what is not among the results that were written.
fn tell_of_rest(fetched: &Fetched) {
    let before = registry::sum(&fetched.before);
    if fetched.written == 0 && before > 0 {
        let how = words(&fetched.before);
        print::note(&format!("no results wait: {before} were taken before{how}"));
    }
    if !fetched.is_complete {
        print::note(&format!("{} results so far; the batch goes on", fetched.written));
    }
}

async fn cancel(operator: &Operator<'_>, args: &CancelArgs) -> Result<Exit, Failure> {
    overview(operator, &args.id).await?; // an order about a batch that nobody knows is a slip
    let order = order_of_cancel(&args.id, who());
    operator.order(&order).await?;
    if args.json {
        show(&order).await?;
    } else {
        print::note(&format!(
            "ordered: the jobs of batch {} end, wherever they are",
            args.id
        ));
    }
    Ok(Exit::Done)
}

async fn overview(operator: &Operator<'_>, id: &BatchId) -> Result<Overview, Failure> {
    let look = async || registry::overview(operator.broker(), operator.names(), id).await;
    let found = operator.persist(look).await?;
    found.ok_or_else(|| unknown(operator, id))
}

fn unknown(operator: &Operator<'_>, id: &BatchId) -> Failure {
    let log = operator.names().batches();
    let message =
        format!("batch {id} is not known here: nobody has said anything of it in {log:?} in the last 14 days");
    Failure::new(Exit::Usage, message)
}

/// A batch as it stands, for programs: what `batch status` and `batch wait` print.
#[derive(Serialize, JsonSchema)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, for programs")]
pub(in crate::cli) struct BatchState {
    /// Its id.
    batch: String,
    /// The pool of its jobs.
    pool: String,
    /// When it was begun.
    #[schemars(with = "String", extend("format" = "date-time"))]
    begun_at: Timestamp,
    /// Who began it.
    by: Option<String>,
    /// Items; null until that is known.
    total: Option<u64>,
    /// All of its jobs were submitted.
    submitted: bool,
    /// Somebody takes its results now.
    attended: bool,
    /// All of its jobs have their final result.
    ended: bool,
    /// Final results by status, as far as they are counted.
    finished: BTreeMap<Status, u64>,
    /// Its queue is gone before its end, and with it what waited there.
    lost: bool,
    /// Results that wait in its queue; more than final ones if there are retries.
    waiting: u32,
    /// What waits was counted. It is not while somebody takes it, or if it is very much.
    counted: bool,
}

async fn tell(id: &BatchId, overview: &Overview, json: bool) -> Result<(), Failure> {
    let (known, finished) = (&overview.known, overview.finished());
    if json {
        let state = BatchState {
            batch: id.to_string(),
            pool: known.pool.clone(),
            begun_at: known.begun_at,
            by: known.by.clone(),
            total: known.total,
            submitted: known.is_submitted,
            attended: overview.is_attended,
            ended: overview.is_complete(),
            finished,
            lost: overview.is_lost,
            waiting: overview.waiting,
            counted: overview.counted.is_some(),
        };
        return out(&print::json(&state)).await;
    }
    let total = known.total.map_or_else(|| "?".to_owned(), |total| total.to_string());
    let ended = registry::sum(&finished);
    let how = match (overview.is_complete(), known.is_submitted, overview.is_attended) {
        (true, ..) => "ended",
        _ if overview.is_lost => "its queue is gone, and the results that waited there",
        (_, true, true) => "submitted, its results are taken as they come",
        (_, true, false) => "submitted, its results wait",
        (_, false, true) => "being submitted",
        (_, false, false) => "not submitted to its end, and nobody goes on with it",
    };
    let by = harmless(known.by.as_deref().unwrap_or("somebody"));
    out(&format!(
        "batch {id}: {how}\npool {}, begun by {by} at {}\n{ended} of {total} ended{}",
        harmless(&known.pool),
        known.begun_at,
        words(&finished)
    ))
    .await?;
    if overview.counted.is_none() && !overview.is_attended {
        out(&format!("{} results wait, too many to count", overview.waiting)).await?;
    }
    Ok(())
}

fn words(finished: &BTreeMap<Status, u64>) -> String {
    let each: Vec<String> = finished
        .iter()
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    match each.is_empty() {
        true => String::new(),
        false => format!(": {}", each.join(", ")),
    }
}

/// Lines on stdout.
struct Stdout(Vec<u8>);

impl Sink for Stdout {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        write_line(&mut self.0, finished);
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            let lines = std::mem::take(&mut self.0);
            print::data(&lines).await
        })
    }
}

impl ClientError for RegistryError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Transport(error) => error.is_transient(),
            Self::Publish(error) => error.is_transient(),
            Self::Look(_) | Self::Write(_) | Self::Attended(_) => false,
        }
    }

    fn into_failure(self) -> Failure {
        match self {
            Self::Transport(error) => error.into_failure(),
            Self::Publish(error) => error.into_failure(),
            Self::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                Failure::new(Exit::Failure, "stopped: nobody reads the results any more")
            }
            Self::Write(error) => Failure::io("write results", &error),
            Self::Look(_) | Self::Attended(_) => Failure::new(Exit::Unavailable, format!("failed to {self}")),
        }
    }
}
