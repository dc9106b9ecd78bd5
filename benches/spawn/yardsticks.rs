//! Programs to run, and programs that do nothing but run them.

#![expect(unsafe_code, reason = "posix_spawn has no safe form")]

use std::ffi::{CString, c_int};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::processes::Cpu;
use crate::rate::{Sample, Subject};

/// The first argument of the `posix_spawn` loop.
pub const ROLE: &str = "__posix-spawn";

/// The smallest program there is: no dynamic linker, no libc.
const LIBC_FREE: &str = r#"
void _start(void) {
#ifdef __aarch64__
    __asm__ volatile("mov x8, #93\n mov x0, #0\n svc #0");
#else
    __asm__ volatile("mov $60, %eax\n xor %edi, %edi\n syscall");
#endif
    __builtin_unreachable();
}
"#;

/// A command without arguments.
#[derive(Clone)]
pub struct Program {
    pub name: &'static str,
    pub path: PathBuf,
    /// How many of it are about a second's work.
    pub jobs: usize,
}

pub fn bin_true() -> Program {
    Program {
        name: "/bin/true",
        path: "/bin/true".into(),
        jobs: 2_000,
    }
}

/// Builds the program that only exits.
pub fn libc_free(folder: &Path) -> Program {
    let (source, path) = (folder.join("exit.c"), folder.join("exit"));
    fs::write(&source, LIBC_FREE).expect("the folder is ours");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-nostdlib", "-static", "-o"]).arg(&path).arg(&source);
    let built = cc.status().expect("cc is installed");
    assert!(built.success(), "cc: {built}");
    Program {
        name: "libc-free",
        path,
        jobs: 5_000,
    }
}

/// How many commands can run at the same moment.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub fn subjects(program: &Program) -> Vec<Subject> {
    let with_streams = |streams: Streams, is_yardstick: bool| {
        let program = program.clone();
        Subject {
            name: format!("posix_spawn + waitpid, {} threads{}", cores(), streams.name()),
            is_yardstick,
            run: Box::new(move || posix_spawn(&program, streams)),
        }
    };
    let (for_xargs, name) = (program.clone(), format!("xargs -P{} -n1", cores()));
    let xargs = Subject {
        name,
        is_yardstick: false,
        run: Box::new(move || xargs(&for_xargs)),
    };
    vec![
        with_streams(Streams::Inherited, true),
        with_streams(Streams::Captured, false),
        xargs,
    ]
}

fn xargs(program: &Program) -> Sample {
    let input = tempfile::NamedTempFile::new().expect("the folder for temporary files can be written");
    fs::write(input.path(), "x\n".repeat(program.jobs)).expect("the file is ours");
    let mut command = Command::new("xargs");
    command.args(["-n1", &format!("-P{}", cores())]).arg(&program.path);
    command.stdin(fs::File::open(input.path()).expect("it was just written"));
    let start = Instant::now();
    let status = command.status().expect("xargs is installed");
    let time = start.elapsed();
    assert!(status.success(), "xargs: {status}");
    Sample {
        service: None,
        ..Sample::new(program.jobs, time, Cpu::default())
    }
}

/// What becomes of a command's output.
#[derive(Clone, Copy, PartialEq)]
enum Streams {
    Inherited,
    Captured,
}

impl Streams {
    const fn name(self) -> &'static str {
        match self {
            Self::Inherited => "",
            Self::Captured => ", 2 pipes",
        }
    }
}

fn posix_spawn(program: &Program, streams: Streams) -> Sample {
    again(&[
        ROLE,
        program.path.to_str().expect("our paths are text"),
        &program.jobs.to_string(),
        streams.name(),
    ])
}

/// Starts this program again in another role, and gives what that has measured.
pub fn again(args: &[&str]) -> Sample {
    let own = std::env::current_exe().expect("/proc is there on Linux");
    let output = Command::new(own)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("it has been started before");
    assert!(output.status.success(), "{args:?}: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a role prints its sample")
}

/// The `posix_spawn` loop as a process of its own, small as such a program is.
pub fn main(args: &[String]) {
    let [program, jobs, streams] = args else {
        panic!("expected a program, a number of jobs and what becomes of output");
    };
    let program = CString::new(program.as_str()).expect("a path has no zero byte");
    let jobs: usize = jobs.parse().expect("a number of jobs");
    let streams = match streams.is_empty() {
        true => Streams::Inherited,
        false => Streams::Captured,
    };
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let before = Cpu::of(std::process::id());
    thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < jobs {
                    run(&program, streams);
                }
            });
        }
    });
    let time = start.elapsed();
    let sample = Sample::new(jobs, time, Cpu::of(std::process::id()).since(before));
    println!("{}", serde_json::to_string(&sample).expect("it is plain data"));
}

fn run(program: &CString, streams: Streams) {
    if streams == Streams::Inherited {
        return wait(spawn(program, &[]));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).expect("descriptors are not short");
    let ((stdout, stdout_end), (stderr, stderr_end)) = (pipe(), pipe());
    let child = spawn(program, &[(&stdout_end, 1), (&stderr_end, 2)]);
    drop((stdout_end, stderr_end));
    let mut buffer = [0; 4096];
    for stream in [stdout, stderr] {
        while rustix::io::read(&stream, &mut buffer).expect("a pipe can be read") > 0 {}
    }
    wait(child);
}

/// Starts a program with these descriptors in the place of these numbers.
fn spawn(program: &CString, descriptors: &[(&OwnedFd, c_int)]) -> libc::pid_t {
    let argv = [program.as_ptr().cast_mut(), std::ptr::null_mut()];
    let envp = [std::ptr::null_mut()];
    let mut child = 0;
    // SAFETY: the actions are initialised before their use and destroyed after it, and all strings and lists, which end
    // with a null pointer, live through the call.
    let refused = unsafe {
        let mut actions = std::mem::zeroed();
        libc::posix_spawn_file_actions_init(&raw mut actions);
        for (ours, theirs) in descriptors {
            libc::posix_spawn_file_actions_adddup2(&raw mut actions, ours.as_raw_fd(), *theirs);
        }
        let refused = libc::posix_spawn(
            &raw mut child,
            program.as_ptr(),
            &raw const actions,
            std::ptr::null(),
            argv.as_ptr(),
            envp.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(&raw mut actions);
        refused
    };
    assert_eq!(refused, 0, "posix_spawn of {program:?}");
    child
}

fn wait(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status is there for the time of the call.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0), "the program has succeeded");
}
