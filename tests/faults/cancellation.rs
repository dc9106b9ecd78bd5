//! Cancellation safety: the worker's future is dropped, or its sessions end, at a point that a gate or an event marks.
//!
//! What holds at every point: no job is lost; one that was delivered and not acked comes again and is counted before it is
//! started; no command, task or count is left behind. A second result carries a higher attempt.

use serde_json::json;
use synthex::message::Status::{Failed, Rejected, Succeeded};
use synthex::transport::Transport;
use synthex::worker::event::Event;

use crate::rig::{Ends, Rig, ends};
use crate::support::faulty::{
    AckFault, Faulty, Gate, PublishFault, SubscribeFault, anything, dead_letters, recounted, results,
};

pub async fn dropped_while_a_job_waits_for_its_slot_it_loses_and_leaves_nothing<T: Transport>(rig: Rig<T>) {
    for id in ["job-1", "job-2", "job-3", "job-4"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;

    let dropped = live.drop_now().await;
    rig.nothing_left_of(&dropped).await;
    rig.open("gate");
    let ends = rig.finish(4).await;
    for id in ["job-1", "job-2", "job-3"] {
        assert_eq!(ends[id], [(2, Succeeded)], "{id}");
    }
    assert_eq!(ends["job-4"], [(1, Succeeded)], "nobody had it");
    assert_each_start_was_counted(&rig);
}

pub async fn dropped_before_a_result_has_arrived_the_job_runs_again_and_ends_once<T: Transport>(rig: Rig<T>) {
    let gate = Gate::default();
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(results, 1..=1, PublishFault::HangsBefore(gate.clone()));
    drop_at(&rig, transport, &gate).await;
    assert_eq!(rig.finish(1).await["job"], [(2, Failed)]);
}

pub async fn dropped_after_a_result_has_arrived_the_job_ends_again_with_a_higher_attempt<T: Transport>(rig: Rig<T>) {
    let gate = Gate::default();
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(results, 1..=1, PublishFault::HangsAfter(gate.clone()));
    drop_at(&rig, transport, &gate).await;
    assert_eq!(rig.finish(2).await["job"], [(1, Failed), (2, Failed)]);
}

pub async fn dropped_between_result_and_ack_the_job_ends_again_with_a_higher_attempt<T: Transport>(rig: Rig<T>) {
    let gate = Gate::default();
    let transport = Faulty::new(rig.broker.clone());
    transport.on_ack(1..=1, AckFault::Hangs(gate.clone()));
    lose_the_consumer(&transport);
    drop_at(&rig, transport, &gate).await;
    assert_eq!(rig.finish(2).await["job"], [(1, Failed), (2, Failed)]);
}

/// Has a worker take one job that fails, and drops it when it has come to the gate.
async fn drop_at<T: Transport>(rig: &Rig<T>, transport: Faulty<T>, gate: &Gate) {
    rig.publish("job", &json!({ "command": ["false"] })).await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;
    let dropped = live.drop_now().await;
    rig.nothing_left_of(&dropped).await;
}

pub async fn dropped_while_a_redelivery_is_counted_the_job_is_neither_lost_nor_started<T: Transport>(rig: Rig<T>) {
    rig.publish("job", &rig.gated("gate")).await;
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.started(1).await;
    rig.nothing_left_of(&live.drop_now().await).await;

    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(recounted, 1..=1, PublishFault::HangsBefore(gate.clone()));
    let live = rig.work(transport, rig.pool());
    gate.reached().await;
    let dropped = live.drop_now().await;
    rig.nothing_left_of(&dropped).await;
    assert_eq!(dropped.observer.count(is_start), 0, "started before it was counted");

    rig.open("gate");
    assert_eq!(rig.finish(1).await["job"], [(2, Succeeded)]);
    assert_each_start_was_counted(&rig);
}

pub async fn dropped_before_a_dead_letter_has_arrived_it_arrives_later<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(dead_letters, 1..=1, PublishFault::HangsBefore(gate.clone()));
    rig.publish("job", &json!({ "command": [] })).await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;
    rig.nothing_left_of(&live.drop_now().await).await;

    // It never started, so both results are of its first attempt, and have one message id.
    assert_eq!(rig.finish(2).await["job"], [(1, Rejected), (1, Rejected)]);
    assert_eq!(rig.dead_letters().await, ["job"]);
}

/// The retry is in its queue and the job comes again: two messages, of which each is counted from what it says itself.
/// Leaves a worker without a consumer once it has its job: it would recognise what its dropped task gives back, and ack it.
fn lose_the_consumer<T: Transport>(transport: &Faulty<T>) {
    transport.on_subscribe(1..=1, SubscribeFault::EndsAfter(1));
    transport.on_subscribe(2..=2, SubscribeFault::Hangs(Gate::default()));
}

pub async fn dropped_between_retry_and_ack_both_go_on_from_the_same_attempt<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_ack(1..=1, AckFault::Hangs(gate.clone()));
    lose_the_consumer(&transport);
    let retry = json!({ "max_attempts": 2, "initial": "1ms", "max": "1ms" });
    rig.publish("job", &json!({ "command": ["false"], "retry": retry }))
        .await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;
    rig.nothing_left_of(&live.drop_now().await).await;
    // A redelivery is no run, so what was counted is run twice.
    assert_eq!(
        rig.finish(4).await["job"],
        [(1, Failed), (2, Failed), (2, Failed), (3, Failed)]
    );
}

