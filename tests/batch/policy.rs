//! When a batch ends early, and what is left then.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{Fleet, PATIENCE, results};
use crate::inputs::make_pipe;
use crate::support::process::{Signal, wait_until};

#[test]
fn failures_end_it_soon_or_now() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(40); // all of them run at once, whichever comes to the queue first
    let mut jobs = String::new();
    let go = fleet.path("go");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", go.display());
    for number in 0..40 {
        let script = if number == 0 { "exit 1" } else { &wait };
        jobs += &format!("{}\n", json!({ "script": script }));
    }
    fs::write(fleet.path("jobs.jsonl"), &jobs).unwrap();
    let args = [
        "--results",
        "soon.jsonl",
        "--max-in-flight",
        "4",
        "--halt",
        "soon,fail=1",
        "jobs.jsonl",
    ];
    let soon = fleet.batch(&args).spawn();
    soon.wait_for_line(|line| line.contains("failed with exit code 1"));
    fs::write(&go, "").unwrap();
    let soon = soon.wait().expect_code(3);
    assert!(
        soon.stderr.contains("ended early: 1 did not succeed"),
        "{}",
        soon.stderr
    );
    let ended = results(&fleet.read("soon.jsonl"));
    assert_eq!(ended.len(), 4, "what was under way ends, and nothing else is submitted");
    assert!(ended.values().all(|result| result["status"] != "cancelled"));

    let long = jobs.replace(&wait, "sleep 300");
    fs::write(fleet.path("jobs.jsonl"), long).unwrap();
    let args = ["--results", "now.jsonl", "--max-fails", "0", "jobs.jsonl"];
    fleet.batch(&args).run().expect_code(3);
    let ended = results(&fleet.read("now.jsonl"));
    assert_eq!(ended.len(), 40, "all that was submitted has its end");
    assert_eq!(
        ended.values().filter(|result| result["status"] == "cancelled").count(),
        39
    );
}

#[test]
fn enough_successes_end_it_well() {
    let fleet = Fleet::at(String::new());
    let args = [
        "run",
        "--slots",
        "2",
        "--halt",
        "now,success=3",
        "--range",
        "1-30",
        "--",
        "sh",
        "-c",
        "sleep 0.0{}",
    ];
    let done = fleet.synthex(&args).run().expect_code(0);
    assert!(done.stderr.contains("3 succeeded (--halt)"), "{}", done.stderr);
}

#[test]
fn little_runs_after_a_halt_and_a_halt_after_the_last_job_is_no_early_end() {
    let fleet = Fleet::at(String::new());
    let run = |numbers: &str| {
        let args = ["run", "-j1", "--halt", "soon,fail=1", "--range", numbers, "--", "false"];
        fleet.synthex(&args).run().expect_code(3).stderr
    };
    let early = run("1-40");
    assert!(early.contains("ended early: 1 did not succeed"), "{early}");
    assert!(early.contains("2 failed"), "{early}");
    let whole = run("1-2");
    assert!(!whole.contains("early") && whole.contains("2 failed"), "{whole}");
}

#[test]
fn an_interrupt_waits_for_what_was_submitted_and_a_second_one_cancels_it() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(2);
    let args = [
        "--results",
        "r.jsonl",
        "--max-in-flight",
        "2",
        "--range",
        "1-50",
        "--",
        "sh",
        "-c",
    ];
    let folder = fleet.folder.path().to_str().unwrap();
    let script = "touch started-{}; while [ ! -e go ]; do sleep 0.01; done";
    let batch = [&["--cwd", folder], &args[..], &[script]].concat();

    let submitter = fleet.batch(&batch).spawn();
    wait_until(PATIENCE, "two run", || {
        fleet.path("started-2").exists() && fleet.path("started-1").exists()
    });
    submitter.signal(Signal::INT);
    submitter.wait_for_line(|line| line.contains("submitting no more"));
    fs::write(fleet.path("go"), "").unwrap();
    let stopped = submitter.wait().expect_code(3);
    let ended = results(&fleet.read("r.jsonl"));
    assert!(
        ended.len() < 50 && ended.values().all(|result| result["status"] == "succeeded"),
        "{stopped:?}"
    );

    fs::remove_file(fleet.path("go")).unwrap();
    let before = ended.len();
    let submitter = fleet.batch(&batch).spawn();
    let started = fleet.path(&format!("started-{}", before + 2));
    wait_until(PATIENCE, "two more run", || started.exists());
    submitter.signal(Signal::INT);
    submitter.wait_for_line(|line| line.contains("submitting no more"));
    submitter.signal(Signal::INT);
    submitter.wait().expect_code(3);
    let ended = results(&fleet.read("r.jsonl"));
    let cancelled = ended.values().filter(|result| result["status"] == "cancelled").count();
    assert_eq!((ended.len(), cancelled), (before + 2, 2));

    fs::write(fleet.path("go"), "").unwrap();
    let rest = fleet.batch(&batch).run().expect_code(3);
    let why = format!("({before} succeeded, 2 cancelled; --retry-failed submits the others again)");
    assert!(rest.stderr.contains(&why), "{}", rest.stderr);
    let retry = [&["--retry-failed"], &batch[..]].concat();
    fleet.batch(&retry).run().expect_code(0);
    let ended = results(&fleet.read("r.jsonl"));
    assert_eq!(ended.len(), 52, "a cancel is not for what is submitted after it");
}

