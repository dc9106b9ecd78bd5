//! An observer that keeps every event, and lets a test wait for one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use synthex::worker::event::{Event, Observer};
use tokio::sync::watch;

/// How long a test waits for an event: far more than any takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Events of a worker, in the order in which they were told.
pub struct Recorder {
    events: Mutex<Vec<Event>>,
    count: watch::Sender<usize>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            events: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Observer for Recorder {
    fn on(&self, event: &Event) {
        self.lock().push(event.clone());
        // Not under the lock: who waits looks at the events under the lock of the count.
        self.count.send_modify(|count| *count += 1);
    }
}

impl Recorder {
    /// Waits for an event, told already or yet to come.
    ///
    /// # Panics
    /// When it does not come: with all that did.
    pub async fn wait_for(&self, what: &str, wanted: impl Fn(&Event) -> bool) {
        self.wait_for_times(1, what, wanted).await;
    }

    /// Waits until so many events of a kind were told, from the beginning.
    ///
    /// # Panics
    /// When they do not come: with all that did.
    pub async fn wait_for_times(&self, times: usize, what: &str, wanted: impl Fn(&Event) -> bool) {
        let mut count = self.count.subscribe();
        let told = count.wait_for(|_| self.count(&wanted) >= times);
        if tokio::time::timeout(PATIENCE, told).await.is_err() {
            panic!("{times} times {what} did not come, but:\n{:#?}", self.lock());
        }
    }

    /// How many events of a kind were told.
    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.lock().iter().filter(|event| wanted(event)).count()
    }

    /// All events so far.
    pub fn events(&self) -> Vec<Event> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
