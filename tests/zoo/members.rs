//! The zoo: each member a job, and exactly what must come of it.
//!
//! What holds for every member is in `exhibits.rs`: its processes, its times, what it used.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::geteuid;
use serde_json::{Value, json};

use crate::cage::Cage;

/// Makes a member for a cage.
pub type Make = fn(&Cage) -> Member;

/// A job, and what must come of it.
pub struct Member {
    pub job: Value,
    /// Fields of the result, to the letter.
    pub expected: Value,
    /// What the error says, among other things.
    pub error: &'static str,
    /// So many processes of it have to have been there, or it did not do what it is here for.
    pub processes: usize,
    /// How long after the result its last process may be gone.
    pub gone_within: Duration,
    /// What else there is to see.
    pub also: fn(&Seen<'_>),
}

/// A member that has ended.
pub struct Seen<'a> {
    pub id: &'a str,
    pub result: &'a Value,
    pub cage: &'a Cage,
}

/// The deadline of those that have to be ended: long enough for all of them to be up by then, on a busy machine.
const TIMEOUT: &str = "5s";
/// Five seconds after the start of those that have 60 s.
const WARN_BEFORE: &str = "55s";
/// The longest time between the death of a keeper and that of its job's last process.
const AFTER_KEEPER: Duration = Duration::from_secs(2);
/// The longest argument the kernel takes has a byte less (`MAX_ARG_STRLEN`, execve(2)).
const LONG_ARGUMENT: usize = 128 * 1024;
/// What the flooder writes.
const FLOOD: u64 = 2 << 30;
/// What is kept of it.
const KEPT: u64 = 64;

pub fn term_ignorer(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("term_ignorer")], "timeout": TIMEOUT});
    Member::new(job, timed_out("SIGKILL", "kill", "ready\n"))
}

pub fn double_forker(_: &Cage) -> Member {
    Member::new(script("double-forker"), succeeded("left\n")).with_processes(2)
}

pub fn daemon(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("daemon"), "leave"]});
    Member::new(job, succeeded("daemon up\n")).with_processes(3)
}

pub fn daemon_of_a_command_that_times_out(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("daemon"), "stay"], "timeout": TIMEOUT});
    Member::new(job, timed_out("SIGTERM", "term_signal", "daemon up\n")).with_processes(3)
}

pub fn pipe_holder(_: &Cage) -> Member {
    Member::new(script("pipe-holder"), succeeded("done\n")).with_processes(2)
}

pub fn daemon_that_holds_the_pipe(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("daemon"), "hold"]});
    Member::new(job, succeeded("daemon up\n")).with_processes(3)
}

pub fn flooder(_: &Cage) -> Member {
    let mut job = script("flooder");
    job["output"] = json!({"max_bytes": format!("{KEPT}B")});
    // Half of what is kept is from the start, half from the end.
    let half = "y\n".repeat(13);
    let text = format!("head\n{half}y\n{half}tail\n");
    let stdout = json!({
        "text": text,
        "encoding": "utf-8",
        "bytes": FLOOD,
        "truncated_bytes": FLOOD - KEPT,
    });
    let expected = with(succeeded(""), json!({"stdout": stdout, "stderr": kept("done\n")}));
    Member::new(job, expected)
}

pub fn fork_chain(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("fork_chain"), "2000", "0", "leave"]});
    Member::new(job, succeeded("begun\n")).with_processes(2)
}

/// It takes a minute, so it is met on its way.
pub fn fork_chain_that_goes_on(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("fork_chain"), "2000", "30000", "leave"]});
    Member::new(job, succeeded("begun\n")).with_processes(2).and(|seen| {
        assert!(
            !seen.cage.has_word("last", seen.id),
            "it came to its end before it was killed"
        );
    })
}

