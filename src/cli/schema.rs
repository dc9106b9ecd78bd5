//! `synthex schema`: the contracts, for tools.

use clap::{Args, ValueEnum};

use schemars::JsonSchema;

use super::batch::BatchState;
use super::batch_view::Told;
use super::doctor::Finding;
use super::exit::{Exit, Failure};
use super::print;
use crate::config;
use crate::control::dead::Letter;
use crate::control::explain::Explanation;
use crate::control::snapshot::{JobRow, PoolRow, Snapshot};
use crate::message::{self, WorkerState};

#[derive(Args)]
pub(super) struct SchemaArgs {
    /// Which schema
    what: What,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// What a producer publishes
    Job,
    /// What a worker answers
    Result,
    /// What an operator tells workers, and what they reply
    Control,
    /// What workers publish of themselves and of jobs
    Event,
    /// What is said of batches, and a line of a results file
    Batch,
    /// A pool file, read as JSON
    Pool,
    /// What top, workers, pools, jobs, explain, doctor, dead list, batch status and batch wait print with --json
    Fleet,
    /// What run and batch write to stderr with --progress json
    Progress,
}

/// What the commands about the fleet print with `--json`: `top --once` one snapshot; `workers`, `pools`, `jobs`, `doctor`
/// and `dead list` one object a line; `explain`, `batch status` and `batch wait` one object.
#[derive(JsonSchema)]
#[schemars(
    title = "Synthex fleet, version 1",
    extend("$id" = "urn:synthex:fleet:v1"),
    untagged
)]
#[expect(dead_code, reason = "it is there for its schema")]
enum Printed {
    Snapshot(Snapshot),
    Worker(WorkerState),
    Pool(PoolRow),
    Job(JobRow),
    Explanation(Explanation),
    Finding(Finding),
    Letter(Letter),
    Batch(BatchState),
}

pub(super) async fn run(args: &SchemaArgs) -> Result<Exit, Failure> {
    let schema = match args.what {
        What::Job => message::schema::job(),
        What::Result => message::schema::result(),
        What::Control => message::schema::control(),
        What::Event => message::schema::event(),
        What::Batch => message::schema::batch(),
        What::Pool => config::schema(),
        What::Fleet => message::schema::printed::<Printed>(),
        What::Progress => message::schema::printed::<Told>(),
    };
    print::data(message::schema::render(&schema).as_bytes())
        .await
        .map_err(|error| Failure::io("write to stdout", &error))?;
    Ok(Exit::Done)
}
