//! `synthex worker` as a process, and a RabbitMQ node to which things happen.
//!
//! A frozen or blocked node is left so for some seconds: that is the fault, no way to wait for anything.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use synthex::message::Status::Succeeded;
use synthex::transport::Transport;
use synthex::transport::amqp::Amqp;
use synthex::worker::Watch;
use synthex::worker::event::Event;

use crate::rig::{MARK, PATIENCE, POOL, RESULTS, Results, Rig, Sessions, ends};
use crate::support::broker::{Broker, Vhost};
use crate::support::cli::{Cli, Running};
use crate::support::process::{Signal, wait_until};

/// Long enough for a publish, a heartbeat and a metric to notice, too short for a deadline.
const SOME_SECONDS: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_loses_no_job_and_no_result() {
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let ids = publish_short_jobs(&rig, 80, "").await;
    let worker = worker(&rig, &url, "slots = 4\nprefetch = 8");
    wait_for_lines(&worker, 10, "job ended");

    let before = worker.lines();
    broker.kill().await;
    worker.wait_for_line_after(before, is_not_consuming);
    broker.restart().await;
    worker.wait_for_line_after(before, is_consuming);

    let results = rig.wait_for_ends(ids.clone()).await;
    stop(&rig, worker).await;
    check_duplicates(&rig, results).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_freezes_for_seconds_costs_nothing_but_time() {
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    // From the twentieth on, they wait for the broker to be frozen.
    let wait = format!(
        "[ $(wc -l <{}) -lt 20 ] || until [ -e {} ]; do sleep 0.02; done;",
        rig.path("begun").display(),
        rig.path("gate").display()
    );
    let ids = publish_short_jobs(&rig, 60, &wait).await;
    let worker = worker(&rig, &url, "slots = 4\nprefetch = 8");
    wait_for_lines(&worker, 10, "job ended");

    broker.pause();
    rig.open("gate");
    tokio::time::sleep(SOME_SECONDS).await;
    assert!(rig.begun().len() < ids.len(), "it was to be frozen in between");
    broker.resume();

    let results = rig.wait_for_ends(ids.clone()).await;
    assert!(!worker.stderr().contains("not consuming"), "{}", worker.stderr());
    stop(&rig, worker).await;
    assert_once(&results);
    assert!(rig.results().await.is_empty(), "more results than jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stays_frozen_does_not_hold_up_a_stop_beyond_its_grace() {
    const STOPS: usize = 2;
    let broker = Broker::lent().await;
    for _ in 0..STOPS {
        if stop_while_frozen(&broker).await {
            return;
        }
    }
    panic!("{STOPS} stops in a row left tasks");
}

/// Whether a stop left no task. A busy machine may take longer to kill a command than its task has for that.
async fn stop_while_frozen(broker: &Broker) -> bool {
    let (rig, url) = rig(broker.vhost().await).await;
    // A lost connection is not to end what the grace has to end.
    let url = format!("{url}?heartbeat=60");
    for id in ["job-1", "job-2", "job-3"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let first = worker(&rig, &url, "slots = 2\nprefetch = 3\nstop_grace = \"1s\"");
    rig.wait_for_begun(2).await;
    broker.pause();
    let asked = Instant::now();
    first.signal(Signal::TERM);
    let finished = tokio::task::spawn_blocking(|| first.wait()).await.expect("it ends");
    assert!(asked.elapsed() < Duration::from_secs(45), "{:?}", asked.elapsed());
    let stderr = finished.expect_code(1).stderr;
    let left_none = stderr.contains("2 running jobs cut") && stderr.contains("tasks left: none");
    assert!(left_none || stderr.contains("tasks left: job"), "{stderr}");
    wait_until(PATIENCE, "no command outlives its worker", || {
        rig.processes().is_empty()
    });

    broker.resume();
    rig.open("gate");
    let second = worker(&rig, &url, "slots = 2");
    let results = rig.wait_for_ends(["job-1", "job-2", "job-3"].map(String::from)).await;
    stop(&rig, second).await;
    assert!(
        results.values().all(|results| results[0].attempt == 2),
        "each had been handed out: {results:#?}"
    );
    left_none
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_short_of_memory_holds_up_results_and_no_running_job() {
    let broker = Broker::lent().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let ids: BTreeSet<String> = (10..22).map(|number| format!("job-{number}")).collect();
    for id in &ids {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let worker = worker(&rig, &url, "slots = 2\nprefetch = 6");
    let metrics = worker.wait_for_line(|line| line.contains("metrics on http://"));
    rig.wait_for_begun(2).await;
    broker.ctl(&["set_vm_memory_high_watermark", "absolute", "10MB"]).await;
    wait_for_alarm(&broker, true).await;

    rig.open("gate");
    // All that are in hand run, through two slots, although no result is confirmed: running goes on.
    rig.wait_for_begun(6).await;
    wait_until(PATIENCE, "five results wait for their confirms", || {
        scrape(&metrics, "results_unconfirmed") >= 5.0
    });
    tokio::time::sleep(SOME_SECONDS).await;
    // The broker stops reading at the first publish, which it may take.
    assert!(rig.depth(RESULTS).await <= Some(1), "results came through");
    assert!(worker.is_running() && scrape(&metrics, "broker_connected") == 1.0);

    broker.ctl(&["set_vm_memory_high_watermark", "0.9"]).await;
    wait_for_alarm(&broker, false).await;
    let results = rig.wait_for_ends(ids.clone()).await;
    assert!(!worker.stderr().contains("not consuming"), "{}", worker.stderr());
    stop(&rig, worker).await;
    assert_once(&results);
    assert!(rig.results().await.is_empty(), "more results than jobs");
}

/// The broker takes a delivery away after 3 s, closing its channel, again and again while the job runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_longer_than_the_broker_s_consumer_timeout_runs_once() {
    let broker = Broker::lent().await;
    let limit = "application:set_env(rabbit, consumer_timeout, 3000), \
                 application:set_env(rabbit, channel_tick_interval, 1000).";
    broker.eval(limit).await;
    let (rig, url) = rig(broker.vhost().await).await;
    rig.publish("long", &rig.gated("gate")).await;
    let worker = worker(&rig, &url, "slots = 2");
    wait_for_lines(&worker, 3, "timed out"); // the broker took it away, and the log says so
    rig.open("gate");
    let results = rig.wait_for_ends(["long".to_owned()]).await;
    assert_once(&results);
    assert_eq!(rig.begun(), ["long 1"]);
    let log = worker.stderr();
    assert!(log.contains("is known here and not run again"), "{log}");
    wait_for_no_message(&rig).await;
    stop(&rig, worker).await;
    let usual = "application:set_env(rabbit, consumer_timeout, 1800000), \
                 application:set_env(rabbit, channel_tick_interval, 60000).";
    broker.eval(usual).await;
    assert!(rig.results().await.is_empty(), "more results than jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_a_broker_that_is_not_there_yet() {
    let broker = Broker::lent().await;
    let vhost = broker.vhost().await;
    let url = vhost.url();
    broker.stop().await;
    // All that the worker needs of a rig before there is a broker.
    let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
    let file = folder.path().join("pool.toml");
    std::fs::write(&file, format!("pool = \"{POOL}\"\n")).expect("it can be written");
    let file = file.to_str().expect("a path in ASCII");
    let worker = Cli::new(["worker", file, "--metrics-addr", "none"])
        .env("SYNTHEX_AMQP_URL", &url)
        .limit(PATIENCE)
        .spawn();
    wait_for_lines(&worker, 3, "not consuming");
    assert!(worker.is_running());
    let before = worker.lines();
    broker.restart().await;
    worker.wait_for_line_after(before, is_consuming);

    let (rig, _) = rig(vhost).await;
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let results = rig.wait_for_ends(["job".to_owned()]).await;
    assert_once(&results);
    stop(&rig, worker).await;
}

/// On the node that all share: it comes to no harm. A node that starts takes connections before it has all its queues, and
/// then says of a durable queue what it says here.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_queues_that_their_node_does_not_have_yet() {
    let broker = Broker::shared().await;
    let (rig, url) = rig(broker.vhost().await).await;
    let first = worker(&rig, &url, "");
    first.wait_for_line(is_consuming);
    stop(&rig, first).await;
    let log = resource(rig.vhost().name(), &rig.names.orders());
    let forget = format!("mnesia:dirty_delete(rabbit_queue, {log}).");
    let recover = format!("[Q] = mnesia:dirty_read(rabbit_durable_queue, {log}), mnesia:dirty_write(rabbit_queue, Q).");
    assert_eq!(broker.eval(&forget).await, "ok");
    let worker = prepared(&rig, &url, "").spawn();
    wait_for_lines(&worker, 2, "is down or inaccessible");
    let before = worker.lines();
    assert_eq!(broker.eval(&recover).await, "ok");
    worker.wait_for_line_after(before, is_consuming);

    rig.publish("job", &json!({ "command": ["true"] })).await;
    let results = rig.wait_for_ends(["job".to_owned()]).await;
    assert_once(&results);
    stop(&rig, worker).await;
}

/// On the node that all share: it comes to no harm.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_an_operator_closes_are_opened_again_and_commands_go_on() {
    let (rig, url) = rig(Broker::shared().await.vhost().await).await;
    for id in ["job-1", "job-2"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let worker = worker(&rig, &url, "slots = 2");
    rig.wait_for_begun(2).await;
    let before = worker.lines();
    rig.close_sessions().await;
    worker.wait_for_line_after(before, is_not_consuming);
    worker.wait_for_line_after(before, is_consuming);
    assert_eq!(rig.begun().len(), 2, "they still run: {:?}", rig.begun());
    rig.open("gate");

    let results = rig.wait_for_ends(["job-1", "job-2"].map(String::from)).await;
    stop(&rig, worker).await;
    assert_once(&results);
    assert!(rig.results().await.is_empty(), "more results than jobs");
}

/// On the node that all share: it comes to no harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_under_its_consumer_is_declared_again_and_consumed() {
    let (rig, url) = rig(Broker::shared().await.vhost().await).await;
    rig.publish("job-1", &rig.gated("gate")).await;
    let worker = worker(&rig, &url, "slots = 2");
    rig.wait_for_begun(1).await;
    let before = worker.lines();
    rig.vhost().ctl(&["delete_queue", &rig.names.pool_queue(POOL)]).await;
    worker.wait_for_line_after(before, is_not_consuming);
    worker.wait_for_line_after(before, is_consuming);

    rig.publish("job-2", &json!({ "command": ["true"] })).await;
    let mut results = rig.wait_for_ends(["job-2".to_owned()]).await;
    rig.open("gate");
    results.extend(rig.wait_for_ends(["job-1".to_owned()]).await);
    stop(&rig, worker).await;
    assert_once(&results);
}

/// On the node that all share: it comes to no harm.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_the_broker_forgot_is_noticed_and_replaced() {
    let broker = Broker::shared().await;
    let vhost = broker.vhost().await;
    let forget = forget_consumers(vhost.name(), "synthex.jobs.faults");
    let (mut rig, _) = rig(vhost).await;
    rig.watch = Watch {
        every: Duration::from_millis(100),
        stall: Duration::from_millis(500),
    };
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.consuming(1).await;
    assert_eq!(broker.eval(&forget).await, "[ok]", "one consumer is forgotten");

    let job = json!({ "command": ["true"] });
    rig.publish("job", &job).await;
    let is_stall = |event: &Event| matches!(event, Event::ConsumerLost { reason, .. } if reason.contains("none came"));
    live.observer.wait_for("a consumer without deliveries", is_stall).await;
    let results = rig.wait_for_ends(["job".to_owned()]).await;
    let stopped = live.stop().await;
    stopped.assert_clean();
    let is_loss = |event: &Event| matches!(event, Event::ConsumerLost { .. });
    let (losses, stalls) = (stopped.observer.count(is_loss), stopped.observer.count(is_stall));
    assert_eq!(losses, stalls + 1, "nothing else ended a consumer until the stop");
    // Whose delivery is late is replaced as well, though it may have it by then.
    match stalls {
        1 => assert_once(&results),
        _ => assert!(ends(&results["job"]).iter().all(|(_, status)| *status == Succeeded)),
    }
}

/// The name of a queue as the broker has it, as an expression.
fn resource(vhost: &str, queue: &str) -> String {
    format!(r#"rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)"#)
}

/// On the node that all share. RabbitMQ says that there is nothing in a queue whose leader lets it wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_slow_to_answer_is_not_taken_for_an_empty_one() {
    let broker = Broker::shared().await;
    let (rig, _) = rig(broker.vhost().await).await;
    let queue = rig.names.pool_queue(POOL);
    rig.publish("job", &json!({ "command": ["true"] })).await;
    rig.wait_for_waiting_jobs(1).await;

    let stand_still = stand_still(rig.vhost().name(), &queue);
    let looking = async {
        loop {
            let depth = rig.broker.queue_depth(&queue).await.expect("it answers");
            assert_eq!(depth.expect("it is there").messages, 1);
        }
    };
    tokio::select! {
        said = broker.eval(&stand_still) => assert_eq!(said, "ok"),
        () = looking => {}
    }
}

/// An expression that holds a queue's leader up for longer than the broker waits for it, but not much.
fn stand_still(vhost: &str, queue: &str) -> String {
    format!(
        r"{{ok, Q}} = rabbit_amqqueue:lookup({}),
          {{Name, _}} = amqqueue:get_pid(Q),
          Leader = whereis(Name),
          true = erlang:suspend_process(Leader),
          timer:sleep(400),
          true = erlang:resume_process(Leader),
          ok.",
        resource(vhost, queue)
    )
}

/// An expression that takes a queue's consumers off it, as a queue's leader that lost them would: neither their connections
/// nor the clients hear of it.
fn forget_consumers(vhost: &str, queue: &str) -> String {
    format!(
        r#"{{ok, Q}} = rabbit_amqqueue:lookup({}),
           Leader = amqqueue:get_pid(Q),
           {{ok, {{_, Consumers}}, _}} = ra:local_query(Leader, fun rabbit_fifo:query_consumers/1),
           [begin
                Forget = rabbit_fifo:make_checkout(Id, cancel, #{{}}),
                {{ok, Answer, _}} = ra:process_command(Leader, Forget),
                Answer
            end || Id <- maps:keys(Consumers)]."#,
        resource(vhost, queue)
    )
}

/// A rig on a virtual host of RabbitMQ, and the address for workers.
pub async fn rig(vhost: Vhost) -> (Rig<Amqp>, String) {
    let url = vhost.url();
    let broker = crate::transport(&vhost);
    (Rig::new(broker, Sessions::Amqp(vhost)).await, url)
}

/// Starts a worker for the rig's pool, with these lines in its file.
pub fn worker(rig: &Rig<Amqp>, url: &str, lines: &str) -> Running {
    prepared(rig, url, lines).spawn()
}

/// Prepares such a worker.
pub fn prepared(rig: &Rig<Amqp>, url: &str, lines: &str) -> Cli {
    let file = pool_file(rig, lines);
    Cli::new(["worker", &file, "--metrics-addr", "127.0.0.1:0"])
        .env("SYNTHEX_AMQP_URL", url)
        .limit(PATIENCE)
}

/// The file of the rig's pool, with these lines in it.
pub fn pool_file(rig: &Rig<Amqp>, lines: &str) -> String {
    let file = rig.path(&format!("{}.toml", lines.len()));
    let mark = &rig.mark;
    let pool = format!("pool = \"{POOL}\"\n{lines}\n[env]\n{MARK} = \"{mark}\"\n");
    std::fs::write(&file, pool).expect("the test's own folder can be written");
    file.to_str().expect("a path in ASCII").to_owned()
}

/// Publishes jobs that say that they run, do something first, and then take a quarter of a second each.
async fn publish_short_jobs(rig: &Rig<Amqp>, count: usize, first: &str) -> BTreeSet<String> {
    let ids: BTreeSet<String> = (0..count).map(|number| format!("job-{number:03}")).collect();
    let begun = rig.path("begun");
    let script = format!(
        "echo $SYNTHEX_JOB_ID $SYNTHEX_ATTEMPT >>{}; {first} sleep 0.25",
        begun.display()
    );
    let body = json!({ "script": script }).to_string();
    rig.publish_all(ids.iter().map(|id| (id.clone(), body.clone()))).await;
    ids
}

/// Stops a worker in good order.
async fn stop(rig: &Rig<Amqp>, worker: Running) {
    worker.signal(Signal::TERM);
    let finished = tokio::task::spawn_blocking(|| worker.wait()).await.expect("it ends");
    let finished = finished.expect_code(0);
    assert!(finished.stderr.contains("tasks left: none"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("ERROR"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    assert_eq!(rig.processes(), [""; 0], "commands outlive their worker");
    rig.assert_queue_is_empty().await;
}

/// One result for each job, of its first attempt.
fn assert_once(results: &Results) {
    for (id, results) in results {
        assert_eq!(ends(results), [(1, Succeeded)], "{id}");
    }
}

/// No attempt was started twice; whatever came twice of one attempt is the same result, and the other results of a job are
/// of higher attempts. Takes the results that came later, too.
async fn check_duplicates(rig: &Rig<Amqp>, mut results: Results) {
    for (id, more) in rig.results().await {
        results.entry(id).or_default().extend(more);
    }
    for (id, of_job) in results {
        assert!(
            of_job.iter().all(|result| result.status == Succeeded),
            "{id}: {of_job:#?}"
        );
        for result in &of_job {
            let same = of_job.iter().find(|other| other.attempt == result.attempt);
            assert_eq!(same, Some(result), "two results of one attempt");
        }
    }
    let begun = rig.begun();
    assert_eq!(
        begun.iter().collect::<BTreeSet<_>>().len(),
        begun.len(),
        "an attempt was started twice: {begun:?}"
    );
}

pub fn is_consuming(line: &str) -> bool {
    line.contains("consuming") && !line.contains("not consuming") && !line.contains("stopped consuming")
}

pub fn is_not_consuming(line: &str) -> bool {
    line.contains("not consuming")
}

/// Waits until it has printed so many lines with these words.
fn wait_for_lines(worker: &Running, count: usize, words: &str) {
    let printed = || worker.stderr().lines().filter(|line| line.contains(words)).count() >= count;
    wait_until(PATIENCE, &format!("{count} lines with {words:?}"), printed);
}

/// Waits until the pool's queue holds nothing, nor does a consumer: an ack that came too late has the job come once more.
async fn wait_for_no_message(rig: &Rig<Amqp>) {
    let deadline = Instant::now() + PATIENCE;
    let empty = (rig.names.pool_queue(POOL), 0);
    loop {
        let queues = rig.vhost().queues().await;
        if queues.contains(&empty) {
            return;
        }
        assert!(Instant::now() < deadline, "{queues:?}");
    }
}

async fn wait_for_alarm(broker: &Broker, wanted: bool) {
    let deadline = Instant::now() + PATIENCE;
    while (broker.eval("rabbit_alarm:get_alarms().").await != "[]") != wanted {
        assert!(Instant::now() < deadline, "the alarm does not become {wanted}");
    }
}

/// A metric of a worker that has logged where its metrics are, named without its prefix.
pub fn scrape(log_line: &str, name: &str) -> f64 {
    let (_, rest) = log_line.split_once("http://").expect("an address");
    let (address, _) = rest.split_once('/').expect("a path");
    let mut stream = TcpStream::connect(address).expect("the worker serves metrics");
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the worker reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the worker answers");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("synthex_")?.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no metric {name}: {text}"))
        .parse()
        .expect("a number")
}
