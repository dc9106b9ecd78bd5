//! The loop against the in-process broker, with a worker that does what a test says.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::batch::{BatchId, attach};
use crate::message::{Envelope, FailureKind, Properties, WorkerInfo};
use crate::transport::memory::Memory;
use crate::transport::topology::{Names, Topology};
use crate::transport::{Publication, Routing, Subscribe, Subscription};

/// Items that are there, and then the end, or nothing more.
struct Items {
    items: VecDeque<Item>,
    ends: bool,
}

impl Source for Items {
    async fn next(&mut self) -> io::Result<Option<Item>> {
        match self.items.pop_front() {
            Some(item) => Ok(Some(item)),
            None if self.ends => Ok(None),
            None => std::future::pending().await,
        }
    }
}

fn item(seq: u64) -> Item {
    Item {
        seq,
        name: Name {
            origin: format!("line {seq}"),
            title: format!("job {seq}"),
            fields: None,
        },
        job: Ok(Bytes::from(format!("body {seq}"))),
    }
}

fn bad(seq: u64) -> Item {
    let job = Err(BadItem {
        id: None,
        kind: FailureKind::InvalidJob,
        field: None,
        message: "no job".to_owned(),
    });
    Item { job, ..item(seq) }
}

fn items(items: impl IntoIterator<Item = Item>) -> Items {
    Items {
        items: items.into_iter().collect(),
        ends: true,
    }
}

/// What sinks and watchers were given, and what they were when they had to write.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    taken: Vec<(u64, u8, Status)>,
    written: usize,
    progress: Vec<Progress>,
    broken: bool,
}

impl Seen {
    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.0.lock().unwrap()
    }

    fn ends(&self) -> Vec<(u64, Status)> {
        let mut ends: Vec<_> = self
            .log()
            .taken
            .iter()
            .map(|(seq, _, status)| (*seq, *status))
            .collect();
        ends.sort();
        ends
    }
}

impl Sink for Seen {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        let taken = (finished.seq, finished.submission, finished.result.status);
        self.log().taken.push(taken);
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        let mut log = self.log();
        log.written = log.taken.len();
        let broken = log.broken;
        Box::pin(async move {
            if broken {
                Err(io::Error::other("disk full"))
            } else {
                Ok(())
            }
        })
    }
}

impl Watcher for Seen {
    fn on(&mut self, progress: &Progress) {
        self.log().progress.push(progress.clone());
    }
}

struct Bench {
    broker: Memory,
    names: Names,
    batch: BatchId,
    seen: Seen,
}

impl Bench {
    async fn new() -> Self {
        let bench = Self {
            broker: Memory::new(),
            names: Names::new("n"),
            batch: "b".parse().unwrap(),
            seen: Seen::default(),
        };
        let topology = Topology::new(&bench.names, ["p"]);
        bench.broker.declare(&topology, Declare::Active).await.unwrap();
        bench
    }

    fn plan(&self) -> Plan<Memory> {
        let here = WorkerInfo {
            id: "here".to_owned(),
            host: "h".to_owned(),
            pool: "p".to_owned(),
            version: "0".to_owned(),
        };
        Plan::new(self.broker.clone(), &self.names, "p", &self.batch, here)
    }

    async fn results(&self) -> Results<Memory> {
        attach(&self.broker, &self.names, &self.batch).await.unwrap()
    }

    /// Carries a batch out while `worker` does its work.
    async fn run(&self, plan: Plan<Memory>, source: Items, past: (Table, Option<Journal>), stop: Shutdown) -> End {
        let mut watcher = self.seen.clone();
        let results = self.results().await;
        let sinks: Vec<Box<dyn Sink>> = vec![Box::new(self.seen.clone())];
        let mut engine = Engine::new(plan, source, sinks, &mut watcher, past, Some(results));
        let gone = CancellationToken::new();
        let work = engine.work(&stop, &gone);
        let outcome = tokio::time::timeout(Duration::from_secs(3600), work).await;
        engine.end(outcome.expect("it ends"))
    }

    async fn jobs(&self, prefetch: u16) -> <Memory as Transport>::Subscription {
        let request = Subscribe {
            queue: "n.jobs.p".to_owned(),
            prefetch,
            consumer_timeout: None,
            from: None,
            topology: Arc::default(),
            declare: Declare::Passive,
        };
        self.broker.subscribe(&request).await.unwrap()
    }

