//! `synthex worker` when its configuration is wrong, and while its broker is not there yet.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::bench::Bench;
use crate::support::cli::{Cli, Finished, Running};
use crate::support::process::Signal;

/// Where no broker listens.
const NOBODY: &str = "amqp://user:hunter2@127.0.0.1:1/";

/// Starts a worker that has to refuse, and checks that it did at once, told nobody the password, and printed no data.
#[track_caller]
fn refused(args: &[&str]) -> Finished {
    let args = [&["worker", "--metrics-addr", "127.0.0.1:0"], args].concat();
    let finished = Cli::new(&args).run().expect_code(78);
    assert!(!finished.stderr.contains("hunter2"), "{args:?}: {}", finished.stderr);
    assert_eq!(finished.stdout, "");
    finished
}

#[track_caller]
fn assert_says(finished: &Finished, words: &[&str]) {
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in: {}", finished.stderr);
    }
}

#[test]
fn a_bad_pool_file_is_78() {
    assert_says(
        &refused(&["tests/fixtures/pools/five_mistakes.toml"]),
        &[
            "five_mistakes.toml: slots:",
            "five_mistakes.toml: time_out: unknown key",
        ],
    );
    assert_says(&refused(&["nowhere.toml"]), &["nowhere.toml: cannot be read"]);
}

