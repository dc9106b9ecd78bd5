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
        stdin: envelope.body.clone(),
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::executor::{Leftovers, Rights};
    use crate::message::HeaderValue;

    fn pool() -> Pool {
        let mut pool = Pool::default_pool();
        pool.delivery_limit = 3;
        let env = [("A".to_owned(), "pool".to_owned()), ("B".to_owned(), "pool".to_owned())];
        pool.env = std::sync::Arc::new(BTreeMap::from(env).into());
        pool
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn envelope(body: &Value) -> Envelope {
        Envelope {
            body: Bytes::from(body.to_string()),
            properties: Properties::default(),
        }
    }

    #[tokio::test]
    async fn a_plan_tells_when_it_is_too_late() {
        let expires_at = Timestamp::now() + Duration::from_millis(30);
        let pool = pool();
        let body = envelope(&json!({"command": ["true"], "expires_at": expires_at}));
        let Admission::Run(plan) = admit(&pool, &body, false, Timestamp::now()).1 else {
            panic!("it is early enough");
        };
        plan.expiry().await;
        assert!(plan.expired(Timestamp::now()).is_some());
    }

    fn plan_of(pool: &Pool, body: &Value) -> Plan {
        match admit(pool, &envelope(body), false, now()).1 {
            Admission::Run(plan) => *plan,
            other => panic!("{other:?}"),
        }
    }

    fn end_of(admission: Admission) -> (Status, Refusal) {
        match admission {
            Admission::End(status, refusal) => (status, refusal),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_is_laid_over_its_pool() {
        let body = json!({"command": ["prog", "arg"], "env": {"B": "job", "C": "job"}, "timeout": "2s", "stdin": "in"});
        let run = plan_of(&pool(), &body).run;
        assert_eq!((run.program, run.args), ("prog".into(), vec!["arg".into()]));
        let env: Vec<_> = run.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(env, ["A=pool", "B=job", "C=job"]);
        assert_eq!(
            (run.timeout, run.kill_grace),
            (Duration::from_secs(2), pool().kill_grace)
        );
        assert_eq!(run.stdin, "in");
        assert_eq!(run.max_output, pool().output.max_bytes);
    }

    #[test]
    fn a_script_goes_to_the_shell_as_one_argument() {
        let run = plan_of(&pool(), &json!({"script": "echo $A | wc"})).run;
        assert_eq!(
            (run.program, run.args),
            ("/bin/bash".into(), vec!["-c".into(), "echo $A | wc".into()])
        );
    }

    /// The seconds before the timeout and the number of the signal of a job's warning.
    fn warned(pool: &Pool, body: &Value) -> Option<(u64, i32)> {
        let warning = plan_of(pool, body).run.warning?;
        Some((warning.before.as_secs(), warning.signal.number()))
    }

    #[test]
    fn a_warning_is_the_jobs_else_the_pools_where_that_fits() {
        let mut pool = pool();
        assert_eq!(warned(&pool, &json!({"command": ["x"]})), None);
        assert_eq!(warned(&pool, &json!({"command": ["x"], "warn_signal": "INT"})), None);
        assert_eq!(
            warned(&pool, &json!({"command": ["x"], "warn_before": "9s"})),
            Some((9, 10))
        );
        pool.warn_before = Some(Duration::from_secs(60));
        assert_eq!(warned(&pool, &json!({"command": ["x"]})), Some((60, 10)));
        let own = json!({"command": ["x"], "timeout": "30s", "warn_before": "29999ms", "warn_signal": "HUP"});
        assert_eq!(warned(&pool, &own), Some((29, 1)));
        for timeout in ["60s", "1s"] {
            let short = json!({"command": ["x"], "timeout": timeout, "warn_signal": "HUP"});
            assert_eq!(warned(&pool, &short), None, "not the job's choice, so not its fault");
        }
    }

    #[test]
    fn a_warning_that_a_job_asks_for_has_to_come_before_the_timeout() {
        let mut pool = pool();
        pool.timeout = Duration::from_secs(10);
        let refused = |body: Value| end_of(admit(&pool, &envelope(&body), false, now()).1).1;
        let by_pool = refused(json!({"command": ["x"], "warn_before": "10s"}));
        assert_eq!(
            (by_pool.kind, by_pool.field.as_deref()),
            (FailureKind::Policy, Some("warn_before"))
        );
        assert_eq!(
            by_pool.message,
            r#"warn_before: expected less than the pool's timeout ("10s"), as the job sets no longer one, got "10s""#
        );
        let by_itself = refused(json!({"command": ["x"], "warn_before": "3s", "timeout": "2s"}));
        assert_eq!(by_itself.kind, FailureKind::InvalidJob);
        assert_eq!(
            by_itself.message,
            r#"warn_before: expected less than timeout ("2s"), got "3s""#
        );
        let run = plan_of(
            &pool,
            &json!({"command": ["x"], "warn_before": "10s", "timeout": "11s"}),
        )
        .run;
        assert!(run.warning.is_some());
    }

    #[test]
    fn what_a_command_may_do_and_leave_is_the_pools_choice() {
        let mut pool = pool();
        let run = plan_of(&pool, &json!({"command": ["x"]})).run;
        assert_eq!((run.leftovers, run.rights), (Leftovers::Kill, Rights::default()));
        pool.leftovers = Leftovers::Allow;
        pool.rights = Rights {
            umask: Some(0o27),
            may_gain: true,
            writable: Some(vec!["/srv".into()]),
            ..Rights::default()
        };
        pool.warn_before = Some(Duration::from_secs(5));
        let of_job = plan_of(&pool, &json!({"command": ["x"]})).run;
        pool.handler = Some(vec!["handle".to_owned()]);
        let of_handler = plan_of(&pool, &json!({})).run;
        for run in [of_job, of_handler] {
            assert_eq!((run.leftovers, &run.rights), (Leftovers::Allow, &pool.rights));
            assert_eq!(run.warning.map(|warning| warning.before), pool.warn_before);
        }
    }

    #[test]
    fn a_handler_gets_any_body_unread() {
        let mut pool = pool();
        pool.handler = Some(vec!["handle".to_owned(), "-v".to_owned()]);
        let mut job = envelope(&json!({"id": "not-read", "timeout": 5}));
        job.properties.content_type = Some("image/png".to_owned());
        let (ticket, admission) = admit(&pool, &job, false, now());
        let Admission::Run(plan) = admission else {
            panic!("{admission:?}")
        };
        assert_eq!((plan.run.program, plan.run.args), ("handle".into(), vec!["-v".into()]));
        assert_eq!(plan.run.stdin, job.body);
        assert_ne!(ticket.job_id.as_str(), "not-read");
    }

    #[test]
    fn the_id_is_the_bodys_then_the_propertys_then_a_new_one() {
        let id = |body: Value, property: Option<&str>| {
            let mut job = envelope(&body);
            job.properties.message_id = property.map(str::to_owned);
            admit(&pool(), &job, false, now()).0.job_id.to_string()
        };
        assert_eq!(id(json!({"command": ["x"], "id": "body"}), Some("property")), "body");
        assert_eq!(id(json!({"command": ["x"]}), Some("property")), "property");
        assert_eq!(id(json!({"command": ["x"]}), Some("not an id")).len(), 36);
        assert_eq!(
            id(json!({"command": [], "id": "body"}), Some("property")),
            "body",
            "of a bad job too"
        );
        assert_eq!(id(json!({"command": []}), Some("property")), "property");
        assert_eq!(id(json!({"command": []}), None).len(), 36);
    }

    #[test]
    fn what_is_no_job_of_this_pool_is_rejected_with_the_field() {
        let mut pool = pool();
        pool.max_job_bytes = 80;
        let long = "x".repeat(100);
        for (body, kind, message) in [
            (
                json!({"command": ["x"], "timeout": "25h"}),
                FailureKind::Policy,
                r#"timeout: expected at most "24h""#,
            ),
            (
                json!({"command": ["x"], "timeout": "24h", "kill_grace": "11s"}),
                FailureKind::Policy,
                r#"kill_grace: expected at most "10s""#,
            ),
            (json!({"command": ["x"], "nope": 1}), FailureKind::InvalidJob, "nope: "),
            (
                json!({"script": long}),
                FailureKind::TooLarge,
                "body: expected at most 80 bytes",
            ),
        ] {
            let (status, refusal) = end_of(admit(&pool, &envelope(&body), false, now()).1);
            assert_eq!((status, refusal.kind), (Status::Rejected, kind), "{body}");
            assert!(refusal.message.starts_with(message), "{}", refusal.message);
        }
        let mut job = envelope(&json!({"command": ["x"]}));
        job.properties.content_type = Some("text/plain".to_owned());
        let (status, refusal) = end_of(admit(&pool, &job, false, now()).1);
        assert_eq!((status, refusal.kind), (Status::Rejected, FailureKind::ContentType));
        assert_eq!(refusal.field.as_deref(), Some("content_type"));
    }

    /// A pool that runs `/bin/echo` with small letters.
    fn restricted() -> Pool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("restricted.toml");
        std::fs::write(&path, "restricted = true\nallow.'/bin/echo' = ['[a-z]+']\n").unwrap();
        crate::config::load(&path, &crate::config::Overrides::default())
            .unwrap()
            .pool
    }

    #[test]
    fn a_restricted_pool_refuses_all_that_could_run_something_else() {
        for (body, field) in [
            (json!({"script": "/bin/echo hi"}), "script"),
            (
                json!({"command": ["/bin/echo", "hi"], "env": {"LD_PRELOAD": "/tmp/x.so"}}),
                "env",
            ),
            (json!({"command": ["/bin/echo", "hi"], "env": {"A": ""}}), "env"),
            (json!({"command": ["/bin/echo", "hi"], "cwd": "/tmp"}), "cwd"),
            (
                json!({"command": ["/bin/echo", "hi"], "limits": {"memory": "1TiB"}}),
                "limits",
            ),
            (json!({"command": ["echo", "hi"]}), "command[0]"),
            (json!({"command": ["/bin/sh", "-c", "hi"]}), "command[0]"),
            (json!({"command": ["/bin/../bin/echo", "hi"]}), "command[0]"),
            (json!({"command": ["/bin/echo", "hi", "$(id)"]}), "command[2]"),
        ] {
            let (status, refusal) = end_of(admit(&restricted(), &envelope(&body), false, now()).1);
            assert_eq!(
                (status, refusal.kind),
                (Status::Rejected, FailureKind::Policy),
                "{body}"
            );
            assert_eq!(refusal.field.as_deref(), Some(field), "{body}");
            assert!(
                refusal.message.starts_with(&format!("{field}: expected ")),
                "{}",
                refusal.message
            );
        }
        let allowed = json!({"command": ["/bin/echo", "hi"], "env": {}, "stdin": "; rm -rf /", "timeout": "1s"});
        assert_eq!(plan_of(&restricted(), &allowed).run.program, "/bin/echo");
    }

    #[test]
    fn a_redelivered_job_is_counted_and_at_the_limit_lost_but_never_started() {
        let mut job = envelope(&json!({"command": ["x"]}));
        for _ in 1..3 {
            let (ticket, admission) = admit(&pool(), &job, true, now());
            assert!(matches!(admission, Admission::Recount), "{admission:?}");
            ticket.attempt.after_redelivery().write(&mut job.properties);
        }
        let (status, refusal) = end_of(admit(&pool(), &job, true, now()).1);
        assert_eq!((status, refusal.kind), (Status::Lost, FailureKind::DeliveryLimit));
        assert!(refusal.message.starts_with("delivered 3 times"), "{}", refusal.message);
        assert!(
            matches!(admit(&pool(), &job, false, now()).1, Admission::Run(_)),
            "not redelivered"
        );
    }

    #[test]
    fn a_bad_job_that_comes_again_is_rejected_at_once() {
        let (status, _) = end_of(admit(&pool(), &envelope(&json!({})), true, now()).1);
        assert_eq!(status, Status::Rejected);
    }

    #[test]
    fn times_decide_between_waiting_running_and_expiring() {
        let admission = |body: Value| admit(&pool(), &envelope(&body), false, now()).1;
        let job = |field: &str, time: &str| json!({"command": ["x"], field: time});
        match admission(job("not_before", "2030-01-01T00:01:30Z")) {
            Admission::Wait(wait) => assert_eq!(wait, Duration::from_secs(90)),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            admission(job("not_before", "2029-12-31T23:59:59Z")),
            Admission::Run(_)
        ));
        assert!(matches!(
            admission(job("expires_at", "2030-01-01T00:00:01Z")),
            Admission::Run(_)
        ));
        let (status, refusal) = end_of(admission(job("expires_at", "2030-01-01T00:00:00Z")));
        assert_eq!((status, refusal.kind), (Status::Expired, FailureKind::Expired));
    }

    #[test]
    fn a_retry_waits_for_its_own_time_too() {
        let mut job = envelope(&json!({"command": ["x"]}));
        let later = HeaderValue::Text("2030-01-01T00:00:10Z".to_owned());
        job.properties.headers.insert(header::NOT_BEFORE.to_owned(), later);
        match admit(&pool(), &job, false, now()).1 {
            Admission::Wait(wait) => assert_eq!(wait, Duration::from_secs(10)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_jobs_choice_of_what_to_retry_replaces_the_pools() {
        let mut pool = pool();
        pool.retry.statuses = Some(vec![Status::TimedOut]);
        let retry = |body: Value| plan_of(&pool, &body).retry;
        let kept = retry(json!({"command": ["x"], "retry": {"max_attempts": 4}}));
        assert_eq!(
            (kept.max_attempts.get(), kept.statuses),
            (4, Some(vec![Status::TimedOut]))
        );
        let own = retry(json!({"command": ["x"], "retry": {"exit_codes": [75]}}));
        assert_eq!((own.statuses, own.exit_codes), (None, Some(vec![75])));
    }
}
