//! `synthex dead`: an operator looks at dead letters, runs their jobs again, and throws them away.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, assert_has};
use crate::support::cli::Finished;
use crate::support::process::{Signal, wait_until};

fn dead(bench: &Bench, args: &[&str], code: i32) -> Finished {
    let args = [&["dead"], args].concat();
    bench.synthex(&args).run().expect_code(code)
}

/// The ids of the jobs of all dead letters, in their order.
fn listed(bench: &Bench) -> Vec<String> {
    let id = |row: Value| row["job_id"].as_str().unwrap_or("none").to_owned();
    dead(bench, &["list", "--json"], 0)
        .json_lines()
        .into_iter()
        .map(id)
        .collect()
}

/// Three letters: of a job that failed as often as it may, of one that is none, and of one that no pool has.
fn with_letters() -> Bench {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let retry = json!({"max_attempts": 2, "initial": "10ms"});
    let script = format!("test -e {}", bench.path("mended").display());
    let failing = json!({"script": script, "retry": retry, "labels": {"team": "blue"}});
    bench.send("default", "failing", &failing);
    bench.replies(2);
    bench.waits_for("dead", 1); // so that they come in this order
    bench.send("default", "invalid", &json!({"script": "true", "comand": 1}));
    bench.reply();
    bench.waits_for("dead", 2);
    bench.send("nobody", "stray", &json!({"command": ["true"]}));
    bench.waits_for("dead", 3);
    worker.stop();
    bench
}

#[test]
fn dead_letters_are_listed_for_people_and_for_programs() {
    let bench = with_letters();
    let table = dead(&bench, &["list"], 0);
    assert_eq!(table.stderr, "");
    let rows: Vec<Vec<&str>> = table
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["JOB", "POOL", "REASON", "ATTEMPT", "FAILED", "AT", "ERROR"]);
    assert_eq!(rows[1][..4], ["failing", "default", "failed", "2"]);
    assert_eq!(rows[2][..4], ["invalid", "default", "rejected", "1"]);
    assert_eq!(rows[3][..5], ["stray", "nobody", "unroutable", "1", "-"]);
    assert_eq!(rows.len(), 4);

    let rows = dead(&bench, &["list", "--json"], 0).json_lines();
    assert_has(
        &rows[0],
        &json!({"job_id": "failing", "pool": "default", "reason": "failed", "error": "exited with code 1",
            "attempt": 2, "runs": 2, "labels": {"team": "blue"}}),
    );
    for time in ["queued_at", "failed_at"] {
        let text = rows[0][time].as_str().expect("a time is a text");
        assert!(text.parse::<jiff::Timestamp>().is_ok(), "{text}");
    }
    assert_has(&rows[1], &json!({"job_id": "invalid", "field": "comand", "runs": 0}));
    assert_has(
        &rows[2],
        &json!({"job_id": "stray", "pool": "nobody", "reason": "unroutable", "failed_at": null, "bytes": 20}),
    );

    let some: [(&[&str], &[&str]); 5] = [
        (&["--pool", "nobody"], &["stray"]),
        (&["--reason", "rejected"], &["invalid"]),
        (&["--reason", "rejected", "--pool", "nobody"], &[]),
        (&["--limit", "2"], &["failing", "invalid"]),
        (&["--pool", "default", "--limit", "1"], &["failing"]),
    ];
    for (flags, wanted) in some {
        let found = dead(&bench, &[&["list", "--json"], flags].concat(), 0);
        let found: Vec<Value> = found.json_lines().iter().map(|row| row["job_id"].clone()).collect();
        assert_eq!(found, wanted, "{flags:?}");
    }
    assert_eq!(
        listed(&bench),
        ["failing", "invalid", "stray"],
        "looking changes nothing"
    );
}

