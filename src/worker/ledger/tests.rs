use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::message::Properties;
use crate::transport::{BoxFuture, Settlement, Settler};

/// A session with the broker, and what was settled on it.
#[derive(Default)]
struct Session {
    lost: AtomicBool,
    slow: AtomicBool,
    acks: AtomicU32,
    returns: AtomicU32,
}

struct Receipt(Arc<Session>);

impl Settler for Receipt {
    fn settle(self: Box<Self>, how: Settlement) -> BoxFuture<'static, Result<(), SettleError>> {
        let count = match how {
            Settlement::Ack => &self.0.acks,
            _ => &self.0.returns,
        };
        let live = self.is_live();
        if live {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let slow = self.0.slow.load(Ordering::Relaxed);
        Box::pin(async move {
            if slow {
                tokio::task::yield_now().await;
            }
            live.then_some(()).ok_or(SettleError)
        })
    }

    fn is_live(&self) -> bool {
        !self.0.lost.load(Ordering::Relaxed)
    }
}

impl Session {
    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    fn acks(&self) -> u32 {
        self.acks.load(Ordering::Relaxed)
    }
}

fn message(id: &str, returns: u32) -> Envelope {
    let mut properties = Properties {
        message_id: Some(id.to_owned()),
        ..Properties::default()
    };
    if returns > 0 {
        let count = HeaderValue::Int(returns.into());
        properties.headers.insert("x-delivery-count".to_owned(), count);
    }
    Envelope {
        body: "{}".into(),
        properties,
    }
}

/// The delivery of a message that has come back so often.
fn delivery(session: &Arc<Session>, id: &str, returns: u32) -> Delivery {
    let receipt = Box::new(Receipt(session.clone()));
    Delivery::new(message(id, returns), "pool".to_owned(), returns > 0, receipt)
}

fn sessions() -> (Arc<Session>, Arc<Session>) {
    Default::default()
}

#[tokio::test]
async fn a_redelivery_takes_the_place_of_the_lost_delivery_of_a_job_in_hand() {
    let (ledger, (first, second)) = (Arc::<Ledger>::default(), sessions());
    let held = ledger.hold(delivery(&first, "a", 0));
    first.lose();
    assert!(!held.is_live());
    let recognised = ledger.recognise(delivery(&second, "a", 1));
    assert!(matches!(recognised, Recognised::Adopted), "{recognised:?}");
    assert!(held.is_live());
    held.ack().await.unwrap();
    assert_eq!((first.acks(), second.acks()), (0, 1));
}

#[tokio::test]
async fn what_looks_like_a_job_in_hand_but_comes_beside_it_is_another() {
    let (ledger, (session, _)) = (Arc::<Ledger>::default(), sessions());
    let held = ledger.hold(delivery(&session, "a", 0));
    let fresh = ledger.recognise(delivery(&session, "a", 0));
    assert!(matches!(fresh, Recognised::New(_)), "a new submission: {fresh:?}");
    let redelivered = ledger.recognise(delivery(&session, "a", 1));
    assert!(
        matches!(redelivered, Recognised::New(_)),
        "the one in hand is not lost: {redelivered:?}"
    );
    let other = ledger.recognise(delivery(&session, "b", 1));
    assert!(matches!(other, Recognised::New(_)), "{other:?}");
    drop(held);
}

#[tokio::test]
async fn a_job_that_has_ended_is_only_acked_and_known_but_once() {
    let (ledger, (first, second)) = (Arc::<Ledger>::default(), sessions());
    let held = ledger.hold(delivery(&first, "a", 0));
    first.lose();
    held.ack().await.unwrap_err();
    let fresh = ledger.recognise(delivery(&second, "a", 0));
    assert!(matches!(fresh, Recognised::New(_)), "a new submission runs: {fresh:?}");
    let again = ledger.recognise(delivery(&second, "a", 1));
    assert!(matches!(again, Recognised::Ended(_)), "{again:?}");
    let third = ledger.recognise(delivery(&second, "a", 2));
    assert!(matches!(third, Recognised::New(_)), "known but once: {third:?}");
}

#[tokio::test]
async fn an_ack_is_forgotten_when_it_is_proven_and_doubted_when_its_session_ends_before() {
    for (proven_first, ended) in [(true, false), (false, true)] {
        let (ledger, (first, second)) = (Arc::<Ledger>::default(), sessions());
        ledger.hold(delivery(&first, "a", 0)).ack().await.unwrap();
        let mark = ledger.unproven().expect("one ack waits");
        if proven_first {
            ledger.prove(mark);
        }
        ledger.lose_session();
        ledger.prove(mark);
        assert_eq!(ledger.unproven(), None);
        let again = ledger.recognise(delivery(&second, "a", 1));
        assert_eq!(matches!(again, Recognised::Ended(_)), ended, "{again:?}");
    }
}

