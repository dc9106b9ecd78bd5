//! Holds each job in a control group of its own, where the system lets us have some (cgroup v2, `cgroups(7)`).
//!
//! With a group, limits count the job and not each of its processes, all of it can be killed by one write, and a
//! command that was killed at its memory limit is told from one that somebody killed. In the order of their use:
//!
//! - [`Delegation::find`] looks for a group that we may divide: the one we run in if it was delegated to us
//!   (`Delegate=yes` of systemd), or the one that was named. Nobody's group is taken unasked;
//! - [`Delegation::prepare`] makes it ours, once, before any helper process is started: a lock keeps a second worker
//!   out, the worker moves into a leaf of it (only a group without processes of its own may hand controllers down),
//!   and what an earlier worker left is killed;
//! - [`Domain`] is what helper processes are told of it;
//! - [`JobGroup`] is one group beneath it, owned by one helper process and used for one job after the other. Making
//!   one and moving a process are slow; starting a process inside one (`CLONE_INTO_CGROUP`) is not.
//!
//! What is missing is not an error here: without a controller its limits are left to `limits`, and [`Claim::problems`]
//! says why.
//!
//! What a group is not: a fence. A command that runs as the worker's own user may write to its own group, and move
//! into another. So whatever holds a command to its end needs the helper process that reaps its descendants, too; and
//! a group that is no longer as it was made is made anew for the next job.
//!
//! Needs Linux 5.14 (`cgroup.kill`). All of it blocks, for microseconds unless a bound is named, and is for helper
//! processes and the start of a worker.

mod files;
mod group;
mod own;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, Mode, OFlags, access, flock, getxattr, open, statfs};
use rustix::io::Errno;
use rustix::process::{Pid, getpid};
use serde::{Deserialize, Serialize};

pub(super) use group::{JobGroup, is_out_of_memory};

/// The number of cgroup v2 among file systems (`statfs(2)`).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The leaf that the worker's own processes live in.
const WORKER: &str = "worker";

/// What the name of every job's group begins with; a number follows.
const JOB: &str = "job-";

/// How long a start waits for what an earlier worker left to be gone after SIGKILL, and so does a group that is made
/// anew. Death takes milliseconds unless a process hangs inside the kernel.
const DEATH_WAIT: Duration = Duration::from_secs(1);

/// A group that cannot be used, or not for everything.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A group that was named cannot hold those of jobs.
    #[error(
        "use {} as the cgroup of jobs: {reason}; name a cgroup v2 directory that is the worker's to change, or let \
         systemd delegate one (Delegate=yes)", .path.display()
    )]
    Unusable {
        /// As it was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another worker uses the group.
    #[error("use {} as the cgroup of jobs: another worker uses it; give each worker its own", .0.display())]
    InUse(PathBuf),
    /// The group lacks a controller.
    #[error(
        "limit {controller} by cgroup: {} lists no such controller in cgroup.controllers; enable it in \
         cgroup.subtree_control of the group above", .path.display()
    )]
    NoController {
        /// Its name.
        controller: &'static str,
        /// The group.
        path: PathBuf,
    },
    /// The kernel does not know a file that is needed.
    #[error("kill by cgroup: {} is missing; run Linux 5.14 or later", .0.display())]
    TooOld(PathBuf),
    /// Processes live on after SIGKILL: they hang inside the kernel.
    #[error("empty cgroup {}: a killed process in it is not dead yet", .0.display())]
    NotEmpty(PathBuf),
    /// What a job was allowed to leave lives on in the group.
    #[error("make cgroup {}: it holds processes that were allowed to outlive their job", .0.display())]
    Kept(PathBuf),
    /// A file of a group could not be used.
    #[error("{action} {}: {source}{}", .path.display(), files::remedy(.path, .source))]
    File {
        /// What was tried, in the words of a shell user: `write "+memory" to`.
        action: String,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Which group those of jobs are made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The one the worker runs in, if it was delegated to it.
    #[default]
    Auto,
    /// None: limits are each process's own.
    None,
    /// This one.
    Path(PathBuf),
}

/// A group that we may divide. Nothing was changed yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Delegation {
    root: PathBuf,
    /// The group that this process is in, if it is known.
    own: Option<PathBuf>,
}

