//! Bounded channels that keep accounts.
//!
//! A gauge of the depth alone misses bursts, so every channel also counts what went in, what came
//! out, and how long its senders stood waiting because it was full: that time is the pressure
//! itself.
//!
//! Channels are made by a [`Channels`] registry, which adds up the accounts of channels of one
//! name. It does not name, size or drop anything on its own: a full channel makes `send` wait and
//! `try_send` give the message back, and what is refused is the caller's to count.
//!
//! Invariants:
//! - `depth` counts messages that are in a queue now. Each one carries a token that leaves the
//!   account when the message is received or dropped, so a receiver dropped with messages inside
//!   leaks nothing.
//! - A message is counted as sent before a receiver can see it, so `received` never overtakes
//!   `sent`.
//! - The clock is read only when a sender has to wait.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, task::coop, time::Instant};

pub use tokio::sync::mpsc::error::{SendError, TryRecvError, TrySendError};

/// Makes the bounded channels of a program and reads their accounts. Clones share the accounts.
#[derive(Clone, Default)]
pub struct Channels {
    accounts: Arc<Mutex<BTreeMap<&'static str, Arc<Account>>>>,
}

/// Holds the accounts of all channels of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelStats {
    /// The name the channels were made with.
    pub name: &'static str,
    /// Messages that were put in, ever.
    pub sent: u64,
    /// Messages that a receiver took out, ever.
    pub received: u64,
    /// Messages that are in the queue now.
    pub depth: u64,
    /// Room of the channels whose receiver still exists.
    pub capacity: u64,
    /// Time senders waited because the channel was full, added up over all of them: waits that
    /// ended, waits that were cancelled, and waits that are still going on.
    pub full: Duration,
}

impl Channels {
    /// Makes a channel with room for `capacity` messages, accounted under `name`.
    ///
    /// Channels of the same name share one account.
    ///
    /// # Panics
    ///
    /// When `capacity` is 0: such a channel could never carry a message.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that makes a queue: its messages are counted"
    )]
    pub fn bounded<T>(&self, name: &'static str, capacity: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::channel(capacity);
        let account = self.account(name);
        let sender = Sender {
            queue: sender,
            account: Arc::clone(&account),
        };
        let receiver = Receiver {
            queue: receiver,
            room: Room::add(account, capacity),
        };
        (sender, receiver)
    }

    /// Reads the accounts of every channel made so far, sorted by name.
    ///
    /// Each number is exact; they are read one after another, so a busy channel's need not fit
    /// together.
    pub fn snapshot(&self) -> Vec<ChannelStats> {
        lock(&self.accounts).values().map(|account| account.stats()).collect()
    }

    fn account(&self, name: &'static str) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        Arc::clone(accounts.entry(name).or_insert_with(|| Arc::new(Account::new(name))))
    }
}

/// Puts messages into a bounded channel. Clones send into the same channel.
pub struct Sender<T> {
    queue: mpsc::Sender<Queued<T>>,
    account: Arc<Account>,
}

impl<T> Sender<T> {
    /// Sends a message, waiting while the channel is full.
    ///
    /// Waiting senders are served in the order they came.
    ///
    /// # Errors
    ///
    /// Gives the message back when the receiver was closed or dropped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is ready, the message was not sent (and is dropped with the
    /// future), the place in the line is lost, and the time waited is still accounted.
    pub async fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self.reserve().await {
            Ok(permit) => {
                permit.send(Queued::new(message, &self.account));
                Ok(())
            }
            Err(SendError(())) => Err(SendError(message)),
        }
    }

    /// Sends a message if there is room now.
    ///
    /// # Errors
    ///
    /// Gives the message back when the channel is full, or its receiver was closed or dropped.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        match self.queue.try_reserve() {
            Ok(permit) => {
                permit.send(Queued::new(message, &self.account));
                Ok(())
            }
            Err(TrySendError::Full(())) => Err(TrySendError::Full(message)),
            Err(TrySendError::Closed(())) => Err(TrySendError::Closed(message)),
        }
    }

    async fn reserve(&self) -> Result<mpsc::Permit<'_, Queued<T>>, SendError<()>> {
        // `try_reserve` uses up none of the task's budget: without this line, a sender that never
        // finds the channel full would never let the other tasks of its thread run.
        coop::consume_budget().await;
        match self.queue.try_reserve() {
            Ok(permit) => Ok(permit),
            Err(TrySendError::Closed(())) => Err(SendError(())),
            Err(TrySendError::Full(())) => {
                let _wait = Wait::begin(&self.account);
                self.queue.reserve().await
            }
        }
    }
}

