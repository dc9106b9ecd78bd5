//! The messages that leave a worker. Pure: what is published where, not when.

use std::time::Duration;

use jiff::Timestamp;

use super::admit::Ticket;
use crate::message::envelope::JSON;
use crate::message::{Attempt, Envelope, HeaderValue, JobId, JobResult, Properties, header};
use crate::transport::topology::{Names, tier_for};
use crate::transport::{Publication, Routing};

/// Headers that tell of a message's earlier ways. A broker drops a message whose history says that it goes in
/// circles, and this one starts anew.
const HISTORY: [&str; 3] = ["x-death", "x-delivery-count", "x-acquired-count"];
/// The same for headers that come in families.
const HISTORY_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
/// The broker's own way to answer without a queue: it returns a mandatory message although it delivers it.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// A result for everybody who listens.
pub(super) fn result(names: &Names, ticket: &Ticket, result: &JobResult) -> Publication {
    Publication {
        exchange: names.results(),
        routing_key: format!("{}.{}", result.worker.pool, result.status),
        routing: Routing::Optional,
        envelope: result_envelope(ticket, result),
    }
}

/// A result for the one who asked, if somebody did.
pub(super) fn reply(ticket: &Ticket, result: &JobResult) -> Option<Publication> {
    let reply_to = ticket.reply_to.clone()?;
    let routing = if reply_to.starts_with(DIRECT_REPLY_TO) {
        Routing::Optional
    } else {
        Routing::Mandatory
    };
    Some(Publication {
        exchange: String::new(),
        routing_key: reply_to,
        routing,
        envelope: result_envelope(ticket, result),
    })
}

fn result_envelope(ticket: &Ticket, result: &JobResult) -> Envelope {
    Envelope {
        body: result.encode(),
        properties: Properties {
            content_type: Some(JSON.to_owned()),
            message_id: Some(result.message_id()),
            correlation_id: ticket.correlation_id.clone(),
            kind: Some(result.status.to_string()),
            timestamp: u64::try_from(result.finished_at.as_second()).ok(),
            ..Properties::default()
        },
    }
}

/// The same job, unchanged, back into its pool's queue.
pub(super) fn unstarted(names: &Names, pool: &str, job: &Envelope) -> Publication {
    to_queue(names, pool, again(job))
}

/// The same job with one redelivery more on its account.
pub(super) fn recounted(names: &Names, pool: &str, job: &Envelope, id: &JobId, attempt: Attempt) -> Publication {
    let mut envelope = again(job);
    keep_id(&mut envelope, id);
    attempt.write(&mut envelope.properties);
    to_queue(names, pool, envelope)
}

/// The same job, for another run after a wait.
pub(super) fn retried(
    names: &Names,
    pool: &str,
    job: &Envelope,
    ticket: &Ticket,
    at: Timestamp,
    wait: Duration,
) -> Publication {
    let mut envelope = again(job);
    keep_id(&mut envelope, &ticket.job_id);
    ticket.attempt.after_run().write(&mut envelope.properties);
    let not_before = HeaderValue::Text(at.to_string());
    envelope
        .properties
        .headers
        .insert(header::NOT_BEFORE.to_owned(), not_before);
    delayed(names, pool, envelope, wait)
}

/// The same job, to come again when (part of) its wait is over.
pub(super) fn waiting(names: &Names, pool: &str, job: &Envelope, id: &JobId, wait: Duration) -> Publication {
    let mut envelope = again(job);
    keep_id(&mut envelope, id);
    delayed(names, pool, envelope, wait)
}

/// A job that came to a bad end, with all that is known of it.
pub(super) fn dead(names: &Names, job: &Envelope, result: &JobResult, field: Option<&str>) -> Publication {
    let mut envelope = again(job);
    keep_id(&mut envelope, &result.job_id);
    let error = result.error.as_ref().map(|error| error.message.clone());
    let texts = [
        (header::REASON, Some(result.status.to_string())),
        (header::ERROR, error),
        (header::FIELD, field.map(str::to_owned)),
        (header::POOL, Some(result.worker.pool.clone())),
        (header::FAILED_AT, Some(result.finished_at.to_string())),
    ];
    let headers = &mut envelope.properties.headers;
    for (name, text) in texts {
        if let Some(text) = text {
            headers.insert(name.to_owned(), HeaderValue::Text(text));
        }
    }
    let attempt = HeaderValue::Int(i64::from(result.attempt));
    headers.insert(header::ATTEMPT.to_owned(), attempt);
    Publication {
        exchange: names.dead(),
        routing_key: result.worker.pool.clone(),
        routing: Routing::Mandatory,
        envelope,
    }
}

fn to_queue(names: &Names, pool: &str, envelope: Envelope) -> Publication {
    Publication {
        exchange: String::new(),
        routing_key: names.pool_queue(pool),
        routing: Routing::Mandatory,
        envelope,
    }
}

fn delayed(names: &Names, pool: &str, envelope: Envelope, wait: Duration) -> Publication {
    Publication {
        exchange: names.delay(tier_for(wait)),
        routing_key: pool.to_owned(),
        routing: Routing::Mandatory,
        envelope,
    }
}

/// A job as its producer published it, with our headers and without the broker's.
fn again(job: &Envelope) -> Envelope {
    let mut envelope = job.clone();
    envelope.properties.headers.retain(|name, _| !is_history(name));
    // The broker refuses another's name; whose job it was has been checked on its first way in.
    envelope.properties.user_id = None;
    envelope
}

fn is_history(name: &str) -> bool {
    HISTORY.contains(&name) || HISTORY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// A job that brought no id of its own, or none that can be one, keeps the one it was given.
fn keep_id(envelope: &mut Envelope, id: &JobId) {
    let brought = envelope.properties.message_id.as_deref();
    if brought.and_then(|brought| brought.parse::<JobId>().ok()).is_none() {
        envelope.properties.message_id = Some(id.to_string());
    }
}
