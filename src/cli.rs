//! The command line: one file a subcommand.
//!
//! Data goes to stdout, words for people to stderr, and the exit code is one of [`exit::Exit`]. The one Tokio runtime
//! is made here.

mod batch;
mod batch_args;
mod batch_view;
mod broker_args;
mod cancel;
mod cgroup_args;
mod completions;
mod config;
mod dead;
mod doctor;
mod drain;
mod environment;
pub mod exit;
mod explain;
mod input_args;
mod job_args;
mod jobs;
mod logging;
mod logs;
mod man;
mod operator;
mod outbox_args;
mod pause;
mod pools;
mod print;
mod resume;
mod run;
mod schema;
mod submit;
mod table;
mod top;
mod trace_args;
mod worker;
mod workers;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use futures_util::FutureExt;

use crate::app::{self, CgroupChoice, Spawners, SpawnersError, end_by, serve_soon};
use crate::supervise;
use exit::{Exit, Failure};

/// How long blocking work may go on after everything else has ended.
const RUNTIME_GOODBYE: Duration = Duration::from_secs(2);

/// Runs commands on a fleet of machines, fed by RabbitMQ.
///
/// A producer publishes a job, a worker with a free slot runs it under a timeout and publishes the result back. Begin
/// with `synthex run -- echo hello`, which needs no RabbitMQ; then start `synthex worker` beside a broker and give it
/// work with `synthex submit --wait -- echo hello`.
#[derive(Parser)]
#[command(name = "synthex", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    logging: logging::LogArgs,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    unexpected failure, or a worker cut running jobs
  2    wrong usage
  3    some job did not succeed
  69   broker not reachable
  75   gave up waiting
  78   bad configuration
  141  nobody reads the output any more (SIGPIPE)
`submit --wait` exits as its job did, see its help.";

#[derive(Subcommand)]
enum Command {
    // Those without a line here are described by their arguments: a line would hide what is said there at length.
    Run(Box<run::RunArgs>),
    Worker(worker::WorkerArgs),
    Submit(submit::SubmitArgs),
    Logs(logs::LogsArgs),
    Batch(Box<batch::BatchArgs>),
    Cancel(cancel::CancelArgs),
    Pause(pause::PauseArgs),
    Resume(resume::ResumeArgs),
    Drain(drain::DrainArgs),
    Top(top::TopArgs),
    Workers(workers::WorkersArgs),
    Pools(pools::PoolsArgs),
    Jobs(jobs::JobsArgs),
    Explain(explain::ExplainArgs),
    Doctor(doctor::DoctorArgs),
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Print the JSON Schema of a message or file
    Schema(schema::SchemaArgs),
    /// Check and show pool files, declare a pool's queues
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// The cgroup to use, of a subcommand that runs commands.
    fn cgroup(&self) -> Option<CgroupChoice> {
        match self {
            Self::Run(args) => Some(args.cgroup.cgroup.clone()),
            Self::Worker(args) => Some(args.cgroup.cgroup.clone()),
            _ => None,
        }
    }

    /// How much is logged unless asked otherwise: a service tells what it does, a client what goes wrong, and what
    /// goes wrong in a local run is in its results.
    fn usual_level(&self) -> logging::Usual {
        match self {
            Self::Worker(_) => logging::Usual::Info,
            // What is logged would be written over the screen.
            Self::Run(_) | Self::Top(_) => logging::Usual::Error,
            _ => logging::Usual::Warn,
        }
    }
}

/// Why a subcommand finds spawners.
const RUNS_COMMANDS: &str = "they were started for every subcommand that runs commands";

fn start_spawners(cgroup: CgroupChoice) -> Result<Spawners, Failure> {
    app::start_spawners(cgroup).map_err(|error| {
        let exit = match error {
            SpawnersError::Process(_) | SpawnersError::Proc(_) => Exit::Failure,
            SpawnersError::Cgroup(_) => Exit::Config,
        };
        Failure::new(exit, format!("failed to {error}"))
    })
}

/// Reads the arguments, does what they say, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&in_own_words(error)),
    };
    cli.logging.init(cli.command.usual_level());
    let exit = execute(cli.command).unwrap_or_else(|failure| {
        print::error(&failure.message);
        failure.exit
    });
    if let Exit::Signal(signal) = exit {
        end_by(signal); // so that a shell's loop ends with us
    }
    exit.into()
}

/// The same error with the usage line that help has. The one that clap makes for an error names those flags whose
/// variables happen to be set, as if they were required. It takes a tree of all commands to do, which nobody but an error
/// has to pay for.
fn in_own_words(error: clap::Error) -> clap::Error {
    let mut program = Cli::command();
    program.build();
    show_usage(program).try_get_matches().err().unwrap_or(error)
}

fn show_usage(mut command: clap::Command) -> clap::Command {
    let usage = command.render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    command.mut_subcommands(show_usage).override_usage(usage)
}

/// Help and version are no errors; everything else is wrong usage.
fn usage(error: &clap::Error) -> ExitCode {
    // There is nobody to tell when the terminal is gone.
    let _ = error.print();
    if error.use_stderr() {
        Exit::Usage.into()
    } else {
        Exit::Done.into()
    }
}

fn execute(command: Command) -> Result<Exit, Failure> {
    // Before there are threads.
    let spawners = command.cgroup().map(start_spawners).transpose()?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if spawners.is_some() {
        runtime.on_thread_start(serve_soon); // it keeps time beside commands that take all there is
    }
    let runtime = runtime
        .worker_threads(threads())
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failure, format!("failed to start the runtime: {error}")))?;
    // What runs jobs is on a thread of the runtime, as the jobs are: to wake this one at each step would cost more than
    // the step.
    let on_the_runtime = |root| runtime.block_on(supervise::on_the_runtime(&runtime, root));
    let exit = match command {
        Command::Run(args) => on_the_runtime(run::run(*args, spawners.expect(RUNS_COMMANDS)).boxed()),
        Command::Worker(args) => on_the_runtime(worker::run(args, spawners.expect(RUNS_COMMANDS)).boxed()),
        Command::Submit(args) => runtime.block_on(submit::run(args)),
        Command::Logs(args) => runtime.block_on(logs::run(args)),
        Command::Batch(args) => runtime.block_on(batch::run(*args)),
        Command::Cancel(args) => runtime.block_on(cancel::run(args)),
        Command::Pause(args) => runtime.block_on(pause::run(args)),
        Command::Resume(args) => runtime.block_on(resume::run(args)),
        Command::Drain(args) => runtime.block_on(drain::run(args)),
        Command::Top(args) => runtime.block_on(top::run(args)),
        Command::Workers(args) => runtime.block_on(workers::run(args)),
        Command::Pools(args) => runtime.block_on(pools::run(args)),
        Command::Jobs(args) => runtime.block_on(jobs::run(args)),
        Command::Explain(args) => runtime.block_on(explain::run(args)),
        Command::Doctor(args) => runtime.block_on(doctor::run(args)),
        Command::Dead(command) => runtime.block_on(dead::run(command)),
        Command::Schema(args) => runtime.block_on(schema::run(&args)),
        Command::Config(command) => runtime.block_on(config::run(command)),
        Command::Completions(args) => runtime.block_on(completions::run(&args)),
        Command::Man(args) => runtime.block_on(man::run(&args)),
    };
    runtime.shutdown_timeout(RUNTIME_GOODBYE);
    exit
}

/// Threads of the runtime: one for every two processors. A job takes a tenth of a millisecond of them, and the processors
/// are the commands'. Threads that have nothing to do are woken all the same, which costs more than they help.
fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
