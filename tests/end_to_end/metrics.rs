//! Prometheus sees it: what is counted is what was done, to the unit.

use serde_json::json;

use crate::bench::{Bench, PATIENCE, Worker};
use crate::support::cli::Cli;
use crate::support::process::{Signal, wait_until};

/// Has a worker do a bit of everything: 12 results of 10 jobs.
fn a_bit_of_everything(bench: &Bench) {
    let retry = json!({"max_attempts": 2, "initial": "100ms"});
    bench.send(
        "default",
        "s1",
        &json!({"script": "printf 0123456789; printf 01234 >&2"}),
    );
    bench.send(
        "default",
        "s2",
        &json!({"script": "head -c 3000 /dev/zero", "output": {"max_bytes": "1KiB"}}),
    );
    bench.send("default", "f1", &json!({"script": "exit 3"}));
    bench.send("default", "r1", &json!({"script": "exit 4", "retry": retry})); // two results, a dead letter
    bench.send(
        "default",
        "r2",
        &json!({"script": "[ $SYNTHEX_ATTEMPT = 2 ]", "retry": retry}),
    ); // two results
    bench.send("default", "g1", &json!({"script": "kill -KILL $$"}));
    bench.send(
        "default",
        "t1",
        &json!({"command": ["sleep", "60"], "timeout": "100ms"}),
    );
    bench.send("default", "n1", &json!({"command": ["no-such-program"]}));
    bench.send(
        "default",
        "e1",
        &json!({"command": ["true"], "expires_at": "2020-01-01T00:00:00Z"}),
    );
    bench.send_bytes("default", b"?", &bench.properties("b1")); // a dead letter
    assert_eq!(bench.replies(12).len(), 12);
}

/// What it comes to, for each series whose label is the pool's name alone.
const OF_THE_POOL: [(&str, f64); 8] = [
    ("jobs_started_total", 10.0),
    ("job_duration_seconds_count", 10.0),
    ("job_wait_seconds_count", 10.0),
    ("job_retries_total", 2.0),
    ("dead_letters_total", 2.0),
    ("jobs_running", 0.0),
    ("slots", 3.0),
    ("prefetch", 5.0),
];
const BY_STATUS: [(&str, f64); 10] = [
    ("succeeded", 3.0),
    ("failed", 4.0),
    ("signaled", 1.0),
    ("timed_out", 1.0),
    ("not_started", 1.0),
    ("expired", 1.0),
    ("rejected", 1.0),
    ("lost", 0.0),
    ("cancelled", 0.0),
    ("out_of_memory", 0.0),
];
const OTHERS: [(&str, f64); 15] = [
    (r#"output_bytes_total{pool="default",stream="stdout"}"#, 3010.0),
    (r#"output_bytes_total{pool="default",stream="stderr"}"#, 5.0),
    (r#"output_dropped_bytes_total{pool="default",stream="stdout"}"#, 1976.0),
    (r#"output_dropped_bytes_total{pool="default",stream="stderr"}"#, 0.0),
    ("kill_seconds_count", 1.0),
    ("results_unconfirmed", 0.0),
    ("results_unroutable_total", 0.0),
    ("broker_connected", 1.0),
    ("broker_reconnects_total", 0.0),
    // 12 results to two addresses each, two retries, two dead letters.
    (r#"channel_sent_total{channel="deliveries"}"#, 12.0),
    (r#"channel_received_total{channel="deliveries"}"#, 12.0),
    (r#"channel_depth{channel="deliveries"}"#, 0.0),
    (r#"channel_capacity{channel="deliveries"}"#, 5.0),
    (r#"tasks_spawned_total{task="job"}"#, 12.0),
    (r#"tasks_completed_total{outcome="completed",task="job"}"#, 12.0),
];

#[test]
fn counts_agree_with_what_was_done_to_the_unit() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "3", "--prefetch", "5"]);
    bench.listen();
    a_bit_of_everything(&bench);
    // Replies come before acks and what is counted then.
    worker.metric_becomes(r#"synthex_tasks_completed_total{outcome="completed",task="job"}"#, 12.0);
    worker.metric_becomes(r#"synthex_unacked{pool="default"}"#, 0.0);

    let of_the_pool = OF_THE_POOL.map(|(name, count)| (format!(r#"synthex_{name}{{pool="default"}}"#), count));
    let finished = |status| format!(r#"synthex_jobs_finished_total{{pool="default",status="{status}"}}"#);
    let by_status = BY_STATUS.map(|(status, count)| (finished(status), count));
    let others = OTHERS.map(|(series, count)| (format!("synthex_{series}"), count));
    let wanted: Vec<(String, f64)> = of_the_pool.into_iter().chain(by_status).chain(others).collect();
    let found: Vec<(String, f64)> = wanted
        .iter()
        .map(|(series, _)| (series.clone(), worker.metric(series)))
        .collect();
    assert_eq!(found, wanted);
    // Confirms of jobs, but for those of what the worker says of itself, which comes every few seconds.
    wait_until(PATIENCE, "28 confirms are of jobs", || {
        let told = worker.metric(r#"synthex_events_published_total{about="worker"}"#);
        worker.metric("synthex_publish_confirm_seconds_count") - told == 28.0
    });
    worker.stop();
}

#[test]
fn the_page_is_one_that_prometheus_accepts() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    bench.send("default", "one", &json!({"command": ["true"]}));
    bench.reply();
    let checked = Cli::program("promtool", ["check", "metrics"])
        .stdin(worker.metrics())
        .run()
        .expect_code(0);
    assert_eq!(checked.stdout + &checked.stderr, "");
}

#[test]
fn a_worker_is_ready_while_it_consumes() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    assert_eq!(worker.get("/readyz").0, 200);
    assert_eq!(worker.get("/healthz").0, 200);
    worker.metric_becomes(r#"synthex_queue_consumers{pool="default"}"#, 1.0);
}

#[test]
fn a_worker_without_a_broker_waits_and_is_not_ready() {
    let mut bench = Bench::new();
    bench.url = "amqp://guest:hush@127.0.0.1:1/%2f".to_owned();
    let running = bench.start(&[]);
    running.wait_for_line(|line| line.contains("not consuming") && line.contains("127.0.0.1:1"));
    let worker = Worker::ready(running, 0);
    let (status, why) = worker.get("/readyz");
    assert_eq!(status, 503);
    assert!(why.contains("pool default"), "{why}");
    assert_eq!(worker.get("/healthz").0, 200);
    worker.running.signal(Signal::TERM);
    wait_until(PATIENCE, "it stops although nobody answers", || {
        !worker.running.is_running()
    });
    worker.running.wait().expect_code(0);
}
