//! What a submitter makes of an item. Pure: the message that submits it, or the result of what is no job.

use bytes::Bytes;

use super::{BadItem, BatchId, Item, Submission};
use crate::message::{
    Encoding, Envelope, Failure, JobId, JobResult, Output, Properties, Status, TraceContext, WorkerInfo, header,
};
use crate::transport::topology::Names;
use crate::transport::{Publication, Routing};

/// How jobs that bring no id of their own are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// By the batch and the place in the input, so that one batch's jobs are found together.
    OfBatch,
    /// By where they come from, for people: `jobs.jsonl:3`.
    OfOrigin,
}

/// To whom jobs are addressed.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) exchange: String,
    pub(super) pool: String,
    pub(super) reply_to: String,
    pub(super) batch: BatchId,
    pub(super) priority: Option<u8>,
    pub(super) ids: Ids,
    /// What the jobs are a part of, if they are part of a trace.
    pub(super) cause: Option<TraceContext>,
}

impl Address {
    pub(super) fn new(names: &Names, pool: &str, batch: &BatchId) -> Self {
        Self {
            exchange: names.jobs(),
            pool: pool.to_owned(),
            reply_to: names.batch_results(batch.as_str()),
            batch: batch.clone(),
            priority: None,
            ids: Ids::OfBatch,
            cause: None,
        }
    }

    /// The message that submits a job, which is not read. A job of its own id keeps that, since the body's wins.
    pub(super) fn job(&self, submission: Submission, origin: &str, body: Bytes) -> Publication {
        let mut properties = Properties {
            correlation_id: Some(submission.to_string()),
            reply_to: Some(self.reply_to.clone()),
            priority: self.priority,
            ..Properties::of_job(&self.id(submission.seq, origin))
        };
        let batch = self.batch.as_str().into();
        properties.headers.insert(header::BATCH.to_owned(), batch);
        if let Some(cause) = &self.cause {
            cause.write(&mut properties);
        }
        let body = body.into();
        Publication {
            exchange: self.exchange.clone(),
            routing_key: self.pool.clone(),
            routing: Routing::Mandatory,
            envelope: Envelope { body, properties }.into(),
        }
    }

    fn id(&self, seq: u64, origin: &str) -> JobId {
        match self.ids {
            Ids::OfBatch => self.batch.job(seq),
            Ids::OfOrigin => id_of_origin(origin),
        }
    }

    /// The result of an item that is no job, which no worker ever sees.
    pub(super) fn rejected(&self, item: &Item, error: &BadItem, here: &WorkerInfo) -> JobResult {
        JobResult {
            job_id: error.id.clone().unwrap_or_else(|| self.id(item.seq, &item.name.origin)),
            attempt: 1,
            status: Status::Rejected,
            is_final: true,
            exit_code: None,
            signal: None,
            stdout: nothing(),
            stderr: nothing(),
            queued_at: None,
            started_at: None,
            finished_at: crate::message::now(),
            duration_ms: 0,
            ended_by: None,
            phases: None,
            limits_applied: Default::default(),
            usage: None,
            worker: here.clone(),
            error: Some(Failure {
                kind: error.kind,
                message: error.message.clone(),
            }),
            labels: Default::default(),
        }
    }
}

fn nothing() -> Output {
    Output {
        text: String::new(),
        encoding: Encoding::Utf8,
        bytes: 0,
        truncated_bytes: 0,
    }
}

/// Where an item stands, as an id: without the folders, and with hyphens for what an id cannot have. One alone stands
/// nowhere, and is called by chance.
fn id_of_origin(origin: &str) -> JobId {
    const MAX_NAME: usize = 100; // leaves room for the number
    let placed = origin
        .rsplit_once(':')
        .or_else(|| origin.split_once(' ').filter(|(item, _)| *item == "item"));
    let is_number = |number: &str| number.bytes().all(|byte| byte.is_ascii_digit());
    let Some((file, number)) = placed.filter(|(_, number)| is_number(number)) else {
        return JobId::random();
    };
    let name = file.rsplit('/').next().unwrap_or_default();
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(allowed).take(MAX_NAME).collect();
    format!("{name}:{number}").parse().unwrap_or_else(|_| JobId::random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Name;
    use crate::message::FailureKind;

    fn address(ids: Ids) -> Address {
        let batch = "b".parse().unwrap();
        Address {
            ids,
            ..Address::new(&Names::new("n"), "p", &batch)
        }
    }

    #[test]
    fn a_job_is_published_unread_and_answered_to_the_batch() {
        let submission = Submission { seq: 7, number: 2 };
        let job = address(Ids::OfBatch).job(submission, "a.jsonl:9", "no json".into());
        assert_eq!((&*job.exchange, &*job.routing_key), ("n.jobs", "p"));
        let properties = &job.envelope.properties;
        assert_eq!(properties.message_id.as_deref(), Some("b:7"));
        assert_eq!(properties.correlation_id.as_deref(), Some("7.2"));
        assert_eq!(properties.reply_to.as_deref(), Some("n.batch.b"));
        assert_eq!(properties.text_header(header::BATCH), Some("b"));
        assert!(properties.submitted_at().is_some(), "a cancel goes by it");
    }

    #[test]
    fn a_job_is_of_the_trace_that_its_batch_is_of() {
        let job_of = |cause: Option<TraceContext>| {
            let address = Address {
                cause,
                ..address(Ids::OfBatch)
            };
            let job = address.job(Submission { seq: 1, number: 1 }, "a:1", Bytes::new());
            job.envelope.properties.clone()
        };
        let cause = TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("a=1"));
        assert!(cause.is_some());
        assert_eq!(TraceContext::read(&job_of(cause.clone())), cause);
        assert_eq!(job_of(None).text_header(header::TRACEPARENT), None);
    }

    #[test]
    fn ids_of_origin_tell_the_line_and_nothing_else() {
        let id = |origin: &str| {
            let job = address(Ids::OfOrigin).job(Submission { seq: 1, number: 1 }, origin, Bytes::new());
            job.envelope.properties.message_id.clone().unwrap()
        };
        assert_eq!(id("/a/b/jobs of today.jsonl:3"), "jobs-of-today.jsonl:3");
        assert_eq!(id("stdin:12"), "stdin:12");
        assert_eq!(id("item 7"), "item:7");
        assert_eq!(id("command line").len(), 36, "a UUID");
        assert_eq!(id(&format!("{}:1", "x".repeat(300))), format!("{}:1", "x".repeat(100)));
    }

    #[test]
    fn what_is_no_job_has_a_final_result_that_names_the_field() {
        let error = BadItem {
            id: None,
            kind: FailureKind::InvalidJob,
            field: Some("timeout".to_owned()),
            message: "timeout: expected a duration".to_owned(),
        };
        let item = Item {
            seq: 3,
            name: Name {
                origin: "a:4".to_owned(),
                ..Name::default()
            },
            job: Err(error.clone()),
        };
        let here = WorkerInfo {
            id: "w".to_owned(),
            host: "h".to_owned(),
            pool: "p".to_owned(),
            version: "0".to_owned(),
        };
        let result = address(Ids::OfBatch).rejected(&item, &error, &here);
        assert!(result.is_final && result.status == Status::Rejected);
        assert_eq!(result.error.unwrap().message, "timeout: expected a duration");
        assert_eq!(result.job_id.to_string(), "b:3");
    }
}
