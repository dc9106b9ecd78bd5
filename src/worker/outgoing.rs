//! The messages that leave a worker. Pure: what is published where, not when.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::admit::Ticket;
use crate::message::envelope::JSON;
use crate::message::{Attempt, Envelope, HeaderValue, JobId, JobResult, Properties, header};
use crate::transport::topology::{Names, TIERS, tier_for};
use crate::transport::{Publication, Routing};

/// RabbitMQ sends a message to every queue that these name, again each time it is published.
const COPIES: [&str; 2] = ["CC", "BCC"];
/// Most bytes of a producer's headers that are passed on. All properties of a message have to fit into one frame (128
/// KiB by default) together with what we add; a broker ends the connection over a larger one.
const HEADERS_MAX: usize = 64 * 1024;
/// The broker's own way to answer without a queue: it returns a mandatory message although it delivers it.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// A result for everybody who listens.
pub(super) fn result(names: &Names, ticket: &Ticket, result: &Arc<JobResult>) -> Publication {
    Publication {
        exchange: names.results(),
        routing_key: format!("{}.{}", result.worker.pool, result.status),
        routing: Routing::Optional,
        envelope: result_envelope(ticket, result).into(),
    }
}

/// The same result for the one who asked, if somebody did.
pub(super) fn reply(ticket: &Ticket, result: &Publication) -> Option<Publication> {
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
        envelope: result.envelope.clone(),
    })
}

fn result_envelope(ticket: &Ticket, result: &Arc<JobResult>) -> Envelope {
    let mut properties = Properties {
        content_type: Some(JSON.to_owned()),
        message_id: Some(result.message_id()),
        correlation_id: ticket.correlation_id.clone(),
        kind: Some(result.status.to_string()),
        timestamp: u64::try_from(result.finished_at.as_second()).ok(),
        ..Properties::default()
    };
    if let Some(context) = ticket.trace.of_result() {
        context.write(&mut properties);
    }
    Envelope {
        body: result.into(),
        properties,
    }
}

/// The same job, unchanged, back into its pool's queue.
pub(super) fn unstarted(names: &Names, pool: &str, job: &Envelope) -> Publication {
    to_queue(names, pool, again(job))
}

/// The same job with one redelivery more on its account, to come again a moment later: if it is to kill its worker, the ack
/// of the delivery before must have arrived by then, or there would be two of it.
pub(super) fn recounted(names: &Names, pool: &str, job: &Envelope, ticket: &Ticket, attempt: Attempt) -> Publication {
    let mut envelope = again(job);
    keep_identity(&mut envelope, ticket);
    attempt.write(&mut envelope.properties);
    delayed(names, pool, envelope, TIERS[0].ttl)
}

/// The same job, whose next attempt is put off.
pub(super) fn put_off(names: &Names, pool: &str, job: &Envelope, ticket: &Ticket, wait: Duration) -> Publication {
    let mut envelope = again(job);
    keep_identity(&mut envelope, ticket);
    ticket.attempt.after_put_off().write(&mut envelope.properties);
    delayed(names, pool, envelope, wait)
}

/// The same job, whose command is not to be started before `at`, and was put off.
pub(super) fn held_back(
    names: &Names,
    pool: &str,
    job: &Envelope,
    ticket: &Ticket,
    at: Timestamp,
    wait: Duration,
) -> Publication {
    let mut later = put_off(names, pool, job, ticket, wait);
    not_before(Arc::make_mut(&mut later.envelope), at);
    later
}

fn not_before(envelope: &mut Envelope, at: Timestamp) {
    let at = HeaderValue::Text(at.to_string());
    envelope.properties.headers.insert(header::NOT_BEFORE.to_owned(), at);
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
    keep_identity(&mut envelope, ticket);
    ticket.attempt.after_run().write(&mut envelope.properties);
    not_before(&mut envelope, at);
    delayed(names, pool, envelope, wait)
}

