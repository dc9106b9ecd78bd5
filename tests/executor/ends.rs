//! How runs end, by themselves and by the clock, and what is told of it.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Signal;

use super::{SOON, bash, fixture, has_spoken, once_up, outcome, run, timed_out};
use synthex::executor::{End, Outcome, Run, Warning};
use synthex::message::{EndedBy, SignalName};

/// What becomes of a command that is up when it runs into its timeout.
async fn timed_out_once_up(name: &str) -> Outcome {
    let (_, outcome) = once_up(has_spoken, Duration::from_secs(1), |timeout| Run {
        timeout,
        ..fixture(name)
    })
    .await;
    outcome
}

#[tokio::test]
async fn exit_codes_and_foreign_signals_are_told_apart() {
    assert_eq!(outcome(run(["true"])).await.end, End::Exited(0));
    assert_eq!(outcome(bash("exit 3")).await.end, End::Exited(3));
    assert_eq!(outcome(bash("exit 143")).await.end, End::Exited(143));
    assert_eq!(
        outcome(bash("kill -TERM $$")).await.end,
        End::Signaled(SignalName::TERM)
    );
    assert_eq!(
        outcome(bash("kill -KILL $$")).await.end,
        End::Signaled(SignalName::KILL)
    );
}

#[tokio::test]
async fn a_run_tells_when_and_how_long() {
    let (before, asked) = (Timestamp::now(), Instant::now());
    let outcome = outcome(bash("sleep 0.2")).await;
    let lasted = asked.elapsed();
    let started_at = outcome.started_at.expect("it was started");
    assert!(before <= started_at && started_at < outcome.finished_at);
    // Whoever started it may be late to note that it runs.
    let known = outcome.spawn_time + outcome.duration;
    assert!(outcome.spawn_time > Duration::ZERO && outcome.duration > Duration::ZERO);
    assert!((Duration::from_millis(200)..=lasted).contains(&known), "{known:?}");
    assert_eq!((outcome.kill_time, outcome.ended_by), (None, Some(EndedBy::Itself)));
}

#[tokio::test]
async fn term_ends_the_whole_tree_at_the_timeout() {
    // The shell waits for its child, so both must have got the signal for this to be quick. Its child speaks: while a shell
    // makes one, it holds signals back.
    let (timeout, outcome) = once_up(has_spoken, Duration::from_millis(300), |timeout| Run {
        timeout,
        ..bash("(echo so far; exec sleep 300); :")
    })
    .await;
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
    assert_eq!(outcome.stdout.text, "so far\n");
    assert!(outcome.duration >= timeout && outcome.duration < timeout + SOON);
    assert!(outcome.kill_time.expect("it was killed") < SOON);
}

#[tokio::test]
async fn a_command_that_ignores_term_is_killed_after_the_grace() {
    let kill_grace = Duration::from_millis(400);
    let (timeout, outcome) = once_up(has_spoken, Duration::from_secs(1), |timeout| Run {
        timeout,
        kill_grace,
        ..fixture("ignore-term")
    })
    .await;
    assert_eq!(outcome.stdout.text, "ready\n");
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::KILL)));
    assert_eq!(outcome.ended_by, Some(EndedBy::Kill));
    assert!(outcome.duration >= timeout + kill_grace && outcome.run_time < outcome.duration);
    let kill_time = outcome.kill_time.expect("it was killed");
    assert!(kill_time >= kill_grace && kill_time < SOON);
}

#[tokio::test]
async fn a_timed_out_run_stays_so_when_it_exits_with_0() {
    let outcome = timed_out_once_up("exit-zero-on-term").await;
    assert_eq!(outcome.stdout.text, "ready\ncleaned up\n");
    assert_eq!(outcome.end, timed_out(Some(0), None));
}

#[tokio::test]
async fn another_term_signal_is_sent_where_it_was_asked_for() {
    let term_signal = SignalName::from_number(Signal::USR1.as_raw()).expect("a signal");
    let ended = outcome(Run {
        timeout: Duration::from_millis(300),
        term_signal,
        ..run(["sleep", "300"])
    })
    .await;
    assert_eq!(ended.end, timed_out(None, Some(term_signal)));
}

#[tokio::test]
async fn a_stopped_command_is_told_to_end_and_then_continued() {
    let outcome = timed_out_once_up("stop-itself").await;
    assert_eq!(outcome.stdout.text, "stopping\ntold to end\n");
    assert_eq!(outcome.end, timed_out(Some(7), None));
}

#[tokio::test]
async fn the_grace_is_for_the_whole_tree() {
    let outcome = timed_out_once_up("slow-to-end").await;
    assert_eq!(outcome.stdout.text, "ready\nsaved\n");
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
}

#[tokio::test]
async fn the_largest_timeout_is_no_timeout() {
    assert_eq!(
        outcome(Run {
            timeout: Duration::MAX,
            ..run(["true"])
        })
        .await
        .end,
        End::Exited(0)
    );
}

#[tokio::test]
async fn a_warning_comes_before_the_timeout_and_an_end_after_it_is_told() {
    let warned = |script: &str, after: Duration| Run {
        timeout: Duration::from_secs(60),
        warning: Some(Warning {
            before: Duration::from_secs(60) - after,
            signal: "USR1".parse().unwrap(),
        }),
        ..bash(script)
    };
    let at_first = Duration::from_millis(500);
    let script = "trap 'echo warned; exit 3' USR1; echo ready; while :; do sleep 0.01; done";
    let (_, caught) = once_up(has_spoken, at_first, |after| warned(script, after)).await;
    assert_eq!(
        (caught.end, caught.ended_by),
        (End::Exited(3), Some(EndedBy::WarnSignal))
    );
    assert_eq!(caught.stdout.text, "ready\nwarned\n");

    let fell = outcome(warned("exec sleep 300", at_first)).await;
    assert_eq!(fell.end, timed_out(None, Some("USR1".parse().unwrap())));
    assert_eq!(fell.ended_by, Some(EndedBy::WarnSignal));
}
