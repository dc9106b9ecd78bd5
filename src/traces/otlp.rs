//! Trails as OTLP has spans: the messages of `opentelemetry/proto/trace/v1/trace.proto` and what they are made of, as far as
//! we fill them (<https://github.com/open-telemetry/opentelemetry-proto>, version 1). Names and numbers are those of there;
//! attributes are named by the semantic conventions of OpenTelemetry where these have a name, else begin with `synthex.`.

use jiff::Timestamp;
use prost::{DecodeError, Enumeration, Message, Oneof};

use super::Scene;
use crate::message::{SpanId, Status};
use crate::worker::trail::{Phase, Trail};

/// Set in `flags` beside those of W3C: it is said, and true, that the parent is of another process.
const PARENT_IS_KNOWN: u32 = 0x100;
const PARENT_IS_REMOTE: u32 = 0x200;

#[derive(Clone, PartialEq, Message)]
struct ExportTraceServiceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<InstrumentationScope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct InstrumentationScope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes, tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes, tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes, tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(enumeration = "SpanKind", tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
enum SpanKind {
    Unspecified = 0,
    Internal = 1,
    Client = 3,
    Producer = 4,
    Consumer = 5,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(enumeration = "StatusCode", tag = "3")]
    code: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
enum StatusCode {
    Unset = 0,
    Error = 2,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Bool(bool),
    #[prost(int64, tag = "3")]
    Int(i64),
}

#[derive(Clone, PartialEq, Message)]
struct ExportTraceServiceResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<ExportTracePartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportTracePartialSuccess {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
}

/// Writes trails as one request.
pub(super) fn request(scene: &Scene, trails: &[Trail]) -> Vec<u8> {
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let scope_spans = ScopeSpans {
        scope: Some(scope),
        spans: trails.iter().flat_map(|trail| spans(scene, trail)).collect(),
    };
    let resource_spans = ResourceSpans {
        resource: Some(resource(scene)),
        scope_spans: vec![scope_spans],
    };
    ExportTraceServiceRequest {
        resource_spans: vec![resource_spans],
    }
    .encode_to_vec()
}

/// Reads how many spans of a request were not taken from the answer to it.
///
/// # Errors
/// When it is no such answer.
pub(super) fn rejected(answer: &[u8]) -> Result<usize, DecodeError> {
    let partial = ExportTraceServiceResponse::decode(answer)?.partial_success;
    let rejected = partial.map_or(0, |partial| partial.rejected_spans);
    Ok(usize::try_from(rejected).unwrap_or(0))
}

fn resource(scene: &Scene) -> Resource {
    let attributes = vec![
        attribute("service.name", scene.service.as_str()),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
        attribute("service.instance.id", scene.worker.id.as_str()),
        attribute("host.name", scene.worker.host.as_str()),
    ];
    Resource { attributes }
}

/// The span of the attempt, and those of its phases.
fn spans(scene: &Scene, trail: &Trail) -> impl Iterator<Item = Span> {
    let phases = trail.phases.iter().map(|phase| phase_span(trail, *phase));
    std::iter::once(attempt_span(scene, trail)).chain(phases)
}

fn attempt_span(scene: &Scene, trail: &Trail) -> Span {
    let queue = scene.names.pool_queue(&trail.pool);
    let mut span = Span {
        name: format!("process {queue}"),
        kind: SpanKind::Consumer.into(),
        status: status_of(trail),
        ..bare(trail, trail.context.span_id, trail.parent, (trail.began, trail.ended))
    };
    if trail.parent.is_some() {
        span.flags |= PARENT_IS_REMOTE;
    }
    span.attributes.extend([
        attribute("messaging.system", scene.system),
        attribute("messaging.operation.type", "process"),
        attribute("messaging.operation.name", "process"),
        attribute("messaging.destination.name", queue),
        attribute("messaging.message.id", trail.job_id.as_str()),
    ]);
    if let Some(ending) = trail.ending {
        span.attributes.extend([
            attribute("synthex.job.status", ending.status.as_str()),
            attribute("synthex.job.final", ending.is_final),
        ]);
    }
    if let Some(status) = failure(trail) {
        span.attributes.push(attribute("error.type", status.as_str()));
    }
    span
}

fn phase_span(trail: &Trail, (phase, began, ended): (Phase, Timestamp, Timestamp)) -> Span {
    let parent = match phase {
        Phase::Kill => trail.span(Phase::Run),
        _ => trail.context.span_id,
    };
    let mut span = Span {
        name: name(phase).to_owned(),
        kind: kind(phase).into(),
        ..bare(trail, trail.span(phase), Some(parent), (began, ended))
    };
    if phase == last_of_command(trail) {
        span.status = status_of(trail);
        let exit_code = trail.ending.and_then(|ending| ending.exit_code);
        span.attributes
            .extend(exit_code.map(|code| attribute("process.exit.code", i64::from(code))));
    }
    span
}

/// What every span of an attempt has.
fn bare(trail: &Trail, span_id: SpanId, parent: Option<SpanId>, (began, ended): (Timestamp, Timestamp)) -> Span {
    let context = &trail.context;
    Span {
        trace_id: context.trace_id.to_bytes().to_vec(),
        span_id: span_id.to_bytes().to_vec(),
        trace_state: context.state.clone().unwrap_or_default(),
        parent_span_id: parent.map(|parent| parent.to_bytes().to_vec()).unwrap_or_default(),
        start_time_unix_nano: nanoseconds(began),
        end_time_unix_nano: nanoseconds(ended),
        attributes: vec![
            attribute("synthex.job.id", trail.job_id.as_str()),
            attribute("synthex.job.attempt", i64::from(trail.attempt)),
            attribute("synthex.pool", &*trail.pool),
        ],
        flags: u32::from(context.flags()) | PARENT_IS_KNOWN,
        ..Span::default()
    }
}

/// The phase that shows how the command ended: its run, or its start if it did not get further.
fn last_of_command(trail: &Trail) -> Phase {
    let ran = trail.phases.iter().any(|(phase, ..)| *phase == Phase::Run);
    if ran { Phase::Run } else { Phase::Spawn }
}

fn failure(trail: &Trail) -> Option<Status> {
    let status = trail.ending?.status;
    (status != Status::Succeeded).then_some(status)
}

fn status_of(trail: &Trail) -> Option<SpanStatus> {
    failure(trail).map(|status| SpanStatus {
        message: status.to_string(),
        code: StatusCode::Error.into(),
    })
}

const fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Receive => "receive",
        Phase::Wait => "wait for slot",
        Phase::Spawn => "spawn",
        Phase::Run => "run",
        Phase::Kill => "kill",
        Phase::Publish => "publish",
        Phase::Ack => "ack",
    }
}

const fn kind(phase: Phase) -> SpanKind {
    match phase {
        Phase::Publish => SpanKind::Producer,
        Phase::Ack => SpanKind::Client,
        _ => SpanKind::Internal,
    }
}

fn attribute(key: &str, value: impl Into<Value>) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(value.into()),
        }),
    }
}

/// Before 1970, and after 2554, there were no jobs.
fn nanoseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap_or_default()
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}
