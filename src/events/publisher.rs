//! Publishes what happens, as well as it can be done without anybody waiting for it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::feeds::{End, Feeds, Piece};
use super::wire;
use crate::control::fleet;
use crate::flow::channel::{Channels, Receiver, Sender};
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::message::event::Event as Published;
use crate::message::{Envelope, JobId, Properties, Reply, WorkerState};
use crate::supervise::{Child, Restart, Shutdown, TaskError};
use crate::transport::topology::{Declare, Names, Topology};
use crate::transport::{BoxFuture, Publication, Routing, Transport};
use crate::worker::Audience;
use crate::worker::event::{About, Event, Observer, RunOf};

/// How often a worker says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most events of jobs and workers that wait.
pub const EVENTS_MAX: usize = 4096;
/// Messages under way at a time.
const LANES: usize = 16;
/// How long one message may take.
const PUBLISH_WITHIN: Duration = Duration::from_secs(5);
/// How long what is left at the end may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// The first wait after a message that was not taken.
const RETRY_INITIAL: Duration = Duration::from_millis(200);

/// Takes what is to be published. A clone is another handle to the same.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    worker: String,
    audience: Audience,
    /// The pools whose jobs are always told of.
    open: BTreeSet<Arc<str>>,
    events: Sender<Published>,
    /// Held for as long as the task runs; one that is restarted takes it over.
    waiting: Mutex<Receiver<Published>>,
    feeds: Feeds,
    started: AtomicBool,
    /// Told of what was published and dropped.
    accountant: Arc<dyn Observer>,
}

impl Publisher {
    /// A publisher of this worker, and of the pools whose jobs are told of always.
    #[must_use]
    pub fn new(
        worker: String,
        audience: Audience,
        open: impl IntoIterator<Item = Arc<str>>,
        channels: &Channels,
        accountant: Arc<dyn Observer>,
    ) -> Self {
        let (events, waiting) = channels.bounded("events", EVENTS_MAX);
        Self(Arc::new(Shared {
            worker,
            audience,
            open: open.into_iter().collect(),
            events,
            waiting: Mutex::new(waiting),
            feeds: Feeds::default(),
            started: AtomicBool::new(false),
            accountant,
        }))
    }

    /// The task that publishes, to be started before what it tells of, and stopped after it.
    pub fn child<T: Transport>(
        &self,
        transport: T,
        names: Names,
        declare: Declare,
        state: impl Fn() -> WorkerState + Send + Sync + 'static,
    ) -> Child {
        let outlet = Arc::new(Outlet {
            shared: self.0.clone(),
            transport,
            names,
            declare,
            state: Box::new(state),
        });
        Child::new("events", Restart::Permanent, move |shutdown| {
            outlet.clone().run(shutdown)
        })
    }
}

impl Observer for Publisher {
    fn on(&self, event: &Event) {
        match wire::about(event) {
            Some((About::Job, Some(pool))) if !self.0.is_open(pool) => {}
            Some((about, _)) => {
                if let Some(published) = wire::published(&self.0.worker, event) {
                    self.0.say(about, published);
                }
            }
            None => self.0.feed(event),
        }
    }
}

impl Shared {
    /// Whether what happens to a pool's jobs is told.
    fn is_open(&self, pool: &Arc<str>) -> bool {
        self.open.contains(pool) || self.audience.is_watching()
    }

    fn say(&self, about: About, event: Published) {
        if self.events.try_send(event).is_err() {
            self.accountant.on(&Event::EventDropped { about });
        }
    }

    fn feed(&self, event: &Event) {
        let lost = self.feeds.take(event);
        if lost.bytes > 0 {
            self.accountant.on(&Event::OutputUnsent { bytes: lost.bytes });
        }
        for _ in 0..lost.messages {
            self.accountant.on(&Event::EventDropped { about: About::Output });
        }
    }
}

/// Publishes what a [`Publisher`] takes.
struct Outlet<T> {
    shared: Arc<Shared>,
    transport: T,
    names: Names,
    declare: Declare,
    state: Box<dyn Fn() -> WorkerState + Send + Sync>,
}

