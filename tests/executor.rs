//! Whole runs, of real commands, by real helper processes: the commands that misbehave are in
//! `tests/fixtures/commands`.
//!
//! Where a test waits for a real timeout, the command needs far less than that to get ready, says
//! so in its output, and the test checks that it did.

#![allow(clippy::unwrap_used)] // what cannot be set up is a failed test

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Timestamp;
use rustix::fs::{CWD, Mode};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use synthex::executor::{
    CgroupChoice, End, Leftovers, NotStarted, Outcome, Rights, Run, SpawnerOptions, Spawners, Stop, Warning, execute,
};
use synthex::message::{Encoding, EndedBy, FailureKind, Limits, SignalName};

const MAX_OUTPUT: u64 = 64 * 1024;

/// Above anything a run here waits for by design, below what a command left alone would take.
const SOON: Duration = Duration::from_secs(20);

fn run<const N: usize>(command: [&str; N]) -> Run {
    Run {
        program: command[0].into(),
        args: command[1..].iter().map(OsString::from).collect(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]).into(),
        cwd: None,
        stdin: Bytes::new(),
        timeout: Duration::from_secs(60),
        term_signal: SignalName::TERM,
        kill_grace: Duration::from_secs(60),
        limits: Limits::default(),
        warning: None,
        leftovers: Leftovers::default(),
        rights: Rights::default(),
        max_output: MAX_OUTPUT,
    }
}

fn bash(script: &str) -> Run {
    run(["bash", "-c", script])
}

fn fixture(name: &str) -> Run {
    run([&format!(
        "{}/tests/fixtures/commands/{name}",
        env!("CARGO_MANIFEST_DIR")
    )])
}

fn spawners() -> Spawners {
    so_many_spawners(1)
}

fn so_many_spawners(count: usize) -> Spawners {
    let options = SpawnerOptions {
        program: env!("CARGO_BIN_EXE_synthex").into(),
        count,
        catch_orphans: false,
        cgroup: CgroupChoice::None,
    };
    Spawners::start(options).expect("a helper process")
}

async fn outcome(run: Run) -> Outcome {
    execute(&spawners(), run, Stop::default()).await
}

/// Runs what is expected to exit with 0 and gives its stdout.
async fn stdout(run: Run) -> String {
    let outcome = outcome(run).await;
    assert_eq!(outcome.end, End::Exited(0), "{outcome:?}");
    outcome.stdout.text
}

async fn refusal(run: Run) -> (FailureKind, String) {
    let outcome = outcome(run).await;
    assert_eq!(
        (outcome.started_at, outcome.duration, outcome.kill_time),
        (None, Duration::ZERO, None)
    );
    assert_eq!((outcome.stdout.bytes, outcome.stderr.bytes), (0, 0));
    match outcome.end {
        End::NotStarted(NotStarted { kind, message, .. }) => (kind, message),
        end => panic!("started: {end:?}"),
    }
}

fn timed_out(exit_code: Option<i32>, signal: Option<SignalName>) -> End {
    End::TimedOut { exit_code, signal }
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().expect("a process number")).expect("a process number")
}

/// The state of a process as proc(5) has it, `None` when there is none of that number.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Waits until the process is dead and reaped.
async fn reaped(pid: Pid) {
    let dead = async {
        while state(pid).is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, dead).await.expect("the process is dead");
}

// Ends

#[tokio::test]
async fn exit_codes_and_foreign_signals_are_told_apart() {
    assert_eq!(outcome(run(["true"])).await.end, End::Exited(0));
    assert_eq!(outcome(bash("exit 3")).await.end, End::Exited(3));
    assert_eq!(outcome(bash("exit 143")).await.end, End::Exited(143));
    assert_eq!(
        outcome(bash("kill -TERM $$")).await.end,
        End::Signaled(SignalName::TERM)
    );
    assert_eq!(
        outcome(bash("kill -KILL $$")).await.end,
        End::Signaled(SignalName::KILL)
    );
}

#[tokio::test]
async fn a_run_tells_when_and_how_long() {
    let before = Timestamp::now();
    let outcome = outcome(bash("sleep 0.2")).await;
    let started_at = outcome.started_at.expect("it was started");
    assert!(before <= started_at && started_at < outcome.finished_at);
    assert!(outcome.duration >= Duration::from_millis(200), "{:?}", outcome.duration);
    assert!(outcome.spawn_time > Duration::ZERO && outcome.spawn_time < outcome.duration);
    assert_eq!((outcome.kill_time, outcome.ended_by), (None, Some(EndedBy::Itself)));
}

