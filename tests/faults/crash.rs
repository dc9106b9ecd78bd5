//! `synthex worker` that dies, or finds its disk full, while its broker is away.

use std::collections::BTreeSet;
use std::path::Path;

use synthex::message::Status::Succeeded;
use synthex::transport::amqp::Amqp;

use crate::private_broker::{is_consuming, is_not_consuming, pool_file, prepared, rig, scrape};
use crate::rig::{PATIENCE, RESULTS, Rig, take_result};
use crate::support::broker::Broker;
use crate::support::cli::{Cli, Running};
use crate::support::process::{Signal, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_result_outlives_its_worker_while_the_broker_is_away() {
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let outbox = rig.path("outbox");
    rig.publish("job", &rig.gated("gate")).await;
    let first = prepared(&rig, &url, "slots = 1").env("SYNTHEX_OUTBOX", &outbox).spawn();
    rig.wait_for_begun(1).await;
    broker.kill().await;
    rig.open("gate");
    becomes(&first, "outbox_records", 1.0);
    first.signal(Signal::KILL);
    tokio::task::spawn_blocking(|| first.wait()).await.expect("it ends");

    // It knows of the result before there is a broker.
    let second = prepared(&rig, &url, "slots = 1").env("SYNTHEX_OUTBOX", &outbox).spawn();
    second.wait_for_line(is_not_consuming);
    becomes(&second, "outbox_records", 1.0);
    broker.restart().await;
    second.wait_for_line(is_consuming);
    becomes(&second, "outbox_records", 0.0);

    first_attempts(&rig, &second, ["job".to_owned()]).await;
    // The job came again, and was only acked.
    becomes(&second, "jobs_adopted_total{pool=\"faults\"}", 1.0);
    assert_eq!(rig.begun(), ["job 1"]);
    assert_eq!(scrape(&metrics(&second), "outbox_errors_total"), 0.0);
    stop(second).await;
    rig.assert_queue_is_empty().await;
    assert!(rig.results().await.is_empty(), "a second result");
    assert_eq!(files_below(&outbox), 0, "nothing is left to publish");
}

/// The disk is a file system of the worker's own, which goes with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_once_and_costs_no_result() {
    if Cli::program("unshare", ["-m", "true"]).run().code != Some(0) {
        eprintln!("skipped: a file system of its own takes the right to mount one (root)");
        return;
    }
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let ids = ["job-1", "job-2", "job-3"].map(String::from);
    for id in &ids {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let worker = on_a_full_disk(&rig, &url, "slots = 3");
    rig.wait_for_begun(3).await;
    broker.kill().await;
    rig.open("gate");
    becomes(&worker, "outbox_errors_total", 3.0);
    becomes(&worker, "results_unconfirmed", 3.0);
    assert_eq!(scrape(&metrics(&worker), "outbox_records"), 0.0);
    let is_warning = |line: &&str| line.contains("failed to write to the outbox");
    worker.wait_for_line(|line| is_warning(&line));
    let warnings: Vec<String> = worker.stderr().lines().filter(is_warning).map(str::to_owned).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for words in ["No space left on device", ".outbox", "--outbox"] {
        assert!(warnings[0].contains(words), "no {words:?} in {warnings:?}");
    }

    broker.restart().await;
    first_attempts(&rig, &worker, ids).await;
    stop(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_outbox_nothing_is_written() {
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let state = rig.path("state");
    rig.publish("job", &rig.gated("gate")).await;
    let worker = prepared(&rig, &url, "slots = 1")
        .env("SYNTHEX_OUTBOX", "none")
        .env("STATE_DIRECTORY", &state)
        .env("XDG_STATE_HOME", &state)
        .spawn();
    rig.wait_for_begun(1).await;
    broker.kill().await;
    rig.open("gate");
    becomes(&worker, "results_unconfirmed", 1.0);
    broker.restart().await;
    first_attempts(&rig, &worker, ["job".to_owned()]).await;
    assert!(!state.exists());
    assert_eq!(scrape(&metrics(&worker), "outbox_records"), 0.0);
    stop(worker).await;
}

/// Waits until each of these jobs has the result of its first attempt, which succeeded.
///
/// A broker that has just started may leave a publish without a confirm for as long as the worker waits for one, and forget
/// a consumer: so for more than that, with a new one each time.
async fn first_attempts(rig: &Rig<Amqp>, worker: &Running, ids: impl IntoIterator<Item = String>) {
    let mut open: BTreeSet<String> = ids.into_iter().collect();
    let mut taken = Vec::new();
    for _ in 0..5 {
        let mut results = rig.subscribe(RESULTS, 500).await;
        while let Ok(result) = tokio::time::timeout(PATIENCE / 2, take_result(&mut results)).await {
            assert_eq!(result.status, Succeeded, "{result:#?}");
            if result.attempt == 1 {
                assert!(open.remove(result.job_id.as_str()), "a second result of {result:#?}");
            }
            if open.is_empty() {
                return;
            }
            taken.push(result);
        }
    }
    panic!("no more than {taken:#?}; the worker:\n{}", worker.stderr());
}

/// Stops a worker in good order. Jobs that came again may be left.
pub async fn stop(worker: Running) {
    worker.signal(Signal::TERM);
    let finished = tokio::task::spawn_blocking(|| worker.wait()).await.expect("it ends");
    let finished = finished.expect_code(0);
    assert!(finished.stderr.contains("tasks left: none"), "{}", finished.stderr);
}

/// Starts a worker with these lines in its pool's file, whose outbox is on a full disk: the file `full` in the folder `disk`
/// is what fills it.
pub fn on_a_full_disk(rig: &Rig<Amqp>, url: &str, lines: &str) -> Running {
    const FILL: &str = r#"mount -t tmpfs -o size=64k tmpfs "$1" && head -c 1M /dev/zero >"$1/full" 2>/dev/null
        shift && exec "$@""#;
    let disk = rig.path("disk");
    std::fs::create_dir(&disk).expect("the test's own folder can be written");
    let (pool, disk) = (pool_file(rig, lines), disk.to_str().expect("a path in ASCII"));
    let synthex = [
        env!("CARGO_BIN_EXE_synthex"),
        "worker",
        &pool,
        "--metrics-addr",
        "127.0.0.1:0",
    ];
    let words = [&["-m", "sh", "-c", FILL, "sh", disk], &synthex[..]].concat();
    Cli::program("unshare", words)
        .env("SYNTHEX_AMQP_URL", url)
        .env("SYNTHEX_OUTBOX", format!("{disk}/outbox"))
        .limit(PATIENCE)
        .spawn()
}

/// The line in which a worker has said where its metrics are.
pub fn metrics(worker: &Running) -> String {
    worker.wait_for_line(|line| line.contains("metrics on http://"))
}

/// Waits until a metric of a worker has this value.
pub fn becomes(worker: &Running, name: &str, value: f64) {
    let line = metrics(worker);
    wait_until(PATIENCE, &format!("{name} becomes {value}"), || {
        scrape(&line, name) == value
    });
}

/// Files in a folder and those in it.
fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("it is there");
    let of_entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("it can be read").path();
        if path.is_dir() { files_below(&path) } else { 1 }
    };
    entries.map(of_entry).sum()
}
