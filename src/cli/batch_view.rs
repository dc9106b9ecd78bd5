//! What people see of many jobs: results as they come, how far it is, and the end.
//!
//! - [`tally`] counts what the batch tells, and knows neither clock nor terminal.
//! - [`screen`] draws: a bar on a terminal, a line now and then elsewhere, JSON for programs; nothing else writes where a
//!   bar is.
//! - [`printer`] gives results to stdout and stderr.
//!
//! Counting is done in the batch's own loop and never waits. Drawing is done by [`View::keep_showing`], beside it, on a
//! thread that may block.

mod printer;
mod screen;
mod tally;

use std::io::IsTerminal;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::Instant;

use super::exit::{Exit, Failure};
use super::{environment, print};
use crate::batch::sinks::{JobLog, OutputDir};
use crate::batch::{Progress, Sink, Watcher};
pub(super) use printer::Printer;
use printer::Shows;
use screen::Screen;
use tally::Tally;
pub(super) use tally::Told;

/// How often what is shown is looked after.
const TICK: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(next_help_heading = "Results")]
pub(super) struct ViewArgs {
    /// Print one result object a line and nothing else
    #[arg(long)]
    pub(super) json: bool,
    /// Begin each line of output with the item and a tab
    #[arg(long, conflicts_with = "json")]
    tag: bool,
    /// Show results in the order of the input, not of their ends; a slow job holds back those after it
    #[arg(short, long)]
    pub(super) keep_order: bool,
    /// Show on stderr how far it is: a bar on a terminal, a line now and then elsewhere, JSON lines, or nothing
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Mode::Auto)]
    progress: Mode,
    /// Write each job's output into files of this folder: 000012-ID.stdout and .stderr
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    /// Append a line for each attempt to this file, in the form of GNU parallel's
    #[arg(long, value_name = "FILE")]
    joblog: Option<PathBuf>,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A bar if stderr is a terminal, else lines
    Auto,
    /// A bar
    Bar,
    /// A line now and then, less and less often
    Lines,
    /// An object a line each second, and one for the end
    Json,
    /// Nothing
    None,
}

impl Mode {
    /// What is done, where stderr is a terminal or not.
    fn resolve(self, on_terminal: bool, json: bool, is_single: bool) -> Self {
        match self {
            Self::Auto if is_single => Self::None,
            Self::Auto if on_terminal => Self::Bar,
            Self::Auto if json => Self::None,
            Self::Auto => Self::Lines,
            // Elsewhere a bar would be control characters in a file.
            Self::Bar if !on_terminal => Self::Lines,
            mode => mode,
        }
    }
}

impl ViewArgs {
    /// Whether results are asked for on stdout although they go to a file.
    pub(super) const fn shows_results(&self) -> bool {
        self.json || self.tag || self.keep_order
    }

    /// Opens the files that results go to, besides what is shown.
    pub(super) async fn files(&self) -> Result<Vec<Box<dyn Sink>>, Failure> {
        let failed = |error: std::io::Error| Failure::new(Exit::Usage, error.to_string());
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if let Some(folder) = &self.output_dir {
            sinks.push(Box::new(OutputDir::create(folder).await.map_err(failed)?));
        }
        if let Some(file) = &self.joblog {
            sinks.push(Box::new(JobLog::open(file).await.map_err(failed)?));
        }
        Ok(sinks)
    }

    /// How many items the input may be ahead of the results that are shown, for `--keep-order`.
    pub(super) fn window(&self, max_in_flight: NonZeroU32) -> Option<NonZeroU32> {
        self.keep_order.then_some(max_in_flight)
    }
}

/// What is seen of a batch.
pub(super) struct View {
    tally: Arc<Mutex<Tally>>,
    screen: Screen,
    json: bool,
    tag: bool,
    is_single: bool,
    says_all: bool,
    says_failures: bool,
}

/// Counts for the view.
pub(super) struct Count(Arc<Mutex<Tally>>);

impl Watcher for Count {
    fn on(&mut self, progress: &Progress) {
        lock(&self.0).count(progress);
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().expect("counting does not panic")
}

impl View {
    /// A view of many jobs, or of one alone, whose progress is shown only where that is asked for.
    pub(super) fn new(args: &ViewArgs, is_single: bool) -> Self {
        let on_terminal = std::io::stderr().is_terminal() && !environment::terminal_is_dumb();
        let mode = args.progress.resolve(on_terminal, args.json, is_single);
        let now = Instant::now();
        Self {
            tally: Arc::new(Mutex::new(Tally::new(now))),
            screen: match mode {
                Mode::Bar => Screen::bar(print::has_colours()),
                Mode::Lines | Mode::Auto => Screen::lines(now),
                Mode::Json => Screen::json(),
                Mode::None => Screen::nothing(),
            },
            json: args.json,
            tag: args.tag,
            is_single,
            says_failures: mode != Mode::Json,
            says_all: mode != Mode::None && (on_terminal || args.progress != Mode::Auto),
        }
    }

    /// What the batch tells of its progress.
    pub(super) fn watcher(&self) -> Count {
        Count(Arc::clone(&self.tally))
    }

    /// What results are shown by.
    pub(super) fn printer(&self) -> Printer {
        let shows = if self.json { Shows::Json } else { Shows::Output };
        Printer::new(self.screen.terminal(), shows, self.tag, self.is_single)
    }

    /// What tells of failures where results are not shown; not where programs read stderr.
    pub(super) fn teller(&self) -> Printer {
        let shows = if self.says_failures {
            Shows::Failures
        } else {
            Shows::Nothing
        };
        Printer::new(self.screen.terminal(), shows, self.tag, self.is_single)
    }

    /// Whether it is of one command alone.
    pub(super) const fn is_single(&self) -> bool {
        self.is_single
    }

    /// Shows how far it is, for ever.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn keep_showing(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.show().await;
        }
    }

    async fn show(&self) {
        let (snapshot, notes) = {
            let mut tally = lock(&self.tally);
            (tally.snapshot(Instant::now()), tally.take_notes())
        };
        self.screen.show(snapshot, notes).await;
    }

    /// Takes away what is shown of the progress.
    pub(super) async fn clear(&self) {
        self.screen.clear().await;
    }

    /// Shows what is left to show, and how it ended: at length where progress was shown, or `results` has the file that
    /// they are in. `is_whole` says that nothing is missing.
    pub(super) async fn end(&self, is_whole: bool, results: Option<&str>) {
        self.show().await;
        let summary = lock(&self.tally).summary(Instant::now());
        let at_length = self.says_all || (results.is_some() && !self.json);
        let lines = match at_length || !(self.json || self.is_single) {
            true => summary.lines(is_whole, at_length, results),
            false => Vec::new(),
        };
        self.screen.end(&summary, &lines, results).await;
    }
}

#[cfg(test)]
mod tests;
