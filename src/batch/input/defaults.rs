//! Common options given with a file of jobs: each fills a field that a line leaves out.

use std::collections::BTreeMap;

use crate::message::{Job, Limits, OutputPolicy, RetryPolicy};

/// Fills what `job` leaves out from `common`: `env` and `labels` name by name, `retry`, `limits` and `output` field by field,
/// stdin only where the job has none in either form. What the job is and runs, it says for itself.
pub(super) fn fill(job: &mut Job, common: &Job) {
    // All fields are named, so that one which is added is thought of here.
    let Job {
        id: _,
        command: _,
        script: _,
        env,
        cwd,
        stdin,
        stdin_base64,
        timeout,
        kill_grace,
        term_signal,
        warn_before,
        warn_signal,
        retry,
        not_before,
        expires_at,
        labels,
        limits,
        output,
    } = common.clone();
    if job.stdin.is_none() && job.stdin_base64.is_none() {
        (job.stdin, job.stdin_base64) = (stdin, stdin_base64);
    }
    job.cwd = job.cwd.take().or(cwd);
    job.timeout = job.timeout.or(timeout);
    job.kill_grace = job.kill_grace.or(kill_grace);
    job.term_signal = job.term_signal.or(term_signal);
    job.warn_before = job.warn_before.or(warn_before);
    job.warn_signal = job.warn_signal.or(warn_signal);
    job.not_before = job.not_before.or(not_before);
    job.expires_at = job.expires_at.or(expires_at);
    job.env = both(job.env.take(), env, fill_names);
    job.labels = both(job.labels.take(), labels, fill_names);
    job.limits = both(job.limits.take(), limits, Limits::or);
    job.retry = both(job.retry.take(), retry, fill_retry);
    job.output = both(job.output.take(), output, fill_output);
}

fn both<T>(own: Option<T>, common: Option<T>, fill: fn(T, T) -> T) -> Option<T> {
    match (own, common) {
        (Some(own), Some(common)) => Some(fill(own, common)),
        (own, common) => own.or(common),
    }
}

fn fill_names(own: BTreeMap<String, String>, mut common: BTreeMap<String, String>) -> BTreeMap<String, String> {
    common.extend(own);
    common
}

fn fill_retry(own: RetryPolicy, common: RetryPolicy) -> RetryPolicy {
    RetryPolicy {
        max_attempts: own.max_attempts.or(common.max_attempts),
        initial: own.initial.or(common.initial),
        max: own.max.or(common.max),
        multiplier: own.multiplier.or(common.multiplier),
        statuses: own.statuses.or(common.statuses),
        exit_codes: own.exit_codes.or(common.exit_codes),
    }
}

fn fill_output(own: OutputPolicy, common: OutputPolicy) -> OutputPolicy {
    OutputPolicy {
        max_bytes: own.max_bytes.or(common.max_bytes),
        live: own.live.or(common.live),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn filled(own: &Value, common: &Value) -> Value {
        let read = |value: &Value| serde_json::from_value::<Job>(value.clone()).unwrap();
        let mut job = read(own);
        fill(&mut job, &read(common));
        serde_json::to_value(job).unwrap()
    }

    #[test]
    fn a_gap_is_filled_and_nothing_else_is_touched() {
        let common = json!({
            "id": "c", "command": ["c"], "env": {"A": "c", "B": "c"}, "cwd": "/c", "stdin": "c", "timeout": "9s",
            "kill_grace": "9s", "term_signal": "SIGINT", "warn_before": "9s", "warn_signal": "SIGHUP",
            "retry": {"max_attempts": 9, "initial": "9s", "max": "9m", "multiplier": 9.0, "statuses": ["failed"], "exit_codes": [9]},
            "not_before": "2030-01-01T00:00:00Z", "expires_at": "2031-01-01T00:00:00Z", "labels": {"l": "c"},
            "limits": {"processes": 9}, "output": {"max_bytes": "9KiB", "live": true},
        });
        let mut all = common.clone();
        let from_line = json!({"id": "own", "script": "own"});
        for gone in ["id", "command"] {
            all.as_object_mut().unwrap().remove(gone);
        }
        for (name, value) in from_line.as_object().unwrap() {
            all[name] = value.clone();
        }
        assert_eq!(filled(&from_line, &common), all);
        assert_eq!(
            filled(
                &all,
                &json!({"timeout": "1s", "cwd": "/d", "labels": {"l": "d"}, "stdin_base64": ""})
            ),
            all
        );
    }

    #[test]
    fn maps_and_policies_are_filled_inside() {
        let own = json!({"script": "s", "env": {"A": "own"}, "retry": {"max_attempts": 2}, "output": {"live": false}});
        let common = json!({"env": {"A": "c", "B": "c"}, "retry": {"max_attempts": 9, "max": "9m"}, "output": {"max_bytes": "9KiB"}});
        let expected = json!({"script": "s", "env": {"A": "own", "B": "c"},
            "retry": {"max_attempts": 2, "max": "9m"}, "output": {"max_bytes": "9KiB", "live": false}});
        assert_eq!(filled(&own, &common), expected);
    }
}
