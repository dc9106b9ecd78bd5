//! What workers publish of themselves, version 1: what happens to jobs and workers, and what commands write while they run.
//!
//! Events are news, not accounts: nobody waits for them, and one that cannot be sent at once is dropped and counted by its
//! worker. What has to arrive is a result. Who reads them passes over the fields and the events that he does not know:
//! [`Event::decode`] does.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::control::WorkerState;
use super::id::JobId;
use super::output::{self, Encoding, OutputError};
use super::result::{FailureKind, Status};
use super::{schema, timestamp};

/// A message of the exchange `synthex.events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event")]
#[schemars(
    title = "Synthex events, version 1",
    extend("$id" = "urn:synthex:event:v1"),
    transform = schema::without_null,
)]
pub enum Event {
    /// A job has a slot and its command is being started.
    #[serde(rename = "job.started")]
    JobStarted {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// Its attempt, from 1.
        attempt: u32,
        /// The job's own.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
    },
    /// An attempt has its result, published and confirmed. Also of jobs that were never started.
    #[serde(rename = "job.finished")]
    JobFinished {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// Its attempt, from 1.
        attempt: u32,
        /// How it ended.
        status: Status,
        /// Whether this is the end of the job: false when it will be tried again.
        #[serde(rename = "final")]
        is_final: bool,
        /// Of the run, in milliseconds; 0 when it was not started.
        duration_ms: u64,
        /// The class of what went wrong, if anything did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<FailureKind>,
        /// The job's own.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
    },
    /// A failed attempt was published again, to be run after a delay.
    #[serde(rename = "job.retried")]
    JobRetried {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// How long it waits, in milliseconds.
        delay_ms: u64,
    },
    /// A job went to a delay queue because its time has not come, or because it could not run alone.
    #[serde(rename = "job.delayed")]
    JobDelayed {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// How long it still has to wait, in milliseconds.
        delay_ms: u64,
    },
    /// A redelivered job was published again with its attempt raised, before anything was started.
    #[serde(rename = "job.recounted")]
    JobRecounted {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// The attempt it now has.
        attempt: u32,
    },
    /// A redelivered message of a job that is in hand here, or has ended here: nothing is run for it.
    #[serde(rename = "job.adopted")]
    JobAdopted {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The message's id, as its producer gave it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message_id: Option<String>,
    },
    /// A job goes back to its queue because the worker stops.
    #[serde(rename = "job.given_back")]
    JobGivenBack {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job, where it was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job_id: Option<JobId>,
        /// Whether its command was running, and was killed.
        was_running: bool,
    },
    /// A job was dead-lettered.
    #[serde(rename = "job.dead_lettered")]
    JobDeadLettered {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// The job.
        job_id: JobId,
        /// Why: the word of its status.
        reason: String,
    },
    /// A worker has started; its pools do not consume yet.
    #[serde(rename = "worker.started")]
    WorkerStarted {
        /// When.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// How it is.
        state: WorkerState,
    },
    /// A worker lives. Every 10 seconds.
    #[serde(rename = "worker.heartbeat")]
    WorkerHeartbeat {
        /// When.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// How it is.
        state: WorkerState,
    },
    /// A pool's consumer is live.
    #[serde(rename = "worker.consuming")]
    WorkerConsuming {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
    },
    /// A pool's consumer has ended; the worker subscribes again unless it stops.
    #[serde(rename = "worker.consumer_lost")]
    WorkerConsumerLost {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// Why, as far as it is known.
        reason: String,
        /// When it will be tried again, in milliseconds; left out when the worker stops.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_in_ms: Option<u64>,
    },
    /// A pool takes no jobs for now: `paused`, or a job runs alone.
    #[serde(rename = "worker.consumer_held")]
    WorkerConsumerHeld {
        /// Where and when.
        #[serde(flatten)]
        place: Place,
        /// Why.
        reason: String,
    },
    /// A worker takes no more jobs, and ends when those that run have ended.
    #[serde(rename = "worker.draining")]
    WorkerDraining {
        /// When.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// The worker's id.
        worker: String,
    },
    /// A worker has ended. One that was killed does not say so.
    #[serde(rename = "worker.stopped")]
    WorkerStopped {
        /// When.
        #[serde(deserialize_with = "timestamp::required")]
        #[schemars(schema_with = "timestamp::schema")]
        at: Timestamp,
        /// The worker's id.
        worker: String,
    },
    /// What a command has written to one of its streams.
    #[serde(rename = "output.chunk")]
    Output {
        /// Which run of which job.
        #[serde(flatten)]
        run: RunId,
        /// The bytes.
        #[serde(flatten)]
        chunk: Chunk,
    },
    /// The end of an attempt whose output was published, after all of it. Its result is published and confirmed.
    #[serde(rename = "output.ended")]
    OutputEnded {
        /// Which run of which job.
        #[serde(flatten)]
        run: RunId,
        /// How it ended.
        status: Status,
        /// Whether this is the end of the job: false when it will be tried again.
        #[serde(rename = "final")]
        is_final: bool,
        /// How many bytes the command wrote to its stdout.
        stdout_bytes: u64,
        /// How many bytes the command wrote to its stderr.
        stderr_bytes: u64,
    },
}

