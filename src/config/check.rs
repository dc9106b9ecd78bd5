//! Judges one setting alone: whether there is such a key, whether the value has its type, and its own rules.
//!
//! A setting is read as a file that holds nothing else, so each key gets a verdict of its own, whatever is wrong with
//! the others. What a pool shares with jobs is judged by the rules of jobs ([`Job::check`]).

use std::path::PathBuf;

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::allow::{Allowed, GLOB, Wrong};
use super::file::{MAX_SLOTS, PoolFile};
use super::keys::{self, ENV, Key, KeyPath, TABLE};
use super::rate;
use crate::message::Job;
use crate::message::units::quoted;

/// What is wrong with a setting, or with the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The path, down to the element of an array; empty for the file.
    pub(super) key: String,
    pub(super) message: String,
}

impl Problem {
    /// Makes a problem of a file as a whole.
    pub(super) fn of_all(message: String) -> Self {
        Self {
            key: String::new(),
            message,
        }
    }
}

/// Longest name of a pool, so that its queue's name stays within AMQP's 255 bytes.
const POOL_NAME_MAX: usize = 64;

/// Checks a setting; of several faults in one array, the first is told.
pub(super) fn check(path: &KeyPath, value: &Value) -> Result<(), Problem> {
    let problem = |message| Problem {
        key: path.to_string(),
        message,
    };
    if path.is_section() {
        return Err(problem(mismatch(TABLE, value, path.name == ENV)));
    }
    let key = keys::find(path).ok_or_else(|| problem(keys::unknown(path)))?;
    refuse_dates(value).map_err(|index| wrong_type(key, path, value, index))?;
    let file = read(assemble([(path, value)])).map_err(|error| explain(key, path, value, &error))?;
    if !is_in_range(&file) {
        return Err(wrong_type(key, path, value, None));
    }
    if let Some(index) = wrong_path(&file).or_else(|| wrong_code(&file)) {
        return Err(wrong_type(key, path, value, Some(index)));
    }
    check_rules(key, path, value, &file)?;
    check_program(path, &file)?;
    check_as_job(path, file)
}

/// Refuses a date, which serde would take for a text, as the value or, by its index, as an element.
fn refuse_dates(value: &Value) -> Result<(), Option<usize>> {
    let elements = value.as_array().into_iter().flatten();
    match elements.map(Value::is_datetime).position(|is_date| is_date) {
        None if value.is_datetime() => Err(None),
        None => Ok(()),
        index => Err(index),
    }
}

/// Puts settings together to the table of a file.
pub(super) fn assemble<'a>(settings: impl IntoIterator<Item = (&'a KeyPath, &'a Value)>) -> Table {
    let mut table = Table::new();
    for (path, value) in settings {
        let place = match &path.section {
            None => &mut table,
            Some(section) => {
                let section = table.entry(section).or_insert_with(|| Table::new().into());
                section.as_table_mut().expect("a section's name is never a setting's")
            }
        };
        place.insert(path.name.clone(), value.clone());
    }
    table
}

/// A table that is no pool file, and where in it the fault is.
pub(super) type ReadError = serde_path_to_error::Error<toml::de::Error>;

/// Reads a table as a pool file.
pub(super) fn read(table: Table) -> Result<PoolFile, ReadError> {
    serde_path_to_error::deserialize(Value::Table(table))
}

/// Puts serde's words, which are for Rust programmers, into an operator's.
fn explain(key: &Key, path: &KeyPath, value: &Value, error: &ReadError) -> Problem {
    let index = match error.path().iter().next_back() {
        Some(Segment::Seq { index }) => Some(*index),
        _ => None,
    };
    let problem = wrong_type(key, path, value, index);
    match error.inner().message() {
        own if own.starts_with("expected ") => Problem {
            message: own.to_owned(),
            ..problem
        }, // our types know best
        _ => problem,
    }
}

/// Says what belongs at a key, or at an element of its array.
fn wrong_type(key: &Key, path: &KeyPath, value: &Value, index: Option<usize>) -> Problem {
    let secret = path.section() == ENV;
    match index.and_then(|index| Some((index, value.get(index)?))) {
        Some((index, element)) => Problem {
            key: format!("{path}[{index}]"),
            message: mismatch(key.each, element, secret),
        },
        None => Problem {
            key: path.to_string(),
            message: mismatch(key.expected, value, secret),
        },
    }
}

fn mismatch(expected: &str, got: &Value, secret: bool) -> String {
    let got = match got {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        _ if secret => "a value of another type".to_owned(),
        Value::String(text) => quoted(text),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => got.to_string(),
    };
    format!("expected {expected}, got {got}")
}

/// Checks what the types of a pool's own keys can't hold.
fn is_in_range(file: &PoolFile) -> bool {
    let name = |name: &str| !name.is_empty() && !name.contains('\0');
    file.pool.as_deref().is_none_or(is_pool_name)
        && file.slots.is_none_or(|slots| (1..=MAX_SLOTS).contains(&slots))
        && file.user.as_deref().is_none_or(name)
        && file.group.as_deref().is_none_or(name)
        && file.umask.as_deref().is_none_or(|umask| read_umask(umask).is_some())
}

