//! Events as log lines: one line a job's end at info, each readable alone.
//!
//! A job's command, environment and output are never logged.

use super::event::{Event, Observer};
use crate::message::{FailureKind, JobId, Status, TraceId};
use crate::transport::BrokerEvent;

/// Writes events to the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventLog;

impl Observer for EventLog {
    fn on(&self, event: &Event) {
        match event {
            Event::JobStarted {
                pool, job_id, attempt, ..
            } => {
                tracing::debug!(pool = &**pool, job.id = %job_id, attempt, "job started");
            }
            Event::JobFinished {
                pool,
                job_id,
                attempt,
                status,
                is_final,
                duration,
                error,
                trace_id,
                ..
            } => {
                let end = End {
                    job_id,
                    attempt: *attempt,
                    status: *status,
                    is_final: *is_final,
                    duration_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
                    trace_id: *trace_id,
                };
                end.log(pool, error.as_ref());
            }
            Event::JobRetried { pool, job_id, delay } => {
                let delay_s = delay.as_secs_f64();
                tracing::info!(pool = &**pool, job.id = %job_id, delay_s, "job will be tried again");
            }
            Event::JobRecounted { pool, job_id, attempt } => {
                tracing::info!(pool = &**pool, job.id = %job_id, attempt, "redelivered job counted and queued again");
            }
            Event::JobAdopted { pool, message_id } => log_adopted(pool, message_id.as_deref()),
            Event::JobGivenBack {
                pool,
                job_id,
                was_running,
            } => log_given_back(pool, job_id.as_ref(), *was_running),
            Event::JobDeadLettered { pool, job_id, reason } => {
                tracing::warn!(pool = &**pool, job.id = %job_id, reason, "job dead-lettered");
            }
            Event::ResultUnroutable { pool, job_id, reply_to } => {
                tracing::warn!(pool = &**pool, job.id = %job_id, reply_to, "result not delivered to reply_to: its queue is gone, full or forbidden");
            }
            Event::Consuming { pool } => tracing::info!(pool = &**pool, "consuming"),
            Event::ConsumerLost { pool, reason, retry_in } => log_lost(pool, reason, retry_in.map(|d| d.as_secs_f64())),
            Event::ConsumerHeld { pool, reason } => {
                tracing::info!(pool = &**pool, "taking no jobs for now: {}", reason.as_str());
            }
            Event::Draining => tracing::info!("draining: taking no more jobs, waiting for those that run"),
            Event::Broker(event) => log_broker(event),
            _ => {} // counted, or said where it happens
        }
    }
}

struct End<'a> {
    job_id: &'a JobId,
    attempt: u32,
    status: Status,
    is_final: bool,
    duration_ms: u64,
    trace_id: Option<TraceId>,
}

impl End<'_> {
    fn log(&self, pool: &str, error: Option<&(FailureKind, String)>) {
        let Self {
            job_id,
            attempt,
            status,
            is_final,
            duration_ms,
            trace_id,
        } = self;
        let error = error.map(|(_, message)| message.as_str());
        let trace_id = trace_id.map(tracing::field::display);
        tracing::info!(pool, job.id = %job_id, attempt, %status, is_final, duration_ms, error, trace_id, "job ended");
    }
}

fn log_adopted(pool: &str, message_id: Option<&str>) {
    tracing::info!(pool, message_id, "redelivered job is known here and not run again");
}

fn log_given_back(pool: &str, job_id: Option<&JobId>, was_running: bool) {
    let job_id = job_id.map(tracing::field::display);
    if was_running {
        tracing::warn!(pool, job.id = job_id, "running job killed and given back");
    } else {
        tracing::info!(pool, job.id = job_id, "unstarted job given back");
    }
}

fn log_lost(pool: &str, reason: &str, retry_in_s: Option<f64>) {
    match retry_in_s {
        Some(retry_in_s) => tracing::warn!(pool, retry_in_s, "not consuming: {reason}; trying again"),
        None => tracing::info!(pool, "stopped consuming"),
    }
}

fn log_broker(event: &BrokerEvent) {
    match event {
        BrokerEvent::Connected { host } => tracing::debug!(host, "connected"),
        BrokerEvent::Disconnected { reason } => tracing::debug!("disconnected: {reason}"),
        BrokerEvent::Confirmed { .. } => {}
    }
}
