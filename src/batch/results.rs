//! The results file: one final result a line, with the item it is of. It is the truth of what has ended.
//!
//! Lines are appended and never changed. One without its end was cut off by a kill, and is cut away when the file is
//! opened again: its message was not acked, so the result comes again.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{Finished, Sink, Submission, Table};
use crate::message::Status;
use crate::message::batch::ItemOfLine;
use crate::transport::BoxFuture;

/// How sure a line has to be before its message is acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It outlives this process.
    Process,
    /// It outlives the machine's power: it is on disk.
    Disk,
}

/// A results file, open at its end.
#[derive(Debug)]
pub struct ResultsFile {
    file: Arc<File>,
    path: PathBuf,
    durability: Durability,
    lines: Vec<u8>,
}

impl ResultsFile {
    /// Sees that `path` is a results file or may become one, and changes nothing: to be asked before anything is written
    /// beside it.
    ///
    /// # Errors
    /// When it cannot be read, or begins with another line than a result.
    pub fn check(path: &Path) -> io::Result<()> {
        let named = |error| named(path, &error);
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(named)?,
        };
        let mut line = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut line).map_err(named)?;
        if line.last() == Some(&b'\n') {
            Known::read(&line, path, 1)?;
        } else if !begins_as_result(&line) {
            return Err(other_file(path, 1, "it has no end"));
        }
        Ok(())
    }

    /// Opens a results file, made if it is not there, and enters what it has in `table`.
    ///
    /// # Errors
    /// When it cannot be read or written, or has other lines than results.
    pub fn open(path: &Path, durability: Durability, table: &mut Table) -> io::Result<Self> {
        let named = |error| named(path, &error);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(named)?;
        let whole = scan(&file, path, table)?;
        if file.metadata().map_err(named)?.len() > whole {
            file.set_len(whole).map_err(named)?;
        }
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
            durability,
            lines: Vec::new(),
        })
    }
}

/// Checks that a file has nothing but lines of results, and leaves it as it is.
///
/// # Errors
/// When it cannot be read, or has other lines.
pub fn check(path: &Path) -> io::Result<()> {
    scan(&File::open(path)?, path, &mut Table::default()).map(drop)
}

impl Sink for ResultsFile {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        if finished.result.is_final {
            write_line(&mut self.lines, finished);
        }
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            if self.lines.is_empty() {
                return Ok(());
            }
            let (file, lines, durability) = (self.file.clone(), std::mem::take(&mut self.lines), self.durability);
            let written = tokio::task::spawn_blocking(move || {
                (&*file).write_all(&lines)?;
                if durability == Durability::Disk {
                    file.sync_data()?;
                }
                Ok(lines)
            });
            let written = written.await.map_err(io::Error::other).and_then(|written| written);
            let mut lines = written.map_err(|error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("failed to write {}: {error}", self.path.display()),
                )
            })?;
            lines.clear();
            self.lines = lines;
            Ok(())
        })
    }
}

/// Appends the line of a result: the object as it came, with one member more at its end.
pub fn write_line(lines: &mut Vec<u8>, finished: &Finished<'_>) {
    let item = ItemOfLine {
        seq: finished.seq,
        origin: finished.name.origin.clone(),
        submission: finished.submission,
    };
    let json = finished.json.trim_ascii_end();
    let again;
    let object = match json.strip_suffix(b"}") {
        Some(object) if is_plain(json) => object,
        // Somebody else's writing.
        _ => {
            again = finished.result.encode();
            again.strip_suffix(b"}").unwrap_or(&again)
        }
    };
    lines.extend_from_slice(object);
    lines.extend_from_slice(b",\"item\":");
    // Writing to memory cannot fail, nor can an item.
    let _ = serde_json::to_writer(&mut *lines, &item);
    lines.extend_from_slice(b"}\n");
}

