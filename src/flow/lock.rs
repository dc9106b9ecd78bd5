//! Mutexes that tell how long they were waited for.
//!
//! A [`Lock`] is a mutex with an account. Taken while it is free, it costs what a mutex costs: no clock is read and nothing
//! is counted. Only who finds it taken is measured, from then until it has it. So the account holds waits, not uses.
//!
//! An account ([`LockAccount`]) is a `static` beside the lock, since what it is about is a place in the code: all locks that
//! are made there share it.
//!
//! For short synchronous sections. A lock that is held over an `.await` is Tokio's; who waits for that counts it with
//! [`LockAccount::wait`]. Like everything here, a lock that somebody panicked under goes on with what is there.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Bounds of the groups that waits are counted in, from a hand-over between two processors to a lock that is in everybody's
/// way. The last group is what is longer.
pub const WAIT_BOUNDS: [Duration; 7] = [
    Duration::from_micros(1),
    Duration::from_micros(10),
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// A mutex that counts who has to wait for it.
#[derive(Debug)]
pub struct Lock<T> {
    inner: Mutex<T>,
    account: &'static LockAccount,
}

impl<T> Lock<T> {
    /// Makes a lock whose waits go into `account`.
    pub const fn new(account: &'static LockAccount, value: T) -> Self {
        let inner = Mutex::new(value);
        Self { inner, account }
    }

    /// Takes the lock, blocking the thread while another one has it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        match self.inner.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let _wait = self.account.wait();
                self.inner.lock().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

/// Counts the waits for the locks of one place in the code.
#[derive(Debug)]
pub struct LockAccount {
    name: &'static str,
    groups: [AtomicU64; WAIT_BOUNDS.len() + 1],
    nanos: AtomicU64,
    waiting: AtomicU64,
}

/// Holds what a [`LockAccount`] has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockStats {
    /// The account's name.
    pub name: &'static str,
    /// Waits up to each of [`WAIT_BOUNDS`] and over the one before it, and those that were longer than the last.
    pub groups: [u64; WAIT_BOUNDS.len() + 1],
    /// All of them added up.
    pub waited: Duration,
    /// Those that are going on, and are in no other number yet.
    pub waiting: u64,
}

impl LockAccount {
    /// Makes an account without waits.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            groups: [const { AtomicU64::new(0) }; WAIT_BOUNDS.len() + 1],
            nanos: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// Begins a wait, which ends when what is returned is dropped.
    pub fn wait(&'static self) -> Wait {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let (account, since) = (self, Instant::now());
        Wait { account, since }
    }

    /// Reads what was counted so far. Each number is exact; one that is counted meanwhile may be in one and not in
    /// another.
    pub fn stats(&self) -> LockStats {
        LockStats {
            name: self.name,
            groups: std::array::from_fn(|group| self.groups[group].load(Ordering::Relaxed)),
            waited: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    fn count(&self, waited: Duration) {
        let group = WAIT_BOUNDS.partition_point(|bound| *bound < waited);
        self.groups[group].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// A wait that is going on; dropped, it is counted.
#[derive(Debug)]
#[must_use = "it is over when it is dropped"]
pub struct Wait {
    account: &'static LockAccount,
    since: Instant,
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.account.waiting.fetch_sub(1, Ordering::Relaxed);
        self.account.count(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn waits_are_told_apart_by_their_bounds() {
        let account = LockAccount::new("groups");
        let nano = Duration::from_nanos(1);
        for wait in [
            nano,
            WAIT_BOUNDS[0],
            WAIT_BOUNDS[0] + nano,
            WAIT_BOUNDS[6],
            WAIT_BOUNDS[6] + nano,
        ] {
            account.count(wait);
        }
        let stats = account.stats();
        assert_eq!((stats.name, stats.groups), ("groups", [2, 1, 0, 0, 0, 0, 1, 1]));
        let sum = WAIT_BOUNDS[0] * 2 + WAIT_BOUNDS[6] * 2 + nano * 3;
        assert_eq!(stats.waited, sum);
    }

    #[test]
    fn a_free_lock_counts_nothing() {
        static ACCOUNT: LockAccount = LockAccount::new("free");
        let lock = Lock::new(&ACCOUNT, 0);
        for _ in 0..3 {
            *lock.lock() += 1;
        }
        assert_eq!(*lock.lock(), 3);
        assert_eq!(ACCOUNT.stats().groups, [0; 8]);
    }

    #[test]
    fn who_finds_it_taken_is_counted_once_and_gets_it() {
        static ACCOUNT: LockAccount = LockAccount::new("taken");
        let lock = Lock::new(&ACCOUNT, 0);
        thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| *lock.lock() += 1);
            while ACCOUNT.stats().waiting == 0 {
                thread::yield_now();
            }
            assert_eq!(ACCOUNT.stats().groups, [0; 8], "it waits still");
            drop(held);
        });
        let stats = ACCOUNT.stats();
        assert_eq!(
            (*lock.lock(), stats.groups.iter().sum::<u64>(), stats.waiting),
            (1, 1, 0)
        );
        assert!(stats.waited > Duration::ZERO);
    }

    #[test]
    fn a_lock_that_somebody_panicked_under_goes_on() {
        static ACCOUNT: LockAccount = LockAccount::new("poisoned");
        let lock = Lock::new(&ACCOUNT, 7);
        let panicked = thread::scope(|scope| {
            let panics = || {
                let _held = lock.lock();
                panic!("under the lock");
            };
            scope.spawn(panics).join()
        });
        assert!(panicked.is_err());
        assert_eq!(*lock.lock(), 7);
    }
}
