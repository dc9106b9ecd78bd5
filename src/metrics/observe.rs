//! Which event moves which number.

use std::sync::PoisonError;
use std::time::Duration;

use prometheus::IntCounter;

use super::Metrics;
use super::collect::gauge;
use super::families::{STDERR, STDOUT, WorkerFamilies};
use crate::flow::breaker::Position;
use crate::transport::{BrokerEvent, QueueDepth};
use crate::worker::event::{Event, Observer, RunAccount, StreamAccount};

impl Observer for Metrics {
    fn on(&self, event: &Event) {
        let families = &self.inner.families;
        match event {
            Event::DeliveryTaken { pool } => families.unacked.at([pool]).inc(),
            Event::DeliverySettled { pool } => families.unacked.at([pool]).dec(),
            Event::JobStarted { pool, waited, .. } => families.job_started(pool, *waited),
            Event::JobEnded { pool, run, .. } => families.job_ended(pool, run),
            Event::JobFinished { pool, status, .. } => {
                let finished = &families.jobs_finished_total;
                finished.at([pool, status.as_str()]).inc();
            }
            Event::JobRetried { pool, .. } => families.job_retries_total.at([pool]).inc(),
            Event::JobAdopted { pool, .. } => families.jobs_adopted_total.at([pool]).inc(),
            Event::JobDeadLettered { pool, .. } => families.dead_letters_total.at([pool]).inc(),
            Event::ResultPending { .. } => families.results_unconfirmed.at([]).inc(),
            Event::ResultSettled { .. } => families.results_unconfirmed.at([]).dec(),
            Event::ResultUnroutable { .. } => families.results_unroutable_total.at([]).inc(),
            Event::OutboxChanged { records, bytes } => families.outbox_changed(*records, *bytes),
            Event::CircuitChanged { circuit, position } => {
                let state = &families.circuit_state;
                state.at([circuit.as_str()]).set(state_number(*position));
            }
            Event::RateLimited { pool, waited } => {
                let limited = &families.rate_limited_seconds_total;
                limited.at([pool]).inc_by(waited.as_secs_f64());
            }
            Event::OutboxFailed => families.outbox_errors_total.at([]).inc(),
            Event::QueueMeasured { pool, depth } => families.queue_measured(pool, *depth),
            Event::Control { message } => families.control_messages_total.at([message.as_str()]).inc(),
            Event::CancelsForgotten { count } => add(families.cancels_forgotten_total.at([]), *count),
            Event::EventPublished { about } => families.events_published_total.at([about.as_str()]).inc(),
            Event::EventDropped { about } => families.events_dropped_total.at([about.as_str()]).inc(),
            Event::OutputUnsent { bytes } => families.live_output_dropped_bytes_total.at([]).inc_by(*bytes),
            Event::SpansExported { count } => add(families.spans_exported_total.at([]), *count),
            Event::SpansDropped { count } => add(families.spans_dropped_total.at([]), *count),
            Event::Broker(event) => self.broker(event),
            // Not counted yet, counted where it happens, or shown by `Health`.
            Event::JobDelayed { .. }
            | Event::JobRecounted { .. }
            | Event::JobGivenBack { .. }
            | Event::Consuming { .. }
            | Event::ConsumerLost { .. }
            | Event::ConsumerHeld { .. }
            | Event::OutputKept { .. }
            | Event::OutputHeard { .. }
            | Event::OutputClosed { .. }
            | Event::OutputEnded { .. }
            | Event::Supervised(_)
            | Event::Draining => {}
        }
    }
}

fn add(counter: IntCounter, count: usize) {
    counter.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
}

/// The number of a circuit's position; the worst is the greatest.
fn state_number(position: Position) -> i64 {
    match position {
        Position::Closed => 0,
        Position::HalfOpen => 1,
        Position::Open => 2,
    }
}

impl WorkerFamilies {
    fn job_started(&self, pool: &str, waited: Option<Duration>) {
        self.jobs_started_total.at([pool]).inc();
        self.jobs_running.at([pool]).inc();
        if let Some(waited) = waited {
            let waited = waited.as_secs_f64();
            self.job_wait_seconds.at([pool]).observe(waited);
            self.queue_age_seconds.at([pool]).set(waited);
        }
    }

    fn job_ended(&self, pool: &str, run: &RunAccount) {
        self.jobs_running.at([pool]).dec();
        let durations = self.job_duration_seconds.at([pool]);
        durations.observe(run.duration.as_secs_f64());
        if let Some(spawn) = run.spawn {
            self.spawn_seconds.at([]).observe(spawn.as_secs_f64());
        }
        if let Some(kill) = run.kill {
            self.kill_seconds.at([]).observe(kill.as_secs_f64());
        }
        self.stream_ended(pool, STDOUT, run.stdout);
        self.stream_ended(pool, STDERR, run.stderr);
    }

    fn stream_ended(&self, pool: &str, stream: &str, account: StreamAccount) {
        if account.bytes == 0 {
            return; // as of most; the series are there from the start
        }
        let labels = [pool, stream];
        self.output_bytes_total.at(labels).inc_by(account.bytes);
        let dropped = self.output_dropped_bytes_total.at(labels);
        dropped.inc_by(account.dropped);
    }

    fn outbox_changed(&self, records: usize, bytes: u64) {
        self.outbox_records.at([]).set(gauge(records));
        self.outbox_bytes.at([]).set(gauge(bytes));
    }

    fn queue_measured(&self, pool: &str, depth: QueueDepth) {
        if depth.messages == 0 {
            self.queue_age_seconds.at([pool]).set(0.0);
        }
        self.queue_messages.at([pool]).set(depth.messages.into());
        self.queue_consumers.at([pool]).set(depth.consumers.into());
    }
}

impl Metrics {
    fn broker(&self, event: &BrokerEvent) {
        match event {
            BrokerEvent::Connected { .. } => self.session(Sessions::connected),
            BrokerEvent::Disconnected { .. } => self.session(Sessions::disconnected),
            BrokerEvent::Confirmed { waited } => {
                let confirms = self.inner.families.publish_confirm_seconds.at([]);
                confirms.observe(waited.as_secs_f64());
            }
        }
    }

    /// Takes one step, and shows it before another can be taken.
    fn session(&self, step: impl FnOnce(&mut Sessions) -> Step) {
        let sessions = &self.inner.sessions;
        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let step = step(&mut sessions);

        let families = &self.inner.families;
        let connected = i64::from(sessions.live > 0);
        families.broker_connected.at([]).set(connected);
        if step == Step::Reconnect {
            families.broker_reconnects_total.at([]).inc();
        }
    }
}

/// The sessions with the broker: each pool has its own, so the first of one pool must not look like the second of
/// another.
#[derive(Default)]
pub(super) struct Sessions {
    /// Live now.
    live: u64,
    /// Lost, and not yet replaced.
    lost: u64,
}

/// What a change of the sessions means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A session replaces a lost one.
    Reconnect,
    /// Anything else.
    Other,
}

impl Sessions {
    fn connected(&mut self) -> Step {
        self.live += 1;
        if self.lost == 0 {
            return Step::Other;
        }
        self.lost -= 1;
        Step::Reconnect
    }

    fn disconnected(&mut self) -> Step {
        self.live = self.live.saturating_sub(1);
        self.lost += 1;
        Step::Other
    }
}

#[cfg(test)]
mod tests;
