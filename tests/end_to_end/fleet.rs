//! What is shown of a fleet: pools, workers and jobs, as tables and as JSON that its schema describes.

use serde_json::{Value, json};

use crate::bench::{Bench, Gate, assert_has};
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

    let pools = json(&bench, &["pools", "--wait", "600ms"]);
    assert_eq!(pools.len(), 1, "{pools:?}");
    assert_described(&pools[0], "PoolRow");
    assert_has(
        &pools[0],
        &json!({"pool": "default", "ready": 2, "unacked": 2, "running": 1, "slots": 1, "workers": 1, "consuming": 1,
            "paused": false, "finished": {"failed": 1}}),
    );

    let jobs = json(&bench, &["jobs", "--wait", "600ms"]);
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
    let waiting = json(&bench, &["jobs", "--state", "waiting", "--wait", "600ms"]);
    assert_eq!(waiting.len(), 1);
    let of = |worker: &str| json(&bench, &["jobs", "--worker", worker, "--wait", "600ms"]).len();
    assert_eq!(of(jobs[0]["worker"].as_str().expect("it is named")), 2);

    let workers = json(&bench, &["workers", "--wait", "600ms"]);
    assert_described(&workers[0], "WorkerState");
    let snapshot = json(&bench, &["top", "--once", "--interval", "100ms"]);
    assert_described(&snapshot[0], "Snapshot");
    assert_eq!(snapshot[0]["pools"][0]["rate"], 0.0);
    assert_eq!(snapshot[0]["jobs"].as_array().map(Vec::len), Some(2));
    assert!(!format!("{jobs:?}{snapshot:?}").contains("hunter2"), "{jobs:?}");

    the_table_is_plain(&bench, &id);
    gate.open();
    worker.stop();
}

/// `top --once`, with the job that runs and its pool.
fn the_table_is_plain(bench: &Bench, id: &str) {
    let table = bench
        .synthex(&["top", "--once", "--interval", "100ms"])
        .run()
        .expect_code(0)
        .stdout;
    for row in [
        format!("{:width$}  default  running", id, width = id.len()),
        "default  consuming  2      2        1/1      1        1      1       0.0/s".to_owned(),
    ] {
        assert!(table.contains(&row), "no {row:?} in\n{table}");
    }
    assert!(
        table
            .lines()
            .all(|line| line == line.trim_end() && !line.contains('\x1b')),
        "{table}"
    );
}

#[test]
fn a_name_that_is_not_known_brings_the_nearest_to_mind() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let id = json(&bench, &["workers", "--wait", "600ms"])[0]["id"]
        .as_str()
        .expect("it has one")
        .to_owned();
    for args in [
        &["pause", "defualt"][..],
        &["pools", "defualt"],
        &["jobs", "--pool", "Default"],
        &["submit", "--pool", "defaul", "--", "true"],
    ] {
        let refused = bench.synthex(args).run().expect_code(78);
        assert!(
            refused.stderr.contains(r#"did you mean "default"?"#),
            "{args:?}: {}",
            refused.stderr
        );
    }
    let near = &id[..id.len() - 1];
    for args in [&["drain", near][..], &["jobs", "--wait", "600ms", "--worker", near]] {
        let refused = bench.synthex(args).run().expect_code(1);
        let hint = format!("did you mean {id:?}?");
        assert!(refused.stderr.contains(&hint), "{args:?}: {}", refused.stderr);
    }
    let listed = ["pools", "default", "another", "--wait", "600ms"];
    let listed = bench.synthex(&listed).run().expect_code(78);
    let row = listed.stdout.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with("default  consuming"), "{}", listed.stdout);
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
