//! The executor alone: no broker, no messages.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use synthex::executor::{self, CgroupChoice, End, Leftovers, Outcome, Rights, Run, SpawnerOptions, Spawners, Stop};
use synthex::message::{Limits, SignalName};
use tokio::runtime::{Builder, Runtime};

use crate::SYNTHEX;
use crate::processes::Cpu;
use crate::rate::{Sample, Subject};
use crate::yardsticks::{Program, again};

/// The first argument of a process that is an executor.
pub const ROLE: &str = "__executor";

/// Commands that run at once.
const CONCURRENCIES: [usize; 5] = [1, 2, 4, 16, 64];

/// The executor as a service has it, on whichever version of it.
#[derive(Clone)]
pub struct Executor {
    spawners: Spawners,
}

impl Executor {
    /// Starts what it needs; to be done before there are threads.
    pub fn start() -> Self {
        let options = SpawnerOptions {
            program: SYNTHEX.into(),
            ..SpawnerOptions::service(CgroupChoice::Auto)
        };
        Self {
            spawners: Spawners::start(options).expect("helper processes"),
        }
    }

    /// Runs a command, hardened and captured as the default pool has it.
    pub async fn execute(&self, command: &[&OsStr], timeout: Duration) -> Outcome {
        let run = Run {
            program: command[0].to_owned(),
            args: command[1..].iter().map(|arg| (*arg).to_owned()).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]).into(),
            cwd: None,
            stdin: Bytes::new(),
            timeout,
            term_signal: SignalName::TERM,
            kill_grace: Duration::from_secs(1),
            warning: None,
            leftovers: Leftovers::Kill,
            limits: Limits::default(),
            rights: Rights::default(),
            max_output: 64 * 1024,
        };
        executor::execute(&self.spawners, run, Stop::default()).await
    }
}

/// The runtime as the binary makes it.
pub fn runtime() -> Runtime {
    let runtime = Builder::new_multi_thread().enable_all().build();
    runtime.expect("threads are not short")
}

pub fn subjects(program: &Program) -> Vec<Subject> {
    let at = |concurrency: usize| {
        let program = program.clone();
        Subject {
            name: format!("executor, {concurrency} at once"),
            is_yardstick: false,
            run: Box::new(move || measure(&program, concurrency)),
        }
    };
    CONCURRENCIES.map(at).into()
}

fn measure(program: &Program, concurrency: usize) -> Sample {
    let path = program.path.to_str().expect("our paths are text");
    again(&[ROLE, path, &program.jobs.to_string(), &concurrency.to_string()])
}

/// The executor as a process of its own.
pub fn main(args: &[String]) {
    let [program, jobs, concurrency] = args else {
        panic!("expected a program, a number of jobs and how many run at once");
    };
    let number = |text: &String| text.parse::<usize>().expect("a number");
    let (jobs, concurrency) = (number(jobs), number(concurrency));
    let executor = Executor::start();
    let sample = runtime().block_on(async {
        // So that all helpers are there.
        run(&executor, program, 4 * concurrency, concurrency).await;
        let (before, start) = (Cpu::of(std::process::id()), Instant::now());
        run(&executor, program, jobs, concurrency).await;
        let time = start.elapsed();
        Sample::new(jobs, time, Cpu::of(std::process::id()).since(before))
    });
    println!("{}", serde_json::to_string(&sample).expect("it is plain data"));
}

async fn run(executor: &Executor, program: &str, jobs: usize, concurrency: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let slots: Vec<_> = (0..concurrency)
        .map(|_| {
            let (executor, program, next) = (executor.clone(), program.to_owned(), next.clone());
            tokio::spawn(async move {
                while next.fetch_add(1, Ordering::Relaxed) < jobs {
                    let outcome = executor.execute(&[OsStr::new(&program)], Duration::from_secs(60)).await;
                    assert_eq!(outcome.end, End::Exited(0), "{outcome:?}");
                }
            })
        })
        .collect();
    for slot in slots {
        slot.await.expect("it does not panic");
    }
}
