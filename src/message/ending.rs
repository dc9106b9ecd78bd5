//! How a run came to its end, for the result: the step that ended it, the time each phase took, and which limits were
//! enforced by what.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The step of its ending at which a command was gone.
///
/// - `itself`: it ended before anything was done to it
/// - `warn_signal`: after the signal that warns of the timeout, before the timeout
/// - `term_signal`: in its grace, after the signal that asks it to end
/// - `kill`: by SIGKILL
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum EndedBy {
    Itself,
    WarnSignal,
    TermSignal,
    Kill,
}

/// What enforced a limit.
///
/// - `cgroup`: the kernel's control group of the job, over all its processes together
/// - `rlimit`: `setrlimit(2)`, for each process alone (`processes`: for all of the user's)
/// - `none`: nothing; this machine has no way to
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum Enforcer {
    Cgroup,
    Rlimit,
    None,
}

/// Which of the limits that were asked for were enforced by what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LimitsApplied {
    /// Of `limits.memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Enforcer>,
    /// Of `limits.processes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<Enforcer>,
    /// Of `limits.open_files`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<Enforcer>,
    /// Of `limits.file_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<Enforcer>,
    /// Of `limits.cpu_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Enforcer>,
}

/// How long each phase of an attempt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// From `queued_at` until the command was given to a slot, where `queued_at` is known.
    pub queued: Option<Duration>,
    /// From there until the program ran.
    pub spawn: Duration,
    /// From there until the command's own process ended, or the first signal was sent to end it.
    pub run: Duration,
    /// From there until the last process of the job was gone, where there was anything to end.
    pub kill: Option<Duration>,
}
