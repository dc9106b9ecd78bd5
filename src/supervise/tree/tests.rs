use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{task::yield_now, time::timeout};

use super::*;
use crate::supervise::{Restart, TaskError};

const SECOND: Duration = Duration::from_secs(1);
const BUDGET: Budget = Budget {
    restarts: 3,
    within: Duration::from_secs(60),
};

type End = Result<(), TaskError>;

/// What a test saw happen, with the milliseconds since its start.
#[derive(Clone)]
struct Log {
    start: Instant,
    lines: Arc<Mutex<Vec<(u64, String)>>>,
    delays: Arc<Mutex<Vec<Duration>>>,
}

impl Log {
    fn new() -> Self {
        let (lines, delays) = Default::default();
        Self {
            start: Instant::now(),
            lines,
            delays,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).expect("a short test")
    }

    fn say(&self, line: String) {
        self.lines.lock().expect("no panic").push((self.now(), line));
    }

    fn hear(&self, event: &SupervisorEvent) {
        self.say(match event {
            SupervisorEvent::Started { child } => format!("start {child}"),
            SupervisorEvent::Finished { child } => format!("end {child}"),
            SupervisorEvent::Faulted { child, outcome, error } => {
                format!("fault {child}, {}: {error}", outcome.as_str())
            }
            SupervisorEvent::Restarting { child, delay } => {
                self.delays.lock().expect("no panic").push(*delay);
                format!("restart {child}")
            }
            SupervisorEvent::GaveUp { child } => format!("give up {child}"),
            SupervisorEvent::CutOff { child } => format!("cut off {child}"),
        });
    }

    fn timed(&self) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic");
        lines.iter().map(|(at, line)| format!("{at} {line}")).collect()
    }

    fn words(&self) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic");
        lines.iter().map(|(_, line)| line.clone()).collect()
    }

    /// When `line` was said for the `nth` time, counted from 0.
    fn at(&self, line: &str, nth: usize) -> u64 {
        let lines = self.lines.lock().expect("no panic");
        let mut found = lines.iter().filter(|(_, said)| said == line);
        found.nth(nth).unwrap_or_else(|| panic!("no {line:?} in {lines:?}")).0
    }

    /// The `nth` delay before a restart, in the milliseconds that timers count in.
    fn delay(&self, nth: usize) -> u64 {
        let nanos = self.delays.lock().expect("no panic")[nth].as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000)).expect("a short delay")
    }
}

fn supervisor(strategy: Strategy, log: &Log) -> Supervisor {
    let log = log.clone();
    Supervisor::new("test", strategy, BUDGET, TaskAccounts::default()).on_event(move |event| log.hear(event))
}

/// Ends `takes` after it was told to drain, or at once when told to abort.
async fn obey(shutdown: Shutdown, takes: Duration) -> End {
    shutdown.draining().await;
    let _ = timeout(takes, shutdown.aborting()).await;
    Ok(())
}

fn obedient(name: &'static str, takes: Duration) -> Child {
    Child::new(name, Restart::Permanent, move |shutdown| obey(shutdown, takes))
}

/// Does `end` after a second in its first `times` runs, and obeys in the later ones.
fn ending(name: &'static str, restart: Restart, times: usize, end: fn() -> End) -> Child {
    let mut runs = 0;
    Child::new(name, restart, move |shutdown| {
        runs += 1;
        let ends = runs <= times;
        async move {
            if !ends {
                return obey(shutdown, Duration::ZERO).await;
            }
            sleep(SECOND).await;
            end()
        }
    })
}

fn failing(name: &'static str, times: usize) -> Child {
    ending(name, Restart::Permanent, times, || Err("no".into()))
}

/// Runs, drains at `drain` and aborts at `abort`, counted from the start.
async fn run(supervisor: Supervisor, drain: Duration, abort: Option<Duration>) -> StopReport {
    let shutdown = Shutdown::new();
    let owner = async {
        sleep(drain).await;
        shutdown.drain();
        match abort {
            Some(abort) => sleep(abort - drain).await,
            None => pending().await,
        }
        shutdown.abort();
        pending::<()>().await;
    };
    select! {
        report = supervisor.run(shutdown.clone()) => report,
        () = owner => unreachable!("the owner waits for the report"),
        () = sleep(36_000 * SECOND) => panic!("the supervisor hangs"),
    }
}

