//! Follower and desk on the embedded broker, beside a worker that is not there.

use std::sync::Mutex;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::fleet::{self, Question, Target, Wait};
use super::*;
use crate::message::{Order, Reply, Request};
use crate::transport::memory::Memory;
use crate::transport::{PublishError, Subscription};
use crate::worker::Holds;
use crate::worker::event::{ControlMessage, Event};

const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps what it is told.
#[derive(Default)]
struct Recorder(Mutex<Vec<ControlMessage>>);

impl Observer for Recorder {
    fn on(&self, event: &Event) {
        if let Event::Control { message } = event {
            self.0.lock().unwrap().push(*message);
        }
    }
}

struct Bench {
    broker: Memory,
    names: Names,
    heard: Arc<Recorder>,
    /// Of all its workers.
    audience: Audience,
}

/// A worker of the pool `p`, as far as operators see it.
struct Live {
    orders: Orders,
    everything: Shutdown,
    tasks: Vec<JoinHandle<Result<(), crate::supervise::TaskError>>>,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Bench {
    async fn new() -> Self {
        let (broker, names) = (Memory::new(), Names::new("n"));
        let topology = Topology::control(&names);
        broker.declare(&topology, Declare::Active).await.unwrap();
        let (heard, audience) = (Arc::default(), Audience::default());
        Self {
            broker,
            names,
            heard,
            audience,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test owns the tasks, to end them")]
    fn work(&self, id: &str) -> Live {
        let (orders, everything) = (Orders::unread(Holds::default()), Shutdown::new());
        let control = Arc::new(Control {
            transport: self.broker.clone(),
            names: self.names.clone(),
            identity: Identity {
                id: id.to_owned(),
                host: "h".to_owned(),
            },
            orders: orders.clone(),
            in_hand: InHand::default(),
            audience: self.audience.clone(),
            observer: self.heard.clone(),
            board: Board::new([BoardPool {
                name: "p".into(),
                slots: 2,
            }]),
            topology: Arc::new(Topology::control(&self.names)),
            declare: Declare::Passive,
            everything: everything.clone(),
            started_at: crate::message::now(),
        });
        let follower = Arc::new(Follower::new(control.clone()));
        let tasks = vec![
            tokio::spawn(follower.run(Shutdown::new())),
            tokio::spawn(Arc::new(Desk(control)).run(Shutdown::new())),
        ];
        Live {
            orders,
            everything,
            tasks,
        }
    }

    async fn order(&self, order: &Order) {
        let publication = fleet::order(&self.names, order);
        self.broker.publish(&publication).await.unwrap();
    }

    async fn pause(&self, pool: &str) {
        let (pool, at, by) = (pool.to_owned(), crate::message::now(), None);
        self.order(&Order::Pause { pool, at, by }).await;
    }

    async fn ask(&self, target: Target<'_>, request: &Request) -> Result<Vec<Reply>, PublishError> {
        let (name, mut inbox) = self.broker.inbox().await?;
        let question = Question::new(&self.names, target, request, &name);
        self.broker.publish(&question.publication).await?;
        let wait = Wait::at_most(Duration::from_secs(2));
        Ok(question.answers(&mut inbox, wait).await.unwrap())
    }
}

/// Waits for an order to be obeyed.
async fn paused(live: &Live, pool: &str) {
    let paused = async {
        while !live.orders.is_paused(pool) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, paused).await.expect("the order is obeyed");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_knows_all_orders_before_it_says_that_they_are_read() {
    let bench = Bench::new().await;
    for pool in 0..2000 {
        bench.pause(&format!("p{pool}")).await;
    }
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read()).await.expect("they are read");
    for pool in 0..2000 {
        assert!(live.orders.is_paused(&format!("p{pool}")), "{pool}");
    }
    bench.pause("later").await;
    paused(&live, "later").await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_without_orders_waits_a_moment_only() {
    let bench = Bench::new().await;
    let since = Instant::now();
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read())
        .await
        .expect("there is nothing to read");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn orders_are_read_on_after_a_lost_session_each_once() {
    let bench = Bench::new().await;
    bench.pause("a").await;
    let live = bench.work("w");
    paused(&live, "a").await;
    bench.broker.close_sessions();
    bench.pause("b").await;
    paused(&live, "b").await;
    let heard = bench.heard.0.lock().unwrap();
    assert_eq!(*heard, [ControlMessage::Pause, ControlMessage::Pause]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_read_orders_works_without() {
    let bench = Bench {
        broker: Memory::new(), // with nothing declared
        names: Names::new("n"),
        heard: Arc::default(),
        audience: Audience::default(),
    };
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read())
        .await
        .expect("it gives up on them");
}

#[tokio::test(start_paused = true)]
async fn one_request_is_one_answer_of_each_live_worker() {
    let bench = Bench::new().await;
    let workers = ["a", "b", "c"].map(|id| bench.work(id));
    for live in &workers {
        timeout(PATIENCE, live.orders.read())
            .await
            .expect("the tasks have begun");
    }
    let replies = bench.ask(Target::All, &Request::Ping {}).await.unwrap();
    assert_eq!(replies.len(), 3);
    let states = fleet::states(replies);
    let ids: Vec<&str> = states.iter().map(|state| &*state.id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert_eq!((states[0].pools[0].slots, states[0].draining), (2, false));
}

#[tokio::test(start_paused = true)]
async fn each_live_worker_tells_of_its_jobs_and_what_time_it_is_there() {
    let bench = Bench::new().await;
    let workers = ["a", "b"].map(|id| bench.work(id));
    for live in &workers {
        timeout(PATIENCE, live.orders.read())
            .await
            .expect("the tasks have begun");
    }
    let replies = bench.ask(Target::All, &Request::Jobs { id: None }).await.unwrap();
    let inventories = fleet::inventories(replies);
    let ids: Vec<&str> = inventories.iter().map(|inventory| &*inventory.worker.id).collect();
    assert_eq!(ids, ["a", "b"]);
    assert!(inventories[0].worker.clock.is_some() && inventories[0].jobs.is_empty());
    let heard = bench.heard.0.lock().unwrap();
    assert_eq!(*heard, [ControlMessage::Jobs, ControlMessage::Jobs]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_for_the_worker_that_is_named() {
    let bench = Bench::new().await;
    let (one, other) = (bench.work("one"), bench.work("other"));
    timeout(PATIENCE, one.orders.read())
        .await
        .expect("the tasks have begun");
    timeout(PATIENCE, other.orders.read())
        .await
        .expect("the tasks have begun");
    let drain = |worker: &str| Request::Drain {
        worker: worker.to_owned(),
    };
    let all = bench.ask(Target::All, &drain("nobody")).await.unwrap();
    assert!(
        all.iter().all(|reply| matches!(reply, Reply::Refused { .. })),
        "{all:?}"
    );
    let [Reply::State(state)] = &bench.ask(Target::Worker("one"), &drain("one")).await.unwrap()[..] else {
        panic!("it says how it is");
    };
    assert!(state.draining && one.everything.is_draining() && !other.everything.is_draining());
    let missing = bench.ask(Target::Worker("third"), &drain("third")).await;
    assert!(matches!(missing, Err(PublishError::Unroutable { .. })), "{missing:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_to_another_question_are_passed_over() {
    let bench = Bench::new().await;
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read())
        .await
        .expect("the tasks have begun");
    let (name, mut inbox) = bench.broker.inbox().await.unwrap();
    let ask = || Question::new(&bench.names, Target::All, &Request::Ping {}, &name);
    let (first, second) = (ask(), ask());
    for question in [&first, &second] {
        bench.broker.publish(&question.publication).await.unwrap();
    }
    let wait = Wait::at_most(Duration::from_secs(2));
    assert_eq!(second.answers(&mut inbox, wait).await.unwrap().len(), 1);
    bench.broker.close_sessions();
    assert_eq!(second.answers(&mut inbox, wait).await, Err(fleet::LostInbox));
    assert!(inbox.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn who_asks_to_watch_is_listened_to_and_answered() {
    let bench = Bench::new().await;
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read())
        .await
        .expect("the tasks have begun");
    let replies = bench.ask(Target::All, &Request::Watch {}).await.unwrap();
    assert!(matches!(&replies[..], [Reply::State(_)]), "{replies:?}");
    assert!(bench.audience.is_watching());
}

#[tokio::test(start_paused = true)]
async fn who_follows_a_job_is_seated_and_answered_by_its_run_alone() {
    let bench = Bench::new().await;
    let live = bench.work("w");
    timeout(PATIENCE, live.orders.read())
        .await
        .expect("the tasks have begun");
    let job: crate::message::JobId = "j".parse().unwrap();
    let glance = Request::Output { job: job.clone() };
    assert_eq!(bench.ask(Target::All, &glance).await.unwrap(), []);
    assert!(!bench.audience.follows(&job), "he wanted what was written so far");
    let follow = Request::Follow { job: job.clone() };
    assert_eq!(bench.ask(Target::All, &follow).await.unwrap(), []);
    assert!(bench.audience.follows(&job));
    while bench
        .audience
        .follow(&job, listener(), crate::worker::audience::Stay::Follow)
        .is_ok()
    {}
    let refused = bench.ask(Target::All, &follow).await.unwrap();
    assert!(matches!(&refused[..], [Reply::Refused { .. }]), "{refused:?}");
}

/// Another one each time.
fn listener() -> crate::worker::event::Listener {
    crate::worker::event::Listener {
        reply_to: crate::message::JobId::random().to_string(),
        correlation_id: None,
    }
}