impl<T: Transport> Outlet<T> {
    async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        let mut lanes = Lanes::new(&self, self.shared.waiting.lock().await);
        let at_work = async {
            self.find_exchange().await;
            let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
            heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            if !self.shared.started.swap(true, Ordering::Relaxed) {
                let (at, state) = (crate::message::now(), (self.state)());
                lanes.first(Published::WorkerStarted { at, state });
            }
            loop {
                tokio::select! {
                    _ = heartbeat.tick() => self.beat(),
                    () = lanes.step() => {}
                }
            }
        };
        tokio::select! {
            () = shutdown.draining() => {}
            () = at_work => {}
        }
        let worker = self.shared.worker.clone();
        let at = crate::message::now();
        self.shared.say(About::Worker, Published::WorkerStopped { at, worker });
        let _ = timeout(GOODBYE, lanes.finish()).await;
        lanes.give_up();
        Ok(())
    }

    /// Makes sure that there is somewhere to publish to.
    async fn find_exchange(&self) {
        let mut backoff = Backoff::new(RETRY_INITIAL, RECONNECT_MAX);
        let topology = Topology::events(&self.names);
        while let Err(error) = self.transport.declare(&topology, self.declare).await {
            tracing::debug!("failed to {error}; events wait");
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    fn beat(&self) {
        self.shared.audience.tidy();
        let (at, state) = (crate::message::now(), (self.state)());
        self.shared.say(About::Worker, Published::WorkerHeartbeat { at, state });
    }

    fn event(&self, event: &Published) -> Publication {
        Publication {
            exchange: self.names.events(),
            routing_key: event.routing_key(),
            routing: Routing::Optional,
            envelope: Envelope {
                body: event.encode().into(),
                properties: fleet::properties(),
            }
            .into(),
        }
    }

    fn piece(&self, run: &RunOf, piece: Piece) -> Publication {
        let run = wire::run_id(&self.shared.worker, run);
        match piece {
            Piece::Chunk(kept) => self.event(&Published::Output {
                run,
                chunk: wire::chunk(&kept),
            }),
            Piece::End(End {
                status,
                is_final,
                stdout_bytes,
                stderr_bytes,
            }) => self.event(&Published::OutputEnded {
                run,
                status,
                is_final,
                stdout_bytes,
                stderr_bytes,
            }),
            Piece::Answer(answer) => {
                let chunks = answer.kept.iter().map(wire::chunk).collect();
                Publication {
                    exchange: String::new(),
                    routing_key: answer.to.reply_to,
                    routing: Routing::Optional, // who asked may be gone
                    envelope: Envelope {
                        body: Reply::Output { run, chunks }.encode().into(),
                        properties: Properties {
                            correlation_id: answer.to.correlation_id,
                            ..fleet::properties()
                        },
                    }
                    .into(),
                }
            }
        }
    }
}

/// What has to be in order among itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Run(u64),
    Job(JobId),
    Worker,
}

impl Lane {
    fn of(event: &Published) -> Self {
        let job = match event {
            Published::JobStarted { job_id, .. }
            | Published::JobFinished { job_id, .. }
            | Published::JobRetried { job_id, .. }
            | Published::JobDelayed { job_id, .. }
            | Published::JobRecounted { job_id, .. }
            | Published::JobDeadLettered { job_id, .. } => Some(job_id),
            Published::JobGivenBack { job_id, .. } => job_id.as_ref(),
            _ => None,
        };
        job.map_or(Self::Worker, |job_id| Self::Job(job_id.clone()))
    }

    const fn about(&self) -> About {
        match self {
            Self::Run(_) => About::Output,
            Self::Job(_) => About::Job,
            Self::Worker => About::Worker,
        }
    }
}

/// Whether the broker took a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    /// It takes no such message.
    No,
    /// It takes none at all, for now.
    NotNow,
}

/// Messages under way, at most one of each lane.
struct Lanes<'a, T> {
    outlet: &'a Outlet<T>,
    events: MutexGuard<'a, Receiver<Published>>,
    /// Taken, and waiting for its lane.
    held: Option<Published>,
    under_way: FuturesUnordered<BoxFuture<'static, (Lane, Taken)>>,
    busy: HashSet<Lane>,
    backoff: Backoff,
    /// Nothing is begun before.
    paused_until: Option<Instant>,
}

