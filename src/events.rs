//! What a worker publishes of itself: what happens to jobs and to it, and what commands write while they run.
//!
//! - [`Publisher`] is a worker's side: an observer that takes what is to be told, and a task that publishes it. It goes
//!   out to the exchange `synthex.events`, one message after the other for each job and each run, several jobs at a time.
//! - `wire` puts an event of the worker into the words of [`crate::message::event`], `feeds` holds what runs have written
//!   and what is not published yet.
//! - [`Transcript`] is a listener's side: it makes of what comes the output as it was written, each byte once.
//!
//! Who listens is known to [`crate::worker::audience`]. Published always: what happens to a worker, with a heartbeat every
//! [`HEARTBEAT`], and what jobs with `output.live` write. Only while somebody asks for it: what happens to jobs (always for
//! a pool with `events = true`), and what other jobs write.
//!
//! Invariants:
//! - no job waits for an event: what cannot be taken at once is dropped, and counted;
//! - what waits to be published is bounded: [`publisher::EVENTS_MAX`] events, and the bytes of `feeds`.

mod feeds;
pub mod publisher;
mod transcript;
mod wire;

use crate::message::JobId;
use crate::message::event::output_keys;
use crate::transport::Topic;
use crate::transport::topology::Names;

pub use publisher::{HEARTBEAT, Publisher};
pub use transcript::{Said, Transcript};

/// Most messages that wait for one who listens to a job, each of some 40 KiB at most: then he misses the oldest.
pub const OVERHEARD_MAX: u32 = 512;

/// All that is published of a job's output.
#[must_use]
pub fn output_topics(names: &Names, job: &JobId) -> [Topic; 3] {
    output_keys(job).map(|routing_key| Topic {
        exchange: names.events(),
        routing_key,
    })
}

#[cfg(test)]
mod tests;
