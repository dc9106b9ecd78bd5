//! What a worker holds while no job runs.

use std::collections::BTreeMap;

use crate::support::process::{descendants, entries, resident};

/// How much more resident memory the worker may have at the end: an allocator's own comings and goings, and the buffers
/// of as many publishing channels as were in use at a time.
const MEMORY: u64 = 12 << 20;

/// Threads and descriptors over those of before: a blocking task's thread that is not gone yet, and its like.
const THREADS: usize = 2;
const DESCRIPTORS: usize = 4;

/// Descriptors, threads, memory and helper processes.
#[derive(Clone, Debug)]
pub struct Footprint {
    /// How many there are of each kind, such as `socket`.
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    resident: u64,
    helpers: usize,
}

impl Footprint {
    pub fn of(worker: u32) -> Self {
        Self {
            descriptors: descriptors(worker),
            threads: entries(worker, "task"),
            resident: resident(worker),
            helpers: descendants(worker).len(),
        }
    }

    pub fn is_within(&self, before: &Self) -> bool {
        let count = |footprint: &Self| footprint.descriptors.values().sum::<usize>();
        count(self) <= count(before) + DESCRIPTORS
            && self.threads <= before.threads + THREADS
            && self.resident <= before.resident + MEMORY
            && self.helpers <= before.helpers
    }
}

fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    for link in entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()) {
        let link = link.to_string_lossy();
        let kind = link.split(":[").next().unwrap_or(&link);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

pub fn check(before: &Footprint, after: &Footprint) {
    println!("before {before:?}\nafter {after:?}");
    assert!(after.is_within(before), "a worker that was not restarted has grown");
}
