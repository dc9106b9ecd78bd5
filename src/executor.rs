//! Runs one command and says how it ended.
//!
//! [`execute`] takes a [`Run`], which is everything the command gets (nothing is inherited from the worker but its
//! user, its limits and its umask), and gives an [`Outcome`]. A command that fails, or cannot be started, is an outcome
//! too: there is no error.
//!
//! No command is a child of the worker itself. A few small helper processes, the [`spawner`]s, are started before
//! anything else; they fork *keepers*, and a keeper runs one command at a time. The worker gives it the command and the
//! command's ends of three pipes, moves the bytes that come through the others, and waits for one answer. All else is
//! the keeper's: the deadlines, the signals, the end of every process that the command started. So a busy or stopped
//! worker is late for nothing, a dead one leaves nothing behind, and a large one is no slower to start a command.
//!
//! The rooms, in the order a run passes through them:
//!
//! - `environment` is what a run shares with others of its pool, `request` puts it into words, `program` says which files may be meant, and later why none could be started;
//! - `client` lends out keepers, and replaces helpers that die; `protocol` is what both sides say;
//! - [`spawner`] is the other side: the helper processes, and there `keeper`, `job`, `child`, `tree`;
//! - `ending` decides, in the keeper, what comes when; `limits`, `cgroup` and `landlock` hold the command in;
//! - `streams` feeds stdin and drains stdout and stderr, `output` holds the part of them that is kept, `audience` is who
//!   hears them meanwhile;
//! - `outcome` is what came of it.
//!
//! What holds whatever the command does:
//!
//! - when [`execute`] returns, no process that the command started is left, whatever session, group or environment it
//!   gave itself ([`Leftovers::Allow`] apart, and a process that hangs inside the kernel, which dies when it can);
//! - when its future is dropped, or the worker dies, the same is true a moment later;
//! - output is drained to the end of the run, whatever is kept of it: at most `max_output` bytes a stream;
//! - no wait after the deadline plus `kill_grace` is without a bound.
//!
//! What it does not do: a command of the worker's own user can kill its keeper, which is the end of both; and what it
//! asks of others to start for it (cron, systemd, a container engine) is not its own. Nothing is retried but a start
//! that found its program being written.

mod account;
mod audience;
mod cgroup;
mod client;
mod ending;
mod environment;
mod landlock;
mod limits;
mod outcome;
mod output;
mod program;
mod protocol;
mod request;
pub mod spawner;
mod streams;
mod support;

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::message::{Limits, SignalName};
pub use account::{SpawnerAccount, SpawnerStats};
pub use audience::{Ear, Listeners, Nobody, SoFar};
pub use cgroup::{CgroupError, Choice as CgroupChoice};
pub use client::LOCK;
use client::{Answer, Keeper};
pub use client::{SpawnerOptions, Spawners, StartError};
pub use environment::{Environment, Variables};
pub use outcome::{End, Fault, NotStarted, Outcome};
use protocol::Cause;
use request::Request;
use streams::Streams;
pub use support::{CgroupSupport, landlock_abi};

/// How long output may go on after the last process of a run is gone: a process of another run may hold its pipes.
const DRAIN_GRACE: Duration = Duration::from_millis(100);

/// How long a command counts as starting. A short one is over by then.
const START: Duration = Duration::from_millis(5);

/// How long after the last moment at which it should have answered a keeper is taken for hung.
const ANSWER_GRACE: Duration = Duration::from_secs(10);

/// Keepers that are tried when one after the other dies before it has read the command.
const TRIES: usize = 3;

/// Runs the command to its end, and that of everything it started.
///
/// [`Stop`] ends it before its time; a run that was not started yet never is then.
///
/// # Cancel safety
///
/// Dropping the future has all of it killed; the outcome is lost.
pub async fn execute(spawners: &Spawners, run: Run, stop: Stop) -> Outcome {
    execute_before(&mut Nobody, spawners, run, stop).await
}

