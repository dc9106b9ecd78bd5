//! Lines of files and pipes, each with where it stands, none kept longer than a bound.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader, stdin};

/// What is read of a file at a time.
const BUFFER: usize = 64 * 1024;

/// What some programs begin a file of UTF-8 with: no part of its text.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a file is read by.
pub(super) type Reader = Box<dyn AsyncBufRead + Send + Unpin>;

/// The lines of some files in order.
pub(super) struct Lines {
    files: VecDeque<PathBuf>,
    current: Option<Current>,
    end: u8,
    max_line: usize,
}

/// A line of a file.
#[derive(Debug)]
pub(super) struct Line {
    /// The file and the line's number in it: `jobs.jsonl:3`.
    pub(super) origin: String,
    /// Its bytes without its end; cut behind the bound, so one byte more than allowed tells that it is too long.
    pub(super) bytes: Vec<u8>,
}

struct Current {
    name: String,
    reader: Reader,
    number: u64,
    line: Vec<u8>,
    has_begun: bool,
}

impl Lines {
    /// Lines of `files` (`-` for stdin), each with `end` behind it, the last perhaps without. Of a line longer than
    /// `max_line` bytes, one byte more than that is kept.
    pub(super) fn new(files: Vec<PathBuf>, end: u8, max_line: usize) -> Self {
        Self {
            files: files.into(),
            current: None,
            end,
            max_line,
        }
    }

    /// Opens the next file, unless one is open; false after the last.
    ///
    /// # Errors
    /// When it cannot be opened.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn open(&mut self) -> io::Result<bool> {
        if self.current.is_some() {
            return Ok(true);
        }
        let Some(file) = self.files.front() else {
            return Ok(false);
        };
        let (name, reader) = (name_of(file), open(file).await?);
        self.files.pop_front();
        self.current = Some(Current {
            name,
            reader,
            number: 0,
            line: Vec::new(),
            has_begun: false,
        });
        Ok(true)
    }

    /// The next line; `None` after the last.
    ///
    /// # Errors
    /// When a file cannot be opened or read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> io::Result<Option<Line>> {
        while self.open().await? {
            let Some(current) = &mut self.current else { continue };
            let room = self.max_line.saturating_add(1 + BYTE_ORDER_MARK.len());
            if current.read_line(self.end, room).await? {
                let keeps_mark = self.end != b'\n'; // names that end in NUL are bytes, not a text
                return Ok(Some(current.take(self.max_line.saturating_add(1), keeps_mark)));
            }
            self.current = None;
        }
        Ok(None)
    }
}

impl Current {
    /// Reads up to the next line's end; false at the file's. What was read stays in `line` when the future is dropped,
    /// so it is cancel safe.
    async fn read_line(&mut self, end: u8, max: usize) -> io::Result<bool> {
        loop {
            let buffer = self
                .reader
                .fill_buf()
                .await
                .map_err(|error| unread(&self.name, &error))?;
            if buffer.is_empty() {
                return Ok(self.has_begun);
            }
            self.has_begun = true;
            let end = buffer.iter().position(|byte| *byte == end);
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

    fn take(&mut self, most: usize, keeps_mark: bool) -> Line {
        self.number += 1;
        self.has_begun = false;
        let mut bytes = std::mem::take(&mut self.line);
        if self.number == 1 && !keeps_mark && bytes.starts_with(BYTE_ORDER_MARK) {
            bytes.drain(..BYTE_ORDER_MARK.len());
        }
        bytes.truncate(most);
        Line {
            origin: format!("{}:{}", self.name, self.number),
            bytes,
        }
    }
}

/// Opens a file, or stdin for `-`.
pub(super) async fn open(file: &Path) -> io::Result<Reader> {
    if is_stdin(file) {
        return Ok(Box::new(BufReader::with_capacity(BUFFER, stdin())));
    }
    let opened = File::open(file).await.map_err(|error| unopened(file, &error))?;
    Ok(Box::new(BufReader::with_capacity(BUFFER, opened)))
}

/// Sees that files can be opened once it is their turn, as far as that can be told without opening one: to open a pipe
/// would wait for its writer, or end it.
///
/// # Errors
/// Of the first that cannot.
pub(super) async fn check(files: &[PathBuf]) -> io::Result<()> {
    for file in files.iter().filter(|file| !is_stdin(file)) {
        let failed = |error| unopened(file, &error);
        let found = tokio::fs::metadata(file).await.map_err(failed)?;
        if found.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if found.is_file() {
            File::open(file).await.map_err(failed)?;
        }
    }
    Ok(())
}

pub(super) fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// What messages call a file.
pub(super) fn name_of(file: &Path) -> String {
    if is_stdin(file) {
        "stdin".to_owned()
    } else {
        file.display().to_string()
    }
}

fn unopened(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to open {}: {error}", file.display()))
}

pub(super) fn unread(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to read {name}: {error}"))
}
