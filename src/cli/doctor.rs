//! `synthex doctor`: what is wrong with a broker, its queues, our rights, and this machine, each with its remedy.
//!
//! Here facts are gathered; [`checks`] judges them.

mod checks;

use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::cgroup_args::CgroupArgs;
use super::exit::{Exit, Failure};
use super::operator::{Operator, OperatorArgs, out};
use super::{print, worker};
use crate::app::{CgroupSupport, landlock_abi};
use crate::config::{Overrides, Pool};
use crate::control::standing::Standing;
use crate::message::{Span, WorkerState, now};
use crate::transport::amqp::{Found, Right};
use crate::transport::topology::{Declare, Names, TIERS, Topology};
use crate::transport::{Topic, Transport, TransportError, Version};
use checks::{Asked, Clock};
pub(super) use checks::{Finding, Severity};

/// Tell what is wrong, and what to do about it.
///
/// Checks the broker, what is declared on it, what this user may do there, the clocks, and what this machine has to hold
/// commands by. Run it with the address, the user and the pool files of a worker. It declares nothing that lasts,
/// publishes nothing that anybody gets, and changes no queue. Exit code 78 if there is a problem; a note is none.
#[derive(Args)]
pub(super) struct DoctorArgs {
    /// Pool files [default: workers/default.toml if it is there, else its compiled-in copy]
    #[arg(value_name = "POOL.toml")]
    pools: Vec<PathBuf>,
    /// How long to wait for workers' answers
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    wait: Span,
    /// Print one JSON object a finding
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cgroup: CgroupArgs,
    #[command(flatten)]
    operator: OperatorArgs,
}

pub(super) async fn run(args: DoctorArgs) -> Result<Exit, Failure> {
    let loaded = worker::load(&args.pools, &Overrides::default())?;
    let pools: Vec<Pool> = loaded.into_iter().map(|loaded| loaded.pool).collect();
    let operator = Operator::new(&args.operator)?;
    let of_broker = match ask(&operator, &pools, &args).await {
        Ok(answers) => answers.judge(&pools),
        Err(failure) => vec![checks::no_broker(&failure.message)],
    };
    let mut findings = [of_broker, of_this_machine(&args, &pools)].concat();
    // The worst at the end, where it is read.
    findings.sort_by_key(|finding| finding.severity);
    for finding in &findings {
        out(&if args.json {
            print::json(finding)
        } else {
            finding.to_string()
        })
        .await?;
    }
    let problems = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Problem)
        .count();
    let exit = if problems == 0 { Exit::Done } else { Exit::Config };
    operator.end(Ok(exit)).await
}

/// What the broker and the workers answered.
struct Answers {
    version: Option<Version>,
    found: Vec<Found>,
    rights: Vec<Asked>,
    broker_clock: Result<Clock, String>,
    standing: Standing,
    asked_at: Timestamp,
    workers: Vec<WorkerState>,
    answered_by: Timestamp,
}

impl Answers {
    fn judge(&self, pools: &[Pool]) -> Vec<Finding> {
        let version = self.version.as_ref();
        [
            checks::version(version),
            checks::priority(version),
            checks::consumer_timeout(version, pools),
            checks::message_size(version, pools),
            checks::topology(&self.found, pools),
            checks::rights(&self.rights),
            checks::workers(&self.workers, pools),
            checks::pauses(&self.standing),
            checks::clock_of_broker(&self.broker_clock),
            checks::clocks_of_workers(&self.workers, self.asked_at, self.answered_by),
        ]
        .concat()
    }
}

/// Asks all that there is to ask. Only the first question is tried again and again.
async fn ask(operator: &Operator<'_>, pools: &[Pool], args: &DoctorArgs) -> Result<Answers, Failure> {
    let (broker, names) = (operator.broker(), operator.names());
    let dead = names.dead();
    operator.persist(async || broker.queue_depth(&dead).await).await?;
    let topology = Topology::new(names, pools.iter().map(|pool| &*pool.name));
    let rights = operator.persist(async || rights(operator, pools).await).await?;
    let found = operator.persist(async || broker.inspect(&topology).await).await?;
    let before = now();
    let broker_clock = match broker.clock().await {
        Ok(at) => Ok(Clock {
            at,
            window: (before, now()),
        }),
        Err(error) => Err(format!("failed to {error}")),
    };
    // Without the right to read orders, which is told where a worker lacks it, none are known.
    let standing = Standing::read(broker, names, None).await.unwrap_or_default();
    let asked_at = now();
    let workers = match operator.inbox().await {
        Ok(mut inbox) => operator.workers(&mut inbox, args.wait.get()).await.unwrap_or_default(),
        Err(_) => Vec::new(), // a right that is missing, which has been told of
    };
    Ok(Answers {
        version: broker.version().await,
        found,
        rights,
        broker_clock,
        standing,
        asked_at,
        workers,
        answered_by: now(),
    })
}

/// Whether our user may do what a worker of these pools does.
async fn rights(operator: &Operator<'_>, pools: &[Pool]) -> Result<Vec<Asked>, TransportError> {
    let (broker, names) = (operator.broker(), operator.names());
    let mut asked = vec![Asked {
        what: format!("make a private queue and read {:?}", names.control()),
        patterns: format!(
            "configure, write and read \"amq\\.gen.*\", and read {:?}",
            names.control()
        ),
        right: may_listen(operator).await?,
    }];
    let delays = TIERS.iter().map(|tier| names.delay(tier));
    for exchange in [names.results(), names.events(), names.dead()]
        .into_iter()
        .chain(delays)
    {
        asked.push(Asked {
            what: format!("publish to {exchange:?}"),
            patterns: format!("write {exchange:?}"),
            right: broker.may_publish(&exchange).await?,
        });
    }
    asked.push(Asked {
        what: "answer producers by the default exchange".to_owned(),
        patterns: "write \"amq\\.default\"".to_owned(),
        right: broker.may_publish("").await?,
    });
    if pools.iter().any(|pool| pool.declare == Declare::Active) {
        asked.push(Asked {
            what: "declare queues of the namespace".to_owned(),
            patterns: format!(
                "configure \"{}.*\", or say declare = \"passive\" in the pools' files and have an operator run \
                 `synthex config apply`",
                prefix(names)
            ),
            right: broker.may_declare(&prefix(names)).await?,
        });
    }
    Ok(asked)
}

/// What the names of the namespace begin with.
fn prefix(names: &Names) -> String {
    names.jobs().trim_end_matches("jobs").to_owned()
}

async fn may_listen(operator: &Operator<'_>) -> Result<Right, TransportError> {
    let nothing = Topic {
        exchange: operator.names().control(),
        routing_key: "doctor".to_owned(), // which nobody uses
    };
    match operator.broker().listen(&[nothing]).await {
        Ok(_) => Ok(Right::Granted),
        // Without the exchange there is no right to it; that it is missing is told by itself.
        Err(error) if error.is_missing_exchange() => Ok(Right::Nothing),
        Err(TransportError::Refused { reason, .. }) => Ok(Right::Refused(reason)),
        Err(error) => Err(error),
    }
}

fn of_this_machine(args: &DoctorArgs, pools: &[Pool]) -> Vec<Finding> {
    let cgroup = CgroupSupport::find(&args.cgroup.cgroup).map_err(|error| format!("failed to {error}"));
    [checks::cgroup(&cgroup, pools), checks::landlock(landlock_abi(), pools)].concat()
}
