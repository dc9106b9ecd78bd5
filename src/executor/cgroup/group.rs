//! One group, for one job after the other.
//!
//! A group that was killed once is not used again but made anew, which takes about 0.1 ms: kernels since 6.14, and
//! the stable ones of that time, kill whatever is started inside it by `CLONE_INTO_CGROUP`, at its birth. They compare
//! how often the child's group was killed with how often the parent's was, since "cgroup: fix race between fork and
//! cgroup.kill". For the same reason the worker's own leaf is made anew at its start.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{XattrFlags, fstat, getxattr, setxattr};
use rustix::io::Errno;

use super::super::limits::Bounds;
use super::{CgroupError, DEATH_WAIT, Domain, files, open_directory};
use crate::message::{Enforcer, LimitsApplied, SignalName};

/// How long a wait for the end sleeps before it looks again itself, at first and at most. The kernel holds back news of
/// a group for up to 10 ms after the last (cgroup_file_notify), and a killed process is dead much sooner.
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_millis(5);

/// Most groups within groups that a job may leave and that are removed.
const MAX_DEPTH: usize = 64;

/// Links to a directory without directories: its name and its own `.`.
const LINKS_OF_A_LEAF: u64 = 2;

/// Marks a group whose processes were allowed to outlive their job (`xattr(7)`; groups cannot be renamed).
const KEPT: &str = "user.synthex.kept";

/// A group that holds one job at a time. Dropped, it is removed if it is empty.
#[derive(Debug)]
pub(in crate::executor) struct JobGroup {
    domain: Domain,
    path: PathBuf,
    held: Held,
    /// Whether it was killed, and so cannot take another job.
    was_killed: bool,
    /// How many processes were killed for lack of memory before that job.
    oom_kills_before: u64,
}

/// What is kept open of a group.
#[derive(Debug)]
struct Held {
    directory: OwnedFd,
    events: File,
}

impl JobGroup {
    /// Makes the group of that number. A group of the same number that is there is killed and replaced, so the number
    /// must be the maker's alone among the living, as its process number is.
    ///
    /// # Errors
    ///
    /// When the group cannot be made, and when one of that number holds what a job was allowed to leave.
    pub(in crate::executor) fn create(domain: &Domain, number: u32) -> Result<Self, CgroupError> {
        let path = domain.group_path(number);
        if is_kept(&path) {
            return Err(CgroupError::Kept(path));
        }
        if path.exists() {
            end(&path)?;
        }
        files::make_directory(&path)?;
        Self::open(domain, path)
    }

    pub(super) fn open(domain: &Domain, path: PathBuf) -> Result<Self, CgroupError> {
        let held = Held::open(&path)?;
        Ok(Self {
            domain: domain.clone(),
            path,
            held,
            was_killed: false,
            oom_kills_before: 0,
        })
    }

    /// The directory, to start a process inside the group (`clone3(2)`, `CLONE_INTO_CGROUP`).
    pub(in crate::executor) fn directory(&self) -> BorrowedFd<'_> {
        self.held.directory.as_fd()
    }

    /// Readies the group for the next job, and sets those of its limits that a group can hold: memory, with no swap
    /// and all of the job killed when it is used up, and processes, which counts threads. Limits of the job before are
    /// lifted. Says which limits the group holds; the others are left `None`, and are the caller's.
    ///
    /// Something the job before left in the group is killed; that is waited for, at most a second.
    ///
    /// # Errors
    ///
    /// When something in the group does not die, or the kernel refuses a value. Nothing may be started in it then.
    pub(in crate::executor) fn apply(&mut self, limits: &Bounds) -> Result<LimitsApplied, CgroupError> {
        if self.was_killed || !self.is_pristine()? {
            self.renew()?;
        }
        let mut applied = LimitsApplied::default();
        if self.domain.memory {
            self.write("memory.max", &or_max(limits.memory))?;
            self.write_if_known("memory.swap.max", &or_max(limits.memory.map(|_| 0)))?;
            self.write_if_known("memory.oom.group", "1")?;
            applied.memory = limits.memory.map(|_| Enforcer::Cgroup);
            self.oom_kills_before = self.count_oom_kills()?;
        }
        if self.domain.pids {
            self.write("pids.max", &or_max(limits.processes))?;
            applied.processes = limits.processes.map(|_| Enforcer::Cgroup);
        }
        Ok(applied)
    }

    /// Sends SIGKILL to every process in the group, to those that are being forked, too.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; what is in the group lives on.
    pub(in crate::executor) fn kill(&mut self) -> Result<(), CgroupError> {
        self.was_killed = true;
        kill(&self.path)
    }

    /// Returns whether no process is alive in the group. Zombies do not count.
    ///
    /// # Errors
    ///
    /// When `cgroup.events` cannot be read.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> Result<bool, CgroupError> {
        is_empty(&self.held.events, &self.path)
    }

    /// Waits until no process is alive in the group, but no longer than `within`, and returns whether it is so.
    ///
    /// # Errors
    ///
    /// When `cgroup.events` cannot be read.
    #[cfg(test)]
    pub(super) fn wait_empty(&self, within: Duration) -> Result<bool, CgroupError> {
        wait_until_empty(&self.held.events, &self.path, within)
    }

    /// How many of the job's processes the kernel killed for lack of memory; 0 without the memory controller.
    ///
    /// # Errors
    ///
    /// When `memory.events` cannot be read.
    pub(in crate::executor) fn oom_kills(&self) -> Result<u64, CgroupError> {
        match self.domain.memory {
            true => Ok(self.count_oom_kills()?.saturating_sub(self.oom_kills_before)),
            false => Ok(0),
        }
    }

    /// Marks what is in the group as allowed to live on, so that the next worker does not kill it at its start.
    ///
    /// # Errors
    ///
    /// When the group cannot be marked.
    pub(in crate::executor) fn keep(&self) -> Result<(), CgroupError> {
        setxattr(&self.path, KEPT, b"1", XattrFlags::empty())
            .map_err(|errno| files::failed("mark cgroup", &self.path, errno))
    }

    /// Replaces the group by a new one. For a caller that could not start a process inside it, or whose process was
    /// killed before it ran the program: a job may have spoilt the group in ways that cannot be seen.
    ///
    /// # Errors
    ///
    /// When something in the group does not die within a second.
    pub(in crate::executor) fn renew(&mut self) -> Result<(), CgroupError> {
        end(&self.path)?;
        files::make_directory(&self.path)?;
        self.held = Held::open(&self.path)?;
        self.was_killed = false;
        Ok(())
    }

    /// Returns whether the group is as it was made: empty, not frozen, without groups inside it.
    fn is_pristine(&self) -> Result<bool, CgroupError> {
        let events = files::read_again(&self.held.events, &self.path)?;
        let is_zero = |key| files::value_of(&events, key) == Some(0);
        let links = fstat(&self.held.directory).map_or(u64::MAX, |directory| directory.st_nlink);
        Ok(is_zero("populated") && is_zero("frozen") && links <= LINKS_OF_A_LEAF)
    }

    fn count_oom_kills(&self) -> Result<u64, CgroupError> {
        let events = files::read(&self.path.join("memory.events"))?;
        Ok(files::value_of(&events, "oom_kill").unwrap_or(0))
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        files::write(&self.path.join(name), value)
    }

    /// Writes to a file that not every kernel has.
    fn write_if_known(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        match self.write(name, value) {
            Err(CgroupError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
            written => written,
        }
    }
}

