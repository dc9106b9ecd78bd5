//! What a job goes through, as it is told to a receiver of traces that is not ours.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, assert_has};
use crate::support::cli::{Cli, Running};
use crate::support::process::wait_until;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PRODUCER: &str = "00f067aa0ba902b7";

/// A receiver of OTLP.
pub struct Receiver {
    running: Running,
    pub url: String,
}

impl Receiver {
    pub fn start() -> Self {
        let running = Cli::python("traces/receiver.py", [""; 0]).spawn();
        let line = running.wait_for_stdout_line(|line| line.starts_with("listening on "));
        let url = line.trim_start_matches("listening on ").to_owned();
        Self { running, url }
    }

    /// All requests so far, as it read them.
    pub fn requests(&self) -> Vec<Value> {
        let text = self.running.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]); // the last one may not be read to its end
        let lines = whole.lines().skip(1);
        lines
            .map(|line| serde_json::from_str(line).expect("it prints JSON"))
            .collect()
    }

    /// Waits until it has so many spans of a trace, by name; a name that comes twice is an error.
    #[track_caller]
    fn spans_of(&self, trace: &str, attempt: u64, count: usize) -> BTreeMap<String, Value> {
        let spans = || {
            let requests = self.requests();
            let all = requests
                .iter()
                .flat_map(|request| request["spans"].as_array().expect("they are listed"));
            let ours =
                |span: &&Value| span["trace_id"] == trace && span["attributes"]["synthex.job.attempt"] == attempt;
            all.filter(ours).cloned().collect::<Vec<_>>()
        };
        wait_until(PATIENCE, &format!("{count} spans of {trace}"), || {
            spans().len() >= count
        });
        let by_name = spans().into_iter().map(|span| (text(&span["name"]).to_owned(), span));
        let by_name: BTreeMap<String, Value> = by_name.collect();
        assert_eq!(by_name.len(), count, "{by_name:#?}");
        by_name
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// Publishes a job with headers of its producer's own.
fn send_with(bench: &Bench, id: &str, headers: Value, job: &Value) {
    let mut properties = bench.properties(id);
    properties["headers"] = headers;
    bench.send_bytes("default", job.to_string().as_bytes(), &properties);
}

/// A script that tells which trace it is in.
const TELL: &str = "echo $TRACEPARENT $TRACESTATE";

type Spans = BTreeMap<String, Value>;

/// Checks the span of an attempt, which its producer's is the parent of; gives it.
fn check_process<'a>(spans: &'a Spans, queue: &str, attempt: u64, status: &str) -> &'a Value {
    let process = &spans[&format!("process {queue}")];
    assert_has(
        process,
        &json!({"parent": PRODUCER, "kind": "SPAN_KIND_CONSUMER", "state": "vendor=1", "flags": 0x301}),
    );
    assert_has(
        &process["attributes"],
        &json!({
            "messaging.system": "rabbitmq", "messaging.destination.name": queue, "messaging.message.id": "followed",
            "synthex.job.status": status, "synthex.job.final": attempt == 2,
        }),
    );
    process
}

/// Checks that the phases are parts of the attempt, in its time.
fn check_phases(spans: &Spans, process: &Value, attempt: u64) {
    for (name, kind) in [
        ("receive", "INTERNAL"),
        ("wait for slot", "INTERNAL"),
        ("spawn", "INTERNAL"),
        ("run", "INTERNAL"),
        ("publish", "PRODUCER"),
        ("ack", "CLIENT"),
    ] {
        let span = &spans[name];
        let kind = format!("SPAN_KIND_{kind}");
        assert_has(span, &json!({"parent": process["span_id"], "kind": kind}));
        assert_has(
            &span["attributes"],
            &json!({"synthex.job.id": "followed", "synthex.job.attempt": attempt, "synthex.pool": "default"}),
        );
        let times = [&process["start"], &span["start"], &span["end"], &process["end"]].map(Value::as_u64);
        assert!(times.is_sorted() && times[0] > Some(0), "{name}: {times:?}");
    }
}

