//! A table a check.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use crate::message::PoolState;
use crate::transport::amqp::{Found, Presence};
use crate::transport::topology::Declare;

fn broker(text: &str) -> Option<Version> {
    Version::read(text)
}

fn pool(change: impl FnOnce(&mut Pool)) -> Vec<Pool> {
    let mut pool = Pool::default_pool();
    change(&mut pool);
    vec![pool]
}

/// What the findings say, each with its severity, and every one that is not ok with a remedy.
#[track_caller]
fn says(findings: &[Finding], severity: Severity, part: &str) {
    let is_it = |finding: &Finding| finding.severity == severity && finding.to_string().contains(part);
    assert!(findings.iter().any(is_it), "no {severity:?} {part:?} in {findings:#?}");
    for finding in findings {
        assert_eq!(finding.remedy.is_some(), finding.severity != Severity::Ok, "{finding}");
    }
}

#[test]
fn the_version_decides_what_there_is() {
    says(&version(broker("3.10.8").as_ref()), Severity::Ok, "RabbitMQ 3.10.8");
    says(
        &version(broker("3.9.27").as_ref()),
        Severity::Problem,
        "upgrade to RabbitMQ 3.10",
    );
    says(&version(None), Severity::Note, "does not say");
    says(&priority(broker("3.13.7").as_ref()), Severity::Note, "no effect");
    assert_eq!(priority(broker("4.0.1").as_ref()), []);
}

#[test]
fn the_consumer_timeout_is_held_against_the_longest_job() {
    let hours = |hours: u64| pool(|pool| pool.max_timeout = Duration::from_secs(hours * 3600));
    let minutes = pool(|pool| pool.max_timeout = Duration::from_secs(600));
    let check = |text, pools: &[Pool]| consumer_timeout(broker(text).as_ref(), pools);
    says(
        &check("3.10.8", &hours(24)),
        Severity::Note,
        "consumer_timeout = 86410000",
    );
    says(&check("3.11.28", &minutes), Severity::Ok, "may take");
    says(&check("3.12.0", &hours(24)), Severity::Ok, "queues allow");
    says(
        &check("3.12.0", &hours(24 * 7)),
        Severity::Problem,
        "lower the pool's max_timeout",
    );
    says(&consumer_timeout(None, &hours(24)), Severity::Note, "does not tell it");
}

#[test]
fn a_pool_may_allow_for_more_than_the_broker_takes() {
    let jobs = |bytes| pool(|pool| pool.max_job_bytes = bytes);
    let check = |text, pools: &[Pool]| message_size(broker(text).as_ref(), pools);
    says(&check("3.13.0", &jobs(20 << 20)), Severity::Ok, "128MiB");
    says(&check("4.0.0", &jobs(20 << 20)), Severity::Problem, "max_job_bytes");
    says(
        &check("3.10.8", &jobs(200 << 20)),
        Severity::Problem,
        "max_message_size",
    );
    let results = pool(|pool| pool.output.max_bytes = 9 << 20);
    says(&check("4.1.0", &results), Severity::Problem, "output.max_bytes");
}

fn found(presence: Presence) -> Vec<Found> {
    let (kind, name) = ("queue", "n.jobs.p".to_owned());
    let same = Found {
        kind: "exchange",
        name: "n.jobs".to_owned(),
        presence: Presence::Same,
    };
    vec![same, Found { kind, name, presence }]
}

#[test]
fn what_is_declared_is_held_against_what_is_to_be() {
    let (active, passive) = (pool(|_| {}), pool(|pool| pool.declare = Declare::Passive));
    says(&topology(&found(Presence::Same), &active), Severity::Ok, "2 of 2");
    says(
        &topology(&found(Presence::Missing), &active),
        Severity::Note,
        "n.jobs.p",
    );
    says(
        &topology(&found(Presence::Missing), &passive),
        Severity::Problem,
        "config apply",
    );
    let missing = |count: usize| {
        let one = |number| Found {
            kind: "queue",
            name: format!("n.q{number}"),
            presence: Presence::Missing,
        };
        let there = found(Presence::Same);
        topology(&[there, (1..=count).map(one).collect()].concat(), &active)
    };
    says(&missing(5), Severity::Note, "\"n.q4\", queue \"n.q5\"\n");
    says(&missing(31), Severity::Note, "queue \"n.q5\", and 26 more\n");
    let nothing = topology(&found(Presence::Missing)[1..], &active);
    says(&nothing, Severity::Note, "none of the 1 exchanges and queues is there");
    assert_eq!(nothing.len(), 1, "nor is all in order: {nothing:#?}");
    let differs = |argument: &str| {
        let words = format!("PRECONDITION_FAILED - inequivalent arg '{argument}' for queue 'n.jobs.p'");
        topology(&found(Presence::Differs(words)), &active)
    };
    for (argument, check) in [
        ("x-delivery-limit", "delivery_limit"),
        ("x-consumer-timeout", "consumer_timeout"),
        ("x-dead-letter-strategy", "arguments"),
    ] {
        let findings = differs(argument);
        says(&findings, Severity::Problem, "rabbitmqctl delete_queue n.jobs.p");
        assert_eq!(findings.last().unwrap().check, check);
    }
    let hidden = Presence::Hidden("ACCESS_REFUSED - access to queue refused".to_owned());
    says(
        &topology(&found(hidden), &passive),
        Severity::Note,
        "1 exchanges and queues",
    );
    let odd = Presence::Hidden("RESOURCE_LOCKED".to_owned());
    says(&topology(&found(odd), &active), Severity::Problem, "RESOURCE_LOCKED");
    let away = topology(
        &found(Presence::Unavailable("NOT_FOUND - home node".to_owned())),
        &active,
    );
    says(&away, Severity::Problem, "start its node");
    let advises_to_delete = |finding: &Finding| finding.remedy.as_deref().is_some_and(|it| it.contains("delete"));
    assert!(
        !away.iter().any(advises_to_delete),
        "its jobs would go with it: {away:?}"
    );
}

