//! The jobs in hand, each with how far it is, for operators who ask.
//!
//! A job is entered once it is known what it is, and its [`Entry`] takes it out when it is dropped, however its task ends.
//! What is kept of a job is what may be shown to anybody who may ask a worker: no argument, no environment, no stdin.
//! It is on the way of every job: one short lock at its beginning and its end, and none in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::Timestamp;

use crate::message::{JobId, JobState};

/// Most characters of a program's name, and of a label's: what is shown of a job is no longer than a few lines.
const TEXT_MAX: usize = 128;

/// The jobs in hand of all pools. A clone is another handle to the same ones.
#[derive(Clone, Default)]
pub struct InHand(Arc<Mutex<Book>>);

/// By the order in which they were taken.
#[derive(Default)]
struct Book {
    jobs: BTreeMap<u64, Arc<Known>>,
    last_key: u64,
}

/// What is known of a job in hand.
#[derive(Debug)]
pub struct Known {
    /// Its id.
    pub id: JobId,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// Its pool.
    pub pool: Arc<str>,
    /// The program that it runs, without its arguments; `None` of what is not a valid job.
    pub program: Option<String>,
    /// Its labels, long ones cut.
    pub labels: BTreeMap<String, String>,
    /// When it was taken from its queue.
    pub taken_at: Timestamp,
    started: OnceLock<Started>,
    ended: OnceLock<()>,
}

/// When a job's command began, and when it will be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// The moment its slot was its own.
    pub at: Timestamp,
    /// Its timeout.
    pub deadline: Timestamp,
}

impl Known {
    /// A job that is taken now.
    pub(super) fn new(id: JobId, attempt: u32, pool: Arc<str>) -> Self {
        Self {
            id,
            attempt,
            pool,
            program: None,
            labels: BTreeMap::new(),
            taken_at: crate::message::now(),
            started: OnceLock::new(),
            ended: OnceLock::new(),
        }
    }

    /// What it runs, and its labels.
    pub(super) fn of(mut self, program: Option<&str>, labels: &BTreeMap<String, String>) -> Self {
        self.program = program.map(cut);
        self.labels = labels.iter().map(|(name, value)| (cut(name), cut(value))).collect();
        self
    }

    /// How far it is.
    #[must_use]
    pub fn state(&self) -> JobState {
        match (self.started(), self.ended.get()) {
            (_, Some(())) => JobState::Settling,
            (Some(_), None) => JobState::Running,
            (None, None) => JobState::Waiting,
        }
    }

    /// When its command began; `None` if it has not.
    #[must_use]
    pub fn started(&self) -> Option<Started> {
        self.started.get().copied()
    }
}

impl InHand {
    /// Enters a job until the entry is dropped.
    pub(super) fn enter(&self, job: Known) -> Entry {
        let job = Arc::new(job);
        let mut book = self.book();
        book.last_key += 1;
        let key = book.last_key;
        book.jobs.insert(key, job.clone());
        drop(book);
        Entry {
            in_hand: self.clone(),
            key,
            job,
        }
    }

    /// The jobs in hand in the order in which they were taken, at most `most` of them, and how many were left out. Those of
    /// one id, or all.
    #[must_use]
    pub fn list(&self, id: Option<&JobId>, most: usize) -> (Vec<Arc<Known>>, usize) {
        let book = self.book();
        let mut meant = book.jobs.values().filter(|job| id.is_none_or(|id| *id == job.id));
        let listed: Vec<_> = meant.by_ref().take(most).cloned().collect();
        (listed, meant.count())
    }

    /// How many jobs of each id, for tests of what is left.
    #[cfg(test)]
    fn ids(&self) -> BTreeMap<String, usize> {
        let mut ids = BTreeMap::new();
        for job in self.book().jobs.values() {
            *ids.entry(job.id.to_string()).or_default() += 1;
        }
        ids
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // A panic under the lock is a bug, but what was in the book is still the best there is.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job in hand, until it is dropped.
pub(super) struct Entry {
    in_hand: InHand,
    key: u64,
    job: Arc<Known>,
}

impl Entry {
    /// Its command is started now.
    pub(super) fn start(&self, at: Timestamp, deadline: Timestamp) {
        // A job is started once.
        let _ = self.job.started.set(Started { at, deadline });
    }

    /// Its command has ended, or none will run: what is left is to tell of it.
    pub(super) fn settle(&self) {
        let _ = self.job.ended.set(());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.in_hand.book().jobs.remove(&self.key);
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Known {
        Known::new(id.parse().unwrap(), 1, "p".into())
    }

    #[test]
    fn a_job_is_in_hand_until_its_entry_is_dropped() {
        let in_hand = InHand::default();
        let (first, second) = (in_hand.enter(job("same")), in_hand.enter(job("same")));
        let third = in_hand.enter(job("other"));
        assert_eq!(in_hand.ids(), [("same".to_owned(), 2), ("other".to_owned(), 1)].into());
        drop(first);
        let (left, out) = in_hand.list(Some(&"same".parse().unwrap()), 9);
        assert_eq!((left.len(), out), (1, 0), "each of two with one id goes by itself");
        drop((second, third));
        assert!(in_hand.ids().is_empty());
    }

    #[test]
    fn the_first_taken_are_listed_and_the_others_counted() {
        let in_hand = InHand::default();
        let entries: Vec<_> = ["c", "a", "b"].map(|id| in_hand.enter(job(id))).into();
        let (listed, out) = in_hand.list(None, 2);
        let ids: Vec<&str> = listed.iter().map(|job| job.id.as_str()).collect();
        assert_eq!((ids, out), (vec!["c", "a"], 1));
        drop(entries);
    }

    #[test]
    fn a_job_waits_then_runs_then_settles() {
        let entry = InHand::default().enter(job("a"));
        assert_eq!(entry.job.state(), JobState::Waiting);
        let (at, deadline) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        entry.start(at, deadline);
        assert_eq!(entry.job.state(), JobState::Running);
        assert_eq!(entry.job.started(), Some(Started { at, deadline }));
        entry.settle();
        assert_eq!(entry.job.state(), JobState::Settling);
    }

    #[test]
    fn what_is_kept_of_a_job_has_a_bounded_length() {
        let long = "ä".repeat(10_000);
        let job = job("a").of(Some(&long), &[(long.clone(), long.clone())].into());
        let (name, value) = job.labels.first_key_value().unwrap();
        for text in [job.program.as_ref().unwrap(), name, value] {
            assert_eq!(text.chars().count(), TEXT_MAX + 1, "with an ellipsis");
        }
    }
}