/// It takes a minute, which is longer than it may.
pub fn fork_chain_of_a_command_that_times_out(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("fork_chain"), "2000", "30000", "stay"], "timeout": TIMEOUT});
    Member::new(job, timed_out("SIGKILL", "kill", "begun\n"))
        .with_processes(4) // in a crowd, a generation may take half a second
        .and(|seen| {
            assert!(
                !seen.cage.has_word("last", seen.id),
                "it came to its end before it was killed"
            );
        })
}

pub fn fork_tree(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("fork_tree"), "40", "49", "leave"]});
    Member::new(job, succeeded("all up\n")).with_processes(1 + 40 * 50)
}

pub fn fork_tree_of_a_command_that_times_out(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("fork_tree"), "10", "49", "stay"], "timeout": "8s"});
    Member::new(job, timed_out("SIGKILL", "kill", "all up\n")).with_processes(1 + 10 * 50)
}

/// What it makes in its grace has all of the grace, and its output is kept.
pub fn hydra(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("hydra")], "timeout": TIMEOUT, "kill_grace": "3s"});
    let expected = with(
        timed_out("SIGTERM", "term_signal", "one head\nanother\nanother\nanother\n"),
        json!({"exit_code": 0, "signal": null}),
    );
    Member::new(job, expected).with_processes(4)
}

pub fn stopped_self(_: &Cage) -> Member {
    let job = with(script("stop-itself"), json!({"timeout": TIMEOUT}));
    Member::new(job, timed_out("SIGTERM", "term_signal", "stopping\n"))
}

pub fn stopped_tree(_: &Cage) -> Member {
    let job = with(script("stop-all"), json!({"timeout": TIMEOUT}));
    Member::new(job, timed_out("SIGTERM", "term_signal", "stopping\n")).with_processes(3)
}

pub fn stopped_leftovers(_: &Cage) -> Member {
    Member::new(script("leave-stopped"), succeeded("left\n")).with_processes(3)
}

/// It goes on after its streams have ended, and its result waits for it.
pub fn mute(_: &Cage) -> Member {
    let expected = with(failed(7, "before\n"), json!({"stderr": kept("before\n")}));
    Member::new(script("mute"), expected).and(|seen| {
        assert!(seen.cage.has_word("worked", seen.id), "it was not let finish");
    })
}

pub fn missing_interpreter(_: &Cage) -> Member {
    let says = "its interpreter \"/no/such/interpreter\" does not exist";
    Member::new(script("missing-interpreter"), not_started("not_executable"))
        .with_processes(0)
        .saying(says)
}

pub fn written_and_run(_: &Cage) -> Member {
    let lines: String = (0..10).map(|number| format!("written {number}\n")).collect();
    Member::new(script("write-and-run"), succeeded(&lines))
}

pub fn argument_too_long(_: &Cage) -> Member {
    let job = json!({"command": ["true", "x".repeat(LONG_ARGUMENT)]});
    Member::new(job, not_started("spawn_failed"))
        .with_processes(0)
        .saying("the longest of them 131072 bytes, are more than the kernel takes")
}

/// The kernel takes at most 6 MiB, whatever the limits are (execve(2)).
pub fn arguments_too_many(_: &Cage) -> Member {
    let argument = "x".repeat(1023);
    let command: Vec<&str> = std::iter::once("true")
        .chain(std::iter::repeat_n(&*argument, 7 * 1024))
        .collect();
    Member::new(json!({"command": command}), not_started("spawn_failed"))
        .with_processes(0)
        .saying("are more than the kernel takes")
}

/// Half of it in arguments, half in variables.
pub fn arguments_of_a_mebibyte(_: &Cage) -> Member {
    const HALF: usize = 512;
    let text = "x".repeat(1023);
    let count = "echo $#; env | grep -c ^ZOO_LARGE_";
    let command: Vec<&str> = ["sh", "-c", count, "sh"]
        .into_iter()
        .chain(std::iter::repeat_n(&*text, HALF))
        .collect();
    let env: serde_json::Map<String, Value> = (0..HALF)
        .map(|number| (format!("ZOO_LARGE_{number}"), text.clone().into()))
        .collect();
    let expected = succeeded(&format!("{HALF}\n{HALF}\n"));
    Member::new(json!({"command": command, "env": env}), expected).with_processes(0)
}

