//! Starts a command as a process group of its own, and is the only hold on it.
//!
//! This file is the seam: the rest of the module knows [`spawn`], [`Child`] and [`Pipes`] alone,
//! and a worker that has its children started by another process replaces nothing else.
//!
//! The process is started by `std`, whose fast path (posix_spawn, no copy of the worker's memory)
//! is kept: an absolute program, an environment, a directory, a group and three streams do not lose
//! it; `pre_exec` would. The end is seen on a pidfd, which does not reap: while the dead leader
//! stands, its number, and so the group's, cannot be given to anyone else, and a signal to the
//! group cannot hit a stranger.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::{NotStarted, Run, limits, program};
use crate::message::{FailureKind, SignalName};

/// A program that is open for writing cannot be started (ETXTBSY). The writer is most often a fork
/// of the one who just wrote it, and gone at its exec; so the start is tried again after 1, 2, 4, …
/// ms, about half a second in all.
const BUSY_FIRST_WAIT: Duration = Duration::from_millis(1);
const BUSY_LAST_WAIT: Duration = Duration::from_millis(256);

/// How long a thread may be blocked to reap a leader that was just killed: it takes far less than a
/// millisecond, unless the process is inside the kernel and cannot be ended.
const REAP_WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// Killed leaders that could not be reaped in time. Each later spawn tries again.
static STRAYS: Mutex<Vec<process::Child>> = Mutex::new(Vec::new());

/// The worker's ends of the command's pipes.
pub(super) struct Pipes {
    /// `None` when the command reads `/dev/null`.
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

/// A command's process, the leader of its group.
///
/// Dropped before [`reap`](Self::reap), it kills the group and reaps the leader.
pub(super) struct Child {
    leader: Leader,
    exit: AsyncFd<OwnedFd>,
}

/// Starts the command.
///
/// # Errors
///
/// When the command cannot be started as it was asked for; nothing of it runs then.
///
/// # Cancel safety
///
/// Cancel safe: it waits only while no process exists.
pub(super) async fn spawn(run: &Run) -> Result<(Child, Pipes), NotStarted> {
    reap_strays();
    program::check_cwd(run)?;
    let path = program::locate(run)?;
    let mut command = Command::new(&path);
    command
        .arg0(&run.program)
        .args(&run.args)
        .env_clear()
        .envs(&run.env)
        .process_group(0);
    if let Some(cwd) = &run.cwd {
        command.current_dir(cwd);
    }
    let stdin = if run.stdin.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());

    let mut leader = start(&mut command)
        .await
        .map_err(|error| program::explain(&error, run, &path))?;
    limits::apply(&run.limits, leader.pid())
        .map_err(|error| NotStarted::new(FailureKind::SpawnFailed, format!("failed to {error}")))?;
    connect(&mut leader)
        .map(|(exit, pipes)| (Child { leader, exit }, pipes))
        .map_err(|error| {
            NotStarted::new(
                FailureKind::SpawnFailed,
                format!("failed to watch the started process: {error}"),
            )
        })
}

impl Child {
    /// Waits until the leader has ended. It is not reaped.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; once ended, it returns at once.
    pub(super) async fn exited(&self) {
        // An error means that the runtime is shutting down, and then nobody polls any more.
        let _ = self.exit.readable().await;
    }

    /// Sends a signal to the whole group.
    pub(super) fn signal_group(&self, signal: SignalName) {
        if let Some(signal) = Signal::from_named_raw(signal.number()) {
            self.leader.signal_group(signal);
        }
    }

    /// Lets the group run on if it was stopped: a stopped process sees no signal but SIGKILL.
    pub(super) fn resume_group(&self) {
        self.leader.signal_group(Signal::CONT);
    }

    /// Sends SIGKILL to the whole group, and to the leader wherever it is.
    pub(super) fn kill(&self) {
        self.leader.kill();
    }

