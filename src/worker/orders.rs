//! What operators have ordered, as far as this worker knows: which jobs are cancelled and which pools paused. What
//! a pause does is [`super::hold`]'s.
//!
//! Somebody else reads the orders and enters them ([`Orders::apply`]); the pipeline asks about each job it takes in hand
//! ([`Orders::watch`]), and is told when an order comes later.
//!
//! Invariants:
//! - a cancel is for jobs that were submitted before it, so what is submitted again under the same id runs;
//! - an order is forgotten after [`ORDERS_KEPT`], a pause too, so that a worker that starts then does as the others do;
//! - at most [`CANCELS_MAX`] jobs and [`GROUPS_MAX`] sets of labels and batches are kept, the latest;
//! - one lock, held for short synchronous sections. A cancel by id costs the same however many jobs are in hand.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, MutexGuard, OnceLock};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

use super::Holds;
use crate::flow::{Lock, LockAccount};
use crate::message::{JobId, Order};
use crate::transport::topology::ORDERS_KEPT;

/// Each job is entered, and leaves at its end.
pub(super) static LOCK: LockAccount = LockAccount::new("orders");

/// Most cancelled jobs that are remembered: some 20 MB.
const CANCELS_MAX: usize = 100_000;
/// Most sets of labels and batches: each job is held against every one of them.
const GROUPS_MAX: usize = 1_000;

/// The orders that are in force. A clone is another handle to the same ones.
#[derive(Clone)]
pub struct Orders(Arc<Shared>);

struct Shared {
    book: Lock<Book>,
    holds: Holds,
    read: CancellationToken,
}

/// Who cancelled a job, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancellation {
    at: Timestamp,
    by: Option<String>,
}

impl Orders {
    /// No orders, and nobody who gives any.
    #[must_use]
    pub fn none() -> Self {
        let orders = Self::unread(Holds::default());
        orders.set_read();
        orders
    }

    /// No orders so far: somebody reads those that were given, and says so with [`Orders::set_read`]. A pause is told to
    /// `holds`.
    #[must_use]
    pub fn unread(holds: Holds) -> Self {
        Self(Arc::new(Shared {
            book: Lock::new(&LOCK, Book::default()),
            holds,
            read: CancellationToken::new(),
        }))
    }

    /// Says that all orders given so far have been entered, or that nobody can read them.
    pub fn set_read(&self) {
        self.0.read.cancel();
    }

    /// Whether [`Orders::set_read`] was said.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.0.read.is_cancelled()
    }

    /// Waits for [`Orders::set_read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read(&self) {
        self.0.read.cancelled().await;
    }

    /// Enters an order, which counts after all that were entered before, and tells the jobs in hand. Returns how many
    /// older cancels had to be forgotten for want of room.
    pub fn apply(&self, order: &Order, now: Timestamp) -> usize {
        if is_over(order.at(), now) {
            return 0;
        }
        match order {
            Order::Cancel { .. } => return self.book().cancel(order),
            Order::Pause { pool, at, .. } => {
                self.book().paused.insert(pool.clone(), *at);
                self.0.holds.pause(pool, true);
            }
            Order::Resume { pool, .. } => {
                self.book().paused.remove(pool);
                self.0.holds.pause(pool, false);
            }
        }
        0
    }

    /// Forgets what is too old. Returns the pools whose pause is over by that.
    pub fn expire(&self, now: Timestamp) -> Vec<String> {
        let over = self.book().expire(now);
        for pool in &over {
            self.0.holds.pause(pool, false);
        }
        over
    }

    /// Whether a pool is paused now.
    #[must_use]
    pub fn is_paused(&self, pool: &str) -> bool {
        self.book().paused.contains_key(pool)
    }

    /// What holds pools, told of each pause.
    #[must_use]
    pub fn holds(&self) -> &Holds {
        &self.0.holds
    }

    /// Takes note of a job in hand, to be told when it is cancelled.
    #[must_use]
    pub(super) fn watch(&self, job: Job) -> Watched {
        let mut book = self.book();
        let told = Arc::new(Told::default());
        if let Some(cancellation) = book.cancellation(&job) {
            told.tell(cancellation);
        }
        book.last_key += 1;
        let key = (job.id.clone(), book.last_key);
        book.in_hand.insert(key.clone(), (job, told.clone()));
        drop(book);
        Watched {
            orders: self.clone(),
            key,
            told,
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic under the lock is a bug, but what was in the book is still the best there is.
        self.0.book.lock()
    }
}

