use serde_json::json;

use super::*;
use crate::batch::BadItem;
use crate::message::FailureKind;

fn finished(status: Status, seconds: u64, title: &str) -> Progress {
    Progress::Finished {
        status,
        is_final: true,
        duration: Duration::from_secs(seconds),
        title: title.to_owned(),
    }
}

fn bad(origin: &str) -> Progress {
    Progress::Bad {
        origin: origin.to_owned(),
        error: BadItem {
            id: None,
            kind: FailureKind::InvalidJob,
            field: Some("timeout".to_owned()),
            message: "timeout: no".to_owned(),
        },
    }
}

/// A tally to which this has happened, and a time so many seconds after its start.
fn after(seconds: u64, happened: &[Progress]) -> (Tally, Instant) {
    let now = Instant::now();
    let mut tally = Tally::new(now);
    happened.iter().for_each(|progress| tally.count(progress));
    (tally, now + Duration::from_secs(seconds))
}

#[test]
fn a_snapshot_says_how_far_it_is() {
    let (mut tally, now) = after(
        10,
        &[
            Progress::Total(100),
            Progress::Resumed {
                finished: [(Status::Succeeded, 15), (Status::Lost, 5)].into(),
                awaited: 3,
            },
            Progress::Published(40),
            finished(Status::Succeeded, 1, "a"),
            finished(Status::Succeeded, 1, "b"),
            finished(Status::Failed, 1, "c"),
            Progress::Finished {
                status: Status::Failed,
                is_final: false,
                duration: Duration::ZERO,
                title: "d".to_owned(),
            },
            finished(Status::TimedOut, 1, "e"),
            bad("f:1"),
        ],
    );
    let snapshot = tally.snapshot(now);
    assert_eq!(
        json!(snapshot),
        json!({
            "total": 100, "done": 24, "failed": 2, "bad": 1, "under_way": 39, "per_second": 0.4, "seconds_left": 190.0,
            "elapsed_seconds": 10.0, "stalled": null,
        })
    );
    assert_eq!(
        snapshot.line(),
        "24 of 100 done, 2 failed, 1 bad, 39 under way, 0.4 a second, 3m 10s left"
    );
    assert_eq!(
        snapshot.beside_bar(),
        "24/100  2 failed  1 bad  39 under way  0.4/s  3m 10s left"
    );
}

#[test]
fn without_a_total_or_going_nothing_is_promised() {
    let (mut tally, now) = after(10, &[Progress::Published(5), finished(Status::Succeeded, 1, "a")]);
    assert_eq!(tally.snapshot(now).line(), "1 done, 4 under way, 0.1 a second");
    assert_eq!(tally.snapshot(now).beside_bar(), "1 done  4 under way  0.1/s  10s");
    tally.count(&Progress::Total(9));
    tally.count(&Progress::Stalled(Some("no broker".to_owned())));
    let stalled = tally.snapshot(now);
    assert_eq!(stalled.seconds_left, None);
    assert_eq!(
        stalled.line(),
        "1 of 9 done, 4 under way, 0.1 a second, waiting: no broker"
    );
    assert_eq!(stalled.beside_bar(), "1/9  4 under way  waiting: no broker");
    tally.count(&Progress::Stalled(None));
    assert!(tally.snapshot(now).seconds_left.is_some());
}

#[test]
fn the_speed_is_that_of_late() {
    let (mut tally, begin) = after(0, &[]);
    for second in 1..=60 {
        // Ten a second for half a minute, then one.
        let count = if second <= 30 { 10 } else { 1 };
        (0..count).for_each(|_| tally.count(&finished(Status::Succeeded, 1, "x")));
        let speed = tally.snapshot(begin + Duration::from_secs(second)).per_second;
        match second {
            5..=30 => assert!((speed - 10.0).abs() < 0.1, "{second}: {speed}"),
            50.. => assert!((speed - 1.0).abs() < 0.1, "{second}: {speed}"),
            _ => {}
        }
    }
    assert!(tally.samples.len() <= SAMPLES);
}

