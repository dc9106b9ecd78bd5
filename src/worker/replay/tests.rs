use std::path::Path;
use std::time::Duration;

use super::*;
use crate::message::Envelope;
use crate::transport::memory::Memory;
use crate::transport::topology::{Binding, Queue};
use crate::transport::{Subscribe, Subscription};
use crate::worker::parcel::sample;
use crate::worker::{Circuits, Elsewhere};

/// Nobody listens.
struct Deaf;

impl Observer for Deaf {
    fn on(&self, _: &Event) {}
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn open(folder: &Path, id: &str) -> Spool {
    Spool::open(folder.to_owned(), id, 1 << 20, Arc::new(Deaf))
        .await
        .unwrap()
}

/// Has a worker that is gone leave parcels for jobs with these ids.
async fn leave(folder: &Path, ids: &[&str]) {
    let spool = open(folder, "gone").await;
    for id in ids {
        assert!(spool.keep(&sample(id, 10)).await.is_some());
    }
}

/// A broker with a queue for results.
async fn broker() -> Memory {
    let broker = Memory::default();
    let mut topology = Topology::new(&Names::new("n"), []);
    topology.queues.push(Queue {
        name: "results".into(),
        ..Queue::default()
    });
    topology.bindings.push(Binding {
        exchange: "n.results".into(),
        queue: "results".into(),
        routing_key: "#".into(),
    });
    broker.declare(&topology, Declare::Active).await.unwrap();
    broker
}

/// Takes what a queue has, so many messages.
async fn take(broker: &Memory, queue: &str, count: usize) -> Vec<Envelope> {
    let request = Subscribe {
        queue: queue.into(),
        prefetch: 100,
        consumer_timeout: None,
        topology: Arc::default(),
        declare: Declare::Passive,
        from: None,
    };
    let mut subscription = broker.subscribe(&request).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..count {
        let delivery = tokio::time::timeout(PATIENCE, subscription.next())
            .await
            .unwrap()
            .unwrap();
        taken.push((*delivery.envelope).clone());
        delivery.ack().await.unwrap();
    }
    let depth = broker.queue_depth(queue).await.unwrap().unwrap();
    assert_eq!(depth.messages, 0, "more than {count} in {queue}");
    taken
}

fn replay(broker: &Memory, spool: &Spool) -> Arc<Replay<Memory>> {
    let observer: Arc<dyn Observer> = Arc::new(Deaf);
    Arc::new(Replay {
        transport: broker.clone(),
        names: Names::new("n"),
        declare: Declare::Active,
        spool: spool.clone(),
        waiting: Waiting::new(spool, &Ledgers::default()),
        circuit: Circuits::new(&observer, Elsewhere::Workers).results,
        observer,
    })
}

#[tokio::test]
async fn what_was_left_is_published_once_with_all_that_belongs_to_it() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), &["a", "b"]).await;
    let (broker, spool) = (broker().await, open(folder.path(), "here").await);
    replay(&broker, &spool).run(Shutdown::new()).await.unwrap();

    let ids = |envelopes: Vec<Envelope>| {
        let id = |envelope: Envelope| envelope.properties.message_id.unwrap();
        let mut ids: Vec<_> = envelopes.into_iter().map(id).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(take(&broker, "results", 2).await), ["a/1", "b/1"]);
    assert_eq!(ids(take(&broker, "n.dead", 2).await), ["a/1", "b/1"]);
    // And not by a third.
    drop(spool);
    assert!(open(folder.path(), "third").await.left().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_stop_comes_before_stays_for_the_next_worker() {
    let folder = tempfile::tempdir().unwrap();
    leave(folder.path(), &["a"]).await;
    let spool = open(folder.path(), "here").await;
    let shutdown = Shutdown::new();
    // A broker without the exchange, which may not be declared.
    let mut replay = replay(&Memory::default(), &spool);
    Arc::get_mut(&mut replay).unwrap().declare = Declare::Passive;
    let stop = async {
        tokio::time::sleep(PATIENCE).await;
        shutdown.drain();
    };
    let (ended, ()) = tokio::join!(replay.run(shutdown.clone()), stop);
    ended.unwrap();
    drop(spool);
    assert_eq!(open(folder.path(), "third").await.left().len(), 1);
}
