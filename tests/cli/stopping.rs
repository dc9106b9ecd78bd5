//! How a run is stopped: once, twice, and by a reader that has seen enough. Nothing is left behind.

use serde_json::json;

use crate::bench::{Bench, results, run};
use crate::support::cli::{Cli, Running};
use crate::support::process::{Signal, descendants};

const SYNTHEX: &str = env!("CARGO_BIN_EXE_synthex");

/// Three jobs for one slot, the first of which waits for its gate.
fn three_jobs(bench: &Bench) -> String {
    let echo = |id: &str| json!({"id": id, "script": format!("touch {}; echo {id}", bench.arg(id))});
    let jobs = [
        json!({"id": "one", "script": bench.gated("one", "echo one")}),
        echo("two"),
        echo("three"),
    ];
    bench.jobs("jobs.jsonl", &jobs)
}

/// Sends a signal and waits until people are told that it arrived.
#[track_caller]
fn signal(running: &Running, signal: Signal, said: &str) {
    running.signal(signal);
    running.wait_for_line(|line| line.contains(said));
}

#[test]
fn ctrl_c_lets_the_running_job_finish_and_names_the_others() {
    let bench = Bench::new();
    let file = three_jobs(&bench);
    let running = bench.marked(run(&[&file])).spawn();
    bench.wait_until_up("one");
    signal(&running, Signal::INT, "once more to kill");
    bench.open("one");
    let finished = running.wait().expect_code(3);
    assert_eq!(
        finished.stdout, "one\n",
        "the job that ran has its output, and no other was started"
    );
    let unfinished = format!("synthex: stopped before the end: 2 jobs have no final result ({file}:2, {file}:3)");
    assert!(
        finished.stderr.lines().any(|line| line == unfinished),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("synthex: 1 job: 1 succeeded\n"),
        "{}",
        finished.stderr
    );
    assert!(!bench.path("two").exists() && !bench.path("three").exists());
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_keeps_json_to_results_and_still_tells_people() {
    let bench = Bench::new();
    let file = three_jobs(&bench);
    let running = bench.marked(run(&["--json", &file])).spawn();
    bench.wait_until_up("one");
    signal(&running, Signal::TERM, "once more to kill");
    bench.open("one");
    let finished = running.wait().expect_code(3);
    let results = results(&finished);
    assert_eq!((results.len(), &results[0]["job_id"]), (1, &json!("one")));
    assert!(
        finished.stderr.contains("2 jobs have no final result"),
        "{}",
        finished.stderr
    );
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_twice_kills_what_runs() {
    let bench = Bench::new();
    let up = bench.arg("one.up");
    let stubborn = format!("trap '' INT TERM; sleep 600 & touch {up}; while :; do sleep 600; done");
    let running = bench.marked(run(&["--", "sh", "-c", &stubborn])).spawn();
    bench.wait_until_up("one");
    signal(&running, Signal::INT, "once more to kill");
    signal(&running, Signal::INT, "killing what runs");
    let finished = running.wait().expect_code(3);
    assert!(
        finished.stderr.contains("1 job has no final result (command line)"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_ends_the_wait_for_a_job_that_is_not_due() {
    let bench = Bench::new();
    let later = "2099-01-01T00:00:00Z";
    let running = bench.marked(run(&["-vv", "--not-before", later, "--", "true"])).spawn();
    running.wait_for_line(|line| line.contains("consuming"));
    running.signal(Signal::INT);
    running.wait().expect_code(3);
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_ends_the_wait_for_a_line_that_nobody_writes() {
    let bench = Bench::new();
    // The pipe's other end stays open for as long as the fifo's writer lives.
    let fifo = bench.arg("fifo");
    Cli::program("mkfifo", [&fifo]).run().expect_code(0);
    let line = format!(r#"exec 3<>"{fifo}"; exec "$0" run -vv --slots 1 - < "{fifo}""#);
    let running = bench.marked(Cli::program("bash", ["-c", &line, SYNTHEX])).spawn();
    running.wait_for_line(|line| line.contains("consuming"));
    running.signal(Signal::INT);
    let finished = running.wait().expect_code(3);
    let told = "stopped before the end of the input";
    assert!(finished.stderr.contains(told), "{}", finished.stderr);
    bench.assert_nothing_left();
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_run() {
    let bench = Bench::new();
    let file = bench.jobs(
        "jobs.jsonl",
        &[
            json!({"id": "long", "script": format!("touch {}; sleep 600", bench.arg("long.up"))}),
            json!({"id": "first", "command": ["true"]}),
            json!({"id": "second", "script": bench.gated("head", &bench.gated("others", "true"))}),
        ],
    );
    // `head` is gone for sure when the second result is written, and the long job, which that ends, has begun.
    let gone = bench.arg("head.go");
    let line = format!(
        r#"exec 3>&1; "$0" run --json --slots 2 {file} > >(head -1 >&3; exec <&-; touch {gone}); echo "exit $?" >&2"#
    );
    let running = bench.marked(Cli::program("bash", ["-c", &line, SYNTHEX])).spawn();
    bench.wait_until_up("long");
    bench.open("others");
    let finished = running.wait().expect_code(0);
    assert_eq!(results(&finished)[0]["job_id"], "first");
    assert_eq!(finished.stdout.lines().count(), 1);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("synthex: stopped: nobody reads the results any more\n"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.ends_with("exit 1\n"), "{}", finished.stderr);
    bench.assert_nothing_left();
}

#[test]
fn what_nobody_reads_ends_without_a_word_as_by_sigpipe() {
    let bench = Bench::new();
    let fifo = bench.arg("unread");
    Cli::program("mkfifo", [&fifo]).run().expect_code(0);
    // A pipe whose only reader has gone.
    let line = r#"fifo=$1; shift; exec 3<>"$fifo" 4>"$fifo" 3<&-; exec "$0" "$@" >&4 4>&-"#;
    for args in [
        &["completions", "bash"][..],
        &["schema", "job"],
        &["config", "show", "--json"],
        &["run", "--dry-run", "--range", "1-100000", "--", "echo"],
    ] {
        let args = [&["-c", line, SYNTHEX, &fifo], args].concat();
        let finished = bench.marked(Cli::program("bash", &args)).run();
        assert_eq!(
            (finished.code, finished.signal),
            (None, Some(Signal::PIPE.as_raw())),
            "{args:?}: {finished:?}"
        );
        assert_eq!(finished.stderr, "", "{args:?}");
    }
    bench.assert_nothing_left();
}

#[test]
fn ctrl_c_twice_ends_a_run_whose_reader_has_stopped_reading() {
    let bench = Bench::new();
    // One write of more than a pipe holds; the reader takes its first byte and no more.
    let flood = "head -c 500000 /dev/zero | tr '\\0' x";
    let jobs = [
        json!({"script": format!("touch {}; sleep 600", bench.arg("long.up"))}),
        json!({"script": flood, "output": {"max_bytes": "1MiB"}}),
    ];
    let file = bench.jobs("jobs.jsonl", &jobs);
    let reader = bench.gated("reader", "true");
    let line = format!(
        r#"("$0" run --slots 2 {file}; echo "exit $?" >&2) | (dd bs=1 count=1 of=/dev/null status=none; {reader})"#
    );
    let pipeline = bench.marked(Cli::program("bash", ["-c", &line, SYNTHEX]));
    let pipeline = pipeline.spawn();
    bench.wait_until_up("long");
    bench.wait_until_up("reader");
    let family = descendants(pipeline.pid());
    let run = family.iter().find(|process| process.command.starts_with(SYNTHEX));
    let run = run.expect("synthex runs");
    run.signal(Signal::INT);
    pipeline.wait_for_line(|line| line.contains("once more to kill"));
    run.signal(Signal::INT);
    pipeline.wait_for_line(|line| line.starts_with("exit "));
    bench.open("reader");
    pipeline.wait();
    bench.assert_nothing_left();
}