#[tokio::test]
async fn term_ends_the_whole_tree_at_the_timeout() {
    // The shell waits for its child, so both must have got the signal for this to be quick.
    let outcome = outcome(Run {
        timeout: Duration::from_millis(300),
        ..bash("echo so far; sleep 300; :")
    })
    .await;
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
    assert_eq!(outcome.stdout.text, "so far\n");
    assert!(outcome.duration >= Duration::from_millis(300) && outcome.duration < SOON);
    assert!(outcome.kill_time.expect("it was killed") < SOON);
}

#[tokio::test]
async fn a_command_that_ignores_term_is_killed_after_the_grace() {
    let (timeout, kill_grace) = (Duration::from_secs(1), Duration::from_millis(400));
    let outcome = outcome(Run {
        timeout,
        kill_grace,
        ..fixture("ignore-term")
    })
    .await;
    assert_eq!(outcome.stdout.text, "ready\n");
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::KILL)));
    assert_eq!(outcome.ended_by, Some(EndedBy::Kill));
    assert!(outcome.duration >= timeout + kill_grace && outcome.run_time < outcome.duration);
    let kill_time = outcome.kill_time.expect("it was killed");
    assert!(kill_time >= kill_grace && kill_time < SOON);
}

#[tokio::test]
async fn a_timed_out_run_stays_so_when_it_exits_with_0() {
    let outcome = outcome(Run {
        timeout: Duration::from_secs(1),
        ..fixture("exit-zero-on-term")
    })
    .await;
    assert_eq!(outcome.stdout.text, "ready\ncleaned up\n");
    assert_eq!(outcome.end, timed_out(Some(0), None));
}

#[tokio::test]
async fn another_term_signal_is_sent_where_it_was_asked_for() {
    let term_signal = SignalName::from_number(Signal::USR1.as_raw()).expect("a signal");
    let ended = outcome(Run {
        timeout: Duration::from_millis(300),
        term_signal,
        ..run(["sleep", "300"])
    })
    .await;
    assert_eq!(ended.end, timed_out(None, Some(term_signal)));
}

#[tokio::test]
async fn a_stopped_command_is_told_to_end_and_then_continued() {
    let outcome = outcome(Run {
        timeout: Duration::from_secs(1),
        ..fixture("stop-itself")
    })
    .await;
    assert_eq!(outcome.stdout.text, "told to end\n");
    assert_eq!(outcome.end, timed_out(Some(7), None));
}

#[tokio::test]
async fn the_grace_is_for_the_whole_tree() {
    let outcome = outcome(Run {
        timeout: Duration::from_secs(1),
        ..fixture("slow-to-end")
    })
    .await;
    assert_eq!(outcome.stdout.text, "ready\nsaved\n");
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
}

#[tokio::test]
async fn the_largest_timeout_is_no_timeout() {
    assert_eq!(
        outcome(Run {
            timeout: Duration::MAX,
            ..run(["true"])
        })
        .await
        .end,
        End::Exited(0)
    );
}

