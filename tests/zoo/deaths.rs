//! The worker, its spawners and its keepers are killed, or stopped, while jobs run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attribution::PACK;
use crate::cage::{Cage, PATIENCE, Recorded, gone_by};
use crate::helpers::{self, KEEPER, SPAWNER};
use crate::support::process::{Process, Signal, descendants, wait_until};
use crate::worker::{Via, Worker};

/// How long any process of a job may live after the worker, its spawner or its keeper was killed: 2 s, by a process that
/// has a processor when it needs one.
const PROMISED: Duration = Duration::from_secs(2 * 3);

/// A time in which a worker that hears nothing would come to wrong ends.
const SOME_SECONDS: Duration = Duration::from_secs(4);

/// Jobs that stay until they are let end, and what each has to have up before anything is done to it.
fn residents(cage: &Cage) -> Vec<(&'static str, usize, Value)> {
    let own = rustix::process::geteuid();
    let other = if own.is_root() { 65534 } else { own.as_raw() };
    let job = |words: &[&str]| {
        let program = cage.program(words[0]);
        let words: Vec<&str> = std::iter::once(&*program).chain(words[1..].iter().copied()).collect();
        json!({ "command": words })
    };
    vec![
        ("pack-1", PACK, job(&["pack"])),
        ("pack-2", PACK, job(&["pack"])),
        ("ignorer", 1, job(&["term_ignorer"])),
        ("daemon", 2, job(&["daemon", "stay"])),
        ("tree", 1 + 10 * 10, job(&["fork_tree", "10", "9", "stay"])),
        ("other-user", 2, job(&["uid_changer", &other.to_string()])),
        ("stopped", 3, json!({"command": [Cage::script("stop-all")]})),
    ]
}

/// A job at work, and its living processes.
struct Resident {
    id: &'static str,
    processes: Vec<Recorded>,
}

/// A worker with all residents at work, one of them on each of its slots but two.
fn full_house(via: Via, cage: &Cage) -> (Worker, Vec<Resident>) {
    let jobs = residents(cage);
    let worker = Worker::start(via, cage, jobs.len() + 2);
    for (id, _, job) in &jobs {
        worker.submit(id, job);
    }
    let up = |&(id, count, _): &(&'static str, usize, Value)| Resident {
        id,
        processes: cage.wait_for(id, count),
    };
    let residents = jobs.iter().map(up).collect();
    (worker, residents)
}

pub fn a_killed_worker_leaves_nothing(via: Via) {
    let cage = Cage::new();
    let (worker, _) = full_house(via, &cage);
    let helpers = helpers::all(worker.pid());
    worker.running.signal(Signal::KILL);
    cage.assert_empty_within(PROMISED);
    wait_until(PROMISED, "the helper processes are gone", || {
        !helpers.iter().any(Process::is_alive)
    });
    worker.kill();
}

/// A job can stop its keeper, as both are of one user: then nobody hears that the worker is gone.
pub fn a_killed_worker_leaves_nothing_though_its_keepers_are_stopped(via: Via) {
    let cage = Cage::new();
    let (worker, _) = full_house(via, &cage);
    let helpers = helpers::all(worker.pid());
    for keeper in helpers::named(worker.pid(), KEEPER) {
        keeper.signal(Signal::STOP);
    }
    worker.running.signal(Signal::KILL);
    cage.assert_empty_within(PROMISED);
    wait_until(PROMISED, "the helper processes are gone", || {
        !helpers.iter().any(Process::is_alive)
    });
    worker.kill();
}

/// One keeper after the other.
pub fn a_keeper_that_is_killed_takes_its_job_and_no_other(via: Via) {
    let cage = Cage::new();
    let (worker, mut residents) = full_house(via, &cage);
    for id in ["pack-1", "stopped", "other-user"] {
        let keeper = ancestor(&worker, KEEPER, resident(&residents, id));
        let struck = strike(&worker, &cage, &mut residents, &[keeper]);
        assert_eq!(struck, [id]);
    }
    leave(worker, &cage, residents);
}

