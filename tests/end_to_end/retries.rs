//! Another run after a failure that may pass, and no run before its time: both wait in the broker, never in a slot.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bench::{Bench, Gate, PATIENCE, assert_has};
use crate::support::process::{Signal, wait_until};

/// A script that fails with a code until its `good` -th run; it counts them in a file.
fn fails_until(bench: &Bench, good: u32, code: u8) -> String {
    let counter = bench.path("runs").display().to_string();
    format!(
        "echo run >> {counter}; n=$(wc -l < {counter}); echo run $n as attempt $SYNTHEX_ATTEMPT; \
         [ $n -ge {good} ] || exit {code}"
    )
}

fn time(result: &Value, name: &str) -> Timestamp {
    result[name]
        .as_str()
        .expect("it ran")
        .parse()
        .expect("times are in RFC 3339")
}

#[test]
fn a_job_that_fails_twice_and_then_succeeds_has_three_results() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let retry = json!({"max_attempts": 3, "initial": "300ms", "multiplier": 1});
    bench.send(
        "default",
        "tries",
        &json!({"script": fails_until(&bench, 3, 9), "retry": retry}),
    );
    let mut last: Option<Value> = None;
    for (attempt, status) in [(1, "failed"), (2, "failed"), (3, "succeeded")] {
        let (reply, result) = (bench.reply(), bench.result());
        let found = reply.json();
        assert_eq!(found, result.json());
        let is_final = attempt == 3;
        assert_has(
            &found,
            &json!({"job_id": "tries", "attempt": attempt, "status": status, "final": is_final}),
        );
        assert_eq!(found["stdout"]["text"], format!("run {attempt} as attempt {attempt}\n"));
        assert_eq!(reply.property("message_id"), format!("tries/{attempt}"));
        assert_eq!(reply.property("correlation_id"), "about tries");
        assert_eq!(result.routing_key, format!("default.{status}"));
        if let Some(last) = last {
            let waited = time(&found, "started_at").duration_since(time(&last, "finished_at"));
            assert!(
                waited.as_millis() >= 150,
                "half of `initial` is the least, got {waited:?}"
            );
        }
        last = Some(found);
    }
    assert!((worker.metric(r#"synthex_job_retries_total{pool="default"}"#) - 2.0).abs() < 0.5);
    worker.stop();
    bench.is_drained("jobs.default");
    assert_eq!(bench.ready("dead"), 0);
}

#[test]
fn a_job_that_waits_for_its_retry_takes_no_slot() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    // 1 to 3 min, so the first tier it waits in is the one of a minute.
    bench.send(
        "default",
        "waits",
        &json!({"command": ["false"], "retry": {"max_attempts": 2, "initial": "2m"}}),
    );
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "waits", "attempt": 1, "final": false}),
    );
    bench.send("default", "meanwhile", &json!({"command": ["true"]}));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "meanwhile", "status": "succeeded"}),
    );
    bench.waits_for("delay.1m", 1);
    worker.stop();
}

#[test]
fn a_job_that_failed_as_often_as_it_may_is_a_dead_letter() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let job = json!({"script": "exit 9", "retry": {"max_attempts": 2, "initial": "100ms"}});
    bench.send("default", "hopeless", &job);
    assert_has(
        &bench.reply().json(),
        &json!({"attempt": 1, "status": "failed", "final": false}),
    );
    assert_has(
        &bench.reply().json(),
        &json!({"attempt": 2, "status": "failed", "final": true}),
    );
    let dead = bench.dead_letter();
    assert_eq!(dead.json(), job);
    assert_eq!(dead.property("message_id"), "hopeless");
    assert_eq!(dead.header("x-synthex-reason"), "failed");
    assert_eq!(dead.header("x-synthex-pool"), "default");
    assert_eq!(dead.headers["x-synthex-attempt"], 2);
    worker.stop();
    bench.is_drained("jobs.default");
    assert_eq!((bench.ready("dead"), bench.ready("my-replies")), (0, 0), "no third run");
}

