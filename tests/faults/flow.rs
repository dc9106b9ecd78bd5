//! Pressure from outside: rates that hold jobs back, commands that cannot be started, a broker that takes nothing.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;
use synthex::config::{self, Pool, ProgramRates};
use synthex::flow::breaker::Position;
use synthex::flow::rate::Rate;
use synthex::message::Status::{Cancelled, Expired, NotStarted, Succeeded};
use synthex::transport::Transport;
use synthex::worker::event::{Circuit, Event};
use synthex::worker::orders::Orders;

use crate::orders::cancel;
use crate::rig::{Live, Rig, ends};
use crate::support::faulty::{Faulty, Gate, PublishFault, results};

fn rate(count: u32, per: Duration, burst: u32) -> Rate {
    Rate {
        count: count.try_into().expect("over zero"),
        per,
        burst: burst.try_into().expect("over zero"),
    }
}

/// One start, and then none for as long as a test takes.
fn one_an_hour() -> Option<Rate> {
    Some(rate(1, Duration::from_secs(3600), 1))
}

fn ids(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("job-{number:02}"))
}

impl<T: Transport> Rig<T> {
    async fn publish_true(&self, count: usize) {
        let job = json!({ "command": ["true"] }).to_string();
        self.publish_all(ids(count).map(|id| (id, job.clone()))).await;
    }
}

/// Waits until a circuit has had a position so many times.
async fn circuit(live: &Live, circuit: Circuit, position: Position, times: usize) {
    let wanted = |event: &Event| matches!(event, Event::CircuitChanged { circuit: c, position: p } if (*c, *p) == (circuit, position));
    live.observer
        .wait_for_times(times, &format!("{circuit:?} is {position:?}"), wanted)
        .await;
}

/// The rates of single programs, as a pool's file has them.
fn program_rates<T: Transport>(rig: &Rig<T>, lines: &str) -> ProgramRates {
    let file = rig.path("rates.toml");
    std::fs::write(&file, format!("[program_rates]\n{lines}\n")).expect("the test's own folder can be written");
    let loaded = config::load(&file, &config::Overrides::default());
    loaded.expect("it is right").pool.program_rates
}

pub async fn jobs_that_wait_for_their_rate_have_no_slot_and_go_back_at_a_stop<T: Transport>(rig: Rig<T>) {
    rig.publish_true(3).await;
    let pool = Pool {
        program_rates: program_rates(&rig, "true = '1/h'"),
        ..rig.pool()
    };
    assert_eq!(
        (pool.slots, pool.prefetch),
        (2, 3),
        "what waits could take all slots, and leaves one more in hand"
    );
    let live = rig.work(rig.broker.clone(), pool);
    let first = rig.wait_for_results(1).await;
    live.taken(3).await;
    rig.publish("other", &json!({ "command": ["echo"] })).await;
    rig.wait_for_ends(["other".to_owned()]).await;
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    let started = |event: &Event| matches!(event, Event::JobStarted { .. });
    assert_eq!(stopped.observer.count(started), 2);
    assert!(stopped.metric("rate_limited_seconds_total{pool=\"faults\"}") > 0.0);
    assert_eq!((stopped.ending.given_back(), stopped.ending.cut()), (2, 0));

    let live = rig.work(rig.broker.clone(), rig.pool());
    let mut results = rig.wait_for_ends(ids(3).filter(|id| !first.contains_key(id))).await;
    results.extend(first);
    live.stop().await.assert_clean();
    for (id, results) in results {
        assert_eq!(ends(&results), [(1, Succeeded)], "{id}");
    }
}

pub async fn a_burst_leaves_no_more_in_hand_than_prefetch<T: Transport>(rig: Rig<T>) {
    const JOBS: usize = 20;
    rig.publish_true(JOBS).await;
    let mut pool = rig.pool();
    pool.rate = Some(rate(50, Duration::from_secs(1), 10));
    let prefetch = usize::from(pool.prefetch);
    let live = rig.work(rig.broker.clone(), pool);
    let results = rig.wait_for_ends(ids(JOBS)).await;
    assert!(results.values().all(|results| ends(results) == [(1, Succeeded)]));
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    let (mut in_hand, mut most) = (0_usize, 0);
    for event in stopped.observer.events() {
        match event {
            Event::DeliveryTaken { .. } => in_hand += 1,
            Event::DeliverySettled { .. } => in_hand -= 1,
            _ => {}
        }
        most = most.max(in_hand);
    }
    assert_eq!((in_hand, most), (0, prefetch));
}

