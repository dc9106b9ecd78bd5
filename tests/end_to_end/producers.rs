//! Anything that can publish can run a command: pika, amqp-tools, with and without properties.

use serde_json::json;

use crate::bench::{Bench, assert_has};
use crate::support::cli::Cli;

/// Runs a program of amqp-tools on the bench's broker.
fn tool(bench: &Bench, program: &str, args: &[&str]) -> Cli {
    Cli::program(program, [&["-u", &bench.url], args].concat())
}

#[test]
fn a_job_by_pika_is_answered_on_reply_to_and_to_all_and_acked() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "2"]);
    let broker = ["--url", &bench.url, "--namespace", &bench.namespace];
    let listener = Cli::pika("results_pika.py", [&broker[..], &["--count", "1"]].concat()).spawn();
    listener.wait_for_line(|line| line == "listening");

    let job = json!({"command": ["sh", "-c", "echo out; echo err >&2"], "labels": {"team": "blue"}});
    let replies = Cli::pika("submit_pika.py", broker)
        .stdin(job.to_string())
        .run()
        .expect_code(0);
    let results = listener.wait().expect_code(0);

    let (reply, result) = (&replies.json_lines()[0], &results.json_lines()[0]);
    let id = reply["job_id"].as_str().expect("a result has a job's id");
    let message_id = format!("{id}/1");
    assert_has(
        &reply["_properties"],
        &json!({"correlation_id": "1", "message_id": message_id, "type": "succeeded", "content_type": "application/json"}),
    );
    assert_has(
        result,
        &json!({
            "routing_key": "default.succeeded", "message_id": message_id, "correlation_id": "1", "type": "succeeded",
            "content_type": "application/json", "delivery_mode": 2,
        }),
    );
    assert_eq!(
        (&reply["stdout"]["text"], &reply["stderr"]["text"]),
        (&json!("out\n"), &json!("err\n"))
    );
    assert_has(
        reply,
        &json!({"attempt": 1, "status": "succeeded", "final": true, "exit_code": 0, "labels": {"team": "blue"}}),
    );
    assert_eq!(reply["worker"]["pool"], "default");
    assert!(
        reply["queued_at"].is_string(),
        "the producer gave a timestamp: {reply:#}"
    );
    // Both got the same result; the script adds what it was labelled with.
    let mut bare = reply.clone();
    bare.as_object_mut()
        .expect("a result is an object")
        .remove("_properties");
    assert_eq!(bare, result["body"]);

    worker.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn a_job_without_any_property_runs_under_a_new_id() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let exchange = bench.named("jobs");
    let body = r#"{"script": "echo $SYNTHEX_JOB_ID"}"#;
    tool(&bench, "amqp-publish", &["-e", &exchange, "-r", "default", "-b", body])
        .run()
        .expect_code(0);

    let result = bench.result();
    let id = result.json()["job_id"]
        .as_str()
        .expect("a result has a job's id")
        .to_owned();
    let uuid: uuid::Uuid = id.parse().expect("the new id is a UUID");
    assert_eq!(uuid.get_version_num(), 7);
    assert_has(
        &result.json(),
        &json!({"status": "succeeded", "attempt": 1, "queued_at": null}),
    );
    assert_eq!(result.json()["stdout"]["text"], format!("{id}\n"));
    assert!(result.properties["correlation_id"].is_null(), "{}", result.properties);

    worker.stop();
    bench.is_drained("jobs.default");
    assert_eq!(bench.ready("my-replies"), 0, "nobody asked for a reply");
}

#[test]
fn amqp_tools_can_ask_and_read_the_answer() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let (exchange, replies) = (bench.named("jobs"), bench.named("my-replies"));
    let ask = [
        "-e",
        &exchange,
        "-r",
        "default",
        "-p",
        "-C",
        "application/json",
        "-t",
        &replies,
    ];
    let job = r#"{"id": "by-hand", "command": ["cat"], "stdin": "fed"}"#;
    tool(&bench, "amqp-publish", &ask).stdin(job).run().expect_code(0);
    worker
        .running
        .wait_for_line(|line| line.contains("job ended") && line.contains("by-hand"));

    let answer = tool(&bench, "amqp-get", &["-q", &replies]).run().expect_code(0);
    let result = &answer.json_lines()[0];
    assert_has(result, &json!({"job_id": "by-hand", "status": "succeeded"}));
    assert_eq!(result["stdout"]["text"], "fed");
    tool(&bench, "amqp-get", &["-q", &replies]).run().expect_code(2); // it is empty: one reply, not two
}

#[test]
fn the_broker_s_direct_reply_to_works() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let job = br#"{"id": "direct", "command": ["echo", "here"]}"#;
    let properties = json!({"correlation_id": "mine"});
    let answer = bench.rabbit.ask(&bench.named("jobs"), "default", job, &properties);
    assert_eq!(answer.property("correlation_id"), "mine");
    assert_has(&answer.json(), &json!({"job_id": "direct", "status": "succeeded"}));
    // The broker returns such a message although it delivers it; that is no reply that led nowhere.
    let ended = |line: &str| line.contains("job ended") && line.contains("direct");
    worker.running.wait_for_line(ended);
    assert!((worker.metric("synthex_results_unroutable_total") - 0.0).abs() < 0.5);
    worker.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn a_job_straight_to_the_pool_s_queue_runs() {
    let bench = Bench::new();
    let _worker = bench.worker(&[]);
    bench.listen();
    let queue = bench.named("jobs.default");
    let job = br#"{"command": ["echo", "straight"]}"#;
    assert!(bench.rabbit.publish("", &queue, job, &bench.properties("straight")));
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "straight", "status": "succeeded"}));
}

#[test]
fn a_job_of_an_unknown_pool_is_kept_as_a_dead_letter() {
    let bench = Bench::new();
    let _worker = bench.worker(&[]);
    let job = br#"{"command": ["echo", "nobody runs this"]}"#;
    bench.send_bytes("nobody", job, &bench.properties("stray"));
    let kept = bench.dead_letter();
    assert_eq!(kept.body, job);
    assert_eq!(kept.routing_key, "nobody");
    assert_eq!(kept.property("message_id"), "stray");
    // Straight to its queue, the producer is told at once.
    let queue = bench.named("jobs.nobody");
    assert!(!bench.rabbit.publish("", &queue, job, &bench.properties("stray")));
}

#[test]
fn a_reply_to_that_is_gone_is_counted_and_holds_no_job_up() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let mut properties = bench.properties("to-nobody");
    properties["reply_to"] = "no-such-queue".into();
    bench.send_bytes("default", br#"{"command": ["true"]}"#, &properties);
    bench.send("default", "after", &json!({"command": ["true"]}));

    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "after", "status": "succeeded"}),
    );
    worker.metric_becomes(r#"synthex_jobs_finished_total{pool="default",status="succeeded"}"#, 2.0);
    worker.metric_becomes("synthex_results_unroutable_total", 1.0);
    let first = bench.result().json();
    assert_has(&first, &json!({"job_id": "to-nobody", "status": "succeeded"}));
    worker.stop();
    bench.is_drained("jobs.default");
}
