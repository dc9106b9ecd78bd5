//! Pools are data: several in a worker, each with its own rules, and pools whose messages are no jobs of ours.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::bench::{Bench, Worker, assert_has};

#[test]
fn a_handler_gets_any_body_of_any_type_unread() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"echo\"\nslots = 1\nhandler = [\"/bin/cat\"]\n");
    let worker = bench.worker(&[&pool]);
    bench.listen();
    let job = br#"{"command": ["touch", "/no/such/folder/x"], "id": "not-read"}"#;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let bodies: [(&str, &str, &[u8]); 4] = [
        ("picture", "image/png", &all_bytes),
        ("nothing", "application/x-nothing", b""),
        ("text", "text/plain", "gr\u{fc}\u{df}e\n".as_bytes()),
        ("looks-like-a-job", "application/json", job),
    ];
    for (id, content_type, body) in bodies {
        let mut properties = bench.properties(id);
        properties["content_type"] = content_type.into();
        bench.send_bytes("echo", body, &properties);
        let reply = bench.reply().json();
        assert_has(&reply, &json!({"job_id": id, "status": "succeeded"}));
        let text = reply["stdout"]["text"].as_str().expect("it is a text");
        let echoed = match reply["stdout"]["encoding"].as_str() {
            Some("base64") => BASE64.decode(text).expect("it says so"),
            _ => text.as_bytes().to_vec(),
        };
        assert!(echoed == body, "{id}: {text}");
        assert_eq!(bench.result().routing_key, "echo.succeeded");
    }
    worker.stop();
    bench.is_drained("jobs.echo");
}

#[test]
fn a_handler_s_message_is_bounded_and_retried_as_the_pool_says() {
    let bench = Bench::new();
    let pool = bench.pool(
        "pool = \"strict\"\nslots = 1\nhandler = [\"/bin/bash\", \"-c\", \"[ $SYNTHEX_ATTEMPT = 2 ] && cat\"]\n\
         max_job_bytes = \"64B\"\n[retry]\nmax_attempts = 2\ninitial = \"100ms\"\n",
    );
    let worker = bench.worker(&[&pool]);
    bench.listen();
    bench.send_bytes("strict", b"body", &bench.properties("twice"));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "twice", "attempt": 1, "status": "failed", "final": false}),
    );
    let reply = bench.reply().json();
    assert_has(
        &reply,
        &json!({"job_id": "twice", "attempt": 2, "status": "succeeded", "final": true}),
    );
    assert_eq!(reply["stdout"]["text"], "body");
    bench.send_bytes("strict", &[b'x'; 65], &bench.properties("large"));
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "large", "status": "rejected"}));
    assert_eq!(reply["error"]["kind"], "too_large");
    assert_eq!(bench.dead_letter().body, [b'x'; 65]);
    worker.stop();
}

