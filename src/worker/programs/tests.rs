use std::num::NonZeroU64;
use std::pin::pin;

use super::*;
use crate::config;
use crate::executor::{Environment, Leftovers, Rights};
use crate::message::{FailureKind, Limits, LimitsApplied, Output, SignalName};

/// The positions that were told.
#[derive(Default)]
struct Told(Mutex<Vec<Position>>);

impl Observer for Told {
    fn on(&self, event: &Event) {
        if let Event::CircuitChanged { circuit, position } = event {
            assert_eq!(*circuit, Circuit::Programs);
            self.0.lock().unwrap().push(*position);
        }
    }
}

const DELAY: Duration = Duration::from_secs(30);

struct Bench {
    programs: Programs,
    pool: Pool,
    told: Arc<Told>,
}

fn bench(elsewhere: Elsewhere) -> Bench {
    let told = Arc::new(Told::default());
    let mut pool = Pool::default_pool();
    pool.breaker = config::Breaker {
        failures: 3,
        delay: DELAY,
        put_offs: 2,
    };
    Bench {
        programs: Programs::new(told.clone(), elsewhere),
        pool,
        told,
    }
}

fn run(program: &str) -> Run {
    Run {
        program: program.into(),
        args: Vec::new(),
        env: Environment::shared(&Arc::default()),
        cwd: None,
        stdin: bytes::Bytes::new(),
        timeout: DELAY,
        term_signal: SignalName::TERM,
        kill_grace: DELAY,
        warning: None,
        leftovers: Leftovers::Kill,
        limits: Limits::default(),
        rights: Rights::default(),
        max_output: 0,
    }
}

fn unstarted(end: End) -> Outcome {
    Outcome {
        end,
        stdout: Output::empty(),
        stderr: Output::empty(),
        started_at: None,
        finished_at: jiff::Timestamp::UNIX_EPOCH,
        duration: Duration::ZERO,
        spawn_time: Duration::ZERO,
        run_time: Duration::ZERO,
        kill_time: None,
        ended_by: None,
        usage: None,
        limits_applied: LimitsApplied::default(),
    }
}

fn failed(kind: FailureKind) -> Outcome {
    unstarted(End::NotStarted(NotStarted::new(kind, "it is so")))
}

fn started() -> Outcome {
    Outcome {
        started_at: Some(jiff::Timestamp::UNIX_EPOCH),
        ..unstarted(End::Exited(1))
    }
}

impl Bench {
    fn command(&self, run: &Run) -> Command<'_> {
        self.programs.command(&self.pool, run, 0)
    }

    /// Tries a command, and says how long its job is put off then.
    fn attempt(&self, run: &Run, outcome: &Outcome) -> Option<Duration> {
        match self.command(run).enter() {
            Ok(trial) => trial.ended(outcome),
            Err(wait) => Some(wait),
        }
    }

    fn fail(&self, run: &Run, times: u32) {
        for _ in 0..times {
            self.attempt(run, &failed(FailureKind::SpawnFailed));
        }
    }

    fn told(&self) -> Vec<Position> {
        self.told.0.lock().unwrap().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn after_failures_in_a_row_its_jobs_are_put_off_the_last_that_failed_too() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    let failed = failed(FailureKind::SpawnFailed);
    assert_eq!(
        [bench.attempt(&convert, &failed), bench.attempt(&convert, &failed)],
        [None; 2]
    );
    assert_eq!(
        bench.attempt(&convert, &started()),
        None,
        "one that starts begins the row anew"
    );
    assert_eq!(
        [bench.attempt(&convert, &failed), bench.attempt(&convert, &failed)],
        [None; 2]
    );
    assert_eq!(bench.attempt(&convert, &failed), Some(DELAY));
    tokio::time::advance(DELAY / 3).await;
    assert_eq!(bench.command(&convert).put_off(), Some(DELAY * 2 / 3));
    assert_eq!(bench.command(&convert).enter().err(), Some(DELAY * 2 / 3));
    assert_eq!(bench.command(&run("other")).put_off(), None);
    assert_eq!(bench.told(), [Position::Open]);
}