#[test]
fn a_dead_letter_is_shown_with_everything_that_is_known_of_it() {
    let bench = with_letters();
    let shown = dead(&bench, &["show", "invalid"], 0).stdout;
    let body = r#"{"comand":1,"script":"true"}"#;
    for line in [
        "job_id: invalid",
        "reason: rejected",
        "field: comand",
        "  message_id: invalid",
        "  x-synthex-reason: rejected",
        "body: 28 bytes",
        body,
    ] {
        assert!(shown.lines().any(|shown| shown == line), "no line {line:?} in\n{shown}");
    }

    bench.rabbit.publish(
        &bench.named("jobs"),
        "nobody",
        b"\xff\x00",
        &bench.properties("invalid"),
    );
    let both = dead(&bench, &["show", "invalid", "--json"], 0).json_lines();
    assert_eq!(both.len(), 2);
    assert_has(
        &both[0],
        &json!({"job_id": "invalid", "reason": "rejected", "body": body}),
    );
    assert_eq!(both[0]["properties"]["correlation_id"], "about invalid");
    assert_eq!(both[0]["headers"]["x-synthex-pool"], "default");
    assert_has(
        &both[1],
        &json!({"reason": "unroutable", "pool": "nobody", "body": null, "body_base64": "/wA="}),
    );
    let shown = dead(&bench, &["show", "invalid"], 0).stdout;
    assert!(shown.contains("body: 2 bytes that are no text; --json"), "{shown}");

    let missing = dead(&bench, &["show", "missing"], 1);
    assert_eq!(missing.stdout, "");
    for name in [bench.named("dead").as_str(), "\"missing\""] {
        assert!(missing.stderr.contains(name), "{}", missing.stderr);
    }
}

#[test]
fn a_dead_letter_that_is_retried_runs_again_from_its_first_attempt() {
    let bench = with_letters();
    std::fs::write(bench.path("mended"), "").expect("the folder is there");
    let rehearsed = dead(&bench, &["retry", "failing", "--dry-run"], 0);
    assert_eq!(rehearsed.stdout, "failing\n");
    assert!(rehearsed.stderr.contains("would"), "{}", rehearsed.stderr);
    assert_eq!(listed(&bench), ["failing", "invalid", "stray"]);

    let retried = dead(&bench, &["retry", "failing", "absent"], 1);
    assert_eq!(retried.stdout, "failing\n");
    assert!(retried.stderr.contains("1 dead letter\n"), "{}", retried.stderr);
    assert!(retried.stderr.contains("\"absent\""), "{}", retried.stderr);
    assert_eq!(listed(&bench), ["invalid", "stray"]);
    let _worker = bench.worker(&[]);
    let reply = bench.reply();
    assert_has(
        &reply.json(),
        &json!({"job_id": "failing", "attempt": 1, "status": "succeeded", "final": true}),
    );
    assert_eq!(reply.property("correlation_id"), "about failing");

    // A pool of the name is there now: what had no queue is run at last.
    let _nobody = bench.worker(&[&bench.pool("pool = \"nobody\"\n")]);
    let retried = dead(&bench, &["retry", "--reason", "unroutable", "--json"], 0);
    assert_has(&retried.json_lines()[0], &json!({"job_id": "stray", "pool": "nobody"}));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "stray", "status": "succeeded"}),
    );
}

#[test]
fn a_retry_for_a_pool_without_a_queue_is_refused_by_name() {
    let bench = with_letters();
    for flags in [
        &["--all"][..],
        &["stray"],
        &["--pool", "nobody"],
        &["--all", "--dry-run"],
    ] {
        let refused = dead(&bench, &[&["retry"], flags].concat(), 78);
        assert_eq!(refused.stdout, "");
        let queue = bench.named("jobs.nobody");
        assert!(refused.stderr.contains(&format!("{queue:?}")), "{}", refused.stderr);
    }
    assert_eq!(listed(&bench), ["failing", "invalid", "stray"]);
    assert_eq!(bench.ready("jobs.default"), 0, "nothing was published");
}

