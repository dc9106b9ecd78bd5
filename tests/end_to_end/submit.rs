//! `synthex submit`: one job from a shell, which ends as the job did.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::bench::{Bench, Gate, Worker, assert_has};
use crate::support::cli::Cli;
use crate::support::process::Signal;

fn serving() -> (Bench, Worker) {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 4\nmax_timeout = \"1h\"\n");
    let worker = bench.worker(&[&pool]);
    (bench, worker)
}

/// `synthex submit --wait` with these arguments.
fn wait(bench: &Bench, args: &[&str]) -> Cli {
    bench.synthex(&[&["submit", "--wait"], args].concat())
}

#[test]
fn submit_exits_as_the_job_did() {
    let (bench, _worker) = serving();
    let text = bench.path("text");
    fs::write(&text, "no program").expect("the folder is there");
    fs::set_permissions(&text, fs::Permissions::from_mode(0o644)).expect("the file is ours");
    let text = text.to_str().expect("a temporary path is text");
    let cases: [(&[&str], i32, &str); 9] = [
        (&["--", "true"], 0, ""),
        (&["--", "sh", "-c", "exit 7"], 7, ""),
        (&["--", "sh", "-c", "kill -TERM $$"], 143, "SIGTERM"),
        (&["--", "sh", "-c", "kill -KILL $$"], 137, "SIGKILL"),
        (&["--timeout", "200ms", "--", "sleep", "60"], 124, "timed_out"),
        (&["--", text], 126, text),
        (&["--", "no-such-program"], 127, "no-such-program"),
        (&["--expires-at", "2020-01-01T00:00:00Z", "--", "true"], 125, "expired"),
        (&["--timeout", "2h", "--", "true"], 125, "max_timeout"),
    ];
    let running: Vec<_> = cases.iter().map(|(args, ..)| wait(&bench, args).spawn()).collect();
    for ((args, code, says), running) in cases.iter().zip(running) {
        let ended = running.wait().expect_code(*code);
        assert_eq!(ended.stdout, "", "{args:?}");
        let said = if says.is_empty() {
            ended.stderr.is_empty()
        } else {
            ended.stderr.contains(says)
        };
        assert!(said, "{args:?}: {}", ended.stderr);
    }
}

#[test]
fn submit_gives_the_output_byte_for_byte() {
    let (bench, _worker) = serving();
    let bytes: Vec<u8> = (0..=255).cycle().take(4096).collect();
    let done = wait(&bench, &["--stdin", "-", "--", "cat"])
        .stdin(bytes.clone())
        .run()
        .expect_code(0);
    assert!(
        done.stdout_bytes == bytes,
        "{} bytes came back",
        done.stdout_bytes.len()
    );
    let script = "printf 'no newline'; printf 'to stderr\\n' >&2";
    let done = wait(&bench, &["--", "sh", "-c", script]).run().expect_code(0);
    assert_eq!(
        (done.stdout.as_str(), done.stderr.as_str()),
        ("no newline", "to stderr\n")
    );
}