#[test]
fn the_slowest_are_few_and_in_order() {
    let happened: Vec<Progress> = [3, 9, 1, 0, 8, 2]
        .map(|n| finished(Status::Succeeded, n, &format!("job {n}")))
        .into();
    let (tally, now) = after(75, &happened);
    let summary = tally.summary(now);
    assert_eq!(
        summary.lines(true, true, Some("r.jsonl")),
        [
            "6 jobs: 6 succeeded",
            "took 1m 15s, 0.1 jobs a second",
            "slowest: 9.0s job 9; 8.0s job 8; 3.0s job 3",
            "results are in r.jsonl",
        ]
    );
    assert_eq!(summary.lines(true, false, Some("r.jsonl")), ["6 jobs: 6 succeeded"]);
    let (tally, now) = after(1, &[finished(Status::Failed, 1, &"ä".repeat(100))]);
    assert_eq!(tally.summary(now).slowest[0].title, format!("{}…", "ä".repeat(60)));
}

#[test]
fn a_summary_tells_what_else_there_was() {
    let happened = [
        Progress::Resumed {
            finished: [(Status::Succeeded, 2), (Status::Cancelled, 3)].into(),
            awaited: 0,
        },
        bad("f:1"),
        finished(Status::Failed, 1, ""),
        finished(Status::Succeeded, 2, ""),
        Progress::Finished {
            status: Status::Failed,
            is_final: false,
            duration: Duration::ZERO,
            title: String::new(),
        },
    ];
    let (tally, now) = after(2, &happened);
    assert_eq!(
        tally.summary(now).lines(true, true, None),
        [
            "2 jobs: 1 succeeded, 1 failed",
            "ended before: 5 (2 succeeded, 3 cancelled; --retry-failed submits the others again), not jobs: 1, tried again: 1",
            "took 2.0s, 1.0 jobs a second",
        ]
    );
    let (tally, now) = after(2, &[]);
    assert_eq!(tally.summary(now).lines(true, false, None), ["no jobs"]);
    assert_eq!(tally.summary(now).lines(false, false, None), [""; 0]);
    let (tally, now) = after(2, &happened[..1]);
    assert_eq!(tally.summary(now).lines(true, false, None), ["no jobs were left"]);
    for (before, told) in [
        (Status::Succeeded, "ended before: 4"),
        (
            Status::Failed,
            "ended before: 4 (4 failed; --retry-failed submits them again)",
        ),
    ] {
        let resumed = Progress::Resumed {
            finished: [(before, 4)].into(),
            awaited: 0,
        };
        let (tally, now) = after(2, &[resumed]);
        assert_eq!(tally.summary(now).lines(true, true, None)[1], told);
    }
}

#[test]
fn bad_items_are_told_once_and_fill_no_memory() {
    let (mut tally, _) = after(0, &[bad("f:1")]);
    let [note] = &tally.take_notes()[..] else {
        panic!("one note")
    };
    assert_eq!(
        json!(note),
        json!({"event": "bad_item", "origin": "f:1", "field": "timeout", "message": "timeout: no"})
    );
    assert_eq!(tally.take_notes(), []);
    (0..NOTES + 7).for_each(|_| tally.count(&bad("f")));
    let notes = tally.take_notes();
    assert_eq!(
        (notes.len(), notes.last()),
        (NOTES + 1, Some(&Told::MoreBadItems { count: 7 }))
    );
    assert_eq!(tally.bad, 1008);
}

#[test]
fn times_are_for_people() {
    let words = [0, 800, 9_999, 42_000, 185_000, 7_800_000, 355_000_000].map(|ms| in_words(Duration::from_millis(ms)));
    assert_eq!(words, ["0.0s", "0.8s", "10.0s", "42s", "3m 5s", "2h 10m", "4d 2h"]);
}