/// As [`execute`], before an audience.
///
/// # Cancel safety
///
/// As [`execute`].
pub async fn execute_before(listeners: &mut impl Listeners, spawners: &Spawners, run: Run, stop: Stop) -> Outcome {
    let mut tries = 1;
    loop {
        let clock = Clock::start();
        let over = tokio::select! {
            biased;
            () = stop.given() => return Outcome::without_start(End::Cancelled, clock.elapsed()),
            begun = begin(spawners, &run, clock) => match begun {
                Ok(running) => running.see_through(listeners, spawners, &run, &stop, clock).await,
                Err(reason) => return Outcome::without_start(End::NotStarted(reason), clock.elapsed()),
            },
        };
        match over {
            Some(outcome) => return outcome,
            None if tries < TRIES => tries += 1,
            None => return Outcome::without_start(End::NotStarted(program::no_helper(None)), clock.elapsed()),
        }
    }
}

/// What ends a run before its time.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Ends it as its timeout would: `term_signal` to all of it, `kill_grace`, SIGKILL.
    pub end: CancellationToken,
    /// Kills all of it at once.
    pub kill: CancellationToken,
}

impl Stop {
    /// Waits until either is cancelled.
    async fn given(&self) {
        tokio::select! {
            () = self.end.cancelled() => {}
            () = self.kill.cancelled() => {}
        }
    }

    fn is_given(&self) -> bool {
        self.end.is_cancelled() || self.kill.is_cancelled()
    }
}