#[tokio::test]
async fn only_acks_before_the_question_are_proven_by_its_answer() {
    let (ledger, (session, _)) = (Arc::<Ledger>::default(), sessions());
    ledger.hold(delivery(&session, "a", 0)).ack().await.unwrap();
    let mark = ledger.unproven().unwrap();
    ledger.hold(delivery(&session, "b", 0)).ack().await.unwrap();
    ledger.prove(mark);
    let known = |id| matches!(ledger.recognise(delivery(&session, id, 1)), Recognised::Ended(_));
    assert_eq!((known("a"), known("b")), (false, true));
}

#[tokio::test]
async fn an_ack_that_is_still_being_written_is_proven_by_no_answer() {
    let (ledger, (session, other)) = (Arc::<Ledger>::default(), sessions());
    session.slow.store(true, Ordering::Relaxed);
    let mut acking = Box::pin(ledger.hold(delivery(&session, "a", 0)).ack());
    assert!(futures_util::poll!(&mut acking).is_pending());
    assert_eq!(ledger.unproven(), None);
    ledger.prove(u64::MAX);
    let again = ledger.recognise(delivery(&other, "a", 1));
    assert!(matches!(again, Recognised::Ended(_)), "{again:?}");
    assert!(acking.await.is_ok());
    assert_eq!(ledger.unproven(), None, "it came again, and is known but once");
}

#[tokio::test]
async fn a_job_that_was_not_started_comes_again_as_if_for_the_first_time() {
    let (ledger, (first, second)) = (Arc::<Ledger>::default(), sessions());
    let unstarted = |id: &str, returns| ledger.hold(delivery(&first, id, returns)).was_not_started();
    let is_counted = |id: &str, returns| match ledger.recognise(delivery(&second, id, returns)) {
        Recognised::New(delivery) => delivery.redelivered,
        other => panic!("{other:?}"),
    };
    unstarted("a", 0);
    assert!(!is_counted("a", 1));
    assert!(is_counted("a", 1), "known but once");
    unstarted("b", 0);
    assert!(is_counted("b", 2), "somebody else had it in between");
    unstarted("c", 1);
    assert!(is_counted("c", 2), "it had yet to be counted");
}

#[tokio::test]
async fn a_job_that_is_dropped_is_not_known_any_more() {
    let (ledger, (first, second)) = (Arc::<Ledger>::default(), sessions());
    drop(ledger.hold(delivery(&first, "a", 0)));
    ledger.hold(delivery(&first, "b", 0)).give_back().await.unwrap();
    for id in ["a", "b"] {
        let again = ledger.recognise(delivery(&second, id, 1));
        assert!(
            matches!(again, Recognised::New(Delivery { redelivered: true, .. })),
            "{again:?}"
        );
    }
    assert!(ledger.state().in_hand.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_bounded_in_number_and_time() {
    let (ledger, (session, _)) = (Arc::<Ledger>::default(), sessions());
    session.lose();
    for number in 0..=MOST {
        let _ = ledger.hold(delivery(&session, &number.to_string(), 0)).ack().await;
    }
    assert_eq!(ledger.state().past.len(), MOST);
    let known = |id: &str| matches!(ledger.recognise(delivery(&session, id, 1)), Recognised::Ended(_));
    assert_eq!((known("0"), known("1")), (false, true));
    tokio::time::advance(REMEMBERED).await;
    assert!(!known("2"));
    let _ = ledger.hold(delivery(&session, "last", 0)).ack().await;
    let state = ledger.state();
    assert_eq!((state.past.len(), state.numbers.len()), (1, 1), "the old is gone");
}

#[test]
fn a_message_is_known_by_all_that_its_producer_says_and_by_nothing_that_the_broker_says() {
    let key = |change: fn(&mut Envelope)| {
        let mut envelope = message("a", 0);
        change(&mut envelope);
        MessageKey::of(&envelope)
    };
    let plain = key(|_| {});
    assert_eq!(
        plain,
        key(|envelope| {
            let headers = &mut envelope.properties.headers;
            headers.insert("x-delivery-count".to_owned(), HeaderValue::Int(3));
            headers.insert("x-death".to_owned(), HeaderValue::List(Vec::new()));
        })
    );
    let others = [
        key(|envelope| envelope.body = "{ }".into()),
        key(|envelope| envelope.properties.message_id = Some("b".to_owned())),
        key(|envelope| envelope.properties.correlation_id = Some("a".to_owned())),
        key(|envelope| envelope.properties.reply_to = Some("a".to_owned())),
        key(|envelope| envelope.properties.timestamp = Some(1)),
        key(|envelope| envelope.properties.make_unique()),
        key(|envelope| {
            let attempt = "x-synthex-attempt".to_owned();
            envelope.properties.headers.insert(attempt, 2.into());
        }),
    ];
    assert!(others.iter().all(|other| *other != plain), "{others:?}");
}
