//! Whether the worker takes jobs, for `/readyz`.
//!
//! Ready means: every pool's consumer is live and the worker does not drain. It says nothing about how well jobs do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PoolInfo;
use crate::worker::HoldReason;
use crate::worker::event::{Event, Observer};

/// Knows what keeps the worker from taking jobs.
///
/// Cloning is cheap and gives another handle to the same knowledge.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

struct State {
    draining: bool,
    consumers: BTreeMap<Arc<str>, Consumer>,
}

/// A pool's consumer.
enum Consumer {
    /// It has not been live yet.
    Starting,
    /// It takes jobs.
    Live,
    /// It was ended, so that the pool takes no jobs for now.
    Held(HoldReason),
    /// It has ended, for this reason.
    Lost(String),
}

impl Health {
    /// Knows these pools, none of which consumes yet.
    #[must_use]
    pub fn new(pools: &[PoolInfo]) -> Self {
        let starting = |pool: &PoolInfo| (pool.name.clone(), Consumer::Starting);
        let state = State {
            draining: false,
            consumers: pools.iter().map(starting).collect(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Says what keeps the worker from taking jobs, one line a reason; nothing means that it is ready.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        let state = self.lock();
        let draining = state.draining.then(|| "draining: takes no more jobs".into());
        let consumers = state.consumers.iter();
        let consumers = consumers.filter_map(|(pool, consumer)| consumer.obstacle(pool));
        draining.into_iter().chain(consumers).collect()
    }

    /// Says whether every pool takes jobs, or takes none because it was told so: what a start has to come to.
    #[must_use]
    pub fn has_started(&self) -> bool {
        let state = self.lock();
        let has_started = |consumer| matches!(consumer, &Consumer::Live | &Consumer::Held(_));
        state.consumers.values().all(has_started)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, pool: &Arc<str>, consumer: Consumer) {
        self.lock().consumers.insert(pool.clone(), consumer);
    }
}

impl Consumer {
    fn obstacle(&self, pool: &str) -> Option<String> {
        match self {
            Self::Live => None,
            Self::Starting => Some(format!("pool {pool}: does not consume yet")),
            Self::Held(reason) => Some(format!("pool {pool}: takes no jobs for now: {}", reason.as_str())),
            Self::Lost(reason) => {
                let reason = reason.replace(char::is_control, " ");
                Some(format!("pool {pool}: lost its consumer: {reason}"))
            }
        }
    }
}

impl Observer for Health {
    fn on(&self, event: &Event) {
        match event {
            Event::Draining => self.lock().draining = true,
            Event::Consuming { pool } => self.set(pool, Consumer::Live),
            Event::ConsumerHeld { pool, reason } => self.set(pool, Consumer::Held(*reason)),
            Event::ConsumerLost { pool, reason, .. } => {
                self.set(pool, Consumer::Lost(reason.clone()));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        let pool = |name: &str| PoolInfo {
            name: name.into(),
            slots: 1,
            prefetch: 1,
        };
        Health::new(&[pool("web"), pool("batch")])
    }

    fn consuming(pool: &str) -> Event {
        Event::Consuming { pool: pool.into() }
    }

    fn lost(pool: &str, reason: &str) -> Event {
        Event::ConsumerLost {
            pool: pool.into(),
            reason: reason.into(),
            retry_in: None,
        }
    }

    #[test]
    fn every_pool_has_to_consume() {
        let health = health();
        let batch = "pool batch: does not consume yet";
        let web = "pool web: does not consume yet";
        assert_eq!(health.obstacles(), [batch, web]);
        assert!(!health.has_started());

        health.on(&consuming("web"));
        assert_eq!(health.obstacles(), [batch]);
        assert!(!health.has_started());
        health.on(&consuming("batch"));
        assert!(health.obstacles().is_empty());
        assert!(health.has_started());
    }

    #[test]
    fn a_lost_consumer_is_named_with_its_reason_until_it_is_back() {
        let health = health();
        health.on(&consuming("web"));
        health.on(&consuming("batch"));

        health.on(&lost("batch", "connection\nreset"));
        let obstacle = "pool batch: lost its consumer: connection reset";
        assert_eq!(health.obstacles(), [obstacle]);
        health.on(&consuming("batch"));
        assert!(health.obstacles().is_empty());
    }

    #[test]
    fn a_pool_that_is_held_is_not_ready_until_it_goes_on() {
        let health = health();
        health.on(&consuming("web"));
        health.on(&consuming("batch"));
        health.on(&Event::ConsumerHeld {
            pool: "web".into(),
            reason: HoldReason::Paused,
        });
        assert_eq!(health.obstacles(), ["pool web: takes no jobs for now: paused"]);
        health.on(&consuming("web"));
        assert!(health.obstacles().is_empty());
    }

    #[test]
    fn draining_is_never_ready_again() {
        let health = health();
        health.on(&Event::Draining);
        health.on(&consuming("web"));
        health.on(&consuming("batch"));
        assert_eq!(health.obstacles(), ["draining: takes no more jobs"]);
    }

    #[test]
    fn what_happens_to_jobs_does_not_matter() {
        let health = health();
        health.on(&consuming("web"));
        health.on(&consuming("batch"));
        health.on(&Event::DeliveryTaken { pool: "web".into() });
        assert!(health.obstacles().is_empty());
    }
}
