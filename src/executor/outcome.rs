//! What came of a run: how it ended, what it left, and how long each part of it took.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::limits::Bounds;
use super::protocol::{Cause, Exit, Report, Used};
use super::streams::Streams;
use super::{Clock, Run};
use crate::message::{EndedBy, FailureKind, LimitsApplied, Output, SignalName, Usage};

/// How a run ended, and what it left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// What was kept of the command's stdout.
    pub stdout: Output,
    /// What was kept of the command's stderr.
    pub stderr: Output,
    /// Wall clock time just before the start; `None` when the command was not started.
    pub started_at: Option<Timestamp>,
    /// Wall clock time at which the command's own process ended.
    pub finished_at: Timestamp,
    /// Monotonic time from the running program to the end of the command's own process; zero when the command was not
    /// started.
    pub duration: Duration,
    /// How long starting took, or failing to.
    pub spawn_time: Duration,
    /// From the running program to the end of the command's own process, or to the first signal sent to make one.
    pub run_time: Duration,
    /// From the first signal sent to make an end until the last process was gone; `None` when nothing had to be ended.
    pub kill_time: Option<Duration>,
    /// The step that ended it; `None` when it was not started.
    pub ended_by: Option<EndedBy>,
    /// What the command and its descendants used.
    pub usage: Option<Usage>,
    /// Which limits were enforced by what.
    pub limits_applied: LimitsApplied,
}

/// Why a run was over.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The command exited with this code.
    Exited(i32),
    /// The command was ended by a signal that was not sent from here.
    Signaled(SignalName),
    /// The timeout was reached, whatever the command made of its grace, or its warning ended it; both are `None` if
    /// SIGKILL did not end it.
    TimedOut {
        /// The code, if it exited in its grace.
        exit_code: Option<i32>,
        /// The signal, if one ended it.
        signal: Option<SignalName>,
    },
    /// The kernel killed it at its memory limit.
    OutOfMemory,
    /// The helper process that held it was killed, and the command was with it.
    HelperDied,
    /// It was stopped, before the start or during the run, whatever the command made of its grace.
    Cancelled,
    /// The command could not be started.
    NotStarted(NotStarted),
}

/// Why a command could not be started.
#[derive(Clone, Debug, PartialEq)]
pub struct NotStarted {
    /// The class of the reason.
    pub kind: FailureKind,
    /// What was wrong, with the name of what is at fault, and what helps.
    pub message: String,
    /// Whose fault it is.
    pub fault: Fault,
}

/// Whose fault it is that a command could not be started, as far as can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The command's own: it could be started nowhere.
    Command,
    /// Something that it names is not here; it may be elsewhere.
    Missing,
    /// This machine's: it is short of something, or broken.
    Machine,
}

impl NotStarted {
    /// Of a kind, which tells whose fault it usually is.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let fault = match kind {
            FailureKind::ProgramMissing | FailureKind::NotExecutable | FailureKind::CwdMissing => Fault::Missing,
            _ => Fault::Machine,
        };
        Self {
            kind,
            message: message.into(),
            fault,
        }
    }

    /// The same, where it is another's fault than usual.
    pub(super) fn by(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }
}

impl Outcome {
    pub(super) fn without_start(end: End, spawn_time: Duration) -> Self {
        Self {
            end,
            stdout: Output::empty(),
            stderr: Output::empty(),
            started_at: None,
            finished_at: Timestamp::now(),
            duration: Duration::ZERO,
            spawn_time,
            run_time: Duration::ZERO,
            kill_time: None,
            ended_by: None,
            usage: None,
            limits_applied: LimitsApplied::default(),
        }
    }

    /// Of a command that was given to its keeper so long after the clock began.
    pub(super) fn of_report(report: &Report, streams: Streams, run: &Run, clock: Clock, waited: Duration) -> Self {
        let (stdout, stderr) = streams.into_outputs();
        let spawn_time = waited.saturating_add(report.spawn);
        let bounds = Bounds::from(&run.limits);
        Self {
            end: end(report, run),
            stdout,
            stderr,
            started_at: Some(clock.wall),
            finished_at: clock.wall_after(spawn_time.saturating_add(report.lasted)),
            duration: report.lasted,
            spawn_time,
            run_time: report.run,
            kill_time: report.kill,
            ended_by: Some(report.ended_by),
            usage: Some(usage(&report.used)),
            limits_applied: bounds.applied(report.memory_in_cgroup, report.processes_in_cgroup),
        }
    }

    /// Of a command whose keeper was killed, so that the command was too.
    pub(super) fn of_dead_helper(streams: Streams, clock: Clock, stop_asked: bool) -> Self {
        let (stdout, stderr) = streams.into_outputs();
        let end = if stop_asked { End::Cancelled } else { End::HelperDied };
        Self {
            stdout,
            stderr,
            started_at: Some(clock.wall),
            duration: clock.elapsed(),
            run_time: clock.elapsed(),
            ended_by: Some(EndedBy::Kill),
            ..Self::without_start(end, Duration::ZERO)
        }
    }
}

impl Clock {
    /// The wall clock time so much later.
    fn wall_after(self, duration: Duration) -> Timestamp {
        let later = SignedDuration::try_from(duration).ok();
        let at = later.and_then(|later| self.wall.checked_add(later).ok());
        at.unwrap_or_else(Timestamp::now)
    }
}

/// The end of a run, by what caused it and how its own process exited.
fn end(report: &Report, run: &Run) -> End {
    let (exit_code, number) = match report.exit {
        Some(Exit::Code(code)) => (Some(code), None),
        Some(Exit::Signal(number)) => (None, Some(number)),
        None => (None, None),
    };
    let signal = number.and_then(SignalName::from_number);
    match (report.cause, exit_code, signal) {
        (Cause::Stop, ..) => End::Cancelled,
        (Cause::Timeout, exit_code, signal) => End::TimedOut { exit_code, signal },
        (Cause::Exit, ..) if report.out_of_memory => End::OutOfMemory,
        (Cause::Exit, Some(code), _) => End::Exited(code),
        (Cause::Exit, None, Some(signal)) if is_warning(report, run, signal) => End::TimedOut {
            exit_code: None,
            signal: Some(signal),
        },
        (Cause::Exit, None, Some(signal)) => End::Signaled(signal),
        // A signal without a name is told as shells tell it.
        (Cause::Exit, None, None) => End::Exited(128 + number.unwrap_or_default()),
    }
}

/// Whether a command was ended by the signal that was to warn it.
fn is_warning(report: &Report, run: &Run, signal: SignalName) -> bool {
    let warning = run.warning.map(|warning| warning.signal);
    report.ended_by == EndedBy::WarnSignal && warning == Some(signal)
}

fn usage(used: &Used) -> Usage {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Usage {
        user_ms: millis(used.user),
        system_ms: millis(used.system),
        max_rss_bytes: used.max_rss,
    }
}