/// The same job, to come again when (part of) its wait is over.
pub(super) fn waiting(names: &Names, pool: &str, job: &Envelope, ticket: &Ticket, wait: Duration) -> Publication {
    let mut envelope = again(job);
    keep_identity(&mut envelope, ticket);
    delayed(names, pool, envelope, wait)
}

/// A job that came to a bad end, with all that is known of it.
pub(super) fn dead(
    names: &Names,
    job: &Envelope,
    attempt: Attempt,
    result: &JobResult,
    field: Option<&str>,
) -> Publication {
    let mut envelope = again(job);
    keep_id(&mut envelope, &result.job_id);
    let exit_code = || result.exit_code.map(|code| format!("exited with code {code}"));
    let error = result
        .error
        .as_ref()
        .map(|error| error.message.clone())
        .or_else(exit_code);
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
    headers.remove(header::NOT_BEFORE);
    attempt.write(&mut envelope.properties);
    Publication {
        exchange: names.dead(),
        routing_key: result.worker.pool.clone(),
        routing: Routing::Mandatory,
        envelope: envelope.into(),
    }
}

fn to_queue(names: &Names, pool: &str, envelope: Envelope) -> Publication {
    Publication {
        exchange: String::new(),
        routing_key: names.pool_queue(pool),
        routing: Routing::Mandatory,
        envelope: envelope.into(),
    }
}

fn delayed(names: &Names, pool: &str, envelope: Envelope, wait: Duration) -> Publication {
    Publication {
        exchange: names.delay(tier_for(wait)),
        routing_key: pool.to_owned(),
        routing: Routing::Mandatory,
        envelope: envelope.into(),
    }
}

/// A job as its producer published it, with our headers and without the broker's: a broker drops a message whose history
/// says that it goes in circles, and this one starts anew.
pub(crate) fn again(job: &Envelope) -> Envelope {
    let mut envelope = job.clone();
    envelope.properties.make_unique();
    let headers = &mut envelope.properties.headers;
    headers.retain(|name, _| !header::is_history(name) && !is_copy(name));
    if headers
        .iter()
        .map(|(name, value)| name.len() + size(value))
        .sum::<usize>()
        > HEADERS_MAX
    {
        headers.retain(|name, _| name.starts_with(header::OURS));
        headers.insert(header::DROPPED.to_owned(), HeaderValue::Bool(true));
    }
    // The broker refuses another's name; whose job it was has been checked on its first way in.
    envelope.properties.user_id = None;
    envelope
}

fn is_copy(name: &str) -> bool {
    COPIES.iter().any(|copy| name.eq_ignore_ascii_case(copy))
}

/// About as many bytes as the value takes on the wire.
fn size(value: &HeaderValue) -> usize {
    const NUMBER: usize = 9;
    match value {
        HeaderValue::Text(text) => NUMBER + text.len(),
        HeaderValue::List(items) => NUMBER + items.iter().map(size).sum::<usize>(),
        HeaderValue::Table(fields) => {
            NUMBER
                + fields
                    .iter()
                    .map(|(name, value)| name.len() + size(value))
                    .sum::<usize>()
        }
        _ => NUMBER,
    }
}

/// What the job is known by, and the trace that it is a part of, over all its attempts.
fn keep_identity(envelope: &mut Envelope, ticket: &Ticket) {
    keep_id(envelope, &ticket.job_id);
    if let Some(context) = ticket.trace.of_job() {
        context.write(&mut envelope.properties);
    }
}

