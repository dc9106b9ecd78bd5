//! A bad message harms nobody: its producer learns which field is at fault, it is kept, and its slot is free again.

use serde_json::json;

use crate::bench::{Bench, assert_has};

/// A message that no worker will run.
struct Bad {
    name: &'static str,
    body: Vec<u8>,
    /// The field that the dead letter names; empty for the message as a whole.
    field: &'static str,
    /// What the error says.
    says: &'static str,
}

fn bad(name: &'static str, body: impl Into<Vec<u8>>, field: &'static str, says: &'static str) -> Bad {
    let body = body.into();
    Bad {
        name,
        body,
        field,
        says,
    }
}

fn bad_bodies() -> Vec<Bad> {
    let both = r#"{"command": ["true"], "script": "true"}"#;
    vec![
        bad("invalid-utf-8", b"{\"script\": \"\xff\xfe\"}", "", "UTF-8"),
        bad("empty", "", "", "expected a JSON object, got nothing"),
        bad("huge", vec![b'x'; 20 << 20], "", "1048576"),
        bad("not-json", "run this, please", "", "JSON"),
        bad("list", r#"["true"]"#, "", "expected a JSON object"),
        bad("nothing-to-run", "{}", "command", "script"),
        bad("both", both, "script", "command"),
        bad(
            "unknown-field",
            r#"{"command": ["true"], "comand": 1}"#,
            "comand",
            "unknown field",
        ),
        bad(
            "over-max",
            r#"{"command": ["true"], "timeout": "2h"}"#,
            "timeout",
            "max_timeout",
        ),
        bad("no-time", r#"{"command": ["true"], "timeout": "0"}"#, "timeout", "30s"),
        bad(
            "no-duration",
            r#"{"command": ["true"], "timeout": 30}"#,
            "timeout",
            "30s",
        ),
        bad(
            "no-signal",
            r#"{"command": ["true"], "term_signal": "FOO"}"#,
            "term_signal",
            "TERM",
        ),
        bad(
            "no-size",
            r#"{"command": ["true"], "limits": {"memory": "lots"}}"#,
            "limits.memory",
            "512MiB",
        ),
        bad("no-path", r#"{"command": ["true"], "cwd": "here"}"#, "cwd", "absolute"),
        bad("nul", "{\"command\": [\"true\", \"\\u0000\"]}", "command[1]", "NUL"),
        bad("no-strings", r#"{"command": "true"}"#, "command", "array"),
        bad("no-name", r#"{"command": ["true"], "env": {"": "x"}}"#, "env", "empty"),
    ]
}

#[test]
fn a_bad_message_is_answered_kept_and_forgotten() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"default\"\nslots = 1\nmax_timeout = \"1h\"\n");
    let worker = bench.worker(&[&pool]);
    bench.listen();
    for Bad {
        name,
        body,
        field,
        says,
    } in bad_bodies()
    {
        bench.send_bytes("default", &body, &bench.properties(name));
        let reply = bench.reply();
        assert_has(
            &reply.json(),
            &json!({"job_id": name, "attempt": 1, "status": "rejected", "final": true, "started_at": null}),
        );
        assert_eq!(reply.property("correlation_id"), format!("about {name}"));
        let error = reply.json()["error"]["message"]
            .as_str()
            .expect("an error has a message")
            .to_owned();
        assert!(error.contains(says), "{name}: {error}");
        let result = bench.result();
        assert_eq!(result.json(), reply.json());
        assert_eq!(result.routing_key, "default.rejected");

        let dead = bench.dead_letter();
        assert!(dead.body == body, "{name}: the dead letter has another body");
        assert_eq!(dead.header("x-synthex-reason"), "rejected", "{name}");
        assert_eq!(dead.header("x-synthex-error"), error, "{name}");
        assert_eq!(dead.header("x-synthex-field"), field, "{name}");
        assert_eq!(dead.header("x-synthex-pool"), "default", "{name}");
        assert_eq!(dead.headers["x-synthex-attempt"], 1, "{name}");
        assert_eq!(dead.property("message_id"), name);
        assert_eq!(dead.property("reply_to"), bench.named("my-replies"));
    }
    // The one slot is free, and nothing of all that is left.
    bench.send("default", "good", &json!({"command": ["true"]}));
    assert_has(&bench.reply().json(), &json!({"job_id": "good", "status": "succeeded"}));
    worker.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn another_content_type_is_refused_and_json_with_parameters_is_not() {
    let bench = Bench::new();
    let _worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    let job = br#"{"command": ["true"]}"#;
    let mut properties = bench.properties("other");
    properties["content_type"] = "text/plain".into();
    bench.send_bytes("default", job, &properties);
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": "other", "status": "rejected"}));
    assert_eq!(reply["error"]["kind"], "content_type");
    let dead = bench.dead_letter();
    assert_eq!(dead.header("x-synthex-field"), "content_type");
    assert_eq!(dead.property("content_type"), "text/plain");
    assert_eq!(dead.body, job);

    properties["content_type"] = "application/json; charset=utf-8".into();
    bench.send_bytes("default", job, &properties);
    assert_has(&bench.reply().json(), &json!({"status": "succeeded"}));
}

#[test]
fn a_refused_job_keeps_the_best_id_that_can_be_read() {
    let bench = Bench::new();
    let _worker = bench.worker(&["--slots", "1"]);
    bench.listen();
    // The body's own, else the property, else a new one.
    bench.send_bytes(
        "default",
        br#"{"id": "of-the-body", "comand": 1}"#,
        &bench.properties("of-the-property"),
    );
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "of-the-body", "status": "rejected"}),
    );
    bench.send_bytes(
        "default",
        br#"{"id": 7, "comand": 1}"#,
        &bench.properties("of-the-property"),
    );
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "of-the-property", "status": "rejected"}),
    );

    let nameless = json!({"reply_to": bench.named("my-replies")});
    bench.send_bytes("default", b"?", &nameless);
    let reply = bench.reply().json();
    let id: Result<uuid::Uuid, _> = reply["job_id"].as_str().expect("a result has a job's id").parse();
    assert!(id.is_ok(), "{reply:#}");
    // A job that ran and one that was refused have no slot of each other's.
    let kept: Vec<_> = (0..3)
        .map(|_| bench.dead_letter().property("message_id").to_owned())
        .collect();
    assert_eq!(kept[..2], ["of-the-property", "of-the-property"]);
    assert_eq!(kept[2], reply["job_id"].as_str().expect("it is a text"));
}
