//! What operators tell workers, version 1: orders, which last, and requests, which are answered.
//!
//! An [`Order`] goes to a log that every worker reads, also one that starts later; it is in force for 7 days. A [`Request`]
//! goes to the workers that live now, and each [`Reply`] comes back to the `reply_to` of its message.
//!
//! Orders and requests refuse fields that they do not know, since half an order is another order. A reply read back
//! ignores them, so replies may grow.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::event::{Chunk, RunId};
use super::id::JobId;
use super::inventory::Inventory;
use super::job::Job;
use super::{encode, schema, timestamp};

/// What is ordered, for good: in force for 7 days, on all workers of the namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Ends jobs that were submitted no later than `at`: those that run are killed, the others never start. Chosen by
    /// `ids`, by `labels` or by `batch`, only one of them.
    #[schemars(extend("oneOf" = [{ "required": ["ids"] }, { "required": ["labels"] }, { "required": ["batch"] }]))]
    Cancel {
        /// The jobs.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        #[schemars(length(min = 1, max = Order::MAX_IDS))]
        ids: Vec<JobId>,
        /// The jobs that have all of these labels.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        #[schemars(extend("minProperties" = 1, "maxProperties" = Job::MAX_LABELS))]
        labels: BTreeMap<String, String>,
        /// The jobs of this batch, which is the one of their header `x-synthex-batch`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(min = 1, max = Order::MAX_BATCH))]
        batch: Option<String>,
        /// Only jobs of this pool. Default: of every pool.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pool: Option<String>,
        /// When it was ordered, in milliseconds. A job is older than this by its header `x-synthex-submitted-at`, else
        /// by its property `timestamp`, else in any case.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// Who ordered it, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = Order::MAX_BY))]
        by: Option<String>,
    },
    /// Has no worker start jobs of this pool, until it is resumed or 7 days are over. What runs goes on.
    Pause {
        /// The pool.
        pool: String,
        /// When it was ordered, in milliseconds.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// Who ordered it, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = Order::MAX_BY))]
        by: Option<String>,
    },
    /// Ends the pause of a pool.
    Resume {
        /// The pool.
        pool: String,
        /// When it was ordered, in milliseconds.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// Who ordered it, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(length(max = Order::MAX_BY))]
        by: Option<String>,
    },
}

/// What is asked of the workers that live now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Asks for the worker's state.
    Ping {},
    /// Has this worker take no more jobs, finish those that run, and end, as its first SIGTERM does.
    Drain {
        /// The worker's id.
        worker: String,
    },
    /// Asks for the jobs that the worker has in hand, at most 1000 of them.
    Jobs {
        /// Only this job, and what became of it if the worker has it no more.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<JobId>,
    },
    /// Has the worker publish what happens to jobs, of all its pools, for 30 seconds.
    Watch {},
    /// Has the worker publish what this job writes, for 30 seconds: now if it runs it, else once it does. For each run it
    /// answers once, with what was written before, when it runs; the same request again, by its `correlation_id`, asks
    /// for more time.
    Follow {
        /// The job.
        job: JobId,
    },
    /// Asks for what this job has written so far. Only a worker that runs it answers.
    Output {
        /// The job.
        job: JobId,
    },
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// It has done what was asked; this is its state now.
    State(WorkerState),
    /// Its jobs.
    Jobs(Inventory),
    /// It runs the job; this is what was written so far.
    Output {
        /// Which run of it.
        #[serde(flatten)]
        run: RunId,
        /// What is kept of its streams. What is written from here on follows the last chunk of each.
        chunks: Vec<Chunk>,
    },
    /// It does not do it.
    Refused {
        /// Why, for people.
        message: String,
    },
}

/// How a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerState {
    /// The worker's own id, new each time it starts.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The version of Synthex.
    pub version: String,
    /// When it started.
    #[serde(deserialize_with = "timestamp::required")]
    #[schemars(schema_with = "timestamp::schema")]
    pub started_at: Timestamp,
    /// It takes no more jobs, and ends when those that run have ended.
    pub draining: bool,
    /// What time it is there.
    #[serde(
        default,
        deserialize_with = "timestamp::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "timestamp::nullable_schema")]
    pub clock: Option<Timestamp>,
    /// The pools that it serves.
    pub pools: Vec<PoolState>,
}

