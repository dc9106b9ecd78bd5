//! Dead letters: looking at them, having their jobs run again, throwing them away.
//!
//! A queue can't be looked at without taking what is in it, so everything here is one [`pass`] over the dead letters: it
//! takes them in their order, does to each that is selected what was asked, and gives all others back at the end, in
//! their order. [`letter`] tells what a letter is about.
//!
//! Invariants:
//! - Nothing is lost, wherever a pass is cut. What is not acked goes back, and a letter is acked only after its job was
//!   published and confirmed, or because it is to be dropped. Cut between the two, a letter is there although its job
//!   runs again: at worst it is listed, or run, twice.
//! - Memory is bounded by letters, not by their bodies: one body is in hand, a few more are on their way, and of a letter
//!   that was passed over only the receipt is kept, by which it goes back.
//! - A pass has an end: the letters that were ready at its beginning. A job that is run again, and dies again, is not run
//!   a third time by it. What another client held then is not seen; [`Seen::missing`] counts what one took meanwhile.

mod letter;
pub(super) mod pass;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use jiff::Timestamp;

use crate::message::{Envelope, JobId, header};
use crate::transport::topology::Names;
use crate::transport::{Delivery, Publication, PublishError, Routing, Transport, TransportError};
use crate::worker::again;
pub use letter::Letter;
pub use pass::Pass;

/// The dead letters of a namespace.
pub struct DeadLetters<T> {
    transport: T,
    names: Names,
}

/// Which letters are meant: those that fit everything it says. The default says nothing, so all fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// One of these jobs; none for any.
    pub ids: BTreeSet<String>,
    /// Jobs of this pool.
    pub pool: Option<String>,
    /// Letters with this reason.
    pub reason: Option<String>,
}

/// What a pass came upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Letters that were selected.
    pub selected: usize,
    /// Letters that were ready at the beginning, and were taken by somebody else before the pass came to them.
    pub missing: usize,
}

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The namespace has no queue of dead letters.
    #[error("find queue {0:?}: start a worker, or declare it with `synthex config apply`")]
    NoQueue(String),
    /// Jobs cannot run again, since their pools have no queues. Nothing was done.
    #[error("run {}", no_pool_queues(.0))]
    NoPoolQueue(BTreeMap<String, String>),
    /// The broker could not be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A job could not be published again, or perhaps was: its letter is still there.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The connection was lost on the way.
    #[error("go through queue {queue:?}: {reason}")]
    Lost {
        /// The queue of dead letters.
        queue: String,
        /// What is known of the end.
        reason: String,
    },
    /// The one who asked can't be told of it.
    #[error("tell of a dead letter: {0}")]
    Tell(#[from] io::Error),
}

impl<T: Transport> DeadLetters<T> {
    /// The dead letters of the namespace of these names.
    pub fn new(transport: T, names: Names) -> Self {
        Self { transport, names }
    }

    /// Reads the selected letters, and leaves all as they are. Returns at most `limit` of them, the first.
    ///
    /// # Errors
    /// [`DeadError`]; all letters are still there.
    pub async fn list(&self, selector: &Selector, limit: usize) -> Result<(Vec<Letter>, Seen), DeadError> {
        let mut letters = Vec::new();
        let seen = self
            .pass(selector, async |letter, delivery| {
                if letters.len() < limit {
                    letters.push(letter);
                }
                Ok(Some(delivery))
            })
            .await?;
        Ok((letters, seen))
    }

    /// Shows each of the selected letters with its whole message, and leaves all as they are.
    ///
    /// # Errors
    /// [`DeadError`]; all letters are still there.
    pub async fn show(
        &self,
        selector: &Selector,
        mut tell: impl AsyncFnMut(&Letter, &Envelope) -> io::Result<()>,
    ) -> Result<Seen, DeadError> {
        self.pass(selector, async |letter, delivery| {
            tell(&letter, &delivery.envelope).await?;
            Ok(Some(delivery))
        })
        .await
    }

