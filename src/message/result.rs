//! The result message, version 1: how an attempt at a job ended, and what it wrote.
//!
//! Every attempt that ends gives one [`JobResult`], whatever the reason; [`Status`] is that reason,
//! the same word in results, metrics, logs and on the command line. Results are written by workers
//! and read by our own clients, which ignore fields that they don't know: a newer worker may add
//! some.
//!
//! What was kept of a stream is in `output.rs` beside this file.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ending::{EndedBy, LimitsApplied, Phases};
use super::id::JobId;
pub use super::output::{Encoding, Output, OutputError};
use super::units::{ParseError, SignalName};
use super::{schema, timestamp};

/// How one attempt at a job ended.
///
/// Optional fields are left out, never null. Later versions may add fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(
    title = "Synthex result, version 1",
    extend("$id" = "urn:synthex:result:v1"),
    transform = schema::without_null,
)]
pub struct JobResult {
    /// The job's `id`; of a body that can't be read, the property `message_id`, else a new UUID.
    pub job_id: JobId,
    /// How often the job was given to a worker to start, this time included, over redeliveries and
    /// retries. From 1.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// How the attempt ended.
    pub status: Status,
    /// Whether this is the end of the job; false for an attempt that will be retried.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// The exit code, where the command ended with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 255))]
    pub exit_code: Option<i32>,
    /// The signal that ended the command, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "SignalName::deserialize_in_result")]
    #[schemars(schema_with = "SignalName::schema_in_result")]
    pub signal: Option<SignalName>,
    /// What is kept of the command's stdout.
    pub stdout: Output,
    /// What is kept of the command's stderr.
    pub stderr: Output,
    /// When the job was published, where its property `timestamp` says so, in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "timestamp::schema")]
    pub queued_at: Option<Timestamp>,
    /// When the command started, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "timestamp::schema")]
    pub started_at: Option<Timestamp>,
    /// When the attempt ended.
    #[schemars(schema_with = "timestamp::schema")]
    pub finished_at: Timestamp,
    /// How long the command's own process ran, in milliseconds; 0 where it didn't start.
    pub duration_ms: u64,
    /// The step of its ending at which the command was gone; left out where it didn't start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_by: Option<EndedBy>,
    /// How long each phase of the attempt took; left out where the command didn't start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
    /// What enforced each limit that was asked for; left out where none was, or the command didn't
    /// start.
    #[serde(default, skip_serializing_if = "LimitsApplied::is_empty")]
    pub limits_applied: LimitsApplied,
    /// What the command and every process it started used; left out where it didn't start, or where
    /// the helper process that counts was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The worker that ended the attempt.
    pub worker: WorkerInfo,
    /// What went wrong, where the status alone doesn't say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The job's `labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// How an attempt ended: one honest reason.
///
/// - `succeeded`: exit code 0
/// - `failed`: any other exit code
/// - `signaled`: ended by a signal that Synthex didn't send
/// - `timed_out`: ended at its timeout, or by the signal that warned of it
/// - `out_of_memory`: killed by the kernel at its memory limit, which is told where a control group
///   holds that limit
/// - `cancelled`: ended, or not started, on request
/// - `expired`: `expires_at` passed before it started
/// - `not_started`: program missing or not executable, working directory absent, fork failed
/// - `rejected`: not a valid job, or against the pool's policy
/// - `lost`: redelivered more often than the pool allows without an end
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum Status {
    Succeeded,
    Failed,
    Signaled,
    TimedOut,
    OutOfMemory,
    Cancelled,
    Expired,
    NotStarted,
    Rejected,
    Lost,
}

/// What a command and every process it started used of the machine, as far as they had ended when the
/// attempt did; those that a pool lets live on (`leftovers`) are not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Processor time in the programs' own code, of all processes together, in milliseconds.
    pub user_ms: u64,
    /// Processor time in the kernel, of all processes together, in milliseconds. Of short times only
    /// the sum of both is exact.
    pub system_ms: u64,
    /// The most memory that a single process had resident, in bytes: that of the largest, not a sum.
    pub max_rss_bytes: u64,
}

