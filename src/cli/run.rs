//! `synthex run`: jobs on this machine alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::cgroup_args::CgroupArgs;
use super::exit::{Exit, Failure};
use super::job_args::JobArgs;
use super::lines::Lines;
use super::trace_args::TraceArgs;
use super::worker::{config_failure, metrics_addr, start_failure};
use super::{environment, print};
use crate::app::Spawners;
use crate::app::local::{self, LocalEnd, LocalOptions, Sink, Source, Submission};
use crate::config::{self, Overrides, Pool};
use crate::message::{Job, JobId, JobResult, Output, Status};

/// Of the jobs that a stopped run did not finish, so many are named.
const SHOWN: usize = 5;

/// Run jobs on this machine alone, without RabbitMQ.
///
/// The same jobs, the same worker and the same results as on a fleet, on a broker inside the process. Give it files
/// with one job a line (JSON, see `synthex schema job`; - is stdin), or one command after --.
///
/// Without --pool the commands see your environment and run in your directory.
#[derive(Args)]
#[command(override_usage = "synthex run [OPTIONS] <FILE>...\n       synthex run [OPTIONS] -- <CMD>...")]
pub(super) struct RunArgs {
    /// Files of jobs, one JSON object a line; - for stdin
    // Such a job says for itself what the flags say for one command.
    #[arg(value_name = "FILE", required_unless_present = "command", conflicts_with = "JobArgs")]
    files: Vec<PathBuf>,
    /// The command to run, with its arguments
    #[arg(last = true, value_name = "CMD", conflicts_with = "files")]
    command: Vec<String>,
    /// Print one result object a line and nothing else
    #[arg(long)]
    json: bool,
    /// A pool file for defaults and limits [default: the compiled-in default pool]
    #[arg(long, value_name = "POOL.toml")]
    pool: Option<PathBuf>,
    /// Commands that run at once [default: one a CPU]
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// Jobs in hand at once [default: as many as slots]
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Serve metrics on this address; none for nowhere
    #[arg(long, value_name = "ADDR", env = "SYNTHEX_METRICS_ADDR", default_value = "none")]
    metrics_addr: String,
    #[command(flatten)]
    pub(super) cgroup: CgroupArgs,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    traces: TraceArgs,
}

/// Runs the jobs and tells how they ended.
pub(super) async fn run(args: RunArgs, spawners: Spawners) -> Result<Exit, Failure> {
    let overrides = Overrides {
        slots: args.slots,
        prefetch: args.prefetch,
    };
    let pool = pool(args.pool.as_ref(), &overrides)?;
    let traces = args.traces.options()?;
    let is_batch = args.command.is_empty();
    let source = source(args.files, args.command, args.job, &pool)?;
    let mut printer = Printer {
        json: args.json,
        lines: Vec::new(),
        is_batch,
        counts: BTreeMap::new(),
    };
    let options = LocalOptions {
        pool,
        spawners,
        metrics_addr: metrics_addr(&args.metrics_addr).map(str::to_owned),
        traces,
        cause: environment::trace(),
    };
    let end = local::run(options, source, &mut printer)
        .await
        .map_err(|error| start_failure(&error))?;
    printer.summary(&end);
    conclude(&printer, end)
}

fn pool(file: Option<&PathBuf>, overrides: &Overrides) -> Result<Pool, Failure> {
    if let Some(file) = file {
        return Ok(config::load(file, overrides)
            .map_err(|errors| config_failure(&errors))?
            .pool);
    }
    let mut pool = config::load_default(overrides)
        .map_err(|errors| config_failure(&errors))?
        .pool;
    Arc::make_mut(&mut pool.env).extend(environment::of_the_caller());
    Ok(pool)
}

fn source(files: Vec<PathBuf>, command: Vec<String>, args: JobArgs, pool: &Pool) -> Result<Jobs, Failure> {
    if command.is_empty() {
        let max_line = usize::try_from(pool.max_job_bytes)
            .unwrap_or(usize::MAX)
            .saturating_add(1);
        return Ok(Jobs::Lines(Lines::new(files, max_line)));
    }
    Ok(Jobs::One(Some(Box::new(args.job(command)?))))
}

/// One job from the command line, or many from files.
enum Jobs {
    One(Option<Box<Job>>),
    Lines(Lines),
}

