//! Why a job does not run: one verdict from all that is known of it.
//!
//! A job's pool queue is the one place that nobody looks into: what is taken out of it and put back counts as redelivered,
//! and would be counted as an attempt. So of a job that is nowhere else, the verdict is what keeps the queue it may be in.
//!
//! Pure: [`super::fleet`], [`super::standing`], [`super::delayed`] and [`super::dead`] gather the [`Facts`].

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

/// Says why a job does not run.
#[must_use]
pub fn explain(id: &JobId, facts: &Facts, now: Timestamp) -> Explanation {
    let verdict = judge(facts, now);
    let (message, remedy) = words(id, &verdict, facts);
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

/// A sentence, and what to do.
fn words(id: &JobId, verdict: &Verdict, facts: &Facts) -> (String, Option<String>) {
    let (about, remedy) = match verdict {
        Verdict::Unknown => (unknown(facts), Some(where_to_look(id))),
        Verdict::NoQueue { .. }
        | Verdict::Paused { .. }
        | Verdict::NoConsumer { .. }
        | Verdict::SlotsBusy { .. }
        | Verdict::Queued { .. } => words_of_queue(verdict),
        known => words_of_place(id, known),
    };
    (format!("job {id} {about}"), remedy)
}

fn words_of_place(id: &JobId, verdict: &Verdict) -> (String, Option<String>) {
    match verdict {
        Verdict::Running {
            worker,
            attempt,
            started_at,
            deadline,
            ..
        } => (
            format!(
                "runs on worker {worker}, attempt {attempt}{}{}",
                started_at.map(|at| format!(", since {at}")).unwrap_or_default(),
                deadline
                    .map(|at| format!(", until {at} at the latest"))
                    .unwrap_or_default()
            ),
            None,
        ),
        Verdict::Settling { worker, .. } => (
            format!("is done with on worker {worker}, which waits for the broker's confirm"),
            Some("if it stays so, see to the broker: its alarms, its disk".to_owned()),
        ),
        Verdict::WaitsForSlot { worker, pool, running } => (
            format!("waits on worker {worker} for a slot of pool {pool:?}, where {running} commands run"),
            Some(format!(
                "see what runs with `synthex jobs --pool {pool}`; start another worker"
            )),
        ),
        Verdict::Delayed { pool, until } => (
            format!(
                "waits in a delay queue{}, for its not_before or its next attempt in pool {pool:?}",
                until.map(|until| format!(" until {until}")).unwrap_or_default()
            ),
            None,
        ),
        Verdict::Dead { pool, reason, error } => (
            format!(
                "is a dead letter of pool {pool:?}: {}",
                error
                    .as_deref()
                    .map_or(reason.clone(), |error| format!("{reason}, {error}"))
            ),
            Some(format!(
                "`synthex dead show {id}` shows it, `synthex dead retry {id}` runs it again"
            )),
        ),
        Verdict::Finished { status, at, .. } => (
            format!("has ended at {at}: {}", status.as_str().replace('_', " ")),
            None,
        ),
        Verdict::Cancelled { at, by } => (
            format!(
                "is cancelled since {at}{}; its result comes when a worker gets to it",
                by_whom(by.as_deref())
            ),
            Some("to run it all the same, submit it again".to_owned()),
        ),
        _ => (String::new(), None),
    }
}

fn words_of_queue(verdict: &Verdict) -> (String, Option<String>) {
    let among = |pool: &str, ready: &u64| {
        let jobs = if *ready == 1 {
            "the 1 job".to_owned()
        } else {
            format!("the {ready} jobs")
        };
        format!("is in nobody's hands; if it is among {jobs} that wait in pool {pool:?}, it waits because")
    };
    match verdict {
        Verdict::NoQueue { pool } => (
            format!("is in nobody's hands, and pool {pool:?} has no queue on this broker"),
            Some(format!(
                "start a worker for pool {pool:?}, or declare it with `synthex config apply`, and submit the job again"
            )),
        ),
        Verdict::Paused { pool, ready, since, by } => (
            format!(
                "{} the pool is paused{}{}",
                among(pool, ready),
                since.map(|since| format!(" since {since}")).unwrap_or_default(),
                by_whom(by.as_deref())
            ),
            Some(format!("`synthex resume {pool}`")),
        ),
        Verdict::NoConsumer { pool, ready } => (
            format!("{} no worker takes jobs of it", among(pool, ready)),
            Some(format!(
                "start a worker for pool {pool:?}; if one is there, its log says what is in the way"
            )),
        ),
        Verdict::SlotsBusy { pool, ready, slots } => (
            format!("{} all {slots} slots are busy", among(pool, ready)),
            Some(format!(
                "see what runs with `synthex jobs --pool {pool}`; start another worker"
            )),
        ),
        Verdict::Queued { pool, ready } => (
            format!(
                "{} those before it are not yet taken, though slots are free",
                among(pool, ready)
            ),
            Some("ask again in a moment".to_owned()),
        ),
        _ => (String::new(), None),
    }
}

fn by_whom(by: Option<&str>) -> String {
    by.map(|by| format!(" by {by}")).unwrap_or_default()
}

fn unknown(facts: &Facts) -> String {
    let waiting: Vec<String> = facts
        .pools
        .iter()
        .filter_map(|(pool, depth)| Some((pool, depth.filter(|depth| depth.messages > 0)?)))
        .map(|(pool, depth)| format!("{} in pool {pool:?}", depth.messages))
        .collect();
    let mut text =
        "is not known: no worker has it or remembers it, no dead letter and no delayed job has its id".to_owned();
    if facts.look.unseen > 0 {
        text.push_str(&format!(
            " ({} delayed jobs are too many to be looked at)",
            facts.look.unseen
        ));
    }
    if !waiting.is_empty() {
        text.push_str(&format!("; it may be among the jobs that wait: {}", waiting.join(", ")));
    }
    text
}

fn where_to_look(id: &JobId) -> String {
    format!(
        "name its pool with --pool; if it was never submitted, submit it; if it has ended, its result went to its \
         reply_to and to synthex.results under the id {id}"
    )
}

#[cfg(test)]
#[path = "explain/tests.rs"]
mod tests;
