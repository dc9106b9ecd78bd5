use serde_json::json;

use super::super::screen::Screen;
use super::*;
use crate::batch::Name;

/// What is written for a job with this output: stream by stream.
fn printed(mut printer: Printer, status: &str, stdout: &str, stderr: &str) -> Vec<(Stream, String)> {
    let output =
        |text: &str, gone: u64| json!({"text": text, "encoding": "utf-8", "bytes": 1, "truncated_bytes": gone});
    let result = json!({
        "job_id": "j", "attempt": 1, "status": status, "final": true, "exit_code": 1,
        "stdout": output(stdout, 0), "stderr": output(stderr, if stderr.is_empty() { 0 } else { 9 }),
        "finished_at": "2026-11-26T03:42:01Z", "duration_ms": 9,
        "worker": {"id": "w", "host": "h", "pool": "p", "version": "v"},
    });
    let result = serde_json::from_value(result).unwrap();
    let finished = Finished {
        submission: 1,
        seq: 1,
        name: &Name {
            origin: "f:3".to_owned(),
            title: "echo x".to_owned(),
            fields: Some("x".to_owned()),
        },
        result: &result,
        json: b"{}",
    };
    printer.take(&finished).unwrap();
    let text = |(stream, bytes)| (stream, String::from_utf8(bytes).unwrap());
    printer.parts.into_iter().map(text).collect()
}

fn printer(shows: Shows, tag: bool, is_single: bool) -> Printer {
    Printer::new(Screen::nothing().terminal(), shows, tag, is_single)
}

#[test]
fn output_goes_where_the_command_wrote_it() {
    assert_eq!(
        printed(printer(Shows::Output, false, false), "failed", "out\nmore", "err\n"),
        [
            (Stream::Stdout, "out\nmore".to_owned()),
            (
                Stream::Stderr,
                "err\nsynthex: 9 bytes from the middle of stderr were not kept; see --max-output\n\
                 synthex: job j (f:3) failed with exit code 1 (attempt 1)\n"
                    .to_owned()
            ),
        ]
    );
    let single = printed(printer(Shows::Output, false, true), "failed", "", "");
    assert!(single[0].1.starts_with("synthex: job j failed"), "{single:?}");
}

#[test]
fn tagged_lines_begin_with_what_the_template_was_filled_with_and_end() {
    assert_eq!(
        printed(printer(Shows::Output, true, false), "succeeded", "a\n\nb", ""),
        [(Stream::Stdout, "x\ta\nx\t\nx\tb\n".to_owned())]
    );
    assert_eq!(printed(printer(Shows::Output, true, false), "succeeded", "", ""), []);
}

#[test]
fn failures_alone_are_told_where_the_output_is_elsewhere() {
    assert_eq!(
        printed(printer(Shows::Failures, false, false), "failed", "out\n", "err\n"),
        [(
            Stream::Stderr,
            "synthex: job j (f:3) failed with exit code 1 (attempt 1)\n".to_owned()
        )]
    );
    assert_eq!(
        printed(printer(Shows::Failures, false, false), "succeeded", "out\n", ""),
        []
    );
    assert_eq!(
        printed(printer(Shows::Nothing, false, false), "failed", "out\n", ""),
        []
    );
}

#[test]
fn json_is_one_result_a_line_and_nothing_else() {
    assert_eq!(
        printed(printer(Shows::Json, false, false), "failed", "out", "err"),
        [(Stream::Stdout, "{}\n".to_owned())]
    );
}
