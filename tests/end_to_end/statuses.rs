//! Every job ends with one honest reason: the same word in the body, in `type` and in the routing key.
//!
//! `lost` is in `redelivery`, the many ways to be `rejected` are in `bad_messages`.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, Received, Worker, assert_has};

/// Runs one job and gives its result.
fn run(bench: &Bench, id: &str, job: &Value) -> Value {
    bench.send("default", id, job);
    checked(id, &bench.reply(), &bench.result())
}

/// Runs jobs at the same time and gives their results.
fn run_all<const N: usize>(bench: &Bench, jobs: [(&str, Value); N]) -> [Value; N] {
    for (id, job) in &jobs {
        bench.send("default", id, job);
    }
    let by_id = |next: &dyn Fn() -> Received| {
        let received = (0..N).map(|_| next());
        received
            .map(|message| (message.property("message_id").to_owned(), message))
            .collect::<BTreeMap<_, _>>()
    };
    let (replies, results) = (by_id(&|| bench.reply()), by_id(&|| bench.result()));
    jobs.map(|(id, _)| {
        let message = format!("{id}/1");
        checked(id, &replies[&message], &results[&message])
    })
}

/// The result of a job as the one who asked got it, checked against what all others got.
fn checked(id: &str, reply: &Received, result: &Received) -> Value {
    assert_eq!(reply.json(), result.json());
    let found = reply.json();
    let status = found["status"].as_str().expect("a result has a status");
    assert_eq!(result.routing_key, format!("default.{status}"));
    for message in [reply, result] {
        assert_eq!(message.property("type"), status);
        assert_eq!(message.property("message_id"), format!("{id}/1"));
        assert_eq!(message.property("correlation_id"), format!("about {id}"));
        assert_eq!(message.property("content_type"), "application/json");
    }
    assert_has(&found, &json!({"job_id": id, "attempt": 1, "final": true}));
    found
}

fn listening() -> (Bench, Worker) {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    (bench, worker)
}

#[test]
fn an_exit_code_is_succeeded_or_failed() {
    let (bench, _worker) = listening();
    let found = run(&bench, "well", &json!({"command": ["true"]}));
    assert_has(
        &found,
        &json!({"status": "succeeded", "exit_code": 0, "signal": null, "error": null}),
    );
    let found = run(&bench, "badly", &json!({"script": "echo so far; exit 3"}));
    assert_has(&found, &json!({"status": "failed", "exit_code": 3, "signal": null}));
    assert_eq!(found["stdout"]["text"], "so far\n");
    assert_eq!(bench.ready("dead"), 0, "a plain failure is a result, no dead letter");
}

#[test]
fn a_signal_that_synthex_did_not_send_is_named() {
    let (bench, _worker) = listening();
    let found = run(&bench, "by-itself", &json!({"script": "echo so far; kill -USR1 $$"}));
    assert_has(
        &found,
        &json!({"status": "signaled", "exit_code": null, "signal": "SIGUSR1"}),
    );
    assert_eq!(found["error"]["kind"], "signaled");
    assert_eq!(found["stdout"]["text"], "so far\n");
}

#[test]
fn a_job_that_times_out_keeps_its_output_so_far() {
    let bench = Bench::new();
    let _worker = bench.worker(&["--slots", "3"]);
    bench.listen();
    // Who cleans up and exits well has timed out all the same; who ignores the signal is killed after the grace.
    let cleans_up = "trap 'echo cleaned up; exit 0' TERM; echo ready; sleep 120 & wait";
    let ignores = "trap '' TERM; sleep 120";
    // Long enough to say something first.
    let [late, tidy, stubborn] = run_all(
        &bench,
        [
            (
                "late",
                json!({"script": "echo so far; exec sleep 120", "timeout": "15s"}),
            ),
            (
                "tidy",
                json!({"script": cleans_up, "timeout": "15s", "kill_grace": "1m"}),
            ),
            (
                "stubborn",
                json!({"script": ignores, "timeout": "15s", "kill_grace": "200ms"}),
            ),
        ],
    );
    assert_has(
        &late,
        &json!({"status": "timed_out", "exit_code": null, "signal": "SIGTERM"}),
    );
    assert_eq!(late["error"]["kind"], "timed_out");
    assert_eq!(late["stdout"]["text"], "so far\n");
    let took = late["duration_ms"].as_u64().expect("a run has a duration");
    assert!((15_000..45_000).contains(&took), "{took} ms");
    assert_has(&tidy, &json!({"status": "timed_out", "exit_code": 0}));
    assert_eq!(tidy["stdout"]["text"], "ready\ncleaned up\n");
    assert_has(&stubborn, &json!({"status": "timed_out", "signal": "SIGKILL"}));
}

