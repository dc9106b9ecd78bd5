//! Declaring, checking, and what is there already.

use std::sync::Arc;
use std::time::Duration;

use synthex::transport::topology::{Declare, Names, Queue, Topology};
use synthex::transport::{Transport, TransportError};

use crate::bench::{Bench, ack, nothing_comes, queue, queues, request, take, text, to};

pub async fn a_passive_declare_names_what_is_missing<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    let wanted = Topology::new(&names, ["p"]);

    missing(&bench, &wanted, &names.unroutable()).await; // on an empty broker: the first
    let without_queue = Topology::new(&names, []);
    bench.declare(&without_queue).await;
    missing(&bench, &wanted, &names.pool_queue("p")).await;
    let mut without_exchange = without_queue.clone();
    without_exchange.exchanges.push(crate::bench::exchange(
        "n.elsewhere",
        synthex::transport::topology::ExchangeKind::Topic,
    ));
    missing(&bench, &without_exchange, "n.elsewhere").await;

    let depth = bench.broker.queue_depth(&names.pool_queue("p")).await;
    assert_eq!(depth.expect("the broker tells"), None, "a check makes nothing");
}

async fn missing<T: Transport>(bench: &Bench<T>, topology: &Topology, name: &str) {
    let mut request = request(name, 1);
    request.topology = Arc::new(topology.clone());
    request.declare = Declare::Passive;
    let declared = bench.broker.declare(topology, Declare::Passive).await;
    let subscribed = bench.broker.subscribe(&request).await.map(drop);
    for outcome in [declared, subscribed] {
        match outcome {
            Err(TransportError::Refused { operation, .. }) => {
                assert!(operation.contains(&format!("{name:?}")), "{operation}");
            }
            other => panic!("{name} is missing, but: {other:?}"),
        }
    }
}

pub async fn a_passive_declare_takes_what_is_there<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    let topology = Topology::new(&names, ["p"]);
    bench.declare(&topology).await;
    bench
        .publish(&to(&names.jobs(), "p", "job"))
        .await
        .expect("a route to the pool");

    let declared = bench.broker.declare(&topology, Declare::Passive).await;
    declared.expect("all of it is there");
    let mut request = request(&names.pool_queue("p"), 1);
    request.topology = Arc::new(topology);
    request.declare = Declare::Passive;
    let mut jobs = bench.broker.subscribe(&request).await.expect("all of it is there");
    assert_eq!(text(&take(&mut jobs).await), "job");
}

pub async fn a_repeated_declare_changes_nothing<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    let topology = Arc::new(Topology::new(&names, ["p"]));
    bench.declare(&topology).await;
    bench
        .publish(&to(&names.jobs(), "p", "job"))
        .await
        .expect("a route to the pool");

    bench.declare(&topology).await;
    let mut request = request(&names.pool_queue("p"), 2);
    request.topology = topology;
    let mut jobs = bench.broker.subscribe(&request).await.expect("a declare again");
    let job = take(&mut jobs).await;
    assert_eq!(text(&job), "job");
    ack(job).await;
    let published = bench.publish(&to(&names.jobs(), "p", "once")).await;
    published.expect("a route to the pool");
    let only = take(&mut jobs).await;
    assert_eq!(text(&only), "once");
    nothing_comes(&mut jobs).await; // a second binding would bring a second copy
    ack(only).await;
}

/// Whether the conflict is an error or a warning is the transport's; that the queue stays is not.
pub async fn a_conflicting_declare_leaves_the_queue_as_it_is<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    bench.send("jobs", "before").await;
    let other = queues([Queue {
        ttl: Some(Duration::from_millis(1)),
        ..queue("jobs")
    }]);
    match bench.broker.declare(&other, Declare::Active).await {
        Ok(()) => {}
        Err(TransportError::Refused { operation, .. }) => {
            assert!(operation.contains("\"jobs\""), "{operation}");
        }
        Err(error) => panic!("a conflict is no failure of the broker: {error}"),
    }
    bench.send("jobs", "after").await;
    tokio::time::sleep(crate::bench::QUIET).await; // many times the lifetime that was asked for
    let mut jobs = bench.subscribe("jobs", 2).await;
    for expected in ["before", "after"] {
        let delivery = take(&mut jobs).await;
        assert_eq!(text(&delivery), expected);
        ack(delivery).await;
    }
}
