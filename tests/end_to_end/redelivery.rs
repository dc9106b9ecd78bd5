//! A worker that dies loses no job: another one runs it, counted, and a job that kills workers comes to an end.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::{Bench, Gate, PATIENCE, Worker, assert_has, key};
use crate::support::process::{Signal, wait_until};

#[test]
fn a_job_whose_worker_is_killed_runs_again_elsewhere_as_the_second_attempt() {
    let bench = Bench::new();
    let first = bench.worker(&["--slots", "1"]);
    bench.listen();
    let gate = Gate::new(&bench, &format!("orphan-{}", bench.namespace));
    let id = format!("orphan-{}", bench.namespace);
    bench.send("default", &id, &gate.job());
    gate.started();
    first.running.signal(Signal::KILL);
    assert_eq!(first.running.wait().signal, Some(9));

    gate.reset();
    let second = bench.worker(&["--slots", "1"]);
    gate.started();
    gate.open();
    let (reply, result) = (bench.reply(), bench.result());
    assert_has(
        &reply.json(),
        &json!({"job_id": id, "attempt": 2, "status": "succeeded", "final": true}),
    );
    assert_eq!(reply.property("message_id"), format!("{id}/2"));
    assert_eq!(reply.property("correlation_id"), format!("about {id}"));
    assert_eq!(reply.json(), result.json());
    second.stop();
    bench.is_drained("jobs.default");
    assert_eq!(
        (bench.ready("my-results"), bench.ready("dead")),
        (0, 0),
        "one result, of the second attempt"
    );
}

#[test]
fn a_job_that_kills_every_worker_ends_as_lost() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\ndelivery_limit = 2\n");
    let runs = bench.path("runs");
    let mut worker = bench.worker(&[&pool]);
    bench.listen();
    // Its parent is a keeper, whose parent is a spawner, whose parent is the worker.
    let kill = "parent() { cut -d' ' -f4 /proc/$1/stat; }; kill -9 $(parent $(parent $PPID))";
    let job = json!({"script": format!("echo $SYNTHEX_ATTEMPT >> {}; {kill}", runs.display())});
    bench.send("default", "poison", &job);
    for _ in 0..2 {
        assert_eq!(worker.running.wait().signal, Some(9), "the job kills its worker");
        // It may be killed before it tells that it consumes.
        let running = bench.start(&[&pool]);
        wait_until(PATIENCE, "it consumes or is killed", || {
            running.stderr().contains("INFO consuming") || !running.is_running()
        });
        worker = Worker::late(running);
    }
    let (reply, result) = (bench.reply(), bench.result());
    assert_has(
        &reply.json(),
        &json!({"job_id": "poison", "attempt": 2, "status": "lost", "final": true, "exit_code": null}),
    );
    assert_eq!(reply.json()["error"]["kind"], "delivery_limit");
    assert_eq!(result.routing_key, "default.lost");
    assert_eq!(result.json(), reply.json());
    let dead = bench.dead_letter();
    assert_eq!(dead.json(), job);
    assert_eq!(dead.header("x-synthex-reason"), "lost");
    assert_eq!(dead.header("x-synthex-pool"), "default");
    assert_eq!(dead.headers["x-synthex-attempt"], 2);
    let counted = fs::read_to_string(runs).expect("it ran");
    assert_eq!(counted, "1\n2\n", "it ran twice, each time counted");

    bench.send("default", "good", &json!({"command": ["true"]}));
    assert_has(&bench.reply().json(), &json!({"job_id": "good", "status": "succeeded"}));
    worker.running.signal(Signal::TERM);
    worker.running.wait().expect_code(0);
    bench.is_drained("jobs.default");
}

/// It kills its worker at each run. From its third attempt it runs alone, so its first two deaths are the only ones in
/// which others lose their worker too.
#[test]
fn a_job_that_kills_every_worker_takes_no_neighbour_along() {
    const GOOD: usize = 50;
    const IN_HAND: usize = 12;
    let bench = Bench::new();
    let pool = bench.pool(&format!("pool = \"default\"\nslots = 4\nprefetch = {IN_HAND}\n"));
    let mut running = bench.start(&[&pool]);
    wait_until(PATIENCE, "it consumes", || running.stderr().contains("INFO consuming"));
    bench.listen();
    let runs = bench.path("runs");
    let kill = "parent() { cut -d' ' -f4 /proc/$1/stat; }; kill -9 $(parent $(parent $PPID))";
    let note = format!("echo $SYNTHEX_JOB_ID $SYNTHEX_ATTEMPT >>{}", runs.display());
    let poison = json!({"script": format!("{note}; {kill}")});
    let good = json!({"script": format!("{note}; sleep 0.1")});
    for number in 0..GOOD {
        if number == IN_HAND / 2 {
            bench.send("default", "poison", &poison);
        }
        bench.send("default", &format!("good-{number}"), &good);
    }

    let mut results: BTreeMap<String, Value> = BTreeMap::new();
    let (mut deaths, mut logs) = (0, String::new());
    while results.len() <= GOOD {
        if !running.is_running() {
            let finished = running.wait();
            assert_eq!(finished.signal, Some(9), "the job kills its worker");
            logs.push_str(&format!("--- death\n{}", finished.stderr));
            deaths += 1;
            running = bench.start(&[&pool]);
        }
        // One whose ack went with its worker has a second result, of a higher attempt.
        results.extend(bench.try_reply().map(|reply| (key(&reply.json()).0, reply.json())));
    }
    // Second runs end, too: what waits for its slot at the stop would go back.
    bench.waits_for("jobs.default", 0);
    wait_until(PATIENCE, "no job is in hand", || {
        let state = bench.synthex(&["workers", "--json"]).run().expect_code(0).json_lines();
        state.len() == 1 && state[0]["pools"][0]["in_hand"] == 0
    });
    running.signal(Signal::TERM);
    running.wait().expect_code(0);

    let lost = results.remove("poison").expect("it has an end");
    assert_has(&lost, &json!({"status": "lost", "attempt": 5, "final": true}));
    assert_eq!(bench.dead_letter().header("x-synthex-reason"), "lost");
    assert!(
        results.values().all(|result| result["status"] == "succeeded"),
        "every neighbour ends well: {results:#?}\n{logs}"
    );
    let counted: u64 = results
        .values()
        .map(|result| result["attempt"].as_u64().unwrap() - 1)
        .sum();
    let with_company = 2 * (IN_HAND as u64 - 1);
    assert!(
        counted <= with_company,
        "{counted} deliveries of neighbours were lost, though only two deaths had company:\n{logs}"
    );
    let attempts = attempts_of_poison(&runs);
    // A broker that takes seconds to take a delivery back counts one that nobody began.
    let ascend = attempts.is_sorted_by(|one, next| one < next);
    assert!(ascend && (4..=5).contains(&attempts.len()), "{attempts:?}\n{logs}");
    assert_eq!(deaths, attempts.len(), "{attempts:?}\n{logs}");
    bench.is_drained("jobs.default");
}

fn attempts_of_poison(runs: &Path) -> Vec<u32> {
    let ran = fs::read_to_string(runs).expect("they ran");
    let attempts = ran.lines().filter_map(|line| line.strip_prefix("poison "));
    attempts.map(|attempt| attempt.parse().expect("a number")).collect()
}
