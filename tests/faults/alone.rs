//! A suspect: a job that was redelivered so often that it may be what kills its workers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use synthex::message::{Attempt, Status};
use synthex::transport::Transport;
use synthex::worker::event::Event;
use synthex::worker::orders::Orders;
use synthex::worker::{HoldReason, Holds, Patience};

use crate::rig::{Live, Rig, ends};

/// The shortest wait that the broker can hold.
const BETWEEN: Duration = Duration::from_millis(250);

/// Publishes a job as one whose first two attempts ended with their workers.
async fn publish_suspect<T: Transport>(rig: &Rig<T>, job: &Value) {
    let mut publication = rig.job("suspect".to_owned(), job.to_string());
    let attempt = Attempt::FIRST.after_redelivery().after_redelivery();
    attempt.write(&mut Arc::make_mut(&mut publication.envelope).properties);
    rig.broker.publish(&publication).await.expect("the broker is well");
}

fn work<T: Transport>(rig: &Rig<T>, patience: Patience) -> Live {
    let orders = Orders::unread(Holds::new(patience));
    orders.set_read();
    rig.work_under(orders, rig.broker.clone(), rig.pool())
}

/// How often a worker has put a job off.
fn is_put_off(event: &Event) -> bool {
    matches!(event, Event::JobDelayed { .. })
}

fn put_offs(live: &Live) -> usize {
    live.observer.count(is_put_off)
}

pub async fn a_suspect_waits_for_its_neighbours_and_holds_up_who_comes_later<T: Transport>(rig: Rig<T>) {
    let live = work(
        &rig,
        Patience {
            first: Duration::from_secs(3600),
            ..Patience::default()
        },
    );
    rig.publish("neighbour", &rig.gated("neighbours")).await;
    rig.wait_for_begun(1).await;
    publish_suspect(&rig, &rig.gated("suspects")).await;
    let held = |event: &Event| {
        matches!(
            event,
            Event::ConsumerHeld {
                reason: HoldReason::Alone,
                ..
            }
        )
    };
    live.observer.wait_for("the worker takes no more", held).await;
    rig.publish("later", &rig.gated("later")).await;
    assert_eq!(rig.begun(), ["neighbour 1"]);
    rig.open("neighbours");
    rig.wait_for_begun(2).await;
    rig.wait_for_waiting_jobs(1).await;
    assert_eq!(
        rig.begun(),
        ["neighbour 1", "suspect 3"],
        "there is a slot for the later one"
    );
    rig.open("suspects");
    rig.wait_for_begun(3).await;
    rig.open("later");
    let ends = rig.finish_with(live, 3).await;
    assert!(ends.values().flatten().all(|(_, status)| *status == Status::Succeeded));
}

pub async fn a_suspect_whose_neighbour_never_ends_is_put_off_and_runs_at_last<T: Transport>(rig: Rig<T>) {
    let live = work(
        &rig,
        Patience {
            first: Duration::from_millis(10),
            times: 3,
            between: BETWEEN,
        },
    );
    rig.publish("neighbour", &rig.gated("never")).await;
    rig.wait_for_begun(1).await;
    publish_suspect(&rig, &json!({ "command": ["true"] })).await;
    let results = rig.wait_for_ends(["suspect".to_owned()]).await;
    assert_eq!(
        ends(&results["suspect"]),
        [(3, Status::Succeeded)],
        "a put-off is no attempt"
    );
    live.observer.wait_for_times(3, "a put-off", is_put_off).await; // told after it is done
    assert_eq!(put_offs(&live), 3);
    rig.open("never");
    let rest = rig.finish_with(live, 1).await;
    assert_eq!(rest["neighbour"], [(1, Status::Succeeded)], "it went on all the while");
}

/// It is never to run beside another, so where it runs is an empty worker.
pub async fn a_suspect_that_waits_in_vain_here_runs_on_an_empty_worker<T: Transport>(rig: Rig<T>) {
    let patience = Patience {
        first: Duration::from_millis(10),
        times: u32::MAX,
        between: BETWEEN,
    };
    let busy = work(&rig, patience);
    rig.publish("neighbour", &rig.gated("never")).await;
    rig.wait_for_begun(1).await;
    publish_suspect(&rig, &json!({ "command": ["true"] })).await;
    busy.observer.wait_for("a put-off", is_put_off).await;
    let empty = work(&rig, patience);
    let results = rig.wait_for_ends(["suspect".to_owned()]).await;
    assert_eq!(ends(&results["suspect"]), [(3, Status::Succeeded)]);
    empty.started(1).await;
    empty.stop().await.assert_clean();
    rig.open("never");
    let rest = rig.finish_with(busy, 1).await;
    assert_eq!(rest["neighbour"], [(1, Status::Succeeded)]);
}
