//! The contract of jobs and results: schemas, examples and errors, held against each other.
//!
//! A validator that is not ours judges the examples by the schemas, and the types judge them too. Where a schema cannot
//! say what the type refuses, the table says so and why; an exception that is none any more fails.
//!
//! The examples under `fixtures/messages/v1` are what version 1 looks like on the wire. They are never changed, only
//! added to: every later version must read them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::{Value, json};
use synthex::message::event::Event;
use synthex::message::{Job, JobResult, Order, Reply, Request, peek_id, schema};

/// What the schema makes of a body that is no job.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// Refuses it too.
    Refuses,
    /// Accepts it, because a schema cannot say what is wrong.
    Accepts(&'static str),
    /// Cannot be asked: it is not JSON.
    NotJson,
}
use Verdict::{Accepts, NotJson, Refuses};

/// Every file of `job/bad`, what the schema makes of it, and the whole error.
const BAD_JOBS: &[(&str, Verdict, &str)] = &[
    ("array", Refuses, "body: expected a JSON object, got an array"),
    (
        "base64_line_break",
        Refuses,
        "stdin_base64: expected base64, padded and without line breaks, got another character at offset 4",
    ),
    (
        "base64_no_padding",
        Refuses,
        "stdin_base64: expected base64, padded and without line breaks, got text of a wrong length or padding",
    ),
    ("blank", NotJson, "body: expected a JSON object, got nothing"),
    (
        "both_command_and_script",
        Refuses,
        "script: expected one of command and script, got both",
    ),
    ("command_number", Refuses, "command[1]: expected a string, got a number"),
    (
        "command_text",
        Refuses,
        "command: expected an array of strings, the program first, got a string",
    ),
    (
        "cut_off",
        NotJson,
        "body: not valid JSON: EOF while parsing a list at line 1 column 29",
    ),
    ("cwd_number", Refuses, "cwd: expected an absolute path, got 1"),
    ("cwd_relative", Refuses, r#"cwd: expected an absolute path, got "tmp""#),
    (
        "duplicate_field",
        Accepts("JSON Schema sees one of the two"),
        "body: expected each field once, got command twice",
    ),
    (
        "duplicate_limit",
        Accepts("JSON Schema sees one of the two"),
        "body: expected each field once, got processes twice",
    ),
    ("empty", NotJson, "body: expected a JSON object, got nothing"),
    (
        "empty_object",
        Refuses,
        "command: expected one of command and script, got neither",
    ),
    ("empty_program", Refuses, r#"command[0]: expected a program, got """#),
    (
        "env_name_empty",
        Refuses,
        "env: expected names that aren't empty, got an empty one",
    ),
    (
        "env_name_equals",
        Refuses,
        r#"env: expected names without "=", got one that starts with "TOKEN""#,
    ),
    ("env_null", Refuses, "env.TOKEN: expected a string, got null"),
    ("env_number", Refuses, "env.TOKEN: expected a string, got a number"),
    ("env_text", Refuses, "env: expected an object of strings, got a string"),
    (
        "exit_code_256",
        Refuses,
        "retry.exit_codes[1]: expected an exit code from 0 to 255, got 256",
    ),
    (
        "exit_code_negative",
        Refuses,
        "retry.exit_codes[0]: expected an exit code from 0 to 255, got -1",
    ),
    (
        "expires_before_start",
        Accepts("compares two fields"),
        r#"expires_at: expected a time after not_before ("2030-01-31T12:00:00Z"), got "2030-01-31T11:00:00Z""#,
    ),
    ("fields_in_order", Refuses, "body: expected a JSON object, got an array"),
    (
        "id_empty",
        Refuses,
        r#"id: expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII, got """#,
    ),
    (
        "id_long",
        Refuses,
        r#"id: expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII, got "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"…"#,
    ),
    (
        "id_number",
        Refuses,
        r#"id: expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII, got 7"#,
    ),
    (
        "id_space",
        Refuses,
        r#"id: expected 1 to 128 letters, digits, ".", "_", ":" and "-" of ASCII, got "a b""#,
    ),
    (
        "invalid_utf8",
        NotJson,
        "body: expected UTF-8, got an invalid byte at offset 13",
    ),
    (
        "kill_grace_negative",
        Refuses,
        r#"kill_grace: expected a duration such as "30s", got "-1s""#,
    ),
    ("label_number", Refuses, "labels.a: expected a string, got 1"),
    ("labels_17", Refuses, "labels: expected at most 16 labels, got 17"),
    ("limits_array", Refuses, "limits: expected an object, got an array"),
    (
        "live_text",
        Refuses,
        r#"output.live: expected true or false, got "yes""#,
    ),
    (
        "lone_surrogate",
        NotJson,
        "body: not valid JSON: unexpected end of hex escape at line 1 column 20",
    ),
    (
        "max_attempts_0",
        Refuses,
        "retry.max_attempts: expected a whole number from 1 to 4294967295, got 0",
    ),
    (
        "max_attempts_float",
        Accepts("3.0 is an integer to JSON Schema"),
        "retry.max_attempts: expected a whole number from 1 to 4294967295, got 3.0",
    ),
    (
        "max_attempts_too_many",
        Refuses,
        "retry.max_attempts: expected a whole number from 1 to 4294967295, got 4294967296",
    ),
    (
        "max_below_initial",
        Accepts("compares two fields"),
        r#"retry.max: expected at least retry.initial ("10m"), got "1m""#,
    ),
    (
        "memory_0",
        Refuses,
        r#"limits.memory: expected a size such as "512MiB", got "0B""#,
    ),
    (
        "memory_decimal_unit",
        Refuses,
        r#"limits.memory: expected a size such as "512MiB", got "512MB""#,
    ),
    (
        "memory_lots",
        Refuses,
        r#"limits.memory: expected a size such as "512MiB", got "lots""#,
    ),
    (
        "memory_too_big",
        Accepts("an upper bound of a text"),
        r#"limits.memory: expected a size of at most "1048576TiB", got "1048577TiB""#,
    ),
    (
        "multiplier_half",
        Refuses,
        "retry.multiplier: expected a number of at least 1, got 0.5",
    ),
    (
        "neither",
        Refuses,
        "command: expected one of command and script, got neither",
    ),
    (
        "no_program",
        Refuses,
        "command: expected a program and its arguments, got nothing",
    ),
    (
        "no_such_date",
        Refuses,
        r#"expires_at: expected a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z", got "2030-02-30T12:00:00Z""#,
    ),
    (
        "not_before_no_offset",
        Refuses,
        r#"not_before: expected a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z", got "2030-01-31T12:00:00""#,
    ),
    (
        "not_before_word",
        Refuses,
        r#"not_before: expected a time in RFC 3339 with an offset, such as "2030-01-31T12:00:00Z", got "tomorrow""#,
    ),
    (
        "not_json",
        NotJson,
        "body: not valid JSON: expected value at line 1 column 1",
    ),
    (
        "nul_argument",
        Refuses,
        "command[1]: expected text without NUL, got one at byte 1",
    ),
    ("nul_cwd", Refuses, "cwd: expected text without NUL, got one at byte 2"),
    (
        "nul_env",
        Refuses,
        "env.A: expected text without NUL, got one at byte 6",
    ),
    (
        "nul_env_name",
        Refuses,
        "env: expected text without NUL, got one at byte 1",
    ),
    (
        "nul_label",
        Refuses,
        "labels.a: expected text without NUL, got one at byte 0",
    ),
    (
        "nul_label_name",
        Refuses,
        "labels: expected text without NUL, got one at byte 1",
    ),
    (
        "nul_script",
        Refuses,
        "script: expected text without NUL, got one at byte 1",
    ),
    (
        "nul_stdin",
        Refuses,
        "stdin: expected text without NUL, got one at byte 6",
    ),
    ("null", Refuses, "body: expected a JSON object, got null"),
    (
        "open_files_text",
        Refuses,
        r#"limits.open_files: expected a whole number of at least 1, got "many""#,
    ),
    ("output_in_order", Refuses, "output: expected an object, got an array"),
    (
        "output_too_big",
        Accepts("an upper bound of a text"),
        r#"output.max_bytes: expected a size of at most "1MiB", got "1025KiB""#,
    ),
    (
        "processes_0",
        Refuses,
        "limits.processes: expected a whole number of at least 1, got 0",
    ),
    ("retry_array", Refuses, "retry: expected an object, got an array"),
    ("retry_number", Refuses, "retry: expected an object, got 3"),
    ("script_array", Refuses, "script: expected a string, got an array"),
    (
        "signal_number",
        Refuses,
        r#"term_signal: expected a signal such as "TERM", got 15"#,
    ),
    (
        "signal_realtime",
        Refuses,
        r#"term_signal: expected a signal such as "TERM", got "SIGRTMIN+3""#,
    ),
    (
        "signal_unknown",
        Refuses,
        r#"term_signal: expected a signal such as "TERM", got "FOO""#,
    ),
    (
        "status_unknown",
        Refuses,
        r#"retry.statuses[1]: expected a status: one of succeeded, failed, signaled, timed_out, out_of_memory, cancelled, expired, not_started, rejected, lost, got "flaky""#,
    ),
    ("stdin_object", Refuses, "stdin: expected a string, got an object"),
    ("text", Refuses, "body: expected a JSON object, got a string"),
    (
        "timeout_0",
        Refuses,
        r#"timeout: expected a duration such as "30s", got "0""#,
    ),
    (
        "timeout_0s",
        Refuses,
        r#"timeout: expected a duration such as "30s", got "0s""#,
    ),
    (
        "timeout_number",
        Refuses,
        r#"timeout: expected a duration such as "30s", got 30"#,
    ),
    (
        "timeout_too_long",
        Accepts("an upper bound of a text"),
        r#"timeout: expected a duration of at most "876000h", got "876001h""#,
    ),
    (
        "timeout_very_long_text",
        Refuses,
        r#"timeout: expected a duration such as "30s", got "9999999999999999999999999999999999999999999999999999999999999999"…"#,
    ),
    (
        "timeout_word",
        Refuses,
        r#"timeout: expected a duration such as "30s", got "lots""#,
    ),
    (
        "two_stdins",
        Refuses,
        "stdin_base64: expected one of stdin and stdin_base64, got both",
    ),
    (
        "two_values",
        NotJson,
        "body: not valid JSON: trailing characters at line 1 column 22",
    ),
    (
        "unknown_field",
        Refuses,
        "comand: unknown field; allowed here: id, command, script, env, cwd, stdin, stdin_base64, timeout, kill_grace, term_signal, warn_before, warn_signal, retry, not_before, expires_at, labels, limits, output",
    ),
    (
        "unknown_limit",
        Refuses,
        "limits.memroy: unknown field; allowed here: memory, processes, open_files, file_size, cpu_time",
    ),
    (
        "unknown_output",
        Refuses,
        "output.max: unknown field; allowed here: max_bytes, live",
    ),
    (
        "unknown_retry",
        Refuses,
        "retry.attempts: unknown field; allowed here: max_attempts, initial, max, multiplier, statuses, exit_codes",
    ),
    (
        "warn_before_number",
        Refuses,
        r#"warn_before: expected a duration such as "30s", got 30"#,
    ),
    (
        "warn_before_timeout",
        Accepts("compares two fields"),
        r#"warn_before: expected less than timeout ("10s"), got "10s""#,
    ),
    (
        "warn_signal_unknown",
        Refuses,
        r#"warn_signal: expected a signal such as "TERM", got "WARN""#,
    ),
];

/// A schema, ready to judge.
struct Judge {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Judge {
    fn new(schema: Value) -> Self {
        let id = schema["$id"].as_str().unwrap().to_owned();
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.enable_format_assertions();
        compiler.add_resource(&id, schema).unwrap();
        let index = compiler.compile(&id, &mut schemas).unwrap();
        Self { schemas, index }
    }

    fn accepts(&self, value: &Value) -> bool {
        self.schemas.validate(value, self.index).is_ok()
    }
}

fn fixtures(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/messages")
        .join(folder);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no examples", folder.display());
    let name = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
    paths
        .iter()
        .map(|path| (name(path), std::fs::read(path).unwrap()))
        .collect()
}

fn good(kind: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    fixtures(&format!("{kind}/good")).into_iter().chain(good_of_wire(kind))
}

/// Those that are never changed.
fn good_of_wire(kind: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    let of_kind = format!("{kind}_");
    fixtures("v1")
        .into_iter()
        .filter(move |(name, _)| name.starts_with(&of_kind))
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

/// Compares a schema with its file; with `SYNTHEX_BLESS=1` in the environment, writes the file.
#[expect(
    clippy::disallowed_methods,
    reason = "a switch for those who run the test, not configuration"
)]
fn compare(name: &str, schema: &Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas").join(name);
    let current = schema::render(schema);
    if std::env::var_os("SYNTHEX_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &current).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == current,
        "schemas/{name} is not what the types say; if the change of the contract is meant, write it anew with\n\
         SYNTHEX_BLESS=1 cargo test --test messages"
    );
}

#[test]
fn the_schemas_on_disk_are_those_of_the_types() {
    compare("job.v1.json", &schema::job());
    compare("result.v1.json", &schema::result());
    compare("control.v1.json", &schema::control());
    compare("event.v1.json", &schema::event());
    compare("batch.v1.json", &schema::batch());
}

#[test]
fn good_jobs_are_accepted_by_schema_and_type() {
    let judge = Judge::new(schema::job());
    for (name, body) in good("job") {
        assert!(judge.accepts(&json(&body)), "the schema refuses {name}");
        let job = Job::decode(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = job.encode();
        assert!(judge.accepts(&json(&again)), "the schema refuses {name} as we write it");
        assert_eq!(Job::decode(&again).as_ref(), Ok(&job), "{name}");
    }
}

#[test]
fn bad_jobs_are_refused_with_the_field_and_what_is_allowed() {
    let bodies = fixtures("job/bad");
    let names: BTreeSet<&str> = bodies.iter().map(|(name, _)| name.as_str()).collect();
    let told: BTreeSet<&str> = BAD_JOBS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names, told, "the files and the table are the same");
    for (name, body) in &bodies {
        let (_, _, text) = BAD_JOBS.iter().find(|(told, ..)| told == name).unwrap();
        let error = Job::decode(body).expect_err(name);
        assert_eq!(error.to_string(), *text, "{name}");
        let place = text.split_once(": ").unwrap().0;
        let field = if error.field.is_empty() { "body" } else { &error.field };
        assert_eq!(field, place, "{name}");
    }
}

#[test]
fn the_schema_refuses_bad_jobs_wherever_it_can() {
    let judge = Judge::new(schema::job());
    for (name, body) in fixtures("job/bad") {
        let (_, told, _) = BAD_JOBS.iter().find(|(told, ..)| *told == name).unwrap();
        let judged = serde_json::from_slice(&body).map(|value| judge.accepts(&value));
        match (told, judged) {
            (Refuses, Ok(false)) | (Accepts(_), Ok(true)) | (NotJson, Err(_)) => {}
            (told, judged) => panic!("{name}: told {told:?}, but the schema accepts: {judged:?}"),
        }
    }
}

#[test]
fn no_error_quotes_a_secret_or_at_length() {
    for (name, body) in fixtures("job/bad") {
        let error = Job::decode(&body).expect_err(&name).to_string();
        for secret in ["hunter2", "secret", "12345"] {
            assert!(!error.contains(secret), "{name}: {error}");
        }
        assert!(error.len() < 300, "{name}: {error}");
        assert!(!error.contains(char::is_control), "{name}: {error:?}");
    }
}

#[test]
fn names_chosen_by_producers_are_cut_and_escaped_in_errors() {
    let name = format!("\n{}", "x".repeat(500));
    let body = json!({ "command": ["true"], name: 1 }).to_string();
    let error = Job::decode(body.as_bytes()).unwrap_err();
    assert_eq!(error.field, format!("\\n{}…", "x".repeat(63)));
    assert!(
        error.message.starts_with("unknown field; allowed here: id, command"),
        "{error}"
    );
}

/// The properties of an object in the schema, with where it refers to followed.
fn properties<'a>(root: &'a Value, object: &'a Value) -> Vec<(&'a String, &'a Value)> {
    let target = object["anyOf"][0]["$ref"].as_str();
    let object = target.map_or(object, |target| root.pointer(&target[1..]).unwrap());
    object["properties"]
        .as_object()
        .map_or(Vec::new(), |fields| fields.iter().collect())
}

#[test]
fn every_field_says_what_it_expects_when_its_type_is_wrong() {
    let schema = schema::job();
    let mut seen = 0;
    let mut refused = |field: &str, body: Value| {
        let error = Job::decode(body.to_string().as_bytes()).expect_err(field);
        assert_eq!(error.field, field);
        assert!(error.message.starts_with("expected "), "{error}");
        assert!(
            !error.message.contains("of another type"),
            "{field} has no description of its own"
        );
        seen += 1;
    };
    for (name, value) in properties(&schema, &schema) {
        refused(name, json!({ name: true }));
        for (inner, _) in properties(&schema, value) {
            refused(&format!("{name}.{inner}"), json!({ name: { inner: {} } }));
        }
    }
    assert_eq!(seen, 18 + 6 + 5 + 2, "every field of a job and of its three objects");
}

#[test]
fn every_field_of_the_schemas_is_described() {
    for schema in [schema::job(), schema::result()] {
        let defs = schema["$defs"].as_object().unwrap();
        for object in std::iter::once(&schema).chain(defs.values()) {
            assert!(object["description"].is_string(), "{object}");
            for (name, field) in properties(&schema, object) {
                assert!(field["description"].is_string(), "{name}: {field}");
            }
        }
    }
}

#[test]
fn the_id_of_a_body_that_is_no_job_is_found() {
    let id = |body: &str| peek_id(body.as_bytes()).map(|id| id.to_string());
    for body in [
        r#"{"id":"j-1","command":["echo""#,
        r#"{"comand":{"id":"no"},"id":"j-1"}"#,
        "{\"id\":\"j-1\",\"script\":\"a\u{0}b\"}",
    ] {
        assert_eq!(id(body).as_deref(), Some("j-1"), "{body}");
    }
    for body in [
        "",
        "j-1",
        r#"["j-1"]"#,
        r#"{"id":7}"#,
        r#"{"id":"a b"}"#,
        r#"{"limits":{"id":"j-1"}}"#,
        r#"{"id":"j-"#,
    ] {
        assert_eq!(id(body), None, "{body}");
    }
}

#[test]
fn good_results_are_accepted_by_schema_and_type_and_come_back_unchanged() {
    let judge = Judge::new(schema::result());
    for (name, body) in good("result") {
        assert!(judge.accepts(&json(&body)), "the schema refuses {name}");
        let result = JobResult::decode(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        let again = result.encode();
        assert!(judge.accepts(&json(&again)), "the schema refuses {name} as we write it");
        assert_eq!(JobResult::decode(&again).unwrap(), result, "{name}");
        if name != "of_a_later_version" {
            assert_eq!(json(&again), json(&body), "{name}");
        }
    }
}

#[test]
fn bad_results_are_refused_by_schema_and_type() {
    let judge = Judge::new(schema::result());
    for (name, body) in fixtures("result/bad") {
        assert!(!judge.accepts(&json(&body)), "the schema accepts {name}");
        assert!(JobResult::decode(&body).is_err(), "the type accepts {name}");
    }
}

#[test]
fn events_are_accepted_by_schema_and_type_and_come_back_unchanged() {
    let judge = Judge::new(schema::event());
    let events: Vec<_> = good_of_wire("event").collect();
    assert_eq!(events.len(), 4, "of jobs, of workers, of output");
    for (name, body) in events {
        assert!(judge.accepts(&json(&body)), "the schema refuses {name}");
        let event = Event::decode(&body).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(json(&event.encode()), json(&body), "{name}");
        for field in json(&body)
            .as_object()
            .unwrap()
            .keys()
            .filter(|field| *field != "labels")
        {
            let mut cut = json(&body);
            cut.as_object_mut().unwrap().remove(field);
            assert!(!judge.accepts(&cut), "the schema accepts {name} without {field}");
            assert!(
                Event::decode(cut.to_string().as_bytes()).is_err(),
                "the type accepts {name} without {field}"
            );
        }
    }
}

/// A control message as its type writes it again; which of them it is, its first field says.
fn control_again(body: &[u8]) -> Option<Vec<u8>> {
    let value = json(body);
    let again = if value.get("order").is_some() {
        Order::decode(body).ok()?.encode()
    } else if value.get("request").is_some() {
        Request::decode(body).ok()?.encode()
    } else {
        Reply::decode(body).ok()?.encode()
    };
    Some(again.to_vec())
}

#[test]
fn good_control_messages_are_accepted_by_schema_and_type_and_come_back_unchanged() {
    let judge = Judge::new(schema::control());
    let mut seen = 0;
    for (name, body) in good("control") {
        assert!(judge.accepts(&json(&body)), "the schema refuses {name}");
        let again = control_again(&body).unwrap_or_else(|| panic!("the type refuses {name}"));
        assert!(judge.accepts(&json(&again)), "the schema refuses {name} as we write it");
        let (was, is) = (json(&body), json(&again));
        if name.ends_with("pause") {
            assert_eq!(is["at"], "2030-01-31T12:00:00.001Z", "another offset, the same moment");
        } else if name != "state_of_a_later_version" {
            assert_eq!(is, was, "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 16, "each order, request and reply, and one of a later version");
}

#[test]
fn bad_control_messages_are_refused_by_schema_and_type() {
    let judge = Judge::new(schema::control());
    for (name, body) in fixtures("control/bad") {
        assert!(!judge.accepts(&json(&body)), "the schema accepts {name}");
        assert!(control_again(&body).is_none(), "the type accepts {name}");
    }
}
