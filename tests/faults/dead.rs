//! Dead letters are looked at, run again and dropped, by one who may be cut short at any point.
//!
//! What holds at every point: each job is a dead letter or in its pool's queue, at worst both; looking changes nothing, not
//! even the order.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use synthex::control::dead::{DeadError, DeadLetters, Letter, Seen, Selector};
use synthex::message::Status::{Failed, Succeeded};
use synthex::message::{Attempt, Envelope, Properties, header};
use synthex::transport::topology::{Binding, DeadLetter, Declare, Queue, Topology};
use synthex::transport::{Publication, Routing, Subscription, Transport};

use crate::rig::{POOL, Rig, ends};
use crate::support::broker::patiently;
use crate::support::faulty::{AckFault, Faulty, Gate, PublishFault, anything};

/// More than two pages of a pass.
const MANY: usize = 150;

fn dead<T: Transport, F: Transport>(rig: &Rig<T>, transport: F) -> DeadLetters<F> {
    DeadLetters::new(transport, rig.names.clone())
}

fn all() -> Selector {
    Selector::default()
}

/// A job as its producer sends it.
fn job(id: &str) -> Envelope {
    Envelope {
        body: r#"{"command": ["true"]}"#.into(),
        properties: Properties {
            message_id: Some(id.to_owned()),
            timestamp: Some(1_700_000_000),
            ..Properties::default()
        },
    }
}

/// Makes a dead letter as a worker does.
async fn bury<T: Transport>(rig: &Rig<T>, id: &str, pool: &str, reason: &str) {
    let mut envelope = job(id);
    Attempt::FIRST.after_run().write(&mut envelope.properties);
    let headers = &mut envelope.properties.headers;
    headers.insert(header::REASON.to_owned(), reason.into());
    headers.insert(header::POOL.to_owned(), pool.into());
    publish(rig, rig.names.dead(), pool, envelope).await;
}

async fn publish<T: Transport>(rig: &Rig<T>, exchange: String, key: &str, envelope: Envelope) {
    let publication = Publication {
        exchange,
        routing_key: key.to_owned(),
        routing: Routing::Mandatory,
        envelope: envelope.into(),
    };
    rig.broker.publish(&publication).await.expect("the broker is well");
}

async fn bury_many<T: Transport>(rig: &Rig<T>) -> Vec<String> {
    let ids: Vec<String> = (1..=MANY).map(|number| format!("job-{number}")).collect();
    for id in &ids {
        bury(rig, id, POOL, "failed").await;
    }
    ids
}

fn ids(letters: &[Letter]) -> Vec<String> {
    letters
        .iter()
        .map(|letter| letter.job_id.clone().unwrap_or_default())
        .collect()
}

async fn listed<T: Transport>(rig: &Rig<T>) -> Vec<String> {
    let (letters, _) = dead(rig, rig.broker.clone())
        .list(&all(), usize::MAX)
        .await
        .expect("the broker is well");
    ids(&letters)
}

/// Waits until the broker counts so many letters as ready.
async fn come_back<T: Transport>(rig: &Rig<T>, count: usize) {
    let queue = rig.names.dead();
    let is_so = async || rig.depth(&queue).await == u32::try_from(count).ok();
    let back = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let back = tokio::time::timeout(crate::rig::PATIENCE, back).await;
    back.unwrap_or_else(|_| panic!("{count} letters are not back"));
}

/// The ids of the jobs in the pool's queue, all of which are new submissions. No worker may run.
async fn submitted<T: Transport>(rig: &Rig<T>) -> Vec<String> {
    let jobs = rig.take_all(&rig.names.pool_queue(POOL)).await;
    jobs.into_iter()
        .map(|job| {
            assert_eq!(Attempt::read(&job.properties), Attempt::FIRST);
            let headers = job.properties.headers.keys();
            let ours: Vec<_> = headers.filter(|name| name.starts_with(header::OURS)).collect();
            assert_eq!(ours, [header::SUBMITTED_AT]);
            assert!(job.properties.timestamp > Some(1_700_000_000), "submitted now");
            job.properties.message_id.expect("it has an id")
        })
        .collect()
}

