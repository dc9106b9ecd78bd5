use serde_json::json;

use super::*;
use crate::batch::Name;

fn finished<R>(seq: u64, id: &str, stdout: &str, give: impl FnOnce(&Finished<'_>) -> R) -> R {
    let output =
        |text: &str, encoding: &str| json!({"text": text, "encoding": encoding, "bytes": 1, "truncated_bytes": 0});
    let result = json!({
        "job_id": id, "attempt": 1, "status": "succeeded", "final": true, "exit_code": 0,
        "stdout": output(stdout, "utf-8"), "stderr": output("/w==", "base64"),
        "finished_at": "2026-11-26T03:42:01Z", "duration_ms": 9,
        "worker": {"id": "w", "host": "h", "pool": "p", "version": "v"},
    });
    let result = serde_json::from_value(result).unwrap();
    give(&Finished {
        submission: 1,
        seq,
        name: &Name::default(),
        result: &result,
        json: b"",
    })
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn each_stream_has_a_file_of_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().join("new/out");
    let mut sink = OutputDir::create(&folder).await.unwrap();
    finished(12, "nightly:12", "hi\n", |finished| sink.take(finished)).unwrap();
    finished(3, "..", "", |finished| sink.take(finished)).unwrap();
    assert_eq!(names(&folder), [""; 0], "nothing is written before it is asked for");
    sink.flush().await.unwrap();
    assert_eq!(
        names(&folder),
        [
            "000003-...stderr",
            "000003-...stdout",
            "000012-nightly-12.stderr",
            "000012-nightly-12.stdout"
        ]
    );
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!(read("000012-nightly-12.stdout"), b"hi\n");
    assert_eq!(read("000012-nightly-12.stderr"), b"\xff");
    assert_eq!(read("000003-...stdout"), b"");
}

#[tokio::test]
async fn a_later_attempt_takes_the_place_and_what_cannot_be_written_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let mut sink = OutputDir::create(temp.path()).await.unwrap();
    for text in ["a longer first", "second"] {
        finished(1, "j", text, |finished| sink.take(finished)).unwrap();
        sink.flush().await.unwrap();
    }
    assert_eq!(std::fs::read(temp.path().join("000001-j.stdout")).unwrap(), b"second");
    // A folder in the way: the file that was there before stays whole.
    std::fs::create_dir(temp.path().join(".000001-j.stdout.tmp")).unwrap();
    finished(1, "j", "third", |finished| sink.take(finished)).unwrap();
    let error = sink.flush().await.unwrap_err().to_string();
    assert!(
        error.starts_with("failed to write ") && error.contains("000001-j.stdout"),
        "{error}"
    );
    assert_eq!(std::fs::read(temp.path().join("000001-j.stdout")).unwrap(), b"second");
}
