//! Whether the worker takes jobs, for `/readyz`.
//!
//! Ready means: every pool's consumer is live, no task of the worker is down, and it does not drain. It says nothing about
//! how well jobs do. Of tasks that were started again it keeps how often and after what, as a remark.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::PoolInfo;
use crate::supervise::SupervisorEvent;
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
    /// Tasks that have failed, by name.
    faults: BTreeMap<&'static str, Faults>,
}

/// What became of the tasks of one name that ended unasked or failed.
#[derive(Default)]
struct Faults {
    /// How the last one ended.
    error: String,
    restarts: u32,
    /// So many wait for their restart.
    down: u32,
    given_up: bool,
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
            faults: BTreeMap::new(),
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
        let faults = state.faults.iter();
        let faults = faults.filter_map(|(task, faults)| faults.obstacle(task));
        draining.into_iter().chain(faults).chain(consumers).collect()
    }

    /// Says what has gone wrong and is over, one line a task.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let state = self.lock();
        let faults = state.faults.iter();
        faults.filter_map(|(task, faults)| faults.remark(task)).collect()
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

    fn supervised(&self, event: &SupervisorEvent) {
        let mut state = self.lock();
        match event {
            SupervisorEvent::Faulted { child, error, .. } => {
                state.faults.entry(child).or_default().error = error.replace(char::is_control, " ");
            }
            SupervisorEvent::Restarting { child, .. } => {
                let faults = state.faults.entry(child).or_default();
                faults.restarts += 1;
                faults.down += 1;
            }
            SupervisorEvent::Started { child } => {
                // Not there: it is started for the first time.
                if let Some(faults) = state.faults.get_mut(child) {
                    faults.down = faults.down.saturating_sub(1);
                }
            }
            SupervisorEvent::GaveUp { child } => state.faults.entry(child).or_default().given_up = true,
            SupervisorEvent::Finished { .. } | SupervisorEvent::CutOff { .. } => {}
        }
    }
}

impl Faults {
    fn obstacle(&self, task: &str) -> Option<String> {
        let error = &self.error;
        match self {
            Self { given_up: true, .. } => Some(format!("task {task}: failed too often, the worker stops: {error}")),
            Self { down: 0, .. } => None,
            _ => Some(format!("task {task}: failed and is started again: {error}")),
        }
    }

    fn remark(&self, task: &str) -> Option<String> {
        let Self { error, restarts, .. } = self;
        (*restarts > 0).then(|| format!("task {task}: restarts: {restarts}, the last after: {error}"))
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
            Event::Supervised(event) => self.supervised(event),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::supervise::Outcome;

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

    /// A health whose pools consume, and that is told what a supervisor tells.
    fn supervised(events: &[SupervisorEvent]) -> Health {
        let health = health();
        health.on(&consuming("web"));
        health.on(&consuming("batch"));
        for event in events {
            health.on(&Event::Supervised(event.clone()));
        }
        health
    }

    fn fault(error: &str) -> [SupervisorEvent; 2] {
        let child = "intake";
        let (outcome, error) = (Outcome::Panicked, error.to_owned());
        let delay = Duration::from_millis(100);
        [
            SupervisorEvent::Faulted { child, outcome, error },
            SupervisorEvent::Restarting { child, delay },
        ]
    }

    const STARTED: SupervisorEvent = SupervisorEvent::Started { child: "intake" };

    #[test]
    fn a_task_that_failed_is_named_until_it_is_back_and_remembered_then() {
        let health = supervised(&[STARTED]);
        assert!(health.remarks().is_empty());
        for event in fault("panicked: slot\n3") {
            health.on(&Event::Supervised(event));
        }
        let obstacle = "task intake: failed and is started again: panicked: slot 3";
        assert_eq!(health.obstacles(), [obstacle]);
        health.on(&Event::Supervised(STARTED));
        assert!(health.obstacles().is_empty());
        let remark = "task intake: restarts: 1, the last after: panicked: slot 3";
        assert_eq!(health.remarks(), [remark]);
    }

    #[test]
    fn of_two_tasks_of_one_name_both_have_to_be_back() {
        let events = [&fault("one")[..], &fault("other"), &[STARTED]].concat();
        let health = supervised(&events);
        assert_eq!(health.obstacles(), ["task intake: failed and is started again: other"]);
        health.on(&Event::Supervised(STARTED));
        assert!(health.obstacles().is_empty());
    }

    #[test]
    fn a_task_that_is_given_up_is_never_ready_again() {
        let gave_up = SupervisorEvent::GaveUp { child: "intake" };
        let events = [&fault("no port")[..1], &[gave_up, STARTED]].concat();
        let obstacle = "task intake: failed too often, the worker stops: no port";
        assert_eq!(supervised(&events).obstacles(), [obstacle]);
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