/// What of a job decides whether a cancel is for it.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) batch: Option<String>,
    pub(super) pool: Arc<str>,
    pub(super) submitted_at: Option<Timestamp>,
}

impl Job {
    /// Whether the cancel of a job that is chosen like this one is for it; a job that does not say when it was submitted
    /// counts as older.
    fn is_meant(&self, cancellation: &Cancellation, pool: Option<&str>) -> bool {
        pool.is_none_or(|pool| *pool == *self.pool) && self.submitted_at.is_none_or(|at| at <= cancellation.at)
    }

    fn is_of(&self, group: &Group) -> bool {
        match group {
            Group::Labels(labels) => labels.iter().all(|(name, value)| self.labels.get(name) == Some(value)),
            Group::Batch(batch) => self.batch.as_ref() == Some(batch),
        }
    }
}

/// A job in hand, until it is dropped.
pub(super) struct Watched {
    orders: Orders,
    key: Key,
    told: Arc<Told>,
}

/// One of several jobs of the same id.
type Key = (JobId, u64);

impl Watched {
    /// Waits until the job is cancelled.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn cancelled(&self) -> &Cancellation {
        self.told.stop.cancelled().await;
        self.cancellation().expect("it is set before it is told")
    }

    /// Its cancellation, if it is cancelled.
    pub(super) fn cancellation(&self) -> Option<&Cancellation> {
        self.told.cancellation.get()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.orders.book().in_hand.remove(&self.key);
    }
}

/// Where a job in hand hears of its cancellation.
#[derive(Default)]
struct Told {
    cancellation: OnceLock<Cancellation>,
    stop: CancellationToken,
}

impl Told {
    fn tell(&self, cancellation: &Cancellation) {
        // The first one is the one that ended it.
        let _ = self.cancellation.set(cancellation.clone());
        self.stop.cancel();
    }
}

#[derive(Default)]
struct Book {
    /// By job, and by pool where it is for one only: the latest.
    by_id: HashMap<(JobId, Option<String>), Cancellation>,
    /// What is in `by_id`, in the order of entry; a later cancel of the same job has an entry of its own.
    entered: VecDeque<(Timestamp, (JobId, Option<String>))>,
    /// In the order of entry.
    by_group: VecDeque<GroupCancel>,
    /// The paused pools, and since when.
    paused: BTreeMap<String, Timestamp>,
    in_hand: BTreeMap<Key, (Job, Arc<Told>)>,
    last_key: u64,
}

/// Jobs that are cancelled without naming each.
#[derive(PartialEq, Eq)]
enum Group {
    /// Those that have all of these labels.
    Labels(BTreeMap<String, String>),
    /// Those of a batch.
    Batch(String),
}

struct GroupCancel {
    group: Group,
    pool: Option<String>,
    cancellation: Cancellation,
}

impl Book {
    /// The cancellation of a job, if an order that was entered is for it.
    fn cancellation(&self, job: &Job) -> Option<&Cancellation> {
        let of_pool = Some(job.pool.to_string());
        let by_id = [None, of_pool].into_iter().find_map(|pool| {
            let found = self.by_id.get(&(job.id.clone(), pool))?;
            job.is_meant(found, None).then_some(found)
        });
        by_id.or_else(|| {
            let found = self.by_group.iter().find(|cancel| cancel.is_for(job))?;
            Some(&found.cancellation)
        })
    }

