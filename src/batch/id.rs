//! What a batch is called, and what its jobs are.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::message::JobId;

/// Most characters of a batch's id: its jobs' ids and its queue's name are made of it.
const MAX: usize = 64;

/// The id of a batch: part of a queue's name, so it has no dots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchId(String);

impl BatchId {
    /// An id that no other batch has.
    #[must_use]
    pub fn random() -> Self {
        Self(JobId::random().to_string())
    }

    /// The id as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the batch's job at this place in the input.
    #[must_use]
    pub fn job(&self, seq: u64) -> JobId {
        let id = format!("{self}:{seq}");
        id.parse()
            .expect("64 characters that a job's id may have, and a number")
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for BatchId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if (1..=MAX).contains(&text.len()) && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("expected 1 to {MAX} of A-Z, a-z, 0-9, '_' and '-'"))
    }
}

impl TryFrom<String> for BatchId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BatchId> for String {
    fn from(id: BatchId) -> Self {
        id.0
    }
}

/// One submission of an item: the first, or a later one because it had failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Submission {
    /// The item's place in the input, from 1.
    pub seq: u64,
    /// From 1.
    pub number: u8,
}

/// As a message's `correlation_id` has it: `17`, and `17.2` from the second submission on.
impl fmt::Display for Submission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            1 => write!(out, "{}", self.seq),
            number => write!(out, "{}.{number}", self.seq),
        }
    }
}

impl FromStr for Submission {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (seq, number) = text.split_once('.').unwrap_or((text, "1"));
        Ok(Self {
            seq: seq.parse()?,
            number: number.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_fit_into_names() {
        let id = BatchId::random();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        assert_eq!(id.job(u64::MAX).to_string(), format!("{id}:{}", u64::MAX));
        let longest: BatchId = "x".repeat(64).parse().unwrap();
        assert_eq!(longest.job(u64::MAX).as_str().len(), 85);
        for bad in ["", "a.b", "a b", "ä", &"x".repeat(65)] {
            assert!(bad.parse::<BatchId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_submission_is_read_as_it_is_written() {
        for (seq, number, text) in [(1, 1, "1"), (1_000_000, 2, "1000000.2"), (3, 255, "3.255")] {
            let submission = Submission { seq, number };
            assert_eq!(submission.to_string(), text);
            assert_eq!(text.parse(), Ok(submission));
        }
        for bad in ["", "x", "1.x", "1.256", "-1"] {
            assert!(bad.parse::<Submission>().is_err(), "{bad}");
        }
    }
}