pub async fn looking_at_letters_changes_nothing_however_often<T: Transport>(rig: Rig<T>) {
    let buried = bury_many(&rig).await;
    let dead = dead(&rig, rig.broker.clone());
    for _ in 0..3 {
        let (letters, seen) = dead.list(&all(), usize::MAX).await.expect("the broker is well");
        assert_eq!(ids(&letters), buried);
        let expected = Seen {
            selected: MANY,
            missing: 0,
        };
        assert_eq!(seen, expected);
    }
    let (first, _) = dead.list(&all(), 3).await.expect("the broker is well");
    assert_eq!(ids(&first), buried[..3]);

    let one = Selector {
        ids: [buried[100].clone()].into(),
        ..all()
    };
    let mut bodies = Vec::new();
    let shown = dead.show(&one, async |letter, envelope| {
        assert!(letter.is_called("job-101"));
        bodies.push(envelope.body.clone());
        Ok(())
    });
    assert_eq!(shown.await.expect("the broker is well").selected, 1);
    assert_eq!(bodies, [job("").body]);
    assert_eq!(rig.dead_letters().await, buried, "all of them, in their order");
}

/// What the broker itself writes, on the broker itself.
pub async fn every_way_to_the_dead_letters_is_told_by_its_reason<T: Transport>(rig: Rig<T>) {
    let pool = |name: &str, limit: i64, ttl: Option<Duration>| Queue {
        name: rig.names.pool_queue(name),
        dead_letter: Some(DeadLetter {
            exchange: rig.names.dead(),
            routing_key: None,
        }),
        delivery_limit: Some(limit),
        ttl,
        ..Queue::default()
    };
    let queues = vec![
        pool("limited", 1, None),
        pool("timed", 9, Some(Duration::from_millis(1))),
    ];
    let bindings = ["limited", "timed"].map(|name| Binding {
        exchange: rig.names.jobs(),
        queue: rig.names.pool_queue(name),
        routing_key: name.to_owned(),
    });
    let topology = Topology {
        queues,
        bindings: bindings.into(),
        ..Topology::default()
    };
    patiently(async || rig.broker.declare(&topology, Declare::Active).await).await;

    for name in ["nobody", "timed", "limited", POOL] {
        publish(&rig, rig.names.jobs(), name, job(name)).await;
    }
    let mut limited = rig.subscribe(&rig.names.pool_queue("limited"), 1).await;
    for _ in 0..2 {
        let delivery = limited.next().await.expect("the session is live");
        delivery.give_back().await.expect("the session is live");
    }
    let mut rejecting = rig.subscribe(&rig.names.pool_queue(POOL), 1).await;
    let delivery = rejecting.next().await.expect("the session is live");
    delivery.reject().await.expect("the session is live");
    come_back(&rig, 4).await;

    let dead = dead(&rig, rig.broker.clone());
    let (letters, _) = dead.list(&all(), usize::MAX).await.expect("the broker is well");
    let mut told: Vec<_> = letters
        .iter()
        .map(|letter| (letter.pool.as_str(), letter.reason.as_str(), letter.failed_at.is_some()))
        .collect();
    told.sort_unstable();
    let expected = [
        (POOL, "rejected", true),
        ("limited", "delivery_limit", true),
        ("nobody", "unroutable", false),
        ("timed", "expired", true),
    ];
    assert_eq!(told, expected);
    let of_pool = |letter: &Letter| letter.job_id.as_deref() == Some(letter.pool.as_str());
    assert!(letters.iter().all(of_pool), "{letters:#?}");
}