/// Reads a file mode creation mask: octal digits, up to 0777, with or without a zero in front.
pub(super) fn read_umask(text: &str) -> Option<u32> {
    let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mask = u32::from_str_radix(text, 8).ok()?;
    (is_octal && mask <= 0o777).then_some(mask)
}

/// Finds the first path beneath which nothing can be written: one that is not absolute, or has a NUL in it.
fn wrong_path(file: &PoolFile) -> Option<usize> {
    let is_wrong = |path: &PathBuf| !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0);
    file.writable.iter().flatten().position(is_wrong)
}

/// Finds the first exit code that no command can fail with.
fn wrong_code(file: &PoolFile) -> Option<usize> {
    let mut codes = file.dead_letter_exit_codes.iter().flatten();
    codes.position(|code| !(1..=255).contains(code))
}

/// Checks a rule of what a restricted pool runs.
fn check_rules(key: &Key, path: &KeyPath, value: &Value, file: &PoolFile) -> Result<(), Problem> {
    let Some(rules) = &file.allow else { return Ok(()) };
    Allowed::read(rules).map(drop).map_err(|wrong| match wrong {
        Wrong::Glob => Problem {
            key: path.to_string(),
            message: format!("expected as its name {GLOB}, got {}", quoted(&path.name)),
        },
        Wrong::Pattern(index, why) => {
            let Problem { key, message } = wrong_type(key, path, value, Some(index));
            let message = format!("{message} ({why})");
            Problem { key, message }
        }
    })
}

/// Checks the name of a program that has a rate of its own.
fn check_program(path: &KeyPath, file: &PoolFile) -> Result<(), Problem> {
    let mut programs = file.program_rates.iter().flat_map(|rates| rates.keys());
    if programs.all(|program| rate::is_program(program)) {
        return Ok(());
    }
    Err(Problem {
        key: path.to_string(),
        message: format!("expected as its name {}, got {}", rate::PROGRAM, quoted(&path.name)),
    })
}

/// A dot would split the routing key of results, `<pool>.<status>`.
fn is_pool_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=POOL_NAME_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

