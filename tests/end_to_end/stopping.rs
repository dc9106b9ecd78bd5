//! What is stopped is drained: the first signal finishes what runs, the second (or the grace's end) gives it back.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bench::{Bench, Gate, Worker, assert_has};
use crate::support::process::{Process, Signal};

const UNACKED: &str = r#"synthex_unacked{pool="default"}"#;

/// The stop report: the last line on stderr.
fn report(stderr: &str) -> &str {
    stderr.lines().last().unwrap_or_default()
}

#[test]
fn a_drain_finishes_what_runs_and_gives_back_the_rest_uncounted() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "1", "--prefetch", "4"]);
    bench.listen();
    let gate = Gate::new(&bench, &format!("running-{}", bench.namespace));
    let id = format!("running-{}", bench.namespace);
    bench.send("default", &id, &gate.job());
    gate.started();
    let waiting = ["a", "b", "c", "d", "e"];
    for id in waiting {
        bench.send("default", id, &json!({"script": "echo attempt $SYNTHEX_ATTEMPT"}));
    }
    worker.metric_becomes(UNACKED, 4.0); // one runs, three wait for its slot, two are with the broker
    bench.waits_for("jobs.default", 2);
    assert_eq!(worker.get("/readyz").0, 200);

    worker.running.signal(Signal::TERM);
    bench.waits_for("jobs.default", 5); // while the one still runs
    assert!(worker.running.is_running());
    assert_eq!(worker.get("/readyz").0, 503);
    gate.open();
    let ended = worker.running.wait().expect_code(0);
    assert_eq!(
        report(&ended.stderr),
        "synthex: stopped: 0 running jobs cut and given back, 3 unstarted jobs given back, tasks left: none"
    );
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": id, "attempt": 1, "status": "succeeded", "final": true}),
    );
    assert_has(&bench.result().json(), &json!({"job_id": id}));
    bench.waits_for("jobs.default", 5);

    let next = bench.worker(&[]);
    let replies = bench.replies(5);
    for id in waiting {
        let reply = &replies[&(id.to_owned(), 1)]; // no raised attempt
        assert_eq!(reply["stdout"]["text"], "attempt 1\n");
    }
    next.stop();
    bench.is_drained("jobs.default");
}

/// After a stop that cut a running job: it is dead, told, given back, and runs again, counted.
fn is_cut_and_runs_again(bench: &Bench, worker: Worker, gate: &Gate, id: &str, job: &Process) {
    let ended = worker.running.wait().expect_code(1);
    assert_eq!(
        report(&ended.stderr),
        "synthex: stopped: 1 running jobs cut and given back, 0 unstarted jobs given back, tasks left: none"
    );
    assert!(!job.is_alive(), "the job's command outlives its worker");
    bench.waits_for("jobs.default", 1);
    assert_eq!(bench.ready("my-replies"), 0, "it has no end yet");
    gate.reset();
    gate.open();
    let next = bench.worker(&[]);
    let reply = bench.reply().json();
    assert_has(
        &reply,
        &json!({"job_id": id, "attempt": 2, "status": "succeeded", "final": true}),
    );
    next.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn a_second_signal_kills_what_runs_and_gives_it_back() {
    for signal in [Signal::TERM, Signal::INT] {
        let bench = Bench::new();
        let worker = bench.worker(&["--slots", "1"]);
        bench.listen();
        let id = format!("cut-{}", bench.namespace);
        let gate = Gate::new(&bench, &id);
        bench.send("default", &id, &gate.job());
        let job = Process::read(gate.started()).expect("the job runs");
        worker.running.signal(signal);
        worker.running.wait_for_line(|line| line.contains("draining"));
        assert!(job.is_alive(), "one signal lets it finish");
        worker.running.signal(signal);
        is_cut_and_runs_again(&bench, worker, &gate, &id, &job);
    }
}

#[test]
fn the_end_of_the_grace_kills_what_runs_and_gives_it_back() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\nstop_grace = \"400ms\"\n");
    let worker = bench.worker(&[&pool]);
    bench.listen();
    let id = format!("slow-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    bench.send("default", &id, &gate.job());
    let job = Process::read(gate.started()).expect("the job runs");
    worker.running.signal(Signal::TERM);
    is_cut_and_runs_again(&bench, worker, &gate, &id, &job);
}

#[test]
fn an_idle_worker_stops_at_once() {
    let bench = Bench::new();
    let worker = bench.worker(&[]);
    let ended = worker.stop();
    assert_eq!(
        report(&ended.stderr),
        "synthex: stopped: 0 running jobs cut and given back, 0 unstarted jobs given back, tasks left: none"
    );
}

#[test]
fn all_pools_of_a_worker_stop_taking_jobs_at_once() {
    let bench = Bench::new();
    let pools = ["one", "two"].map(|pool| bench.pool(&format!("pool = \"{pool}\"\nslots = 1\nprefetch = 3\n")));
    let worker = Worker::ready(bench.start(&[&pools[0], &pools[1]]), 2);
    bench.listen();
    let gates = ["one", "two"].map(|pool| {
        let id = format!("in-{pool}-{}", bench.namespace);
        let gate = Gate::new(&bench, &id);
        bench.send(pool, &id, &gate.job());
        gate.started();
        gate
    });
    worker.running.signal(Signal::TERM);
    for pool in ["one", "two"] {
        let stopped = format!("stopped consuming pool=\"{pool}\"");
        worker.running.wait_for_line(|line| line.contains(&stopped)); // while both jobs still run
        bench.send(pool, "too-late", &json!({"command": ["true"]}));
    }
    gates.iter().for_each(Gate::open);
    let ended = worker.running.wait().expect_code(0);
    assert!(
        report(&ended.stderr).contains(" 0 unstarted jobs given back"),
        "{}",
        ended.stderr
    );
    assert_eq!(bench.replies(2).len(), 2);
    assert_eq!((bench.ready("jobs.one"), bench.ready("jobs.two")), (1, 1));
}

#[test]
fn the_graces_of_all_pools_begin_with_the_signal() {
    let bench = Bench::new();
    let pools = ["one", "two"].map(|pool| bench.pool(&format!("pool = \"{pool}\"\nslots = 1\nstop_grace = \"10s\"\n")));
    let worker = Worker::ready(bench.start(&[&pools[0], &pools[1]]), 2);
    let _gates = ["one", "two"].map(|pool| {
        let id = format!("in-{pool}-{}", bench.namespace);
        let gate = Gate::new(&bench, &id);
        bench.send_bytes(pool, gate.job().to_string().as_bytes(), &json!({"message_id": id}));
        gate.started();
        gate
    });
    let told = Instant::now();
    worker.running.signal(Signal::TERM);
    let ended = worker.running.wait().expect_code(1);
    let took = told.elapsed();
    assert!(
        ended.stderr.contains("stopped: 2 running jobs cut and given back"),
        "{}",
        ended.stderr
    );
    assert!(took >= Duration::from_secs(10), "{took:?} are no grace of 10 s");
    assert!(took < Duration::from_secs(20), "{took:?} are one grace after the other");
}
