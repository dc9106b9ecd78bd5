//! A worker as a process, given jobs and asked for results in one of two ways.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::cage::{Cage, PATIENCE};
use crate::rabbit::Rabbit;
use crate::support::cli::{Cli, Finished, Running};
use crate::support::process::Signal;

/// The pool of these tests.
pub const POOL: &str = "zoo";

/// How often who waits for a result looks whether the worker lives.
const LOOK: Duration = Duration::from_millis(200);

/// A variable of the worker's own that no command may see.
pub const SECRET: &str = "ZOO_SECRET";

/// Starts a program that may leave core files, with its stdin and stdout at two paths: only a shell does this without a
/// fork, so that the program's number is known.
const START: &str = r#"ulimit -S -c hard; in=$1 out=$2; shift 2; exec "$@" <"$in" >"$out""#;

/// How jobs come to the worker, and results from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// `synthex run`: a line of stdin, a line of stdout.
    Run,
    /// `synthex worker`: messages on RabbitMQ.
    Worker,
}

/// A worker that runs.
pub struct Worker {
    pub running: Running,
    jobs: Jobs,
    results: Arc<Inbox>,
}

enum Jobs {
    /// The end of a FIFO; when it is closed, no more jobs come.
    Lines(File),
    Messages(Rabbit),
}

impl Worker {
    /// Starts one for a pool of so many slots.
    pub fn start(via: Via, cage: &Cage, slots: usize) -> Self {
        Self::start_with(via, cage, slots, "")
    }

