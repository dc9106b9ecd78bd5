//! The job message, version 1: what a producer asks for.
//!
//! [`Job`] is the wire type: every field is optional, as in the JSON, because most defaults are the
//! pool's. Our own clients build one and [`encode`](Job::encode) it; the worker
//! [`decode`](Job::decode)s it. The rules that need more than one field, or more than a type, are in
//! [`Job::check`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::decode::JobError;
use super::id::JobId;
use super::policy::{Limits, OutputPolicy, RetryPolicy};
use super::timestamp;
use super::units::{SignalName, Span};

/// Text without NUL, which no argument, environment or path of Linux can hold.
const NO_NUL: &str = r"^[^\x00]*$";

/// A command or script to run once on some worker of a pool.
///
/// Exactly one of `command` and `script` is needed, and nothing else. A field that is `null` counts
/// as left out; an unknown field is refused.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(
    title = "Synthex job, version 1",
    extend(
        "$id" = "urn:synthex:job:v1",
        "oneOf" = [
            { "required": ["command"], "properties": { "command": { "type": "array" } } },
            { "required": ["script"], "properties": { "script": { "type": "string" } } },
        ],
        "not" = {
            "required": ["stdin", "stdin_base64"],
            "properties": {
                "stdin": { "type": "string" },
                "stdin_base64": { "type": "string" },
            },
        },
    )
)]
pub struct Job {
    /// Identifies the job over redeliveries and retries. Default: the property `message_id`, else a
    /// UUIDv7 made on receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// The program and its arguments, run without a shell. Not together with `script`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1),
        inner(regex(pattern = NO_NUL)),
        extend(
            "prefixItems" = [{ "type": "string", "pattern": r"^[^\x00]+$" }],
            "examples" = [["convert", "in.png", "out.webp"]],
        ),
    )]
    pub command: Option<Vec<String>>,
    /// A script for the pool's `shell`, whose last argument it becomes. Not together with `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = NO_NUL), example = "make -C /srv/site | tail -n 5")]
    pub script: Option<String>,
    /// Environment variables, added to the pool's. A name isn't empty and has no `=`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        extend(
            "additionalProperties" = { "type": "string", "pattern": NO_NUL },
            "propertyNames" = { "pattern": r"^[^=\x00]+$" },
        ),
    )]
    pub env: Option<BTreeMap<String, String>>,
    /// The working directory, an absolute path on the worker. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "lossily")]
    #[schemars(regex(pattern = r"^/[^\x00]*$"))]
    pub cwd: Option<PathBuf>,
    /// Text fed to the command's stdin, which is then closed. Not together with `stdin_base64`.
    /// Default: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = NO_NUL))]
    pub stdin: Option<String>,
    /// Bytes fed to the command's stdin, as base64 of RFC 4648 section 4, padded and without line
    /// breaks. Not together with `stdin`. Default: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"),
        extend("contentEncoding" = "base64"),
    )]
    pub stdin_base64: Option<String>,
    /// How long the command may run, by the clock on the wall: then it and every process it started
    /// get `term_signal`. Default: the pool's; more than the pool's `max_timeout` is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// The time from `term_signal` to SIGKILL, for the command and every process it started, in
    /// whatever session or group. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill_grace: Option<Span>,
    /// The signal that asks the command, and every process it started, to end. SIGCONT follows it, as
    /// a stopped process sees no other. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term_signal: Option<SignalName>,
    /// How long before its timeout the command, and every process it started, get `warn_signal`;
    /// shorter than the timeout. Default: the pool's, where the job's timeout is longer than that;
    /// else no warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_before: Option<Span>,
    /// The signal that warns of the timeout. It ends a command that neither catches nor ignores it:
    /// such a job is `timed_out`. Without an effect where there is no `warn_before`. Default: the
    /// pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warn_signal: Option<SignalName>,
    /// When to run the job again after a failure. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// The job starts no earlier than this. Default: as soon as a slot is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "timestamp::deserialize")]
    #[schemars(schema_with = "timestamp::nullable_schema")]
    pub not_before: Option<Timestamp>,
    /// The job doesn't start after this, and ends as `expired` instead; later than `not_before`.
    /// Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "timestamp::deserialize")]
    #[schemars(schema_with = "timestamp::nullable_schema")]
    pub expires_at: Option<Timestamp>,
    /// At most 16 pairs of the producer's own, echoed in the result. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend(
        "additionalProperties" = { "type": "string", "pattern": NO_NUL },
        "propertyNames" = { "pattern": NO_NUL },
        "maxProperties" = Job::MAX_LABELS,
    ))]
    pub labels: Option<BTreeMap<String, String>>,
    /// What the command and everything it starts may use. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What is kept of the output. Default: the pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output: Option<OutputPolicy>,
}

