//! A log that everybody reads for himself.

use std::time::Duration;

use synthex::transport::topology::{Queue, QueueKind};
use synthex::transport::{Delivery, StreamOffset, Subscribe, Subscription, Transport};

use crate::bench::{Bench, ack, eventually, nothing_comes, queues, request, soon, take, text};

fn stream(name: &str) -> Queue {
    Queue {
        name: name.to_owned(),
        kind: QueueKind::Stream {
            max_age: Duration::from_secs(3600),
        },
        ..Queue::default()
    }
}

/// A log with so many messages: "0", "1", and so on.
async fn log_of<T: Transport>(bench: &Bench<T>, messages: usize) {
    bench.declare(&queues([stream("log")])).await;
    for number in 0..messages {
        bench.send("log", &number.to_string()).await;
    }
}

async fn read<T: Transport>(bench: &Bench<T>, from: StreamOffset, prefetch: u16) -> T::Subscription {
    let request = Subscribe {
        from: Some(from),
        ..request("log", prefetch)
    };
    let subscribed = soon("a subscription", bench.broker.subscribe(&request)).await;
    subscribed.expect("the log is there")
}

/// Takes and settles the next message: text and offset.
async fn next(reader: &mut impl Subscription) -> (String, Option<u64>) {
    let delivery = take(reader).await;
    let read = (text(&delivery), delivery.offset());
    ack(delivery).await;
    read
}

fn at(offset: u64) -> (String, Option<u64>) {
    (offset.to_string(), Some(offset))
}

pub async fn every_reader_of_a_stream_gets_all_of_it_from_where_it_begins<T: Transport>(bench: Bench<T>) {
    log_of(&bench, 5).await;
    // A prefetch less than what is there: each ack asks for one more.
    let mut all = read(&bench, StreamOffset::First, 2).await;
    let mut some = read(&bench, StreamOffset::At(3), 10).await;
    let mut new = read(&bench, StreamOffset::Next, 10).await;
    for offset in 0..5 {
        assert_eq!(next(&mut all).await, at(offset));
    }
    for offset in 3..5 {
        assert_eq!(next(&mut some).await, at(offset));
    }
    nothing_comes(&mut new).await;
    bench.send("log", "5").await;
    for reader in [&mut all, &mut some, &mut new] {
        assert_eq!(next(reader).await, at(5));
        nothing_comes(reader).await;
    }
    let mut late = read(&bench, StreamOffset::First, 10).await;
    for offset in 0..6 {
        assert_eq!(next(&mut late).await, at(offset));
    }
}

/// What a reader does with a message, and how often, is nobody else's business; nor does it come again.
pub async fn settling_takes_nothing_from_a_stream<T: Transport>(bench: Bench<T>) {
    log_of(&bench, 4).await;
    let mut careless = read(&bench, StreamOffset::First, 1).await;
    take(&mut careless)
        .await
        .give_back()
        .await
        .expect("the session is live");
    take(&mut careless).await.reject().await.expect("the session is live");
    drop(take(&mut careless).await);
    let last: Delivery = take(&mut careless).await;
    assert!(!last.redelivered);
    assert_eq!((text(&last), last.offset()), at(3));
    ack(last).await;
    nothing_comes(&mut careless).await;

    let mut reader = read(&bench, StreamOffset::First, 10).await;
    for offset in 0..4 {
        assert_eq!(next(&mut reader).await, at(offset));
    }
}

pub async fn a_stream_goes_on_after_a_lost_session<T: Transport>(bench: Bench<T>) {
    log_of(&bench, 3).await;
    let mut lost = read(&bench, StreamOffset::First, 10).await;
    assert_eq!(next(&mut lost).await, at(0));
    bench.close_sessions().await;
    while soon("the reader's end", lost.next()).await.is_some() {}
    let mut reader = None;
    eventually("a subscription", async || {
        let request = Subscribe {
            from: Some(StreamOffset::At(1)),
            ..request("log", 10)
        };
        reader = bench.broker.subscribe(&request).await.ok();
        reader.is_some()
    })
    .await;
    let mut reader = reader.expect("the last answer was a subscription");
    for offset in 1..3 {
        assert_eq!(next(&mut reader).await, at(offset));
    }
}

/// RabbitMQ counts a stream's messages some seconds behind, but never more than there are.
pub async fn a_stream_s_depth_is_what_is_in_it<T: Transport>(bench: Bench<T>) {
    log_of(&bench, 3).await;
    let mut reader = read(&bench, StreamOffset::First, 10).await;
    for offset in 0..3 {
        assert_eq!(next(&mut reader).await, at(offset));
    }
    bench.waits_for_messages("log", 3).await;
}
