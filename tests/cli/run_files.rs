//! `synthex run FILE...`: many jobs, one a line, from files and stdin.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, results, run};
use crate::support::cli::{Cli, Finished};

fn echo(word: &str) -> Value {
    json!({"command": ["echo", word]})
}

/// What results say of their ends, in the order of the jobs' ids.
fn by_id(finished: &Finished) -> Vec<Value> {
    let mut results = results(finished);
    results.sort_by_key(|result| result["job_id"].to_string());
    results
}

#[test]
fn jobs_of_files_and_stdin_are_run() {
    let bench = Bench::new();
    let (a, b) = (
        bench.jobs("a.jsonl", &[echo("a"), echo("b")]),
        bench.jobs("b.jsonl", &[echo("d")]),
    );
    let finished = run(&[&a, "-", &b]).stdin(echo("c").to_string()).run().expect_code(0);
    assert_eq!(finished.stdout, "a\nb\nc\nd\n");
    assert_eq!(finished.stderr, "synthex: 4 jobs: 4 succeeded\n");
}

#[test]
fn lines_may_be_empty_or_end_in_crlf_or_in_nothing() {
    let text = format!("\n{}\r\n\r\n  \t\n{}\n\n{}", echo("a"), echo("b"), echo("c"));
    let finished = run(&["-"]).stdin(text).run().expect_code(0);
    assert_eq!(finished.stdout, "a\nb\nc\n");
}

#[test]
fn a_line_s_number_counts_the_empty_ones() {
    let bench = Bench::new();
    let file = bench.file(
        "jobs.jsonl",
        format!("\n\r\n{}\n\n{{\"command\":[\"false\"]}}", echo("a")),
    );
    let finished = run(&[&file]).run().expect_code(3);
    assert!(
        finished.stderr.contains(&format!("({file}:5) failed")),
        "{}",
        finished.stderr
    );
    let finished = run(&["-"]).stdin("\n{}").run().expect_code(3);
    assert!(finished.stderr.contains("(stdin:2) rejected"), "{}", finished.stderr);
}

#[test]
fn no_jobs_are_no_failure() {
    let bench = Bench::new();
    let empty = bench.file("empty.jsonl", "\n\n");
    for (args, input) in [(&["-"][..], ""), (&["-"], "\n"), (&[&empty], "")] {
        let finished = run(args).stdin(input).run().expect_code(0);
        assert_eq!((&*finished.stdout, &*finished.stderr), ("", "synthex: no jobs\n"));
    }
}

#[test]
fn a_missing_file_is_named_before_any_job_runs() {
    let bench = Bench::new();
    let jobs: Vec<Value> = (0..20)
        .map(|n| json!({"id": format!("{n:02}"), "script": "sleep 0.05"}))
        .collect();
    let (good, missing) = (bench.jobs("good.jsonl", &jobs), bench.arg("missing.jsonl"));
    let finished = run(&["--json", &good, &missing]).run().expect_code(2);
    assert!(
        finished
            .stderr
            .contains(&format!("failed to open {missing}: No such file")),
        "{}",
        finished.stderr
    );
    assert_eq!(finished.stdout, "", "nothing was started");
}

#[test]
fn a_command_without_its_dashes_is_no_file_and_the_message_says_how() {
    let finished = run(&["no-such-program", "hello"]).run().expect_code(2);
    assert_eq!(finished.stdout, "");
    assert!(
        finished.stderr.contains("failed to open no-such-program"),
        "{}",
        finished.stderr
    );
    assert!(finished.stderr.contains("synthex run -- "), "{}", finished.stderr);
}

#[test]
fn a_folder_is_no_file() {
    let bench = Bench::new();
    let folder = bench.arg("");
    let finished = run(&[&folder]).run().expect_code(2);
    assert!(
        finished
            .stderr
            .contains(&format!("failed to open {folder}: is a directory")),
        "{}",
        finished.stderr
    );
}

#[test]
fn one_id_is_not_for_many_jobs() {
    let bench = Bench::new();
    let file = bench.jobs("a.jsonl", &[echo("a")]);
    let finished = run(&["--id", "x", &file]).run().expect_code(2);
    assert_eq!(finished.stdout, "", "it was run all the same");
}

