//! The circuit breakers of a worker, around what is outside of it: publishing, the outbox's disk, and what commands need of
//! the machine.
//!
//! Each tells when its position changes, for the metrics, and says so once in the log, when it opens and when it closes. How
//! breakers work is [`flow::breaker`](crate::flow::breaker).

use std::sync::Arc;
use std::time::Duration;

use super::event::{Circuit, Event, Observer};
use super::programs::{Elsewhere, Programs};
use crate::flow::breaker::{Breaker, Policy, Position};
use crate::flow::retry::RECONNECT_MAX;

/// Of publishing: a few failures are a blip; longer, and results whose broker is back would wait for it.
const RESULTS: Policy = Policy {
    failures: 5,
    delay: Duration::from_millis(500),
    max_delay: RECONNECT_MAX,
};

/// Of the disk: one that is full or fails once is so for the next result too.
const OUTBOX: Policy = Policy {
    failures: 1,
    delay: Duration::from_secs(1),
    max_delay: Duration::from_secs(30),
};

/// What all pools of a worker share. Clones are handles on the same.
#[derive(Clone)]
pub struct Circuits {
    /// Around publishing: while it is open, one message tries for all.
    pub(super) results: Arc<Breaker>,
    /// Around the start of commands.
    pub(super) programs: Programs,
}

impl Circuits {
    /// All closed. Where `elsewhere` is nobody, a job for a program that is not here has its result at once.
    #[must_use]
    pub fn new(observer: &Arc<dyn Observer>, elsewhere: Elsewhere) -> Self {
        let telling = observer.clone();
        let results = Breaker::new(RESULTS, move |from, to| {
            tell(&*telling, Circuit::Results, to);
            log_results(from, to);
        });
        Self {
            results: Arc::new(results),
            programs: Programs::new(observer.clone(), elsewhere),
        }
    }
}

/// The breaker of the outbox's disk. What went wrong is said by who uses it.
pub(super) fn of_outbox(observer: Arc<dyn Observer>) -> Breaker {
    Breaker::new(OUTBOX, move |_, to| {
        tell(&*observer, Circuit::Outbox, to);
        if to == Position::Closed {
            tracing::info!("results are kept in the outbox on disk again");
        }
    })
}

fn tell(observer: &dyn Observer, circuit: Circuit, position: Position) {
    observer.on(&Event::CircuitChanged { circuit, position });
}

fn log_results(from: Position, to: Position) {
    match (from, to) {
        (Position::Closed, Position::Open) => tracing::warn!(
            "failed to publish {} times in a row; messages wait, and one tries for all until the broker takes it",
            RESULTS.failures
        ),
        (_, Position::Closed) => tracing::info!("the broker takes messages again"),
        _ => {}
    }
}
