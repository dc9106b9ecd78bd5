//! What a publish is told, and where messages go.

use std::collections::BTreeMap;
use std::sync::Arc;

use synthex::transport::topology::{ExchangeKind, Queue, Topology};
use synthex::transport::{Publication, PublishError, Routing, Subscription, Topic, Transport};
use tokio::task::JoinSet;

use crate::bench::{Bench, ack, binding, eventually, exchange, nothing_comes, queue, queues, soon, take, text, to};

/// Publishers at once in the tests of concurrency.
const PUBLISHERS: usize = 32;

pub async fn an_unroutable_message_is_an_error_only_if_somebody_must_get_it<T: Transport>(bench: Bench<T>) {
    let topology = Topology {
        exchanges: vec![
            exchange("direct", ExchangeKind::Direct),
            exchange("topic", ExchangeKind::Topic),
        ],
        ..Topology::default()
    };
    bench.declare(&topology).await;
    for to_nobody in [
        to("", "nobody", "text"),
        to("direct", "key", "text"),
        to("topic", "a.b", "text"),
    ] {
        let (exchange, key) = (&to_nobody.exchange, &to_nobody.routing_key);
        match bench.publish(&to_nobody).await {
            Err(PublishError::Unroutable {
                exchange: named,
                routing_key,
            }) => {
                assert_eq!((&named, &routing_key), (exchange, key));
            }
            other => panic!("{exchange:?} {key:?}: {other:?}"),
        }
        let optional = Publication {
            routing: Routing::Optional,
            ..to_nobody
        };
        bench.publish(&optional).await.expect("nobody need get it");
    }
}

pub async fn a_missing_exchange_is_an_error_and_harms_no_later_publish<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    for routing in [Routing::Mandatory, Routing::Optional] {
        let mut lost = to("nowhere", "jobs", "lost");
        lost.routing = routing;
        let error = bench.publish(&lost).await.expect_err("there is no such exchange");
        assert!(error.to_string().contains("nowhere"), "{error}");
        bench.send("jobs", "kept").await;
    }
    bench.waits_for_messages("jobs", 2).await;
}

pub async fn exchanges_route_by_their_kind<T: Transport>(bench: Bench<T>) {
    let kinds = [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic];
    let topology = Topology {
        exchanges: kinds.map(|kind| exchange(kind.as_str(), kind)).into(),
        queues: ["a", "b"].map(queue).into(),
        bindings: vec![
            binding("direct", "a", "key"),
            binding("fanout", "a", "ignored"),
            binding("fanout", "b", ""),
            binding("topic", "a", "p.*"),
            binding("topic", "a", "#"), // a second match gives no second copy
            binding("topic", "b", "*.failed"),
        ],
    };
    bench.declare(&topology).await;
    let publications = [
        ("direct", "key", "direct to a"),
        ("fanout", "any", "fanout to a and b"),
        ("topic", "p.failed", "topic to a and b"),
        ("topic", "p.failed.again", "topic to a"),
    ];
    for (exchange, key, name) in publications {
        bench.publish(&to(exchange, key, name)).await.expect("a route");
    }
    for name in ["a", "b"] {
        let mut subscription = bench.subscribe(name, 10).await;
        for (exchange, key, expected) in publications {
            if name == "a" || expected.ends_with("and b") {
                let delivery = take(&mut subscription).await;
                assert_eq!(text(&delivery), expected, "{exchange} {key} in {name}");
                assert_eq!(delivery.routing_key, key);
                ack(delivery).await;
            }
        }
        nothing_comes(&mut subscription).await;
    }
}

pub async fn refusals_are_told_of_the_right_messages_under_concurrency<T: Transport>(bench: Bench<T>) {
    const MESSAGES: usize = 16_000;
    let full = Queue {
        max_length: Some(1),
        ..queue("full")
    };
    bench.declare(&queues([full, queue("open")])).await;
    fill(&bench, "full").await;
    let before = bench.depth("full").await.messages;

    let told = publish_alternately(&bench, ["full", "open"], MESSAGES).await;
    let half = MESSAGES / 2;
    let right = BTreeMap::from([(("full", "refused"), half), (("open", "accepted"), half)]);
    assert_eq!(told, right);
    bench
        .waits_for_messages("open", u32::try_from(half).expect("a small number"))
        .await;
    bench.waits_for_messages("full", before).await;
}

pub async fn returns_are_told_of_the_right_messages_under_concurrency<T: Transport>(bench: Bench<T>) {
    const MESSAGES: usize = 4_000;
    bench.declare(&queues([queue("open")])).await;
    let told = publish_alternately(&bench, ["missing", "open"], MESSAGES).await;
    let half = MESSAGES / 2;
    let right = BTreeMap::from([(("missing", "unroutable"), half), (("open", "accepted"), half)]);
    assert_eq!(told, right);
    bench
        .waits_for_messages("open", u32::try_from(half).expect("a small number"))
        .await;
}