#[tokio::test(start_paused = true)]
async fn then_one_is_tried_for_all() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    bench.fail(&convert, 3);
    tokio::time::advance(DELAY).await;
    assert_eq!(bench.command(&convert).put_off(), None, "to be tried");
    let trial = bench.command(&convert).enter().expect("the delay is over");
    assert_eq!(bench.command(&convert).enter().err(), Some(DELAY), "another tries");
    assert_eq!(trial.ended(&failed(FailureKind::SpawnFailed)), Some(DELAY));
    tokio::time::advance(DELAY).await;
    drop(bench.command(&convert).enter().expect("the delay is over"));
    let trial = bench.command(&convert).enter().expect("who tried went away");
    assert_eq!(trial.ended(&started()), None);
    assert_eq!(bench.command(&convert).put_off(), None);
    use Position::{Closed, HalfOpen, Open};
    let told = [Open, HalfOpen, Open, HalfOpen, Open, HalfOpen, Closed];
    assert_eq!(bench.told(), told);
    assert!(
        bench.programs.troubles().commands.is_empty(),
        "nothing is kept of what is well"
    );
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_lasts_has_started() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    bench.fail(&convert, 3);
    tokio::time::advance(DELAY).await;
    let mut trial = bench.command(&convert).enter().expect("the delay is over");
    let an_hour = pin!(async {
        tokio::time::sleep(Duration::from_secs(3600)).await;
        started()
    });
    let others = async {
        tokio::time::sleep(STARTED - Duration::from_millis(1)).await;
        assert!(bench.command(&convert).put_off().is_some());
        tokio::time::sleep(Duration::from_millis(2)).await;
        bench.command(&convert).put_off()
    };
    let (_, put_off) = tokio::join!(trial.over(an_hour), others);
    assert_eq!(put_off, None);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_was_put_off_often_enough_is_tried_and_has_its_result() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    bench.fail(&convert, 3);
    let command = |put_offs| bench.programs.command(&bench.pool, &convert, put_offs);
    assert!(command(1).put_off().is_some());
    assert_eq!(command(2).put_off(), None);
    let trial = command(2).enter().expect("it has waited enough");
    assert_eq!(trial.ended(&failed(FailureKind::SpawnFailed)), None);
    assert!(command(1).put_off().is_some(), "its like still wait");
}

#[tokio::test(start_paused = true)]
async fn what_one_job_chooses_holds_up_its_like_alone() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    let mut path = convert.clone();
    path.env.extend([("PATH".to_owned(), "/nowhere".to_owned())]);
    let cwd = Run {
        cwd: Some("/nowhere".into()),
        ..convert.clone()
    };
    let limits = Run {
        limits: Limits {
            processes: NonZeroU64::new(1),
            ..Limits::default()
        },
        ..convert.clone()
    };
    for odd in [&path, &cwd, &limits] {
        bench.fail(odd, 3);
        assert!(bench.command(odd).put_off().is_some());
        assert_eq!(bench.command(&convert).put_off(), None);
    }
    let mut same = path.clone();
    same.env.extend([("LANG".to_owned(), "de".to_owned())]);
    assert!(
        bench.command(&same).put_off().is_some(),
        "nothing that decides its start"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_counts_where_another_worker_may_have_it() {
    let missing = failed(FailureKind::ProgramMissing);
    for (elsewhere, wait) in [(Elsewhere::Workers, Some(DELAY)), (Elsewhere::Nobody, None)] {
        let (bench, convert) = (bench(elsewhere), run("convert"));
        for _ in 0..2 {
            assert_eq!(bench.attempt(&convert, &missing), None);
        }
        assert_eq!(bench.attempt(&convert, &missing), wait, "{elsewhere:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_of_the_machine_counts_neither_way() {
    let (bench, convert) = (bench(Elsewhere::Workers), run("convert"));
    let own = NotStarted {
        fault: Fault::Command,
        ..NotStarted::new(FailureKind::SpawnFailed, "too large")
    };
    let own = unstarted(End::NotStarted(own));
    let cancelled = unstarted(End::Cancelled);
    bench.fail(&convert, 2);
    for outcome in [&own, &cancelled, &own, &own] {
        assert_eq!(bench.attempt(&convert, outcome), None);
    }
    bench.fail(&convert, 1);
    assert!(bench.command(&convert).put_off().is_some(), "the third in a row");
}

#[tokio::test(start_paused = true)]
async fn the_worst_of_many_is_told_and_the_oldest_of_too_many_forgotten() {
    let bench = bench(Elsewhere::Workers);
    for number in 0..=COMMANDS {
        tokio::time::advance(Duration::from_millis(1)).await;
        bench.fail(&run(&number.to_string()), 3);
    }
    assert_eq!(bench.told(), [Position::Open]);
    assert_eq!(bench.programs.troubles().commands.len(), COMMANDS);
    assert_eq!(bench.command(&run("0")).put_off(), None);
    assert!(bench.command(&run("1")).put_off().is_some());
}
