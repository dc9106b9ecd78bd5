//! What is published, and how it has to end.

use serde_json::{Value, json};
use synthex::message::Status;

use crate::support::random::Random;

/// The variables by which commands know where to write a line, and for which worker.
pub const LEDGER: &str = "CHAOS_LEDGER";
pub const WORKER: &str = "CHAOS_WORKER";

/// Writes a line for the start of an attempt: job, attempt, time, worker. One write at the end of the file, so that lines
/// of many never mix.
const NOTE: &str = r#"echo "$SYNTHEX_JOB_ID $SYNTHEX_ATTEMPT $EPOCHREALTIME $CHAOS_WORKER" >>"$CHAOS_LEDGER""#;

/// A kind of job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Takes a millisecond, and is seen by its result alone.
    Short,
    /// Writes itself down, and takes some time.
    Noted,
    /// Takes longer than it takes to hand out a crowd of them; not among those of [`Kind::any`].
    Sleeper,
    Fails,
    /// Fails at its first attempt, and is tried again.
    FailsOnce,
    /// Fails at both of its runs, and is dead-lettered.
    FailsAlways,
    /// Leaves a daemon that closed its streams and left its session.
    LeavesDaemon,
    TimesOut,
    KillsItself,
    Missing,
    /// No job at all.
    Bad,
}

impl Kind {
    /// Each kind as often as its weight.
    pub fn any(random: &mut Random) -> Self {
        const WEIGHTS: [(Kind, usize); 10] = [
            (Kind::Short, 8),
            (Kind::Noted, 14),
            (Kind::Fails, 3),
            (Kind::FailsOnce, 3),
            (Kind::FailsAlways, 2),
            (Kind::LeavesDaemon, 2),
            (Kind::TimesOut, 1),
            (Kind::KillsItself, 1),
            (Kind::Missing, 1),
            (Kind::Bad, 1),
        ];
        let all: Vec<Self> = WEIGHTS
            .into_iter()
            .flat_map(|(kind, weight)| vec![kind; weight])
            .collect();
        *random.pick(&all)
    }

    pub fn body(self, random: &mut Random) -> Value {
        let script = |then: &str| json!({ "script": format!("{NOTE}; {then}") });
        let retry = |mut job: Value| {
            job["retry"] = json!({ "max_attempts": 2, "initial": "250ms", "max": "250ms" });
            job
        };
        match self {
            Self::Short => json!({ "command": ["true"] }),
            Self::Noted => script(&format!("sleep 0.{:03}", random.between(5, 250))),
            Self::Sleeper => script("sleep 1"),
            Self::Fails => script("exit 3"),
            Self::FailsOnce => retry(script("exit $((SYNTHEX_ATTEMPT < 2))")),
            Self::FailsAlways => retry(script("exit 1")),
            Self::LeavesDaemon => script("setsid sleep 600 <&- >&- 2>&- &"),
            Self::TimesOut => {
                let mut job = script("exec sleep 600");
                (job["timeout"], job["kill_grace"]) = (json!("400ms"), json!("100ms"));
                job
            }
            Self::KillsItself => script("kill -KILL $$"),
            Self::Missing => json!({ "command": ["/no/such/program"] }),
            Self::Bad => json!({ "command": [] }),
        }
    }

    /// What its last result says.
    pub fn ends_as(self) -> Status {
        match self {
            Self::Short | Self::Noted | Self::Sleeper | Self::FailsOnce | Self::LeavesDaemon => Status::Succeeded,
            Self::Fails | Self::FailsAlways => Status::Failed,
            Self::TimesOut => Status::TimedOut,
            Self::KillsItself => Status::Signaled,
            Self::Missing => Status::NotStarted,
            Self::Bad => Status::Rejected,
        }
    }

    /// Whether it is dead-lettered at its end.
    pub fn is_dead_lettered(self) -> bool {
        matches!(self, Self::FailsAlways | Self::Bad)
    }

    /// Whether each start writes a line.
    pub fn is_noted(self) -> bool {
        !matches!(self, Self::Short | Self::Missing | Self::Bad)
    }
}
