//! The fleet at one moment: what workers answer, and what the broker says of their pools' queues.
//!
//! Pure: who asks, and how it is shown, is not known here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::message::{Inventory, JobInHand, Status, WorkerState};
use crate::transport::QueueDepth;

/// The fleet as `synthex top --once --json` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Snapshot {
    /// When it was taken.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    /// The pools that a worker serves, or that were asked for, by name.
    pub pools: Vec<PoolRow>,
    /// The workers that answered, by id.
    pub workers: Vec<WorkerState>,
    /// The jobs in hand, those that started first at the beginning.
    pub jobs: Vec<JobRow>,
    /// Jobs in hand that are left out because there are too many.
    pub jobs_left_out: u64,
}

/// A pool over all its workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct PoolRow {
    /// Its name.
    pub pool: String,
    /// Jobs that wait in its queue; left out when there is no queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<u64>,
    /// Jobs that workers have in hand.
    pub unacked: u64,
    /// Workers that serve it.
    pub workers: u64,
    /// Those of them that take jobs.
    pub consuming: u64,
    /// Commands that may run at once.
    pub slots: u64,
    /// Commands that run.
    pub running: u64,
    /// An operator has paused it.
    pub paused: bool,
    /// Attempts that ended since each of its workers started, by status.
    pub finished: BTreeMap<String, u64>,
    /// Attempts that ended a second, between two looks; left out after a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
}

/// A job in hand, and who has it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct JobRow {
    /// The worker's id.
    pub worker: String,
    /// The job.
    #[serde(flatten)]
    pub job: JobInHand,
}

impl Snapshot {
    /// Most jobs that are kept.
    pub const MAX_JOBS: usize = 10_000;

    /// Puts answers together. `depths` has every pool that is to be shown even if nobody serves it.
    #[must_use]
    pub fn new(at: Timestamp, inventories: Vec<Inventory>, depths: &BTreeMap<String, Option<QueueDepth>>) -> Self {
        let mut jobs = Vec::new();
        let mut left_out = 0;
        let mut workers = Vec::new();
        for inventory in inventories {
            let worker = inventory.worker.id.clone();
            let row = |job| JobRow {
                worker: worker.clone(),
                job,
            };
            jobs.extend(inventory.jobs.into_iter().map(row));
            left_out += inventory.left_out;
            workers.push(inventory.worker);
        }
        jobs.sort_by_key(|row| (row.job.started_at.unwrap_or(Timestamp::MAX), row.job.taken_at));
        let over = jobs.len().saturating_sub(Self::MAX_JOBS);
        jobs.truncate(Self::MAX_JOBS);
        Self {
            at,
            pools: pools(&workers, depths),
            workers,
            jobs,
            jobs_left_out: left_out + u64::try_from(over).unwrap_or(u64::MAX),
        }
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&PoolRow> {
        self.pools.iter().find(|row| row.pool == name)
    }

    /// Works out the rates since an earlier snapshot. A worker that was started since then counts from its start.
    #[must_use]
    pub fn after(mut self, earlier: &Self) -> Self {
        let seconds = self.at.duration_since(earlier.at).as_secs_f64();
        if seconds <= 0.0 {
            return self;
        }
        let before: BTreeMap<(&str, &str), u64> = earlier.ended().collect();
        let mut ended = BTreeMap::<String, u64>::new();
        for ((worker, pool), count) in self.ended() {
            let new = count.saturating_sub(before.get(&(worker, pool)).copied().unwrap_or(0));
            // One that was not seen before may have worked for long before it was.
            if before.contains_key(&(worker, pool)) {
                *ended.entry(pool.to_owned()).or_default() += new;
            }
        }
        for row in &mut self.pools {
            #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
            let count = ended.get(&row.pool).copied().unwrap_or(0) as f64;
            row.rate = Some(count / seconds);
        }
        self
    }

    /// Attempts that ended, by worker and pool.
    fn ended(&self) -> impl Iterator<Item = ((&str, &str), u64)> {
        self.workers.iter().flat_map(|worker| {
            worker.pools.iter().map(|pool| {
                let key = (worker.id.as_str(), pool.pool.as_str());
                (key, pool.finished.values().sum())
            })
        })
    }
}

impl PoolRow {
    /// Attempts that did not succeed, of those that ended.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let failed = self
            .finished
            .iter()
            .filter(|(status, _)| *status != Status::Succeeded.as_str());
        failed.map(|(_, count)| count).sum()
    }
}

