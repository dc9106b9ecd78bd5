//! `synthex submit`: one job to a fleet, and its result back.

use std::io::IsTerminal;
use std::time::Duration;

use clap::{ArgGroup, Args};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Instant, sleep, timeout};

use super::broker_args::{BrokerArgs, ConnectArgs, Patience};
use super::exit::{Exit, Failure};
use super::job_args::JobArgs;
use super::logs::{self, Printer};
use super::operator::no_queue;
use super::{environment, print, run as local};
use crate::control::standing::Standing;
use crate::events::{self, Transcript};
use crate::message::{Envelope, Job, JobId, JobResult, Properties, Span};
use crate::transport::amqp::Amqp;
use crate::transport::topology::Names;
use crate::transport::{Delivery, Publication, QueueDepth, Routing, Subscription, Transport};

/// How long a pool's queue may take to appear: its worker may have been started just before us.
const QUEUE_APPEARS: Duration = Duration::from_secs(3);
/// How long orders may take to read for a word about them.
const ORDERS_WITHIN: Duration = Duration::from_secs(2);
/// Most bytes of a job that are read: far more than any pool takes by default, and less than any broker takes.
const JOB_MAX: u64 = 16 << 20;
/// What makes a job.
const EITHER: &str = "a command after --, or a job as JSON on stdin; see `synthex submit --help`";

/// How long output may come after its result.
const OUTPUT_COMES: Duration = Duration::from_secs(2);

/// Publish one job.
///
/// The job is a command after --, or a JSON object on stdin (see `synthex schema job`) when there is none.
///
/// Prints the job's id. With --wait it prints the command's output instead and exits as the command did: its exit
/// code, 128+n for a signal, 124 timed out, 137 out of memory, 126 or 127 not started, 125 for what Synthex or an
/// operator ended. Interrupted (Ctrl-C) it ends, and the job goes on.
#[derive(Args)]
#[command(override_usage = "synthex submit [OPTIONS] -- <CMD>...\n       synthex submit [OPTIONS] < JOB.json")]
#[command(group = ArgGroup::new("waiting").multiple(true))]
pub(super) struct SubmitArgs {
    /// The pool that is to run it
    #[arg(long, value_name = "POOL", default_value = "default")]
    pool: String,
    /// Wait for the result
    #[arg(long, group = "waiting")]
    wait: bool,
    /// Wait as with --wait, and print the output as it is written (`output.live`)
    #[arg(long, group = "waiting")]
    follow: bool,
    /// Give up waiting after this time, exit code 75; the job goes on
    #[arg(long, value_name = "DURATION", requires = "waiting")]
    wait_timeout: Option<Span>,
    /// Print the result, or without --wait what was published, as one JSON object; with --follow, after the output as
    /// events
    #[arg(long)]
    json: bool,
    /// 0 to 9, higher first; has an effect from RabbitMQ 4.0 on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// The command to run, with its arguments
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: SubmitArgs) -> Result<Exit, Failure> {
    let mut job = if args.command.is_empty() {
        args.job
            .refuse("needs a command after --: a job on stdin says it for itself")?;
        job_on_stdin().await?
    } else {
        args.job.job(args.command)?
    };
    let id = job.id.get_or_insert_with(JobId::random).clone();
    let client = Client {
        broker: args.broker.client(&args.connect)?,
        names: Names::new(args.broker.namespace.clone()),
        pool: args.pool,
        priority: args.priority,
        patience: args.connect.patience(&args.broker)?,
        limit: args.wait_timeout,
        json: args.json,
    };
    let exit = if args.follow {
        job.output.get_or_insert_default().live = Some(true);
        client.submit_and_follow(&job, &id).await
    } else if args.wait {
        client.submit_and_wait(&job, &id).await
    } else {
        client.submit(&job, &id).await
    };
    client.broker.close().await;
    exit
}

/// Reads a job, which has to be all of stdin.
async fn job_on_stdin() -> Result<Job, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    if std::io::stdin().is_terminal() {
        return Err(usage(format!("give {EITHER}")));
    }
    let mut text = Vec::new();
    let read = tokio::io::stdin().take(JOB_MAX + 1).read_to_end(&mut text).await;
    read.map_err(|error| Failure::io("read a job from stdin", &error))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > JOB_MAX) {
        return Err(usage(format!("stdin: expected a job of at most {JOB_MAX} bytes")));
    }
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err(usage(format!("stdin is empty: give {EITHER}")));
    }
    Job::decode(&text).map_err(|error| usage(format!("stdin is not a job: {error}; see `synthex schema job`")))
}

struct Client {
    broker: Amqp,
    names: Names,
    pool: String,
    priority: Option<u8>,
    patience: Patience,
    /// How long a result may take.
    limit: Option<Span>,
    json: bool,
}

