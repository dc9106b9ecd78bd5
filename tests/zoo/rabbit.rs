//! A producer on RabbitMQ, who listens to all results.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use synthex::message::{Envelope, Properties};
use synthex::transport::amqp::{Addresses, Amqp, AmqpConfig};
use synthex::transport::topology::{Binding, Declare, Names, Queue, Topology};
use synthex::transport::{Publication, Routing, Subscribe, Subscription, Transport};
use tokio::runtime::Runtime;

use crate::cage::PATIENCE;
use crate::support::broker::{Broker, patiently};
use crate::worker::{Inbox, POOL};

/// Publishes under way at once.
const PUBLISHERS: usize = 32;

/// Results in hand at once.
const PREFETCH: u16 = 500;

/// Names of one worker's own on the node that all tests of a run share, and connections to it.
pub struct Rabbit {
    pub url: String,
    pub namespace: String,
    names: Names,
    amqp: Amqp,
    /// `None` when it is on its way out.
    runtime: Option<Runtime>,
}

impl Rabbit {
    /// Declares the pool's queue and one for all results, which come to the inbox from now on.
    pub fn new(inbox: Arc<Inbox>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime for a client");
        let namespace = format!("zoo-{}", uuid::Uuid::now_v7().simple());
        let (broker, names) = (runtime.block_on(Broker::shared()), Names::new(&namespace));
        let url = broker.amqp_url();
        let amqp = {
            let _context = runtime.enter();
            let addresses = Addresses::parse(&url).expect("the broker's own address");
            Amqp::new(AmqpConfig {
                connect_timeout: PATIENCE,
                confirm_timeout: PATIENCE,
                ..AmqpConfig::new(addresses)
            })
        };
        let rabbit = Self {
            url,
            namespace,
            names,
            amqp,
            runtime: Some(runtime),
        };
        rabbit.listen(inbox);
        rabbit
    }

    fn listen(&self, inbox: Arc<Inbox>) {
        let results = format!("{}.all-results", self.namespace);
        let mut topology = Topology::new(&self.names, [POOL]);
        topology.queues.push(Queue {
            name: results.clone(),
            delivery_limit: Some(1000),
            ..Queue::default()
        });
        topology.bindings.push(Binding {
            exchange: self.names.results(),
            queue: results.clone(),
            routing_key: "#".into(),
        });
        let request = Subscribe {
            queue: results,
            prefetch: PREFETCH,
            consumer_timeout: None,
            from: None,
            topology: Arc::new(topology),
            declare: Declare::Active,
        };
        let subscribing = patiently(async || self.amqp.subscribe(&request).await);
        let mut subscription = self.runtime().block_on(subscribing);
        self.runtime().spawn(async move {
            while let Some(delivery) = subscription.next().await {
                inbox.put(&delivery.envelope.body);
                delivery.ack().await.expect("the session is live");
            }
        });
    }

    /// Publishes jobs under their ids, confirmed, many at a time.
    pub fn publish_all(&self, jobs: impl Iterator<Item = (String, String)>) {
        let publish = async |(id, body)| {
            let publication = self.job(id, body);
            let published = tokio::time::timeout(PATIENCE, self.amqp.publish(&publication)).await;
            published.expect("a confirm comes").expect("the broker is well");
        };
        let publishing = futures_util::stream::iter(jobs)
            .map(publish)
            .buffer_unordered(PUBLISHERS);
        self.runtime().block_on(publishing.collect::<()>());
    }

    fn job(&self, id: String, body: String) -> Publication {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is later than 1970");
        Publication {
            exchange: self.names.jobs(),
            routing_key: POOL.into(),
            routing: Routing::Mandatory,
            envelope: Envelope {
                body: body.into(),
                properties: Properties {
                    content_type: Some("application/json".into()),
                    message_id: Some(id),
                    timestamp: Some(now.as_secs()),
                    ..Properties::default()
                },
            }
            .into(),
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("it is there until the end")
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
