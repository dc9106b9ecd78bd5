//! Resident memory of a worker that has much to do.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::processes::{Memory, helpers, memory, peak_rss, running};
use crate::service::Service;
use crate::statistics::number;

/// Jobs at once.
const JOBS: usize = 1_000;

/// What one job writes.
const GIBIBYTES: usize = 10;

/// How often it is looked whether all jobs run.
const LOOK: Duration = Duration::from_millis(100);

/// How long they may take to.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn table(binaries: &[(&'static str, PathBuf)]) {
    for (name, binary) in binaries {
        println!("\n{name}: resident memory");
        many_jobs(binary);
        much_output(binary);
    }
}

fn many_jobs(binary: &Path) {
    let mut service = Service::start(binary, JOBS);
    let (mut seen, start) = (0, Instant::now());
    service.submit(&json!({"command": ["sleep", "60"]}), JOBS);
    while seen < JOBS && start.elapsed() < PATIENCE {
        sleep(LOOK);
        seen = running(service.pid(), "sleep");
    }
    let (own, helpers) = (own_memory(&service), helpers(service.pid()));
    let readable: Vec<f64> = helpers.iter().filter_map(|helper| Some(memory(*helper)?.pss)).collect();
    let pss = readable.iter().fold(0.0, |sum, pss| sum + pss);
    println!(
        "{seen} jobs at once after {:.1} s: service RSS {}, PSS {}; {} helpers PSS {}; all PSS {}",
        start.elapsed().as_secs_f64(),
        mib(own.rss),
        mib(own.pss),
        helpers.len(),
        mib(pss),
        mib(own.pss + pss),
    );
    if readable.len() < helpers.len() {
        println!(
            "  without {} helpers: only root may read theirs",
            helpers.len() - readable.len()
        );
    }
}

fn own_memory(service: &Service) -> Memory {
    memory(service.pid()).expect("it is a child of ours, and lives")
}

fn much_output(binary: &Path) {
    let mut service = Service::start(binary, 2);
    service.submit(&json!({"command": ["true"]}), 2);
    service.succeed(2);
    let (before, start) = (own_memory(&service).rss, Instant::now());
    let bytes = format!("{GIBIBYTES}G");
    service.submit(&json!({"command": ["head", "-c", bytes, "/dev/zero"]}), 1);
    service.succeed(1);
    let time = start.elapsed();
    println!(
        "a job that writes {GIBIBYTES} GiB: service RSS {} before, {} at most, rise {}; {:.2} GiB/s",
        mib(before),
        mib(peak_rss(service.pid())),
        mib(peak_rss(service.pid()) - before),
        number(GIBIBYTES) / time.as_secs_f64(),
    );
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / 1024.0 / 1024.0)
}
