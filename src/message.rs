//! What crosses a process border: jobs, results, orders to workers, events, and the envelope that carries them.
//!
//! A producer in any language publishes a [`Job`] as JSON; the worker answers with a
//! [`JobResult`] for every attempt. Both travel in an [`Envelope`]: a body, and the AMQP
//! properties that this program reads or writes.
//!
//! The types are the contract. The JSON Schemas under `schemas/` are generated from them
//! ([`schema`]), so their doc comments are written for producers: they are the descriptions
//! in the schemas.
//!
//! Invariants:
//! - A [`Job`] from [`Job::decode`] has passed [`Job::check`]: what the schema promises holds, and
//!   so do the few rules that a schema can't express.
//! - An error about a bad job ([`JobError`]) names the field and what is allowed there. It never
//!   quotes the environment or stdin, which may hold secrets, and never quotes at length.
//! - A job refuses unknown fields; a result read back ignores them, so results may grow.
//!
//! Not here: what a pool allows (its `max_timeout`, its defaults), and anything that talks to a
//! broker. Reading order: [`job`], [`result`], [`control`], [`inventory`], [`event`], [`batch`], [`envelope`], then
//! [`units`].

pub mod batch;
mod body;
mod check;
pub mod control;
mod decode;
mod ending;
pub mod envelope;
pub mod event;
pub(crate) mod harmless;
pub mod id;
pub mod inventory;
pub mod job;
pub(crate) mod nearest;
mod output;
pub mod policy;
pub mod result;
pub mod schema;
mod timestamp;
pub mod trace;
pub mod units;

pub use batch::{BatchEvent, BatchRecord};
pub use body::Body;
pub use control::{ControlError, Order, PoolState, Reply, Request, WorkerState};
pub use decode::{JobError, peek_id};
pub use ending::{EndedBy, Enforcer, LimitsApplied, Phases};
pub use envelope::{Attempt, Envelope, HeaderValue, Properties, header};
pub use event::{Chunk, Stream};
pub use id::JobId;
pub use inventory::{Fate, Inventory, JobInHand, JobState, Recent};
pub use job::{Job, Work};
pub use policy::{Limits, OutputPolicy, RetryPolicy};
pub use result::{Encoding, Failure, FailureKind, JobResult, Output, OutputError, Status, Usage, WorkerInfo};
pub use timestamp::now;
pub use trace::{SpanId, TraceContext, TraceId};
pub use units::{ByteSize, ParseError, SignalName, Span};

/// Writes a message as JSON.
fn encode(message: &impl serde::Serialize) -> bytes::Bytes {
    let body = serde_json::to_vec(message);
    body.expect("keys are strings, and no field can fail").into()
}
