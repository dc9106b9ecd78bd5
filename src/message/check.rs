//! The rules of a job that its types can't hold: relations between fields, and what is in a text.
//!
//! What a schema can express of these, the JSON Schema expresses too. What a pool allows is checked
//! by the worker, not here.

use std::path::Path;

use base64::{DecodeError, Engine};

use super::decode::JobError;
use super::job::{BASE64, Job};
use super::policy::{OutputPolicy, RetryPolicy};
use super::units::{ByteSize, quoted};

impl Job {
    /// Checks the rules that need more than one field or more than a type.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), JobError> {
        self.work()?;
        self.check_texts()?;
        self.check_env()?;
        self.check_stdin()?;
        self.cwd.as_deref().map_or(Ok(()), check_cwd)?;
        self.check_labels()?;
        self.retry.as_ref().map_or(Ok(()), RetryPolicy::check)?;
        self.output.as_ref().map_or(Ok(()), OutputPolicy::check)?;
        self.check_warning()?;
        self.check_times()
    }

    fn check_texts(&self) -> Result<(), JobError> {
        for (index, text) in self.command.iter().flatten().enumerate() {
            refuse_nul(text, || format!("command[{index}]"))?;
        }
        refuse_nul(self.script.as_deref().unwrap_or(""), || "script".to_owned())
    }

    fn check_env(&self) -> Result<(), JobError> {
        for (name, value) in self.env.iter().flatten() {
            check_env_name(name)?;
            refuse_nul(value, || JobError::path(["env", name]))?;
        }
        Ok(())
    }

    fn check_stdin(&self) -> Result<(), JobError> {
        match (&self.stdin, &self.stdin_base64) {
            (Some(_), Some(_)) => Err(JobError::new(
                "stdin_base64",
                "expected one of stdin and stdin_base64, got both",
            )),
            (Some(text), None) => refuse_nul(text, || "stdin".to_owned()),
            (None, Some(base64)) => check_base64(base64),
            (None, None) => Ok(()),
        }
    }

    fn check_labels(&self) -> Result<(), JobError> {
        let count = self.labels.as_ref().map_or(0, |labels| labels.len());
        if count > Self::MAX_LABELS {
            let message = format!("expected at most {} labels, got {count}", Self::MAX_LABELS);
            return Err(JobError::new("labels", message));
        }
        for (name, value) in self.labels.iter().flatten() {
            refuse_nul(name, || "labels".to_owned())?;
            refuse_nul(value, || JobError::path(["labels", name]))?;
        }
        Ok(())
    }

    /// A warning before a timeout that is the pool's is for the worker to check.
    fn check_warning(&self) -> Result<(), JobError> {
        match (self.warn_before, self.timeout) {
            (Some(before), Some(timeout)) if before >= timeout => {
                let message = format!(r#"expected less than timeout ("{timeout}"), got "{before}""#);
                Err(JobError::new("warn_before", message))
            }
            _ => Ok(()),
        }
    }

    fn check_times(&self) -> Result<(), JobError> {
        match (self.not_before, self.expires_at) {
            (Some(start), Some(end)) if start >= end => {
                let message = format!(r#"expected a time after not_before ("{start}"), got "{end}""#);
                Err(JobError::new("expires_at", message))
            }
            _ => Ok(()),
        }
    }
}

impl OutputPolicy {
    /// The most that is kept of a stream. Two of them, each byte written as `\u0000` in the worst
    /// case, still make a result that RabbitMQ takes: its largest message is 16 MiB from 4.0 on.
    pub const MAX_BYTES: u64 = 1024 * 1024;

    /// Checks what the types of the fields can't hold; the errors' paths start with `output`.
    ///
    /// # Errors
    ///
    /// When more is to be kept than fits into a result.
    pub fn check(&self) -> Result<(), JobError> {
        match self.max_bytes {
            Some(size) if size.get() > Self::MAX_BYTES => {
                let most = ByteSize::from_bytes(Self::MAX_BYTES);
                let message = format!(r#"expected a size of at most "{most}", got "{size}""#);
                Err(JobError::new("output.max_bytes", message))
            }
            _ => Ok(()),
        }
    }
}

impl RetryPolicy {
    /// Checks what the types of the fields can't hold; the errors' paths start with `retry`.
    ///
    /// # Errors
    ///
    /// The first of: a multiplier that isn't a number of at least 1, a longest wait shorter than the
    /// first one, an exit code out of 0 to 255.
    pub fn check(&self) -> Result<(), JobError> {
        self.check_multiplier()?;
        self.check_waits()?;
        self.check_exit_codes()
    }

    fn check_multiplier(&self) -> Result<(), JobError> {
        match self.multiplier {
            Some(number) if !number.is_finite() || number < 1.0 => {
                let message = format!("expected {}, got {number}", Self::EXPECTED_MULTIPLIER);
                Err(JobError::new("retry.multiplier", message))
            }
            _ => Ok(()),
        }
    }

    fn check_waits(&self) -> Result<(), JobError> {
        match (self.initial, self.max) {
            (Some(initial), Some(max)) if max < initial => {
                let message = format!(r#"expected at least retry.initial ("{initial}"), got "{max}""#);
                Err(JobError::new("retry.max", message))
            }
            _ => Ok(()),
        }
    }

    fn check_exit_codes(&self) -> Result<(), JobError> {
        let mut codes = self.exit_codes.iter().flatten().enumerate();
        match codes.find(|(_, code)| !(0..=255).contains(*code)) {
            None => Ok(()),
            Some((index, code)) => {
                let message = format!("expected {}, got {code}", Self::EXPECTED_EXIT_CODE);
                Err(JobError::new(format!("retry.exit_codes[{index}]"), message))
            }
        }
    }

    pub(super) const EXPECTED_MULTIPLIER: &str = "a number of at least 1";
    pub(super) const EXPECTED_EXIT_CODE: &str = "an exit code from 0 to 255";
}

/// Refuses NUL, at which the kernel would cut an argument, a path or a variable short.
fn refuse_nul(text: &str, field: impl FnOnce() -> String) -> Result<(), JobError> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => Err(JobError::new(
            field(),
            format!("expected text without NUL, got one at byte {at}"),
        )),
    }
}

/// Quotes no more than what is before the `=`: what follows may be a secret.
fn check_env_name(name: &str) -> Result<(), JobError> {
    refuse_nul(name, || "env".to_owned())?;
    match name.split_once('=') {
        Some((start, _)) => {
            let start = quoted(start);
            let message = format!(r#"expected names without "=", got one that starts with {start}"#);
            Err(JobError::new("env", message))
        }
        None if name.is_empty() => Err(JobError::new(
            "env",
            "expected names that aren't empty, got an empty one",
        )),
        None => Ok(()),
    }
}

fn check_base64(text: &str) -> Result<(), JobError> {
    let problem = match BASE64.decode(text) {
        Ok(_) => return Ok(()),
        Err(DecodeError::InvalidByte(at, _)) => format!("another character at offset {at}"),
        Err(_) => "text of a wrong length or padding".to_owned(),
    };
    let message = format!("expected base64, padded and without line breaks, got {problem}");
    Err(JobError::new("stdin_base64", message))
}

fn check_cwd(path: &Path) -> Result<(), JobError> {
    let Some(text) = path.to_str() else {
        return Err(JobError::new("cwd", "expected UTF-8 text"));
    };
    refuse_nul(text, || "cwd".to_owned())?;
    if path.is_absolute() {
        return Ok(());
    }
    Err(JobError::new(
        "cwd",
        format!("expected an absolute path, got {}", quoted(text)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_output_is_kept_that_a_result_could_not_carry() {
        let keep = |bytes| OutputPolicy {
            max_bytes: Some(ByteSize::from_bytes(bytes)),
            live: None,
        };
        assert_eq!(keep(1024 * 1024).check(), Ok(()));
        let error = keep(1024 * 1024 + 1024).check().unwrap_err().to_string();
        assert_eq!(
            error,
            r#"output.max_bytes: expected a size of at most "1MiB", got "1025KiB""#
        );
    }
}
