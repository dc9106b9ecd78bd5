//! What is to become of a delivery, decided from its content and the pool's rules alone.
//!
//! Pure: nothing is started, sent or logged here.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::trail::Trace;
use crate::config::{Allowed, Pool, Retry};
use crate::executor::{Environment, Run, Warning};
use crate::flow::retry::Schedule;
use crate::message::{
    Attempt, Envelope, FailureKind, Job, JobError, JobId, Limits, Properties, RetryPolicy, Span, Status, Work, header,
    peek_id,
};

/// What is known of a job apart from what to run: all that a result needs of it.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) job_id: JobId,
    pub(super) attempt: Attempt,
    pub(super) queued_at: Option<Timestamp>,
    pub(super) reply_to: Option<String>,
    pub(super) correlation_id: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) trace: Trace,
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
    /// Whether its output is published while it runs, whoever listens.
    pub(super) is_live: bool,
    expires_at: Option<Timestamp>,
    /// What a restricted pool runs; the command's words were judged by it, not yet where its program is.
    allowed: Option<Arc<Allowed>>,
}

impl Plan {
    /// Looks once more whether the job may be started, as late as can be.
    ///
    /// # Errors
    /// How it ends instead: it has expired, or its program is elsewhere than the pool allows.
    pub(super) async fn check(&self, now: Timestamp) -> Result<(), (Status, Refusal)> {
        if let Some(refusal) = self.expired(now) {
            return Err((Status::Expired, refusal));
        }
        let place = self.check_place().await;
        place.map_err(|refusal| (Status::Rejected, refusal))
    }

    /// The refusal of a job that is to start too late.
    pub(super) fn expired(&self, now: Timestamp) -> Option<Refusal> {
        let expires_at = self.expires_at.filter(|expires_at| *expires_at <= now)?;
        Some(Refusal {
            kind: FailureKind::Expired,
            field: Some("expires_at".to_owned()),
            message: format!("expired at {expires_at}, before it could start"),
        })
    }

    /// Waits until it is too late to start.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn expiry(&self) {
        let Some(expires_at) = self.expires_at else {
            return std::future::pending().await;
        };
        // A clock that is set back is asked again.
        while let Ok(left) = Duration::try_from(expires_at.duration_since(Timestamp::now()))
            && !left.is_zero()
        {
            tokio::time::sleep(left).await;
        }
    }

    /// Follows the links of a restricted pool's program.
    ///
    /// # Errors
    /// The refusal of a job whose program is elsewhere than the pool allows.
    async fn check_place(&self) -> Result<(), Refusal> {
        let Some(allowed) = self.allowed.clone() else {
            return Ok(());
        };
        let text = |word: &OsString| word.to_string_lossy().into_owned(); // they were JSON
        let (program, args) = (
            text(&self.run.program),
            self.run.args.iter().map(text).collect::<Vec<_>>(),
        );
        tokio::task::spawn_blocking(move || allowed.check_place(&program, &args))
            .await
            .expect("looking at a path does not panic")
            .map_err(|error| refuse(FailureKind::Policy, error))
    }
}

/// Decides what to do with a delivery.
pub(super) fn admit(pool: &Pool, envelope: &Envelope, redelivered: bool, now: Timestamp) -> (Ticket, Admission) {
    let properties = &envelope.properties;
    let (ticket, plan) = match read(pool, envelope) {
        Ok(read) => read,
        Err(refusal) => {
            let id = peek_id(&envelope.body).filter(|_| pool.handler.is_none());
            return (Ticket::new(id, properties), Admission::End(Status::Rejected, refusal));
        }
    };
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
            trace: Trace::read(properties),
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
        field: Some(error.field).filter(|field| !field.is_empty()),
    }
}

