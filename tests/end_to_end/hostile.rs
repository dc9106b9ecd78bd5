//! A producer that means harm, and an operator who deletes what the worker needs, stop nobody's work.

use std::collections::BTreeSet;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::bench::{Bench, Worker, ask_until, assert_has};

/// Nearly as much as the properties of a message may have (a frame of 128 KiB), with ours beside it.
const LARGE: usize = 130_800;
/// How often a message that cannot be read comes here before the broker ends it.
const DELIVERY_LIMIT: u64 = 5;

/// A worker that does one thing at a time: whatever holds a job up holds everything up.
fn narrow_worker(bench: &Bench) -> Worker {
    let worker = bench.worker(&["--slots", "1", "--prefetch", "1"]);
    bench.listen();
    worker
}

/// A script that notes in a file that it ran.
fn noting(bench: &Bench, file: &str, then: &str) -> Value {
    let script = format!("echo \"$SYNTHEX_POOL\" >> {}; {then}", bench.path(file).display());
    json!({ "script": script })
}

/// A job that fails and notes each run, to be run twice.
fn failing_twice(bench: &Bench, file: &str) -> Value {
    let mut job = noting(bench, file, "exit 1");
    job["retry"] = json!({"max_attempts": 2, "initial": "300ms"});
    job
}

/// The pools in which a noting job ran, sorted.
fn runs(bench: &Bench, file: &str) -> Vec<String> {
    let notes = fs::read_to_string(bench.path(file)).expect("the job ran");
    let mut runs: Vec<String> = notes.lines().map(str::to_owned).collect();
    runs.sort();
    runs
}

/// Properties with headers of the producer's own.
fn with_headers(bench: &Bench, id: &str, headers: Value) -> Value {
    let mut properties = bench.properties(id);
    properties["headers"] = headers;
    properties
}

/// Checks that a job is run now, and answered in both ways.
#[track_caller]
fn goes_on(bench: &Bench, id: &str) {
    bench.send("default", id, &json!({"command": ["true"]}));
    let wanted = json!({"job_id": id, "attempt": 1, "status": "succeeded", "final": true});
    assert_has(&bench.reply().json(), &wanted);
    assert_has(&bench.result().json(), &wanted);
}

/// Stops the worker and checks that no job, reply or result is left over, and so many dead letters.
#[track_caller]
fn ends_clean(bench: &Bench, worker: Worker, dead: u64) {
    worker.stop();
    bench.is_drained("jobs.default");
    let left = |queue: &str| bench.ready(queue);
    assert_eq!(
        (
            left("delay.250ms"),
            left("my-replies"),
            left("my-results"),
            left("dead")
        ),
        (0, 0, 0, dead),
        "jobs that wait, replies, results and dead letters"
    );
}

/// The pool's queue as a worker declares it, but for a lower limit, so that the broker soon ends what nobody settles.
fn declare_impatient_queue(bench: &Bench) {
    let arguments = json!({
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": bench.named("dead"),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-consumer-timeout": 604_800_000,
    });
    let queue = bench.named("jobs.default");
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": queue, "arguments": arguments}));
}

/// Puts a message into the pool's queue that the worker's client library cannot read.
fn poison(bench: &Bench, body: &[u8]) {
    let taken = bench.rabbit.call(json!({
        "do": "publish",
        "exchange": "",
        "key": bench.named("jobs.default"),
        "body": BASE64.encode(body),
        "properties": {"delivery_mode": 2},
        "raw": {"correlation_id": BASE64.encode(b"\xff\xfe")},
    }));
    assert_eq!(taken, true);
}

