//! Runs that are stopped, given up, or held up by a helper.

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::fs::{CWD, Mode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use super::{SOON, UP_WITHIN, bash, fixture, pid, reaped, run, so_many_spawners, spawners, state, timed_out};
use synthex::executor::{End, Outcome, Run, Stop, execute};
use synthex::message::{EndedBy, SignalName};

/// A FIFO on which a command says something while it runs.
struct Announcement {
    folder: tempfile::TempDir,
}

impl Announcement {
    /// The command gets the FIFO as its argument.
    fn of(name: &str) -> (Self, Run) {
        Self::by(fixture(name))
    }

    /// The command gets the FIFO as its last argument.
    fn by(mut run: Run) -> (Self, Run) {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        run.args.push(fifo.into());
        (Self { folder }, run)
    }

    /// Waits for a line from the command while the run goes on.
    async fn line(&self, running: impl Future<Output = Outcome>) -> String {
        let fifo = pipe::OpenOptions::new()
            .open_receiver(self.folder.path().join("fifo"))
            .unwrap();
        let mut reader = BufReader::new(fifo);
        let mut line = String::new();
        let told = async {
            // Without a writer yet, a FIFO reads as ended.
            while !line.ends_with('\n') {
                reader.read_line(&mut line).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = told => line,
            outcome = running => panic!("ended too early: {outcome:?}"),
        }
    }

    /// Waits for the numbers of processes.
    async fn pids(&self, running: impl Future<Output = Outcome>) -> Vec<Pid> {
        self.line(running).await.split_whitespace().map(pid).collect()
    }
}

#[tokio::test]
async fn stop_kills_the_group_at_once() {
    let spawners = spawners();
    let (announced, run) = Announcement::of("announce-and-wait");
    let stop = Stop::default();
    let mut running = pin!(execute(&spawners, run, stop.clone()));
    let pids = announced.pids(running.as_mut()).await;
    stop.kill.cancel();
    let outcome = running.await;
    assert_eq!(outcome.end, End::Cancelled);
    assert!(outcome.started_at.is_some() && outcome.kill_time.expect("it was killed") < SOON);
    assert_eq!((state(pids[0]), state(pids[1])), (None, None), "both are reaped");
}

#[tokio::test]
async fn stop_cuts_the_grace_short() {
    let spawners = spawners();
    let (announced, run) = Announcement::of("announce-term");
    let stop = Stop::default();
    let run = Run {
        timeout: UP_WITHIN,
        ..run
    };
    let mut running = pin!(execute(&spawners, run, stop.clone()));
    assert_eq!(announced.line(running.as_mut()).await, "asked to end\n");
    stop.kill.cancel();
    let outcome = running.await;
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::KILL)));
    assert!(outcome.duration < SOON);
}

#[tokio::test]
async fn an_end_that_is_asked_for_gives_the_grace_of_the_timeout() {
    let spawners = spawners();
    for (trap, grace, ended_by) in [
        ("echo saved; exit 0", SOON, EndedBy::TermSignal),
        ("echo saved", Duration::from_secs(15), EndedBy::Kill),
    ] {
        // A signal that comes while the shell makes a child is obeyed after that, and the child does not get it.
        let script = format!(r#"trap '{trap}' TERM; echo >"$1"; while :; do sleep 5 & wait $!; done"#);
        let (announced, run) = Announcement::by(run(["bash", "-c", &script, "bash"]));
        let run = Run {
            kill_grace: grace,
            ..run
        };
        let stop = Stop::default();
        let mut running = pin!(execute(&spawners, run, stop.clone()));
        announced.line(running.as_mut()).await;
        stop.end.cancel();
        let outcome = running.await;
        assert_eq!(
            (outcome.end, outcome.ended_by),
            (End::Cancelled, Some(ended_by)),
            "{trap}"
        );
        assert_eq!(outcome.stdout.text, "saved\n");
        assert!(outcome.kill_time.expect("it was asked to end") < SOON);
    }
}

#[tokio::test]
async fn a_run_stopped_before_its_start_is_never_started() {
    let spawners = spawners();
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let stop = Stop::default();
    stop.kill.cancel();
    let outcome = execute(&spawners, run(["touch", mark.to_str().unwrap()]), stop).await;
    assert_eq!((outcome.end, outcome.started_at), (End::Cancelled, None));
    assert!(!mark.exists());
}

#[tokio::test]
async fn dropping_the_future_leaves_no_process_and_no_zombie() {
    let spawners = spawners();
    let (announced, run) = Announcement::of("announce-and-wait");
    let mut running = Box::pin(execute(&spawners, run, Stop::default()));
    let pids = announced.pids(running.as_mut()).await;
    assert!(pids.len() == 2 && pids.iter().all(|&pid| state(pid).is_some()));
    drop(running);
    for pid in pids {
        reaped(pid).await;
    }
}

/// Commands start a few at a time, and those that wait for a keeper must not take up all the places.
#[tokio::test]
async fn a_spawner_that_hangs_holds_up_those_who_ask_it_and_nobody_else() {
    let spawners = so_many_spawners(2);
    let first = execute(&spawners, bash("echo $PPID"), Stop::default()).await;
    let stat = fs::read_to_string(format!("/proc/{}/stat", first.stdout.text.trim())).unwrap();
    let parent = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1);
    let spawner = pid(parent.unwrap());
    let places = 2 * std::thread::available_parallelism().unwrap().get();

    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let said = pipe::OpenOptions::new().read_write(true).open_receiver(&fifo).unwrap();
    let mut said = BufReader::new(said).lines();
    let announce = bash(&format!("echo up >{}; exec sleep 60", fifo.display()));
    let stop = Stop::default();
    kill_process(spawner, Signal::STOP).unwrap();
    let mut all = join_all((0..4 * places).map(|_| execute(&spawners, announce.clone(), stop.clone())));
    let half = async {
        for _ in 0..2 * places {
            assert_eq!(said.next_line().await.unwrap().as_deref(), Some("up"));
        }
    };
    tokio::select! {
        half = tokio::time::timeout(SOON, half) => half.expect("the other spawner's half of them begins"),
        _ = &mut all => panic!("they run for a minute"),
    }
    stop.kill.cancel();
    kill_process(spawner, Signal::CONT).unwrap();
    assert!(all.await.iter().all(|outcome| outcome.end == End::Cancelled));
}
