//! Pools as data: from `workers/*.toml` and flags to checked [`Pool`]s.
//!
//! ```text
//!   default.toml ─┐
//!   POOL.toml ────┼─ document ─► settings, one a key ─ check ─► draft ─► Pool
//!   flags ────────┘              each with its origin           all problems at once
//! ```
//!
//! - `file` is a pool file as serde and the schema see it; `keys` is the same for people: what belongs where.
//! - `document` takes a text apart into settings; `check` judges one setting alone.
//! - `allow` is what a restricted pool runs; `rate` is how often jobs are started.
//! - `account` finds the numbers of the user and the group that commands run as.
//! - `draft` lays defaults, file and flags over each other, judges what belongs together, and makes the [`Pool`].
//!
//! Invariants: a default is written once, in `workers/default.toml`, which is compiled in; a file is never half applied;
//! a value of the environment is in no message, no `Debug` and no [`Value`], unless it is a default.
//!
//! Not here: which files to load, the broker's address, and what a pool makes of a job.

mod account;
mod allow;
mod check;
mod document;
mod draft;
mod file;
mod keys;
mod rate;
mod schema;

use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::executor::{Leftovers, Rights, Variables};
use crate::flow::rate::Rate;
use crate::flow::retry::Schedule;
use crate::message::{Limits, SignalName, Status};
use crate::transport::topology::Declare;
use draft::Draft;

pub use allow::Allowed;
pub use file::PoolFile;
pub use rate::ProgramRates;
pub use schema::schema;

/// The commented reference of all keys, which is also where all defaults come from.
pub const DEFAULT_POOL: &str = include_str!("../workers/default.toml");

/// The rules by which a worker serves one queue, checked.
#[derive(Clone, PartialEq)]
pub struct Pool {
    /// Its name: 1 to 64 of `[A-Za-z0-9_-]`, good as a routing key and as a label.
    pub name: Arc<str>,
    /// Most commands at a time, from 1.
    pub slots: usize,
    /// Most deliveries unsettled at a time, not less than `slots`.
    pub prefetch: u16,
    /// The command that gets each body on its stdin; never empty. `None`: bodies are jobs.
    pub handler: Option<Vec<String>>,
    /// The commands that it runs at all, of jobs that set neither `script`, `env`, `cwd` nor `limits`; `None`: all.
    pub allowed: Option<Arc<Allowed>>,
    /// Whether what happens to its jobs is published, whoever listens.
    pub events: bool,
    /// Whether to declare the topology or to take what is there.
    pub declare: Declare,
    /// Deliveries without an end of their run before a job is given up as lost, from 1.
    pub delivery_limit: u32,
    /// The largest body of a job, in bytes.
    pub max_job_bytes: u64,
    /// How long running commands may go on once the worker is to stop.
    pub stop_grace: Duration,
    /// The wall clock limit of a command that asks for none, not over `max_timeout`.
    pub timeout: Duration,
    /// The longest limit that a job may ask for.
    pub max_timeout: Duration,
    /// From `term_signal` to SIGKILL.
    pub kill_grace: Duration,
    /// What asks a command, and all it started, to end.
    pub term_signal: SignalName,
    /// The warning of a timeout, earlier than `timeout`; `None`: there is none unless a job asks for it.
    pub warn_before: Option<Duration>,
    /// What a command is warned with.
    pub warn_signal: SignalName,
    /// What becomes of processes that a command leaves behind.
    pub leftovers: Leftovers,
    /// What commands may do.
    pub rights: Rights,
    /// What runs scripts; never empty.
    pub shell: Vec<String>,
    /// Where commands run, absolute; `None`: where the worker does.
    pub cwd: Option<PathBuf>,
    /// The whole environment of a command, apart from what its job adds.
    pub env: Arc<Variables>,
    /// When jobs run again.
    pub retry: Retry,
    /// What commands may use.
    pub limits: Limits,
    /// What is kept of output.
    pub output: Output,
    /// How often jobs are started; `None`: as often as slots are free.
    pub rate: Option<Rate>,
    /// The same for single programs.
    pub program_rates: ProgramRates,
    /// What becomes of jobs whose command cannot be started here.
    pub breaker: Breaker,
}

/// When a job runs again after a failure that may pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Most runs, the first one included.
    pub max_attempts: NonZeroU32,
    /// The waits between them.
    pub schedule: Schedule,
    /// Statuses to retry after; `None` here and in `exit_codes` leaves the choice to the worker.
    pub statuses: Option<Vec<Status>>,
    /// Exit codes, 0 to 255, to retry after.
    pub exit_codes: Option<Vec<i32>>,
    /// Exit codes, 1 to 255, after which a job is not run again but dead-lettered at once.
    pub dead_letter_exit_codes: Vec<i32>,
}