pub fn zombie_maker(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("zombies"), "500", "leave"]});
    Member::new(job, succeeded("all dead\n")).with_processes(501)
}

pub fn zombie_maker_that_times_out(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("zombies"), "100", "stay"], "timeout": TIMEOUT});
    Member::new(job, timed_out("SIGTERM", "term_signal", "all dead\n")).with_processes(101)
}

pub fn crash(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("crash"), "segv"]});
    Member::new(job, signaled("SIGSEGV", "itself", "before\n"))
        .saying("SEGV")
        .and(leaves_no_core)
}

pub fn abort(cage: &Cage) -> Member {
    let job = json!({"command": [cage.program("crash"), "abort"]});
    Member::new(job, signaled("SIGABRT", "itself", "before\n"))
        .saying("ABRT")
        .and(leaves_no_core)
}

/// Its parent is a helper process that holds this job alone. The daemon that it made before has to be found by others.
pub fn parent_killer(cage: &Cage) -> Member {
    let job = json!({"command": [Cage::script("parent-killer"), cage.program("daemon")]});
    Member {
        gone_within: AFTER_KEEPER,
        ..Member::new(job, signaled("SIGKILL", "kill", "daemon up\n"))
            .with_processes(4)
            .saying("helper process")
    }
}

/// Its group is its own.
pub fn group_killer(_: &Cage) -> Member {
    Member::new(script("group-killer"), signaled("SIGKILL", "itself", "before\n"))
        .with_processes(2)
        .saying("which Synthex did not send")
}

pub fn warned(_: &Cage) -> Member {
    let job = with(script("warned"), json!({"timeout": "60s", "warn_before": WARN_BEFORE}));
    let expected = with(failed(5, "ready\nsaved\n"), json!({"ended_by": "warn_signal"}));
    Member::new(job, expected)
}

pub fn unwarned(_: &Cage) -> Member {
    let job = with(
        script("unwarned"),
        json!({"timeout": "60s", "warn_before": WARN_BEFORE, "warn_signal": "USR2"}),
    );
    Member::new(job, timed_out("SIGUSR2", "warn_signal", "ready\n"))
}

pub fn seeker_of_rights(_: &Cage) -> Member {
    let job = json!({"command": ["grep", "NoNewPrivs", "/proc/self/status"]});
    Member::new(job, succeeded("NoNewPrivs:\t1\n")).with_processes(0)
}

/// The fourth is the directory that it lists.
pub fn descriptor_lister(_: &Cage) -> Member {
    let job = json!({"command": ["ls", "-U", "/proc/self/fd"]});
    Member::new(job, succeeded("0\n1\n2\n3\n")).with_processes(0)
}

pub fn environment_lister(_: &Cage) -> Member {
    let job = json!({"command": ["env"], "env": {"ZOO_OWN": "1"}});
    let mut expected = succeeded("");
    expected.as_object_mut().unwrap().remove("stdout"); // it holds a time
    Member::new(job, expected).with_processes(0).and(|seen| {
        let lines = stdout(seen).lines();
        let names: BTreeSet<&str> = lines.map(|line| line.split_once('=').unwrap().0).collect();
        let ours = ["SYNTHEX_ATTEMPT", "SYNTHEX_DEADLINE", "SYNTHEX_JOB_ID", "SYNTHEX_POOL"];
        let wanted = ["LANG", "PATH", "ZOO_DIR", "ZOO_OWN"].into_iter().chain(ours);
        assert_eq!(names, wanted.collect());
    })
}

