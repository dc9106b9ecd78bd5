//! What a dead letter is about, from what is written on it.
//!
//! Letters come in three ways, and each is marked in its own way:
//! - A worker ended the job, and wrote our headers.
//! - The broker took the job from a pool's queue: at the delivery limit, or because a policy lets messages expire. Then
//!   the newest entry of `x-death` has the queue, the reason and the time. (`x-first-death-…` may tell of a delay queue
//!   that the job came through.)
//! - No queue took the job, and an alternate exchange brought it here. Nothing is written on it; its routing key is the
//!   pool.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::message::{Attempt, Envelope, HeaderValue, Job, Properties, header, peek_id};
use crate::transport::topology::Names;

/// The reason of a letter that no queue took.
const UNROUTABLE: &str = "unroutable";
/// Where RabbitMQ writes which queues a message was dead-lettered from, the latest first.
const DEATHS: &str = "x-death";
/// Most bytes kept of any text: others than we can write headers, and a list may have a million rows.
const TEXT_MAX: usize = 1024;

/// What is known of a dead letter. Texts of more than 1 KiB are cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Letter {
    /// The job's id, if it brought one.
    pub job_id: Option<String>,
    /// The pool that it was for.
    pub pool: String,
    /// One word: the status of its last result; of a letter from the broker `unroutable`, `delivery_limit`, `expired`
    /// or `rejected`.
    pub reason: String,
    /// The reason, in a sentence.
    pub error: Option<String>,
    /// The path of the field at fault.
    pub field: Option<String>,
    /// How often the job was given to a worker to start.
    pub attempt: u32,
    /// How many of its runs ended.
    pub runs: u32,
    /// When it was published.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub queued_at: Option<Timestamp>,
    /// When it became a dead letter.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub failed_at: Option<Timestamp>,
    /// The length of its body.
    pub bytes: usize,
    /// The job's labels, if it is a job.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The property `message_id`, which may be another one than the body's own id.
    #[serde(skip)]
    message_id: Option<String>,
}

/// How it came here, where our headers don't say it.
struct Death {
    pool: String,
    reason: String,
    error: String,
    at: Option<Timestamp>,
}

impl Letter {
    /// Reads what is written on a letter.
    pub(super) fn read(names: &Names, envelope: &Envelope, routing_key: &str) -> Self {
        let Envelope { body, properties } = envelope;
        let ours = |name| properties.text_header(name).map(cut);
        let death = Death::by_broker(names, properties).unwrap_or_else(|| Death::unroutable(names, routing_key));
        let attempt = Attempt::read(properties);
        let message_id = properties.message_id.clone();
        let failed_at = || properties.text_header(header::FAILED_AT)?.parse().ok();
        let (reason, error, at) = match ours(header::REASON) {
            Some(reason) => (reason, ours(header::ERROR), failed_at()),
            None => (death.reason, Some(death.error), death.at),
        };
        Self {
            job_id: peek_id(body).map(|id| id.to_string()).or_else(|| message_id.clone()),
            pool: ours(header::POOL).unwrap_or(death.pool),
            reason,
            error,
            field: ours(header::FIELD),
            attempt: attempt.number,
            runs: attempt.runs_ended,
            queued_at: properties.timestamp.and_then(seconds),
            failed_at: at,
            bytes: body.len(),
            labels: labels(body),
            message_id,
        }
    }

    /// Whether the job goes by this id: the one in its body, or the one of its message, which a pool with a handler
    /// takes for it.
    #[must_use]
    pub fn is_called(&self, id: &str) -> bool {
        [&self.job_id, &self.message_id]
            .into_iter()
            .flatten()
            .any(|name| name == id)
    }

    /// A letter that says so much.
    #[cfg(test)]
    pub(in crate::control) fn of_test(
        job_id: Option<String>,
        pool: &str,
        reason: &str,
        labels: BTreeMap<String, String>,
    ) -> Self {
        let (names, envelope) = (Names::new("n"), Envelope::default());
        Self {
            job_id,
            reason: reason.to_owned(),
            error: None,
            labels,
            ..Self::read(&names, &envelope, pool)
        }
    }

    /// What messages call it.
    pub(super) fn name(&self) -> String {
        match &self.job_id {
            Some(id) => format!("job {id:?}"),
            None => "a job without an id".to_owned(),
        }
    }
}

impl Death {
    /// A death in a pool's queue.
    fn by_broker(names: &Names, properties: &Properties) -> Option<Self> {
        let HeaderValue::List(deaths) = properties.headers.get(DEATHS)? else {
            return None;
        };
        let HeaderValue::Table(newest) = deaths.first()? else {
            return None;
        };
        let text = |name| match newest.get(name) {
            Some(HeaderValue::Text(text)) => Some(text.as_str()),
            _ => None,
        };
        let (queue, reason) = (text("queue")?, text("reason")?);
        let pool = queue.strip_prefix(&names.pool_queue(""))?;
        let at = match newest.get("time") {
            Some(HeaderValue::Int(at)) => Timestamp::from_second(*at).ok(),
            _ => None,
        };
        Some(Self {
            pool: cut(pool),
            reason: cut(reason),
            error: format!("the broker took it from queue {:?}: {}", cut(queue), cut(reason)),
            at,
        })
    }

    fn unroutable(names: &Names, routing_key: &str) -> Self {
        let pool = cut(routing_key);
        Self {
            error: format!("no queue {:?} was there to take it", names.pool_queue(&pool)),
            pool,
            reason: UNROUTABLE.to_owned(),
            at: None,
        }
    }
}

/// A job's labels; what is no job has none.
fn labels(body: &[u8]) -> BTreeMap<String, String> {
    let labels = Job::decode(body).ok().and_then(|job| job.labels).unwrap_or_default();
    labels.iter().map(|(name, value)| (cut(name), cut(value))).collect()
}

