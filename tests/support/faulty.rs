//! A transport whose faults are scripted: what a test says goes wrong goes wrong, at that very operation, once.
//!
//! [`Faulty`] wraps a transport, in process or AMQP, and does what it does, but for the operations a test names by their
//! number: `faulty.on_publish(results, 3..=3, PublishFault::Refused)` refuses the third result that is published from then
//! on. Where the worker is to be met at a certain point, an operation waits at a [`Gate`], which tells that it was reached.
//!
//! A fault is one that the real transports have: a lost ack puts the message back into its queue, a publish of unknown
//! outcome has arrived or has not, a subscription that ends gives back what was not taken from it.

use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use synthex::message::{Attempt, Envelope};
use synthex::transport::topology::{Declare, Topology};
use synthex::transport::{
    Barrier, BoxFuture, Delivery, Publication, PublishError, QueueDepth, SettleError, Settlement, Settler, Subscribe,
    Subscription, Topic, Transport, TransportError, Version,
};
use tokio_util::sync::CancellationToken;

/// How long a test waits for a gate to be reached.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where an operation waits: the test hears that it came there, and lets it go on, or never does.
#[derive(Clone, Default)]
pub struct Gate {
    reached: CancellationToken,
    open: CancellationToken,
}

/// What goes wrong with a publish.
#[derive(Clone)]
pub enum PublishFault {
    /// The broker says no; it has not arrived.
    Refused,
    /// It has arrived, and nobody can say so.
    UnknownArrived,
    /// It has not arrived, and nobody can say so.
    UnknownLost,
    /// It waits before it is sent; then all is well.
    HangsBefore(Gate),
    /// It has arrived, and waits for its confirm; then all is well.
    HangsAfter(Gate),
    /// A bug: the code that publishes panics.
    Panics,
}

/// What goes wrong with a subscription, at its beginning or later.
#[derive(Clone)]
pub enum SubscribeFault {
    /// The broker cannot be reached.
    Unreachable,
    /// The broker refuses, and no waiting mends that.
    Refused,
    /// It waits before it begins; then all is well.
    Hangs(Gate),
    /// A bug: the code that subscribes panics.
    Panics,
    /// It ends after so many deliveries.
    EndsAfter(usize),
    /// A bug: the code that takes the delivery after so many panics.
    PanicsAfter(usize),
    /// Its deliveries are on their way until it is cancelled, and come then.
    HoldsUntilCancelled,
    /// The broker does not answer its cancellation.
    CancelHangs(Gate),
}

/// What goes wrong with an ack.
#[derive(Clone)]
pub enum AckFault {
    /// The session is gone, and the one who acks is told; the message comes again.
    Lost,
    /// The ack was written and has not arrived; the message comes again.
    LostUnnoticed,
    /// It waits; then all is well.
    Hangs(Gate),
}

/// A transport that has the faults it is told to have. A clone has the same ones, and counts with the same counts.
#[derive(Clone)]
pub struct Faulty<T> {
    inner: T,
    script: Arc<Script>,
}

/// What is to go wrong, and what went through.
#[derive(Default)]
struct Script {
    publish: Mutex<Vec<Rule<Publication, PublishFault>>>,
    subscribe: Mutex<Vec<Rule<Subscribe, SubscribeFault>>>,
    ack: Mutex<Vec<Rule<Envelope, AckFault>>>,
    sent: Mutex<Vec<Publication>>,
    acked: Mutex<Vec<Envelope>>,
}

/// A fault, and which of the operations that match have it, counted from 1.
struct Rule<A, F> {
    matches: Box<dyn Fn(&A) -> bool + Send + Sync>,
    which: (Bound<usize>, Bound<usize>),
    seen: usize,
    fault: F,
}

impl<T> Faulty<T> {
    /// A transport that does what `inner` does, until it is told otherwise.
    pub fn new(inner: T) -> Self {
        Self {
            inner,
            script: Arc::default(),
        }
    }

    /// Has the publishes of this kind with these numbers, counted from now and from 1, go wrong.
    pub fn on_publish(&self, kind: fn(&Publication) -> bool, which: impl RangeBounds<usize>, fault: PublishFault) {
        lock(&self.script.publish).push(Rule::new(kind, which, fault));
    }

    /// Has the subscriptions with these numbers go wrong.
    pub fn on_subscribe(&self, which: impl RangeBounds<usize>, fault: SubscribeFault) {
        lock(&self.script.subscribe).push(Rule::new(|_: &Subscribe| true, which, fault));
    }

    /// Has the acks with these numbers go wrong.
    pub fn on_ack(&self, which: impl RangeBounds<usize>, fault: AckFault) {
        lock(&self.script.ack).push(Rule::new(|_: &Envelope| true, which, fault));
    }

    /// What was given to the transport to publish, confirmed or not.
    pub fn sent(&self) -> Vec<Publication> {
        lock(&self.script.sent).clone()
    }

    /// What was acked, each time that an ack arrived.
    pub fn acked(&self) -> Vec<Envelope> {
        lock(&self.script.acked).clone()
    }
}