// Cancelling and dropping

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
        timeout: Duration::from_secs(1),
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
        ("echo saved", Duration::from_millis(300), EndedBy::Kill),
    ] {
        let script = format!(r#"trap '{trap}' TERM; echo >"$1"; while :; do sleep 60 & wait $!; done"#);
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

// Output

#[tokio::test]
async fn output_is_kept_whole_up_to_the_limit_and_counted_beyond_it() {
    for (count, dropped) in [
        (0, 0),
        (1, 0),
        (MAX_OUTPUT, 0),
        (MAX_OUTPUT + 1, 1),
        (64 << 20, (64 << 20) - MAX_OUTPUT),
    ] {
        let outcome = outcome(bash(&format!(
            "head -c {count} /dev/zero; head -c {count} /dev/zero >&2"
        )))
        .await;
        assert_eq!(outcome.end, End::Exited(0));
        for stream in [outcome.stdout, outcome.stderr] {
            assert_eq!((stream.bytes, stream.truncated_bytes), (count, dropped));
            assert_eq!(stream.decode().unwrap().len() as u64, count - dropped);
        }
    }
}

#[tokio::test]
async fn head_and_tail_of_a_long_output_are_kept() {
    let output = outcome(Run {
        max_output: 20,
        ..run(["seq", "1000000"])
    })
    .await
    .stdout;
    assert_eq!(output.text, "1\n2\n3\n4\n5\n\n1000000\n".replacen("\n\n", "\n9\n", 1));
    assert_eq!((output.bytes, output.truncated_bytes), (6_888_896, 6_888_876));
}

#[tokio::test]
async fn output_that_is_not_utf_8_is_base64() {
    let output = outcome(run(["printf", r"\377\000x"])).await.stdout;
    assert_eq!((output.encoding, output.text.as_str()), (Encoding::Base64, "/wB4"));
    assert_eq!(output.decode().unwrap()[..], b"\xff\0x"[..]);
    assert_eq!(outcome(run(["printf", "é"])).await.stdout.encoding, Encoding::Utf8);
}

#[tokio::test]
async fn a_flood_starves_no_timer() {
    let flood = Run {
        timeout: Duration::from_millis(500),
        ..run(["yes"])
    };
    let outcome = outcome(flood).await;
    assert_eq!(outcome.end, timed_out(None, Some(SignalName::TERM)));
    assert!(outcome.duration < SOON);
    assert_eq!(outcome.stdout.bytes - outcome.stdout.truncated_bytes, MAX_OUTPUT);
}

#[tokio::test]
async fn output_of_a_process_that_ends_after_its_shell_is_not_lost() {
    assert_eq!(stdout(fixture("tail-by-substitution")).await, "first\nlast\n");
}

#[tokio::test]
async fn streams_that_are_closed_early_do_not_end_the_run() {
    assert_eq!(
        outcome(bash("exec >&- 2>&-; sleep 0.2; exit 4")).await.end,
        End::Exited(4)
    );
}

// What is left behind

#[tokio::test]
async fn a_process_that_holds_stdout_delays_nothing_and_is_killed() {
    for name in ["leave-holder", "leave-silent"] {
        let start = Instant::now();
        let text = stdout(fixture(name)).await;
        assert!(start.elapsed() < SOON);
        assert_eq!(state(pid(&text)), None, "{name}");
    }
}

#[tokio::test]
async fn a_process_that_floods_after_its_leader_is_ended_too() {
    let outcome = outcome(fixture("leave-flooder")).await;
    assert_eq!(outcome.end, End::Exited(0));
}

#[tokio::test]
async fn a_process_that_left_the_group_is_killed_too() {
    let outcome = outcome(fixture("escape")).await;
    assert_eq!(outcome.end, End::Exited(0));
    assert_eq!(state(pid(&outcome.stdout.text)), None);
    assert!(outcome.kill_time.expect("it had to be ended") < SOON);
}

#[tokio::test]
async fn what_may_be_left_is_left_and_its_keeper_with_it() {
    let spawners = spawners();
    let run = Run {
        leftovers: Leftovers::Allow,
        ..fixture("escape")
    };
    let outcome = execute(&spawners, run, Stop::default()).await;
    assert_eq!((outcome.end, outcome.kill_time), (End::Exited(0), None));
    let escaped = pid(&outcome.stdout.text);
    assert!(state(escaped).is_some());
    // Neither the next command nor the end of the helpers touches it.
    let next = execute(&spawners, run_next(), Stop::default()).await;
    assert_eq!(next.end, End::Exited(0));
    drop(spawners);
    assert!(matches!(state(escaped), Some('S' | 'R' | 'D')));
    kill_process(escaped, Signal::KILL).unwrap();
    reaped(escaped).await;
}

fn run_next() -> Run {
    run(["true"])
}

// Stdin

#[tokio::test]
async fn stdin_arrives_whole() {
    let stdin = Bytes::from((0..1 << 20).map(|at: u32| b'a' + (at % 23) as u8).collect::<Vec<_>>());
    let output = outcome(Run {
        stdin: stdin.clone(),
        max_output: 1 << 20,
        ..run(["cat"])
    })
    .await
    .stdout;
    assert_eq!((output.bytes, output.truncated_bytes), (1 << 20, 0));
    assert!(output.text.as_bytes() == stdin);
}

#[tokio::test]
async fn stdin_that_nobody_reads_harms_nobody() {
    let stdin = Bytes::from(vec![b'x'; 1 << 20]);
    for script in [":", "exec <&-; sleep 0.2; echo done", "head -c 1; exec <&-; sleep 0.2"] {
        let outcome = outcome(Run {
            stdin: stdin.clone(),
            ..bash(script)
        })
        .await;
        assert_eq!(outcome.end, End::Exited(0), "{script}");
        assert!(outcome.duration < SOON);
    }
    let slow = Run {
        stdin,
        timeout: Duration::from_millis(300),
        ..run(["sleep", "300"])
    };
    assert_eq!(outcome(slow).await.end, timed_out(None, Some(SignalName::TERM)));
}

#[tokio::test]
async fn no_stdin_is_an_empty_one() {
    assert_eq!(stdout(run(["readlink", "/proc/self/fd/0"])).await, "/dev/null\n");
    assert_eq!(stdout(run(["cat"])).await, "");
}

// What the command gets

#[tokio::test]
async fn the_environment_is_what_was_given_and_nothing_else() {
    let env = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y z".to_owned())]);
    assert_eq!(
        stdout(Run {
            env: env.into(),
            ..run(["env"])
        })
        .await,
        "A=1\nB=x=y z\n"
    );
    assert_eq!(
        stdout(Run {
            env: BTreeMap::new().into(),
            ..run(["env"])
        })
        .await,
        ""
    );
}

#[tokio::test]
async fn arguments_and_the_name_are_passed_as_given() {
    assert_eq!(
        stdout(run(["printf", "[%s]", "a b", "", "$HOME", "é"])).await,
        "[a b][][$HOME][é]"
    );
    assert_eq!(stdout(bash("echo $0")).await, "bash\n");
}

#[tokio::test]
async fn the_directory_is_the_one_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    assert_eq!(
        stdout(Run {
            cwd: Some(folder.clone()),
            ..run(["pwd"])
        })
        .await,
        format!("{}\n", folder.display())
    );
    let own = std::env::current_dir().unwrap();
    assert_eq!(stdout(run(["pwd"])).await, format!("{}\n", own.display()));
}

#[tokio::test]
async fn a_relative_program_is_looked_up_in_the_command_s_directory() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("bin")).unwrap();
    write_program(&folder.path().join("bin/tool"), "#!/bin/bash\necho found\n");
    let in_folder = |run: Run| Run {
        cwd: Some(folder.path().to_owned()),
        ..run
    };
    assert_eq!(stdout(in_folder(run(["bin/tool"]))).await, "found\n");
    assert_eq!(stdout(in_folder(run(["./bin/tool"]))).await, "found\n");
    for (path, cwd) in [("/nowhere:bin", ""), ("", "bin"), ("/nowhere:", "bin")] {
        let env = BTreeMap::from([("PATH".to_owned(), path.to_owned())]);
        let cwd = Some(folder.path().join(cwd));
        assert_eq!(
            stdout(Run {
                env: env.into(),
                cwd,
                ..run(["tool"])
            })
            .await,
            "found\n",
            "PATH={path}"
        );
    }
}

