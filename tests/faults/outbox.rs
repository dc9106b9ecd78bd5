//! Results that wait on disk: written only when they have to wait, and published by whoever comes next.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use synthex::message::Status::{self, Failed, Succeeded};
use synthex::transport::Transport;
use synthex::worker::event::Event;

use crate::rig::{Live, OUTBOX, PATIENCE, Rig, Stopped, ends, soon};
use crate::support::faulty::{Faulty, Gate, PublishFault, dead_letters, results};
use crate::support::process::eventually;

/// How long a result may be on its way before it is written to disk.
const MOMENT: Duration = Duration::from_secs(1);

pub async fn results_that_are_confirmed_at_once_never_touch_the_disk<T: Transport>(rig: Rig<T>) {
    let live = rig.work_with_outbox(rig.broker.clone(), rig.pool()).await;
    let confirmed = |event: &Event| matches!(event, Event::ResultSettled { .. });
    let mut late = 0; // on a busy machine
    for number in 1..=10 {
        let began = Instant::now();
        let job = json!({ "command": ["true"] });
        rig.publish(&format!("job-{number}"), &job).await;
        live.observer.wait_for_times(number, "a confirm", confirmed).await;
        late += usize::from(began.elapsed() >= MOMENT);
    }
    let stopped = live.stop().await;
    stopped.assert_clean();
    assert_eq!(rig.results().await.len(), 10);
    let written = stopped.observer.count(|event| on_disk(event, 1));
    assert!(written <= late, "{written} were written, {late} may have been");
    assert_eq!(rig.outbox_files(), 0, "a worker that leaves nothing leaves no file");
}

pub async fn a_result_whose_publish_fails_is_on_disk_until_it_is_confirmed<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, 1..=1, PublishFault::UnknownLost);
    transport.on_publish(results, 2..=2, PublishFault::HangsBefore(gate.clone()));
    let live = rig.work_with_outbox(transport, rig.pool()).await;
    rig.publish("job", &json!({ "command": ["true"] })).await;
    gate.reached().await;
    is_on_disk(&live, 1).await;
    gate.open();
    let results = rig.wait_for_ends(["job".to_owned()]).await;
    assert_eq!(ends(&results["job"]), [(1, Succeeded)]);
    live.stop().await.assert_clean();
    assert_eq!(rig.outbox_files(), 0);
}

pub async fn a_result_that_is_never_confirmed_is_published_by_the_next_worker<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(results, .., PublishFault::HangsBefore(gate.clone()));
    die_with_a_result_on_disk(&rig, transport).await;

    let live = rig.work_with_outbox(rig.broker.clone(), rig.pool()).await;
    let results = rig.wait_for_results(1).await;
    assert_eq!(ends(&results["job"]), [(1, Failed)]);
    let stopped = stop_when_adopted(live).await;
    let started = |event: &Event| matches!(event, Event::JobStarted { .. });
    assert_eq!(
        stopped.observer.count(started),
        0,
        "it came again, and was not to be run"
    );
    rig.assert_queue_is_empty().await;
    assert!(rig.results().await.is_empty(), "it has one result");
    rig.outbox_is_gone().await;
}

pub async fn a_dead_letter_that_is_never_confirmed_is_published_by_the_next_worker<T: Transport>(rig: Rig<T>) {
    let (transport, gate) = (Faulty::new(rig.broker.clone()), Gate::default());
    transport.on_publish(dead_letters, .., PublishFault::HangsBefore(gate.clone()));
    rig.publish("job", &json!({ "command": 7 })).await;
    let live = rig.work_with_outbox(transport, rig.pool()).await;
    gate.reached().await;
    is_on_disk(&live, 1).await;
    live.drop_now().await;
    rig.outbox_is_free().await;
    assert_eq!(rig.dead_letters().await, [""; 0]);

    let live = rig.work_with_outbox(rig.broker.clone(), rig.pool()).await;
    let finished = |event: &Event| matches!(event, Event::JobDeadLettered { .. });
    live.observer.wait_for("its dead letter", finished).await;
    stop_when_adopted(live).await;
    assert_eq!(rig.dead_letters().await, ["job"]);
    // The result had arrived before, which nobody was left to know.
    let rejected = (1, Status::Rejected);
    assert_eq!(ends(&rig.results().await["job"]), [rejected, rejected]);
}

/// Stops a worker when the message of the job has come again and was known.
async fn stop_when_adopted(live: Live) -> Stopped {
    let adopted = |event: &Event| matches!(event, Event::JobAdopted { .. });
    live.observer.wait_for("its message is known", adopted).await;
    let stopped = live.stop().await;
    stopped.assert_clean();
    stopped
}

/// Runs a job that fails, and drops the worker once its result is on disk and nowhere else.
async fn die_with_a_result_on_disk<T: Transport>(rig: &Rig<T>, transport: Faulty<T>) {
    rig.publish("job", &json!({ "command": ["false"] })).await;
    let live = rig.work_with_outbox(transport, rig.pool()).await;
    is_on_disk(&live, 1).await;
    live.drop_now().await;
    rig.outbox_is_free().await;
    assert_eq!(rig.outbox_files(), 1);
}

/// Waits until so many results are on disk.
async fn is_on_disk(live: &Live, count: usize) {
    let told = live
        .observer
        .wait_for("a result is on disk", |event| on_disk(event, count));
    soon("the outbox", told).await;
}

fn on_disk(event: &Event, count: usize) -> bool {
    matches!(event, Event::OutboxChanged { records, .. } if *records == count)
}

impl<T: Transport> Rig<T> {
    /// How many files the outbox has.
    pub fn outbox_files(&self) -> usize {
        self.files_of_outbox().count()
    }

    fn files_of_outbox(&self) -> impl Iterator<Item = PathBuf> {
        let folder = std::fs::read_dir(self.path(OUTBOX)).expect("the worker has made it");
        folder.map(|entry| entry.expect("it is there").path())
    }

    /// Waits until the outbox has no file: the thread that removes it may go on when nobody waits for it any more.
    pub async fn outbox_is_gone(&self) {
        eventually(PATIENCE, "its file is gone", || self.outbox_files() == 0).await;
    }

    /// Waits until no file of the outbox is locked: who wrote last may be a thread that outlives a dropped worker.
    async fn outbox_is_free(&self) {
        let is_free = |file: PathBuf| File::open(file).expect("it is there").try_lock().is_ok();
        eventually(PATIENCE, "the outbox is free", || self.files_of_outbox().all(is_free)).await;
    }
}
