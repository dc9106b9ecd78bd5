//! A broker with its queues, workers on it that a test can stop in every way, and what they left behind.
//!
//! A worker here is put together as `synthex worker` puts it together, but for signals and the metrics' port. Its commands
//! carry a mark in their environment, by which [`Rig::nothing_left_of`] finds any that lives on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use synthex::config::Pool;
use synthex::events::Publisher;
use synthex::executor::{CgroupChoice, SpawnerOptions, Spawners};
use synthex::flow::channel::Channels;
use synthex::message::{Envelope, JobId, JobResult, Properties, Status, WorkerState};
use synthex::metrics::{Metrics, PoolInfo, Sources};
use synthex::supervise::{Budget, Outcome, Shutdown, StopReport, Strategy, Supervisor, TaskAccounts, TaskStats};
use synthex::transport::memory::Memory;
use synthex::transport::topology::{Binding, Declare, Names, Queue, TIERS, Topology};
use synthex::transport::{Delivery, Publication, Routing, Subscribe, Subscription, Transport, TransportError};
use synthex::worker::event::{Event, Observer, Observers};
use synthex::worker::orders::Orders;
use synthex::worker::spool::Spool;
use synthex::worker::{Audience, Circuits, Elsewhere, Ending, Identity, InHand, Ledgers, Watch, Worker};
use tokio::task::JoinHandle;

use crate::support::broker::{Vhost, patiently};
use crate::support::observer::Recorder;
use crate::support::process::{alive_with_env, eventually};

/// The pool that everything here is about.
pub const POOL: &str = "faults";
/// How long anything may take that has to come.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt to subscribe may take.
const SUBSCRIBE_BOUND: Duration = Duration::from_secs(25);
/// How often a broker is asked for what it tells nobody unasked.
const POLL: Duration = Duration::from_millis(50);
/// Where every result ends, whatever becomes of the connections of who asked.
pub const RESULTS: &str = "results";
/// The environment variable by which a command of this test is known.
pub const MARK: &str = "SYNTHEX_TEST_MARK";
/// The folder of the outbox on disk.
pub const OUTBOX: &str = "outbox";
/// How large it may be.
const OUTBOX_BYTES: u64 = 1 << 20;
/// A job that a test publishes behind all others, to see that they are over.
const LAST_JOB: &str = "last-job";
/// Publishes under way at once.
const PUBLISHERS: usize = 32;

/// A broker, and all that the workers of one test have in common.
pub struct Rig<T: Transport> {
    pub broker: T,
    pub names: Names,
    sessions: Sessions,
    pub mark: String,
    /// How workers watch their queue and its consumer.
    pub watch: Watch,
    folder: tempfile::TempDir,
}

/// Who can end every session of a broker, as a restart does.
pub enum Sessions {
    Memory(Memory),
    Amqp(Vhost),
}

/// A worker that runs.
pub struct Live {
    pub shutdown: Shutdown,
    pub observer: Arc<Recorder>,
    ending: Ending,
    tasks: TaskAccounts,
    channels: Channels,
    metrics: Metrics,
    run: JoinHandle<StopReport>,
}

/// What a worker said at its end.
pub struct Stopped {
    pub report: StopReport,
    pub ending: Ending,
    pub observer: Arc<Recorder>,
    pub tasks: TaskAccounts,
    pub metrics: Metrics,
    channels: Channels,
}

/// The attempts and statuses of a job's results, in the order of publication.
pub type Ends = Vec<(u32, Status)>;
/// Results by job, in the order of publication.
pub type Results = BTreeMap<String, Vec<JobResult>>;

impl<T: Transport> Rig<T> {
    /// Declares the queues of [`POOL`], and one for its results.
    pub async fn new(broker: T, sessions: Sessions) -> Self {
        let names = Names::new("synthex");
        let mut topology = Topology::new(&names, [POOL]);
        topology.queues.push(Queue {
            name: RESULTS.into(),
            delivery_limit: Some(1000),
            ..Queue::default()
        });
        topology.bindings.push(Binding {
            exchange: names.results(),
            queue: RESULTS.into(),
            routing_key: "#".into(),
        });
        patiently(async || broker.declare(&topology, Declare::Active).await).await;
        Self {
            broker,
            names,
            sessions,
            mark: JobId::random().to_string(),
            watch: Watch::default(),
            folder: tempfile::tempdir().expect("the folder for temporary files can be written"),
        }
    }