    /// Publishes the jobs of the selected letters again, each as a new submission, and removes their letters, telling of
    /// each. If one of their pools has no queue, nothing is published.
    ///
    /// # Errors
    /// [`DeadError`]; letters that were not told of are still there, perhaps although their jobs run again.
    pub async fn retry(
        &self,
        selector: &Selector,
        mut tell: impl AsyncFnMut(&Letter) -> io::Result<()>,
    ) -> Result<Seen, DeadError> {
        let pools = self.pools(selector).await?;
        self.check_pools(&pools).await?;
        self.pass(selector, async |mut letter, delivery| {
            if !pools.contains(&letter.pool) {
                return Ok(Some(delivery)); // it came later, and nobody has looked for its queue
            }
            let id = letter.job_id.get_or_insert_with(|| JobId::random().to_string());
            let again = self.submission(id, &letter.pool, &delivery.envelope, Timestamp::now());
            self.transport.publish(&again).await?;
            self.settle(delivery, &letter, &mut tell).await
        })
        .await
    }

    /// Removes the selected letters for good, telling of each.
    ///
    /// # Errors
    /// [`DeadError`]; letters that were not told of are still there.
    pub async fn drop(
        &self,
        selector: &Selector,
        mut tell: impl AsyncFnMut(&Letter) -> io::Result<()>,
    ) -> Result<Seen, DeadError> {
        self.pass(selector, async |letter, delivery| {
            self.settle(delivery, &letter, &mut tell).await
        })
        .await
    }

