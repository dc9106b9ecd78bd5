//! `synthex batch`: many jobs on the fleet.

mod elsewhere;

use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::batch_args::{BatchPolicyArgs, Broker, Past, conclude, failure, pace};
use super::batch_view::{View, ViewArgs};
use super::broker_args::{BrokerArgs, ClientError, ConnectArgs, Patience};
use super::exit::{Exit, Failure};
use super::input_args::{self, Caller, InputArgs, dry_run};
use super::operator::{out, who};
use super::{environment, print, submit};
use crate::app::Signals;
use crate::batch::input::{Input, InputError};
use crate::batch::{
    self, AttachError, BatchError, BatchId, Cancel, End, Engine, Herald, MAX_IN_FLIGHT, OnAbort, Plan, Progress,
    Results, Sink, Table, Watcher,
};
use crate::control::fleet;
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::message::{BatchEvent, Order, Status, WorkerInfo};
use crate::supervise::Shutdown;
use crate::transport::Transport;
use crate::transport::amqp::Amqp;
use crate::transport::topology::{Declare, Names, Topology};
use elsewhere::BatchCommand;
pub(super) use elsewhere::BatchState;

/// Most bytes of a line: RabbitMQ 4 takes no larger message.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// How often results are written to disk and acked, at most: each time waits for the disk.
const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// How long jobs may tell of their end after they were cancelled: those that use up the usual `kill_grace` of 10 s, too.
const CANCELLED_JOBS_END: Duration = Duration::from_secs(15);

/// Run many jobs on the fleet, and gather their results.
///
/// With --results the same command again goes on where it was: what has its result there is not run again, what was
/// submitted and goes on is awaited. Interrupt it (Ctrl-C) to submit no more and wait for what was; once more to cancel
/// that, and a third time to leave at once.
///
/// With --detach it submits all, prints the batch's id and ends; then see `synthex batch status`, `wait`, `results` and
/// `cancel`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "synthex batch [OPTIONS] <FILE>...\n       synthex batch [OPTIONS] --each <FILE> -- <CMD>...\n       \
                      synthex batch [OPTIONS] -- <CMD>... ::: <WORD>...\n       \
                      synthex batch <status|wait|results|cancel> [OPTIONS] <ID>"
)]
pub(super) struct BatchArgs {
    #[command(subcommand)]
    command: Option<BatchCommand>,
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    submission: SubmissionArgs,
}

#[derive(Args)]
struct SubmissionArgs {
    /// The pool that is to run them
    #[arg(long, value_name = "POOL", default_value = "default")]
    pool: String,
    /// 0 to 9, higher first; has an effect from RabbitMQ 4.0 on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Submit all, print the batch's id, and end
    #[arg(long, conflicts_with_all = ["halt", "max_fails", "max_in_flight", "keep_order", "tag", "output_dir", "joblog"])]
    detach: bool,
    #[command(flatten)]
    policy: BatchPolicyArgs,
    #[command(flatten)]
    view: ViewArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: BatchArgs) -> Result<Exit, Failure> {
    match args.command {
        Some(command) => elsewhere::run(command).await,
        None => submit_all(args.input, args.submission).await,
    }
}

async fn submit_all(input: InputArgs, mut args: SubmissionArgs) -> Result<Exit, Failure> {
    let signals = Signals::new().map_err(|error| Failure::io("catch signals", &error))?;
    let mut opened = input.open(&caller(), MAX_LINE).await?;
    if opened.is_dry_run {
        return dry_run(&mut opened.input).await;
    }
    let past = args
        .policy
        .past(&args.broker.namespace, &args.pool, Broker::Shared)
        .await?;
    let client = Client {
        broker: args.broker.client(&args.connect)?,
        patience: args.connect.patience(&args.broker)?,
        herald: Herald {
            names: Names::new(args.broker.namespace.clone()),
            batch: past.batch.clone(),
            pool: std::mem::take(&mut args.pool),
            by: who(),
        },
    };
    let exit = if args.detach {
        client.detach(&args, opened.input, past, signals).await
    } else {
        client
            .attend(&args, (opened.input, opened.is_single), past, signals)
            .await
    };
    client.broker.close().await;
    exit
}

fn caller() -> Caller {
    let own = BatchCommand::augment_subcommands(clap::Command::new("batch"));
    Caller {
        name: "batch",
        subcommands: own.get_subcommands().map(|own| own.get_name().to_owned()).collect(),
    }
}

struct Client {
    broker: Amqp,
    patience: Patience,
    herald: Herald,
}

