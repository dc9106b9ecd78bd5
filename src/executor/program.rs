//! Says which files a command may mean, and words what the kernel refused.
//!
//! The search is that of execvp(3), against the command's own `PATH` and directory, but a file without a `#!` line is not
//! handed to a shell. Nothing is looked at before a start: the kernel is asked to load one candidate after the other. Only
//! when it has loaded none are they looked at, because it says ENOENT alike for a missing program and a missing
//! interpreter.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::protocol::{Failure, Step};
use super::{Fault, NotStarted, Run, landlock};
use crate::message::FailureKind;

/// Where a program is looked for when the command has no `PATH` (`_CS_PATH`, confstr(3)).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Characters of a path or name that a message shows.
const SHOWN: usize = 256;

/// What the kernel reads of a script for its `#!` line (`BINPRM_BUF_SIZE`, execve(2)).
const FIRST_LINE: u64 = 256;

const NO_PROGRAM: &str = "is neither a program for this machine nor a script with a `#!` line: add \
                          the line, or name the interpreter";
const BUSY: &str = "is still open for writing: close it before it is run";
const NO_PROCESS: &str = "could not be started, as no more processes are allowed: raise the \
                          worker's TasksMax or `ulimit -u`, or use fewer slots";
const NO_DESCRIPTOR: &str = "could not be started, as too many files are open: raise the worker's \
                             `ulimit -n`, or use fewer slots";

/// The files to try in their order, as the command's process sees them once it is in its directory.
pub(super) fn candidates(run: &Run) -> Vec<Vec<u8>> {
    let program = run.program.as_bytes();
    if program.contains(&b'/') {
        return vec![program.to_vec()];
    }
    let in_folder = |folder: &str| match folder {
        "" => [b"./", program].concat(), // an empty entry is the directory itself
        folder => [folder.as_bytes(), b"/", program].concat(),
    };
    search_path(run).split(':').map(in_folder).collect()
}

/// Words the failure of a start. Looks at files, so it is done where that may block.
pub(super) async fn explain(failure: Failure, run: &Run) -> NotStarted {
    let run = run.clone();
    let explained = tokio::task::spawn_blocking(move || explain_now(failure, &run)).await;
    explained.unwrap_or_else(|_| NotStarted::new(FailureKind::SpawnFailed, "the worker is shutting down"))
}

fn explain_now(failure: Failure, run: &Run) -> NotStarted {
    let error = io::Error::from_raw_os_error(failure.errno);
    let spawn_failed = |what: &str| NotStarted::new(FailureKind::SpawnFailed, format!("{what}: {error}"));
    match failure.step {
        Step::Exec => explain_exec(&error, run),
        Step::Cwd => explain_cwd(&error, run),
        Step::Fork => no_helper(Some(&error)),
        Step::Writable => unrestricted(run),
        Step::User => spawn_failed("failed to become the pool's user"),
        Step::Limit => spawn_failed("failed to set the limits"),
        Step::Cgroup => spawn_failed("failed to put the command into its cgroup"),
        Step::Rights => spawn_failed("failed to restrict the command's rights"),
        Step::Session => spawn_failed("failed to give the command its streams"),
        Step::Request => spawn_failed("the helper process did not understand the request"),
    }
}

/// Words that no process could be had.
pub(super) fn no_helper(error: Option<&io::Error>) -> NotStarted {
    let problem = match error.and_then(Errno::from_io_error) {
        Some(Errno::MFILE | Errno::NFILE) => NO_DESCRIPTOR.to_owned(),
        Some(Errno::AGAIN | Errno::NOMEM) => NO_PROCESS.to_owned(),
        _ => {
            let detail = error.map(|error| format!(": {error}")).unwrap_or_default();
            format!("could not be started, as its helper processes die{detail}")
        }
    };
    NotStarted::new(FailureKind::SpawnFailed, format!("the command {problem}"))
}

/// Words that the command's pipes could not be made.
pub(super) fn no_descriptors(error: &io::Error) -> NotStarted {
    let problem = match Errno::from_io_error(error) {
        Some(Errno::MFILE | Errno::NFILE) => NO_DESCRIPTOR.to_owned(),
        _ => format!("could not be started, as its pipes could not be made: {error}"),
    };
    NotStarted::new(FailureKind::SpawnFailed, format!("the command {problem}"))
}

