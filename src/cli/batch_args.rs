//! What `run` and `batch` have in common: how many jobs are carried out, gone on with, and ended early.

use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::batch_view::View;
use super::broker_args::ClientError;
use super::exit::{Exit, Failure};
use super::{input_args, print};
use crate::batch::halt::{After, Halt};
use crate::batch::input::InputError;
use crate::batch::journal::{Header, Journal, JournalError};
use crate::batch::results::{self, Durability, ResultsFile};
use crate::batch::sinks::order;
use crate::batch::{BatchError, BatchId, End, OnBad, Sink, Source, Table};
use crate::message::Status;

/// Of the jobs that a stopped batch did not finish, so many are named.
const SHOWN: usize = 5;

#[derive(Args)]
#[command(next_help_heading = "Batch")]
pub(super) struct BatchPolicyArgs {
    /// Append each final result to this file, one JSON object a line; the same command again goes on where it was
    ///
    /// What commands write is in it, as `stdout` and `stderr`; `run` prints it, too, and `batch` only with --json, --tag or
    /// --keep-order. How jobs fail is told on stderr by both.
    ///
    /// Beside it is a small file FILE.batch that says which batch it is, and what was submitted of it. Input that has changed
    /// is an error, but for what was added at its end.
    #[arg(long, value_name = "FILE")]
    pub(super) results: Option<PathBuf>,
    /// Submit again what did not succeed; its new result is a further line
    #[arg(long, requires = "results")]
    pub(super) retry_failed: bool,
    /// Most jobs that are submitted and not finished [default: 1000; for `synthex run` with --halt or --max-fails, twice the
    /// slots, so that little runs after the end]
    #[arg(long, value_name = "N")]
    pub(super) max_in_flight: Option<NonZeroU32>,
    /// What to do with a line that is no job: skip gives it a result, rejected, and runs the rest; stop submits no more
    #[arg(long, value_enum, value_name = "HOW", default_value_t = OnBadLine::Skip)]
    on_bad_line: OnBadLine,
    /// End early: now (cancel what runs) or soon (submit no more), after fail=N, fail=N% or success=N jobs, as in
    /// now,fail=1; may be repeated
    #[arg(long, value_name = "WHEN,WHY")]
    halt: Vec<Halt>,
    /// End now once more jobs than this have failed
    #[arg(long, value_name = "N")]
    max_fails: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnBadLine {
    Skip,
    Stop,
}

/// What is known of earlier runs of a batch.
pub(super) struct Past {
    pub(super) batch: BatchId,
    pub(super) table: Table,
    pub(super) journal: Option<Journal>,
    pub(super) file: Option<ResultsFile>,
}

/// Whether what was submitted outlives its submitter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Broker {
    /// It is gone with this process.
    Ours,
    /// It goes on.
    Shared,
}

impl BatchPolicyArgs {
    pub(super) fn on_bad(&self) -> OnBad {
        match self.on_bad_line {
            OnBadLine::Skip => OnBad::Skip,
            OnBadLine::Stop => OnBad::Stop,
        }
    }

    pub(super) fn halts(&self) -> Vec<Halt> {
        let max_fails = self.max_fails.map(Halt::max_fails);
        self.halt.iter().copied().chain(max_fails).collect()
    }