/// How long a batch that was cancelled waits for its jobs to end.
const LEAVES_AFTER: Duration = Duration::from_secs(15);

fn two_jobs(results: &str) -> [&str; 6] {
    ["--results", results, "--range", "1-2", "--", "true"]
}

#[test]
fn a_third_interrupt_leaves_and_the_cancel_stays_in_force() {
    let fleet = Fleet::new();
    fleet.declare();
    let pipe = fleet.path("pipe");
    make_pipe(&pipe);
    let writer = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let nothing = fleet.batch(&["--progress", "json", "pipe"]).spawn();
    nothing.wait_for_line(|line| line.contains("progress"));
    nothing.signal(Signal::INT);
    let told = nothing.wait().expect_code(3).stderr;
    assert!(!told.contains("what was submitted is"), "{told}");
    drop(writer);

    // After a time it leaves by itself: a third signal that came too late is tried again, with another batch.
    let mut files = (1..=5).map(|number| (number, format!("r{number}.jsonl")));
    let left = files.find(|(number, file)| {
        let submitter = fleet.batch(&two_jobs(file)).spawn();
        fleet.waits_for("jobs.default", 2 * number);
        wait_until(PATIENCE, "the journal has them", || {
            fleet.read(&format!("{file}.batch")).lines().count() > 1
        });
        submitter.signal(Signal::INT);
        submitter.wait_for_line(|line| line.contains("once more to cancel it"));
        let cancelled = Instant::now();
        submitter.signal(Signal::INT);
        submitter.wait_for_line(|line| line.contains("once more to leave: the cancel stays in force"));
        fleet.waits_for("control.log", *number);
        submitter.signal(Signal::INT);
        let told = submitter.wait().expect_code(3).stderr;
        let in_time = cancelled.elapsed() < LEAVES_AFTER;
        let has_left = told.contains("SIGINT a third time: leaving");
        assert!(has_left || !in_time, "{told}");
        has_left
    });
    let (_, file) = left.expect("the third signal makes it leave");
    let _worker = fleet.worker(2);
    fleet.batch(&two_jobs(&file)).run().expect_code(3);
    let ended = results(&fleet.read(&file));
    let cancelled = ended.values().filter(|result| result["status"] == "cancelled").count();
    assert_eq!((ended.len(), cancelled), (2, 2));
}

#[test]
fn a_bad_line_is_skipped_or_stops_it() {
    let fleet = Fleet::new();
    let _worker = fleet.worker(2);
    fs::write(
        fleet.path("jobs.jsonl"),
        "{\"command\":[\"true\"]}\n{\"comand\":[]}\n{\"command\":[\"true\"]}\n",
    )
    .unwrap();
    let args = ["--results", "skip.jsonl", "jobs.jsonl"];
    let skipped = fleet.batch(&args).run().expect_code(3);
    assert!(
        skipped.stderr.contains("(jobs.jsonl:2) rejected: "),
        "{}",
        skipped.stderr
    );
    let ended = results(&fleet.read("skip.jsonl"));
    assert_eq!((ended.len(), &ended[&(2, 1)]["status"]), (3, &json!("rejected")));
    let error = ended[&(2, 1)]["error"]["message"].as_str().unwrap();
    assert!(error.contains("comand"), "{error}");

    let args = ["--results", "stop.jsonl", "--on-bad-line", "stop", "jobs.jsonl"];
    let stopped = fleet.batch(&args).run().expect_code(3);
    assert!(stopped.stderr.contains("stopped at jobs.jsonl:2"), "{}", stopped.stderr);
    assert_eq!(results(&fleet.read("stop.jsonl")).len(), 1);
}
