//! A pool file as it is written: the raw layer, in which every key may be left out.
//!
//! The doc comments are the descriptions in `schemas/pool.v1.json`. Trade-offs and defaults are told in
//! `workers/default.toml`.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rate::{self, Frequency};
use crate::executor::Leftovers;
use crate::message::{ByteSize, Limits, OutputPolicy, RetryPolicy, SignalName, Span};
use crate::transport::topology::Declare;

/// Most commands at a time; more is a slip of the finger, and each takes processes, pipes and memory.
pub(super) const MAX_SLOTS: u16 = 10_000;

/// Text without NUL, which no argument or variable of Linux can hold.
const NO_NUL: &str = r"^[^\x00]*$";

/// The jobs that a worker takes from one queue, and what they get that they don't say themselves.
///
/// A file is TOML; here it is described as the JSON of the same shape. Every key may be left out.
// No `Debug`: the environment may hold secrets.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Synthex pool file, version 1", extend("$id" = "urn:synthex:pool:v1"))]
pub struct PoolFile {
    /// The pool's name: part of its queue's name, the routing key of its jobs, and a label in metrics.
    #[schemars(regex(pattern = "^[A-Za-z0-9_-]{1,64}$"))]
    pub pool: Option<String>,
    /// How many commands run at a time. Default: the number of CPUs.
    #[schemars(range(min = 1, max = MAX_SLOTS))]
    pub slots: Option<u16>,
    /// How many jobs the worker holds at a time; not less than `slots`. Default: `slots`.
    #[schemars(range(min = 1, max = u16::MAX))]
    pub prefetch: Option<NonZeroU16>,
    /// The one command of the pool, program first: it gets each message's body on stdin, unread. Default: none,
    /// messages are jobs.
    #[schemars(length(min = 1), inner(regex(pattern = NO_NUL)), extend("prefixItems" = program()))]
    pub handler: Option<Vec<String>>,
    /// The exit codes with which a command says that it is no use to run its job again: the job is dead-lettered at once.
    /// Default: none.
    #[schemars(inner(range(min = 1, max = 255)))]
    pub dead_letter_exit_codes: Option<Vec<i32>>,
    /// Whether what happens to the pool's jobs is published to `synthex.events`, whoever listens. Else it is while
    /// somebody asks for it.
    pub events: Option<bool>,
    /// Whether the worker declares queues and exchanges that are missing, or only checks that they are there.
    #[serde(default, deserialize_with = "declare")]
    #[schemars(with = "Option<DeclareWord>")]
    pub declare: Option<Declare>,
    /// How many deliveries of a job may pass without an end of its run before it is given up as `lost`.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub delivery_limit: Option<NonZeroU32>,
    /// The largest body of a job that is accepted.
    pub max_job_bytes: Option<ByteSize>,
    /// How long running commands may go on once the worker was asked to stop.
    pub stop_grace: Option<Span>,
    /// The wall clock limit of a command: then it and every process it started get `term_signal`.
    pub timeout: Option<Span>,
    /// The longest `timeout` that a job may ask for; not less than `timeout`.
    pub max_timeout: Option<Span>,
    /// The time from `term_signal` to SIGKILL, for a command and every process it started, in whatever session or
    /// group.
    pub kill_grace: Option<Span>,
    /// The signal that asks a command, and every process it started, to end. SIGCONT follows it, as a stopped process
    /// sees no other.
    pub term_signal: Option<SignalName>,
    /// How long before its timeout a command, and every process it started, get `warn_signal`; shorter than `timeout`.
    /// A job whose timeout is not longer than this is not warned. Default: no warning.
    pub warn_before: Option<Span>,
    /// The signal that warns of the timeout. It ends a command that neither catches nor ignores it.
    pub warn_signal: Option<SignalName>,
    /// What becomes of processes that a command leaves running when it ends by itself; at its timeout all are killed.
    #[serde(default, deserialize_with = "leftovers")]
    #[schemars(with = "Option<LeftoversWord>")]
    pub leftovers: Option<Leftovers>,
    /// What runs a job's `script`, program first; the script is added as the last argument, and nothing stands between.
    #[schemars(length(min = 1), inner(regex(pattern = NO_NUL)), extend("prefixItems" = program()))]
    pub shell: Option<Vec<String>>,
    /// Whether only the programs of `allow` are run, as the pool's file says: a job may set neither `script`, `env`,
    /// `cwd` nor `limits`. Not together with `handler`.
    pub restricted: Option<bool>,
    /// The working directory of commands, an absolute path. Default: the worker's own.
    #[schemars(regex(pattern = r"^/[^\x00]*$"))]
    pub cwd: Option<PathBuf>,
    /// The user that commands run as, by name or number, with all groups it is in. Needs a worker that is root, or is
    /// that user. Default: the worker's own.
    #[schemars(length(min = 1))]
    pub user: Option<String>,
    /// The group that commands run as, by name or number. Needs a worker that is root, or is of that group. Default:
    /// the group of `user`, else the worker's own.
    #[schemars(length(min = 1))]
    pub group: Option<String>,
    /// The file mode creation mask of commands, in octal. Default: the worker's own.
    #[schemars(regex(pattern = "^0?[0-7]{1,3}$"), example = "022")]
    pub umask: Option<String>,
    /// Whether commands are kept from gaining rights by programs such as sudo (setuid, setgid, file capabilities).
    pub no_new_privs: Option<bool>,
    /// The only paths, absolute, beneath which commands may write (Landlock), besides devices that keep nothing. Needs
    /// `no_new_privs`. Default: wherever their user may.
    #[schemars(inner(regex(pattern = r"^/[^\x00]*$")))]
    pub writable: Option<Vec<PathBuf>>,
    /// Environment variables of commands, added to the defaults one by one; nothing of the worker's own gets in.
    #[schemars(inner(regex(pattern = NO_NUL)), extend("propertyNames" = { "pattern": r"^[^=\x00]+$" }))]
    pub env: Option<BTreeMap<String, String>>,
    /// What a restricted pool runs: by the full path of a program, in which `*` and `?` stand for characters of one part,
    /// regular expressions, one of which each argument has to match as a whole; none: it takes no arguments. Needs
    /// `restricted`.
    #[schemars(extend("propertyNames" = { "pattern": r"^/[^\x00]+$" }))]
    pub allow: Option<BTreeMap<String, Vec<String>>>,
    /// When a job runs again after a failure that may pass.
    pub retry: Option<RetryPolicy>,
    /// What a command and everything it starts may use.
    pub limits: Option<Limits>,
    /// What is kept and published of a command's output.
    pub output: Option<OutputPolicy>,
    /// How often jobs are started.
    pub rate: Option<RateKeys>,
    /// How often commands of single programs are started: by a program as jobs name it, in which `*` and `?` stand for
    /// characters of one part, a rate, which each program that it covers has for itself; of several, the name, else the
    /// longest. As many start at once as in a period. Default: no limit.
    #[schemars(
        with = "Option<BTreeMap<String, String>>",
        inner(regex(pattern = rate::PATTERN)),
        extend("propertyNames" = { "pattern": r"^[^\x00]+$" })
    )]
    pub program_rates: Option<BTreeMap<String, Frequency>>,
    /// When jobs whose command cannot be started here are put off instead of being ended as `not_started`.
    pub breaker: Option<BreakerKeys>,
}

