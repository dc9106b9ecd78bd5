//! Writing to stdout and stderr. A reader that has gone away is no bug of ours.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::environment;

/// Writes data to stdout.
///
/// Whoever reads it may stop reading without going away, so a caller can drop this and go on; what was not written by
/// then may be lost.
///
/// # Errors
/// When stdout is closed.
pub(super) async fn data(bytes: &[u8]) -> io::Result<()> {
    write(&mut tokio::io::stdout(), bytes).await
}

/// Writes a line of data to stdout, as [`data`] does.
///
/// # Errors
/// When stdout is closed.
pub(super) async fn line(text: &str) -> io::Result<()> {
    data(format!("{text}\n").as_bytes()).await
}

/// A value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("keys are strings, and no field can fail")
}

/// Writes what a command wrote to its stderr, unchanged, as [`data`] does.
///
/// # Errors
/// When stderr is closed.
pub(super) async fn raw_error(bytes: &[u8]) -> io::Result<()> {
    write(&mut tokio::io::stderr(), bytes).await
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(()); // nothing is worth the way to the thread that writes
    }
    to.write_all(bytes).await?;
    to.flush().await
}

/// Tells people something on stderr.
pub(super) fn note(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = io::stderr().lock().write_all(format!("synthex: {text}\n").as_bytes());
}

/// Whether what is written to stderr may have colours: on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
pub(super) fn has_colours() -> bool {
    io::stderr().is_terminal() && environment::wants_colour()
}

/// Tells people on stderr what went wrong, all of it if it is several lines.
pub(super) fn error(text: &str) {
    let red = if has_colours() {
        ("\x1b[31m", "\x1b[0m")
    } else {
        ("", "")
    };
    for line in text.lines() {
        let text = format!("{}synthex: {line}{}\n", red.0, red.1);
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }
}
