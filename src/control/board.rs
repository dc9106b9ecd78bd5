//! What a worker does now, kept from its events.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::message::{Fate, JobId, PoolState, Recent, Status, now};
use crate::worker::event::{Event, Observer};
use crate::worker::orders::Orders;

/// Most jobs that have left the worker and are remembered: some hundred kilobytes.
const RECENT_MAX: usize = 2048;

/// The state of each pool. A clone is another handle to the same one.
///
/// Each number is right by itself; two of them may be of different moments.
#[derive(Clone)]
pub struct Board(Arc<Inner>);

/// A pool that a board is to tell of.
#[derive(Clone, Debug)]
pub struct BoardPool {
    /// Its name.
    pub name: Arc<str>,
    /// Its slots.
    pub slots: usize,
}

struct Inner {
    draining: AtomicBool,
    pools: BTreeMap<Arc<str>, Counts>,
    /// What became of jobs, the latest last.
    recent: Mutex<VecDeque<Gone>>,
}

/// A job that has left the worker.
struct Gone {
    id: JobId,
    pool: Arc<str>,
    at: Timestamp,
    fate: Fate,
}

#[derive(Default)]
struct Counts {
    slots: u64,
    running: AtomicU64,
    in_hand: AtomicU64,
    consuming: AtomicBool,
    started: AtomicU64,
    /// One a status, in the order of [`Status::ALL`].
    finished: [AtomicU64; Status::ALL.len()],
}

