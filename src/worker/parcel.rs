//! All that an attempt sends when it has ended, in order: its result, the reply, and what comes after it.
//!
//! A parcel is made once and sent until all of it is confirmed, by the worker that made it or, from the outbox on disk,
//! by the next one. So it holds finished messages and asks nothing of the job any more. What is written here is read by
//! later versions: `spool::format` keeps a sample that has to load.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::admit::Ticket;
use super::outgoing;
use super::settle::{Conclusion, Next};
use crate::message::{Attempt, Envelope, JobId, JobResult, TraceContext, TraceId};
use crate::transport::Publication;
use crate::transport::topology::Names;

/// The messages of one concluded attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Parcel {
    /// Which message it answers; stands beside the parcel in a file, to be found without reading it.
    #[serde(skip)]
    pub(super) key: u128,
    pub(super) pool: String,
    pub(super) job_id: JobId,
    /// In the order in which they have to be confirmed; the result and the reply may go at once.
    pub(super) mail: Vec<Mail>,
}

/// One of its messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Mail {
    pub(super) purpose: Purpose,
    pub(super) publication: Publication,
}

/// What a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// The result, for everybody who listens.
    Result,
    /// The result, for the one who asked.
    Reply,
    /// The job, for another attempt after this delay.
    Retry { delay: Duration },
    /// The job, as a dead letter.
    DeadLetter { reason: String },
}

impl Parcel {
    /// Packs what `conclusion` says about `job`.
    pub(super) fn of(
        names: &Names,
        pool: &str,
        key: u128,
        job: &Envelope,
        ticket: &Ticket,
        conclusion: &Conclusion,
    ) -> Self {
        let Conclusion { result, next } = conclusion;
        let publication = outgoing::result(names, ticket, result);
        let reply = outgoing::reply(ticket, &publication).map(|publication| Mail {
            purpose: Purpose::Reply,
            publication,
        });
        let purpose = Purpose::Result;
        let mut mail = Vec::with_capacity(2); // seldom more
        mail.push(Mail { purpose, publication });
        mail.extend(reply);
        mail.extend(follow_up(names, pool, job, ticket, result, next));
        Self {
            key,
            pool: pool.to_owned(),
            job_id: ticket.job_id.clone(),
            mail,
        }
    }

    /// The result that it holds.
    pub(super) fn result(&self) -> Option<Arc<JobResult>> {
        self.result_message()?.body.result().ok()
    }

    /// The trace that its result is a part of.
    pub(super) fn trace_id(&self) -> Option<TraceId> {
        TraceContext::read(&self.result_message()?.properties).map(|context| context.trace_id)
    }

    fn result_message(&self) -> Option<&Envelope> {
        let result = self.mail.iter().find(|mail| mail.purpose == Purpose::Result)?;
        Some(&result.publication.envelope)
    }
}

fn follow_up(
    names: &Names,
    pool: &str,
    job: &Envelope,
    ticket: &Ticket,
    result: &JobResult,
    next: &Next,
) -> Option<Mail> {
    match next {
        Next::Done => None,
        Next::Retry(delay) => {
            let at = Timestamp::now().checked_add(*delay).unwrap_or(Timestamp::MAX);
            Some(Mail {
                purpose: Purpose::Retry { delay: *delay },
                publication: outgoing::retried(names, pool, job, ticket, at, *delay),
            })
        }
        Next::DeadLetter { field } => {
            // A run that ended is on the account; one that never began is not.
            let runs_ended = ticket.attempt.runs_ended + u32::from(result.started_at.is_some());
            let attempt = Attempt {
                runs_ended,
                ..ticket.attempt
            };
            Some(Mail {
                purpose: Purpose::DeadLetter {
                    reason: result.status.to_string(),
                },
                publication: outgoing::dead(names, job, attempt, result, field.as_deref()),
            })
        }
    }
}

/// A parcel as of a job with this id, of about so many bytes.
#[cfg(test)]
pub(super) fn sample(id: &str, bytes: usize) -> Parcel {
    use crate::message::Properties;
    use crate::transport::Routing;

    let message = |exchange: &str, routing_key: &str, body: Vec<u8>| Publication {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        routing: Routing::Optional,
        envelope: Envelope {
            body: body.into(),
            properties: Properties {
                message_id: Some(format!("{id}/1")),
                ..Properties::default()
            },
        }
        .into(),
    };
    Parcel {
        key: bytes as u128,
        pool: "p".to_owned(),
        job_id: id.parse().unwrap_or_else(|_| JobId::random()),
        mail: vec![
            Mail {
                purpose: Purpose::Result,
                publication: message("n.results", "p.failed", vec![b'x'; bytes]),
            },
            Mail {
                purpose: Purpose::DeadLetter {
                    reason: "failed".to_owned(),
                },
                publication: message("n.dead", "p", b"{}".to_vec()),
            },
        ],
    }
}
