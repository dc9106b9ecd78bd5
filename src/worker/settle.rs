//! What the result of an attempt is and what comes after it, decided from its outcome alone.
//!
//! Pure: nothing is sent here.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::admit::{Refusal, Ticket};
use super::orders::Cancellation;
use crate::config::Retry;
use crate::executor::{End, Outcome};
use crate::message::{
    EndedBy, Failure, FailureKind, JobResult, LimitsApplied, Output, Phases, SignalName, Status, WorkerInfo,
};

/// What a job without a choice of its own is retried after: failures that may pass.
const RETRIED: [Status; 4] = [Status::Failed, Status::Signaled, Status::TimedOut, Status::OutOfMemory];

/// What is known of an end that nobody was left to tell of.
const HELPER_DIED: &str = "the helper process that held the command was killed, by somebody on the machine or for lack \
                           of memory, and the command with it";

/// An attempt's end.
#[derive(Debug)]
pub(super) struct Conclusion {
    pub(super) result: Arc<JobResult>,
    pub(super) next: Next,
}

/// What comes after a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Done,
    /// Another attempt, after this wait.
    Retry(Duration),
    /// The job goes to the dead letters; the reason is its status.
    DeadLetter {
        /// The path of the field at fault, if it is one's.
        field: Option<String>,
    },
}

impl Conclusion {
    /// Says who has cancelled the job, where that is how it ended.
    pub(super) fn told(mut self, cancellation: Option<&Cancellation>) -> Self {
        if let (Status::Cancelled, Some(cancellation)) = (self.result.status, cancellation) {
            Arc::make_mut(&mut self.result).error = failure(FailureKind::Cancelled, cancellation.to_string());
        }
        self
    }
}

/// Concludes a job that was given to the executor.
pub(super) fn conclude(ticket: &Ticket, retry: &Retry, outcome: Outcome, worker: WorkerInfo) -> Conclusion {
    let phases = phases(ticket, &outcome);
    let (status, exit_code, signal, error) = read_end(outcome.end, outcome.ended_by);
    let next = after_run(ticket, retry, status, exit_code);
    let result = JobResult {
        exit_code,
        signal,
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        started_at: outcome.started_at,
        finished_at: outcome.finished_at,
        duration_ms: millis(outcome.duration),
        ended_by: outcome.ended_by,
        phases,
        limits_applied: outcome.limits_applied,
        usage: outcome.usage,
        error,
        is_final: !matches!(next, Next::Retry(_)),
        ..bare(ticket, status, outcome.finished_at, worker)
    };
    let result = Arc::new(result);
    Conclusion { result, next }
}

/// Concludes a job that was never started.
pub(super) fn refuse(
    ticket: &Ticket,
    status: Status,
    refusal: Refusal,
    now: Timestamp,
    worker: WorkerInfo,
) -> Conclusion {
    let next = match status {
        Status::Rejected | Status::Lost => Next::DeadLetter { field: refusal.field },
        _ => Next::Done,
    };
    let error = Some(Failure {
        kind: refusal.kind,
        message: refusal.message,
    });
    let result = JobResult {
        error,
        ..bare(ticket, status, now, worker)
    };
    let result = Arc::new(result);
    Conclusion { result, next }
}

/// A final result that says nothing of a run.
fn bare(ticket: &Ticket, status: Status, finished_at: Timestamp, worker: WorkerInfo) -> JobResult {
    JobResult {
        job_id: ticket.job_id.clone(),
        attempt: ticket.attempt.number,
        status,
        is_final: true,
        exit_code: None,
        signal: None,
        stdout: Output::empty(),
        stderr: Output::empty(),
        queued_at: ticket.queued_at,
        started_at: None,
        finished_at,
        duration_ms: 0,
        ended_by: None,
        phases: None,
        limits_applied: LimitsApplied::default(),
        usage: None,
        worker,
        error: None,
        labels: ticket.labels.clone(),
    }
}

