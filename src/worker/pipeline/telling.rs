//! What a pipeline tells of a job while it goes on: that something began and, however its task ends, that it ended.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::super::admit::Ticket;
use super::super::event::{Event, Observer, RunAccount, StreamAccount};
use super::Pipeline;
use crate::executor::{End, Outcome};
use crate::message::{JobId, Output};

/// From the moment a job could have started to the moment it does.
pub(super) fn waited(ticket: &Ticket, ready_at: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let ready = ticket.queued_at?.max(ready_at.unwrap_or(Timestamp::MIN));
    Some(Duration::try_from(now.duration_since(ready)).unwrap_or_default())
}

/// How long the start of a command took that did start; a helper that died took its knowledge along.
fn spawn_time(outcome: &Outcome) -> Option<Duration> {
    let is_known = outcome.started_at.is_some() && outcome.end != End::HelperDied;
    is_known.then_some(outcome.spawn_time)
}

/// What a run used and wrote.
pub(super) fn account(outcome: &Outcome) -> RunAccount {
    let stream = |output: &Output| StreamAccount {
        bytes: output.bytes,
        dropped: output.truncated_bytes,
    };
    RunAccount {
        spawn: spawn_time(outcome),
        kill: outcome.kill_time,
        duration: outcome.duration,
        stdout: stream(&outcome.stdout),
        stderr: stream(&outcome.stderr),
    }
}

/// Tells one event now, and its counterpart when dropped, however the task ends.
pub(super) struct Between<'a> {
    observer: &'a dyn Observer,
    pool: &'a Arc<str>,
    end: fn(Arc<str>) -> Event,
}

impl<'a> Between<'a> {
    pub(super) fn new<T>(pipeline: &'a Pipeline<T>, begin: fn(Arc<str>) -> Event, end: fn(Arc<str>) -> Event) -> Self {
        let (observer, pool) = (&*pipeline.observer, &pipeline.pool.name);
        observer.on(&begin(pool.clone()));
        Self { observer, pool, end }
    }
}

impl Drop for Between<'_> {
    fn drop(&mut self) {
        self.observer.on(&(self.end)(self.pool.clone()));
    }
}

/// Tells that a job started, and, however its task ends, that it ended.
pub(super) struct Running<'a> {
    observer: &'a dyn Observer,
    pool: &'a Arc<str>,
    job_id: &'a JobId,
    pub(super) account: RunAccount,
}

impl<'a> Running<'a> {
    pub(super) fn start<T>(pipeline: &'a Pipeline<T>, ticket: &'a Ticket, waited: Option<Duration>) -> Self {
        let (observer, pool) = (&*pipeline.observer, &pipeline.pool.name);
        observer.on(&Event::JobStarted {
            pool: pool.clone(),
            job_id: ticket.job_id.clone(),
            attempt: ticket.attempt.number,
            waited,
            labels: ticket.labels.clone(),
        });
        Self {
            observer,
            pool,
            job_id: &ticket.job_id,
            account: RunAccount::default(),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.observer.on(&Event::JobEnded {
            pool: self.pool.clone(),
            job_id: self.job_id.clone(),
            run: self.account,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::NotStarted;
    use crate::message::{FailureKind, LimitsApplied};

    fn outcome(end: End, started_at: Option<Timestamp>) -> Outcome {
        Outcome {
            end,
            stdout: Output::from_kept(b"ab", b"cd", 10),
            stderr: Output::from_kept(b"e", b"", 1),
            started_at,
            finished_at: Timestamp::UNIX_EPOCH,
            duration: Duration::from_secs(3),
            spawn_time: Duration::from_millis(1),
            run_time: Duration::from_secs(2),
            kill_time: Some(Duration::from_secs(1)),
            ended_by: None,
            usage: None,
            limits_applied: LimitsApplied::default(),
        }
    }

    #[test]
    fn the_account_of_a_run_is_that_of_its_outcome() {
        let account = account(&outcome(End::Exited(0), Some(Timestamp::UNIX_EPOCH)));
        let expected = RunAccount {
            spawn: Some(Duration::from_millis(1)),
            kill: Some(Duration::from_secs(1)),
            duration: Duration::from_secs(3),
            stdout: StreamAccount { bytes: 10, dropped: 6 },
            stderr: StreamAccount { bytes: 1, dropped: 0 },
        };
        assert_eq!(account, expected);
    }

    #[test]
    fn only_a_command_that_is_known_to_have_run_has_a_spawn_time() {
        let spawn = |end, started_at| account(&outcome(end, started_at)).spawn;
        assert_eq!(spawn(End::Cancelled, None), None);
        let refused = NotStarted::new(FailureKind::ProgramMissing, "");
        assert_eq!(spawn(End::NotStarted(refused), None), None);
        assert_eq!(spawn(End::HelperDied, Some(Timestamp::UNIX_EPOCH)), None);
        assert!(spawn(End::Cancelled, Some(Timestamp::UNIX_EPOCH)).is_some());
    }
}
