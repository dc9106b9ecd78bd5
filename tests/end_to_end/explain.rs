//! `synthex explain`: where a job is, for every place that a job can be in, and nothing changes by asking.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::bench::{Bench, Gate, ask_until, assert_has, has};
use crate::fleet::assert_described;
use crate::support::cli::Finished;

/// What is said of a job once that has these fields, with the exit code.
#[track_caller]
fn explained(bench: &Bench, args: &[&str], code: i32, wanted: &Value) -> Value {
    let args = [&["explain", "--json", "--wait", "600ms"], args].concat();
    let is_wanted = |said: &Finished| {
        let lines = said.json_lines();
        said.code == Some(code) && lines.first().is_some_and(|explanation| has(explanation, wanted))
    };
    let said = ask_until(|| bench.synthex(&args).run(), is_wanted)
        .json_lines()
        .remove(0);
    assert_described(&said, "Explanation");
    said
}

fn in_an_hour() -> String {
    (Timestamp::now() + SignedDuration::from_hours(1)).to_string()
}

#[test]
fn a_job_is_found_wherever_a_worker_or_the_broker_has_it() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1", "--prefetch", "2"]);
    bench.listen();
    let runs = format!("runs-{}", bench.namespace);
    let gate = Gate::new(&bench, &runs);
    bench.send("default", "done", &json!({"command": ["true"]}));
    bench.send("default", "wrong", &json!({"comand": ["true"]}));
    bench.replies(2);
    bench.send(
        "default",
        "later",
        &json!({"command": ["true"], "not_before": in_an_hour()}),
    );
    bench.waits_for("delay.20m", 1);
    bench.send("default", &runs, &gate.job());
    gate.started();
    bench.send("default", "waits", &json!({"command": ["true"]}));
    worker.metric_becomes(r#"synthex_unacked{pool="default"}"#, 2.0);
    bench.send("default", "queued", &json!({"command": ["true"]}));
    bench.waits_for("jobs.default", 1);

    let wanted = json!({"verdict": "running", "pool": "default", "attempt": 1});
    let running = explained(&bench, &[&runs], 0, &wanted);
    assert!(running["deadline"].is_string());
    let wanted = json!({"verdict": "waits_for_slot", "running": 1});
    explained(&bench, &["waits"], 0, &wanted);
    let wanted = json!({"verdict": "finished", "status": "succeeded"});
    explained(&bench, &["done"], 0, &wanted);
    let wanted = json!({"verdict": "dead", "reason": "rejected", "pool": "default"});
    let dead = explained(&bench, &["wrong"], 0, &wanted);
    assert!(
        dead["error"].as_str().is_some_and(|error| error.contains("comand")),
        "{dead}"
    );
    those_that_wait_are_found(&bench);
    let letters = bench
        .synthex(&["dead", "list", "--json"])
        .run()
        .expect_code(0)
        .json_lines();
    assert_described(&letters[0], "Letter");
    // Neither the dead letter nor the delayed job went anywhere.
    assert_eq!((bench.ready("dead"), bench.ready("delay.20m")), (1, 1));

    gate.open();
    let ended = bench.replies(3);
    assert!(
        ended.keys().all(|(_, attempt)| *attempt == 1),
        "asking is no attempt: {ended:?}"
    );
    worker.stop();
}

fn those_that_wait_are_found(bench: &Bench) {
    let wanted = json!({"verdict": "delayed", "pool": "default"});
    let delayed = explained(bench, &["later"], 0, &wanted);
    assert!(delayed["until"].is_string(), "{delayed}");
    bench.synthex(&["cancel", "later"]).run().expect_code(0);
    bench.waits_for("control.log", 1);
    let cancelled = explained(bench, &["later"], 0, &wanted);
    let message = cancelled["message"].as_str().unwrap_or_default();
    assert!(message.contains("it is cancelled since "), "{message}");
    let wanted = json!({"verdict": "slots_busy", "ready": 1, "slots": 1});
    explained(bench, &["queued"], 0, &wanted);
}

#[test]
fn a_look_into_a_delay_neither_loses_nor_counts_a_job() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let at = Timestamp::now() + SignedDuration::from_secs(45);
    bench.send(
        "default",
        "soon",
        &json!({"command": ["true"], "not_before": at.to_string()}),
    );
    bench.waits_for("delay.20s", 1);
    for id in ["another", "third"] {
        explained(&bench, &[id], 1, &json!({})); // through that queue, and past this job
    }
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "soon", "status": "succeeded", "attempt": 1}));
    assert!(bench.try_reply().is_none());
    worker.stop();
}

#[test]
fn a_queue_that_nobody_serves_or_that_is_paused_is_told_with_its_remedy() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"p\"\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": bench.named("my-replies")}));
    bench.send("p", "job", &json!({"command": ["true"]}));
    let explain = |wanted: &Value| explained(&bench, &["job", "--pool", "p"], 0, wanted);
    explain(&json!({"verdict": "no_consumer", "pool": "p", "ready": 1}));

    bench.synthex(&["pause", "p"]).run().expect_code(0);
    bench.waits_for("control.log", 1);
    let paused = explain(&json!({"verdict": "paused", "remedy": "`synthex resume p`"}));
    assert!(paused["since"].is_string() && paused["by"].is_string(), "{paused}");
    // It has little time to look for that.
    ask_until(
        || {
            let submit = bench.synthex(&["submit", "--pool", "p", "--", "true"]);
            submit.run().expect_code(0).stderr
        },
        |told| told.contains("pool \"p\" is paused since ") && told.contains("`synthex resume p`"),
    );
    let doctor = bench.synthex(&["doctor", &pool, "--json", "--wait", "300ms"]).run();
    let found = doctor.expect_code(0).json_lines();
    let is_note = |finding: &Value| finding["check"] == "paused" && finding["severity"] == "note";
    assert!(found.iter().any(is_note), "{found:#?}");

    bench.synthex(&["cancel", "job"]).run().expect_code(0);
    bench.waits_for("control.log", 2);
    explain(&json!({"verdict": "cancelled"}));
    let wanted = json!({"verdict": "no_queue", "pool": "nobody"});
    explained(&bench, &["other", "--pool", "nobody"], 0, &wanted);
    // In words, and the remedy on stderr.
    let said = bench
        .synthex(&["explain", "another", "--pool", "p", "--wait", "600ms"])
        .run()
        .expect_code(0);
    assert!(
        said.stdout.starts_with("job another is in nobody's hands"),
        "{}",
        said.stdout
    );
    assert!(said.stderr.contains("synthex resume p"), "{}", said.stderr);
}

#[test]
fn an_id_that_nobody_knows_brings_the_nearest_to_mind() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    bench.listen();
    let runs = format!("nightly-{}", bench.namespace);
    let gate = Gate::new(&bench, &runs);
    bench.send("default", &runs, &gate.job());
    gate.started();
    let slip = format!("{}x", &runs[..runs.len() - 1]);
    let hint = format!("did you mean {runs:?}?");
    ask_until(
        || explained(&bench, &[&slip], 1, &json!({"verdict": "unknown"})),
        |unknown| unknown["message"].as_str().expect("it is text").contains(&hint),
    );
    gate.open();
    worker.stop();
}
