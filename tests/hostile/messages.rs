//! Bodies of jobs and results.

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::Index;
use proptest::strategy::{Just, Strategy};
use serde_json::Value;
use synthex::message::{Job, JobError, JobResult, peek_id};

use crate::change::{changed, json};
use crate::memory::most_held;
use crate::{fixtures, for_all};

/// Bytes that may be held for each byte of a body, and for any body: JSON as values takes some 32 bytes for the two of
/// `0,`, and lists grow by doubling.
const PER_BYTE: usize = 80;
const ANYWAY: usize = 32 * 1024;

/// The longest error, whatever the body holds: it lists at most all fields of a job.
const LONGEST: usize = 800;

/// The fields of jobs and results, and of what is in them.
const NAMES: &[&str] = &[
    "id",
    "command",
    "script",
    "env",
    "cwd",
    "stdin",
    "stdin_base64",
    "timeout",
    "kill_grace",
    "term_signal",
    "warn_before",
    "warn_signal",
    "retry",
    "not_before",
    "expires_at",
    "labels",
    "limits",
    "output",
    "max_attempts",
    "initial",
    "max",
    "multiplier",
    "statuses",
    "exit_codes",
    "memory",
    "processes",
    "open_files",
    "file_size",
    "cpu_time",
    "max_bytes",
    "live",
    "job_id",
    "attempt",
    "status",
    "final",
    "stdout",
    "stderr",
    "text",
    "encoding",
    "bytes",
    "truncated_bytes",
    "finished_at",
    "duration_ms",
    "worker",
    "host",
    "pool",
    "version",
    "usage",
    "phases",
];

fn jobs() -> Vec<Vec<u8>> {
    [
        fixtures("messages/job/good"),
        fixtures("messages/job/bad"),
        fixtures("messages/v1"),
    ]
    .concat()
}

fn results() -> Vec<Vec<u8>> {
    [
        fixtures("messages/result/good"),
        fixtures("messages/result/bad"),
        fixtures("messages/v1"),
    ]
    .concat()
}

/// A good body in which some values are others, of any kind.
fn exchanged(good: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let values: Vec<Value> = good
        .iter()
        .filter_map(|body| serde_json::from_slice(body).ok())
        .collect();
    let exchange = vec((any::<Index>(), json(NAMES)), 1..4);
    (proptest::sample::select(values), exchange).prop_map(|(mut body, exchanges)| {
        for (at, value) in exchanges {
            let mut places = Vec::new();
            find_places(&body, String::new(), &mut places);
            *body
                .pointer_mut(&places[at.index(places.len())])
                .expect("it was just found") = value;
        }
        body.to_string().into_bytes()
    })
}

/// The paths of all values in one, itself included.
fn find_places(value: &Value, path: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, inner)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            find_places(inner, format!("{path}/{name}"), places);
        }),
        Value::Array(items) => (0..).zip(items).for_each(|(index, inner)| {
            find_places(inner, format!("{path}/{index}"), places);
        }),
        _ => {}
    }
    places.push(path);
}

/// A body is no job, and its error says where; or it is one, and the same when it is written again.
fn check_job(body: &[u8]) {
    let (decoded, held) = most_held(|| Job::decode(body));
    assert!(
        held <= PER_BYTE * body.len() + ANYWAY,
        "{held} bytes held for {}",
        body.len()
    );
    let (id, held) = most_held(|| peek_id(body));
    assert!(
        held <= PER_BYTE * body.len() + ANYWAY,
        "{held} bytes held for {}",
        body.len()
    );
    match decoded {
        Ok(job) => {
            assert_eq!(id, job.id, "what is read of a job first");
            assert_same(&job, &Job::decode(&job.encode()).expect("a job that was a job"));
        }
        Err(error) => check_error(&error, body),
    }
}

/// A job shows no more than its fields' names, so that `assert_eq` alone would not tell.
fn assert_same(job: &Job, again: &Job) {
    let text = |job: &Job| String::from_utf8(job.encode().to_vec()).unwrap();
    assert!(job == again, "{}\nwas {}", text(again), text(job));
}

fn check_error(error: &JobError, body: &[u8]) {
    let text = error.to_string();
    assert!(text.len() <= LONGEST && !text.contains(char::is_control), "{text:?}");
    let is_json = serde_json::from_slice::<Value>(body).is_ok();
    let has_place = text.contains("offset ") || text.contains(" column ") || text.ends_with("got nothing");
    let has_field = !error.field.is_empty() || error.message.starts_with("expected ");
    assert!(if is_json { has_field } else { has_place }, "{text}");
}

fn check_result(body: &[u8]) {
    let (decoded, held) = most_held(|| JobResult::decode(body));
    assert!(
        held <= PER_BYTE * body.len() + ANYWAY,
        "{held} bytes held for {}",
        body.len()
    );
    match decoded {
        Ok(result) => assert_eq!(JobResult::decode(&result.encode()).unwrap(), result),
        Err(error) => assert!(error.line() > 0 || error.is_eof(), "{error}"),
    }
}

fn check_both(body: &[u8]) {
    check_job(body);
    check_result(body);
}

#[test]
fn any_bytes() {
    for_all(&vec(any::<u8>(), 0..2000), |body| check_both(&body));
}

#[test]
fn any_json() {
    for_all(&json(NAMES), |value| check_both(value.to_string().as_bytes()));
}

#[test]
fn jobs_with_bytes_changed() {
    for_all(&changed(jobs()), |body| check_job(&body));
}

#[test]
fn jobs_with_values_exchanged() {
    for_all(&exchanged(jobs()), |body| check_job(&body));
}

#[test]
fn results_with_bytes_changed() {
    for_all(&changed(results()), |body| check_result(&body));
}

#[test]
fn results_with_values_exchanged() {
    for_all(&exchanged(results()), |body| check_result(&body));
}

/// What a parser that calls itself for each level does not survive.
#[test]
fn bodies_that_are_nested_for_ever() {
    let opening = Just(vec![
        "[",
        "{\"id\":",
        "{\"command\":[",
        "{\"a\":[",
        "{\"retry\":{\"max\":",
    ]);
    let nested = opening
        .prop_flat_map(proptest::sample::select)
        .prop_flat_map(|opening| (1..200_000 / opening.len()).prop_map(move |levels| opening.repeat(levels)));
    crate::for_some(16, &nested, |body| check_both(body.as_bytes()));
}
