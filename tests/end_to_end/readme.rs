//! What the README tells a producer to type works as it stands there.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::{Bench, assert_has};
use crate::support::cli::Cli;

/// The first code block below a heading of a page.
pub fn snippet(page: &str, heading: &str, language: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let page = fs::read_to_string(page).expect("the page is there");
    let section = page
        .split_once(&format!("\n{heading}\n"))
        .expect("the page has this heading")
        .1;
    let block = section
        .split_once(&format!("\n```{language}\n"))
        .expect("the section has such a block")
        .1;
    block.split_once("\n```").expect("a block ends").0.to_owned()
}

#[test]
fn the_producer_in_python_prints_the_result() {
    let (bench, ..) = Bench::on_own_vhost();
    let worker = bench.worker(&[]);
    let script = bench.path("producer.py");
    fs::write(&script, snippet("README.md", "### From Python", "python")).expect("the folder is there");
    let script = script.to_str().expect("a temporary path is text");
    // An absolute path is taken as it is, and not looked for among our own scripts.
    let done = Cli::pika(script, [""; 0])
        .env("SYNTHEX_AMQP_URL", &bench.url)
        .run()
        .expect_code(0);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(done.stdout, format!("succeeded hello from {host}\n"));
    worker.stop();
    bench.is_drained("jobs.default");
}

#[test]
fn the_producer_in_shell_prints_the_result() {
    let (bench, ..) = Bench::on_own_vhost();
    let worker = bench.worker(&[]);
    let script = snippet("README.md", "### From the shell", "sh");
    let done = Cli::program("sh", ["-e", "-c", &script])
        .env("SYNTHEX_AMQP_URL", &bench.url)
        .run()
        .expect_code(0);
    // The first tool prints the name of the queue that it makes.
    let answer = &done.stdout[done.stdout.find('{').expect("a result is JSON")..];
    let result: Value = serde_json::from_str(answer).expect("a result is JSON");
    assert_has(
        &result,
        &json!({"job_id": "from-the-shell", "status": "succeeded", "final": true}),
    );
    let text = result["stdout"]["text"].as_str().expect("it is a text");
    assert!(text.contains("UTC"), "{text}");
    worker.stop();
    bench.is_drained("jobs.default");
}