    /// A worker that ends each job as `status` says of its place in the input, for ever.
    async fn work(&self, status: impl Fn(u64) -> Status) -> End {
        let mut jobs = self.jobs(10).await;
        while let Some(job) = jobs.next().await {
            let submission = submission(&job);
            self.answer(submission, status(submission.seq)).await;
            job.ack().await.unwrap();
        }
        unreachable!("the queue stays")
    }

    async fn answer(&self, submission: Submission, status: Status) {
        let reply = Publication {
            exchange: String::new(),
            routing_key: "n.batch.b".to_owned(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: body(status).into(),
                properties: Properties {
                    correlation_id: Some(submission.to_string()),
                    ..Properties::default()
                },
            }
            .into(),
        };
        self.broker.publish(&reply).await.unwrap();
    }

    async fn waiting(&self, queue: &str) -> u32 {
        self.broker
            .queue_depth(queue)
            .await
            .unwrap()
            .map_or(0, |depth| depth.messages)
    }
}

fn submission(job: &Delivery) -> Submission {
    let id = job.envelope.properties.correlation_id.as_deref();
    id.unwrap().parse().unwrap()
}

fn body(status: Status) -> String {
    let nothing = json!({"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0});
    json!({
        "job_id": "j", "attempt": 1, "status": status, "final": true, "duration_ms": 0, "stdout": nothing,
        "stderr": nothing, "finished_at": "2030-01-01T00:00:00Z",
        "worker": {"id": "w", "host": "h", "pool": "p", "version": "0"}, "labels": {},
    })
    .to_string()
}

const SUCCEEDED: Status = Status::Succeeded;

#[tokio::test(start_paused = true)]
async fn every_item_has_its_result_and_bad_ones_have_theirs() {
    let bench = Bench::new().await;
    let source = items([item(1), bad(2), item(3)]);
    let end = tokio::select! {
        end = bench.run(bench.plan(), source, Default::default(), Shutdown::new()) => end,
        never = bench.work(|_| SUCCEEDED) => never,
    };
    assert!(end.error.is_none() && !end.cut_short, "{end:?}");
    assert_eq!((end.total, end.submitted, end.awaited), (Some(3), 2, 0));
    assert_eq!(
        bench.seen.ends(),
        [(1, SUCCEEDED), (2, Status::Rejected), (3, SUCCEEDED)]
    );
    assert_eq!(bench.waiting("n.batch.b").await, 0, "all are acked");
}

#[tokio::test(start_paused = true)]
async fn the_result_of_the_only_job_under_way_is_written_at_once_where_that_costs_little() {
    for flush_idle in [true, false] {
        let bench = Bench::new().await;
        let mut plan = bench.plan();
        (plan.flush_every, plan.flush_idle) = (Duration::from_secs(3000), flush_idle);
        let mut source = items([item(1), item(2)]);
        source.ends = false; // there may be more
        let written = || {
            let log = bench.seen.log();
            (log.taken.len(), log.written)
        };
        let worker = async {
            let mut jobs = bench.jobs(10).await;
            let (first, last) = (jobs.next().await.unwrap(), jobs.next().await.unwrap());
            bench.answer(submission(&first), SUCCEEDED).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(written(), (1, 0), "another is under way");
            bench.answer(submission(&last), SUCCEEDED).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(written(), (2, if flush_idle { 2 } else { 0 }));
        };
        tokio::select! {
            end = bench.run(plan, source, Default::default(), Shutdown::new()) => panic!("it waits for more: {end:?}"),
            () = worker => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_result_that_comes_again_is_told_once() {
    let bench = Bench::new().await;
    let twice = async {
        let mut jobs = bench.jobs(10).await;
        while let Some(job) = jobs.next().await {
            for _ in 0..2 {
                bench.answer(submission(&job), SUCCEEDED).await;
            }
            job.ack().await.unwrap();
        }
        unreachable!("the queue stays")
    };
    let end = tokio::select! {
        end = bench.run(bench.plan(), items([item(1), item(2), item(3)]), Default::default(), Shutdown::new()) => end,
        never = twice => never,
    };
    assert!(end.error.is_none(), "{end:?}");
    assert_eq!(bench.seen.ends(), [1, 2, 3].map(|seq| (seq, SUCCEEDED)));
}

#[tokio::test(start_paused = true)]
async fn a_result_of_an_item_that_cannot_be_is_passed_over() {
    let bench = Bench::new().await;
    let source = items([item(1), item(2)]);
    let forged = async {
        let mut jobs = bench.jobs(1).await;
        let first = jobs.next().await.unwrap(); // it has begun
        for seq in [u64::MAX, 3 + super::AHEAD, submission(&first).seq] {
            bench.answer(Submission { seq, number: 1 }, SUCCEEDED).await;
        }
        first.ack().await.unwrap();
        drop(jobs);
        bench.work(|_| SUCCEEDED).await
    };
    let end = tokio::select! {
        end = bench.run(bench.plan(), source, Default::default(), Shutdown::new()) => end,
        never = forged => never,
    };
    assert!(end.error.is_none(), "{end:?}");
    assert_eq!(bench.seen.ends(), [1, 2].map(|seq| (seq, SUCCEEDED)));
    assert_eq!(bench.waiting("n.batch.b").await, 0, "they do not come again");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_allowed_are_in_flight() {
    let bench = Bench::new().await;
    let mut plan = bench.plan();
    plan.max_in_flight = 7;
    let stop = Shutdown::new();
    let run = bench.run(plan, items((1..=100).map(item)), Default::default(), stop.clone());
    let mut jobs = bench.jobs(100).await;
    let worker = async {
        for _ in 0..100 {
            let first = jobs.next().await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await; // all that may come is there
            let waits = bench.broker.queue_depth("n.jobs.p").await.unwrap().unwrap().messages;
            assert!(waits <= 7);
            let submission = submission(&first);
            assert!(submission.seq <= u64::try_from(bench.seen.log().written).unwrap() + 7);
            bench.answer(submission, SUCCEEDED).await;
            first.ack().await.unwrap();
        }
        std::future::pending().await
    };
    let end = tokio::select! {
        end = run => end,
        never = worker => never,
    };
    assert_eq!(end.counts, [(SUCCEEDED, 100)].into());
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_refuses_slows_it_down_and_loses_nothing() {
    let bench = Bench::new().await;
    bench.broker.remove_queue("n.jobs.p").await.unwrap();
    let mut topology = Topology::new(&bench.names, ["p"]);
    for queue in topology.queues.iter_mut().filter(|queue| queue.name == "n.jobs.p") {
        queue.max_length = Some(3);
    }
    bench.broker.declare(&topology, Declare::Active).await.unwrap();
    let end = tokio::select! {
        end = bench.run(bench.plan(), items((1..=500).map(item)), Default::default(), Shutdown::new()) => end,
        never = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            bench.work(|_| SUCCEEDED).await
        } => never,
    };
    assert_eq!((end.counts, end.submitted), ([(SUCCEEDED, 500)].into(), 500));
    let log = bench.seen.log();
    let stalls = log
        .progress
        .iter()
        .filter(|progress| matches!(progress, Progress::Stalled(Some(_))));
    assert!((1..500).contains(&stalls.count()), "people are told, not flooded");
    assert_eq!(log.taken.len(), 500, "none ran twice");
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_loses_nothing() {
    let bench = Bench::new().await;
    let breaker = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            bench.broker.close_sessions();
        }
        std::future::pending().await
    };
    let worker = async {
        let mut jobs = bench.jobs(1).await;
        loop {
            let Some(job) = jobs.next().await else {
                jobs = bench.jobs(1).await;
                continue;
            };
            bench.answer(submission(&job), SUCCEEDED).await;
            let _ = job.ack().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let end = tokio::select! {
        end = bench.run(bench.plan(), items((1..=200).map(item)), Default::default(), Shutdown::new()) => end,
        never = worker => never,
        never = breaker => never,
    };
    assert_eq!(end.counts, [(SUCCEEDED, 200)].into());
    assert_eq!(bench.seen.ends().len(), 200, "no result is given twice");
}

#[tokio::test(start_paused = true)]
async fn a_result_is_not_acked_before_it_is_written() {
    let bench = Bench::new().await;
    bench.seen.log().broken = true;
    let end = tokio::select! {
        end = bench.run(bench.plan(), items([item(1)]), Default::default(), Shutdown::new()) => end,
        never = bench.work(|_| SUCCEEDED) => never,
    };
    assert!(matches!(end.error, Some(BatchError::Sink(_))), "{end:?}");
    assert_eq!(bench.waiting("n.batch.b").await, 1, "it comes again");
}

#[tokio::test(start_paused = true)]
async fn what_had_ended_or_is_awaited_is_not_submitted_again() {
    let bench = Bench::new().await;
    let first = |seq| Submission { seq, number: 1 };
    let mut table = Table::default();
    table.finish(first(1), Status::Failed);
    table.finish(first(2), SUCCEEDED);
    table.publish(first(3)); // it runs
    drop(bench.results().await);
    bench.answer(first(4), SUCCEEDED).await; // it was never confirmed, and has run
    let source = items((1..=5).map(item));
    let late = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        bench.answer(first(3), SUCCEEDED).await;
        bench.answer(first(3), Status::Lost).await;
        bench.work(|_| SUCCEEDED).await
    };
    let end = tokio::select! {
        end = bench.run(bench.plan(), source, (table, None), Shutdown::new()) => end,
        never = late => never,
    };
    assert_eq!(end.submitted, 1, "the fifth");
    assert_eq!(bench.seen.ends(), [(3, SUCCEEDED), (4, SUCCEEDED), (5, SUCCEEDED)]);
    let resumed = Progress::Resumed {
        finished: [(SUCCEEDED, 1), (Status::Failed, 1)].into(),
        awaited: 1,
    };
    assert!(bench.seen.log().progress.contains(&resumed));
    assert_eq!(end.counts, [(SUCCEEDED, 4), (Status::Failed, 1)].into());
}

#[tokio::test(start_paused = true)]
async fn what_failed_is_submitted_again_if_asked() {
    let bench = Bench::new().await;
    let mut table = Table::default();
    table.finish(Submission { seq: 1, number: 1 }, Status::Failed);
    table.finish(Submission { seq: 2, number: 1 }, SUCCEEDED);
    let mut plan = bench.plan();
    plan.retry_failed = true;
    let end = tokio::select! {
        end = bench.run(plan, items((1..=2).map(item)), (table, None), Shutdown::new()) => end,
        never = bench.work(|_| SUCCEEDED) => never,
    };
    assert_eq!(bench.seen.log().taken, [(1, 2, SUCCEEDED)]);
    assert_eq!(end.counts, [(SUCCEEDED, 2)].into());
    let resumed = Progress::Resumed {
        finished: [(SUCCEEDED, 1)].into(),
        awaited: 0,
    };
    assert!(bench.seen.log().progress.contains(&resumed), "the first has not ended");
}

#[tokio::test(start_paused = true)]
async fn a_bad_item_may_stop_it() {
    let bench = Bench::new().await;
    let mut plan = bench.plan();
    plan.on_bad = OnBad::Stop;
    let end = tokio::select! {
        end = bench.run(plan, items([item(1), bad(2), item(3)]), Default::default(), Shutdown::new()) => end,
        never = bench.work(|_| SUCCEEDED) => never,
    };
    assert_eq!(bench.seen.ends(), [(1, SUCCEEDED)], "what was before it is awaited");
    assert_eq!(end.bad.map(|(origin, _)| origin), Some("line 2".to_owned()));
    assert!(end.cut_short && end.submitted == 1);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_was_submitted() {
    let bench = Bench::new().await;
    let mut source = items((1..=3).map(item));
    source.ends = false;
    let stop = Shutdown::new();
    let stopping = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.drain();
        tokio::time::sleep(Duration::from_secs(1)).await;
        bench.work(|_| SUCCEEDED).await
    };
    let end = tokio::select! {
        end = bench.run(bench.plan(), source, Default::default(), stop.clone()) => end,
        never = stopping => never,
    };
    assert_eq!((bench.seen.ends().len(), end.awaited, end.cut_short), (3, 0, true));
}

#[tokio::test(start_paused = true)]
async fn an_abort_cancels_once_and_waits_a_little() {
    let bench = Bench::new().await;
    let cancels = Arc::new(Mutex::new(0));
    let counted = cancels.clone();
    let mut plan = bench.plan();
    plan.on_abort = OnAbort::Cancel(Duration::from_secs(10));
    plan.cancel = Box::new(move || {
        *counted.lock().unwrap() += 1;
        Box::pin(std::future::ready(()))
    });
    let stop = Shutdown::new();
    stop.drain();
    let stop_later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.abort();
        std::future::pending().await
    };
    let mut table = Table::default();
    table.publish(Submission { seq: 1, number: 1 });
    let end = tokio::select! {
        end = bench.run(plan, items([item(1)]), (table, None), stop.clone()) => end,
        never = stop_later => never,
    };
    assert_eq!((*cancels.lock().unwrap(), end.cancelled, end.awaited), (1, true, 1));
}

#[tokio::test(start_paused = true)]
async fn failures_end_it_as_asked() {
    for (halt, cancelled) in [("soon,fail=2", false), ("now,fail=2", true)] {
        let bench = Bench::new().await;
        let mut plan = bench.plan();
        plan.max_in_flight = 4;
        plan.halts = vec![halt.parse().unwrap()];
        let end = tokio::select! {
            end = bench.run(plan, items((1..=100).map(item)), Default::default(), Shutdown::new()) => end,
            never = bench.work(|_| Status::Failed) => never,
        };
        assert_eq!((end.cancelled, end.cut_short), (cancelled, true), "{halt}");
        let ended = bench.seen.ends().len();
        assert!((2..=20).contains(&ended), "{halt}: {ended}");
        assert_eq!(end.awaited, 0, "{halt}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_halt_after_the_last_item_leaves_nothing_out() {
    for (expected, cut_short) in [(Some(2), false), (Some(3), true), (None, true)] {
        let bench = Bench::new().await;
        let mut plan = bench.plan();
        (plan.max_in_flight, plan.expected) = (2, expected);
        plan.halts = vec!["soon,fail=1".parse().unwrap()];
        // Both are in hand, so that the end of the source was not seen yet.
        let source = Items {
            items: (1..=2).map(item).collect(),
            ends: false,
        };
        let end = tokio::select! {
            end = bench.run(plan, source, Default::default(), Shutdown::new()) => end,
            never = bench.work(|_| Status::Failed) => never,
        };
        assert_eq!(end.cut_short, cut_short, "{expected:?}");
        assert_eq!(bench.seen.ends().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn without_results_it_submits_and_leaves() {
    let bench = Bench::new().await;
    let mut watcher = bench.seen.clone();
    let mut plan = bench.plan();
    plan.max_in_flight = usize::MAX;
    let source = items((1..=2000).map(item));
    let past = (Table::forgetful(), None);
    let mut engine = Engine::new(plan, source, Vec::new(), &mut watcher, past, None);
    let outcome = engine.work(&Shutdown::new(), &CancellationToken::new()).await;
    let end = engine.end(outcome);
    assert_eq!((end.submitted, end.awaited, end.total), (2000, 2000, Some(2000)));
    assert_eq!(bench.waiting("n.jobs.p").await, 2000);
    let mut jobs = bench.jobs(10).await;
    for seq in 1..=10 {
        assert_eq!(submission(&jobs.next().await.unwrap()).seq, seq, "in their order");
    }
}

#[tokio::test(start_paused = true)]
async fn changed_input_ends_it_before_anything_else_is_submitted() {
    let bench = Bench::new().await;
    let folder = tempfile::tempdir().unwrap();
    let open = |table: &mut Table| {
        let header = crate::batch::journal::Header {
            batch: bench.batch.clone(),
            namespace: "n".to_owned(),
            pool: "p".to_owned(),
            version: "0".to_owned(),
        };
        Journal::open(&folder.path().join("r"), &header, table).unwrap()
    };
    std::fs::write(folder.path().join("r"), "").unwrap();
    let mut table = Table::default();
    let journal = open(&mut table);
    let stop = Shutdown::new();
    let work = bench.work(|_| SUCCEEDED);
    let end = tokio::select! {
        end = bench.run(bench.plan(), items((1..=3).map(item)), (table, Some(journal)), stop.clone()) => end,
        never = work => never,
    };
    assert!(end.error.is_none());
    let mut table = Table::default();
    let journal = open(&mut table);
    let mut other = item(2);
    other.job = Ok("another".into());
    let source = items([item(1), other, item(3), item(4)]);
    let end = tokio::select! {
        end = bench.run(bench.plan(), source, (table, Some(journal)), stop.clone()) => end,
        never = bench.work(|_| SUCCEEDED) => never,
    };
    assert!(matches!(end.error, Some(BatchError::Changed(_))), "{end:?}");
    assert_eq!(end.submitted, 0);
}
