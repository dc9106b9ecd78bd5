//! Pools are data: several in a worker, each with its own rules, and pools whose messages are no jobs of ours.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

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
