//! What a pool's file allows, and as whom commands run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use crate::cage::{Cage, PATIENCE};
use crate::helpers;
use crate::support::process::{Process, Signal, wait_until};
use crate::worker::{Via, Worker};

/// `leftovers = "allow"` is for what a command leaves when it ends by itself. It outlives even the worker.
pub fn leftovers_that_are_allowed_live_on(via: Via) {
    let cage = Cage::new();
    let worker = Worker::start_with(via, &cage, 2, "leftovers = \"allow\"");
    let daemon = cage.program("daemon");
    worker.submit("service", &json!({"command": [daemon, "leave"]}));
    let result = worker.result("service");
    assert_eq!(
        (&result["status"], &result["ended_by"], &result["stdout"]["text"]),
        (&json!("succeeded"), &json!("itself"), &json!("daemon up\n")),
        "{result:#}"
    );
    let service = cage.living("service");
    assert_eq!(
        service.len(),
        1,
        "of three processes only the daemon is left: {service:?}"
    );

    worker.submit("late", &json!({"command": [daemon, "stay"], "timeout": "5s"}));
    let result = worker.result("late");
    assert_eq!(result["status"], "timed_out", "{result:#}");
    assert_eq!(cage.living("late"), [], "at a timeout nothing is allowed to stay");

    let helpers = helpers::all(worker.pid());
    for number in 0..4 {
        worker.goes_on(&format!("next-{number}"));
    }
    worker.stop();
    assert_eq!(cage.living("service"), service, "the worker is gone, and it is not");
    for process in service {
        Process::read(process.pid).expect("it lives").signal(Signal::KILL);
    }
    wait_until(PATIENCE, "nothing is left of the service and of its helper", || {
        cage.alive().is_empty() && !helpers.iter().any(Process::is_alive)
    });
}

/// Only root can make such a program, and have a command run as another user.
pub fn a_setuid_program_gives_no_rights(via: Via) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (lines, rights) in [("", 65534), ("no_new_privs = false", 0)] {
        let cage = Cage::new();
        let who = cage.program("who");
        fs::set_permissions(&who, fs::Permissions::from_mode(0o4755)).unwrap();
        let lines = format!("user = \"nobody\"\n{lines}");
        let worker = Worker::start_with(via, &cage, 2, &lines);
        worker.submit("who", &json!({"command": [who]}));
        let result = worker.result("who");
        let says = format!("started by 65534, runs as {rights}\n");
        assert_eq!(result["stdout"]["text"], says, "with {lines:?}: {result:#}");
        worker.stop();
        cage.assert_empty_within(Duration::ZERO);
    }
}