/// How a pool is on one worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolState {
    /// Its name.
    pub pool: String,
    /// Most commands that run at once.
    pub slots: u64,
    /// Commands that run now.
    pub running: u64,
    /// Jobs in hand: those that run, wait for a slot, or have a result on its way.
    pub in_hand: u64,
    /// An order keeps it from taking jobs.
    pub paused: bool,
    /// Its consumer is live.
    pub consuming: bool,
    /// Commands that were started since the worker began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// Attempts that have their result since then, by status.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub finished: BTreeMap<String, u64>,
}

/// Why a control message cannot be used, as a lower-case fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ControlError(String);

/// Any message of the exchange `synthex.control`, and the replies to them.
#[derive(JsonSchema)]
#[schemars(
    title = "Synthex control messages, version 1",
    extend("$id" = "urn:synthex:control:v1"),
    untagged,
    transform = schema::without_null,
)]
#[expect(dead_code, reason = "it is there for its schema")]
pub(super) enum AnyMessage {
    Order(Order),
    Request(Request),
    Reply(Reply),
}

impl Order {
    /// Most jobs of one order.
    pub const MAX_IDS: usize = 1000;
    /// Most characters of `by`.
    const MAX_BY: usize = 256;
    /// Most characters of `batch`.
    const MAX_BATCH: usize = 128;

    /// Returns the word for the order, as in its message and its routing key.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Cancel { .. } => "cancel",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
        }
    }

    /// Returns when it was given.
    pub const fn at(&self) -> Timestamp {
        match self {
            Self::Cancel { at, .. } | Self::Pause { at, .. } | Self::Resume { at, .. } => *at,
        }
    }

    /// Writes the order as JSON.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads an order, and checks it.
    ///
    /// # Errors
    ///
    /// When the body isn't an order of this version.
    pub fn decode(body: &[u8]) -> Result<Self, ControlError> {
        let order: Self = decode(body)?;
        order.check()?;
        Ok(order)
    }

    fn check(&self) -> Result<(), ControlError> {
        let (Self::Cancel { by, .. } | Self::Pause { by, .. } | Self::Resume { by, .. }) = self;
        if by.as_ref().is_some_and(|by| by.chars().count() > Self::MAX_BY) {
            return refuse(format!("by: expected at most {} characters", Self::MAX_BY));
        }
        let Self::Cancel { ids, labels, batch, .. } = self else {
            return Ok(());
        };
        let chosen_by = [!ids.is_empty(), !labels.is_empty(), batch.is_some()];
        if chosen_by.iter().filter(|chosen| **chosen).count() != 1 {
            return refuse("ids: expected one of ids, labels and batch".to_owned());
        }
        if let Some(batch) = batch
            && !(1..=Self::MAX_BATCH).contains(&batch.chars().count())
        {
            return refuse(format!("batch: expected 1 to {} characters", Self::MAX_BATCH));
        }
        if ids.len() > Self::MAX_IDS {
            return refuse(format!("ids: expected at most {}, got {}", Self::MAX_IDS, ids.len()));
        }
        if labels.len() > Job::MAX_LABELS {
            return refuse(format!(
                "labels: expected at most {}, got {}",
                Job::MAX_LABELS,
                labels.len()
            ));
        }
        Ok(())
    }
}

impl Request {
    /// Returns the word for the request, as in its message.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ping {} => "ping",
            Self::Drain { .. } => "drain",
            Self::Jobs { .. } => "jobs",
            Self::Watch {} => "watch",
            Self::Follow { .. } => "follow",
            Self::Output { .. } => "output",
        }
    }

    /// Writes the request as JSON.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads a request.
    ///
    /// # Errors
    ///
    /// When the body isn't a request of this version.
    pub fn decode(body: &[u8]) -> Result<Self, ControlError> {
        decode(body)
    }
}

impl Reply {
    /// Writes the reply as JSON.
    pub fn encode(&self) -> Bytes {
        encode(self)
    }

