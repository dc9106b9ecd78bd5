//! Reads lines from files, each with where it stands, none kept longer than a bound.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, stdin};

use crate::app::local::{Source, Submission};
use crate::message::JobId;

type Reader = Box<dyn AsyncBufRead + Send + Unpin>;

/// The lines of some files in order; empty lines are skipped.
pub(super) struct Lines {
    files: VecDeque<PathBuf>,
    current: Option<Current>,
    max_line: usize,
}

struct Current {
    name: String,
    reader: Reader,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Lines of `files` (`-` for stdin). A line longer than `max_line` bytes is cut there, which leaves it too long to
    /// be accepted and takes no more memory than that.
    pub(super) fn new(files: Vec<PathBuf>, max_line: usize) -> Self {
        Self {
            files: files.into(),
            current: None,
            max_line,
        }
    }

    async fn open_next(&mut self) -> io::Result<bool> {
        let Some(file) = self.files.front() else {
            return Ok(false);
        };
        let reader: Reader = if file.as_os_str() == "-" {
            Box::new(BufReader::new(stdin()))
        } else {
            let opened = File::open(file).await;
            Box::new(BufReader::new(opened.map_err(|error| named(file, &error))?))
        };
        let name = if file.as_os_str() == "-" {
            "stdin".to_owned()
        } else {
            file.display().to_string()
        };
        self.files.pop_front();
        self.current = Some(Current {
            name,
            reader,
            number: 0,
            line: Vec::new(),
        });
        Ok(true)
    }
}

fn named(file: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to open {}: {error}", file.display()))
}

/// The id of a line that brings none: where it stands, so that its result tells.
fn line_id(file: &str, number: u64) -> JobId {
    const MAX_NAME: usize = 100; // leaves room for the number
    let name = file.rsplit('/').next().unwrap_or_default();
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(allowed).take(MAX_NAME).collect();
    format!("{name}:{number}").parse().unwrap_or_else(|_| JobId::random())
}

impl Source for Lines {
    async fn next(&mut self) -> io::Result<Option<Submission>> {
        loop {
            if self.current.is_none() && !self.open_next().await? {
                return Ok(None);
            }
            let Some(current) = &mut self.current else { continue };
            if !current.read_line(self.max_line).await? {
                self.current = None;
            } else if let Some(submission) = current.submission() {
                return Ok(Some(submission));
            }
        }
    }
}

impl Current {
    /// Reads up to the next line's end; false at the file's. What was read stays in `line` when the future is dropped,
    /// so it is cancel safe.
    async fn read_line(&mut self, max: usize) -> io::Result<bool> {
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("failed to read {}: {error}", self.name)))?;
            if buffer.is_empty() {
                return Ok(!self.line.is_empty());
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let room = max.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }

    fn submission(&mut self) -> Option<Submission> {
        self.number += 1;
        let line = std::mem::take(&mut self.line);
        let blank = line.iter().all(u8::is_ascii_whitespace);
        (!blank).then(|| Submission {
            id: line_id(&self.name, self.number),
            origin: format!("{}:{}", self.name, self.number),
            body: Bytes::from(line),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lines_id_tells_where_it_stands_whatever_the_files_name() {
        assert_eq!(line_id("/tmp/my jobs.jsonl", 7).as_str(), "my-jobs.jsonl:7");
        assert_eq!(line_id("stdin", 1).as_str(), "stdin:1");
        let long = line_id(&"ä".repeat(300), u64::MAX);
        assert!(
            long.as_str().starts_with("---") && long.as_str().ends_with(":18446744073709551615"),
            "{long}"
        );
    }
}
