//! What is wrong, decided from facts alone.

mod topology;

use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::CgroupSupport;
use crate::config::Pool;
use crate::control::standing::{Given, Standing};
use crate::message::{ByteSize, Span, WorkerState};
use crate::transport::Version;
use crate::transport::amqp::Right;
use crate::transport::topology::CONSUMER_TIMEOUT;
pub(super) use topology::topology;

/// The oldest RabbitMQ that has all that is needed: streams, and dead-lettering at least once.
const OLDEST: (u32, u32) = (3, 10);
/// The first in which priorities have an effect in quorum queues.
const WITH_PRIORITY: (u32, u32) = (4, 0);
/// The first in which a queue says how long a delivery may stay unacked.
const WITH_QUEUE_TIMEOUT: (u32, u32) = (3, 12);
/// How long a node lets a delivery stay unacked unless it is told otherwise.
const NODE_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// The largest message unless a node is told otherwise, before and from the version that changed it.
const LARGEST: (u64, u64) = (128 << 20, 16 << 20);
const WITH_SMALLER_MESSAGES: (u32, u32) = (4, 0);
/// Clocks that differ by more put jobs in a wrong order with cancels, and start them too early or too late.
const SKEW: SignedDuration = SignedDuration::from_secs(2);

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(in crate::cli) struct Finding {
    /// What was checked, in a word.
    pub(in crate::cli) check: &'static str,
    /// How bad it is.
    pub(in crate::cli) severity: Severity,
    /// What was found.
    pub(in crate::cli) found: String,
    /// What to do about it; left out when it is ok.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) remedy: Option<String>,
}

/// How bad a finding is.
///
/// - `ok`: as it is to be
/// - `note`: may be all right, or cannot be told from here
/// - `problem`: something will not work; the exit code is 78
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(in crate::cli) enum Severity {
    Ok,
    Note,
    Problem,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn note(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Note,
            remedy: Some(remedy.into()),
            ..Self::ok(check, found)
        }
    }

    fn problem(check: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            severity: Severity::Problem,
            ..Self::note(check, found, remedy)
        }
    }
}

/// A line, and another one for the remedy.
impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Problem => "PROBLEM",
        };
        write!(out, "{severity:7}  {:16}  {}", self.check, self.found)?;
        match &self.remedy {
            Some(remedy) => write!(out, "\n{:27}do: {remedy}", ""),
            None => Ok(()),
        }
    }
}

/// Whether our user may do something that a worker does.
pub(super) struct Asked {
    /// What, after "may not".
    pub(super) what: String,
    /// The permissions that it takes.
    pub(super) patterns: String,
    pub(super) right: Right,
}

/// A clock elsewhere, read at some moment of a window on ours.
pub(super) struct Clock {
    pub(super) at: Timestamp,
    pub(super) window: (Timestamp, Timestamp),
}

pub(super) fn no_broker(failure: &str) -> Finding {
    Finding::problem(
        "broker",
        failure,
        "start the broker, or say which with --amqp-url; what it would tell was not checked",
    )
}

pub(super) fn version(version: Option<&Version>) -> Vec<Finding> {
    vec![match version {
        None => Finding::note(
            "broker",
            "does not say its version",
            "use RabbitMQ 3.10 or later; what depends on its version cannot be checked",
        ),
        Some(version) if version.numbers < OLDEST => Finding::problem(
            "broker",
            format!(
                "RabbitMQ {} cannot dead-letter at least once: a job may be lost on its way",
                version.text
            ),
            "upgrade to RabbitMQ 3.10 or later",
        ),
        Some(version) => Finding::ok("broker", format!("RabbitMQ {}", version.text)),
    }]
}

pub(super) fn priority(version: Option<&Version>) -> Vec<Finding> {
    let old = version.filter(|version| version.numbers < WITH_PRIORITY);
    let note = |version: &Version| {
        Finding::note(
            "priority",
            format!("the priority of a job has no effect on RabbitMQ {}", version.text),
            "upgrade to RabbitMQ 4.0 or later if jobs need one; a pool of their own does as well",
        )
    };
    old.map(note).into_iter().collect()
}

