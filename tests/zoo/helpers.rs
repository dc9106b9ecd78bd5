//! The helper processes of a worker, as `/proc` shows them.

use std::fs;

use crate::support::process::{Process, descendants};

/// The name of the processes that make keepers.
pub const SPAWNER: &str = "synthex-spawner";
/// The name of the processes that hold one job at a time.
pub const KEEPER: &str = "synthex-keeper";

/// The helper processes of one kind below a worker.
pub fn named(worker: u32, name: &str) -> Vec<Process> {
    let mut helpers = descendants(worker);
    helpers.retain(|process| comm(process.pid).as_deref() == Some(name));
    helpers
}

/// All helper processes below a worker, which has to have both kinds.
#[track_caller]
pub fn all(worker: u32) -> Vec<Process> {
    let (spawners, keepers) = (named(worker, SPAWNER), named(worker, KEEPER));
    assert!(!spawners.is_empty(), "no process called {SPAWNER} below the worker");
    assert!(!keepers.is_empty(), "no process called {KEEPER} below the worker");
    [spawners, keepers].concat()
}

fn comm(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}
