//! Waiting on the broker: a message goes to a tier, and comes back to its pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use synthex::message::{Envelope, HeaderValue, Properties};
use synthex::transport::Transport;
use synthex::transport::topology::{Names, TIERS, Tier, Topology, tier_for};
use tokio::time::Instant;

use crate::bench::{Bench, take, text, to};

/// The shortest tier, so that no test waits longer.
const SHORT: Tier = TIERS[0];

async fn with_pool<T: Transport>(bench: &Bench<T>) -> (Names, T::Subscription) {
    let names = Names::new("n");
    bench.declare(&Topology::new(&names, ["p", "q"])).await;
    // There before anything is published: it has to notice by itself when something is due.
    let jobs = bench.subscribe(&names.pool_queue("p"), 10).await;
    (names, jobs)
}

pub async fn a_message_comes_back_to_its_pool_after_its_tier<T: Transport>(bench: Bench<T>) {
    let (names, mut jobs) = with_pool(&bench).await;
    let before = Instant::now();
    let published = bench.publish(&to(&names.delay(&SHORT), "p", "job")).await;
    published.expect("a route to the tier");

    let delivery = take(&mut jobs).await;
    assert!(before.elapsed() >= SHORT.ttl, "it came after {:?}", before.elapsed());
    assert_eq!((text(&delivery).as_str(), delivery.routing_key.as_str()), ("job", "p"));
    assert!(!delivery.redelivered);
    let reason = delivery.envelope.properties.headers.get("x-first-death-reason");
    assert_eq!(reason, Some(&HeaderValue::Text("expired".into())));
    bench.waits_for_messages(&names.delay(&SHORT), 0).await;
    assert_eq!(bench.depth(&names.pool_queue("q")).await.messages, 0);
}

pub async fn a_shorter_tier_overtakes_a_longer_one<T: Transport>(bench: Bench<T>) {
    let (names, mut jobs) = with_pool(&bench).await;
    // So long that it is not over before the other message is there, however late that comes.
    let longer = tier_for(Duration::from_secs(20 * 60));
    assert!(longer.ttl > SHORT.ttl);
    for (tier, name) in [(longer, "later"), (&SHORT, "sooner")] {
        let published = bench.publish(&to(&names.delay(tier), "p", name)).await;
        published.expect("a route to the tier");
    }
    assert_eq!(text(&take(&mut jobs).await), "sooner");
    bench.waits_for_messages(&names.delay(longer), 1).await;
}

pub async fn a_delayed_message_arrives_as_it_was_sent<T: Transport>(bench: Bench<T>) {
    let (names, mut jobs) = with_pool(&bench).await;
    let mut publication = to(&names.delay(&SHORT), "p", "");
    publication.envelope = everything().into();
    bench.publish(&publication).await.expect("a route to the tier");

    let mut delivery = take(&mut jobs).await;
    let envelope = Arc::make_mut(&mut delivery.envelope);
    let headers = &mut envelope.properties.headers;
    assert!(headers.contains_key("x-death"));
    headers.retain(|name, _| name.starts_with("x-test-")); // the broker adds its own
    assert_eq!(*envelope, *publication.envelope);
}

/// A message with all that an envelope can hold, but `user_id`, which RabbitMQ allows to nobody but that user, and
/// [`HeaderValue::Other`], which cannot be sent.
fn everything() -> Envelope {
    let text = |text: &str| HeaderValue::Text(text.to_owned());
    let table = BTreeMap::from([
        (
            "list".to_owned(),
            HeaderValue::List(vec![text("deep"), HeaderValue::Bool(false)]),
        ),
        ("none".to_owned(), HeaderValue::Table(BTreeMap::new())),
    ]);
    let headers = [
        ("text", text("grüße, 世界")),
        ("no-text", text("")),
        ("most", HeaderValue::Int(i64::MAX)),
        ("least", HeaderValue::Int(i64::MIN)),
        ("zero", HeaderValue::Int(0)),
        ("yes", HeaderValue::Bool(true)),
        ("half", HeaderValue::Float(0.5)),
        ("no", HeaderValue::Bool(false)),
        (
            "list",
            HeaderValue::List(vec![HeaderValue::Int(1), HeaderValue::Table(table.clone())]),
        ),
        ("no-list", HeaderValue::List(Vec::new())),
        ("table", HeaderValue::Table(table)),
    ];
    let headers = headers.map(|(name, value)| (format!("x-test-{name}"), value));
    let some = |text: &str| Some(text.to_owned());
    Envelope {
        body: (0..=u8::MAX).cycle().take(10_000).collect::<Vec<u8>>().into(),
        properties: Properties {
            content_type: some("application/json"),
            content_encoding: some("identity"),
            app_id: some("producer"),
            message_id: some("id/1"),
            correlation_id: some("correlation"),
            reply_to: some("replies"),
            kind: some("succeeded"),
            user_id: None,
            priority: Some(7),
            timestamp: Some(1_700_000_000),
            headers: headers.into(),
        },
    }
}