/// Where and when something happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    /// When.
    #[serde(deserialize_with = "timestamp::required")]
    #[schemars(schema_with = "timestamp::schema")]
    pub at: Timestamp,
    /// The worker's id.
    pub worker: String,
    /// The pool.
    pub pool: String,
}

/// One run of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunId {
    /// The worker's id.
    pub worker: String,
    /// The pool.
    pub pool: String,
    /// The job.
    pub job_id: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
}

/// Which stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Consecutive bytes of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Which stream.
    pub stream: Stream,
    /// How many bytes of the stream were written before these.
    pub offset: u64,
    /// How many bytes just before these are in no chunk: they came faster than they could be sent, or were not kept.
    pub dropped_bytes: u64,
    /// The bytes.
    pub text: String,
    /// How `text` holds them.
    pub encoding: Encoding,
}

/// Why an event cannot be used, as a lower-case fragment.
#[derive(Debug, thiserror::Error)]
#[error("not an event: {0}")]
pub struct EventError(#[from] serde_json::Error);

impl Event {
    /// Returns the routing key that it is published with.
    pub fn routing_key(&self) -> String {
        let word = self.word();
        match self {
            Self::JobStarted { place, .. }
            | Self::JobFinished { place, .. }
            | Self::JobRetried { place, .. }
            | Self::JobDelayed { place, .. }
            | Self::JobRecounted { place, .. }
            | Self::JobAdopted { place, .. }
            | Self::JobGivenBack { place, .. }
            | Self::JobDeadLettered { place, .. } => format!("job.{}.{word}", place.pool),
            Self::WorkerConsuming { place }
            | Self::WorkerConsumerLost { place, .. }
            | Self::WorkerConsumerHeld { place, .. } => format!("worker.{}.{word}", place.worker),
            Self::WorkerStarted { state, .. } | Self::WorkerHeartbeat { state, .. } => {
                format!("worker.{}.{word}", state.id)
            }
            Self::WorkerDraining { worker, .. } | Self::WorkerStopped { worker, .. } => {
                format!("worker.{worker}.{word}")
            }
            Self::Output { run, .. } | Self::OutputEnded { run, .. } => output_key(&run.job_id, word),
        }
    }

    /// The last word of the routing key.
    const fn word(&self) -> &'static str {
        match self {
            Self::JobStarted { .. } | Self::WorkerStarted { .. } => "started",
            Self::JobFinished { .. } => "finished",
            Self::JobRetried { .. } => "retried",
            Self::JobDelayed { .. } => "delayed",
            Self::JobRecounted { .. } => "recounted",
            Self::JobAdopted { .. } => "adopted",
            Self::JobGivenBack { .. } => "given_back",
            Self::JobDeadLettered { .. } => "dead_lettered",
            Self::WorkerHeartbeat { .. } => "heartbeat",
            Self::WorkerConsuming { .. } => "consuming",
            Self::WorkerConsumerLost { .. } => "consumer_lost",
            Self::WorkerConsumerHeld { .. } => "consumer_held",
            Self::WorkerDraining { .. } => "draining",
            Self::WorkerStopped { .. } => "stopped",
            Self::Output { chunk, .. } => chunk.stream.as_str(),
            Self::OutputEnded { .. } => ENDED,
        }
    }

    /// Writes the event as JSON.
    pub fn encode(&self) -> Bytes {
        super::encode(self)
    }

    /// Reads an event; fields that this version doesn't know are ignored.
    ///
    /// # Errors
    ///
    /// When the body isn't JSON, isn't an event that this version knows, or lacks what that has.
    pub fn decode(body: &[u8]) -> Result<Self, EventError> {
        Ok(serde_json::from_slice(body)?)
    }
}

