//! Which process is whose.

use std::time::Duration;

use serde_json::json;

use crate::cage::Cage;
use crate::worker::{Via, Worker};

/// Processes of a pack: its leader and three that left it.
pub const PACK: usize = 4;

/// Jobs of the same program, with the same environment but for their ids, each with escapees: one in its session, one in
/// another, one an orphan without an environment. Every other job times out; the rest end well, and so do all of theirs.
pub fn of_jobs_that_look_alike_only_the_right_ones_die(via: Via) {
    const PAIRS: usize = 3;
    let cage = Cage::new();
    let worker = Worker::start(via, &cage, 2 * PAIRS);
    let program = cage.program("pack");
    let names = |kind: &str| -> Vec<String> { (0..PAIRS).map(|number| format!("{kind}-{number}")).collect() };
    let (lasting, ending) = (names("lasting"), names("ending"));
    for (lasting, ending) in lasting.iter().zip(&ending) {
        worker.submit(lasting, &json!({"command": [program]}));
        worker.submit(ending, &json!({"command": [program], "timeout": "10s"}));
    }
    let packs: Vec<_> = lasting.iter().map(|id| cage.wait_for(id, PACK)).collect();
    for id in &ending {
        let result = worker.result(id);
        assert_eq!(result["status"], "timed_out", "{result:#}");
        assert_eq!(result["stdout"]["text"], "up\n", "{result:#}");
        let pack = cage.recorded(id);
        assert!(
            pack.len() > PACK,
            "the middle of the orphan's two forks was there too: {pack:?}"
        );
        assert!(!pack.iter().any(|process| process.exists()), "{pack:?}");
    }
    for (id, pack) in lasting.iter().zip(packs) {
        assert!(
            pack.iter().all(|process| process.is_alive()),
            "of {id} some died: {pack:?}"
        );
        cage.open(id);
        let result = worker.result(id);
        assert_eq!(result["status"], "succeeded", "{result:#}");
        assert_eq!(result["stdout"]["text"], "up\nended well\n", "{result:#}");
    }
    worker.stop();
    cage.assert_empty_within(Duration::ZERO);
}
