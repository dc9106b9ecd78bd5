//! Faults and cuts at points that nobody chose.
//!
//! Each run has a seed of its own, which is printed; a run with `SYNTHEX_TEST_SEED` set to it makes the same choices. The
//! choices alone are the seed's: when they meet the worker is up to the scheduler, so a failure may take several runs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use synthex::message::{Attempt, Envelope, Status};
use synthex::transport::{Publication, Transport};
use synthex::worker::event::Event;

use crate::rig::{Live, Results, Rig};
use crate::support::faulty::{AckFault, Faulty, Gate, PublishFault, SubscribeFault, anything, is_job, recounted};
use crate::support::random::Random;

/// Workers that are cut off, one after another.
const ROUNDS: usize = 12;
/// Jobs that are added in each round.
const JOBS: usize = 12;

/// Counts of one thing for each attempt of each job.
type Counts = BTreeMap<(String, u32), usize>;

/// What one test did and saw, over all its workers.
#[derive(Default)]
struct Account {
    expected: BTreeMap<String, Status>,
    /// Messages that asked for an attempt: the producer's, and those of workers.
    copies: Counts,
    starts: Counts,
    acks: Counts,
}

pub async fn any_mix_of_faults_and_cuts_loses_no_job_and_starts_none_uncounted<T: Transport>(rig: Rig<T>) {
    let mut random = Random::new();
    let mut account = Account::default();
    for round in 0..ROUNDS {
        publish_some(&rig, round, &mut account).await;
        one_round(&rig, &mut random, &mut account).await;
    }
    let last = Faulty::new(rig.broker.clone());
    let live = rig.work(last.clone(), pool(&rig));
    let mut results = rig.wait_for_ends(account.expected.keys().cloned()).await;
    // A job may have an end and still come again. Behind what was in the queue, then behind what of that was counted and
    // queued again, then for good measure: when these have ended, nothing is left but what runs.
    for id in ["last-1", "last-2", "last-3"] {
        publish_one(&rig, id, &mut account).await;
        for (id, more) in rig.wait_for_ends([id.to_owned()]).await {
            results.entry(id).or_default().extend(more);
        }
    }
    let stopped = live.stop().await;
    stopped.assert_clean();
    account.add(&last, &stopped.observer.events());
    account.add_acks(&last);
    rig.nothing_left_of(&stopped).await;
    account.check(&rig, results).await;
}

fn pool<T: Transport>(rig: &Rig<T>) -> synthex::config::Pool {
    let mut pool = rig.pool();
    // Rounds are many, and here no job is one that kills its workers.
    (pool.prefetch, pool.stop_grace, pool.delivery_limit) = (5, Duration::from_millis(300), 1_000);
    pool
}

async fn publish_some<T: Transport>(rig: &Rig<T>, round: usize, account: &mut Account) {
    let mut jobs = Vec::new();
    for number in 0..JOBS {
        let id = format!("job-{round:02}-{number:02}");
        let (job, status) = match number % 4 {
            0 => (json!({ "command": ["true"] }), Status::Succeeded),
            1 => (json!({ "command": ["sleep", "0.02"] }), Status::Succeeded),
            2 => (
                json!({ "command": ["sleep", "60"], "timeout": "20ms" }),
                Status::TimedOut,
            ),
            _ => (json!({ "command": [] }), Status::Rejected),
        };
        account.expected.insert(id.clone(), status);
        account.copies.insert((id.clone(), 1), 1);
        jobs.push((id, job.to_string()));
    }
    rig.publish_all(jobs).await;
}

async fn publish_one<T: Transport>(rig: &Rig<T>, id: &str, account: &mut Account) {
    account.expected.insert(id.to_owned(), Status::Succeeded);
    account.copies.insert((id.to_owned(), 1), 1);
    // By way of the delay, so that it comes behind what was counted; it runs for longer than the delay.
    rig.publish_delayed(id, &json!({ "command": ["sleep", "0.5"] })).await;
}

