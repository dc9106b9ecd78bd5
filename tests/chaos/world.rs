//! All that takes part, and the order of events.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use synthex::message::{Envelope, JobId};
use synthex::transport::amqp::{Addresses, Amqp, AmqpConfig};
use synthex::transport::topology::{Binding, Declare, Names, Queue, Topology};
use synthex::transport::{Subscribe, Subscription, Transport};

use crate::account::{Account, read_counted, read_ledger};
use crate::collector::Collector;
use crate::faults::Fault;
use crate::fleet::{Fleet, SLOTS};
use crate::footprint::Footprint;
use crate::jobs::Kind;
use crate::producer::Producer;
use crate::support::broker::{Broker, Vhost, patiently, transport};
use crate::support::process::{alive_with_env, eventually};
use crate::support::proxy::Loss;
use crate::support::random::Random;

pub const POOL: &str = "chaos";

/// Where every result ends.
pub const RESULTS: &str = "all-results";

/// The variable by which a command of this run is known.
pub const MARK: &str = "SYNTHEX_TEST_MARK";

/// How long anything may take that has to come, on a busy machine: a broker's start, for one.
pub const PATIENCE: Duration = Duration::from_secs(200);

/// RabbitMQ counts what is in a quorum queue every five seconds.
const COUNTING: Duration = Duration::from_secs(6);

/// How long threads and helpers that have nothing to do may stay.
const IDLE: Duration = Duration::from_secs(90);

/// Says what happens, and when.
pub fn tell(what: &str) {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let elapsed = BEGAN.get_or_init(Instant::now).elapsed();
    println!("{:7.2} s  {what}", elapsed.as_secs_f64());
}

/// What faults happen to, and what shows how it goes.
pub struct Stage {
    pub broker: Broker,
    pub fleet: Fleet,
    pub collector: Collector,
    /// When the broker was on its way out, away, or on its way in.
    pub broker_away: Vec<Loss>,
}

/// A node, its workers and its clients.
pub struct World {
    mark: String,
    names: Names,
    amqp: Amqp,
    vhost: Vhost,
    producer: Producer,
    stage: Stage,
    first: Option<Footprint>,
    /// Outlives the workers.
    _folder: tempfile::TempDir,
}

impl World {
    /// Starts a node and so many workers.
    pub async fn start(workers: usize) -> Self {
        tell("start");
        let broker = Broker::start().await;
        let vhost = broker.vhost().await;
        let addresses = Addresses::parse(&vhost.url()).expect("the broker's own address");
        let (amqp, names) = (Amqp::new(AmqpConfig::new(addresses)), Names::new("synthex"));
        // Whoever comes later tries again.
        let patient = transport(&vhost.url(), PATIENCE);
        patiently(async || patient.declare(&topology(&names), Declare::Active).await).await;

        let folder = tempfile::tempdir().unwrap();
        let mark = JobId::random().to_string();
        let mut fleet = Fleet::new(vhost.url(), broker.port(), folder.path(), &mark);
        for _ in 0..workers {
            let worker = fleet.start_one().await;
            fleet.workers.push(worker);
        }
        Self {
            mark,
            _folder: folder,
            producer: Producer::new(amqp.clone(), names.clone()),
            stage: Stage {
                broker,
                fleet,
                collector: Collector::start(amqp.clone()),
                broker_away: Vec::new(),
            },
            names,
            amqp,
            vhost,
            first: None,
        }
    }

    /// Has so many jobs done while nothing happens.
    pub async fn run_jobs(&mut self, count: usize, random: &mut Random) {
        let ids = self.producer.publish(count, random).await;
        self.wait_for_ends(&ids).await;
    }

    /// Publishes so many jobs, and has something happen while half of them are under way and the others still come.
    pub async fn run_jobs_under(&mut self, fault: Fault, count: usize, random: &mut Random) {
        let (first, others) = (count.div_ceil(2), count / 2);
        let (mut of_jobs, seen) = (random.fork(), self.stage.collector.count());
        let some = seen + random.between(1, first.min(10));
        self.producer.publish(first, &mut of_jobs).await;
        let happening = async {
            let begun = eventually(PATIENCE, "jobs end", || self.stage.collector.count() >= some);
            begun.await;
            fault.happen(&mut self.stage, random).await;
        };
        tokio::join!(self.producer.publish(others, &mut of_jobs), happening);
        tell("published, and over");
        self.stage.fleet.ready().await;
    }

    /// Waits until nothing is queued, or in hand, from which a job may yet have an end. What has none is for the account to
    /// name.
    pub async fn finish_all_jobs(&mut self) {
        let queued = self.drained().await;
        assert!(
            queued.iter().all(|(queue, _)| *queue == self.names.dead()),
            "still queued: {queued:?}"
        );
        tell("nothing is left to do");
    }