/// A job is acked when it has ended, so the broker must not take it back before that.
pub(super) fn consumer_timeout(version: Option<&Version>, pools: &[Pool]) -> Vec<Finding> {
    const CHECK: &str = "consumer_timeout";
    let takes = |pool: &Pool| pool.max_timeout.saturating_add(pool.kill_grace);
    let Some(longest) = pools.iter().max_by_key(|pool| takes(pool)) else {
        return Vec::new();
    };
    let needed = takes(longest);
    let jobs = format!(
        "jobs of pool {:?} may take {} (max_timeout and kill_grace)",
        &*longest.name,
        Span::from(needed)
    );
    let by_queue = version.is_some_and(|version| version.numbers >= WITH_QUEUE_TIMEOUT);
    vec![match by_queue {
        true if needed <= CONSUMER_TIMEOUT => {
            Finding::ok(CHECK, format!("queues allow {}; {jobs}", Span::from(CONSUMER_TIMEOUT)))
        }
        true => Finding::problem(
            CHECK,
            format!("{jobs}, and queues allow {}", Span::from(CONSUMER_TIMEOUT)),
            "lower the pool's max_timeout",
        ),
        false if needed <= NODE_TIMEOUT => Finding::ok(CHECK, jobs),
        false => Finding::note(
            CHECK,
            format!(
                "{jobs}; this broker takes a job back after its own consumer_timeout, {} unless it is set, and does \
                 not tell it",
                Span::from(NODE_TIMEOUT)
            ),
            format!(
                "set consumer_timeout = {} or more in rabbitmq.conf, or upgrade to RabbitMQ 3.12 or later",
                needed.as_millis()
            ),
        ),
    }]
}

pub(super) fn message_size(version: Option<&Version>, pools: &[Pool]) -> Vec<Finding> {
    let is_later = version.is_none_or(|version| version.numbers >= WITH_SMALLER_MESSAGES);
    let largest = if is_later { LARGEST.1 } else { LARGEST.0 };
    let mut findings = Vec::new();
    for pool in pools {
        let too_large = [
            ("jobs", "max_job_bytes", pool.max_job_bytes),
            (
                "results",
                "output.max_bytes, twice",
                pool.output.max_bytes.saturating_mul(2),
            ),
        ];
        for (what, key, bytes) in too_large.into_iter().filter(|(.., bytes)| *bytes > largest) {
            findings.push(Finding::problem(
                "message_size",
                format!(
                    "pool {:?} allows for {what} of {} ({key}), and the broker for {} unless its max_message_size is set",
                    &*pool.name,
                    ByteSize::from_bytes(bytes),
                    ByteSize::from_bytes(largest)
                ),
                format!("lower {key} in the pool's file, or raise max_message_size in rabbitmq.conf"),
            ));
        }
    }
    if findings.is_empty() {
        let found = format!(
            "jobs and results fit into a message of {}",
            ByteSize::from_bytes(largest)
        );
        findings.push(Finding::ok("message_size", found));
    }
    findings
}

pub(super) fn rights(asked: &[Asked]) -> Vec<Finding> {
    let refused = |asked: &Asked| match &asked.right {
        Right::Refused(words) => Some(Finding::problem(
            "permissions",
            format!("this user may not {}: {words}", asked.what),
            format!("give it {} (`rabbitmqctl set_permissions`)", asked.patterns),
        )),
        Right::Granted | Right::Nothing => None,
    };
    let findings: Vec<Finding> = asked.iter().filter_map(refused).collect();
    let granted = asked.iter().filter(|asked| asked.right == Right::Granted).count();
    if !findings.is_empty() {
        return findings;
    }
    let found = match asked.len() - granted {
        0 => format!("this user may do all {granted} things that were tried"),
        untold => {
            format!("this user may do {granted} things that were tried; {untold} cannot be told before all is declared")
        }
    };
    vec![Finding::ok("permissions", found)]
}

pub(super) fn workers(workers: &[WorkerState], pools: &[Pool]) -> Vec<Finding> {
    let serves = |pool: &Pool| {
        let mut states = workers.iter().flat_map(|worker| &worker.pools);
        states.any(|state| *state.pool == *pool.name)
    };
    let unserved: Vec<String> = pools
        .iter()
        .filter(|pool| !serves(pool))
        .map(|pool| format!("{:?}", &*pool.name))
        .collect();
    vec![match &unserved[..] {
        [] => Finding::ok("workers", format!("{} answer, and serve every pool", workers.len())),
        unserved => Finding::note(
            "workers",
            format!("{} answer, and none serves pool {}", workers.len(), unserved.join(", ")),
            "start a worker for it; if one runs, its log says what is in the way",
        ),
    }]
}

pub(super) fn pauses(standing: &Standing) -> Vec<Finding> {
    let note = |(pool, given): (&String, &Given)| {
        Finding::note(
            "paused",
            format!("pool {pool:?} is paused {given}: no worker starts jobs of it"),
            format!("`synthex resume {pool}` once it may go on"),
        )
    };
    standing.paused.iter().map(note).collect()
}

