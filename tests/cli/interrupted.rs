//! A run that is stopped before its input has ended says so, and what commands see of our own settings: nothing.

use serde_json::json;

use crate::bench::{Bench, run};
use crate::support::cli::Cli;
use crate::support::process::Signal;

const SYNTHEX: &str = env!("CARGO_BIN_EXE_synthex");

/// Runs one job that comes through a pipe whose other end stays open, stops the run, and says how it ended.
#[track_caller]
fn stopped_after_one_job(bench: &Bench, input: &str) {
    let fifo = bench.arg("fifo");
    Cli::program("mkfifo", [&fifo]).run().expect_code(0);
    let job = json!({"command": ["echo", "a"]});
    let line = format!(r#"exec 3<>"{fifo}"; echo '{job}' >&3; exec "$0" run --slots 1 {input}"#);
    let running = bench.marked(Cli::program("bash", ["-c", &line, SYNTHEX])).spawn();
    running.wait_for_stdout_line(|line| line == "a");
    running.signal(Signal::TERM);
    let finished = running.wait().expect_code(3);
    assert_eq!(finished.stdout, "a\n");
    for note in [
        "synthex: 1 job: 1 succeeded",
        "synthex: stopped before the end of the input: jobs that were not read yet were not run",
    ] {
        assert!(
            finished.stderr.lines().any(|line| line == note),
            "no {note:?} in {}",
            finished.stderr
        );
    }
    bench.assert_nothing_left();
}

#[test]
fn a_run_that_is_stopped_while_it_waits_for_stdin_tells_that_it_has_not_read_all() {
    let bench = Bench::new();
    let fifo = bench.arg("fifo");
    stopped_after_one_job(&bench, &format!("- < {fifo}"));
}

#[test]
fn a_run_that_is_stopped_while_it_waits_for_a_pipe_tells_that_it_has_not_read_all() {
    let bench = Bench::new();
    let fifo = bench.arg("fifo");
    stopped_after_one_job(&bench, &fifo);
}

#[test]
fn a_run_that_is_stopped_while_nobody_has_opened_its_pipe_ends() {
    let bench = Bench::new();
    let fifo = bench.arg("fifo");
    Cli::program("mkfifo", [&fifo]).run().expect_code(0);
    let first = bench.jobs("first.jsonl", &[json!({"command": ["echo", "a"]})]);
    let running = bench.marked(run(&[&first, &fifo])).spawn();
    running.wait_for_stdout_line(|line| line == "a");
    running.signal(Signal::TERM);
    let finished = running.wait().expect_code(3);
    assert!(
        finished.stderr.contains("stopped before the end of the input"),
        "{}",
        finished.stderr
    );
    bench.assert_nothing_left();
}

#[test]
fn a_run_that_has_read_all_is_not_told_to_have_missed_something() {
    let finished = run(&["-"])
        .stdin(json!({"command": ["true"]}).to_string())
        .run()
        .expect_code(0);
    assert_eq!(finished.stderr, "synthex: 1 job: 1 succeeded\n");
}

#[test]
fn the_command_does_not_see_the_broker_s_password() {
    let finished = run(&["--", "env"])
        .env("SYNTHEX_AMQP_URL", "amqp://user:hunter2@broker:5672/%2f")
        .env("SYNTHEX_NAMESPACE", "mine")
        .env("COLOUR", "red")
        .env("AMQP_URL", "of another program")
        .run()
        .expect_code(0);
    let seen: Vec<&str> = finished.stdout.lines().collect();
    assert!(!finished.stdout.contains("hunter2"), "{seen:?}");
    for ours in ["SYNTHEX_AMQP_URL", "SYNTHEX_NAMESPACE"] {
        assert!(
            !seen.iter().any(|line| line.starts_with(&format!("{ours}="))),
            "{seen:?}"
        );
    }
    for others in ["COLOUR=red", "AMQP_URL=of another program"] {
        assert!(seen.contains(&others), "{seen:?}");
    }
    // What the worker tells each command is no setting of ours.
    assert!(seen.contains(&"SYNTHEX_POOL=default"), "{seen:?}");
}
