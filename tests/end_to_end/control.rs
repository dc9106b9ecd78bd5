//! What operators tell a fleet: cancel, pause, resume, drain, and who is there.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::bench::{Bench, Gate, PATIENCE, Worker, ask_until, assert_has};
use crate::support::process::{Signal, wait_until};

/// The workers that answer, as `synthex workers --json` shows them.
fn workers(bench: &Bench) -> Vec<Value> {
    let listed = bench
        .synthex(&["workers", "--json", "--wait", "2s"])
        .run()
        .expect_code(0);
    let lines = listed.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a worker a line"))
        .collect()
}

/// The only pool of each worker that answers.
fn pools(bench: &Bench) -> Vec<Value> {
    workers(bench).iter().map(|worker| worker["pools"][0].clone()).collect()
}

/// Does it, and gives what is said of it.
#[track_caller]
fn operate(bench: &Bench, args: &[&str]) -> String {
    let done = bench.synthex(args).run().expect_code(0);
    assert_eq!(done.stdout, "", "words for people are no data");
    done.stderr
}

/// A script that leaves a file.
fn leaves(path: &Path) -> Value {
    json!({"script": format!("touch {}", path.display())})
}

/// Properties of a producer who says that the job is so many seconds old.
fn aged(bench: &Bench, id: &str, seconds: i64) -> Value {
    let mut properties = bench.properties(id);
    let then = Timestamp::now() - SignedDuration::from_secs(seconds);
    properties["timestamp"] = then.as_second().into();
    properties
}

#[test]
fn a_queued_job_is_cancelled_before_any_worker_lives_and_by_every_one_that_starts_later() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    bench.listen();
    let ran = bench.path("ran");
    bench.send("default", "unwanted", &leaves(&ran));
    bench.send("default", "wanted", &json!({"command": ["true"]}));
    operate(&bench, &["cancel", "unwanted"]);
    bench.waits_for("control.log", 1);

    for round in 0..2 {
        let worker = bench.worker(&[&pool]);
        let reply = bench.reply().json();
        assert_has(
            &reply,
            &json!({"job_id": "unwanted", "status": "cancelled", "final": true, "attempt": 1}),
        );
        let error = &reply["error"];
        assert_eq!(error["kind"], "cancelled");
        let words = error["message"].as_str().expect("it says by whom");
        assert!(words.starts_with("cancelled by ") && words.contains(" at 2"), "{words}");
        if round == 0 {
            assert_has(
                &bench.reply().json(),
                &json!({"job_id": "wanted", "status": "succeeded"}),
            );
        }
        worker.stop();
        assert!(!ran.exists(), "its command ran");
        // From a producer that does not know of our header.
        let body = leaves(&ran).to_string();
        bench.send_bytes("default", body.as_bytes(), &aged(&bench, "unwanted", 60));
    }
    assert_eq!(bench.ready("dead"), 0, "a cancelled job is no dead letter");
}

