//! Says a verdict in a sentence, and what to do.

use super::{Facts, Verdict};
use crate::message::JobId;
use crate::message::harmless::harmless;

/// A sentence, and what to do if there is something to do.
pub(super) fn of(id: &JobId, verdict: &Verdict, facts: &Facts) -> (String, Option<String>) {
    if *verdict == Verdict::Batch {
        let remedy = format!("`synthex batch status {id}` says how far it is");
        return (format!("{id} is a batch and no job"), Some(remedy));
    }
    let known = of_place(id, verdict).or_else(|| of_queue(verdict));
    let (about, remedy) = known.unwrap_or_else(|| (unknown(facts), Some(where_to_look(id))));
    (format!("job {id} {about}{}", cancel(verdict, facts)), remedy)
}

/// What an order will make of a job that nobody gets to yet.
fn cancel(verdict: &Verdict, facts: &Facts) -> String {
    match (verdict, &facts.standing.cancelled) {
        (Verdict::Delayed { .. }, Some(given)) => {
            format!("; it is cancelled {given}, unless it was submitted after that: it ends so when its delay is over")
        }
        _ => String::new(),
    }
}

/// Of a job whose place is known.
fn of_place(id: &JobId, verdict: &Verdict) -> Option<(String, Option<String>)> {
    Some(match verdict {
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
        _ => return None,
    })
}

/// Of a job that may be in a queue.
fn of_queue(verdict: &Verdict) -> Option<(String, Option<String>)> {
    let among = |pool: &str, ready: &u64| {
        let jobs = if *ready == 1 {
            "the 1 job".to_owned()
        } else {
            format!("the {ready} jobs")
        };
        format!("is in nobody's hands; if it is among {jobs} that wait in pool {pool:?}, it waits because")
    };
    Some(match verdict {
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
        _ => return None,
    })
}

fn by_whom(by: Option<&str>) -> String {
    by.map(|by| format!(" by {}", harmless(by))).unwrap_or_default()
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
