//! No deadlock under load: many more jobs than places, of every kind there is, through two slots.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use synthex::message::Status;
use synthex::transport::Transport;

use crate::rig::{Ends, Results, Rig, ends};

const JOBS: usize = 5_000;
/// What a flooding job writes to each stream, several times what a pipe and a result hold.
const FLOOD: u64 = 200_000;
/// What is kept of it.
const KEPT: u64 = 8 * 1024;

/// A kind of job, and how it has to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Fast,
    Failing,
    TimingOut,
    TimingOutDeaf,
    Flooding,
    NotStarted,
    Invalid,
    Expired,
    RetriedInVain,
}

/// How many jobs of a hundred are of each kind; those that take a slot's time are few.
const MIX: [(usize, Kind); 9] = [
    (1, Kind::TimingOut),
    (1, Kind::TimingOutDeaf),
    (1, Kind::RetriedInVain),
    (2, Kind::Expired),
    (5, Kind::Flooding),
    (10, Kind::NotStarted),
    (10, Kind::Invalid),
    (10, Kind::Failing),
    (60, Kind::Fast),
];

impl Kind {
    /// Spread over the numbers, so that each comes among all others.
    fn of(number: usize) -> Self {
        let mut rest = number * 37 % 100;
        for (share, kind) in MIX {
            match rest.checked_sub(share) {
                Some(left) => rest = left,
                None => return kind,
            }
        }
        unreachable!("the shares are a hundred")
    }

    fn body(self, number: usize) -> String {
        let job: Value = match self {
            Self::Fast => json!({ "command": ["true"] }),
            Self::Failing => json!({ "command": ["false"], "stdin": "read by nobody" }),
            Self::TimingOut => json!({ "command": ["sleep", "600"], "timeout": "40ms" }),
            Self::TimingOutDeaf => {
                json!({ "script": "trap '' TERM; sleep 600", "timeout": "40ms", "kill_grace": "20ms" })
            }
            Self::Flooding => json!({ "script": format!("yes | head -c {FLOOD} | tee /dev/stderr") }),
            Self::NotStarted => json!({ "command": ["/no/such/program"] }),
            Self::Expired => json!({ "command": ["true"], "expires_at": "2020-01-01T00:00:00Z" }),
            Self::RetriedInVain => {
                json!({ "command": ["false"], "retry": { "max_attempts": 2, "initial": "1ms", "max": "1ms" } })
            }
            Self::Invalid if number.is_multiple_of(2) => return "{ not JSON".into(),
            Self::Invalid => json!({ "command": ["true"], "script": "true" }),
        };
        job.to_string()
    }

    fn ends(self) -> Ends {
        let status = match self {
            Self::Fast | Self::Flooding => Status::Succeeded,
            Self::Failing => Status::Failed,
            Self::TimingOut | Self::TimingOutDeaf => Status::TimedOut,
            Self::NotStarted => Status::NotStarted,
            Self::Invalid => Status::Rejected,
            Self::Expired => Status::Expired,
            Self::RetriedInVain => return vec![(1, Status::Failed), (2, Status::Failed)],
        };
        vec![(1, status)]
    }

    fn is_dead_lettered(self) -> bool {
        matches!(self, Self::Invalid | Self::RetriedInVain)
    }
}

pub async fn five_thousand_mixed_jobs_all_end_once_and_leave_nothing<T: Transport>(rig: Rig<T>) {
    let kinds: BTreeMap<String, Kind> = (0..JOBS).map(|n| (format!("job-{n:04}"), Kind::of(n))).collect();
    let mut pool = rig.pool();
    pool.output.max_bytes = KEPT;
    pool.breaker.failures = u32::MAX; // a program that is missing on purpose is no fault of the worker
    let live = rig.work(rig.broker.clone(), pool);
    let jobs = kinds
        .iter()
        .enumerate()
        .map(|(n, (id, kind))| (id.clone(), kind.body(n)));
    let work = async { tokio::join!(rig.publish_all(jobs), rig.wait_for_ends(kinds.keys().cloned())).1 };
    let results = tokio::time::timeout(Duration::from_secs(240), work).await;
    let results = results.expect("five thousand short jobs end in four minutes, however busy the machine is");

    let stopped = live.stop().await;
    stopped.assert_clean();
    rig.nothing_left_of(&stopped).await;
    rig.assert_queue_is_empty().await;
    assert_eq!(stopped.ending.given_back() + stopped.ending.cut(), 0);

    let extra = rig.results().await;
    assert!(extra.is_empty(), "results beyond the last: {:?}", extra.keys());
    for (id, kind) in &kinds {
        assert_eq!(ends(&results[id]), kind.ends(), "{id}, {kind:?}");
    }
    assert_eq!(results.len(), JOBS);
    check_floods(&kinds, &results);
    let dead = rig.dead_letters().await;
    let expected = kinds
        .iter()
        .filter(|(_, kind)| kind.is_dead_lettered())
        .map(|(id, _)| id);
    assert_eq!(dead.len(), expected.clone().count(), "dead letters");
    assert_eq!(dead.iter().collect::<BTreeSet<_>>(), expected.collect());
}

/// What flooded was drained to its end, counted to the byte, and kept within its bound.
fn check_floods(kinds: &BTreeMap<String, Kind>, results: &Results) {
    for (id, _) in kinds.iter().filter(|(_, kind)| **kind == Kind::Flooding) {
        for output in [&results[id][0].stdout, &results[id][0].stderr] {
            assert_eq!((output.bytes, output.truncated_bytes), (FLOOD, FLOOD - KEPT), "{id}");
        }
    }
}