fn pools(workers: &[WorkerState], depths: &BTreeMap<String, Option<QueueDepth>>) -> Vec<PoolRow> {
    let mut rows: BTreeMap<&str, PoolRow> = depths.keys().map(|pool| (pool.as_str(), PoolRow::default())).collect();
    for worker in workers {
        for pool in &worker.pools {
            let row = rows.entry(&pool.pool).or_default();
            row.unacked += pool.in_hand;
            row.workers += 1;
            row.consuming += u64::from(pool.consuming && !worker.draining);
            row.slots += pool.slots;
            row.running += pool.running;
            row.paused |= pool.paused;
            for (status, count) in &pool.finished {
                *row.finished.entry(status.clone()).or_default() += count;
            }
        }
    }
    let named = rows.into_iter().map(|(pool, row)| PoolRow {
        pool: pool.to_owned(),
        ready: depths.get(pool).copied().flatten().map(|depth| depth.messages.into()),
        ..row
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{JobState, PoolState};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).unwrap()
    }

    fn job(id: &str, started: Option<i64>) -> JobInHand {
        JobInHand {
            id: id.parse().unwrap(),
            attempt: 1,
            pool: "p".to_owned(),
            state: JobState::Running,
            program: None,
            labels: BTreeMap::new(),
            taken_at: at(0),
            started_at: started.map(at),
            deadline: None,
        }
    }

    fn worker(id: &str, succeeded: u64, failed: u64, jobs: Vec<JobInHand>) -> Inventory {
        let pool = PoolState {
            pool: "p".to_owned(),
            slots: 4,
            running: 2,
            in_hand: 3,
            paused: false,
            consuming: true,
            started: None,
            finished: [("succeeded".to_owned(), succeeded), ("failed".to_owned(), failed)].into(),
        };
        Inventory {
            worker: WorkerState {
                id: id.to_owned(),
                host: "h".to_owned(),
                version: "0".to_owned(),
                started_at: at(0),
                draining: id == "draining",
                clock: None,
                pools: vec![pool],
            },
            jobs,
            left_out: 1,
            recent: Vec::new(),
        }
    }

    fn depths() -> BTreeMap<String, Option<QueueDepth>> {
        let depth = QueueDepth {
            messages: 7,
            consumers: 1,
        };
        [("p".to_owned(), Some(depth)), ("unserved".to_owned(), None)].into()
    }

    #[test]
    fn pools_are_summed_over_workers_and_the_longest_running_jobs_come_first() {
        let inventories = vec![
            worker("a", 5, 1, vec![job("young", Some(9)), job("waits", None)]),
            worker("draining", 2, 0, vec![job("old", Some(1))]),
        ];
        let snapshot = Snapshot::new(at(10), inventories, &depths());
        let ids: Vec<&str> = snapshot.jobs.iter().map(|row| row.job.id.as_str()).collect();
        assert_eq!(ids, ["old", "young", "waits"]);
        assert_eq!(snapshot.jobs[0].worker, "draining");
        assert_eq!(snapshot.jobs_left_out, 2);
        let row = snapshot.pool("p").unwrap();
        assert_eq!((row.ready, row.unacked, row.slots, row.running), (Some(7), 6, 8, 4));
        assert_eq!((row.workers, row.consuming, row.failures()), (2, 1, 1));
        assert_eq!(row.rate, None);
        let unserved = snapshot.pool("unserved").unwrap();
        assert_eq!((unserved.ready, unserved.workers), (None, 0));
    }

    #[test]
    fn a_rate_is_what_ended_between_two_looks_on_workers_that_both_have_seen() {
        let before = Snapshot::new(at(0), vec![worker("a", 5, 1, Vec::new())], &depths());
        let now = vec![worker("a", 14, 2, Vec::new()), worker("new", 1000, 0, Vec::new())];
        let after = Snapshot::new(at(4), now, &depths()).after(&before);
        assert_eq!(after.pool("p").unwrap().rate, Some(2.5));
        let same = after.clone().after(&after);
        assert_eq!(
            same.pool("p").unwrap().rate,
            Some(2.5),
            "without time between, nothing is known"
        );
    }

    #[test]
    fn what_is_kept_of_jobs_is_bounded() {
        let many = (0..Snapshot::MAX_JOBS + 5).map(|_| job("a", Some(1))).collect();
        let snapshot = Snapshot::new(at(0), vec![worker("a", 0, 0, many)], &depths());
        assert_eq!((snapshot.jobs.len(), snapshot.jobs_left_out), (Snapshot::MAX_JOBS, 6));
    }
}
