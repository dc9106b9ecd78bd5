//! Why a job does not run: one verdict from all that is known of it.
//!
//! A job's pool queue is the one place that nobody looks into: what is taken out of it and put back counts as redelivered,
//! and would be counted as an attempt. So of a job that is nowhere else, the verdict is what keeps the queue it may be in.
//!
//! [`words`] says it to people. Pure: [`super::fleet`], [`super::standing`], [`super::delayed`] and [`super::dead`] gather the [`Facts`].

mod words;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::dead::Letter;
use super::delayed::Look;
use super::standing::{Given, Standing};
use crate::message::{Fate, Inventory, JobId, JobInHand, JobState, Recent, Status};
use crate::transport::QueueDepth;

/// All that was found out about a job.
#[derive(Debug, Default)]
pub struct Facts {
    /// What each worker knows of it.
    pub inventories: Vec<Inventory>,
    /// Pauses, and its cancel.
    pub standing: Standing,
    /// What the delay queues hold.
    pub look: Look,
    /// Its dead letters.
    pub letters: Vec<Letter>,
    /// Whether it is the id of a batch.
    pub is_batch: bool,
    /// The pools whose queues it may be in, each with its queue if there is one.
    pub pools: Vec<(String, Option<QueueDepth>)>,
}

/// What is said of a job, as `synthex explain --json` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Explanation {
    /// The job's id.
    pub job_id: JobId,
    /// What it is.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The same in a sentence, for people.
    pub message: String,
    /// What to do, for people; left out when there is nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Where a job is, and what it waits for.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Its command runs.
    Running {
        /// The worker's id.
        worker: String,
        /// Its pool.
        pool: String,
        /// Which attempt.
        attempt: u32,
        /// Since when.
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        started_at: Option<Timestamp>,
        /// When it will be ended.
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        deadline: Option<Timestamp>,
    },
    /// A worker has its result, which the broker has not confirmed yet, or is sending it through a delay.
    Settling {
        /// The worker's id.
        worker: String,
        /// Its pool.
        pool: String,
    },
    /// A worker has it, and all slots of its pool there are busy.
    WaitsForSlot {
        /// The worker's id.
        worker: String,
        /// Its pool.
        pool: String,
        /// How many commands run there.
        running: u64,
    },
    /// A delay queue has it: it waits for its `not_before`, or for its next attempt.
    Delayed {
        /// Its pool.
        pool: String,
        /// Until when, as far as it is known.
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        until: Option<Timestamp>,
    },
    /// It is a dead letter.
    Dead {
        /// Its pool.
        pool: String,
        /// One word: a status, or the broker's.
        reason: String,
        /// The reason, in a sentence.
        error: Option<String>,
    },
    /// It has ended.
    Finished {
        /// Its pool.
        pool: String,
        /// How.
        status: Status,
        /// When.
        #[schemars(with = "String", extend("format" = "date-time"))]
        at: Timestamp,
    },
    /// It is no job but a batch.
    Batch,
    /// An operator has cancelled it: a worker says so when it comes to it.
    Cancelled {
        /// When.
        #[schemars(with = "String", extend("format" = "date-time"))]
        at: Timestamp,
        /// By whom, as far as they said.
        by: Option<String>,
    },
    /// Its pool has no queue.
    NoQueue {
        /// The pool.
        pool: String,
    },
    /// An operator has paused its pool, in whose queue it may be.
    Paused {
        /// The pool.
        pool: String,
        /// Jobs that wait there.
        ready: u64,
        /// Since when.
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        since: Option<Timestamp>,
        /// By whom, as far as they said.
        by: Option<String>,
    },
    /// Nobody takes jobs from its pool's queue, in which it may be.
    NoConsumer {
        /// The pool.
        pool: String,
        /// Jobs that wait there.
        ready: u64,
    },
    /// All slots of its pool are busy, in whose queue it may be.
    SlotsBusy {
        /// The pool.
        pool: String,
        /// Jobs that wait there.
        ready: u64,
        /// Slots of all its workers.
        slots: u64,
    },
    /// It may be in its pool's queue, and nothing keeps it there.
    Queued {
        /// The pool.
        pool: String,
        /// Jobs that wait there.
        ready: u64,
    },
    /// It is in no place that can be looked into.
    Unknown,
}

impl Verdict {
    /// Whether it is known where the job is, or how it ended. Else what is said is of a queue that it may be in.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        match self {
            Self::Running { .. }
            | Self::Settling { .. }
            | Self::WaitsForSlot { .. }
            | Self::Delayed { .. }
            | Self::Dead { .. }
            | Self::Finished { .. }
            | Self::Batch => true,
            Self::Cancelled { .. }
            | Self::NoQueue { .. }
            | Self::Paused { .. }
            | Self::NoConsumer { .. }
            | Self::SlotsBusy { .. }
            | Self::Queued { .. }
            | Self::Unknown => false,
        }
    }
}

