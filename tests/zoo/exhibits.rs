//! Each member of the zoo alone, and all of them at once.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::MEMBERS;
use crate::cage::Cage;
use crate::members::{Make, Member, Seen};
use crate::worker::{Via, Worker};

/// Commands at a time when all are shown at once: as many as two processors start well within their timeouts.
const SLOTS: usize = 8;

/// How long after deadline and grace, or after its own end, something of a job may live, in milliseconds: a second, where
/// there is a processor for it.
const PROMISED: f64 = 3.0 * 1000.0;

/// The same while thousands of processes are started and killed beside it, on however few processors.
const PROMISED_IN_A_CROWD: f64 = 8.0 * 1000.0;

/// How many times as long a member has in a crowd to be up, and to end.
const IN_A_CROWD: u32 = 4;

/// The pool's grace, in milliseconds.
const GRACE: f64 = 1000.0;

/// The most that a command of the zoo has resident; a worker has more.
const LARGE: u64 = 16 << 20;

/// How long any of them may take on a busy machine. What some leave would stay for much longer.
const SOON: Duration = Duration::from_secs(50);

/// Shows one member to a worker that has nothing else to do.
pub fn alone(via: Via, make: Make) {
    let cage = Cage::new();
    let member = make(&cage);
    let worker = Worker::start(via, &cage, 2);
    worker.submit("member", &member.job);
    let (asked, (result, came)) = (Instant::now(), worker.result_at("member"));
    assert!(came - asked < SOON, "its result took {:?}", came - asked);
    check(&member, "member", &result, &cage, PROMISED);
    cage.assert_empty_within(member.gone_within);
    worker.goes_on("next");
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}

/// None of them changes what becomes of another.
pub fn the_whole_zoo_at_once(via: Via) {
    let cage = Cage::new();
    let members: Vec<(String, Member)> = MEMBERS
        .iter()
        .enumerate()
        .map(|(number, make)| (format!("member-{number}"), in_a_crowd(make(&cage))))
        .collect();
    let worker = Worker::start(via, &cage, SLOTS);
    worker.submit_all(members.iter().map(|(id, member)| (id.clone(), member.job.clone())));
    for (id, member) in &members {
        check(member, id, &worker.result(id), &cage, PROMISED_IN_A_CROWD);
    }
    worker.goes_on("next");
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}

/// Gives a member more time to be up and to end: among two thousand processes that are ready to run, one that has begun
/// may wait seconds for its next turn on a processor.
fn in_a_crowd(mut member: Member) -> Member {
    let times = f64::from(IN_A_CROWD);
    if let Some(timeout) = seconds(&member.job["timeout"]) {
        let grace = seconds(&member.job["kill_grace"]).unwrap_or(GRACE / 1000.0);
        member.job["kill_grace"] = json!(format!("{}s", times * grace));
        match seconds(&member.job["warn_before"]) {
            Some(before) => member.job["warn_before"] = json!(format!("{}s", timeout - times * (timeout - before))),
            None => member.job["timeout"] = json!(format!("{}s", times * timeout)),
        }
    }
    member.gone_within *= IN_A_CROWD;
    member
}

/// Holds a result against what must come of the member. Call it when the result has just come.
#[track_caller]
fn check(member: &Member, id: &str, result: &Value, cage: &Cage, promised: f64) {
    let recorded = cage.recorded(id);
    let deadline = Instant::now() + member.gone_within;
    loop {
        let left: Vec<_> = recorded.iter().filter(|process| process.exists()).collect();
        if left.is_empty() {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "its result is there, and so are {left:?}: {result:#}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    has(result, &member.expected);
    assert!(
        recorded.len() >= member.processes,
        "it was to have {} processes, and had {}: {result:#}",
        member.processes,
        recorded.len()
    );
    let said = result["error"]["message"].as_str().unwrap_or_default();
    assert!(said.contains(member.error), "{said:?} does not say {:?}", member.error);
    check_phases(member, result, promised);
    check_usage(member, result);
    (member.also)(&Seen { id, result, cage });
}

/// The fields of `wanted` as `found` has them. A name with a dot is a field of a field; others may be anything.
#[track_caller]
fn has(found: &Value, wanted: &Value) {
    let wanted = wanted.as_object().unwrap();
    let field = |name: &str| name.split('.').fold(found, |value, part| &value[part]).clone();
    let same: Map<String, Value> = wanted.keys().map(|name| (name.clone(), field(name))).collect();
    assert_eq!(Value::Object(same), Value::Object(wanted.clone()), "in {found:#}");
}

fn is_started(result: &Value) -> bool {
    result["status"] != "not_started"
}

/// A helper process that was killed can tell nothing.
fn has_lost_its_helper(member: &Member) -> bool {
    !member.gone_within.is_zero()
}

/// The keeper's own clock: how busy the worker and this test are does not matter.
#[track_caller]
fn check_phases(member: &Member, result: &Value, promised: f64) {
    let phases = &result["phases"];
    if !is_started(result) {
        assert_eq!(phases, &Value::Null);
        return;
    }
    for name in ["queued_ms", "spawn_ms", "run_ms"] {
        assert!(
            phases[name].as_f64().is_some_and(|time| time >= 0.0),
            "{name} in {result:#}"
        );
    }
    if has_lost_its_helper(member) {
        return;
    }
    let (run, kill) = (phases["run_ms"].as_f64().unwrap(), phases["kill_ms"].as_f64());
    if result["status"] == "timed_out" && result["ended_by"] != "warn_signal" {
        let time = |name: &str| seconds(&member.job[name]).map(|seconds| seconds * 1000.0);
        let (timeout, grace) = (time("timeout").unwrap(), time("kill_grace").unwrap_or(GRACE));
        assert!((timeout..timeout + promised).contains(&run), "{result:#}");
        assert!(
            kill.is_some_and(|kill| run + kill <= timeout + grace + promised),
            "{result:#}"
        );
    } else {
        assert!(kill.unwrap_or_default() <= promised, "{result:#}");
    }
}

/// A job's "3s".
fn seconds(span: &Value) -> Option<f64> {
    span.as_str()?.trim_end_matches('s').parse().ok()
}

#[track_caller]
fn check_usage(member: &Member, result: &Value) {
    if !is_started(result) || has_lost_its_helper(member) {
        assert_eq!(result["usage"], json!(null), "{result:#}");
        return;
    }
    let resident = result["usage"]["max_rss_bytes"].as_u64().unwrap_or_default();
    assert!((1..LARGE).contains(&resident), "{result:#}");
}