#[test]
fn two_files_for_one_pool_are_78() {
    let bench = Bench::new();
    let (a, b) = (
        bench.file("a.toml", "pool = 'mail'\n"),
        bench.file("b.toml", "pool = 'mail'\n"),
    );
    assert_says(&refused(&[&a, &b]), &[&format!("{b}: pool:"), r#""mail""#, &a]);
}

#[test]
fn a_port_in_use_is_78_and_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for args in [&["worker", "--amqp-url", NOBODY][..], &["run"]] {
        let command: &[&str] = if args[0] == "run" { &["--", "true"] } else { &[] };
        let finished = Cli::new([args, &["--metrics-addr", &address], command].concat())
            .run()
            .expect_code(78);
        assert_says(&finished, &[&address, "--metrics-addr", "in use"]);
    }
}

#[test]
fn a_bad_address_of_the_broker_is_78_and_keeps_its_password() {
    let addresses = [
        "user:hunter2@host",                      // no scheme
        "http://user:hunter2@host/",              // another protocol
        "amqp://user:hunter2@host:99999/",        // no such port
        "amqp://user:hunter2@host:port/",         // no number
        "amqp://user:hunter2@/",                  // no host
        "amqp://user:hunter2@a,,b/",              // an empty one
        "amqp://user:hunter2/",                   // host forgotten
        "amqp://user:hunter2/with-slash@host/",   // `/` not encoded
        "amqp://user:hunter2?with-query@host/",   // `?` not encoded
        "amqp://user:x,hunter2/with-comma@host/", // both
        "",
    ];
    for address in addresses {
        let by_flag = refused(&["--amqp-url", address]);
        assert_says(&by_flag, &["--amqp-url", "amqp://"]);
        let by_environment = Cli::new(["worker", "--metrics-addr", "none"])
            .env("SYNTHEX_AMQP_URL", address)
            .run()
            .expect_code(78);
        assert_says(&by_environment, &["SYNTHEX_AMQP_URL"]);
        assert!(!by_environment.stderr.contains("hunter2"), "{}", by_environment.stderr);
        let bench = Bench::new();
        let file = bench.file("broker.url", address);
        assert_says(&refused(&["--amqp-url-file", &file]), &[&file]);
    }
}

#[test]
fn an_address_file_that_cannot_be_read_is_78_and_named() {
    let bench = Bench::new();
    let missing = bench.arg("broker.url");
    assert_says(&refused(&["--amqp-url-file", &missing]), &[&missing, "No such file"]);
    // A folder, and bytes that are no text.
    assert_says(&refused(&["--amqp-url-file", &bench.arg("")]), &[&bench.arg("")]);
    let binary = bench.file("binary.url", b"amqp://user:hunter2\xff@host/");
    assert_says(&refused(&["--amqp-url-file", &binary]), &[&binary]);
}

/// All before anybody is connected to: what is wrong is here.
#[test]
fn settings_of_tls_that_cannot_be_used_are_78_and_named() {
    const URL: &str = "amqps://user:hunter2@127.0.0.1:1/";
    let bench = Bench::new();
    let (junk, missing) = (bench.file("junk.pem", "junk"), bench.arg("missing.pem"));
    for (args, words) in [
        (&["--ca-file", &missing][..], ["--ca-file", &*missing, "No such file"]),
        (
            &["--ca-file", &junk],
            ["--ca-file", &junk, "no certificate in PEM form"],
        ),
        (
            &["--client-cert", &junk],
            ["--client-cert", &junk, "no certificate in PEM form"],
        ),
        (
            &["--password-file", &missing],
            ["--password-file", &missing, "No such file"],
        ),
        (
            &["--client-key", &junk],
            ["private key", "no certificate", "--client-cert"],
        ),
    ] {
        assert_says(&refused(&[&["--amqp-url", URL], args].concat()), &words);
    }
    let by_address = format!("{URL}?cacertfile={junk}");
    assert_says(&refused(&["--amqp-url", &by_address]), &["cacertfile=", &junk]);
    let unchecked = format!("{URL}?verify=verify_none");
    assert_says(
        &refused(&["--amqp-url", &unchecked]),
        &["--amqp-url", "verify_peer", "--ca-file"],
    );
    assert_says(
        &refused(&["--amqp-url", NOBODY, "--ca-file", &junk]),
        &["--ca-file is for TLS", "amqps://"],
    );
}

/// A worker whose broker is not there, and the port of its metrics.
fn waiting(args: &[&str]) -> (Running, u16) {
    let args = [&["worker", "--metrics-addr", "127.0.0.1:0"], args].concat();
    let worker = Cli::new(args).spawn();
    let line = worker.wait_for_line(|line| line.contains("metrics on http://127.0.0.1:"));
    let (_, rest) = line.split_once("http://127.0.0.1:").unwrap();
    let port = rest.split_once('/').unwrap().0.parse().unwrap();
    (worker, port)
}

/// Status and body of a page.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The mode of a file that may be looked up by its path alone.
fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_outbox_is_in_the_user_s_state_unless_it_is_named() {
    let bench = Bench::new();
    let (state, named) = (bench.arg("state"), bench.arg("named"));
    let usual = format!("{state}/synthex/outbox");
    for (args, outbox) in [(&[][..], &usual), (&["--outbox", &named], &named)] {
        let args = [&["worker", "--metrics-addr", "none", "--amqp-url", NOBODY], args].concat();
        let worker = Cli::new(args)
            .without_env("SYNTHEX_OUTBOX")
            .env("XDG_STATE_HOME", &state)
            .spawn();
        worker.wait_for_line(|line| line.contains("not consuming"));
        // One folder for namespace, hosts and virtual host, for this user alone.
        let folder = Path::new(outbox).join("synthex@127.0.0.1:1%2F");
        assert_eq!(mode(&folder), 0o700);
        let files = || std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(files().map(|file| mode(&file)).collect::<Vec<_>>(), [0o600]);
        worker.signal(Signal::TERM);
        worker.wait().expect_code(0);
        assert_eq!(files().count(), 0, "nothing is left behind");
    }
}

#[test]
fn an_outbox_that_cannot_be_used_is_78_if_it_was_named_and_a_warning_if_not() {
    let bench = Bench::new();
    let file = bench.file("file", "");
    assert_says(
        &refused(&["--outbox", &file, "--amqp-url", NOBODY]),
        &[&file, "--outbox", "Not a directory"],
    );
    assert_says(&refused_usage(&["--outbox-max-bytes", "many"]), &["a size such as"]);
    let worker = Cli::new(["worker", "--metrics-addr", "none", "--amqp-url", NOBODY])
        .without_env("SYNTHEX_OUTBOX")
        .env("XDG_STATE_HOME", &file)
        .spawn();
    let line = worker.wait_for_line(|line| line.contains("outbox"));
    for words in ["WARN", &file, "--outbox", "Not a directory"] {
        assert!(line.contains(words), "no {words:?} in {line}");
    }
    worker.wait_for_line(|line| line.contains("not consuming"));
    worker.signal(Signal::TERM);
    worker.wait().expect_code(0);
}

/// Starts a worker with arguments that nobody can understand.
#[track_caller]
fn refused_usage(args: &[&str]) -> Finished {
    Cli::new([&["worker"], args].concat()).run().expect_code(2)
}

#[test]
fn a_worker_waits_for_a_name_that_nobody_knows_yet() {
    let (worker, _) = waiting(&["--amqp-url", "amqp://no-such-host.invalid/"]);
    worker.wait_for_line(|line| {
        ["no-such-host.invalid:5672", "failed to lookup address", "again"]
            .iter()
            .all(|words| line.contains(words))
    });
    worker.signal(Signal::TERM);
    worker.wait().expect_code(0);
}

#[test]
fn a_worker_waits_for_its_broker_and_says_so() {
    let bench = Bench::new();
    let url = bench.file("broker.url", format!("{NOBODY}\n"));
    let (worker, port) = waiting(&["--amqp-url-file", &url]);
    worker.wait_for_line(|line| line.contains("127.0.0.1:1") && line.contains("refused") && line.contains("again"));
    assert_eq!(get(port, "/healthz").0, 200, "alive");
    let (ready, reason) = get(port, "/readyz");
    assert_eq!(ready, 503, "not ready");
    assert!(reason.contains("pool default"), "{reason}");
    let (status, metrics) = get(port, "/metrics");
    assert_eq!(status, 200);
    assert!(
        metrics.lines().any(|line| line == "synthex_broker_connected 0"),
        "{metrics}"
    );

    worker.signal(Signal::TERM);
    let finished = worker.wait().expect_code(0);
    assert_says(&finished, &["SIGTERM", "tasks left: none"]);
    assert!(!finished.stderr.contains("hunter2"), "{}", finished.stderr);
    assert!(finished.stdout.is_empty(), "a worker has no data: {}", finished.stdout);
    assert!(
        finished
            .stderr
            .lines()
            .last()
            .unwrap()
            .contains("stopped: 0 running jobs cut")
    );
    assert!(
        TcpStream::connect(("127.0.0.1", port)).is_err(),
        "the port is free again"
    );
}

#[test]
fn a_worker_that_waits_for_a_silent_broker_stops_at_once() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (worker, _) = waiting(&["--amqp-url", &format!("amqp://{}/", silent.local_addr().unwrap())]);
    let (connection, _) = silent.accept().unwrap();
    worker.signal(Signal::INT);
    let finished = worker.wait().expect_code(0);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    drop(connection);
}

#[test]
fn log_lines_can_be_json() {
    let args = ["--log-format", "json", "--amqp-url", NOBODY];
    let worker = Cli::new([&["worker", "--metrics-addr", "none"], &args[..]].concat()).spawn();
    let line = worker.wait_for_line(|line| line.contains("127.0.0.1:1"));
    let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(parsed["level"], "WARN", "{line}");
    assert_eq!(parsed["pool"], "default", "{line}");
    worker.signal(Signal::TERM);
    worker.wait().expect_code(0);
}
