//! Graceful shutdown: the first signal takes no more and finishes, the second (or the end of the grace) kills and gives back.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;
use synthex::message::{Attempt, Properties, Status};
use synthex::transport::Transport;
use synthex::worker::event::Event;
use tokio::time::Instant;

use crate::rig::{POOL, Rig, ends};
use crate::support::faulty::{Faulty, Gate, PublishFault, SubscribeFault, is_job, results};

/// What counts as at once: half of what each of these waits lasts at least if nobody ends it, and much longer than a busy
/// machine's hiccup.
const AT_ONCE: Duration = Duration::from_secs(30);
/// A wait between two attempts to subscribe, of which a stop must not wait for the end.
const LONG_WAIT: Duration = Duration::from_secs(2);
/// A grace that a test waits for.
const SHORT: Duration = Duration::from_millis(300);

pub async fn running_jobs_finish_and_unstarted_ones_go_back_unmarked<T: Transport>(rig: Rig<T>) {
    for number in 1..=6 {
        rig.publish(&format!("job-{number}"), &rig.gated("gate")).await;
    }
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;

    live.shutdown.drain();
    live.observer
        .wait_for("an unstarted job goes back", is_given_back)
        .await;
    rig.open("gate");
    let stopped = live.join().await;

    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 0);
    // More than the one that waited for its slot, if the broker sent others before it heard of the cancellation.
    assert!(stopped.ending.given_back() >= 1);
    let results = rig.results().await;
    assert_eq!(results.len(), 2);
    let mut unstarted: BTreeSet<String> = (1..=6).map(|number| format!("job-{number}")).collect();
    for (id, results) in results {
        assert_eq!(ends(&results), [(1, Status::Succeeded)], "{id}");
        unstarted.remove(&id);
    }
    assert_unmarked(&rig, unstarted).await;
}

pub async fn jobs_on_their_way_when_the_stop_comes_go_back_unmarked<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(.., SubscribeFault::HoldsUntilCancelled);
    for id in ["job-1", "job-2", "job-3"] {
        rig.publish(id, &json!({ "command": ["true"] })).await;
    }
    let live = rig.work(transport, rig.pool());
    live.consuming(1).await;
    rig.wait_for_waiting_jobs(0).await;

    let stopped = live.stop().await;
    stopped.assert_clean();
    assert_eq!((stopped.ending.cut(), stopped.ending.given_back()), (0, 3));
    assert_unmarked(&rig, ["job-1", "job-2", "job-3"].map(String::from).into()).await;
}

/// What a broker sends while its consumer is being cancelled must not look like a job that killed its worker. Each ack
/// has it send one more, and where a stop meets that is chance: so several of them. A broker that has to wait for its
/// processor may send it too late for that, but not each time.
pub async fn stops_under_flow_mark_no_job<T: Transport>(rig: Rig<T>) {
    let tries = if rig.is_embedded() { 1 } else { 3 };
    for number in 1..=tries {
        if marked_by_stops_under_flow(&rig, number).await == 0 {
            return;
        }
    }
    panic!("{tries} times in a row, stops marked jobs");
}

/// How many jobs are marked by five stops.
async fn marked_by_stops_under_flow<T: Transport>(rig: &Rig<T>, number: usize) -> usize {
    const STOPS: usize = 5;
    let ids: BTreeSet<String> = (0..150).map(|job| format!("job-{number}-{job:03}")).collect();
    let body = json!({ "command": ["true"] }).to_string();
    rig.publish_all(ids.iter().map(|id| (id.clone(), body.clone()))).await;
    let mut marked = 0;
    for _ in 0..STOPS {
        let mut pool = rig.pool();
        pool.prefetch = 16;
        let live = rig.work(rig.broker.clone(), pool);
        live.started(8).await;
        let stopped = live.stop().await;
        stopped.assert_clean();
        marked += stopped.observer.count(is_recount);
        assert_eq!(stopped.ending.cut(), 0);
    }
    let results = rig.results().await;
    if marked > 0 {
        let rest = rig.finish(ids.len() - results.len()).await;
        let all = rest.into_values().chain(results.values().map(|results| ends(results)));
        let statuses: Vec<Status> = all.flatten().map(|(_, status)| status).collect();
        assert_eq!(statuses, vec![Status::Succeeded; ids.len()]);
        return marked;
    }
    let mut unstarted = ids;
    for (id, results) in results {
        assert_eq!(ends(&results), [(1, Status::Succeeded)], "{id}");
        unstarted.remove(&id);
    }
    assert!(!unstarted.is_empty(), "there was to be flow until the last stop");
    take_back(rig, unstarted).await.len()
}

