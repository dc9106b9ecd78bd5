//! Supervision in place: what panics is contained, counted and put right; what cannot be put right stops in good order.

use serde_json::json;
use synthex::message::Status::Succeeded;
use synthex::supervise::Outcome;
use synthex::transport::Transport;
use synthex::worker::event::Event;

use crate::rig::{Rig, Stopped, ends};
use crate::support::faulty::{Faulty, PublishFault, SubscribeFault, results};

pub async fn a_panic_in_a_job_s_task_is_contained_counted_and_costs_no_job<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_publish(results, 2..=2, PublishFault::Panics);
    let ids: Vec<String> = (1..=6).map(|number| format!("job-{number}")).collect();
    rig.publish_all(ids.iter().map(|id| (id.clone(), r#"{"command":["true"]}"#.to_owned())))
        .await;
    let live = rig.work(transport, rig.pool());
    let taken = rig.wait_for_ends(ids).await;
    let stopped = live.stop().await;

    assert_eq!(stopped.report.left, [""; 0]);
    assert_eq!(
        (stopped.report.restarts, &stopped.report.gave_up),
        (0, &None),
        "it is the job's task alone"
    );
    assert_eq!(
        stopped.metric(r#"tasks_completed_total{outcome="panicked",task="job"}"#),
        1.0
    );
    rig.nothing_left_of(&stopped).await;
    rig.assert_queue_is_empty().await;
    let mut attempts: Vec<u32> = taken.values().map(|results| results[0].attempt).collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 1, 1, 1, 1, 2], "one came again, counted");
    assert!(
        taken
            .values()
            .all(|results| results.len() == 1 && results[0].status == Succeeded)
    );
    assert!(rig.results().await.is_empty());
}

pub async fn an_intake_that_panics_is_started_again_and_running_jobs_go_on<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(1..=1, SubscribeFault::PanicsAfter(1));
    transport.on_subscribe(2..=2, SubscribeFault::Panics);
    for id in ["job-1", "job-2"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let live = rig.work(transport, rig.pool());
    live.consuming(2).await;
    live.started(2).await;
    rig.open("gate");
    let taken = rig.wait_for_ends(["job-1", "job-2"].map(String::from)).await;
    let stopped = live.stop().await;

    assert_eq!(stopped.report.left, [""; 0]);
    assert_eq!((stopped.report.restarts, &stopped.report.gave_up), (2, &None));
    assert_eq!(panics(&stopped), [("intake", 2)]);
    rig.nothing_left_of(&stopped).await;
    rig.assert_queue_is_empty().await;
    assert_eq!(
        ends(&taken["job-1"]),
        [(1, Succeeded)],
        "it ran through, and its delivery stayed good"
    );
    assert_eq!(taken["job-2"].len(), 1);
    assert!(rig.results().await.is_empty());
}

pub async fn an_intake_that_panics_again_and_again_stops_the_worker_in_good_order<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(1..=1, SubscribeFault::PanicsAfter(1));
    transport.on_subscribe(2.., SubscribeFault::Panics);
    rig.publish("job", &json!({ "command": ["true"] })).await;
    let live = rig.work(transport, rig.pool());
    let stopped = live.join().await;

    assert_eq!(stopped.report.left, [""; 0]);
    assert_eq!(stopped.report.restarts, 3, "as often as the budget allows");
    let gave_up = stopped.report.gave_up.as_deref().expect("it gave up");
    assert!(
        gave_up.starts_with("intake: ") && gave_up.contains("scripted"),
        "{gave_up}"
    );
    assert_eq!(panics(&stopped), [("intake", 4)]);
    rig.nothing_left_of(&stopped).await;
    rig.assert_queue_is_empty().await;
    assert_eq!(
        ends(&rig.results().await["job"]),
        [(1, Succeeded)],
        "what was in hand was finished"
    );
}

pub async fn a_first_subscription_that_is_refused_stops_the_worker_and_says_why<T: Transport>(rig: Rig<T>) {
    let transport = Faulty::new(rig.broker.clone());
    transport.on_subscribe(.., SubscribeFault::Refused);
    let stopped = rig.work(transport, rig.pool()).join().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    let fatal = stopped.ending.fatal().expect("the reason").to_string();
    assert!(
        fatal.contains("synthex.jobs.faults") && fatal.contains("scripted"),
        "{fatal}"
    );
    assert_eq!(
        stopped.observer.count(|event| matches!(event, Event::Consuming { .. })),
        0
    );
}

/// The tasks that panicked, and how often.
fn panics(stopped: &Stopped) -> Vec<(&'static str, u64)> {
    let stats = stopped.tasks.snapshot().into_iter();
    let panicked = stats.flat_map(|task| task.ended.map(|(outcome, count)| (task.name, outcome, count)));
    panicked
        .filter(|(_, outcome, count)| *outcome == Outcome::Panicked && *count > 0)
        .map(|(n, _, c)| (n, c))
        .collect()
}
