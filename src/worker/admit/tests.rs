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
        body: body.to_string().into(),
        properties: Properties::default(),
    }
}

#[tokio::test]
async fn a_plan_tells_when_it_is_too_late() {
    let now = Timestamp::now();
    let pool = pool();
    let body = envelope(&json!({"command": ["true"], "expires_at": now + Duration::from_millis(30)}));
    let Admission::Run(plan) = admit(&pool, &body, false, now).1 else {
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
    assert_eq!(plan.run.stdin, *job.body);
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
