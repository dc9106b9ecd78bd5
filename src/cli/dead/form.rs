//! How dead letters are printed.
//!
//! What producers wrote goes to a terminal with its control characters escaped, but for a body that was asked for.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::control::dead::Letter;
use crate::message::{Envelope, HeaderValue, Properties};

/// Most characters of an error in a table.
const ERROR_MAX: usize = 80;
/// Rows are written in pieces of about so many bytes.
const CHUNK: usize = 64 * 1024;
/// What stands for what is not known.
const NONE: &str = "-";

/// A row a letter, under a heading; nothing at all without letters.
pub(super) fn table(letters: &[Letter]) -> impl Iterator<Item = String> {
    let heading = ["JOB", "POOL", "REASON", "ATTEMPT", "FAILED AT", "ERROR"].map(str::to_owned);
    let mut widths = heading.each_ref().map(String::len);
    for letter in letters {
        for (width, cell) in widths.iter_mut().zip(cells(letter)) {
            *width = cell.chars().count().max(*width);
        }
    }
    let row = move |cells: [String; 6]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heading = (!letters.is_empty()).then_some(heading);
    chunks(heading.into_iter().chain(letters.iter().map(cells)).map(row))
}

/// A JSON object a letter.
pub(super) fn json_rows(letters: &[Letter]) -> impl Iterator<Item = String> {
    chunks(letters.iter().map(json))
}

/// A letter's row as JSON.
pub(super) fn json(letter: &Letter) -> String {
    row(letter).to_string()
}

/// The job's id.
pub(super) fn id(letter: &Letter) -> String {
    optional(letter.job_id.as_deref())
}

/// All that is known of a letter, its properties, headers and body, for people.
pub(super) fn whole(letter: &Letter, envelope: &Envelope) -> Vec<u8> {
    let mut text = String::new();
    for (name, value) in fields(letter, envelope) {
        let shown = match value {
            Value::Null => continue,
            Value::Object(parts) => {
                let parts = parts
                    .into_iter()
                    .map(|(name, value)| format!("\n  {}: {}", escaped(&name), plain(&value)));
                parts.collect()
            }
            value => format!(" {}", plain(&value)),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}:{shown}");
    }
    let body = &envelope.body;
    let bytes = body.len();
    if std::str::from_utf8(body).is_err() {
        let _ = writeln!(text, "body: {bytes} bytes that are no text; --json has them in base64");
        return text.into_bytes();
    }
    let _ = writeln!(text, "body: {bytes} bytes\n");
    let mut whole = [text.as_bytes(), body].concat();
    if !whole.ends_with(b"\n") {
        whole.push(b'\n');
    }
    whole
}

/// The same as a JSON object on a line.
pub(super) fn whole_as_json(letter: &Letter, envelope: &Envelope) -> Vec<u8> {
    let mut fields: Map<String, Value> = fields(letter, envelope).collect();
    match std::str::from_utf8(&envelope.body) {
        Ok(text) => fields.insert("body".to_owned(), text.into()),
        Err(_) => fields.insert("body_base64".to_owned(), BASE64.encode(&**envelope.body).into()),
    };
    format!("{}\n", Value::Object(fields)).into_bytes()
}

fn fields(letter: &Letter, envelope: &Envelope) -> impl Iterator<Item = (String, Value)> {
    let mut fields = match row(letter) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.insert("properties".to_owned(), properties(&envelope.properties));
    fields.insert("headers".to_owned(), headers(&envelope.properties));
    fields.into_iter()
}

fn row(letter: &Letter) -> Value {
    serde_json::to_value(letter).expect("a letter is texts and numbers")
}

fn properties(properties: &Properties) -> Value {
    let all = json!({
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "app_id": properties.app_id,
        "message_id": properties.message_id,
        "correlation_id": properties.correlation_id,
        "reply_to": properties.reply_to,
        "type": properties.kind,
        "user_id": properties.user_id,
        "priority": properties.priority,
        "timestamp": properties.timestamp,
    });
    let given = match all {
        Value::Object(all) => all.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    };
    Value::Object(given)
}

fn headers(properties: &Properties) -> Value {
    let entry = |(name, value): (&String, &HeaderValue)| (name.clone(), header(value));
    Value::Object(properties.headers.iter().map(entry).collect())
}

fn header(value: &HeaderValue) -> Value {
    match value {
        HeaderValue::Text(text) => text.as_str().into(),
        HeaderValue::Int(number) => (*number).into(),
        HeaderValue::Bool(flag) => (*flag).into(),
        HeaderValue::Float(number) => (*number).into(),
        HeaderValue::List(items) => items.iter().map(header).collect(),
        HeaderValue::Table(fields) => {
            let entry = |(name, value): (&String, &HeaderValue)| (name.clone(), header(value));
            Value::Object(fields.iter().map(entry).collect())
        }
        HeaderValue::Other => Value::Null,
    }
}

/// A text as it is, all else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text),
        other => other.to_string(),
    }
}

fn cells(letter: &Letter) -> [String; 6] {
    let error = optional(letter.error.as_deref());
    [
        id(letter),
        optional(Some(&letter.pool)),
        optional(Some(&letter.reason)),
        letter.attempt.to_string(),
        letter
            .failed_at
            .map_or_else(|| NONE.to_owned(), |at| format!("{at:.0}")),
        shortened(&error),
    ]
}

fn optional(text: Option<&str>) -> String {
    match text {
        None | Some("") => NONE.to_owned(),
        Some(text) => escaped(text),
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= ERROR_MAX {
        return text.to_owned();
    }
    let kept: String = text.chars().take(ERROR_MAX - 1).collect();
    format!("{kept}…")
}

/// A text that leaves the terminal as it is, on one line.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Lines in pieces that are worth a write.
fn chunks(mut lines: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
    std::iter::from_fn(move || {
        let mut chunk = lines.next()? + "\n";
        while chunk.len() < CHUNK
            && let Some(line) = lines.next()
        {
            chunk.push_str(&line);
            chunk.push('\n');
        }
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_does_not_reach_the_terminal_s_ears() {
        assert_eq!(escaped("a\x1b[31mb\nc\u{9b}ä"), "a\\u{1b}[31mb\\nc\\u{9b}ä");
    }

    #[test]
    fn an_error_is_cut_to_a_row() {
        let short = "ä".repeat(ERROR_MAX);
        assert_eq!(shortened(&short), short);
        assert_eq!(shortened(&(short.clone() + "b")).chars().count(), ERROR_MAX);
    }

    #[test]
    fn rows_come_in_pieces_and_none_is_lost() {
        let lines = || (0..20_000).map(|number| format!("row {number}"));
        let pieces: Vec<String> = chunks(lines()).collect();
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() < CHUNK + 100));
        let whole: String = pieces.concat();
        assert!(whole.lines().eq(lines()));
    }

    #[test]
    fn no_letters_are_no_table() {
        assert_eq!(table(&[]).count(), 0);
    }
}
