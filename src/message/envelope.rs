//! What carries a message: its body and the AMQP properties that this program reads or writes.
//!
//! No transport's types are used here, so the in-process broker and AMQP carry the same thing.
//! `delivery_mode` isn't modelled: every message is persistent.
//!
//! [`Attempt`] is the count that a job carries in its headers over redeliveries and retries.

use std::collections::BTreeMap;
use std::fmt;
use std::num::IntErrorKind;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::body::Body;
use super::decode::JobError;
use super::id::JobId;
use super::timestamp;
use super::units::quoted;

/// A message as it travels: properties and a body.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// What the message holds.
    pub body: Body,
    /// What it says about itself.
    pub properties: Properties,
}

/// The properties of a message, named as AMQP 0-9-1 names them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Properties {
    /// The form of the body, such as `application/json`.
    pub content_type: Option<String>,
    /// How the body is packed, such as `gzip`; not looked at, but passed on.
    pub content_encoding: Option<String>,
    /// The program that published; not looked at, but passed on.
    pub app_id: Option<String>,
    /// The job's id, or `<job id>/<attempt>` of a result.
    pub message_id: Option<String>,
    /// Chosen by the producer, echoed in the result.
    pub correlation_id: Option<String>,
    /// The queue that the producer reads results from.
    pub reply_to: Option<String>,
    /// AMQP's `type`: of a result, its status.
    pub kind: Option<String>,
    /// The user who published, as the broker has checked it.
    pub user_id: Option<String>,
    /// 0 to 9, the highest first.
    pub priority: Option<u8>,
    /// When the message was published, in seconds since 1970.
    pub timestamp: Option<u64>,
    /// Everything else, by name; ours start with `x-synthex-`.
    pub headers: BTreeMap<String, HeaderValue>,
}

/// The value of a header, as far as this program tells values apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum HeaderValue {
    /// A text, short or long.
    Text(String),
    /// A whole number of any width.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A number with a fraction.
    Float(f64),
    /// A list of values.
    List(Vec<HeaderValue>),
    /// Values by name.
    Table(BTreeMap<String, HeaderValue>),
    /// Any other type; passed over.
    Other,
}

/// The names of our headers.
pub mod header {
    /// How often the job was given to a worker to start, from 1.
    pub const ATTEMPT: &str = "x-synthex-attempt";
    /// How many runs of the job have ended.
    pub const RUNS: &str = "x-synthex-runs";
    /// How often the job was redelivered since a run of it last ended.
    pub const REDELIVERIES: &str = "x-synthex-redeliveries";
    /// Why the message is a dead letter: one word.
    pub const REASON: &str = "x-synthex-reason";
    /// Why the message is a dead letter, in a sentence.
    pub const ERROR: &str = "x-synthex-error";
    /// The pool that the message was for.
    pub const POOL: &str = "x-synthex-pool";
    /// The path of the field at fault.
    pub const FIELD: &str = "x-synthex-field";
    /// How often the job's next attempt was put off, because it could not run alone, or its command could not be started.
    pub const PUT_OFFS: &str = "x-synthex-put-offs";
    /// When a client published the job, in RFC 3339 with milliseconds: finer than the property `timestamp`. A cancel goes
    /// by it.
    pub const SUBMITTED_AT: &str = "x-synthex-submitted-at";
    /// When a retry may start, in RFC 3339.
    pub const NOT_BEFORE: &str = "x-synthex-not-before";
    /// When the message became a dead letter, in RFC 3339.
    pub const FAILED_AT: &str = "x-synthex-failed-at";
    /// Headers of the producer were too large, or nested too deep, to be passed on.
    pub const DROPPED: &str = "x-synthex-headers-dropped";
    /// A number that no other message has: our clients and workers put one into every job that they publish.
    pub const UNIQUE: &str = "x-synthex-unique";
    /// The batch that the job is of: a cancel of the batch is for it.
    pub const BATCH: &str = "x-synthex-batch";
    /// What all of these begin with.
    pub const OURS: &str = "x-synthex-";
    /// The trace that a message belongs to, by the name that W3C Trace Context gives it.
    pub const TRACEPARENT: &str = "traceparent";
    /// What tracing systems tell each other of that trace.
    pub const TRACESTATE: &str = "tracestate";