/// Whether a result is one line and has no member that could be taken for the one that is added to it, however it is written.
fn is_plain(json: &[u8]) -> bool {
    let has = |text: &[u8]| json.windows(text.len()).any(|part| part == text);
    !json.contains(&b'\n') && !has(b"\"item\"") && !has(b"\\u00")
}

/// What of a line is needed to go on: a tenth of the time of reading all of it.
#[derive(Deserialize)]
struct Known {
    status: Status,
    item: ItemOfLine,
}

impl Known {
    fn read(line: &[u8], path: &Path, number: u64) -> io::Result<Self> {
        serde_json::from_slice(line).map_err(|error| other_file(path, number, error))
    }
}

/// What every result begins with.
const BEGINNING: &[u8] = b"{\"job_id\":";

/// Whether a line that was cut off may be one of ours.
fn begins_as_result(line: &[u8]) -> bool {
    line.starts_with(BEGINNING) || BEGINNING.starts_with(line)
}

fn other_file(path: &Path, number: u64, why: impl std::fmt::Display) -> io::Error {
    let message = format!(
        "{}:{number}: this is no line of a batch's results ({why}); name another file",
        path.display()
    );
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to use {}: {error}", path.display()))
}

/// Enters every whole line, and returns where the last one ends.
fn scan(file: &File, path: &Path, table: &mut Table) -> io::Result<u64> {
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut line, mut end, mut number) = (Vec::new(), 0, 0_u64);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        number += 1;
        if line.last() != Some(&b'\n') {
            return match number {
                // What would be cut away is all there is.
                1 if !begins_as_result(&line) => Err(other_file(path, 1, "it has no end")),
                _ => Ok(end),
            };
        }
        end += u64::try_from(length).unwrap_or(u64::MAX);
        let known = Known::read(&line, path, number)?;
        if !table.may_have(known.item.seq) {
            let (path, seq) = (path.display(), known.item.seq);
            let message =
                format!("{path}:{number}: item.seq {seq} is far beyond the items before it; mend or remove this line");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let submission = Submission {
            seq: known.item.seq,
            number: known.item.submission.max(1),
        };
        table.finish(submission, known.status);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::batch::Name;
    use crate::message::JobResult;

    fn result(status: &str, is_final: bool) -> JobResult {
        let body = json!({
            "job_id": "j", "attempt": 1, "status": status, "final": is_final, "duration_ms": 0,
            "stdout": {"text": "}\n", "encoding": "utf-8", "bytes": 2, "truncated_bytes": 0},
            "stderr": {"text": "", "encoding": "utf-8", "bytes": 0, "truncated_bytes": 0},
            "finished_at": "2030-01-01T00:00:00Z",
            "worker": {"id": "w", "host": "h", "pool": "p", "version": "0"}, "labels": {},
        });
        JobResult::decode(body.to_string().as_bytes()).unwrap()
    }

    fn take(file: &mut ResultsFile, seq: u64, submission: u8, result: &JobResult) {
        let finished = Finished {
            seq,
            submission,
            name: &Name {
                origin: "jobs.jsonl:9".to_owned(),
                ..Name::default()
            },
            result,
            json: &result.encode(),
        };
        file.take(&finished).unwrap();
    }

    #[tokio::test]
    async fn a_line_is_the_result_and_its_item_and_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let mut file = ResultsFile::open(&path, Durability::Disk, &mut Table::default()).unwrap();
        take(&mut file, 2, 1, &result("failed", false));
        take(&mut file, 2, 1, &result("failed", true));
        take(&mut file, 1, 1, &result("succeeded", true));
        file.flush().await.unwrap();
        take(&mut file, 2, 2, &result("succeeded", true));
        file.flush().await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3, "only final results are written");
        assert_eq!(
            lines[0]["item"],
            json!({"seq": 2, "origin": "jobs.jsonl:9", "submission": 1})
        );
        assert_eq!(
            (&lines[0]["status"], &lines[0]["stdout"]["text"]),
            (&json!("failed"), &json!("}\n"))
        );

        let mut table = Table::default();
        ResultsFile::open(&path, Durability::Disk, &mut table).unwrap();
        assert_eq!(
            table.counts(),
            [(Status::Succeeded, 2)].into(),
            "the last line of an item counts"
        );
    }

    #[tokio::test]
    async fn a_torn_line_is_cut_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let mut file = ResultsFile::open(&path, Durability::Process, &mut Table::default()).unwrap();
        take(&mut file, 1, 1, &result("succeeded", true));
        file.flush().await.unwrap();
        let line = std::fs::read(&path).unwrap();
        for cut in 0..line.len() {
            let torn = [&line[..], &line[..cut]].concat();
            std::fs::write(&path, torn).unwrap();
            let mut table = Table::default();
            let mut file = ResultsFile::open(&path, Durability::Process, &mut table).unwrap();
            assert_eq!(table.ended(), 1, "cut at {cut}");
            take(&mut file, 2, 1, &result("failed", true));
            file.flush().await.unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count(), 2, "cut at {cut}: {text}");
        }
    }

    #[tokio::test]
    async fn a_result_on_several_lines_becomes_one() {
        let result = result("succeeded", true);
        let pretty = serde_json::to_vec_pretty(&result).unwrap();
        let mut lines = Vec::new();
        let finished = Finished {
            seq: 1,
            submission: 1,
            name: &Name::default(),
            result: &result,
            json: &pretty,
        };
        write_line(&mut lines, &finished);
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(JobResult::decode(&lines).unwrap(), result);
    }

    #[test]
    fn a_member_of_the_name_of_ours_does_not_stay() {
        let result = result("succeeded", true);
        let plain = result.encode();
        for (member, is_again) in [
            (r#""item":{"seq":1}"#, true),
            (r#""\u0069tem":1"#, true),
            (r#""itemised":1"#, false),
        ] {
            let json = [b"{", member.as_bytes(), b",", &plain[1..]].concat();
            let mut lines = Vec::new();
            let finished = Finished {
                seq: 7,
                submission: 1,
                name: &Name::default(),
                result: &result,
                json: &json,
            };
            write_line(&mut lines, &finished);
            let known: Known = serde_json::from_slice(&lines).unwrap();
            assert_eq!(known.item.seq, 7, "{member}");
            assert_eq!(lines.starts_with(b"{\"job_id\""), is_again, "{member}");
        }
    }

    #[test]
    fn an_item_from_far_beyond_costs_no_memory_and_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let line = r#"{"status":"failed","item":{"seq":18446744073709551615,"origin":"","submission":1}}"#;
        std::fs::write(&path, format!("{line}\n")).unwrap();
        let error = ResultsFile::open(&path, Durability::Disk, &mut Table::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("r.jsonl:1: item.seq 18446744073709551615 is far"),
            "{error}"
        );
    }

    #[test]
    fn another_file_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        let whole = "{\"command\":[\"true\"]}\n{\"torn";
        for text in [whole, "{\"command\":[\"true\"]}", "{\"torn", "note"] {
            std::fs::write(&path, text).unwrap();
            let opened = ResultsFile::open(&path, Durability::Disk, &mut Table::default()).map(drop);
            for refused in [ResultsFile::check(&path), opened] {
                let error = refused.expect_err(text).to_string();
                assert!(error.contains("r.jsonl:1: this is no line"), "{text}: {error}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_is_or_may_become_a_results_file_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.jsonl");
        ResultsFile::check(&path).unwrap();
        assert!(!path.exists());
        let mut lines = Vec::new();
        let result = result("succeeded", true);
        let finished = Finished {
            seq: 1,
            submission: 1,
            name: &Name::default(),
            result: &result,
            json: &result.encode(),
        };
        write_line(&mut lines, &finished);
        for end in 0..=lines.len() {
            std::fs::write(&path, &lines[..end]).unwrap();
            ResultsFile::check(&path).unwrap();
        }
    }
}