impl Counts {
    /// Attempts by status, those that there were.
    fn finished(&self) -> BTreeMap<String, u64> {
        let counts = Status::ALL.iter().zip(&self.finished);
        let counts = counts.map(|(status, count)| (status.as_str().to_owned(), count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn count(&self, status: Status) {
        if let Some(at) = Status::ALL.iter().position(|known| *known == status) {
            self.finished[at].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Board {
    /// A board of these pools, which do nothing yet.
    #[must_use]
    pub fn new(pools: impl IntoIterator<Item = BoardPool>) -> Self {
        let counts = |pool: BoardPool| {
            let slots = u64::try_from(pool.slots).unwrap_or(u64::MAX);
            let counts = Counts {
                slots,
                ..Counts::default()
            };
            (pool.name, counts)
        };
        Self(Arc::new(Inner {
            draining: AtomicBool::new(false),
            pools: pools.into_iter().map(counts).collect(),
            recent: Mutex::default(),
        }))
    }

    /// Whether the worker drains.
    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Each pool as it is now.
    pub(super) fn pools(&self, orders: &Orders) -> Vec<PoolState> {
        let state = |(name, counts): (&Arc<str>, &Counts)| PoolState {
            pool: name.to_string(),
            slots: counts.slots,
            running: counts.running.load(Ordering::Relaxed),
            in_hand: counts.in_hand.load(Ordering::Relaxed),
            paused: orders.is_paused(name),
            consuming: counts.consuming.load(Ordering::Relaxed),
            started: Some(counts.started.load(Ordering::Relaxed)),
            finished: counts.finished(),
        };
        self.0.pools.iter().map(state).collect()
    }

    /// What became of a job that the worker had in hand, the latest first.
    pub(super) fn recent(&self, id: &JobId) -> Vec<Recent> {
        let gone = |gone: &Gone| Recent {
            pool: gone.pool.to_string(),
            at: gone.at,
            fate: gone.fate,
        };
        let recent = self.lately();
        recent
            .iter()
            .rev()
            .filter(|gone| gone.id == *id)
            .map(gone)
            .take(Recent::MAX)
            .collect()
    }

    fn remember(&self, id: &JobId, pool: &Arc<str>, fate: Fate) {
        let gone = Gone {
            id: id.clone(),
            pool: pool.clone(),
            at: now(),
            fate,
        };
        let mut recent = self.lately();
        if recent.len() >= RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(gone);
    }

    fn lately(&self) -> MutexGuard<'_, VecDeque<Gone>> {
        // A panic under the lock is a bug, but what was remembered is still the best there is.
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, pool: &Arc<str>, change: impl FnOnce(&Counts)) {
        if let Some(counts) = self.0.pools.get(pool) {
            change(counts);
        }
    }
}

impl Observer for Board {
    fn on(&self, event: &Event) {
        let add = |count: &AtomicU64| {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let take = |count: &AtomicU64| {
            count.fetch_sub(1, Ordering::Relaxed);
        };
        match event {
            Event::DeliveryTaken { pool } => self.with(pool, |counts| add(&counts.in_hand)),
            Event::DeliverySettled { pool } => self.with(pool, |counts| take(&counts.in_hand)),
            Event::JobStarted { pool, .. } => self.with(pool, |counts| {
                add(&counts.running);
                add(&counts.started);
            }),
            Event::JobEnded { pool, .. } => self.with(pool, |counts| take(&counts.running)),
            Event::JobFinished {
                pool,
                job_id,
                attempt,
                status,
                is_final,
                ..
            } => {
                self.with(pool, |counts| counts.count(*status));
                let (attempt, status, is_final) = (*attempt, *status, *is_final);
                let fate = Fate::Finished {
                    attempt,
                    status,
                    is_final,
                };
                self.remember(job_id, pool, fate);
            }
            Event::JobRetried { pool, job_id, delay } => self.remember(job_id, pool, later(*delay)),
            Event::JobDelayed {
                pool,
                job_id,
                remaining,
            } => self.remember(job_id, pool, later(*remaining)),
            Event::JobGivenBack {
                pool,
                job_id: Some(job_id),
                ..
            } => self.remember(job_id, pool, Fate::GivenBack),
            Event::Consuming { pool } => self.with(pool, |counts| counts.consuming.store(true, Ordering::Relaxed)),
            Event::ConsumerLost { pool, .. } | Event::ConsumerHeld { pool, .. } => {
                self.with(pool, |counts| counts.consuming.store(false, Ordering::Relaxed));
            }
            Event::Draining => self.0.draining.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

fn later(delay: Duration) -> Fate {
    let until = now().checked_add(delay).unwrap_or(Timestamp::MAX);
    Fate::Delayed { until }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Order;
    use crate::worker::event::RunAccount;

    fn pool() -> Arc<str> {
        "p".into()
    }

    #[test]
    fn a_board_shows_what_the_events_say() {
        let board = Board::new(["p", "q"].map(|name| BoardPool {
            name: name.into(),
            slots: 3,
        }));
        let orders = Orders::none();
        let at = crate::message::now();
        let (name, by) = ("p".to_owned(), None);
        orders.apply(&Order::Pause { pool: name, at, by }, at);
        let (started, ended) = (JobId::random(), JobId::random());
        board.on(&Event::Consuming { pool: pool() });
        for _ in 0..3 {
            board.on(&Event::DeliveryTaken { pool: pool() });
        }
        for job_id in [&started, &ended] {
            board.on(&Event::JobStarted {
                pool: pool(),
                job_id: job_id.clone(),
                attempt: 1,
                waited: None,
                labels: BTreeMap::new(),
            });
        }
        board.on(&Event::JobEnded {
            pool: pool(),
            job_id: ended,
            run: RunAccount::default(),
        });
        board.on(&Event::DeliverySettled { pool: pool() });
        board.on(&Event::Draining);
        board.on(&Event::Consuming { pool: "other".into() });
        let states = board.pools(&orders);
        let expected = PoolState {
            pool: "p".to_owned(),
            slots: 3,
            running: 1,
            in_hand: 2,
            paused: true,
            consuming: true,
            started: Some(2),
            finished: BTreeMap::new(),
        };
        assert_eq!((&states[0], states.len()), (&expected, 2));
        assert!(board.is_draining());
        let (reason, retry_in) = (String::new(), None);
        board.on(&Event::ConsumerLost {
            pool: pool(),
            reason,
            retry_in,
        });
        assert!(!board.pools(&orders)[0].consuming);
    }

    fn finished(board: &Board, id: &JobId, status: Status) {
        board.on(&Event::JobFinished {
            pool: pool(),
            job_id: id.clone(),
            attempt: 2,
            status,
            is_final: true,
            duration: Duration::ZERO,
            error: None,
            labels: BTreeMap::new(),
            trace_id: None,
        });
    }

    #[test]
    fn a_board_counts_results_and_knows_what_became_of_the_last_jobs() {
        let board = Board::new([BoardPool { name: pool(), slots: 1 }]);
        let job: JobId = "job".parse().unwrap();
        let (delay, other) = (Duration::from_secs(90), JobId::random());
        board.on(&Event::JobRetried {
            pool: pool(),
            job_id: job.clone(),
            delay,
        });
        finished(&board, &job, Status::Failed);
        let [last, first] = &board.recent(&job)[..] else {
            panic!("two things became of it");
        };
        let fate = Fate::Finished {
            attempt: 2,
            status: Status::Failed,
            is_final: true,
        };
        assert_eq!((last.fate, last.pool.as_str()), (fate, "p"));
        let Fate::Delayed { until } = first.fate else {
            panic!("{first:?}");
        };
        assert!(
            until.duration_since(now()) > jiff::SignedDuration::from_secs(60),
            "{until}"
        );

        for _ in 1..RECENT_MAX {
            finished(&board, &other, Status::Succeeded);
        }
        assert_eq!(board.recent(&job).len(), 1, "the oldest is forgotten");
        assert_eq!(board.recent(&other).len(), Recent::MAX);
        let expected = [
            ("failed".to_owned(), 1),
            ("succeeded".to_owned(), RECENT_MAX as u64 - 1),
        ];
        assert_eq!(board.pools(&Orders::none())[0].finished, expected.into());
    }
}