/// The phases of a run; `None` of one that never began.
fn phases(ticket: &Ticket, outcome: &Outcome) -> Option<Phases> {
    let started_at = outcome.started_at?;
    // A producer whose clock is ahead of ours did not queue it in the future.
    let queued = |queued_at| Duration::try_from(started_at.duration_since(queued_at)).unwrap_or_default();
    Some(Phases {
        queued: ticket.queued_at.map(queued),
        spawn: outcome.spawn_time,
        run: outcome.run_time,
        kill: outcome.kill_time,
    })
}

type Ended = (Status, Option<i32>, Option<SignalName>, Option<Failure>);

fn read_end(end: End, ended_by: Option<EndedBy>) -> Ended {
    match end {
        End::Exited(0) => (Status::Succeeded, Some(0), None, None),
        End::Exited(code) => (Status::Failed, Some(code), None, None),
        End::Signaled(signal) => {
            let error = failure(
                FailureKind::Signaled,
                format!("ended by {signal}, which Synthex did not send"),
            );
            (Status::Signaled, None, Some(signal), error)
        }
        End::TimedOut { exit_code, signal } => {
            let message = match (ended_by, signal) {
                (Some(EndedBy::WarnSignal), Some(signal)) => {
                    format!(
                        "ended by {signal}, which warned it of its timeout: catch it, or choose another warn_signal"
                    )
                }
                _ => "ran longer than its timeout and was ended".to_owned(),
            };
            let error = failure(FailureKind::TimedOut, message);
            (Status::TimedOut, exit_code, signal, error)
        }
        End::OutOfMemory => {
            let error = failure(
                FailureKind::OutOfMemory,
                "killed by the kernel at its memory limit (limits.memory)".to_owned(),
            );
            (Status::OutOfMemory, None, Some(SignalName::KILL), error)
        }
        End::HelperDied => {
            let error = failure(FailureKind::Signaled, HELPER_DIED.to_owned());
            (Status::Signaled, None, Some(SignalName::KILL), error)
        }
        End::Cancelled => {
            let error = failure(FailureKind::Cancelled, "ended on request".to_owned());
            (Status::Cancelled, None, None, error)
        }
        End::NotStarted(why) => (Status::NotStarted, None, None, failure(why.kind, why.message)),
    }
}

fn failure(kind: FailureKind, message: String) -> Option<Failure> {
    Some(Failure { kind, message })
}

fn after_run(ticket: &Ticket, retry: &Retry, status: Status, exit_code: Option<i32>) -> Next {
    let is_hopeless = |code| retry.dead_letter_exit_codes.contains(&code);
    if status == Status::Failed && exit_code.is_some_and(is_hopeless) {
        return Next::DeadLetter { field: None };
    }
    if !is_retried(retry, status, exit_code) {
        return Next::Done;
    }
    let max_attempts = retry.max_attempts.get();
    let runs = ticket.attempt.runs_ended.saturating_add(1);
    if runs < max_attempts {
        Next::Retry(retry.schedule.delay(runs))
    } else if max_attempts > 1 {
        Next::DeadLetter { field: None }
    } else {
        Next::Done // it asked for no retry: a failure is a result, not a dead letter
    }
}

fn is_retried(retry: &Retry, status: Status, exit_code: Option<i32>) -> bool {
    if matches!(status, Status::Succeeded | Status::Cancelled) {
        return false; // an end, whatever was chosen
    }
    let by_status = |statuses: &Vec<Status>| statuses.contains(&status);
    let by_code = |codes: &Vec<i32>| status == Status::Failed && exit_code.is_some_and(|code| codes.contains(&code));
    match (&retry.statuses, &retry.exit_codes) {
        (None, None) => RETRIED.contains(&status),
        (statuses, codes) => statuses.as_ref().is_some_and(by_status) || codes.as_ref().is_some_and(by_code),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
