//! Answers what operators ask of the workers that live now.
//!
//! It answers while the worker drains, until its pools have ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Control, fleet};
use crate::flow::retry::{Backoff, RECONNECT_MAX};
use crate::message::{Envelope, Inventory, JobId, JobInHand, Properties, Reply, Request};
use crate::supervise::{Shutdown, TaskError};
use crate::transport::{Delivery, Publication, Routing, Subscription, Transport, TransportError};
use crate::worker::audience::Stay;
use crate::worker::event::{ControlMessage, Event, Listener};
use crate::worker::in_hand::Known;

/// The first wait after a lost or failed queue.
const RETRY_INITIAL: Duration = Duration::from_millis(200);
/// How long one answer may take: who asked waits no longer.
const REPLY_WITHIN: Duration = Duration::from_secs(5);
/// How long the private queue may take to be there.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// A queue that lived this long was well: the next loss begins with a short wait again.
const WELL: Duration = Duration::from_secs(5);

pub(super) struct Desk<T>(pub(super) Arc<Control<T>>);

impl<T: Transport> Desk<T> {
    pub(super) async fn run(self: Arc<Self>, shutdown: Shutdown) -> Result<(), TaskError> {
        tokio::select! {
            () = shutdown.draining() => Ok(()),
            never = self.serve() => never,
        }
    }

    async fn serve(&self) -> Result<(), TaskError> {
        let mut backoff = Backoff::new(RETRY_INITIAL, RECONNECT_MAX);
        loop {
            let since = Instant::now();
            match tokio::time::timeout(OPEN_TIMEOUT, self.open()).await {
                Ok(Ok(mut inbox)) => {
                    while let Some(delivery) = inbox.next().await {
                        self.take(delivery).await;
                    }
                }
                Ok(Err(error)) => tracing::debug!("failed to {error}; listening to requests again soon"),
                Err(_) => {}
            }
            if since.elapsed() >= WELL {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    async fn open(&self) -> Result<T::Subscription, TransportError> {
        let Control {
            transport,
            topology,
            declare,
            ..
        } = &*self.0;
        transport.declare(topology, *declare).await?;
        let topics = fleet::topics(&self.0.names, &self.0.identity.id);
        let (_, inbox) = transport.listen(&topics).await?;
        Ok(inbox)
    }

    async fn take(&self, delivery: Delivery) {
        let asked = &delivery.envelope.properties;
        let reply = self.answer(&delivery.envelope.body, asked);
        let publication = reply.and_then(|reply| reply_to(asked, &reply));
        // A request that is not acked comes again, and is answered again: to whoever asked once, a harmless repetition.
        let _ = delivery.ack().await;
        let Some(publication) = publication else { return };
        match tokio::time::timeout(REPLY_WITHIN, self.0.transport.publish(&publication)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("failed to {error}"),
            Err(_) => tracing::debug!("an answer was not confirmed within {REPLY_WITHIN:?}"),
        }
    }

    /// The answer, if it is the desk that gives one.
    fn answer(&self, body: &[u8], asked: &Properties) -> Option<Reply> {
        let request = match Request::decode(body) {
            Ok(request) => request,
            Err(error) => {
                self.tell(ControlMessage::Invalid);
                return Some(refuse(format!("not a request: {error}")));
            }
        };
        self.tell(ControlMessage::of_request(&request));
        match request {
            Request::Ping {} => {}
            Request::Drain { worker } if worker == self.0.identity.id => self.drain(),
            Request::Jobs { id } => return Some(Reply::Jobs(self.jobs(id.as_ref()))),
            Request::Drain { worker } => return Some(refuse(format!("this is not worker {worker:?}"))),
            Request::Watch {} => self.0.audience.watch(),
            Request::Follow { job } => return self.seat(&job, asked, Stay::Follow),
            Request::Output { job } => return self.seat(&job, asked, Stay::Glance),
        }
        Some(Reply::State(self.0.state()))
    }

    /// Has who asked hear of a job. The job's own run answers, if there is one.
    fn seat(&self, job: &JobId, asked: &Properties, stay: Stay) -> Option<Reply> {
        let listener = Listener {
            reply_to: asked.reply_to.clone().unwrap_or_default(),
            correlation_id: asked.correlation_id.clone(),
        };
        let seated = self.0.audience.follow(job, listener, stay);
        seated.err().map(|error| refuse(error.to_string()))
    }

    /// As the first signal does.
    fn drain(&self) {
        let everything = &self.0.everything;
        if !everything.is_draining() {
            tracing::info!("an operator asks to drain: stopping");
            self.0.observer.on(&Event::Draining);
            everything.drain();
        }
    }

    fn jobs(&self, id: Option<&JobId>) -> Inventory {
        let (jobs, left_out) = self.0.in_hand.list(id, Inventory::MAX_JOBS);
        Inventory {
            worker: self.0.state(),
            jobs: jobs.iter().map(|job| in_hand(job)).collect(),
            left_out: u64::try_from(left_out).unwrap_or(u64::MAX),
            recent: id.map(|id| self.0.board.recent(id)).unwrap_or_default(),
        }
    }

    fn tell(&self, message: ControlMessage) {
        self.0.observer.on(&Event::Control { message });
    }
}

fn in_hand(job: &Known) -> JobInHand {
    let started = job.started();
    JobInHand {
        id: job.id.clone(),
        attempt: job.attempt,
        pool: job.pool.to_string(),
        state: job.state(),
        program: job.program.clone(),
        labels: job.labels.clone(),
        taken_at: job.taken_at,
        started_at: started.map(|started| started.at),
        deadline: started.map(|started| started.deadline),
    }
}

fn refuse(message: String) -> Reply {
    Reply::Refused { message }
}

/// The answer for the one who asked, if somebody did. Who does not wait any longer has no queue any more.
fn reply_to(asked: &Properties, reply: &Reply) -> Option<Publication> {
    let envelope = Envelope {
        body: reply.encode().into(),
        properties: Properties {
            correlation_id: asked.correlation_id.clone(),
            ..fleet::properties()
        },
    };
    Some(Publication {
        exchange: String::new(),
        routing_key: asked.reply_to.clone().filter(|address| !address.is_empty())?,
        routing: Routing::Optional,
        envelope: envelope.into(),
    })
}
