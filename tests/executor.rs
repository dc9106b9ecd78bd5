//! Whole runs, of real commands, by real helper processes: the commands that misbehave are in
//! `tests/fixtures/commands`.
//!
//! Where a test waits for a real timeout, the command says in its output that it is ready, and gets more time until it
//! was ([`once_up`]).
//!
//! - [`ends`]: how runs end, by themselves and by the clock, and what is told of it;
//! - [`stops`]: runs that are stopped, given up, or held up by a helper;
//! - [`output`]: what is kept of output, and who may hold it up;
//! - [`leftovers`]: what commands leave behind;
//! - [`surroundings`]: what commands get: stdin, arguments, environment, rights, limits;
//! - [`refusals`]: what cannot be started, and what starts nevertheless.

#![allow(clippy::unwrap_used)] // what cannot be set up is a failed test

#[path = "executor/ends.rs"]
mod ends;
#[path = "executor/leftovers.rs"]
mod leftovers;
#[path = "executor/output.rs"]
mod output;
#[path = "executor/refusals.rs"]
mod refusals;
#[path = "executor/stops.rs"]
mod stops;
#[path = "executor/surroundings.rs"]
mod surroundings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Pid;

use synthex::executor::{
    CgroupChoice, End, Leftovers, NotStarted, Outcome, Rights, Run, SpawnerOptions, Spawners, Stop, execute,
};
use synthex::message::{FailureKind, Limits, SignalName};

const MAX_OUTPUT: u64 = 64 * 1024;

/// Above anything a run here waits for by design, below what a command left alone would take.
const SOON: Duration = Duration::from_secs(50);

/// How often a start of something is tried that a busy machine may be too late for.
const TRIES: usize = 20;

/// Longer than any command here needs to get ready.
const UP_WITHIN: Duration = Duration::from_secs(10);

fn run<const N: usize>(command: [&str; N]) -> Run {
    Run {
        program: command[0].into(),
        args: command[1..].iter().map(OsString::from).collect(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]).into(),
        cwd: None,
        stdin: Bytes::new(),
        timeout: Duration::from_secs(60),
        term_signal: SignalName::TERM,
        kill_grace: Duration::from_secs(60),
        limits: Limits::default(),
        warning: None,
        leftovers: Leftovers::default(),
        rights: Rights::default(),
        max_output: MAX_OUTPUT,
    }
}

fn bash(script: &str) -> Run {
    run(["bash", "-c", script])
}

fn fixture(name: &str) -> Run {
    run([&format!(
        "{}/tests/fixtures/commands/{name}",
        env!("CARGO_MANIFEST_DIR")
    )])
}

fn spawners() -> Spawners {
    so_many_spawners(1)
}

fn so_many_spawners(count: usize) -> Spawners {
    let options = SpawnerOptions {
        program: env!("CARGO_BIN_EXE_synthex").into(),
        count,
        catch_orphans: false,
        cgroup: CgroupChoice::None,
    };
    Spawners::start(options).expect("a helper process")
}

async fn outcome(run: Run) -> Outcome {
    execute(&spawners(), run, Stop::default()).await
}

/// What becomes of a command that has to be up by some time: the time is made longer until it was, as on a busy machine
/// it may have to wait for a processor. Gives the time, too.
async fn once_up(
    is_up: fn(&Outcome) -> bool,
    at_first: Duration,
    run: impl Fn(Duration) -> Run,
) -> (Duration, Outcome) {
    let mut time = at_first;
    loop {
        let outcome = outcome(run(time)).await;
        if is_up(&outcome) || time > UP_WITHIN {
            return (time, outcome);
        }
        time *= 6;
    }
}

fn has_spoken(outcome: &Outcome) -> bool {
    outcome.stdout.bytes > 0
}

/// Runs what is expected to exit with 0 and gives its stdout.
async fn stdout(run: Run) -> String {
    let outcome = outcome(run).await;
    assert_eq!(outcome.end, End::Exited(0), "{outcome:?}");
    outcome.stdout.text
}

async fn refusal(run: Run) -> (FailureKind, String) {
    let outcome = outcome(run).await;
    assert_eq!(
        (outcome.started_at, outcome.duration, outcome.kill_time),
        (None, Duration::ZERO, None)
    );
    assert_eq!((outcome.stdout.bytes, outcome.stderr.bytes), (0, 0));
    match outcome.end {
        End::NotStarted(NotStarted { kind, message, .. }) => (kind, message),
        end => panic!("started: {end:?}"),
    }
}

fn timed_out(exit_code: Option<i32>, signal: Option<SignalName>) -> End {
    End::TimedOut { exit_code, signal }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().expect("a process number")).expect("a process number")
}

/// The state of a process as proc(5) has it, `None` when there is none of that number.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits until the process is dead and reaped.
async fn reaped(pid: Pid) {
    let dead = async {
        while state(pid).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, dead).await.expect("the process is dead");
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}
