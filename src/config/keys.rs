//! Every key of a pool file: what it is called, what belongs there, and which one was meant.
//!
//! serde can say that a value is wrong, but not in an operator's words, so [`KEYS`] says what is expected. A test holds
//! the table equal to the schema, which comes from the types.

use std::fmt;

use super::{allow, rate};
use crate::message::nearest::{distance, most_typos};

/// A key as it stands in a file: a name, in a section or above all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyPath {
    pub(super) section: Option<String>,
    pub(super) name: String,
}

/// A key that a pool file may have.
pub(super) struct Key {
    /// With its section, such as `retry.max`; a name of `*` stands for any.
    pub(super) path: &'static str,
    /// What belongs there, as it reads after "expected".
    pub(super) expected: &'static str,
    /// What each element has to be, where an array belongs.
    pub(super) each: &'static str,
}

/// The section whose keys are the operator's own, and whose values may be secrets.
pub(super) const ENV: &str = "env";
/// The section whose keys are programs.
pub(super) const ALLOW: &str = "allow";
/// The section whose keys are programs with a rate of their own.
pub(super) const PROGRAM_RATES: &str = "program_rates";
/// The tables of a pool file.
pub(super) const SECTIONS: [&str; 8] = [
    ENV,
    ALLOW,
    "retry",
    "limits",
    "output",
    "rate",
    PROGRAM_RATES,
    "breaker",
];
/// What belongs at a section's name.
pub(super) const TABLE: &str = "a table";

const DURATION: &str = r#"a duration such as "30s""#;
const SIZE: &str = r#"a size such as "512MiB""#;
const FROM_ONE: &str = "a whole number of at least 1";
const FROM_ONE_U32: &str = "a whole number from 1 to 4294967295";
const SIGNAL: &str = r#"a signal such as "TERM""#;
const BOOL: &str = "true or false";
const COMMAND: &str = "an array of strings, the program first";
const STATUS: &str = "one of succeeded, failed, signaled, timed_out, out_of_memory, cancelled, expired, not_started, \
                      rejected, lost";

/// All keys, in the order of `workers/default.toml`.
pub(super) const KEYS: [Key; 46] = [
    value("pool", r#"1 to 64 letters, digits, "_" and "-" of ASCII"#),
    value("slots", "a whole number from 1 to 10000"),
    value("prefetch", "a whole number from 1 to 65535"),
    array("handler", COMMAND, "a string"),
    array(
        "dead_letter_exit_codes",
        "an array of exit codes",
        "an exit code from 1 to 255",
    ),
    value("events", BOOL),
    value("declare", r#""active" or "passive""#),
    value("delivery_limit", FROM_ONE_U32),
    value("max_job_bytes", SIZE),
    value("stop_grace", DURATION),
    value("timeout", DURATION),
    value("max_timeout", DURATION),
    value("term_signal", SIGNAL),
    value("kill_grace", DURATION),
    value("warn_before", DURATION),
    value("warn_signal", SIGNAL),
    value("leftovers", r#""kill" or "allow""#),
    array("shell", COMMAND, "a string"),
    value("restricted", BOOL),
    value("cwd", "an absolute path"),
    value("user", "the name or number of a user, as a text"),
    value("group", "the name or number of a group, as a text"),
    value("umask", r#"octal digits from "000" to "777", as a text"#),
    value("no_new_privs", BOOL),
    array("writable", "an array of absolute paths", "an absolute path"),
    value("env.*", "a string"),
    array("allow.*", "an array of regular expressions", allow::PATTERN),
    value("retry.max_attempts", FROM_ONE_U32),
    value("retry.initial", DURATION),
    value("retry.max", DURATION),
    value("retry.multiplier", "a number of at least 1"),
    array("retry.statuses", "an array of statuses", STATUS),
    array(
        "retry.exit_codes",
        "an array of exit codes",
        "an exit code from 0 to 255",
    ),
    value("limits.memory", SIZE),
    value("limits.processes", FROM_ONE),
    value("limits.open_files", FROM_ONE),
    value("limits.file_size", SIZE),
    value("limits.cpu_time", DURATION),
    value("output.max_bytes", SIZE),
    value("output.live", BOOL),
    value("rate.jobs", rate::RATE),
    value("rate.burst", FROM_ONE_U32),
    value("program_rates.*", rate::RATE),
    value("breaker.failures", FROM_ONE_U32),
    value("breaker.delay", DURATION),
    value("breaker.put_offs", FROM_ONE_U32),
];

const fn value(path: &'static str, expected: &'static str) -> Key {
    array(path, expected, "")
}

const fn array(path: &'static str, expected: &'static str, each: &'static str) -> Key {
    Key { path, expected, each }
}

impl Key {
    /// Returns the section, or the empty string, and the name.
    fn parts(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }

    /// Says whether a key of a file is this one.
    pub(super) fn is(&self, path: &KeyPath) -> bool {
        let (section, name) = self.parts();
        path.section() == section && (name == path.name || name == "*")
    }
}

impl KeyPath {
    /// Makes the path of a key outside of `env`, written as in [`KEYS`].
    pub(super) fn of(path: &str) -> Self {
        match path.split_once('.') {
            Some((section, name)) => Self::top(section).join(name),
            None => Self::top(path),
        }
    }

    /// Makes the path of a key above all sections.
    pub(super) fn top(name: impl Into<String>) -> Self {
        Self {
            section: None,
            name: name.into(),
        }
    }

    /// Makes the path of a key in the section that this path names.
    pub(super) fn join(&self, name: impl Into<String>) -> Self {
        Self {
            section: Some(self.name.clone()),
            name: name.into(),
        }
    }

    /// Returns the section, or the empty string.
    pub(super) fn section(&self) -> &str {
        self.section.as_deref().unwrap_or("")
    }

    /// Says whether the path is a section's.
    pub(super) fn is_section(&self) -> bool {
        self.section.is_none() && SECTIONS.contains(&&*self.name)
    }
}

/// Writes a path as TOML has it, with names quoted that need it.
impl fmt::Display for KeyPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(section) = &self.section {
            write!(out, "{section}.")?;
        }
        let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        if !self.name.is_empty() && self.name.chars().all(is_bare) {
            out.write_str(&self.name)
        } else {
            write!(out, "{:?}", self.name)
        }
    }
}

/// Finds what belongs at a path.
pub(super) fn find(path: &KeyPath) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.is(path))
}