/// The last word of the routing key of [`Event::OutputEnded`].
const ENDED: &str = "ended";

/// Returns the routing keys of all that is published of a job's output.
pub fn output_keys(job: &JobId) -> [String; 3] {
    [Stream::Stdout.as_str(), Stream::Stderr.as_str(), ENDED].map(|word| output_key(job, word))
}

fn output_key(job: &JobId, word: &str) -> String {
    format!("output.{job}.{word}")
}

impl Stream {
    /// Returns the stream's name, as in messages and routing keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

impl Chunk {
    /// Makes a chunk of bytes, as text if they are.
    pub fn new(stream: Stream, offset: u64, dropped_bytes: u64, bytes: &[u8]) -> Self {
        let (text, encoding) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), Encoding::Utf8),
            Err(_) => (STANDARD.encode(bytes), Encoding::Base64),
        };
        Self {
            stream,
            offset,
            dropped_bytes,
            text,
            encoding,
        }
    }

    /// Returns the bytes.
    ///
    /// # Errors
    ///
    /// When the text isn't base64 and should be; never for a chunk of [`Chunk::new`].
    pub fn decode(&self) -> Result<Vec<u8>, OutputError> {
        output::decode(&self.text, self.encoding).map(std::borrow::Cow::into_owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunId {
        RunId {
            worker: "host-1-abc".to_owned(),
            pool: "p".to_owned(),
            job_id: "a.b:c".parse().unwrap(),
            attempt: 2,
        }
    }

    #[test]
    fn a_chunk_is_text_where_it_can_be_and_comes_back_as_it_was() {
        for (bytes, text) in [("né\u{1}\n".as_bytes(), "né\u{1}\n"), (b"\xffab", "/2Fi"), (b"", "")] {
            let chunk = Chunk::new(Stream::Stderr, 7, 3, bytes);
            assert_eq!(chunk.text, text);
            let event = Event::Output { run: run(), chunk };
            let read = Event::decode(&event.encode()).unwrap();
            assert_eq!(read, event);
            let Event::Output { chunk, .. } = read else {
                panic!("{read:?}")
            };
            assert_eq!(chunk.decode().unwrap(), bytes);
        }
    }

    #[test]
    fn the_keys_of_a_job_s_output_are_those_its_events_have() {
        let stream = |stream| Event::Output {
            run: run(),
            chunk: Chunk::new(stream, 0, 0, b"x"),
        };
        let ended = Event::OutputEnded {
            run: run(),
            status: Status::Succeeded,
            is_final: true,
            stdout_bytes: 1,
            stderr_bytes: 0,
        };
        let keys = [stream(Stream::Stdout), stream(Stream::Stderr), ended].map(|event| event.routing_key());
        assert_eq!(keys, output_keys(&run().job_id));
        assert_eq!(keys[0], "output.a.b:c.stdout");
    }

    #[test]
    fn an_event_of_a_later_version_is_read() {
        let body = br#"{"event":"worker.stopped","at":"2030-01-31T12:00:00Z","worker":"w","mood":"fine"}"#;
        assert_eq!(Event::decode(body).unwrap().routing_key(), "worker.w.stopped");
        assert!(Event::decode(br#"{"event":"worker.danced","worker":"w"}"#).is_err());
    }
}
