//! What is heard of jobs while they run: `submit --follow`, `logs`, and what is published for whoever listens.
//!
//! No test waits for a time: a job goes on when the test has seen what it wrote.

use std::fs;

use boon::{Compiler, Schemas};
use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, Worker, ask_until, assert_has};
use crate::support::cli::Running;
use crate::support::process::{Signal, wait_until};

/// How long somebody waits who then gives up: the first of these in which a busy machine lets anything be heard will do.
const LIMITS: [&str; 3] = ["1s", "4s", "16s"];

/// A worker of the pool `default`.
fn serving() -> (Bench, Worker) {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 4\n");
    let worker = bench.worker(&[&pool]);
    bench.listen();
    (bench, worker)
}

/// A job in two acts: it does the first, and the second when it is let on.
struct Play<'a> {
    bench: &'a Bench,
    id: String,
}

impl<'a> Play<'a> {
    fn new(bench: &'a Bench, name: &str) -> Self {
        let id = format!("{name}-{}", bench.namespace);
        Self { bench, id }
    }

    fn script(&self, first: &str, second: &str) -> String {
        let [played, on] = ["played", "on"].map(|word| self.bench.path(&format!("{}.{word}", self.id)));
        format!(
            "{first}; touch {}; until [ -e {} ]; do sleep 0.02; done; {second}",
            played.display(),
            on.display()
        )
    }

    /// Starts it, and waits until the first act is over.
    fn begin(&self, first: &str, second: &str) {
        self.bench.send(
            "default",
            &self.id,
            &json!({"script": self.script(first, second), "timeout": "10m"}),
        );
        let played = self.bench.path(&format!("{}.played", self.id));
        wait_until(PATIENCE, "the first act is over", || played.exists());
    }

    fn go_on(&self) {
        let on = self.bench.path(&format!("{}.on", self.id));
        fs::write(on, "").expect("the folder is there");
    }

    fn logs(&self, args: &[&str]) -> Running {
        self.bench.synthex(&[&["logs", &self.id], args].concat()).spawn()
    }
}

#[test]
fn submit_follow_prints_what_is_written_while_it_is_written_and_exits_as_the_job_did() {
    let (bench, _worker) = serving();
    let play = Play::new(&bench, "play");
    let script = play.script("echo first", "echo second; echo trouble >&2; printf '\\377end'; exit 7");
    let following = bench
        .synthex(&["submit", "--follow", "--id", &play.id, "--", "sh", "-c", &script])
        .spawn();
    following.wait_for_stdout_line(|line| line == "first");
    assert!(following.is_running());
    play.go_on();
    let ended = following.wait().expect_code(7);
    assert_eq!(ended.stdout_bytes, b"first\nsecond\n\xffend");
    assert!(
        ended.stderr.starts_with("trouble\n") && !ended.stderr.contains("missing"),
        "{}",
        ended.stderr
    );

    // One that is over before anything is heard of it, and one whose result has not all it wrote.
    let quick = bench
        .synthex(&["submit", "--follow", "--", "sh", "-c", "echo quick"])
        .run();
    assert_eq!(quick.expect_code(0).stdout, "quick\n");
    let args = ["submit", "--follow", "--max-output", "1KiB", "--", "seq", "20000"];
    // The output of a job that is over is waited for 2 s, which a busy machine may need, and it is said if it did not come.
    let mut tries = (0..3).map(|_| bench.synthex(&args).run().expect_code(0));
    let long = tries.find(|long| !long.stderr.contains("missing"));
    let long = long.expect("it comes in time");
    let numbers: Vec<String> = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert!(
        long.stdout == numbers.concat(),
        "{} bytes, and {}",
        long.stdout.len(),
        long.stderr
    );
}