    /// Checks that each of these pools has a queue, in which a job can run again.
    ///
    /// # Errors
    /// [`DeadError::NoPoolQueue`] names all that have none.
    pub async fn check_pools(&self, pools: &BTreeSet<String>) -> Result<(), DeadError> {
        let mut missing = BTreeMap::new();
        for pool in pools {
            let queue = self.names.pool_queue(pool);
            if self.transport.queue_depth(&queue).await?.is_none() {
                missing.insert(pool.clone(), queue);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(DeadError::NoPoolQueue(missing))
    }

    /// The pools of the selected letters.
    async fn pools(&self, selector: &Selector) -> Result<BTreeSet<String>, DeadError> {
        let mut pools = BTreeSet::new();
        self.pass(selector, async |letter, delivery| {
            pools.insert(letter.pool);
            Ok(Some(delivery))
        })
        .await?;
        Ok(pools)
    }

    /// Goes over all letters, and does `deal` to those that are selected: it returns those that are to stay.
    async fn pass(
        &self,
        selector: &Selector,
        mut deal: impl AsyncFnMut(Letter, Delivery) -> Result<Option<Delivery>, DeadError>,
    ) -> Result<Seen, DeadError> {
        let mut pass = Pass::begin(&self.transport, self.names.dead()).await?;
        let mut selected = 0;
        let outcome = async {
            while let Some(delivery) = pass.next().await? {
                let letter = Letter::read(&self.names, &delivery.envelope, &delivery.routing_key);
                if !selector.selects(&letter) {
                    pass.keep(delivery);
                    continue;
                }
                if let Some(delivery) = deal(letter, delivery).await? {
                    pass.keep(delivery);
                }
                selected += 1;
            }
            Ok::<_, DeadError>(())
        }
        .await;
        let missing = pass.end().await;
        outcome.map(|()| Seen { selected, missing })
    }

    /// Removes a letter and tells of it.
    async fn settle(
        &self,
        delivery: Delivery,
        letter: &Letter,
        tell: &mut impl AsyncFnMut(&Letter) -> io::Result<()>,
    ) -> Result<Option<Delivery>, DeadError> {
        delivery.ack().await.map_err(|error| DeadError::Lost {
            queue: self.names.dead(),
            reason: format!("{error}: {}", letter.name()),
        })?;
        tell(letter).await?;
        Ok(None)
    }

    /// The job as its producer published it, submitted now: it has never been tried.
    fn submission(&self, id: &str, pool: &str, letter: &Envelope, now: Timestamp) -> Publication {
        let mut envelope = again(letter);
        let properties = &mut envelope.properties;
        let is_submitter_s = |name: &str| name == header::BATCH || !name.starts_with(header::OURS);
        properties.headers.retain(|name, _| is_submitter_s(name));
        properties.submit_at(now);
        properties.message_id.get_or_insert_with(|| id.to_owned());
        Publication {
            exchange: self.names.jobs(),
            routing_key: pool.to_owned(),
            routing: Routing::Mandatory,
            envelope: envelope.into(),
        }
    }
}

impl Selector {
    /// Whether a letter is meant.
    #[must_use]
    pub fn selects(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        let called = self.ids.is_empty() || self.ids.iter().any(|id| letter.is_called(id));
        called && is(&self.pool, &letter.pool) && is(&self.reason, &letter.reason)
    }
}

fn no_pool_queues(missing: &BTreeMap<String, String>) -> String {
    let each: Vec<String> = missing
        .iter()
        .map(|(pool, queue)| format!("jobs of pool {pool:?}, which has no queue {queue:?} on this broker"))
        .collect();
    format!(
        "{}; start a worker for it, or declare it with `synthex config apply`",
        each.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Attempt, HeaderValue, Properties};
    use crate::transport::memory::Memory;

    fn letters() -> DeadLetters<Memory> {
        DeadLetters::new(Memory::new(), Names::new("n"))
    }

    /// A letter of a job that failed twice, as a worker and its broker leave it.
    fn letter() -> Envelope {
        let mut properties = Properties {
            message_id: Some("job-1".to_owned()),
            correlation_id: Some("c".to_owned()),
            reply_to: Some("replies".to_owned()),
            app_id: Some("app".to_owned()),
            priority: Some(3),
            timestamp: Some(1),
            ..Properties::default()
        };
        let headers = [
            "traceparent",
            header::REASON,
            header::ERROR,
            header::POOL,
            header::NOT_BEFORE,
            "x-delivery-count",
        ];
        properties.headers = headers.map(|name| (name.to_owned(), HeaderValue::from("text"))).into();
        Attempt::FIRST.after_run().write(&mut properties);
        Envelope {
            body: "{}".into(),
            properties,
        }
    }

    #[test]
    fn a_retry_is_a_new_submission_with_all_that_its_producer_said() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let again = letters().submission("job-1", "p", &letter(), now);
        assert_eq!((again.exchange.as_str(), again.routing_key.as_str()), ("n.jobs", "p"));
        assert_eq!(again.routing, Routing::Mandatory);
        let mut expected = Properties {
            headers: [("traceparent".to_owned(), HeaderValue::from("text"))].into(),
            ..letter().properties
        };
        expected.submit_at(now);
        assert_eq!(expected.timestamp, Some(1_800_000_000));
        assert_eq!(again.envelope.properties, expected);
        assert_eq!(again.envelope.body, letter().body);
        assert_eq!(Attempt::read(&again.envelope.properties), Attempt::FIRST);
    }

    #[test]
    fn a_job_without_an_id_gets_the_one_that_is_told() {
        let mut nameless = letter();
        nameless.properties.message_id = None;
        let again = letters().submission("given", "p", &nameless, Timestamp::UNIX_EPOCH);
        assert_eq!(again.envelope.properties.message_id.as_deref(), Some("given"));
    }

    #[test]
    fn a_selector_selects_what_fits_all_it_says() {
        let mut found = letter();
        found
            .properties
            .headers
            .insert(header::REASON.to_owned(), "failed".into());
        found.properties.headers.insert(header::POOL.to_owned(), "p".into());
        let found = Letter::read(&Names::new("n"), &found, "p");
        let selects = |ids: &[&str], pool: Option<&str>, reason: Option<&str>| {
            let selector = Selector {
                ids: ids.iter().map(|id| (*id).to_owned()).collect(),
                pool: pool.map(str::to_owned),
                reason: reason.map(str::to_owned),
            };
            selector.selects(&found)
        };
        assert!(selects(&[], None, None));
        assert!(selects(&["other", "job-1"], Some("p"), Some("failed")));
        assert!(!selects(&["other"], None, None));
        assert!(!selects(&["job-1"], Some("q"), None));
        assert!(!selects(&[], Some("p"), Some("lost")));
    }

    #[test]
    fn every_pool_without_a_queue_is_named() {
        let missing = [("a", "n.jobs.a"), ("b", "n.jobs.b")];
        let missing = missing.map(|(pool, queue)| (pool.to_owned(), queue.to_owned()));
        let error = DeadError::NoPoolQueue(missing.into()).to_string();
        for name in [r#""a""#, r#""n.jobs.a""#, r#""b""#, r#""n.jobs.b""#, "config apply"] {
            assert!(error.contains(name), "{error}");
        }
    }
}
