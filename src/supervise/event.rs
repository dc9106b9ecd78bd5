//! What a supervisor tells about its children: one event, read by the log and by an observer.

use std::time::Duration;

use super::Outcome;

/// Says what happened to a child of a supervisor, by the child's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SupervisorEvent {
    /// The child was started, for the first time or again.
    Started {
        /// Its name.
        child: &'static str,
    },
    /// The child ended as it was meant to: asked to, or with its work done.
    Finished {
        /// Its name.
        child: &'static str,
    },
    /// The child ended unasked, or with an error or a panic.
    Faulted {
        /// Its name.
        child: &'static str,
        /// How it ended.
        outcome: Outcome,
        /// The error with its causes, the text of the panic, or that it ended unasked.
        error: String,
    },
    /// The child (with one-for-all: every child, because of this one) is started again.
    Restarting {
        /// Its name.
        child: &'static str,
        /// The wait before it is started; with one-for-all, from the end of the others.
        delay: Duration,
    },
    /// The child faulted more often than the budget allows: the supervisor stops.
    GaveUp {
        /// Its name.
        child: &'static str,
    },
    /// The child did not end when told to abort, and was cut off.
    CutOff {
        /// Its name.
        child: &'static str,
    },
}

impl SupervisorEvent {
    /// Writes the event to the log, in the name of `supervisor`.
    pub(super) fn log(&self, supervisor: &'static str) {
        match self {
            Self::Started { child } => tracing::debug!(supervisor, child, "task started"),
            Self::Finished { child } => tracing::debug!(supervisor, child, "task ended"),
            Self::Faulted { child, outcome, error } => {
                tracing::error!(
                    supervisor,
                    child,
                    outcome = outcome.as_str(),
                    error,
                    "task ended unasked or failed"
                );
            }
            Self::Restarting { child, delay } => {
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(supervisor, child, delay_ms, "restarting after a delay");
            }
            Self::GaveUp { child } => tracing::error!(supervisor, child, "too many restarts, giving up"),
            Self::CutOff { child } => tracing::warn!(supervisor, child, "task did not end when told to, cut off"),
        }
    }
}