    /// Starts one with these lines in its pool's file.
    pub fn start_with(via: Via, cage: &Cage, slots: usize, lines: &str) -> Self {
        let pool = cage.outside("pool.toml");
        std::fs::write(&pool, pool_file(cage, slots, lines)).unwrap();
        let pool = pool.to_str().unwrap();
        let results = Arc::new(Inbox::default());
        match via {
            Via::Run => {
                let (fifo, printed) = (fifo(cage, "jobs"), fifo(cage, "results"));
                let inbox = Arc::clone(&results);
                let lines = printed.clone();
                thread::spawn(move || inbox.read(File::open(lines).unwrap()));
                let running = launch(&fifo, &printed, &["run", "--json", "--pool", pool, "-"], &[]);
                let jobs = OpenOptions::new().write(true).open(&fifo).unwrap(); // when the worker has it open
                Self {
                    running,
                    jobs: Jobs::Lines(jobs),
                    results,
                }
            }
            Via::Worker => {
                let rabbit = Rabbit::new(Arc::clone(&results));
                let env = [
                    ("SYNTHEX_AMQP_URL", &*rabbit.url),
                    ("SYNTHEX_NAMESPACE", &rabbit.namespace),
                ];
                let null = Path::new("/dev/null");
                let running = launch(null, null, &["worker", pool, "--metrics-addr", "127.0.0.1:0"], &env);
                Self {
                    running,
                    jobs: Jobs::Messages(rabbit),
                    results,
                }
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Gives it a job.
    pub fn submit(&self, id: &str, job: &Value) {
        self.submit_all([(id.to_owned(), job.clone())]);
    }

    /// Gives it many jobs.
    pub fn submit_all(&self, jobs: impl IntoIterator<Item = (String, Value)>) {
        let jobs = jobs.into_iter().map(|(id, mut job)| {
            job["id"] = id.clone().into();
            (id, job)
        });
        match &self.jobs {
            Jobs::Messages(rabbit) => rabbit.publish_all(jobs.map(|(id, job)| (id, job.to_string()))),
            Jobs::Lines(file) => {
                for (_, job) in jobs {
                    writeln!(&*file, "{job}").unwrap();
                }
            }
        }
    }

    /// The only result of a job, which has to come.
    #[track_caller]
    pub fn result(&self, id: &str) -> Value {
        self.result_at(id).0
    }

    /// The only result of a job, and when it came.
    #[track_caller]
    pub fn result_at(&self, id: &str) -> (Value, Instant) {
        let found = self.results.take(id, || self.running.is_running());
        found.unwrap_or_else(|why| panic!("{why}; the worker said:\n{}", self.running.stderr()))
    }

    /// Checks that it runs another job as it should.
    #[track_caller]
    pub fn goes_on(&self, id: &str) {
        self.submit(id, &serde_json::json!({"command": ["echo", "well"]}));
        let result = self.result(id);
        assert_eq!(
            (&result["status"], &result["stdout"]["text"]),
            (&"succeeded".into(), &"well\n".into()),
            "{result:#}"
        );
    }

    /// Stops it in good order, when all its jobs have ended, and checks that nothing was cut and nothing went wrong.
    #[track_caller]
    pub fn stop(self) {
        let Self { running, jobs, results } = self;
        let is_run = matches!(jobs, Jobs::Lines(_));
        if !is_run {
            running.signal(Signal::TERM);
        }
        drop(jobs);
        let finished = running.wait();
        // With `run`, 3 says that some job did not succeed.
        assert!(
            finished.code == Some(0) || is_run && finished.code == Some(3),
            "{finished:#?}"
        );
        for word in ["panicked", "ERROR"] {
            assert!(!finished.stderr.contains(word), "{}", finished.stderr);
        }
        results.assert_empty();
    }

    /// Kills it, and waits until it is gone.
    pub fn kill(self) -> Finished {
        self.running.signal(Signal::KILL);
        self.running.wait()
    }
}

fn pool_file(cage: &Cage, slots: usize, lines: &str) -> String {
    let (inside, record) = (cage.inside(), cage.record());
    format!(
        r#"
pool = "{POOL}"
slots = {slots}
prefetch = {slots}
cwd = "{inside}"
timeout = "200s"
kill_grace = "1s"
breaker.failures = 1000000
max_job_bytes = "8MiB"
{lines}
[env]
ZOO_DIR = "{record}"
"#,
        inside = inside.display(),
        record = record.display(),
    )
}

fn launch(stdin: &Path, stdout: &Path, args: &[&str], env: &[(&str, &str)]) -> Running {
    let words = ["-c", START, "start", stdin.to_str().unwrap(), stdout.to_str().unwrap()];
    let words = [&words[..], &[env!("CARGO_BIN_EXE_synthex")], args].concat();
    let cli = Cli::program("/bin/bash", words).env(SECRET, "secret").limit(PATIENCE);
    env.iter().fold(cli, |cli, (key, value)| cli.env(key, value)).spawn()
}

fn fifo(cage: &Cage, name: &str) -> std::path::PathBuf {
    let path = cage.outside(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

/// The results that have come and were not taken yet, by job.
#[derive(Default)]
pub struct Inbox {
    results: Mutex<HashMap<String, Vec<(Value, Instant)>>>,
    news: Condvar,
}

impl Inbox {
    /// Puts a result in.
    pub fn put(&self, result: &[u8]) {
        let came = Instant::now();
        let result: Value = serde_json::from_slice(result).expect("a result is JSON");
        let id = result["job_id"].as_str().expect("a result has a job's id").to_owned();
        self.results.lock().unwrap().entry(id).or_default().push((result, came));
        self.news.notify_all();
    }

    /// Puts in what a worker prints, until it ends.
    fn read(&self, printed: File) {
        for line in BufReader::new(printed).split(b'\n') {
            match line {
                Ok(line) if line.last() == Some(&b'}') => self.put(&line),
                _ => return, // the worker was killed while it printed
            }
        }
    }

    /// Waits for the only result of a job, as long as `may_come` says that it may.
    fn take(&self, id: &str, may_come: impl Fn() -> bool) -> Result<(Value, Instant), String> {
        let deadline = Instant::now() + PATIENCE;
        let mut results = self.results.lock().unwrap();
        loop {
            if let Some(found) = results.remove(id) {
                return match <[_; 1]>::try_from(found) {
                    Ok([result]) => Ok(result),
                    Err(several) => Err(format!("{id} has several results: {several:#?}")),
                };
            }
            if Instant::now() > deadline || !may_come() {
                return Err(format!("no result of {id} came"));
            }
            results = self.news.wait_timeout(results, LOOK).unwrap().0;
        }
    }

    #[track_caller]
    fn assert_empty(&self) {
        let left = self.results.lock().unwrap();
        assert!(left.is_empty(), "results that were not to come: {left:#?}");
    }
}