pub async fn a_retried_job_runs_as_a_new_submission<T: Transport>(rig: Rig<T>) {
    let script = format!("test -e {}", rig.path("mended").display());
    let retry = json!({ "max_attempts": 2, "initial": "10ms" });
    rig.publish("job", &json!({ "script": script, "retry": retry })).await;
    let live = rig.work(rig.broker.clone(), rig.pool());
    assert_eq!(ends(&rig.wait_for_results(2).await["job"]), [(1, Failed), (2, Failed)]);
    come_back(&rig, 1).await;

    rig.open("mended");
    let mut told = Vec::new();
    let retried = dead(&rig, rig.broker.clone())
        .retry(&all(), async |letter| {
            told.push((
                letter.job_id.clone(),
                letter.reason.clone(),
                letter.attempt,
                letter.runs,
            ));
            Ok(())
        })
        .await;
    assert_eq!(retried.expect("the broker is well").selected, 1);
    assert_eq!(told, [(Some("job".to_owned()), "failed".to_owned(), 2, 2)]);
    let ends = rig.finish_with(live, 1).await;
    assert_eq!(ends["job"], [(1, Succeeded)], "it has its attempts before it again");
    assert_eq!(rig.dead_letters().await, [""; 0]);
}

pub async fn letters_are_retried_and_dropped_as_they_were_selected<T: Transport>(rig: Rig<T>) {
    for (id, pool, reason) in [
        ("a", POOL, "failed"),
        ("b", POOL, "lost"),
        ("c", "gone", "failed"),
        ("d", POOL, "failed"),
        ("e", POOL, "failed"),
        ("b", POOL, "failed"),
    ] {
        bury(&rig, id, pool, reason).await;
    }
    let dead = dead(&rig, rig.broker.clone());
    let select = |ids: &[&str], pool: Option<&str>, reason: Option<&str>| Selector {
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        pool: pool.map(str::to_owned),
        reason: reason.map(str::to_owned),
    };
    let nothing = select(&["a"], Some("gone"), None);
    for seen in [
        dead.retry(&nothing, async |_| Ok(())).await,
        dead.drop(&nothing, async |_| Ok(())).await,
    ] {
        assert_eq!(seen.expect("the broker is well"), Seen::default());
    }

    let seen = dead.retry(&select(&["b", "d"], None, None), async |_| Ok(())).await;
    assert_eq!(seen.expect("the broker is well").selected, 3);
    assert_eq!(submitted(&rig).await, ["b", "d", "b"]);
    assert_eq!(listed(&rig).await, ["a", "c", "e"]);

    let seen = dead
        .drop(&select(&[], Some("gone"), Some("failed")), async |_| Ok(()))
        .await;
    assert_eq!(seen.expect("the broker is well").selected, 1);
    assert_eq!(listed(&rig).await, ["a", "e"]);

    let of_pool = select(&[], Some(POOL), Some("failed"));
    let seen = dead.retry(&of_pool, async |_| Ok(())).await;
    assert_eq!(seen.expect("the broker is well").selected, 2);
    assert_eq!(submitted(&rig).await, ["a", "e"]);
    assert_eq!(listed(&rig).await, [""; 0]);
}

pub async fn a_retry_for_a_pool_without_a_queue_publishes_nothing<T: Transport>(rig: Rig<T>) {
    bury(&rig, "good", POOL, "failed").await;
    bury(&rig, "bad", "gone", "failed").await;
    let transport = Faulty::new(rig.broker.clone());
    let retried = dead(&rig, transport.clone()).retry(&all(), async |_| Ok(())).await;
    match retried {
        Err(DeadError::NoPoolQueue(missing)) => {
            assert_eq!(missing, [("gone".to_owned(), rig.names.pool_queue("gone"))].into());
        }
        other => panic!("the pool has no queue, but: {other:?}"),
    }
    assert!(transport.sent().is_empty() && transport.acked().is_empty());
    assert_eq!(listed(&rig).await, ["good", "bad"]);
}

pub async fn a_job_of_unknown_fate_keeps_its_letter<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(anything, 2..=2, PublishFault::UnknownArrived);
    let left = stopped_at_the_second(&rig, &transport).await;
    assert_eq!(left, ["job-2", "job-3"]);
    assert_eq!(submitted(&rig).await, ["job-1", "job-2"], "it did arrive");
}