#[test]
fn a_message_that_cannot_be_read_is_got_past_and_kept() {
    let bench = Bench::new();
    declare_impatient_queue(&bench);
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": bench.named("my-replies")}));
    // All of them are in the queue before the worker comes, so they are delivered together.
    let queue = bench.named("jobs.default");
    let job = |id: &str| noting(&bench, id, "true").to_string();
    let others = ["before-1", "before-2", "after-1", "after-2", "after-3"];
    let body = noting(&bench, "poison", "true").to_string();
    for (place, id) in others.iter().enumerate() {
        if place == 2 {
            poison(&bench, body.as_bytes());
        }
        assert!(
            bench
                .rabbit
                .publish("", &queue, job(id).as_bytes(), &bench.properties(id))
        );
    }
    let worker = bench.worker(&["--slots", "8", "--prefetch", "8"]);
    let dead = bench.dead_letter();
    assert_eq!(dead.body, body.as_bytes());
    assert_eq!(dead.properties["correlation_id"], r"b'\xff\xfe'");
    assert_eq!(dead.header("x-first-death-reason"), "delivery_limit");
    assert!(!bench.path("poison").exists(), "it was run");

    bench.send("default", "later", &noting(&bench, "later", "true"));
    let mut missing = BTreeSet::from(["after-1", "after-2", "after-3", "before-1", "before-2", "later"]);
    let mut replies = Vec::new();
    while !missing.is_empty() {
        replies.push(bench.reply().json());
        missing.retain(|id| replies.iter().all(|reply| reply["job_id"] != *id));
    }
    let told = worker.running.stderr().matches("cannot be read").count() as u64;
    worker.stop();
    bench.is_drained("jobs.default");
    replies.extend((0..bench.ready("my-replies")).map(|_| bench.reply().json()));
    // A broker that takes over a second to take back what a session had looks like one that has nothing, so that the pool
    // takes all at once again.
    assert!((1..=2).contains(&told), "{told} lines about one message");
    for reply in &replies {
        assert_eq!(reply["status"], "succeeded", "{reply:#}");
        let attempt = reply["attempt"].as_u64().expect("it is a number");
        let with_it = if reply["job_id"] == "later" { told - 1 } else { told };
        assert!(
            attempt <= 1 + with_it,
            "only {with_it} sessions had it beside the message: {reply:#}"
        );
    }
    // Those that came before it in such a session may have been running when it ended.
    for (id, most) in [
        ("before-1", 1 + told),
        ("before-2", 1 + told),
        ("after-1", told),
        ("after-2", told),
        ("after-3", told),
        ("later", told),
    ] {
        let runs = runs(&bench, id).len() as u64;
        assert!(runs <= most, "{id} ran {runs} times");
    }
    assert_eq!(bench.ready("dead"), 0);
}

#[test]
fn a_message_that_cannot_be_read_comes_to_a_worker_that_is_at_work() {
    let bench = Bench::new();
    declare_impatient_queue(&bench);
    let worker = bench.worker(&["--slots", "4"]);
    bench.listen();
    for round in 0..3 {
        goes_on(&bench, &format!("round-{round}"));
        poison(&bench, b"{\"command\": [\"true\"]}");
        bench.dead_letter();
    }
    goes_on(&bench, "last");
    ends_clean(&bench, worker, 0);
}

/// Sends a message whose headers are nested far deeper than the client library's thread has stack for. 25,000 levels fit
/// into a message; but RabbitMQ's own time grows with their square, and it would take 13 s to a quorum queue and out of it.
#[track_caller]
fn publish_nested(bench: &Bench, exchange: &str, key: &str, body: &[u8], properties: &Value) {
    const DEEP: usize = 8_000;
    let taken = bench.rabbit.call(json!({
        "do": "publish",
        "exchange": exchange,
        "key": key,
        "body": BASE64.encode(body),
        "properties": properties,
        "nested": DEEP,
    }));
    assert_eq!(taken, true);
}

/// Whoever reads such headers does so by recursion, and a stack that overflows ends the process.
#[test]
fn headers_nested_very_deep_end_no_worker() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let jobs = bench.named("jobs");
    publish_nested(&bench, &jobs, "default", b"?", &bench.properties("bad"));
    let wanted = json!({"job_id": "bad", "attempt": 1, "status": "rejected", "final": true});
    assert_has(&bench.reply().json(), &wanted);
    assert_has(&bench.result().json(), &wanted);
    let dead = bench.dead_letter();
    assert_eq!((dead.property("message_id"), &dead.body[..]), ("bad", &b"?"[..]));
    assert_eq!(dead.header("x-synthex-reason"), "rejected");
    assert_eq!(dead.headers["x-synthex-headers-dropped"], true);
    assert!(dead.headers["nested"].is_null());

    // The job itself is right, and its headers are nobody's but its producer's: it runs, with those that can be read.
    let mut properties = with_headers(&bench, "nested", json!({"traceparent": "00-1-2-03"}));
    let job = failing_twice(&bench, "runs").to_string();
    publish_nested(&bench, &jobs, "default", job.as_bytes(), &properties);
    for attempt in [1, 2] {
        let wanted = json!({"job_id": "nested", "attempt": attempt, "status": "failed", "final": attempt == 2});
        assert_has(&bench.reply().json(), &wanted);
        assert_has(&bench.result().json(), &wanted);
    }
    assert_eq!(bench.dead_letter().header("traceparent"), "00-1-2-03");
    assert_eq!(runs(&bench, "runs"), ["default"; 2]);

    // A redelivery is counted by a header of ours, which another one must not hide.
    properties["headers"] = json!({"x-synthex-attempt": 4, "x-synthex-redeliveries": 1});
    publish_nested(&bench, &jobs, "default", br#"{"command": ["true"]}"#, &properties);
    assert_has(&bench.reply().json(), &json!({"attempt": 4, "status": "succeeded"}));
    assert_has(&bench.result().json(), &json!({"attempt": 4, "status": "succeeded"}));
    goes_on(&bench, "good");
    ends_clean(&bench, worker, 0);
}

