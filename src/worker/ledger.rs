//! Knows a redelivered job again: one that is in hand here, was never started here, or has ended here.
//!
//! A lost connection costs the deliveries on it: the broker hands their messages out again, marked as redelivered, though
//! the commands still run. The ledger remembers every message that this worker has or had, so that of one that comes
//! back
//!
//! - *in hand*, the new delivery takes the place of the lost one (it is adopted), and nothing is run twice;
//! - *never started*, for want of a slot, it is taken as if it came for the first time;
//! - *ended*, its ack not known to have arrived, it is only acked.
//!
//! Everything else that is redelivered was in hand elsewhere, and is counted before it is started again.
//!
//! A message is known by all that its producer put into it ([`MessageKey`]). The rule that keeps a new submission from
//! being taken for an old one: only redelivered messages are looked up, what is found is forgotten, and an ack that the
//! broker is known to have had ([`Ledger::prove`]) is forgotten before. Our clients and workers put a number into each
//! message that no other has.
//!
//! Invariants: at most [`MOST`] past messages, for at most [`REMEMBERED`]; no lock is held over an await.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::flow::{Lock, LockAccount};
use crate::message::{Envelope, HeaderValue, header};
use crate::transport::{Delivery, SettleError};

/// Looked into for each delivery, each ack and each redelivery.
pub(super) static LOCK: LockAccount = LockAccount::new("ledger");

/// Past messages that are remembered. Each takes about a hundred bytes.
const MOST: usize = 16_384;

/// How long a past message is remembered. A broker that was away for longer hands out what ended here as well.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What tells a message from any other: its producer's body, properties and headers, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct MessageKey(pub(super) [u64; 2]);

impl MessageKey {
    /// The key of a message, the same at each of its deliveries.
    pub(super) fn of(envelope: &Envelope) -> Self {
        let mut head = Gathered(Vec::with_capacity(USUAL_HEAD));
        let properties = &envelope.properties;
        properties.message_id.hash(&mut head);
        properties.correlation_id.hash(&mut head);
        properties.reply_to.hash(&mut head);
        properties.timestamp.hash(&mut head);
        for (name, value) in &properties.headers {
            if !header::is_history(name) {
                name.hash(&mut head);
                hash_value(value, &mut head);
            }
        }
        // Two hashes of 64 bits that begin differently: a chance meeting would cost a job.
        Self([0, 1].map(|start: u8| {
            let mut hasher = DefaultHasher::new();
            start.hash(&mut hasher);
            head.0.hash(&mut hasher);
            envelope.body.hash(&mut hasher);
            hasher.finish()
        }))
    }
}

/// Gathers what is to be hashed: many small pieces twice take several times as long as all of them at once.
struct Gathered(Vec<u8>);

/// Bytes that the properties and headers of a message seldom have more of.
const USUAL_HEAD: usize = 512;

impl Hasher for Gathered {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Of no use here.
    fn finish(&self) -> u64 {
        0
    }
}

/// As it stands on disk. Another build may hash in another way; then a message is not known, and counted.
impl From<MessageKey> for u128 {
    fn from(MessageKey([high, low]): MessageKey) -> Self {
        (Self::from(high) << 64) | Self::from(low)
    }
}

impl From<u128> for MessageKey {
    #[expect(clippy::cast_possible_truncation, reason = "each half is taken for itself")]
    fn from(key: u128) -> Self {
        Self([(key >> 64) as u64, key as u64])
    }
}

fn hash_value(value: &HeaderValue, hasher: &mut Gathered) {
    match value {
        HeaderValue::Text(text) => text.hash(hasher),
        HeaderValue::Int(number) => number.hash(hasher),
        HeaderValue::Bool(flag) => flag.hash(hasher),
        HeaderValue::Float(number) => number.to_bits().hash(hasher),
        HeaderValue::List(values) => values.iter().for_each(|value| hash_value(value, hasher)),
        HeaderValue::Table(fields) => {
            for (name, value) in fields {
                name.hash(hasher);
                hash_value(value, hasher);
            }
        }
        HeaderValue::Other => {}
    }
}

/// What a delivery is to this worker.
#[derive(Debug)]
pub(super) enum Recognised {
    /// A message to deal with.
    New(Delivery),
    /// It has taken the place of the lost delivery of a job in hand.
    Adopted,
    /// Its job has ended here and its ack was lost: to be acked, and no more.
    Ended(Delivery),
}

/// The ledgers of a worker's pools, by their names. Clones share them.
#[derive(Clone, Default)]
pub struct Ledgers(Arc<Mutex<BTreeMap<String, Arc<Ledger>>>>);

