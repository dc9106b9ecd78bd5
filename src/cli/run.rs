//! `synthex run`: jobs on this machine alone.

use std::borrow::Cow;
use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::batch_args::{BatchPolicyArgs, Broker, conclude, pace};
use super::batch_view::{View, ViewArgs};
use super::cgroup_args::CgroupArgs;
use super::exit::{Exit, Failure};
use super::input_args::{Caller, InputArgs, dry_run};
use super::trace_args::TraceArgs;
use super::worker::{config_failure, metrics_addr, start_failure};
use super::{environment, print};
use crate::app::Spawners;
use crate::app::local::{self, LocalOptions, Work};
use crate::batch::{MAX_IN_FLIGHT, Progress, Sink, Watcher};
use crate::config::{self, Overrides, Pool};
use crate::message::{JobResult, Output};

/// Run jobs on this machine alone, without RabbitMQ.
///
/// The same jobs, the same worker and the same results as on a fleet, on a broker inside the process. Give it files
/// with one job a line (JSON, see `synthex schema job`; - is stdin), one command after --, or a command and what to run it
/// for.
///
/// Without --pool the commands see your environment and run in your directory.
#[derive(Args)]
#[command(
    override_usage = "synthex run [OPTIONS] <FILE>...\n       synthex run [OPTIONS] -- <CMD>...\n       \
                            synthex run [OPTIONS] --each <FILE> -- <CMD>...\n       \
                            synthex run [OPTIONS] -- <CMD>... ::: <WORD>..."
)]
pub(super) struct RunArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    policy: BatchPolicyArgs,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    pub(super) cgroup: CgroupArgs,
    #[command(flatten)]
    traces: TraceArgs,
}

#[derive(Args)]
#[command(next_help_heading = "This machine")]
struct MachineArgs {
    /// A pool file for defaults and limits [default: the compiled-in default pool]
    #[arg(long, value_name = "POOL.toml")]
    pool: Option<PathBuf>,
    /// Commands that run at once [default: one a CPU]
    #[arg(long, short = 'j', value_name = "N", visible_alias = "jobs")]
    slots: Option<usize>,
    /// Jobs in hand at once [default: as many as slots]
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Serve metrics on this address; none for nowhere
    #[arg(long, value_name = "ADDR", env = "SYNTHEX_METRICS_ADDR", default_value = "none")]
    metrics_addr: String,
}

/// Runs the jobs and tells how they ended.
pub(super) async fn run(args: RunArgs, spawners: Spawners) -> Result<Exit, Failure> {
    let overrides = Overrides {
        slots: args.machine.slots,
        prefetch: args.machine.prefetch,
    };
    let pool = pool(args.machine.pool.as_ref(), &overrides)?;
    let max_line = usize::try_from(pool.max_job_bytes).unwrap_or(usize::MAX);
    let caller = Caller {
        name: "run",
        subcommands: Vec::new(),
    };
    let mut opened = args.input.open(&caller, max_line).await?;
    if opened.is_dry_run {
        return dry_run(&mut opened.input).await;
    }
    let view = View::new(&args.view, opened.is_single);
    let mut watcher = view.watcher();
    let expected = opened.input.total();
    if let Some(total) = expected {
        watcher.on(&Progress::Total(total));
    }
    let traces = args.traces.options()?;
    let past = args.policy.past("", &pool.name, Broker::Ours).await?;
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    sinks.extend(past.file.map(|file| Box::new(file) as Box<dyn Sink>));
    sinks.extend(args.view.files().await?);
    let window = args.policy.max_in_flight.unwrap_or(IN_ORDER);
    let (source, printer) = pace(opened.input, view.printer(), args.view.window(window));
    sinks.push(printer);
    let work = Work {
        source,
        sinks,
        watcher: &mut watcher,
        past: (past.table, past.journal),
        batch: past.batch,
        cause: environment::trace(),
        expected,
        max_in_flight: args.policy.max_in_flight.map(|most| most.get() as usize),
        on_bad: args.policy.on_bad(),
        halts: args.policy.halts(),
        retry_failed: args.policy.retry_failed,
    };
    let options = LocalOptions {
        pool,
        spawners,
        metrics_addr: metrics_addr(&args.machine.metrics_addr).map(str::to_owned),
        traces,
    };
    let ended = tokio::select! {
        ended = local::run(options, work) => ended.map_err(|error| start_failure(&error))?,
        () = view.keep_showing() => unreachable!("it shows for ever"),
    };
    let results = args.policy.results.as_ref().map(|file| file.display().to_string());
    let exit = conclude(ended.end, &view, results.as_deref()).await?;
    match &ended.ended.report.gave_up {
        Some(name) => Err(Failure::new(Exit::Failure, format!("gave up: {name}"))),
        None => Ok(exit),
    }
}

/// How far the input may be ahead of what is shown in order, unless --max-in-flight says.
const IN_ORDER: NonZeroU32 = NonZeroU32::new(MAX_IN_FLIGHT).expect("it is not 0");

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