    fn cancel(&mut self, order: &Order) -> usize {
        let Order::Cancel {
            ids,
            labels,
            batch,
            pool,
            at,
            by,
        } = order
        else {
            return 0;
        };
        let cancellation = Cancellation::new(*at, by.clone());
        for id in ids {
            self.cancel_id(id, pool.as_ref(), &cancellation);
        }
        let labels = (!labels.is_empty()).then(|| Group::Labels(labels.clone()));
        if let Some(group) = labels.or_else(|| batch.clone().map(Group::Batch)) {
            self.cancel_group(GroupCancel {
                group,
                pool: pool.clone(),
                cancellation,
            });
        }
        self.make_room()
    }

    fn cancel_id(&mut self, id: &JobId, pool: Option<&String>, cancellation: &Cancellation) {
        for (job, told) in self
            .in_hand
            .range((id.clone(), 0)..=(id.clone(), u64::MAX))
            .map(|(_, job)| job)
        {
            if job.is_meant(cancellation, pool.map(String::as_str)) {
                told.tell(cancellation);
            }
        }
        let key = (id.clone(), pool.cloned());
        if self.by_id.get(&key).is_some_and(|known| known.at >= cancellation.at) {
            return;
        }
        self.by_id.insert(key.clone(), cancellation.clone());
        self.entered.push_back((cancellation.at, key));
    }

    fn cancel_group(&mut self, cancel: GroupCancel) {
        for (job, told) in self.in_hand.values() {
            if cancel.is_for(job) {
                told.tell(&cancel.cancellation);
            }
        }
        let is_same = |known: &GroupCancel| known.group == cancel.group && known.pool == cancel.pool;
        self.by_group
            .retain(|known| !is_same(known) || known.cancellation.at > cancel.cancellation.at);
        self.by_group.push_back(cancel);
    }

    fn make_room(&mut self) -> usize {
        let mut forgotten = 0;
        while self.entered.len() > CANCELS_MAX {
            forgotten += usize::from(self.forget_oldest_id());
        }
        let over = self.by_group.len().saturating_sub(GROUPS_MAX);
        self.by_group.drain(..over);
        forgotten + over
    }

    /// Whether the oldest entry was still the one that counts.
    fn forget_oldest_id(&mut self) -> bool {
        let Some((at, key)) = self.entered.pop_front() else {
            return false;
        };
        let counts = self.by_id.get(&key).is_some_and(|known| known.at == at);
        if counts {
            self.by_id.remove(&key);
        }
        counts
    }

    /// Forgets what is too old, and returns the pools whose pause that was.
    fn expire(&mut self, now: Timestamp) -> Vec<String> {
        while self.entered.front().is_some_and(|(at, _)| is_over(*at, now)) {
            self.forget_oldest_id();
        }
        self.by_group.retain(|cancel| !is_over(cancel.cancellation.at, now));
        let over = self.paused.extract_if(.., |_, at| is_over(*at, now));
        over.map(|(pool, _)| pool).collect()
    }
}

impl GroupCancel {
    fn is_for(&self, job: &Job) -> bool {
        job.is_meant(&self.cancellation, self.pool.as_deref()) && job.is_of(&self.group)
    }
}

fn is_over(at: Timestamp, now: Timestamp) -> bool {
    let kept = SignedDuration::try_from(ORDERS_KEPT).unwrap_or(SignedDuration::MAX);
    now.duration_since(at) >= kept
}

impl Cancellation {
    /// A cancellation by somebody, if that is known.
    pub(super) const fn new(at: Timestamp, by: Option<String>) -> Self {
        Self { at, by }
    }
}

