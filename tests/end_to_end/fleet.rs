//! What is shown of a fleet: pools, workers and jobs, as tables and as JSON that its schema describes.

use serde_json::{Value, json};

use crate::bench::{Bench, Gate, ask_until, assert_has};
use crate::support::schema;

/// Whether `synthex schema fleet` describes a value as this one of its kinds.
#[track_caller]
pub fn assert_described(value: &Value, kind: &str) {
    schema::assert_described(value, "fleet", Some(kind));
}

/// What a command prints as JSON, an object a line.
fn json(bench: &Bench, args: &[&str]) -> Vec<Value> {
    let args = [args, &["--json"]].concat();
    bench.synthex(&args).run().expect_code(0).json_lines()
}

/// What it prints once that is so many lines.
#[track_caller]
fn rows(bench: &Bench, args: &[&str], count: usize) -> Vec<Value> {
    ask_until(|| json(bench, args), |rows| rows.len() == count)
}

#[test]
fn pools_workers_and_jobs_are_listed_and_none_of_a_commands_secrets() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1", "--prefetch", "2"]);
    bench.listen();
    bench.send("default", "done", &json!({"script": "exit 3"}));
    bench.reply();
    let id = format!("runs-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    let mut job = gate.job();
    job["env"] = json!({"TOKEN": "hunter2"});
    job["stdin"] = "hunter2".into();
    job["labels"] = json!({"team": "blue"});
    bench.send("default", &id, &job);
    gate.started();
    let secret = json!({"command": ["/usr/bin/env", "--password=hunter2"]});
    bench.send("default", "waits", &secret);
    worker.metric_becomes(r#"synthex_unacked{pool="default"}"#, 2.0);
    for id in ["queued-1", "queued-2"] {
        bench.send("default", id, &json!({"command": ["true"]}));
    }
    bench.waits_for("jobs.default", 2);

    let pool = json!({"pool": "default", "ready": 2, "unacked": 2, "running": 1, "slots": 1, "workers": 1,
        "consuming": 1, "paused": false, "finished": {"failed": 1}});
    let pools = rows(&bench, &["pools", "--wait", "600ms"], 1);
    assert_described(&pools[0], "PoolRow");
    assert_has(&pools[0], &pool);

    let jobs = rows(&bench, &["jobs", "--wait", "600ms"], 2);
    let ids: Vec<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).collect();
    assert_eq!(ids, [id.as_str(), "waits"], "those that run come first");
    jobs.iter().for_each(|job| assert_described(job, "JobRow"));
    assert_has(
        &jobs[0],
        &json!({"state": "running", "program": "/bin/bash", "attempt": 1, "labels": {"team": "blue"}}),
    );
    assert!(jobs[0]["started_at"].is_string() && jobs[0]["deadline"].is_string());
    assert_has(
        &jobs[1],
        &json!({"state": "waiting", "program": "/usr/bin/env", "started_at": null}),
    );
    rows(&bench, &["jobs", "--state", "waiting", "--wait", "600ms"], 1);
    let name = jobs[0]["worker"].as_str().expect("it is named");
    let of_worker = ["jobs", "--json", "--worker", name, "--wait", "600ms"];
    ask_until(
        || bench.synthex(&of_worker).run(),
        |answer| answer.code == Some(0) && answer.json_lines().len() == 2,
    );

    let workers = rows(&bench, &["workers", "--wait", "600ms"], 1);
    assert_described(&workers[0], "WorkerState");
    let snapshot = ask_until(
        || json(&bench, &["top", "--once", "--interval", "100ms"]),
        |seen| seen[0]["jobs"].as_array().map(Vec::len) == Some(2) && seen[0]["pools"][0]["rate"] == 0.0,
    );
    assert_described(&snapshot[0], "Snapshot");
    assert!(!format!("{jobs:?}{snapshot:?}").contains("hunter2"), "{jobs:?}");

    the_table_is_plain(&bench, &id);
    gate.open();
    worker.stop();
}

/// `top --once`, with the job that runs and its pool.
fn the_table_is_plain(bench: &Bench, id: &str) {
    let top = || bench.synthex(&["top", "--once", "--interval", "100ms"]).run();
    let rows = [
        format!("{:width$}  default  running", id, width = id.len()),
        "default  consuming  2      2        1/1      1        1      1       0.0/s".to_owned(),
    ];
    let table = ask_until(
        || top().expect_code(0).stdout,
        |table| rows.iter().all(|row| table.contains(row)),
    );
    assert!(
        table
            .lines()
            .all(|line| line == line.trim_end() && !line.contains('\x1b')),
        "{table}"
    );
}

/// Checks that a command fails with such a code and, once the workers answer in time, with this hint.
#[track_caller]
fn is_refused(bench: &Bench, args: &[&str], code: i32, hint: &str) {
    ask_until(
        || bench.synthex(args).run().expect_code(code),
        |refused| refused.stderr.contains(hint),
    );
}

#[test]
fn a_name_that_is_not_known_brings_the_nearest_to_mind() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let id = rows(&bench, &["workers", "--wait", "600ms"], 1)[0]["id"]
        .as_str()
        .expect("it has one")
        .to_owned();
    for args in [
        &["pause", "defualt"][..],
        &["pools", "defualt"],
        &["jobs", "--pool", "Default"],
        &["submit", "--pool", "defaul", "--", "true"],
    ] {
        is_refused(&bench, args, 78, r#"did you mean "default"?"#);
    }
    let near = &id[..id.len() - 1];
    for args in [&["drain", near][..], &["jobs", "--wait", "600ms", "--worker", near]] {
        is_refused(&bench, args, 1, &format!("did you mean {id:?}?"));
    }
    let listed = ["pools", "default", "another", "--wait", "600ms"];
    let listed = ask_until(
        || bench.synthex(&listed).run().expect_code(78),
        |listed| {
            let row = listed.stdout.lines().nth(1);
            row.is_some_and(|row| row.starts_with("default  consuming"))
        },
    );
    for part in [
        "\"another\" has no queue",
        "start a worker for it",
        "`synthex config apply`",
    ] {
        assert!(listed.stderr.contains(part), "{part:?} in {}", listed.stderr);
    }
    let other = bench.synthex(&["pause", "another"]).run().expect_code(78);
    assert!(!other.stderr.contains("did you mean"), "{}", other.stderr);
    worker.stop();
}

#[test]
fn a_job_is_submitted_from_stdin() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let job = r#"{"id": "by-stdin", "script": "cat; exit 7", "stdin": "over\n"}"#;
    let done = bench.synthex(&["submit", "--wait"]).stdin(job).run().expect_code(7);
    assert_eq!(done.stdout, "over\n");
    let given = bench.synthex(&["submit"]).stdin(job).run().expect_code(0);
    assert_eq!(given.stdout, "by-stdin\n");
    worker.stop();
}
