//! What happens. Each leaves things as they were: as many workers, and a broker that is there.
//!
//! How long something lasts is the fault itself, no way to wait for anything.

use std::time::{Duration, SystemTime};

use crate::fleet::{SILENCE, Worker};
use crate::support::process::{Signal, eventually};
use crate::support::proxy::Loss;
use crate::support::random::Random;
use crate::world::{PATIENCE, Stage};

/// Seconds of a broker or a worker that stands still: too short for a heartbeat to miss it.
const MOMENT: (usize, usize) = (1_000, 3_000);

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A worker is killed, and another one comes.
    WorkerKilled,
    /// A worker stands still, and goes on.
    WorkerStopped,
    /// A worker is asked to stop, as on every deployment, and another one comes.
    WorkerReplaced,
    /// The broker is killed, and comes back.
    BrokerKilled,
    /// The same, while the disks are full on which some workers would keep their results until it is back.
    BrokerKilledDisksFull,
    /// The broker is asked to stop, and comes back.
    BrokerRestarted,
    /// The broker stands still, and goes on.
    BrokerStopped,
    /// The broker is short of memory for a while: it takes nothing, and hands out what it has.
    BrokerShortOfMemory,
    /// An operator closes all connections.
    ConnectionsClosed,
    /// The connections of one worker are reset.
    ConnectionsCut,
    /// Nothing comes through the connections of one worker any more, and nobody tells either side.
    ConnectionsSilent,
    /// The same, and the broker stands still when the worker wants to connect again.
    SilentAndStopped,
    /// A worker is killed while the broker is away.
    BothKilled,
}

const ALL: [Fault; 13] = [
    Fault::WorkerKilled,
    Fault::WorkerStopped,
    Fault::WorkerReplaced,
    Fault::BrokerKilled,
    Fault::BrokerKilledDisksFull,
    Fault::BrokerRestarted,
    Fault::BrokerStopped,
    Fault::BrokerShortOfMemory,
    Fault::ConnectionsClosed,
    Fault::ConnectionsCut,
    Fault::ConnectionsSilent,
    Fault::SilentAndStopped,
    Fault::BothKilled,
];

/// So many faults: each kind once before any comes again.
pub fn in_some_order(count: usize, random: &mut Random) -> Vec<Fault> {
    let mut faults = Vec::new();
    while faults.len() < count {
        let mut round = ALL;
        random.shuffle(&mut round);
        faults.extend(round);
    }
    faults.truncate(count);
    faults
}

impl Fault {
    pub fn name(self) -> String {
        format!("{self:?}")
    }

    /// Happens, and is over when everybody is able to go on.
    pub async fn happen(self, stage: &mut Stage, random: &mut Random) {
        let any = random.below(stage.fleet.workers.len());
        let mortal = random.between(1, stage.fleet.workers.len() - 1); // the first is compared with itself
        let moment = random.millis(MOMENT.0, MOMENT.1);
        match self {
            Self::WorkerKilled => drop(stage.fleet.replace(mortal, Signal::KILL).await),
            Self::WorkerReplaced => drop(stage.fleet.replace(mortal, Signal::TERM).await.expect_code(0)),
            Self::WorkerStopped => stop_worker(&stage.fleet.workers[any], moment).await,
            Self::BrokerKilled => kill_broker(stage, moment).await,
            Self::BrokerKilledDisksFull => kill_broker_with_full_disks(stage, moment).await,
            Self::BrokerRestarted => bring_back(stage, SystemTime::now()).await,
            Self::BrokerStopped => stop_broker(stage, moment).await,
            Self::BrokerShortOfMemory => shortage(stage, moment).await,
            Self::ConnectionsClosed => stage.broker.close_connections("a test closes all").await,
            Self::ConnectionsCut => stage.fleet.workers[any].proxy.cut(),
            Self::ConnectionsSilent => silence(&stage.fleet.workers[any]).await,
            Self::SilentAndStopped => silence_and_stop(stage, any, moment).await,
            Self::BothKilled => kill_both(stage, mortal).await,
        }
    }
}

async fn stop_worker(worker: &Worker, moment: Duration) {
    worker.running.signal(Signal::STOP);
    tokio::time::sleep(moment).await;
    worker.running.signal(Signal::CONT);
}

async fn stop_broker(stage: &Stage, moment: Duration) {
    stage.broker.pause();
    tokio::time::sleep(moment).await;
    stage.broker.resume();
}

async fn kill_broker(stage: &mut Stage, moment: Duration) {
    let from = SystemTime::now();
    stage.broker.kill().await;
    tokio::time::sleep(moment).await;
    bring_back(stage, from).await;
}

async fn kill_broker_with_full_disks(stage: &mut Stage, moment: Duration) {
    stage.fleet.workers.iter().for_each(Worker::fill_disk);
    kill_broker(stage, moment).await;
    stage.fleet.workers.iter().for_each(Worker::free_disk);
}

/// Starts the broker, after it was asked to stop if it still runs.
async fn bring_back(stage: &mut Stage, from: SystemTime) {
    stage.broker.restart().await;
    stage.fleet.ready().await;
    let to = SystemTime::now();
    stage.broker_away.push(Loss { from, to });
}

async fn shortage(stage: &Stage, moment: Duration) {
    let limit = |limit| stage.broker.ctl(limit);
    limit(&["set_vm_memory_high_watermark", "absolute", "10MB"]).await;
    tokio::time::sleep(moment).await;
    limit(&["set_vm_memory_high_watermark", "0.9"]).await;
}

async fn silence(worker: &Worker) {
    let silent = worker.proxy.open();
    worker.proxy.silence();
    tokio::time::sleep(SILENCE).await;
    let reconnected = || worker.proxy.open() > silent && worker.is_ready();
    eventually(PATIENCE, "it connects anew", reconnected).await;
    worker.proxy.cut_silent();
}

async fn silence_and_stop(stage: &mut Stage, place: usize, moment: Duration) {
    let worker = &stage.fleet.workers[place];
    worker.proxy.silence();
    tokio::time::sleep(SILENCE - moment).await;
    let from = SystemTime::now();
    stop_broker(stage, moment * 2).await;
    // So long that others may give it up, too; their proxies hear of that only when it goes on.
    let to = SystemTime::now();
    worker.ready().await;
    worker.proxy.cut_silent();
    stage.broker_away.push(Loss { from, to });
}

async fn kill_both(stage: &mut Stage, place: usize) {
    let from = SystemTime::now();
    stage.broker.kill().await;
    stage.fleet.end_one(place, Signal::KILL).await;
    bring_back(stage, from).await;
    stage.fleet.put(place).await;
}
