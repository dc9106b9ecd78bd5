//! Slots: how many commands of a pool run at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A pool's slots. A slot is free again when its command has ended, not when its result is confirmed.
#[derive(Clone)]
pub(super) struct Slots(Arc<Semaphore>);

/// A taken slot; free again when dropped.
pub(super) struct Slot {
    _permit: OwnedSemaphorePermit,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self(Arc::new(Semaphore::new(count)))
    }

    /// Waits for a free slot, first come, first served.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the line is lost.
    pub(super) async fn take(&self) -> Slot {
        let permit = self.0.clone().acquire_owned().await;
        Slot {
            _permit: permit.expect("the semaphore is never closed"),
        }
    }
}