#[test]
fn one_worker_serves_several_pools_each_by_its_own_rules() {
    let bench = Bench::new();
    let pools = [
        bench.pool("pool = \"one\"\nslots = 1\n[env]\nWHO = \"first\"\n"),
        bench.pool("pool = \"two\"\nslots = 2\nmax_timeout = \"1m\"\ntimeout = \"1m\"\n[env]\nWHO = \"second\"\n"),
    ];
    let worker = Worker::ready(bench.start(&[&pools[0], &pools[1]]), 2);
    bench.listen();
    assert_eq!(worker.get("/readyz").0, 200);
    let who = json!({"script": "echo $WHO in $SYNTHEX_POOL", "timeout": "2m"});
    bench.send("one", "to-one", &who);
    bench.send("two", "too-long", &who);
    bench.send("two", "to-two", &json!({"script": "echo $WHO in $SYNTHEX_POOL"}));

    let replies = bench.replies(3);
    let reply = |id: &str| &replies[&(id.to_owned(), 1)];
    assert_eq!(reply("to-one")["stdout"]["text"], "first in one\n");
    assert_eq!(reply("to-two")["stdout"]["text"], "second in two\n");
    assert_has(reply("too-long"), &json!({"status": "rejected"}));
    let mut keys: Vec<String> = (0..3).map(|_| bench.result().routing_key).collect();
    keys.sort();
    assert_eq!(keys, ["one.succeeded", "two.rejected", "two.succeeded"]);
    worker.metric_becomes(r#"synthex_jobs_finished_total{pool="one",status="succeeded"}"#, 1.0);
    worker.metric_becomes(r#"synthex_jobs_finished_total{pool="two",status="succeeded"}"#, 1.0);
    assert!((worker.metric(r#"synthex_slots{pool="two"}"#) - 2.0).abs() < 0.5);
    worker.stop();
    bench.is_drained("jobs.one");
    bench.is_drained("jobs.two");
}

/// A pool's file of `workers/`, with parts of it replaced by what a test needs in their place.
fn ours(bench: &Bench, name: &str, replaced: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("workers/{name}.toml"));
    let mut text = fs::read_to_string(file).expect("the pool is there");
    for (from, to) in replaced {
        assert!(text.contains(from), "workers/{name}.toml has no {from}");
        text = text.replace(from, to);
    }
    let path = bench.path(&format!("{name}.toml"));
    fs::write(&path, text).expect("the folder is there");
    path.to_str().expect("a temporary path is text").to_owned()
}

/// Writes a program of a test's own.
fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("the folder is there");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

#[test]
fn a_script_of_the_pool_shell_ends_at_its_first_failure() {
    let bench = Bench::new();
    let worker = bench.worker(&["workers/shell.toml"]);
    bench.listen();
    for (id, script, status, out) in [
        ("fine", "echo one | tr o 0; echo two", "succeeded", "0ne\ntwo\n"),
        ("fails", "echo one; false; echo two", "failed", "one\n"),
        ("fails-in-a-pipe", "false | cat; echo two", "failed", ""),
        ("has-a-slip", "echo \"$HMOE\"; echo two", "failed", ""),
    ] {
        bench.send("shell", id, &json!({"script": script}));
        let reply = bench.reply().json();
        assert_has(&reply, &json!({"job_id": id, "status": status}));
        assert_eq!(reply["stdout"]["text"], out, "{id}");
    }
    worker.stop();
    bench.is_drained("jobs.shell");
}

#[test]
fn the_pool_batch_takes_long_jobs_and_keeps_long_logs() {
    let bench = Bench::new();
    let worker = bench.worker(&["workers/batch.toml"]);
    bench.listen();
    let script = "head -c 614400 /dev/zero | tr '\\0' x; date --date=\"$SYNTHEX_DEADLINE\" +%s >&2; date +%s >&2";
    bench.send("batch", "long", &json!({"script": script, "timeout": "48h"}));
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "long", "status": "succeeded"}));
    assert_eq!(
        (&reply["stdout"]["bytes"], &reply["stdout"]["truncated_bytes"]),
        (&json!(614_400), &json!(90_112))
    );
    let times = reply["stderr"]["text"].as_str().expect("it is a text");
    let times: Vec<i64> = times
        .lines()
        .map(|line| line.parse().expect("date prints a number"))
        .collect();
    assert!((times[0] - times[1] - 48 * 3600).abs() < 60, "{times:?}");

    bench.send("batch", "too-long", &json!({"command": ["true"], "timeout": "73h"}));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "too-long", "status": "rejected"}),
    );
    assert!((worker.metric(r#"synthex_slots{pool="batch"}"#) - 2.0).abs() < 0.5);
    worker.stop();
    bench.is_drained("jobs.batch");
}

#[test]
fn the_pool_handler_has_the_exit_codes_of_rabbitmq_cli_consumer() {
    let bench = Bench::new();
    let handler = bench.path("handle-message");
    program(&handler, "exit \"$(cat)\"");
    let pool = ours(
        &bench,
        "handler",
        &[
            (
                r#"handler = ["/usr/local/bin/handle-message"]"#,
                &format!("handler = [{handler:?}]"),
            ),
            ("max_attempts = 5", "max_attempts = 2"),
            (r#"initial = "2s""#, r#"initial = "100ms""#),
        ],
    );
    let worker = bench.worker(&[&pool]);
    bench.listen();
    for code in ["0", "3", "5", "4", "6", "1"] {
        bench.send_bytes("handler", code.as_bytes(), &bench.properties(&format!("code-{code}")));
    }
    let replies = bench.replies(9);
    let end = |code: &str, attempt| {
        let reply = replies.get(&(format!("code-{code}"), attempt))?;
        Some((reply["status"].as_str()?, reply["final"].as_bool()?))
    };
    assert_eq!(end("0", 1), Some(("succeeded", true)));
    for rejected in ["3", "5"] {
        assert_eq!(end(rejected, 1), Some(("failed", true)), "code {rejected}");
    }
    for requeued in ["4", "6", "1"] {
        assert_eq!(end(requeued, 1), Some(("failed", false)), "code {requeued}");
        assert_eq!(end(requeued, 2), Some(("failed", true)), "code {requeued}");
    }
    let mut dead: Vec<String> = (0..5)
        .map(|_| bench.dead_letter())
        .map(|dead| {
            assert_eq!(dead.header("x-synthex-reason"), "failed");
            dead.header("x-synthex-error").to_owned()
        })
        .collect();
    dead.sort();
    assert_eq!(
        dead,
        ["1", "3", "4", "5", "6"].map(|code| format!("exited with code {code}"))
    );
    worker.stop();
    bench.is_drained("jobs.handler");
}

#[test]
fn the_pool_handler_can_give_a_message_as_its_last_argument() {
    let bench = Bench::new();
    let handler = bench.path("handle-message");
    program(
        &handler,
        "printf %s \"$1\" | base64 --decode; echo; echo $# \"$SYNTHEX_JOB_ID\"",
    );
    let handler = handler.to_str().expect("a temporary path is text");
    let pool = ours(
        &bench,
        "handler",
        &[
            ("\nhandler = [", "\n# handler = ["),
            ("#   handler = [", "handler = ["),
            ("/usr/local/bin/handle-message", handler),
        ],
    );
    let worker = bench.worker(&[&pool]);
    bench.listen();
    // As its producer goes on to publish: to an exchange of its own.
    let (exchange, key) = ("amq.topic", &bench.namespace);
    let binding = json!({"do": "bind", "queue": bench.named("jobs.handler"), "exchange": exchange, "key": key});
    bench.rabbit.call(binding);
    let body = "ü $(id) \\".as_bytes();
    assert!(
        bench
            .rabbit
            .publish(exchange, key, body, &bench.properties("as-an-argument"))
    );
    let reply = bench.reply().json();
    assert_eq!(reply["stdout"]["text"], "ü $(id) \\\n1 as-an-argument\n", "{reply:#}");
    worker.stop();
}

/// Jobs of producers that are not to be trusted, and the field that each is rejected for.
fn attacks(reports: &Path) -> Vec<(Value, &'static str)> {
    let report = |name: &str| {
        reports
            .join(name)
            .to_str()
            .expect("a temporary path is text")
            .to_owned()
    };
    let uptime = |key: &str, value: Value| json!({"command": ["/usr/bin/uptime"], key: value});
    vec![
        (json!({"script": "/usr/bin/uptime"}), "script"),
        (uptime("env", json!({"LD_PRELOAD": "/tmp/evil.so"})), "env"),
        (uptime("env", json!({"PATH": "/tmp"})), "env"),
        (uptime("cwd", json!("/tmp")), "cwd"),
        (uptime("limits", json!({"memory": "1TiB"})), "limits"),
        (json!({"command": ["uptime"]}), "command[0]"),
        (json!({"command": ["./uptime"]}), "command[0]"),
        (json!({"command": ["/bin/sh", "-c", "id"]}), "command[0]"),
        (json!({"command": ["/usr/bin/../bin/uptime"]}), "command[0]"),
        (json!({"command": [report("../uptime")]}), "command[0]"),
        (json!({"command": [report("deeper/report")]}), "command[0]"),
        (json!({"command": [report("escape"), "--format=pdf"]}), "command[0]"),
        (json!({"command": ["/proc/self/root/usr/bin/uptime"]}), "command[0]"),
        (json!({"command": ["/usr/bin/uptime", "--pretty"]}), "command[1]"),
        (
            json!({"command": ["/usr/bin/sha256sum", "--", "/srv/files/../../etc/shadow"]}),
            "command[2]",
        ),
        (
            json!({"command": ["/usr/bin/df", "--output=size", "/x\n/y"]}),
            "command[2]",
        ),
        (json!({"command": [report("monthly"), "--format=pdf;id"]}), "command[1]"),
    ]
}

#[test]
fn the_pool_restricted_runs_what_it_allows_and_nothing_else() {
    let bench = Bench::new();
    let reports = bench.path("reports");
    fs::create_dir(&reports).expect("the folder is there");
    program(&reports.join("monthly"), "echo \"$@\"; env | sort");
    symlink("/bin/echo", reports.join("escape")).expect("the folder is there");
    let path = reports.to_str().expect("a temporary path is text");
    let pool = ours(
        &bench,
        "restricted",
        &[("\"/opt/reports/*\"", &format!("\"{path}/*\""))],
    );
    let worker = bench.worker(&["--slots", "1", &pool]);
    bench.listen();
    for (index, (job, field)) in attacks(&reports).into_iter().enumerate() {
        let id = format!("attack-{index}");
        bench.send("restricted", &id, &job);
        let reply = bench.reply().json();
        assert_has(&reply, &json!({"job_id": id, "status": "rejected", "started_at": null}));
        let error = reply["error"]["message"].as_str().expect("an error has a message");
        assert!(error.starts_with(&format!("{field}: ")), "{job}: {error}");
        assert_eq!(reply["error"]["kind"], "policy", "{job}");
        assert_eq!(bench.dead_letter().header("x-synthex-field"), field, "{job}");
    }

    let monthly = reports.join("monthly");
    bench.send(
        "restricted",
        "report",
        &json!({"command": [monthly, "--format=pdf", "--month=2026-11"]}),
    );
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "report", "status": "succeeded"}));
    let text = reply["stdout"]["text"].as_str().expect("it is a text");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert!(text.starts_with("--format=pdf --month=2026-11\n"), "{text}");
    assert!(
        !names.contains(&"HOME") && text.contains("\nPATH=/usr/bin:/bin\n"),
        "{text}"
    );
    let job = json!({"command": ["/usr/bin/sha256sum", "--", "-"], "stdin": ""});
    bench.send("restricted", "sum", &job);
    let sum = bench.reply().json();
    assert_eq!(
        sum["stdout"]["text"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  -\n",
        "{sum:#}"
    );
    worker.stop();
    bench.is_drained("jobs.restricted");
}
