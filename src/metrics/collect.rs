//! Numbers that others keep, read when Prometheus asks for them.
//!
//! Each scrape gets families of its own, so two scrapes at once can't mix their numbers and no lock is held: the
//! accounts are copied out in one short snapshot.

use std::time::Duration;

use prometheus::CounterVec;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, MetricFamily};
use tokio::runtime::{Handle, RuntimeMetrics};

use super::Sources;
use super::families::{AccountFamilies, RuntimeFamilies};
use super::family::Family;
use crate::executor::SpawnerStats;
use crate::flow::channel::ChannelStats;
use crate::flow::lock::{LockStats, WAIT_BOUNDS};
use crate::supervise::{PollStats, TaskStats};

/// Shows the accounts that others keep.
pub(super) struct Accounts {
    /// Says what there is to collect; holds no numbers.
    shape: AccountFamilies,
    sources: Sources,
}

impl Accounts {
    pub(super) fn new(sources: Sources) -> prometheus::Result<Self> {
        let shape = AccountFamilies::declare()?;
        Ok(Self { shape, sources })
    }
}

impl Collector for Accounts {
    fn desc(&self) -> Vec<&Desc> {
        self.shape.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let families = AccountFamilies::declare().expect("the shape was declared the same way");
        for channel in self.sources.channels.snapshot() {
            families.show_channel(&channel);
        }
        for task in self.sources.tasks.snapshot() {
            families.show_task(&task);
        }
        families.show_spawners(self.sources.spawners.stats());
        let locks: Vec<LockStats> = self.sources.locks.iter().map(|lock| lock.stats()).collect();
        for lock in &locks {
            families.show_lock(lock);
        }
        let mut families = families.collect();
        families.iter_mut().for_each(|family| fill_in_waits(family, &locks));
        families
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
        self.tasks_restarted_total.at([task.name]).inc_by(task.restarted);
        self.tasks_given_up_total.at([task.name]).inc_by(task.given_up);
        self.show_polls(task.name, &task.polls);
    }

    fn show_polls(&self, task: &str, polls: &PollStats) {
        let seconds = |family: &Family<CounterVec, 1>, time: Duration| family.at([task]).inc_by(time.as_secs_f64());
        self.tasks_measured_total.at([task]).inc_by(polls.tasks);
        self.tasks_polls_total.at([task]).inc_by(polls.polled.0);
        self.tasks_slow_polls_total.at([task]).inc_by(polls.slow);
        seconds(&self.tasks_poll_seconds_total, polls.polled.1);
        self.tasks_scheduled_total.at([task]).inc_by(polls.scheduled.0);
        seconds(&self.tasks_scheduled_seconds_total, polls.scheduled.1);
        seconds(&self.tasks_idle_seconds_total, polls.idle);
    }

    /// Its histogram is only made here, and [filled in](fill_in_waits) later.
    fn show_lock(&self, lock: &LockStats) {
        self.lock_wait_seconds.at([lock.name]);
        self.lock_waiting.at([lock.name]).set(gauge(lock.waiting));
    }

    fn show_spawners(&self, spawners: SpawnerStats) {
        self.spawners_alive.at([]).set(gauge(spawners.alive));
        self.spawners_replaced_total.at([]).inc_by(spawners.replaced);
        self.keepers_alive.at([]).set(gauge(spawners.keepers));
        self.keepers_idle.at([]).set(gauge(spawners.idle));
    }
}

/// Puts the waits that locks have counted into the family's series, if it is theirs: a histogram can be told one value, and
/// not how many there were.
fn fill_in_waits(family: &mut MetricFamily, locks: &[LockStats]) {
    if family.name() != "synthex_lock_wait_seconds" {
        return;
    }
    for series in family.mut_metric() {
        let name = series.get_label()[0].value();
        let lock = locks.iter().find(|lock| lock.name == name);
        if let Some(lock) = lock {
            series.set_histogram(waits_of(lock));
        }
    }
}

fn waits_of(lock: &LockStats) -> Histogram {
    let mut up_to = 0;
    let groups = WAIT_BOUNDS.iter().zip(lock.groups).map(|(bound, group)| {
        up_to += group;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound.as_secs_f64());
        bucket.set_cumulative_count(up_to);
        bucket
    });
    let buckets = groups.collect();
    let mut waits = Histogram::default();
    waits.set_bucket(buckets);
    waits.set_sample_count(lock.groups.iter().sum());
    waits.set_sample_sum(lock.waited.as_secs_f64());
    waits
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
        let parks = (0..workers).map(|worker| self.metrics.worker_park_count(worker));
        families.parks_total.at([]).inc_by(parks.sum());
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
    use crate::flow::channel::Channels;
    use crate::flow::{Lock, LockAccount};
    use crate::supervise::{TaskAccounts, TaskGroup};

    fn scraped(channels: &Channels, tasks: &TaskAccounts) -> Series {
        scraped_from(Sources {
            channels: channels.clone(),
            tasks: tasks.clone(),
            ..Sources::default()
        })
    }

    fn scraped_from(sources: Sources) -> Series {
        let metrics = Metrics::new(&[], sources).unwrap();
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
        let of = |family: &str| series[&format!("synthex_tasks_{family}{{task=\"upload\"}}")];
        assert_eq!((of("restarted_total"), of("given_up_total")), (0.0, 0.0));
        assert_eq!(
            (of("measured_total"), of("polls_total"), of("scheduled_total")),
            (3.0, 3.0, 0.0)
        );
        assert!(of("poll_seconds_total") > 0.0);
        for family in ["scheduled_seconds_total", "idle_seconds_total"] {
            assert_eq!(of(family), 0.0, "{family}");
        }
        let slow = accounts.snapshot()[0].polls.slow; // none, if nothing took the processor away
        assert_eq!(of("slow_polls_total").to_string(), slow.to_string());
    }

    #[tokio::test]
    async fn a_lock_shows_who_waited_and_who_waits() {
        static ACCOUNT: LockAccount = LockAccount::new("book");
        let lock = Lock::new(&ACCOUNT, ());
        std::thread::scope(|scope| {
            let held = lock.lock();
            scope.spawn(|| drop(lock.lock()));
            while ACCOUNT.stats().waiting == 0 {
                std::thread::yield_now();
            }
            drop(held);
        });
        let _waits = ACCOUNT.wait();

        let sources = || Sources {
            locks: vec![&ACCOUNT],
            ..Sources::default()
        };
        let series = scraped_from(sources());
        assert_eq!(series[r#"synthex_lock_wait_seconds_count{lock="book"}"#], 1.0);
        assert!(series[r#"synthex_lock_wait_seconds_sum{lock="book"}"#] > 0.0);
        assert_eq!(series[r#"synthex_lock_waiting{lock="book"}"#], 1.0);
        let text = Metrics::new(&[], sources()).unwrap().render();
        let buckets: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(r#"synthex_lock_wait_seconds_bucket{lock="book",le=""#))
            .filter_map(|rest| rest.split('"').next())
            .collect();
        assert_eq!(
            buckets,
            ["0.000001", "0.00001", "0.0001", "0.001", "0.01", "0.1", "1", "+Inf"]
        );
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
        assert!(series.contains_key("tokio_parks_total"));
    }
}