/// Reads as a sentence: "cancelled by me@here at …".
impl fmt::Display for Cancellation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, by } = self;
        match by {
            Some(by) => write!(out, "cancelled by {by} at {at}"),
            None => write!(out, "cancelled at {at}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::worker::HoldReason;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn id(text: &str) -> JobId {
        text.parse().unwrap()
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    /// A job of pool `p`.
    fn job(name: &str, submitted_at: Option<i64>) -> Job {
        Job {
            id: id(name),
            labels: labels(&[("of", "test"), ("name", name)]),
            batch: Some(format!("batch of {name}")),
            pool: "p".into(),
            submitted_at: submitted_at.map(at),
        }
    }

    fn cancel(ids: &[&str], by_labels: &[(&str, &str)], pool: Option<&str>, second: i64) -> Order {
        Order::Cancel {
            ids: ids.iter().map(|name| id(name)).collect(),
            labels: labels(by_labels),
            batch: None,
            pool: pool.map(str::to_owned),
            at: at(second),
            by: Some("me".to_owned()),
        }
    }

    fn is_cancelled(orders: &Orders, job: Job) -> bool {
        orders.watch(job).cancellation().is_some()
    }

    #[test]
    fn a_cancel_is_for_what_was_submitted_before_it() {
        let orders = Orders::none();
        orders.apply(&cancel(&["a"], &[], None, 10), at(10));
        for (submitted, meant) in [(None, true), (Some(9), true), (Some(10), true), (Some(11), false)] {
            assert_eq!(is_cancelled(&orders, job("a", submitted)), meant, "{submitted:?}");
            assert!(!is_cancelled(&orders, job("b", submitted)));
        }
        let told = orders.watch(job("a", None));
        let words = told.cancellation().map(ToString::to_string);
        assert_eq!(words, Some(format!("cancelled by me at {}", at(10))));
    }

    #[test]
    fn an_earlier_cancel_that_comes_later_takes_nothing_back() {
        let orders = Orders::none();
        orders.apply(&cancel(&["a"], &[("of", "test")], None, 10), at(10));
        orders.apply(&cancel(&["a"], &[("of", "test")], None, 5), at(10));
        assert!(is_cancelled(&orders, job("a", Some(8))));
        assert!(is_cancelled(&orders, job("b", Some(8))), "by its labels");
    }

    #[test]
    fn all_labels_have_to_match_and_the_pool() {
        let by = |labels: &[(&str, &str)], pool| {
            let orders = Orders::none();
            orders.apply(&cancel(&[], labels, pool, 10), at(10));
            is_cancelled(&orders, job("a", Some(1)))
        };
        assert!(by(&[("of", "test")], None));
        assert!(by(&[("of", "test"), ("name", "a")], Some("p")));
        assert!(!by(&[("of", "test"), ("name", "b")], None));
        assert!(!by(&[("of", "test"), ("more", "a")], None));
        assert!(!by(&[("of", "test")], Some("q")));
        let orders = Orders::none();
        orders.apply(&cancel(&["a"], &[], Some("q"), 10), at(10));
        assert!(!is_cancelled(&orders, job("a", Some(1))));
        orders.apply(&cancel(&["a"], &[], Some("p"), 10), at(10));
        assert!(is_cancelled(&orders, job("a", Some(1))));
    }

    #[test]
    fn a_cancel_of_a_batch_is_for_its_jobs_wherever_they_are() {
        let orders = Orders::none();
        let in_hand = ["a", "b"].map(|name| orders.watch(job(name, Some(1))));
        let cancel = |batch: &str, pool: Option<&str>| Order::Cancel {
            ids: Vec::new(),
            labels: BTreeMap::new(),
            batch: Some(batch.to_owned()),
            pool: pool.map(str::to_owned),
            at: at(10),
            by: None,
        };
        orders.apply(&cancel("batch of a", None), at(10));
        orders.apply(&cancel("batch of b", Some("q")), at(10));
        let told = in_hand.each_ref().map(|job| job.cancellation().is_some());
        assert_eq!(told, [true, false]);
        assert!(is_cancelled(&orders, job("a", Some(10))));
        assert!(!is_cancelled(&orders, job("a", Some(11))), "submitted again");
        let batch = None;
        assert!(!is_cancelled(
            &orders,
            Job {
                batch,
                ..job("a", Some(1))
            }
        ));
    }

    #[test]
    fn jobs_in_hand_are_told_each_delivery_of_its_own() {
        let orders = Orders::none();
        let jobs = [("a", Some(1)), ("a", Some(20)), ("a", None), ("b", Some(1))];
        let watched = jobs.map(|(name, submitted)| orders.watch(job(name, submitted)));
        assert!(watched.iter().all(|job| job.cancelled().now_or_never().is_none()));
        orders.apply(&cancel(&["a"], &[], None, 10), at(10));
        let told = watched.each_ref().map(|job| job.cancelled().now_or_never().is_some());
        assert_eq!(told, [true, false, true, false]);
        orders.apply(&cancel(&[], &[("name", "b")], None, 10), at(10));
        assert!(watched[3].cancelled().now_or_never().is_some());
        drop(watched);
        assert!(orders.book().in_hand.is_empty(), "what is over is not kept");
    }

    #[test]
    fn an_order_is_over_after_seven_days() {
        let orders = Orders::none();
        let week = 7 * 24 * 3600;
        orders.apply(&cancel(&["a"], &[("name", "b")], None, 0), at(0));
        let (pool, by) = ("p".to_owned(), None);
        orders.apply(&Order::Pause { pool, at: at(0), by }, at(0));
        assert!(orders.expire(at(week - 1)).is_empty());
        assert!(is_cancelled(&orders, job("a", None)) && is_cancelled(&orders, job("b", None)));
        assert!(orders.is_paused("p"));
        assert_eq!(orders.expire(at(week)), ["p"]);
        assert!(!is_cancelled(&orders, job("a", None)) && !is_cancelled(&orders, job("b", None)));
        assert!(!orders.is_paused("p"));

        orders.apply(&cancel(&["a"], &[], None, 0), at(week)); // read late
        assert!(!is_cancelled(&orders, job("a", None)));
    }

    #[test]
    fn the_oldest_cancels_are_forgotten_for_want_of_room() {
        let orders = Orders::none();
        let name = |number: usize| format!("job-{number}");
        for number in 0..CANCELS_MAX {
            assert_eq!(orders.apply(&cancel(&[&name(number)], &[], None, 0), at(0)), 0);
        }
        assert_eq!(orders.apply(&cancel(&["one-more"], &[], None, 0), at(0)), 1);
        assert!(!is_cancelled(&orders, job("job-0", None)));
        for kept in ["job-1", "one-more"] {
            assert!(is_cancelled(&orders, job(kept, None)), "{kept}");
        }
        for number in 0..=GROUPS_MAX {
            let forgotten = orders.apply(&cancel(&[], &[("n", &name(number))], None, 0), at(0));
            assert_eq!(forgotten, usize::from(number == GROUPS_MAX));
        }
    }

    #[test]
    fn a_pause_lasts_until_it_is_resumed() {
        let orders = Orders::none();
        let paused = || Some(HoldReason::Paused);
        let (pool, by) = ("p".to_owned(), None);
        let pause = Order::Pause { pool, at: at(5), by };
        orders.apply(&pause, at(5));
        assert_eq!((orders.is_paused("p"), orders.holds().reason("p")), (true, paused()));
        assert_eq!((orders.is_paused("q"), orders.holds().reason("q")), (false, None));
        // Which was said last is told by the log, not by two clocks.
        let (pool, by) = ("p".to_owned(), None);
        orders.apply(&Order::Resume { pool, at: at(4), by }, at(5));
        assert_eq!((orders.is_paused("p"), orders.holds().reason("p")), (false, None));
        orders.apply(&pause, at(5));
        orders.expire(at(5 + 7 * 24 * 3600));
        assert_eq!(orders.holds().reason("p"), None);
    }

    #[tokio::test]
    async fn orders_are_unread_until_somebody_has_read_them() {
        let orders = Orders::unread(Holds::default());
        assert_eq!(orders.read().now_or_never(), None);
        orders.set_read();
        assert!(orders.is_read() && Orders::none().is_read());
        assert_eq!(orders.read().now_or_never(), Some(()));
    }
}
