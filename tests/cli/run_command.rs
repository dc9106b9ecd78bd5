//! `synthex run -- CMD`: the command is run as if the caller had started it, and its job is accounted for.

use serde_json::{Value, json};

use crate::bench::{Bench, once_up, only, results, run};
use crate::support::cli::{Cli, Finished};

/// Runs a shell script as the one job, with these flags.
fn script(flags: &[&str], script: &str) -> Cli {
    run(&[flags, &["--", "sh", "-c", script]].concat())
}

/// The only result of a job with these flags; with `--json` nothing else is printed anywhere.
#[track_caller]
fn result(flags: &[&str], text: &str) -> Value {
    let finished = script(&[&["--json"], flags].concat(), text).run();
    assert_eq!(finished.stderr, "");
    only(results(&finished))
}

/// The time in this field, in milliseconds.
#[track_caller]
fn millis(result: &Value, field: &str) -> i64 {
    let time: jiff::Timestamp = result[field].as_str().expect(field).parse().unwrap();
    time.as_millisecond()
}

#[test]
fn output_is_passed_through_byte_for_byte() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(40_000).collect();
    let file = bench.file("bytes", &bytes);
    let finished = run(&["--", "cat", &file]).run().expect_code(0);
    assert!(finished.stdout_bytes == bytes, "stdout is not what the command wrote");
    assert_eq!(finished.stderr, "", "a success needs no words");
    // No line is made of what is none, and each stream stays itself.
    let finished = script(&[], "printf out; printf err >&2").run().expect_code(0);
    assert_eq!((&*finished.stdout, &*finished.stderr), ("out", "err"));
}