#[test]
fn submit_follow_gives_up_in_time_as_wait_does() {
    let (bench, _worker) = serving();
    let hears = |limit: &&str| {
        let play = Play::new(&bench, limit);
        let script = play.script("echo first", "true");
        let args = ["submit", "--follow", "--wait-timeout", limit, "--id", &play.id];
        let command = ["--", "sh", "-c", &script];
        let ended = bench.synthex(&[&args[..], &command].concat()).run().expect_code(75);
        let words = format!("had no result within {limit}");
        assert!(ended.stderr.contains(&words), "{}", ended.stderr);
        play.go_on();
        assert_has(
            &bench.result().json(),
            &json!({"job_id": play.id, "status": "succeeded"}),
        );
        assert!(["", "first\n"].contains(&&*ended.stdout), "{}", ended.stdout);
        !ended.stdout.is_empty()
    };
    assert!(LIMITS.iter().any(hears), "what was written before was not heard");
}

#[test]
fn submit_follow_has_events_and_then_the_result_as_json() {
    let (bench, _worker) = serving();
    let args = ["submit", "--follow", "--json", "--", "sh", "-c", "echo hi; exit 3"];
    let lines = bench.synthex(&args).run().expect_code(3).json_lines();
    assert_has(
        &lines[0],
        &json!({"event": "output.chunk", "stream": "stdout", "text": "hi\n", "offset": 0}),
    );
    assert_has(
        &lines[1],
        &json!({"event": "output.ended", "status": "failed", "stdout_bytes": 3}),
    );
    assert_has(&lines[2], &json!({"status": "failed", "exit_code": 3, "final": true}));
    assert_eq!(lines.len(), 3);
}

#[test]
fn logs_gives_what_was_written_and_with_follow_each_byte_once_to_the_end() {
    let (bench, _worker) = serving();
    let play = Play::new(&bench, "play");
    play.begin("echo before; echo oops >&2", "echo after; exit 1");
    // The question is asked once, and lost where the worker takes over a second to begin to listen for the answer.
    let looked = ask_until(|| play.logs(&["--wait", "5s"]).wait(), |looked| looked.code != Some(75)).expect_code(0);
    assert_eq!((looked.stdout.as_str(), looked.stderr.as_str()), ("before\n", "oops\n"));

    let followers = [play.logs(&["-f"]), play.logs(&["-f"])];
    for follower in &followers {
        follower.wait_for_stdout_line(|line| line == "before");
    }
    let hears = |limit: &&str| {
        let impatient = play.logs(&["-f", "--wait-timeout", limit]).wait().expect_code(75);
        let told = &impatient.stderr;
        assert!(told.contains(&format!(" within {limit}; ")), "{told}");
        let words = format!("job {} has not ended within {limit}; it goes on\n", play.id);
        assert!(["", "before\n"].contains(&&*impatient.stdout), "{}", impatient.stdout);
        !impatient.stdout.is_empty() && told.ends_with(&words)
    };
    assert!(LIMITS.iter().any(hears), "what was written before was not heard");
    play.go_on();
    for follower in followers {
        let ended = follower.wait().expect_code(0);
        assert_eq!(ended.stdout, "before\nafter\n");
        let mut told: Vec<&str> = ended.stderr.lines().collect();
        told.retain(|line| !line.contains("; waiting (")); // said where a worker took long to answer
        let words = format!("synthex: job {} failed (attempt 1)", play.id);
        assert_eq!(told, ["oops", &words]);
    }
    let begin = format!("synthex: job {} has ended at ", play.id);
    for args in [&["-f"][..], &["--wait", "40s"]] {
        // Asked again where it also said that it waits.
        wait_until(PATIENCE, "its end is told, and nothing else", || {
            let late = play.logs(args).wait().expect_code(0);
            assert_eq!(late.stdout, "");
            late.stderr.starts_with(&begin) && late.stderr.ends_with(": failed; its output is in its result\n")
        });
    }
}