#[test]
fn dead_letters_are_dropped_as_they_were_selected() {
    let bench = with_letters();
    let rehearsed = dead(&bench, &["drop", "--all", "--dry-run"], 0);
    assert_eq!(rehearsed.stdout, "failing\ninvalid\nstray\n");
    assert_eq!(dead(&bench, &["drop", "--reason", "rejected"], 0).stdout, "invalid\n");
    assert_eq!(listed(&bench), ["failing", "stray"]);
    let dropped = dead(&bench, &["drop", "--all"], 0);
    assert_eq!(dropped.stdout, "failing\nstray\n");
    assert!(dropped.stderr.contains("dropped 2 dead letters"), "{}", dropped.stderr);
    assert_eq!(dead(&bench, &["drop", "--all"], 0).stdout, "");

    let none = dead(&bench, &["list"], 0);
    assert_eq!(none.stdout, "");
    assert!(none.stderr.contains(&bench.named("dead")), "{}", none.stderr);
    assert_eq!(bench.ready("jobs.default"), 0, "what is dropped is not run");
}

#[test]
fn a_broker_without_dead_letters_is_told_from_one_that_is_not_there() {
    let mut bench = Bench::new();
    let missing = dead(&bench, &["list"], 78);
    assert!(missing.stderr.contains(&bench.named("dead")), "{}", missing.stderr);
    assert!(missing.stderr.contains("config apply"), "{}", missing.stderr);

    bench.url = "amqp://guest:hush@127.0.0.1:1/%2f".to_owned();
    let away = dead(&bench, &["list", "--connect-timeout", "2s"], 69);
    assert!(away.stderr.contains("127.0.0.1:1"), "{}", away.stderr);
    assert!(!away.stderr.contains("hush"), "{}", away.stderr);
}

/// Retries dead letters with these ids, and kills that; `None` where it was done first.
fn killed_in_the_middle(ids: &BTreeSet<String>) -> Option<(Bench, Finished)> {
    let bench = Bench::new();
    bench.synthex(&["config", "apply"]).run().expect_code(0);
    for id in ids {
        let properties = json!({"message_id": id, "delivery_mode": 2, "headers": {"x-synthex-reason": "failed"}});
        bench.rabbit.publish(
            &bench.named("dead"),
            "default",
            br#"{"command": ["true"]}"#,
            &properties,
        );
    }
    let retrying = bench.synthex(&["dead", "retry", "--all"]).spawn();
    retrying.wait_for_stdout_line(|line| line.contains("job-"));
    retrying.signal(Signal::KILL);
    let killed = retrying.wait();
    assert!(killed.code == Some(0) || killed.signal == Some(9), "{killed:#?}");
    let there = || bench.ready("dead") + bench.ready("jobs.default");
    wait_until(PATIENCE, "each job is a dead letter or submitted", || there() >= 200);
    (bench.ready("dead") > 0).then_some((bench, killed))
}

#[test]
fn a_retry_that_is_killed_loses_no_job() {
    let ids: BTreeSet<String> = (0..200).map(|number| format!("job-{number}")).collect();
    let tried = (0..10).find_map(|_| killed_in_the_middle(&ids));
    let (bench, killed) = tried.expect("one of them is killed in the middle");
    assert_eq!(killed.signal, Some(9), "{killed:#?}");
    let id = |message: &crate::bench::Received| message.property("message_id").to_owned();
    let letters: BTreeSet<String> = listed(&bench).into_iter().collect();
    let jobs: Vec<String> = (0..bench.ready("jobs.default"))
        .map(|_| id(&bench.rabbit.get(&bench.named("jobs.default"))))
        .collect();
    let submitted: BTreeSet<String> = jobs.iter().cloned().collect();
    assert!(
        !letters.is_empty() && !submitted.is_empty(),
        "it was killed in the middle"
    );
    assert_eq!(submitted.len(), jobs.len(), "no job was submitted twice");
    assert_eq!(letters.union(&submitted).cloned().collect::<BTreeSet<_>>(), ids);
    for told in killed.stdout.lines() {
        assert!(submitted.contains(told), "{told} was told of and is not there");
    }
}
