use serde_json::{Value, json};

use super::*;
use crate::batch::Name;

fn result(more: &Value) -> JobResult {
    let empty = json!({"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0});
    let mut result = json!({
        "job_id": "j", "attempt": 1, "status": "succeeded", "final": true, "exit_code": 0,
        "stdout": {"text": "ab\n", "encoding": "utf-8", "bytes": 3, "truncated_bytes": 0}, "stderr": empty,
        "started_at": "2026-11-26T03:42:00.333Z", "finished_at": "2026-11-26T03:42:01.5Z", "duration_ms": 9,
        "worker": {"id": "w", "host": "h\tx", "pool": "p", "version": "v"},
    });
    for (name, value) in more.as_object().unwrap() {
        result[name] = value.clone();
    }
    result.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    serde_json::from_value(result).unwrap()
}

fn line(seq: u64, title: &str, more: &Value) -> String {
    let mut lines = String::new();
    write_line(
        &mut lines,
        &Finished {
            submission: 1,
            seq,
            name: &Name {
                title: title.to_owned(),
                ..Name::default()
            },
            result: &result(more),
            json: b"",
        },
    );
    lines
}

#[test]
fn a_line_is_one_of_gnu_parallel() {
    // Of GNU parallel 20221122: "1\t:\t1795664120.333\t     0.009\t0\t4\t0\t0\techo 'A b'"
    let said = line(1, "echo 'A b'", &json!({}));
    assert_eq!(said, "1\th x\t1795664520.333\t     0.009\t0\t3\t0\t0\techo 'A b'\n");
    let failed = line(
        2,
        "a\n\tb",
        &json!({"exit_code": 3, "status": "failed", "duration_ms": 61_234}),
    );
    assert!(failed.ends_with("\t    61.234\t0\t3\t3\t0\ta  b\n"), "{failed}");
    let signaled = line(
        3,
        "x",
        &json!({"exit_code": null, "signal": "SIGKILL", "status": "signaled"}),
    );
    assert!(signaled.ends_with("\t0\t9\tx\n"), "{signaled}");
    // One that did not start has only an end, and one of an earlier run no name.
    let expired = line(
        4,
        "",
        &json!({"exit_code": null, "started_at": null, "status": "expired"}),
    );
    assert!(
        expired.contains("\t1795664521.500\t") && expired.ends_with("\t-1\t0\tj\n"),
        "{expired}"
    );
}

#[tokio::test]
async fn a_log_is_gone_on_with_and_has_one_header() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    for seq in 1..=2 {
        let mut log = JobLog::open(&path).await.unwrap();
        let result = result(&json!({}));
        log.take(&Finished {
            submission: 1,
            seq,
            name: &Name::default(),
            result: &result,
            json: b"",
        })
        .unwrap();
        log.flush().await.unwrap();
        log.flush().await.unwrap();
    }
    let log = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], HEADER.trim_end());
    assert!(lines[1].starts_with("1\t") && lines[2].starts_with("2\t"), "{log}");
    assert_eq!(lines.len(), 3);
    let error = JobLog::open(folder.path()).await.err().unwrap().to_string();
    assert!(
        error.starts_with("failed to open ") && error.contains("directory"),
        "{error}"
    );
}
