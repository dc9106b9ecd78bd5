//! What is known of each item: three bytes.

use std::collections::{BTreeMap, VecDeque};

use super::Submission;
use crate::message::Status;

/// How far beyond all others an item may be that is read from a file. A place that somebody made up must not cost memory.
const FURTHEST: u64 = 1 << 24;

/// What became of every item so far, by its place in the input.
#[derive(Debug, Default)]
pub struct Table {
    entries: VecDeque<Entry>,
    /// The entry at the front is of the item after this one.
    forgotten: u64,
    forgets: bool,
    counts: [u64; Status::ALL.len()],
    awaited: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The latest submission that the broker has confirmed; 0 for none.
    published: u8,
    /// The latest submission whose final result is known; 0 for none.
    finished: u8,
    /// How that ended, as its place in [`Status::ALL`].
    status: u8,
}

impl Entry {
    fn is_awaited(self) -> bool {
        self.published > self.finished
    }
}

impl Table {
    /// A table that forgets what nobody will ask about again: for input without an end. It keeps what was counted.
    #[must_use]
    pub fn forgetful() -> Self {
        Self {
            forgets: true,
            ..Self::default()
        }
    }

    /// Takes note that the broker has a submission.
    pub fn publish(&mut self, submission: Submission) {
        let Some(entry) = self.entry(submission.seq) else {
            return;
        };
        let was_awaited = entry.is_awaited();
        entry.published = entry.published.max(submission.number);
        let is_awaited = entry.is_awaited();
        self.awaited += u64::from(is_awaited && !was_awaited);
    }

    /// Takes note of a final result. False if it, or a later one of this item, is known already.
    pub fn finish(&mut self, submission: Submission, status: Status) -> bool {
        let Some(entry) = self.entry(submission.seq) else {
            return false;
        };
        if entry.finished >= submission.number {
            return false;
        }
        let (was_awaited, before) = (entry.is_awaited(), *entry);
        entry.finished = submission.number;
        entry.published = entry.published.max(submission.number);
        entry.status = code(status);
        let is_awaited = entry.is_awaited();
        if before.finished > 0 {
            self.counts[usize::from(before.status)] -= 1;
        }
        self.counts[usize::from(code(status))] += 1;
        self.awaited -= u64::from(was_awaited && !is_awaited);
        self.forget();
        true
    }

    /// The submission whose result an item waits for, if the broker has one.
    #[must_use]
    pub fn awaited(&self, seq: u64) -> Option<Submission> {
        let entry = self.known(seq)?;
        entry.is_awaited().then_some(Submission {
            seq,
            number: entry.published,
        })
    }

    /// How an item ended, if it did: the submission and its status.
    #[must_use]
    pub fn finished(&self, seq: u64) -> Option<(Submission, Status)> {
        let entry = self.known(seq).filter(|entry| entry.finished > 0)?;
        let number = entry.finished;
        Some((Submission { seq, number }, Status::ALL[usize::from(entry.status)]))
    }

    /// Whether the final result of this submission, or of a later one of its item, is known.
    #[must_use]
    pub fn has_finished(&self, submission: Submission) -> bool {
        let is_forgotten = (1..=self.forgotten).contains(&submission.seq);
        is_forgotten
            || self
                .known(submission.seq)
                .is_some_and(|entry| entry.finished >= submission.number)
    }

