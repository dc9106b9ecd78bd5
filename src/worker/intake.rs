//! Keeps a pool's consumer alive and hands its deliveries on.
//!
//! The end of a subscription means "subscribe again". It obeys the drain: it takes no more and gives back what it had
//! not handed on; deliveries handed on keep their session open by themselves.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::event::{Event, Observer};
use super::ledger::Ledger;
use super::orders::Orders;
use super::pipeline::{Pipeline, Taken};
use super::pulse::Pulse;
use super::{Ending, HoldReason, Holds};
use crate::config::Pool;
use crate::flow::channel::Sender;
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::supervise::{Shutdown, TaskError};
use crate::transport::topology::Topology;
use crate::transport::{Barrier, Subscribe, Subscription, SubscriptionEnd, Transport, TransportError};

/// The first wait after a failed or lost subscription.
const RECONNECT_INITIAL: Duration = Duration::from_millis(200);
/// A consumer that lived this long was well: the next loss begins with a short wait again.
const WELL: Duration = Duration::from_secs(5);
/// How long giving back in good order may take; a broker that does not answer must not hold up the stop.
const GIVE_BACK_GRACE: Duration = Duration::from_secs(3);
/// What settling may need on top of the longest run and its grace before the broker takes a delivery away.
const SETTLE_MARGIN: Duration = Duration::from_secs(300);

/// How long RabbitMQ waits for an ack by default, and the version from which a queue can ask for more.
const USUAL_PATIENCE: Duration = Duration::from_secs(30 * 60);
const QUEUES_HAVE_PATIENCE: (u32, u32) = (3, 12);

/// Jobs that are given back at once.
const GIVEN_BACK_AT_ONCE: usize = 32;

/// How long a subscription may take, topology included.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two deliveries of a message that cannot be read.
const UNREADABLE_PAUSE: Duration = Duration::from_millis(20);
/// Without a delivery for so long, there is no such message any more.
const QUIET: Duration = Duration::from_secs(1);

/// How often the broker is asked whether the acks so far have arrived, if there were any.
const PROVE_EVERY: Duration = Duration::from_millis(500);

/// How long a pool that could take jobs waits for orders that were given before.
const ORDERS_WITHIN: Duration = Duration::from_secs(10);

/// How to subscribe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// With the pool's prefetch.
    Full,
    /// With a prefetch of one, past a message that cannot be read, until so many others have come through: as many as
    /// may have been in hand with it.
    OneByOne(u16),
}

/// Why consuming came to an end.
enum End {
    /// The subscription ended by itself.
    Of(SubscriptionEnd),
    /// One by one, and a delivery came through.
    Passed,
    /// One by one, and nothing more comes.
    Quiet,
    /// Nothing comes, though there is something.
    Stalled,
    /// The pool is to take no jobs for now.
    Held(HoldReason),
    /// The worker drains.
    Stopped,
}

pub(super) struct Intake<T> {
    pub(super) pool: Arc<Pool>,
    pub(super) transport: T,
    pub(super) queue: String,
    pub(super) topology: Arc<Topology>,
    pub(super) deliveries: Sender<Taken>,
    /// Knows how to give back what was not handed on.
    pub(super) pipeline: Arc<Pipeline<T>>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) holds: Holds,
    pub(super) orders: Orders,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) ending: Ending,
}

