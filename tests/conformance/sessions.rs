//! The broker ends our sessions, as its restart does.

use synthex::transport::{SettleError, Subscription, Transport};

use crate::bench::{Bench, ack, eventually, nothing_comes, queue, queues, request, soon, take, take_all, texts, to};
use crate::support::broker::patiently;

pub async fn a_lost_session_ends_the_subscription_and_the_next_one_works<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    for number in 1..=4 {
        bench.send("jobs", &number.to_string()).await;
    }
    let mut lost = bench.subscribe("jobs", 3).await;
    ack(take(&mut lost).await).await;
    let [second, third] = <[_; 2]>::try_from(take_all(&mut lost, 2).await).expect("two");
    assert!(second.is_live());
    bench.waits_for_messages("jobs", 0).await; // the fourth is on its way, so the broker has the ack

    bench.close_sessions().await;
    // What was on its way may still come; it is as dead as the rest.
    while soon("the subscription's end", lost.next()).await.is_some() {}
    assert!(soon("the end, again", lost.next()).await.is_none());
    assert!(!second.is_live() && !third.is_live());
    assert_eq!(second.ack().await, Err(SettleError));
    assert_eq!(third.give_back().await, Err(SettleError));

    let mut next = resubscribe(&bench, "jobs").await;
    let deliveries = take_all(&mut next, 3).await;
    assert_eq!(texts(&deliveries), ["2", "3", "4"]);
    assert!(deliveries[0].redelivered && deliveries[1].redelivered);
    for delivery in deliveries {
        ack(delivery).await;
    }
    drop(lost);
    nothing_comes(&mut next).await;
}

pub async fn a_lost_session_does_not_stop_publishing<T: Transport>(bench: Bench<T>) {
    bench.declare(&queues([queue("jobs")])).await;
    bench.send("jobs", "before").await;
    bench.close_sessions().await;
    eventually("a publish", async || {
        match bench.publish(&to("", "jobs", "after")).await {
            Ok(()) => true,
            Err(error) if error.is_transient() => false,
            Err(error) => panic!("publish: {error}"),
        }
    })
    .await;
    let mut subscription = resubscribe(&bench, "jobs").await;
    let deliveries = take_all(&mut subscription, 2).await;
    assert_eq!(texts(&deliveries), ["before", "after"]);
}

/// Subscribes as the worker does: again, for as long as the error may pass.
async fn resubscribe<T: Transport>(bench: &Bench<T>, queue: &str) -> T::Subscription {
    patiently(async || bench.broker.subscribe(&request(queue, 10)).await).await
}