impl Ledgers {
    /// The ledger of a pool, always the same.
    pub(super) fn of(&self, pool: &str) -> Arc<Ledger> {
        let mut ledgers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ledgers.entry(pool.to_owned()).or_default().clone()
    }
}

/// The messages that a pool of this worker has in hand, and those it had.
pub(super) struct Ledger {
    state: Lock<State>,
}

impl Default for Ledger {
    fn default() -> Self {
        let state = Lock::new(&LOCK, State::default());
        Self { state }
    }
}

#[derive(Default)]
struct State {
    in_hand: HashMap<MessageKey, Vec<Arc<Place>>>,
    /// What is past, by when it was written down.
    past: BTreeMap<u64, Past>,
    numbers: HashMap<MessageKey, Vec<u64>>,
    next: u64,
}

/// Where the delivery of a job in hand is.
#[derive(Default)]
struct Place(Mutex<Option<Delivery>>);

struct Past {
    key: MessageKey,
    what: What,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// It was not started; so often it had come back to its queue before, as its queue counts.
    Unstarted { returns: u32 },
    /// Its ack was written, to a session that is still there.
    Acked,
    /// Nobody knows whether its ack arrived.
    Unknown,
}

impl Ledger {
    /// Says what a delivery is. One that is known finds its place; it is known but once.
    pub(super) fn recognise(&self, mut delivery: Delivery) -> Recognised {
        if !delivery.redelivered {
            return Recognised::New(delivery);
        }
        let key = MessageKey::of(&delivery.envelope);
        let mut state = self.state();
        if let Some(place) = state.lost(key) {
            let lost = place.replace(delivery);
            drop(state);
            drop(lost); // settling it, which it tries, leads nowhere
            return Recognised::Adopted;
        }
        match state.recall(key, returns(&delivery)) {
            None => Recognised::New(delivery),
            Some(What::Unstarted { .. }) => {
                delivery.redelivered = false;
                Recognised::New(delivery)
            }
            Some(What::Acked | What::Unknown) => Recognised::Ended(delivery),
        }
    }

    /// Takes a delivery in hand.
    pub(super) fn hold(self: &Arc<Self>, delivery: Delivery) -> Held {
        let held = Held {
            ledger: self.clone(),
            key: MessageKey::of(&delivery.envelope),
            place: Arc::default(),
            envelope: delivery.envelope.clone(),
            redelivered: delivery.redelivered,
            returns: returns(&delivery),
        };
        held.place.replace(delivery);
        let mut state = self.state();
        state.in_hand.entry(held.key).or_default().push(held.place.clone());
        drop(state);
        held
    }

    /// Takes a message in hand whose delivery was lost with an earlier worker, and whose job has ended there: should it
    /// come again, it finds its place.
    pub(super) fn expect(self: &Arc<Self>, key: MessageKey) -> Held {
        let held = Held {
            ledger: self.clone(),
            key,
            place: Arc::default(),
            envelope: Arc::default(),
            redelivered: true,
            returns: 0,
        };
        self.state().in_hand.entry(key).or_default().push(held.place.clone());
        held
    }

    /// Remembers that the ack of a message is not known to have arrived.
    pub(super) fn doubt(&self, envelope: &Envelope) {
        self.state().remember(MessageKey::of(envelope), What::Unknown);
    }

    /// How far acks have been written down; for [`prove`](Self::prove). `None` if none waits for a proof.
    pub(super) fn unproven(&self) -> Option<u64> {
        let state = self.state();
        let waits = state.past.values().any(|past| past.what == What::Acked);
        waits.then_some(state.next)
    }

    /// The broker has dealt with every ack that was written before `mark`.
    pub(super) fn prove(&self, mark: u64) {
        let mut state = self.state();
        let acked = |(number, past): (&u64, &Past)| (past.what == What::Acked).then_some(*number);
        let proven: Vec<u64> = state.past.range(..mark).filter_map(acked).collect();
        for number in proven {
            state.forget(number);
        }
    }

