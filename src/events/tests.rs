//! The publisher on the embedded broker, told of things by hand.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::publisher::EVENTS_MAX;
use super::*;
use crate::flow::channel::Channels;
use crate::message::WorkerState;
use crate::message::event::Event as Published;
use crate::message::{Reply, Stream};
use crate::supervise::{Budget, Shutdown, StopReport, Strategy, Supervisor, TaskAccounts};
use crate::transport::memory::{Memory, MemorySubscription};
use crate::transport::topology::{Declare, Topology};
use crate::transport::{Subscription, Topic, Transport};
use crate::worker::Audience;
use crate::worker::event::{About, Event, Kept, Listener, Observer, RunOf};

const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what was published and dropped.
#[derive(Default)]
struct Accounts(Mutex<Vec<(&'static str, About)>>);

impl Observer for Accounts {
    fn on(&self, event: &Event) {
        let entry = match event {
            Event::EventPublished { about } => ("published", *about),
            Event::EventDropped { about } => ("dropped", *about),
            Event::OutputUnsent { .. } => ("unsent", About::Output),
            other => panic!("{other:?}"),
        };
        self.0.lock().unwrap().push(entry);
    }
}

struct Bench {
    broker: Memory,
    names: Names,
    audience: Audience,
    accounts: Arc<Accounts>,
    publisher: Publisher,
    shutdown: Shutdown,
}

impl Bench {
    /// A publisher of the worker `w`, whose pool `open` is always told of.
    async fn new() -> Self {
        let (broker, names) = (Memory::new(), Names::new("n"));
        let topology = Topology::events(&names);
        broker.declare(&topology, Declare::Active).await.unwrap();
        let (audience, accounts) = (Audience::default(), Arc::new(Accounts::default()));
        let publisher = Publisher::new(
            "w".to_owned(),
            audience.clone(),
            ["open".into()],
            &Channels::default(),
            accounts.clone(),
        );
        Self {
            broker,
            names,
            audience,
            accounts,
            publisher,
            shutdown: Shutdown::new(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test owns the task, to wait for its end")]
    fn start(&self) -> JoinHandle<StopReport> {
        let state = || WorkerState {
            id: "w".to_owned(),
            host: "h".to_owned(),
            version: "0".to_owned(),
            started_at: crate::message::now(),
            draining: false,
            clock: None,
            pools: Vec::new(),
        };
        let child = self
            .publisher
            .child(self.broker.clone(), self.names.clone(), Declare::Passive, state);
        let budget = Budget {
            restarts: 0,
            within: PATIENCE,
        };
        let tree = Supervisor::new("w", Strategy::OneForOne, budget, TaskAccounts::default()).child(child);
        tokio::spawn(tree.run(self.shutdown.clone()))
    }

    async fn listen(&self, key: &str) -> Ears {
        let topic = Topic {
            exchange: self.names.events(),
            routing_key: key.to_owned(),
        };
        Ears(self.broker.listen(&[topic]).await.unwrap())
    }

    fn count(&self, what: &str, about: About) -> usize {
        let accounts = self.accounts.0.lock().unwrap();
        accounts.iter().filter(|entry| **entry == (what, about)).count()
    }
}

/// A queue, and its name.
struct Ears((String, MemorySubscription));

impl Ears {
    async fn body(&mut self) -> Bytes {
        let delivery = timeout(PATIENCE, self.0.1.next())
            .await
            .expect("something comes")
            .unwrap();
        let body = Bytes::clone(&delivery.envelope.body);
        delivery.ack().await.unwrap();
        body
    }

    async fn event(&mut self) -> Published {
        let body = self.body().await;
        Published::decode(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
    }

    /// The keys of the next so many events.
    async fn keys(&mut self, count: usize) -> Vec<String> {
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(self.event().await.routing_key());
        }
        keys
    }
}

fn retried(pool: &str, job: &str) -> Event {
    Event::JobRetried {
        pool: pool.into(),
        job_id: job.parse().unwrap(),
        delay: Duration::from_millis(1500),
    }
}

fn run() -> RunOf {
    RunOf {
        number: 7,
        pool: "p".into(),
        job_id: "j".parse().unwrap(),
        attempt: 1,
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_tells_of_its_start_its_life_and_its_end() {
    let bench = Bench::new().await;
    let mut ears = bench.listen("worker.#").await;
    bench.publisher.on(&Event::Consuming { pool: "p".into() });
    let started = tokio::time::Instant::now();
    let running = bench.start();
    let expected = [
        "worker.w.started",
        "worker.w.consuming",
        "worker.w.heartbeat",
        "worker.w.heartbeat",
    ];
    assert_eq!(ears.keys(4).await, expected);
    assert!(started.elapsed() >= 2 * HEARTBEAT);
    bench.publisher.on(&Event::Draining);
    bench.shutdown.drain();
    assert_eq!(ears.keys(2).await, ["worker.w.draining", "worker.w.stopped"]);
    assert_eq!(running.await.unwrap().gave_up, None);
    assert_eq!(bench.count("published", About::Worker), 6);
}

#[tokio::test(start_paused = true)]
async fn jobs_are_told_of_while_somebody_watches_or_if_their_pool_says_so() {
    let bench = Bench::new().await;
    let mut ears = bench.listen("job.#").await;
    bench.start();
    bench.publisher.on(&retried("quiet", "nobody-hears"));
    bench.publisher.on(&retried("open", "a"));
    assert_eq!(ears.keys(1).await, ["job.open.retried"]);
    bench.audience.watch();
    bench.publisher.on(&retried("quiet", "b"));
    let Published::JobRetried {
        job_id,
        delay_ms,
        place,
    } = ears.event().await
    else {
        panic!("another event")
    };
    assert_eq!((job_id.as_str(), delay_ms, place.worker.as_str()), ("b", 1500, "w"));
    tokio::time::advance(crate::worker::audience::LEASE).await;
    bench.publisher.on(&retried("quiet", "nobody-hears-any-more"));
    bench.publisher.on(&retried("open", "c"));
    assert_eq!(ears.keys(1).await, ["job.open.retried"]);
    assert_eq!(bench.count("published", About::Job), 3);
}

#[tokio::test(start_paused = true)]
async fn events_of_one_job_stay_in_order() {
    let bench = Bench::new().await;
    let mut ears = bench.listen("job.#").await;
    for round in 1..=100 {
        for job in ["a", "b", "c"] {
            bench.publisher.on(&Event::JobRecounted {
                pool: "open".into(),
                job_id: job.parse().unwrap(),
                attempt: round,
            });
        }
    }
    bench.start();
    let mut last = std::collections::BTreeMap::new();
    for _ in 0..300 {
        let Published::JobRecounted { job_id, attempt, .. } = ears.event().await else {
            panic!("another event")
        };
        assert_eq!(last.insert(job_id, attempt).unwrap_or(0) + 1, attempt);
    }
}

#[tokio::test(start_paused = true)]
async fn one_event_too_many_is_dropped_and_counted() {
    let bench = Bench::new().await;
    for number in 0..EVENTS_MAX + 3 {
        bench.publisher.on(&retried("open", &number.to_string()));
    }
    assert_eq!(bench.count("dropped", About::Job), 3);
}

#[tokio::test(start_paused = true)]
async fn who_followed_is_answered_then_hears_what_comes_then_the_end() {
    let bench = Bench::new().await;
    let mut ears = bench.listen("output.j.#").await;
    let listener = Listener {
        reply_to: ears.0.0.clone(),
        correlation_id: Some("q".to_owned()),
    };
    let kept = Kept {
        stream: Stream::Stdout,
        offset: 0,
        dropped: 0,
        bytes: Bytes::from_static(b"be"),
    };
    bench.publisher.on(&Event::OutputKept {
        run: run(),
        kept: [kept].into(),
        listeners: [listener].into(),
    });
    for (offset, bytes) in [(2, "fo"), (4, "re")] {
        bench.publisher.on(&Event::OutputHeard {
            run: run(),
            stream: Stream::Stdout,
            offset,
            bytes: Bytes::from_static(bytes.as_bytes()),
        });
    }
    bench.publisher.on(&Event::OutputEnded {
        run: run(),
        status: crate::message::Status::Succeeded,
        is_final: true,
        stdout_bytes: 6,
        stderr_bytes: 0,
    });
    bench.start();
    let Ok(Reply::Output { run, chunks }) = Reply::decode(&ears.body().await) else {
        panic!("the answer comes first")
    };
    assert_eq!((run.worker.as_str(), chunks[0].text.as_str()), ("w", "be"));
    let Published::Output { chunk, .. } = ears.event().await else {
        panic!("then what was written")
    };
    assert_eq!((chunk.offset, chunk.text.as_str()), (2, "fore"));
    assert_eq!(ears.keys(1).await, ["output.j.ended"]);
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_does_not_take_is_dropped_and_the_end_is_not_held_up() {
    let mut bench = Bench::new().await;
    bench.broker = Memory::new(); // without the exchange
    let running = bench.start();
    tokio::time::sleep(Duration::from_secs(1)).await; // it has begun
    for number in 0..10 {
        bench.publisher.on(&retried("open", &number.to_string()));
    }
    bench.shutdown.drain();
    let report = timeout(PATIENCE, running).await.expect("it ends").unwrap();
    assert_eq!(report.gave_up, None);
    assert_eq!(
        (bench.count("published", About::Job), bench.count("dropped", About::Job)),
        (0, 10)
    );
}
