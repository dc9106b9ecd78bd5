//! A table of verdicts.

use std::collections::BTreeMap;

use super::*;
use crate::control::delayed::Delayed;
use crate::message::{PoolState, WorkerState};

const POOL: &str = "p";

fn id() -> JobId {
    "job-1".parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_900_000_000 + second).unwrap()
}

fn pool_state() -> PoolState {
    PoolState {
        pool: POOL.to_owned(),
        slots: 2,
        running: 2,
        in_hand: 2,
        paused: false,
        consuming: true,
        started: None,
        finished: BTreeMap::new(),
    }
}

fn worker() -> Inventory {
    Inventory {
        worker: WorkerState {
            id: "w".to_owned(),
            host: "h".to_owned(),
            version: "0".to_owned(),
            started_at: at(0),
            draining: false,
            clock: None,
            pools: vec![pool_state()],
        },
        jobs: Vec::new(),
        left_out: 0,
        recent: Vec::new(),
    }
}

fn job(state: JobState) -> JobInHand {
    JobInHand {
        id: id(),
        attempt: 3,
        pool: POOL.to_owned(),
        state,
        program: None,
        labels: BTreeMap::new(),
        taken_at: at(0),
        started_at: Some(at(1)),
        deadline: Some(at(9)),
    }
}

fn holding(states: &[JobState]) -> Facts {
    let mut facts = waiting(1, 1);
    facts.inventories[0].jobs = states.iter().copied().map(job).collect();
    facts
}

/// A worker, and a queue in which something waits.
fn waiting(messages: u32, consumers: u32) -> Facts {
    Facts {
        inventories: vec![worker()],
        pools: vec![(POOL.to_owned(), Some(QueueDepth { messages, consumers }))],
        ..Facts::default()
    }
}

fn letter() -> Letter {
    let (job_id, labels) = (Some("job-1".to_owned()), BTreeMap::new());
    Letter::of_test(job_id, POOL, "failed", labels)
}

fn recent(fate: Fate) -> Facts {
    let mut facts = waiting(1, 1);
    let pool = POOL.to_owned();
    facts.inventories[0].recent = vec![Recent { pool, at: at(5), fate }];
    facts
}

fn verdict(facts: &Facts) -> (serde_json::Value, Explanation) {
    let explanation = explain(&id(), facts, at(10));
    (
        serde_json::to_value(&explanation).unwrap()["verdict"].clone(),
        explanation,
    )
}

fn with(change: fn(&mut Facts)) -> Facts {
    let mut facts = waiting(5, 1);
    change(&mut facts);
    facts
}

fn given() -> Given {
    Given {
        at: at(2),
        by: Some("me@here".to_owned()),
    }
}

/// Each row is what is known, the verdict, and a part of what is said.
#[track_caller]
fn judged(rows: impl IntoIterator<Item = (Facts, &'static str, &'static str)>) {
    for (facts, word, part) in rows {
        let (verdict, explanation) = verdict(&facts);
        assert_eq!(verdict, word, "{explanation:?}");
        assert!(explanation.message.starts_with("job job-1 "), "{explanation:?}");
        assert!(explanation.message.contains(part), "{part:?} in {explanation:?}");
    }
}

#[test]
fn a_place_that_is_known_is_told() {
    let finished = |is_final| Fate::Finished {
        attempt: 1,
        status: Status::TimedOut,
        is_final,
    };
    let delayed = with(|facts| {
        facts.look.found = Some(Delayed {
            pool: POOL.to_owned(),
            until: Some(at(20)),
        });
    });
    judged([
        (
            holding(&[JobState::Running]),
            "running",
            "runs on worker w, attempt 3, since 2030-",
        ),
        (holding(&[JobState::Settling]), "settling", "confirm"),
        (holding(&[JobState::Waiting]), "waits_for_slot", "where 2 commands run"),
        (holding(&[JobState::Waiting, JobState::Running]), "running", "runs"),
        (delayed, "delayed", "in a delay queue until 2030-"),
        (
            with(|facts| facts.letters = vec![letter()]),
            "dead",
            "dead letter of pool \"p\": failed",
        ),
        (recent(finished(true)), "finished", "timed out"),
        (recent(finished(false)), "slots_busy", "all 2 slots are busy"),
        (recent(Fate::Delayed { until: at(11) }), "delayed", "until"),
        (recent(Fate::Delayed { until: at(9) }), "slots_busy", "busy"),
        (recent(Fate::GivenBack), "slots_busy", "busy"),
        (
            with(|facts| facts.standing.cancelled = Some(given())),
            "cancelled",
            "by me@here",
        ),
    ]);
}

