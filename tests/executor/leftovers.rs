//! What commands leave behind.

use std::time::Instant;

use rustix::process::{Signal, kill_process};

use super::{SOON, fixture, outcome, pid, reaped, run, spawners, state, stdout};
use synthex::executor::{End, Leftovers, Run, Stop, execute};

#[tokio::test]
async fn a_process_that_holds_stdout_delays_nothing_and_is_killed() {
    for name in ["leave-holder", "leave-silent"] {
        let start = Instant::now();
        let text = stdout(fixture(name)).await;
        assert!(start.elapsed() < SOON);
        assert_eq!(state(pid(&text)), None, "{name}");
    }
}

#[tokio::test]
async fn a_process_that_floods_after_its_leader_is_ended_too() {
    let outcome = outcome(fixture("leave-flooder")).await;
    assert_eq!(outcome.end, End::Exited(0));
}

#[tokio::test]
async fn a_process_that_left_the_group_is_killed_too() {
    let outcome = outcome(fixture("escape")).await;
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(state(pid(&outcome.stdout.text)), None);
    assert!(outcome.kill_time.expect("it had to be ended") < SOON);
}

#[tokio::test]
async fn what_may_be_left_is_left_and_its_keeper_with_it() {
    let spawners = spawners();
    let run = Run {
        leftovers: Leftovers::Allow,
        ..fixture("escape")
    };
    let outcome = execute(&spawners, run, Stop::default()).await;
    assert_eq!((outcome.end, outcome.kill_time), (End::Exited(0), None));
    let escaped = pid(&outcome.stdout.text);
    assert!(state(escaped).is_some());
    // Neither the next command nor the end of the helpers touches it.
    let next = execute(&spawners, run_next(), Stop::default()).await;
    assert_eq!(next.end, End::Exited(0));
    drop(spawners);
    assert!(matches!(state(escaped), Some('S' | 'R' | 'D')));
    kill_process(escaped, Signal::KILL).unwrap();
    reaped(escaped).await;
}

fn run_next() -> Run {
    run(["true"])
}
