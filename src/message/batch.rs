//! What is said of batches, version 1: records on the broker that anybody can follow, and what a line of a results file
//! has besides the result.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::result::Status;
use super::{schema, timestamp};

/// What a submitter says of its batch, as it is then. Later versions may add fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BatchRecord {
    /// The batch's id.
    #[schemars(length(min = 1, max = 64))]
    pub batch: String,
    /// What has happened.
    pub event: BatchEvent,
    /// The pool that its jobs are for.
    pub pool: String,
    /// When this was said.
    #[serde(deserialize_with = "timestamp::required")]
    #[schemars(schema_with = "timestamp::schema")]
    pub at: Timestamp,
    /// Who said it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How many items it has, if that is known: jobs, and what should have been some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// How many items ended in which way, of those whose final results were taken from the batch's queue.
    #[serde(default)]
    pub finished: BTreeMap<Status, u64>,
}

/// What has happened to a batch.
///
/// - `begun`: a submitter has begun it, or goes on with it
/// - `submitted`: all of its jobs are on the broker
/// - `progress`: results were taken
/// - `ended`: all of its results were taken
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[expect(missing_docs, reason = "the list above is the documentation, for schema and code")]
pub enum BatchEvent {
    Begun,
    Submitted,
    Progress,
    Ended,
}

/// Which item of a batch a result is of: the member `item` of each line of a results file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ItemOfLine {
    /// Its place in the input, from 1.
    #[schemars(range(min = 1))]
    pub seq: u64,
    /// Where it came from, such as `jobs.jsonl:3`; left out where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// Which submission of it: from 1, and more with `--retry-failed`. The last line of an item counts.
    #[schemars(range(min = 1))]
    pub submission: u8,
}

/// A line of a results file: a result, as `result.v1.json` has it, with one member more.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is there for its schema")]
pub(super) struct ResultLine {
    /// Which item of the batch it is of.
    item: ItemOfLine,
}

/// What is said of batches: a record on the broker, or a line of a results file.
#[derive(JsonSchema)]
#[schemars(
    title = "Synthex batches, version 1",
    extend("$id" = "urn:synthex:batch:v1"),
    untagged,
    transform = schema::without_null,
)]
#[expect(dead_code, reason = "it is there for its schema")]
pub(super) enum AnyOfBatches {
    Record(BatchRecord),
    Line(ResultLine),
}

impl BatchRecord {
    /// Writes the record as JSON.
    pub fn encode(&self) -> Bytes {
        super::encode(self)
    }

    /// Reads a record; fields that this version doesn't know are ignored.
    ///
    /// # Errors
    ///
    /// When the body isn't JSON, or lacks what every record has.
    pub fn decode(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}