#[test]
fn logs_follow_waits_for_a_job_and_goes_on_over_its_retry() {
    let (bench, worker) = serving();
    let play = Play::new(&bench, "play");
    let follower = play.logs(&["--follow", "--json"]);
    follower.wait_for_line(|line| line.contains("no worker runs job"));
    let job = json!({
        "script": "echo attempt $SYNTHEX_ATTEMPT; [ $SYNTHEX_ATTEMPT = 2 ]",
        "retry": {"max_attempts": 2, "initial": "250ms"},
    });
    bench.send("default", &play.id, &job);
    let events = follower.wait().expect_code(0).json_lines();
    let texts: Vec<&str> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(texts, ["attempt 1\n", "attempt 2\n"]);
    let ends = events.iter().filter(|event| event["event"] == "output.ended");
    let ends: Vec<&Value> = ends.map(|event| &event["final"]).collect();
    assert_eq!(ends, [&json!(false), &json!(true)]);
    worker.stop();
}

#[test]
fn logs_of_a_job_that_nobody_has_gives_up_in_time() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    for with_worker in [false, true] {
        let _worker = with_worker.then(|| bench.worker(&[&pool]));
        for args in [
            &["logs", "nobody", "--wait", "200ms"][..],
            &["logs", "-f", "nobody", "--wait-timeout", "200ms"],
        ] {
            let ended = bench.synthex(args).run().expect_code(75);
            assert!(
                ended.stderr.contains("nobody") && ended.stderr.contains("200ms"),
                "{}",
                ended.stderr
            );
            assert!(!ended.stderr.contains("goes on"), "{}", ended.stderr);
            assert_eq!(ended.stdout, "");
        }
    }
}

#[test]
fn a_listener_that_hangs_slows_no_job() {
    const BYTES: u64 = 100_000_000;
    let (bench, _worker) = serving();
    let play = Play::new(&bench, "play");
    play.begin("echo before", &format!("yes | head -c {BYTES}"));
    let follower = play.logs(&["-f"]);
    follower.wait_for_stdout_line(|line| line == "before");
    follower.signal(Signal::STOP);
    play.go_on();
    let result = bench.rabbit.try_get(&bench.named("my-results"), 2 * PATIENCE);
    let result = result.expect("the job ends").json();
    assert_has(&result, &json!({"job_id": play.id, "status": "succeeded"}));
    assert_eq!(result["stdout"]["bytes"], BYTES + 7);
    let stat = fs::read_to_string(format!("/proc/{}/stat", follower.pid())).expect("it is there");
    assert!(stat.contains(") T "), "the listener was stopped all the time: {stat}");
    follower.signal(Signal::CONT);
    let ended = follower.wait().expect_code(0);
    assert!(
        ended.stderr.contains("bytes of stdout are missing here"),
        "{}",
        ended.stderr
    );
}

/// Judges events by the contract.
fn assert_fits(event: &Value) {
    let text = fs::read_to_string("schemas/event.v1.json").expect("it is there");
    let schema = serde_json::from_str(&text).expect("it is JSON");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("urn:event", schema).expect("it is a schema");
    let index = compiler.compile("urn:event", &mut schemas).expect("it is a schema");
    if let Err(error) = schemas.validate(event, index) {
        panic!("{event:#}: {error:#}");
    }
}

/// An event's routing key, without a worker's id, and its body.
type Event = (String, Value);

/// All events of a namespace, from now on.
struct Events<'a>(&'a Bench);

impl<'a> Events<'a> {
    fn of(bench: &'a Bench) -> Self {
        let queue = bench.named("my-events");
        bench.rabbit.call(json!({"do": "declare", "queue": queue}));
        let exchange = bench.named("events");
        bench
            .rabbit
            .call(json!({"do": "bind", "queue": queue, "exchange": exchange, "key": "#"}));
        Self(bench)
    }

    /// The next one, which has to come and to be as the contract says.
    fn next(&self) -> Event {
        let event = self.0.rabbit.get(&self.0.named("my-events"));
        let body = event.json();
        assert_fits(&body);
        let key = match event.routing_key.split('.').collect::<Vec<_>>()[..] {
            ["worker", _, word] => format!("worker.{word}"),
            _ => event.routing_key,
        };
        (key, body)
    }

