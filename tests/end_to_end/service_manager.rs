//! What systemd hears of a worker that it started: `sd_notify(3)`, on a socket of the test's own.

use std::fs;
use std::os::unix::net::UnixDatagram;

use serde_json::json;

use crate::bench::{Bench, Gate, PATIENCE};
use crate::support::cli::Running;
use crate::support::process::Signal;

/// The other end.
struct Systemd(UnixDatagram);

impl Systemd {
    fn listen(bench: &Bench) -> Self {
        let socket = UnixDatagram::bind(bench.path("notify")).expect("the folder is there");
        socket.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("the worker tells something");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    /// What comes up to the first message that has a line which begins so; that one is the last.
    fn until(&self, line: &str) -> Vec<String> {
        let mut heard = vec![self.next()];
        while !heard[heard.len() - 1].lines().any(|told| told.starts_with(line)) {
            heard.push(self.next());
        }
        heard
    }
}

/// A worker whose broker's address is in a file.
fn start(bench: &Bench, watchdog: &str) -> Running {
    let pool = bench.pool("pool = \"default\"\nslots = 1\nstop_grace = \"7m\"\n");
    let url = bench.path("url");
    let args = [
        "worker",
        "--metrics-addr",
        "none",
        "--amqp-url-file",
        url.to_str().expect("a temporary path is text"),
        &pool,
    ];
    let worker = bench.synthex(&args).without_env("SYNTHEX_AMQP_URL");
    worker
        .env("NOTIFY_SOCKET", bench.path("notify"))
        .env("WATCHDOG_USEC", watchdog)
        .spawn()
}

#[test]
fn systemd_hears_when_a_worker_takes_jobs_lives_and_stops() {
    let bench = Bench::new();
    let systemd = Systemd::listen(&bench);
    fs::write(bench.path("url"), "amqp://guest:guest@127.0.0.1:1/%2f").unwrap();
    // A beat every 3 s: until the kernel has no room for more, half a minute passes in which nobody listens.
    let worker = start(&bench, "6000000");

    // Without a broker it lives, and is not ready.
    let mut heard = systemd.until("STATUS=pool default: lost its consumer");
    heard.extend(systemd.until("WATCHDOG=1"));
    assert!(!heard.concat().contains("READY=1"), "{heard:?}");

    fs::write(bench.path("url.new"), &bench.url).unwrap();
    fs::rename(bench.path("url.new"), bench.path("url")).unwrap(); // which is never seen empty
    let ready = systemd.until("READY=1").pop();
    assert_eq!(ready.as_deref(), Some("READY=1\nSTATUS=takes jobs"));
    bench.listen();
    let gate = Gate::new(&bench, &format!("service-{}", bench.namespace));
    bench.send("default", "running", &gate.job());
    gate.started();

    worker.signal(Signal::TERM);
    let stopping = systemd.until("STOPPING=1").pop().unwrap_or_default();
    // It asks for the pool's stop_grace and half a minute.
    assert!(
        stopping.lines().any(|line| line == "EXTEND_TIMEOUT_USEC=450000000"),
        "{stopping}"
    );
    systemd.until("WATCHDOG=1"); // it lives on as long as its job runs
    assert!(worker.is_running());
    gate.open();
    let ended = worker.wait().expect_code(0);
    assert!(!ended.stderr.contains("service manager"), "{}", ended.stderr);
    assert_eq!(bench.reply().json()["status"], json!("succeeded"));
}