pub fn a_spawner_that_is_killed_takes_its_jobs_and_is_replaced(via: Via) {
    let cage = Cage::new();
    let (worker, mut residents) = full_house(via, &cage);
    let spawners = helpers::named(worker.pid(), SPAWNER).len();
    let spawner = ancestor(&worker, SPAWNER, resident(&residents, "other-user"));
    let struck = strike(&worker, &cage, &mut residents, &[spawner]);
    assert!(struck.contains(&"other-user"), "{struck:?}");
    wait_until(PATIENCE, "a spawner takes its place", || {
        helpers::named(worker.pid(), SPAWNER).len() == spawners
    });
    leave(worker, &cage, residents);
}

pub fn all_spawners_killed_at_once_are_replaced(via: Via) {
    let cage = Cage::new();
    let (worker, mut residents) = full_house(via, &cage);
    let spawners = helpers::named(worker.pid(), SPAWNER);
    let struck = strike(&worker, &cage, &mut residents, &spawners);
    assert!(residents.is_empty(), "not of a spawner's: all but {struck:?}");
    for number in 0..8 {
        worker.goes_on(&format!("again-{number}"));
    }
    wait_until(PATIENCE, "spawners take their places", || {
        helpers::named(worker.pid(), SPAWNER).len() == spawners.len()
    });
    leave(worker, &cage, residents);
}

pub fn all_keepers_killed_at_once_are_replaced(via: Via) {
    let cage = Cage::new();
    let (worker, mut residents) = full_house(via, &cage);
    let keepers = helpers::named(worker.pid(), KEEPER);
    let struck = strike(&worker, &cage, &mut residents, &keepers);
    assert!(residents.is_empty(), "not of a keeper's: all but {struck:?}");
    leave(worker, &cage, residents);
}

/// The worst of it: neither of the two that would kill the strays can. One that changed its user does not even get the
/// signal that the kernel sends at its parent's death.
pub fn a_spawner_killed_with_its_keepers_leaves_nothing(via: Via) {
    let cage = Cage::new();
    let (worker, mut residents) = full_house(via, &cage);
    let spawner = ancestor(&worker, SPAWNER, resident(&residents, "other-user"));
    let mut victims = descendants(spawner.pid);
    let keepers = helpers::named(worker.pid(), KEEPER);
    victims.retain(|process| keepers.contains(process));
    victims.push(spawner);
    // None of them must have the time to see another die.
    for victim in &victims {
        victim.signal(Signal::STOP);
    }
    let struck = strike(&worker, &cage, &mut residents, &victims);
    assert!(struck.contains(&"other-user"), "{struck:?}");
    leave(worker, &cage, residents);
}

/// Kills helper processes, and checks that the jobs below them end as killed with all they started, that no other job
/// feels it, and that the worker goes on. Gives the jobs that were struck, and leaves the rest.
#[track_caller]
fn strike(worker: &Worker, cage: &Cage, residents: &mut Vec<Resident>, victims: &[Process]) -> Vec<&'static str> {
    assert!(!victims.is_empty(), "nobody to kill");
    let below: Vec<u32> = victims
        .iter()
        .flat_map(|victim| descendants(victim.pid))
        .map(|process| process.pid)
        .collect();
    let is_struck = |resident: &Resident| resident.processes.iter().any(|process| below.contains(&process.pid));
    let (struck, rest): (Vec<_>, Vec<_>) = residents.drain(..).partition(is_struck);
    for victim in victims {
        victim.signal(Signal::KILL);
    }
    let deadline = Instant::now() + PROMISED;
    for Resident { id, .. } in &struck {
        gone_by(deadline, &format!("of {id}"), || cage.living(id));
    }
    for Resident { id, .. } in &struck {
        let result = worker.result(id);
        assert_eq!(
            (&result["status"], &result["signal"], &result["error"]["kind"]),
            (&json!("signaled"), &json!("SIGKILL"), &json!("signaled")),
            "{result:#}"
        );
        let says = result["error"]["message"].as_str().unwrap();
        assert!(says.contains("helper process"), "{says}");
        let text = result["stdout"]["text"].as_str().unwrap();
        assert!(text.ends_with('\n'), "the output up to the end is kept: {result:#}");
    }
    for Resident { id, processes } in &rest {
        assert!(processes.iter().all(Recorded::is_alive), "{id} felt it: {processes:?}");
    }
    worker.goes_on(&format!("after-{}", victims[0].pid));
    *residents = rest;
    struck.iter().map(|resident| resident.id).collect()
}