/// A job that brought no id of its own, or none that can be one, keeps the one it was given.
fn keep_id(envelope: &mut Envelope, id: &JobId) {
    let brought = envelope.properties.message_id.as_deref();
    if brought.and_then(|brought| brought.parse::<JobId>().ok()).is_none() {
        envelope.properties.message_id = Some(id.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::TraceContext;
    use crate::worker::trail::Trace;

    fn names() -> Names {
        Names::new("n")
    }

    /// A job that has been around: with the broker's headers, ours, and a stranger's.
    fn job() -> Envelope {
        let text = |text: &str| HeaderValue::Text(text.to_owned());
        let headers = [
            ("x-death", HeaderValue::List(vec![])),
            ("x-first-death-reason", text("expired")),
            ("x-last-death-queue", text("n.delay.1s")),
            ("x-delivery-count", HeaderValue::Int(2)),
            ("CC", HeaderValue::List(vec![text("another-queue")])),
            ("traceparent", text("00-1-2-03")),
        ];
        Envelope {
            body: "{}".into(),
            properties: Properties {
                message_id: Some("job-1".to_owned()),
                correlation_id: Some("c".to_owned()),
                reply_to: Some("replies".to_owned()),
                user_id: Some("producer".to_owned()),
                priority: Some(7),
                headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
                ..Properties::default()
            },
        }
    }

    fn ticket(reply_to: Option<&str>) -> Ticket {
        Ticket {
            job_id: id("j"),
            attempt: Attempt::FIRST,
            queued_at: None,
            reply_to: reply_to.map(str::to_owned),
            correlation_id: Some("c".to_owned()),
            labels: [].into(),
            trace: Trace::default(),
        }
    }

    fn id(text: &str) -> JobId {
        text.parse().unwrap()
    }

    fn header_names(publication: &Publication) -> Vec<&str> {
        publication
            .envelope
            .properties
            .headers
            .keys()
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn a_job_goes_back_as_its_producer_published_it() {
        let back = unstarted(&names(), "p", &job());
        assert_eq!((back.exchange.as_str(), back.routing_key.as_str()), ("", "n.jobs.p"));
        assert_eq!(back.routing, Routing::Mandatory);
        assert_eq!(
            header_names(&back),
            ["traceparent", header::UNIQUE],
            "the broker's history would end it as a cycle"
        );
        let (was, is) = (job().properties, back.envelope.properties.clone());
        assert_eq!((is.message_id, is.correlation_id), (was.message_id, was.correlation_id));
        assert_eq!(
            (is.reply_to, is.priority, is.user_id),
            (was.reply_to, was.priority, None)
        );
    }

    #[test]
    fn headers_that_would_burst_a_frame_are_dropped_and_that_is_said() {
        let mut large = job();
        let attempt = Attempt::read(&large.properties).after_redelivery();
        attempt.write(&mut large.properties);
        let text = HeaderValue::Text("x".repeat(HEADERS_MAX));
        large
            .properties
            .headers
            .insert("large".to_owned(), HeaderValue::List(vec![text]));
        let back = unstarted(&names(), "p", &large);
        assert!(!header_names(&back).contains(&"large"), "{:?}", header_names(&back));
        assert!(header_names(&back).contains(&header::DROPPED));
        assert_eq!(Attempt::read(&back.envelope.properties), attempt);
    }

    #[test]
    fn a_recounted_job_carries_its_count() {
        let attempt = Attempt::read(&job().properties).after_redelivery();
        let again = recounted(&names(), "p", &job(), &ticket(None), attempt);
        assert_eq!(Attempt::read(&again.envelope.properties), attempt);
        assert_eq!(attempt.number, 2);
    }

    #[test]
    fn a_job_that_is_put_off_is_the_same_attempt_and_carries_the_count() {
        let mut ticket = ticket(None);
        ticket.attempt = ticket.attempt.after_redelivery().after_put_off();
        let later = put_off(&names(), "p", &job(), &ticket, Duration::from_secs(20));
        assert_eq!(
            (later.exchange.as_str(), later.routing_key.as_str()),
            ("n.delay.20s", "p")
        );
        let attempt = Attempt::read(&later.envelope.properties);
        assert_eq!((attempt.number, attempt.redeliveries, attempt.put_offs), (2, 1, 2));
    }

    #[test]
    fn a_job_that_is_held_back_starts_no_sooner_than_it_is_to() {
        let (at, wait) = (Timestamp::UNIX_EPOCH, Duration::from_secs(30));
        let later = held_back(&names(), "p", &job(), &ticket(None), at, wait);
        assert_eq!(later.exchange, "n.delay.20s", "the rest of the wait is another hop");
        let properties = &later.envelope.properties;
        assert_eq!(properties.text_header(header::NOT_BEFORE), Some("1970-01-01T00:00:00Z"));
        let attempt = Attempt::read(properties);
        assert_eq!((attempt.number, attempt.runs_ended, attempt.put_offs), (1, 0, 1));
    }

    #[test]
    fn a_job_without_an_id_keeps_the_one_it_was_given() {
        let mut anonymous = job();
        let mut ticket = ticket(None);
        ticket.job_id = id("given");
        for (brought, kept) in [(None, "given"), (Some("not an id"), "given"), (Some("own"), "own")] {
            anonymous.properties.message_id = brought.map(str::to_owned);
            let again = waiting(&names(), "p", &anonymous, &ticket, Duration::from_secs(2));
            assert_eq!(again.envelope.properties.message_id.as_deref(), Some(kept));
        }
    }

    #[test]
    fn a_result_and_a_later_attempt_are_of_the_jobs_trace() {
        let context =
            TraceContext::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Some("a=1")).unwrap();
        let mut traced = ticket(None);
        let mut properties = Properties::default();
        context.write(&mut properties);
        traced.trace = Trace::read(&properties);
        let mut large = job();
        large
            .properties
            .headers
            .insert("large".to_owned(), "x".repeat(HEADERS_MAX).into());
        let later = waiting(&names(), "p", &large, &traced, Duration::from_secs(1));
        assert_eq!(
            TraceContext::read(&later.envelope.properties),
            Some(context.clone()),
            "though the producer's headers were dropped"
        );
        assert_eq!(TraceContext::read(&result_properties(&traced)), Some(context));
        assert!(result_properties(&ticket(None)).headers.is_empty());
    }

    fn result_properties(ticket: &Ticket) -> Properties {
        result(&names(), ticket, &ended(ticket)).envelope.properties.clone()
    }

    /// The result of a job that has expired.
    fn ended(ticket: &Ticket) -> Arc<JobResult> {
        let refusal = crate::worker::admit::Refusal {
            kind: crate::message::FailureKind::Expired,
            field: None,
            message: String::new(),
        };
        let worker = crate::message::WorkerInfo {
            id: String::new(),
            host: String::new(),
            pool: "p".to_owned(),
            version: String::new(),
        };
        let status = crate::message::Status::Expired;
        crate::worker::settle::refuse(ticket, status, refusal, Timestamp::UNIX_EPOCH, worker).result
    }

    #[test]
    fn a_wait_goes_through_the_longest_tier_that_does_not_overshoot() {
        for (seconds, tier) in [(0, "250ms"), (1, "1s"), (59, "20s"), (3600, "1h"), (30 * 86_400, "1d")] {
            let later = waiting(&names(), "p", &job(), &ticket(None), Duration::from_secs(seconds));
            assert_eq!(
                (later.exchange, later.routing_key.as_str()),
                (format!("n.delay.{tier}"), "p")
            );
        }
    }

    #[test]
    fn direct_replies_are_not_mandatory_because_the_broker_returns_them() {
        let all = result(&names(), &ticket(None), &ended(&ticket(None)));
        let routing = |reply_to| reply(&ticket(Some(reply_to)), &all).map(|reply| (reply.exchange, reply.routing));
        assert_eq!(routing("mine"), Some((String::new(), Routing::Mandatory)));
        assert_eq!(
            routing("amq.rabbitmq.reply-to.g2dkAB"),
            Some((String::new(), Routing::Optional))
        );
        assert!(reply(&ticket(None), &all).is_none());

        assert_eq!(
            (all.exchange.as_str(), all.routing_key.as_str()),
            ("n.results", "p.expired")
        );
        let properties = &all.envelope.properties;
        assert_eq!(properties.message_id.as_deref(), Some("j/1"));
        assert_eq!(
            (properties.kind.as_deref(), properties.correlation_id.as_deref()),
            (Some("expired"), Some("c"))
        );
    }
}
