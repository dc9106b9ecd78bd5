//! Runs one command and says how it ended.
//!
//! [`execute`] takes a [`Run`], which is everything the command gets (nothing is inherited from the
//! worker but its user, its limits and its umask), and gives an [`Outcome`]. A command that fails,
//! or cannot be started, is an outcome too: there is no error. The rooms, in the order a run passes
//! through them:
//!
//! - `program` finds the program and checks the directory, and words what the kernel refuses;
//! - `spawn` starts the process. It is the seam: whoever starts processes otherwise replaces this
//!   file alone;
//! - `limits` puts the resource limits on it;
//! - `streams` feeds stdin and drains stdout and stderr, `output` holds the part of them that is
//!   kept;
//! - `ending` waits for the end, brings it about at the timeout, and collects what is left.
//!
//! What holds whatever the command does:
//!
//! - when the future of `execute` has ended or was dropped, the command's process group was sent
//!   SIGKILL while its number was still reserved, and its leader is dead and reaped (one that hangs
//!   inside the kernel is reaped when it can be);
//! - output is drained to the end of the run, whatever is kept of it: at most `max_output` bytes a
//!   stream;
//! - no wait after the deadline plus `kill_grace` is without a bound.
//!
//! What it does not do: a process that leaves the group (`setsid`) is not found; it cannot hold the
//! result up, but it lives on. Limits are per process, not per tree. Nothing is retried, but a
//! start that found its program being written. Usage is not reported: for a child of the worker
//! itself, the kernel's peak memory starts at the worker's own size, and a number that is wrong is
//! worse than none.

mod ending;
mod limits;
mod output;
mod program;
mod spawn;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::message::{FailureKind, Limits, Output, SignalName, Usage};

/// Runs the command to its end, and kills what is left of its process group.
///
/// Cancelling `stop` sends SIGKILL to the group at once; a run that was not started yet never is.
///
/// # Cancel safety
///
/// Dropping the future kills the group and reaps its leader; the outcome is lost.
pub async fn execute(run: Run, stop: CancellationToken) -> Outcome {
    let started_at = Timestamp::now();
    let start = Instant::now();
    let spawned = tokio::select! {
        biased;
        () = stop.cancelled() => return Outcome::without_start(End::Cancelled, start.elapsed()),
        spawned = spawn::spawn(&run) => spawned,
    };
    let spawn_time = start.elapsed();
    let (child, pipes) = match spawned {
        Ok(started) => started,
        Err(reason) => return Outcome::without_start(End::NotStarted(reason), spawn_time),
    };
    let ended = ending::see_through(child, pipes, &run, &stop).await;
    Outcome {
        end: ended.end,
        stdout: ended.stdout,
        stderr: ended.stderr,
        started_at: Some(started_at),
        finished_at: ended.finished_at,
        duration: ended.finished.duration_since(start),
        usage: None,
        spawn_time,
        kill_time: ended.kill_time,
    }
}

/// A command and everything it is given.
#[derive(Clone)]
pub struct Run {
    /// Looked up in the `PATH` of `env`, or `/bin:/usr/bin` without one; with a slash in it,
    /// relative to `cwd`.
    pub program: OsString,
    /// What follows the program's name.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: BTreeMap<String, String>,
    /// An absolute path; `None` is the worker's own directory.
    pub cwd: Option<PathBuf>,
    /// Written to the command's stdin, which is then closed; empty is `/dev/null`.
    pub stdin: Bytes,
    /// Wall clock time from the start until `term_signal`.
    pub timeout: Duration,
    /// What the group is asked to end with at the timeout.
    pub term_signal: SignalName,
    /// Time from `term_signal` until SIGKILL.
    pub kill_grace: Duration,
    /// Put on the process right after its start, and inherited by what it starts; per process.
    pub limits: Limits,
    /// Bytes kept of each stream, half from its start and half from its end.
    pub max_output: u64,
}

/// Shows the program alone: arguments and environments hold secrets.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

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
    /// Wall clock time at which the command's own process was seen to have ended.
    pub finished_at: Timestamp,
    /// Monotonic time from `started_at` to `finished_at`; zero when the command was not started.
    pub duration: Duration,
    /// What the command used, where that can be told truly.
    pub usage: Option<Usage>,
    /// How long starting took, or failing to.
    pub spawn_time: Duration,
    /// Time from the first signal sent to make it end until its leader was dead; `None` when it
    /// ended by itself.
    pub kill_time: Option<Duration>,
}

impl Outcome {
    fn without_start(end: End, spawn_time: Duration) -> Self {
        Self {
            end,
            stdout: Output::empty(),
            stderr: Output::empty(),
            started_at: None,
            finished_at: Timestamp::now(),
            duration: Duration::ZERO,
            usage: None,
            spawn_time,
            kill_time: None,
        }
    }
}

/// Why a run was over.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The command exited with this code.
    Exited(i32),
    /// The command was ended by a signal that was not sent from here.
    Signaled(SignalName),
    /// The timeout was reached, whatever the command made of its grace; both are `None` if SIGKILL
    /// did not end it.
    TimedOut {
        /// The code, if it exited in its grace.
        exit_code: Option<i32>,
        /// The signal, if one ended it.
        signal: Option<SignalName>,
    },
    /// `stop` was cancelled, before the start or during the run.
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
}

impl NotStarted {
    fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