/// Words that a command is more than any kernel takes.
pub(super) fn too_large(run: &Run) -> NotStarted {
    let problem = too_big(run);
    NotStarted::new(
        FailureKind::SpawnFailed,
        format!("program {} {problem}", shown(&run.program)),
    )
    .by(Fault::Command)
}

/// Asks again what keeps a command from being restricted in its writing.
fn unrestricted(run: &Run) -> NotStarted {
    let paths = run.rights.writable.as_deref().unwrap_or_default();
    let message = match landlock::allow_writes(paths) {
        Err(error) => format!("failed to {error}"),
        Ok(_) => "its writing could not be restricted, but could be now: run it again".to_owned(),
    };
    NotStarted::new(FailureKind::SpawnFailed, message)
}

fn explain_cwd(error: &io::Error, run: &Run) -> NotStarted {
    let cwd = run.cwd.as_deref().unwrap_or(Path::new("."));
    check_cwd(run).err().unwrap_or_else(|| {
        // It can be entered by the worker, or can again.
        let message = format!(
            "cwd {} cannot be entered by the command's {}: {error}",
            shown(cwd.as_os_str()),
            user(run)
        );
        NotStarted::new(FailureKind::CwdMissing, message)
    })
}

/// Says whether the command's directory can be entered.
///
/// # Errors
///
/// `cwd_missing` when it does not exist, is not a directory or may not be entered.
fn check_cwd(run: &Run) -> Result<(), NotStarted> {
    let Some(cwd) = &run.cwd else { return Ok(()) };
    let mut fault = Fault::Missing;
    let problem = match fs::metadata(cwd) {
        Ok(found) if !found.is_dir() => "is not a directory: name one that exists on the worker".to_owned(),
        Ok(_) if may_execute(cwd) => return Ok(()),
        Ok(_) => format!("may not be entered by the command's {}", user(run)),
        Err(error) if is_absent(&error) => "does not exist: create it on the worker, or name another".to_owned(),
        // A mount that is dead, a disk that fails.
        Err(error) => {
            fault = Fault::Machine;
            format!("cannot be entered: {error}")
        }
    };
    let message = format!("cwd {} {problem}", shown(cwd.as_os_str()));
    Err(NotStarted::new(FailureKind::CwdMissing, message).by(fault))
}

/// Gives the file to start, as a path with a slash in it.
///
/// # Errors
///
/// `program_missing` or `not_executable`, with where it was looked for and what was found there.
fn locate(run: &Run) -> Result<PathBuf, NotStarted> {
    let base = run.cwd.as_deref().unwrap_or(Path::new("."));
    if run.program.as_bytes().contains(&b'/') {
        let path = base.join(&run.program);
        return check(&path)
            .map(|()| path)
            .map_err(|flaw| flaw.describe(run, &run.program));
    }
    let search = search_path(run);
    let mut forbidden = None;
    for folder in search.split(':') {
        let path = base.join(folder).join(&run.program);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Flaw::NoPermission) => forbidden = forbidden.or(Some(path)),
            Err(_) => {}
        }
    }
    Err(match forbidden {
        Some(path) => Flaw::NoPermission.describe(run, path.as_os_str()),
        None => not_in_path(run, search),
    })
}

/// Words why the kernel loaded no candidate.
fn explain_exec(error: &io::Error, run: &Run) -> NotStarted {
    let path = match check_cwd(run).and_then(|()| locate(run)) {
        Ok(path) => path,
        Err(cause) => return cause,
    };
    let errno = Errno::from_io_error(error);
    let kind = match errno {
        Some(Errno::NOENT | Errno::NOEXEC | Errno::ACCESS | Errno::PERM) => FailureKind::NotExecutable,
        _ => FailureKind::SpawnFailed,
    };
    let problem = match errno {
        Some(Errno::NOENT) => interpreter_missing(&path),
        Some(Errno::NOEXEC) => NO_PROGRAM.to_owned(),
        Some(Errno::ACCESS | Errno::PERM) => no_permission(run),
        Some(Errno::TOOBIG) => too_big(run),
        Some(Errno::TXTBSY) => BUSY.to_owned(),
        Some(Errno::AGAIN) => NO_PROCESS.to_owned(),
        Some(Errno::MFILE | Errno::NFILE) => NO_DESCRIPTOR.to_owned(),
        _ => format!("could not be started: {error}"),
    };
    let reason = NotStarted::new(kind, format!("program {} {problem}", shown(&run.program)));
    match errno {
        Some(Errno::TOOBIG) => reason.by(Fault::Command),
        _ => reason,
    }
}

