//! `synthex config`: checks and shows pool files, declares their queues.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::broker_args::{BrokerArgs, ConnectArgs};
use super::exit::{Exit, Failure};
use super::{print, worker};
use crate::config::{Loaded, Overrides};
use crate::transport::Transport;
use crate::transport::topology::{Declare, Names, Topology};

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Check pool files and tell all that is wrong with them
    Check(FileArgs),
    /// Show every value of pool files and where it comes from
    Show(ShowArgs),
    /// Declare the exchanges and queues of pools, for workers without the right to do so
    Apply(ApplyArgs),
}

#[derive(Args)]
pub(super) struct FileArgs {
    /// Pool files [default: workers/default.toml if it is there, else its compiled-in copy]
    #[arg(value_name = "POOL.toml")]
    pools: Vec<PathBuf>,
}

#[derive(Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    files: FileArgs,
    /// Commands that run at once, over what the file says
    #[arg(long, value_name = "N")]
    slots: Option<usize>,
    /// Jobs in hand at once, over what the file says
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Print one JSON object a pool
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(command: ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Check(args) => check(&args).await,
        ConfigCommand::Show(args) => show(&args).await,
        ConfigCommand::Apply(args) => apply(&args).await,
    }
}

async fn check(args: &FileArgs) -> Result<Exit, Failure> {
    for loaded in worker::load(&args.pools, &Overrides::default())? {
        let pool = &loaded.pool;
        out(&format!(
            "pool {}: ok ({} slots, prefetch {})",
            pool.name, pool.slots, pool.prefetch
        ))
        .await?;
    }
    Ok(Exit::Done)
}

async fn show(args: &ShowArgs) -> Result<Exit, Failure> {
    let overrides = Overrides {
        slots: args.slots,
        prefetch: args.prefetch,
    };
    let pools = worker::load(&args.files.pools, &overrides)?;
    let (form, between): (fn(&Loaded) -> String, _) = if args.json { (as_json, "\n") } else { (as_table, "\n\n") };
    let shown: Vec<String> = pools.iter().map(form).collect();
    out(&shown.join(between)).await?;
    Ok(Exit::Done)
}

fn as_table(loaded: &Loaded) -> String {
    let width = loaded.values.iter().map(|value| value.key.len()).max().unwrap_or(0);
    let row = |value: &crate::config::Value| format!("{:width$} = {}  # {}", value.key, value.value, value.origin);
    let rows: Vec<String> = loaded.values.iter().map(row).collect();
    rows.join("\n")
}

fn as_json(loaded: &Loaded) -> String {
    let value = |value: &crate::config::Value| {
        let entry = serde_json::json!({ "value": json(&value.value), "origin": value.origin.to_string() });
        (value.key.clone(), entry)
    };
    let values: serde_json::Map<_, _> = loaded.values.iter().map(value).collect();
    serde_json::json!({ "pool": &*loaded.pool.name, "values": values }).to_string()
}

/// The JSON of a value that is shown as TOML; what is hidden is no TOML, and stays text.
fn json(shown: &str) -> serde_json::Value {
    let table: Option<toml::Table> = format!("value = {shown}").parse().ok();
    let value = table.and_then(|mut table| table.remove("value"));
    let json = value.and_then(|value| serde_json::to_value(value).ok());
    json.unwrap_or_else(|| shown.into())
}

async fn apply(args: &ApplyArgs) -> Result<Exit, Failure> {
    let loaded = worker::load(&args.files.pools, &Overrides::default())?;
    let names = Names::new(args.broker.namespace.clone());
    let topology = Topology::new(&names, loaded.iter().map(|loaded| &*loaded.pool.name));
    let broker = args.broker.client(&args.connect)?;
    let patience = args.connect.patience(&args.broker)?;
    patience
        .persist(async || broker.declare(&topology, Declare::Active).await)
        .await?;
    broker.close().await;
    for exchange in &topology.exchanges {
        out(&format!("exchange {} ({})", exchange.name, exchange.kind.as_str())).await?;
    }
    for queue in &topology.queues {
        out(&format!("queue {}", queue.name)).await?;
    }
    Ok(Exit::Done)
}

async fn out(text: &str) -> Result<(), Failure> {
    print::line(text)
        .await
        .map_err(|error| Failure::io("write to stdout", &error))
}
