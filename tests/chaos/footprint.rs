//! What a worker holds while no job runs.

use crate::support::process::{descendants, entries, resident};

/// How much more resident memory the worker may have at the end: an allocator's own comings and goings, and the buffers
/// of as many publishing channels as were in use at a time.
const MEMORY: u64 = 12 << 20;

/// Threads and descriptors over those of before: a blocking task's thread that is not gone yet, and its like.
const THREADS: usize = 2;
const DESCRIPTORS: usize = 4;

/// Descriptors, threads, memory and helper processes.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    descriptors: usize,
    threads: usize,
    resident: u64,
    helpers: usize,
}

impl Footprint {
    pub fn of(worker: u32) -> Self {
        Self {
            descriptors: entries(worker, "fd"),
            threads: entries(worker, "task"),
            resident: resident(worker),
            helpers: descendants(worker).len(),
        }
    }

    pub fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors + DESCRIPTORS
            && self.threads <= before.threads + THREADS
            && self.resident <= before.resident + MEMORY
            && self.helpers <= before.helpers
    }
}

pub fn check(before: &Footprint, after: &Footprint) {
    println!("before {before:?}\nafter  {after:?}");
    assert!(after.is_within(before), "a worker that was not restarted has grown");
}
