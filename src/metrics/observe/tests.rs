use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::exposition::{moves, scrape};
use super::super::{PoolInfo, Sources};
use super::*;
use crate::message::{JobId, Status};
use crate::worker::event::{Circuit, ControlMessage};

fn metrics() -> Metrics {
    let pool = |name: &str| PoolInfo {
        name: name.into(),
        slots: 1,
        prefetch: 1,
    };
    let pools = [pool("web"), pool("batch")];
    Metrics::new(&pools, Sources::default()).unwrap()
}

fn web() -> Arc<str> {
    "web".into()
}

fn id() -> JobId {
    JobId::random()
}

fn connected() -> Event {
    let host = "broker:5672".into();
    Event::Broker(BrokerEvent::Connected { host })
}

fn disconnected() -> Event {
    let reason = "reset".into();
    Event::Broker(BrokerEvent::Disconnected { reason })
}

fn finished(status: Status) -> Event {
    Event::JobFinished {
        pool: web(),
        job_id: id(),
        attempt: 1,
        status,
        is_final: true,
        duration: Duration::from_secs(9),
        error: None,
        labels: BTreeMap::new(),
        trace_id: None,
    }
}

fn ended(run: RunAccount) -> Event {
    Event::JobEnded {
        pool: web(),
        job_id: id(),
        run,
    }
}

fn started(waited: Option<Duration>) -> Event {
    Event::JobStarted {
        pool: web(),
        job_id: id(),
        attempt: 1,
        waited,
        labels: BTreeMap::new(),
    }
}

/// Tells the events and asserts that exactly these series moved, by exactly so much.
#[track_caller]
fn assert_moves(events: &[Event], expected: &[(&str, f64)]) {
    assert_later_moves(&metrics(), events, expected);
}

#[track_caller]
fn assert_later_moves(metrics: &Metrics, events: &[Event], expected: &[(&str, f64)]) {
    let before = scrape(&metrics.render());
    for event in events {
        metrics.on(event);
    }
    let moved = moves(&before, &scrape(&metrics.render()));
    let moved: Vec<_> = moved.iter().map(|(name, by)| (name.as_str(), *by)).collect();
    assert_eq!(moved, expected);
}

