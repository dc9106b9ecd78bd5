//! When a batch ends early. Pure: what is to be done after each result.

use std::str::FromStr;

use crate::message::Status;

/// Failures before a share of them counts: one failed job of one is no reason to stop a thousand.
const FEWEST: u64 = 3;

/// How a batch ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Haste {
    /// No more jobs are submitted; those that were are awaited.
    Soon,
    /// What was submitted is cancelled as well.
    Now,
}

/// One reason to end early, such as `now,fail=1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Halt {
    /// How.
    pub haste: Haste,
    /// After what.
    pub after: After,
}

/// What ends a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// So many jobs did not succeed.
    Failed(u64),
    /// So many per cent of the jobs that ended did not succeed, and at least three.
    FailedShare(u8),
    /// So many jobs succeeded.
    Succeeded(u64),
}

impl Halt {
    /// The reason that `--max-fails` stands for: more than so many failures end the batch now.
    #[must_use]
    pub const fn max_fails(most: u64) -> Self {
        Self {
            haste: Haste::Now,
            after: After::Failed(most.saturating_add(1)),
        }
    }
}

impl FromStr for Halt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        read(text)
            .ok_or_else(|| "expected now or soon, then fail=N, fail=N% or success=N, as in soon,fail=10%".to_owned())
    }
}

fn read(text: &str) -> Option<Halt> {
    let (haste, after) = text.split_once(',')?;
    let haste = match haste {
        "now" => Haste::Now,
        "soon" => Haste::Soon,
        _ => return None,
    };
    let count = |text: &str| text.parse().ok().filter(|count: &u64| *count > 0);
    let after = match after.split_once('=')? {
        ("success", text) => After::Succeeded(count(text)?),
        ("fail", text) => match text.strip_suffix('%') {
            Some(share) => After::FailedShare(share.parse().ok().filter(|share| (1..=100).contains(share))?),
            None => After::Failed(count(text)?),
        },
        _ => return None,
    };
    Some(Halt { haste, after })
}

/// What was counted so far, held against the reasons to end early.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    halts: Vec<Halt>,
    succeeded: u64,
    failed: u64,
}

impl Policy {
    /// Ends for any of these reasons.
    #[must_use]
    pub fn new(halts: Vec<Halt>) -> Self {
        Self {
            halts,
            ..Self::default()
        }
    }

    /// Counts a job that has ended. Returns the reason to end early, the hastiest if there are several.
    pub fn step(&mut self, status: Status) -> Option<Halt> {
        match status {
            Status::Succeeded => self.succeeded += 1,
            _ => self.failed += 1,
        }
        let due = self.halts.iter().filter(|halt| self.is_due(halt.after));
        due.copied().max_by_key(|halt| halt.haste)
    }

    fn is_due(&self, after: After) -> bool {
        let ended = self.succeeded + self.failed;
        match after {
            After::Failed(count) => self.failed >= count,
            After::FailedShare(share) => self.failed >= FEWEST && self.failed * 100 >= ended * u64::from(share),
            After::Succeeded(count) => self.succeeded >= count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halt(text: &str) -> Halt {
        text.parse().unwrap()
    }

    /// After how many of these ends the batch is to end, and how.
    fn ends(halts: &[&str], statuses: &[Status]) -> Option<(usize, Haste)> {
        let mut policy = Policy::new(halts.iter().map(|text| halt(text)).collect());
        let mut numbered = statuses.iter().zip(1..);
        numbered.find_map(|(status, number)| Some((number, policy.step(*status)?.haste)))
    }

    use Status::{Failed as F, Succeeded as S, TimedOut as T};

    #[test]
    fn so_many_failures_or_successes_end_it() {
        assert_eq!(ends(&["now,fail=2"], &[S, F, S, T, S]), Some((4, Haste::Now)));
        assert_eq!(ends(&["soon,fail=2"], &[S, F, S, S]), None);
        assert_eq!(ends(&["now,success=2"], &[F, S, F, S]), Some((4, Haste::Now)));
        assert_eq!(ends(&[], &[F; 100]), None);
    }

    #[test]
    fn a_share_of_failures_ends_it_once_there_are_three() {
        assert_eq!(ends(&["soon,fail=50%"], &[F, F, S, S, F]), Some((5, Haste::Soon)));
        assert_eq!(ends(&["soon,fail=50%"], &[S, S, S, S, F, F, F]), None);
        assert_eq!(
            ends(&["soon,fail=50%"], &[S, S, S, S, F, F, F, F]),
            Some((8, Haste::Soon))
        );
        assert_eq!(ends(&["now,fail=100%"], &[F, F, F]), Some((3, Haste::Now)));
    }

    #[test]
    fn the_hastiest_of_several_reasons_counts() {
        assert_eq!(ends(&["soon,fail=1", "now,fail=1"], &[F]), Some((1, Haste::Now)));
        let mut policy = Policy::new(vec![Halt::max_fails(1)]);
        assert_eq!(policy.step(F), None, "so many may fail");
        assert_eq!(policy.step(F).map(|halt| halt.haste), Some(Haste::Now));
    }

    #[test]
    fn what_is_no_reason_is_refused_with_what_is() {
        for bad in [
            "",
            "now",
            "never",
            "now,fail",
            "now,fail=0",
            "now,fail=0%",
            "now,fail=101%",
            "now,fail=x",
            "later,fail=1",
            "now,success=10%",
            "now,done=1",
            "fail=1",
        ] {
            let error = bad.parse::<Halt>().expect_err(bad);
            assert!(error.contains("soon,fail=10%"), "{bad}: {error}");
        }
    }
}