/// Its connection was lost just before the stop, and the broker hands it out again while the consumer is being cancelled.
pub async fn a_running_job_that_comes_again_with_the_stop_is_not_run_again<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(2..=2, SubscribeFault::HoldsUntilCancelled);
    rig.publish("job", &rig.gated("gate")).await;
    let live = rig.work(transport, rig.pool());
    rig.wait_for_begun(1).await;
    rig.close_sessions().await;
    live.consuming(2).await;
    rig.wait_for_waiting_jobs(0).await;

    live.shutdown.drain();
    live.observer
        .wait_for("the consumer is given up", is_consumer_s_end)
        .await;
    rig.open("gate");
    let stopped = live.join().await;
    stopped.assert_clean();
    assert_eq!((stopped.ending.cut(), stopped.ending.given_back()), (0, 0));
    assert_eq!(ends(&rig.results().await["job"]), [(1, Status::Succeeded)]);
    rig.assert_queue_is_empty().await;
}

pub async fn a_stop_during_the_wait_for_the_broker_is_obeyed_at_once<T: Transport>(rig: Rig<T>) {
    const STOPS: usize = 4;
    // A busy machine may hold some up.
    for _ in 0..STOPS {
        if stop_during_a_long_wait(&rig).await < LONG_WAIT / 2 {
            return;
        }
    }
    panic!("{STOPS} stops in a row took half as long as the wait, or longer");
}

/// How long a stop takes that comes at the beginning of a long wait.
async fn stop_during_a_long_wait<T: Transport>(rig: &Rig<T>) -> Duration {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(.., SubscribeFault::Unreachable);
    let live = rig.work(transport, rig.pool());
    live.observer.wait_for("a long wait", is_long_wait).await;

    let asked = Instant::now();
    let stopped = live.stop().await;
    let took = asked.elapsed();
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    took
}

pub async fn a_stop_during_an_attempt_to_subscribe_is_obeyed_at_once<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_subscribe(.., SubscribeFault::Hangs(gate.clone()));
    let live = rig.work(transport, rig.pool());
    gate.reached().await;

    let asked = Instant::now();
    let stopped = live.stop().await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    stopped.assert_clean();
}

pub async fn a_stop_waits_for_a_result_s_confirm<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, 1..=1, PublishFault::HangsBefore(gate.clone()));
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;

    live.shutdown.drain();
    live.observer
        .wait_for("the consumer is given up", is_consumer_s_end)
        .await;
    gate.open();
    let stopped = live.join().await;
    stopped.assert_clean();
    assert_eq!((stopped.ending.cut(), stopped.ending.given_back()), (0, 0));
    assert_eq!(ends(&rig.results().await["job"]), [(1, Status::Succeeded)]);
    rig.assert_queue_is_empty().await;
}

pub async fn a_result_that_is_not_confirmed_within_the_grace_is_given_up_and_its_job_given_back<T: Transport>(
    rig: Rig<T>,
) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, .., PublishFault::HangsBefore(gate.clone()));
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let mut pool = rig.pool();
    pool.stop_grace = SHORT;
    let live = rig.work(transport, pool);
    gate.reached().await;

    let asked = Instant::now();
    let stopped = live.stop().await;
    assert!(asked.elapsed() >= SHORT, "it did not wait for its grace");
    assert!(asked.elapsed() < SHORT + AT_ONCE, "{:?}", asked.elapsed());
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 1, "the job was begun and is not done");
    assert_eq!(rig.finish(1).await["job"], [(2, Status::Succeeded)]);
}

pub async fn a_second_signal_gives_up_a_result_that_hangs<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, .., PublishFault::HangsBefore(gate.clone()));
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;

    live.shutdown.drain();
    live.observer
        .wait_for("the consumer is given up", is_consumer_s_end)
        .await;
    let asked = Instant::now();
    live.shutdown.abort();
    let stopped = live.join().await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 1, "the job was begun and is not done");
    assert_eq!(rig.finish(1).await["job"], [(2, Status::Succeeded)]);
}

