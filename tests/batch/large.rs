//! An input of a million lines.

use std::time::Duration;

use crate::support::cli::Cli;
use crate::support::process::{resident, wait_until};

const LINES: u32 = 1_000_000;
const PATIENCE: Duration = Duration::from_secs(240);

/// Through pipes on both sides: what is resident does not depend on how many lines there are, and none is lost.
#[test]
fn a_million_lines_are_taken_as_they_come() {
    let lines: String = (1..=LINES).map(|number| format!("{number}\n")).collect();
    let reader = Cli::new(["run", "--dry-run", "--each", "-", "--", "echo", "{}"])
        .stdin(lines)
        .limit(PATIENCE)
        .spawn();
    let mut most = 0;
    wait_until(PATIENCE, "all lines are read", || {
        most = most.max(resident(reader.pid()));
        !reader.is_running()
    });
    let printed = reader.wait().expect_code(0).stdout;
    let jobs = (1..=LINES).map(|number| format!("{{\"command\":[\"echo\",\"{number}\"]}}"));
    assert!(printed.lines().eq(jobs), "each line is a job, in order");
    assert!(most < 64 * 1024 * 1024, "{most} bytes");
}