    /// All up to one with this key, without heartbeats, which come when they come.
    fn until(&self, last: &str) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        while events.last().is_none_or(|(key, _)| key != last) {
            events.extend(Some(self.next()).filter(|(key, _)| key != "worker.heartbeat"));
        }
        events
    }
}

/// Events about workers, and all others: the ones are not in order with the others.
fn apart(events: Vec<Event>) -> (Vec<Event>, Vec<Event>) {
    events.into_iter().partition(|(key, _)| key.starts_with("worker."))
}

fn keys(events: &[Event]) -> Vec<&str> {
    events.iter().map(|(key, _)| key.as_str()).collect()
}

/// Runs a job to its end.
fn run(bench: &Bench, id: &str, job: &Value) {
    bench.send("default", id, job);
    assert_has(&bench.reply().json(), &json!({"job_id": id, "status": "succeeded"}));
}

#[test]
fn nothing_is_published_of_jobs_unless_somebody_asks_for_it() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    let events = Events::of(&bench);
    let worker = bench.worker(&[&pool]);
    bench.listen();
    for id in ["a", "b", "c"] {
        run(&bench, id, &json!({"command": ["echo", "unheard"]}));
    }
    for about in ["job", "output"] {
        let series = format!("synthex_events_published_total{{about=\"{about}\"}}");
        assert!(worker.metric(&series).abs() < 0.5);
    }
    let watch = br#"{"request":"watch"}"#;
    let asked = bench
        .rabbit
        .ask(&bench.named("control"), "request.all", watch, &json!({}));
    assert_has(&asked.json(), &json!({"reply": "state"}));
    let job = json!({"command": ["echo", "hi"], "labels": {"team": "blue"}});
    run(&bench, "watched", &job);

    let heard = events.until("job.default.finished");
    let (of_worker, of_jobs) = apart(heard);
    assert_eq!(of_worker[0].0, "worker.started");
    assert_eq!(of_worker[0].1["state"]["pools"][0]["pool"], "default");
    let expected = ["job.default.started", "job.default.finished"];
    assert_eq!(keys(&of_jobs), expected, "and nothing of the first three jobs");
    let of_job = json!({"job_id": "watched", "attempt": 1, "labels": {"team": "blue"}});
    assert_has(&of_jobs[0].1, &of_job);
    assert_has(&of_jobs[1].1, &json!({"status": "succeeded", "final": true}));
    worker.stop();
    let last = events.until("worker.stopped");
    assert_eq!(
        keys(&last),
        ["worker.draining", "worker.consumer_lost", "worker.stopped"]
    );
}

#[test]
fn a_live_job_is_published_whoever_listens() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\n");
    bench.synthex(&["config", "apply", &pool]).run().expect_code(0);
    let events = Events::of(&bench);
    let _worker = bench.worker(&[&pool]);
    bench.listen();
    run(
        &bench,
        "live",
        &json!({"command": ["echo", "live"], "output": {"live": true}}),
    );
    let (_, heard) = apart(events.until("output.live.ended"));
    assert_eq!(keys(&heard), ["output.live.stdout", "output.live.ended"]);
    assert_has(&heard[0].1, &json!({"text": "live\n", "offset": 0, "dropped_bytes": 0}));
}

#[test]
fn a_pool_with_events_tells_of_its_jobs_always() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"open\"\nslots = 1\nevents = true\n[output]\nlive = true\n");
    let worker = bench.worker(&[&pool]);
    bench.listen();
    bench.send("open", "j", &json!({"command": ["echo", "hi"]}));
    bench.reply();
    worker.metric_becomes("synthex_events_published_total{about=\"job\"}", 2.0);
    worker.metric_becomes("synthex_events_published_total{about=\"output\"}", 2.0);
    assert!(worker.metric("synthex_events_dropped_total{about=\"job\"}").abs() < 0.5);
}