/// What a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work<'a> {
    /// A program and its arguments, without a shell.
    Command {
        /// The program: a path, or a name that is looked up in the job's `PATH`. Not empty.
        program: &'a str,
        /// What follows the program.
        args: &'a [String],
    },
    /// A script for the pool's shell.
    Script(&'a str),
}

/// Base64 as the schema's pattern has it: padded; bits left over in the last character don't matter.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

impl Job {
    /// Most labels that a job may have: they are copied into every result and event.
    pub const MAX_LABELS: usize = 16;

    /// Returns what to run.
    ///
    /// # Errors
    ///
    /// When the job has both a command and a script, neither, or a command without a program. Never
    /// for a job from [`decode`](Self::decode).
    pub fn work(&self) -> Result<Work<'_>, JobError> {
        match (&self.command, &self.script) {
            (Some(command), None) => command_work(command),
            (None, Some(script)) => Ok(Work::Script(script)),
            (Some(_), Some(_)) => Err(JobError::new("script", "expected one of command and script, got both")),
            (None, None) => Err(JobError::new(
                "command",
                "expected one of command and script, got neither",
            )),
        }
    }

    /// Returns what to feed to the command: the bytes of `stdin` or `stdin_base64`, else none.
    ///
    /// Base64 that can't be decoded, which [`check`](Self::check) refuses, gives none.
    pub fn stdin_bytes(&self) -> Bytes {
        match (&self.stdin, &self.stdin_base64) {
            (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
            (None, Some(base64)) => BASE64.decode(base64).unwrap_or_default().into(),
            (None, None) => Bytes::new(),
        }
    }

    /// Writes the job as JSON, without the fields that are left out.
    ///
    /// Doesn't check: a job built by hand should pass [`check`](Self::check) before it is published.
    pub fn encode(&self) -> Bytes {
        let body = serde_json::to_vec(self);
        body.expect("keys are strings, and the path is written lossily").into()
    }
}

/// Shows the id only: commands, environments and stdin may hold secrets, and `Debug` ends in logs.
impl fmt::Debug for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Job").field("id", &self.id).finish_non_exhaustive()
    }
}

fn command_work(command: &[String]) -> Result<Work<'_>, JobError> {
    match command.split_first() {
        None => Err(JobError::new(
            "command",
            "expected a program and its arguments, got nothing",
        )),
        Some((program, _)) if program.is_empty() => Err(JobError::new("command[0]", r#"expected a program, got """#)),
        Some((program, args)) => Ok(Work::Command { program, args }),
    }
}

/// Writes a path that may not be UTF-8; `check` refuses one that isn't.
fn lossily<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(to)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn words(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn work_is_a_command_or_a_script() {
        let job = Job {
            command: words(&["echo", "hi"]),
            ..Job::default()
        };
        let args = ["hi".to_owned()];
        assert_eq!(
            job.work(),
            Ok(Work::Command {
                program: "echo",
                args: &args
            })
        );
        let job = Job {
            script: Some("ls | wc".to_owned()),
            ..Job::default()
        };
        assert_eq!(job.work(), Ok(Work::Script("ls | wc")));
    }

    #[test]
    fn stdin_is_text_or_base64_or_nothing() {
        let text = Job {
            stdin: Some("hi\n".to_owned()),
            ..Job::default()
        };
        assert_eq!(text.stdin_bytes(), "hi\n");
        let base64 = Job {
            stdin_base64: Some("AP8=".to_owned()),
            ..Job::default()
        };
        assert_eq!(base64.stdin_bytes(), &[0, 255][..]);
        assert_eq!(Job::default().stdin_bytes(), "");
    }

    #[test]
    fn encode_leaves_out_what_is_not_there() {
        let job = Job {
            command: words(&["true"]),
            ..Job::default()
        };
        assert_eq!(job.encode(), r#"{"command":["true"]}"#);
        assert_eq!(Job::decode(&job.encode()), Ok(job));
    }

    #[test]
    fn encode_does_not_panic_on_a_path_that_check_refuses() {
        let cwd = PathBuf::from(OsStr::from_bytes(b"/a\xff"));
        let job = Job {
            command: words(&["true"]),
            cwd: Some(cwd),
            ..Job::default()
        };
        assert_eq!(job.encode(), "{\"command\":[\"true\"],\"cwd\":\"/a\u{fffd}\"}");
        assert_eq!(job.check().unwrap_err().to_string(), "cwd: expected UTF-8 text");
    }

    #[test]
    fn debug_shows_no_secret() {
        let job = Job {
            id: "j-1".parse().ok(),
            script: Some("secret".to_owned()),
            stdin: Some("secret".to_owned()),
            env: Some([("TOKEN".to_owned(), "secret".to_owned())].into()),
            ..Job::default()
        };
        assert_eq!(format!("{job:?}"), r#"Job { id: Some(JobId("j-1")), .. }"#);
    }
}
