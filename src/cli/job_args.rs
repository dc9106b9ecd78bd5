//! A job from flags: what `run`, `submit` and `batch` share.

use std::collections::BTreeMap;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;

use super::exit::{Exit, Failure};
use crate::message::{ByteSize, Job, JobError, JobId, OutputPolicy, RetryPolicy, SignalName, Span};

#[derive(Args, Default, PartialEq)]
#[command(next_help_heading = "Job, with -- CMD")]
pub(super) struct JobArgs {
    /// The job's id [default: a new UUID]
    #[arg(long, value_name = "ID")]
    pub(super) id: Option<JobId>,
    /// End the command after this time, such as 30s or 10m [default: the pool's]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<Span>,
    /// From the signal that asks the command to end to the one that makes it [default: the pool's]
    #[arg(long, value_name = "DURATION")]
    kill_grace: Option<Span>,
    /// The signal that asks the command to end [default: the pool's]
    #[arg(long, value_name = "NAME")]
    term_signal: Option<SignalName>,
    /// Warn the command this long before its timeout [default: the pool's]
    #[arg(long, value_name = "DURATION")]
    warn_before: Option<Span>,
    /// The signal that warns it [default: the pool's]
    #[arg(long, value_name = "NAME")]
    warn_signal: Option<SignalName>,
    /// Run it at most this often when it fails [default: the pool's]
    #[arg(long, value_name = "N", visible_alias = "retry")]
    max_attempts: Option<NonZeroU32>,
    /// Add a variable to the command's environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A label that comes back in the result; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// The working directory on the worker, an absolute path [default: the pool's]
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Feed a file to the command; - for our own stdin
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// Keep this much of each output stream, half of it from the end [default: the pool's]
    #[arg(long, value_name = "SIZE")]
    max_output: Option<ByteSize>,
    /// Start no earlier than this (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = time)]
    not_before: Option<Timestamp>,
    /// Do not start after this (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = time)]
    expires_at: Option<Timestamp>,
}

impl JobArgs {
    /// Refuses flags about a command where there is none.
    pub(super) fn refuse(&self, why: &str) -> Result<(), Failure> {
        if *self == Self::default() {
            return Ok(());
        }
        Err(Failure::new(Exit::Usage, format!("a flag about the job {why}")))
    }

    /// The job that runs `command`.
    pub(super) fn job(self, command: Vec<String>) -> Result<Job, Failure> {
        let mut job = self.unchecked()?;
        job.command = Some(command);
        job.check().map_err(|error| usage(&error))?;
        Ok(job)
    }

    /// What many jobs have in common: all but the command.
    pub(super) fn common(self) -> Result<Job, Failure> {
        if self.id.is_some() {
            return Err(Failure::new(
                Exit::Usage,
                "--id: an id is for one job, and these are many",
            ));
        }
        let mut job = self.job(vec!["some".to_owned()])?;
        job.command = None;
        Ok(job)
    }

    /// Whether our own stdin is to be fed to the command.
    pub(super) fn takes_stdin(&self) -> bool {
        self.stdin.as_ref().is_some_and(|file| file.as_os_str() == "-")
    }

    fn unchecked(self) -> Result<Job, Failure> {
        let stdin_base64 = self.stdin.as_ref().map(read_stdin).transpose()?;
        let retry = self.max_attempts.map(|max_attempts| RetryPolicy {
            max_attempts: Some(max_attempts),
            ..RetryPolicy::default()
        });
        let output = self.max_output.map(|max_bytes| OutputPolicy {
            max_bytes: Some(max_bytes),
            live: None,
        });
        Ok(Job {
            id: self.id,
            env: some_map(self.env),
            labels: some_map(self.label),
            cwd: self.cwd,
            stdin_base64,
            timeout: self.timeout,
            kill_grace: self.kill_grace,
            term_signal: self.term_signal,
            warn_before: self.warn_before,
            warn_signal: self.warn_signal,
            retry,
            not_before: self.not_before,
            expires_at: self.expires_at,
            output,
            ..Job::default()
        })
    }
}

fn usage(error: &JobError) -> Failure {
    Failure::new(Exit::Usage, error.to_string())
}

fn some_map(pairs: Vec<(String, String)>) -> Option<BTreeMap<String, String>> {
    (!pairs.is_empty()).then(|| pairs.into_iter().collect())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn time(text: &str) -> Result<Timestamp, String> {
    let expected = r#"expected a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z""#;
    text.parse().map_err(|_| expected.to_owned())
}

fn read_stdin(file: &PathBuf) -> Result<String, Failure> {
    use base64::Engine;
    let bytes = if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(file)
    };
    let bytes = bytes.map_err(|error| {
        Failure::new(
            Exit::Usage,
            format!("--stdin: failed to read {}: {error}", file.display()),
        )
    })?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}
