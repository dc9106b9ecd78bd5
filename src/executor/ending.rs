//! Sees a started command to its end.
//!
//! A run ends in one of three ways, and goes this road from there:
//!
//! 1. The leader exits, the timeout is reached, or `stop` is cancelled. Output flows all the while.
//! 2. At the timeout only: `term_signal` and SIGCONT to the group, then up to `kill_grace` for the
//!    leader to exit and for the rest of the group to let go of the output (a shell dies at once,
//!    the server it started needs longer).
//! 3. After an exit only: up to [`DRAIN_GRACE`] for the output to end, as what the leader started
//!    may still be writing (`cmd > >(tee log)`).
//! 4. SIGKILL to the group, always: what a command leaves running is not left.
//! 5. The output that is still in the pipes, for at most [`DRAIN_GRACE`]: a process that left the
//!    group may hold them.
//! 6. The leader is reaped, and its number is free.
//!
//! A timed-out run stays timed out, whatever the command exits with in its grace.

use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::spawn::{Child, Pipes};
use super::streams::Streams;
use super::{End, Run};
use crate::message::{Output, SignalName};

/// How long output may go on after the leader's exit, and again after SIGKILL, before its pipes are
/// closed.
const DRAIN_GRACE: Duration = Duration::from_millis(100);

/// How long a leader may take to die of SIGKILL. One that sits in an uninterruptible call (a dead
/// network disk) takes longer; it is reaped when it can be, and the run is reported without its
/// exit.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What a run that was started came to.
pub(super) struct Ended {
    pub(super) end: End,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) finished_at: Timestamp,
    pub(super) finished: Instant,
    pub(super) kill_time: Option<Duration>,
}

/// Waits for the end of the command or brings it about, and leaves nothing of its group.
///
/// # Cancel safety
///
/// Dropping it kills the group and reaps the leader.
pub(super) async fn see_through(child: Child, pipes: Pipes, run: &Run, stop: &CancellationToken) -> Ended {
    let mut running = Running {
        child,
        streams: Streams::new(pipes, run.stdin.clone(), run.max_output),
    };
    let cause = running.wait(run.timeout, stop).await;
    let kill_start = (cause != Cause::Exit).then(Instant::now);
    if cause == Cause::Timeout {
        running.terminate(run.term_signal, run.kill_grace, stop).await;
    }
    if cause != Cause::Exit {
        running.kill().await;
    }
    let (finished_at, finished) = (Timestamp::now(), Instant::now());
    if cause == Cause::Exit {
        running.linger().await;
        running.kill().await;
    }
    let (status, stdout, stderr) = running.clear_up().await;
    let kill_time = kill_start.map(|start| finished - start);
    Ended {
        end: end(cause, status),
        stdout,
        stderr,
        finished_at,
        finished,
        kill_time,
    }
}

/// What ended the wait for a command.
#[derive(Clone, Copy, PartialEq)]
enum Cause {
    Exit,
    Timeout,
    Stop,
}

/// A command at work.
struct Running {
    child: Child,
    streams: Streams,
}

impl Running {
    /// Waits for the first cause to end the run. An exit that is there already comes before every
    /// other one.
    async fn wait(&mut self, limit: Duration, stop: &CancellationToken) -> Cause {
        tokio::select! {
            biased;
            () = self.child.exited() => Cause::Exit,
            () = stop.cancelled() => Cause::Stop,
            () = tokio::time::sleep(limit) => Cause::Timeout,
            never = self.streams.flow() => match never {},
        }
    }

    /// Asks the group to end and waits until it seems to have, the grace is over or `stop` is
    /// cancelled.
    async fn terminate(&mut self, signal: SignalName, grace: Duration, stop: &CancellationToken) {
        self.child.signal_group(signal);
        self.child.resume_group();
        let gone = async { tokio::join!(self.child.exited(), self.streams.ended()) };
        tokio::select! {
            biased;
            _ = gone => {}
            () = stop.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
    }

    /// Lets what the leader started finish its output.
    async fn linger(&mut self) {
        within_grace(self.streams.ended()).await;
    }

    /// Kills the group and waits for the leader to be dead.
    async fn kill(&mut self) {
        self.child.kill();
        let _ = timeout(KILL_WAIT, self.child.exited()).await;
    }

    /// Collects what is left of the output of a group that was killed, and reaps its leader.
    async fn clear_up(mut self) -> (Option<ExitStatus>, Output, Output) {
        within_grace(self.streams.ended()).await;
        let status = self.child.reap();
        let (stdout, stderr) = self.streams.into_outputs();
        (status, stdout, stderr)
    }
}

async fn within_grace(work: impl Future<Output = ()>) {
    // Over time, the pipes are closed with what was read of them, which is all that can be had.
    let _ = timeout(DRAIN_GRACE, work).await;
}

/// The end of a run, by what caused it and how the leader exited.
fn end(cause: Cause, status: Option<ExitStatus>) -> End {
    let code = status.and_then(|status| status.code());
    let number = status.and_then(|status| status.signal());
    let signal = number.and_then(SignalName::from_number);
    match (cause, code, signal) {
        (Cause::Stop, ..) => End::Cancelled,
        (Cause::Timeout, exit_code, signal) => End::TimedOut { exit_code, signal },
        (Cause::Exit, Some(code), _) => End::Exited(code),
        (Cause::Exit, None, Some(signal)) => End::Signaled(signal),
        // A signal without a name is told as shells tell it.
        (Cause::Exit, None, None) => End::Exited(128 + number.unwrap_or_default()),
    }
}