#[tokio::test]
async fn the_command_has_three_descriptors() {
    // One that a process started from here would get.
    let own = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty()).unwrap();
    let listed = stdout(Run {
        stdin: "x".into(),
        ..run(["ls", "/proc/self/fd"])
    })
    .await;
    // `ls` itself holds the directory.
    assert_eq!(listed.lines().count(), 4, "{listed}");
    drop(own);
}

#[tokio::test]
async fn signals_are_as_a_program_expects_them() {
    // A program that ignored SIGPIPE, as Rust programs do, would see an error instead of ending.
    let status = "yes | true; echo ${PIPESTATUS[0]}";
    assert_eq!(stdout(bash(status)).await, "141\n");
    let signals = stdout(run(["grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"])).await;
    assert_eq!(signals, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[tokio::test]
async fn a_command_has_a_session_of_its_own_and_gains_no_rights() {
    let fields = stdout(bash(
        "echo $$; cut -d' ' -f5,6 /proc/$$/stat; grep NoNewPrivs /proc/self/status; ulimit -c",
    ))
    .await;
    let pid = fields.lines().next().unwrap();
    assert_eq!(fields, format!("{pid}\n{pid} {pid}\nNoNewPrivs:\t1\n0\n"));

    let rights = Rights {
        may_gain: true,
        umask: Some(0o027),
        ..Rights::default()
    };
    let free = Run {
        rights,
        ..bash("umask; grep NoNewPrivs /proc/self/status")
    };
    assert_eq!(stdout(free).await, "0027\nNoNewPrivs:\t0\n");
}

#[tokio::test]
async fn a_warning_comes_before_the_timeout_and_an_end_after_it_is_told() {
    let warned = |script: &str| Run {
        timeout: Duration::from_secs(60),
        warning: Some(Warning {
            before: Duration::from_millis(59_500),
            signal: "USR1".parse().unwrap(),
        }),
        ..bash(script)
    };
    let caught = outcome(warned(
        "trap 'echo warned; exit 3' USR1; echo ready; while :; do sleep 0.01; done",
    ))
    .await;
    assert_eq!(
        (caught.end, caught.ended_by),
        (End::Exited(3), Some(EndedBy::WarnSignal))
    );
    assert_eq!(caught.stdout.text, "ready\nwarned\n");

    let fell = outcome(warned("exec sleep 300")).await;
    assert_eq!(fell.end, timed_out(None, Some("USR1".parse().unwrap())));
    assert_eq!(fell.ended_by, Some(EndedBy::WarnSignal));
}

#[tokio::test]
async fn usage_is_the_command_s_own_and_that_of_what_it_left() {
    let small = outcome(run(["true"])).await.usage.expect("it was started");
    assert!(small.max_rss_bytes > 0 && small.max_rss_bytes < 16 << 20, "{small:?}");
    let script = "(setsid bash -c 'for ((i = 0; i < 200000; i++)); do :; done' &) ; sleep 0.05";
    let busy = outcome(bash(script)).await.usage.expect("it was started");
    assert!(busy.user_ms + busy.system_ms >= 50, "{busy:?}");
}

#[tokio::test]
async fn limits_are_seen_by_the_command() {
    let limits = Limits {
        memory: Some("512MiB".parse().unwrap()),
        processes: None,
        open_files: std::num::NonZeroU64::new(77),
        file_size: Some("3MiB".parse().unwrap()),
        cpu_time: Some("5s".parse().unwrap()),
    };
    let script = "ulimit -v; ulimit -n; ulimit -f; ulimit -t; ulimit -Ht";
    let limited = Run { limits, ..bash(script) };
    assert_eq!(stdout(limited).await, "524288\n77\n3072\n5\n6\n");
}

#[tokio::test]
async fn a_limit_that_is_reached_ends_the_command() {
    let limits = Limits {
        file_size: Some("1MiB".parse().unwrap()),
        ..Limits::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let script = "exec head -c 2M /dev/zero >file";
    let cwd = Some(folder.path().to_owned());
    let outcome = outcome(Run {
        limits,
        cwd,
        ..bash(script)
    })
    .await;
    assert_eq!(
        outcome.end,
        End::Signaled(SignalName::from_number(Signal::XFSZ.as_raw()).expect("a signal"))
    );
    assert_eq!(fs::metadata(folder.path().join("file")).unwrap().len(), 1 << 20);
}

// What cannot be started

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn a_missing_program_is_told_with_where_it_was_looked_for() {
    let (kind, message) = refusal(run(["ffmpeg-of-nobody", "-i"])).await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "ffmpeg-of-nobody" not found in PATH (/usr/bin:/bin): install"#),
        "{message}"
    );

    let (kind, message) = refusal(Run {
        env: BTreeMap::new().into(),
        ..run(["ffmpeg-of-nobody"])
    })
    .await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.contains("(/bin:/usr/bin, the default as env has none)"),
        "{message}"
    );

    let (kind, message) = refusal(run(["/no/such/program"])).await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "/no/such/program" does not exist: "#),
        "{message}"
    );

    let (kind, message) = refusal(Run {
        cwd: Some("/tmp".into()),
        ..run(["./no-such-program"])
    })
    .await;
    assert_eq!(kind, FailureKind::ProgramMissing);
    assert!(
        message.starts_with(r#"program "./no-such-program" does not exist in cwd "/tmp": "#),
        "{message}"
    );

    let (kind, message) = refusal(run([""])).await;
    assert_eq!(kind, FailureKind::ProgramMissing, "{message}");

    let (_, message) = refusal(run([&"x".repeat(100_000)])).await;
    assert!(message.len() < 1000);
}

#[tokio::test]
async fn what_is_no_program_is_told_with_what_it_is() {
    for (run, expected) in [
        (
            fixture("not-executable"),
            "/not-executable\" may not be executed by the command's user (uid ",
        ),
        (
            fixture("no-first-line"),
            "/no-first-line\" is neither a program for this machine nor a script",
        ),
        (
            fixture("missing-interpreter"),
            "as its interpreter \"/no/such/interpreter\" does not exist: install it",
        ),
        (
            fixture("windows-line-ends"),
            "as its interpreter \"/bin/bash\\r\" does not exist: the file has Windows line",
        ),
        (run(["/tmp"]), "program \"/tmp\" is a directory"),
        (run(["/dev/null"]), "program \"/dev/null\" is not a regular file"),
    ] {
        let (kind, message) = refusal(run).await;
        assert_eq!(kind, FailureKind::NotExecutable, "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_program_that_may_not_be_executed_does_not_hide_one_that_may() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("true"), "").unwrap();
    let path = |rest: &str| BTreeMap::from([("PATH".to_owned(), format!("{}{rest}", folder.path().display()))]);
    assert_eq!(
        outcome(Run {
            env: path(":/usr/bin").into(),
            ..run(["true"])
        })
        .await
        .end,
        End::Exited(0)
    );
    let (kind, message) = refusal(Run {
        env: path(":/nowhere").into(),
        ..run(["true"])
    })
    .await;
    assert_eq!(kind, FailureKind::NotExecutable, "{message}");
    assert!(message.contains(folder.path().to_str().unwrap()), "{message}");
}

#[tokio::test]
async fn a_bad_directory_is_told_apart_from_a_bad_program() {
    for (cwd, expected) in [
        ("/no/such/folder", r#"cwd "/no/such/folder" does not exist: create it"#),
        ("/etc/passwd", r#"cwd "/etc/passwd" is not a directory"#),
        ("/etc/passwd/below", r#"cwd "/etc/passwd/below" does not exist"#),
    ] {
        let (kind, message) = refusal(Run {
            cwd: Some(cwd.into()),
            ..run(["true"])
        })
        .await;
        assert_eq!(kind, FailureKind::CwdMissing, "{message}");
        assert!(message.starts_with(expected), "{message}");
    }
}

#[tokio::test]
async fn arguments_past_the_kernel_s_limit_are_told_with_their_size() {
    let (kind, message) = refusal(run(["true", &"x".repeat(200_000)])).await;
    assert_eq!(kind, FailureKind::SpawnFailed);
    assert!(
        message.contains("arguments (200000 bytes)") && message.contains("through stdin"),
        "{message}"
    );
}

/// The forks of other threads hold a file open that this one has just written and closed, for a
/// moment.
#[test]
fn a_script_just_written_runs_while_many_others_start() {
    let folder = tempfile::tempdir().unwrap();
    let write_and_run = |thread: u32| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for number in 0..100 {
            let path = folder.path().join(format!("script-{thread}-{number}"));
            write_program(&path, "#!/bin/sh\n");
            let outcome = runtime.block_on(outcome(run([path.to_str().unwrap()])));
            assert_eq!(outcome.end, End::Exited(0), "{thread}-{number}");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || write_and_run(thread));
        }
    });
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

#[tokio::test]
async fn a_program_that_stays_open_for_writing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("busy");
    fs::copy("/bin/true", &path).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let (kind, message) = refusal(run([path.to_str().unwrap()])).await;
    assert_eq!(kind, FailureKind::SpawnFailed);
    assert!(message.contains("is still open for writing"), "{message}");
    drop(writer);
    assert_eq!(outcome(run([path.to_str().unwrap()])).await.end, End::Exited(0));
}

#[test]
fn a_run_shows_no_secrets() {
    let env = BTreeMap::from([("TOKEN".to_owned(), "hush".to_owned())]);
    let shown = format!(
        "{:?}",
        Run {
            env: env.into(),
            stdin: "hush".into(),
            ..run(["true", "hush"])
        }
    );
    assert_eq!(shown, r#"Run { program: "true", .. }"#);
}
