//! Events of a worker in the words that are published.

use std::sync::Arc;
use std::time::Duration;

use crate::message::event::{Chunk, Event as Published, Place, RunId};
use crate::worker::event::{About, Event, Kept, RunOf};

/// What an event is about that is published by itself, and the pool of one about a job; `None` for the others, which are
/// not published, or by way of [`super::feeds`].
pub(super) fn about(event: &Event) -> Option<(About, Option<&Arc<str>>)> {
    match event {
        Event::JobStarted { pool, .. }
        | Event::JobFinished { pool, .. }
        | Event::JobRetried { pool, .. }
        | Event::JobDelayed { pool, .. }
        | Event::JobRecounted { pool, .. }
        | Event::JobAdopted { pool, .. }
        | Event::JobGivenBack { pool, .. }
        | Event::JobDeadLettered { pool, .. } => Some((About::Job, Some(pool))),
        Event::Consuming { .. } | Event::ConsumerLost { .. } | Event::ConsumerHeld { .. } | Event::Draining => {
            Some((About::Worker, None))
        }
        _ => None,
    }
}

/// An event as it is published, now, by this worker.
pub(super) fn published(worker: &str, event: &Event) -> Option<Published> {
    let at = crate::message::now();
    let place = |pool: &Arc<str>| Place {
        at,
        worker: worker.to_owned(),
        pool: pool.to_string(),
    };
    Some(match event {
        Event::Consuming { pool } => Published::WorkerConsuming { place: place(pool) },
        Event::ConsumerLost { pool, reason, retry_in } => Published::WorkerConsumerLost {
            place: place(pool),
            reason: reason.clone(),
            retry_in_ms: retry_in.map(millis),
        },
        Event::ConsumerHeld { pool, reason } => Published::WorkerConsumerHeld {
            place: place(pool),
            reason: reason.as_str().to_owned(),
        },
        Event::Draining => Published::WorkerDraining {
            at,
            worker: worker.to_owned(),
        },
        _ => return of_job(event, place),
    })
}

fn of_job(event: &Event, place: impl Fn(&Arc<str>) -> Place) -> Option<Published> {
    Some(match event {
        Event::JobStarted {
            pool,
            job_id,
            attempt,
            labels,
            ..
        } => Published::JobStarted {
            place: place(pool),
            job_id: job_id.clone(),
            attempt: *attempt,
            labels: labels.clone(),
        },
        Event::JobFinished {
            pool,
            job_id,
            attempt,
            status,
            is_final,
            duration,
            error,
            labels,
            trace_id: _, // for the log, and who follows traces
        } => Published::JobFinished {
            place: place(pool),
            job_id: job_id.clone(),
            attempt: *attempt,
            status: *status,
            is_final: *is_final,
            duration_ms: millis(*duration),
            error: error.as_ref().map(|(kind, _)| *kind),
            labels: labels.clone(),
        },
        _ => return between_runs(event, place),
    })
}

fn between_runs(event: &Event, place: impl Fn(&Arc<str>) -> Place) -> Option<Published> {
    Some(match event {
        Event::JobRetried { pool, job_id, delay } => Published::JobRetried {
            place: place(pool),
            job_id: job_id.clone(),
            delay_ms: millis(*delay),
        },
        Event::JobDelayed {
            pool,
            job_id,
            remaining,
        } => Published::JobDelayed {
            place: place(pool),
            job_id: job_id.clone(),
            delay_ms: millis(*remaining),
        },
        Event::JobRecounted { pool, job_id, attempt } => Published::JobRecounted {
            place: place(pool),
            job_id: job_id.clone(),
            attempt: *attempt,
        },
        Event::JobAdopted { pool, message_id } => Published::JobAdopted {
            place: place(pool),
            message_id: message_id.clone(),
        },
        Event::JobGivenBack {
            pool,
            job_id,
            was_running,
        } => Published::JobGivenBack {
            place: place(pool),
            job_id: job_id.clone(),
            was_running: *was_running,
        },
        Event::JobDeadLettered { pool, job_id, reason } => Published::JobDeadLettered {
            place: place(pool),
            job_id: job_id.clone(),
            reason: reason.clone(),
        },
        _ => return None,
    })
}

/// A run in the words that are published.
pub(super) fn run_id(worker: &str, run: &RunOf) -> RunId {
    RunId {
        worker: worker.to_owned(),
        pool: run.pool.to_string(),
        job_id: run.job_id.clone(),
        attempt: run.attempt,
    }
}

/// What is kept of a stream, in the words that are published.
pub(super) fn chunk(kept: &Kept) -> Chunk {
    Chunk::new(kept.stream, kept.offset, kept.dropped, &kept.bytes)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::JobId;

    #[test]
    fn what_is_about_a_job_or_a_worker_has_words_and_a_key_under_that_name() {
        let pool: Arc<str> = "p".into();
        let id = JobId::random();
        let events = [
            Event::JobRecounted {
                pool: pool.clone(),
                job_id: id.clone(),
                attempt: 2,
            },
            Event::JobGivenBack {
                pool: pool.clone(),
                job_id: None,
                was_running: false,
            },
            Event::JobAdopted {
                pool: pool.clone(),
                message_id: None,
            },
            Event::Consuming { pool: pool.clone() },
            Event::Draining,
        ];
        for event in events {
            let (about, of_pool) = about(&event).expect("it is published");
            let published = published("w", &event).expect("it has words");
            let key = published.routing_key();
            assert!(key.starts_with(about.as_str()), "{key}");
            assert_eq!(of_pool.is_some(), about == About::Job);
            assert_eq!(Published::decode(&published.encode()).unwrap(), published);
        }
        assert!(about(&Event::DeliveryTaken { pool }).is_none());
    }
}