    /// Ends every session, those of the test too.
    pub async fn close_sessions(&self) {
        match &self.sessions {
            Sessions::Memory(broker) => broker.close_sessions(),
            Sessions::Amqp(vhost) => vhost.close_connections("a test ends all sessions").await,
        }
    }

    /// Whether its broker is in this process, and so never waits for a processor of its own.
    pub fn is_embedded(&self) -> bool {
        matches!(self.sessions, Sessions::Memory(_))
    }

    /// The virtual host that a rig on RabbitMQ has for itself.
    pub fn vhost(&self) -> &Vhost {
        match &self.sessions {
            Sessions::Memory(_) => panic!("this rig is not on RabbitMQ"),
            Sessions::Amqp(vhost) => vhost,
        }
    }

    /// The pool as a test wants it: two slots, three deliveries in hand.
    pub fn pool(&self) -> Pool {
        let mut pool = Pool {
            name: POOL.into(),
            slots: 2,
            prefetch: 3,
            stop_grace: PATIENCE,
            ..Pool::default_pool()
        };
        Arc::make_mut(&mut pool.env).extend([(MARK.into(), self.mark.clone())]);
        pool.shell = vec!["/bin/sh".into(), "-c".into()];
        pool
    }

    /// A job that says where it is in the file of its id, and ends when [`Rig::open`] is called with that name.
    pub fn gated(&self, gate: &str) -> Value {
        let (begun, gate) = (self.path("begun"), self.path(gate));
        json!({ "script": format!(
            "echo $SYNTHEX_JOB_ID $SYNTHEX_ATTEMPT >>{}; until [ -e {} ]; do sleep 0.02; done; echo done",
            begun.display(), gate.display()
        ) })
    }

    /// Lets the jobs of a gate end, now and in future.
    pub fn open(&self, gate: &str) {
        std::fs::write(self.path(gate), "").expect("the test's own folder can be written");
    }

    /// Publishes a job under this id, confirmed.
    pub async fn publish(&self, id: &str, job: &Value) {
        self.publish_all([(id.to_owned(), job.to_string())]).await;
    }

    /// Publishes bodies under ids, confirmed, many at a time.
    pub async fn publish_all(&self, jobs: impl IntoIterator<Item = (String, String)>) {
        let publish = async |(id, body)| {
            let publication = self.job(id, body);
            let published = tokio::time::timeout(PATIENCE, self.broker.publish(&publication)).await;
            published.expect("a confirm comes").expect("the broker is well");
        };
        futures_util::stream::iter(jobs)
            .map(publish)
            .buffer_unordered(PUBLISHERS)
            .collect::<()>()
            .await;
    }

    /// Publishes a job that runs only after the shortest delay, behind all that waits there, confirmed.
    pub async fn publish_delayed(&self, id: &str, job: &Value) {
        let publication = Publication {
            exchange: self.names.delay(&TIERS[0]),
            ..self.job(id.to_owned(), job.to_string())
        };
        let published = soon("a confirm", self.broker.publish(&publication)).await;
        published.expect("the broker is well");
    }

    /// A job under this id, as a producer publishes it.
    pub fn job(&self, id: String, body: String) -> Publication {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is later than 1970");
        Publication {
            exchange: self.names.jobs(),
            routing_key: POOL.into(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: body.into(),
                properties: Properties {
                    content_type: Some("application/json".into()),
                    message_id: Some(id),
                    timestamp: Some(now.as_secs()),
                    ..Properties::default()
                },
            }
            .into(),
        }
    }

    /// Starts a worker on this transport, a wrapped [`Rig::broker`] or another one.
    pub fn work<F: Transport>(&self, transport: F, pool: Pool) -> Live {
        self.start(transport, pool, Orders::none(), Arc::default(), None, None)
    }

    /// Starts a worker that is listened to.
    pub fn work_heard<F: Transport>(&self, transport: F, pool: Pool, audience: Audience) -> Live {
        self.start(transport, pool, Orders::none(), Arc::default(), None, Some(audience))
    }

    /// Starts a worker that obeys these orders.
    pub fn work_under<F: Transport>(&self, orders: Orders, transport: F, pool: Pool) -> Live {
        self.start(transport, pool, orders, Arc::default(), None, None)
    }

