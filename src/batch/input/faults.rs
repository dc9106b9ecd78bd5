//! What is said of items that are no jobs.

use serde::de::IgnoredAny;

use crate::batch::BadItem;
use crate::message::{FailureKind, JobError};

pub(super) fn bad(message: String) -> BadItem {
    BadItem {
        id: None,
        kind: FailureKind::InvalidJob,
        field: None,
        message,
    }
}

pub(super) fn bad_job(error: JobError) -> BadItem {
    let message = error.to_string();
    BadItem {
        field: Some(error.field).filter(|field| !field.is_empty()),
        ..bad(message)
    }
}

/// The error of a body that is a line of a file, whose number is another one than that of the line within the body.
pub(super) fn bad_line(error: JobError) -> BadItem {
    let mut error = bad_job(error);
    if error.field.is_none()
        && let Some((message, column)) = error.message.rsplit_once(" at line 1 column ")
    {
        error.message = format!("{message} at column {column}");
    }
    error
}

/// Says what to do with a file whose lines are no jobs but something else: once, of the first such line.
#[derive(Debug, Default)]
pub(super) struct Hints {
    is_given: bool,
}

impl Hints {
    /// Adds to the error of `line` what to do.
    pub(super) fn add(&mut self, line: &[u8], error: &mut BadItem) {
        if self.is_given || error.kind != FailureKind::InvalidJob {
            return;
        }
        if let Some(hint) = hint(line) {
            error.message = format!("{}; {hint}", error.message);
            self.is_given = true;
        }
    }
}

fn hint(line: &[u8]) -> Option<&'static str> {
    let line = str::from_utf8(line).ok()?.trim_ascii_start();
    match line.chars().next()? {
        // A job, whatever is wrong with it, unless it goes on in the next line.
        '{' => {
            let read = serde_json::from_str::<IgnoredAny>(line);
            let is_cut = read.is_err_and(|error| error.is_eof());
            is_cut.then_some("one object a line: jq -c . FILE")
        }
        '[' => Some("one object a line: jq -c '.[]' FILE"),
        _ => Some("for a command a line: --each FILE -- CMD {}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_something_else_says_what_to_do() {
        let each = Some("for a command a line: --each FILE -- CMD {}");
        let objects = Some("one object a line: jq -c . FILE");
        for (line, hint) in [
            ("7", each),
            ("echo hello", each),
            ("\"a\"", each),
            ("# jobs", each),
            ("{", objects),
            (" {\"command\": [\"true\",", objects),
            ("[", Some("one object a line: jq -c '.[]' FILE")),
            ("{\"comand\": []}", None),
            ("{command}", None),
            ("{} {}", None),
        ] {
            assert_eq!(super::hint(line.as_bytes()), hint, "{line}");
        }
        assert_eq!(super::hint(b"\xff"), None);
    }

    #[test]
    fn a_hint_is_given_once_and_not_for_what_is_too_large() {
        let mut hints = Hints::default();
        let mut told = |kind| {
            let mut error = BadItem {
                kind,
                ..bad("no".to_owned())
            };
            hints.add(b"7", &mut error);
            error.message
        };
        assert_eq!(told(FailureKind::TooLarge), "no");
        assert_eq!(
            told(FailureKind::InvalidJob),
            "no; for a command a line: --each FILE -- CMD {}"
        );
        assert_eq!(told(FailureKind::InvalidJob), "no");
    }
}
