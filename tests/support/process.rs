//! What `/proc` says of processes, and waiting for what gives no event.
//!
//! Polling is for such outside state only, always under a limit. What a test can await, it awaits.
//! A zombie counts as gone here: it holds nothing but its number, until its parent reaps it.

use std::{
    collections::HashSet,
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, kill_process};
use serde::{Deserialize, Serialize};

pub use rustix::process::Signal;

/// How often outside state is looked at.
const POLL: Duration = Duration::from_millis(20);

/// One process as it was when looked at. Its start time tells it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// Clock ticks from boot to its start.
    pub started: u64,
    /// Arguments, with spaces between; empty for a zombie.
    pub command: String,
}

impl Process {
    /// Reads a process, `None` if there is none with that number or only its zombie.
    pub fn read(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; the fields after it hold no parenthesis (proc_pid_stat(5)).
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if matches!(fields[0], "Z" | "X") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self {
            pid,
            parent: fields[1].parse().ok()?,
            started: fields[19].parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
        })
    }

    /// Tells whether it still runs (or is stopped, but not ended).
    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// Sends a signal, and nothing if it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            let pid = Pid::from_raw(self.pid.cast_signed()).expect("a process number is positive");
            let _ = kill_process(pid, signal); // an error says that it ended meanwhile
        }
    }
}

/// Lists all processes, but for zombies.
pub fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is there on Linux");
    entries
        .filter_map(|entry| Process::read(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// Lists the living children of a process, their children, and so on. Whoever left the family (a double fork whose
/// middle has ended) is not found: see [`alive_with_env`].
pub fn descendants(pid: u32) -> Vec<Process> {
    let all = all();
    let mut family = HashSet::from([pid]);
    loop {
        let before = family.len();
        family.extend(
            all.iter()
                .filter(|p| family.contains(&p.parent))
                .map(|p| p.pid)
                .collect::<Vec<_>>(),
        );
        if family.len() == before {
            break;
        }
    }
    family.remove(&pid);
    all.into_iter().filter(|p| family.contains(&p.pid)).collect()
}

/// Lists the living processes that were started with `key=value` in their environment, wherever they went since.
pub fn alive_with_env(key: &str, value: &str) -> Vec<Process> {
    let wanted = format!("{key}={value}");
    let has_it = |process: &Process| {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    all().into_iter().filter(has_it).collect()
}

/// Counts the entries of a folder of a process: `fd` are its descriptors, `task` its threads.
pub fn entries(pid: u32, folder: &str) -> usize {
    fs::read_dir(format!("/proc/{pid}/{folder}")).map_or(0, Iterator::count)
}

/// Bytes of a process that are in memory and its own.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.unwrap_or_default() * 1024
}

/// Waits until `condition` holds, and blocks the thread meanwhile.
///
/// # Panics
/// When it does not hold within `limit`; the message names `what`.
#[track_caller]
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} for this, and it did not come: {what}"
        );
        sleep(POLL);
    }
}

/// Waits as [`wait_until`] does, and lets the runtime's other tasks go on.
///
/// # Panics
/// When it does not hold within `limit`; the message names `what`.
pub async fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} for this, and it did not come: {what}"
        );
        tokio::time::sleep(POLL).await;
    }
}