#[test]
fn every_end_of_a_job_has_its_status() {
    let jobs = [
        json!({"id": "1", "command": ["true"]}),
        json!({"id": "2", "script": "exit 41"}),
        json!({"id": "3", "script": "kill -USR1 $$"}),
        json!({"id": "4", "command": ["sleep", "60"], "timeout": "100ms"}),
        json!({"id": "5", "command": ["true"], "expires_at": "2020-01-01T00:00:00Z"}),
        json!({"id": "6", "command": ["no-such-program"]}),
        json!({"id": "7", "command": ["true"], "timeout": "25h"}),
    ];
    let input: Vec<String> = jobs.iter().map(|job| format!("{job}\n")).collect();
    let finished = run(&["--json", "-"]).stdin(input.concat()).run().expect_code(3);
    let ends = by_id(&finished);
    let ends: Vec<Value> = ends
        .iter()
        .map(|end| {
            json!([
                end["status"],
                end["exit_code"],
                end["signal"],
                end["error"]["kind"],
                end["final"]
            ])
        })
        .collect();
    let expected = [
        json!(["succeeded", 0, null, null, true]),
        json!(["failed", 41, null, null, true]),
        json!(["signaled", null, "SIGUSR1", "signaled", true]),
        json!(["timed_out", null, "SIGTERM", "timed_out", true]),
        json!(["expired", null, null, "expired", true]),
        json!(["not_started", null, null, "program_missing", true]),
        json!(["rejected", null, null, "policy", true]),
    ];
    assert_eq!(ends, expected);
    let told = run(&["-"]).stdin(input.concat()).run().expect_code(3);
    let summary =
        "synthex: 7 jobs: 1 succeeded, 1 failed, 1 signaled, 1 timed_out, 1 expired, 1 not_started, 1 rejected";
    assert_eq!(told.stderr.lines().last(), Some(summary));
}

#[test]
fn slots_run_at_once() {
    let bench = Bench::new();
    // Each waits for the other: one after the other they never end.
    let meet = |own: &str, other: &str| {
        let (own, other) = (bench.arg(own), bench.arg(other));
        json!({"script": format!("touch {own}; until [ -e {other} ]; do sleep 0.02; done"), "timeout": "50s"})
    };
    let jobs = bench.jobs("jobs.jsonl", &[meet("a", "b"), meet("b", "a")]);
    Cli::new(["run", "--slots", "2", &jobs]).run().expect_code(0);
}

#[test]
fn two_thousand_jobs_all_end_in_a_memory_that_does_not_grow_with_them() {
    const JOBS: usize = 2_000;
    const OUTPUT: usize = 40_000; // so that all of it is much more than what the program itself takes, with its code
    let bench = Bench::new();
    let script = format!("head -c {OUTPUT} /dev/zero | tr '\\0' x");
    let jobs: Vec<Value> = (0..JOBS)
        .map(|n| json!({"id": format!("job-{n:04}"), "script": script}))
        .collect();
    let file = bench.jobs("jobs.jsonl", &jobs);
    let running = Cli::new(["run", "--json", "--slots", "4", &file]).spawn();
    let mut peak = 0;
    while running.is_running() {
        peak = peak.max(peak_kib(running.pid()));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let finished = running.wait().expect_code(0);
    let ends = by_id(&finished);
    let ids: Vec<&str> = ends.iter().map(|end| end["job_id"].as_str().unwrap()).collect();
    let wanted: Vec<&str> = jobs.iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(ids, wanted, "each job has one result");
    assert!(
        ends.iter()
            .all(|end| end["status"] == "succeeded" && end["stdout"]["bytes"] == OUTPUT)
    );
    let all_output = JOBS * OUTPUT / 1024;
    assert!(
        (1_000..all_output / 2).contains(&peak),
        "{peak} KiB at most, of {all_output} KiB of output"
    );
}

/// The most memory that a process has had resident, 0 once it has ended.
fn peak_kib(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    peak.map_or(0, |number| number.parse().unwrap())
}
