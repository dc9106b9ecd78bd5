//! What a worker does now, kept from its events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::message::PoolState;
use crate::worker::event::{Event, Observer};
use crate::worker::orders::Orders;

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
}

#[derive(Default)]
struct Counts {
    slots: u64,
    running: AtomicU64,
    in_hand: AtomicU64,
    consuming: AtomicBool,
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
        };
        self.0.pools.iter().map(state).collect()
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
            Event::JobStarted { pool, .. } => self.with(pool, |counts| add(&counts.running)),
            Event::JobEnded { pool, .. } => self.with(pool, |counts| take(&counts.running)),
            Event::Consuming { pool } => self.with(pool, |counts| counts.consuming.store(true, Ordering::Relaxed)),
            Event::ConsumerLost { pool, .. } | Event::ConsumerHeld { pool, .. } => {
                self.with(pool, |counts| counts.consuming.store(false, Ordering::Relaxed));
            }
            Event::Draining => self.0.draining.store(true, Ordering::Relaxed),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{JobId, Order};
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
}