#[test]
fn running_prefetched_and_delayed_jobs_are_cancelled() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1", "--prefetch", "3"]);
    bench.listen();
    let (begun, ran) = (bench.path("begun"), bench.path("ran"));
    let script = format!("echo so far; touch {}; sleep 300", begun.display());
    let retry = json!({"max_attempts": 3, "initial": "100ms", "statuses": ["cancelled", "failed"]});
    bench.send("default", "running", &json!({"script": script, "retry": retry}));
    wait_until(PATIENCE, "the job runs", || begun.exists());
    bench.send("default", "prefetched", &leaves(&ran));
    let mut later = leaves(&ran);
    later["not_before"] = (Timestamp::now() + SignedDuration::from_secs(55)).to_string().into();
    bench.send("default", "delayed", &later);
    bench.waits_for("delay.20s", 1);
    worker.metric_becomes(r#"synthex_unacked{pool="default"}"#, 2.0);

    // First for another pool: such an order leaves these jobs alone, so it can be given again until the worker answers in time.
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": bench.named("jobs.other")}));
    let cancel = ["cancel", "running", "prefetched", "delayed"];
    let doubt = "\nsynthex: no worker has job delayed now; the order stays in force for 7 days\n";
    ask_until(
        || operate(&bench, &[&cancel[..], &["--pool", "other"]].concat()),
        |said| said.ends_with(doubt),
    );
    assert_eq!(bench.ready("my-replies"), 0);
    operate(&bench, &cancel);
    let replies = bench.replies(3);
    for id in ["running", "prefetched", "delayed"] {
        let reply = &replies[&(id.to_owned(), 1)];
        assert_has(reply, &json!({"status": "cancelled", "final": true}));
    }
    let running = &replies[&("running".to_owned(), 1)];
    assert_eq!(running["stdout"]["text"], "so far\n");
    assert!(running["started_at"].is_string() && running["duration_ms"].as_u64() < Some(300_000));
    assert!(replies[&("prefetched".to_owned(), 1)]["started_at"].is_null());
    assert!(!ran.exists());
    worker.stop();
    bench.is_drained("jobs.default");
    assert_eq!(bench.ready("my-replies"), 0, "nothing is tried again");
}

#[test]
fn jobs_are_cancelled_by_all_of_the_given_labels() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1", "--prefetch", "5"]);
    bench.listen();
    let gate = Gate::new(&bench, &format!("first-{}", bench.namespace));
    bench.send("default", &format!("first-{}", bench.namespace), &gate.job());
    gate.started();
    for (id, labels) in [
        ("both", json!({"batch": "7", "kind": "a", "more": "x"})),
        ("one", json!({"batch": "7"})),
        ("other", json!({"batch": "7", "kind": "b"})),
    ] {
        bench.send("default", id, &json!({"command": ["true"], "labels": labels}));
    }
    worker.metric_becomes(r#"synthex_unacked{pool="default"}"#, 4.0);
    let given = bench
        .synthex(&[
            "cancel", "--label", "batch=7", "--label", "kind=a", "--pool", "default", "--json",
        ])
        .run()
        .expect_code(0);
    let order: Value = serde_json::from_str(&given.stdout).expect("one order");
    assert_has(
        &order,
        &json!({"order": "cancel", "labels": {"batch": "7", "kind": "a"}, "pool": "default"}),
    );
    assert_has(&bench.reply().json(), &json!({"job_id": "both", "status": "cancelled"}));
    gate.open();
    let replies = bench.replies(3);
    for id in ["one", "other"] {
        assert_has(&replies[&(id.to_owned(), 1)], &json!({"status": "succeeded"}));
    }
    worker.stop();
}

#[test]
fn what_is_submitted_again_after_a_cancel_runs() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let said = operate(&bench, &["cancel", "again"]);
    let doubt = "no worker has job again now; the order stays in force for 7 days\n";
    assert!(said.ends_with(doubt), "{said}");
    let again = ["submit", "--wait", "--id", "again", "--", "echo", "ran"];
    let done = bench.synthex(&again).run().expect_code(0);
    assert_eq!(done.stdout, "ran\n");
    ask_until(
        || operate(&bench, &["cancel", "again"]),
        |said| said.contains("job again has ended at "),
    );
    let said = operate(&bench, &["cancel", "again", "other"]);
    assert!(
        said.contains("no worker has 2 of these jobs now (again, other)"),
        "{said}"
    );
    let done = bench.synthex(&again).run().expect_code(0);
    assert_eq!(done.stdout, "ran\n");
    worker.stop();
}

