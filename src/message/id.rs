//! The identity of a job: what stays the same over redeliveries and retries.
//!
//! Invariant: a [`JobId`] is 1 to 128 characters that are safe in file names, routing keys, headers
//! and log lines.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use super::units::{ParseError, as_text};

/// Identifies a job; chosen by its producer, or made on receipt. A clone is cheap, as all that is told of a job has one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(Arc<str>);

impl JobId {
    /// What error messages call an id.
    pub(super) const EXPECTED: &str = r#"1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII"#;
    const MAX_LEN: usize = 128;

    /// Makes an id that nobody else has: a UUIDv7, so ids sort by the time they were made.
    pub fn random() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn allows(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || b"._:-".contains(&byte)
    }
}

impl TryFrom<String> for JobId {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl FromStr for JobId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fits = (1..=Self::MAX_LEN).contains(&text.len());
        if fits && text.bytes().all(Self::allows) {
            Ok(Self(text.into()))
        } else {
            Err(ParseError::new(Self::EXPECTED, text))
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

as_text!(
    JobId,
    "JobId",
    json_schema!({
        "description": "Identifies a job over redeliveries and retries: 1 to 128 ASCII letters, \
            digits, dots, underscores, colons and hyphens.",
        "type": "string",
        "pattern": "^[A-Za-z0-9._:-]{1,128}$",
        "examples": ["nightly-2030-01-31:7"],
    })
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_1_to_128_safe_characters() {
        for text in ["a", "A-z.0_9:x", &"x".repeat(128)] {
            assert_eq!(text.parse::<JobId>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn refuses_the_rest_and_says_what_is_allowed() {
        for text in ["", "a b", "a/b", "a\n", "é", "a\0"] {
            let expected = r#"expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII"#;
            let error = text.parse::<JobId>().unwrap_err();
            assert_eq!(error.to_string(), format!("{expected}, got {text:?}"));
        }
        let error = "x".repeat(129).parse::<JobId>().unwrap_err().to_string();
        assert!(error.ends_with(&format!("got \"{}\"…", "x".repeat(64))), "{error}");
    }

    #[test]
    fn random_ids_are_valid_distinct_and_sorted_by_time() {
        let ids: Vec<JobId> = (0..100).map(|_| JobId::random()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(ids.iter().all(|id| id.as_str().parse::<JobId>().as_ref() == Ok(id)));
    }
}