#[test]
fn the_command_sees_the_caller_s_environment_and_directory() {
    let bench = Bench::new();
    let finished = script(&[], r#"echo "$COLOUR $SYNTHEX_POOL $SYNTHEX_ATTEMPT"; pwd"#)
        .env("COLOUR", "red")
        .current_dir(bench.path(""))
        .run()
        .expect_code(0);
    let folder = bench.path("").canonicalize().unwrap();
    assert_eq!(finished.stdout, format!("red default 1\n{}\n", folder.display()));
}

#[test]
fn the_command_is_scheduled_as_its_caller_is() {
    // Whoever starts it with less of a claim means the commands.
    let scheduled = "echo $(nice) $(chrt --pid $$ | head -1 | sed 's/.*: //')";
    for (how, wanted) in [
        (&["nice", "-n", "0"][..], "0 SCHED_OTHER"),
        (&["nice", "-n", "7"], "7 SCHED_OTHER"),
        (&["chrt", "--batch", "0"], "0 SCHED_BATCH"),
    ] {
        let synthex = [env!("CARGO_BIN_EXE_synthex"), "run", "--", "sh", "-c", scheduled];
        let finished = Cli::program(how[0], how[1..].iter().chain(&synthex))
            .run()
            .expect_code(0);
        assert_eq!(finished.stdout, format!("{wanted}\n"), "{how:?}");
    }
}

#[test]
fn a_warning_does_not_change_how_the_command_is_scheduled() {
    let bench = Bench::new();
    // The 19th field is the nice value of the shell itself; those it starts have it anew.
    let script = "trap 'cut -d\" \" -f19 /proc/$$/stat; exit 0' USR1; while :; do sleep 0.02; done";
    let result = once_up(|seconds| {
        let job = json!({
            "command": ["sh", "-c", script], "timeout": "60s", "warn_before": format!("{}s", 60 - seconds),
            "warn_signal": "USR1",
        });
        let file = bench.file("job.jsonl", format!("{job}\n"));
        only(results(&run(&["--json", &file]).run()))
    });
    assert_eq!(
        (&result["ended_by"], &result["stdout"]["text"]),
        (&json!("warn_signal"), &json!("0\n"))
    );
}

#[test]
fn with_a_pool_file_the_command_sees_what_the_pool_gives() {
    let bench = Bench::new();
    let pool = |timeout: &str| {
        let text = format!("pool = 'mine'\ntimeout = '{timeout}'\n[env]\nSHAPE = 'round'\n");
        bench.file("pool.toml", text)
    };
    let finished = script(&["--pool", &pool("60s")], r#"echo "<$COLOUR> $SHAPE $SYNTHEX_POOL""#)
        .env("COLOUR", "red")
        .run()
        .expect_code(0);
    assert_eq!(finished.stdout, "<> round mine\n");
    let limited = result(&["--pool", &pool("200ms")], "sleep 60");
    assert_eq!(
        (&limited["status"], &limited["worker"]["pool"]),
        (&json!("timed_out"), &json!("mine"))
    );
}

#[test]
fn the_command_knows_its_job_and_its_deadline() {
    let before = jiff::Timestamp::now();
    let known = result(
        &["--id", "job.7", "--timeout", "100s"],
        r#"echo "$SYNTHEX_JOB_ID"; echo "$SYNTHEX_DEADLINE""#,
    );
    let lines: Vec<&str> = known["stdout"]["text"].as_str().unwrap().lines().collect();
    assert_eq!((lines[0], &known["job_id"]), ("job.7", &json!("job.7")));
    let deadline: jiff::Timestamp = lines[1].parse().unwrap();
    let counted_from = deadline.as_millisecond() - 100_000;
    let possible = before.as_millisecond()..=millis(&known, "started_at");
    assert!(possible.contains(&counted_from), "{counted_from} in {possible:?}");
}

#[test]
fn success_is_0_and_anything_else_is_3() {
    assert_eq!(run(&["--", "true"]).run().code, Some(0));
    let failed = script(&[], "echo so far; exit 7").run().expect_code(3);
    assert_eq!(failed.stdout, "so far\n");
    assert!(failed.stderr.starts_with("synthex: job ") && failed.stderr.contains("failed with exit code 7"));
    let cases: [(&[&str], &str); 4] = [
        (
            &["--", "no-such-program"],
            r#"not_started: program "no-such-program" not found in PATH"#,
        ),
        (
            &["--cwd", "/no/such/folder", "--", "true"],
            r#"not_started: cwd "/no/such/folder" does not exist"#,
        ),
        (
            &["--timeout", "25h", "--", "true"],
            r#"rejected: timeout: expected at most "24h" (the pool's max_timeout)"#,
        ),
        (
            &["--timeout", "100ms", "--", "sleep", "60"],
            "timed_out: ran longer than its timeout",
        ),
    ];
    for (args, words) in cases {
        let finished = run(args).run().expect_code(3);
        assert!(finished.stderr.contains(words), "{args:?}: {}", finished.stderr);
        assert_eq!(finished.stdout, "", "{args:?}");
    }
}

#[test]
fn json_is_one_line_on_stdout_and_nothing_else() {
    for (text, code) in [("echo out; echo err >&2", 0), ("echo out; echo err >&2; exit 9", 3)] {
        let finished = script(&["--json"], text).run().expect_code(code);
        assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stdout);
        assert!(finished.stdout.ends_with('\n'));
        assert_eq!(finished.stderr, "");
        let result = only(results(&finished));
        assert_eq!(
            result["stdout"],
            json!({"text": "out\n", "encoding": "utf-8", "bytes": 4, "truncated_bytes": 0})
        );
        assert_eq!(result["stderr"]["text"], "err\n");
        assert_eq!(result["final"], true);
    }
}

#[test]
fn output_that_is_no_text_is_base64_in_json() {
    let result = result(&[], r"printf 'a\377b'");
    assert_eq!(
        result["stdout"],
        json!({"text": "Yf9i", "encoding": "base64", "bytes": 3, "truncated_bytes": 0})
    );
}

#[test]
fn flags_set_what_they_name() {
    let result = result(
        &[
            "--env", "A=1", "--env", "B=x=y", "--env", "EMPTY=", "--cwd", "/usr", "--label", "team=a b", "--label",
            "n=",
        ],
        r#"echo "$A,$B,<${EMPTY-unset}>,$(pwd)""#,
    );
    assert_eq!(result["stdout"]["text"], "1,x=y,<>,/usr\n");
    assert_eq!(result["labels"], json!({"team": "a b", "n": ""}));
}

#[test]
fn a_timeout_ends_the_command_the_way_it_was_asked_to() {
    let asked = once_up(|seconds| {
        let flags = [
            "--timeout",
            &format!("{seconds}s"),
            "--term-signal",
            "INT",
            "--kill-grace",
            "30s",
        ];
        let script = "trap 'echo bye; exit 5' INT; echo so far; while :; do sleep 0.05; done";
        result(&flags, script)
    });
    assert_eq!(
        (&asked["status"], &asked["exit_code"]),
        (&json!("timed_out"), &json!(5))
    );
    assert_eq!(asked["stdout"]["text"], "so far\nbye\n");

    let forced = once_up(|seconds| {
        let flags = ["--timeout", &format!("{seconds}s"), "--kill-grace", "100ms"];
        result(&flags, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    });
    assert_eq!(
        (&forced["status"], &forced["signal"]),
        (&json!("timed_out"), &json!("SIGKILL"))
    );
    assert!(forced["duration_ms"].as_u64().unwrap() >= 1100, "{forced}");
}

#[test]
fn stdin_is_what_was_asked_for_and_else_empty() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..=255).rev().cycle().take(5_000).collect();
    let file = bench.file("input", &bytes);
    let from_file = run(&["--stdin", &file, "--", "cat"]).run().expect_code(0);
    assert!(from_file.stdout_bytes == bytes, "stdin is not the file");
    let from_ours = run(&["--stdin", "-", "--", "cat"])
        .stdin(bytes.clone())
        .run()
        .expect_code(0);
    assert!(from_ours.stdout_bytes == bytes, "stdin is not ours");
    let without = run(&["--", "cat"]).stdin("not for the command").run().expect_code(0);
    assert_eq!(without.stdout, "");
}