/// Lets the rest end well, and stops the worker.
#[track_caller]
fn leave(worker: Worker, cage: &Cage, residents: Vec<Resident>) {
    for Resident { id, processes } in &residents {
        cage.open(id);
        if *id == "stopped" {
            wait_until(PATIENCE, "all that stopped go on", || {
                let left = processes.iter().filter(|process| process.is_alive());
                let left: Vec<Process> = left.filter_map(|process| Process::read(process.pid)).collect();
                left.iter().for_each(|process| process.signal(Signal::CONT));
                left.is_empty()
            });
        }
        let result = worker.result(id);
        assert_eq!(result["status"], "succeeded", "{result:#}");
    }
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}

fn resident<'a>(residents: &'a [Resident], id: &str) -> &'a Resident {
    let found = residents.iter().find(|resident| resident.id == id);
    found.expect("it was not struck before")
}

/// The helper process of a kind above a job.
#[track_caller]
fn ancestor(worker: &Worker, kind: &str, resident: &Resident) -> Process {
    let helpers = helpers::named(worker.pid(), kind);
    let is_above = |helper: &Process| {
        let below = descendants(helper.pid);
        resident
            .processes
            .iter()
            .any(|process| below.iter().any(|other| other.pid == process.pid))
    };
    let found = helpers.iter().find(|helper| is_above(helper));
    found
        .unwrap_or_else(|| panic!("no process called {kind} is above {}", resident.id))
        .clone()
}

/// Deadlines hold while the worker is stopped, and nothing dies that has none.
pub fn a_stopped_worker_is_late_for_nothing_and_kills_nothing(via: Via) {
    let cage = Cage::new();
    let worker = Worker::start(via, &cage, 4);
    worker.submit("pack", &json!({"command": [cage.program("pack")]}));
    let pack = cage.wait_for("pack", PACK);
    // It is at its timeout while the worker is stopped.
    worker.submit(
        "ignorer",
        &json!({"command": [cage.program("term_ignorer")], "timeout": "8s"}),
    );
    let ignorer = cage.wait_for("ignorer", 1);
    worker.running.signal(Signal::STOP);
    let stopped = Instant::now();
    wait_until(PATIENCE, "a timeout is kept by somebody else", || {
        !ignorer[0].is_alive()
    });
    std::thread::sleep(SOME_SECONDS.saturating_sub(stopped.elapsed()));
    assert!(pack.iter().all(Recorded::is_alive), "{pack:?}");
    worker.running.signal(Signal::CONT);

    let result = worker.result("ignorer");
    assert_eq!(
        (&result["status"], &result["ended_by"], &result["stdout"]["text"]),
        (&json!("timed_out"), &json!("kill"), &json!("ready\n")),
        "{result:#}"
    );
    let run = result["phases"]["run_ms"].as_f64().unwrap();
    assert!((8000.0..16_000.0).contains(&run), "{result:#}");
    worker.goes_on("next");
    assert!(pack.iter().all(Recorded::is_alive), "{pack:?}");
    cage.open("pack");
    let result = worker.result("pack");
    assert_eq!(
        (&result["status"], &result["stdout"]["text"]),
        (&json!("succeeded"), &json!("up\nended well\n")),
        "{result:#}"
    );
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}
