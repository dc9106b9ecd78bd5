//! SIGTERM and SIGINT: the first drains, the second aborts.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Mutex;

use crate::supervise::{Child, Restart, Shutdown, TaskError};
use crate::worker::event::{Event, Observer};

/// The task that turns signals into the shutdown of everything. It is added first, so it hears signals to the end.
pub(super) fn child(signals: Signals, everything: Shutdown, observer: Arc<dyn Observer>) -> Child {
    let signals = Arc::new(Mutex::new(signals)); // held by the task that listens, also after a restart
    Child::new("signals", Restart::Permanent, move |own| {
        listen(signals.clone(), everything.clone(), observer.clone(), own)
    })
}

async fn listen(
    signals: Arc<Mutex<Signals>>,
    everything: Shutdown,
    observer: Arc<dyn Observer>,
    own: Shutdown,
) -> Result<(), TaskError> {
    let mut signals = signals.lock().await;
    loop {
        tokio::select! {
            // Our own shutdown comes last, when all others have ended.
            () = own.draining() => return Ok(()),
            name = signals.next() => obey(name, &everything, &*observer),
        }
    }
}

fn obey(name: &str, everything: &Shutdown, observer: &dyn Observer) {
    if everything.is_draining() {
        tracing::warn!("{name} again: killing what runs and giving it back");
        everything.abort();
    } else {
        tracing::info!("{name}: stopping; once more to kill what runs");
        observer.on(&Event::Draining);
        everything.drain();
    }
}

/// The signals, caught from the moment this is made.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches the signals from now on, so that none ends the process undrained.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal's name.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