    /// Reaps the leader and gives the group's number back. `None` if it has not ended: it is then
    /// reaped later.
    pub(super) fn reap(mut self) -> Option<ExitStatus> {
        self.leader.try_reap()
    }
}

/// A started process that is killed and reaped, at the latest when this is dropped.
struct Leader {
    /// `None` once reaped, after which the number may be anybody's.
    process: Option<process::Child>,
    pid: Pid,
}

impl Leader {
    fn new(process: process::Child) -> Self {
        Self {
            pid: Pid::from_child(&process),
            process: Some(process),
        }
    }

    fn pid(&self) -> Pid {
        self.pid
    }

    fn signal_group(&self, signal: Signal) {
        if self.process.is_some() {
            // ESRCH would mean that the group is empty, which is what signals are sent for.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// A leader may have moved into another group of its session, so it gets a signal of its own.
    fn kill(&self) {
        self.signal_group(Signal::KILL);
        if self.process.is_some() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    fn try_reap(&mut self) -> Option<ExitStatus> {
        let status = self.process.as_mut()?.try_wait().ok().flatten()?;
        self.process = None;
        Some(status)
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if self.process.is_none() {
            return;
        }
        self.kill();
        if let Ok(pidfd) = pidfd_open(self.pid, PidfdFlags::empty()) {
            let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&REAP_WAIT));
        }
        if self.try_reap().is_none() {
            strays().extend(self.process.take());
        }
    }
}

/// Starts the process, waiting out a program that is being written.
async fn start(command: &mut Command) -> io::Result<Leader> {
    let mut wait = BUSY_FIRST_WAIT;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && wait <= BUSY_LAST_WAIT => {
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            started => return started.map(Leader::new),
        }
    }
}

/// Registers the process's end and its pipes with the runtime.
fn connect(leader: &mut Leader) -> io::Result<(AsyncFd<OwnedFd>, Pipes)> {
    let pidfd = pidfd_open(leader.pid, PidfdFlags::empty())?;
    let exit = watch(pidfd)?;
    let process = leader.process.as_mut().expect("a leader just started is not reaped");
    let stdin = process
        .stdin
        .take()
        .map(|end| pipe::Sender::from_owned_fd(end.into()))
        .transpose()?;
    let stdout = process.stdout.take().expect("stdout was asked for as a pipe");
    let stderr = process.stderr.take().expect("stderr was asked for as a pipe");
    let stdout = pipe::Receiver::from_owned_fd(stdout.into())?;
    let stderr = pipe::Receiver::from_owned_fd(stderr.into())?;
    Ok((exit, Pipes { stdin, stdout, stderr }))
}

/// Has the runtime tell when the descriptor is readable.
#[expect(
    deprecated,
    reason = "deprecated as unsound for types that may close or exchange the descriptor, which `OwnedFd` never does; \
              its successor is an unsafe function"
)]
fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

fn reap_strays() {
    strays().retain_mut(|process| matches!(process.try_wait(), Ok(None)));
}

fn strays() -> std::sync::MutexGuard<'static, Vec<process::Child>> {
    STRAYS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen at the parent: a reaped child has no entry, not even as a zombie.
    fn exists(pid: Pid) -> bool {
        std::fs::exists(format!("/proc/{}", pid.as_raw_nonzero())).unwrap()
    }

    #[test]
    fn a_leader_that_could_not_be_reaped_is_reaped_later() {
        let process = Command::new("/bin/sleep").arg("300").spawn().unwrap();
        let (pid, pidfd) = (
            Pid::from_child(&process),
            pidfd_open(Pid::from_child(&process), PidfdFlags::empty()),
        );
        strays().push(process);
        reap_strays();
        assert!(
            strays().iter().any(|stray| Pid::from_child(stray) == pid),
            "it has not ended yet"
        );

        kill_process(pid, Signal::KILL).unwrap();
        poll(&mut [PollFd::new(&pidfd.unwrap(), PollFlags::IN)], None).unwrap();
        reap_strays();
        assert!(!exists(pid));
    }
}
