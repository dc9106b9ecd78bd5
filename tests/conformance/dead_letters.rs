//! Where messages go that nobody acks, and what is written on them.

use std::sync::Arc;

use synthex::message::HeaderValue;
use synthex::transport::topology::{Names, Queue, Topology};
use synthex::transport::{Delivery, Routing, Transport};

use crate::bench::{Bench, ack, nothing_comes, queue, take, text, to, with_graves};

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a HeaderValue> {
    delivery.envelope.properties.headers.get(name)
}

fn word(text: &str) -> HeaderValue {
    HeaderValue::Text(text.to_owned())
}

/// A field of the newest entry of `x-death`.
fn last_death<'a>(delivery: &'a Delivery, field: &str) -> Option<&'a HeaderValue> {
    let Some(HeaderValue::List(deaths)) = header(delivery, "x-death") else {
        return None;
    };
    match deaths.first() {
        Some(HeaderValue::Table(death)) => death.get(field),
        _ => None,
    }
}

pub async fn a_rejected_message_is_dead_lettered_with_its_reason<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    bench.declare(&Topology::new(&names, ["p"])).await;
    let mut job = to(&names.jobs(), "p", "job");
    let headers = &mut Arc::make_mut(&mut job.envelope).properties.headers;
    headers.insert("x-synthex-attempt".into(), HeaderValue::Int(3));
    bench.publish(&job).await.expect("a route to the pool");
    let mut jobs = bench.subscribe(&names.pool_queue("p"), 1).await;
    take(&mut jobs).await.reject().await.expect("the session is live");

    let mut dead = bench.subscribe(&names.dead(), 1).await;
    let letter = take(&mut dead).await;
    assert_eq!(text(&letter), "job");
    assert_eq!(letter.routing_key, "p");
    assert!(!letter.redelivered, "it is new to this queue");
    assert_eq!(header(&letter, "x-first-death-reason"), Some(&word("rejected")));
    assert_eq!(header(&letter, "x-first-death-queue"), Some(&word("n.jobs.p")));
    assert_eq!(header(&letter, "x-first-death-exchange"), Some(&word("n.jobs")));
    assert_eq!(header(&letter, "x-synthex-attempt"), Some(&HeaderValue::Int(3)));
    assert_eq!(last_death(&letter, "reason"), Some(&word("rejected")));
    assert_eq!(last_death(&letter, "queue"), Some(&word("n.jobs.p")));
    assert_eq!(last_death(&letter, "exchange"), Some(&word("n.jobs")));
    assert_eq!(last_death(&letter, "count"), Some(&HeaderValue::Int(1)));
    let keys = HeaderValue::List(vec![word("p")]);
    assert_eq!(last_death(&letter, "routing-keys"), Some(&keys));
    nothing_comes(&mut jobs).await;
}

pub async fn a_message_given_back_too_often_is_dead_lettered<T: Transport>(bench: Bench<T>) {
    let limited = Queue {
        delivery_limit: Some(2),
        ..queue("jobs")
    };
    bench.declare(&with_graves(limited, None)).await;
    bench.send("jobs", "poison").await;
    bench.send("jobs", "sentinel").await;
    let mut jobs = bench.subscribe("jobs", 1).await;
    let mut deliveries = 0;
    loop {
        let delivery = take(&mut jobs).await;
        if text(&delivery) == "sentinel" {
            break;
        }
        deliveries += 1;
        assert!(deliveries <= 3, "the first, and two more");
        delivery.give_back().await.expect("the session is live");
    }
    assert_eq!(deliveries, 3);

    let mut graves = bench.subscribe("graves", 1).await;
    let letter = take(&mut graves).await;
    assert_eq!(text(&letter), "poison");
    assert_eq!(header(&letter, "x-first-death-reason"), Some(&word("delivery_limit")));
    assert_eq!(last_death(&letter, "queue"), Some(&word("jobs")));
}

pub async fn a_dead_letter_key_replaces_the_message_s_own<T: Transport>(bench: Bench<T>) {
    bench.declare(&with_graves(queue("jobs"), Some("epitaph"))).await;
    bench.send("jobs", "job").await;
    let mut jobs = bench.subscribe("jobs", 1).await;
    take(&mut jobs).await.reject().await.expect("the session is live");
    let mut graves = bench.subscribe("graves", 1).await;
    assert_eq!(take(&mut graves).await.routing_key, "epitaph");
}

pub async fn our_own_headers_survive_a_publish_to_the_dead_exchange<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    bench.declare(&Topology::new(&names, ["p"])).await;
    let mut letter = to(&names.dead(), "p", "not a job");
    let ours = [
        ("x-synthex-reason", word("rejected")),
        ("x-synthex-error", word("limits.memory: expected a size")),
        ("x-synthex-attempt", HeaderValue::Int(1)),
    ];
    let ours = ours.map(|(name, value)| (name.to_owned(), value)).into();
    Arc::make_mut(&mut letter.envelope).properties.headers = ours;
    bench.publish(&letter).await.expect("a route to the dead letters");

    let mut dead = bench.subscribe(&names.dead(), 1).await;
    let delivery = take(&mut dead).await;
    assert_eq!(delivery.envelope, letter.envelope);
    assert_eq!(delivery.routing_key, "p");
}

pub async fn looking_at_a_dead_letter_does_not_destroy_it<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    bench.declare(&Topology::new(&names, [])).await;
    let published = bench.publish(&to(&names.dead(), "", "letter")).await;
    published.expect("a route to the dead letters");
    let mut dead = bench.subscribe(&names.dead(), 1).await;
    for _ in 0..30 {
        // More than the 20 that RabbitMQ 4 allows a queue that says nothing.
        take(&mut dead).await.give_back().await.expect("the session is live");
    }
    ack(take(&mut dead).await).await;
}

pub async fn a_job_for_an_unknown_pool_is_kept_as_a_dead_letter<T: Transport>(bench: Bench<T>) {
    let names = Names::new("n");
    bench.declare(&Topology::new(&names, ["p"])).await;
    for routing in [Routing::Mandatory, Routing::Optional] {
        let mut job = to(&names.jobs(), "nobody", "job");
        job.routing = routing;
        bench.publish(&job).await.expect("the alternate exchange takes it");
    }
    let mut dead = bench.subscribe(&names.dead(), 2).await;
    for _ in 0..2 {
        let letter = take(&mut dead).await;
        assert_eq!((text(&letter).as_str(), letter.routing_key.as_str()), ("job", "nobody"));
        ack(letter).await;
    }
    assert_eq!(bench.depth(&names.pool_queue("p")).await.messages, 0);
}
