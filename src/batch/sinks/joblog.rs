//! `--joblog FILE`: a line for each attempt, in the form of GNU parallel's, so its readers can read it.
//!
//! | column | here |
//! |---|---|
//! | Seq | the item's place in the input |
//! | Host | the worker's |
//! | Starttime | seconds since 1970 when it started, to the millisecond; else when it ended |
//! | JobRuntime | seconds |
//! | Send, Receive | 0, and the bytes that it wrote to stdout |
//! | Exitval | its exit code; -1 for one that has none and died of no signal |
//! | Signal | the number of the signal that ended it; 0 for none |
//! | Command | the command, or where the job comes from |

use std::fmt::Write;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::batch::{Finished, Sink};
use crate::message::JobResult;
use crate::transport::BoxFuture;

/// The first line.
const HEADER: &str = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";

/// A log that is written to.
pub struct JobLog {
    path: PathBuf,
    file: File,
    lines: String,
}

impl JobLog {
    /// Opens a log to append to; one that is new or empty gets the header.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("failed to open {}: {error}", path.display()));
        let opened = OpenOptions::new().create(true).append(true).open(path).await;
        let mut file = opened.map_err(failed)?;
        let length = file.seek(SeekFrom::End(0)).await.unwrap_or(0); // a pipe has none
        Ok(Self {
            path: path.to_owned(),
            file,
            lines: if length == 0 { HEADER.to_owned() } else { String::new() },
        })
    }
}

fn write_line(lines: &mut String, finished: &Finished<'_>) {
    let JobResult {
        worker,
        exit_code,
        signal,
        stdout,
        ..
    } = finished.result;
    let started = finished.result.started_at.unwrap_or(finished.result.finished_at);
    let started = started.as_millisecond();
    let took = finished.result.duration_ms;
    let (seconds, millis) = (started.div_euclid(1000), started.rem_euclid(1000));
    let signal = signal.map_or(0, |signal| signal.number());
    // Who was ended by a signal has exit code 0 there, and 9 or 15 behind it.
    let exit = exit_code.unwrap_or(if signal == 0 { -1 } else { 0 });
    let name = if finished.name.title.is_empty() {
        finished.result.job_id.as_str()
    } else {
        &finished.name.title
    };
    let written = writeln!(
        lines,
        "{}\t{}\t{seconds}.{millis:03}\t{:>6}.{:03}\t0\t{}\t{exit}\t{signal}\t{}",
        finished.seq,
        one_column(&worker.host),
        took / 1000,
        took % 1000,
        stdout.bytes,
        one_column(name),
    );
    written.expect("a string takes all");
}

/// A text that breaks neither columns nor lines.
fn one_column(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

impl Sink for JobLog {
    fn take(&mut self, finished: &Finished<'_>) -> io::Result<()> {
        write_line(&mut self.lines, finished);
        Ok(())
    }

    fn flush(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async {
            if self.lines.is_empty() {
                return Ok(());
            }
            let lines = std::mem::take(&mut self.lines);
            let written = async {
                self.file.write_all(lines.as_bytes()).await?;
                self.file.flush().await
            };
            let failed = |error: io::Error| {
                io::Error::new(
                    error.kind(),
                    format!("failed to write {}: {error}", self.path.display()),
                )
            };
            written.await.map_err(failed)
        })
    }
}

#[cfg(test)]
mod tests;