/// Any message.
pub fn anything(_: &Publication) -> bool {
    true
}

/// A result for everybody who listens.
pub fn results(publication: &Publication) -> bool {
    publication.exchange.ends_with(".results")
}

/// A dead letter.
pub fn dead_letters(publication: &Publication) -> bool {
    publication.exchange.ends_with(".dead")
}

/// A job that is given back unstarted.
pub fn unstarted(publication: &Publication) -> bool {
    is_job(publication) && Attempt::read(&publication.envelope.properties).redeliveries == 0
}

/// A redelivered job with its attempt raised.
pub fn recounted(publication: &Publication) -> bool {
    publication.exchange.contains(".delay.") && Attempt::read(&publication.envelope.properties).redeliveries > 0
}

/// A job that goes back to its queue.
pub fn is_job(publication: &Publication) -> bool {
    publication.exchange.is_empty() && publication.routing_key.contains(".jobs.")
}

impl<T: Transport> Transport for Faulty<T> {
    type Subscription = FaultySubscription<T::Subscription>;

    async fn declare(&self, topology: &Topology, how: Declare) -> Result<(), TransportError> {
        self.inner.declare(topology, how).await
    }

    async fn subscribe(&self, request: &Subscribe) -> Result<Self::Subscription, TransportError> {
        let fault = due(&self.script.subscribe, request);
        let operation = || format!("consume queue {:?}", request.queue);
        match &fault {
            Some(SubscribeFault::Unreachable) => {
                return Err(TransportError::Unreachable {
                    host: "scripted:5672".into(),
                    reason: "scripted".into(),
                });
            }
            Some(SubscribeFault::Refused) => {
                return Err(TransportError::Refused {
                    operation: operation(),
                    reason: "scripted".into(),
                });
            }
            Some(SubscribeFault::Panics) => panic!("scripted: {}", operation()),
            Some(SubscribeFault::Hangs(gate)) => gate.pass().await,
            _ => {}
        }
        let inner = self.inner.subscribe(request).await?;
        Ok(FaultySubscription::new(inner, fault, self.script.clone()))
    }

    async fn listen(&self, topics: &[Topic]) -> Result<(String, Self::Subscription), TransportError> {
        let (name, inner) = self.inner.listen(topics).await?;
        Ok((name, FaultySubscription::new(inner, None, self.script.clone())))
    }

    async fn overhear(&self, topics: &[Topic], most: u32) -> Result<(String, Self::Subscription), TransportError> {
        let (name, inner) = self.inner.overhear(topics, most).await?;
        Ok((name, FaultySubscription::new(inner, None, self.script.clone())))
    }

    async fn publish(&self, publication: &Publication) -> Result<(), PublishError> {
        let fault = due(&self.script.publish, publication);
        let (exchange, routing_key) = (publication.exchange.clone(), publication.routing_key.clone());
        let reason = "scripted".to_owned();
        match fault {
            None => self.send(publication).await,
            Some(PublishFault::Refused) => Err(PublishError::Refused { exchange, routing_key }),
            Some(PublishFault::UnknownLost) => Err(PublishError::Unknown {
                exchange,
                routing_key,
                reason,
            }),
            Some(PublishFault::UnknownArrived) => {
                self.send(publication).await?;
                Err(PublishError::Unknown {
                    exchange,
                    routing_key,
                    reason,
                })
            }
            Some(PublishFault::HangsBefore(gate)) => {
                gate.pass().await;
                self.send(publication).await
            }
            Some(PublishFault::HangsAfter(gate)) => {
                self.send(publication).await?;
                gate.pass().await;
                Ok(())
            }
            Some(PublishFault::Panics) => panic!("scripted: publish to {exchange:?} with {routing_key:?}"),
        }
    }

    async fn remove_queue(&self, queue: &str) -> Result<(), TransportError> {
        self.inner.remove_queue(queue).await
    }

    async fn version(&self) -> Option<Version> {
        self.inner.version().await
    }

    async fn queue_depth(&self, queue: &str) -> Result<Option<QueueDepth>, TransportError> {
        self.inner.queue_depth(queue).await
    }
}

impl<T: Transport> Faulty<T> {
    async fn send(&self, publication: &Publication) -> Result<(), PublishError> {
        lock(&self.script.sent).push(publication.clone());
        self.inner.publish(publication).await
    }
}

/// A subscription of a [`Faulty`] transport.
pub struct FaultySubscription<S> {
    /// `None` once it has ended.
    inner: Option<S>,
    script: Arc<Script>,
    fault: Option<SubscribeFault>,
    taken: usize,
    cancelled: bool,
    /// An ack of it was lost, and nobody was told.
    ack_is_lost: Arc<AtomicBool>,
}

impl<S: Subscription> FaultySubscription<S> {
    fn new(inner: S, fault: Option<SubscribeFault>, script: Arc<Script>) -> Self {
        Self {
            inner: Some(inner),
            script,
            fault,
            taken: 0,
            cancelled: false,
            ack_is_lost: Arc::default(),
        }
    }
}

