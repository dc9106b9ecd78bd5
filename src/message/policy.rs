//! The parts of a job that a pool file gives defaults for: retries, limits, output.
//!
//! The same types are read from messages and from pool files, so both have the same names, units and
//! errors. A field left out is `None`, and [`or`](Limits::or) fills it from the next layer.

use std::num::{NonZeroU32, NonZeroU64};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::result::Status;
use super::units::{ByteSize, Span};

/// When and how often a job runs again after a failure that may pass.
///
/// The wait is held by the broker, never by a slot: `initial`, times `multiplier` for each further
/// run, at most `max`, and each wait is shortened or lengthened by up to half at random.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryPolicy {
    /// How often the job runs at most, the first run included. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_295_u32))]
    pub max_attempts: Option<NonZeroU32>,
    /// The wait after the first run. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<Span>,
    /// The longest wait; not shorter than `initial`. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<Span>,
    /// What each wait is multiplied by to give the next; at least 1. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0))]
    pub multiplier: Option<f64>,
    /// The statuses after which the job runs again. Default: the pool's; where neither `statuses`
    /// nor `exit_codes` are given, failed, signaled, timed_out and out_of_memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<Status>>,
    /// The exit codes, 0 to 255, after which the job runs again. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = 0, max = 255)))]
    pub exit_codes: Option<Vec<i32>>,
}

/// What the command and everything it starts may use.
///
/// A worker with a control group of its own (cgroup v2, delegated) holds `memory` and `processes` for
/// all of them together. Else, and for the other limits, they are those of `setrlimit(2)`, for each
/// process alone, and none above the worker's own. The result's `limits_applied` says which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Memory: what all of them use, with the files they keep in memory, where a control group holds
    /// it; else the address space of each. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processes and threads at a time: of the job, where a control group holds it; else of all that
    /// run as the command's user, and without an effect on root. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 18_446_744_073_709_551_615_u64))]
    pub processes: Option<NonZeroU64>,
    /// Open files of each process. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 18_446_744_073_709_551_615_u64))]
    pub open_files: Option<NonZeroU64>,
    /// The size of each file that is written. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_size: Option<ByteSize>,
    /// Processor time of each process. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_time: Option<Span>,
}

impl Limits {
    /// Fills each field that is left out from `fallback`.
    pub fn or(self, fallback: Self) -> Self {
        Self {
            memory: self.memory.or(fallback.memory),
            processes: self.processes.or(fallback.processes),
            open_files: self.open_files.or(fallback.open_files),
            file_size: self.file_size.or(fallback.file_size),
            cpu_time: self.cpu_time.or(fallback.cpu_time),
        }
    }
}

/// What is kept and published of the command's output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputPolicy {
    /// How much of stdout, and as much of stderr, the result keeps: the first and the last half.
    /// At most 1MiB. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Whether output is also published to `synthex.events` while the command runs, whoever listens;
    /// else it is while somebody follows the job. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    /// Checks that `or` takes each field of the first, and each field it lacks from the second.
    fn fills_gaps<T>(first: &Value, second: &Value, or: fn(T, T) -> T)
    where
        T: serde::de::DeserializeOwned + Serialize + Default,
    {
        let read = |value: &Value| -> T { from_value(value.clone()).unwrap() };
        let written = |policy: T| to_value(policy).unwrap();
        assert_eq!(written(or(read(first), read(second))), *first);
        assert_eq!(written(or(T::default(), read(second))), *second);
        for key in first.as_object().unwrap().keys() {
            let mut gap = first.clone();
            gap.as_object_mut().unwrap().remove(key);
            let mut filled = gap.clone();
            filled[key] = second[key].clone();
            assert_eq!(written(or(read(&gap), read(second))), filled);
        }
    }

    #[test]
    fn or_fills_gaps_field_by_field() {
        fills_gaps(
            &json!({"memory": "1GiB", "processes": 1, "open_files": 2, "file_size": "1B",
                "cpu_time": "1s"}),
            &json!({"memory": "2GiB", "processes": 3, "open_files": 4, "file_size": "2B",
                "cpu_time": "2s"}),
            Limits::or,
        );
    }
}