#[tokio::test(start_paused = true)]
async fn starts_in_order_and_drains_one_by_one_in_reverse() {
    let log = Log::new();
    let tree = ["a", "b", "c"]
        .into_iter()
        .fold(supervisor(Strategy::OneForOne, &log), |tree, name| {
            tree.child(obedient(name, SECOND))
        });
    let report = run(tree, 10 * SECOND, None).await;
    assert_eq!(report, StopReport::default());
    assert_eq!(
        log.timed(),
        [
            "0 start a",
            "0 start b",
            "0 start c",
            "11000 end c",
            "12000 end b",
            "13000 end a"
        ]
    );
    assert_eq!(log.now(), 13_000);
}

#[tokio::test(start_paused = true)]
async fn a_failed_child_is_restarted_after_a_delay_and_the_others_run_on() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(obedient("other", Duration::ZERO))
        .child(failing("bad", 1));
    let report = run(tree, 60 * SECOND, None).await;
    assert_eq!((report.restarts, report.gave_up), (1, None));
    let story = [
        "start other",
        "start bad",
        "fault bad, failed: no",
        "restart bad",
        "start bad",
    ];
    assert_eq!(log.words()[..5], story);
    assert_eq!(log.words()[5..], ["end bad", "end other"]);
    assert_eq!(log.at("restart bad", 0), 1000);
    assert_eq!(log.at("start bad", 1), 1000 + log.delay(0));
    assert!((50..=150).contains(&log.delay(0)), "{}", log.delay(0));
}