fn seconds(since_epoch: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(since_epoch).ok()?).ok()
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(TEXT_MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names::new("n")
    }

    fn text(text: &str) -> HeaderValue {
        text.into()
    }

    fn with(headers: &[(&str, HeaderValue)]) -> Envelope {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Envelope {
            body: r#"{"command": ["true"], "labels": {"team": "blue"}}"#.into(),
            properties: Properties {
                message_id: Some("job-1".to_owned()),
                timestamp: Some(1_700_000_000),
                headers: headers.collect(),
                ..Properties::default()
            },
        }
    }

    /// An entry of `x-death` as RabbitMQ 3.10 writes it.
    fn death(queue: &str, reason: &str) -> HeaderValue {
        let fields = [
            ("count", HeaderValue::Int(1)),
            ("exchange", text("n.jobs")),
            ("queue", text(queue)),
            ("reason", text(reason)),
            ("routing-keys", HeaderValue::List(vec![text("p")])),
            ("time", HeaderValue::Int(1_700_000_009)),
        ];
        HeaderValue::Table(fields.map(|(name, value)| (name.to_owned(), value)).into())
    }

    fn read(envelope: &Envelope) -> Letter {
        Letter::read(&names(), envelope, "key")
    }

    #[test]
    fn a_letter_from_a_worker_says_it_all() {
        let letter = read(&with(&[
            (header::REASON, text("rejected")),
            (header::ERROR, text("limits.memory: expected a size")),
            (header::FIELD, text("limits.memory")),
            (header::POOL, text("p")),
            (header::FAILED_AT, text("2023-11-14T22:13:29.5Z")),
            (header::ATTEMPT, HeaderValue::Int(3)),
            (header::RUNS, HeaderValue::Int(2)),
            (DEATHS, HeaderValue::List(vec![death("n.jobs.q", "expired")])),
        ]));
        let json = serde_json::to_value(&letter).unwrap();
        let expected = serde_json::json!({
            "job_id": "job-1",
            "pool": "p",
            "reason": "rejected",
            "error": "limits.memory: expected a size",
            "field": "limits.memory",
            "attempt": 3,
            "runs": 2,
            "queued_at": "2023-11-14T22:13:20Z",
            "failed_at": "2023-11-14T22:13:29.5Z",
            "bytes": 49,
            "labels": {"team": "blue"},
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn a_letter_that_no_queue_took_is_unroutable_and_its_key_the_pool() {
        let letter = read(&with(&[]));
        assert_eq!((letter.reason.as_str(), letter.pool.as_str()), ("unroutable", "key"));
        assert!(letter.error.unwrap().contains(r#""n.jobs.key""#));
        assert_eq!((letter.attempt, letter.failed_at), (1, None));
    }

    #[test]
    fn a_letter_from_the_broker_has_its_word_for_the_reason() {
        for reason in ["delivery_limit", "expired", "rejected"] {
            // A retry that came through a delay queue first, and has been counted.
            let deaths = vec![death("n.jobs.p", reason), death("n.delay.1s", "expired")];
            let letter = read(&with(&[
                (DEATHS, HeaderValue::List(deaths)),
                ("x-first-death-reason", text("expired")),
                ("x-first-death-queue", text("n.delay.1s")),
                (header::ATTEMPT, HeaderValue::Int(7)),
            ]));
            assert_eq!((letter.reason.as_str(), letter.pool.as_str()), (reason, "p"));
            assert!(letter.error.unwrap().contains(r#""n.jobs.p""#));
            assert_eq!(letter.attempt, 7);
            assert_eq!(letter.failed_at.unwrap().to_string(), "2023-11-14T22:13:29Z");
        }
    }

    #[test]
    fn a_retry_whose_pool_has_gone_meanwhile_is_unroutable() {
        let deaths = vec![death("n.delay.1s", "expired")];
        let letter = read(&with(&[(DEATHS, HeaderValue::List(deaths))]));
        assert_eq!((letter.reason.as_str(), letter.pool.as_str()), ("unroutable", "key"));
    }

    #[test]
    fn headers_that_make_no_sense_say_nothing() {
        for senseless in [
            text("text"),
            HeaderValue::List(vec![]),
            HeaderValue::List(vec![text("text")]),
            HeaderValue::List(vec![HeaderValue::Table(BTreeMap::new())]),
        ] {
            let headers = [DEATHS, header::ATTEMPT, header::FAILED_AT, header::POOL];
            let headers = headers.map(|name| (name, senseless.clone()));
            let letter = read(&with(&headers));
            assert_eq!((letter.reason.as_str(), letter.attempt), ("unroutable", 1));
        }
    }

    #[test]
    fn a_job_goes_by_its_body_s_id_and_by_its_message_s() {
        let mut envelope = with(&[]);
        envelope.body = r#"{"id": "own", "comand": 1}"#.into();
        let letter = read(&envelope);
        assert_eq!(letter.job_id.as_deref(), Some("own"));
        assert!(letter.is_called("own") && letter.is_called("job-1") && !letter.is_called("other"));

        envelope.body = vec![0xff].into();
        envelope.properties.message_id = None;
        assert_eq!(read(&envelope).job_id, None);
    }

    #[test]
    fn a_text_of_any_length_makes_a_row_of_bounded_length() {
        let long = text(&"ä".repeat(100_000));
        let letter = read(&with(&[(header::REASON, long.clone()), (header::ERROR, long)]));
        for text in [letter.reason, letter.error.unwrap()] {
            assert!(
                text.len() <= TEXT_MAX + "…".len() && text.ends_with('…'),
                "{}",
                text.len()
            );
        }
    }
}