#[test]
fn an_expired_job_is_not_started() {
    let (bench, worker) = listening();
    let mark = bench.path("mark");
    let job = json!({"command": ["touch", mark], "expires_at": "2020-01-01T00:00:00Z"});
    let found = run(&bench, "stale", &job);
    assert_has(
        &found,
        &json!({"status": "expired", "exit_code": null, "started_at": null, "duration_ms": 0}),
    );
    assert_eq!(found["error"]["kind"], "expired");
    assert!(!mark.exists(), "it was started");
    assert!((worker.metric(r#"synthex_jobs_started_total{pool="default"}"#) - 0.0).abs() < 0.5);
}

#[test]
fn a_command_that_cannot_be_started_says_why() {
    let (bench, _worker) = listening();
    let text = bench.path("text");
    fs::write(&text, "no program").expect("the folder is there");
    let cases = [
        (
            "missing",
            json!({"command": ["no-such-program"]}),
            "program_missing",
            "no-such-program",
        ),
        ("text", json!({"command": [text]}), "not_executable", "text"),
        (
            "nowhere",
            json!({"command": ["true"], "cwd": "/no/such/folder"}),
            "cwd_missing",
            "/no/such/folder",
        ),
    ];
    for (id, job, kind, named) in cases {
        let found = run(&bench, id, &job);
        assert_has(
            &found,
            &json!({"status": "not_started", "exit_code": null, "started_at": null}),
        );
        assert_eq!(found["error"]["kind"], kind);
        let message = found["error"]["message"].as_str().expect("an error has a message");
        assert!(message.contains(named), "{message}");
    }
}

#[test]
fn a_command_is_told_of_its_job_and_of_nothing_else() {
    let bench = Bench::new();
    let args = ["worker", "--metrics-addr", "127.0.0.1:0"];
    let running = bench.synthex(&args).env("OF_THE_WORKER", "secret").spawn();
    let _worker = Worker::ready(running, 1);
    bench.listen();
    let job = json!({"command": ["env"], "env": {"OF_THE_JOB": "a b"}, "timeout": "90s"});
    let before = jiff::Timestamp::now().as_millisecond();
    let found = run(&bench, "curious", &job);
    let text = found["stdout"]["text"].as_str().expect("the environment is text");
    let mut variables: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();

    let deadline: jiff::Timestamp = variables
        .remove("SYNTHEX_DEADLINE")
        .expect("it is there")
        .parse()
        .expect("RFC 3339");
    let started: jiff::Timestamp = found["started_at"].as_str().expect("it ran").parse().expect("RFC 3339");
    let counted_from = deadline.as_millisecond() - 90_000;
    assert!(
        (before..=started.as_millisecond()).contains(&counted_from),
        "the deadline {deadline} is not counted from just before {started}"
    );
    let wanted = [
        ("LANG", "C.UTF-8"),
        ("OF_THE_JOB", "a b"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("SYNTHEX_ATTEMPT", "1"),
        ("SYNTHEX_JOB_ID", "curious"),
        ("SYNTHEX_POOL", "default"),
    ];
    assert_eq!(variables, BTreeMap::from(wanted));
}