    /// A session has ended: whether the acks on it arrived will not be known.
    pub(super) fn lose_session(&self) {
        for past in self.state().past.values_mut() {
            if past.what == What::Acked {
                past.what = What::Unknown;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl Place {
    fn delivery(&self) -> MutexGuard<'_, Option<Delivery>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, delivery: Delivery) -> Option<Delivery> {
        self.delivery().replace(delivery)
    }

    fn is_live(&self) -> bool {
        self.delivery().as_ref().is_some_and(Delivery::is_live)
    }
}

impl State {
    /// A job in hand of this key whose delivery is lost.
    fn lost(&self, key: MessageKey) -> Option<&Arc<Place>> {
        self.in_hand.get(&key)?.iter().find(|place| !place.is_live())
    }

    fn let_go(&mut self, key: MessageKey, place: &Arc<Place>) {
        if let Some(places) = self.in_hand.get_mut(&key) {
            places.retain(|other| !Arc::ptr_eq(other, place));
            if places.is_empty() {
                self.in_hand.remove(&key);
            }
        }
    }

    fn remember(&mut self, key: MessageKey, what: What) -> u64 {
        let now = Instant::now();
        while let Some((&oldest, past)) = self.past.first_key_value() {
            if self.past.len() < MOST && now.duration_since(past.since) < REMEMBERED {
                break;
            }
            self.forget(oldest);
        }
        let number = self.next;
        self.next += 1;
        self.past.insert(number, Past { key, what, since: now });
        self.numbers.entry(key).or_default().push(number);
        number
    }

    fn forget(&mut self, number: u64) -> Option<Past> {
        let past = self.past.remove(&number)?;
        if let Some(numbers) = self.numbers.get_mut(&past.key) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.numbers.remove(&past.key);
            }
        }
        Some(past)
    }

    /// Writes down anew, as of now, what stands under a number, unless that was forgotten.
    fn renew(&mut self, number: u64, what: What) {
        let Some(past) = self.past.remove(&number) else { return };
        let renewed = self.next;
        self.next += 1;
        let numbers = self.numbers.get_mut(&past.key).into_iter().flatten();
        numbers
            .filter(|other| **other == number)
            .for_each(|other| *other = renewed);
        let since = Instant::now();
        self.past.insert(renewed, Past { what, since, ..past });
    }

    /// What is remembered of a message that has come back `returns` times, and forgets it.
    fn recall(&mut self, key: MessageKey, returns: u32) -> Option<What> {
        let is_it = |number: &u64| {
            let past = &self.past[number];
            let fits = match past.what {
                // Once more, or somebody else had it in between.
                What::Unstarted { returns: before } => returns == before.saturating_add(1),
                What::Acked | What::Unknown => true,
            };
            fits && past.since.elapsed() < REMEMBERED
        };
        let number = self.numbers.get(&key)?.iter().copied().find(is_it)?;
        Some(self.forget(number)?.what)
    }
}

fn returns(delivery: &Delivery) -> u32 {
    delivery.envelope.properties.returns()
}

/// A job's delivery for as long as it is in hand, whichever it is: a lost one may be replaced at any time.
///
/// Dropped, its message goes back to its queue, and is not known here any more.
pub(super) struct Held {
    ledger: Arc<Ledger>,
    key: MessageKey,
    place: Arc<Place>,
    envelope: Arc<Envelope>,
    redelivered: bool,
    returns: u32,
}

impl Held {
    /// The message.
    pub(super) fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// What tells it from any other message.
    pub(super) fn key(&self) -> MessageKey {
        self.key
    }

    /// Whether the broker had handed it out before it came here.
    pub(super) fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// Whether its delivery can still be settled.
    pub(super) fn is_live(&self) -> bool {
        self.place.is_live()
    }

    /// Says that the message has been dealt with. From here on a redelivery of it is only acked.
    ///
    /// # Errors
    /// [`SettleError`] when the ack cannot have arrived.
    pub(super) async fn ack(self) -> Result<(), SettleError> {
        let (delivery, number) = {
            let mut state = self.ledger.state();
            state.let_go(self.key, &self.place);
            let number = state.remember(self.key, What::Unknown);
            (self.place.delivery().take(), number)
        };
        match delivery {
            Some(delivery) => delivery.ack().await?,
            None => return Err(SettleError),
        }
        // Written down anew, as a question that was asked before says nothing of it; unless it came again meanwhile.
        self.ledger.state().renew(number, What::Acked);
        Ok(())
    }

    /// Gives the message back to its queue.
    ///
    /// # Errors
    /// [`SettleError`] when its session is gone; the message is back in its queue then as well.
    pub(super) async fn give_back(self) -> Result<(), SettleError> {
        self.ledger.state().let_go(self.key, &self.place);
        let delivery = self.place.delivery().take();
        match delivery {
            Some(delivery) => delivery.give_back().await,
            None => Err(SettleError),
        }
    }

    /// Lets a message go whose delivery was lost before its job was started: when it comes again, it comes for the
    /// first time.
    pub(super) fn was_not_started(self) {
        let what = What::Unstarted { returns: self.returns };
        // A redelivered one had yet to be counted.
        if !self.redelivered {
            self.ledger.state().remember(self.key, what);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.ledger.state().let_go(self.key, &self.place);
    }
}

#[cfg(test)]
mod tests;