#[test]
fn a_delayed_job_that_is_cancelled_is_told_as_such() {
    let mut facts = with(|facts| facts.standing.cancelled = Some(given()));
    facts.look.found = Some(Delayed {
        pool: POOL.to_owned(),
        until: None,
    });
    let (verdict, explanation) = verdict(&facts);
    assert_eq!(verdict, "delayed");
    let words = "; it is cancelled since 2030-03-17T17:46:42Z by me@here, unless it was submitted after that";
    assert!(explanation.message.contains(words), "{explanation:?}");
}

#[test]
fn an_id_of_a_batch_is_told_before_what_its_queue_may_hold() {
    let mut facts = waiting(5, 0);
    facts.standing.cancelled = Some(given());
    facts.is_batch = true;
    let (verdict, explanation) = verdict(&facts);
    assert_eq!(verdict, "batch");
    assert!(explanation.verdict.is_sure());
    assert_eq!(explanation.message, "job-1 is a batch and no job");
    let remedy = explanation.remedy.unwrap();
    assert!(remedy.contains("synthex batch status job-1"), "{remedy}");
    facts = recent(Fate::Finished {
        attempt: 1,
        status: Status::Succeeded,
        is_final: true,
    });
    facts.is_batch = true;
    assert!(matches!(
        explain(&id(), &facts, at(10)).verdict,
        Verdict::Finished { .. }
    ));
}

#[test]
fn what_keeps_the_queue_that_it_may_be_in_is_told() {
    let paused = |facts: &mut Facts| facts.standing.paused = [(POOL.to_owned(), given())].into();
    let two_pools = |facts: &mut Facts| {
        let other = ("q".to_owned(), facts.pools[0].1);
        facts.pools.push(other);
    };
    let of_worker = |change: fn(&mut PoolState)| {
        let mut facts = waiting(5, 1);
        change(&mut facts.inventories[0].worker.pools[0]);
        facts
    };
    judged([
        (with(paused), "paused", "by me@here"),
        (of_worker(|pool| pool.paused = true), "paused", "paused"),
        (waiting(5, 0), "no_consumer", "no worker takes jobs of it"),
        (waiting(1, 1), "slots_busy", "the 1 job that"),
        (of_worker(|pool| pool.running = 1), "queued", "slots are free"),
        (with(|facts| facts.pools[0].1 = None), "no_queue", "no queue"),
        (waiting(0, 1), "unknown", "is not known"),
        (with(two_pools), "unknown", "5 in pool \"p\", 5 in pool \"q\""),
        (with(|facts| facts.pools.clear()), "unknown", "is not known"),
    ]);
}

#[test]
fn what_is_wrong_has_a_remedy() {
    for facts in [
        waiting(5, 0),
        waiting(5, 1),
        waiting(0, 1),
        holding(&[JobState::Waiting]),
    ] {
        assert!(verdict(&facts).1.remedy.is_some());
    }
    assert_eq!(verdict(&holding(&[JobState::Running])).1.remedy, None);
}

#[test]
fn jobs_that_could_not_be_looked_at_are_told_of() {
    let mut facts = waiting(0, 1);
    facts.look.unseen = 40_000;
    assert!(verdict(&facts).1.message.contains("40000 delayed jobs"));
}
