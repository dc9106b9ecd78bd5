//! Looks for a job in the delay queues, and leaves all that is in them.
//!
//! A queue cannot be looked at without taking what is in it; it is one pass over each ([`super::dead`] says how), and every
//! job is back in its place at its end. While it is ours a job's time may come, so a look makes it late by as long as the
//! look takes: a queue with more than [`MOST`] jobs is not looked into.

use std::time::Duration;

use jiff::Timestamp;

use super::dead::DeadError;
use super::dead::pass::Pass;
use crate::message::{Envelope, Job, JobId, header, peek_id};
use crate::transport::Transport;
use crate::transport::topology::{Names, TIERS};

/// Most jobs of a queue that are looked at: well under a second of them.
const MOST: u32 = 2_000;
/// What has not come by then has left its queue by itself, for its time has come.
const QUIET: Duration = Duration::from_millis(500);
/// Queues whose jobs stay no longer are not worth a look: it takes as long.
const SHORT: Duration = Duration::from_secs(1);

/// A job in a delay queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delayed {
    /// Its pool.
    pub pool: String,
    /// When it may run, if it is written on it.
    pub until: Option<Timestamp>,
}

/// What a look has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// The job, if it is there.
    pub found: Option<Delayed>,
    /// Jobs in queues that were too long to be looked into.
    pub unseen: u64,
}

/// Looks for a job.
///
/// # Errors
/// When the broker cannot be used; all jobs are in their places, or will be once the broker knows that we are gone.
pub async fn look<T: Transport>(transport: &T, names: &Names, id: &JobId) -> Result<Look, DeadError> {
    let mut look = Look::default();
    for tier in TIERS.iter().filter(|tier| tier.ttl > SHORT) {
        let queue = names.delay(tier);
        match transport.queue_depth(&queue).await? {
            Some(depth) if depth.messages > MOST => look.unseen += u64::from(depth.messages),
            Some(depth) if depth.messages > 0 => {
                if let Some(found) = look_into(transport, queue, id).await? {
                    look.found = Some(found);
                    return Ok(look);
                }
            }
            _ => {}
        }
    }
    Ok(look)
}

async fn look_into<T: Transport>(transport: &T, queue: String, id: &JobId) -> Result<Option<Delayed>, DeadError> {
    let mut pass = Pass::begin(transport, queue).await?.waiting_for(QUIET);
    let mut found = None;
    let passed = async {
        while let Some(delivery) = pass.next().await? {
            if is_called(&delivery.envelope, id) {
                found = Some(Delayed {
                    pool: delivery.routing_key.clone(),
                    until: until(&delivery.envelope),
                });
            }
            pass.keep(delivery);
        }
        Ok::<_, DeadError>(())
    }
    .await;
    pass.end().await;
    passed.map(|()| found)
}

fn is_called(envelope: &Envelope, id: &JobId) -> bool {
    let named = envelope.properties.message_id.as_deref() == Some(id.as_str());
    named || peek_id(&envelope.body).as_ref() == Some(id)
}

/// A retry has it on it, any other job in it.
fn until(envelope: &Envelope) -> Option<Timestamp> {
    let written = envelope.properties.text_header(header::NOT_BEFORE);
    let written = written.and_then(|text| text.parse().ok());
    written.or_else(|| Job::decode(&envelope.body).ok()?.not_before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;
    use crate::transport::memory::Memory;
    use crate::transport::topology::{Declare, Topology};
    use crate::transport::{Publication, Routing};

    async fn publish(broker: &Memory, names: &Names, tier: usize, id: &str) {
        let mut properties = Properties {
            message_id: Some(id.to_owned()),
            ..Properties::default()
        };
        let until = "2030-01-31T12:00:00Z".into();
        properties.headers.insert(header::NOT_BEFORE.to_owned(), until);
        let publication = Publication {
            exchange: names.delay(&TIERS[tier]),
            routing_key: "p".to_owned(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: "{}".into(),
                properties,
            }
            .into(),
        };
        broker.publish(&publication).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_found_and_all_jobs_stay() {
        let (broker, names) = (Memory::new(), Names::new("n"));
        broker
            .declare(&Topology::new(&names, ["p"]), Declare::Active)
            .await
            .unwrap();
        for id in ["a", "b", "c"] {
            publish(&broker, &names, 8, id).await;
        }
        let look = look(&broker, &names, &"b".parse().unwrap()).await.unwrap();
        let expected = Delayed {
            pool: "p".to_owned(),
            until: "2030-01-31T12:00:00Z".parse().ok(),
        };
        assert_eq!((look.found, look.unseen), (Some(expected), 0));
        let depth = broker.queue_depth(&names.delay(&TIERS[8])).await.unwrap().unwrap();
        assert_eq!((depth.messages, depth.consumers), (3, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_too_long_is_counted_and_not_looked_into() {
        let (broker, names) = (Memory::new(), Names::new("n"));
        broker
            .declare(&Topology::new(&names, ["p"]), Declare::Active)
            .await
            .unwrap();
        for _ in 0..=MOST {
            publish(&broker, &names, 9, "a").await;
        }
        let look = look(&broker, &names, &"a".parse().unwrap()).await.unwrap();
        assert_eq!((look.found, look.unseen), (None, u64::from(MOST) + 1));
    }
}