pub async fn a_job_that_is_refused_keeps_its_letter<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(anything, 2..=2, PublishFault::Refused);
    let left = stopped_at_the_second(&rig, &transport).await;
    assert_eq!(left, ["job-2", "job-3"]);
    assert_eq!(submitted(&rig).await, ["job-1"]);
}

pub async fn an_ack_that_is_lost_leaves_a_letter_although_its_job_runs_again<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_ack(2..=2, AckFault::Lost);
    let left = stopped_at_the_second(&rig, &transport).await;
    assert_eq!(left, ["job-2", "job-3"]);
    assert_eq!(submitted(&rig).await, ["job-1", "job-2"]);

    let retried = dead(&rig, transport).retry(&all(), async |_| Ok(())).await;
    assert_eq!(retried.expect("it goes well now").selected, 2);
    let mut again = submitted(&rig).await;
    again.sort(); // as above
    assert_eq!(again, ["job-2", "job-3"], "one twice, and none lost");
    assert_eq!(listed(&rig).await, [""; 0]);
}

/// Retries three letters, which fails at the second. Gives the ids of the letters that are left.
async fn stopped_at_the_second<T: Transport>(rig: &Rig<T>, transport: &Faulty<T>) -> Vec<String> {
    for id in ["job-1", "job-2", "job-3"] {
        bury(rig, id, POOL, "failed").await;
    }
    let mut told = Vec::new();
    let retried = dead(rig, transport.clone())
        .retry(&all(), async |letter| {
            told.push(letter.job_id.clone());
            Ok(())
        })
        .await;
    match retried {
        Err(DeadError::Publish(_) | DeadError::Lost { .. }) => {}
        other => panic!("it was to fail, but: {other:?}"),
    }
    assert_eq!(
        told,
        [Some("job-1".to_owned())],
        "who is not told of has not been dealt with"
    );
    come_back(rig, 2).await;
    let mut left = listed(rig).await;
    left.sort(); // what was in hand at the fault goes back before the rest
    left
}

pub async fn a_retry_that_is_cut_loses_nothing<T: Transport>(rig: Rig<T>) {
    let buried: BTreeSet<String> = bury_many(&rig).await.into_iter().collect();
    for (number, fault) in [
        (70, PublishFault::HangsBefore as fn(Gate) -> PublishFault),
        (1, PublishFault::HangsAfter),
    ] {
        let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
        transport.on_publish(anything, number..=number, fault(gate.clone()));
        let dead = dead(&rig, transport);
        let selector = all();
        tokio::select! {
            retried = dead.retry(&selector, async |_| Ok(())) => panic!("it waits at the gate, but: {retried:?}"),
            () = gate.reached() => {}
        }
        come_back(&rig, MANY - 69).await;
    }
    // The first was cut before its 70th job was published, the second after its first one was, and before the ack.
    let submitted = submitted(&rig).await;
    assert_eq!(submitted.len(), 70);
    let letters: BTreeSet<String> = listed(&rig).await.into_iter().collect();
    let jobs: BTreeSet<String> = submitted.into_iter().collect();
    assert_eq!(jobs.union(&letters).cloned().collect::<BTreeSet<_>>(), buried);
    assert_eq!(jobs.intersection(&letters).count(), 1, "the one that was cut");
}

pub async fn a_pass_whose_sessions_are_lost_says_so_and_loses_nothing<T: Transport>(rig: Rig<T>) {
    let buried = bury_many(&rig).await;
    let dead = dead(&rig, rig.broker.clone());
    let mut seen = 0;
    let shown = dead
        .show(&all(), async |_, _| {
            seen += 1;
            if seen == 2 {
                rig.close_sessions().await;
            }
            Ok(())
        })
        .await;
    match shown {
        Err(DeadError::Lost { .. } | DeadError::Transport(_)) => {}
        other => panic!("the session was lost, but: {other:?}"),
    }
    come_back(&rig, MANY).await;
    let back: BTreeSet<String> = listed(&rig).await.into_iter().collect();
    assert_eq!(back, buried.into_iter().collect());
}