/// A group that is ours to divide, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    /// What helper processes need to know of it.
    pub domain: Domain,
    /// What to warn of: controllers that jobs will not be limited by, groups that could not be removed.
    pub problems: Vec<CgroupError>,
    _lock: OwnedFd,
}

/// Where groups of jobs are made, and what they can limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The directory of the group above them.
    root: PathBuf,
    /// Whether they have the memory controller.
    memory: bool,
    /// Whether they have the pids controller.
    pids: bool,
}

/// What the system says about a directory.
struct Facts {
    is_cgroup2: bool,
    is_delegated: bool,
    is_writable: bool,
}

impl Delegation {
    /// Finds the group that was chosen. `None` when none was, or when `Auto` finds that we have none.
    ///
    /// # Errors
    ///
    /// When a group that was named is not there, is no cgroup v2 directory, or may not be changed by us.
    pub fn find(choice: &Choice) -> Result<Option<Self>, CgroupError> {
        Self::find_in(choice, Path::new("/proc/self"), look_at)
    }

    fn find_in(
        choice: &Choice,
        proc_self: &Path,
        look_at: impl Fn(&Path) -> io::Result<Facts>,
    ) -> Result<Option<Self>, CgroupError> {
        let own = own::find(proc_self);
        let root = match choice {
            Choice::None => None,
            Choice::Auto => own
                .as_deref()
                .and_then(|own| candidates(own).find(|path| look_at(path).is_ok_and(|facts| facts.is_ours())))
                .map(Path::to_path_buf),
            Choice::Path(path) => Some(named(path, look_at)?),
        };
        Ok(root.map(|root| Self { root, own }))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.root
    }

    /// The controllers that it lacks.
    ///
    /// # Errors
    ///
    /// When its files cannot be read.
    pub(super) fn lacks(&self) -> Result<Vec<&'static str>, CgroupError> {
        let available = files::read(&self.root.join("cgroup.controllers"))?;
        let lacks = |name: &&str| !available.split_ascii_whitespace().any(|word| word == *name);
        Ok(["memory", "pids"].into_iter().filter(lacks).collect())
    }

    /// Makes the group ours: locks it, moves this process into a leaf of it unless it is in one, kills and removes the
    /// groups of an earlier worker's jobs (but not what it allowed its jobs to leave), and enables the controllers
    /// that there are. Takes at most a second, and that only when killed processes do not die.
    ///
    /// To be called while this process has no children: they would stay where they are.
    ///
    /// # Errors
    ///
    /// When another worker has it, when it may not be changed by us after all, or before Linux 5.14. With
    /// [`Choice::Auto`] a worker goes on without groups then.
    pub fn prepare(self) -> Result<Claim, CgroupError> {
        self.prepare_for(getpid())
    }

    fn prepare_for(self, pid: Pid) -> Result<Claim, CgroupError> {
        let Self { root, own } = self;
        let lock = lock(&root)?;
        let leaf = match own {
            Some(own) if own != root && own.starts_with(&root) => own,
            _ => enter_leaf(&root, pid)?,
        };
        let kill = leaf.join("cgroup.kill");
        if !kill.exists() {
            return Err(CgroupError::TooOld(kill));
        }
        let mut problems = sweep(&root);
        let mut enabled = |controller| enable(&root, controller).map_err(|error| problems.push(error)).is_ok();
        let (memory, pids) = (enabled("memory"), enabled("pids"));
        let domain = Domain { root, memory, pids };
        Ok(Claim {
            domain,
            problems,
            _lock: lock,
        })
    }
}

impl Domain {
    /// Kills what is in the group that [`JobGroup::create`] made by that number, waits at most `within` for its end,
    /// and removes the group: for the one who finds that the group's owner died. Returns whether it is gone. What a
    /// job was allowed to leave lives on.
    ///
    /// # Errors
    ///
    /// When the group cannot be killed or removed.
    pub fn end_group(&self, number: u32, within: Duration) -> Result<bool, CgroupError> {
        let path = self.group_path(number);
        if !path.exists() {
            return Ok(true);
        }
        if group::is_kept(&path) {
            return Ok(false);
        }
        group::kill(&path)?;
        let gone = group::wait_empty(&path, within)?;
        if gone {
            group::remove(&path)?;
        }
        Ok(gone)
    }