#[test]
fn a_job_is_retried_after_what_it_chose_and_nothing_else() {
    let bench = Bench::new();
    let _worker = bench.worker(&["--slots", "4"]);
    bench.listen();
    let with = |choice: (&str, Value), rest: Value| {
        let mut job = rest;
        job["retry"] = json!({"max_attempts": 2, "initial": "100ms"});
        job["retry"][choice.0] = choice.1;
        job
    };
    let codes = || ("exit_codes", json!([75]));
    let statuses = || ("statuses", json!(["timed_out", "not_started"]));
    bench.send("default", "wanted-code", &with(codes(), json!({"script": "exit 75"})));
    bench.send("default", "other-code", &with(codes(), json!({"script": "exit 1"})));
    bench.send(
        "default",
        "other-status",
        &with(statuses(), json!({"script": "exit 75"})),
    );
    bench.send(
        "default",
        "late",
        &with(statuses(), json!({"command": ["sleep", "60"], "timeout": "100ms"})),
    );
    bench.send(
        "default",
        "absent",
        &with(statuses(), json!({"command": ["no-such-program"]})),
    );

    let replies = bench.replies(8);
    let finals: Vec<(&str, u64, bool)> = replies
        .iter()
        .map(|((id, attempt), reply)| (id.as_str(), *attempt, reply["final"].as_bool().expect("it is there")))
        .collect();
    let wanted = [
        ("absent", 1, false),
        ("absent", 2, true),
        ("late", 1, false),
        ("late", 2, true),
        ("other-code", 1, true),
        ("other-status", 1, true),
        ("wanted-code", 1, false),
        ("wanted-code", 2, true),
    ];
    assert_eq!(finals, wanted);
}

#[test]
fn a_job_starts_no_earlier_than_it_asked_and_not_much_later() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    // A busy machine is late now and then; a worker that is late ten times in a row is at fault.
    let is_timely = (0..10).any(|number| starts_in_time(&bench, number));
    assert!(is_timely, "it never started in time");
    worker.stop();
    bench.is_drained("jobs.default");
}

/// Whether a job with a start starts soon after it, and another does while it waits. Never before it.
fn starts_in_time(bench: &Bench, number: u32) -> bool {
    let (timely, meanwhile) = (format!("timely-{number}"), format!("meanwhile-{number}"));
    let start = Timestamp::now() + Duration::from_millis(2700);
    let job = json!({"command": ["true"], "not_before": start.to_string()});
    bench.send("default", &timely, &job);
    // It waits in the broker: the only slot is free for others.
    bench.send("default", &meanwhile, &json!({"command": ["true"]}));
    let replies = bench.replies(2);
    let [timely, meanwhile] = [timely, meanwhile].map(|id| &replies[&(id, 1)]);
    for reply in [timely, meanwhile] {
        assert_has(reply, &json!({"status": "succeeded", "final": true}));
    }
    let late = time(timely, "started_at").duration_since(start);
    assert!(!late.is_negative(), "it started {late:?} late");
    late.as_millis() < 1000 && time(meanwhile, "finished_at") < start
}

#[test]
fn a_retry_is_not_run_by_a_worker_that_stops() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let id = format!("later-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    let mut job = gate.job();
    let gated = job["script"].as_str().expect("it is a text");
    job["script"] = format!("{gated}; {}", fails_until(&bench, 2, 1)).into();
    job["retry"] = json!({"max_attempts": 2, "initial": "1s"});
    bench.send("default", &id, &job);
    gate.started();
    worker.running.signal(Signal::TERM);
    worker.running.wait_for_line(|line| line.contains("draining"));
    gate.open();
    assert_has(&bench.reply().json(), &json!({"attempt": 1, "final": false}));
    worker.running.wait().expect_code(0);
    // Its time comes while nobody is there; the next worker runs it.
    wait_until(PATIENCE, "its wait is over", || bench.ready("jobs.default") == 1);
    let _worker = bench.worker(&[]);
    assert_has(
        &bench.reply().json(),
        &json!({"attempt": 2, "status": "succeeded", "final": true}),
    );
}
