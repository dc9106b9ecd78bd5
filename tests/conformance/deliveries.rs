//! Prefetch, order, redelivery, and the end of a subscription by our own hand.

use synthex::message::HeaderValue;
use synthex::transport::{Delivery, Subscription, Transport};

use crate::bench::{Bench, ack, nothing_comes, queue, queues, soon, take, take_all, text, texts};

async fn with_messages<T: Transport>(bench: &Bench<T>, count: usize) -> Vec<String> {
    bench.declare(&queues([queue("jobs")])).await;
    let names: Vec<_> = (1..=count).map(|number| number.to_string()).collect();
    for name in &names {
        bench.send("jobs", name).await;
    }
    names
}

pub async fn prefetch_is_honoured_exactly<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 6).await;
    let mut subscription = bench.subscribe("jobs", 3).await;

    let mut held = take_all(&mut subscription, 3).await;
    nothing_comes(&mut subscription).await;
    bench.waits_for_messages("jobs", 3).await;

    ack(held.remove(1)).await;
    held.push(take(&mut subscription).await);
    nothing_comes(&mut subscription).await;
    assert_eq!(texts(&held), ["1", "3", "4"]);

    held.remove(0).reject().await.expect("the session is live");
    held.push(take(&mut subscription).await);
    nothing_comes(&mut subscription).await;
    assert_eq!(texts(&held), ["3", "4", "5"]);
}

pub async fn prefetch_counts_for_each_consumer<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 0).await;
    let mut first = bench.subscribe("jobs", 1).await;
    let mut second = bench.subscribe("jobs", 2).await;
    for number in 1..=4 {
        bench.send("jobs", &number.to_string()).await;
    }
    let one = take(&mut first).await;
    let two = take_all(&mut second, 2).await;
    nothing_comes(&mut first).await;
    nothing_comes(&mut second).await;

    let mut taken = texts(&two);
    taken.push(text(&one));
    taken.sort();
    assert_eq!(taken, ["1", "2", "3"]);
    ack(one).await;
    assert_eq!(text(&take(&mut first).await), "4");
}

pub async fn deliveries_come_in_order<T: Transport>(bench: Bench<T>) {
    let names = with_messages(&bench, 200).await;
    let mut subscription = bench.subscribe("jobs", 7).await;
    for name in names {
        let delivery = take(&mut subscription).await;
        assert_eq!((text(&delivery), delivery.redelivered), (name, false));
        assert_eq!(delivery.routing_key, "jobs");
        ack(delivery).await;
    }
}

pub async fn an_acked_message_is_gone<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 1).await;
    let mut subscription = bench.subscribe("jobs", 1).await;
    ack(take(&mut subscription).await).await;
    drop(subscription);

    let mut subscription = bench.subscribe("jobs", 10).await;
    bench.send("jobs", "sentinel").await;
    let delivery = take(&mut subscription).await;
    assert_eq!((text(&delivery).as_str(), delivery.redelivered), ("sentinel", false));
    nothing_comes(&mut subscription).await;
}

pub async fn a_dropped_delivery_comes_again<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 1).await;
    let mut subscription = bench.subscribe("jobs", 1).await;
    let first = take(&mut subscription).await;
    assert!(first.is_live());
    assert!(!first.redelivered);
    drop(first);

    let second = take(&mut subscription).await;
    assert_eq!(text(&second), "1");
    assert!(second.redelivered);
    ack(second).await;
    nothing_comes(&mut subscription).await;
}

pub async fn a_dropped_subscription_gives_back_what_it_had<T: Transport>(bench: Bench<T>) {
    let names = with_messages(&bench, 5).await;
    let mut subscription = bench.subscribe("jobs", 5).await;
    let taken = take_all(&mut subscription, 2).await;
    bench.waits_for_messages("jobs", 0).await; // the rest is in the subscription's hands
    drop(taken);
    drop(subscription);

    let mut again = bench.subscribe("jobs", 5).await;
    let deliveries = take_all(&mut again, 5).await;
    assert_eq!(sorted(&deliveries), names);
    let redelivered = deliveries.iter().filter(|delivery| delivery.redelivered);
    assert_eq!(redelivered.count(), 5, "all five had been handed out");
}

pub async fn a_dropped_subscription_gives_back_at_once_what_nobody_took<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 4).await;
    let mut subscription = bench.subscribe("jobs", 3).await;
    let held = take(&mut subscription).await;
    bench.waits_for_messages("jobs", 1).await;
    drop(subscription);

    // The first is still held; its subscription must neither keep the rest nor get more.
    let mut other = bench.subscribe("jobs", 10).await;
    let rest = take_all(&mut other, 3).await;
    assert_eq!(sorted(&rest), ["2", "3", "4"]);
    assert!(held.is_live());
    ack(held).await;
    nothing_comes(&mut other).await;
}

