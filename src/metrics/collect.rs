//! Numbers that others keep, read when Prometheus asks for them.
//!
//! Each scrape gets families of its own, so two scrapes at once can't mix their numbers and no lock is held: the
//! accounts are copied out in one short snapshot.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use tokio::runtime::{Handle, RuntimeMetrics};

use super::families::{AccountFamilies, RuntimeFamilies};
use crate::flow::channel::{ChannelStats, Channels};
use crate::supervise::{TaskAccounts, TaskStats};

/// Shows the accounts of channels and tasks.
pub(super) struct Accounts {
    /// Says what there is to collect; holds no numbers.
    shape: AccountFamilies,
    channels: Channels,
    tasks: TaskAccounts,
}

impl Accounts {
    pub(super) fn new(channels: Channels, tasks: TaskAccounts) -> prometheus::Result<Self> {
        let shape = AccountFamilies::declare()?;
        Ok(Self { shape, channels, tasks })
    }
}

impl Collector for Accounts {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = AccountFamilies::declare().expect("the shape was declared the same way");
        for channel in self.channels.snapshot() {
            families.show_channel(&channel);
        }
        for task in self.tasks.snapshot() {
            families.show_task(&task);
        }
        families.collect()
    }
}

impl AccountFamilies {
    fn show_channel(&self, channel: &ChannelStats) {
        let label = [channel.name];
        self.channel_sent_total.at(label).inc_by(channel.sent);
        self.channel_received_total.at(label).inc_by(channel.received);
        self.channel_depth.at(label).set(gauge(channel.depth));
        self.channel_capacity.at(label).set(gauge(channel.capacity));
        let full = self.channel_full_seconds_total.at(label);
        full.inc_by(channel.full.as_secs_f64());
    }

    fn show_task(&self, task: &TaskStats) {
        self.tasks_spawned_total.at([task.name]).inc_by(task.spawned);
        for (outcome, count) in task.ended {
            let ended = self.tasks_completed_total.at([task.name, outcome.as_str()]);
            ended.inc_by(count);
        }
    }
}

/// Shows the Tokio runtime.
pub(super) struct Runtime {
    /// Says what there is to collect; holds no numbers.
    shape: RuntimeFamilies,
    metrics: RuntimeMetrics,
}

impl Runtime {
    pub(super) fn new(runtime: &Handle) -> prometheus::Result<Self> {
        let shape = RuntimeFamilies::declare()?;
        let metrics = runtime.metrics();
        Ok(Self { shape, metrics })
    }
}

impl Collector for Runtime {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = RuntimeFamilies::declare().expect("the shape was declared the same way");
        let workers = self.metrics.num_workers();
        let busy = |worker| self.metrics.worker_total_busy_duration(worker);
        let busy: Duration = (0..workers).map(busy).sum();

        families.workers.at([]).set(gauge(workers));
        let alive = self.metrics.num_alive_tasks();
        families.alive_tasks.at([]).set(gauge(alive));
        let queued = self.metrics.global_queue_depth();
        families.global_queue_depth.at([]).set(gauge(queued));
        families.busy_seconds_total.at([]).inc_by(busy.as_secs_f64());
        families.collect()
    }
}

/// Makes a number fit a gauge.
pub(super) fn gauge(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::super::exposition::{Series, scrape};
    use super::*;
    use crate::supervise::TaskGroup;

    fn scraped(channels: &Channels, tasks: &TaskAccounts) -> Series {
        let metrics = Metrics::new(&[], channels.clone(), tasks.clone()).unwrap();
        // The second scrape must not add to the first.
        let _first = metrics.render();
        scrape(&metrics.render())
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_shows_its_account() {
        let channels = Channels::default();
        let (sender, mut receiver) = channels.bounded("results", 2);
        for number in 0..2 {
            sender.try_send(number).unwrap();
        }
        let patience = Duration::from_millis(1500);
        let full = tokio::time::timeout(patience, sender.send(3)).await;
        assert!(full.is_err());
        receiver.try_recv().unwrap();

        let series = scraped(&channels, &TaskAccounts::default());
        let of = |family: &str| series[&format!("synthex_channel_{family}{{channel=\"results\"}}")];
        assert_eq!(of("sent_total"), 2.0);
        assert_eq!(of("received_total"), 1.0);
        assert_eq!(of("depth"), 1.0);
        assert_eq!(of("capacity"), 2.0);
        assert_eq!(of("full_seconds_total"), 1.5);
    }

    #[tokio::test]
    async fn tasks_show_their_spawns_and_every_outcome() {
        let accounts = TaskAccounts::default();
        let mut group = TaskGroup::new(accounts.clone());
        group.spawn("upload", String::new(), async { Ok(()) });
        group.spawn("upload", String::new(), async { Ok(()) });
        group.spawn("upload", String::new(), async { Err("no".into()) });
        while group.next_end().await.is_some() {}

        let series = scraped(&Channels::default(), &accounts);
        assert_eq!(series[r#"synthex_tasks_spawned_total{task="upload"}"#], 3.0);
        let ended = |outcome: &str| {
            let labels = format!("{{outcome=\"{outcome}\",task=\"upload\"}}");
            series[&format!("synthex_tasks_completed_total{labels}")]
        };
        assert_eq!(ended("completed"), 2.0);
        assert_eq!(ended("failed"), 1.0);
        assert_eq!(ended("panicked"), 0.0);
        assert_eq!(ended("cancelled"), 0.0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_runtime_shows_itself() {
        let accounts = TaskAccounts::default();
        let mut group = TaskGroup::new(accounts.clone());
        group.spawn("idle", String::new(), std::future::pending());

        let series = scraped(&Channels::default(), &accounts);
        assert_eq!(series["tokio_workers"], 2.0);
        assert_eq!(series["tokio_alive_tasks"], 1.0);
        assert!(series.contains_key("tokio_global_queue_depth"));
        assert!(series["tokio_busy_seconds_total"] >= 0.0);
    }
}
