//! Tens of thousands of jobs like those of the zoo through one worker, and what is left of them: nothing.
//!
//! `SYNTHEX_SOAK_JOBS` sets another number of jobs. What the worker is after the first part of them is what it has to be
//! after the last: descriptors, threads, helper processes, and memory up to [`MEMORY`].

use std::time::Duration;

use serde_json::{Value, json};

use crate::cage::{Cage, PATIENCE};
use crate::helpers;
use crate::support::process::{Process, descendants, entries, resident, wait_until};
use crate::worker::{Via, Worker};

/// Twenty thousand jobs together: most by `synthex run`, where a broker on the same processors does not hold them up.
const JOBS: usize = 6_000;
const JOBS_OF_RUN: usize = 14_000;

/// Those after which the worker is looked at for the first time.
const FIRST: usize = 2_000;

const SLOTS: usize = 16;

/// How much more resident memory the worker, or all its helpers together, may have at the end: an allocator's own comings
/// and goings. A hundred bytes a job would be 2 MiB.
const MEMORY: u64 = 4 << 20;

/// A job, how many of a round are like it, and the fields that tell how it has to end.
type Kind = (usize, Value, Value);

/// The jobs of a round: a hundred, in an order that mixes those of different kinds.
fn round(cage: &Cage) -> Vec<Kind> {
    let kinds = [plain(), leaving(cage), late(cage), killed(cage)].concat();
    let sorted: Vec<Kind> = kinds
        .into_iter()
        .flat_map(|kind| std::iter::repeat_n(kind.clone(), kind.0))
        .collect();
    assert_eq!(sorted.len(), 100, "it must have no common divisor with 37");
    (0..100).map(|number| sorted[number * 37 % 100].clone()).collect()
}

/// They take milliseconds and end by themselves, or do not even begin.
fn plain() -> Vec<Kind> {
    let write_and_run = "p=$ZOO_DIR/script-$$; printf '#!/bin/sh\\necho new' >$p; chmod +x $p; $p; rm $p";
    let missing = json!({"status": "not_started", "error.kind": "program_missing"});
    let failed = json!({"status": "failed", "exit_code": 3, "stdout.text": "so\n"});
    vec![
        (40, json!({"command": ["true"]}), saying("")),
        (20, script("echo so; exit 3"), failed),
        (5, script(write_and_run), saying("new\n")),
        (2, script("head --bytes=1M /dev/zero"), json!({"stdout.bytes": 1 << 20})),
        (5, json!({"command": ["/no/such/program"]}), missing),
        (
            2,
            json!({"command": [Cage::script("missing-interpreter")]}),
            json!({"error.kind": "not_executable"}),
        ),
    ]
}

/// They succeed and leave something, which has a tenth of a second to end.
fn leaving(cage: &Cage) -> Vec<Kind> {
    vec![
        (3, program(cage, "daemon leave"), saying("daemon up\n")),
        (2, program(cage, "daemon hold"), saying("daemon up\n")),
        (2, program(cage, "fork_chain 20 0 leave"), saying("begun\n")),
        (1, program(cage, "fork_tree 5 3 leave"), saying("all up\n")),
        (5, program(cage, "zombies 20 leave"), saying("all dead\n")),
    ]
}

/// They are ended at a timeout which is so short that some are not up by then.
fn late(cage: &Cage) -> Vec<Kind> {
    let limited = |mut job: Value| {
        (job["timeout"], job["kill_grace"]) = (json!("100ms"), json!("50ms"));
        job
    };
    let late = json!({"status": "timed_out"});
    vec![
        (2, limited(program(cage, "term_ignorer")), late.clone()),
        (1, limited(program(cage, "daemon stay")), late.clone()),
        (2, limited(script("kill -STOP $$; sleep 600")), late),
    ]
}

/// They kill themselves, some with all that is near.
fn killed(cage: &Cage) -> Vec<Kind> {
    let by = |signal: &str| json!({"status": "signaled", "signal": signal});
    vec![
        (5, program(cage, "crash segv"), by("SIGSEGV")),
        (2, script("sleep 600 & kill -KILL 0"), by("SIGKILL")),
        (1, script("kill -KILL $PPID; sleep 600"), by("SIGKILL")),
    ]
}

fn script(text: &str) -> Value {
    json!({ "script": text })
}

