//! A batch seen from anywhere.

use serde_json::{Value, json};

use crate::fleet::{Fleet, PATIENCE, block_on, results};
use crate::support::broker::Broker;
use crate::support::process::wait_until;
use crate::support::schema;

fn status(fleet: &Fleet, id: &str) -> Value {
    let told = fleet.batch(&["status", "--json", id]).run().expect_code(0);
    let state = serde_json::from_str(&told.stdout).unwrap();
    schema::assert_described(&state, "fleet", Some("BatchState"));
    state
}

fn detach(fleet: &Fleet, args: &[&str]) -> String {
    let detached = fleet.batch(&[&["--detach"], args].concat()).run().expect_code(0);
    detached.stdout.trim().to_owned()
}

/// Waits until the broker has counted what was said of so many batches, that they begin and that all is submitted. It is
/// seconds late, and who reads the log waits only a moment for what is not counted.
fn are_known(fleet: &Fleet, batches: u32) {
    wait_until(PATIENCE, "what was said of the batches is counted", || {
        fleet.queue("batches").is_some_and(|log| log.messages >= 2 * batches)
    });
}

/// Waits until it is known how many items of a batch ended in which way.
fn is_finished(fleet: &Fleet, id: &str, finished: &Value) {
    wait_until(PATIENCE, &format!("these have ended: {finished}"), || {
        status(fleet, id)["finished"] == *finished
    });
}

#[test]
fn a_detached_batch_is_followed_fetched_and_gone() {
    let fleet = Fleet::new();
    fleet.declare();
    let id = detach(&fleet, &["--range", "1-30", "--", "sh", "-c", "test {} != 7"]);
    are_known(&fleet, 1);
    let before = status(&fleet, &id);
    assert_eq!(
        (&before["total"], &before["submitted"], &before["ended"]),
        (&json!(30), &json!(true), &json!(false))
    );
    let waited = fleet.batch(&["wait", "--timeout", "100ms", &id]).run().expect_code(75);
    assert!(waited.stderr.contains("it goes on"), "{}", waited.stderr);

    let _worker = fleet.worker(4);
    fleet.batch(&["wait", &id]).run().expect_code(3);
    let after = status(&fleet, &id);
    assert_eq!(
        (&after["ended"], &after["finished"]),
        (&json!(true), &json!({"succeeded": 29, "failed": 1}))
    );
    assert_eq!(status(&fleet, &id), after, "to look takes nothing away");
    for _ in 0..2 {
        let seen = fleet.batch(&["results", "--json", &id]).run().expect_code(0);
        assert_eq!((results(&seen.stdout).len(), &*seen.stderr), (30, ""));
    }

    fleet
        .batch(&["results", &id, "--results", "r.jsonl"])
        .run()
        .expect_code(0);
    let ended = results(&fleet.read("r.jsonl"));
    assert_eq!((ended.len(), &ended[&(7, 1)]["status"]), (30, &json!("failed")));
    assert_eq!(fleet.queue(&format!("batch.{id}")), None);
    wait_until(PATIENCE, "it is known what was taken", || {
        let gone = fleet.batch(&["results", &id]).run().expect_code(0);
        assert_eq!(gone.stdout, "");
        gone.stderr == "synthex: no results wait: 30 were taken before: 29 succeeded, 1 failed\n"
    });
    is_finished(&fleet, &id, &json!({"succeeded": 29, "failed": 1}));
    // So that the next who reads it knows how much there is to read.
    wait_until(PATIENCE, "begin, end of the input, and end are counted", || {
        fleet.queue("batches").is_some_and(|log| log.messages >= 3)
    });
    fleet.batch(&["wait", &id]).run().expect_code(3);

    let unknown = fleet.batch(&["status", "nobody"]).run().expect_code(2);
    assert!(
        unknown.stderr.contains("batch nobody is not known"),
        "{}",
        unknown.stderr
    );
}

#[test]
fn results_are_fetched_in_parts() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(3);
    let folder = fleet.folder.path().to_str().unwrap();
    let script = "test {} = 1 || while [ ! -e go ]; do sleep 0.01; done";
    let id = detach(&fleet, &["--cwd", folder, "--range", "1-3", "--", "sh", "-c", script]);
    are_known(&fleet, 1);
    fleet.waits_for(&format!("batch.{id}"), 1);
    let seen = fleet.batch(&["results", &id]).run().expect_code(0);
    assert_eq!(results(&seen.stdout).into_keys().collect::<Vec<_>>(), [(1, 1)]);
    assert_eq!(seen.stderr, "synthex: 1 results so far; the batch goes on\n");
    let take = |file: &str| fleet.batch(&["results", &id, "--results", file]).run().expect_code(0);
    take("first.jsonl");
    let items = |file: &str| results(&fleet.read(file)).into_keys().collect::<Vec<_>>();
    assert_eq!(items("first.jsonl"), [(1, 1)]);
    is_finished(&fleet, &id, &json!({"succeeded": 1}));
    std::fs::write(fleet.path("go"), "").unwrap();
    fleet.batch(&["wait", &id]).run().expect_code(0);
    take("rest.jsonl");
    assert_eq!(items("rest.jsonl"), [(2, 1), (3, 1)]);
    wait_until(PATIENCE, "it has ended", || status(&fleet, &id)["ended"] == true);
}

#[test]
fn a_batch_is_cancelled_as_a_whole() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(2);
    let id = detach(&fleet, &["--range", "1-20", "--", "sleep", "300"]);
    let other = detach(&fleet, &["--range", "1-2", "--", "true"]);
    are_known(&fleet, 2);
    fleet.batch(&["cancel", &id]).run().expect_code(0);
    fleet.batch(&["wait", &id]).run().expect_code(3);
    assert_eq!(status(&fleet, &id)["finished"], json!({"cancelled": 20}));
    fleet.batch(&["wait", &other]).run().expect_code(0);

    std::fs::write(fleet.path("none.jsonl"), "").unwrap();
    let none = fleet.batch(&["--detach", "none.jsonl"]).run().expect_code(0);
    assert_eq!(none.stderr, "synthex: no jobs\n");
    are_known(&fleet, 3);
    fleet.batch(&["wait", none.stdout.trim()]).run().expect_code(0);
}

#[test]
fn private_broker_a_batch_outlives_its_submitter_and_the_broker_s_restart() {
    let broker = block_on(Broker::start());
    let fleet = Fleet::at(broker.amqp_url());
    fleet.declare();
    let id = detach(&fleet, &["--range", "1-40", "--", "true"]);
    block_on(broker.restart());
    let attached = fleet
        .batch(&["--results", "r.jsonl", "--range", "1-300", "--", "true"])
        .spawn();
    let worker = fleet.worker(2);
    wait_until(PATIENCE, "some have ended", || {
        fleet.read("r.jsonl").lines().count() > 20
    });
    block_on(broker.restart());
    attached.wait().expect_code(0);
    assert_eq!(results(&fleet.read("r.jsonl")).len(), 300);
    fleet.batch(&["wait", &id]).run().expect_code(0);
    let fetched = fleet.batch(&["results", &id]).run().expect_code(0);
    assert_eq!(results(&fetched.stdout).len(), 40);
    drop(worker);
}
