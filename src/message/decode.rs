//! From the body of a message to a [`Job`], or to an error that its producer can act on.
//!
//! A body is decoded in three steps: text, JSON, job. What serde says of a wrong type is written for
//! Rust programmers and quotes the value, so it is replaced: by what is expected at that path
//! ([`expected_at`]) and by what is there, unless it may be a secret.
//!
//! Invariant: no message of an error quotes the command, the script, the environment or stdin, and
//! none is long, whatever the body holds.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::id::JobId;
use super::job::Job;
use super::policy::RetryPolicy;
use super::timestamp;
use super::units::{ByteSize, SignalName, Span, quoted};

/// Why a job was refused: the field at fault, and what is allowed there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", if field.is_empty() { "body" } else { field })]
pub struct JobError {
    /// The path of the field, such as `limits.memory` or `command[0]`; empty for the body itself.
    pub field: String,
    /// What is expected there and what was found, as a lower-case fragment.
    pub message: String,
}

impl JobError {
    /// Makes an error about one field; the empty path is the body.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }

    fn body(message: impl Into<String>) -> Self {
        Self::new("", message)
    }

    /// Joins names to a path; each is escaped and cut, since producers choose them too. An empty one is seen by its
    /// quotes.
    pub(super) fn path<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
        let shorten = |name| match quoted(name) {
            empty if name.is_empty() => empty,
            name => name.replace('"', ""),
        };
        names.into_iter().map(shorten).collect::<Vec<_>>().join(".")
    }
}

impl Job {
    /// Reads a job from the body of a message, and checks it.
    ///
    /// # Errors
    ///
    /// When the body isn't a UTF-8 JSON object, has a field that a job hasn't or a value of another
    /// form, or breaks a rule of [`check`](Self::check).
    pub fn decode(body: &[u8]) -> Result<Self, JobError> {
        let job = match read_flat(body) {
            Some(job) => job,
            None => read(body)?,
        };
        job.check()?;
        Ok(job)
    }
}

/// Reads a job that has nothing wrong with it and no object within, as most: in one go, where [`read`] needs three. `None`
/// of any other, which may be good all the same.
fn read_flat(body: &[u8]) -> Option<Job> {
    let text = str::from_utf8(body).ok()?;
    let is_object = text.trim_ascii_start().starts_with('{');
    let job: Job = is_object.then(|| serde_json::from_str(text).ok())??;
    // What belongs into these may have come as an array.
    let is_flat = job.retry.is_none() && job.limits.is_none() && job.output.is_none();
    is_flat.then_some(job)
}

/// Reads a job, or says what is wrong with it and where.
fn read(body: &[u8]) -> Result<Job, JobError> {
    let json = parse(text(body)?)?;
    refuse_arrays(&json)?;
    let job = serde_path_to_error::deserialize(&json).map_err(|error| {
        let message = error.inner().to_string();
        explain(&json, error.path(), &message)
    })?;
    refuse_duplicates(body)?;
    Ok(job)
}

/// Reads the id of a body that may be no job at all, so that its refusal reaches its producer.
///
/// Finds the `id` also in front of a fault, such as a body that was cut off.
pub fn peek_id(body: &[u8]) -> Option<JobId> {
    let mut id = None;
    let mut json = serde_json::Deserializer::from_slice(body);
    // The error, if there is one, is about what comes after the id, or instead of one.
    let _ = IdSeed(&mut id).deserialize(&mut json);
    id
}

fn text(body: &[u8]) -> Result<&str, JobError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        JobError::body(format!("expected UTF-8, got an invalid byte at offset {at}"))
    })?;
    match text.trim_ascii() {
        "" => Err(JobError::body("expected a JSON object, got nothing")),
        _ => Ok(text),
    }
}

fn parse(text: &str) -> Result<Value, JobError> {
    serde_json::from_str(text).map_err(|error| JobError::body(format!("not valid JSON: {error}")))
}

/// Refuses a field that is there twice: readers disagree on which of them counts (RFC 8259 section 4).
///
/// [`Value`] keeps the last one without a word, so the text of a job that is fine otherwise is read once more.
fn refuse_duplicates(body: &[u8]) -> Result<(), JobError> {
    let Err(error) = serde_json::from_slice::<Job>(body) else {
        return Ok(());
    };
    let message = error.to_string();
    let name = message
        .strip_prefix("duplicate field `")
        .and_then(|rest| rest.split('`').next());
    Err(JobError::body(match name {
        Some(name) => format!("expected each field once, got {name} twice"),
        None => "expected each field once, got one twice".to_owned(),
    }))
}