/// When a run began, on both clocks.
#[derive(Clone, Copy)]
struct Clock {
    wall: Timestamp,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            wall: Timestamp::now(),
            start: Instant::now(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A command that a keeper was given.
struct Running {
    keeper: Keeper,
    /// How long it waited for the keeper, and for its turn.
    waited: Duration,
    streams: Streams,
    turn: OwnedSemaphorePermit,
}

/// Gives the command to a keeper.
///
/// # Errors
///
/// When it cannot be started as it was asked for; nothing of it runs then.
async fn begin(spawners: &Spawners, run: &Run, clock: Clock) -> Result<Running, NotStarted> {
    let request = Request::new(run)?;
    let keeper = spawners
        .keeper()
        .await
        .map_err(|error| program::no_helper(Some(&error)))?;
    let turn = spawners.turn_to_start().await;
    let (pipes, theirs) = streams::pipes(run).map_err(|error| program::no_descriptors(&error))?;
    let waited = clock.elapsed();
    // A keeper that is dead gives no answer, and that is where it is seen.
    let _ = request.send(&keeper, &theirs);
    Ok(Running {
        keeper,
        waited,
        streams: Streams::new(pipes, run.stdin.clone(), run.max_output),
        turn,
    })
}

impl Running {
    /// Moves bytes until the keeper answers, and has it make an end when one is wanted. `None` when it was not started
    /// and another keeper may start it.
    async fn see_through(
        self,
        listeners: &mut impl Listeners,
        spawners: &Spawners,
        run: &Run,
        stop: &Stop,
        clock: Clock,
    ) -> Option<Outcome> {
        let Self {
            keeper,
            waited,
            mut streams,
            turn,
        } = self;
        if listeners.are_there() {
            streams.tell(listeners);
        }
        let Some(answer) = answer(&keeper, &mut streams, listeners, turn, run, stop).await else {
            spawners.discard(keeper).await;
            return Some(Outcome::of_dead_helper(streams, clock, stop.is_given()));
        };
        match answer {
            Answer::Unread => None,
            Answer::Died => {
                within_grace(streams.ended()).await;
                Some(Outcome::of_dead_helper(streams, clock, stop.is_given()))
            }
            Answer::Failed(failure) => {
                spawners.give_back(keeper);
                let reason = program::explain(failure, run).await;
                Some(Outcome::without_start(End::NotStarted(reason), clock.elapsed()))
            }
            Answer::Ended(report) => {
                // What is in the pipes is all there will be. Where somebody else holds them, they are closed with what
                // was read.
                within_grace(streams.ended()).await;
                // A stop that nobody here asked for: the keeper's spawner was killed.
                if report.cause == Cause::Stop && !stop.is_given() {
                    return Some(Outcome::of_dead_helper(streams, clock, false));
                }
                if report.reusable {
                    spawners.give_back(keeper);
                } else if report.released {
                    spawners.release(keeper).await;
                }
                Some(Outcome::of_report(&report, streams, run, clock, waited))
            }
        }
    }
}

/// The keeper's answer; `None` if it gives none when it should have long ago.
async fn answer(
    keeper: &Keeper,
    streams: &mut Streams,
    listeners: &mut impl Listeners,
    turn: OwnedSemaphorePermit,
    run: &Run,
    stop: &Stop,
) -> Option<Answer> {
    let by_itself = run
        .timeout
        .saturating_add(run.kill_grace)
        .saturating_add(ending::KILL_WAIT);
    let answer = async {
        tokio::select! {
            biased;
            answer = keeper.answer() => Some(answer),
            () = stop.kill.cancelled() => {
                keeper.kill();
                timeout(ending::KILL_WAIT.saturating_add(ANSWER_GRACE), keeper.answer()).await.ok()
            }
            () = tokio::time::sleep(by_itself.saturating_add(ANSWER_GRACE)) => None,
        }
    };
    let ended = async {
        stop.end.cancelled().await;
        keeper.end();
        std::future::pending().await
    };
    let is_fed = streams.feed_at_once();
    let started = async {
        tokio::time::sleep(START).await;
        drop(turn);
    };
    let flow = async {
        if is_fed {
            started.await; // most commands are over before there is anything to move
            streams.flow(listeners).await
        } else {
            tokio::join!(started, streams.flow(listeners)).1
        }
    };
    tokio::select! {
        biased;
        answer = answer => answer,
        never = flow => match never {},
        never = ended => never,
    }
}

async fn within_grace(work: impl Future<Output = ()>) {
    let _ = timeout(DRAIN_GRACE, work).await;
}

/// A command and everything it is given.
#[derive(Clone)]
pub struct Run {
    /// Looked up in the `PATH` of `env`, or `/bin:/usr/bin` without one; with a slash in it,
    /// relative to `cwd`.
    pub program: OsString,
    /// What follows the program's name.
    pub args: Vec<OsString>,
    /// The whole environment: nothing is inherited.
    pub env: Environment,
    /// An absolute path; `None` is the worker's own directory.
    pub cwd: Option<PathBuf>,
    /// Written to the command's stdin, which is then closed; empty is `/dev/null`.
    pub stdin: Bytes,
    /// Wall clock time from the start until `term_signal`.
    pub timeout: Duration,
    /// What all of it is asked to end with at the timeout.
    pub term_signal: SignalName,
    /// Time from `term_signal` until SIGKILL.
    pub kill_grace: Duration,
    /// A warning of the timeout, if there is to be one.
    pub warning: Option<Warning>,
    /// What becomes of processes that the command leaves behind when it ends by itself.
    pub leftovers: Leftovers,
    /// For the whole tree where there is a cgroup to hold it, else for each process.
    pub limits: Limits,
    /// What the command may do.
    pub rights: Rights,
    /// Bytes kept of each stream, half from its start and half from its end.
    pub max_output: u64,
}

/// A signal before the timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// How long before the timeout it is sent.
    pub before: Duration,
    /// What is sent.
    pub signal: SignalName,
}

/// What becomes of processes that outlive the command when it ends by itself. At its timeout, and when it is stopped,
/// all are killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leftovers {
    /// They are killed, a moment after the command's end.
    #[default]
    Kill,
    /// They live on, no longer the job's.
    Allow,
}

/// What a command may do, over what its user may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Who it runs as; `None` is the worker's own user. Needs a worker that is root.
    pub user: Option<UserIds>,
    /// The file mode creation mask; `None` is the worker's own.
    pub umask: Option<u32>,
    /// Whether it may gain rights by running setuid programs (sudo).
    pub may_gain: bool,
    /// The paths beneath which it may write (Landlock); `None` is wherever its user may.
    pub writable: Option<Vec<PathBuf>>,
}

/// A user with all groups it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserIds {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// Shows the program alone: arguments and environments hold secrets.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}
