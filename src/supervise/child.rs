//! A child of a supervisor: what it is, and where it is in its life.
//!
//! ```text
//!  Due ──► Running ──┬─► Stopped ──► Due   (after a fault, or all are restarted)
//!                    └─► Finished          (for good)
//! ```
//!
//! It decides nothing over time: when to start and to stop is the supervisor's.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::{Outcome, Shutdown, TaskError, TaskGroup, TaskId};
use crate::flow::Backoff;

/// The first wait before a restart: a fault that passes by itself is over by then, and nobody
/// notices.
const RESTART_INITIAL: Duration = Duration::from_millis(100);

/// The longest wait before a restart.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// Says when an end is a fault, and whether a fault is answered with a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Must always run: every end unasked is a fault, and it is restarted.
    Permanent,
    /// Has an end: `Ok` is fine, and an error or a panic restarts it.
    Transient,
    /// Runs once: an error or a panic is reported, and it is never restarted.
    Temporary,
}

/// Describes a task that a supervisor keeps: its name, when to restart it, and how to start it.
pub struct Child {
    name: &'static str,
    restart: Restart,
    start: Box<dyn FnMut(Shutdown) -> BoxFuture<'static, Result<(), TaskError>> + Send>,
}

impl Child {
    /// Makes a child. `start` is called for the first start and for every restart, each time with
    /// fresh signals, which the future must obey. A panic in `start` counts as one in the future.
    pub fn new<F, R>(name: &'static str, restart: Restart, mut start: F) -> Self
    where
        F: FnMut(Shutdown) -> R + Send + 'static,
        R: Future<Output = Result<(), TaskError>> + Send + 'static,
    {
        let start = Box::new(move |shutdown| Box::pin(start(shutdown)) as BoxFuture<'static, _>);
        Self { name, restart, start }
    }

    /// Makes the future. When the closure panics, the future panics instead, in its own task.
    fn begin(&mut self, shutdown: Shutdown) -> BoxFuture<'static, Result<(), TaskError>> {
        let begun = catch_unwind(AssertUnwindSafe(|| (self.start)(shutdown)));
        begun.unwrap_or_else(|payload| Box::pin(async { resume_unwind(payload) }))
    }
}

/// One child of a running supervisor, and where it is in its life.
pub(super) struct Slot {
    child: Child,
    state: State,
    backoff: Backoff,
}

enum State {
    /// To be started at this instant.
    Due(Instant),
    Running(Run),
    /// Ended by a fault or because it was told to; may be started again.
    Stopped,
    /// Ended for good.
    Finished,
}

/// One run of a child, from a start to the next end.
struct Run {
    id: TaskId,
    since: Instant,
    shutdown: Shutdown,
}

/// What the end of a child means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It ended as it was meant to.
    Meant,
    /// A fault that nothing is done about.
    Reported,
    /// A fault that a restart may cure, after a run of this length.
    Restart { ran: Duration },
}

impl Slot {
    /// Makes a slot whose child is to be started now.
    pub(super) fn new(child: Child) -> Self {
        let state = State::Due(Instant::now());
        let backoff = Backoff::new(RESTART_INITIAL, RESTART_MAX);
        Self { child, state, backoff }
    }

    pub(super) fn name(&self) -> &'static str {
        self.child.name
    }

    pub(super) fn is_running(&self) -> bool {
        self.run().is_some()
    }

    pub(super) fn runs(&self, id: TaskId) -> bool {
        self.run().is_some_and(|run| run.id == id)
    }

    /// Gives the instant at which the child is to be started, if it is.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(due) => Some(due),
            State::Running(_) | State::Stopped | State::Finished => None,
        }
    }

    /// Starts the child in `group`, with fresh signals.
    pub(super) fn start(&mut self, group: &mut TaskGroup) {
        let shutdown = Shutdown::new();
        let task = self.child.begin(shutdown.clone());
        let id = group.spawn(self.child.name, String::new(), task);
        let since = Instant::now();
        self.state = State::Running(Run { id, since, shutdown });
    }

    /// Tells the child to drain, if it runs.
    pub(super) fn drain(&self) {
        if let Some(run) = self.run() {
            run.shutdown.drain();
        }
    }

    /// Tells the child to abort, if it runs.
    pub(super) fn abort(&self) {
        if let Some(run) = self.run() {
            run.shutdown.abort();
        }
    }

    /// Enters the end of the child and says what it means. `owner` has the signals of the
    /// supervisor: once they are given, every child is meant to end.
    pub(super) fn end(&mut self, outcome: Outcome, owner: &Shutdown) -> Verdict {
        let asked = owner.is_draining() || self.run().is_some_and(|run| run.shutdown.is_draining());
        let ran = self.run().map_or(Duration::ZERO, |run| run.since.elapsed());
        let restart = self.child.restart;
        let meant = outcome == Outcome::Completed && (asked || restart != Restart::Permanent);
        self.state = match restart {
            Restart::Temporary => State::Finished,
            Restart::Transient if meant && !asked => State::Finished,
            Restart::Transient | Restart::Permanent => State::Stopped,
        };
        match restart {
            _ if meant => Verdict::Meant,
            Restart::Temporary => Verdict::Reported,
            Restart::Permanent | Restart::Transient => Verdict::Restart { ran },
        }
    }

    /// Gives the wait before the next restart. A run as long as `forget` has nothing to do with the
    /// faults before it, and the waits begin again at the first.
    pub(super) fn restart_delay(&mut self, ran: Duration, forget: Duration) -> Duration {
        if ran >= forget {
            self.backoff.reset();
        }
        self.backoff.next_delay()
    }

    /// Sets a child that was stopped, but has not ended for good, to be started again at `due`.
    pub(super) fn restart_at(&mut self, due: Instant) {
        if matches!(self.state, State::Stopped) {
            self.state = State::Due(due);
        }
    }

    fn run(&self) -> Option<&Run> {
        match &self.state {
            State::Running(run) => Some(run),
            State::Due(_) | State::Stopped | State::Finished => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_delays_grow_and_a_long_run_resets_them() {
        let child = Child::new("a", Restart::Permanent, |_| async { Ok(()) });
        let mut slot = Slot::new(child);
        let mut delay = |ran: Duration| slot.restart_delay(ran, LONG);
        let short = LONG - Duration::from_millis(1);
        let grown = [(); 10].map(|()| delay(short))[9];
        assert!(grown > RESTART_MAX / 4 && grown <= RESTART_MAX, "{grown:?}");
        let reset = delay(LONG);
        assert!(
            reset >= RESTART_INITIAL / 2 && reset <= RESTART_INITIAL * 3 / 2,
            "{reset:?}"
        );
    }
}
