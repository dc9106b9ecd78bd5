//! Traces and logs of a local run, which needs neither a broker nor a receiver for most of it.

use serde_json::Value;

use crate::bench::run;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_run_is_a_part_of_the_trace_that_it_was_started_in() {
    let script = ["--", "sh", "-c", "echo $TRACEPARENT $TRACESTATE"];
    let caller = |parent: &str| {
        run(&script)
            .env("TRACEPARENT", parent)
            .env("TRACESTATE", "a=1")
            .run()
            .expect_code(0)
    };
    assert_eq!(caller(PARENT).stdout, format!("{PARENT} a=1\n"));
    assert_eq!(
        caller("mine").stdout,
        "mine a=1\n",
        "what is none is the caller's own variable"
    );
}

#[test]
fn a_jobs_end_is_one_line_that_says_all_in_text_and_in_json() {
    let log = |format: &str| {
        let flags = ["--log-format", format, "-v", "-v", "--", "sh", "-c", "exit 3"];
        let ended = run(&flags).env("TRACEPARENT", PARENT).run().expect_code(3);
        let lines: Vec<String> = ended
            .stderr
            .lines()
            .filter(|line| line.contains("job ended"))
            .map(str::to_owned)
            .collect();
        assert_eq!(lines.len(), 1, "{}", ended.stderr);
        lines[0].clone()
    };
    let json: Value = serde_json::from_str(&log("json")).unwrap();
    for (field, value) in [
        ("level", "INFO"),
        ("message", "job ended"),
        ("pool", "default"),
        ("status", "failed"),
        ("trace_id", &PARENT[3..35]),
    ] {
        assert_eq!(json[field], value, "{field}");
    }
    assert_eq!(json["attempt"], 1);
    assert!(
        json["duration_ms"].is_u64() && json["job.id"].as_str().is_some_and(|id| id.len() == 36),
        "{json}"
    );
    let text = log("text");
    for part in [
        "INFO job ended",
        "pool=\"default\"",
        "job.id=",
        "attempt=1",
        "status=failed",
        "duration_ms=",
        "trace_id=4bf9",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn an_address_or_headers_that_are_none_are_refused_and_not_repeated() {
    for (variable, value, told) in [
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://me:hush@localhost:4318",
            "--otlp-endpoint: expected",
        ),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://hush.example", "without TLS"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "a=b,hush",
            "--otlp-headers: expected headers as name=value",
        ),
        (
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "hush",
            "--otlp-timeout: expected a duration",
        ),
        (
            "OTEL_TRACES_SAMPLER_ARG",
            "2",
            "--trace-ratio: expected a number from 0 to 1",
        ),
    ] {
        let refused = run(&["--", "true"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
            .env(variable, value)
            .run()
            .expect_code(78);
        assert!(
            refused.stderr.contains(told) && !refused.stderr.contains("hush"),
            "{}",
            refused.stderr
        );
    }
    // As OpenTelemetry has it, an empty variable is none; and what other programs are told is not looked at.
    run(&["--", "true"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        .env("OTEL_TRACES_SAMPLER_ARG", "endpoint=http://sampler")
        .env("OTEL_EXPORTER_OTLP_TIMEOUT", "")
        .run()
        .expect_code(0);
}