#[test]
fn a_job_is_followed_from_its_producer_through_every_attempt_to_its_results() {
    let (bench, receiver) = (Bench::new(), Receiver::start());
    let worker = bench.worker(&["--otlp-endpoint", &receiver.url, "--otlp-service", "renderers"]);
    bench.listen();
    let headers = json!({"traceparent": format!("00-{TRACE}-{PRODUCER}-01"), "tracestate": "vendor=1"});
    let script = format!("{TELL}; [ $SYNTHEX_ATTEMPT = 2 ] || exit 3");
    let job = json!({"script": script, "retry": {"max_attempts": 2, "initial": "1ms"}});
    send_with(&bench, "followed", headers, &job);

    for (attempt, status, code, exit_code) in [(1, "failed", "ERROR", 3), (2, "succeeded", "UNSET", 0)] {
        let reply = bench.reply();
        assert_has(&reply.json(), &json!({"attempt": attempt, "status": status}));
        let spans = receiver.spans_of(TRACE, attempt, 7);
        let process = check_process(&spans, &bench.named("jobs.default"), attempt, status);
        check_phases(&spans, process, attempt);
        for span in [process, &spans["run"]] {
            assert_eq!(span["status"], format!("STATUS_CODE_{code}"));
        }
        assert_eq!(spans["run"]["attributes"]["process.exit.code"], exit_code);
        // What the command and the results' readers do are parts of it.
        let within = |name: &str| format!("00-{TRACE}-{}-01", text(&spans[name]["span_id"]));
        assert_eq!(reply.json()["stdout"]["text"], format!("{} vendor=1\n", within("run")));
        assert_eq!(reply.header("traceparent"), within("publish"));
        assert_eq!(reply.header("tracestate"), "vendor=1");
    }
    let request = &receiver.requests()[0];
    assert_eq!(request["path"], "/v1/traces");
    let resource = &request["resource"];
    let version = env!("CARGO_PKG_VERSION");
    assert_has(
        resource,
        &json!({"service.name": "renderers", "service.version": version}),
    );
    assert!(text(&resource["service.instance.id"]).starts_with(text(&resource["host.name"])));
    worker.metric_becomes("synthex_spans_exported_total", 14.0);
    assert!(worker.metric("synthex_spans_dropped_total") < 0.5);
    let log = worker.stop().stderr;
    let ended: Vec<&str> = log.lines().filter(|line| line.contains("job ended")).collect();
    assert_eq!(ended.len(), 2);
    let trace_id = format!("trace_id={TRACE}");
    assert!(ended.iter().all(|line| line.contains(&trace_id)), "{ended:#?}");
}

#[test]
fn who_is_not_followed_is_told_what_it_told_and_who_tells_nothing_begins_a_trace() {
    let (bench, receiver) = (Bench::new(), Receiver::start());
    let worker = bench.worker(&["--otlp-endpoint", &receiver.url]);
    bench.listen();
    let job = json!({"script": TELL, "env": {"TRACEPARENT": "the producer's own", "TRACESTATE": "stale=1"}});
    let unsampled = format!("00-{TRACE}-{PRODUCER}-00");
    send_with(&bench, "unsampled", json!({"traceparent": unsampled}), &job);
    let reply = bench.reply();
    assert_eq!(reply.json()["stdout"]["text"], format!("{unsampled}\n"));
    assert_eq!(reply.header("traceparent"), unsampled);

    send_with(
        &bench,
        "invalid",
        json!({"traceparent": format!("00-{TRACE}-0000000000000000-01")}),
        &job,
    );
    let reply = bench.reply();
    let told = reply.json()["stdout"]["text"].clone();
    let (_, trace) = text(&told).split_at(3);
    let trace = &trace[..32];
    assert_ne!(trace, TRACE, "a traceparent that is none begins a trace, as none does");
    assert_eq!(&reply.header("traceparent")[3..35], trace);

    worker.stop(); // which sends what there is
    let process = &receiver.spans_of(trace, 1, 7)[&format!("process {}", bench.named("jobs.default"))];
    assert_has(
        process,
        &json!({"parent": "", "flags": 0x101, "status": "STATUS_CODE_UNSET"}),
    );
    let requests = receiver.requests();
    let spans = requests
        .iter()
        .map(|request| request["spans"].as_array().map_or(0, Vec::len));
    assert_eq!(
        spans.sum::<usize>(),
        7,
        "and the unsampled job is in none: {requests:#?}"
    );
}

#[test]
fn a_receiver_that_is_not_there_is_mentioned_once_and_holds_nothing_up() {
    let bench = Bench::new();
    let worker = bench.worker(&["--otlp-endpoint", "http://127.0.0.1:1", "--slots", "1"]);
    bench.listen();
    for id in ["one", "other"] {
        bench.send("default", id, &json!({"command": ["true"]}));
        assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
        worker
            .running
            .wait_for_line(|line| line.contains("http://127.0.0.1:1/v1/traces"));
    }
    let log = worker.stop().stderr;
    let told: Vec<&str> = log.lines().filter(|line| line.contains("/v1/traces")).collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("WARN failed to reach"), "{}", told[0]);
}