/// Who ended an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// The worker's own id, new each time it starts.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The pool that the job was taken from.
    pub pool: String,
    /// The version of Synthex.
    pub version: String,
}

/// What went wrong with an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Failure {
    /// The kind of failure, for programs.
    pub kind: FailureKind,
    /// What happened, for people.
    pub message: String,
}

/// A kind of failure, finer than the status.
///
/// - `invalid_job`: the body isn't a valid job
/// - `content_type`: the property `content_type` isn't `application/json`
/// - `too_large`: the body is over the pool's `max_job_bytes`
/// - `policy`: the pool doesn't allow what the job asks for
/// - `program_missing`, `not_executable`, `cwd_missing`, `spawn_failed`: why it wasn't started
/// - `timed_out`, `signaled`, `out_of_memory`, `expired`, `cancelled`: as the status
/// - `delivery_limit`: redelivered more often than the pool allows
/// - `other`: anything else; readers take kinds that they don't know for this one
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum FailureKind {
    InvalidJob,
    ContentType,
    TooLarge,
    Policy,
    ProgramMissing,
    NotExecutable,
    CwdMissing,
    SpawnFailed,
    TimedOut,
    Signaled,
    OutOfMemory,
    Expired,
    Cancelled,
    DeliveryLimit,
    #[serde(other)]
    Other,
}

/// Bytes that a result seldom has more of, beside what its command wrote. From 1 KiB on, memory takes longer to be had.
const BESIDE_OUTPUTS: usize = 1000;

impl JobResult {
    /// Returns the property `message_id` of the result: the job's id and the attempt.
    pub fn message_id(&self) -> String {
        format!("{}/{}", self.job_id, self.attempt)
    }

    /// Writes the result as JSON on one line, without the optional fields that are not there.
    pub fn encode(&self) -> Bytes {
        let outputs = self.stdout.text.len() + self.stderr.text.len();
        let mut body = Vec::with_capacity(BESIDE_OUTPUTS + outputs);
        serde_json::to_writer(&mut body, self).expect("keys are strings, and no field can fail");
        body.into()
    }

    /// Reads a result; fields that this version doesn't know are ignored.
    ///
    /// # Errors
    ///
    /// When the body isn't JSON, or lacks what every result has.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        match str::from_utf8(body) {
            Ok(text) => serde_json::from_str(text), // not looked at again, string by string
            Err(_) => serde_json::from_slice(body),
        }
    }
}

impl Status {
    /// Every status, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Succeeded,
        Self::Failed,
        Self::Signaled,
        Self::TimedOut,
        Self::OutOfMemory,
        Self::Cancelled,
        Self::Expired,
        Self::NotStarted,
        Self::Rejected,
        Self::Lost,
    ];

    /// Returns the word for the status, as in results, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Signaled => "signaled",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::NotStarted => "not_started",
            Self::Rejected => "rejected",
            Self::Lost => "lost",
        }
    }

    /// What error messages call a status.
    pub(super) fn expected() -> String {
        format!("a status: one of {}", Self::ALL.map(Self::as_str).join(", "))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut all = Self::ALL.into_iter();
        all.find(|status| status.as_str() == text)
            .ok_or_else(|| ParseError::new(Self::expected(), text))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn a_status_has_one_word_everywhere() {
        for status in Status::ALL {
            assert_eq!(to_value(status).unwrap(), status.to_string());
            assert_eq!(from_value::<Status>(json!(status.as_str())).unwrap(), status);
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        let error = "ok".parse::<Status>().unwrap_err().to_string();
        assert!(error.starts_with("expected a status: one of succeeded, failed, signaled"));
        assert!(error.ends_with(r#"lost, got "ok""#), "{error}");
    }

    #[test]
    fn a_failure_of_a_later_version_is_read_as_other() {
        let failure: Failure = from_value(json!({"kind": "eaten_by_a_whale", "message": "m"})).unwrap();
        assert_eq!(failure.kind, FailureKind::Other);
        assert_eq!(to_value(FailureKind::CwdMissing).unwrap(), "cwd_missing");
    }
}
