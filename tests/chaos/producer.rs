//! Publishes jobs, also while the broker is away, and knows of each whether it arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use synthex::message::{Envelope, Properties};
use synthex::transport::amqp::Amqp;
use synthex::transport::topology::Names;
use synthex::transport::{Publication, PublishError, Routing, Transport};

use crate::jobs::Kind;
use crate::support::random::Random;
use crate::world::{PATIENCE, POOL};

/// Publishes under way at once.
const PUBLISHERS: usize = 16;

/// The pause after a publish that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// A client that keeps account of what it published.
pub struct Producer {
    amqp: Amqp,
    names: Names,
    next: usize,
    /// Jobs that the broker has taken responsibility for.
    pub confirmed: BTreeMap<String, Kind>,
    /// Jobs that may have arrived or not. No job is published twice: that would be two jobs of the same id.
    pub unknown: BTreeMap<String, Kind>,
}

impl Producer {
    pub fn new(amqp: Amqp, names: Names) -> Self {
        Self {
            amqp,
            names,
            next: 0,
            confirmed: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Publishes until so many more are confirmed.
    pub async fn publish(&mut self, count: usize, random: &mut Random) -> BTreeSet<String> {
        self.publish_kinds(count, random, Kind::any).await
    }

    /// As above, all of one kind.
    pub async fn publish_only(&mut self, kind: Kind, count: usize, random: &mut Random) -> BTreeSet<String> {
        self.publish_kinds(count, random, |_| kind).await
    }

    async fn publish_kinds(
        &mut self,
        count: usize,
        random: &mut Random,
        kind: impl Fn(&mut Random) -> Kind,
    ) -> BTreeSet<String> {
        let mut confirmed = BTreeSet::new();
        while confirmed.len() < count {
            let mut make = |_| {
                let kind = kind(random);
                self.make(kind, random)
            };
            let jobs: Vec<_> = (confirmed.len()..count).map(&mut make).collect();
            let publish = async |(id, kind, job)| (id, kind, self.publish_one(&job).await);
            let outcomes: Vec<_> = futures_util::stream::iter(jobs)
                .map(publish)
                .buffer_unordered(PUBLISHERS)
                .collect()
                .await;
            for (id, kind, arrived) in outcomes {
                if arrived {
                    confirmed.insert(id.clone());
                    self.confirmed.insert(id, kind);
                } else {
                    self.unknown.insert(id, kind);
                }
            }
        }
        confirmed
    }

    fn make(&mut self, kind: Kind, random: &mut Random) -> (String, Kind, Publication) {
        let id = format!("job-{:06}", self.next);
        self.next += 1;
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is later than 1970");
        let publication = Publication {
            exchange: self.names.jobs(),
            routing_key: POOL.into(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: kind.body(random).to_string().into(),
                properties: Properties {
                    content_type: Some("application/json".into()),
                    message_id: Some(id.clone()),
                    timestamp: Some(now.as_secs()),
                    ..Properties::default()
                },
            }
            .into(),
        };
        (id, kind, publication)
    }

    /// Whether it has arrived for certain. Waits for a broker that is away.
    async fn publish_one(&self, job: &Publication) -> bool {
        let publishing = async {
            loop {
                match self.amqp.publish(job).await {
                    Ok(()) => return true,
                    Err(PublishError::Transport(error)) if error.is_transient() => tokio::time::sleep(PAUSE).await,
                    Err(PublishError::Unknown { .. } | PublishError::Refused { .. }) => return false,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, publishing)
            .await
            .expect("a broker comes back")
    }
}
