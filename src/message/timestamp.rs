//! Points in time in messages: RFC 3339 with an offset, and nothing looser.
//!
//! `jiff` reads more than RFC 3339 (a space for the `T`, a time zone's name in brackets). A producer
//! that relied on it would be refused by every other reader of the schema, so the form is checked
//! before `jiff` reads it.

use std::borrow::Cow;

use jiff::Timestamp;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

use super::units::ParseError;

/// What error messages call a point in time.
pub(super) const EXPECTED: &str = r#"a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z""#;

const PATTERN: &str =
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$";

/// Returns the time as our messages carry it: in whole milliseconds.
pub fn now() -> Timestamp {
    in_millis(Timestamp::now())
}

/// Cuts a time to whole milliseconds.
pub(super) fn in_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

/// Deserializes a time.
pub(super) fn required<'de, D>(from: D) -> Result<Timestamp, D::Error>
where
    D: Deserializer<'de>,
{
    parse(&Cow::<'de, str>::deserialize(from)?).map_err(de::Error::custom)
}

/// Deserializes an optional time, where the field is there.
pub(super) fn deserialize<'de, D>(from: D) -> Result<Option<Timestamp>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = Option::<Cow<'de, str>>::deserialize(from)?;
    text.map(|text| parse(&text).map_err(de::Error::custom)).transpose()
}

/// Describes a time that must be there.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "format": "date-time",
        "pattern": PATTERN,
        "examples": ["2030-01-31T12:00:00Z", "2030-01-31T13:00:00.25+01:00"],
    })
}

/// Describes a time that may be `null`.
pub(super) fn nullable_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = schema(generator);
    schema.insert("type".to_owned(), serde_json::json!(["string", "null"]));
    schema
}

pub(super) fn parse(text: &str) -> Result<Timestamp, ParseError> {
    let refused = || ParseError::new(EXPECTED, text);
    if !is_rfc_3339(text) {
        return Err(refused());
    }
    text.parse().map_err(|_| refused())
}

/// Compares with the form only: `jiff` then knows which dates exist.
fn is_rfc_3339(text: &str) -> bool {
    let Some((date_time, rest)) = text.split_at_checked("2030-01-31T12:00:00".len()) else {
        return false;
    };
    let offset = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let fraction_len = rest.len() - offset.len();
    has_form(date_time, "0000-00-00T00:00:00")
        && (fraction_len == 0 || (2..=10).contains(&fraction_len))
        && ["Z", "+00:00", "-00:00"].iter().any(|form| has_form(offset, form))
}

/// Compares text with a form in which `0` stands for any digit and letters match in either case.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(byte, form): (u8, u8)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte.eq_ignore_ascii_case(&form),
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rfc_3339() {
        for (text, same) in [
            ("2030-01-31T12:00:00Z", "2030-01-31T12:00:00Z"),
            ("2030-01-31t12:00:00z", "2030-01-31T12:00:00Z"),
            ("2030-01-31T12:00:00+02:00", "2030-01-31T10:00:00Z"),
            ("2030-01-31T12:00:00.123456789-00:30", "2030-01-31T12:30:00.123456789Z"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), same);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "tomorrow",
            "2030-01-31",
            "2030-01-31T12:00:00",
            "2030-01-31 12:00:00Z",
            "2030-01-31T12:00Z",
            "2030-01-31T12:00:00.Z",
            "2030-01-31T12:00:00.1234567890Z",
            "2030-01-31T12:00:00+02",
            "2030-01-31T12:00:00+02:00[Europe/Paris]",
            "2030-02-30T12:00:00Z",
            "20é0-01-31T12:00:00Z",
            "1900000000",
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.starts_with(&format!("expected {EXPECTED}, got")), "{error}");
        }
    }
}
