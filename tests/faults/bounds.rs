//! Everything at its bound: `synthex worker` whose broker is frozen, whose disk is full, and whose results nobody reads.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use synthex::message::Status::Succeeded;
use synthex::transport::amqp::Amqp;

use crate::crash::{becomes, metrics, on_a_full_disk, stop};
use crate::private_broker::{rig, scrape};
use crate::rig::{RESULTS, Rig, ends};
use crate::support::broker::Broker;
use crate::support::cli::{Cli, Running};
use crate::support::process::resident;

const JOBS: usize = 96;
const SLOTS: usize = 4;
const PREFETCH: usize = 32;
/// What each job writes, nearly as much as is kept of it: the results in hand are some megabytes.
const OUTPUT: usize = 60_000;
/// How much an allocator comes and goes. A buffer without a bound would take more in a moment.
const FLAT: u64 = 6 << 20;
/// How long all is stuck: the fault, and no way to wait for anything.
const STUCK: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn with_all_around_it_stuck_a_worker_stays_within_its_bounds_and_recovers() {
    if Cli::program("unshare", ["-m", "true"]).run().code != Some(0) {
        eprintln!("skipped: a file system of its own takes the right to mount one (root)");
        return;
    }
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let never_reads = rig.subscribe(RESULTS, 10).await;
    publish(&rig).await;
    let worker = on_a_full_disk(&rig, &url, &format!("slots = {SLOTS}\nprefetch = {PREFETCH}"));
    rig.wait_for_begun(SLOTS).await;
    becomes(&worker, "unacked{pool=\"faults\"}", PREFETCH as f64);

    broker.pause();
    rig.open("gate");
    becomes(&worker, "results_unconfirmed", PREFETCH as f64);
    becomes(&worker, "outbox_errors_total", PREFETCH as f64);
    becomes(&worker, "circuit_state{circuit=\"outbox\"}", 2.0);
    let stuck = resident(worker.pid());
    let until = tokio::time::Instant::now() + STUCK;
    while tokio::time::Instant::now() < until {
        within_bounds(&worker);
        let now = resident(worker.pid());
        assert!(now <= stuck + FLAT, "it grew from {stuck} to {now} bytes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(rig.begun().len(), PREFETCH, "what is not confirmed makes no room");
    // The worker's file system is its own.
    let full = format!("/proc/{}/root{}/full", worker.pid(), rig.path("disk").display());
    std::fs::remove_file(full).expect("the test has made it");
    drop(never_reads);
    broker.resume();

    let results = rig.wait_for_ends((0..JOBS).map(id)).await;
    assert!(
        results.values().all(|results| ends(results) == [(1, Succeeded)]),
        "{results:#?}"
    );
    let begun: BTreeSet<String> = rig.begun().into_iter().collect();
    assert_eq!((begun.len(), rig.begun().len()), (JOBS, JOBS), "each was started once");
    becomes(&worker, "unacked{pool=\"faults\"}", 0.0);
    the_disk_is_used_again(&rig, &broker, &worker).await;
    let now = resident(worker.pid());
    assert!(now <= stuck + FLAT, "it grew from {stuck} to {now} bytes");
    stop(worker).await;
    rig.assert_queue_is_empty().await;
    assert!(rig.results().await.is_empty(), "more results than jobs");
}

fn id(number: usize) -> String {
    format!("job-{number:03}")
}

async fn publish(rig: &Rig<Amqp>) {
    let gated = rig.gated("gate")["script"].as_str().expect("a script").to_owned();
    let job = json!({ "script": format!("{gated}; yes | head -c {OUTPUT}") }).to_string();
    rig.publish_all((0..JOBS).map(|number| (id(number), job.clone()))).await;
}

/// No more in hand, under way or in a channel than there may be.
fn within_bounds(worker: &Running) {
    let line = metrics(worker);
    let prefetch = PREFETCH as f64;
    for name in ["unacked{pool=\"faults\"}", "results_unconfirmed"] {
        assert_eq!(scrape(&line, name), prefetch, "{name}");
    }
    assert_eq!(scrape(&line, "outbox_records"), 0.0);
    let deliveries = |what| scrape(&line, &format!("channel_{what}{{channel=\"deliveries\"}}"));
    assert!(deliveries("depth") <= deliveries("capacity"));
}

/// A result that waits is on the disk that has room again, and leaves it when it is confirmed.
async fn the_disk_is_used_again(rig: &Rig<Amqp>, broker: &Broker, worker: &Running) {
    rig.publish("last", &rig.gated("last-gate")).await;
    rig.wait_for_begun(JOBS + 1).await;
    broker.pause();
    rig.open("last-gate");
    becomes(worker, "outbox_records", 1.0);
    becomes(worker, "circuit_state{circuit=\"outbox\"}", 0.0);
    broker.resume();
    let results = rig.wait_for_ends(["last".to_owned()]).await;
    assert_eq!(ends(&results["last"]), [(1, Succeeded)]);
    becomes(worker, "outbox_records", 0.0);
    for circuit in ["results", "outbox", "programs"] {
        becomes(worker, &format!("circuit_state{{circuit={circuit:?}}}"), 0.0);
    }
}