impl<T: Transport> Intake<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        // All pools stop taking jobs at once; the tree tells one after the other, each when the last has finished.
        let stop = shutdown.child();
        let told_with_all = async {
            self.ending.draining().await;
            stop.drain();
            std::future::pending().await
        };
        let ended = tokio::select! {
            ended = self.take(&stop) => ended,
            never = told_with_all => never,
        };
        self.pipeline.nothing_more_comes();
        ended
    }

    async fn take(&self, shutdown: &Shutdown) -> Result<(), TaskError> {
        let mut backoff = Backoff::new(RECONNECT_INITIAL, RECONNECT_MAX);
        let mut was_live = false;
        let mut mode = Mode::Full;
        loop {
            tokio::select! {
                biased;
                () = shutdown.draining() => break,
                () = self.holds.free(&self.pool.name) => {}
            }
            let request = self.request(mode);
            let subscribed = tokio::select! {
                () = shutdown.draining() => break,
                subscribed = self.subscribe(&request) => subscribed,
            };
            let subscription = match subscribed {
                Ok(subscription) => subscription,
                Err(error @ TransportError::Exhausted { .. }) => return self.give_up(error),
                Err(error) if was_live || error.is_transient() => {
                    self.wait(format!("failed to {error}"), &mut backoff, shutdown).await;
                    continue;
                }
                Err(error) => return self.give_up(error),
            };
            if !was_live {
                self.warn_of_short_patience().await;
            }
            was_live = true;
            let since = Instant::now();
            self.pulse.beat();
            let end = self.consume(subscription, mode, shutdown).await;
            self.pulse.stop();
            if since.elapsed() >= WELL {
                backoff.reset();
            }
            mode = self.after(end, mode, &mut backoff, shutdown).await;
        }
        Ok(())
    }

    /// Subscribes, with a bound: a broker that lets us in and then says nothing is as good as none.
    async fn subscribe(&self, request: &Subscribe) -> Result<T::Subscription, TransportError> {
        let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, self.transport.subscribe(request)).await;
        subscribed.unwrap_or_else(|_| {
            Err(TransportError::Lost {
                operation: format!("consume queue {:?}", self.queue),
                reason: format!("no answer within {SUBSCRIBE_TIMEOUT:?}"),
            })
        })
    }

    /// An old broker takes back what is not acked within half an hour, whatever its queue says. Jobs that run longer are
    /// adopted when they come again, but if their worker stops meanwhile they are run again.
    async fn warn_of_short_patience(&self) {
        let longest = self.pool.max_timeout.saturating_add(self.pool.kill_grace);
        if longest < USUAL_PATIENCE {
            return;
        }
        if let Some(version) = self.transport.version().await
            && version.numbers < QUEUES_HAVE_PATIENCE
        {
            tracing::warn!(
                pool = &*self.pool.name,
                "RabbitMQ {} takes back a job that is not done after its consumer_timeout, {} min unless it was raised, \
                 and the pool's max_timeout allows {} min: raise consumer_timeout in its rabbitmq.conf, or upgrade to 3.12",
                version.text,
                USUAL_PATIENCE.as_secs() / 60,
                longest.as_secs() / 60,
            );
        }
    }

    /// Waits as the end of a consumer asks for, and says how to subscribe next.
    async fn after(&self, end: End, mode: Mode, backoff: &mut Backoff, shutdown: &Shutdown) -> Mode {
        match end {
            End::Of(SubscriptionEnd::Lost(reason)) => self.wait(reason, backoff, shutdown).await,
            End::Stopped => self.wait("the worker stops".to_owned(), backoff, shutdown).await,
            End::Passed => {
                if let Mode::OneByOne(left @ 2..) = mode {
                    return Mode::OneByOne(left - 1);
                }
            }
            End::Quiet => {}
            End::Stalled => {
                let (queue, stall) = (&self.queue, self.pulse.stall());
                let reason = format!("queue {queue:?} has messages, but none came for {stall:?}, though connected");
                self.wait(reason, backoff, shutdown).await;
            }
            End::Held(reason) => self.tell(Event::ConsumerHeld {
                pool: self.pool.name.clone(),
                reason,
            }),
            End::Of(SubscriptionEnd::Unreadable(reason)) => {
                self.pass(&reason, mode, shutdown).await;
                return Mode::OneByOne(self.pool.prefetch);
            }
        }
        Mode::Full
    }

    /// A message that cannot be read ends the session each time it comes, and nobody can settle it: it has to come so
    /// often that the broker dead-letters it. One by one, so that it counts against no other message, and without the
    /// usual waits, so that it is soon over.
    async fn pass(&self, reason: &str, mode: Mode, shutdown: &Shutdown) {
        if mode == Mode::Full {
            let queue = &self.queue;
            self.tell_lost(
                format!("a message of queue {queue:?} cannot be read ({reason}); using up its deliveries, one by one"),
                Some(UNREADABLE_PAUSE),
            );
        }
        tokio::select! {
            () = shutdown.draining() => {}
            () = tokio::time::sleep(UNREADABLE_PAUSE) => {}
        }
    }

    fn request(&self, mode: Mode) -> Subscribe {
        let (prefetch, topology) = match mode {
            Mode::Full => (self.pool.prefetch, self.topology.clone()),
            Mode::OneByOne(_) => (1, Arc::default()), // all is declared by then
        };
        Subscribe {
            queue: self.queue.clone(),
            prefetch,
            consumer_timeout: Some(self.pool.max_timeout + self.pool.kill_grace + SETTLE_MARGIN),
            from: None,
            topology,
            declare: self.pool.declare,
        }
    }

    /// Hands deliveries on until the subscription ends or the worker drains; one by one, until one came through.
    async fn consume(&self, mut subscription: T::Subscription, mode: Mode, shutdown: &Shutdown) -> End {
        let _present = self.holds.enter();
        let consuming = self.holds.consume(&self.pool.name);
        let ledger = self.pipeline.ledger();
        ledger.lose_session(); // the one before, if there was one
        let mut proving = pin!(prove(ledger, subscription.barrier()));
        self.orders_read(shutdown).await;
        if mode == Mode::Full && self.holds.reason(&self.pool.name).is_none() {
            self.tell(Event::Consuming {
                pool: self.pool.name.clone(),
            });
        }
        // Once for all deliveries: to begin a wait, and to give it up, takes longer than to go on with it.
        let mut draining = pin!(shutdown.draining());
        let mut held = pin!(self.holds.held(&self.pool.name));
        let mut stalled = pin!(self.pulse.stalled());
        let end = loop {
            let delivery = tokio::select! {
                biased; // a stop and a hold come before more deliveries
                () = &mut draining => break End::Stopped,
                reason = &mut held => break End::Held(reason),
                () = &mut stalled => return End::Stalled,
                () = tokio::time::sleep(QUIET), if mode != Mode::Full => return End::Quiet,
                never = &mut proving => match never {},
                delivery = subscription.next() => delivery,
            };
            let Some(delivery) = delivery else {
                return End::Of(subscription.end());
            };
            self.pulse.beat();
            let Some(delivery) = self.pipeline.recognise(delivery).await else {
                continue;
            };
            let taken = Taken {
                delivery,
                present: self.holds.enter(),
                came_at: self.pipeline.now_if_followed(),
            };
            tokio::select! {
                biased; // handed on, it is given back as it came; dropped, it would look like one redelivered
                sent = self.deliveries.send(taken) => if sent.is_err() { return End::Stopped },
                () = &mut draining => break End::Stopped, // no room: it is dropped, and so given back
            }
            if mode != Mode::Full {
                return End::Passed;
            }
        };
        // Over time the rest is dropped with its subscription, and so given back as well, though marked as redelivered.
        let giving_back = async {
            subscription.cancel().await; // nothing starts, so little is settled meanwhile
            drop(consuming);
            self.give_back_rest(&mut subscription, shutdown).await;
        };
        let _ = tokio::time::timeout(GIVE_BACK_GRACE, giving_back).await;
        end
    }

    /// Waits until it is known what operators have ordered before, so that no cancelled job starts; not for ever, since
    /// jobs matter more than orders that nobody can read.
    async fn orders_read(&self, shutdown: &Shutdown) {
        tokio::select! {
            () = shutdown.draining() => {}
            read = tokio::time::timeout(ORDERS_WITHIN, self.orders.read()) => if read.is_err() {
                let pool = &*self.pool.name;
                tracing::warn!(pool, "not all orders are read within {ORDERS_WITHIN:?}: a job that was cancelled may start");
            }
        }
    }

    /// Takes what is still on its way and gives it back, but for what is in hand here.
    async fn give_back_rest(&self, subscription: &mut T::Subscription, shutdown: &Shutdown) {
        let mut rest = Vec::new();
        while let Some(delivery) = subscription.next().await {
            rest.extend(self.pipeline.recognise(delivery).await);
        }
        let give_back = |delivery| self.pipeline.hand_back(delivery, shutdown);
        let all = futures_util::stream::iter(rest);
        all.for_each_concurrent(GIVEN_BACK_AT_ONCE, give_back).await;
    }

    async fn wait(&self, reason: String, backoff: &mut Backoff, shutdown: &Shutdown) {
        let delay = backoff.next_delay();
        self.tell_lost(reason, (!shutdown.is_draining()).then_some(delay));
        tokio::select! {
            () = shutdown.draining() => {}
            () = tokio::time::sleep(delay) => {}
        }
    }

    /// A first subscription that fails for a reason no waiting mends, or a client that is used up: the worker stops
    /// and says why.
    fn give_up(&self, error: TransportError) -> Result<(), TaskError> {
        self.tell_lost(format!("failed to {error}"), None);
        self.ending.fail(error);
        Ok(())
    }

    fn tell_lost(&self, reason: String, retry_in: Option<Duration>) {
        self.tell(Event::ConsumerLost {
            pool: self.pool.name.clone(),
            reason,
            retry_in,
        });
    }

    fn tell(&self, event: Event) {
        self.observer.on(&event);
    }
}

/// Has the ledger forget acks that the broker has dealt with, for as long as the session lives.
async fn prove(ledger: &Ledger, barrier: Barrier) -> Infallible {
    loop {
        tokio::time::sleep(PROVE_EVERY).await;
        if let Some(mark) = ledger.unproven()
            && barrier().await
        {
            ledger.prove(mark);
        }
    }
}
