//! What users of a fleet rely on, through the binary, on a real RabbitMQ, with producers that are not ours.
//!
//! The producers are pika (the scripts of `tests/fixtures/producers`), amqp-tools and the programs of docs/producers.md. Every test has names of its own on
//! the node that all share ([`bench::Bench::new`]), or a virtual host of its own where it needs the usual names or another
//! user's rights ([`bench::Bench::on_own_vhost`]).
//!
//! Nothing sleeps to synchronise: a job tells that it runs through a file, the worker tells on stderr and in its
//! metrics, and the rest is waiting for messages.

mod support;

#[path = "end_to_end/alerts.rs"]
mod alerts;
#[path = "end_to_end/bad_messages.rs"]
mod bad_messages;
#[path = "end_to_end/bench.rs"]
mod bench;
#[path = "end_to_end/compose.rs"]
mod compose;
#[path = "end_to_end/control.rs"]
mod control;
#[path = "end_to_end/dashboards.rs"]
mod dashboards;
#[path = "end_to_end/dead.rs"]
mod dead;
#[path = "end_to_end/doctor.rs"]
mod doctor;
#[path = "end_to_end/explain.rs"]
mod explain;
#[path = "end_to_end/fleet.rs"]
mod fleet;
#[path = "end_to_end/hostile.rs"]
mod hostile;
#[path = "end_to_end/live.rs"]
mod live;
#[path = "end_to_end/metrics.rs"]
mod metrics;
#[path = "end_to_end/permissions.rs"]
mod permissions;
#[path = "end_to_end/pools.rs"]
mod pools;
#[path = "end_to_end/producers.rs"]
mod producers;
#[path = "end_to_end/producers_page.rs"]
mod producers_page;
#[path = "end_to_end/prometheus.rs"]
mod prometheus;
#[path = "end_to_end/readme.rs"]
mod readme;
#[path = "end_to_end/redelivery.rs"]
mod redelivery;
#[path = "end_to_end/retries.rs"]
mod retries;
#[path = "end_to_end/secrets.rs"]
mod secrets;
#[path = "end_to_end/service_manager.rs"]
mod service_manager;
#[path = "end_to_end/stack.rs"]
mod stack;
#[path = "end_to_end/statuses.rs"]
mod statuses;
#[path = "end_to_end/stopping.rs"]
mod stopping;
#[path = "end_to_end/submit.rs"]
mod submit;
#[path = "end_to_end/top.rs"]
mod top;
#[path = "end_to_end/traces.rs"]
mod traces;
#[path = "end_to_end/watched.rs"]
mod watched;