// Derived, it would ask for `T: Clone`.
impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: self.queue.clone(),
            account: Arc::clone(&self.account),
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sender").field(&self.account.name).finish()
    }
}

/// Takes messages out of a bounded channel, in the order they were sent.
pub struct Receiver<T> {
    queue: mpsc::Receiver<Queued<T>>,
    room: Room,
}

impl<T> Receiver<T> {
    /// Receives the next message, waiting while there is none.
    ///
    /// Gives `None` once the channel is empty and no message can come any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is ready, no message was taken out.
    pub async fn recv(&mut self) -> Option<T> {
        self.queue.recv().await.map(Queued::receive)
    }

    /// Receives the next message if there is one now.
    ///
    /// # Errors
    ///
    /// Says whether the channel is empty for now, or for ever.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        self.queue.try_recv().map(Queued::receive)
    }

    /// Lets no more messages in. What is inside can still be received.
    pub fn close(&mut self) {
        self.queue.close();
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Receiver").field(&self.room.account.name).finish()
    }
}

/// The counters behind one name.
struct Account {
    name: &'static str,
    sent: AtomicU64,
    received: AtomicU64,
    depth: AtomicU64,
    capacity: AtomicU64,
    waits: Mutex<Waits>,
}

// The counters order nothing but themselves, hence `Relaxed`; the queue's own synchronisation
// orders a message's sending before its receiving.
impl Account {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            depth: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
            waits: Mutex::default(),
        }
    }

    fn stats(&self) -> ChannelStats {
        ChannelStats {
            name: self.name,
            // Read before `sent`, so that it is never the greater one.
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            depth: self.depth.load(Ordering::Relaxed),
            capacity: self.capacity.load(Ordering::Relaxed),
            full: lock(&self.waits).total(),
        }
    }
}

/// A message in the queue, and its token in the account's depth.
struct Queued<T> {
    message: T,
    token: Token,
}

impl<T> Queued<T> {
    fn new(message: T, account: &Arc<Account>) -> Self {
        account.sent.fetch_add(1, Ordering::Relaxed);
        account.depth.fetch_add(1, Ordering::Relaxed);
        let token = Token(Arc::clone(account));
        Self { message, token }
    }

    fn receive(self) -> T {
        self.token.0.received.fetch_add(1, Ordering::Relaxed);
        self.message
    }
}

/// One message's part of the depth, given up when the message leaves the queue in whatever way.
struct Token(Arc<Account>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.depth.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One channel's part of the capacity, given up with its receiver.
struct Room {
    account: Arc<Account>,
    capacity: u64,
}

impl Room {
    fn add(account: Arc<Account>, capacity: usize) -> Self {
        let capacity = u64::try_from(capacity).unwrap_or(u64::MAX);
        account.capacity.fetch_add(capacity, Ordering::Relaxed);
        Self { account, capacity }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.account.capacity.fetch_sub(self.capacity, Ordering::Relaxed);
    }
}

/// Time spent waiting, as the area under "how many wait": it grows while a wait is still going on,
/// so a sender that is stuck for ever shows.
#[derive(Default)]
struct Waits {
    /// The area up to the last time a wait began or ended.
    settled: Duration,
    waiting: u32,
    /// When the last wait began or ended; `None` until there was one.
    since: Option<Instant>,
}

impl Waits {
    fn begin(&mut self, now: Instant) {
        self.settle(now);
        self.waiting += 1;
    }

    fn end(&mut self, now: Instant) {
        self.settle(now);
        self.waiting -= 1;
    }

    fn total(&self) -> Duration {
        if self.waiting == 0 {
            self.settled
        } else {
            self.area(Instant::now())
        }
    }

    fn settle(&mut self, now: Instant) {
        self.settled = self.area(now);
        self.since = Some(now);
    }

    fn area(&self, now: Instant) -> Duration {
        let width = self
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.settled.saturating_add(width.saturating_mul(self.waiting))
    }
}

/// One sender's wait. It ends when the guard is dropped, so a cancelled wait counts like any other.
struct Wait<'a>(&'a Account);

