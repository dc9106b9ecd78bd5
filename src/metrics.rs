//! What Prometheus and probes see: counts of what happens to jobs, and whether the worker takes any.
//!
//! [`Metrics`] and [`Health`] are observers: the worker tells them every [`Event`](crate::worker::event::Event), and
//! [`serve`] shows the result on `/metrics`, `/healthz` and `/readyz`. Numbers come from three sources:
//!
//! - events, counted as they come (`observe`);
//! - the accounts of channels, tasks, locks and helper processes ([`Sources`]), and the runtime's own, read at scrape time
//!   (`collect`);
//! - `/proc`, for the `process_` families.
//!
//! All families are declared in one table (`families`, written in the syntax of `family`). To add one: a line in the
//! table, and a line where its event is counted.
//!
//! Nothing here is asked by the worker, and nothing here knows a job: no job id, host or command is ever a label.
//!
//! Invariants:
//! - every series whose labels are known (pools, statuses, streams) is there, at zero, before its first event;
//! - counting takes no lock that a scrape holds while it writes text.

mod collect;
#[cfg(test)]
mod exposition;
mod families;
mod family;
mod health;
mod observe;
mod server;

use std::sync::{Arc, Mutex};

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};
use tokio::runtime::{Handle, TryCurrentError};

use crate::executor::SpawnerAccount;
use crate::flow::LockAccount;
use crate::flow::channel::Channels;
use crate::supervise::TaskAccounts;
use collect::{Accounts, Runtime};
use families::{VERSION, WorkerFamilies, known_values};
use observe::Sessions;

pub use health::Health;
pub use server::{bind, serve};

/// Counts what happens and renders it for Prometheus.
///
/// Cloning is cheap and gives another handle to the same numbers.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    families: WorkerFamilies,
    sessions: Mutex<Sessions>,
}

/// A pool, as far as metrics know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolInfo {
    /// Its name, the value of the label `pool`.
    pub name: Arc<str>,
    /// Most commands at once.
    pub slots: usize,
    /// Most deliveries unacked at once.
    pub prefetch: u16,
}

/// Who keeps accounts that are read at scrape time, and for which namespace. The default has none.
#[derive(Clone, Default)]
pub struct Sources {
    /// What the names of exchanges and queues begin with.
    pub namespace: String,
    /// Channels.
    pub channels: Channels,
    /// Tasks.
    pub tasks: TaskAccounts,
    /// Locks.
    pub locks: Vec<&'static LockAccount>,
    /// Helper processes.
    pub spawners: SpawnerAccount,
}

/// Why there can be no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A family is declared twice or against the rules of Prometheus.
    #[error("declare the metric families")]
    Declare(#[from] prometheus::Error),
    /// There is no runtime whose numbers could be shown.
    #[error("find the Tokio runtime to measure")]
    NoRuntime(#[from] TryCurrentError),
}

impl Metrics {
    /// Makes the metrics of these pools and sources, and of the Tokio runtime it is called in.
    ///
    /// # Errors
    /// Outside of a Tokio runtime, or when the table of families is wrong.
    pub fn new(pools: &[PoolInfo], sources: Sources) -> Result<Self, MetricsError> {
        let families = WorkerFamilies::declare()?;
        families.create_series(&|label| known_values(label, pools));
        set_constants(&families, pools, &sources.namespace);

        let registry = Registry::new();
        registry.register(Box::new(families.clone()))?;
        registry.register(Box::new(Accounts::new(sources)?))?;
        registry.register(Box::new(Runtime::new(&Handle::try_current()?)?))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;

        let sessions = Mutex::default();
        Ok(Self {
            inner: Arc::new(Inner {
                registry,
                families,
                sessions,
            }),
        })
    }

    /// Renders all families in the Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.inner.registry.gather())
            .expect("gathered families have a name and a series, and a string takes any text")
    }
}

fn set_constants(families: &WorkerFamilies, pools: &[PoolInfo], namespace: &str) {
    families.build_info.at([VERSION, namespace]).set(1);
    for pool in pools {
        let slots = i64::try_from(pool.slots).unwrap_or(i64::MAX);
        families.slots.at([&pool.name]).set(slots);
        families.prefetch.at([&pool.name]).set(pool.prefetch.into());
    }
}

#[cfg(test)]
mod tests {
    use super::exposition::{check, scrape};
    use super::*;
    use crate::message::Status;
    use crate::supervise::Outcome;
    use crate::worker::event::{Event, Observer};

    fn pools() -> Vec<PoolInfo> {
        let pool = |name: &str, slots, prefetch| PoolInfo {
            name: name.into(),
            slots,
            prefetch,
        };
        vec![pool("web", 4, 8), pool("batch", 2, 2)]
    }

    fn metrics() -> Metrics {
        let channels = Channels::default();
        let (_sender, _receiver) = channels.bounded::<()>("results", 3);
        let sources = Sources {
            namespace: "prod".to_owned(),
            channels,
            ..Sources::default()
        };
        Metrics::new(&pools(), sources).unwrap()
    }