/// What is kept and published of a command's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Most bytes kept of each stream.
    pub max_bytes: u64,
    /// Whether it is published while the command runs.
    pub live: bool,
}

/// When jobs whose command cannot be started are put off, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Starts of the same command that fail in a row, from 1, after which its jobs are put off.
    pub failures: u32,
    /// How long they are, until one of them is tried.
    pub delay: Duration,
    /// How often a job is, from 1, until it gets its result all the same.
    pub put_offs: u32,
}

/// What flags say over any pool file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--slots`.
    pub slots: Option<usize>,
    /// `--prefetch`.
    pub prefetch: Option<u16>,
}

/// A pool, with where each of its values comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The pool.
    pub pool: Pool,
    /// Its values in the order of the reference; a key without a value is left out.
    pub values: Vec<Value>,
}

/// A value of a pool, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// With its section, such as `retry.max`.
    pub key: String,
    /// As TOML; `(hidden)` for environment variables that are not defaults.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from, each over the ones before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// `workers/default.toml`, as compiled in.
    Default,
    /// Worked out on this machine.
    Computed,
    /// A pool file.
    File(PathBuf),
    /// A flag, or its environment twin.
    Flag(&'static str),
}

/// All that is wrong with the files and flags, a line each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);

/// One thing that is wrong, such as `workers/x.toml: timeout: expected a duration such as "30s", got "soon"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file or flag at fault.
    pub origin: Origin,
    /// The key, with its section; empty for the file as a whole.
    pub key: String,
    /// What is expected there and what was found.
    pub message: String,
}

/// Loads one pool file.
///
/// # Errors
///
/// Everything that is wrong with the file and the flags; see [`ConfigErrors`].
pub fn load(path: &Path, overrides: &Overrides) -> Result<Loaded, ConfigErrors> {
    Draft::of_file(path, overrides).finish()
}

/// Loads the pool that `workers/default.toml` describes, without a file.
///
/// # Errors
///
/// When a flag is out of its range.
pub fn load_default(overrides: &Overrides) -> Result<Loaded, ConfigErrors> {
    Draft::of_defaults(overrides).finish()
}

/// Loads pool files that one worker is to serve together.
///
/// # Errors
///
/// Everything that is wrong with any file or flag, and files that describe the same pool.
pub fn load_all<P: AsRef<Path>>(paths: &[P], overrides: &Overrides) -> Result<Vec<Loaded>, ConfigErrors> {
    let mut drafts: Vec<Draft> = paths
        .iter()
        .map(|path| Draft::of_file(path.as_ref(), overrides))
        .collect();
    draft::refuse_same_names(&mut drafts);
    let (loaded, errors): (Vec<_>, Vec<_>) = drafts.into_iter().map(Draft::finish).partition(Result::is_ok);
    if errors.is_empty() {
        return Ok(loaded.into_iter().flatten().collect());
    }
    Err(ConfigErrors::joined(errors.into_iter().filter_map(Result::err)))
}

impl Pool {
    /// Returns the pool that `workers/default.toml` describes.
    #[must_use]
    pub fn default_pool() -> Self {
        let loaded = load_default(&Overrides::default());
        loaded.expect("workers/default.toml is compiled in, and tested").pool
    }
}

/// Shows no values of the environment, and only what tells one pool from another.
impl fmt::Debug for Pool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Pool")
            .field("name", &self.name)
            .field("slots", &self.slots)
            .field("prefetch", &self.prefetch)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl ConfigErrors {
    /// Joins the errors of several files; a flag that is wrong for all of them is named once.
    fn joined(all: impl Iterator<Item = Self>) -> Self {
        let mut joined = Vec::new();
        for error in all.flat_map(|errors| errors.0) {
            if !joined.contains(&error) {
                joined.push(error);
            }
        }
        Self(joined)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::Computed => out.write_str("computed"),
            Self::File(path) => write!(out, "{}", path.display()),
            Self::Flag(flag) => out.write_str(flag),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, message } = self;
        match origin {
            Origin::Flag(flag) => write!(out, "{flag}: {message}"),
            _ if key.is_empty() => write!(out, "{origin}: {message}"),
            _ => write!(out, "{origin}: {key}: {message}"),
        }
    }
}

#[cfg(test)]
mod tests;
