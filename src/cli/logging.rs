//! Logs on stderr, as text or JSON.

use std::io::stderr;

use clap::{Args, ValueEnum};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use super::print;

#[derive(Args)]
#[command(next_help_heading = "Log")]
pub(super) struct LogArgs {
    /// How log lines are written to stderr
    #[arg(long, global = true, value_enum, default_value_t, env = "SYNTHEX_LOG_FORMAT")]
    log_format: LogFormat,
    /// Log more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log less; twice for errors alone
    #[arg(short, long, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// What is logged unless -v or -q say otherwise.
#[derive(Clone, Copy)]
pub(super) enum Usual {
    Error = 0,
    Warn = 1,
    Info = 2,
}

impl LogArgs {
    /// Starts logging.
    pub(super) fn init(&self, usual: Usual) {
        let own = level(usual as i32 + i32::from(self.verbose) - i32::from(self.quiet));
        // What lapin calls an error is told by the transport, once, in words that name the queue.
        let lapin = if own >= LevelFilter::DEBUG {
            own
        } else {
            LevelFilter::OFF
        };
        let mut filter = Targets::new().with_default(own).with_target("lapin", lapin);
        if self.quiet == 0 {
            // Somebody who presses Ctrl-C wants to know that it arrived.
            filter = filter.with_target("synthex::app::signals", own.max(LevelFilter::INFO));
        }
        let layer = fmt::layer().with_writer(stderr).with_target(false);
        hide_panics_of_lapin();
        match self.log_format {
            LogFormat::Text => registry()
                .with(layer.with_ansi(print::has_colours()).with_filter(filter))
                .init(),
            LogFormat::Json => registry()
                .with(layer.json().flatten_event(true).with_filter(filter))
                .init(),
        }
    }
}

/// lapin's own thread panics when the runtime ends while it connects. It harms nobody and tells a user nothing.
fn hide_panics_of_lapin() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match std::thread::current().name() {
        Some("lapin-io-loop") => tracing::debug!("{panic}"),
        _ => usual(panic),
    }));
}

fn level(number: i32) -> LevelFilter {
    match number {
        ..=0 => LevelFilter::ERROR,
        1 => LevelFilter::WARN,
        2 => LevelFilter::INFO,
        3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}
