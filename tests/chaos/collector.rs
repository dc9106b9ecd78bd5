//! Takes every result, whatever becomes of the connections of who asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use synthex::message::JobResult;
use synthex::transport::amqp::Amqp;
use synthex::transport::{Subscribe, Subscription, Transport};
use tokio::task::JoinHandle;

use crate::world::{RESULTS, subscribe_request};

/// Results in hand at once.
const PREFETCH: u16 = 200;

/// One attempt to subscribe: a broker that has just started may leave it without an answer.
const ATTEMPT: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(100);

/// Results by job, each once: what was published again because nobody knew whether it had arrived is the same to the
/// byte.
pub type Results = BTreeMap<String, Vec<JobResult>>;

/// A consumer of all results.
pub struct Collector {
    results: Arc<Mutex<Results>>,
    collecting: JoinHandle<()>,
}

impl Collector {
    pub fn start(amqp: Amqp) -> Self {
        let results = Arc::<Mutex<Results>>::default();
        let collecting = tokio::spawn(collect(amqp, Arc::clone(&results)));
        Self { results, collecting }
    }

    pub fn look(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs of which there is any result.
    pub fn count(&self) -> usize {
        self.look().len()
    }

    /// Whether a job has had its end.
    pub fn has_end(&self, id: &str) -> bool {
        let results = self.look();
        results
            .get(id)
            .is_some_and(|results| results.iter().any(|result| result.is_final))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.collecting.abort();
    }
}

async fn collect(amqp: Amqp, results: Arc<Mutex<Results>>) {
    loop {
        let request: Subscribe = subscribe_request(RESULTS, PREFETCH);
        let Ok(Ok(mut subscription)) = tokio::time::timeout(ATTEMPT, amqp.subscribe(&request)).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while let Some(delivery) = subscription.next().await {
            let result = JobResult::decode(&delivery.envelope.body).expect("a result");
            {
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                let of_job = results.entry(result.job_id.to_string()).or_default();
                if !of_job.contains(&result) {
                    of_job.push(result);
                }
            }
            let _ = delivery.ack().await; // one that is lost comes again, and is known
        }
    }
}