    /// Starts a worker that has an outbox on disk, the same as all of this test.
    pub async fn work_with_outbox<F: Transport>(&self, transport: F, pool: Pool) -> Live {
        let observer = Arc::new(Recorder::default());
        let id = JobId::random().to_string();
        let spool = Spool::open(self.path(OUTBOX), &id, OUTBOX_BYTES, observer.clone()).await;
        let spool = spool.expect("the test's own folder can be used");
        self.start(transport, pool, Orders::none(), observer, Some(spool), None)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a test owns the supervisor's future, to drop it"
    )]
    fn start<F: Transport>(
        &self,
        transport: F,
        pool: Pool,
        orders: Orders,
        observer: Arc<Recorder>,
        spool: Option<Spool>,
        audience: Option<Audience>,
    ) -> Live {
        let shutdown = Shutdown::new();
        let (channels, tasks) = (Channels::default(), TaskAccounts::default());
        let metrics = metrics_of(&pool, &channels, &tasks);
        let metrics_observer = Arc::new(metrics.clone());
        let publisher = audience.clone().map(|audience| {
            let open = [pool.name.clone()];
            Publisher::new("w".into(), audience, open, &channels, metrics_observer.clone())
        });
        let mut observers: Vec<Arc<dyn Observer>> = vec![observer.clone(), metrics_observer];
        observers.extend(
            publisher
                .clone()
                .map(|publisher| Arc::new(publisher) as Arc<dyn Observer>),
        );
        let observers: Arc<dyn Observer> = Arc::new(Observers(observers));
        let worker = Worker {
            transport,
            names: self.names.clone(),
            spawners: spawners(),
            holds: orders.holds().clone(),
            audience: audience.unwrap_or_default(),
            orders,
            circuits: Circuits::new(&observers, Elsewhere::Workers),
            identity: Identity {
                id: JobId::random().to_string(),
                host: "test".into(),
            },
            observer: observers,
            channels: channels.clone(),
            tasks: tasks.clone(),
            ending: Ending::new(shutdown.clone()),
            in_hand: InHand::default(),
            ledgers: Ledgers::default(),
            spool,
            watch: self.watch,
            tracer: None,
        };
        let budget = Budget {
            restarts: 3,
            within: Duration::from_secs(60),
        };
        // When it gives up, what is in hand has time to finish, on a busy machine, too.
        let tree = Supervisor::new("worker", Strategy::OneForOne, budget, tasks.clone()).drain_grace(PATIENCE);
        let (transport, names) = (worker.transport.clone(), worker.names.clone());
        let publishes = publisher.map(|publisher| publisher.child(transport, names, Declare::Active, state));
        let tree = publishes
            .into_iter()
            .chain(worker.replay(Declare::Active))
            .chain(worker.children(&Arc::new(pool)))
            .fold(tree, Supervisor::child);
        Live {
            run: tokio::spawn(tree.run(shutdown.clone())),
            shutdown,
            observer,
            ending: worker.ending,
            tasks,
            channels,
            metrics,
        }
    }

    /// Takes what is in a queue, all of it, and acks it. Nobody else may publish or consume there.
    pub async fn take_all(&self, queue: &str) -> Vec<Envelope> {
        let mut taken = Vec::new();
        for delivery in self.look_through(queue).await {
            taken.push((*delivery.envelope).clone());
            delivery.ack().await.expect("the session is live");
        }
        taken
    }

    /// Takes all that is in a queue: what comes before a message that is published last, in a queue that keeps order.
    pub async fn look_through(&self, queue: &str) -> Vec<Delivery> {
        const LAST: &[u8] = b"the last message";
        let last = Publication {
            exchange: String::new(),
            routing_key: queue.into(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: Bytes::from_static(LAST).into(),
                ..Envelope::default()
            }
            .into(),
        };
        let publishing = async {
            while let Err(error) = self.broker.publish(&last).await {
                assert!(error.is_transient(), "{error}");
                tokio::time::sleep(POLL).await;
            }
        };
        soon("a confirm", publishing).await;
        let mut subscription = self.subscribe(queue, u16::MAX).await;
        let mut deliveries = Vec::new();
        loop {
            let delivery = soon("a delivery", subscription.next())
                .await
                .expect("the session is live");
            if **delivery.envelope.body == *LAST {
                delivery.ack().await.expect("the session is live");
                return deliveries;
            }
            deliveries.push(delivery);
        }
    }

    pub async fn subscribe(&self, queue: &str, prefetch: u16) -> T::Subscription {
        let request = Subscribe {
            queue: queue.into(),
            prefetch,
            consumer_timeout: None,
            from: None,
            topology: Arc::default(),
            declare: Declare::Active,
        };
        let no_answer = || TransportError::Lost {
            operation: format!("subscribe to {queue}"),
            reason: format!("no answer within {SUBSCRIBE_BOUND:?}"),
        };
        // A broker that has just started may leave an attempt without an answer: as the intake, bound each one.
        patiently(async || {
            let attempt = tokio::time::timeout(SUBSCRIBE_BOUND, self.broker.subscribe(&request)).await;
            attempt.unwrap_or_else(|_| Err(no_answer()))
        })
        .await
    }

    /// Waits until so many jobs are in the pool's queue, not counting those that a worker has.
    pub async fn wait_for_waiting_jobs(&self, count: u32) {
        let queue = self.names.pool_queue(POOL);
        let counting = async {
            while self.depth(&queue).await != Some(count) {
                tokio::time::sleep(POLL).await;
            }
        };
        soon("the queue's depth", counting).await;
    }

    /// How many messages wait in a queue; a broker may count behind what it does.
    pub async fn depth(&self, queue: &str) -> Option<u32> {
        let depth = self.broker.queue_depth(queue).await.expect("the broker tells");
        depth.map(|depth| depth.messages)
    }

    /// Takes results until every one of these jobs has a final one.
    pub async fn wait_for_ends(&self, ids: impl IntoIterator<Item = String>) -> Results {
        let mut open: BTreeSet<String> = ids.into_iter().collect();
        let mut subscription = self.subscribe(RESULTS, 500).await;
        let mut results = Results::new();
        while !open.is_empty() {
            let next = tokio::time::timeout(PATIENCE, take_result(&mut subscription)).await;
            let result = next.unwrap_or_else(|_| panic!("{} jobs have no end: {open:?}", open.len()));
            if result.is_final {
                open.remove(&result.job_id.to_string());
            }
            results.entry(result.job_id.to_string()).or_default().push(result);
        }
        results
    }

    /// Takes so many results.
    pub async fn wait_for_results(&self, count: usize) -> Results {
        let mut subscription = self.subscribe(RESULTS, 500).await;
        let mut results = Results::new();
        for number in 0..count {
            let next = tokio::time::timeout(PATIENCE, take_result(&mut subscription)).await;
            let result = next.unwrap_or_else(|_| panic!("{number} of {count} results came: {results:#?}"));
            results.entry(result.job_id.to_string()).or_default().push(result);
        }
        results
    }

    /// All results that were published and not taken yet, by job. No worker may run.
    pub async fn results(&self) -> Results {
        let mut results = Results::new();
        for envelope in self.take_all(RESULTS).await {
            let result = JobResult::decode(&envelope.body).expect("a result");
            results.entry(result.job_id.to_string()).or_default().push(result);
        }
        results
    }

    /// Has a worker that meets no fault do what is left. Gives what all results together say, `count` of them.
    pub async fn finish(&self, count: usize) -> BTreeMap<String, Ends> {
        let live = self.work(self.broker.clone(), self.pool());
        self.finish_with(live, count).await
    }

    /// Waits for so many results, then until nothing more can come of any job, stops the worker, checks that there are no
    /// more and that nothing is left. Gives what the results say of each job, sorted: those of two runs at once may come
    /// in either order.
    pub async fn finish_with(&self, live: Live, count: usize) -> BTreeMap<String, Ends> {
        let results = self.wait_for_results(count).await;
        self.wait_for_last(&live).await;
        let stopped = live.stop().await;
        stopped.assert_clean();
        self.nothing_left_of(&stopped).await;
        self.assert_queue_is_empty().await;
        let more = self.results().await;
        assert!(more.is_empty(), "results beyond those that were to come: {more:#?}");
        let sorted = |results: Vec<_>| {
            let mut ends = ends(&results);
            ends.sort_unstable();
            ends
        };
        results.into_iter().map(|(id, results)| (id, sorted(results))).collect()
    }

    /// Waits until a worker has had all that is queued, or that comes of it after a delay: another attempt of a job that
    /// has its results would be begun before this is over.
    async fn wait_for_last(&self, live: &Live) {
        let job = json!({ "command": ["true"] });
        // Behind all that came back to the queue, which is then in hand or settled.
        self.publish(LAST_JOB, &job).await;
        self.wait_for_result_of(LAST_JOB).await;
        live.nothing_in_hand().await;
        let comes_back = |event: &Event| matches!(event, Event::JobRecounted { .. });
        if live.observer.count(comes_back) > 0 {
            // Behind all that was counted, and comes a moment later.
            self.publish_delayed(LAST_JOB, &job).await;
            self.wait_for_result_of(LAST_JOB).await;
        }
    }

    /// Takes the next result, which has to be of this job.
    async fn wait_for_result_of(&self, id: &str) {
        let mut results = self.wait_for_results(1).await;
        let other = results.remove(id).is_none();
        assert!(!other, "results beyond those that were to come: {results:#?}");
    }

    /// Waits until no counted job is on its way to the pool's queue, and checks that it is empty. No worker may run.
    pub async fn assert_queue_is_empty(&self) {
        let delayed = self.names.delay(&TIERS[0]);
        let waiting = async {
            while self.depth(&delayed).await > Some(0) {
                tokio::time::sleep(POLL).await;
            }
        };
        soon("the end of a delay", waiting).await;
        let left = self.take_all(&self.names.pool_queue(POOL)).await;
        assert!(left.is_empty(), "jobs are left: {left:#?}");
    }

    /// The message ids of all dead letters. No worker may run.
    pub async fn dead_letters(&self) -> Vec<String> {
        let letters = self.take_all(&self.names.dead()).await;
        letters
            .into_iter()
            .filter_map(|letter| letter.properties.message_id)
            .collect()
    }

    /// Checks that a worker that has ended left no task, no message in a channel, no count above zero and no process.
    pub async fn nothing_left_of(&self, stopped: &Stopped) {
        // The tasks of one that panicked are aborted, and nobody is left to wait for them.
        let panicked = |task: &TaskStats| task.ended[Outcome::Panicked as usize].1 > 0;
        if stopped.tasks.snapshot().iter().any(panicked) {
            all_ended(&stopped.tasks).await;
        }
        for task in stopped.tasks.snapshot() {
            assert!(has_ended(&task), "tasks that were not joined: {task:?}");
        }
        for channel in stopped.channels.snapshot() {
            assert_eq!(channel.depth, 0, "messages left in a channel: {channel:?}");
        }
        for gauge in [
            "jobs_running{pool=\"faults\"}",
            "unacked{pool=\"faults\"}",
            "results_unconfirmed",
        ] {
            assert_eq!(stopped.metric(gauge), 0.0, "{gauge}");
        }
        // Killed and reaped by now, all but what the kernel still has to take apart.
        eventually(PATIENCE, "no process is left", || self.processes().is_empty()).await;
    }

    /// The command lines of all processes that belong to jobs of this test.
    pub fn processes(&self) -> Vec<String> {
        let alive = alive_with_env(MARK, &self.mark);
        alive.into_iter().map(|process| process.command).collect()
    }

    /// Each start of a job made by [`Rig::gated`]: its id and attempt.
    pub async fn wait_for_begun(&self, count: usize) -> Vec<String> {
        eventually(PATIENCE, "gated jobs say that they run", || self.begun().len() >= count).await;
        self.begun()
    }

    /// Each start of a job made by [`Rig::gated`] so far: its id and attempt.
    pub fn begun(&self) -> Vec<String> {
        let begun = std::fs::read_to_string(self.path("begun")).unwrap_or_default();
        begun.lines().map(str::to_owned).collect()
    }

    /// A file of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Live {
    /// Waits until so many jobs have been started, ever.
    pub async fn started(&self, times: usize) {
        let started = |event: &Event| matches!(event, Event::JobStarted { .. });
        self.observer.wait_for_times(times, "a job starts", started).await;
    }

    /// Waits until so many deliveries have been taken in hand, ever.
    pub async fn taken(&self, times: usize) {
        let taken = |event: &Event| matches!(event, Event::DeliveryTaken { .. });
        self.observer.wait_for_times(times, "a delivery is taken", taken).await;
    }

    /// Waits until so many consumers have been live, ever.
    pub async fn consuming(&self, times: usize) {
        let consuming = |event: &Event| matches!(event, Event::Consuming { .. });
        self.observer
            .wait_for_times(times, "a consumer is live", consuming)
            .await;
    }

    /// Waits until every delivery that it took is settled.
    async fn nothing_in_hand(&self) {
        let settled = |event: &Event| matches!(event, Event::DeliverySettled { .. });
        let taken = |event: &Event| matches!(event, Event::DeliveryTaken { .. });
        let times = self.observer.count(taken);
        let what = "a delivery is settled";
        self.observer.wait_for_times(times, what, settled).await;
    }

    /// Drains it and waits for its end.
    pub async fn stop(self) -> Stopped {
        self.shutdown.drain();
        self.join().await
    }

    /// Waits for its end.
    pub async fn join(self) -> Stopped {
        let report = soon("the worker's end", self.run)
            .await
            .expect("the supervisor does not panic");
        Stopped {
            report,
            ending: self.ending,
            observer: self.observer,
            tasks: self.tasks,
            channels: self.channels,
            metrics: self.metrics,
        }
    }

    /// Drops the supervisor's future, and with it the worker, wherever it is. Waits until its tasks are gone.
    pub async fn drop_now(self) -> Stopped {
        self.run.abort();
        let dropped = soon("the future is dropped", self.run).await;
        assert!(
            dropped.is_err_and(|error| error.is_cancelled()),
            "the worker had ended by itself"
        );
        all_ended(&self.tasks).await;
        Stopped {
            report: StopReport::default(),
            ending: self.ending,
            observer: self.observer,
            tasks: self.tasks,
            channels: self.channels,
            metrics: self.metrics,
        }
    }
}