#[test]
fn headers_nested_very_deep_end_no_program_that_reads_orders_replies_or_dead_letters() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let answers = || {
        let workers = || bench.synthex(&["workers"]).run().expect_code(0);
        // Of a worker that answers too late is said that there is none.
        ask_until(workers, |told| told.stderr.is_empty());
    };
    answers(); // so it hears
    publish_nested(
        &bench,
        &bench.named("control"),
        "request.all",
        b"{\"request\":\"ping\"}",
        &json!({}),
    );
    publish_nested(&bench, "", &bench.named("dead"), b"{}", &bench.properties("nested"));
    for args in [&["dead", "list"][..], &["dead", "show", "nested"]] {
        let told = bench.synthex(args).run().expect_code(0);
        assert_eq!(told.stderr, "", "{args:?}");
    }
    answers();
    let shown = bench.synthex(&["dead", "show", "nested"]).run().expect_code(0).stdout;
    assert!(shown.contains("x-synthex-headers-dropped: true"), "{shown}");
    bench.synthex(&["dead", "drop", "nested"]).run().expect_code(0);
    goes_on(&bench, "good");
    ends_clean(&bench, worker, 0);
}

/// Sends a job whose answer goes nowhere, and checks that only its producer feels it.
#[track_caller]
fn an_answer_to(bench: &Bench, worker: &Worker, reply_to: &str) {
    let mut properties = bench.properties("rude");
    properties["reply_to"] = reply_to.into();
    bench.send_bytes("default", br#"{"command": ["true"]}"#, &properties);
    let result = bench.result();
    assert_has(
        &result.json(),
        &json!({"job_id": "rude", "attempt": 1, "status": "succeeded", "final": true}),
    );
    worker.metric_becomes("synthex_results_unroutable_total", 1.0);
    for id in ["polite-1", "polite-2"] {
        bench.send("default", id, &json!({"command": ["true"]}));
        assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
    }
    // The broker may have ended the session over it before it confirmed the result, which is then sent again.
    let mut next = bench.result();
    while next.json()["job_id"] == "rude" {
        assert_eq!((&next.body, next.property("message_id")), (&result.body, "rude/1"));
        next = bench.result();
    }
    assert_eq!(next.json()["job_id"], "polite-1");
    assert_eq!(bench.result().json()["job_id"], "polite-2");
    let unroutable = worker.metric("synthex_results_unroutable_total");
    assert!((unroutable - 1.0).abs() < 0.5, "{unroutable} answers were dropped");
}

#[test]
fn an_answer_that_its_queue_refuses_holds_no_job_up() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let full = bench.named("full");
    let arguments = json!({"x-max-length": 0, "x-overflow": "reject-publish"});
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": full, "arguments": arguments}));
    an_answer_to(&bench, &worker, &full);
    ends_clean(&bench, worker, 0);
}

#[test]
fn an_answer_to_a_made_up_direct_address_holds_no_job_up() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    an_answer_to(&bench, &worker, "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA=.x");
    ends_clean(&bench, worker, 0);
}