/// Lays a job over its pool.
fn plan(pool: &Pool, job: &Job, properties: &Properties) -> Result<Plan, JobError> {
    let timeout = job.timeout.map_or(pool.timeout, Span::get);
    check_timeout(pool, timeout)?;
    let kill_grace = job.kill_grace.map_or(pool.kill_grace, Span::get);
    check_grace(pool, timeout, kill_grace)?;
    check_restricted(pool, job)?;
    let (program, args) = command_line(pool, job)?;
    let mut env = Environment::shared(&pool.env);
    env.extend(job.env.clone().unwrap_or_default());
    let run = Run {
        program,
        args,
        env,
        cwd: job.cwd.clone().or_else(|| pool.cwd.clone()),
        stdin: job.stdin_bytes(),
        timeout,
        term_signal: job.term_signal.unwrap_or(pool.term_signal),
        kill_grace,
        limits: job.limits.clone().unwrap_or_default().or(pool.limits.clone()),
        warning: warning(pool, job, timeout)?,
        leftovers: pool.leftovers,
        rights: pool.rights.clone(),
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
        is_live: job
            .output
            .as_ref()
            .and_then(|output| output.live)
            .unwrap_or(pool.output.live),
        expires_at: job.expires_at,
        allowed: pool.allowed.clone(),
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

/// A command that ignores its signal holds its slot for its grace as well.
fn check_grace(pool: &Pool, timeout: Duration, grace: Duration) -> Result<(), JobError> {
    let most = pool.max_timeout.saturating_add(pool.kill_grace);
    if timeout.saturating_add(grace) <= most {
        return Ok(());
    }
    let (max, got) = (Span::from(most.saturating_sub(timeout)), Span::from(grace));
    let message = format!(
        "expected at most {:?} (after the timeout, what is left of the pool's max_timeout and kill_grace), got {:?}",
        max.to_string(),
        got.to_string()
    );
    Err(JobError::new("kill_grace", message))
}

/// Refuses what a restricted pool does not run, and what could make another program of one that it does run: variables
/// such as `LD_PRELOAD` and `PATH`, of which no list is complete, and a directory, where many look for their settings.
fn check_restricted(pool: &Pool, job: &Job) -> Result<(), JobError> {
    let Some(allowed) = &pool.allowed else { return Ok(()) };
    let refused = |field, expected| Err(JobError::new(field, format!("{expected}: the pool is restricted")));
    let Work::Command { program, args } = job.work()? else {
        return refused("script", "expected command in its place");
    };
    if job.env.as_ref().is_some_and(|env| !env.is_empty()) {
        return refused(
            "env",
            "expected none, as the pool's own [env] is all that its programs get",
        );
    }
    if job.cwd.is_some() {
        return refused("cwd", "expected none, as programs run in the pool's own cwd");
    }
    if job.limits.as_ref().is_some_and(|limits| *limits != Limits::default()) {
        return refused("limits", "expected none, as the pool's own [limits] hold");
    }
    allowed.check(program, args)
}

/// The warning of a job's timeout. One that the job asks for has to fit; the pool's is left out where the job's timeout
/// is too short for it, as the job did not choose it.
fn warning(pool: &Pool, job: &Job, timeout: Duration) -> Result<Option<Warning>, JobError> {
    let signal = job.warn_signal.unwrap_or(pool.warn_signal);
    let warning = |before| Some(Warning { before, signal });
    match job.warn_before {
        None => Ok(pool.warn_before.filter(|before| *before < timeout).and_then(warning)),
        Some(before) if before.get() < timeout => Ok(warning(before.get())),
        Some(before) => Err(JobError::new(
            "warn_before",
            format!(
                r#"expected less than the pool's timeout ("{}"), as the job sets no longer one, got "{before}""#,
                Span::from(timeout)
            ),
        )),
    }
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
        env: Environment::shared(&pool.env),
        cwd: pool.cwd.clone(),
        stdin: envelope.body.clone().into(),
        timeout: pool.timeout,
        term_signal: pool.term_signal,
        kill_grace: pool.kill_grace,
        limits: pool.limits.clone(),
        warning: pool.warn_before.map(|before| Warning {
            before,
            signal: pool.warn_signal,
        }),
        leftovers: pool.leftovers,
        rights: pool.rights.clone(),
        max_output: pool.output.max_bytes,
    };
    let properties = &envelope.properties;
    Plan {
        run,
        retry: pool.retry.clone(),
        ready_at: not_before_header(properties),
        is_live: pool.output.live,
        expires_at: None,
        allowed: None, // the handler is the pool's own
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
        dead_letter_exit_codes: pool.retry.dead_letter_exit_codes.clone(),
    }
}

#[cfg(test)]
mod tests;