impl Stopped {
    /// Checks that every task was joined, that none failed and none had to be started again.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert_eq!(self.report.left, [""; 0], "tasks are left");
        assert_eq!((self.report.restarts, &self.report.gave_up), (0, &None));
        for task in self.tasks.snapshot() {
            for (outcome, count) in &task.ended {
                let expected = *outcome == Outcome::Completed || *count == 0;
                assert!(expected, "a task that did not end well: {task:?}");
            }
        }
    }

    /// The value of a metric, named without its prefix and with its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("synthex_")?.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no metric {name}"))
            .parse()
            .expect("a number")
    }
}

pub async fn take_result(subscription: &mut impl Subscription) -> JobResult {
    let delivery = subscription.next().await.expect("the session is live");
    let result = JobResult::decode(&delivery.envelope.body).expect("a result");
    delivery.ack().await.expect("the session is live");
    result
}

/// What results say, in their order.
pub fn ends(results: &[JobResult]) -> Ends {
    results.iter().map(|result| (result.attempt, result.status)).collect()
}

/// Awaits what has to happen.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    let outcome = tokio::time::timeout(PATIENCE, future).await;
    outcome.unwrap_or_else(|_| panic!("{what} did not come within {PATIENCE:?}"))
}

/// Waits until tasks that were aborted have ended.
async fn all_ended(tasks: &TaskAccounts) {
    let all_ended = || tasks.snapshot().iter().all(has_ended);
    eventually(PATIENCE, "aborted tasks end", all_ended).await;
}

