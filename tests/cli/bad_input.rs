//! Bad jobs: each ends with its own result, which names what is wrong, and harms no other.

use std::iter::repeat_n;

use serde_json::{Value, json};

use crate::bench::{Bench, result_of, results, run};

/// A line that is no good job, and what its result has to say; of the message, how it begins.
struct Bad {
    line: Vec<u8>,
    status: &'static str,
    kind: &'static str,
    message: &'static str,
}

/// Jobs that are refused for what is in them: the line, and how the message begins.
const INVALID: &[(&[u8], &str)] = &[
    (
        b"{\"command\":[\"echo\",\"\xff\"]}",
        "body: expected UTF-8, got an invalid byte at offset 20",
    ),
    (b"{\"command\":[\"tr\0ue\"]}", "body: not valid JSON: control character"),
    (br#"{"command":["true""#, "body: not valid JSON: EOF while parsing"),
    (
        br#"{"command":["true"]} and more"#,
        "body: not valid JSON: trailing characters",
    ),
    (br#"["true"]"#, "body: expected a JSON object, got an array"),
    (b"echo hello", "body: not valid JSON: expected value at column 1"),
    (b"null", "body: expected a JSON object, got null"),
    (b"{}", "command: expected one of command and script, got neither"),
    (br#"{"command":[]}"#, "command: expected"),
    (
        br#"{"command":["true"],"colour":"red"}"#,
        "colour: unknown field; allowed here: id, command, script",
    ),
    (
        br#"{"command":["true"],"retry":{"often":2}}"#,
        "retry.often: unknown field; allowed here: max_attempts",
    ),
    (
        br#"{"command":["true"],"script":"true"}"#,
        "script: expected one of command and script, got both",
    ),
    (
        br#"{"command":["true"],"timeout":"0"}"#,
        r#"timeout: expected a duration such as "30s", got "0""#,
    ),
    (
        br#"{"command":["true"],"timeout":"0s"}"#,
        r#"timeout: expected a duration such as "30s", got "0s""#,
    ),
    (
        br#"{"command":["true"],"timeout":30}"#,
        r#"timeout: expected a duration such as "30s", got 30"#,
    ),
    (
        br#"{"command":["true"],"term_signal":"FOO"}"#,
        r#"term_signal: expected a signal such as "TERM", got "FOO""#,
    ),
    (
        br#"{"command":["true"],"limits":{"memory":"lots"}}"#,
        r#"limits.memory: expected a size such as "512MiB", got "lots""#,
    ),
    (
        br#"{"command":["true"],"cwd":"tmp"}"#,
        r#"cwd: expected an absolute path, got "tmp""#,
    ),
    (
        br#"{"command":["tr\u0000ue"]}"#,
        "command[0]: expected text without NUL, got one at byte 2",
    ),
    (
        br#"{"script":"true\u0000"}"#,
        "script: expected text without NUL, got one at byte 4",
    ),
    (
        br#"{"command":["true"],"env":{"A":"\u0000"}}"#,
        "env.A: expected text without NUL, got one at byte 0",
    ),
    (br#"{"id":"a b","command":["true"]}"#, "id: expected 1 to 128 letters"),
];

/// Jobs that are good, and cannot be run here: the line, status and kind, and how the message begins.
const IMPOSSIBLE: &[(&str, [&str; 2], &str)] = &[
    (
        r#"{"command":["true"],"timeout":"25h"}"#,
        ["rejected", "policy"],
        r#"timeout: expected at most "24h" (the pool's max_timeout), got "25h""#,
    ),
    (
        r#"{"command":["true"],"cwd":"/no/such/folder"}"#,
        ["not_started", "cwd_missing"],
        r#"cwd "/no/such/folder" does not exist"#,
    ),
    (
        r#"{"command":["no-such-program"]}"#,
        ["not_started", "program_missing"],
        r#"program "no-such-program" not found in PATH"#,
    ),
    (
        r#"{"command":["/tmp"]}"#,
        ["not_started", "not_executable"],
        r#"program "/tmp" is a directory"#,
    ),
    (
        r#"{"command":["/etc/passwd"]}"#,
        ["not_started", "not_executable"],
        r#"program "/etc/passwd" may not be executed"#,
    ),
];

const LARGE: usize = 20 * 1024 * 1024;

/// Twenty mebibytes that would be a job, were they not so many.
fn large() -> Vec<u8> {
    let mut line = br#"{"id":"large","command":["echo",""#.to_vec();
    line.extend(repeat_n(b'x', LARGE));
    line.extend(br#""]}"#);
    line
}

/// Every bad input that the contract speaks of, but for [`large`].
fn all() -> Vec<Bad> {
    let invalid = INVALID.iter().map(|(line, message)| Bad {
        line: line.to_vec(),
        status: "rejected",
        kind: "invalid_job",
        message,
    });
    let impossible = IMPOSSIBLE.iter().map(|(line, [status, kind], message)| Bad {
        line: line.as_bytes().to_vec(),
        status,
        kind,
        message,
    });
    let too_large = Bad {
        line: large(),
        status: "rejected",
        kind: "too_large",
        message: "body: expected at most 1048576 bytes, got more",
    };
    invalid.chain(impossible).chain([too_large]).collect()
}

#[test]
fn each_bad_job_ends_with_its_status_and_names_what_is_wrong() {
    for bad in all() {
        let Bad {
            line,
            status,
            kind,
            message,
        } = bad;
        let result = result_of(line);
        assert_eq!(result["status"], status, "{result}");
        let error = &result["error"];
        assert!(
            error["message"].as_str().unwrap().starts_with(message),
            "{error} does not say: {message}"
        );
        assert_eq!(error["kind"], kind, "{error}");
        assert_eq!(
            (&result["final"], &result["attempt"]),
            (&json!(true), &json!(1)),
            "{result}"
        );
        assert_eq!(
            (&result["started_at"], &result["duration_ms"]),
            (&Value::Null, &json!(0)),
            "{result}"
        );
    }
}

#[test]
fn bad_lines_are_named_by_file_and_line_and_all_others_run() {
    let bench = Bench::new();
    let all = all();
    let good = br#"{"command":["echo","good"]}"#;
    let lines: Vec<Vec<u8>> = all.iter().flat_map(|bad| [good.to_vec(), bad.line.clone()]).collect();
    let file = bench.file("jobs.jsonl", lines.join(&b'\n'));
    let finished = run(&[&file]).run().expect_code(3);
    assert_eq!(finished.stdout, "good\n".repeat(all.len()));
    for (index, Bad { status, message, .. }) in all.iter().enumerate() {
        let told = format!(" ({file}:{}) {status}: {message}", 2 * index + 2);
        let line = finished.stderr.lines().find(|line| line.contains(&told));
        let line = line.unwrap_or_else(|| panic!("nobody is told{told}: {}", finished.stderr));
        assert!(line.len() < 1000, "a message is no place for the input: {line}");
    }
    let json = run(&["--json", &file]).run().expect_code(3);
    assert_eq!(results(&json).len(), 2 * all.len(), "each line has a result");
    assert_eq!(json.stderr, "");
}

#[test]
fn a_line_that_is_far_too_large_is_never_held() {
    let running = run(&["--json", "-"]).stdin(large()).spawn();
    let pid = running.pid();
    let mut peak = 0;
    while running.is_running() {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = line.map_or(peak, |kib| kib.parse().unwrap());
    }
    let finished = running.wait().expect_code(3);
    assert_eq!(
        results(&finished)[0]["job_id"],
        "large",
        "an id in front of the fault is read"
    );
    assert!(
        (1_000..35_000).contains(&peak),
        "{peak} KiB for a line of {LARGE} bytes"
    );
}

#[test]
fn a_secret_in_a_bad_job_is_never_repeated() {
    let lines = [
        r#"{"command":["login","hunter2",5]}"#,
        r#"{"command":["true"],"env":{"TOKEN=hunter2":""}}"#,
        r#"{"command":["true"],"env":{"TOKEN":"hunter2\u0000"}}"#,
        r#"{"command":["true"],"env":"hunter2"}"#,
        r#"{"command":["true"],"stdin_base64":"hunter2!"}"#,
        r#"{"script":["hunter2"]}"#,
        r#"{"command":["true"],"stdin":"hunter2","stdin_base64":"aHVudGVyMg=="}"#,
    ];
    for line in lines {
        let finished = run(&["--json", "-vv", "-"]).stdin(line).run().expect_code(3);
        assert_eq!(results(&finished)[0]["status"], "rejected", "{line}");
        for printed in [&finished.stdout, &finished.stderr] {
            assert!(!printed.contains("hunter2"), "{line}: {printed}");
        }
    }
}