impl Client {
    async fn submit(&self, job: &Job, id: &JobId) -> Result<Exit, Failure> {
        self.check_pool().await?;
        self.publish(job, id, None).await?;
        let text = if self.json {
            serde_json::json!({ "job_id": id, "pool": self.pool }).to_string()
        } else {
            id.to_string()
        };
        print::line(&text)
            .await
            .map_err(|error| Failure::io("write to stdout", &error))?;
        Ok(Exit::Done)
    }

    async fn submit_and_wait(&self, job: &Job, id: &JobId) -> Result<Exit, Failure> {
        let (reply_to, mut inbox) = self.patience.persist(async || self.broker.inbox().await).await?;
        let waiting = self.final_result(&mut inbox, id);
        let (result, mut stop) = self.see_through(job, id, reply_to, waiting).await?;
        let conclude = async {
            if !self.json {
                let shown = local::show(&result).await;
                shown.map_err(|error| Failure::io("write the result", &error))?;
            }
            self.conclude(&result).await
        };
        stop.or("", conclude).await
    }

    /// The same, with what is written as it is written. What of that does not come is in the result.
    async fn submit_and_follow(&self, job: &Job, id: &JobId) -> Result<Exit, Failure> {
        let topics = events::output_topics(&self.names, id);
        let overhear = async || self.broker.overhear(&topics, events::OVERHEARD_MAX).await;
        let (_, overheard) = self.patience.persist(overhear).await?;
        let (reply_to, inbox) = self.patience.persist(async || self.broker.inbox().await).await?;
        let following = self.follow(overheard, inbox, id);
        let (result, mut stop) = self.see_through(job, id, reply_to, following).await?;
        stop.or("", self.conclude(&result)).await
    }

    /// Publishes a job and waits for its result. Whoever stops that is told that the job goes on without him.
    async fn see_through<R>(
        &self,
        job: &Job,
        id: &JobId,
        reply_to: String,
        waiting: impl Future<Output = Result<R, Failure>>,
    ) -> Result<(R, Stop), Failure> {
        let goes_on = |goes: &str| format!("job {id} {goes} on: `synthex logs -f {id}`, `synthex cancel {id}`");
        self.check_pool().await?;
        let mut stop = Stop::new()?;
        stop.or(&goes_on("may go"), self.publish(job, id, Some(reply_to)))
            .await?;
        let result = stop.or(&goes_on("goes"), self.in_time(id, waiting)).await?;
        Ok((result, stop))
    }

    /// Prints what the job writes until it has its final result.
    async fn follow(
        &self,
        mut overheard: impl Subscription,
        mut inbox: impl Subscription,
        id: &JobId,
    ) -> Result<JobResult, Failure> {
        let mut follower = Follower::new(self.json);
        loop {
            let result = tokio::select! {
                delivery = overheard.next(), if follower.hears => {
                    follower.hear(delivery).await?;
                    continue;
                }
                delivery = inbox.next() => read(delivery.ok_or_else(|| self.lost(id))?).await?,
            };
            follower.catch_up(&mut overheard, &result).await?;
            if result.is_final {
                return Ok(result);
            }
            print::note(&format!("job {id} {}", local::describe(&result)));
        }
    }

    /// Waits for a result, no longer than is wanted.
    async fn in_time<R>(&self, id: &JobId, waiting: impl Future<Output = Result<R, Failure>>) -> Result<R, Failure> {
        let Some(limit) = self.limit else { return waiting.await };
        timeout(limit.get(), waiting).await.unwrap_or_else(|_| {
            let message = format!("job {id} had no result within {limit}; it goes on");
            Err(Failure::new(Exit::TimedOut, message))
        })
    }

    async fn check_pool(&self) -> Result<(), Failure> {
        check_pool(&self.broker, &self.names, &self.pool, &self.patience).await
    }

    /// Publishes until confirmed or out of patience, always under the same id.
    async fn publish(&self, job: &Job, id: &JobId, reply_to: Option<String>) -> Result<(), Failure> {
        let publication = self.publication(job, id, reply_to);
        self.patience
            .persist(async || self.broker.publish(&publication).await)
            .await
    }

    fn publication(&self, job: &Job, id: &JobId, reply_to: Option<String>) -> Publication {
        let mut properties = Properties {
            correlation_id: reply_to.is_some().then(|| id.to_string()),
            reply_to,
            priority: self.priority,
            ..Properties::of_job(id)
        };
        if let Some(trace) = environment::trace() {
            trace.write(&mut properties);
        }
        Publication {
            exchange: self.names.jobs(),
            routing_key: self.pool.clone(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: job.encode().into(),
                properties,
            }
            .into(),
        }
    }