async fn one_round<T: Transport>(rig: &Rig<T>, random: &mut Random, account: &mut Account) {
    let transport = Faulty::new(rig.broker.clone());
    script(&transport, random);
    let live = rig.work(transport.clone(), pool(rig));
    live.consuming(1).await;
    wait_for_some(&live, random).await;
    let is_cut = random.below(3) == 0;
    if is_cut {
        rig.close_sessions().await;
        live.consuming(2).await;
        wait_for_some(&live, random).await;
    }
    let stopped = match random.below(3) {
        0 => live.stop().await,
        1 => {
            live.shutdown.abort();
            live.join().await
        }
        _ => live.drop_now().await,
    };
    assert_eq!(stopped.report.left, [""; 0]);
    rig.nothing_left_of(&stopped).await;
    account.add(&transport, &stopped.observer.events());
    // What was acked into a connection as the broker closed it has not arrived, and nobody is told.
    if !is_cut {
        account.add_acks(&transport);
    }
}

/// Waits until the worker is at a point in its life.
async fn wait_for_some(live: &Live, random: &mut Random) {
    let at_start = random.below(2) == 0;
    let event = |event: &Event| match event {
        Event::JobStarted { .. } => at_start,
        Event::DeliverySettled { .. } => !at_start,
        _ => false,
    };
    let times = live.observer.count(event) + random.between(1, 5);
    // A fault may be one that keeps the worker from getting there: then the cut comes without it.
    let wait = live
        .observer
        .wait_for_times(times, "a job starts, or is settled", event);
    let _ = tokio::time::timeout(Duration::from_millis(500), wait).await;
}

/// Chooses what goes wrong with a worker.
fn script<T: Transport>(transport: &Faulty<T>, random: &mut Random) {
    for _ in 0..random.between(1, 4) {
        let which = random.between(1, 8);
        let which = which..=which;
        match random.below(9) {
            0 => transport.on_publish(anything, which, PublishFault::Refused),
            1 => transport.on_publish(anything, which, PublishFault::UnknownLost),
            2 => transport.on_publish(anything, which, PublishFault::UnknownArrived),
            3 => transport.on_publish(anything, which, PublishFault::HangsBefore(Gate::default())),
            4 => transport.on_publish(anything, which, PublishFault::HangsAfter(Gate::default())),
            5 => transport.on_publish(anything, which, PublishFault::Panics),
            6 => transport.on_ack(which, AckFault::Lost),
            7 => transport.on_ack(which, AckFault::LostUnnoticed),
            _ => transport.on_subscribe(1..=1, SubscribeFault::EndsAfter(random.between(1, 4))),
        }
    }
}

impl Account {
    fn add<T>(&mut self, transport: &Faulty<T>, events: &[Event]) {
        let asks = |sent: &&Publication| is_job(sent) || recounted(sent);
        for Publication { envelope, .. } in transport.sent().iter().filter(asks) {
            *self.copies.entry(key(envelope)).or_default() += 1;
        }
        for event in events {
            if let Event::JobStarted { job_id, attempt, .. } = event {
                *self.starts.entry((job_id.to_string(), *attempt)).or_default() += 1;
            }
        }
    }

    /// Adds the acks that went through a transport.
    fn add_acks<T>(&mut self, transport: &Faulty<T>) {
        for envelope in transport.acked() {
            *self.acks.entry(key(&envelope)).or_default() += 1;
        }
    }

    async fn check<T: Transport>(&self, rig: &Rig<T>, mut results: Results) {
        rig.assert_queue_is_empty().await;
        for (id, more) in rig.results().await {
            results.entry(id).or_default().extend(more);
        }
        for (id, status) in &self.expected {
            let of_job = &results[id];
            assert!(
                of_job.iter().all(|result| result.status == *status && result.is_final),
                "{id}: {of_job:#?}"
            );
        }
        assert_eq!(
            results.len(),
            self.expected.len(),
            "results of jobs that nobody published"
        );
        for (what, counts) in [("started", &self.starts), ("acked", &self.acks)] {
            for (attempt, times) in counts {
                let copies = self.copies.get(attempt).copied().unwrap_or(0);
                assert!(
                    *times <= copies,
                    "{attempt:?} was {what} {times} times, but asked for {copies} times"
                );
            }
        }
        let dead = rig.dead_letters().await;
        for (id, _) in self.expected.iter().filter(|(_, status)| **status == Status::Rejected) {
            assert!(dead.contains(id), "{id} is no dead letter");
        }
    }
}

fn key(envelope: &Envelope) -> (String, u32) {
    let id = envelope.properties.message_id.clone().unwrap_or_default();
    (id, Attempt::read(&envelope.properties).number)
}