#[tokio::test(start_paused = true)]
async fn delays_grow_and_are_reset_by_a_long_run() {
    let log = Log::new();
    let mut run_for = [1, 1, 61, 1].into_iter();
    let child = Child::new("bad", Restart::Permanent, move |shutdown| {
        let seconds = run_for.next();
        async move {
            let Some(seconds) = seconds else {
                return obey(shutdown, Duration::ZERO).await;
            };
            sleep(seconds * SECOND).await;
            Err("no".into())
        }
    });
    run(supervisor(Strategy::OneForOne, &log).child(child), 100 * SECOND, None).await;
    for (nth, step) in [(0, 100), (1, 200), (2, 100), (3, 200)] {
        assert!(
            (step / 2..=step * 3 / 2).contains(&log.delay(nth)),
            "{nth}: {}",
            log.delay(nth)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_contained_named_and_restarted() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(ending("bad", Restart::Permanent, 1, || panic!("slot 3")))
        .child(obedient("other", Duration::ZERO));
    let report = run(tree, 60 * SECOND, None).await;
    assert_eq!((report.restarts, report.left), (1, vec![]));
    assert_eq!(log.at("fault bad, panicked: panicked: slot 3", 0), 1000);
    assert_eq!(log.at("end other", 0), 60_000);
}

#[tokio::test(start_paused = true)]
async fn a_start_closure_that_panics_is_a_fault_of_the_child() {
    let log = Log::new();
    let mut starts = 0;
    let bad = Child::new("bad", Restart::Transient, move |shutdown| {
        starts += 1;
        assert!(starts > 2, "start {starts}");
        obey(shutdown, Duration::ZERO)
    });
    let accounts = TaskAccounts::default();
    let mut tree = supervisor(Strategy::OneForOne, &log).child(bad);
    tree.accounts = accounts.clone();
    let report = run(tree, 60 * SECOND, None).await;
    assert_eq!((report.restarts, report.gave_up), (2, None));
    assert_eq!(log.at("fault bad, panicked: panicked: start 1", 0), 0);
    assert_eq!(log.words().last().map(String::as_str), Some("end bad"));
    assert_eq!(accounts.snapshot()[0].ended[Outcome::Panicked as usize].1, 2);
}

#[tokio::test(start_paused = true)]
async fn each_restart_policy_answers_each_end() {
    for (policy, end, restarts) in [
        (Restart::Permanent, (|| Ok(())) as fn() -> End, 1),
        (Restart::Permanent, || Err("no".into()), 1),
        (Restart::Transient, || Ok(()), 0),
        (Restart::Transient, || Err("no".into()), 1),
        (Restart::Transient, || panic!("no"), 1),
        (Restart::Temporary, || Ok(()), 0),
        (Restart::Temporary, || Err("no".into()), 0),
        (Restart::Temporary, || panic!("no"), 0),
    ] {
        let log = Log::new();
        let tree = supervisor(Strategy::OneForOne, &log)
            .child(ending("child", policy, 1, end))
            .child(obedient("other", Duration::ZERO));
        let report = run(tree, 60 * SECOND, None).await;
        assert_eq!(
            (report.restarts, report.gave_up),
            (restarts, None),
            "{policy:?}: {:?}",
            log.words()
        );
        assert_eq!(log.now(), 60_000, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_is_reported_as_a_fault_unless_it_was_meant() {
    for (policy, end, told) in [
        (
            Restart::Permanent,
            (|| Ok(())) as fn() -> End,
            "fault child, completed: completed unasked",
        ),
        (Restart::Transient, || Ok(()), "end child"),
        (Restart::Temporary, || Ok(()), "end child"),
        (Restart::Temporary, || Err("no".into()), "fault child, failed: no"),
    ] {
        let log = Log::new();
        run(
            supervisor(Strategy::OneForOne, &log).child(ending("child", policy, 1, end)),
            2 * SECOND,
            None,
        )
        .await;
        assert_eq!(log.at(told, 0), 1000, "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_was_told_to_stop_before_it_runs_starts_nothing() {
    let (log, shutdown) = (Log::new(), Shutdown::new());
    shutdown.drain();
    let tree = supervisor(Strategy::OneForOne, &log).child(obedient("a", SECOND));
    assert_eq!(tree.run(shutdown).await, StopReport::default());
    assert_eq!(log.words(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_can_be_the_child_of_another() {
    let log = Log::new();
    let inner = log.clone();
    let nested = Child::new("inner", Restart::Permanent, move |shutdown| {
        let tree = supervisor(Strategy::OneForOne, &inner).child(obedient("leaf", SECOND));
        async move {
            tree.run(shutdown).await;
            Ok(())
        }
    });
    let tree = supervisor(Strategy::OneForOne, &log).child(nested);
    run(tree, SECOND, None).await;
    assert_eq!(
        log.timed(),
        ["0 start inner", "0 start leaf", "2000 end leaf", "2000 end inner"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_with_nothing_left_to_do_ends() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(ending("a", Restart::Transient, 1, || Ok(())))
        .child(ending("b", Restart::Temporary, 1, || Err("no".into())));
    assert_eq!(run(tree, 60 * SECOND, None).await, StopReport::default());
    assert_eq!(log.now(), 1000);
    let empty = supervisor(Strategy::OneForAll, &log);
    assert_eq!(run(empty, 60 * SECOND, None).await, StopReport::default());
    assert_eq!(log.now(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_restart_storm_ends_in_giving_up_and_stops_the_others_in_reverse() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(obedient("a", SECOND))
        .child(failing("bad", usize::MAX))
        .child(obedient("b", SECOND));
    let report = run(tree, 600 * SECOND, None).await;
    assert_eq!(report.gave_up.as_deref(), Some("bad: no"));
    assert_eq!((report.restarts, report.left), (3, vec![]));
    let words = log.words();
    assert_eq!(words.iter().filter(|line| *line == "start bad").count(), 4);
    assert_eq!(words[words.len() - 3..], ["give up bad", "end b", "end a"]);
    let gave_up = log.at("give up bad", 0);
    assert_eq!(
        (log.at("end b", 0), log.at("end a", 0)),
        (gave_up + 1000, gave_up + 2000)
    );
}

#[tokio::test(start_paused = true)]
async fn giving_up_is_not_held_up_by_a_child_that_does_not_drain() {
    let log = Log::new();
    let mut tree = supervisor(Strategy::OneForOne, &log)
        .drain_grace(2 * SECOND)
        .child(obedient("slow", 3600 * SECOND))
        .child(failing("bad", 1));
    tree.budget.restarts = 0;
    let report = run(tree, 600 * SECOND, None).await;
    assert_eq!(report.gave_up.as_deref(), Some("bad: no"));
    assert_eq!(log.at("end slow", 0), 3000, "aborted at the end of the drain grace");
    assert!(report.left.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_drain_during_a_restart_delay_restarts_nothing_and_does_not_wait() {
    for strategy in [Strategy::OneForOne, Strategy::OneForAll] {
        let log = Log::new();
        let tree = supervisor(strategy, &log).child(failing("bad", 1));
        // The delay is at least 50 ms.
        let report = run(tree, SECOND + Duration::from_millis(20), None).await;
        assert_eq!(log.now(), 1020, "{strategy:?}");
        assert_eq!(log.words(), ["start bad", "fault bad, failed: no", "restart bad"]);
        assert_eq!(report.left, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn faults_while_draining_are_reported_and_not_answered() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(failing("bad", 1))
        .child(ending("done", Restart::Permanent, 1, || Ok(())))
        .child(obedient("slow", 5 * SECOND));
    let report = run(tree, SECOND / 2, None).await;
    assert_eq!(report, StopReport::default());
    let lines = log.timed();
    let mut ends = [lines[3].as_str(), lines[4].as_str()];
    ends.sort_unstable(); // both at one instant
    assert_eq!(ends, ["1000 end done", "1000 fault bad, failed: no"]);
    assert_eq!(lines[5..], ["5500 end slow"]);
}

#[tokio::test(start_paused = true)]
async fn an_abort_during_a_drain_is_told_to_all_at_once() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(obedient("a", 3600 * SECOND))
        .child(obedient("b", 3600 * SECOND));
    let report = run(tree, SECOND, Some(4 * SECOND)).await;
    assert_eq!(report, StopReport::default());
    assert_eq!((log.at("end a", 0), log.at("end b", 0), log.now()), (4000, 4000, 4000));
}

#[tokio::test(start_paused = true)]
async fn a_child_that_ignores_the_abort_is_cut_off_after_the_grace_and_named() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForOne, &log)
        .child(Child::new("deaf", Restart::Permanent, |_| pending()))
        .child(obedient("good", SECOND));
    let report = run(tree, SECOND, Some(SECOND)).await;
    assert_eq!(report.left, ["deaf"]);
    assert_eq!(log.timed()[2..], ["1000 end good", "6000 cut off deaf"]);
}

#[tokio::test(start_paused = true)]
async fn one_for_all_stops_in_reverse_and_starts_all_in_order() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForAll, &log)
        .child(obedient("a", SECOND))
        .child(failing("bad", 1))
        .child(obedient("b", SECOND));
    let report = run(tree, 60 * SECOND, None).await;
    assert_eq!((report.restarts, report.gave_up), (1, None));
    let story = [
        "fault bad, failed: no",
        "restart bad",
        "end b",
        "end a",
        "start a",
        "start bad",
        "start b",
    ];
    assert_eq!(log.words()[3..10], story);
    assert_eq!((log.at("end b", 0), log.at("end a", 0)), (2000, 3000));
    let again = 3000 + log.delay(0);
    assert_eq!(
        [log.at("start a", 1), log.at("start bad", 1), log.at("start b", 1)],
        [again; 3]
    );
}

#[tokio::test(start_paused = true)]
async fn one_for_all_starts_nothing_again_that_had_ended_for_good() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForAll, &log)
        .child(Child::new("done", Restart::Transient, |_| async { Ok(()) }))
        .child(Child::new("once", Restart::Temporary, |shutdown| {
            obey(shutdown, Duration::ZERO)
        }))
        .child(Child::new("job", Restart::Transient, |shutdown| {
            obey(shutdown, Duration::ZERO)
        }))
        .child(failing("bad", 1));
    run(tree, 60 * SECOND, None).await;
    let words = log.words();
    let starts = |name: &str| words.iter().filter(|line| **line == format!("start {name}")).count();
    assert_eq!(["done", "once", "job", "bad"].map(starts), [1, 1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn one_for_all_does_not_wait_for_ever_for_a_child_that_does_not_end() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForAll, &log)
        .drain_grace(2 * SECOND)
        .child(Child::new("deaf", Restart::Permanent, |_| pending()))
        .child(failing("bad", 1));
    let report = run(tree, 60 * SECOND, Some(60 * SECOND)).await;
    assert_eq!(log.at("cut off deaf", 0), 1000 + 2000 + 5000);
    assert_eq!(log.at("start deaf", 1), 8000 + log.delay(0));
    assert_eq!(report.left, ["deaf"], "named for the last stop");
}

#[tokio::test(start_paused = true)]
async fn a_drain_during_a_one_for_all_restart_lifts_its_limit_and_restarts_nothing() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForAll, &log)
        .drain_grace(2 * SECOND)
        .child(obedient("slow", 30 * SECOND))
        .child(failing("bad", 1));
    let report = run(tree, 2 * SECOND, None).await;
    assert_eq!(report.left, Vec::<String>::new());
    let story = ["1000 fault bad, failed: no", "1000 restart bad", "31000 end slow"];
    assert_eq!(log.timed()[2..], story);
}

#[tokio::test(start_paused = true)]
async fn an_abort_during_a_one_for_all_restart_ends_it() {
    let log = Log::new();
    let tree = supervisor(Strategy::OneForAll, &log)
        .drain_grace(600 * SECOND)
        .child(obedient("slow", 600 * SECOND))
        .child(failing("bad", 1));
    run(tree, 3 * SECOND, Some(3 * SECOND)).await;
    assert_eq!(log.timed()[4..], ["3000 end slow"]);
    assert_eq!(log.now(), 3000);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_supervisor_cuts_all_children_off() {
    let log = Log::new();
    let alive = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&alive);
    let child = Child::new("a", Restart::Permanent, move |_| {
        let alive = Alive::new(&counter);
        async move {
            let _alive = alive;
            pending().await
        }
    });
    let tree = supervisor(Strategy::OneForOne, &log).child(child);
    assert!(timeout(SECOND, tree.run(Shutdown::new())).await.is_err());
    yield_now().await;
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

/// Counts the futures that exist.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): random enough, and the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).expect("less than the bound")
    }

    fn millis(&mut self, bound: u32) -> Duration {
        Duration::from_millis(self.below(bound).into())
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[usize::try_from(self.next() % among.len() as u64).expect("an index")]
    }
}

/// A child that behaves as the seed wills, anew at each start. `deaf` ones may ignore every
/// signal.
fn wild(name: &'static str, log: Log, mut random: Random, alive: Arc<AtomicUsize>) -> Child {
    let policy = random.pick(&[Restart::Permanent, Restart::Transient, Restart::Temporary]);
    let behaviours = if name.starts_with("deaf") { 7 } else { 6 };
    Child::new(name, policy, move |shutdown| {
        let (behaviour, after) = (random.below(behaviours), random.millis(4000));
        assert_ne!(behaviour, 5, "the start panics");
        let (alive, log) = (Alive::new(&alive), log.clone());
        async move {
            let _alive = alive;
            let act = async {
                match behaviour {
                    0 => obey(shutdown.clone(), after).await,
                    1 => shutdown.aborting().map_ok().await,
                    2 => sleep(after).map_ok().await,
                    3 => sleep(after).map_ok().await.and(Err("no".into())),
                    4 => sleep(after).map_ok().await.map(|()| panic!("wild")),
                    _ => pending().await,
                }
            };
            let told = async {
                shutdown.draining().await;
                log.say(format!("told {name}"));
                pending::<()>().await;
            };
            select! {
                biased;
                () = told => unreachable!("only the other one ends"),
                end = act => end,
            }
        }
    })
}

/// `map(Ok)` with the error type filled in.
trait MapOk: Future<Output = ()> + Sized {
    async fn map_ok(self) -> End {
        self.await;
        Ok(())
    }
}

impl<F: Future<Output = ()>> MapOk for F {}

const NAMES: [&str; 6] = ["a", "deaf b", "c", "d", "deaf e", "f"];

/// Runs a random tree with a random stop, and checks what must hold for every one of them.
async fn stress(seed: u64) {
    let (mut random, log) = (Random(seed), Log::new());
    let (alive, accounts) = (Arc::new(AtomicUsize::new(0)), TaskAccounts::default());
    let strategy = random.pick(&[Strategy::OneForOne, Strategy::OneForAll]);
    let mut tree = supervisor(strategy, &log).drain_grace(random.millis(3000));
    tree.accounts = accounts.clone();
    tree.budget = Budget {
        restarts: random.below(12),
        within: random.millis(20_000),
    };
    for name in &NAMES[..random.pick(&[0, 1, 2, 3, 4, 5, 6])] {
        tree = tree.child(wild(name, log.clone(), Random(random.next()), Arc::clone(&alive)));
    }
    let drain = random.millis(12_000);
    let abort = drain + random.pick(&[0, 1]) * random.millis(8000);
    let report = timeout(60 * SECOND, run(tree, drain, Some(abort))).await;
    let report = report.unwrap_or_else(|_| panic!("seed {seed}: hangs; {:?}", log.timed()));

    let context = format!(
        "seed {seed}: {report:?}, drain {drain:?}, abort {abort:?}, {:#?}",
        log.timed()
    );
    let limit = u64::try_from((abort + ABORT_GRACE).as_millis()).expect("short");
    assert!(log.now() <= limit, "ends in time; {context}");
    assert_eq!(alive.load(Ordering::Relaxed), 0, "nothing is left; {context}");
    assert!(
        report.left.iter().all(|name| name.starts_with("deaf")),
        "only the deaf are cut off; {context}"
    );
    for stats in accounts.snapshot() {
        let ended: u64 = stats.ended.iter().map(|(_, count)| count).sum();
        assert_eq!(ended, stats.spawned, "every end is counted; {context}");
    }
    assert_order(&log, drain, abort, &context);
}

/// Checks that nothing starts after the drain, and that between drain and abort the children
/// are told in reverse.
fn assert_order(log: &Log, drain: Duration, abort: Duration, context: &str) {
    let lines = log.lines.lock().expect("no panic");
    let after = lines.iter().filter(|(at, _)| u128::from(*at) > drain.as_millis());
    assert!(
        !after.clone().any(|(_, line)| line.starts_with("start")),
        "no start after the drain; {context}"
    );
    let between = after.filter(|(at, _)| u128::from(*at) < abort.as_millis());
    let told: Vec<usize> = between
        .filter_map(|(_, line)| line.strip_prefix("told "))
        .filter_map(|name| NAMES.iter().position(|known| *known == name))
        .collect();
    assert!(
        told.is_sorted_by(|earlier, later| earlier > later),
        "in reverse: {told:?}; {context}"
    );
}

#[tokio::test(start_paused = true)]
async fn restarts_and_giving_up_are_counted_by_name() {
    let accounts = TaskAccounts::default();
    let tree = Supervisor::new("test", Strategy::OneForOne, BUDGET, accounts.clone())
        .child(obedient("well", Duration::ZERO))
        .child(failing("bad", 10));
    run(tree, 600 * SECOND, None).await;
    let counted = accounts.snapshot();
    let counted: Vec<_> = counted
        .iter()
        .map(|task| (task.name, task.restarted, task.given_up))
        .collect();
    assert_eq!(counted, [("bad", u64::from(BUDGET.restarts), 1), ("well", 0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn any_start_and_stop_leaves_nothing_behind() {
    for seed in 0..1000 {
        stress(seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_and_stops_on_many_threads_leave_nothing_behind() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let (alive, accounts) = (Arc::new(AtomicUsize::new(0)), TaskAccounts::default());
        let mut tree = Supervisor::new("test", Strategy::OneForAll, BUDGET, accounts.clone());
        for name in NAMES {
            let counter = Arc::clone(&alive);
            tree = tree.child(Child::new(name, Restart::Permanent, move |shutdown| {
                let alive = Alive::new(&counter);
                async move {
                    let _alive = alive;
                    shutdown.draining().await;
                    Ok(())
                }
            }));
        }
        let shutdown = Shutdown::new();
        let stop = async {
            for _ in 0..random.below(20) {
                yield_now().await;
            }
            random.pick(&[Shutdown::drain, Shutdown::abort])(&shutdown);
        };
        let (report, ()) = futures_util::join!(tree.run(shutdown.clone()), stop);
        assert_eq!(report, StopReport::default(), "seed {seed}");
        assert_eq!(alive.load(Ordering::Relaxed), 0, "seed {seed}");
    }
}