impl<'a> Wait<'a> {
    fn begin(account: &'a Account) -> Self {
        lock(&account.waits).begin(Instant::now());
        Self(account)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        lock(&self.0.waits).end(Instant::now());
    }
}

/// Locks; counters stay usable after a panic elsewhere, so poison is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{future::Future, task::Poll};

    use futures_util::{FutureExt, future::join_all, poll};
    use tokio::time::{advance, sleep, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn only(channels: &Channels) -> ChannelStats {
        let mut all = channels.snapshot();
        assert_eq!(all.len(), 1, "one name, one account: {all:?}");
        all.remove(0)
    }

    fn stats(sent: u64, received: u64, depth: u64, capacity: u64, full: Duration) -> ChannelStats {
        ChannelStats {
            name: "jobs",
            sent,
            received,
            depth,
            capacity,
            full,
        }
    }

    /// Polls once and says whether it is ready, leaving the future as it is.
    async fn is_ready<F: Future + Unpin>(future: &mut F) -> bool {
        matches!(poll!(future), Poll::Ready(_))
    }

    #[tokio::test(start_paused = true)]
    async fn counts_what_goes_in_and_out() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 3);
        sender.send("a").await.expect("room");
        advance(SECOND).await;
        sender.try_send("b").expect("room");
        assert_eq!(only(&channels), stats(2, 0, 2, 3, Duration::ZERO));

        assert_eq!(receiver.recv().await, Some("a"));
        assert_eq!(only(&channels), stats(2, 1, 1, 3, Duration::ZERO));
        assert_eq!(receiver.try_recv(), Ok("b"));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(only(&channels), stats(2, 2, 0, 3, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn counts_the_time_a_sender_waited_because_it_was_full() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        sender.send(1).await.expect("room");

        let mut second = Box::pin(sender.send(2));
        assert!(!is_ready(&mut second).await);
        advance(3 * SECOND).await;
        assert_eq!(only(&channels).full, 3 * SECOND, "a wait still going on counts");
        receiver.recv().await;
        second.await.expect("room");
        advance(SECOND).await;
        assert_eq!(only(&channels).full, 3 * SECOND, "a wait that ended does not grow");
    }

    #[tokio::test(start_paused = true)]
    async fn adds_up_the_time_of_senders_that_wait_together() {
        let channels = Channels::default();
        let (sender, _receiver) = channels.bounded("jobs", 1);
        sender.send(1).await.expect("room");

        let waiting = (0..3).map(|n| timeout(2 * SECOND, sender.send(n)));
        assert!(join_all(waiting).await.iter().all(Result::is_err));
        assert_eq!(only(&channels).full, 6 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_send_sends_nothing_and_its_wait_counts() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        sender.send(1).await.expect("room");

        let cancelled = timeout(2 * SECOND, sender.send(2)).await;
        assert!(cancelled.is_err());
        advance(SECOND).await;
        assert_eq!(only(&channels), stats(1, 0, 1, 1, 2 * SECOND));
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_send_gives_its_place_to_the_next() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        sender.send(1).await.expect("room");
        let mut second = Box::pin(sender.send(2));
        let mut third = Box::pin(sender.send(3));
        assert!(!is_ready(&mut second).await);
        assert!(!is_ready(&mut third).await);

        receiver.recv().await; // the room goes to the second, which is then dropped
        drop(second);
        third.await.expect("the room went on to the third");
        assert_eq!(receiver.recv().await, Some(3));
    }

    #[tokio::test]
    async fn reads_no_clock_when_nobody_waits() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        for n in 0..10 {
            sender.send(n).await.expect("room");
            receiver.recv().await;
        }
        assert_eq!(lock(&sender.account.waits).since, None);
    }

    #[tokio::test]
    async fn try_send_gives_the_message_back_when_full_or_closed() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        sender.try_send(1).expect("room");
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        receiver.close();
        assert_eq!(sender.try_send(3), Err(TrySendError::Closed(3)));
        assert_eq!(sender.send(4).await, Err(SendError(4)));
        assert_eq!(receiver.recv().await, Some(1), "what is inside survives the close");
        assert_eq!(receiver.recv().await, None);
        assert_eq!(only(&channels), stats(1, 1, 0, 1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_dropped_under_a_waiting_sender_gives_the_message_back() {
        let channels = Channels::default();
        let (sender, receiver) = channels.bounded("jobs", 1);
        sender.send(1).await.expect("room");
        let mut second = Box::pin(sender.send(2));
        assert!(!is_ready(&mut second).await);
        advance(SECOND).await;
        drop(receiver);
        assert_eq!(second.await, Err(SendError(2)));
        assert_eq!(only(&channels), stats(1, 0, 0, 0, SECOND));
    }

    #[tokio::test]
    async fn a_receiver_dropped_with_messages_inside_leaks_no_depth() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 8);
        for n in 0..5 {
            sender.send(n).await.expect("room");
        }
        receiver.recv().await;
        drop(receiver);
        assert_eq!(
            only(&channels),
            stats(5, 1, 0, 0, Duration::ZERO),
            "the sender still lives"
        );
    }

    #[tokio::test]
    async fn channels_of_one_name_share_an_account() {
        let channels = Channels::default();
        let (first, first_end) = channels.clone().bounded("jobs", 2);
        let (second, _second_end) = channels.bounded("jobs", 3);
        channels.bounded::<()>("a", 1);
        first.send(1).await.expect("room");
        second.send("x").await.expect("room");
        assert_eq!(channels.snapshot()[1], stats(2, 0, 2, 5, Duration::ZERO));
        assert_eq!(channels.snapshot()[0].name, "a", "sorted by name");

        drop(first_end);
        assert_eq!(channels.snapshot()[1], stats(2, 0, 1, 3, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_receive_that_is_cancelled_takes_nothing_out() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        assert!(timeout(SECOND, receiver.recv()).await.is_err());
        sender.send(7).await.expect("room");
        assert_eq!(receiver.recv().now_or_never(), Some(Some(7)));
    }

    #[tokio::test]
    async fn a_sender_that_never_waits_lets_others_run() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 1);
        let busy = async {
            for _ in 0..10_000 {
                sender.send(()).await.expect("room");
                receiver.try_recv().expect("just sent");
            }
        };
        tokio::select! {
            biased;
            () = busy => panic!("the sender let nobody else run"),
            () = tokio::task::yield_now() => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_balance_when_many_senders_come_and_go() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("jobs", 2);
        let senders = (0..50).map(|n| {
            let sender = sender.clone();
            async move { timeout(Duration::from_millis(n), sender.send(n)).await.is_ok() }
        });
        let receiving = async {
            for _ in 0..20 {
                receiver.recv().await;
                sleep(Duration::from_millis(1)).await;
            }
        };
        let (sent, ()) = futures_util::join!(join_all(senders), receiving);
        let sent = sent.into_iter().filter(|sent| *sent).count() as u64;
        let stats = only(&channels);
        assert_eq!((stats.sent, stats.received, stats.depth), (sent, 20, sent - 20));
    }
}
