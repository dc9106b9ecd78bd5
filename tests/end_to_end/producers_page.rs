//! The programs that docs/producers.md gives to start from work as they stand there.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, assert_has};
use crate::readme::snippet;
use crate::support::cli::{Cli, Finished};

const PAGE: &str = "docs/producers.md";

/// Runs a program of the page beside a worker, and checks that it leaves nothing behind.
fn run(heading: &str, language: &str, prepare: impl FnOnce(&str) -> Cli) -> Finished {
    let (bench, ..) = Bench::on_own_vhost();
    let worker = bench.worker(&[]);
    let file = bench.path(&format!("producer.{language}"));
    fs::write(&file, snippet(PAGE, heading, language)).expect("the folder is there");
    let program = prepare(file.to_str().expect("a temporary path is text"));
    let done = program.env("SYNTHEX_AMQP_URL", &bench.url).run().expect_code(0);
    worker.stop();
    bench.is_drained("jobs.default");
    assert_eq!(bench.ready("dead"), 0);
    done
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[test]
fn the_program_with_pika_prints_the_result() {
    let done = run("## Python, with pika", "python", |file| Cli::pika(file, [""; 0]));
    assert_eq!(done.stdout, format!("succeeded {}\n", host()));
}

#[test]
fn the_program_with_aio_pika_tells_its_results_apart() {
    let done = run("## Python, with aio-pika", "python", |file| Cli::pika(file, [""; 0]));
    assert_eq!(done.stdout, "succeeded 0\nsucceeded 1\nsucceeded 2\n");
}

#[test]
fn the_program_with_amqplib_prints_the_result() {
    let done = run("## Node, with amqplib", "js", Cli::node);
    assert_eq!(done.stdout, format!("succeeded {}\n", host()));
    assert_eq!(done.stderr, "");
}

#[test]
fn the_program_with_amqp_tools_prints_the_result() {
    let done = run("## Shell, with amqp-tools", "sh", |file| {
        Cli::program("sh", ["-e", file])
    });
    let result: Value = serde_json::from_str(&done.stdout).expect("it prints the result alone");
    assert_has(
        &result,
        &json!({"job_id": "from-a-shell", "status": "succeeded", "final": true}),
    );
    assert_eq!(result["stdout"]["text"], format!("{}\n", host()));
}
