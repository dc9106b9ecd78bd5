//! What is to become of a delivery, decided from its content and the pool's rules alone.
//!
//! Pure: nothing is started, sent or logged here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use crate::config::{Pool, Retry};
use crate::executor::Run;
use crate::flow::retry::Schedule;
use crate::message::{
    Attempt, Envelope, FailureKind, Job, JobError, JobId, Properties, RetryPolicy, Span, Status, Work, header, peek_id,
};

/// What is known of a job apart from what to run: all that a result needs of it.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    pub(super) job_id: JobId,
    pub(super) attempt: Attempt,
    pub(super) queued_at: Option<Timestamp>,
    pub(super) reply_to: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
}

/// What to do with a delivery.
#[derive(Debug)]
pub(super) enum Admission {
    /// Run it once a slot is free.
    Run(Box<Plan>),
    /// Its time has not come: send it through a delay queue.
    Wait(Duration),
    /// It was handed out before and came back: publish it again with its attempt raised, start nothing.
    Recount,
    /// It ends here, without a run.
    End(Status, Refusal),
}

/// Why a job ends without a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: FailureKind,
    /// The path of the field at fault, if it is one's.
    pub(super) field: Option<String>,
    pub(super) message: String,
}

/// What to run, with the pool's defaults filled in.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) run: Run,
    pub(super) retry: Retry,
    /// No start before this.
    pub(super) ready_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

impl Plan {
    /// The refusal of a job that is to start too late.
    pub(super) fn expired(&self, now: Timestamp) -> Option<Refusal> {
        let expires_at = self.expires_at.filter(|expires_at| *expires_at <= now)?;
        Some(Refusal {
            kind: FailureKind::Expired,
            field: Some("expires_at".to_owned()),
            message: format!("expired at {expires_at}, before it could start"),
        })
    }
}

/// Decides what to do with a delivery.
pub(super) fn admit(pool: &Pool, envelope: &Envelope, redelivered: bool, now: Timestamp) -> (Ticket, Admission) {
    let properties = &envelope.properties;
    let (mut ticket, plan) = match read(pool, envelope) {
        Ok(read) => read,
        Err(refusal) => {
            let id = peek_id(&envelope.body).filter(|_| pool.handler.is_none());
            return (Ticket::new(id, properties), Admission::End(Status::Rejected, refusal));
        }
    };
    ticket.attempt = Attempt::read(properties);
    let admission = if redelivered {
        recount(pool, ticket.attempt)
    } else if let Some(refusal) = plan.expired(now) {
        Admission::End(Status::Expired, refusal)
    } else if let Some(wait) = wait(&plan, now) {
        Admission::Wait(wait)
    } else {
        Admission::Run(Box::new(plan))
    };
    (ticket, admission)
}

/// A redelivered job is counted before it is started, so that a job that kills its workers comes to an end.
fn recount(pool: &Pool, attempt: Attempt) -> Admission {
    let deliveries = attempt.redeliveries.saturating_add(1);
    if deliveries < pool.delivery_limit {
        return Admission::Recount;
    }
    Admission::End(
        Status::Lost,
        Refusal {
            kind: FailureKind::DeliveryLimit,
            field: None,
            message: format!(
                "delivered {deliveries} times without an end (delivery_limit {}): each time its worker died or lost \
                 its connection",
                pool.delivery_limit
            ),
        },
    )
}

fn wait(plan: &Plan, now: Timestamp) -> Option<Duration> {
    let ready_at = plan.ready_at.filter(|ready_at| *ready_at > now)?;
    Duration::try_from(now.until(ready_at).ok()?).ok()
}

/// Reads a delivery as a job of this pool.
fn read(pool: &Pool, envelope: &Envelope) -> Result<(Ticket, Plan), Refusal> {
    check_size(pool, &envelope.body)?;
    let properties = &envelope.properties;
    if let Some(handler) = &pool.handler {
        return Ok((Ticket::new(None, properties), handler_plan(pool, handler, envelope)));
    }
    properties
        .check_content_type()
        .map_err(|error| refuse(FailureKind::ContentType, error))?;
    let job = Job::decode(&envelope.body).map_err(|error| refuse(FailureKind::InvalidJob, error))?;
    let plan = plan(pool, &job, properties).map_err(|error| refuse(FailureKind::Policy, error))?;
    let mut ticket = Ticket::new(job.id, properties);
    ticket.labels = job.labels.unwrap_or_default();
    Ok((ticket, plan))
}

impl Ticket {
    /// The body's id wins over the property; a job that brings neither gets one.
    fn new(id: Option<JobId>, properties: &Properties) -> Self {
        let from_property = || properties.message_id.as_deref()?.parse().ok();
        Self {
            job_id: id.or_else(from_property).unwrap_or_else(JobId::random),
            attempt: Attempt::read(properties),
            queued_at: properties
                .timestamp
                .and_then(|seconds| i64::try_from(seconds).ok())
                .and_then(seconds),
            reply_to: properties.reply_to.clone().filter(|address| !address.is_empty()),
            correlation_id: properties.correlation_id.clone(),
            labels: BTreeMap::new(),
        }
    }
}