#[test]
fn a_paused_pool_starts_nothing_on_any_worker_and_what_runs_goes_on() {
    let bench = Bench::new();
    let first = bench.worker(&["--slots", "1", "--prefetch", "3"]);
    bench.listen();
    let id = format!("running-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    bench.send("default", &id, &gate.job());
    gate.started();
    bench.send("default", "waiting", &json!({"command": ["true"]}));
    first.metric_becomes(r#"synthex_unacked{pool="default"}"#, 2.0);

    operate(&bench, &["pause", "default"]);
    bench.waits_for("jobs.default", 1); // while the other one runs
    bench.waits_for("control.log", 1); // so that who comes later knows that there is an order to wait for
    let second = bench.start(&["--slots", "1"]);
    let paused = || {
        let pools = pools(&bench);
        pools.len() == 2
            && pools
                .iter()
                .all(|pool| pool["paused"] == true && pool["consuming"] == false)
    };
    wait_until(PATIENCE, "both workers are paused", paused);
    assert_eq!(bench.ready("jobs.default"), 1);
    gate.open();
    assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
    bench.send("default", "meanwhile", &json!({"command": ["true"]}));
    bench.waits_for("jobs.default", 2);

    operate(&bench, &["resume", "default"]);
    let replies = bench.replies(2);
    for id in ["waiting", "meanwhile"] {
        assert_has(&replies[&(id.to_owned(), 1)], &json!({"status": "succeeded"})); // attempt 1
    }
    first.stop();
    Worker::late(second).stop();
}

#[test]
fn a_worker_answers_and_drains_while_all_its_slots_are_full() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let id = format!("running-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    bench.send("default", &id, &gate.job());
    gate.started();

    let states = ask_until(|| workers(&bench), |states| states.len() == 1);
    let state = &states[0];
    assert_has(state, &json!({"draining": false, "version": env!("CARGO_PKG_VERSION")}));
    let pool = json!({"pool": "default", "slots": 1, "running": 1, "in_hand": 1, "paused": false, "consuming": true, "started": 1});
    assert_eq!(state["pools"], json!([pool]));
    let name = state["id"].as_str().expect("an id");
    let table = || bench.synthex(&["workers"]).run().expect_code(0).stdout;
    ask_until(table, |table| {
        let row = table.lines().nth(1).unwrap_or_default();
        row.starts_with(name) && row.contains("consuming")
    });

    let unknown = bench.synthex(&["drain", "nobody"]).run().expect_code(1);
    assert!(
        unknown.stderr.contains("there is no worker \"nobody\""),
        "{}",
        unknown.stderr
    );
    let drain = bench.synthex(&["drain", name, "--json"]).spawn();
    worker.running.wait_for_line(|line| line.contains("draining"));
    ask_until(
        || workers(&bench),
        |states| states.len() == 1 && states[0]["draining"] == true,
    );
    assert!(worker.running.is_running(), "it answers to the end");
    gate.open();
    let drained = drain.wait().expect_code(0);
    assert_has(
        &serde_json::from_str(&drained.stdout).expect("one object"),
        &json!({"worker": name, "drained": true}),
    );
    worker.running.wait().expect_code(0);
    assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
    assert!(workers(&bench).is_empty());
}

#[test]
fn a_pool_is_drained_when_no_worker_has_a_job_of_it() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let id = format!("running-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    bench.send("default", &id, &gate.job());
    gate.started();
    let busy = bench
        .synthex(&["drain", "--pool", "default", "--wait-timeout", "100ms"])
        .run()
        .expect_code(75);
    assert!(busy.stderr.contains("is not drained"), "{}", busy.stderr);
    // One that is paused, and cannot answer, may have a job all the same.
    ask_until(
        || workers(&bench),
        |states| states.len() == 1 && states[0]["pools"][0]["consuming"] == false,
    );
    worker.running.signal(Signal::STOP);
    let silent = bench
        .synthex(&["drain", "--pool", "default", "--wait-timeout", "100ms"])
        .run()
        .expect_code(75);
    worker.running.signal(Signal::CONT);
    let told = "is not drained: 1 consumers, and busy []";
    assert!(silent.stderr.contains(told), "{}", silent.stderr);
    gate.open();
    let done = bench
        .synthex(&["drain", "--pool", "default", "--json"])
        .run()
        .expect_code(0);
    assert_has(
        &serde_json::from_str(&done.stdout).expect("one object"),
        &json!({"pool": "default", "drained": true}),
    );
    assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
    assert!(worker.running.is_running(), "the worker itself goes on");
    worker.stop();
}

#[test]
fn the_id_of_a_batch_is_none_of_a_job() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 2\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    let batch = ["batch", "--detach", "--range", "1-2", "--", "true"];
    let id = bench.synthex(&batch).run().expect_code(0).stdout.trim().to_owned();
    let is_refused = || {
        // Both look for batches only for a moment.
        let refused = ask_until(
            || bench.synthex(&["cancel", "--json", "job", &id]).run(),
            |refused| refused.code == Some(2),
        );
        assert_eq!(refused.stdout, "", "nothing is ordered");
        let remedy = format!("{id} is a batch: `synthex batch cancel {id}`");
        assert!(refused.stderr.contains(&remedy), "{}", refused.stderr);
        let explained = ask_until(
            || bench.synthex(&["explain", &id, "--wait", "600ms"]).run(),
            |explained| explained.stdout == format!("{id} is a batch and no job\n"),
        );
        assert_eq!(explained.code, Some(0));
        let remedy = format!("synthex batch status {id}");
        assert!(explained.stderr.contains(&remedy), "{}", explained.stderr);
    };
    is_refused();
    let worker = bench.worker(&[&pool]);
    bench.synthex(&["batch", "wait", &id]).run().expect_code(0); // for it ran
    let file = bench.path("taken.jsonl").display().to_string();
    let take = ["batch", "results", &id, "--results", &file];
    bench.synthex(&take).run().expect_code(0);
    assert_eq!(bench.rabbit.size(&bench.named(&format!("batch.{id}"))), None);
    is_refused();
    worker.stop();
}

#[test]
fn an_operator_is_told_what_is_not_there() {
    let bench = Bench::new();
    for args in [
        &["workers"][..],
        &["pools"],
        &["jobs"],
        &["top", "--once"],
        &["explain", "any"],
        &["logs", "any"],
        &["logs", "-f", "any"],
        &["cancel", "any"],
    ] {
        let missing = bench.synthex(args).run().expect_code(78);
        let nothing = format!("nothing is declared in namespace {}: start a worker", bench.namespace);
        for part in [nothing.as_str(), "`synthex config apply`", "--namespace"] {
            assert!(missing.stderr.contains(part), "{args:?}: {}", missing.stderr);
        }
    }
    let worker = bench.worker(&[]);
    for args in [
        &["pause", "typo"][..],
        &["resume", "typo"],
        &["drain", "--pool", "typo"],
    ] {
        let refused = bench.synthex(args).run().expect_code(78);
        assert!(
            refused.stderr.contains("pool \"typo\" has no queue"),
            "{}",
            refused.stderr
        );
    }
    worker.stop();
}

#[test]
fn a_message_that_is_no_order_harms_nobody() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let control = bench.named("control");
    ask_until(|| workers(&bench), |states| states.len() == 1); // by then it hears
    for (key, body) in [
        ("order.cancel", r#"{"order":"cancel"}"#),
        ("order.what", "\u{0}"),
        ("request.all", "?"),
    ] {
        assert!(
            bench.rabbit.publish(&control, key, body.as_bytes(), &json!({})),
            "{key}"
        );
    }
    worker.metric_becomes(r#"synthex_control_messages_total{message="invalid"}"#, 3.0);
    // One asks with a client that is not ours, and without an order in its head.
    let reply = bench.rabbit.ask(
        &control,
        "request.all",
        b"{\"request\":\"stop\"}",
        &json!({"correlation_id": "c"}),
    );
    assert_eq!(reply.property("correlation_id"), "c");
    assert_eq!(reply.json()["reply"], "refused");
    let reply = bench
        .rabbit
        .ask(&control, "request.all", b"{\"request\":\"ping\"}", &json!({}));
    assert_has(&reply.json(), &json!({"reply": "state", "draining": false}));
    bench.send("default", "well", &json!({"command": ["true"]}));
    assert_has(&bench.reply().json(), &json!({"job_id": "well", "status": "succeeded"}));
    worker.stop();
}