/// Refuses arrays where objects belong, which serde would read as the fields in their order.
fn refuse_arrays(json: &Value) -> Result<(), JobError> {
    for name in ["", "retry", "limits", "output"] {
        let value = if name.is_empty() { json } else { &json[name] };
        if value.is_array() {
            return Err(JobError::new(name, mismatch(&expected_at(&[name]), value, false)));
        }
    }
    Ok(())
}

/// Turns what serde says of the value at `path` into what a producer can act on.
fn explain(json: &Value, path: &Path, message: &str) -> JobError {
    let field = field_at(path);
    if message.starts_with("expected ") {
        return JobError::new(field, message); // a type of ours: it knows best
    }
    if let Some(unknown) = message.strip_prefix("unknown field ") {
        return JobError::new(field, format!("unknown field; {}", allowed(unknown)));
    }
    let names: Vec<&str> = path.iter().map(name_of).collect();
    let secret = matches!(
        names[..],
        [] | ["command" | "script" | "env" | "stdin" | "stdin_base64", ..]
    );
    JobError::new(field, mismatch(&expected_at(&names), value_at(json, path), secret))
}

/// Lists the fields that serde names: "`foo`, expected one of `a`, `b`".
fn allowed(unknown: &str) -> String {
    let names = unknown.rsplit_once("expected ").map_or("", |(_, names)| names);
    let names = names
        .trim_start_matches("one of ")
        .replace('`', "")
        .replace(" or ", ", ");
    format!("allowed here: {names}")
}

fn mismatch(expected: &str, got: &Value, secret: bool) -> String {
    match got {
        Value::Object(_) => format!("expected {expected}, got an object"),
        Value::Array(_) => format!("expected {expected}, got an array"),
        Value::String(_) if secret => format!("expected {expected}, got a string"),
        Value::Number(_) if secret => format!("expected {expected}, got a number"),
        Value::String(text) => format!("expected {expected}, got {}", quoted(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => format!("expected {expected}, got {got}"),
    }
}

/// Says what belongs at a path of names and indices; kept complete by a test over the schema.
fn expected_at(names: &[&str]) -> String {
    let expected = match names {
        [] | [""] => "a JSON object",
        ["id"] => JobId::EXPECTED,
        ["command"] => "an array of strings, the program first",
        ["env" | "labels"] => "an object of strings",
        ["command" | "env" | "labels", _] | ["script" | "stdin" | "stdin_base64"] => "a string",
        ["cwd"] => "an absolute path",
        ["timeout" | "kill_grace" | "warn_before"] | ["retry", "initial" | "max"] | ["limits", "cpu_time"] => {
            Span::EXPECTED
        }
        ["limits", "memory" | "file_size"] | ["output", "max_bytes"] => ByteSize::EXPECTED,
        ["term_signal" | "warn_signal"] => SignalName::EXPECTED,
        ["not_before" | "expires_at"] => timestamp::EXPECTED,
        ["retry" | "limits" | "output"] => "an object",
        ["retry", "max_attempts"] => "a whole number from 1 to 4294967295",
        ["retry", "multiplier"] => RetryPolicy::EXPECTED_MULTIPLIER,
        ["retry", "statuses"] => "an array of statuses",
        ["retry", "statuses", _] => return super::Status::expected(),
        ["retry", "exit_codes"] => "an array of exit codes",
        ["retry", "exit_codes", _] => RetryPolicy::EXPECTED_EXIT_CODE,
        ["limits", "processes" | "open_files"] => "a whole number of at least 1",
        ["output", "live"] => "true or false",
        _ => UNDESCRIBED,
    };
    expected.to_owned()
}

/// Stands for a field that `expected_at` has forgotten.
const UNDESCRIBED: &str = "a value of another type";

fn field_at(path: &Path) -> String {
    let mut field = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => field.push_str(&format!("[{index}]")),
            other if field.is_empty() => field = JobError::path([name_of(other)]),
            other => field = format!("{field}.{}", JobError::path([name_of(other)])),
        }
    }
    field
}

fn name_of(segment: &Segment) -> &str {
    match segment {
        Segment::Map { key } => key,
        Segment::Seq { .. } => "[]",
        Segment::Enum { variant } => variant,
        Segment::Unknown => "?",
    }
}

fn value_at<'a>(json: &'a Value, path: &Path) -> &'a Value {
    path.iter().fold(json, |value, segment| match segment {
        Segment::Map { key } => &value[key],
        Segment::Seq { index } => &value[index],
        Segment::Enum { .. } | Segment::Unknown => value,
    })
}

/// Reads an object up to its `id`, and no further.
struct IdSeed<'a>(&'a mut Option<JobId>);

impl<'de> DeserializeSeed<'de> for IdSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IdSeed<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "id" {
                *self.0 = Some(map.next_value()?);
                return Err(A::Error::custom("found"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}
