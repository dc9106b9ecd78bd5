//! What a child does between its birth and its program.
//!
//! It shares the keeper's memory and the keeper stands still, so nothing here allocates, locks or panics: system calls
//! on data that was prepared before. What fails is told by the step and the error number.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Resource, Rlimit, Signal, Uid, WaitId, WaitIdOptions, waitid};

use super::super::protocol::{Failure, Start, Step};
use super::super::{Rights, UserIds, landlock};
use super::sys::{self, Note, Stack, Strings};

/// The signal a command gets when its keeper dies.
const KEEPER_DIED: Signal = Signal::KILL;

/// The descriptors from which a program gets its streams.
pub(super) struct Stdio<'a> {
    pub(super) stdin: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
    pub(super) stderr: BorrowedFd<'a>,
}

/// A start, prepared so that the child has nothing left to do but system calls.
pub(super) struct Prepared<'a> {
    start: &'a Start<'a>,
    argv: Strings<'a>,
    env: Strings<'a>,
    rlimits: Vec<(Resource, Rlimit)>,
    user: Option<User>,
    restriction: Option<OwnedFd>,
    stdio: Stdio<'a>,
}

/// Numbers of a user in the kernel's types.
struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl From<&UserIds> for User {
    fn from(ids: &UserIds) -> Self {
        Self {
            uid: Uid::from_raw(ids.uid),
            gid: Gid::from_raw(ids.gid),
            groups: ids.groups.iter().copied().map(Gid::from_raw).collect(),
        }
    }
}

impl<'a> Prepared<'a> {
    /// Prepares a start; `rlimits` are those that no cgroup holds.
    ///
    /// # Errors
    ///
    /// When the paths it may write beneath cannot be restricted to.
    pub(super) fn new(
        start: &'a Start<'a>,
        rlimits: Vec<(Resource, Rlimit)>,
        stdio: Stdio<'a>,
    ) -> Result<Self, Failure> {
        let Rights { user, writable, .. } = &start.rights;
        let restriction = match writable {
            None => None,
            // The worker words it: it looks at the paths again.
            Some(paths) => Some(landlock::allow_writes(paths).map_err(|_| Failure {
                step: Step::Writable,
                errno: 0,
            })?),
        };
        Ok(Self {
            start,
            argv: Strings::new([start.argv]),
            env: Strings::new([start.shared_env, start.own_env]),
            rlimits,
            user: user.as_ref().map(User::from),
            restriction,
            stdio,
        })
    }

    /// Starts the program, into the cgroup given.
    ///
    /// # Errors
    ///
    /// The step that failed. Nothing is left of it.
    pub(super) fn spawn(&self, birth: &mut Birth, cgroup: Option<BorrowedFd<'_>>) -> Result<Pid, Failure> {
        let Birth { stack, note, keeper } = birth;
        let mut child = || {
            note.write(BORN);
            let (step, errno) = self.become_program(*keeper);
            note.write(write_failure(step, errno));
        };
        let pid = sys::vfork(stack, &mut child, cgroup).map_err(|error| failed(Step::Fork, &error))?;
        let failure = match note.take() {
            BORN => return Ok(pid),
            0 => STILLBORN,
            note => read_failure(note),
        };
        // It has left the memory, and is about to be gone.
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
        Err(failure)
    }

    /// Runs in the child. Returns only what went wrong.
    fn become_program(&self, keeper: Pid) -> (Step, Errno) {
        match self.enter().and_then(|()| self.give_up_rights(keeper)) {
            Ok(()) => (Step::Exec, self.exec()),
            Err(failure) => failure,
        }
    }

    /// A session, streams and limits of its own, and nothing else that is ours.
    fn enter(&self) -> Result<(), (Step, Errno)> {
        let Stdio { stdin, stdout, stderr } = &self.stdio;
        let streams = || {
            rustix::process::setsid()?;
            rustix::stdio::dup2_stdin(stdin)?;
            rustix::stdio::dup2_stdout(stdout)?;
            rustix::stdio::dup2_stderr(stderr)
        };
        streams().map_err(|errno| (Step::Session, errno))?;
        for (resource, limit) in &self.rlimits {
            rustix::process::setrlimit(*resource, *limit).map_err(|errno| (Step::Limit, errno))?;
        }
        Ok(())
    }