#[test]
fn a_bad_job_with_headers_as_large_as_can_be_is_kept_without_them() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let large = json!({"large": "x".repeat(LARGE)});
    bench.send_bytes("default", br#"{"comand": 1}"#, &with_headers(&bench, "bad", large));
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "bad", "status": "rejected", "final": true}));
    assert_eq!(bench.result().json(), reply);
    let dead = bench.dead_letter();
    assert_eq!(dead.body, br#"{"comand": 1}"#);
    assert_eq!(dead.headers["x-synthex-headers-dropped"], true);
    assert!(dead.headers["large"].is_null());
    assert_eq!(dead.header("x-synthex-reason"), "rejected");
    assert_eq!(dead.header("x-synthex-field"), "comand");
    assert_eq!(dead.property("message_id"), "bad");
    assert_eq!(dead.property("correlation_id"), "about bad");
    goes_on(&bench, "good");
    ends_clean(&bench, worker, 0);
}

#[test]
fn a_job_with_headers_as_large_as_can_be_is_run_as_often_as_it_may() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let large = json!({"large": "x".repeat(LARGE)});
    let job = failing_twice(&bench, "runs").to_string();
    bench.send_bytes("default", job.as_bytes(), &with_headers(&bench, "heavy", large));
    for (attempt, is_final) in [(1, false), (2, true)] {
        let reply = bench.reply().json();
        assert_has(
            &reply,
            &json!({"job_id": "heavy", "attempt": attempt, "status": "failed", "final": is_final}),
        );
        assert_eq!(bench.result().json(), reply);
    }
    assert_eq!(runs(&bench, "runs"), ["default"; 2]);
    let dead = bench.dead_letter();
    assert_eq!(dead.body, job.as_bytes());
    assert_eq!(dead.headers["x-synthex-headers-dropped"], true);
    assert_eq!(dead.headers["x-synthex-attempt"], 2);
    goes_on(&bench, "light");
    ends_clean(&bench, worker, 0);
}

#[test]
fn headers_of_a_usual_size_stay_with_their_job() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let trace = json!({"traceparent": "00-1-2-03", "large": "x".repeat(10_000)});
    bench.send_bytes("default", b"?", &with_headers(&bench, "traced", trace));
    assert_has(&bench.reply().json(), &json!({"status": "rejected"}));
    bench.result();
    let dead = bench.dead_letter();
    assert_eq!(dead.header("traceparent"), "00-1-2-03");
    assert_eq!(dead.header("large").len(), 10_000);
    assert!(dead.headers["x-synthex-headers-dropped"].is_null());
    ends_clean(&bench, worker, 0);
}

/// Sends a bad message and checks that it has one result, and is kept.
#[track_caller]
fn is_rejected_once(bench: &Bench, id: &str) {
    bench.send_bytes("default", b"?", &bench.properties(id));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": id, "attempt": 1, "status": "rejected"}),
    );
    bench.waits_for("dead", 1);
    let dead = bench.dead_letter();
    assert_eq!((dead.property("message_id"), &dead.body[..]), (id, &b"?"[..]));
}

#[test]
fn a_dead_letter_queue_that_was_deleted_is_declared_again_and_nothing_is_lost() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let dead = bench.named("dead");
    bench.rabbit.call(json!({"do": "delete", "queue": dead}));
    bench.send_bytes("default", b"?", &bench.properties("bad"));
    assert_has(&bench.reply().json(), &json!({"job_id": "bad", "status": "rejected"}));
    // It is declared again by then, or the next job would not be run.
    goes_on_after(&bench, "bad");
    let kept = bench.dead_letter();
    assert_eq!((kept.property("message_id"), &kept.body[..]), ("bad", &b"?"[..]));

    bench.rabbit.call(json!({"do": "delete_exchange", "exchange": dead}));
    bench.rabbit.call(json!({"do": "delete", "queue": dead}));
    bench.send_bytes("default", b"??", &bench.properties("worse"));
    assert_has(&bench.reply().json(), &json!({"job_id": "worse", "status": "rejected"}));
    goes_on_after(&bench, "worse");
    assert_eq!(bench.dead_letter().body, b"??");
    ends_clean(&bench, worker, 0);
}

/// Checks that a rejected job has one result, and that the next one is run.
#[track_caller]
fn goes_on_after(bench: &Bench, rejected: &str) {
    assert_has(
        &bench.result().json(),
        &json!({"job_id": rejected, "attempt": 1, "status": "rejected", "final": true}),
    );
    goes_on(bench, "next");
}

