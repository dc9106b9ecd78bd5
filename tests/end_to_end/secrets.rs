//! What is secret stays where it belongs: what a producer gives to its command, and what an operator gives to the worker.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, Received, Worker, block_on};
use crate::support::process::wait_until;
use crate::traces::Receiver;

/// What no log, trace, metric, event, error or dead letter's reason may hold: each begins like this.
const HUSH: &str = "hush-51c7b3";
/// How [`HUSH`] and what follows it begin in base64.
const HUSH_IN_BASE64: &str = "aHVzaC01MWM3YjMt";

/// A secret of this kind.
fn secret(what: &str) -> String {
    format!("{HUSH}-{what}")
}

/// The same in base64, which begins as [`HUSH_IN_BASE64`].
fn encoded() -> String {
    BASE64.encode(secret("base64"))
}

fn with_secrets(mut job: Value) -> Value {
    job["env"] = json!({"TOKEN": secret("env")});
    job["stdin"] = secret("stdin").into();
    job
}

/// Jobs that come to every kind of end, with secrets wherever a job can have them.
fn jobs() -> Vec<(&'static str, Value)> {
    let (shown, failing) = (
        format!(": {}; cat", secret("script")),
        format!("exit 1 # {}", secret("script")),
    );
    vec![
        ("fine", with_secrets(json!({"script": shown}))),
        ("encoded", json!({"script": "cat", "stdin_base64": encoded()})),
        (
            "failing",
            with_secrets(json!({"script": failing, "retry": {"max_attempts": 2, "initial": "1ms"}})),
        ),
        (
            "slow",
            with_secrets(json!({"command": ["sleep", "60"], "timeout": "100ms"})),
        ),
        ("missing", with_secrets(json!({"command": ["/no/such/program"]}))),
        (
            "nowhere",
            with_secrets(json!({"command": ["true"], "cwd": "/no/such/folder"})),
        ),
        (
            "too-long",
            with_secrets(json!({"command": ["true"], "timeout": "720h"})),
        ),
    ]
}

/// What is no job, with a secret at the place that is wrong.
fn bad_jobs() -> Vec<(&'static str, Value)> {
    let nul = || format!("{}\0", secret("nul"));
    let bad = |id, field: &str, value: Value| {
        let mut job = json!({"command": ["cat"]});
        job[field] = value;
        (id, job)
    };
    vec![
        bad("unknown-field", "no_such_field", secret("unknown").into()),
        bad("env-name", "env", json!({(format!("A={}", secret("name"))): "x"})),
        bad("env-nul", "env", json!({"A": nul()})),
        bad("env-type", "env", json!({"A": [secret("type")]})),
        bad("stdin-nul", "stdin", nul().into()),
        bad("stdin-type", "stdin", json!([secret("type")])),
        bad("base64", "stdin_base64", secret("no base64").into()),
        (
            "stdin-twice",
            json!({"command": ["cat"], "stdin": secret("one"), "stdin_base64": encoded()}),
        ),
    ]
}

/// What a message says about itself and its end, without what is the command's own to say: its output.
fn told_by(message: &Received) -> String {
    let body: Value = serde_json::from_slice(&message.body).unwrap_or_default();
    format!("{} {} {}", message.properties, message.headers, body["error"])
}

/// What is told of all jobs, with where it is told.
struct Told(Vec<(String, String)>);

impl Told {
    fn note(&mut self, place: &str, text: String) {
        self.0.push((place.to_owned(), text));
    }

    /// Runs all jobs, and notes what their results say of them.
    fn run_jobs(&mut self, bench: &Bench) {
        for (id, job) in [jobs(), bad_jobs()].concat() {
            bench.send("default", id, &job);
            loop {
                let reply = bench.reply();
                self.note("result", told_by(&reply));
                if reply.json()["final"] == true {
                    break;
                }
            }
        }
    }

    /// Notes what the broker has of them.
    fn look_at_the_broker(&mut self, bench: &Bench, events: &str) {
        while bench.ready("dead") > 0 {
            self.note("dead letter", told_by(&bench.dead_letter()));
        }
        while let Some(event) = bench.rabbit.try_get(events, Duration::ZERO) {
            let body = String::from_utf8_lossy(&event.body).into_owned();
            self.note("event", format!("{} {} {body}", event.properties, event.headers));
        }
    }

    fn look_at_traces(&mut self, receiver: &Receiver) {
        for request in receiver.requests() {
            let authorization = &request["headers"]["authorization"];
            assert_eq!(*authorization, format!("Bearer {HUSH}-otlp"), "it is let in");
            self.note("trace", format!("{} {}", request["resource"], request["spans"]));
        }
    }

    #[track_caller]
    fn assert_silent(&self) {
        for place in ["result", "dead letter", "trace", "metrics", "log"] {
            assert!(
                self.0.iter().any(|(told_in, _)| told_in == place),
                "no {place} was read"
            );
        }
        let is_leak = |text: &str| text.contains(HUSH) || text.contains(HUSH_IN_BASE64);
        let leaks: Vec<_> = self.0.iter().filter(|(_, text)| is_leak(text)).collect();
        assert!(leaks.is_empty(), "{leaks:#?}");
    }
}

#[test]
fn what_is_secret_in_jobs_and_in_settings_is_told_to_nobody() {
    let (mut bench, broker, vhost) = Bench::on_own_vhost();
    let (user, password) = (format!("worker-{}", uuid::Uuid::now_v7().simple()), secret("broker"));
    block_on(async {
        broker.add_user(&user, &password).await;
        vhost.permit(&user, ".*", ".*", ".*").await;
    });
    bench.url = vhost.url_as(&user, &password);
    let receiver = Receiver::start();
    for format in ["text", "json"] {
        let args = [
            "worker",
            "--metrics-addr",
            "127.0.0.1:0",
            "--log-format",
            format,
            "-v",
            "-v",
        ];
        let started = bench
            .synthex(&args)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url)
            .env(
                "OTEL_EXPORTER_OTLP_HEADERS",
                format!("authorization=Bearer%20{HUSH}-otlp"),
            );
        let worker = Worker::ready(started.spawn(), 1);
        bench.listen();
        let events = bench.named("my-events");
        let bind = json!({"do": "bind", "queue": events, "exchange": bench.named("events"), "key": "#"});
        bench.rabbit.call(json!({"do": "declare", "queue": events}));
        bench.rabbit.call(bind);

        let mut told = Told(Vec::new());
        told.run_jobs(&bench);
        told.look_at_the_broker(&bench, &events);
        told.note("metrics", worker.metrics());
        wait_until(PATIENCE, "there are traces", || !receiver.requests().is_empty());
        let ended = worker.stop();
        told.look_at_traces(&receiver);
        assert!(ended.stderr.contains("TRACE"), "this is all that can be logged");
        told.note("stdout", ended.stdout);
        ended.stderr.lines().for_each(|line| told.note("log", line.to_owned()));
        told.assert_silent();
    }
}
