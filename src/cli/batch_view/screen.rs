//! Where progress is shown.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::tally::{Ended, Snapshot, Summary, Told};
use crate::cli::print;

/// The first line on a pipe; each further one comes after twice the time of the last, at most the longest.
const FIRST_LINE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);
/// Between two objects.
const JSON_EVERY: Duration = Duration::from_secs(1);
/// Most drawings a second.
const HZ: u8 = 20;

/// Where and how progress is shown.
pub(super) struct Screen {
    how: How,
    terminal: Terminal,
}

enum How {
    Bar,
    Lines(Mutex<Pace>),
    Json(Mutex<Option<Instant>>),
    Nothing,
}

/// When the next line is due.
struct Pace {
    due: Instant,
    pause: Duration,
}

/// Stderr and stdout, which may have a bar at their end.
#[derive(Clone)]
pub(super) struct Terminal {
    bar: Option<ProgressBar>,
    shares_stdout: bool,
}

/// A stream of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Screen {
    pub(super) fn bar(has_colours: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(HZ));
        bar.set_style(style(None, has_colours));
        Self {
            how: How::Bar,
            terminal: Terminal {
                bar: Some(bar),
                shares_stdout: io::stdout().is_terminal(),
            },
        }
    }

    pub(super) fn lines(now: Instant) -> Self {
        let pace = Pace {
            due: now + FIRST_LINE,
            pause: FIRST_LINE,
        };
        Self::without_bar(How::Lines(Mutex::new(pace)))
    }

    pub(super) fn json() -> Self {
        Self::without_bar(How::Json(Mutex::new(None)))
    }

    pub(super) fn nothing() -> Self {
        Self::without_bar(How::Nothing)
    }

    fn without_bar(how: How) -> Self {
        let terminal = Terminal {
            bar: None,
            shares_stdout: false,
        };
        Self { how, terminal }
    }

    /// Where results are written.
    pub(super) fn terminal(&self) -> Terminal {
        self.terminal.clone()
    }

    /// Shows what is new.
    pub(super) async fn show(&self, snapshot: Snapshot, notes: Vec<Told>) {
        let text = self.text(&snapshot, &notes, Instant::now());
        let (terminal, is_bar) = (self.terminal.clone(), matches!(self.how, How::Bar));
        if text.is_empty() && !is_bar {
            return;
        }
        // Nobody is left to tell when stderr is closed.
        let _ = blocking(move || {
            terminal.write(&[(Stream::Stderr, text.into_bytes())])?;
            terminal.draw(&snapshot);
            Ok(())
        })
        .await;
    }

    /// What is written now.
    fn text(&self, snapshot: &Snapshot, notes: &[Told], now: Instant) -> String {
        let mut text = String::new();
        match &self.how {
            How::Json(told) => {
                notes.iter().for_each(|note| push_json(&mut text, note));
                let mut told = told.lock().expect("no holder panics");
                if told.is_none_or(|told| now - told >= JSON_EVERY) {
                    *told = Some(now);
                    push_json(&mut text, &Told::Progress(snapshot.clone()));
                }
            }
            How::Lines(pace) if pace.lock().expect("no holder panics").is_due(now) => {
                push_line(&mut text, &snapshot.line());
            }
            How::Bar | How::Lines(_) | How::Nothing => {}
        }
        text
    }

    /// Takes the bar away.
    pub(super) async fn clear(&self) {
        let terminal = self.terminal.clone();
        let _ = blocking(move || {
            terminal.clear();
            Ok(())
        })
        .await;
    }

    /// Takes the bar away and tells how it ended: people by these lines, programs by an object.
    pub(super) async fn end(&self, summary: &Summary, lines: &[String], results: Option<&str>) {
        let mut text = String::new();
        if let How::Json(_) = self.how {
            let (summary, results) = (summary.clone(), results.map(str::to_owned));
            push_json(&mut text, &Told::Summary(Ended { summary, results }));
        } else {
            lines.iter().for_each(|line| push_line(&mut text, line));
        }
        let terminal = self.terminal.clone();
        let _ = blocking(move || {
            terminal.clear();
            terminal.write(&[(Stream::Stderr, text.into_bytes())])
        })
        .await;
    }
}

impl Pace {
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.due;
        if is_due {
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.due = now + self.pause;
        }
        is_due
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str("synthex: ");
    text.push_str(line);
    text.push('\n');
}

fn push_json(text: &mut String, told: &Told) {
    text.push_str(&print::json(told));
    text.push('\n');
}

fn style(total: Option<u64>, has_colours: bool) -> ProgressStyle {
    let template = match (total, has_colours) {
        (None, _) => "{wide_msg}",
        (Some(_), true) => "[{bar:20.green}] {wide_msg}",
        (Some(_), false) => "[{bar:20}] {wide_msg}",
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are well-formed");
    style.progress_chars("=> ")
}

impl Terminal {
    /// Writes, above the bar if there is one. Blocks.
    ///
    /// # Errors
    /// When a stream is closed.
    pub(super) fn write(&self, parts: &[(Stream, Vec<u8>)]) -> io::Result<()> {
        let is_there = |part: &&(Stream, Vec<u8>)| !part.1.is_empty();
        let write = || {
            parts
                .iter()
                .filter(is_there)
                .try_for_each(|(stream, bytes)| match stream {
                    Stream::Stdout => write_all(&mut io::stdout().lock(), bytes, self.shares_stdout),
                    Stream::Stderr => write_all(&mut io::stderr().lock(), bytes, self.bar.is_some()),
                })
        };
        let mut written = parts.iter().filter(is_there).map(|(stream, _)| *stream);
        match &self.bar {
            Some(bar) if written.any(|stream| stream == Stream::Stderr || self.shares_stdout) => bar.suspend(write),
            _ => write(),
        }
    }

    fn draw(&self, snapshot: &Snapshot) {
        let Some(bar) = &self.bar else { return };
        if bar.length() != snapshot.total {
            if let Some(total) = snapshot.total {
                bar.set_length(total);
            }
            bar.set_style(style(snapshot.total, super::print::has_colours()));
        }
        bar.set_position(snapshot.done);
        bar.set_message(snapshot.beside_bar());
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Ends the last line where a bar comes behind it, which would be drawn over it.
fn write_all(to: &mut impl Write, bytes: &[u8], bar_follows: bool) -> io::Result<()> {
    to.write_all(bytes)?;
    if bar_follows && !bytes.ends_with(b"\n") {
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Does on a thread of its own what may block.
pub(super) async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
