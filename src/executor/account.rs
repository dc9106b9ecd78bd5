//! What is counted of helper processes. It holds none of them, so who reads it keeps none alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Counts the helper processes of a worker. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct SpawnerAccount(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    alive: AtomicUsize,
    replaced: AtomicU64,
    keepers: AtomicUsize,
    idle: AtomicUsize,
}

/// Holds what a [`SpawnerAccount`] has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpawnerStats {
    /// Spawners that live now, as far as it is known: the death of one is heard of at once.
    pub alive: usize,
    /// Spawners that took the place of one that had died, ever.
    pub replaced: u64,
    /// Keepers now: processes that run one command at a time.
    pub keepers: usize,
    /// Those of them that run none.
    pub idle: usize,
}

impl SpawnerAccount {
    /// Reads the counts.
    #[must_use]
    pub fn stats(&self) -> SpawnerStats {
        SpawnerStats {
            alive: self.0.alive.load(Ordering::Relaxed),
            replaced: self.0.replaced.load(Ordering::Relaxed),
            keepers: self.0.keepers.load(Ordering::Relaxed),
            idle: self.0.idle.load(Ordering::Relaxed),
        }
    }

    pub(super) fn spawner_started(&self) {
        self.0.alive.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn spawner_died(&self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn spawner_replaced(&self) {
        self.0.replaced.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn keepers_are_idle(&self, count: usize) {
        self.0.idle.store(count, Ordering::Relaxed);
    }

    /// One more keeper, until what is returned is dropped.
    pub(super) fn keeper(&self) -> Counted {
        self.0.keepers.fetch_add(1, Ordering::Relaxed);
        Counted(self.0.clone())
    }
}

/// A keeper that is counted.
pub(super) struct Counted(Arc<Counts>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.keepers.fetch_sub(1, Ordering::Relaxed);
    }
}
