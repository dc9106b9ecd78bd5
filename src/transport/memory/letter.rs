//! Messages as they wait, and what the broker writes into their headers.
//!
//! Deaths are kept beside the headers and written over them, so an `x-death` that a client publishes counts for
//! nothing, as with RabbitMQ from 4.0 on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::message::{Envelope, HeaderValue};
use crate::transport::{Publication, STREAM_OFFSET};

/// What was published, shared by the queues it went to.
pub(super) struct Letter {
    pub(super) exchange: String,
    pub(super) routing_key: String,
    envelope: Arc<Envelope>,
    /// Newest first, at most one for each queue and reason.
    deaths: Vec<Death>,
}

/// A letter in one queue.
#[derive(Clone)]
pub(super) struct Message {
    pub(super) letter: Arc<Letter>,
    /// Its place in the queue, which it keeps when it comes back.
    pub(super) position: u64,
    /// How often it came back.
    pub(super) returns: u32,
    /// When its time in this queue is over.
    pub(super) expires: Option<Instant>,
}

/// Why a queue let go of a message that nobody acked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Rejected,
    Expired,
    DeliveryLimit,
}

impl Reason {
    /// RabbitMQ's word for it.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::DeliveryLimit => "delivery_limit",
        }
    }
}

#[derive(Clone)]
struct Death {
    queue: String,
    reason: Reason,
    count: i64,
    exchange: String,
    routing_key: String,
    /// Seconds since the epoch.
    first_at: i64,
}

impl From<&Publication> for Letter {
    fn from(publication: &Publication) -> Self {
        Self {
            exchange: publication.exchange.clone(),
            routing_key: publication.routing_key.clone(),
            envelope: publication.envelope.clone(),
            deaths: Vec::new(),
        }
    }
}

impl Letter {
    /// What a consumer gets: the message, how often it came back before, and where it is if it is in a stream.
    pub(super) fn envelope(&self, returns: u32, offset: Option<u64>) -> Arc<Envelope> {
        let mut envelope = self.envelope.clone();
        if let Some(offset) = offset.and_then(|offset| i64::try_from(offset).ok()) {
            let headers = &mut Arc::make_mut(&mut envelope).properties.headers;
            headers.insert(STREAM_OFFSET.into(), HeaderValue::Int(offset));
        }
        if returns > 0 {
            let count = HeaderValue::Int(i64::from(returns));
            let headers = &mut Arc::make_mut(&mut envelope).properties.headers;
            headers.insert("x-delivery-count".into(), count);
        }
        envelope
    }

    /// The letter as it leaves `queue` for `exchange`, with this death and those before it in its headers.
    pub(super) fn dead(&self, queue: &str, reason: Reason, exchange: &str, routing_key: Option<&str>) -> Self {
        let mut letter = Self {
            exchange: exchange.to_owned(),
            routing_key: routing_key.unwrap_or(&self.routing_key).to_owned(),
            envelope: self.envelope.clone(),
            deaths: self.deaths.clone(),
        };
        letter.record(self.death(queue, reason));
        letter
    }

    /// Whether it came through `queue` before without anybody rejecting it since: a loop that only the broker drives.
    pub(super) fn is_cycle(&self, queue: &str) -> bool {
        let since = self.deaths.iter().position(|death| death.queue == queue);
        since.is_some_and(|last| {
            let cycle = &self.deaths[..=last];
            cycle.iter().all(|death| death.reason != Reason::Rejected)
        })
    }

    fn death(&self, queue: &str, reason: Reason) -> Death {
        Death {
            queue: queue.to_owned(),
            reason,
            count: 1,
            exchange: self.exchange.clone(),
            routing_key: self.routing_key.clone(),
            first_at: unix_seconds(),
        }
    }

    fn record(&mut self, death: Death) {
        let headers = &mut Arc::make_mut(&mut self.envelope).properties.headers;
        if self.deaths.is_empty() {
            death.write_parts("first", headers);
        }
        death.write_parts("last", headers);
        let same = |old: &Death| old.queue == death.queue && old.reason == death.reason;
        let newest = match self.deaths.iter().position(same) {
            Some(index) => {
                let mut again = self.deaths.remove(index);
                again.count += 1;
                again
            }
            None => death,
        };
        self.deaths.insert(0, newest);
        let deaths = self.deaths.iter().map(Death::to_table).collect();
        headers.insert("x-death".into(), HeaderValue::List(deaths));
    }
}

impl Death {
    /// Writes `x-first-death-…` or `x-last-death-…`.
    fn write_parts(&self, which: &str, headers: &mut BTreeMap<String, HeaderValue>) {
        for (part, value) in [
            ("reason", self.reason.as_str()),
            ("queue", &self.queue),
            ("exchange", &self.exchange),
        ] {
            headers.insert(format!("x-{which}-death-{part}"), text(value));
        }
    }

    fn to_table(&self) -> HeaderValue {
        let keys = HeaderValue::List(vec![text(&self.routing_key)]);
        HeaderValue::Table(BTreeMap::from([
            ("count".into(), HeaderValue::Int(self.count)),
            ("exchange".into(), text(&self.exchange)),
            ("queue".into(), text(&self.queue)),
            ("reason".into(), text(self.reason.as_str())),
            ("routing-keys".into(), keys),
            ("time".into(), HeaderValue::Int(self.first_at)),
        ]))
    }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::Text(value.to_owned())
}

fn unix_seconds() -> i64 {
    let since_epoch = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
