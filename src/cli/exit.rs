//! Exit codes: part of the contract with scripts.

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use rustix::process::Signal;

use crate::message::{FailureKind, JobResult, Status};

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; a worker drained and gave no running job back.
    Done,
    /// A bug or an unexpected failure; a worker cut running jobs, or its supervision gave up.
    Failure,
    /// Wrong usage.
    Usage,
    /// Some job did not succeed.
    JobsFailed,
    /// The broker could not be reached.
    Unavailable,
    /// Gave up waiting.
    TimedOut,
    /// Bad configuration.
    Config,
    /// As the job of `submit --wait` ended.
    Mirror(u8),
    /// By a signal, as a program ends that does not catch it: asked to while it waited, or because nobody reads what it
    /// prints (SIGPIPE, 141 to a shell, which is how `head` ends most programs).
    Signal(Signal),
}

impl Exit {
    /// The number, as `sysexits.h` has it where it has one.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::JobsFailed => 3,
            Self::Unavailable => 69,
            Self::TimedOut => 75,
            Self::Config => 78,
            Self::Mirror(code) => code,
            Self::Signal(signal) => of_signal(signal.as_raw()),
        }
    }

    /// Ends as a job did, in the way of `docker run` and `timeout`.
    #[must_use]
    pub fn mirror(result: &JobResult) -> Self {
        Self::Mirror(match result.status {
            Status::Succeeded => 0,
            Status::Failed => result.exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            Status::Signaled => signaled(result),
            Status::TimedOut => 124,
            Status::OutOfMemory => 137,
            Status::NotStarted => not_started(result),
            Status::Cancelled | Status::Expired | Status::Rejected | Status::Lost => 125,
        })
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

fn signaled(result: &JobResult) -> u8 {
    of_signal(result.signal.map_or(0, |signal| signal.number()))
}

/// What a shell makes of a signal.
fn of_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(128)
}

fn not_started(result: &JobResult) -> u8 {
    match result.error.as_ref().map(|error| error.kind) {
        Some(FailureKind::ProgramMissing) => 127,
        _ => 126,
    }
}

/// What is said on stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// One line or more, naming the file, queue or field and what to do. Empty if there is nothing to say.
    pub message: String,
}

impl Failure {
    /// A failure with its message.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// A failure of reading or writing here. Whoever reads what we print may go when he has seen enough: no word of that.
    pub fn io(what: &str, error: &io::Error) -> Self {
        if error.kind() == ErrorKind::BrokenPipe {
            return Self::new(Exit::Signal(Signal::PIPE), "");
        }
        Self::new(Exit::Failure, format!("failed to {what}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_who_has_seen_enough_is_no_failure_to_tell_of() {
        let gone = Failure::io("write to stdout", &ErrorKind::BrokenPipe.into());
        assert_eq!((gone.exit.code(), gone.message.as_str()), (141, ""));
        let full = Failure::io("write to stdout", &ErrorKind::StorageFull.into());
        assert_eq!((full.exit, full.message.is_empty()), (Exit::Failure, false));
    }
}
