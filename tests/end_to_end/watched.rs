//! What Prometheus sees of the whole stack: its configuration and rules of `deploy/`, two workers under load, and the broker.
//! Numbers that agree with the account of the jobs, rules that work, dashboards that show something.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};

use crate::alerts::rules;
use crate::bench::{PATIENCE, Rabbit, Worker, ask_until};
use crate::compose::{read, root, words, yaml};
use crate::dashboards::dashboards;
use crate::prometheus::{Prometheus, annotations, targets, value};
use crate::stack::Stack;
use crate::support::process::{Process, Signal, descendants, wait_until};

/// What Prometheus of `compose.yaml` reads, but often and from here.
fn prometheus_config(workers: &[&str], broker: &str) -> Value {
    let mut config = yaml("deploy/prometheus/prometheus.yml");
    config["global"] = json!({"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"});
    config["rule_files"] = json!([root("deploy/prometheus").join(words(&config["rule_files"])[0])]);
    let jobs = config["scrape_configs"].as_array_mut().expect("it has jobs");
    jobs.retain(|job| job["job_name"] != "prometheus");
    for job in jobs {
        let addresses = match job["job_name"].as_str() {
            Some("synthex") => workers,
            Some("rabbitmq" | "rabbitmq-queues") => &[broker],
            other => panic!("nobody knows where {other:?} is"),
        };
        let job = job.as_object_mut().expect("it is a map");
        job.remove("dns_sd_configs");
        job.insert("static_configs".into(), json!([{"targets": addresses}]));
    }
    config
}

/// Sixty jobs of a foreign producer: six each fail, are tried twice, and write a thousand bytes.
fn load(stack: &Stack) {
    let url = fs::read_to_string(stack.address("producer.local.url")).expect("it was just written");
    let producer = Rabbit::connect(url.trim());
    for number in 0..60 {
        let job = match number % 10 {
            7 => json!({"script": "exit 3"}),
            8 => {
                let retry = json!({"max_attempts": 2, "initial": "100ms"});
                json!({"script": "[ $SYNTHEX_ATTEMPT = 2 ]", "retry": retry})
            }
            9 => json!({"script": "head -c 1000 /dev/zero"}),
            _ => json!({"script": "sleep 0.02"}),
        };
        let properties = json!({
            "content_type": "application/json",
            "message_id": format!("load-{number}"),
            "timestamp": jiff::Timestamp::now().as_second(),
            "delivery_mode": 2,
        });
        assert!(producer.publish("synthex.jobs", "default", job.to_string().as_bytes(), &properties));
    }
}

/// A bit of everything: six ends of four jobs.
fn a_bit_of_everything(stack: &Stack) {
    stack.submit(&[], "echo hello").expect_code(0);
    stack
        .submit(&["--max-attempts", "2"], "[ $SYNTHEX_ATTEMPT = 2 ]")
        .expect_code(0);
    stack.submit(&["--timeout", "100ms"], "sleep 60").expect_code(124);
    stack.submit(&["--max-attempts", "2"], "exit 3").expect_code(3);
}