#[test]
fn a_delay_queue_that_was_deleted_is_declared_again_and_attempts_are_kept() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let delay = bench.named("delay.250ms");
    for (id, exchange_too) in [("first", false), ("second", true)] {
        bench.rabbit.call(json!({"do": "delete", "queue": delay}));
        if exchange_too {
            bench.rabbit.call(json!({"do": "delete_exchange", "exchange": delay}));
        }
        bench.send("default", id, &failing_twice(&bench, id));
        for (attempt, is_final) in [(1, false), (2, true)] {
            let wanted = json!({"job_id": id, "attempt": attempt, "status": "failed", "final": is_final});
            assert_has(&bench.reply().json(), &wanted);
            assert_has(&bench.result().json(), &wanted);
        }
        assert_eq!(bench.dead_letter().property("message_id"), id);
        assert_eq!(runs(&bench, id), ["default"; 2]);
    }
    goes_on(&bench, "last");
    ends_clean(&bench, worker, 0);
}

#[test]
fn an_exchange_of_results_that_was_deleted_is_declared_again_and_nothing_is_lost() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    let results = bench.named("results");
    bench.rabbit.call(json!({"do": "delete_exchange", "exchange": results}));
    // Whoever listened has to bind again, but the job, its answer and its dead letter are as ever.
    is_rejected_once(&bench, "bad");
    bench
        .rabbit
        .call(json!({"do": "bind", "queue": bench.named("my-results"), "exchange": results, "key": "#"}));
    goes_on(&bench, "good");

    bench.rabbit.call(json!({"do": "delete_exchange", "exchange": results}));
    bench.send("default", "tries", &failing_twice(&bench, "runs"));
    assert_has(&bench.reply().json(), &json!({"attempt": 1, "final": false}));
    assert_has(&bench.reply().json(), &json!({"attempt": 2, "final": true}));
    assert_eq!(bench.dead_letter().property("message_id"), "tries");
    assert_eq!(runs(&bench, "runs"), ["default"; 2]);
    ends_clean(&bench, worker, 0);
}

#[test]
fn a_job_that_was_copied_by_its_producer_is_not_copied_by_its_retries() {
    let bench = Bench::new();
    let (one, two) = (
        bench.pool("pool = \"default\"\nslots = 2\n"),
        bench.pool("pool = \"other\"\nslots = 2\n"),
    );
    let worker = Worker::ready(bench.start(&[&one, &two]), 2);
    bench.listen();
    let job = failing_twice(&bench, "runs").to_string();
    let properties = with_headers(&bench, "copied", json!({"CC": ["other"]}));
    bench.send_bytes("default", job.as_bytes(), &properties);
    bench.waits_for("dead", 2);
    worker.stop();
    assert_eq!(runs(&bench, "runs"), ["default", "default", "other", "other"]);
    let results: Vec<Value> = (0..4).map(|_| bench.result().json()).collect();
    for pool in ["default", "other"] {
        let of_pool = results.iter().filter(|result| result["worker"]["pool"] == pool);
        let attempts: Vec<&Value> = of_pool.map(|result| &result["attempt"]).collect();
        assert_eq!(attempts, [1, 2], "in pool {pool}");
    }
    for queue in ["jobs.default", "jobs.other", "delay.250ms", "my-results"] {
        bench.is_drained(queue);
    }
    assert_eq!(bench.ready("dead"), 2);
}

#[test]
fn a_field_that_is_there_twice_is_refused_and_named() {
    let bench = Bench::new();
    let worker = narrow_worker(&bench);
    for (body, name) in [
        (r#"{"script": "true", "script": "false"}"#, "script"),
        (
            r#"{"command": ["true"], "limits": {"memory": "1GiB", "memory": "2GiB"}}"#,
            "memory",
        ),
    ] {
        bench.send_bytes("default", body.as_bytes(), &bench.properties("twice"));
        let reply = bench.reply().json();
        assert_has(
            &reply,
            &json!({"job_id": "twice", "status": "rejected", "final": true, "started_at": null}),
        );
        assert_eq!(bench.result().json(), reply);
        let error = reply["error"]["message"].as_str().expect("an error has a message");
        assert!(error.contains(&format!("{name} twice")), "{error}");
        let dead = bench.dead_letter();
        assert_eq!(dead.body, body.as_bytes());
        assert_eq!(dead.header("x-synthex-error"), error);
    }
    goes_on(&bench, "good");
    ends_clean(&bench, worker, 0);
}
