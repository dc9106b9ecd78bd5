//! From the text of a pool file to its settings, one a key, in the order of the file.
//!
//! The parser goes on after a fault, so a file with a value that lacks its quotes still has its other mistakes found.
//!
//! Invariant: no message quotes the file's text, since any line of it may hold a secret.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::keys::KeyPath;

/// What a text holds, and where it is no TOML.
#[derive(Default)]
pub(super) struct Document {
    pub(super) settings: Vec<Written>,
    /// Faults of the text itself; whatever is near one may be missing from the settings.
    pub(super) faults: Vec<Fault>,
}

/// A setting as it was written.
pub(super) struct Written {
    pub(super) key: KeyPath,
    pub(super) value: Value,
    /// Where its value begins, in bytes.
    pub(super) at: usize,
}

/// A fault of the text.
pub(super) struct Fault {
    /// Where it is, in bytes.
    pub(super) at: usize,
    /// What it is, with its line and column.
    pub(super) message: String,
}

/// Reads TOML.
pub(super) fn parse(bytes: &[u8]) -> Document {
    match std::str::from_utf8(bytes) {
        Ok(text) => parse_text(text),
        Err(error) => {
            let at = error.valid_up_to();
            let message = format!("{}: expected UTF-8, got another byte", place(bytes, at));
            Document {
                faults: vec![Fault { at, message }],
                ..Document::default()
            }
        }
    }
}

fn parse_text(text: &str) -> Document {
    let (table, errors) = DeTable::parse_recoverable(text);
    let faults = errors.iter().map(|error| fault(text, error, 0)).collect();
    let mut document = Document {
        faults,
        ..Document::default()
    };
    document.collect(text, table.into_inner(), None);
    document.settings.sort_by_key(|written| written.at);
    document
}

impl Document {
    fn collect(&mut self, text: &str, table: DeTable<'_>, section: Option<&KeyPath>) {
        for (name, value) in table {
            let name = name.into_inner();
            let key = section.map_or_else(|| KeyPath::top(&*name), |section| section.join(&*name));
            let span = value.span();
            match value.into_inner() {
                DeValue::Table(inner) if key.is_section() => self.collect(text, inner, Some(&key)),
                value => self.add(text, key, Spanned::new(span, value)),
            }
        }
    }

    fn add(&mut self, text: &str, key: KeyPath, value: Spanned<DeValue<'_>>) {
        let Range { start, end } = value.span();
        if self.faults.iter().any(|fault| (start..=end).contains(&fault.at)) {
            return; // what the parser made of it is a guess
        }
        match Value::deserialize(ValueDeserializer::from(value)) {
            Ok(value) => self.settings.push(Written { key, value, at: start }),
            Err(error) => self.faults.push(fault(text, &error, start)),
        }
    }
}

/// Says what is wrong in the parser's words, which do not quote the text.
fn fault(text: &str, error: &toml::de::Error, otherwise: usize) -> Fault {
    let at = error.span().map_or(otherwise, |span| span.start);
    let message = format!("{}: {}", place(text.as_bytes(), at), error.message());
    Fault { at, message }
}

/// Says on which line and in which column a byte is, both counted from 1.
fn place(text: &[u8], at: usize) -> String {
    let before = &text[..at.min(text.len())];
    let line = before.split(|byte| *byte == b'\n').count();
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1);
    let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
    format!("line {line}, column {column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        parse(text.as_bytes())
            .faults
            .into_iter()
            .map(|fault| fault.message)
            .collect()
    }

    fn keys(text: &str) -> Vec<String> {
        parse(text.as_bytes())
            .settings
            .iter()
            .map(|written| written.key.to_string())
            .collect()
    }

    #[test]
    fn settings_come_in_the_order_of_the_file() {
        let text = "slots = 1\npool = 'p'\nenv.B = 'b'\nenv.A = 'a'\n[retry]\nmax = '1s'\n[limits]\n";
        assert_eq!(keys(text), ["slots", "pool", "env.B", "env.A", "retry.max"]);
    }

    #[test]
    fn only_sections_are_looked_into() {
        assert_eq!(
            keys("[pool]\na = 1\n[retry.max]\nb = 2\n[other.c]\nd = 3\n"),
            ["pool", "retry.max", "other"]
        );
    }

    #[test]
    fn all_faults_have_a_place_and_the_other_settings_are_still_read() {
        let text = "slots = 2\ntimeout = 30s\nkill_grace = '5s'\nlive = yes\n";
        let unquoted = "string values must be quoted, expected literal string";
        let expected = [
            format!("line 2, column 11: {unquoted}"),
            format!("line 4, column 8: {unquoted}"),
        ];
        assert_eq!(faults(text), expected);
        assert_eq!(keys(text), ["slots", "kill_grace"]);
    }

    #[test]
    fn a_fault_never_quotes_the_text() {
        for text in [
            "[env]\nTOKEN = secret\n",
            "[env]\nTOKEN = 'secret\n",
            "[env]\nTOKEN = 'a' secret",
            "secret",
        ] {
            let faults = faults(text);
            assert!(
                !faults.is_empty() && faults.iter().all(|fault| !fault.contains("secret")),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn a_key_twice_and_a_number_too_large_are_faults() {
        assert_eq!(faults("slots = 1\nslots = 2\n"), ["line 2, column 1: duplicate key"]);
        let large = faults("pool = 'p'\nslots = 99999999999999999999\n");
        assert!(
            large.len() == 1 && large[0].starts_with("line 2, column 9: "),
            "{large:?}"
        );
    }

    #[test]
    fn bytes_that_are_no_text_have_a_place() {
        let document = parse(b"pool = 'p'\ncwd = '/\xff'\n");
        assert_eq!(
            document.faults[0].message,
            "line 2, column 9: expected UTF-8, got another byte"
        );
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(place("a = 'ü' x".as_bytes(), 9), "line 1, column 9");
    }
}