/// What both come to, on all workers together.
///
/// Of deliveries there may be more: a retry that waits for longer than one delay queue holds it comes by a worker again.
const ACCOUNT: [(&str, f64); 15] = [
    (r#"synthex_jobs_finished_total{status="succeeded"}"#, 56.0),
    (r#"synthex_jobs_finished_total{status="failed"}"#, 15.0),
    (r#"synthex_jobs_finished_total{status="timed_out"}"#, 1.0),
    ("synthex_jobs_finished_total", 72.0),
    ("synthex_jobs_started_total", 72.0),
    ("synthex_job_duration_seconds_count", 72.0),
    ("synthex_job_wait_seconds_count", 72.0),
    ("synthex_spawn_seconds_count", 72.0),
    ("synthex_job_retries_total", 8.0),
    ("synthex_dead_letters_total", 1.0),
    (r#"synthex_output_bytes_total{stream="stdout"}"#, 6006.0),
    ("synthex_jobs_running", 0.0),
    ("synthex_unacked", 0.0),
    ("synthex_channel_depth", 0.0),
    ("synthex_broker_reconnects_total", 0.0),
];

#[test]
fn private_broker_prometheus_has_all_numbers_to_the_unit_and_every_panel_shows_something() {
    let stack = Stack::start();
    stack.declare();
    let workers = [stack.worker(), stack.worker()];
    let broker = format!("127.0.0.1:{}", stack.broker.metrics_port());
    let addresses = workers.each_ref().map(Worker::address);
    let prometheus = Prometheus::start(&prometheus_config(&addresses, &broker));
    // A rate is seen from the second look on, so that all is looked at before anything happens.
    wait_until(PATIENCE, "everything was scraped", || {
        let targets = prometheus.targets();
        targets.len() == 4 && targets.iter().all(|target| target["health"] == "up")
    });
    kill_a_spawner(&workers[1]);
    load(&stack);
    a_bit_of_everything(&stack);

    let found = || ACCOUNT.map(|(series, _)| (series, prometheus.value(&format!("sum({series})"))));
    let wanted = ACCOUNT.map(|(series, count)| (series, Some(count)));
    ask_until(found, |found| *found == wanted);
    let deliveries = [
        r#"synthex_channel_sent_total{channel="deliveries"}"#,
        r#"synthex_channel_received_total{channel="deliveries"}"#,
        r#"synthex_tasks_spawned_total{task="job"}"#,
        r#"synthex_tasks_measured_total{task="job"}"#,
        r#"synthex_tasks_completed_total{task="job", outcome="completed"}"#,
    ];
    ask_until(
        || deliveries.map(|series| prometheus.value(&format!("sum({series})"))),
        |found| found[0] >= Some(72.0) && *found == [found[0]; 5],
    );
    has_series(&prometheus, "synthex_jobs_started_total > 0", 2); // both workers had a part in it

    every_explained_metric_is_there(&prometheus, &addresses);
    every_panel_shows_something(&prometheus);
    every_rule_works(&prometheus);
    numbers_of_queues_are_right(&prometheus);
    for worker in workers {
        worker.stop();
    }
}

/// Waits until a query has so many series for an answer: a look that came too late leaves a target out, for a second.
#[track_caller]
fn has_series(prometheus: &Prometheus, query: &str, count: usize) {
    let what = format!("{count} series of {query}");
    let found = || prometheus.query(query).expect("it is a query").len();
    wait_until(PATIENCE, &what, || found() == count);
}

fn kill_a_spawner(worker: &Worker) {
    let is_spawner = |process: &Process| {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid));
        name.is_ok_and(|name| name.trim_end() == "synthex-spawner")
    };
    let spawners = || descendants(worker.running.pid()).into_iter().filter(is_spawner);
    let count = worker.metric("synthex_spawners_alive");
    wait_until(PATIENCE, "all of them have their names", || {
        (spawners().count() as f64 - count).abs() < 0.5
    });
    let spawners: Vec<Process> = spawners().collect();
    spawners[0].signal(Signal::KILL);
    worker.metric_becomes("synthex_spawners_replaced_total", 1.0);
    worker.metric_becomes("synthex_spawners_alive", count);
}

/// Each metric of docs/operations.md, of each worker, with a value that it may have.
fn every_explained_metric_is_there(prometheus: &Prometheus, workers: &[&str]) {
    let all = ask_until(
        || prometheus.query(r#"{job="synthex"}"#).expect("it is a query"),
        |all| {
            let infos = all
                .iter()
                .filter(|series| series["metric"]["__name__"] == "synthex_build_info");
            infos.count() == workers.len()
        },
    );
    let page = read("docs/operations.md");
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let is_metric = |name: &&str| {
        ["synthex_", "tokio_", "process_"]
            .iter()
            .any(|owner| name.starts_with(owner))
    };
    let named = rows.filter(is_metric);
    let names: BTreeSet<&str> = named.map(|name| name.split('{').next().unwrap_or(name)).collect();
    assert!(names.len() > 60, "{names:?}");
    for name in names {
        let count = format!("{name}_count");
        for worker in workers {
            let is_it = |series: &&Value| {
                let (found, of) = (&series["metric"]["__name__"], &series["metric"]["instance"]);
                (found == name || *found == *count) && of == worker
            };
            let values: Vec<f64> = all.iter().filter(is_it).filter_map(value).collect();
            assert!(!values.is_empty(), "{worker} has no {name}");
            let sane = values.iter().all(|value| value.is_finite() && *value >= 0.0);
            assert!(sane, "{worker} {name}: {values:?}");
        }
    }
    for of_each in [
        "synthex_broker_connected == 1",
        "synthex_queue_consumers == 2",
        r#"synthex_build_info{namespace="synthex"} == 1"#,
        r#"time() - process_start_time_seconds{job="synthex"} < 3600"#,
        r#"process_resident_memory_bytes{job="synthex"} < 1e9"#,
        // Less than one second a second for each thread.
        "rate(tokio_busy_seconds_total[1m]) <= tokio_workers",
    ] {
        has_series(prometheus, of_each, 2);
    }
    let lived =
        "synthex_tasks_poll_seconds_total + synthex_tasks_scheduled_seconds_total + synthex_tasks_idle_seconds_total";
    let too_long = format!("{lived} > on (instance, task) synthex_tasks_measured_total * 3600");
    let too_long = prometheus.query(&too_long);
    assert_eq!(
        too_long,
        Ok(Vec::new()),
        "a task cannot have lived for longer than the test"
    );
}

fn every_panel_shows_something(prometheus: &Prometheus) {
    let dashboards = dashboards();
    let queries: Vec<_> = dashboards
        .iter()
        .flat_map(|(_, dashboard)| targets(dashboard, prometheus))
        .collect();
    assert!(queries.len() > 100, "only {} queries", queries.len());
    // The broker tells the sizes of its queues every five seconds.
    let (begun, mut problems) = (Instant::now(), Vec::new());
    wait_until(
        PATIENCE * 2,
        "all panels show something, or too much time has passed",
        || {
            problems = queries.iter().filter_map(|query| query.problem(prometheus)).collect();
            problems.is_empty() || begun.elapsed() > PATIENCE
        },
    );
    assert!(problems.is_empty(), "{problems:#?}");
    for (name, dashboard) in &dashboards {
        for query in annotations(dashboard, prometheus) {
            let answer = prometheus.query(&query);
            assert!(answer.is_ok(), "{name}: {answer:?}: {query}");
        }
    }
}

/// Of what has happened, nobody is to be woken.
fn every_rule_works(prometheus: &Prometheus) {
    let count = rules("alerts.yml").len() + rules("recording.yml").len();
    let rules = prometheus.rules();
    assert_eq!(rules.len(), count);
    for rule in &rules {
        assert_eq!(
            (&rule["health"], &rule["lastError"]),
            (&json!("ok"), &Value::Null),
            "{rule}"
        );
        if rule["type"] == "recording" {
            let name = rule["name"].as_str().expect("it has a name");
            wait_until(PATIENCE, &format!("{name} records something"), || {
                prometheus.value(name).is_some()
            });
        }
    }
    // A rule sees what the one before it has recorded, and what was scraped, a little later.
    let wanted = BTreeSet::from(["SynthexDeadLetters", "SynthexSpawnersReplaced"].map(str::to_owned));
    wait_until(PATIENCE, &format!("these and no others are firing: {wanted:?}"), || {
        let rules = prometheus.rules();
        let firing = rules.iter().filter(|rule| rule["state"] == "firing");
        let firing = firing.filter_map(|rule| rule["name"].as_str());
        firing.map(str::to_owned).collect::<BTreeSet<_>>() == wanted
    });
}

/// They are those of our queues, and there is no series of private ones.
fn numbers_of_queues_are_right(prometheus: &Prometheus) {
    let kept = r#"sum(rabbitmq_detailed_queue_messages{queue="synthex.dead"})"#;
    wait_until(PATIENCE, "the dead letter is counted", || {
        prometheus.value(kept) == Some(1.0)
    });
    let consumers = r#"sum(rabbitmq_detailed_queue_consumers{queue="synthex.jobs.default"})"#;
    ask_until(|| prometheus.value(consumers), |found| *found == Some(2.0));
    let private = prometheus.query(r#"{__name__=~"rabbitmq_detailed_.+", queue=~"amq[.]gen.+"}"#);
    assert_eq!(private, Ok(Vec::new()), "they come and go for ever");
}