pub async fn a_delivery_outlives_its_subscription<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 2).await;
    let mut subscription = bench.subscribe("jobs", 2).await;
    let [first, second] = <[_; 2]>::try_from(take_all(&mut subscription, 2).await).expect("two");
    drop(subscription);

    assert!(first.is_live() && second.is_live());
    ack(first).await;
    second.give_back().await.expect("the session is live");

    let mut again = bench.subscribe("jobs", 2).await;
    let delivery = take(&mut again).await;
    assert_eq!((text(&delivery).as_str(), delivery.redelivered), ("2", true));
    nothing_comes(&mut again).await;
}

pub async fn a_message_given_back_takes_its_place_and_counts<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 3).await;
    let mut subscription = bench.subscribe("jobs", 1).await;
    let count = |delivery: &Delivery| {
        let header = delivery.envelope.properties.headers.get("x-delivery-count");
        header.cloned()
    };
    let first = take(&mut subscription).await;
    assert!(matches!(count(&first), None | Some(HeaderValue::Int(0)))); // servers differ on the first delivery
    first.give_back().await.expect("the session is live");
    for returns in 1..=3 {
        let again = take(&mut subscription).await;
        assert_eq!(text(&again), "1", "before those behind it");
        assert!(again.redelivered);
        assert_eq!(count(&again), Some(HeaderValue::Int(returns)));
        again.give_back().await.expect("the session is live");
    }
    ack(take(&mut subscription).await).await;
    let second = take(&mut subscription).await;
    assert_eq!((text(&second).as_str(), second.redelivered), ("2", false));
}

pub async fn a_cancelled_subscription_ends_and_what_it_handed_out_stays_valid<T: Transport>(bench: Bench<T>) {
    with_messages(&bench, 2).await;
    let mut subscription = bench.subscribe("jobs", 3).await;
    let first = take(&mut subscription).await;
    bench.waits_for_messages("jobs", 0).await; // the second is on its way
    soon("the end of cancel", subscription.cancel()).await;
    bench.send("jobs", "3").await; // its prefetch has room for it, but it asked for no more

    let mut rest = Vec::new();
    while let Some(delivery) = soon("the subscription's end", subscription.next()).await {
        rest.push(delivery);
    }
    assert!(soon("the end, again", subscription.next()).await.is_none());
    assert_eq!(texts(&rest), ["2"], "what was on its way, and nothing new");

    assert!(first.is_live());
    ack(first).await;
    for delivery in rest {
        ack(delivery).await;
    }
    bench.waits_for_messages("jobs", 1).await;
    let mut next = bench.subscribe("jobs", 3).await;
    let third = take(&mut next).await;
    assert_eq!((text(&third).as_str(), third.redelivered), ("3", false));
    nothing_comes(&mut next).await;
}

pub async fn an_extended_subscription_gets_as_many_again_and_keeps_the_order<T: Transport>(bench: Bench<T>) {
    let names = with_messages(&bench, 8).await;
    let mut subscription = bench.subscribe("jobs", 3).await;
    let mut held = take_all(&mut subscription, 3).await;
    nothing_comes(&mut subscription).await;
    for more in [3, 2] {
        let extended = soon("an extension", subscription.extend()).await;
        extended.expect("the session is live");
        held.extend(take_all(&mut subscription, more).await);
        nothing_comes(&mut subscription).await;
        bench
            .waits_for_messages("jobs", u32::try_from(8 - held.len()).expect("a few"))
            .await;
    }
    assert_eq!(texts(&held), names);

    assert!(held.iter().all(Delivery::is_live));
    ack(held.remove(1)).await;
    soon("the end of cancel", subscription.cancel()).await;
    for delivery in held {
        delivery.give_back().await.expect("the session is live");
    }
    bench.waits_for_messages("jobs", 7).await;
    let mut next = bench.subscribe("jobs", 8).await;
    let again = take_all(&mut next, 7).await;
    assert_eq!(texts(&again), ["1", "3", "4", "5", "6", "7", "8"]);
}

pub async fn an_extended_subscription_still_gives_what_nobody_took<T: Transport>(bench: Bench<T>) {
    let names = with_messages(&bench, 5).await;
    let mut subscription = bench.subscribe("jobs", 3).await;
    let first = take(&mut subscription).await;
    bench.waits_for_messages("jobs", 2).await; // two more are on their way
    let extended = soon("an extension", subscription.extend()).await;
    extended.expect("the session is live");
    let mut held = vec![first];
    held.extend(take_all(&mut subscription, 3).await);
    assert_eq!(texts(&held), names[..4]);

    drop((held, subscription));
    bench.waits_for_messages("jobs", 5).await;
}

/// What a consumer leaves behind may come back in another order than single messages that it gave back.
fn sorted(deliveries: &[Delivery]) -> Vec<String> {
    let mut texts = texts(deliveries);
    texts.sort();
    texts
}
