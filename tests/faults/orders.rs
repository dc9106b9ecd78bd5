//! What operators have ordered, wherever the jobs are.

use std::time::{Duration, Instant};

use serde_json::json;
use synthex::message::{EndedBy, Order, Status, now};
use synthex::transport::Transport;
use synthex::worker::Holds;
use synthex::worker::event::Event;
use synthex::worker::orders::Orders;

use crate::rig::{Live, POOL, Rig, ends};

/// How long a worker waits for orders that were given before it lived.
const ORDERS_WITHIN: Duration = Duration::from_secs(10);

pub fn cancel(orders: &Orders, ids: &[&str]) {
    let order = Order::Cancel {
        ids: ids.iter().map(|id| id.parse().expect("an id")).collect(),
        labels: [].into(),
        batch: None,
        pool: None,
        at: now(),
        by: Some("a test".to_owned()),
    };
    orders.apply(&order, now());
}

fn has_started(live: &Live) -> bool {
    live.observer.count(|event| matches!(event, Event::JobStarted { .. })) > 0
}

/// The consumer is live and has the job, but a worker that does not know what was ordered before it lived starts none.
pub async fn no_job_starts_before_the_orders_are_read<T: Transport>(rig: Rig<T>) {
    for id in ["unwanted-1", "unwanted-2", "unwanted-3", "unwanted-4", "unwanted-5"] {
        if does_not_start_before_the_orders_are_read(&rig, id).await {
            return;
        }
    }
    panic!("a test that is always slower than {ORDERS_WITHIN:?} sees nothing");
}

/// Whether it was seen: the worker waits no longer than [`ORDERS_WITHIN`].
async fn does_not_start_before_the_orders_are_read<T: Transport>(rig: &Rig<T>, id: &str) -> bool {
    rig.publish(id, &json!({ "command": ["true"] })).await;
    let orders = Orders::unread(Holds::default());
    let began = Instant::now();
    let live = rig.work_under(orders.clone(), rig.broker.clone(), rig.pool());
    rig.wait_for_waiting_jobs(0).await;
    cancel(&orders, &[id]);
    orders.set_read();
    let in_time = began.elapsed() < ORDERS_WITHIN;
    let results = rig.wait_for_ends([id.to_owned()]).await;
    if in_time {
        assert_eq!(ends(&results[id]), [(1, Status::Cancelled)]);
        assert!(!has_started(&live));
    }
    live.stop().await.assert_clean();
    rig.assert_queue_is_empty().await;
    in_time
}

pub async fn a_cancel_ends_what_runs_and_what_waits_for_its_slot<T: Transport>(rig: Rig<T>) {
    let ids = ["one", "two", "three"];
    for id in ids {
        rig.publish(id, &rig.gated("never")).await;
    }
    let orders = Orders::none();
    let live = rig.work_under(orders.clone(), rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;
    rig.wait_for_begun(2).await;
    cancel(&orders, &ids);
    let results = rig.wait_for_ends(ids.map(str::to_owned)).await;
    for id in ids {
        assert_eq!(ends(&results[id]), [(1, Status::Cancelled)], "{id}");
        let error = results[id][0].error.as_ref().expect("it says by whom");
        assert!(
            error.message.starts_with("cancelled by a test at "),
            "{}",
            error.message
        );
    }
    let ran = ids.iter().filter(|id| results[**id][0].started_at.is_some()).count();
    assert_eq!(ran, 2, "the third never ran");
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 0, "a cancelled job is not given back");
    rig.assert_queue_is_empty().await;
}

pub async fn a_cancelled_command_has_its_grace<T: Transport>(rig: Rig<T>) {
    let begun = rig.path("begun");
    let mut pool = rig.pool();
    pool.kill_grace = Duration::from_secs(60);
    let jobs = [
        ("obeys", "echo saved; exit 0", "60s"),
        ("ignores", "echo saved", "500ms"),
    ];
    let ids = jobs.map(|(id, on_term, grace)| {
        let script = format!(
            "trap '{on_term}' TERM; echo kept; echo {id} >>{}; while :; do sleep 0.02; done",
            begun.display()
        );
        let job = json!({ "script": script, "kill_grace": grace });
        (id.to_owned(), job.to_string())
    });
    rig.publish_all(ids).await;
    let orders = Orders::none();
    let live = rig.work_under(orders.clone(), rig.broker.clone(), pool);
    rig.wait_for_begun(2).await;
    cancel(&orders, &["obeys", "ignores"]);
    let results = rig.wait_for_ends(["obeys", "ignores"].map(str::to_owned)).await;
    for (id, ended_by) in [("obeys", EndedBy::TermSignal), ("ignores", EndedBy::Kill)] {
        assert_eq!(ends(&results[id]), [(1, Status::Cancelled)], "{id}");
        assert_eq!(results[id][0].ended_by, Some(ended_by), "{id}");
        assert!(
            results[id][0].stdout.text.starts_with("kept\n"),
            "{id} keeps its output"
        );
    }
    assert_eq!(results["obeys"][0].stdout.text, "kept\nsaved\n", "it has its grace");
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.ending.cut(), 0, "a cancelled job is not given back");
}

pub async fn a_pause_gives_back_what_was_not_started_until_it_is_resumed<T: Transport>(rig: Rig<T>) {
    for id in ["one", "two", "three"] {
        rig.publish(id, &rig.gated("gate")).await;
    }
    let orders = Orders::none();
    let live = rig.work_under(orders.clone(), rig.broker.clone(), rig.pool());
    live.started(2).await;
    live.taken(3).await;
    let (pool, at, by) = (POOL.to_owned(), now(), None);
    orders.apply(
        &Order::Pause {
            pool: pool.clone(),
            at,
            by: by.clone(),
        },
        at,
    );
    rig.wait_for_waiting_jobs(1).await;
    rig.open("gate");
    rig.wait_for_results(2).await;
    assert_eq!(rig.depth(&rig.names.pool_queue(POOL)).await, Some(1));
    orders.apply(&Order::Resume { pool, at, by }, at);
    let rest = rig.finish_with(live, 1).await;
    assert_eq!(rest.into_values().collect::<Vec<_>>(), [[(1, Status::Succeeded)]]);
}