    /// How often a message has come back to its queue, as a quorum queue counts it.
    pub(super) const RETURNS: &str = "x-delivery-count";
    /// Headers in which a broker tells of a message's earlier ways.
    const HISTORY: [&str; 3] = ["x-death", RETURNS, "x-acquired-count"];
    /// The same for headers that come in families.
    const HISTORY_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];

    /// Whether a header is the broker's, of the message's earlier ways, and not its producer's.
    #[must_use]
    pub fn is_history(name: &str) -> bool {
        HISTORY.contains(&name) || HISTORY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// The content type of every message of ours.
pub const JSON: &str = "application/json";

impl Properties {
    /// The properties of a job that is published now under this id; who publishes adds where replies go.
    pub fn of_job(id: &JobId) -> Self {
        let mut properties = Self {
            content_type: Some(JSON.to_owned()),
            message_id: Some(id.to_string()),
            ..Self::default()
        };
        properties.make_unique();
        properties.submit_at(Timestamp::now());
        properties
    }

    /// Makes the message another one than all before it, whatever else it says.
    pub fn make_unique(&mut self) {
        self.headers.insert(header::UNIQUE.to_owned(), unique().into());
    }

    /// How often the message has come back to its queue, where the queue counts it.
    #[must_use]
    pub fn returns(&self) -> u32 {
        self.count_header(header::RETURNS).unwrap_or(0)
    }

    /// Makes the message a submission of this moment: a cancel of an earlier one is not for it.
    pub fn submit_at(&mut self, now: Timestamp) {
        let now = timestamp::in_millis(now);
        self.timestamp = u64::try_from(now.as_second()).ok();
        self.headers
            .insert(header::SUBMITTED_AT.to_owned(), now.to_string().into());
    }

    /// Returns when the job was submitted, as far as its producer says: our header, else the property `timestamp`,
    /// whose seconds are whole, so that the job seems up to one second older than it is.
    pub fn submitted_at(&self) -> Option<Timestamp> {
        let ours = self.text_header(header::SUBMITTED_AT);
        let seconds = || i64::try_from(self.timestamp?).ok();
        ours.and_then(|text| timestamp::parse(text).ok())
            .or_else(|| Timestamp::from_second(seconds()?).ok())
    }

    /// Checks that the message doesn't say that it is something else than JSON.
    ///
    /// None at all or an empty one is accepted, and so is one with parameters
    /// (`application/json;charset=utf-8`).
    ///
    /// # Errors
    ///
    /// When there is another content type; the error's field is `content_type`.
    pub fn check_content_type(&self) -> Result<(), JobError> {
        let Some(content_type) = self.content_type.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(());
        };
        let media_type = content_type.split(';').next().unwrap_or_default();
        if media_type.trim().eq_ignore_ascii_case(JSON) {
            return Ok(());
        }
        let message = format!(r#"expected "{JSON}" or none, got {}"#, quoted(content_type));
        Err(JobError::new("content_type", message))
    }

    /// Returns a header that is a text.
    pub fn text_header(&self, name: &str) -> Option<&str> {
        match self.headers.get(name) {
            Some(HeaderValue::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Returns a count; tools that write every header as text are understood too.
    fn count_header(&self, name: &str) -> Option<u32> {
        match self.headers.get(name)? {
            HeaderValue::Int(number) => Some(u32::try_from((*number).max(0)).unwrap_or(u32::MAX)),
            HeaderValue::Text(text) => match text.parse::<u32>() {
                Err(error) if *error.kind() == IntErrorKind::PosOverflow => Some(u32::MAX),
                count => count.ok(),
            },
            _ => None,
        }
    }
}

/// A number that no other message has: one that no other process has, and a count. To ask the kernel for a random one each
/// time takes longer than all else that is done for a message.
fn unique() -> String {
    static PROCESS: LazyLock<JobId> = LazyLock::new(JobId::random);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", *PROCESS, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Shows the body's length only: it may hold secrets, and `Debug` ends in logs.
impl fmt::Debug for Envelope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Envelope")
            .field("body_bytes", &self.body.len())
            .field("properties", &self.properties)
            .finish()
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for HeaderValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for HeaderValue {
    fn from(number: u32) -> Self {
        Self::Int(number.into())
    }
}

/// How often a job was tried so far; travels in the headers of its message.
///
/// Every count stops at its largest value instead of starting over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The times that the job was given to a worker to start, this time included. From 1.
    pub number: u32,
    /// The runs that ended: what `retry.max_attempts` limits.
    pub runs_ended: u32,
    /// The redeliveries since a run last ended: what `delivery_limit` limits.
    pub redeliveries: u32,
    /// The times that this attempt was put off: it was to run alone and could not, or its command could not be started.
    pub put_offs: u32,
}

impl Attempt {
    /// The first attempt of a job that nobody has tried.
    pub const FIRST: Self = Self {
        number: 1,
        runs_ended: 0,
        redeliveries: 0,
        put_offs: 0,
    };

    /// Reads the count from a message; what isn't there or makes no sense counts as never tried.
    pub fn read(properties: &Properties) -> Self {
        let count = |name| properties.count_header(name).unwrap_or(0);
        Self {
            number: count(header::ATTEMPT).max(Self::FIRST.number),
            runs_ended: count(header::RUNS),
            redeliveries: count(header::REDELIVERIES),
            put_offs: count(header::PUT_OFFS),
        }
    }

    /// Writes the count to the headers of a message.
    pub fn write(self, properties: &mut Properties) {
        for (name, count) in [
            (header::ATTEMPT, self.number),
            (header::RUNS, self.runs_ended),
            (header::REDELIVERIES, self.redeliveries),
        ] {
            properties.headers.insert(name.to_owned(), count.into());
        }
        // Rare enough to be left out otherwise.
        match self.put_offs {
            0 => properties.headers.remove(header::PUT_OFFS),
            count => properties.headers.insert(header::PUT_OFFS.to_owned(), count.into()),
        };
    }

    /// Returns the count of the same attempt, put off once more.
    #[must_use]
    pub fn after_put_off(self) -> Self {
        Self {
            put_offs: self.put_offs.saturating_add(1),
            ..self
        }
    }

    /// Returns the count of the attempt after one that was redelivered without an end.
    #[must_use]
    pub fn after_redelivery(self) -> Self {
        Self {
            number: self.number.saturating_add(1),
            redeliveries: self.redeliveries.saturating_add(1),
            put_offs: 0,
            ..self
        }
    }

    /// Returns the count of the attempt after one whose run ended.
    #[must_use]
    pub fn after_run(self) -> Self {
        Self {
            number: self.number.saturating_add(1),
            runs_ended: self.runs_ended.saturating_add(1),
            redeliveries: 0,
            put_offs: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_counts(value: &HeaderValue) -> Properties {
        let names = [header::ATTEMPT, header::RUNS, header::REDELIVERIES, header::PUT_OFFS];
        let headers = names.map(|name| (name.to_owned(), value.clone())).into();
        Properties {
            headers,
            ..Properties::default()
        }
    }

    #[test]
    fn an_attempt_is_read_as_it_was_written() {
        let attempt = Attempt {
            number: 7,
            runs_ended: 2,
            redeliveries: 4,
            put_offs: 1,
        };
        let mut properties = Properties::default();
        attempt.write(&mut properties);
        assert_eq!(properties.headers[header::ATTEMPT], HeaderValue::Int(7));
        assert_eq!(Attempt::read(&properties), attempt);
        let next = attempt.after_redelivery();
        next.write(&mut properties);
        assert_eq!(
            Attempt::read(&properties),
            next,
            "what counted for the one before is gone"
        );
    }

    #[test]
    fn counts_that_make_no_sense_count_as_never_tried() {
        assert_eq!(Attempt::read(&Properties::default()), Attempt::FIRST);
        for value in [
            HeaderValue::Text("many".into()),
            HeaderValue::Text("-7".into()),
            HeaderValue::Bool(true),
            HeaderValue::Int(-1),
            HeaderValue::Int(i64::MIN),
            HeaderValue::Int(0),
            HeaderValue::List(vec![HeaderValue::Int(7)]),
            HeaderValue::Other,
        ] {
            assert_eq!(Attempt::read(&with_counts(&value)), Attempt::FIRST, "{value:?}");
        }
    }

    #[test]
    fn counts_are_understood_as_text() {
        assert_eq!(Attempt::read(&with_counts(&"7".into())).number, 7);
    }

    #[test]
    fn counts_stop_at_their_largest_value() {
        let most = Attempt::read(&with_counts(&HeaderValue::Int(i64::MAX)));
        let full = Attempt {
            number: u32::MAX,
            runs_ended: u32::MAX,
            redeliveries: u32::MAX,
            put_offs: u32::MAX,
        };
        assert_eq!(most, full);
        assert_eq!(most.after_put_off(), most);
        assert_eq!(most.after_redelivery(), Attempt { put_offs: 0, ..most });
        assert_eq!(
            most.after_run(),
            Attempt {
                redeliveries: 0,
                put_offs: 0,
                ..most
            }
        );
    }

    #[test]
    fn a_redelivery_uses_up_no_run_and_a_run_forgets_redeliveries() {
        let again = Attempt::FIRST.after_redelivery().after_redelivery();
        assert_eq!(
            again,
            Attempt {
                number: 3,
                redeliveries: 2,
                ..Attempt::FIRST
            }
        );
        assert_eq!(
            again.after_run(),
            Attempt {
                number: 4,
                runs_ended: 1,
                ..Attempt::FIRST
            }
        );
    }

    #[test]
    fn a_put_off_is_no_attempt_and_is_forgotten_with_the_next_one() {
        let put_off = Attempt::FIRST.after_put_off().after_put_off();
        assert_eq!(
            put_off,
            Attempt {
                put_offs: 2,
                ..Attempt::FIRST
            }
        );
        assert_eq!(put_off.after_redelivery().put_offs, 0);
        assert_eq!(put_off.after_run().put_offs, 0);
    }

    #[test]
    fn a_job_s_age_is_that_of_its_header_else_of_its_timestamp_else_unknown() {
        let of = |header: Option<&str>, timestamp| {
            let headers = header.map(|text| (header::SUBMITTED_AT.to_owned(), text.into()));
            let properties = Properties {
                timestamp,
                headers: headers.into_iter().collect(),
                ..Properties::default()
            };
            properties.submitted_at().map(|at| at.to_string())
        };
        let fine = "2030-01-31T12:00:00.25Z";
        assert_eq!(of(Some(fine), Some(7)).as_deref(), Some(fine));
        assert_eq!(of(Some("soon"), Some(7)).as_deref(), Some("1970-01-01T00:00:07Z"));
        assert_eq!(of(None, Some(u64::MAX)), None);
        assert_eq!(of(None, None), None);
    }

    #[test]
    fn a_job_of_ours_tells_when_it_was_submitted_to_the_millisecond() {
        let before = timestamp::now();
        let submitted = Properties::of_job(&JobId::random()).submitted_at();
        assert!(
            submitted.is_some_and(|at| (before..=timestamp::now()).contains(&at)),
            "{submitted:?}"
        );
    }

    #[test]
    fn json_or_nothing_is_accepted_as_content_type() {
        let check = |text: Option<&str>| {
            let content_type = text.map(str::to_owned);
            Properties {
                content_type,
                ..Properties::default()
            }
            .check_content_type()
        };
        assert_eq!(check(None), Ok(()));
        for text in [
            "",
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
        ] {
            assert_eq!(check(Some(text)), Ok(()));
        }
        for text in ["text/plain", "application/jsonx", "json"] {
            let expected = format!(r#"content_type: expected "application/json" or none, got "{text}""#);
            assert_eq!(check(Some(text)).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn debug_shows_no_body() {
        let envelope = Envelope {
            body: "secret".into(),
            ..Envelope::default()
        };
        let debug = format!("{envelope:?}");
        assert!(debug.contains("body_bytes: 6") && !debug.contains("secret"), "{debug}");
    }
}
