//! An operator's side: orders to all workers of a namespace, requests to those that live now, and their answers.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::message::envelope::JSON;
use crate::message::{Envelope, Inventory, JobId, Order, Properties, Reply, Request, WorkerState};
use crate::transport::topology::Names;
use crate::transport::{Publication, Routing, Subscription, Topic};

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Every live worker.
    All,
    /// One, by its id.
    Worker(&'a str),
}

/// How long to wait for answers: nobody knows how many there will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// In all.
    pub most: Duration,
    /// After an answer, for the next one.
    pub between: Duration,
}

impl Wait {
    /// At most so long, and half of it for each answer after the first.
    #[must_use]
    pub fn at_most(most: Duration) -> Self {
        Self {
            most,
            between: most / 2,
        }
    }
}

/// The message that gives an order. The log has to take it, so it is in force once it is confirmed.
#[must_use]
pub fn order(names: &Names, order: &Order) -> Publication {
    Publication {
        exchange: names.control(),
        routing_key: format!("order.{}", order.name()),
        routing: Routing::Mandatory,
        envelope: envelope(order.encode(), properties()).into(),
    }
}

/// What the queue of a live worker is to get.
#[must_use]
pub(super) fn topics(names: &Names, worker: &str) -> [Topic; 2] {
    [Target::All, Target::Worker(worker)].map(|target| Topic {
        exchange: names.control(),
        routing_key: key(target),
    })
}

fn key(target: Target<'_>) -> String {
    match target {
        Target::All => "request.all".to_owned(),
        Target::Worker(id) => format!("request.worker.{id}"),
    }
}

/// A request, and how to know its answers.
pub struct Question {
    /// The message that asks. It is an error ([`crate::transport::PublishError::Unroutable`]) if there is nobody to ask.
    pub publication: Publication,
    id: String,
    /// How many answers there can be.
    answers: usize,
}

/// The broker was lost while answers were awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("collect the workers' answers: the broker has closed the connection")]
pub struct LostInbox;

impl Question {
    /// A question whose answers go to an inbox of this name.
    #[must_use]
    pub fn new(names: &Names, target: Target<'_>, request: &Request, inbox: &str) -> Self {
        let id = JobId::random().to_string();
        let asking = Properties {
            reply_to: Some(inbox.to_owned()),
            correlation_id: Some(id.clone()),
            ..properties()
        };
        Self {
            publication: Publication {
                exchange: names.control(),
                routing_key: key(target),
                routing: Routing::Mandatory,
                envelope: envelope(request.encode(), asking).into(),
            },
            id,
            answers: match target {
                Target::All => usize::MAX,
                Target::Worker(_) => 1,
            },
        }
    }

    /// Collects the answers. Those to an earlier question are passed over, and so is what cannot be read.
    ///
    /// # Errors
    /// When the inbox ends: there may be more answers than came.
    ///
    /// # Cancel safety
    /// Cancel safe; answers may be lost.
    pub async fn answers(&self, inbox: &mut impl Subscription, wait: Wait) -> Result<Vec<Reply>, LostInbox> {
        let end = Instant::now() + wait.most;
        let mut until = end;
        let mut replies = Vec::new();
        while replies.len() < self.answers {
            let Ok(next) = timeout_at(until, inbox.next()).await else {
                break; // no more come
            };
            let delivery = next.ok_or(LostInbox)?;
            let Envelope { body, properties } = (*delivery.envelope).clone();
            // It goes with the inbox all the same.
            let _ = delivery.ack().await;
            if properties.correlation_id.as_ref() == Some(&self.id)
                && let Ok(reply) = Reply::decode(&body)
            {
                replies.push(reply);
                until = end.min(Instant::now() + wait.between);
            }
        }
        Ok(replies)
    }
}

/// The states among the answers, by worker; one that answered twice counts once.
#[must_use]
pub fn states(replies: Vec<Reply>) -> Vec<WorkerState> {
    let states = replies.into_iter().filter_map(|reply| match reply {
        Reply::State(state) => Some((state.id.clone(), state)),
        _ => None,
    });
    states.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// The jobs among the answers, by worker; one that answered twice counts once.
#[must_use]
pub fn inventories(replies: Vec<Reply>) -> Vec<Inventory> {
    let inventories = replies.into_iter().filter_map(|reply| match reply {
        Reply::Jobs(jobs) => Some((jobs.worker.id.clone(), jobs)),
        _ => None,
    });
    inventories.collect::<BTreeMap<_, _>>().into_values().collect()
}

fn envelope(body: Bytes, properties: Properties) -> Envelope {
    let body = body.into();
    Envelope { body, properties }
}

/// The properties of a message of ours that is published now.
pub(crate) fn properties() -> Properties {
    Properties {
        content_type: Some(JSON.to_owned()),
        message_id: Some(JobId::random().to_string()),
        timestamp: u64::try_from(crate::message::now().as_second()).ok(),
        ..Properties::default()
    }
}
