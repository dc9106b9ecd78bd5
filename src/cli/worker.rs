//! `synthex worker`: serves pools from RabbitMQ.

use std::path::{Path, PathBuf};

use clap::Args;

use super::broker_args::{BrokerArgs, broker_failure};
use super::cgroup_args::CgroupArgs;
use super::exit::{Exit, Failure};
use super::outbox_args::OutboxArgs;
use super::trace_args::TraceArgs;
use super::{environment, print};
use crate::app::{self, Ended, ServeOptions, Spawners, StartError};
use crate::config::{self, ConfigErrors, Loaded, Overrides};

/// Where the default pool is looked for before the compiled-in one is taken.
const DEFAULT_FILE: &str = "workers/default.toml";

/// Serve pools: take jobs from RabbitMQ and run them.
///
/// A job is taken only when a slot is free, and acknowledged only after its result was published. The first SIGTERM
/// or SIGINT takes no more jobs and waits for those that run, at most the pool's stop_grace; the second kills them and
/// gives them back.
#[derive(Args)]
pub(super) struct WorkerArgs {
    /// Pool files [default: workers/default.toml if it is there, else its compiled-in copy]
    #[arg(value_name = "POOL.toml")]
    pools: Vec<PathBuf>,
    /// Commands that run at once in each pool, over what the file says [default: one a CPU]
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// Jobs in hand at once in each pool, over what the file says [default: as many as slots]
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Serve /metrics, /healthz and /readyz on this address; none for nowhere
    #[arg(
        long,
        value_name = "ADDR",
        env = "SYNTHEX_METRICS_ADDR",
        default_value = "127.0.0.1:9464"
    )]
    metrics_addr: String,
    #[command(flatten)]
    pub(super) cgroup: CgroupArgs,
    #[command(flatten)]
    outbox: OutboxArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    traces: TraceArgs,
}

/// Serves until a signal ends it.
pub(super) async fn run(args: WorkerArgs, spawners: Spawners) -> Result<Exit, Failure> {
    let overrides = Overrides {
        slots: args.slots,
        prefetch: args.prefetch,
    };
    let loaded = load(&args.pools, &overrides)?;
    let options = ServeOptions {
        spawners,
        pools: loaded.into_iter().map(|loaded| loaded.pool).collect(),
        addresses: args.broker.addresses()?,
        access: args.broker.access()?,
        namespace: args.broker.namespace,
        metrics_addr: metrics_addr(&args.metrics_addr).map(str::to_owned),
        outbox: args.outbox.options(),
        service_manager: environment::service_manager(),
        traces: args.traces.options()?,
    };
    conclude(&app::serve(options).await.map_err(|error| start_failure(&error))?)
}

/// The pools of `files`, or the default one.
pub(super) fn load(files: &[PathBuf], overrides: &Overrides) -> Result<Vec<Loaded>, Failure> {
    let loaded = if !files.is_empty() {
        config::load_all(files, overrides)
    } else if Path::new(DEFAULT_FILE).exists() {
        config::load_all(&[PathBuf::from(DEFAULT_FILE)], overrides)
    } else {
        config::load_default(overrides).map(|loaded| vec![loaded])
    };
    loaded.map_err(|errors| config_failure(&errors))
}

/// Tells how the worker ended: what was left, what was cut, what made it stop.
fn conclude(ended: &Ended) -> Result<Exit, Failure> {
    let Ended { report, ending } = ended;
    let (cut, given_back) = (ending.cut(), ending.given_back());
    let left = [report.left.clone(), ending.left()].concat();
    print::note(&format!(
        "stopped: {cut} running jobs cut and given back, {given_back} unstarted jobs given back, tasks left: {}",
        if left.is_empty() {
            "none".to_owned()
        } else {
            left.join(", ")
        }
    ));
    if let Some(error) = ending.fatal() {
        return Err(broker_failure(error));
    }
    if let Some(name) = &report.gave_up {
        return Err(Failure::new(Exit::Failure, format!("gave up: {name}")));
    }
    let clean = cut == 0 && left.is_empty();
    Ok(if clean { Exit::Done } else { Exit::Failure })
}

/// An address, or none for nowhere.
pub(super) fn metrics_addr(text: &str) -> Option<&str> {
    Some(text).filter(|text| *text != "none")
}

/// All problems of pool files, one a line.
pub(super) fn config_failure(errors: &ConfigErrors) -> Failure {
    Failure::new(Exit::Config, errors.to_string())
}

/// What kept a worker from starting.
pub(super) fn start_failure(error: &StartError) -> Failure {
    match error {
        StartError::Bind(_) => Failure::new(Exit::Config, format!("failed to {error}")),
        StartError::Outbox(error) => Failure::new(
            Exit::Config,
            format!("failed to {error}; name another one with --outbox, or none"),
        ),
        StartError::Transport(error) => broker_failure(error),
        StartError::Metrics(_) | StartError::Signals(_) => Failure::new(Exit::Failure, format!("failed to {error}")),
    }
}