pub(super) fn clock_of_broker(clock: &Result<Clock, String>) -> Vec<Finding> {
    vec![match clock {
        // Of the broker, whole seconds are known.
        Ok(Clock { at, window }) => clock_of(
            "the broker's clock",
            skew(*at, (window.0 - SignedDuration::from_secs(1), window.1)),
        ),
        Err(why) => Finding::note("clock", format!("the broker's is not known: {why}"), "see permissions"),
    }]
}

pub(super) fn clocks_of_workers(workers: &[WorkerState], asked: Timestamp, answered: Timestamp) -> Vec<Finding> {
    let clock = |worker: &WorkerState| {
        let skew = skew(worker.clock?, (asked, answered));
        Some(clock_of(&format!("the clock of worker {}", worker.id), skew))
    };
    workers.iter().filter_map(clock).collect()
}

/// How far a clock is ahead of a window of ours, or behind it.
fn skew(at: Timestamp, window: (Timestamp, Timestamp)) -> SignedDuration {
    if at > window.1 {
        at.duration_since(window.1)
    } else if at < window.0 {
        at.duration_since(window.0)
    } else {
        SignedDuration::ZERO
    }
}

fn clock_of(whose: &str, skew: SignedDuration) -> Finding {
    let off = Duration::try_from(skew.abs()).unwrap_or_default();
    if skew.abs() <= SKEW {
        return Finding::ok("clock", format!("{whose} agrees with ours"));
    }
    let way = if skew.is_positive() { "ahead of" } else { "behind" };
    Finding::problem(
        "clock",
        format!("{whose} is {:.1} s {way} ours", off.as_secs_f64()),
        "have both set by NTP (chrony, systemd-timesyncd): cancels, not_before and expires_at go by clocks",
    )
}

pub(super) fn cgroup(support: &Result<CgroupSupport, String>, pools: &[Pool]) -> Vec<Finding> {
    const CHECK: &str = "cgroup";
    let limits = |pool: &&Pool| pool.limits.memory.is_some() || pool.limits.processes.is_some();
    let limited = pools
        .iter()
        .find(limits)
        .map(|pool| format!(", as those of pool {:?} do", &*pool.name));
    let remedy = "run workers as the systemd unit does (Delegate=yes), or name a group with --cgroup";
    vec![match support {
        Err(why) => Finding::problem(CHECK, why, remedy),
        Ok(CgroupSupport::None) => Finding::note(
            CHECK,
            format!(
                "none is delegated to this process: limits of memory and processes{} count each process and not the job",
                limited.unwrap_or_default()
            ),
            remedy,
        ),
        Ok(CgroupSupport::Delegated { path, lacks }) if lacks.is_empty() => {
            Finding::ok(CHECK, format!("{} can be divided among jobs", path.display()))
        }
        Ok(CgroupSupport::Delegated { path, lacks }) => Finding::note(
            CHECK,
            format!("{} lacks {}", path.display(), lacks.join(" and ")),
            "enable it in cgroup.subtree_control of the group above",
        ),
    }]
}

pub(super) fn landlock(abi: Option<u8>, pools: &[Pool]) -> Vec<Finding> {
    const CHECK: &str = "landlock";
    let user = pools.iter().find(|pool| pool.rights.writable.is_some());
    vec![match (abi, user) {
        (None, Some(pool)) => Finding::problem(
            CHECK,
            format!(
                "this kernel has none, so pool {:?}, which says where commands may write, starts none",
                &*pool.name
            ),
            "run Linux 5.13 or later with landlock in its lsm= parameter, or leave out `writable`",
        ),
        (None, None) => Finding::note(
            CHECK,
            "this kernel has none; no pool here needs it",
            "run Linux 5.13 or later with landlock in its lsm= parameter before a pool says `writable`",
        ),
        (Some(abi @ ..3), Some(pool)) => Finding::note(
            CHECK,
            format!(
                "ABI {abi}: commands of pool {:?} may truncate any file that their user may{}",
                &*pool.name,
                if abi < 2 {
                    ", and rename none into another directory"
                } else {
                    ""
                }
            ),
            "run Linux 6.2 or later",
        ),
        (Some(abi), _) => Finding::ok(
            CHECK,
            format!("this kernel can say where commands may write (ABI {abi})"),
        ),
    }]
}

#[cfg(test)]
mod tests;
