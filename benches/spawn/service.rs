//! `synthex run`: the whole binary, its jobs through stdin.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::processes::Cpu;
use crate::rate::{Sample, Subject};
use crate::yardsticks::Program;

/// Commands that run at once.
const SLOTS: [usize; 4] = [2, 4, 16, 64];

/// Room in each of its pipes: neither side waits for the other.
const PIPE: usize = 1024 * 1024;

/// How often its results are looked at. Being woken for each of them would take time that is the service's.
const LOOK: Duration = Duration::from_millis(5);

pub fn subjects(program: &Program, binaries: &[(&'static str, PathBuf)]) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (name, binary) in binaries {
        subjects.extend(SLOTS.map(|slots| {
            let (program, binary) = (program.clone(), binary.clone());
            Subject {
                name: format!("{name} run, {slots} slots"),
                is_yardstick: false,
                run: Box::new(move || measure(&program, &binary, slots)),
            }
        }));
    }
    subjects
}

fn measure(program: &Program, binary: &Path, slots: usize) -> Sample {
    let mut service = Service::start(binary, slots);
    let job = json!({"command": [program.path]});
    // So that all helpers are there.
    service.submit(&job, 4 * slots);
    service.succeed(4 * slots);
    let (before, start) = (Cpu::of(service.pid()), Instant::now());
    service.submit(&job, program.jobs);
    service.succeed(program.jobs);
    let time = start.elapsed();
    Sample::new(program.jobs, time, Cpu::of(service.pid()).since(before))
}

/// A `synthex run` that waits for jobs.
pub struct Service {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    unread: Vec<u8>,
    /// Jobs without a result.
    in_hand: usize,
}

impl Service {
    pub fn start(binary: &Path, slots: usize) -> Self {
        let mut command = Command::new(binary);
        command.args(["run", "--json", "--slots", &slots.to_string(), "-"]);
        // What it says of the signals that end it does not belong in a table.
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("the binary is there");
        let stdin = child.stdin.take().expect("it is a pipe");
        let stdout = child.stdout.take().expect("it is a pipe");
        for pipe in [
            rustix::pipe::fcntl_setpipe_size(&stdin, PIPE),
            rustix::pipe::fcntl_setpipe_size(&stdout, PIPE),
        ] {
            pipe.expect("a pipe may have 1 MiB");
        }
        Self {
            child,
            stdin: Some(stdin),
            stdout,
            unread: Vec::new(),
            in_hand: 0,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a job, so many times.
    pub fn submit(&mut self, job: &Value, times: usize) {
        let stdin = self.stdin.as_mut().expect("it takes jobs until it is dropped");
        let lines = format!("{job}\n").repeat(times);
        stdin.write_all(lines.as_bytes()).expect("it reads jobs");
        self.in_hand += times;
    }

    /// Waits for so many results.
    ///
    /// # Panics
    /// When one of them is not a success.
    pub fn succeed(&mut self, mut results: usize) {
        let mut buffer = vec![0; PIPE];
        while results > 0 {
            let count = self.stdout.read(&mut buffer).expect("a pipe can be read");
            assert!(count > 0, "it has ended: {:?}", self.child.wait());
            self.unread.extend_from_slice(&buffer[..count]);
            let whole = self
                .unread
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            for line in self
                .unread
                .drain(..whole)
                .as_slice()
                .split_inclusive(|byte| *byte == b'\n')
            {
                assert!(is_success(line), "{}", String::from_utf8_lossy(line));
                results -= 1;
                self.in_hand -= 1;
            }
            if results > 0 {
                sleep(LOOK);
            }
        }
    }
}

fn is_success(line: &[u8]) -> bool {
    const STATUS: &[u8] = br#""status":"succeeded""#;
    line.windows(STATUS.len()).any(|window| window == STATUS)
}

/// Ends it, and what it runs.
impl Drop for Service {
    fn drop(&mut self) {
        self.stdin = None; // without jobs in hand, it ends by itself
        let signals = if self.in_hand > 0 { 2 } else { 0 }; // the first asks running jobs to end, the second ends them
        for _ in 0..signals {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            sleep(Duration::from_millis(50));
        }
        let _ = self.child.wait();
    }
}