#[test]
fn each_paused_pool_is_noted_with_its_remedy() {
    let given = |by: Option<&str>| Given {
        at: Timestamp::UNIX_EPOCH,
        by: by.map(str::to_owned),
    };
    let mut standing = Standing::default();
    assert_eq!(pauses(&standing), []);
    let paused = [("a".to_owned(), given(Some("me@here"))), ("b".to_owned(), given(None))];
    standing.paused = paused.into();
    let found = pauses(&standing);
    says(
        &found,
        Severity::Note,
        "pool \"a\" is paused since 1970-01-01T00:00:00Z by me@here",
    );
    says(&found, Severity::Note, "synthex resume b");
}

#[test]
fn a_right_that_is_missing_is_named_with_what_grants_it() {
    let asked = |right| Asked {
        what: "publish to \"n.dead\"".to_owned(),
        patterns: "write \"n.dead\"".to_owned(),
        right,
    };
    says(&rights(&[asked(Right::Granted)]), Severity::Ok, "all 1");
    says(
        &rights(&[asked(Right::Granted), asked(Right::Nothing)]),
        Severity::Ok,
        "1 cannot be told",
    );
    let refused = rights(&[asked(Right::Refused("no".to_owned())), asked(Right::Granted)]);
    says(&refused, Severity::Problem, "give it write \"n.dead\"");
    assert_eq!(refused.len(), 1);
}

fn worker(clock: Option<Timestamp>, pool: &str) -> WorkerState {
    WorkerState {
        id: "w".to_owned(),
        host: "h".to_owned(),
        version: "0".to_owned(),
        started_at: Timestamp::UNIX_EPOCH,
        draining: false,
        clock,
        pools: vec![PoolState {
            pool: pool.to_owned(),
            slots: 1,
            running: 0,
            in_hand: 0,
            paused: false,
            consuming: true,
            started: None,
            finished: BTreeMap::new(),
        }],
    }
}

#[test]
fn each_pool_has_a_worker() {
    says(
        &workers(&[worker(None, "default")], &pool(|_| {})),
        Severity::Ok,
        "serve every pool",
    );
    says(
        &workers(&[worker(None, "other")], &pool(|_| {})),
        Severity::Note,
        "none serves pool \"default\"",
    );
}

#[test]
fn clocks_may_differ_by_two_seconds() {
    let at = |millis: i64| Timestamp::from_millisecond(1_900_000_000_000 + millis).unwrap();
    let of_worker = |millis| clocks_of_workers(&[worker(Some(at(millis)), "p")], at(0), at(1_000));
    for agrees in [-2_000, 0, 500, 3_000] {
        says(&of_worker(agrees), Severity::Ok, "worker w agrees");
    }
    says(&of_worker(-3_500), Severity::Problem, "3.5 s behind ours");
    says(&of_worker(61_000), Severity::Problem, "60.0 s ahead of ours");
    assert_eq!(
        clocks_of_workers(&[worker(None, "p")], at(0), at(1)),
        [],
        "one of an earlier version"
    );

    let of_broker = |millis| {
        let (at, window) = (at(millis), (at(900), at(1_000)));
        clock_of_broker(&Ok(Clock { at, window }))
    };
    says(&of_broker(0), Severity::Ok, "the broker's clock agrees");
    says(&of_broker(-3_000), Severity::Problem, "behind ours");
    says(&clock_of_broker(&Err("no".to_owned())), Severity::Note, "not known");
}

#[test]
fn this_machine_may_have_nothing_to_hold_commands_by() {
    let unlimited = pool(|_| {});
    let limited = pool(|pool| pool.limits.processes = std::num::NonZero::new(5));
    says(
        &cgroup(&Ok(CgroupSupport::None), &unlimited),
        Severity::Note,
        "--cgroup",
    );
    says(
        &cgroup(&Ok(CgroupSupport::None), &limited),
        Severity::Note,
        "pool \"default\"",
    );
    says(&cgroup(&Err("no".to_owned()), &limited), Severity::Problem, "no");
    let group = |lacks| {
        let path = PathBuf::from("/sys/fs/cgroup/x");
        cgroup(&Ok(CgroupSupport::Delegated { path, lacks }), &limited)
    };
    says(&group(vec![]), Severity::Ok, "/sys/fs/cgroup/x");
    says(&group(vec!["memory"]), Severity::Note, "lacks memory");

    let writable = pool(|pool| pool.rights.writable = Some(vec!["/tmp".into()]));
    says(&landlock(Some(3), &writable), Severity::Ok, "ABI 3");
    says(&landlock(Some(2), &writable), Severity::Note, "truncate");
    says(&landlock(Some(1), &writable), Severity::Note, "rename");
    says(&landlock(Some(1), &unlimited), Severity::Ok, "ABI 1");
    says(&landlock(None, &unlimited), Severity::Note, "no pool here needs it");
    says(&landlock(None, &writable), Severity::Problem, "starts none");
}

#[test]
fn a_finding_is_a_line_and_its_remedy_another() {
    let finding = Finding::problem("clock", "it is late", "set it");
    let expected = "PROBLEM  clock             it is late\n                           do: set it";
    assert_eq!(finding.to_string(), expected);
    assert_eq!(
        Finding::ok("clock", "it is right").to_string(),
        "ok       clock             it is right"
    );
}
