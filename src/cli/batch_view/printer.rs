//! Results on stdout and stderr.

use std::io;

use super::screen::{Stream, Terminal, blocking};
use crate::batch::{Finished, Sink};
use crate::cli::run::describe;
use crate::message::{JobResult, Output, Status};
use crate::transport::BoxFuture;

/// Prints results, as JSON or as the commands would have written their output.
pub(in crate::cli) struct Printer {
    terminal: Terminal,
    shows: Shows,
    tag: bool,
    is_single: bool,
    parts: Vec<(Stream, Vec<u8>)>,
}

/// What of each result is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// The object.
    Json,
    /// What the command wrote, and how it failed.
    Output,
    /// How it failed: the output is elsewhere.
    Failures,
    Nothing,
}

impl Printer {
    pub(super) fn new(terminal: Terminal, shows: Shows, tag: bool, is_single: bool) -> Self {
        Self {
            terminal,
            shows,
            tag,
            is_single,
            parts: Vec::new(),
        }
    }

    /// Adds to what is written next, behind what goes to the same stream.
    fn push(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some((last, part)) if *last == stream => part.extend_from_slice(bytes),
            _ => self.parts.push((stream, bytes.to_vec())),
        }
    }

    fn note(&mut self, text: &str) {
        self.push(Stream::Stderr, format!("synthex: {text}\n").as_bytes());
    }

    fn output(&mut self, stream: Stream, output: &Output, tag: &str) -> io::Result<()> {
        let bytes = output.decode().map_err(io::Error::other)?;
        if self.tag {
            self.push(stream, &tagged(&bytes, tag));
        } else {
            self.push(stream, &bytes);
        }
        Ok(())
    }

    fn show_output(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        let JobResult { stdout, stderr, .. } = finished.result;
        self.output(Stream::Stdout, stdout, finished.name.tag())?;
        self.output(Stream::Stderr, stderr, finished.name.tag())?;
        for (name, output) in [("stdout", stdout), ("stderr", stderr)] {
            if output.truncated_bytes > 0 {
                let dropped = output.truncated_bytes;
                self.note(&format!(
                    "{dropped} bytes from the middle of {name} were not kept; see --max-output"
                ));
            }
        }
        Ok(())
    }

    fn tell_of_failure(&mut self, finished: &Finished<'_>) {
        let JobResult { job_id, status, .. } = finished.result;
        if *status != Status::Succeeded {
            let origin = match &finished.name.origin {
                origin if !self.is_single && !origin.is_empty() => format!(" ({origin})"),
                _ => String::new(),
            };
            self.note(&format!("job {job_id}{origin} {}", describe(finished.result)));
        }
    }
}

/// The lines, each behind the tag and a tab; the last is ended, too, so that the next job's is a line of its own.
fn tagged(bytes: &[u8], tag: &str) -> Vec<u8> {
    let mut lines = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        lines.extend_from_slice(tag.as_bytes());
        lines.push(b'\t');
        lines.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            lines.push(b'\n');
        }
    }
    lines
}

impl Sink for Printer {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        match self.shows {
            Shows::Json => {
                self.push(Stream::Stdout, finished.json);
                self.push(Stream::Stdout, b"\n");
            }
            Shows::Output => {
                self.show_output(finished)?;
                self.tell_of_failure(finished);
            }
            Shows::Failures => self.tell_of_failure(finished),
            Shows::Nothing => {}
        }
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        let parts = std::mem::take(&mut self.parts);
        let terminal = self.terminal.clone();
        Box::pin(async move {
            if parts.is_empty() {
                return Ok(()); // nothing is worth the way to the thread that writes
            }
            blocking(move || terminal.write(&parts)).await
        })
    }
}

#[cfg(test)]
mod tests;