impl Client {
    /// Submits all and takes the results.
    async fn attend(
        &self,
        args: &SubmissionArgs,
        (input, is_single): (Input, bool),
        past: Past,
        signals: Signals,
    ) -> Result<Exit, Failure> {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        sinks.extend(past.file.map(|file| Box::new(file) as Box<dyn Sink>));
        sinks.extend(args.view.files().await?);
        let results = self.begin(true, &past.table).await?;
        let view = View::new(&args.view, is_single);
        let mut watcher = view.watcher();
        let expected = input.total();
        if let Some(total) = expected {
            watcher.on(&Progress::Total(total));
        }
        let window = args.policy.max_in_flight.unwrap_or(IN_ORDER);
        // Where all goes to a file, the output of a thousand jobs is not for a terminal, too.
        let printer = match args.policy.results.is_none() || args.view.shows_results() {
            true => view.printer(),
            false => view.teller(),
        };
        let (source, printer) = pace(input, printer, args.view.window(window));
        sinks.push(printer);
        let mut plan = self.plan(args);
        plan.max_in_flight = window.get() as usize;
        plan.expected = expected;
        let past = (past.table, past.journal);
        let mut engine = Engine::new(plan, source, sinks, &mut watcher, past, results);
        let (stop, never) = (Shutdown::new(), CancellationToken::new());
        let outcome = tokio::select! {
            outcome = engine.work(&stop, &never) => outcome,
            ended = obey(signals, &stop) => ended,
            () = view.keep_showing() => unreachable!("it shows for ever"),
        };
        let end = engine.end(outcome);
        self.say_how_it_ended(&stop, &end).await;
        let results = args.policy.results.as_ref().map(|file| file.display().to_string());
        let is_open = end.awaited > 0 || (end.cut_short && end.submitted > 0);
        let exit = conclude(end, &view, results.as_deref()).await;
        if is_open && args.policy.results.is_none() {
            let batch = &self.herald.batch;
            print::note(&format!(
                "what was submitted is batch {batch}: see `synthex batch status {batch}`"
            ));
        }
        exit
    }

    /// Submits all, and leaves.
    async fn detach(&self, args: &SubmissionArgs, input: Input, past: Past, signals: Signals) -> Result<Exit, Failure> {
        self.begin(false, &past.table).await?;
        let sinks = past.file.map(|file| Box::new(file) as Box<dyn Sink>);
        let mut watcher = BadLines;
        let mut plan = self.plan(args);
        plan.max_in_flight = usize::MAX;
        let past = (past.table, past.journal);
        let mut engine = Engine::new(plan, input, sinks.into_iter().collect(), &mut watcher, past, None);
        let (stop, never) = (Shutdown::new(), CancellationToken::new());
        let outcome = tokio::select! {
            outcome = engine.work(&stop, &never) => outcome,
            ended = obey(signals, &stop) => ended,
        };
        let end = engine.end(outcome);
        self.say_how_it_ended(&stop, &end).await;
        let batch = &self.herald.batch;
        let text = match args.view.json {
            true => serde_json::json!({ "batch": batch, "submitted": end.submitted, "total": end.total }).to_string(),
            false => batch.to_string(),
        };
        out(&text).await?;
        if let Some(error) = end.error {
            return Err(failure(error));
        }
        if let Some(error) = end.source {
            return Err(input_args::failure(InputError::Io(error)));
        }
        if end.total == Some(0) {
            print::note("no jobs");
        }
        if end.cut_short {
            print::note("stopped before the end of the input: the rest was not submitted");
        }
        let failed = end.counts.keys().any(|status| *status != Status::Succeeded);
        Ok(if failed || end.cut_short {
            Exit::JobsFailed
        } else {
            Exit::Done
        })
    }

    /// Sees that all is there, and says that it begins. With `attend` the results come here from now on.
    async fn begin(&self, attend: bool, past: &Table) -> Result<Option<Results<Amqp>>, Failure> {
        let Herald { names, batch, pool, .. } = &self.herald;
        submit::check_pool(&self.broker, names, pool, &self.patience).await?;
        self.check_results(past).await?;
        let results = if attend {
            let attached = async || batch::attach(&self.broker, names, batch).await;
            Some(self.patience.persist(attached).await?)
        } else {
            let topology = Topology::batch(names, batch.as_str());
            let declared = async || self.broker.declare(&topology, Declare::Active).await;
            self.patience.persist(declared).await?;
            None
        };
        let record = self.herald.say(BatchEvent::Begun, None, past.settled());
        self.patience
            .persist(async || self.broker.publish(&record).await)
            .await?;
        Ok(results)
    }

    /// Results that an earlier run waited for are still to come only if their queue is there.
    async fn check_results(&self, past: &Table) -> Result<(), Failure> {
        let (awaited, queue) = (
            past.awaiting(),
            self.herald.names.batch_results(self.herald.batch.as_str()),
        );
        let depth = async || self.broker.queue_depth(&queue).await;
        if awaited == 0 || self.patience.persist(depth).await?.is_some() {
            return Ok(());
        }
        let message = format!(
            "queue {queue:?} is gone, and with it the results of {awaited} jobs that were submitted: they stay for 14 days; to \
             run all jobs anew, name another results file"
        );
        Err(Failure::new(Exit::Failure, message))
    }