fn seconds(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

fn check_size(pool: &Pool, body: &Bytes) -> Result<(), Refusal> {
    let size = body.len();
    if u64::try_from(size).is_ok_and(|size| size <= pool.max_job_bytes) {
        return Ok(());
    }
    Err(Refusal {
        kind: FailureKind::TooLarge,
        field: None,
        message: format!(
            "body: expected at most {} bytes (the pool's max_job_bytes), got {size}",
            pool.max_job_bytes
        ),
    })
}

fn refuse(kind: FailureKind, error: JobError) -> Refusal {
    Refusal {
        kind,
        message: error.to_string(),
        field: Some(error.field),
    }
}

/// Lays a job over its pool.
fn plan(pool: &Pool, job: &Job, properties: &Properties) -> Result<Plan, JobError> {
    let timeout = job.timeout.map_or(pool.timeout, Span::get);
    check_timeout(pool, timeout)?;
    let (program, args) = command_line(pool, job)?;
    let mut env = pool.env.clone();
    env.extend(job.env.clone().unwrap_or_default());
    let run = Run {
        program,
        args,
        env,
        cwd: job.cwd.clone().or_else(|| pool.cwd.clone()),
        stdin: job.stdin_bytes(),
        timeout,
        term_signal: job.term_signal.unwrap_or(pool.term_signal),
        kill_grace: job.kill_grace.map_or(pool.kill_grace, Span::get),
        limits: job.limits.clone().unwrap_or_default().or(pool.limits.clone()),
        max_output: job
            .output
            .clone()
            .and_then(|output| output.max_bytes)
            .map_or(pool.output.max_bytes, |max| max.get()),
    };
    Ok(Plan {
        run,
        retry: retry(pool, job.retry.clone().unwrap_or_default()),
        ready_at: job.not_before.max(not_before_header(properties)),
        expires_at: job.expires_at,
    })
}

fn check_timeout(pool: &Pool, timeout: Duration) -> Result<(), JobError> {
    if timeout <= pool.max_timeout {
        return Ok(());
    }
    let (max, got) = (Span::from(pool.max_timeout), Span::from(timeout));
    let message = format!(
        "expected at most {:?} (the pool's max_timeout), got {:?}",
        max.to_string(),
        got.to_string()
    );
    Err(JobError::new("timeout", message))
}

fn command_line(pool: &Pool, job: &Job) -> Result<(OsString, Vec<OsString>), JobError> {
    let (program, args): (&str, Vec<OsString>) = match job.work()? {
        Work::Command { program, args } => (program, args.iter().map(OsString::from).collect()),
        Work::Script(script) => {
            let (shell, options) = pool.shell.split_first().expect("a checked pool's shell has a program");
            (
                shell,
                options.iter().map(OsString::from).chain([script.into()]).collect(),
            )
        }
    };
    Ok((program.into(), args))
}

fn handler_plan(pool: &Pool, handler: &[String], envelope: &Envelope) -> Plan {
    let (program, args) = handler.split_first().expect("a checked pool's handler has a program");
    let run = Run {
        program: program.into(),
        args: args.iter().map(OsString::from).collect(),
        env: pool.env.clone(),
        cwd: pool.cwd.clone(),
        stdin: envelope.body.clone(),
        timeout: pool.timeout,
        term_signal: pool.term_signal,
        kill_grace: pool.kill_grace,
        limits: pool.limits.clone(),
        max_output: pool.output.max_bytes,
    };
    let properties = &envelope.properties;
    Plan {
        run,
        retry: pool.retry.clone(),
        ready_at: not_before_header(properties),
        expires_at: None,
    }
}

/// When a retried job may start again.
fn not_before_header(properties: &Properties) -> Option<Timestamp> {
    properties.text_header(header::NOT_BEFORE)?.parse().ok()
}

fn retry(pool: &Pool, job: RetryPolicy) -> Retry {
    let schedule = &pool.retry.schedule;
    let own_choice = job.statuses.is_some() || job.exit_codes.is_some();
    Retry {
        max_attempts: job.max_attempts.unwrap_or(pool.retry.max_attempts),
        schedule: Schedule {
            initial: job.initial.map_or(schedule.initial, Span::get),
            max: job.max.map_or(schedule.max, Span::get),
            multiplier: job.multiplier.unwrap_or(schedule.multiplier),
        },
        // One choice, the job's or the pool's: a mixture would retry what neither asked for.
        statuses: if own_choice {
            job.statuses
        } else {
            pool.retry.statuses.clone()
        },
        exit_codes: if own_choice {
            job.exit_codes
        } else {
            pool.retry.exit_codes.clone()
        },
    }
}