impl Source for Jobs {
    async fn next(&mut self) -> io::Result<Option<Submission>> {
        match self {
            Self::One(job) => Ok(job.take().map(|job| Submission {
                id: JobId::random(),
                origin: "command line".to_owned(),
                body: job.encode(),
            })),
            Self::Lines(lines) => lines.next().await,
        }
    }
}

/// Prints results as they come and counts them.
struct Printer {
    json: bool,
    /// Results that were not written yet, a line each.
    lines: Vec<u8>,
    is_batch: bool,
    counts: BTreeMap<Status, u64>,
}

impl Sink for &mut Printer {
    async fn result(&mut self, origin: &str, result: &JobResult, json: &[u8]) -> io::Result<()> {
        if result.is_final {
            *self.counts.entry(result.status).or_default() += 1;
        }
        if self.json {
            self.lines.extend_from_slice(json);
            self.lines.push(b'\n');
        } else {
            show(result).await?;
        }
        if !self.json && result.status != Status::Succeeded {
            let origin = if self.is_batch {
                format!(" ({origin})")
            } else {
                String::new()
            };
            print::note(&format!("job {}{origin} {}", result.job_id, describe(result)));
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        let lines = std::mem::take(&mut self.lines);
        print::data(&lines).await
    }
}

impl Printer {
    fn summary(&self, end: &LocalEnd) {
        let total: u64 = self.counts.values().sum();
        let unfinished = &end.unfinished;
        if self.is_batch && !self.json {
            let counts = self.counts.iter().map(|(status, count)| format!("{count} {status}"));
            let counts: Vec<String> = counts.collect();
            match total {
                0 if end.error.is_some() || end.cut_short || !unfinished.is_empty() => {}
                0 => print::note("no jobs"),
                1 => print::note(&format!("1 job: {}", counts.join(", "))),
                _ => print::note(&format!("{total} jobs: {}", counts.join(", "))),
            }
        }
        if end.cut_short && self.is_batch {
            print::note("stopped before the end of the input: jobs that were not read yet were not run");
        }
        if !unfinished.is_empty() {
            let jobs = match unfinished.len() {
                1 => "1 job has".to_owned(),
                count => format!("{count} jobs have"),
            };
            let shown = unfinished[..unfinished.len().min(SHOWN)].join(", ");
            let more = if unfinished.len() > SHOWN { ", …" } else { "" };
            print::note(&format!(
                "stopped before the end: {jobs} no final result ({shown}{more})"
            ));
        }
    }
}

fn conclude(printer: &Printer, end: LocalEnd) -> Result<Exit, Failure> {
    if let Some(error) = end.error {
        return Err(match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Failure, "stopped: nobody reads the results any more"),
            io::ErrorKind::NotFound => Failure::new(
                Exit::Usage,
                format!("{error}; a command goes after --: synthex run -- CMD"),
            ),
            io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory => {
                Failure::new(Exit::Usage, error.to_string())
            }
            _ => Failure::new(Exit::Failure, error.to_string()),
        });
    }
    if let Some(name) = &end.ended.report.gave_up {
        return Err(Failure::new(Exit::Failure, format!("gave up: {name}")));
    }
    let failed = printer.counts.keys().any(|status| *status != Status::Succeeded);
    let complete = end.unfinished.is_empty() && !end.cut_short;
    Ok(if failed || !complete {
        Exit::JobsFailed
    } else {
        Exit::Done
    })
}

/// Writes a job's output where the command would have written it.
pub(super) async fn show(result: &JobResult) -> io::Result<()> {
    print::data(&bytes(&result.stdout)?).await?;
    print::raw_error(&bytes(&result.stderr)?).await?;
    for (name, output) in [("stdout", &result.stdout), ("stderr", &result.stderr)] {
        if output.truncated_bytes > 0 {
            let dropped = output.truncated_bytes;
            print::note(&format!(
                "{dropped} bytes from the middle of {name} were not kept; see --max-output"
            ));
        }
    }
    Ok(())
}

fn bytes(output: &Output) -> io::Result<Cow<'_, [u8]>> {
    output.decode().map_err(io::Error::other)
}

/// Says in words how a job ended.
pub(super) fn describe(result: &JobResult) -> String {
    let how = match (result.exit_code, result.error.as_ref()) {
        (_, Some(error)) => format!(": {}", error.message),
        (Some(code), None) => format!(" with exit code {code}"),
        (None, None) => String::new(),
    };
    let again = if result.is_final {
        ""
    } else {
        "; it will be tried again"
    };
    format!("{}{how} (attempt {}){again}", result.status, result.attempt)
}