/// Says what to do about a key that there is not: names the one that was probably meant, else those that there are.
pub(super) fn unknown(path: &KeyPath) -> String {
    let Some(meant) = nearest(path) else {
        return format!("unknown key; allowed here: {}", names_in(path.section()).join(", "));
    };
    if path.section.is_some() && !meant.contains('.') {
        // A slip that TOML invites: what is written at the end of a file is in the last section.
        return format!("unknown key; did you mean {meant}, which belongs above the first [section]?");
    }
    format!("unknown key; did you mean {meant}?")
}

fn names_in(section: &str) -> Vec<&'static str> {
    let own = KEYS
        .iter()
        .map(Key::parts)
        .filter(|(own, _)| *own == section)
        .map(|(_, name)| name);
    let sections = SECTIONS.iter().copied().filter(|_| section.is_empty());
    own.chain(sections).collect()
}

/// Finds the key or section of the nearest name, the one in the same section if there are several.
fn nearest(path: &KeyPath) -> Option<&'static str> {
    let keys = KEYS.iter().map(|key| (key.path, key.parts()));
    let sections = SECTIONS.iter().map(|name| (*name, ("", *name)));
    let most = most_typos(&path.name);
    keys.chain(sections)
        .filter(|(_, (_, name))| *name != "*")
        .map(|(meant, (section, name))| (distance(&path.name, name), section != path.section(), meant))
        .filter(|(distance, ..)| *distance <= most)
        .min()
        .map(|(.., meant)| meant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::MAX_SLOTS;
    use crate::message::{ByteSize, SignalName, Span, Status};

    fn unknown_at(path: &str) -> String {
        unknown(&KeyPath::of(path))
    }

    #[test]
    fn an_unknown_key_gets_the_nearest_name() {
        assert_eq!(unknown_at("slot"), "unknown key; did you mean slots?");
        assert_eq!(unknown_at("time_out"), "unknown key; did you mean timeout?");
        assert_eq!(
            unknown_at("retry.max_atempts"),
            "unknown key; did you mean retry.max_attempts?"
        );
        assert_eq!(unknown_at("limit"), "unknown key; did you mean limits?");
    }

    #[test]
    fn an_unknown_key_is_looked_for_in_other_sections_too() {
        assert_eq!(
            unknown_at("max_attempts"),
            "unknown key; did you mean retry.max_attempts?"
        );
        let above = "unknown key; did you mean timeout, which belongs above the first [section]?";
        assert_eq!(unknown_at("retry.timeout"), above);
    }

    #[test]
    fn an_unknown_key_that_is_near_no_other_gets_those_allowed() {
        assert_eq!(
            unknown_at("output.colour"),
            "unknown key; allowed here: max_bytes, live"
        );
        let top = unknown_at("concurrency");
        assert!(
            top.starts_with("unknown key; allowed here: pool, slots, prefetch, "),
            "{top}"
        );
        assert!(
            top.ends_with(", writable, env, allow, retry, limits, output, rate, program_rates, breaker"),
            "{top}"
        );
    }

    #[test]
    fn a_path_is_written_as_in_toml() {
        assert_eq!(KeyPath::of("retry.max").to_string(), "retry.max");
        assert_eq!(KeyPath::top(ENV).join("A.B \"C\"").to_string(), r#"env."A.B \"C\"""#);
        assert_eq!(KeyPath::top("").to_string(), r#""""#);
    }

    #[test]
    fn what_is_expected_is_what_the_types_expect() {
        let expects = |path: &str, error: String| {
            let expected = find(&KeyPath::of(path)).map(|key| key.expected).unwrap();
            assert!(
                error.starts_with(&format!("expected {expected}, got")),
                "{path}: {error}"
            );
        };
        expects("timeout", "x".parse::<Span>().unwrap_err().to_string());
        expects("limits.memory", "x".parse::<ByteSize>().unwrap_err().to_string());
        for signal in ["term_signal", "warn_signal"] {
            expects(signal, "x".parse::<SignalName>().unwrap_err().to_string());
        }
        assert!(KEYS[1].expected.ends_with(&format!(" to {MAX_SLOTS}")));
        let statuses = Status::ALL.map(Status::as_str).join(", ");
        assert_eq!(STATUS, format!("one of {statuses}"));
    }
}
