//! Resource limits of a process, as numbers for setrlimit(2).
//!
//! They are set by the child itself before the program is loaded, so it never runs without them, and are inherited by
//! whatever it starts. They count each process alone, except `processes`, which counts all of the user's. A limit above
//! what the worker itself may have is lowered to that.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::message::{Enforcer, Limits, LimitsApplied};

/// Seconds between SIGXCPU, which a command can answer, and SIGKILL, which it cannot.
const CPU_TIME_GRACE: u64 = 1;

/// [`Limits`] as bare numbers: bytes, counts, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bounds {
    pub(super) memory: Option<u64>,
    pub(super) processes: Option<u64>,
    pub(super) open_files: Option<u64>,
    pub(super) file_size: Option<u64>,
    pub(super) cpu_seconds: Option<u64>,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            memory: limits.memory.map(|size| size.get()),
            processes: limits.processes.map(|count| count.get()),
            open_files: limits.open_files.map(|count| count.get()),
            file_size: limits.file_size.map(|size| size.get()),
            // setrlimit(2) counts whole seconds; rounding down could make the limit none at all.
            cpu_seconds: limits
                .cpu_time
                .map(|span| span.get().as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)),
        }
    }
}

impl Bounds {
    /// What is left of them where a cgroup holds the others.
    pub(super) fn without(self, in_cgroup: &LimitsApplied) -> Self {
        Self {
            memory: self.memory.filter(|_| in_cgroup.memory.is_none()),
            processes: self.processes.filter(|_| in_cgroup.processes.is_none()),
            ..self
        }
    }

    /// What to set on a process, leaving out what is `None`.
    pub(super) fn rlimits(&self) -> Vec<(Resource, Rlimit)> {
        let wanted = [
            (Resource::As, self.memory, 0),
            (Resource::Nproc, self.processes, 0),
            (Resource::Nofile, self.open_files, 0),
            (Resource::Fsize, self.file_size, 0),
            (Resource::Cpu, self.cpu_seconds, CPU_TIME_GRACE),
        ];
        let given = wanted.into_iter().filter_map(|(resource, value, slack)| {
            Some((resource, rlimit(value?, slack, getrlimit(resource).maximum)))
        });
        given.collect()
    }

    /// Who enforces what was asked for, given what a cgroup holds of it.
    pub(super) fn applied(&self, memory_in_cgroup: bool, processes_in_cgroup: bool) -> LimitsApplied {
        let by =
            |limit: Option<u64>, in_cgroup| limit.map(|_| if in_cgroup { Enforcer::Cgroup } else { Enforcer::Rlimit });
        LimitsApplied {
            memory: by(self.memory, memory_in_cgroup),
            processes: by(self.processes, processes_in_cgroup),
            open_files: by(self.open_files, false),
            file_size: by(self.file_size, false),
            cpu_time: by(self.cpu_seconds, false),
        }
    }
}

/// Has this process leave no core file, and what it starts neither: it would hold up the end of a command, and stay when
/// all else is gone. A command that wants one can raise that limit again.
///
/// # Errors
///
/// When the kernel refuses, which it never does to lower a limit.
pub(super) fn forbid_core_files() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    Ok(setrlimit(Resource::Core, none)?)
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

    #[test]
    fn what_was_asked_for_is_told_with_who_enforces_it() {
        let bounds = Bounds {
            memory: Some(1),
            processes: Some(1),
            cpu_seconds: Some(1),
            ..Bounds::default()
        };
        let applied = bounds.applied(true, false);
        assert_eq!(applied.memory, Some(Enforcer::Cgroup));
        assert_eq!(applied.processes, Some(Enforcer::Rlimit));
        assert_eq!(applied.cpu_time, Some(Enforcer::Rlimit));
        assert_eq!((applied.open_files, applied.file_size), (None, None));
        assert_eq!(bounds.rlimits().len(), 3);
    }
}