/// A window with messages that are taken, refused and returned, one after the other.
pub async fn many_messages_are_told_of_each<T: Transport>(bench: Bench<T>) {
    const MESSAGES: usize = 255;
    let full = Queue {
        max_length: Some(1),
        ..queue("full")
    };
    bench.declare(&queues([full, queue("open")])).await;
    fill(&bench, "full").await;
    for round in 0..8 {
        let window: Vec<Publication> = (0..MESSAGES)
            .map(|number| {
                let mut message = to("", ["open", "full", "missing"][number % 3], &number.to_string());
                Arc::make_mut(&mut message.envelope).properties.message_id = Some(format!("{round}/{number}"));
                if number % 2 == 0 && number % 3 == 2 {
                    message.routing = Routing::Optional; // nobody need get it
                }
                message
            })
            .collect();
        let told = bench.broker.publish_many(&window).await;
        assert_eq!(told.len(), MESSAGES);
        for (number, (message, told)) in window.iter().zip(&told).enumerate() {
            let is_right = match (number % 3, message.routing) {
                (0, _) | (2, Routing::Optional) => told.is_ok(),
                (1, _) => matches!(told, Err(PublishError::Refused { .. })),
                _ => matches!(told, Err(PublishError::Unroutable { .. })),
            };
            assert!(is_right, "round {round}, message {number}: {told:?}");
        }
    }
    let taken = u32::try_from(8 * MESSAGES / 3).expect("a small number");
    bench.waits_for_messages("open", taken).await;
}

pub async fn many_messages_keep_their_order<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    for window in 0..4 {
        let window: Vec<Publication> = (0..50)
            .map(|n| to("", "jobs", &(window * 50 + n).to_string()))
            .collect();
        let told = bench.broker.publish_many(&window).await;
        assert!(told.iter().all(Result::is_ok), "{told:?}");
    }
    assert!(bench.broker.publish_many(&[]).await.is_empty());
    let mut subscription = bench.subscribe("jobs", 10).await;
    for number in 0..200 {
        let delivery = take(&mut subscription).await;
        assert_eq!(text(&delivery), number.to_string());
        ack(delivery).await;
    }
}

pub async fn nothing_is_sent_to_a_missing_exchange_many_at_a_time<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    let window: Vec<Publication> = (0..20).map(|_| to("nowhere", "jobs", "lost")).collect();
    let told = bench.broker.publish_many(&window).await;
    assert_eq!(told.len(), 20);
    for told in told {
        assert!(told.is_err());
    }
    // A broker may end the connection over those that came after the first: that passes.
    eventually("a later publish is taken", async || {
        bench.publish(&to("", "jobs", "kept")).await.is_ok()
    })
    .await;
    eventually("it is there", async || bench.depth("jobs").await.messages > 0).await;
}

pub async fn a_removed_queue_is_gone_with_its_consumer<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs"), queue("others")])).await;
    for name in ["jobs", "jobs", "others"] {
        bench.send(name, "text").await;
    }
    let mut subscription = bench.subscribe("jobs", 1).await;
    let taken = take(&mut subscription).await;
    for _ in 0..2 {
        soon("the end of a queue", bench.broker.remove_queue("jobs"))
            .await
            .expect("again is the same as once");
    }
    assert!(soon("the end of the consumer", subscription.next()).await.is_none());
    drop(taken);
    let depth = bench.broker.queue_depth("jobs").await.expect("the broker tells");
    assert_eq!(depth, None);
    bench.waits_for_messages("others", 1).await;
}

pub async fn a_refused_message_is_accepted_once_there_is_room<T: Transport>(bench: Bench<T>) {
    let full = Queue {
        max_length: Some(1),
        ..queue("full")
    };
    bench.declare(&queues([full])).await;
    let accepted = fill(&bench, "full").await;
    let mut subscription = bench.subscribe("full", 10).await;
    for _ in 0..accepted {
        ack(take(&mut subscription).await).await;
    }
    // A broker may be slow to tell its publishers that there is room again.
    eventually("room in the queue", async || {
        bench.publish(&to("", "full", "late")).await.is_ok()
    })
    .await;
    assert_eq!(
        text(&take(&mut subscription).await),
        "late",
        "no refused message was kept"
    );
}

pub async fn an_inbox_takes_replies_and_goes_with_its_subscription<T: Transport>(bench: Bench<T>) {
    let (first, mut replies) = soon("an inbox", bench.broker.inbox()).await.expect("an inbox");
    let (second, mut others) = soon("an inbox", bench.broker.inbox()).await.expect("an inbox");
    assert_ne!(first, second);
    bench.send(&first, "reply").await;
    bench.send(&second, "other").await;
    let reply = take(&mut replies).await;
    assert_eq!(text(&reply), "reply");
    ack(reply).await;
    assert_eq!(text(&take(&mut others).await), "other");

    drop(replies);
    eventually("the inbox's end", async || {
        let late = bench.publish(&to("", &first, "late")).await;
        matches!(late, Err(PublishError::Unroutable { .. }))
    })
    .await;
    bench.send(&second, "still here").await;
}

