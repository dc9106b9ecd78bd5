//! Writing to stdout and stderr. A reader that has gone away is no bug of ours.

use std::io::{self, IsTerminal, Write};

/// Writes data to stdout.
///
/// # Errors
/// When stdout is closed.
pub(super) fn data(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line of data to stdout.
///
/// # Errors
/// When stdout is closed.
pub(super) fn line(text: &str) -> io::Result<()> {
    data(format!("{text}\n").as_bytes())
}

/// Writes what a command wrote to its stderr, unchanged.
///
/// # Errors
/// When stderr is closed.
pub(super) fn raw_error(bytes: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(bytes)
}

/// Tells people something on stderr.
pub(super) fn note(text: &str) {
    // Nobody is left to tell when stderr is closed.
    let _ = raw_error(format!("synthex: {text}\n").as_bytes());
}

/// Tells people on stderr what went wrong.
pub(super) fn error(text: &str) {
    let red = if io::stderr().is_terminal() {
        ("\x1b[31m", "\x1b[0m")
    } else {
        ("", "")
    };
    let _ = raw_error(format!("{}synthex: {text}{}\n", red.0, red.1).as_bytes());
}
