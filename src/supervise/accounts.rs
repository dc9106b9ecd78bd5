//! What is counted of tasks, by name: how many began, how they ended, how often a supervisor started them again, and how
//! they get on with the runtime.
//!
//! The last is what `tokio-metrics` measures: how long a poll takes, how long a task that is ready waits for a thread, how
//! long it has nothing to do. That reads the clock three times a poll and writes a dozen counters that threads share, some
//! 0.5 µs, and a job is polled a dozen times: too much for each of them. So of a kind of which many are spawned, one in
//! [`ONE_IN`] is measured; the first few are, so that what lives as long as the worker always is.
//!
//! Invariant: for each name, `spawned` minus all `ended` is the number of tasks that exist, however they ended and whether
//! or not anybody joined them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tokio_metrics::TaskMonitor;

use super::{Outcome, TaskError};
use crate::flow::{Lock, LockAccount};

/// The accounts are looked up for each task that is spawned.
pub static LOCK: LockAccount = LockAccount::new("task_accounts");

/// A poll that takes longer keeps other tasks from its thread for a time that they notice: it is work for a thread that may
/// block.
const SLOW_POLL: Duration = Duration::from_millis(1);

/// Of each name, so many tasks are measured before one in [`ONE_IN`] is: far more than there are pools on a worker, so that
/// their tasks are among them.
const MEASURED_FIRST: u64 = 256;
/// See [`MEASURED_FIRST`].
const ONE_IN: u64 = 16;

/// Counts tasks by name and outcome. Clones share the counts.
#[derive(Clone)]
pub struct TaskAccounts {
    counts: Arc<Lock<BTreeMap<&'static str, Arc<Counts>>>>,
}

impl Default for TaskAccounts {
    fn default() -> Self {
        let counts = Arc::new(Lock::new(&LOCK, BTreeMap::new()));
        Self { counts }
    }
}

/// Holds the counts of all tasks of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskStats {
    /// The name the tasks were spawned with.
    pub name: &'static str,
    /// Tasks that were spawned, ever.
    pub spawned: u64,
    /// Tasks that ended, ever, by outcome.
    pub ended: [(Outcome, u64); 4],
    /// Times that a supervisor started one again.
    pub restarted: u64,
    /// Times that a supervisor gave one up.
    pub given_up: u64,
    /// How those that are measured get on with the runtime.
    pub polls: PollStats,
}

/// What is measured of the tasks of one name, added up over them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PollStats {
    /// Tasks that are measured, ever.
    pub tasks: u64,
    /// Polls, and the time that they took.
    pub polled: (u64, Duration),
    /// Polls that took longer than a millisecond.
    pub slow: u64,
    /// Times that a task was ready, and the time until it was polled.
    pub scheduled: (u64, Duration),
    /// Time that they had nothing to do.
    pub idle: Duration,
}

impl TaskAccounts {
    /// Reads the counts of every name used so far, sorted by name.
    pub fn snapshot(&self) -> Vec<TaskStats> {
        let counts: Vec<_> = {
            let counts = self.counts.lock();
            counts
                .iter()
                .map(|(name, counts)| (*name, Arc::clone(counts)))
                .collect()
        };
        counts.iter().map(|(name, counts)| counts.stats(name)).collect()
    }

    /// Shows a name, at zero, before its first task is spawned.
    pub fn announce(&self, name: &'static str) {
        self.of(name);
    }

    /// Counts a restart of a task by its supervisor.
    pub(super) fn count_restart(&self, name: &'static str) {
        self.of(name).restarted.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that a supervisor gave a task up.
    pub(super) fn count_given_up(&self, name: &'static str) {
        self.of(name).given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Wraps a task so that its spawn is counted now, and its end when it ends in whatever way. Gives what it is to be
    /// measured with, if it is.
    pub(super) fn count<F>(
        &self,
        name: &'static str,
        task: F,
    ) -> (
        impl Future<Output = Result<(), TaskError>> + Send + use<F>,
        Option<TaskMonitor>,
    )
    where
        F: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let counts = self.of(name);
        let before = counts.spawned.fetch_add(1, Ordering::Relaxed);
        let monitor = is_measured(before).then(|| counts.monitor.clone());
        (counted(task, Ending { counts, outcome: None }), monitor)
    }

    fn of(&self, name: &'static str) -> Arc<Counts> {
        Arc::clone(self.counts.lock().entry(name).or_default())
    }
}

/// Whether a task is measured, before which so many of its name were spawned.
fn is_measured(before: u64) -> bool {
    before < MEASURED_FIRST || before.is_multiple_of(ONE_IN)
}

async fn counted(task: impl Future<Output = Result<(), TaskError>>, mut ending: Ending) -> Result<(), TaskError> {
    let result = task.await;
    ending.outcome = Some(if result.is_ok() {
        Outcome::Completed
    } else {
        Outcome::Failed
    });
    result
}

struct Counts {
    spawned: AtomicU64,
    ended: [AtomicU64; Outcome::ALL.len()],
    restarted: AtomicU64,
    given_up: AtomicU64,
    monitor: TaskMonitor,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            spawned: AtomicU64::default(),
            ended: Default::default(),
            restarted: AtomicU64::default(),
            given_up: AtomicU64::default(),
            monitor: TaskMonitor::with_slow_poll_threshold(SLOW_POLL),
        }
    }
}