pub async fn an_inbox_hears_of_the_topics_it_was_opened_for<T: Transport>(bench: Bench<T>) {
    let topology = Topology {
        exchanges: vec![exchange("topics", ExchangeKind::Topic)],
        ..Topology::default()
    };
    bench.declare(&topology).await;
    let topic = |exchange: &str, key: &str| Topic {
        exchange: exchange.to_owned(),
        routing_key: key.to_owned(),
    };
    let topics = [topic("topics", "to.all"), topic("topics", "to.me.#")];
    let (name, mut inbox) = soon("an inbox", bench.broker.listen(&topics)).await.expect("an inbox");
    for key in ["to.all", "to.you", "to.me.too"] {
        let mut message = to("topics", key, key);
        message.routing = Routing::Optional;
        bench.publish(&message).await.expect("nobody need get it");
    }
    bench.send(&name, "a reply").await;
    for expected in ["to.all", "to.me.too", "a reply"] {
        let delivery = take(&mut inbox).await;
        assert_eq!(text(&delivery), expected);
        ack(delivery).await;
    }
    drop(inbox);
    eventually("the inbox's end", async || {
        let late = bench.publish(&to("topics", "to.all", "late")).await;
        matches!(late, Err(PublishError::Unroutable { .. }))
    })
    .await;
    let nowhere = bench.broker.listen(&[topic("nowhere", "key")]).await.map(drop);
    let error = nowhere.expect_err("there is no such exchange").to_string();
    assert!(error.contains("nowhere"), "{error}");
}

pub async fn one_who_overhears_and_hangs_has_the_oldest_dropped<T: Transport>(bench: Bench<T>) {
    /// Handed out to a consumer at most, and waiting in its queue at most.
    const HANDED_OUT: u32 = 256;
    const MOST: u32 = 10;
    let topology = Topology {
        exchanges: vec![exchange("topics", ExchangeKind::Topic)],
        ..Topology::default()
    };
    bench.declare(&topology).await;
    let topics = [Topic {
        exchange: "topics".to_owned(),
        routing_key: "key".to_owned(),
    }];
    let opened = bench.broker.overhear(&topics, MOST);
    let (_, mut inbox) = soon("an inbox", opened).await.expect("an inbox");
    let all = HANDED_OUT + 5 * MOST;
    for number in 0..all {
        let message = to("topics", "key", &number.to_string());
        bench.publish(&message).await.expect("whoever hangs harms no publisher");
    }
    for expected in (0..HANDED_OUT).chain(all - MOST..all) {
        let delivery = take(&mut inbox).await;
        assert_eq!(text(&delivery), expected.to_string());
        ack(delivery).await;
    }
}

pub async fn a_queue_s_depth_counts_what_waits<T: Transport>(bench: Bench<T>) {
    let missing = bench.broker.queue_depth("jobs").await.expect("the broker tells");
    assert_eq!(missing, None);
    bench.declare(&queues([queue("jobs")])).await;
    assert_eq!(bench.depth("jobs").await.consumers, 0);
    for number in 1..=3 {
        bench.send("jobs", &number.to_string()).await;
    }
    bench.waits_for_messages("jobs", 3).await;

    let mut subscription = bench.subscribe("jobs", 1).await;
    let held = take(&mut subscription).await;
    bench.waits_for_messages("jobs", 2).await; // what a consumer has does not wait
    assert_eq!(bench.depth("jobs").await.consumers, 1);
    drop(held);
    drop(subscription);
    bench.waits_for_messages("jobs", 3).await;
    eventually("the consumer's end", async || bench.depth("jobs").await.consumers == 0).await;
}

/// Publishes until the queue refuses, and returns how many it took: quorum queues take one or two more than they
/// should before they notice.
async fn fill<T: Transport>(bench: &Bench<T>, queue: &str) -> usize {
    for accepted in 0..100 {
        match bench.publish(&to("", queue, "filling")).await {
            Ok(()) => {}
            Err(PublishError::Refused { .. }) => {
                assert!(accepted > 0, "an empty queue refuses nothing");
                return accepted;
            }
            Err(other) => panic!("fill {queue}: {other}"),
        }
    }
    panic!("{queue} never refused");
}

/// Publishes from many publishers at once, alternately to two queues, and counts what each publish was told.
async fn publish_alternately<T: Transport>(
    bench: &Bench<T>,
    queues: [&'static str; 2],
    messages: usize,
) -> BTreeMap<(&'static str, &'static str), usize> {
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        let broker = bench.broker.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "the test wants real concurrency and joins all of it"
        )]
        publishers.spawn(async move {
            let mut told = Vec::new();
            for number in 0..messages / PUBLISHERS {
                let queue = queues[(publisher + number) % 2];
                let outcome = broker.publish(&to("", queue, &number.to_string())).await;
                told.push((queue, word(&outcome)));
            }
            told
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(told) = publishers.join_next().await {
        for outcome in told.expect("a publisher does not panic") {
            *counts.entry(outcome).or_insert(0) += 1;
        }
    }
    counts
}

fn word(outcome: &Result<(), PublishError>) -> &'static str {
    match outcome {
        Ok(()) => "accepted",
        Err(PublishError::Refused { .. }) => "refused",
        Err(PublishError::Unroutable { .. }) => "unroutable",
        Err(PublishError::Unknown { .. }) => "unknown",
        Err(PublishError::Transport(_)) => "not sent",
    }
}