    /// In the order in which each step is still allowed: the user's own rights decide whether the directory may be
    /// entered, and no right is needed to restrict what may be gained.
    fn give_up_rights(&self, keeper: Pid) -> Result<(), (Step, Errno)> {
        if let Some(user) = &self.user {
            become_user(user).map_err(|errno| (Step::User, errno))?;
        }
        if let Some(umask) = self.start.rights.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        if let Ok(cwd) = CStr::from_bytes_with_nul(self.start.cwd) {
            rustix::process::chdir(cwd).map_err(|errno| (Step::Cwd, errno))?;
        }
        self.forgo_rights(keeper).map_err(|errno| (Step::Rights, errno))
    }

    fn forgo_rights(&self, keeper: Pid) -> Result<(), Errno> {
        if !self.start.rights.may_gain {
            rustix::thread::set_no_new_privs(true)?;
        }
        if let Some(restriction) = &self.restriction {
            sys::restrict_self(restriction.as_fd())?;
        }
        sys::close_from(3)?;
        // Changing the user clears this, so it comes late; a keeper that died before it is seen by its absence.
        rustix::process::set_parent_process_death_signal(Some(KEEPER_DIED))?;
        if rustix::process::getppid() != Some(keeper) {
            return Err(Errno::SRCH);
        }
        sys::unblock_signals();
        Ok(())
    }

    /// The search of execvp(3): what is missing or forbidden does not end it, and forbidden is the better reason.
    fn exec(&self) -> Errno {
        let mut reason = Errno::NOENT;
        for candidate in self.start.candidates.split_inclusive(|&byte| byte == 0) {
            let Ok(path) = CStr::from_bytes_with_nul(candidate) else {
                continue;
            };
            match sys::exec(path, &self.argv, &self.env) {
                Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {}
                Errno::ACCESS => reason = Errno::ACCESS,
                other => return other,
            }
        }
        reason
    }
}

/// Raw system calls: those of the C library would look for other threads.
fn become_user(user: &User) -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&user.groups)?;
    rustix::thread::set_thread_res_gid(user.gid, user.gid, user.gid)?;
    rustix::thread::set_thread_res_uid(user.uid, user.uid, user.uid)
}

/// What a child notes as it begins.
const BORN: u64 = u64::MAX;

/// The failure of a child that was killed before it began.
pub(super) const STILLBORN: Failure = Failure {
    step: Step::Fork,
    errno: Errno::INTR.raw_os_error(),
};

/// What births need, made once.
pub(super) struct Birth {
    stack: Stack,
    note: Note,
    /// Who gives birth.
    keeper: Pid,
}

impl Birth {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            stack: Stack::new(),
            note: Note::new()?,
            keeper: rustix::process::getpid(),
        })
    }
}

/// What a child notes of a failure: the step above, the error number below.
fn write_failure(step: Step, errno: Errno) -> u64 {
    u64::from(step as u32) << 32 | u64::from(errno.raw_os_error().cast_unsigned())
}

fn read_failure(note: u64) -> Failure {
    let [a, b, c, d, errno @ ..] = note.to_be_bytes();
    let step = u32::from_be_bytes([a, b, c, d]);
    let step = Step::ALL.into_iter().find(|known| *known as u32 == step);
    Failure {
        step: step.unwrap_or(Step::Fork),
        errno: i32::from_be_bytes(errno),
    }
}

/// A failure with the number of an error.
pub(super) fn failed(step: Step, error: &io::Error) -> Failure {
    Failure {
        step,
        errno: error.raw_os_error().unwrap_or_default(),
    }
}

/// What commands without input read.
pub(super) fn null() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/dev/null")?.into())
}