/// What is wrong with a file as a program.
enum Flaw {
    Missing,
    Directory,
    NotRegular,
    NoPermission,
    Unseen(io::Error),
}

impl Flaw {
    fn describe(self, run: &Run, path: &OsStr) -> NotStarted {
        let (kind, problem) = match self {
            Self::Missing => (FailureKind::ProgramMissing, missing(run)),
            Self::Directory => (FailureKind::NotExecutable, "is a directory".to_owned()),
            Self::NotRegular => (FailureKind::NotExecutable, "is not a regular file".to_owned()),
            Self::NoPermission => (FailureKind::NotExecutable, no_permission(run)),
            Self::Unseen(error) => {
                let problem = format!("cannot be looked at by the command's {}: {error}", user(run));
                (FailureKind::NotExecutable, problem)
            }
        };
        NotStarted::new(kind, format!("program {} {problem}", shown(path)))
    }
}

/// Says whether the file could be executed, without reading it.
fn check(path: &Path) -> Result<(), Flaw> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Flaw::Directory),
        Ok(found) if !found.is_file() => Err(Flaw::NotRegular),
        Ok(_) if may_execute(path) => Ok(()),
        Ok(_) => Err(Flaw::NoPermission),
        Err(error) if is_absent(&error) => Err(Flaw::Missing),
        Err(error) => Err(Flaw::Unseen(error)),
    }
}

fn may_execute(path: &Path) -> bool {
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidFilename)
}

fn no_permission(run: &Run) -> String {
    let user = user(run);
    format!("may not be executed by the command's {user}: `chmod +x` it, or look at its mount (noexec) and interpreter")
}

fn not_in_path(run: &Run, search: &str) -> NotStarted {
    let origin = if run.env.get("PATH").is_some() {
        ""
    } else {
        ", the default as env has none"
    };
    let message = format!(
        "program {} not found in PATH ({}{origin}): install it on the worker, or give its full path",
        shown(&run.program),
        cut(search),
    );
    NotStarted::new(FailureKind::ProgramMissing, message)
}

fn missing(run: &Run) -> String {
    let place = match (&run.cwd, Path::new(&run.program).is_absolute()) {
        (Some(cwd), false) => format!(" in cwd {}", shown(cwd.as_os_str())),
        (None, false) => " in the worker's directory".to_owned(),
        (_, true) => String::new(),
    };
    format!("does not exist{place}: install it on the worker, or correct the path")
}

/// The kernel says that something is missing, and the program is there: it is what the program is
/// to be run by.
fn interpreter_missing(path: &Path) -> String {
    let mut start = Vec::new();
    // A file that cannot be read may be executed all the same; then there is no first line to
    // quote.
    let _ = File::open(path).and_then(|file| file.take(FIRST_LINE).read_to_end(&mut start));
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Some(rest) = line.strip_prefix(b"#!") else {
        return "cannot be run, as its loader is missing: it was built for another system".to_owned();
    };
    let rest = String::from_utf8_lossy(rest);
    let interpreter = rest
        .trim_matches([' ', '\t'])
        .split([' ', '\t'])
        .next()
        .unwrap_or_default();
    let remedy = match interpreter.ends_with('\r') {
        true => "the file has Windows line ends, convert them",
        false => "install it on the worker, or correct the first line of the file",
    };
    format!("cannot be run, as its interpreter {interpreter:?} does not exist: {remedy}")
}

fn too_big(run: &Run) -> String {
    let args = run.args.iter().map(|arg| arg.len());
    let env = run.env.iter().map(|(key, value)| key.len() + value.len() + 1);
    let env: Vec<usize> = env.collect();
    let longest = args.clone().chain(env.iter().copied()).max().unwrap_or_default();
    format!(
        "could not be started, as its arguments ({} bytes) and environment ({} bytes), the longest of them {longest} \
         bytes, are more than the kernel takes: pass large data through stdin or a file",
        args.sum::<usize>(),
        env.iter().sum::<usize>(),
    )
}

fn user(run: &Run) -> String {
    let own = || rustix::process::geteuid().as_raw();
    format!(
        "user (uid {})",
        run.rights.user.as_ref().map_or_else(own, |user| user.uid)
    )
}