    /// Reads a reply; fields that this version doesn't know are ignored.
    ///
    /// # Errors
    ///
    /// When the body isn't JSON, or lacks what every reply has.
    pub fn decode(body: &[u8]) -> Result<Self, ControlError> {
        decode(body)
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|error| ControlError(error.to_string()))
}

fn refuse(message: String) -> Result<(), ControlError> {
    Err(ControlError(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(body: &str) -> Result<Order, String> {
        Order::decode(body.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let cancel = Order::Cancel {
            ids: vec!["a".parse().unwrap()],
            labels: BTreeMap::new(),
            batch: None,
            pool: None,
            at: "2030-01-31T12:00:00.25Z".parse().unwrap(),
            by: Some("me@here".to_owned()),
        };
        let text = r#"{"order":"cancel","ids":["a"],"at":"2030-01-31T12:00:00.25Z","by":"me@here"}"#;
        assert_eq!(cancel.encode(), text);
        assert_eq!(order(text), Ok(cancel));
        assert_eq!(Request::Ping {}.encode(), r#"{"request":"ping"}"#);
        assert_eq!(Request::decode(br#"{"request":"ping"}"#), Ok(Request::Ping {}));
    }

    #[test]
    fn orders_and_requests_refuse_what_they_do_not_know() {
        let at = r#""at":"2030-01-31T12:00:00Z""#;
        for (body, why) in [
            (
                format!(r#"{{"order":"pause","pool":"p","for":"1h",{at}}}"#),
                "unknown field `for`",
            ),
            (format!(r#"{{"order":"cancel","id":"a",{at}}}"#), "unknown field `id`"),
            (
                format!(r#"{{"order":"stop","pool":"p",{at}}}"#),
                "unknown variant `stop`",
            ),
            (
                format!(r#"{{"order":"cancel",{at}}}"#),
                "expected one of ids, labels and batch",
            ),
            (
                format!(r#"{{"order":"cancel","ids":["a"],"labels":{{"a":"b"}},{at}}}"#),
                "expected one of ids, labels and batch",
            ),
            (
                format!(r#"{{"order":"cancel","batch":"b","labels":{{"a":"b"}},{at}}}"#),
                "expected one of ids, labels and batch",
            ),
            (
                format!(r#"{{"order":"cancel","batch":"",{at}}}"#),
                "batch: expected 1 to 128 characters",
            ),
            (r#"{"order":"pause","pool":"p"}"#.to_owned(), "missing field `at`"),
            (
                r#"{"order":"pause","pool":"p","at":"now"}"#.to_owned(),
                "expected a time in RFC 3339",
            ),
        ] {
            let error = order(&body).expect_err(&body);
            assert!(error.contains(why), "{body}: {error}");
        }
        for body in [
            r#"{"request":"ping","loud":true}"#,
            r#"{"request":"drain"}"#,
            "{}",
            "ping",
        ] {
            assert!(Request::decode(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn an_order_has_bounds() {
        let at = Timestamp::UNIX_EPOCH;
        let ids = vec![JobId::random(); Order::MAX_IDS + 1];
        let (labels, pool, by) = (BTreeMap::new(), None, None);
        let cancel = Order::Cancel {
            ids,
            labels,
            batch: None,
            pool,
            at,
            by,
        };
        assert!(Order::decode(&cancel.encode()).is_err());
        let pool = "p".to_owned();
        let by = Some("x".repeat(Order::MAX_BY + 1));
        assert!(Order::decode(&Order::Pause { pool, at, by }.encode()).is_err());
    }

    #[test]
    fn a_reply_of_a_later_version_is_read() {
        let body = r#"{"reply":"state","id":"w","host":"h","version":"9","started_at":"2030-01-31T12:00:00Z",
            "draining":false,"mood":"fine","pools":[{"pool":"p","slots":1,"running":0,"in_hand":0,"paused":false,
            "consuming":true,"mood":"fine"}]}"#;
        let Ok(Reply::State(state)) = Reply::decode(body.as_bytes()) else {
            panic!("not read: {body}");
        };
        assert_eq!((state.id.as_str(), state.pools[0].slots), ("w", 1));
    }
}
