//! Puts resource limits on a process that was just started.
//!
//! They are set from outside (prlimit(2)) as soon as the process exists, so its first few
//! microseconds run without them; a process that starts the command for the worker can set them
//! before the program is loaded. Limits are inherited by whatever the process starts after that,
//! and count each process alone, except `processes`, which counts all of the user's. A limit above
//! what the worker itself may have is lowered to that.

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::message::Limits;

/// Seconds between SIGXCPU, which a command can answer, and SIGKILL, which it cannot.
const CPU_TIME_GRACE: u64 = 1;

/// A limit that could not be put on a process.
#[derive(Debug, thiserror::Error)]
#[error("set limit {name} to {value}: {source}")]
pub(super) struct LimitError {
    name: &'static str,
    value: u64,
    source: Errno,
}

/// Puts every limit that is given on the process.
///
/// # Errors
///
/// When the process may not be limited by this one; limits before the one at fault are set.
pub(super) fn apply(limits: &Limits, pid: Pid) -> Result<(), LimitError> {
    let Limits {
        memory,
        processes,
        open_files,
        file_size,
        cpu_time,
    } = limits;
    // setrlimit(2) counts whole seconds; rounding down could make the limit none at all.
    let seconds = cpu_time.map(|span| span.get().as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
    let wanted = [
        ("memory", Resource::As, memory.map(|size| size.get()), 0),
        ("processes", Resource::Nproc, processes.map(|count| count.get()), 0),
        ("open_files", Resource::Nofile, open_files.map(|count| count.get()), 0),
        ("file_size", Resource::Fsize, file_size.map(|size| size.get()), 0),
        ("cpu_time", Resource::Cpu, seconds, CPU_TIME_GRACE),
    ];
    for (name, resource, value, slack) in wanted {
        let Some(value) = value else { continue };
        let new = rlimit(value, slack, getrlimit(resource).maximum);
        match prlimit(Some(pid), resource, new) {
            // ESRCH: it has ended already, and needs no limit.
            Ok(_) | Err(Errno::SRCH) => {}
            Err(source) => return Err(LimitError { name, value, source }),
        }
    }
    Ok(())
}

/// The soft limit `value` and a hard limit `slack` above it, neither above `ceiling`.
fn rlimit(value: u64, slack: u64, ceiling: Option<u64>) -> Rlimit {
    let ceiling = ceiling.unwrap_or(u64::MAX);
    Rlimit {
        current: Some(value.min(ceiling)),
        maximum: Some(value.saturating_add(slack).min(ceiling)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_exceeds_the_ceiling() {
        let pair = |limit: Rlimit| (limit.current, limit.maximum);
        assert_eq!(pair(rlimit(10, 1, None)), (Some(10), Some(11)));
        assert_eq!(pair(rlimit(10, 1, Some(10))), (Some(10), Some(10)));
        assert_eq!(pair(rlimit(10, 0, Some(7))), (Some(7), Some(7)));
        assert_eq!(pair(rlimit(u64::MAX, 1, None)), (Some(u64::MAX), Some(u64::MAX)));
    }
}
