//! The jobs of a worker, as it tells operators of them.
//!
//! Whoever may ask workers may read this, so it tells of a command its program alone: arguments, environment and stdin may
//! hold secrets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control::WorkerState;
use super::id::JobId;
use super::result::Status;
use super::timestamp;

/// What a worker has in hand, and what became of what it lately had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// How it is.
    pub worker: WorkerState,
    /// Its jobs, in the order in which it took them.
    pub jobs: Vec<JobInHand>,
    /// How many more there are.
    pub left_out: u64,
    /// What became of the job that was asked for, the latest first; only of its last few thousand jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<Recent>,
}

/// A job in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobInHand {
    /// Its id.
    pub id: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// Its pool.
    pub pool: String,
    /// How far it is.
    pub state: JobState,
    /// The program that it runs, without its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its labels; long ones are cut.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When the worker took it from its queue.
    #[serde(deserialize_with = "timestamp::required")]
    #[schemars(schema_with = "timestamp::schema")]
    pub taken_at: Timestamp,
    /// When its command began.
    #[serde(
        default,
        deserialize_with = "timestamp::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "timestamp::nullable_schema")]
    pub started_at: Option<Timestamp>,
    /// Its timeout.
    #[serde(
        default,
        deserialize_with = "timestamp::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "timestamp::nullable_schema")]
    pub deadline: Option<Timestamp>,
}

/// How far a job in hand is.
///
/// - `waiting`: for a slot
/// - `running`: its command runs
/// - `settling`: its result, or the message that has it run later, is on its way to the broker
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum JobState {
    Waiting,
    Running,
    Settling,
}

/// What became of a job that a worker had in hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recent {
    /// Its pool.
    pub pool: String,
    /// When.
    #[serde(deserialize_with = "timestamp::required")]
    #[schemars(schema_with = "timestamp::schema")]
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub fate: Fate,
}

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// An attempt has its result.
    Finished {
        /// Which attempt.
        attempt: u32,
        /// How it ended.
        status: Status,
        /// Whether it was the last one.
        #[serde(rename = "final")]
        is_final: bool,
    },
    /// It was sent through a delay queue, to be run later.
    Delayed {
        /// When it may run.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        until: Timestamp,
    },
    /// It went back to its pool's queue.
    GivenBack,
}

impl Recent {
    /// Most of them in one answer.
    pub const MAX: usize = 10;
}

impl Inventory {
    /// Most jobs in one answer.
    pub const MAX_JOBS: usize = 1000;
}

impl JobState {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Settling => "settling",
        }
    }
}