#[test]
fn submit_gives_up_waiting_in_time_and_the_job_goes_on() {
    let (bench, _worker) = serving();
    bench.listen();
    let id = format!("long-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    let job = gate.job();
    let script = job["script"].as_str().expect("it is a script");
    let args = ["--id", &id, "--wait-timeout", "500ms", "--", "sh", "-c", script];
    let ended = wait(&bench, &args).run().expect_code(75);
    assert!(
        ended.stderr.contains(&id) && ended.stderr.contains("500ms"),
        "{}",
        ended.stderr
    );
    gate.started();
    gate.open();
    let result = bench.result().json();
    assert_has(&result, &json!({"job_id": id, "status": "succeeded"}));
}

#[test]
fn submit_that_is_interrupted_says_that_the_job_goes_on_and_under_which_name() {
    let (bench, _worker) = serving();
    for (flag, signal) in [("--wait", Signal::INT), ("--follow", Signal::TERM)] {
        let id = format!("left-{}-{}", bench.namespace, &flag[2..]);
        let gate = Gate::new(&bench, &id);
        let job = gate.job();
        let script = job["script"].as_str().expect("it is a script");
        let args = ["submit", flag, "--id", &id, "--", "sh", "-c", script];
        let waiting = bench.synthex(&args).spawn();
        gate.started();
        waiting.signal(signal);
        let ended = waiting.wait();
        // As it ends that has caught nothing, so that a shell's loop ends too.
        assert_eq!(ended.signal, Some(signal.as_raw()), "{ended:?}");
        // That it goes on for sure is known once the broker has confirmed it.
        let words = format!(" on: `synthex logs -f {id}`, `synthex cancel {id}`\n");
        assert!(
            ended.stderr.starts_with(&format!("synthex: job {id} ")),
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.ends_with(&words), "{}", ended.stderr);
        gate.open();
    }
}

#[test]
fn submit_names_the_queue_of_a_pool_that_is_not_there() {
    let (bench, _worker) = serving();
    for args in [
        &["submit", "--pool", "nobody", "--", "true"][..],
        &["submit", "--wait", "--pool", "nobody", "--", "true"],
    ] {
        let ended = bench.synthex(args).run().expect_code(78);
        assert!(ended.stderr.contains(&bench.named("jobs.nobody")), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    assert_eq!(bench.ready("dead"), 0, "it was not published");
}

#[test]
fn submit_without_wait_prints_the_id() {
    let (bench, _worker) = serving();
    bench.listen();
    let done = bench
        .synthex(&["submit", "--label", "team=blue", "--", "true"])
        .run()
        .expect_code(0);
    assert_eq!(done.stderr, "");
    let id = done.stdout.strip_suffix('\n').expect("a line");
    assert!(!id.contains(char::is_whitespace), "{id:?}");
    assert_has(
        &bench.result().json(),
        &json!({"job_id": id, "status": "succeeded", "labels": {"team": "blue"}}),
    );

    let done = bench
        .synthex(&["submit", "--json", "--id", "mine", "--", "true"])
        .run()
        .expect_code(0);
    assert_eq!(done.json_lines(), [json!({"job_id": "mine", "pool": "default"})]);
    assert_has(
        &bench.result().json(),
        &json!({"job_id": "mine", "status": "succeeded"}),
    );
}

#[test]
fn submit_prints_the_result_as_json_and_still_exits_as_the_job_did() {
    let (bench, _worker) = serving();
    let done = wait(
        &bench,
        &["--json", "--id", "mine", "--", "sh", "-c", "echo out; exit 4"],
    )
    .run()
    .expect_code(4);
    let results = done.json_lines();
    assert_eq!(results.len(), 1);
    assert_has(
        &results[0],
        &json!({"job_id": "mine", "status": "failed", "exit_code": 4, "final": true}),
    );
    assert_eq!(results[0]["stdout"]["text"], "out\n");
}

#[test]
fn submit_waits_for_the_last_attempt_and_tells_of_the_others() {
    let (bench, _worker) = serving();
    let script = "echo attempt $SYNTHEX_ATTEMPT; [ $SYNTHEX_ATTEMPT = 2 ]";
    let done = wait(&bench, &["--max-attempts", "2", "--", "sh", "-c", script])
        .run()
        .expect_code(0);
    assert_eq!(done.stdout, "attempt 2\n");
    assert!(
        done.stderr.contains("attempt 1") && done.stderr.contains("tried again"),
        "{}",
        done.stderr
    );
}

#[test]
fn submit_gives_up_a_broker_that_is_not_there() {
    let mut bench = Bench::new();
    bench.url = "amqp://guest:hush@127.0.0.1:1/%2f".to_owned();
    let ended = bench
        .synthex(&["submit", "--connect-timeout", "2s", "--", "true"])
        .run()
        .expect_code(69);
    assert!(ended.stderr.contains("127.0.0.1:1"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("hush"), "{}", ended.stderr);
}