/// Checks what a job may say too by the job's own rules.
fn check_as_job(path: &KeyPath, file: PoolFile) -> Result<(), Problem> {
    let command = file.handler.or(file.shell).unwrap_or_else(|| vec!["true".to_owned()]);
    let job = Job {
        command: Some(command),
        cwd: file.cwd,
        env: file.env,
        retry: file.retry,
        output: file.output,
        ..Job::default()
    };
    job.check().map_err(|error| {
        let key = match error.field.strip_prefix("command") {
            Some(index) => format!("{path}{index}"),
            None => error.field,
        };
        Problem {
            key,
            message: error.message,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks `key = value`, and returns what is wrong with it as one line.
    fn verdict(key: &str, value: &str) -> String {
        let table: Table = format!("value = {value}").parse().unwrap();
        match check(&KeyPath::of(key), &table["value"]) {
            Ok(()) => "fine".to_owned(),
            Err(Problem { key, message }) => format!("{key}: {message}"),
        }
    }

    #[test]
    fn every_key_names_what_belongs_there() {
        for key in &keys::KEYS {
            let place = key.path.replace('*', "NAME");
            let got = if key.path == "env.*" {
                "a value of another type"
            } else {
                "1979-05-27"
            };
            assert_eq!(
                verdict(&place, "1979-05-27"),
                format!("{place}: expected {}, got {got}", key.expected)
            );
        }
    }

    #[test]
    fn every_array_names_the_element_and_what_it_has_to_be() {
        for key in keys::KEYS.iter().filter(|key| !key.each.is_empty()) {
            let place = key.path.replace('*', "NAME");
            let expected = format!("{place}[0]: expected {}, got 1979-05-27", key.each);
            assert_eq!(verdict(&place, "[1979-05-27]"), expected);
        }
        let second = verdict("retry.statuses", r#"["failed", "failing"]"#);
        assert!(
            second.starts_with("retry.statuses[1]: expected one of succeeded, "),
            "{second}"
        );
    }

    #[test]
    fn numbers_have_a_range() {
        for (key, bad, good) in [
            ("slots", "0", "1"),
            ("slots", "10001", "10000"),
            ("slots", "-1", "4"),
            ("slots", "70000", "4"),
            ("prefetch", "0", "1"),
            ("prefetch", "65536", "65535"),
            ("delivery_limit", "0", "1"),
            ("retry.max_attempts", "0", "1"),
            ("retry.multiplier", "0.5", "1"),
            ("retry.multiplier", "inf", "1.5"),
            ("limits.processes", "0", "1"),
            ("rate.burst", "0", "1"),
            ("breaker.failures", "0", "1"),
            ("breaker.put_offs", "4294967296", "4294967295"),
        ] {
            let expected = keys::find(&KeyPath::of(key)).map(|key| key.expected).unwrap();
            assert_eq!(verdict(key, bad), format!("{key}: expected {expected}, got {bad}"));
            assert_eq!(verdict(key, good), "fine", "{key}");
        }
        assert_eq!(
            verdict("retry.exit_codes", "[75, 256]"),
            "retry.exit_codes[1]: expected an exit code from 0 to 255, got 256"
        );
    }

    #[test]
    fn a_pool_name_is_good_as_a_routing_key_and_a_label() {
        let long = "x".repeat(POOL_NAME_MAX);
        assert_eq!(verdict("pool", &format!("{long:?}")), "fine");
        assert_eq!(verdict("pool", r#""render-4k_A""#), "fine");
        for name in ["", "a.b", "a b", "ä", "a*", &format!("{long}x")] {
            let verdict = verdict("pool", &format!("{name:?}"));
            assert!(verdict.starts_with("pool: expected 1 to 64 letters"), "{verdict}");
        }
    }

    #[test]
    fn texts_follow_the_rules_of_jobs() {
        for (key, value, expected) in [
            (
                "shell",
                "[]",
                "shell: expected a program and its arguments, got nothing",
            ),
            ("handler", r#"[""]"#, r#"handler[0]: expected a program, got """#),
            (
                "handler",
                r#"["x", "a\u0000b"]"#,
                "handler[1]: expected text without NUL, got one at byte 1",
            ),
            (
                "cwd",
                r#""srv/work""#,
                r#"cwd: expected an absolute path, got "srv/work""#,
            ),
            (
                "env.A",
                r#""a\u0000b""#,
                "env.A: expected text without NUL, got one at byte 1",
            ),
            (
                "env.A=B",
                r#""""#,
                r#"env: expected names without "=", got one that starts with "A""#,
            ),
            (
                "env.",
                r#""""#,
                "env: expected names that aren't empty, got an empty one",
            ),
            (
                "timeout",
                r#""0s""#,
                r#"timeout: expected a duration such as "30s", got "0s""#,
            ),
        ] {
            assert_eq!(verdict(key, value), expected);
        }
    }

    #[test]
    fn a_umask_is_octal_and_of_permissions_alone() {
        for good in ["022", "0022", "77", "0", "0777"] {
            assert_eq!(verdict("umask", &format!("{good:?}")), "fine");
        }
        assert_eq!((read_umask("022"), read_umask("0777")), (Some(0o22), Some(0o777)));
        for bad in ["", "8", "1000", "00022", "0o22", "+22", "rwx"] {
            assert_eq!(
                verdict("umask", &format!("{bad:?}")),
                format!(r#"umask: expected octal digits from "000" to "777", as a text, got {bad:?}"#)
            );
        }
        assert!(verdict("umask", "22").ends_with(", got 22"), "a number is no octal one");
    }

    #[test]
    fn the_first_path_that_is_not_absolute_is_named() {
        assert_eq!(verdict("writable", r#"["/srv", "/tmp/a b"]"#), "fine");
        assert_eq!(verdict("writable", "[]"), "fine", "nowhere at all");
        assert_eq!(
            verdict("writable", r#"["/srv", "work", "~/tmp"]"#),
            r#"writable[1]: expected an absolute path, got "work""#
        );
        let nul = verdict("writable", r#"["/a\u0000b"]"#);
        assert!(nul.starts_with("writable[0]: expected an absolute path, got "), "{nul}");
    }

    #[test]
    fn who_commands_run_as_is_a_text() {
        for key in ["user", "group"] {
            assert_eq!(verdict(key, r#""1000""#), "fine");
            let expected = format!("{key}: expected the name or number of a {key}, as a text, got ");
            assert_eq!(verdict(key, "1000"), format!("{expected}1000"));
            assert_eq!(verdict(key, r#""""#), format!(r#"{expected}"""#));
        }
        assert_eq!(
            verdict("leftovers", r#""spare""#),
            r#"leftovers: expected "kill" or "allow", got "spare""#
        );
    }

    #[test]
    fn a_rate_is_of_a_program_that_there_could_be() {
        assert_eq!(verdict("rate.jobs", r#""100/s""#), "fine");
        assert_eq!(
            verdict("rate.jobs", r#""100/d""#),
            r#"rate.jobs: expected a rate such as "100/s", got "100/d""#
        );
        assert_eq!(verdict("program_rates./usr/bin/*", r#""5/m""#), "fine");
        let program = verdict("program_rates./opt/**", r#""5/m""#);
        assert!(program.ends_with(r#"of one part, got "/opt/**""#), "{program}");
    }

    #[test]
    fn a_section_is_a_table() {
        for section in keys::SECTIONS {
            let got = if section == ENV {
                "a value of another type"
            } else {
                r#""x""#
            };
            assert_eq!(
                verdict(section, r#""x""#),
                format!("{section}: expected a table, got {got}")
            );
            assert_eq!(
                verdict(section, "[]"),
                format!("{section}: expected a table, got an array")
            );
        }
    }

    #[test]
    fn a_message_quotes_little() {
        let long = "x".repeat(1000);
        assert!(verdict("cwd", &format!("{long:?}")).len() < 150);
        assert!(verdict("pool", &format!("{long:?}")).len() < 150);
    }
}