    /// Fails when no job ends for [`PATIENCE`].
    async fn wait_for_ends(&self, ids: &BTreeSet<String>) {
        let collector = &self.stage.collector;
        let mut open: BTreeSet<&String> = ids.iter().collect();
        while !open.is_empty() {
            let before = open.len();
            let what = format!(
                "any of {before} jobs without an end has one, such as {:?}",
                open.first()
            );
            eventually(PATIENCE, &what, || {
                open.retain(|id| !collector.has_end(id));
                open.len() < before
            })
            .await;
        }
    }

    /// What the first worker holds, once every slot was in use: it has helpers for as many jobs as it ran at a time.
    pub async fn footprint(&mut self, random: &mut Random) -> Footprint {
        let crowd = SLOTS * self.stage.fleet.workers.len() * 3;
        let ids = self.producer.publish_only(Kind::Sleeper, crowd, random).await;
        self.wait_for_ends(&ids).await;
        let worker = self.stage.fleet.workers[0].running.pid();
        let first = self.first.get_or_insert_with(|| Footprint::of(worker)).clone();
        let deadline = Instant::now() + IDLE;
        let mut now = Footprint::of(worker);
        while !now.is_within(&first) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            now = Footprint::of(worker);
        }
        now
    }

    /// Stops the workers, takes the dead letters, and gives an account of everything.
    pub async fn close(mut self) -> Account {
        let losses = self.stage.fleet.losses();
        self.stage.fleet.stop().await;
        tell("all workers have stopped");
        let ledger = std::fs::read_to_string(self.stage.fleet.ledger()).unwrap();
        let printed = self.stage.fleet.printed();
        let orphans = alive_with_env(MARK, &self.mark);
        let queued = self.drained().await;
        let dead = queued.iter().find(|(queue, _)| *queue == self.names.dead());
        let dead = self.take(&self.names.dead(), dead.map_or(0, |(_, count)| *count)).await;
        Account {
            confirmed: std::mem::take(&mut self.producer.confirmed),
            unknown: std::mem::take(&mut self.producer.unknown),
            starts: read_ledger(&ledger),
            ledger,
            counted: read_counted(&printed),
            printed,
            broker_away: std::mem::take(&mut self.stage.broker_away),
            results: std::mem::take(&mut *self.stage.collector.look()),
            dead: dead
                .into_iter()
                .filter_map(|letter| letter.properties.message_id)
                .collect(),
            queued: queued
                .into_iter()
                .filter(|(queue, _)| *queue != self.names.dead())
                .collect(),
            orphans: orphans.into_iter().map(|process| process.command).collect(),
            losses,
        }
    }

    /// Waits until nothing is queued but dead letters, and every confirmed job has its end; gives what is queued: after
    /// [`PATIENCE`] without a result, whatever it is.
    async fn drained(&self) -> Vec<(String, usize)> {
        let mut deadline = Instant::now() + PATIENCE;
        let (mut queued, mut empty_since, mut seen) = (Vec::new(), None, 0);
        while Instant::now() < deadline {
            let count = self.stage.collector.count();
            if count > seen {
                (seen, deadline) = (count, Instant::now() + PATIENCE);
            }
            queued = self.queued().await;
            let is_empty = queued.iter().all(|(queue, _)| *queue == self.names.dead()) && self.all_ended();
            empty_since = empty_since.filter(|_| is_empty).or(is_empty.then(Instant::now));
            if empty_since.is_some_and(|since| since.elapsed() > COUNTING) {
                break;
            }
        }
        queued
    }

    fn all_ended(&self) -> bool {
        let mut confirmed = self.producer.confirmed.keys();
        confirmed.all(|id| self.stage.collector.has_end(id))
    }

    /// Queues that are not empty, with what is in them or in somebody's hands.
    async fn queued(&self) -> Vec<(String, usize)> {
        let queues = self.vhost.queues().await.into_iter();
        queues.filter(|(_, count)| *count > 0).collect()
    }

    /// Takes so many messages out of a queue.
    async fn take(&self, queue: &str, count: usize) -> Vec<Envelope> {
        let request = subscribe_request(queue, 100);
        let mut subscription = self.amqp.subscribe(&request).await.expect("the broker is well");
        let mut taken = Vec::new();
        while taken.len() < count {
            let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
            let delivery = next.expect("it was counted").expect("the session is live");
            taken.push((*delivery.envelope).clone());
            delivery.ack().await.expect("the session is live");
        }
        taken
    }
}

fn topology(names: &Names) -> Topology {
    let mut topology = Topology::new(names, [POOL]);
    topology.queues.push(Queue {
        name: RESULTS.into(),
        delivery_limit: Some(100_000),
        ..Queue::default()
    });
    topology.bindings.push(Binding {
        exchange: names.results(),
        queue: RESULTS.into(),
        routing_key: "#".into(),
    });
    topology
}

/// Consumes a queue that is there.
pub fn subscribe_request(queue: &str, prefetch: u16) -> Subscribe {
    Subscribe {
        queue: queue.into(),
        prefetch,
        consumer_timeout: None,
        topology: Arc::default(),
        declare: Declare::Active,
        from: None,
    }
}