pub async fn a_second_signal_kills_what_runs_and_gives_it_back<T: Transport>(rig: Rig<T>) {
    for id in ["job-1", "job-2", "job-3"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;
    let begun = rig.wait_for_begun(2).await;
    live.shutdown.drain();
    // An abort that comes between the two ends of giving back would leave the job in the queue twice.
    let settled = |event: &Event| matches!(event, Event::DeliverySettled { .. });
    live.observer.wait_for("one is given back", settled).await;
    live.observer
        .wait_for("the consumer is given up", is_consumer_s_end)
        .await;
    rig.wait_for_waiting_jobs(1).await;

    let asked = Instant::now();
    live.shutdown.abort();
    let stopped = live.join().await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 2);
    assert!(stopped.ending.given_back() >= 1);

    rig.open("gate");
    let ends = rig.finish(3).await;
    for id in ["job-1", "job-2", "job-3"] {
        let attempt = if begun.contains(&format!("{id} 1")) { 2 } else { 1 };
        assert_eq!(ends[id], [(attempt, Status::Succeeded)], "{id}, {begun:?}");
    }
}

/// A frozen broker, for one. The grace bounds the stop, whatever the broker does.
pub async fn a_stop_outlives_a_broker_that_does_not_answer_the_cancellation<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_subscribe(.., SubscribeFault::CancelHangs(gate.clone()));
    rig.publish("job", &rig.gated("gate")).await;
    let mut pool = rig.pool();
    pool.stop_grace = SHORT;
    let live = rig.work(transport, pool);
    live.started(1).await;

    live.shutdown.drain();
    gate.reached().await;
    let stopped = live.join().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    rig.open("gate");
    assert_eq!(rig.finish(1).await["job"], [(2, Status::Succeeded)]);
}

/// As the one before; here it is the publish of a job given back that hangs.
pub async fn a_stop_outlives_a_broker_that_takes_no_unstarted_job_back<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(is_job, .., PublishFault::HangsBefore(gate.clone()));
    let mut pool = rig.pool();
    // Longer than it takes until a job can be given back, which is when no more come.
    (pool.slots, pool.prefetch, pool.stop_grace) = (1, 2, Duration::from_secs(5));
    for id in ["job-1", "job-2"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let live = rig.work(transport, pool);
    live.started(1).await;
    live.taken(2).await;

    live.shutdown.drain();
    gate.reached().await;
    let stopped = live.join().await;
    assert_eq!(stopped.report.left, [""; 0]);
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    rig.open("gate");
    let ends = rig.finish(2).await;
    for id in ["job-1", "job-2"] {
        let expected = [(2, Status::Succeeded)];
        assert_eq!(
            ends[id], expected,
            "{id} was killed, or could not be given back unmarked"
        );
    }
}

/// Checks that exactly these jobs are in the queue, as their producer published them, and leaves the queue empty.
async fn assert_unmarked<T: Transport>(rig: &Rig<T>, ids: BTreeSet<String>) {
    let marked = take_back(rig, ids).await;
    assert!(marked.is_empty(), "like those that killed their workers: {marked:?}");
}

/// Checks that exactly these jobs are in the queue, and leaves it empty. Gives those that do not look as their producer
/// published them.
async fn take_back<T: Transport>(rig: &Rig<T>, ids: BTreeSet<String>) -> Vec<Properties> {
    let (mut found, mut marked) = (Vec::new(), Vec::new());
    for delivery in rig.look_through(&rig.names.pool_queue(POOL)).await {
        let properties = delivery.envelope.properties.clone();
        assert!(properties.timestamp.is_some(), "{properties:?}");
        found.extend(properties.message_id.clone());
        if delivery.redelivered || Attempt::read(&properties) != Attempt::FIRST {
            marked.push(properties);
        }
        delivery.ack().await.expect("the session is live");
    }
    assert_eq!(found.len(), ids.len(), "{found:?}");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), ids);
    marked
}

fn is_given_back(event: &Event) -> bool {
    matches!(event, Event::JobGivenBack { was_running: false, .. })
}

fn is_recount(event: &Event) -> bool {
    matches!(event, Event::JobRecounted { .. })
}

fn is_long_wait(event: &Event) -> bool {
    matches!(event, Event::ConsumerLost { retry_in: Some(delay), .. } if *delay >= LONG_WAIT)
}

fn is_consumer_s_end(event: &Event) -> bool {
    matches!(event, Event::ConsumerLost { retry_in: None, .. })
}
