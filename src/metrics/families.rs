//! All metric families of this program, on one screen. The text above a family is its help.
//!
//! Names keep the rules of Prometheus: a counter ends in `_total`, a unit is in the name and is a base unit. Dashboards
//! and alerts depend on them: a name or label is never changed, only added.

use prometheus::{
    CounterVec as SecondsCounter, GaugeVec as SecondsGauge, HistogramVec as Histogram, IntCounterVec as Counter,
    IntGaugeVec as Gauge,
};

use super::PoolInfo;
use super::family::{Family, families};
use crate::message::Status;
use crate::worker::event::{About, Circuit, ControlMessage};

families! {
    /// What the worker tells through its events.
    struct WorkerFamilies named "synthex_" {
        /// Jobs whose command was started, or tried to be.
        jobs_started_total: Counter [pool];
        /// Attempts whose result is published, by how they ended.
        jobs_finished_total: Counter [pool, status];
        /// Run time of commands, zero for those that could not be started.
        job_duration_seconds: Histogram [pool] in COMMAND_TIMES;
        /// Time that jobs waited, from their timestamp (or the end of their delay) to the start of their command; an AMQP timestamp has whole seconds, so this is up to 1 s too long.
        job_wait_seconds: Histogram [pool] in COMMAND_TIMES;
        /// Failed attempts that were queued again for another run.
        job_retries_total: Counter [pool];
        /// Redelivered messages of jobs that were in hand here, or had ended here, and were not run again.
        jobs_adopted_total: Counter [pool];
        /// Jobs that were dead-lettered.
        dead_letters_total: Counter [pool];
        /// Commands that run now.
        jobs_running: Gauge [pool];
        /// Most commands that run at once.
        slots: Gauge [pool];
        /// Most deliveries that the broker leaves unacked.
        prefetch: Gauge [pool];
        /// Deliveries that jobs in hand keep unacked now.
        unacked: Gauge [pool];
        /// Messages ready in the pool's queue, as the broker last told.
        queue_messages: Gauge [pool];
        /// Consumers of the pool's queue on all machines, as the broker last told.
        queue_consumers: Gauge [pool];
        /// How long the job waited that was started last, and 0 once the queue is found empty: no broker tells over AMQP how old its oldest message is.
        queue_age_seconds: SecondsGauge [pool];
        /// Bytes that commands wrote.
        output_bytes_total: Counter [pool, stream];
        /// Bytes that commands wrote and that were not kept.
        output_dropped_bytes_total: Counter [pool, stream];
        /// Time from the request to the running program, of commands that were started.
        spawn_seconds: Histogram [] in SPAWN_TIMES;
        /// Time from the first signal to the end of the last process, of commands that had to be ended or left processes that had to be.
        kill_seconds: Histogram [] in KILL_TIMES;
        /// Whether a session with the broker is live.
        broker_connected: Gauge [];
        /// Sessions with the broker that replaced a lost one.
        broker_reconnects_total: Counter [];
        /// Time from a publish to the broker's confirm.
        publish_confirm_seconds: Histogram [] in CONFIRM_TIMES;
        /// Results that wait for their confirm now.
        results_unconfirmed: Gauge [];
        /// Results whose reply_to led nowhere.
        results_unroutable_total: Counter [];
        /// Messages of operators that were read, orders of the time before the start included; invalid for those that could not be.
        control_messages_total: Counter [message];
        /// Cancels that were forgotten because there were too many: their jobs are not cancelled.
        cancels_forgotten_total: Counter [];
        /// Messages to synthex.events, and answers with a job's output, that the broker has confirmed.
        events_published_total: Counter [about];
        /// The same that were dropped: there were too many at a time, or the broker did not take them.
        events_dropped_total: Counter [about];
        /// Bytes of live output that were dropped: they came faster than they could be sent. Results have them, as far as output.max_bytes goes.
        live_output_dropped_bytes_total: Counter [];
        /// Results on disk that wait for their confirm now.
        outbox_records: Gauge [];
        /// Bytes of the files that hold them.
        outbox_bytes: Gauge [];
        /// Circuit breakers: 0 closed, 1 half open (one tries, for all), 2 open (nobody tries); of several of one name, the worst.
        circuit_state: Gauge [circuit];
        /// Time that the first of those who waited for a rate, the pool's or a program's, waited for it.
        rate_limited_seconds_total: SecondsCounter [pool];
        /// Times that the outbox on disk could not be written or read.
        outbox_errors_total: Counter [];
        /// Spans of traces that the receiver (--otlp-endpoint) has taken.
        spans_exported_total: Counter [];
        /// Spans of traces that are lost: the receiver was down, slow, or refused them.
        spans_dropped_total: Counter [];
        /// Always 1, with the version of this program and the namespace that it serves.
        build_info: Gauge [version, namespace];
    }
}