    fn group_path(&self, number: u32) -> PathBuf {
        self.root.join(format!("{JOB}{number}"))
    }
}

impl Facts {
    fn is_ours(&self) -> bool {
        self.is_cgroup2 && self.is_delegated && self.is_writable
    }
}

/// What may have been delegated to us: our own group, and the one above it where ours is the leaf that a worker moves
/// into, or that systemd starts it in (`DelegateSubgroup=worker`). Not any other above us: that is somebody else's.
fn candidates(own: &Path) -> impl Iterator<Item = &Path> {
    let above = own.parent().filter(|_| own.ends_with(WORKER));
    [Some(own), above].into_iter().flatten()
}

fn named(path: &Path, look_at: impl Fn(&Path) -> io::Result<Facts>) -> Result<PathBuf, CgroupError> {
    let unusable = |reason: String| CgroupError::Unusable {
        path: path.to_path_buf(),
        reason,
    };
    let root = fs::canonicalize(path).map_err(|error| unusable(error.to_string()))?;
    let facts = look_at(&root).map_err(|error| unusable(error.to_string()))?;
    if !facts.is_cgroup2 {
        return Err(unusable("it is not a cgroup v2 directory".to_owned()));
    }
    if !facts.is_writable {
        return Err(unusable("it may not be changed by this user".to_owned()));
    }
    Ok(root)
}

fn look_at(path: &Path) -> io::Result<Facts> {
    let magic = u64::try_from(statfs(path)?.f_type).unwrap_or_default();
    let is_set = |name: &str| {
        let mut value = [0; 8];
        getxattr(path, name, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    };
    let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
    Ok(Facts {
        is_cgroup2: magic == CGROUP2_SUPER_MAGIC,
        is_delegated: is_set("user.delegate") || is_set("trusted.delegate"),
        is_writable: may_write(path)
            && may_write(&path.join("cgroup.procs"))
            && may_write(&path.join("cgroup.subtree_control")),
    })
}

/// Keeps other workers out: theirs would kill our jobs as leftovers. The kernel takes the lock off when we end.
fn lock(root: &Path) -> Result<OwnedFd, CgroupError> {
    let dir = open_directory(root)?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir),
        Err(Errno::WOULDBLOCK) => Err(CgroupError::InUse(root.to_path_buf())),
        Err(errno) => Err(files::failed("lock", root, errno)),
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| files::failed("open cgroup", path, errno))
}

fn enter_leaf(root: &Path, pid: Pid) -> Result<PathBuf, CgroupError> {
    let leaf = root.join(WORKER);
    // One that was killed spoils what is started from it, see `group`. One that is not empty is another process's too.
    let _ = fs::remove_dir(&leaf);
    files::make_directory(&leaf)?;
    files::write(&leaf.join("cgroup.procs"), &pid.to_string())?;
    Ok(leaf)
}

/// Hands a controller down to the groups beneath.
fn enable(root: &Path, controller: &'static str) -> Result<(), CgroupError> {
    let available = files::read(&root.join("cgroup.controllers"))?;
    if !available.split_whitespace().any(|name| name == controller) {
        return Err(CgroupError::NoController {
            controller,
            path: root.to_path_buf(),
        });
    }
    files::write(&root.join("cgroup.subtree_control"), &format!("+{controller}"))
}

/// Kills and removes the groups of an earlier worker's jobs, and returns what it could not.
fn sweep(root: &Path) -> Vec<CgroupError> {
    let (left, mut problems) = match files::directories(root) {
        Ok(names) => (names, Vec::new()),
        Err(error) => (Vec::new(), vec![error]),
    };
    let is_job = |path: &PathBuf| {
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix(JOB));
        number.is_some_and(|number| number.parse::<u32>().is_ok()) && !group::is_kept(path)
    };
    let left: Vec<PathBuf> = left.into_iter().filter(is_job).collect();
    let deadline = Instant::now() + DEATH_WAIT;
    problems.extend(left.iter().filter_map(|path| group::kill(path).err()));
    for path in left {
        let remaining = deadline.saturating_duration_since(Instant::now());
        match group::wait_empty(&path, remaining) {
            Ok(true) => problems.extend(group::remove(&path).err()),
            Ok(false) => problems.push(CgroupError::NotEmpty(path)),
            Err(error) => problems.push(error),
        }
    }
    problems
}
