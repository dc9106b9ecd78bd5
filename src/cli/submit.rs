//! `synthex submit`: one job to a fleet, and its result back.

use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use super::broker_args::{BrokerArgs, ConnectArgs, Patience};
use super::exit::{Exit, Failure};
use super::job_args::JobArgs;
use super::{environment, print, run as local};
use crate::message::{Envelope, Job, JobId, JobResult, Properties, Span};
use crate::transport::amqp::Amqp;
use crate::transport::topology::Names;
use crate::transport::{Delivery, Publication, QueueDepth, Routing, Subscription, Transport};

/// How long a pool's queue may take to appear: its worker may have been started just before us.
const QUEUE_APPEARS: Duration = Duration::from_secs(3);

/// Publish one job.
///
/// Prints the job's id. With --wait it prints the command's output instead and exits as the command did: its exit
/// code, 128+n for a signal, 124 timed out, 137 out of memory, 126 or 127 not started, 125 for what Synthex or an
/// operator ended.
#[derive(Args)]
pub(super) struct SubmitArgs {
    /// The pool that is to run it
    #[arg(long, value_name = "POOL", default_value = "default")]
    pool: String,
    /// Wait for the result
    #[arg(long)]
    wait: bool,
    /// Give up waiting after this time, exit code 75; the job goes on
    #[arg(long, value_name = "DURATION", requires = "wait")]
    wait_timeout: Option<Span>,
    /// Print the result, or without --wait what was published, as one JSON object
    #[arg(long)]
    json: bool,
    /// 0 to 9, higher first; has an effect from RabbitMQ 4.0 on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// The command to run, with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: SubmitArgs) -> Result<Exit, Failure> {
    let mut job = args.job.job(args.command)?;
    let id = job.id.get_or_insert_with(JobId::random).clone();
    let client = Client {
        broker: args.broker.client(&args.connect)?,
        names: Names::new(args.broker.namespace.clone()),
        pool: args.pool,
        priority: args.priority,
        patience: args.connect.patience(&args.broker)?,
        json: args.json,
    };
    let exit = if args.wait {
        client
            .submit_and_wait(&job, &id, args.wait_timeout.map(Span::get))
            .await
    } else {
        client.submit(&job, &id).await
    };
    client.broker.close().await;
    exit
}

struct Client {
    broker: Amqp,
    names: Names,
    pool: String,
    priority: Option<u8>,
    patience: Patience,
    json: bool,
}

impl Client {
    async fn submit(&self, job: &Job, id: &JobId) -> Result<Exit, Failure> {
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

    async fn submit_and_wait(&self, job: &Job, id: &JobId, limit: Option<Duration>) -> Result<Exit, Failure> {
        let (reply_to, mut inbox) = self.patience.persist(async || self.broker.inbox().await).await?;
        self.publish(job, id, Some(reply_to)).await?;
        let result = match limit {
            None => self.final_result(&mut inbox, id).await?,
            Some(limit) => tokio::time::timeout(limit, self.final_result(&mut inbox, id))
                .await
                .map_err(|_| {
                    let limit = Span::from(limit);
                    Failure::new(
                        Exit::TimedOut,
                        format!("job {id} had no result within {limit}; it goes on"),
                    )
                })??,
        };
        self.show(&result).await
    }

    /// Publishes until confirmed or out of patience, always under the same id.
    async fn publish(&self, job: &Job, id: &JobId, reply_to: Option<String>) -> Result<(), Failure> {
        self.check_pool().await?;
        let publication = self.publication(job, id, reply_to);
        self.patience
            .persist(async || self.broker.publish(&publication).await)
            .await
    }

    /// A job for a pool that nobody serves would wait for ever in the dead letters: say so before it is published.
    async fn check_pool(&self) -> Result<(), Failure> {
        let queue = self.names.pool_queue(&self.pool);
        let appears_until = Instant::now() + QUEUE_APPEARS;
        loop {
            let found = self
                .patience
                .persist(async || self.broker.queue_depth(&queue).await)
                .await?;
            match found {
                Some(depth) => {
                    self.warn_of_idleness(depth);
                    return Ok(());
                }
                None if Instant::now() >= appears_until => break,
                None => tokio::time::sleep(QUEUE_APPEARS / 10).await,
            }
        }
        let message = format!(
            "pool {:?} has no queue {queue:?} on this broker; start a worker for it, or declare it with `synthex \
             config apply`",
            self.pool
        );
        Err(Failure::new(Exit::Config, message))
    }

    fn warn_of_idleness(&self, depth: QueueDepth) {
        if depth.consumers == 0 {
            print::note(&format!(
                "no worker serves pool {:?} now; the job waits for one",
                self.pool
            ));
        }
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
                body: job.encode(),
                properties,
            },
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
        let results = self.names.results();
        let message = format!("lost the broker while waiting for job {id}; it goes on, its result goes to {results:?}");
        Err(Failure::new(Exit::Unavailable, message))
    }

    async fn show(&self, result: &JobResult) -> Result<Exit, Failure> {
        let shown = if self.json {
            print::line(&String::from_utf8_lossy(&result.encode())).await
        } else {
            local::show(result).await
        };
        shown.map_err(|error| Failure::io("write the result", &error))?;
        let exit = Exit::mirror(result);
        if !self.json && result.error.is_some() {
            print::note(&format!("job {} {}", result.job_id, local::describe(result)));
        }
        Ok(exit)
    }
}

async fn read(delivery: Delivery) -> Result<JobResult, Failure> {
    let result = JobResult::decode(&delivery.envelope.body);
    // An unacked reply goes with our private queue all the same.
    let _ = delivery.ack().await;
    result.map_err(|error| Failure::new(Exit::Failure, format!("failed to read the result: {error}")))
}