    fn plan(&self, args: &SubmissionArgs) -> Plan<Amqp> {
        let Herald { names, batch, pool, by } = &self.herald;
        let here = WorkerInfo {
            id: format!("submitter-{}", std::process::id()),
            host: by.rsplit_once('@').map_or("", |(_, host)| host).to_owned(),
            pool: pool.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let mut plan = Plan::new(self.broker.clone(), names, pool, batch, here);
        plan.prioritize(args.priority);
        plan.trace(environment::trace());
        plan.on_bad = args.policy.on_bad();
        plan.halts = args.policy.halts();
        plan.retry_failed = args.policy.retry_failed;
        plan.on_abort = OnAbort::Cancel(CANCELLED_JOBS_END);
        plan.cancel = cancel(&self.broker, &self.herald);
        (plan.flush_every, plan.flush_idle) = (FLUSH_EVERY, false);
        plan.herald = Some(self.herald.clone());
        plan
    }

    /// Tells others, as far as there is a broker to tell. A batch that has ended needs no queue any more.
    async fn say_how_it_ended(&self, stop: &Shutdown, end: &End) {
        if stop.is_aborting() && !end.cancelled && end.awaited > 0 {
            let batch = &self.herald.batch;
            print::note(&format!(
                "the broker has not taken the cancel: what was submitted goes on until `synthex batch cancel {batch}`"
            ));
        }
        let is_submitted = end.total.is_some() && !end.cut_short && end.error.is_none();
        let has_ended = is_submitted && end.awaited == 0;
        let event = match (has_ended, is_submitted) {
            (true, _) => BatchEvent::Ended,
            (_, true) => BatchEvent::Submitted,
            _ => BatchEvent::Progress,
        };
        let record = self.herald.say(event, end.total, end.counts.clone());
        if let Err(error) = self.broker.publish(&record).await {
            print::note(&format!(
                "failed to {error}: `synthex batch status` will not know how it ended"
            ));
        } else if has_ended {
            let queue = self.herald.names.batch_results(self.herald.batch.as_str());
            if let Err(error) = self.broker.remove_queue(&queue).await {
                tracing::debug!("failed to {error}: it goes by itself");
            }
        }
    }
}

/// How far the input may be ahead of its first item without an end.
const IN_ORDER: NonZeroU32 = NonZeroU32::new(MAX_IN_FLIGHT).expect("it is not 0");

/// Tells of lines that are no jobs, and of a broker that takes nothing.
struct BadLines;

impl Watcher for BadLines {
    fn on(&mut self, progress: &Progress) {
        match progress {
            Progress::Bad { origin, error } => print::note(&format!("{origin}: not a job: {error}")),
            Progress::Stalled(Some(reason)) => print::note(&format!("waiting: {reason}")),
            _ => {}
        }
    }
}

/// The first signal stops submitting, the second cancels; with the third this comes back, and nothing is waited for.
async fn obey(mut signals: Signals, stop: &Shutdown) -> Result<(), BatchError> {
    let name = signals.next().await;
    print::note(&format!(
        "{name}: submitting no more, and waiting for what was submitted; once more to cancel it"
    ));
    stop.drain();
    let name = signals.next().await;
    print::note(&format!(
        "{name} again: cancelling what was submitted; once more to leave: the cancel stays in force"
    ));
    stop.abort();
    let name = signals.next().await;
    print::note(&format!("{name} a third time: leaving"));
    Ok(())
}

/// Orders the batch's cancel, until the broker has taken the order.
fn cancel(broker: &Amqp, herald: &Herald) -> Cancel {
    let (broker, herald) = (broker.clone(), herald.clone());
    Box::new(move || {
        let (broker, herald) = (broker.clone(), herald.clone());
        Box::pin(async move {
            let order = fleet::order(&herald.names, &order_of_cancel(&herald.batch, herald.by.clone()));
            let mut backoff = Backoff::new(Duration::from_millis(100), RECONNECT_MAX);
            while let Err(error) = broker.publish(&order).await {
                if !ClientError::is_transient(&error) {
                    print::note(&format!("failed to cancel: {error}"));
                    return;
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        })
    })
}

fn order_of_cancel(batch: &BatchId, by: String) -> Order {
    Order::Cancel {
        ids: Vec::new(),
        labels: [].into(),
        batch: Some(batch.to_string()),
        pool: None,
        at: crate::message::now(),
        by: Some(by),
    }
}

impl ClientError for AttachError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Busy(_) => true, // a killed submitter's connection is soon gone
            Self::Transport(error) => error.is_transient(),
        }
    }

    fn into_failure(self) -> Failure {
        match self {
            Self::Busy(_) => Failure::new(Exit::Unavailable, format!("failed to {self}")),
            Self::Transport(error) => error.into_failure(),
        }
    }
}