    /// The last item of which something is known.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.forgotten + u64::try_from(self.entries.len()).unwrap_or(u64::MAX)
    }

    /// Whether an item can be one of a batch of which so much is known.
    #[must_use]
    pub fn may_have(&self, seq: u64) -> bool {
        (1..=self.last() + FURTHEST).contains(&seq)
    }

    /// How many items wait for a result of a submission that the broker has.
    #[must_use]
    pub const fn awaiting(&self) -> u64 {
        self.awaited
    }

    /// How many items ended in which way, each counted once.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Status, u64> {
        named(self.counts)
    }

    /// The same without those that were submitted again, and are awaited.
    #[must_use]
    pub fn settled(&self) -> BTreeMap<Status, u64> {
        let mut counts = self.counts;
        let again = self
            .entries
            .iter()
            .filter(|entry| entry.finished > 0 && entry.is_awaited());
        for entry in again {
            counts[usize::from(entry.status)] -= 1;
        }
        named(counts)
    }

    /// How many items have ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn known(&self, seq: u64) -> Option<Entry> {
        let index = usize::try_from(seq.checked_sub(self.forgotten + 1)?).ok()?;
        self.entries.get(index).copied()
    }

    /// `None` for an item that is forgotten, and for place 0, which no item has.
    fn entry(&mut self, seq: u64) -> Option<&mut Entry> {
        let index = usize::try_from(seq.checked_sub(self.forgotten + 1)?).ok()?;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::default());
        }
        self.entries.get_mut(index)
    }

    fn forget(&mut self) {
        while self.forgets && self.entries.front().is_some_and(|entry| entry.finished > 0) {
            self.entries.pop_front();
            self.forgotten += 1;
        }
    }
}

/// Counts by status, without those of 0.
fn named(counts: [u64; Status::ALL.len()]) -> BTreeMap<Status, u64> {
    let all = Status::ALL.into_iter().zip(counts);
    all.filter(|(_, count)| *count > 0).collect()
}

fn code(status: Status) -> u8 {
    let place = Status::ALL.iter().position(|known| *known == status);
    u8::try_from(place.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seq: u64) -> Submission {
        Submission { seq, number: 1 }
    }

    #[test]
    fn a_result_that_comes_again_is_known() {
        let mut table = Table::default();
        table.publish(first(3));
        assert_eq!((table.awaiting(), table.awaited(3)), (1, Some(first(3))));
        assert!(table.finish(first(3), Status::Failed));
        assert!(!table.finish(first(3), Status::Succeeded));
        assert_eq!(table.finished(3), Some((first(3), Status::Failed)));
        assert_eq!((table.awaiting(), table.ended()), (0, 1));
        assert_eq!((table.finished(1), table.awaited(4)), (None, None));
    }

    #[test]
    fn a_result_may_come_before_the_confirm() {
        let mut table = Table::default();
        assert!(table.finish(first(1), Status::Succeeded));
        table.publish(first(1));
        assert_eq!((table.awaiting(), table.awaited(1)), (0, None));
    }

    #[test]
    fn the_last_submission_of_an_item_counts() {
        let mut table = Table::default();
        table.finish(first(1), Status::Failed);
        let again = Submission { seq: 1, number: 2 };
        table.publish(again);
        assert_eq!(table.awaited(1), Some(again));
        assert_eq!((table.ended(), table.settled()), (1, [].into()), "it goes on");
        assert!(
            !table.finish(first(1), Status::Succeeded),
            "of the first submission, late"
        );
        assert!(table.finish(again, Status::Succeeded));
        assert_eq!(table.counts(), [(Status::Succeeded, 1)].into());
        assert_eq!(table.settled(), table.counts());
    }

    #[test]
    fn a_forgetful_one_keeps_what_is_open_and_what_was_counted() {
        let mut table = Table::forgetful();
        for seq in 1..=100_000 {
            table.publish(first(seq));
            if seq > 10 {
                assert!(table.finish(first(seq - 10), Status::Succeeded));
            }
            assert!(table.entries.len() <= 11);
        }
        assert_eq!((table.awaiting(), table.ended()), (10, 99_990));
        assert_eq!(table.settled(), [(Status::Succeeded, 99_990)].into());
        assert!(table.has_finished(first(1)) && !table.has_finished(first(100_000)));
        assert!(!table.finish(first(1), Status::Succeeded), "it is known");
    }

    #[test]
    fn an_item_takes_three_bytes() {
        assert_eq!(size_of::<Entry>(), 3);
    }
}
