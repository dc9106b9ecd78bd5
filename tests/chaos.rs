//! Thousands of jobs through several workers and a RabbitMQ node, to all of which things happen, and an account of every
//! job by its id at the end.
//!
//! - [`world`]: the node, the workers, who publishes, who listens, and the order of events.
//! - [`jobs`]: what is published, and how each kind has to end; [`producer`] publishes, [`collector`] takes the results.
//! - [`fleet`]: workers as processes, each behind a proxy of its own, on which its connections are cut or go silent.
//! - [`faults`]: what happens. Each kind at least once, in an order of the seed's.
//! - [`account`]: what became of every job. Nothing lost, nothing twice without a fault to explain it.
//! - [`footprint`]: what a worker holds before and after.
//!
//! The choices are the seed's (`SYNTHEX_TEST_SEED`, printed); when they meet the workers is up to the scheduler, so a
//! failure may take several runs with its seed. What the account needs is written by the commands themselves: a line for
//! every start into a ledger, also of attempts whose result never came.
//!
//! By default it takes about two minutes. With larger numbers it is a soak test:
//!
//! ```text
//! tests/run chaos --jobs 100000 --faults 500 --workers 4 --seed 7
//! ```
//!
//! which sets `SYNTHEX_CHAOS_JOBS`, `SYNTHEX_CHAOS_FAULTS`, `SYNTHEX_CHAOS_WORKERS` and `SYNTHEX_TEST_SEED`.

#![allow(
    clippy::unwrap_used,        // a test that cannot go on should stop
    clippy::disallowed_methods, // tasks and variables of tests are their own
    clippy::print_stdout        // what happened when is shown with a failure
)]

mod support;

#[path = "chaos/account.rs"]
mod account;
#[path = "chaos/collector.rs"]
mod collector;
#[path = "chaos/faults.rs"]
mod faults;
#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/footprint.rs"]
mod footprint;
#[path = "chaos/jobs.rs"]
mod jobs;
#[path = "chaos/producer.rs"]
mod producer;
#[path = "chaos/world.rs"]
mod world;

use support::random::Random;
use world::World;

/// How much is to happen.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Jobs that are published and confirmed.
    pub jobs: usize,
    /// Things that happen meanwhile.
    pub faults: usize,
    /// Workers at a time, at least 2: the first one is spared violent ends, so that it can be compared with itself.
    pub workers: usize,
}

impl Size {
    fn from_environment() -> Self {
        let number = |name: &str, usual: usize| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number")),
            Err(_) => usual,
        };
        Self {
            jobs: number("SYNTHEX_CHAOS_JOBS", 2_000),
            faults: number("SYNTHEX_CHAOS_FAULTS", 13).max(1),
            workers: number("SYNTHEX_CHAOS_WORKERS", 3).max(2),
        }
    }
}

/// The name says that it starts a node of its own, see .config/nextest.toml.
#[tokio::test(flavor = "multi_thread")]
async fn private_broker_and_workers_under_faults_lose_no_job() {
    let (size, mut random) = (Size::from_environment(), Random::new());
    println!("{size:?}");
    let mut world = World::start(size.workers).await;
    let ways = faults::in_some_order(size.faults, &mut random);

    world.run_jobs(size.jobs / 10, &mut random).await;
    let before = world.footprint(&mut random).await;
    let share = (size.jobs - size.jobs / 10).div_ceil(ways.len());
    for (number, way) in ways.iter().enumerate() {
        world::tell(&format!("fault {} of {}: {}", number + 1, ways.len(), way.name()));
        world.run_jobs_under(*way, share, &mut random).await;
    }
    world.finish_all_jobs().await;
    let after = world.footprint(&mut random).await;

    let account = world.close().await;
    println!("{account}");
    account.check();
    footprint::check(&before, &after);
}
