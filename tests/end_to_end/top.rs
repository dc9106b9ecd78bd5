//! `synthex top` on a terminal, with a real broker and a real worker: what is seen, what keys do, and what is left.

use serde_json::json;

use crate::bench::{Bench, Gate, PATIENCE, assert_has, block_on};
use crate::support::broker::Broker;
use crate::support::process::{Signal, wait_until};
use crate::support::proxy::Proxy;
use crate::support::pty::Terminal;

/// The key that selects the first row.
const HOME: &str = "\x1b[H";

/// The usual size of a terminal.
const SIZE: (u16, u16) = (80, 24);

/// Starts `top` on a terminal.
fn top(bench: &Bench, args: &[&str], env: &[(&str, &str)]) -> Terminal {
    let args = [&["top"], args].concat();
    let ours = [
        ("SYNTHEX_AMQP_URL", bench.url.as_str()),
        ("SYNTHEX_NAMESPACE", bench.namespace.as_str()),
    ];
    Terminal::start(&args, &[&ours, env].concat(), SIZE)
}

/// The line that begins with this, each run of spaces as one.
fn line(screen: &str, begins: &str) -> String {
    let found = screen.lines().find(|line| line.starts_with(begins)).unwrap_or_default();
    found.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn pools_workers_and_jobs_are_seen_and_operated() {
    let bench = Bench::new();
    let worker = bench.worker(&["--slots", "2"]);
    bench.listen();
    let id = format!("seen-{}", bench.namespace);
    let gate = Gate::new(&bench, &id);
    bench.send("default", "failed", &json!({"script": "exit 1"}));
    bench.reply();
    bench.send("default", &id, &gate.job());
    gate.started();

    let mut top = top(&bench, &["--interval", "100ms"], &[]);
    let screen = top.wait_for("running job", |screen| {
        line(screen, &id[..20]).contains("running")
            && line(screen, "default").contains("1/2")
            && line(screen, "default").contains("0.0/s")
    });
    assert!(
        line(&screen, "synthex top").contains(&format!("{} on 127.0.0.1:", bench.namespace)),
        "{screen}"
    );
    let summary = line(&screen, "1 workers");
    assert_eq!(
        summary,
        "1 workers 1/2 slots busy 0 ready 1 unacked 0.0 jobs/s 1 failed"
    );
    assert_eq!(line(&screen, "POOL"), "POOL STATE READY UNACKED RUNNING FAILED RATE");
    assert!(
        line(&screen, "default").starts_with("default consuming 0 1 1/2 1 "),
        "{screen}"
    );
    let job = line(&screen, &id[..20]);
    assert!(job.contains("default bash running") && job.contains("█"), "{job}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80));

    // Nothing without a yes. A look that is answered too late shows nobody, and then nothing is selected any more: so all
    // keys begin at the first row, and are pressed again.
    top.press_until(&format!("{HOME}p"), "question", |screen| {
        screen.contains("pause pool default: no worker starts jobs of it?")
    });
    top.press("n");
    top.wait_for("answer", |screen| screen.contains("nothing was done"));
    top.press_until(&format!("{HOME}py"), "pause", |screen| {
        line(screen, "default").starts_with("default paused")
    });
    top.press_until(&format!("{HOME}py"), "end of the pause", |screen| {
        line(screen, "default").starts_with("default consuming")
    });

    top.press_until(&format!("{HOME}\t\tcy"), "end of the job", |screen| {
        line(screen, &id[..20]).is_empty() && !line(screen, "default").is_empty()
    });
    let reply = bench.reply().json();
    assert_has(&reply, &json!({"job_id": id, "status": "cancelled"}));

    top.press_until(&format!("{HOME}\tdy"), "end of the worker", |_| {
        !worker.running.is_running()
    });
    worker.running.wait().expect_code(0);
    top.wait_for("end of the worker", |screen| screen.contains("0 workers"));
    top.press("?");
    top.wait_for("help", |screen| screen.contains("drain the selected worker"));
    top.press("xq");
    assert_eq!(top.wait(), Some(0));
    wait_until(PATIENCE, "the terminal is restored", || top.is_restored());
    assert!(top.written().contains("38;5;2"), "green is what is well");
}

#[test]
fn a_lost_broker_is_told_and_found_again_without_a_colour() {
    let mut bench = Bench::new();
    let worker = bench.worker(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime");
    let broker = block_on(Broker::shared());
    let proxy = runtime.block_on(Proxy::start(broker.port()));
    bench.url = bench
        .url
        .replace(&format!(":{}/", broker.port()), &format!(":{}/", proxy.port()));
    let mut top = top(
        &bench,
        &["default", "--interval", "100ms", "--connect-timeout", "5s"],
        &[("NO_COLOR", "1")],
    );
    top.wait_for("worker", |screen| screen.contains("1 workers"));
    proxy.silence();
    let lost = top.wait_for("word of the loss", |screen| screen.contains("BROKER LOST"));
    assert!(!line(&lost, "default").is_empty(), "what was known stays:\n{lost}");
    proxy.cut_silent();
    top.wait_for("broker again", |screen| {
        screen.contains("1 workers") && !screen.contains("LOST")
    });
    drop(proxy); // and nobody listens there any more
    top.wait_for("reason", |screen| line(screen, "BROKER LOST").contains("failed to"));
    for colour in ["\x1b[3", "\x1b[9", "\x1b[38"] {
        let written = top.written();
        let coloured = written.split(colour).skip(1).filter(|rest| {
            let code: String = rest.chars().take_while(|c| *c != 'm').collect();
            rest.len() > code.len() && code.chars().all(|c| c.is_ascii_digit() || c == ';') && code != "9"
        });
        assert_eq!(coloured.count(), 0, "{colour:?} is a colour");
    }
    top.signal(Signal::TERM);
    assert_eq!(top.wait(), Some(0));
    wait_until(PATIENCE, "the terminal is restored", || top.is_restored());
    worker.stop();
}

#[test]
fn without_a_terminal_there_is_a_way() {
    let bench = Bench::new();
    let refused = bench.synthex(&["top"]).run().expect_code(2);
    assert!(refused.stderr.contains("--once"), "{}", refused.stderr);
}