fn program(cage: &Cage, words: &str) -> Value {
    let (name, args) = words.split_once(' ').unwrap_or((words, ""));
    let path = cage.program(name);
    let words: Vec<&str> = std::iter::once(&*path).chain(args.split_whitespace()).collect();
    json!({ "command": words })
}

fn saying(text: &str) -> Value {
    json!({"status": "succeeded", "exit_code": 0, "stdout.text": text})
}

pub fn thousands_of_jobs_leave_the_worker_as_it_was(via: Via) {
    let usual = match via {
        Via::Run => JOBS_OF_RUN,
        Via::Worker => JOBS,
    };
    let wanted = std::env::var("SYNTHEX_SOAK_JOBS");
    let jobs = wanted.map_or(usual, |number| number.parse().expect("a number of jobs"));
    let cage = Cage::new();
    let round = round(&cage);
    let kind = |number: usize| &round[number % round.len()];
    let worker = Worker::start_with(via, &cage, SLOTS, "shell = [\"/bin/sh\", \"-c\"]");
    let run = |numbers: std::ops::Range<usize>| {
        worker.submit_all(
            numbers
                .clone()
                .map(|number| (number.to_string(), kind(number).1.clone())),
        );
        for number in numbers {
            let (result, wanted) = (worker.result(&number.to_string()), &kind(number).2);
            for (path, value) in wanted.as_object().unwrap() {
                let found = path.split('.').fold(&result, |value, part| &value[part]);
                assert_eq!(found, value, "{path} of job {number}, {}: {result:#}", kind(number).1);
            }
        }
    };
    run(0..FIRST.min(jobs));
    let before = Footprint::of_all_slots(&worker, &cage, "first");
    run(FIRST.min(jobs)..jobs);
    let mut after = Footprint::of_all_slots(&worker, &cage, "last");
    let within = |after: &Footprint| after.is_within(&before);
    // Threads and processes that have nothing to do are kept for a while.
    let deadline = std::time::Instant::now() + PATIENCE / 2;
    while !within(&after) && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        after = Footprint::settled(&worker, &cage);
    }
    assert!(
        within(&after),
        "after {FIRST} jobs: {before:#?}\nafter {jobs} jobs: {after:#?}"
    );
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}

/// What a worker and its helper processes hold while no job runs.
#[derive(Debug, Default)]
struct Footprint {
    descriptors: usize,
    threads: usize,
    resident: u64,
    helpers: usize,
    helpers_descriptors: usize,
    helpers_resident: u64,
}

impl Footprint {
    /// Looks once every slot was in use at the same time, as a worker has helpers for as many jobs as it ran at a time.
    #[track_caller]
    fn of_all_slots(worker: &Worker, cage: &Cage, name: &str) -> Self {
        let ids: Vec<String> = (0..SLOTS).map(|number| format!("{name}-{number}")).collect();
        let job = json!({"command": [cage.program("term_ignorer")]});
        worker.submit_all(ids.iter().map(|id| (id.clone(), job.clone())));
        for id in &ids {
            cage.wait_for(id, 1);
        }
        for id in &ids {
            cage.open(id);
        }
        for id in &ids {
            assert_eq!(worker.result(id)["status"], "succeeded");
        }
        Self::settled(worker, cage)
    }

    /// Waits until the helpers are all there is below the worker, and looks.
    #[track_caller]
    fn settled(worker: &Worker, cage: &Cage) -> Self {
        cage.assert_empty_within(PATIENCE);
        let mut below = Vec::new();
        wait_until(PATIENCE, "only helpers are left below the worker", || {
            below = descendants(worker.pid());
            below.len() == helpers::all(worker.pid()).len()
        });
        let pids = || below.iter().map(|helper: &Process| helper.pid);
        Self {
            descriptors: entries(worker.pid(), "fd"),
            threads: entries(worker.pid(), "task"),
            resident: resident(worker.pid()),
            helpers: below.len(),
            helpers_descriptors: pids().map(|pid| entries(pid, "fd")).sum(),
            helpers_resident: pids().map(resident).sum(),
        }
    }

    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors
            && self.threads <= before.threads
            && self.resident <= before.resident + MEMORY
            && self.helpers <= before.helpers
            && self.helpers_descriptors <= before.helpers_descriptors
            && self.helpers_resident <= before.helpers_resident + MEMORY
    }
}