#[tokio::test]
async fn circuits_and_rates_show() {
    let metrics = metrics();
    let series = scrape(&metrics.render());
    for circuit in ["results", "outbox", "programs"] {
        assert_eq!(series[&format!("synthex_circuit_state{{circuit={circuit:?}}}")], 0.0);
    }
    for (position, number) in [
        (Position::Open, 2.0),
        (Position::HalfOpen, 1.0),
        (Position::Closed, 0.0),
    ] {
        let circuit = Circuit::Outbox;
        metrics.on(&Event::CircuitChanged { circuit, position });
        let series = scrape(&metrics.render());
        assert_eq!(series[r#"synthex_circuit_state{circuit="outbox"}"#], number);
    }
    for _ in 0..2 {
        let waited = Duration::from_millis(750);
        metrics.on(&Event::RateLimited { pool: web(), waited });
    }
    let series = scrape(&metrics.render());
    assert_eq!(series[r#"synthex_rate_limited_seconds_total{pool="web"}"#], 1.5);
    assert_eq!(series[r#"synthex_rate_limited_seconds_total{pool="batch"}"#], 0.0);
}

#[tokio::test]
async fn deliveries_are_unacked_until_settled() {
    let taken = Event::DeliveryTaken { pool: web() };
    let settled = Event::DeliverySettled { pool: web() };
    let metrics = metrics();
    let unacked = r#"unacked{pool="web"}"#;
    assert_later_moves(&metrics, &[taken.clone(), taken], &[(unacked, 2.0)]);
    assert_later_moves(&metrics, &[settled], &[(unacked, -1.0)]);
}

#[tokio::test]
async fn messages_of_operators_are_counted_and_so_is_what_is_forgotten() {
    let message = ControlMessage::Cancel;
    let events = [Event::Control { message }, Event::CancelsForgotten { count: 3 }];
    let moved = [
        ("cancels_forgotten_total", 3.0),
        (r#"control_messages_total{message="cancel"}"#, 1.0),
    ];
    assert_moves(&events, &moved);
}

#[tokio::test]
async fn a_started_job_runs_and_has_waited() {
    assert_moves(
        &[started(Some(Duration::from_millis(2500)))],
        &[
            (r#"job_wait_seconds_count{pool="web"}"#, 1.0),
            (r#"job_wait_seconds_sum{pool="web"}"#, 2.5),
            (r#"jobs_running{pool="web"}"#, 1.0),
            (r#"jobs_started_total{pool="web"}"#, 1.0),
            (r#"queue_age_seconds{pool="web"}"#, 2.5),
        ],
    );
}

#[tokio::test]
async fn the_age_of_a_queue_is_the_last_wait_until_it_is_empty() {
    let metrics = metrics();
    let age = || scrape(&metrics.render())[r#"synthex_queue_age_seconds{pool="web"}"#];
    let measured = |messages| Event::QueueMeasured {
        pool: web(),
        depth: QueueDepth { messages, consumers: 1 },
    };
    for waited in [Some(Duration::from_secs(90)), Some(Duration::from_secs(60)), None] {
        metrics.on(&started(waited));
    }
    assert_eq!(age(), 60.0);
    metrics.on(&measured(4));
    assert_eq!(age(), 60.0);
    metrics.on(&measured(0));
    assert_eq!(age(), 0.0);
}

#[tokio::test]
async fn a_job_without_a_timestamp_has_no_wait() {
    assert_moves(
        &[started(None)],
        &[
            (r#"jobs_running{pool="web"}"#, 1.0),
            (r#"jobs_started_total{pool="web"}"#, 1.0),
        ],
    );
}

#[tokio::test]
async fn an_ended_job_leaves_its_slot_and_its_account() {
    let run = RunAccount {
        spawn: Some(Duration::from_micros(500)),
        kill: Some(Duration::from_secs(2)),
        duration: Duration::from_secs(4),
        stdout: StreamAccount {
            bytes: 100,
            dropped: 40,
        },
        stderr: StreamAccount { bytes: 7, dropped: 3 },
    };
    assert_moves(
        &[ended(run)],
        &[
            (r#"job_duration_seconds_count{pool="web"}"#, 1.0),
            (r#"job_duration_seconds_sum{pool="web"}"#, 4.0),
            (r#"jobs_running{pool="web"}"#, -1.0),
            ("kill_seconds_count", 1.0),
            ("kill_seconds_sum", 2.0),
            (r#"output_bytes_total{pool="web",stream="stderr"}"#, 7.0),
            (r#"output_bytes_total{pool="web",stream="stdout"}"#, 100.0),
            (r#"output_dropped_bytes_total{pool="web",stream="stderr"}"#, 3.0),
            (r#"output_dropped_bytes_total{pool="web",stream="stdout"}"#, 40.0),
            ("spawn_seconds_count", 1.0),
            ("spawn_seconds_sum", 0.0005),
        ],
    );
}

#[tokio::test]
async fn what_was_neither_started_nor_ended_has_no_times_of_it() {
    assert_moves(
        &[ended(RunAccount::default())],
        &[
            (r#"job_duration_seconds_count{pool="web"}"#, 1.0),
            (r#"jobs_running{pool="web"}"#, -1.0),
        ],
    );
}

#[tokio::test]
async fn starts_are_told_apart_from_100_us_to_1_s_and_ends_from_1_ms_to_60_s() {
    let metrics = metrics();
    let run = |spawn, kill| RunAccount {
        spawn: Some(Duration::from_micros(spawn)),
        kill: Some(Duration::from_millis(kill)),
        ..RunAccount::default()
    };
    for account in [run(100, 1), run(101, 2), run(1_000_000, 60_000), run(1_000_001, 60_001)] {
        metrics.on(&ended(account));
    }
    let text = metrics.render();
    let below = |family: &str, bound: &str| {
        let start = format!("synthex_{family}_bucket{{le=\"{bound}\"}} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok())
    };
    assert_eq!(below("spawn_seconds", "0.0001"), Some(1), "{text}");
    assert_eq!(below("spawn_seconds", "1"), Some(3));
    assert_eq!(below("kill_seconds", "0.001"), Some(1));
    assert_eq!(below("kill_seconds", "60"), Some(3));
}

#[tokio::test]
async fn each_status_has_its_own_counter() {
    for status in Status::ALL {
        let name = format!(r#"jobs_finished_total{{pool="web",status="{status}"}}"#);
        assert_moves(&[finished(status)], &[(&name, 1.0)]);
    }
}

#[tokio::test]
async fn retries_and_dead_letters_are_counted() {
    let retried = Event::JobRetried {
        pool: web(),
        job_id: id(),
        delay: Duration::from_secs(1),
    };
    assert_moves(&[retried], &[(r#"job_retries_total{pool="web"}"#, 1.0)]);
    let adopted = Event::JobAdopted {
        pool: web(),
        message_id: None,
    };
    assert_moves(&[adopted], &[(r#"jobs_adopted_total{pool="web"}"#, 1.0)]);
    let dead = Event::JobDeadLettered {
        pool: web(),
        job_id: id(),
        reason: "rejected".into(),
    };
    assert_moves(&[dead], &[(r#"dead_letters_total{pool="web"}"#, 1.0)]);
}

#[tokio::test]
async fn results_are_unconfirmed_until_settled() {
    let pending = Event::ResultPending { pool: web() };
    let settled = Event::ResultSettled { pool: web() };
    let metrics = metrics();
    assert_later_moves(&metrics, &[pending], &[("results_unconfirmed", 1.0)]);
    assert_later_moves(&metrics, &[settled], &[("results_unconfirmed", -1.0)]);
}

#[tokio::test]
async fn a_result_without_a_taker_is_counted() {
    let unroutable = Event::ResultUnroutable {
        pool: web(),
        job_id: id(),
        reply_to: "gone".into(),
    };
    assert_moves(&[unroutable], &[("results_unroutable_total", 1.0)]);
}

#[tokio::test]
async fn a_queue_is_shown_as_it_was_last_measured() {
    let measured = |messages, consumers| Event::QueueMeasured {
        pool: web(),
        depth: QueueDepth { messages, consumers },
    };
    assert_moves(
        &[measured(50, 1), measured(12, 3)],
        &[
            (r#"queue_consumers{pool="web"}"#, 3.0),
            (r#"queue_messages{pool="web"}"#, 12.0),
        ],
    );
}

#[tokio::test]
async fn confirms_are_timed() {
    let waited = Duration::from_millis(250);
    assert_moves(
        &[Event::Broker(BrokerEvent::Confirmed { waited })],
        &[
            ("publish_confirm_seconds_count", 1.0),
            ("publish_confirm_seconds_sum", 0.25),
        ],
    );
}

#[tokio::test]
async fn a_session_that_replaces_a_lost_one_is_a_reconnect() {
    let metrics = metrics();
    let up = ("broker_connected", 1.0);
    let reconnect = ("broker_reconnects_total", 1.0);
    assert_later_moves(&metrics, &[connected()], &[up]);
    assert_later_moves(&metrics, &[disconnected()], &[("broker_connected", -1.0)]);
    assert_later_moves(&metrics, &[connected()], &[up, reconnect]);
}

#[tokio::test]
async fn the_sessions_of_two_pools_are_no_reconnects() {
    let metrics = metrics();
    let up = ("broker_connected", 1.0);
    assert_later_moves(&metrics, &[connected(), connected()], &[up]);
    assert_later_moves(&metrics, &[disconnected()], &[]);
    let reconnect = ("broker_reconnects_total", 1.0);
    assert_later_moves(&metrics, &[connected()], &[reconnect]);
}

#[tokio::test]
async fn the_rest_moves_nothing() {
    let uncounted = [
        Event::JobDelayed {
            pool: web(),
            job_id: id(),
            remaining: Duration::from_secs(1),
        },
        Event::JobRecounted {
            pool: web(),
            job_id: id(),
            attempt: 2,
        },
        Event::JobGivenBack {
            pool: web(),
            job_id: Some(id()),
            was_running: true,
        },
        Event::Consuming { pool: web() },
        Event::ConsumerLost {
            pool: web(),
            reason: "closed".into(),
            retry_in: None,
        },
        Event::Draining,
    ];
    assert_moves(&uncounted, &[]);
}