    #[tokio::test]
    async fn every_series_is_there_at_zero_before_any_event() {
        let series = scrape(&metrics().render());
        let zero = |name: String| assert_eq!(series.get(&name), Some(&0.0), "{name}");

        for pool in ["web", "batch"] {
            for family in [
                "jobs_started_total",
                "job_retries_total",
                "jobs_adopted_total",
                "dead_letters_total",
                "jobs_running",
                "unacked",
                "queue_messages",
                "queue_consumers",
                "queue_age_seconds",
                "job_duration_seconds_count",
                "job_wait_seconds_count",
            ] {
                zero(format!("synthex_{family}{{pool=\"{pool}\"}}"));
            }
            for status in Status::ALL {
                zero(format!(
                    "synthex_jobs_finished_total{{pool=\"{pool}\",status=\"{status}\"}}"
                ));
            }
            for stream in ["stdout", "stderr"] {
                let labels = format!("{{pool=\"{pool}\",stream=\"{stream}\"}}");
                zero(format!("synthex_output_bytes_total{labels}"));
                zero(format!("synthex_output_dropped_bytes_total{labels}"));
            }
        }
        for family in [
            "broker_connected",
            "broker_reconnects_total",
            "publish_confirm_seconds_count",
            "results_unconfirmed",
            "results_unroutable_total",
            "outbox_records",
            "outbox_bytes",
            "outbox_errors_total",
            "spans_exported_total",
            "spans_dropped_total",
            "spawn_seconds_count",
            "kill_seconds_count",
            "spawners_alive",
            "spawners_replaced_total",
            "keepers_alive",
            "keepers_idle",
            "channel_sent_total{channel=\"results\"}",
        ] {
            zero(format!("synthex_{family}"));
        }
    }

    #[tokio::test]
    async fn constants_say_what_the_worker_is() {
        let series = scrape(&metrics().render());

        assert_eq!(series[r#"synthex_slots{pool="web"}"#], 4.0);
        assert_eq!(series[r#"synthex_slots{pool="batch"}"#], 2.0);
        assert_eq!(series[r#"synthex_prefetch{pool="web"}"#], 8.0);
        assert_eq!(series[r#"synthex_prefetch{pool="batch"}"#], 2.0);
        let build = format!("synthex_build_info{{namespace=\"prod\",version=\"{VERSION}\"}}");
        assert_eq!(series[&build], 1.0);
        assert!(series["tokio_workers"] >= 1.0);
        assert!(series["process_resident_memory_bytes"] > 0.0);
    }

    #[tokio::test]
    async fn the_text_keeps_the_rules_of_the_format() {
        static LOCK: LockAccount = LockAccount::new("book");
        let (channels, tasks) = (Channels::default(), TaskAccounts::default());
        let (_sender, _receiver) = channels.bounded::<()>("results", 3);
        tasks.announce("job");
        let sources = Sources {
            channels,
            tasks,
            locks: vec![&LOCK],
            ..Sources::default()
        };
        check(&Metrics::new(&pools(), sources).unwrap().render());
    }

    /// Series are what a scrape costs, here and in Prometheus: a pool may have so many, and a worker so many besides.
    #[tokio::test]
    async fn fifty_pools_have_a_bounded_number_of_series() {
        let series = |count: usize| {
            let pool = |number: usize| PoolInfo {
                name: format!("pool-{number}").into(),
                slots: 1,
                prefetch: 1,
            };
            let pools: Vec<PoolInfo> = (0..count).map(pool).collect();
            let text = Metrics::new(&pools, Sources::default()).unwrap().render();
            text.lines().filter(|line| !line.starts_with('#')).count()
        };
        let (none, fifty) = (series(0), series(50));
        assert!(none < 100, "{none}");
        let each = (fifty - none) / 50;
        assert_eq!(each * 50, fifty - none, "each pool has as many as another");
        assert!(each <= 80, "{each} a pool");
    }

    /// Whoever counts, or makes a channel or a task, while a scrape is under way, does not wait for its end.
    #[tokio::test]
    async fn a_scrape_holds_no_lock_while_others_are_asked() {
        /// Does during a scrape what the worker does.
        struct Busy(Metrics, Sources);

        impl prometheus::core::Collector for Busy {
            fn desc(&self) -> Vec<&prometheus::core::Desc> {
                Vec::new()
            }

            fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
                self.1.tasks.announce("new");
                let _new = self.1.channels.bounded::<()>("new", 1);
                let (pool, reason) = ("new".into(), "rejected".to_owned());
                let job_id = crate::message::JobId::random();
                self.0.on(&Event::JobDeadLettered { pool, job_id, reason });
                Vec::new()
            }
        }

        let sources = Sources::default();
        let metrics = Metrics::new(&pools(), sources.clone()).unwrap();
        let busy = Busy(metrics.clone(), sources);
        metrics.inner.registry.register(Box::new(busy)).unwrap();
        assert!(metrics.render().contains("synthex_slots")); // or it hangs
        assert!(metrics.render().contains(r#"synthex_dead_letters_total{pool="new"} "#));
    }

    #[test]
    fn without_a_runtime_there_is_an_error_and_no_panic() {
        let made = Metrics::new(&pools(), Sources::default());
        assert!(matches!(made, Err(MetricsError::NoRuntime(_))));
    }

    /// The `prometheus` crate finds a series by the hash of its label values written one after another, so
    /// `("a", "bc")` and `("ab", "c")` would be one series. With words of which none ends in another, they can't be.
    #[test]
    fn no_known_word_ends_in_another() {
        let outcomes = Outcome::ALL.map(Outcome::as_str).to_vec();
        for words in [known_values("status", &[]), known_values("stream", &[]), outcomes] {
            for word in &words {
                let ends = words.iter().filter(|other| word.ends_with(**other));
                assert_eq!(ends.count(), 1, "{word} among {words:?}");
            }
            assert!(!words.is_empty());
        }
    }
}