    async fn final_result(&self, inbox: &mut impl Subscription, id: &JobId) -> Result<JobResult, Failure> {
        while let Some(delivery) = inbox.next().await {
            let result = read(delivery).await?;
            if result.is_final {
                return Ok(result);
            }
            print::note(&format!("job {id} {}", local::describe(&result)));
        }
        Err(self.lost(id))
    }

    fn lost(&self, id: &JobId) -> Failure {
        let results = self.names.results();
        let message = format!("lost the broker while waiting for job {id}; it goes on, its result goes to {results:?}");
        Failure::new(Exit::Unavailable, message)
    }

    /// Says what there is to say once the output is out.
    async fn conclude(&self, result: &JobResult) -> Result<Exit, Failure> {
        if self.json {
            let line = print::line(&String::from_utf8_lossy(&result.encode())).await;
            line.map_err(|error| Failure::io("write the result", &error))?;
        } else if result.error.is_some() {
            print::note(&format!("job {} {}", result.job_id, local::describe(result)));
        }
        Ok(Exit::mirror(result))
    }
}

/// The signals that ask to end, caught from the moment this is made.
struct Stop {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| unix::signal(kind).map_err(|error| Failure::io("catch signals", &error));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// Does `work` unless one comes; then there are last words, and the end is that of who does not catch it.
    async fn or<R>(&mut self, last_words: &str, work: impl Future<Output = Result<R, Failure>>) -> Result<R, Failure> {
        let signal = tokio::select! {
            biased;
            done = work => return done,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
        };
        Err(Failure::new(Exit::Signal(signal), last_words))
    }
}

/// Prints what a job writes.
struct Follower {
    transcript: Transcript,
    printer: Printer,
    /// Whether more may come.
    hears: bool,
}

impl Follower {
    fn new(json: bool) -> Self {
        let notes_ends = false; // the results say more
        Self {
            transcript: Transcript::of_whole(),
            printer: Printer { json, notes_ends },
            hears: true,
        }
    }

    async fn hear(&mut self, delivery: Option<Delivery>) -> Result<(), Failure> {
        let Some(delivery) = delivery else {
            self.hears = false;
            return Ok(());
        };
        let said = logs::overheard(&mut self.transcript, delivery).await;
        self.printer.print_all(&said).await
    }

    /// Prints what of an attempt was not printed yet. Its result may have overtaken its output; where it does not have
    /// all of that, a moment is waited for it.
    async fn catch_up(&mut self, overheard: &mut impl Subscription, result: &JobResult) -> Result<(), Failure> {
        let is_cut = result.stdout.truncated_bytes + result.stderr.truncated_bytes > 0;
        let rest = async {
            while self.hears && !self.transcript.is_complete(result) {
                self.hear(overheard.next().await).await?;
            }
            Ok(())
        };
        if is_cut {
            timeout(OUTPUT_COMES, rest).await.unwrap_or(Ok(()))?;
        } else {
            drop(rest);
        }
        let said = self.transcript.result(result);
        self.printer.print_all(&said).await
    }
}

/// A job for a pool that nobody serves would wait for ever in the dead letters: says so before it is published.
pub(super) async fn check_pool(broker: &Amqp, names: &Names, pool: &str, patience: &Patience) -> Result<(), Failure> {
    let queue = names.pool_queue(pool);
    let appears_until = Instant::now() + QUEUE_APPEARS;
    loop {
        match patience.persist(async || broker.queue_depth(&queue).await).await? {
            Some(depth) => {
                warn_of_idleness(broker, names, pool, depth).await;
                return Ok(());
            }
            None if Instant::now() >= appears_until => break,
            None => sleep(QUEUE_APPEARS / 10).await,
        }
    }
    Err(no_queue(broker, names, pool).await)
}

/// Nobody takes jobs of a pool that no worker serves, nor of one that is paused. Who may not read orders is not told which.
async fn warn_of_idleness(broker: &Amqp, names: &Names, pool: &str, depth: QueueDepth) {
    if depth.consumers > 0 {
        return;
    }
    let standing = timeout(ORDERS_WITHIN, Standing::read(broker, names, None)).await;
    let paused = standing.ok().and_then(Result::ok).unwrap_or_default().paused;
    print::note(&match paused.get(pool) {
        Some(given) => format!("pool {pool:?} is paused {given}, and its jobs wait: `synthex resume {pool}`"),
        None => format!("no worker serves pool {pool:?} now; the job waits for one"),
    });
}

async fn read(delivery: Delivery) -> Result<JobResult, Failure> {
    let result = JobResult::decode(&delivery.envelope.body);
    // An unacked reply goes with our private queue all the same.
    let _ = delivery.ack().await;
    result.map_err(|error| Failure::new(Exit::Failure, format!("failed to read the result: {error}")))
}