fn has_ended(task: &TaskStats) -> bool {
    let ended: u64 = task.ended.iter().map(|(_, count)| count).sum();
    task.spawned == ended
}

/// Helper processes of a worker of its own.
fn spawners() -> Spawners {
    let options = SpawnerOptions {
        program: env!("CARGO_BIN_EXE_synthex").into(),
        count: 2,
        catch_orphans: false, // this process has other children
        cgroup: CgroupChoice::None,
    };
    Spawners::start(options).expect("helper processes")
}

fn metrics_of(pool: &Pool, channels: &Channels, tasks: &TaskAccounts) -> Metrics {
    let info = PoolInfo {
        name: pool.name.clone(),
        slots: pool.slots,
        prefetch: pool.prefetch,
    };
    let sources = Sources {
        channels: channels.clone(),
        tasks: tasks.clone(),
        ..Sources::default()
    };
    Metrics::new(&[info], sources).expect("a runtime and a right table")
}

/// What a worker says of itself; nobody here looks at it.
fn state() -> WorkerState {
    WorkerState {
        id: "w".into(),
        host: "test".into(),
        version: "0".into(),
        started_at: "2030-01-31T12:00:00Z".parse().expect("it is a time"),
        draining: false,
        clock: None,
        pools: Vec::new(),
    }
}