fn search_path(run: &Run) -> &str {
    run.env.get("PATH").unwrap_or(DEFAULT_PATH)
}

/// A text, quoted, at no more than a line's length.
pub(super) fn shown(text: &OsStr) -> String {
    format!("{:?}", cut(&text.to_string_lossy()))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::{Leftovers, Rights};
    use super::*;
    use crate::message::{Limits, SignalName};

    fn run<const N: usize>(command: [&str; N]) -> Run {
        Run {
            program: command[0].into(),
            args: command[1..].iter().map(Into::into).collect(),
            env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]).into(),
            cwd: None,
            stdin: Bytes::new(),
            timeout: Duration::from_secs(60),
            term_signal: SignalName::TERM,
            kill_grace: Duration::from_secs(60),
            warning: None,
            leftovers: Leftovers::Kill,
            limits: Limits::default(),
            rights: Rights::default(),
            max_output: 0,
        }
    }

    fn explained(errno: Errno, run: &Run) -> (FailureKind, String) {
        let failure = Failure {
            step: Step::Exec,
            errno: errno.raw_os_error(),
        };
        let NotStarted { kind, message, .. } = explain_now(failure, run);
        (kind, message)
    }

    #[test]
    fn what_vanished_between_the_look_and_the_start_is_named() {
        let run = Run {
            cwd: Some("/no/such/folder".into()),
            ..run(["true"])
        };
        let (kind, message) = explained(Errno::NOENT, &run);
        assert_eq!(kind, FailureKind::CwdMissing, "{message}");

        let run = Run {
            cwd: None,
            program: "/no/such/program".into(),
            ..run
        };
        let (kind, message) = explained(Errno::NOENT, &run);
        assert_eq!(kind, FailureKind::ProgramMissing, "{message}");
    }

    #[test]
    fn whose_fault_a_failure_is_depends_on_what_failed() {
        let fault = |step, errno: Errno, run: &Run| {
            let errno = errno.raw_os_error();
            explain_now(Failure { step, errno }, run).fault
        };
        for (step, errno, program, expected) in [
            (Step::Exec, Errno::NOENT, "/no/such/program", Fault::Missing),
            (Step::Exec, Errno::NOENT, "true", Fault::Missing), // its interpreter, or its loader
            (Step::Exec, Errno::TOOBIG, "true", Fault::Command),
            (Step::Exec, Errno::AGAIN, "true", Fault::Machine),
            (Step::Fork, Errno::AGAIN, "true", Fault::Machine),
            (Step::Cgroup, Errno::BUSY, "true", Fault::Machine),
        ] {
            assert_eq!(fault(step, errno, &run([program])), expected, "{program}: {errno}");
        }
        assert_eq!(too_large(&run(["true"])).fault, Fault::Command);

        let folder = tempfile::tempdir().unwrap();
        let broken = folder.path().join("loop"); // fails in another way than by not being there, as a dead mount does
        std::os::unix::fs::symlink(&broken, &broken).unwrap();
        for (cwd, errno, expected) in [
            ("/no/such/folder".into(), Errno::NOENT, Fault::Missing),
            (broken, Errno::LOOP, Fault::Machine),
        ] {
            let cwd = Some(cwd);
            assert_eq!(fault(Step::Cwd, errno, &Run { cwd, ..run(["true"]) }), expected);
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told_with_what_helps() {
        use FailureKind::{NotExecutable, SpawnFailed};
        for (errno, kind, expected) in [
            (Errno::NOENT, NotExecutable, "as its loader is missing"),
            (Errno::ACCESS, NotExecutable, "`chmod +x` it"),
            (Errno::AGAIN, SpawnFailed, "TasksMax"),
            (Errno::MFILE, SpawnFailed, "`ulimit -n`"),
            (Errno::NFILE, SpawnFailed, "`ulimit -n`"),
            (Errno::NOMEM, SpawnFailed, "could not be started: "),
        ] {
            let (found, message) = explained(errno, &run(["true"]));
            assert_eq!(found, kind, "{message}");
            assert!(
                message.starts_with("program \"true\" ") && message.contains(expected),
                "{message}"
            );
        }
    }

    #[test]
    fn a_quoted_text_is_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(SHOWN)), "é".repeat(SHOWN));
        assert_eq!(cut(&"é".repeat(SHOWN + 1)), format!("{}…", "é".repeat(SHOWN)));
    }
}