pub fn session_leader(_: &Cage) -> Member {
    let job = json!({"command": ["cat", "/proc/self/stat"]});
    let mut expected = succeeded("");
    expected.as_object_mut().unwrap().remove("stdout"); // it holds numbers
    Member::new(job, expected).with_processes(0).and(|seen| {
        let fields: Vec<&str> = stdout(seen).split(' ').collect();
        // After number, name, state and parent (proc_pid_stat(5)): group, session and terminal.
        assert_eq!(fields[1], "(cat)");
        assert_eq!(fields[4..7], [fields[0], fields[0], "0"], "group, session, terminal");
    })
}

/// None is blocked, and none is ignored that a program expects to be ended by.
pub fn signal_lister(_: &Cage) -> Member {
    let job = json!({"command": ["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"]});
    let none = "0".repeat(16);
    Member::new(job, succeeded(&format!("SigBlk:\t{none}\nSigIgn:\t{none}\n"))).with_processes(0)
}

/// Where it is not root it becomes who it was, which is as hard to kill as the others.
pub fn uid_changer(cage: &Cage) -> Member {
    const NOBODY: u32 = 65534;
    let uid = if geteuid().is_root() {
        NOBODY
    } else {
        geteuid().as_raw()
    };
    let job = json!({"command": [cage.program("uid_changer"), uid.to_string()], "timeout": TIMEOUT});
    Member::new(job, timed_out("SIGKILL", "kill", "up\n")).with_processes(3)
}

impl Member {
    fn new(job: Value, expected: Value) -> Self {
        Self {
            job,
            expected,
            error: "",
            processes: 1,
            gone_within: Duration::ZERO,
            also: |_| {},
        }
    }

    fn with_processes(self, processes: usize) -> Self {
        Self { processes, ..self }
    }

    fn saying(self, error: &'static str) -> Self {
        Self { error, ..self }
    }

    fn and(self, also: fn(&Seen<'_>)) -> Self {
        Self { also, ..self }
    }
}

fn script(name: &str) -> Value {
    json!({"command": [Cage::script(name)]})
}

fn kept(text: &str) -> Value {
    json!({"text": text, "encoding": "utf-8", "bytes": text.len(), "truncated_bytes": 0})
}

fn succeeded(stdout: &str) -> Value {
    json!({
        "attempt": 1,
        "status": "succeeded",
        "final": true,
        "exit_code": 0,
        "signal": null,
        "ended_by": "itself",
        "stdout": kept(stdout),
        "stderr": kept(""),
        "error": null,
        "limits_applied": null,
    })
}

fn failed(code: i32, stdout: &str) -> Value {
    with(succeeded(stdout), json!({"status": "failed", "exit_code": code}))
}

fn signaled(signal: &str, ended_by: &str, stdout: &str) -> Value {
    let ending = json!({"status": "signaled", "exit_code": null, "signal": signal, "ended_by": ended_by});
    with_error(with(succeeded(stdout), ending), "signaled")
}

fn timed_out(signal: &str, ended_by: &str, stdout: &str) -> Value {
    let ending = json!({"status": "timed_out", "exit_code": null, "signal": signal, "ended_by": ended_by});
    with_error(with(succeeded(stdout), ending), "timed_out")
}

fn not_started(kind: &str) -> Value {
    let ending = json!({"status": "not_started", "exit_code": null, "ended_by": null, "started_at": null});
    with_error(with(succeeded(""), ending), kind)
}

/// The message is for people; what it must say is in [`Member::error`].
fn with_error(mut expected: Value, kind: &str) -> Value {
    expected.as_object_mut().unwrap().remove("error");
    expected["error.kind"] = kind.into();
    expected
}

fn with(mut one: Value, other: Value) -> Value {
    let Value::Object(fields) = other else {
        panic!("not an object: {other}")
    };
    one.as_object_mut().unwrap().extend(fields);
    one
}

fn stdout<'a>(seen: &Seen<'a>) -> &'a str {
    seen.result["stdout"]["text"].as_str().unwrap()
}

fn leaves_no_core(seen: &Seen<'_>) {
    let entries = std::fs::read_dir(seen.cage.inside()).unwrap();
    let cores: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("core"))
        .collect();
    assert_eq!(cores, [""; 0]);
}
