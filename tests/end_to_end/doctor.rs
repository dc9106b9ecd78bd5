//! `synthex doctor` finds what is wrong with a real broker, says what to do, and leaves no trace.

use serde_json::{Value, json};

use crate::bench::{Bench, PATIENCE, ask_until, block_on};
use crate::fleet::assert_described;
use crate::support::process::wait_until;

const PASSWORD: &str = "hunter2";

fn findings(bench: &Bench, args: &[&str], code: i32) -> Vec<Value> {
    let args = [&["doctor", "--json", "--wait", "600ms"], args].concat();
    let found = bench.synthex(&args).run().expect_code(code).json_lines();
    found.iter().for_each(|finding| assert_described(finding, "Finding"));
    found
}

/// The problem of a check whose text has this part, with its remedy.
#[track_caller]
fn problem(found: &[Value], check: &str, part: &str) -> String {
    let is_it = |finding: &&Value| {
        let text = finding["found"].as_str().unwrap_or_default();
        finding["severity"] == "problem" && finding["check"] == check && text.contains(part)
    };
    let finding = found.iter().find(is_it);
    let finding = finding.unwrap_or_else(|| panic!("no problem of {check} with {part:?} in {found:#?}"));
    finding["remedy"].as_str().expect("a problem has a remedy").to_owned()
}

#[test]
fn all_is_well_beside_a_worker_and_nothing_is_left_behind() {
    let (bench, broker, vhost) = Bench::on_own_vhost();
    let worker = bench.worker(&[]);
    // In one call of the tool, as each starts an Erlang machine.
    let all = || {
        let names = |of: &str, key: &str| {
            format!(
                "[element(4, element(2, X)) || X <- {of}:{key}(<<\"{}\">>)]",
                vhost.name()
            )
        };
        let queues = names("rabbit_amqqueue", "list");
        let exchanges = names("rabbit_exchange", "list");
        block_on(broker.eval(&format!("{{lists:sort({queues}), lists:sort({exchanges})}}.")))
    };
    wait_until(PATIENCE, "the worker has a queue of its own", || {
        all().contains("amq.gen")
    });
    let before = all();
    let found = ask_until(
        || findings(&bench, &[], 0),
        |found| {
            let found = format!("{found:?}");
            found.contains("the broker's clock agrees") && found.contains("the clock of worker ")
        },
    );
    let is = |check: &str, severity: &str, part: &str| {
        let mut of = found.iter().filter(|finding| finding["check"] == check);
        let fits = of.any(|finding| {
            finding["severity"] == severity && finding["found"].as_str().is_some_and(|text| text.contains(part))
        });
        assert!(fits, "no {severity} {check} {part:?} in {found:#?}");
    };
    is("broker", "ok", "RabbitMQ 3.");
    is("topology", "ok", "as they are to be");
    is("permissions", "ok", "this user may do all");
    is("message_size", "ok", "128MiB");
    is("consumer_timeout", "note", "consumer_timeout");
    is("workers", "ok", "serve every pool");
    is("clock", "ok", "the broker's clock agrees");
    is("clock", "ok", "the clock of worker ");
    assert!(found.iter().any(|finding| finding["check"] == "cgroup"));
    assert!(found.iter().any(|finding| finding["check"] == "landlock"));
    wait_until(PATIENCE, "nothing of it is left", || all() == before);
    assert!(before.contains("synthex.jobs.default"), "{before}");
    assert_eq!(bench.ready("dead") + bench.ready("jobs.default"), 0);
    worker.stop();
}