/// Says why a job does not run.
#[must_use]
pub fn explain(id: &JobId, facts: &Facts, now: Timestamp) -> Explanation {
    let verdict = judge(facts, now);
    let (message, remedy) = words::of(id, &verdict, facts);
    Explanation {
        job_id: id.clone(),
        verdict,
        message,
        remedy,
    }
}

/// The first that is so, in the order of how sure it is.
fn judge(facts: &Facts, now: Timestamp) -> Verdict {
    in_hand(facts)
        .or_else(|| delayed(facts))
        .or_else(|| dead(facts))
        .or_else(|| recently(facts, now))
        .or_else(|| facts.is_batch.then_some(Verdict::Batch))
        .or_else(|| facts.standing.cancelled.as_ref().map(cancelled))
        .or_else(|| queued(facts))
        .unwrap_or(Verdict::Unknown)
}

fn in_hand(facts: &Facts) -> Option<Verdict> {
    let all = facts
        .inventories
        .iter()
        .flat_map(|inventory| inventory.jobs.iter().map(move |job| (inventory, job)));
    // Of several of one id, the one that is furthest from waiting.
    let (inventory, job) = all.max_by_key(|(_, job)| match job.state {
        JobState::Waiting => 0,
        JobState::Settling => 1,
        JobState::Running => 2,
    })?;
    Some(held(inventory, job))
}

fn held(inventory: &Inventory, job: &JobInHand) -> Verdict {
    let (worker, pool) = (inventory.worker.id.clone(), job.pool.clone());
    match job.state {
        JobState::Running => Verdict::Running {
            worker,
            pool,
            attempt: job.attempt,
            started_at: job.started_at,
            deadline: job.deadline,
        },
        JobState::Settling => Verdict::Settling { worker, pool },
        JobState::Waiting => {
            let state = inventory.worker.pools.iter().find(|state| state.pool == pool);
            Verdict::WaitsForSlot {
                worker,
                pool,
                running: state.map_or(0, |state| state.running),
            }
        }
    }
}

fn delayed(facts: &Facts) -> Option<Verdict> {
    let found = facts.look.found.as_ref()?;
    Some(Verdict::Delayed {
        pool: found.pool.clone(),
        until: found.until,
    })
}

fn dead(facts: &Facts) -> Option<Verdict> {
    let letter = facts.letters.iter().max_by_key(|letter| letter.failed_at)?;
    Some(Verdict::Dead {
        pool: letter.pool.clone(),
        reason: letter.reason.clone(),
        error: letter.error.clone(),
    })
}

/// What a worker remembers of it, the latest.
fn recently(facts: &Facts, now: Timestamp) -> Option<Verdict> {
    let all = facts.inventories.iter().flat_map(|inventory| &inventory.recent);
    let Recent { pool, at, fate } = all.max_by_key(|recent| recent.at)?.clone();
    match fate {
        Fate::Finished {
            status, is_final: true, ..
        } => Some(Verdict::Finished { pool, status, at }),
        Fate::Delayed { until } if until > now => Some(Verdict::Delayed {
            pool,
            until: Some(until),
        }),
        _ => None, // it went on from there
    }
}

fn cancelled(given: &Given) -> Verdict {
    Verdict::Cancelled {
        at: given.at,
        by: given.by.clone(),
    }
}

/// What keeps the only queue that it can be in.
fn queued(facts: &Facts) -> Option<Verdict> {
    let may_be = facts
        .pools
        .iter()
        .filter(|(_, depth)| depth.is_none_or(|depth| depth.messages > 0));
    let [(pool, depth)] = may_be.collect::<Vec<_>>()[..] else {
        return None;
    };
    let pool = pool.clone();
    let Some(depth) = depth else {
        return Some(Verdict::NoQueue { pool });
    };
    let ready = u64::from(depth.messages);
    let states = facts.inventories.iter().flat_map(|inventory| {
        let worker = &inventory.worker;
        worker.pools.iter().map(move |state| (worker.draining, state))
    });
    let states: Vec<_> = states.filter(|(_, state)| state.pool == pool).collect();
    let given = facts.standing.paused.get(&pool);
    if given.is_some() || states.iter().any(|(_, state)| state.paused) {
        return Some(Verdict::Paused {
            pool,
            ready,
            since: given.map(|given| given.at),
            by: given.and_then(|given| given.by.clone()),
        });
    }
    if depth.consumers == 0 {
        return Some(Verdict::NoConsumer { pool, ready });
    }
    let taking = || states.iter().filter(|(draining, state)| !draining && state.consuming);
    let slots = taking().map(|(_, state)| state.slots).sum();
    // A pool may have more jobs in hand than slots; what waits in its queue waits for all of them.
    let is_busy = taking().all(|(_, state)| state.running >= state.slots);
    Some(match is_busy && slots > 0 {
        true => Verdict::SlotsBusy { pool, ready, slots },
        false => Verdict::Queued { pool, ready },
    })
}

#[cfg(test)]
mod tests;
