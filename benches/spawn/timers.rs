//! How late a timeout is while the machine is busy starting commands.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use synthex::executor::End;

use crate::executor::{Executor, runtime};
use crate::processes::raise_priority;
use crate::statistics::{number, percentile};

/// The first argument of the process that is measured.
pub const ROLE: &str = "__timers";

/// Commands that keep the machine busy.
const BUSY: usize = 64;

/// Commands at a time that run into their timeout.
const TIMED: usize = 8;

/// Runs of each of them.
const SAMPLES: usize = 320;

const TIMEOUT: Duration = Duration::from_millis(100);

/// How long after the last result a process is still waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A sleep like those by which a service keeps its own times.
const NAP: Duration = Duration::from_millis(5);

/// What runs into its timeout, and what it is called: a script that tells the number of its run and all its processes.
const COMMANDS: [(&str, &str); 3] = [
    ("sleep", r#"echo "$0 $$" > "$1"; exec sleep 10"#),
    (
        "with a grandchild",
        r#"sleep 10 & echo "$0 $$ $!" > "$1"; exec sleep 10"#,
    ),
    (
        "with one that left the group",
        r#"setsid sleep 10 & echo "$0 $$ $!" > "$1"; exec sleep 10"#,
    ),
];

/// Measures in a process of its own, whose words are the table.
pub fn table() {
    let own = std::env::current_exe().expect("/proc is there on Linux");
    let status = Command::new(own).arg(ROLE).stdin(Stdio::null()).status();
    let status = status.expect("it has been started before");
    assert!(status.success(), "{ROLE}: {status}");
}

/// A run that was to end by its timeout.
struct Timed {
    number: usize,
    /// When its timeout was.
    due: Instant,
    returned: Instant,
    ended: bool,
}

pub fn main() {
    let executor = Executor::start();
    let folder = tempfile::tempdir().expect("the folder for temporary files can be written");
    let fifo = folder.path().join("started");
    let made = Command::new("mkfifo")
        .arg(&fifo)
        .status()
        .expect("it is part of coreutils");
    assert!(made.success(), "mkfifo: {made}");
    let results_are_in = Arc::new(AtomicBool::new(false));
    let watch = {
        let (pipe, stop) = (open(&fifo), results_are_in.clone());
        thread::spawn(move || Watch::new(pipe).run(&stop))
    };
    let measured = runtime().block_on(measure(executor, fifo));
    results_are_in.store(true, Ordering::Relaxed);
    let watch = watch.join().expect("it does not panic");
    measured.print(&watch);
}

/// Both ends in one, so that it never ends, and opening it never waits.
fn open(fifo: &Path) -> File {
    let opened = File::options().read(true).write(true).open(fifo);
    opened.expect("the pipe was just made")
}

struct Measured {
    runs: Vec<Timed>,
    jobs: usize,
    time: Duration,
    idle_naps: Vec<f64>,
    busy_naps: Vec<f64>,
}

async fn measure(executor: Executor, fifo: PathBuf) -> Measured {
    let stop = Arc::new(AtomicBool::new(false));
    let idle_naps = tokio::spawn(naps(stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let idle_naps = idle_naps.await.expect("it does not panic");

    let (stop, jobs, start) = (Arc::new(AtomicBool::new(false)), Arc::default(), Instant::now());
    let busy: Vec<_> = (0..BUSY)
        .map(|_| tokio::spawn(keep_busy(executor.clone(), stop.clone(), Arc::clone(&jobs))))
        .collect();
    let busy_naps = tokio::spawn(naps(stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await; // all helpers are there
    let next = Arc::new(AtomicUsize::new(0));
    let timed: Vec<_> = (0..TIMED)
        .map(|_| tokio::spawn(time_out(executor.clone(), fifo.clone(), next.clone())))
        .collect();
    let mut runs = Vec::new();
    for timed in timed {
        runs.extend(timed.await.expect("it does not panic"));
    }
    stop.store(true, Ordering::Relaxed);
    for busy in busy {
        busy.await.expect("it does not panic");
    }
    Measured {
        runs,
        jobs: jobs.load(Ordering::Relaxed),
        time: start.elapsed(),
        idle_naps,
        busy_naps: busy_naps.await.expect("it does not panic"),
    }
}

async fn keep_busy(executor: Executor, stop: Arc<AtomicBool>, jobs: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let outcome = executor
            .execute(&[OsStr::new("/bin/true")], Duration::from_secs(60))
            .await;
        assert_eq!(outcome.end, End::Exited(0), "{outcome:?}");
        jobs.fetch_add(1, Ordering::Relaxed);
    }
}

/// How late sleeps of a task are.
async fn naps(stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        tokio::time::sleep(NAP).await;
        late.push(millis(start.elapsed().saturating_sub(NAP)));
    }
    late
}

async fn time_out(executor: Executor, fifo: PathBuf, next: Arc<AtomicUsize>) -> Vec<Timed> {
    let mut runs = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= SAMPLES * COMMANDS.len() {
            return runs;
        }
        let (_, script) = COMMANDS[number % COMMANDS.len()];
        let id = number.to_string();
        let command = ["/bin/sh", "-c", script, &id].map(OsStr::new);
        let command = [command.as_slice(), &[fifo.as_os_str()]].concat();
        let called = Instant::now();
        let outcome = executor.execute(&command, TIMEOUT).await;
        runs.push(Timed {
            number,
            due: called + outcome.spawn_time + TIMEOUT,
            returned: Instant::now(),
            ended: matches!(outcome.end, End::TimedOut { .. }),
        });
    }
}

/// A look at processes from outside of what starts and ends them.
struct Watch {
    pipe: File,
    unread: Vec<u8>,
    /// Processes that live, by the run they are of.
    alive: Vec<(usize, OwnedFd)>,
    /// When the last process of a run was dead.
    dead: HashMap<usize, Instant>,
    is_urgent: bool,
}

impl Watch {
    fn new(pipe: File) -> Self {
        Self {
            pipe,
            unread: Vec::new(),
            alive: Vec::new(),
            dead: HashMap::new(),
            is_urgent: false,
        }
    }

    /// Watches until all processes are dead, or patience is over.
    fn run(mut self, results_are_in: &AtomicBool) -> Self {
        self.is_urgent = raise_priority();
        let mut last_result = Instant::now();
        loop {
            if !results_are_in.load(Ordering::Relaxed) {
                last_result = Instant::now();
            } else if self.alive.is_empty() || last_result.elapsed() > PATIENCE {
                return self.clear_up();
            }
            self.wait();
        }
    }

    fn wait(&mut self) {
        const AT_MOST: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        let mut ready = vec![PollFd::new(&self.pipe, PollFlags::IN)];
        ready.extend(
            self.alive
                .iter()
                .map(|(_, process)| PollFd::new(process, PollFlags::IN)),
        );
        poll(&mut ready, Some(&AT_MOST)).expect("no signal is caught in this process");
        let now = Instant::now();
        let mut ready = ready.into_iter().map(|entry| !entry.revents().is_empty());
        let is_told = ready.next().expect("the pipe is the first");
        let ready: Vec<bool> = ready.collect();
        let mut ready = ready.into_iter();
        let dead = &mut self.dead;
        self.alive.retain(|(number, _)| {
            let is_dead = ready.next().expect("there is one for each");
            if is_dead {
                dead.insert(*number, now);
            }
            !is_dead
        });
        if is_told {
            self.listen(now);
        }
    }

    /// Reads what runs tell of their processes.
    fn listen(&mut self, now: Instant) {
        let mut buffer = [0; 4096];
        let count = self.pipe.read(&mut buffer).expect("a pipe can be read");
        self.unread.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unread.drain(..=end).collect();
            let line = String::from_utf8(line).expect("a script writes text");
            let mut numbers = line
                .split_whitespace()
                .map(|word| word.parse::<i32>().expect("a number"));
            let run = numbers.next().and_then(|run| usize::try_from(run).ok());
            let run = run.expect("a line begins with the number of its run");
            for pid in numbers.filter_map(Pid::from_raw) {
                match pidfd_open(pid, PidfdFlags::empty()) {
                    Ok(process) => self.alive.push((run, process)),
                    Err(_) => drop(self.dead.insert(run, now)),
                }
            }
        }
    }

    /// Ends the processes that nobody else has ended.
    fn clear_up(self) -> Self {
        for (_, process) in &self.alive {
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        self
    }

    /// When all of a run was dead; `None` if it was not, or was not seen.
    fn end_of(&self, run: usize) -> Option<Instant> {
        let lives = self.alive.iter().any(|(number, _)| *number == run);
        self.dead.get(&run).copied().filter(|_| !lives)
    }
}

impl Measured {
    fn print(&self, watch: &Watch) {
        let rate = number(self.jobs) / self.time.as_secs_f64();
        println!("\nms late, while {BUSY} slots run {rate:.0} times /bin/true a second");
        println!("{:<46} {:>7} {:>9} {:>9} {:>9}", "", "samples", "p50", "p99", "most");
        row(&format!("a sleep of {NAP:?}, nothing else runs"), &self.idle_naps);
        row(&format!("a sleep of {NAP:?}"), &self.busy_naps);
        for (index, (name, _)) in COMMANDS.iter().enumerate() {
            let runs = || self.runs.iter().filter(|run| run.number % COMMANDS.len() == index);
            let ends = || runs().filter(|run| run.ended);
            let results: Vec<f64> = ends().map(|run| late(run.returned, run.due)).collect();
            let dead = ends().filter_map(|run| Some(late(watch.end_of(run.number)?, run.due)));
            let dead: Vec<f64> = dead.collect();
            row(&format!("{name}: result"), &results);
            row(&format!("{name}: last process dead"), &dead);
            let is_left = |run: &&Timed| watch.alive.iter().any(|(number, _)| *number == run.number);
            let alive = runs().filter(is_left).count();
            let other = runs().count() - ends().count();
            if alive + other > 0 {
                println!(
                    "  of {} runs, {alive} left a process alive, {other} ended otherwise",
                    runs().count()
                );
            }
        }
        if !watch.is_urgent {
            println!("  deaths were seen late too: no right to a real-time priority");
        }
    }
}

fn row(name: &str, late: &[f64]) {
    if late.is_empty() {
        return println!("{name:<46} {:>7}", 0);
    }
    println!(
        "{name:<46} {:>7} {:>9.2} {:>9.2} {:>9.2}",
        late.len(),
        percentile(late, 0.5),
        percentile(late, 0.99),
        percentile(late, 1.0),
    );
}

/// Milliseconds from one moment to another, negative if it was before.
fn late(at: Instant, due: Instant) -> f64 {
    millis(at.saturating_duration_since(due)) - millis(due.saturating_duration_since(at))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