pub async fn sessions_lost_while_jobs_run_and_wait_run_none_of_them_twice<T: Transport>(rig: Rig<T>) {
    for id in ["job-1", "job-2", "job-3", "job-4"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let live = rig.work(rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;
    rig.wait_for_begun(2).await;
    rig.close_sessions().await;
    live.consuming(2).await;
    let begun = rig.begun();
    assert_eq!(begun.len(), 2, "running commands survive, waiting ones wait: {begun:?}");

    let adopted = |event: &Event| matches!(event, Event::JobAdopted { .. });
    live.observer
        .wait_for_times(2, "a running job is adopted", adopted)
        .await;
    rig.open("gate");
    let ends = rig.finish_with(live, 4).await;
    for (id, ends) in ends {
        assert_eq!(ends, [(1, Succeeded)], "{id}");
    }
    assert_eq!(rig.begun().len(), 4, "{:?}", rig.begun());
}

pub async fn sessions_lost_before_a_result_has_arrived_lose_neither_it_nor_the_job<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, 1..=1, PublishFault::HangsBefore(gate.clone()));
    assert_eq!(lose_sessions_at(&rig, transport, &gate).await, [(1, Failed)]);
}

pub async fn sessions_lost_between_result_and_ack_run_no_job_again<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_ack(1..=1, AckFault::Hangs(gate.clone()));
    assert_eq!(lose_sessions_at(&rig, transport, &gate).await, [(1, Failed)]);
}

/// Has a worker take one job that fails, ends all sessions when it has come to the gate, and lets it go on when it has
/// another. Gives what its one result says.
async fn lose_sessions_at<T: Transport>(rig: &Rig<T>, transport: Faulty<T>, gate: &Gate) -> Ends {
    rig.publish("job", &json!({ "command": ["false"] })).await;
    let live = rig.work(transport, rig.pool());
    gate.reached().await;
    rig.close_sessions().await;
    live.consuming(2).await;
    gate.open();
    rig.finish_with(live, 1).await.remove("job").expect("it has ended")
}

pub async fn an_ack_that_is_lost_brings_the_job_again_and_it_is_only_acked<T: Transport>(rig: Rig<T>) {
    for (prefix, fault) in [("told", AckFault::Lost), ("untold", AckFault::LostUnnoticed)] {
        let transport = Faulty::new(rig.broker.clone());
        transport.on_ack(2..=2, fault);
        let mut pool = rig.pool();
        (pool.slots, pool.prefetch) = (1, 1); // one after another, so the second ack is the second job's
        let ids = [1, 2, 3].map(|number| format!("{prefix}-{number}"));
        for id in &ids {
            rig.publish(id, &json!({ "command": ["true"] })).await;
        }
        let live = rig.work(transport, pool);
        let ends = rig.finish_with(live, 3).await;
        for id in ids {
            assert_eq!(ends[&id], [(1, Succeeded)], "{id}");
        }
    }
}

pub async fn a_new_submission_of_an_old_id_always_runs<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_ack(1..=1, AckFault::Lost);
    let job = json!({ "command": ["true"] });
    let live = rig.work(transport, rig.pool());
    for times in 1..=3 {
        rig.publish("job", &job).await;
        let finished = |event: &Event| matches!(event, Event::JobFinished { .. });
        live.observer.wait_for_times(times, "it ends", finished).await;
    }
    // While another of its kind runs, too.
    for _ in 0..2 {
        rig.publish("twin", &rig.gated("gate")).await;
    }
    live.started(5).await;
    rig.open("gate");
    let ends = rig.finish_with(live, 5).await;
    assert_eq!(ends["job"], [(1, Succeeded); 3]);
    assert_eq!(ends["twin"], [(1, Succeeded); 2]);
}

pub async fn a_result_of_unknown_fate_is_published_until_it_is_confirmed<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(anything, 1..=1, PublishFault::Refused);
    transport.on_publish(anything, 2..=2, PublishFault::UnknownLost);
    transport.on_publish(anything, 3..=3, PublishFault::UnknownArrived);
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let live = rig.work(transport.clone(), rig.pool());
    let finished = |event: &Event| matches!(event, Event::JobFinished { .. });
    live.observer.wait_for("the job is done", finished).await;
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    rig.assert_queue_is_empty().await;

    let copies = &rig.results().await["job"];
    assert_eq!(
        ends(copies),
        [(1, Succeeded), (1, Succeeded)],
        "the one that arrived, and the confirmed one"
    );
    assert_eq!(copies[0], copies[1], "one run, one result");
    let ids: Vec<_> = transport
        .sent()
        .into_iter()
        .map(|sent| sent.envelope.properties.message_id.clone())
        .collect();
    assert_eq!(ids, [Some("job/1".to_owned()), Some("job/1".to_owned())]);
    assert_eq!(stopped.observer.count(is_start), 1);
}

pub async fn a_subscription_that_ends_again_and_again_loses_no_job<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(2..=2, SubscribeFault::Unreachable);
    transport.on_subscribe(..=4, SubscribeFault::EndsAfter(2));
    let ids: Vec<String> = (0..20).map(|n| format!("job-{n:02}")).collect();
    rig.publish_all(ids.iter().map(|id| (id.clone(), r#"{"command":["true"]}"#.to_owned())))
        .await;
    let live = rig.work(transport, rig.pool());
    let ends = rig.finish_with(live, ids.len()).await;
    assert_eq!(ends.len(), ids.len());
    for (id, ends) in ends {
        // A consumer that ends takes nothing with it: what it had handed out is still the worker's to ack.
        assert_eq!(ends.len(), 1, "{id}: {ends:?}");
    }
}

/// The same attempt of a job is started once, and a higher one is there for each further start.
fn assert_each_start_was_counted<T: Transport>(rig: &Rig<T>) {
    let mut begun = rig.begun();
    let all = begun.len();
    begun.sort();
    begun.dedup();
    assert_eq!(begun.len(), all, "an attempt was started twice: {:?}", rig.begun());
}

fn is_start(event: &Event) -> bool {
    matches!(event, Event::JobStarted { .. })
}
