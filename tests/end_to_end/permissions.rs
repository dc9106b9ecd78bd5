//! What a worker may do on a broker, what it says when it may not, and what it keeps to itself.

use serde_json::json;

use crate::bench::{Bench, PATIENCE, Worker, assert_has, block_on};
use crate::support::process::wait_until;

const PASSWORD: &str = "hush-7f3a1c";

#[test]
fn a_worker_that_may_not_declare_works_after_somebody_who_may_has() {
    let (mut bench, broker, vhost) = Bench::on_own_vhost();
    let user = format!("worker-{}", uuid::Uuid::now_v7().simple());
    block_on(async {
        broker.add_user(&user, PASSWORD).await;
        vhost.permit(&user, "^amq\\.gen.*", ".*", ".*").await;
    });
    let pool = bench.pool("pool = \"default\"\nslots = 1\ndeclare = \"passive\"\n");
    let admin = std::mem::replace(&mut bench.url, vhost.url_as(&user, PASSWORD));

    let refused = bench.start(&[&pool]).wait().expect_code(78);
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(last.contains(r#"exchange "synthex.unroutable""#), "{last}");
    assert!(last.contains("config apply"), "it says what to do: {last}");

    let applied = bench
        .synthex(&["config", "apply", &pool])
        .env("SYNTHEX_AMQP_URL", &admin)
        .run()
        .expect_code(0);
    for line in [
        "exchange synthex.jobs (direct)",
        "queue synthex.jobs.default",
        "queue synthex.dead",
    ] {
        assert!(
            applied.stdout.lines().any(|found| found == line),
            "no {line:?} in {}",
            applied.stdout
        );
    }
    let worker = bench.worker(&[&pool]);
    bench.listen();
    bench.send(
        "default",
        "modest",
        &json!({"command": ["true"], "retry": {"max_attempts": 2}}),
    );
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "modest", "status": "succeeded"}),
    );
    bench.send_bytes("default", b"?", &bench.properties("bad"));
    assert_has(&bench.reply().json(), &json!({"job_id": "bad", "status": "rejected"}));
    assert_eq!(bench.dead_letter().body, b"?");
    wait_until(PATIENCE, "started and consuming are told", || {
        worker.metric("synthex_events_published_total{about=\"worker\"}") > 1.5
    });
    worker.metric_becomes("synthex_events_dropped_total{about=\"worker\"}", 0.0);
    // A client that only may make a private queue can ask, too.
    bench.synthex(&["submit", "--wait", "--", "true"]).run().expect_code(0);
    worker.stop();
}

#[test]
fn a_missing_queue_is_named_by_a_worker_that_may_not_declare() {
    let bench = Bench::new();
    let other = bench.pool("pool = \"other\"\n");
    bench.synthex(&["config", "apply", &other]).run().expect_code(0);
    let pool = bench.pool("pool = \"mine\"\ndeclare = \"passive\"\n");
    let refused = bench.start(&[&pool]).wait().expect_code(78);
    let wanted = format!(r#"queue "{}""#, bench.named("jobs.mine"));
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(last.contains(&wanted), "{last}");
}

#[test]
fn a_wrong_password_is_told_with_the_host_and_never_shown() {
    let (mut bench, broker, vhost) = Bench::on_own_vhost();
    bench.url = vhost.url_as(broker.user(), PASSWORD);
    for args in [&[][..], &["-v", "-v"]] {
        let refused = bench.start(args).wait().expect_code(78);
        let last = refused.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(&format!("127.0.0.1:{}", broker.port())), "{last}");
        assert!(
            last.contains("check user, password and virtual host of --amqp-url"),
            "{last}"
        );
        assert!(!refused.stderr.contains(PASSWORD), "{}", refused.stderr);
    }
}

#[test]
fn a_password_is_in_no_log_and_no_metric() {
    let (mut bench, broker, vhost) = Bench::on_own_vhost();
    let user = format!("worker-{}", uuid::Uuid::now_v7().simple());
    block_on(async {
        broker.add_user(&user, PASSWORD).await;
        vhost.permit(&user, ".*", ".*", ".*").await;
    });
    bench.url = vhost.url_as(&user, PASSWORD);
    let worker = bench.worker(&["-v", "-v"]);
    assert!(
        worker.running.stderr().contains("TRACE"),
        "this is all that can be logged"
    );
    bench.listen();
    bench.send("default", "quiet", &json!({"command": ["env"]}));
    let reply = bench.reply();
    assert!(!String::from_utf8_lossy(&reply.body).contains(PASSWORD));
    assert!(!worker.metrics().contains(PASSWORD));
    let ended = worker.stop();
    assert!(!ended.stdout.contains(PASSWORD), "{}", ended.stdout);
    let shown: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(PASSWORD)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
}

#[test]
fn a_queue_with_other_arguments_is_taken_as_it_is_with_a_warning() {
    let bench = Bench::new();
    let arguments = json!({"x-queue-type": "quorum", "x-delivery-limit": 7});
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": bench.named("jobs.default"), "arguments": arguments}));
    let worker = bench.worker(&[]);
    let warning = worker
        .running
        .wait_for_line(|line| line.contains("WARN") && line.contains("other arguments"));
    assert!(warning.contains(&bench.named("jobs.default")), "{warning}");
    assert!(
        warning.contains("inequivalent arg 'x-"),
        "it names the argument: {warning}"
    );
    bench.listen();
    bench.send("default", "as-is", &json!({"command": ["true"]}));
    assert_has(
        &bench.reply().json(),
        &json!({"job_id": "as-is", "status": "succeeded"}),
    );
    worker.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn the_first_host_of_a_list_may_be_dead() {
    let mut bench = Bench::new();
    // Nothing listens on port 1; the list shares user, password and virtual host.
    bench.url = bench.url.replacen("@127.0.0.1:", "@127.0.0.1:1,127.0.0.1:", 1);
    let running = bench.start(&["--slots", "1"]);
    let worker = Worker::ready(running, 1);
    bench.listen();
    let done = bench
        .synthex(&["submit", "--wait", "--", "echo", "here"])
        .run()
        .expect_code(0);
    assert_eq!(done.stdout, "here\n");
    worker.stop();
}