impl Drop for JobGroup {
    fn drop(&mut self) {
        // What is not empty stays: it was allowed to, or the next start kills it.
        let _ = remove(&self.path);
    }
}

impl Held {
    fn open(path: &Path) -> Result<Self, CgroupError> {
        Ok(Self {
            directory: open_directory(path)?,
            events: open_events(path)?,
        })
    }
}

/// Tells a command that was killed at its memory limit from one that somebody killed: by how many of its processes the
/// kernel killed for lack of memory, and the signal that ended the leader. The kernel kills all of a group, so a
/// leader that ended otherwise ended before.
pub(in crate::executor) fn is_out_of_memory(oom_kills: u64, leader_ended_by: Option<SignalName>) -> bool {
    oom_kills > 0 && leader_ended_by == Some(SignalName::KILL)
}

/// Sends SIGKILL to all in a group and the groups inside it.
pub(super) fn kill(path: &Path) -> Result<(), CgroupError> {
    files::write(&path.join("cgroup.kill"), "1")
}

/// Waits until no process is alive in a group, but no longer than `within`.
pub(super) fn wait_empty(path: &Path, within: Duration) -> Result<bool, CgroupError> {
    wait_until_empty(&open_events(path)?, path, within)
}

/// Returns whether the processes of a group were allowed to live on, and do.
pub(super) fn is_kept(path: &Path) -> bool {
    let is_marked = getxattr(path, KEPT, &mut [0; 8]).is_ok();
    is_marked && !wait_empty(path, Duration::ZERO).unwrap_or(false)
}

/// Removes an empty group, and the groups inside it.
pub(super) fn remove(path: &Path) -> Result<(), CgroupError> {
    remove_to(path, MAX_DEPTH)
}

fn remove_to(path: &Path, depth: usize) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        // Only a group inside it, or a process, keeps it.
        Err(_) if depth > 0 => {
            for inside in files::directories(path)? {
                remove_to(&inside, depth - 1)?;
            }
            fs::remove_dir(path)
        }
        result => result,
    }
    .map_err(|error| files::failed("remove cgroup", path, error))
}

fn end(path: &Path) -> Result<(), CgroupError> {
    kill(path)?;
    match wait_empty(path, DEATH_WAIT)? {
        true => remove(path),
        false => Err(CgroupError::NotEmpty(path.to_path_buf())),
    }
}

fn open_events(path: &Path) -> Result<File, CgroupError> {
    let events = path.join("cgroup.events");
    File::open(&events).map_err(|error| files::failed("open", &events, error))
}

fn is_empty(events: &File, path: &Path) -> Result<bool, CgroupError> {
    let text = files::read_again(events, &path.join("cgroup.events"))?;
    Ok(files::value_of(&text, "populated") == Some(0))
}

fn wait_until_empty(events: &File, path: &Path, within: Duration) -> Result<bool, CgroupError> {
    let deadline = Instant::now() + within;
    let mut look = FIRST_LOOK;
    loop {
        // Reading takes a pending POLLPRI away, so a change after it is not missed.
        if is_empty(events, path)? {
            return Ok(true);
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Ok(false);
        }
        let mut watched = [PollFd::new(events, PollFlags::PRI)];
        let sleep = Timespec::try_from(look.min(remaining)).ok();
        look = LAST_LOOK.min(look * 2);
        match poll(&mut watched, sleep.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(files::failed("watch", path, errno)),
        }
    }
}

fn or_max(limit: Option<u64>) -> String {
    limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string())
}