families! {
    /// What channels, tasks, locks and helper processes keep accounts of, read at scrape time.
    struct AccountFamilies named "synthex_" {
        /// Tasks that were spawned.
        tasks_spawned_total: Counter [task];
        /// Tasks that ended, by how they ended.
        tasks_completed_total: Counter [task, outcome];
        /// Times that a task ended unasked or failed, and was started again.
        tasks_restarted_total: Counter [task];
        /// Times that a task failed too often, so that the worker stops.
        tasks_given_up_total: Counter [task];
        /// Tasks whose polls are measured: of a kind that is spawned often, one in 16.
        tasks_measured_total: Counter [task];
        /// Polls of measured tasks.
        tasks_polls_total: Counter [task];
        /// Polls of measured tasks that took longer than 1 ms, and kept others from their thread.
        tasks_slow_polls_total: Counter [task];
        /// Time that polls of measured tasks took.
        tasks_poll_seconds_total: SecondsCounter [task];
        /// Times that a measured task became ready.
        tasks_scheduled_total: Counter [task];
        /// Time that measured tasks were ready and waited for a thread.
        tasks_scheduled_seconds_total: SecondsCounter [task];
        /// Time that measured tasks had nothing to do.
        tasks_idle_seconds_total: SecondsCounter [task];
        /// Messages put into a channel.
        channel_sent_total: Counter [channel];
        /// Messages taken out of a channel.
        channel_received_total: Counter [channel];
        /// Messages in a channel now.
        channel_depth: Gauge [channel];
        /// Most messages in a channel.
        channel_capacity: Gauge [channel];
        /// Time that senders waited because a channel was full, added up over all of them.
        channel_full_seconds_total: SecondsCounter [channel];
        /// Time that was waited for a lock, by those that found it taken; who finds it free is not in it.
        lock_wait_seconds: Histogram [lock] in LOCK_TIMES;
        /// Threads and tasks that wait for a lock now.
        lock_waiting: Gauge [lock];
        /// Helper processes that start commands, and live.
        spawners_alive: Gauge [];
        /// Helper processes that took the place of one that had died.
        spawners_replaced_total: Counter [];
        /// Helper processes that each hold a command, or wait for one.
        keepers_alive: Gauge [];
        /// Those of them that wait for a command.
        keepers_idle: Gauge [];
    }
}

families! {
    /// What the Tokio runtime tells in its stable interface, read at scrape time.
    struct RuntimeFamilies named "tokio_" {
        /// Worker threads of the runtime.
        workers: Gauge [];
        /// Tasks of the runtime that have not ended.
        alive_tasks: Gauge [];
        /// Tasks in the runtime's global queue, ready and waiting for a worker thread.
        global_queue_depth: Gauge [];
        /// Time that worker threads were busy, added up over all of them.
        busy_seconds_total: SecondsCounter [];
        /// Times that a worker thread went to sleep because there was nothing to do.
        parks_total: Counter [];
    }
}

/// From commands of 1 ms to those of 10 h, about three to a decade.
const COMMAND_TIMES: [f64; 17] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1_800.0, 3_600.0, 10_800.0, 36_000.0,
];

/// A start takes well under a millisecond; a slow one is a machine in trouble.
const SPAWN_TIMES: [f64; 12] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0,
];

/// From a command that obeys the first signal to one that uses up a long grace.
const KILL_TIMES: [f64; 11] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0];

/// From a broker on the same machine to one that writes to a slow disk in another place.
const CONFIRM_TIMES: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
];

/// Those that waits are counted in already.
const LOCK_TIMES: [f64; 7] = [0.000_001, 0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0];

/// The version of this program.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The values of the label `stream`.
pub(super) const STDOUT: &str = "stdout";
/// See [`STDOUT`].
pub(super) const STDERR: &str = "stderr";

/// Gives the values of a label that are known before anything happens.
pub(super) fn known_values<'a>(label: &str, pools: &'a [PoolInfo]) -> Vec<&'a str> {
    match label {
        "pool" => pools.iter().map(|pool| &*pool.name).collect(),
        "circuit" => Circuit::ALL.iter().map(|circuit| circuit.as_str()).collect(),
        "status" => Status::ALL.iter().map(|status| status.as_str()).collect(),
        "message" => ControlMessage::ALL.iter().map(|message| message.as_str()).collect(),
        "about" => About::ALL.iter().map(|about| about.as_str()).collect(),
        "stream" => vec![STDOUT, STDERR],
        "version" => vec![VERSION],
        _ => Vec::new(),
    }
}