impl<'a, T: Transport> Lanes<'a, T> {
    fn new(outlet: &'a Outlet<T>, events: MutexGuard<'a, Receiver<Published>>) -> Self {
        outlet.shared.feeds.nothing_under_way();
        Self {
            outlet,
            events,
            held: None,
            under_way: FuturesUnordered::new(),
            busy: HashSet::new(),
            backoff: Backoff::new(RETRY_INITIAL, RECONNECT_MAX),
            paused_until: None,
        }
    }

    /// Has an event published before all that wait.
    fn first(&mut self, event: Published) {
        self.held = Some(event);
        self.begin_held();
    }

    /// Begins or ends with one message.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn step(&mut self) {
        let has_room = self.under_way.len() < LANES && self.paused_until.is_none();
        let paused_until = self.paused_until.unwrap_or_else(Instant::now);
        tokio::select! {
            Some((lane, taken)) = self.under_way.next(), if !self.under_way.is_empty() => self.end(&lane, taken),
            event = self.events.recv(), if has_room && self.held.is_none() => self.held = event,
            (run, piece) = self.outlet.shared.feeds.next(), if has_room => self.begin_piece(&run, piece),
            () = sleep_until(paused_until), if self.paused_until.is_some() => self.paused_until = None,
        }
        self.begin_held();
    }

    /// Publishes all that waits.
    async fn finish(&mut self) {
        loop {
            while self.begin_one() {}
            match self.under_way.next().await {
                Some((lane, taken)) => self.end(&lane, taken),
                None => return,
            }
        }
    }

    /// Drops all that waits.
    fn give_up(&mut self) {
        let rest = self.held.take().into_iter();
        for event in rest.chain(std::iter::from_fn(|| self.events.try_recv().ok())) {
            let about = Lane::of(&event).about();
            self.outlet.shared.accountant.on(&Event::EventDropped { about });
        }
    }

    /// Whether there was something to begin with, and room.
    fn begin_one(&mut self) -> bool {
        if self.under_way.len() >= LANES || self.paused_until.is_some() {
            return false;
        }
        if self.held.is_none() {
            self.held = self.events.try_recv().ok();
        }
        if self.begin_held() {
            return true;
        }
        match self.outlet.shared.feeds.try_next() {
            Some((run, piece)) => {
                self.begin_piece(&run, piece);
                true
            }
            None => false,
        }
    }

    fn begin_held(&mut self) -> bool {
        let is_full = self.under_way.len() >= LANES;
        let Some(event) = self.held.take() else { return false };
        let lane = Lane::of(&event);
        if is_full || self.paused_until.is_some() || self.busy.contains(&lane) {
            self.held = Some(event);
            return false;
        }
        let publication = self.outlet.event(&event);
        self.begin(lane, publication);
        true
    }

    fn begin_piece(&mut self, run: &RunOf, piece: Piece) {
        let publication = self.outlet.piece(run, piece);
        self.begin(Lane::Run(run.number), publication);
    }

    fn begin(&mut self, lane: Lane, publication: Publication) {
        self.busy.insert(lane.clone());
        let transport = self.outlet.transport.clone();
        self.under_way.push(Box::pin(async move {
            let taken = match timeout(PUBLISH_WITHIN, transport.publish(&publication)).await {
                Ok(Ok(())) => Taken::Yes,
                Ok(Err(error)) => {
                    tracing::debug!("failed to {error}: it is dropped");
                    if error.is_transient() { Taken::NotNow } else { Taken::No }
                }
                Err(_) => Taken::NotNow,
            };
            (lane, taken)
        }));
    }

    fn end(&mut self, lane: &Lane, taken: Taken) {
        self.busy.remove(lane);
        let shared = &self.outlet.shared;
        if let Lane::Run(number) = lane {
            shared.feeds.done(*number);
        }
        let about = lane.about();
        if taken == Taken::Yes {
            self.backoff.reset();
            return shared.accountant.on(&Event::EventPublished { about });
        }
        shared.accountant.on(&Event::EventDropped { about });
        if taken == Taken::NotNow {
            // A broker that is away is not asked again for each event.
            self.paused_until = Some(Instant::now() + self.backoff.next_delay());
        }
    }
}