/// How often the jobs of a pool are started on one worker. Those that wait have no slot.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rate")]
pub struct RateKeys {
    /// So many a second, minute or hour, such as `"100/s"`. Default: no limit.
    #[schemars(with = "Option<String>", regex(pattern = rate::PATTERN))]
    pub jobs: Option<Frequency>,
    /// So many at once, after a time with fewer. Needs `jobs`. Default: as many as in a period.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub burst: Option<NonZeroU32>,
}

/// When jobs whose command cannot be started here are put off: they go back through a delay queue, for any worker.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Breaker")]
pub struct BreakerKeys {
    /// After so many starts of the same command that fail in a row.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub failures: Option<NonZeroU32>,
    /// For so long; then one of them is tried.
    pub delay: Option<Span>,
    /// At most so often each; then it gets its result.
    #[schemars(range(min = 1, max = u32::MAX))]
    pub put_offs: Option<NonZeroU32>,
}

/// Describes the first word of a command.
fn program() -> Value {
    json!([{ "type": "string", "pattern": r"^[^\x00]+$" }])
}

// The words for `Declare`, which itself knows nothing of files.
/// What to do about queues and exchanges.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Declare")]
enum DeclareWord {
    /// Declares what is missing.
    Active,
    /// Declares nothing, and fails clearly when something is missing.
    Passive,
}

fn declare<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Declare>, D::Error> {
    let word = Option::<DeclareWord>::deserialize(from)?;
    Ok(word.map(|word| match word {
        DeclareWord::Active => Declare::Active,
        DeclareWord::Passive => Declare::Passive,
    }))
}

// The words for `Leftovers`, which itself crosses no border but that of the helper processes.
/// What to do about processes that outlive their command.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "Leftovers")]
enum LeftoversWord {
    /// They have a tenth of a second to end, and are killed then.
    Kill,
    /// They live on, no longer the job's.
    Allow,
}

fn leftovers<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Leftovers>, D::Error> {
    let word = Option::<LeftoversWord>::deserialize(from)?;
    Ok(word.map(|word| match word {
        LeftoversWord::Kill => Leftovers::Kill,
        LeftoversWord::Allow => Leftovers::Allow,
    }))
}