#[test]
fn queues_with_other_arguments_and_pools_that_ask_too_much_are_problems() {
    let bench = Bench::new();
    for (queue, arguments) in [
        ("jobs.limited", json!({"x-queue-type": "quorum", "x-delivery-limit": 7})),
        ("dead", json!({"x-queue-type": "classic"})),
    ] {
        bench
            .rabbit
            .call(json!({"do": "declare", "queue": bench.named(queue), "arguments": arguments}));
    }
    let limited = bench.pool("pool = \"limited\"\nmax_job_bytes = \"200MiB\"\n");
    let found = findings(&bench, &[&limited], 78);
    let remedy = problem(&found, "arguments", &bench.named("dead"));
    assert!(remedy.contains("rabbitmqctl delete_queue"), "{remedy}");
    problem(&found, "message_size", "max_job_bytes");
    let differing = found.iter().filter(|finding| {
        finding["severity"] == "problem"
            && finding["found"]
                .as_str()
                .is_some_and(|text| text.contains("jobs.limited"))
    });
    assert_eq!(differing.count(), 1, "{found:#?}");
    // The others are missing, which the first worker mends.
    let missing = found
        .iter()
        .find(|finding| finding["check"] == "topology" && finding["severity"] == "note");
    assert!(missing.is_some_and(|note| note["found"].as_str().is_some_and(|text| text.contains(" more"))));

    // In words, problems come last.
    let said = bench
        .synthex(&["doctor", &limited, "--wait", "600ms"])
        .run()
        .expect_code(78);
    let last = said.stdout.lines().rev().take(2).collect::<Vec<_>>();
    assert!(
        last[0].trim_start().starts_with("do: ") && last[1].starts_with("PROBLEM"),
        "{}",
        said.stdout
    );
}

#[test]
fn a_delivery_limit_of_another_hand_is_named_as_such() {
    let bench = Bench::new();
    let pool = bench.pool("pool = \"p\"\n");
    let arguments = json!({
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": bench.named("dead"),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-consumer-timeout": 604_800_000_i64,
        "x-delivery-limit": 7,
    });
    bench
        .rabbit
        .call(json!({"do": "declare", "queue": bench.named("jobs.p"), "arguments": arguments}));
    let found = findings(&bench, &[&pool], 78);
    problem(&found, "delivery_limit", "x-delivery-limit");
}

#[test]
fn rights_that_are_missing_are_named_one_by_one() {
    let (mut bench, broker, vhost) = Bench::on_own_vhost();
    bench.synthex(&["config", "apply"]).run().expect_code(0);
    let user = format!("worker-{}", uuid::Uuid::now_v7().simple());
    block_on(async {
        broker.add_user(&user, PASSWORD).await;
        // Neither results nor events may be written, and nothing of the namespace declared.
        vhost
            .permit(
                &user,
                "^amq\\.gen-",
                "^(amq\\.default|amq\\.gen-.*|synthex\\.(dead|delay\\.[^.]+))$",
                ".*",
            )
            .await;
    });
    bench.url = vhost.url_as(&user, PASSWORD);
    let found = findings(&bench, &[], 78);
    for exchange in ["synthex.results", "synthex.events"] {
        let remedy = problem(&found, "permissions", &format!("publish to \"{exchange}\""));
        assert!(remedy.contains(&format!("write \"{exchange}\"")), "{remedy}");
    }
    problem(&found, "permissions", "declare queues of the namespace");
    let refused = found.iter().filter(|finding| finding["check"] == "permissions");
    assert_eq!(refused.count(), 3, "what may be done is no problem: {found:#?}");

    // As definitions.json grants it to workers, whose queues somebody else declares.
    let role = "^(amq\\.default|amq\\.gen-.*|synthex\\.(dead|results|events|delay\\.[^.]+))$";
    let read = "^(amq\\.gen-.*|synthex\\.(control|control\\.log|jobs\\.[^.]+))$";
    block_on(vhost.permit(&user, "^amq\\.gen-", role, read));
    let passive = bench.pool("pool = \"default\"\ndeclare = \"passive\"\n");
    let found = findings(&bench, &[&passive], 0);
    assert!(
        found.iter().all(|finding| finding["severity"] != "problem"),
        "{found:#?}"
    );

    block_on(vhost.permit(&user, "", "", ""));
    let found = findings(&bench, &[&passive], 78);
    problem(&found, "permissions", "make a private queue");
    problem(&found, "permissions", "answer producers");
}

#[test]
fn a_broker_that_is_away_is_a_problem_among_others() {
    let mut bench = Bench::new();
    bench.url = "amqp://user:hunter2@127.0.0.1:1/".to_owned();
    let found = findings(&bench, &["--connect-timeout", "300ms"], 78);
    let remedy = problem(&found, "broker", "127.0.0.1:1");
    assert!(remedy.contains("--amqp-url"), "{remedy}");
    assert!(
        found.iter().any(|finding| finding["check"] == "landlock"),
        "this machine is looked at all the same"
    );
    assert!(!format!("{found:?}").contains(PASSWORD));
}