    /// Opens the results file and the journal, and reads what is there.
    pub(super) async fn past(&self, namespace: &str, pool: &str, broker: Broker) -> Result<Past, Failure> {
        let header = Header {
            batch: BatchId::random(),
            namespace: namespace.to_owned(),
            pool: pool.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let Some(results) = self.results.clone() else {
            return Ok(Past {
                batch: header.batch,
                table: Table::forgetful(),
                journal: None,
                file: None,
            });
        };
        let reading = tokio::task::spawn_blocking(move || {
            ResultsFile::check(&results).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
            let (mut table, mut lost) = (Table::default(), Table::default());
            let (published, durability) = match broker {
                Broker::Ours => (&mut lost, Durability::Process),
                Broker::Shared => (&mut table, Durability::Disk),
            };
            let journal =
                Journal::open(&results, &header, published).map_err(|error| journal_failure(&results, &error))?;
            let file = ResultsFile::open(&results, durability, &mut table);
            let file = file.map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
            Ok(Past {
                batch: journal.header().batch.clone(),
                table,
                journal: Some(journal),
                file: Some(file),
            })
        });
        reading
            .await
            .map_err(|error| Failure::new(Exit::Failure, format!("failed to read the results file: {error}")))?
    }
}

fn journal_failure(results: &Path, error: &JournalError) -> Failure {
    let exit = match error {
        JournalError::NoJournal { .. } => {
            // What is no results file at all has no journal, either.
            let text = results::check(results).map_or_else(|other| other.to_string(), |()| error.to_string());
            return Failure::new(Exit::Usage, text);
        }
        JournalError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Exit::Usage,
        JournalError::Io { .. } => Exit::Failure,
        _ => Exit::Usage,
    };
    Failure::new(exit, error.to_string())
}

/// A source that is held back to keep the order, or not.
pub(super) enum Paced<S> {
    AsItComes(S),
    HeldBack(order::HeldBack<S>),
}

impl<S: Source> Source for Paced<S> {
    async fn next(&mut self) -> io::Result<Option<crate::batch::Item>> {
        match self {
            Self::AsItComes(source) => source.next().await,
            Self::HeldBack(source) => source.next().await,
        }
    }
}

/// Joins source and printer, in order if there is a window for that.
pub(super) fn pace<'a, S: Source>(
    source: S,
    printer: impl Sink + 'a,
    window: Option<NonZeroU32>,
) -> (Paced<S>, Box<dyn Sink + 'a>) {
    match window {
        None => (Paced::AsItComes(source), Box::new(printer)),
        Some(window) => {
            let (source, sink) = order::in_order(source, printer, window);
            (Paced::HeldBack(source), Box::new(sink))
        }
    }
}

/// Tells how a batch ended, and decides on the exit code.
pub(super) async fn conclude(end: End, view: &View, results: Option<&str>) -> Result<Exit, Failure> {
    if let Some(error @ BatchError::Changed(_)) = end.error {
        view.clear().await; // a summary would be of another input's jobs
        return Err(failure(error));
    }
    let is_whole = end.error.is_none() && end.source.is_none() && !end.cut_short && end.awaited == 0;
    view.end(is_whole, results).await;
    if let Some((origin, error)) = &end.bad {
        print::note(&format!("stopped at {origin}, which is no job: {error}"));
    }
    if let Some(halt) = end.halted {
        if !is_whole || end.counts.contains_key(&Status::Cancelled) {
            print::note(&format!("ended early: {}", reason(halt.after)));
        }
    } else if end.cut_short && end.bad.is_none() && end.source.is_none() && end.error.is_none() && !view.is_single() {
        print::note("stopped before the end of the input: jobs that were not read yet were not run");
    }
    tell_of_unfinished(&end);
    if let Some(error) = end.error {
        return Err(failure(error));
    }
    if let Some(error) = end.source {
        return Err(input_args::failure(InputError::Io(error)));
    }
    if end.halted.is_some_and(|halt| matches!(halt.after, After::Succeeded(_))) {
        return Ok(Exit::Done);
    }
    let failed = end.counts.keys().any(|status| *status != Status::Succeeded);
    Ok(if failed || !is_whole {
        Exit::JobsFailed
    } else {
        Exit::Done
    })
}

fn tell_of_unfinished(end: &End) {
    if end.awaited == 0 {
        return;
    }
    let jobs = match end.awaited {
        1 => "1 job has".to_owned(),
        count => format!("{count} jobs have"),
    };
    let shown = end.unfinished[..end.unfinished.len().min(SHOWN)].join(", ");
    let more = if end.awaited > SHOWN as u64 { ", …" } else { "" };
    print::note(&format!(
        "stopped before the end: {jobs} no final result ({shown}{more})"
    ));
}

fn reason(after: After) -> String {
    match after {
        After::Failed(count) => format!("{count} did not succeed (--halt, --max-fails)"),
        After::FailedShare(share) => format!("{share} % did not succeed (--halt)"),
        After::Succeeded(count) => format!("{count} succeeded (--halt)"),
    }
}

/// What is said of a batch that went wrong.
pub(super) fn failure(error: BatchError) -> Failure {
    match error {
        BatchError::Sink(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Failure::new(Exit::Failure, "stopped: nobody reads the results any more")
        }
        BatchError::Sink(_) | BatchError::Journal(_) => Failure::new(Exit::Failure, error.to_string()),
        BatchError::Changed(_) | BatchError::TooOften(_) => Failure::new(Exit::Usage, error.to_string()),
        BatchError::Publish(error) => error.into_failure(),
    }
}