pub async fn who_waits_for_a_rate_is_told_of_its_end_at_once<T: Transport>(rig: Rig<T>) {
    let orders = Orders::none();
    let pool = Pool {
        rate: one_an_hour(),
        ..rig.pool()
    };
    let live = rig.work_under(orders.clone(), rig.broker.clone(), pool);
    rig.publish("first", &json!({ "command": ["true"] })).await;
    rig.wait_for_ends(["first".to_owned()]).await;

    let soon = jiff::Timestamp::now() + Duration::from_millis(1500);
    rig.publish("expires", &json!({ "command": ["true"], "expires_at": soon }))
        .await;
    rig.publish("cancelled", &json!({ "command": ["true"] })).await;
    live.taken(3).await;
    cancel(&orders, &["cancelled"]);
    let results = rig.wait_for_ends(["expires", "cancelled"].map(String::from)).await;
    assert_eq!(ends(&results["expires"]), [(1, Expired)]);
    assert_eq!(ends(&results["cancelled"]), [(1, Cancelled)]);
    live.stop().await.assert_clean();
}

/// The pool with a breaker that opens at the second failure.
fn pool_with_breaker<T: Transport>(rig: &Rig<T>, put_offs: u32) -> Pool {
    let mut pool = rig.pool();
    pool.breaker.failures = 2;
    pool.breaker.delay = Duration::from_millis(200);
    pool.breaker.put_offs = put_offs;
    pool
}

pub async fn jobs_of_a_command_that_cannot_be_started_wait_until_it_can<T: Transport>(rig: Rig<T>) {
    const JOBS: usize = 5;
    let program = rig.path("program");
    let job = json!({ "command": [program] }).to_string();
    rig.publish_all(ids(JOBS).map(|id| (id, job.clone()))).await;
    let live = rig.work(rig.broker.clone(), pool_with_breaker(&rig, 1000));
    let first = rig.wait_for_results(1).await;
    circuit(&live, Circuit::Programs, Position::Open, 2).await; // it was tried again, in vain
    rig.publish("other", &json!({ "command": ["true"] })).await;
    rig.wait_for_ends(["other".to_owned()]).await;

    let aside = rig.path("aside");
    std::fs::write(&aside, "#!/bin/sh\n").expect("the test's own folder can be written");
    std::fs::set_permissions(&aside, PermissionsExt::from_mode(0o755)).expect("the test's own file");
    std::fs::rename(&aside, &program).expect("the test's own file");
    let mut results = rig.wait_for_ends(ids(JOBS).filter(|id| !first.contains_key(id))).await;
    results.extend(first);
    let of_each = results.values().map(|results| ends(results)[0]);
    let (failed, succeeded): (Vec<_>, Vec<_>) = of_each.partition(|end| *end == (1, NotStarted));
    assert_eq!((failed.len(), succeeded), (1, vec![(1, Succeeded); JOBS - 1]));
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    assert_eq!(stopped.metric("circuit_state{circuit=\"programs\"}"), 0.0);
    assert!(rig.dead_letters().await.is_empty());
}

pub async fn a_command_that_can_never_be_started_has_its_result_in_the_end<T: Transport>(rig: Rig<T>) {
    const JOBS: usize = 4;
    let job = json!({ "command": ["/no/such/program"] }).to_string();
    rig.publish_all(ids(JOBS).map(|id| (id, job.clone()))).await;
    let live = rig.work(rig.broker.clone(), pool_with_breaker(&rig, 2));
    let results = rig.wait_for_ends(ids(JOBS)).await;
    assert!(results.values().all(|results| ends(results) == [(1, NotStarted)]));
    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    let delayed = |event: &Event| matches!(event, Event::JobDelayed { .. });
    let put_off = stopped.observer.count(delayed);
    assert!(
        (JOBS - 1..=2 * (JOBS - 1)).contains(&put_off),
        "{put_off} times put off"
    );
    assert_eq!(stopped.metric("circuit_state{circuit=\"programs\"}"), 2.0);
}

pub async fn while_the_broker_takes_nothing_one_result_tries_for_all<T: Transport>(rig: Rig<T>) {
    const JOBS: usize = 8;
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    // All at first, and the first that tries for all. The next one waits until the test has seen what it has to see.
    transport.on_publish(results, 1..=JOBS + 1, PublishFault::UnknownLost);
    transport.on_publish(results, JOBS + 2..=JOBS + 2, PublishFault::HangsBefore(gate.clone()));
    for id in ids(JOBS) {
        rig.publish(&id, &rig.gated("gate")).await;
    }
    let mut pool = rig.pool();
    (pool.slots, pool.prefetch) = (JOBS, 8);
    let live = rig.work_with_outbox(transport.clone(), pool).await;
    rig.wait_for_begun(JOBS).await;
    rig.open("gate");
    circuit(&live, Circuit::Results, Position::Open, 2).await;
    let tried = transport.sent().iter().filter(|sent| results(sent)).count();
    assert!(tried <= JOBS + 1, "{tried} tried, though the broker took none");
    let on_disk = |event: &Event| matches!(event, Event::OutboxChanged { records: JOBS, .. });
    live.observer.wait_for("all are on disk", on_disk).await;
    gate.open();

    let results = rig.wait_for_ends(ids(JOBS)).await;
    assert!(results.values().all(|results| ends(results) == [(1, Succeeded)]));
    let stopped = live.stop().await;
    stopped.assert_clean();
    assert_eq!(stopped.metric("circuit_state{circuit=\"results\"}"), 0.0);
    rig.outbox_is_gone().await;
}