impl<S: Subscription> Subscription for FaultySubscription<S> {
    async fn next(&mut self) -> Option<Delivery> {
        match &self.fault {
            Some(SubscribeFault::EndsAfter(count)) if self.taken >= *count => self.inner = None,
            Some(SubscribeFault::PanicsAfter(count)) if self.taken >= *count => panic!("scripted: take a delivery"),
            Some(SubscribeFault::HoldsUntilCancelled) if !self.cancelled => std::future::pending().await,
            _ => {}
        }
        let delivery = self.inner.as_mut()?.next().await?;
        self.taken += 1;
        Some(wrapped(delivery, self.script.clone(), self.ack_is_lost.clone()))
    }

    fn barrier(&self) -> Barrier {
        let ack_is_lost = self.ack_is_lost.clone();
        let inner = self.inner.as_ref().map(Subscription::barrier);
        Box::new(move || {
            // No answer comes behind an ack that never arrives.
            let is_behind_all = !ack_is_lost.load(Ordering::Relaxed);
            match &inner {
                Some(inner) if is_behind_all => inner(),
                _ => Box::pin(std::future::ready(false)),
            }
        })
    }

    async fn extend(&mut self) -> Result<(), TransportError> {
        match &mut self.inner {
            Some(inner) => inner.extend().await,
            None => Ok(()),
        }
    }

    async fn cancel(&mut self) {
        self.cancelled = true;
        if let Some(SubscribeFault::CancelHangs(gate)) = &self.fault {
            gate.pass().await;
        }
        if let Some(inner) = &mut self.inner {
            inner.cancel().await;
        }
    }
}

fn wrapped(inner: Delivery, script: Arc<Script>, ack_is_lost: Arc<AtomicBool>) -> Delivery {
    let (envelope, routing_key, redelivered) = (inner.envelope.clone(), inner.routing_key.clone(), inner.redelivered);
    Delivery::new(
        envelope,
        routing_key,
        redelivered,
        Box::new(FaultySettler {
            inner,
            script,
            ack_is_lost,
        }),
    )
}

/// Dropped, it drops the delivery, which is so given back.
struct FaultySettler {
    inner: Delivery,
    script: Arc<Script>,
    ack_is_lost: Arc<AtomicBool>,
}

impl Settler for FaultySettler {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<(), SettleError>> {
        let Self {
            inner,
            script,
            ack_is_lost,
        } = *self;
        Box::pin(async move {
            match how {
                Settlement::Ack => ack(inner, &script, &ack_is_lost).await,
                Settlement::GiveBack => inner.give_back().await,
                Settlement::Reject => inner.reject().await,
            }
        })
    }

    fn is_live(&self) -> bool {
        self.inner.is_live()
    }
}

async fn ack(delivery: Delivery, script: &Script, ack_is_lost: &AtomicBool) -> Result<(), SettleError> {
    let envelope = (*delivery.envelope).clone();
    match due(&script.ack, &envelope) {
        // The delivery is dropped, and so given back.
        Some(AckFault::Lost) => return Err(SettleError),
        Some(AckFault::LostUnnoticed) => {
            ack_is_lost.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Some(AckFault::Hangs(gate)) => {
            gate.pass().await;
            delivery.ack().await?;
        }
        None => delivery.ack().await?,
    }
    lock(&script.acked).push(envelope);
    Ok(())
}

impl Gate {
    /// Waits until an operation has come here.
    ///
    /// # Panics
    /// When none comes.
    pub async fn reached(&self) {
        let reached = tokio::time::timeout(PATIENCE, self.reached.cancelled()).await;
        reached.expect("no operation came to its gate");
    }

    /// Tells whether an operation has come here.
    pub fn is_reached(&self) -> bool {
        self.reached.is_cancelled()
    }

    /// Lets all go on, who are here and who come.
    pub fn open(&self) {
        self.open.cancel();
    }

    async fn pass(&self) {
        self.reached.cancel();
        self.open.cancelled().await;
    }
}

impl<A, F> Rule<A, F> {
    fn new(matches: impl Fn(&A) -> bool + Send + Sync + 'static, which: impl RangeBounds<usize>, fault: F) -> Self {
        Self {
            matches: Box::new(matches),
            which: (which.start_bound().cloned(), which.end_bound().cloned()),
            seen: 0,
            fault,
        }
    }
}

/// The fault of this operation, if it has one. Every rule that it matches counts it; the first that names it decides.
fn due<A, F: Clone>(rules: &Mutex<Vec<Rule<A, F>>>, operation: &A) -> Option<F> {
    let mut fault = None;
    for rule in lock(rules).iter_mut().filter(|rule| (rule.matches)(operation)) {
        rule.seen += 1;
        if fault.is_none() && rule.which.contains(&rule.seen) {
            fault = Some(rule.fault.clone());
        }
    }
    fault
}

/// A panic is scripted, so a lock may be poisoned.
fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