impl Counts {
    fn stats(&self, name: &'static str) -> TaskStats {
        // The ends first, so that they are never more than the spawns.
        let ended = Outcome::ALL.map(|outcome| (outcome, self.ended[outcome as usize].load(Ordering::Acquire)));
        let spawned = self.spawned.load(Ordering::Relaxed);
        TaskStats {
            name,
            spawned,
            ended,
            restarted: self.restarted.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
            polls: self.polls(),
        }
    }

    fn polls(&self) -> PollStats {
        let measured = self.monitor.cumulative();
        PollStats {
            tasks: measured.instrumented_count,
            polled: (measured.total_poll_count, measured.total_poll_duration),
            slow: measured.total_slow_poll_count,
            scheduled: (measured.total_scheduled_count, measured.total_scheduled_duration),
            idle: measured.total_idle_duration,
        }
    }
}

/// Counts the end of a task when the task is dropped; the outcome is unset when it did not return.
struct Ending {
    counts: Arc<Counts>,
    outcome: Option<Outcome>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or_else(|| {
            if thread::panicking() {
                Outcome::Panicked
            } else {
                Outcome::Cancelled
            }
        });
        self.counts.ended[outcome as usize].fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::supervise::TaskGroup;

    #[test]
    fn the_first_are_measured_and_then_one_in_sixteen() {
        assert!((0..MEASURED_FIRST).all(is_measured));
        let later = (MEASURED_FIRST..MEASURED_FIRST + 1600).filter(|before| is_measured(*before));
        assert_eq!(later.count(), 100);
    }

    /// A clock that stands still while a task works tells waits apart from work: the waits are exact.
    #[tokio::test(start_paused = true)]
    async fn polls_and_idle_times_are_measured_by_name() {
        let accounts = TaskAccounts::default();
        let mut group = TaskGroup::new(accounts.clone());
        let begun = Instant::now();
        for _ in 0..2 {
            group.spawn("sleeper", String::new(), async {
                sleep(Duration::from_secs(3)).await;
                Ok(())
            });
        }
        group.spawn("other", String::new(), async { Ok(()) });
        while group.next_end().await.is_some() {}
        assert_eq!(begun.elapsed(), Duration::from_secs(3));

        let stats = accounts.snapshot();
        let [other, sleeper] = &stats[..] else {
            panic!("{stats:?}")
        };
        assert_eq!(
            (other.polls.tasks, other.polls.polled.0, other.polls.scheduled.0),
            (1, 1, 0)
        );
        assert_eq!(
            (sleeper.polls.tasks, sleeper.polls.polled.0, sleeper.polls.scheduled.0),
            (2, 4, 2)
        );
        assert_eq!(other.polls.idle, Duration::ZERO);
        assert_eq!(sleeper.polls.idle, Duration::from_secs(6), "three seconds of each");
        assert_eq!(sleeper.polls.slow, 0);
    }

    #[tokio::test]
    async fn what_is_not_measured_is_counted_all_the_same() {
        let accounts = TaskAccounts::default();
        let mut group = TaskGroup::new(accounts.clone());
        let all = MEASURED_FIRST + 32;
        for _ in 0..all {
            group.spawn("job", String::new(), async { Ok(()) });
        }
        while group.next_end().await.is_some() {}
        let stats = &accounts.snapshot()[0];
        assert_eq!((stats.spawned, stats.ended[0].1), (all, all));
        assert_eq!(stats.polls.tasks, MEASURED_FIRST + 2);
    }
}