#[test]
fn a_command_that_does_not_read_its_stdin_is_not_hurt() {
    let bench = Bench::new();
    let file = bench.file("input", vec![b'x'; 500_000]);
    let finished = run(&["--stdin", &file, "--", "true"]).run().expect_code(0);
    assert_eq!(finished.stderr, "");
}

#[test]
fn output_over_the_limit_keeps_its_head_and_tail_and_says_so() {
    let flags = ["--max-output", "20B"];
    let kept = result(&flags, "seq 1 1000");
    assert_eq!(kept["stdout"]["text"], "1\n2\n3\n4\n5\n\n999\n1000\n");
    assert_eq!(
        (&kept["stdout"]["bytes"], &kept["stdout"]["truncated_bytes"]),
        (&json!(3893), &json!(3873))
    );
    let finished = script(&flags, "seq 1 1000").run().expect_code(0);
    let note = "synthex: 3873 bytes from the middle of stdout were not kept; see --max-output\n";
    assert_eq!(finished.stderr, note);
}

#[test]
fn a_job_that_is_tried_again_has_a_result_for_each_attempt() {
    let finished = script(&["--json", "--max-attempts", "3"], r#"[ "$SYNTHEX_ATTEMPT" = 2 ]"#)
        .run()
        .expect_code(0);
    let results = results(&finished);
    let told: Vec<Value> = results
        .iter()
        .map(|one| json!([one["attempt"], one["status"], one["final"]]))
        .collect();
    assert_eq!(told, [json!([1, "failed", false]), json!([2, "succeeded", true])]);
    assert_eq!(results[0]["job_id"], results[1]["job_id"]);
}

#[test]
fn a_retry_is_announced_to_people() {
    let finished = script(&["--max-attempts", "2"], "exit 4").run().expect_code(3);
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0].ends_with("failed with exit code 4 (attempt 1); it will be tried again"),
        "{lines:?}"
    );
    assert!(lines[1].ends_with("failed with exit code 4 (attempt 2)"), "{lines:?}");
}

#[test]
fn a_job_starts_no_earlier_than_asked() {
    let not_before = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(1200);
    let result = result(&["--not-before", &not_before.to_string()], "true");
    assert_eq!(result["status"], "succeeded");
    let early = not_before.as_millisecond() - millis(&result, "started_at");
    assert!(early <= 0, "{early} ms too early");
}

#[test]
fn a_job_that_has_expired_is_not_started() {
    let bench = Bench::new();
    let trace = bench.arg("trace");
    let flags = ["--expires-at", "2020-01-31T12:00:00+01:00"];
    let expired = result(&flags, &format!("touch {trace}"));
    assert_eq!(
        (&expired["status"], &expired["error"]["kind"]),
        (&json!("expired"), &json!("expired"))
    );
    assert_eq!(expired["started_at"], Value::Null);
    assert!(!bench.path("trace").exists(), "it was started");
    let told: Finished = script(&flags, "true").run().expect_code(3);
    assert!(
        told.stderr
            .contains("expired at 2020-01-31T11:00:00Z, before it could start"),
        "{}",
        told.stderr
    );
}
