//! Programs that were written a moment ago. The kernel starts none that is open for writing (ETXTBSY, execve(2)), and a
//! fork of the writer has it open until its own exec.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cage::{Cage, PATIENCE};
use crate::support::process::wait_until;
use crate::worker::{Via, Worker};

/// How often it is tried to start a program that another job holds open.
const TRIES: usize = 10;

/// How long it is waited for at least.
const WAITED: Duration = Duration::from_millis(500);

/// Jobs write scripts and run them, while the worker starts others as fast as it can.
pub fn scripts_written_and_run_by_many_jobs_at_once(via: Via) {
    const JOBS: usize = 200;
    let cage = Cage::new();
    let worker = Worker::start(via, &cage, 16);
    let job = json!({"command": [Cage::script("write-and-run")]});
    let ids: Vec<String> = (0..JOBS).map(|number| format!("job-{number}")).collect();
    let jobs: Vec<(String, Value)> = ids.iter().map(|id| (id.clone(), job.clone())).collect();
    worker.submit_all(jobs);
    let all: String = (0..10).map(|number| format!("written {number}\n")).collect();
    for id in &ids {
        let result = worker.result(id);
        assert_eq!(
            (&result["status"], &result["stdout"]["text"], &result["stderr"]["text"]),
            (&json!("succeeded"), &json!(all), &json!("")),
            "{result:#}"
        );
    }
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}

/// One job has a program open for writing, another one is that program. It starts when the first has closed it.
pub fn a_program_still_open_for_writing_is_waited_for(via: Via) {
    let cage = Cage::new();
    let worker = Worker::start(via, &cage, 2);
    worker.goes_on("before"); // from here on, a start takes no longer than it has to
    let program = cage.program("who");
    // A writer for whom no processor is free may be late for half a second, and nobody waits any longer.
    let is_waited_for = (0..TRIES).any(|number| {
        let (writer, reader) = (format!("writer-{number}"), format!("program-{number}"));
        worker.submit(&writer, &json!({"command": [Cage::script("hold-open"), program]}));
        wait_until(PATIENCE, "the program is held open", || cage.has_word("held", &writer));
        let asked = Instant::now();
        worker.submit(&reader, &json!({"command": [program]}));
        cage.open(&writer);
        let ((read, came), written) = (worker.result_at(&reader), worker.result(&writer));
        assert_eq!(written["status"], "succeeded", "{written:#}");
        let has_started = read["status"] == "succeeded";
        if !has_started {
            let said = read["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains("still open for writing"), "{read:#}");
            assert!(came - asked >= WAITED, "it was given up at once: {read:#}");
        }
        has_started
    });
    assert!(is_waited_for, "it never was, in {TRIES} tries");
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}
