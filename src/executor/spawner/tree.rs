//! Finds and signals everything that a job has started.
//!
//! The keeper is its job's subreaper (`PR_SET_CHILD_SUBREAPER`, prctl(2)): a process whose parent dies becomes the
//! keeper's child, whatever session, group or environment it has given itself, so everything the job started is below
//! the keeper and nothing else is. The lists of children come from `/proc/PID/task/TID/children` (proc(5)), which may
//! miss one while processes come and go; what is authoritative is wait4(2), which says ECHILD only when nothing is left.
//!
//! A number is signalled only while it cannot have become a stranger's: children of this process are not reaped
//! meanwhile, and any other is held by a pidfd and looked at again before it is signalled.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open, pidfd_send_signal,
    waitid,
};

use super::super::protocol::Used;
use super::sys::{self, Reaped};

/// The processes of one job.
pub(super) struct Tree {
    children: Rc<Children>,
    leader: Pid,
    /// Whether the leader was reaped; until then its number, and so its group's, is taken.
    reaped_leader: Option<Reaped>,
    used: Used,
}

impl Tree {
    /// The tree of a process that was just started.
    pub(super) fn new(leader: Pid, children: &Rc<Children>) -> Self {
        Self {
            children: children.clone(),
            leader,
            reaped_leader: None,
            used: Used::default(),
        }
    }

    /// What all that was reaped has used.
    pub(super) fn used(&self) -> Used {
        self.used
    }

    /// How the leader ended, once it was reaped.
    pub(super) fn leader(&self) -> Option<&Reaped> {
        self.reaped_leader.as_ref()
    }

    /// Whether the leader has ended. It is not reaped by this.
    pub(super) fn leader_has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.reaped_leader.is_some() || matches!(waitid(WaitId::Pid(self.leader), options), Ok(Some(_)))
    }

    /// Reaps what has ended, the leader last, and says whether nothing is left. The number of a leader that has ended
    /// is kept taken as long as others live, so that its group can be signalled.
    pub(super) fn reap(&mut self, leader_has_ended: bool) -> bool {
        let mut others = false;
        for child in self.children.now() {
            if child != self.leader {
                others |= !self.reap_one(child);
            }
        }
        if others || !leader_has_ended {
            return false;
        }
        if self.reaped_leader.is_none() {
            self.reap_one(self.leader);
        }
        self.is_empty()
    }

    /// Reaps a leader that has ended, whatever else is left.
    pub(super) fn reap_leader(&mut self) {
        self.reap_one(self.leader);
    }

    /// Sends SIGKILL to the leader's group, to every child, and to the group of every child.
    pub(super) fn kill(&self) {
        if self.reaped_leader.is_none() {
            let _ = kill_process_group(self.leader, Signal::KILL);
        }
        for child in self.children.now() {
            sys::run_soon(child); // to its end
            // A group by a child's number can only be one that the child leads: the number is its own.
            let _ = kill_process_group(child, Signal::KILL);
            let _ = kill_process(child, Signal::KILL);
        }
    }

    /// Sends a signal, and SIGCONT, to every process below this one, and has each run soon: they have to run to end, and
    /// others want to run too.
    pub(super) fn terminate(&self, signal: Signal) {
        let below = descendants(self.children.now());
        for (pid, _) in &below {
            sys::run_soon_unless_chosen(Some(*pid));
        }
        self.send(&below, &[signal, Signal::CONT]);
    }

    /// Sends a signal to every process below this one.
    pub(super) fn signal(&self, signal: Signal) {
        self.send(&descendants(self.children.now()), &[signal]);
    }

    /// Sends signals to the leader's group, and to those below this process that are not in it. They have been looked for
    /// before the first of them dies: its children change their parent then, and may be in neither's list.
    fn send(&self, below: &[(Pid, Pid)], signals: &[Signal]) {
        if self.reaped_leader.is_none() {
            for signal in signals {
                let _ = kill_process_group(self.leader, *signal);
            }
        }
        for (pid, parent) in below {
            signal_outsider(*pid, *parent, self.leader, signals);
        }
    }

    /// Reaps the child if it has ended; true if it is gone.
    fn reap_one(&mut self, child: Pid) -> bool {
        match sys::reap(Some(child)) {
            Ok(None) => false,
            Err(_) => true,
            Ok(Some(reaped)) => {
                self.count(reaped);
                true
            }
        }
    }

    /// Whether this process has no children, reaping those that have ended.
    fn is_empty(&mut self) -> bool {
        loop {
            match sys::reap(None) {
                Err(Errno::CHILD) => return true,
                Ok(Some(reaped)) => self.count(reaped),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    fn count(&mut self, reaped: Reaped) {
        self.used.user += reaped.used.user;
        self.used.system += reaped.used.system;
        self.used.max_rss = self.used.max_rss.max(reaped.used.max_rss);
        if reaped.pid == self.leader {
            self.reaped_leader = Some(reaped);
        }
    }
}

/// Says whether children can be listed, and by the numbers that they have here.
///
/// # Errors
///
/// When `/proc` is not mounted, or is that of another PID namespace, or the kernel was built without
/// `CONFIG_PROC_CHILDREN`.
pub(in super::super) fn check_listing() -> io::Result<()> {
    let refused = |error: io::Error, why: &str| io::Error::new(error.kind(), format!("{why}: {error}"));
    let own = fs::read_link("/proc/self").map_err(|error| refused(error, "look at /proc, which has to be mounted"))?;
    if own.to_str() != Some(&std::process::id().to_string()) {
        let text = "find itself in /proc, which is that of another PID namespace: mount one of its own there";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let children = fs::read(OWN_CHILDREN);
    children.map_err(|error| refused(error, "list its children, which needs CONFIG_PROC_CHILDREN"))?;
    Ok(())
}

/// Where a process of one thread finds its children.
const OWN_CHILDREN: &str = "/proc/thread-self/children";

/// Bytes of the numbers of as many children as a job usually has left.
const FEW_CHILDREN: usize = 256;

/// The children of this process, which has one thread.
pub(super) fn children() -> Vec<Pid> {
    read_list(OWN_CHILDREN)
}

/// The list of them: kept open, it takes one system call to read.
pub(super) struct Children(File);

impl Children {
    /// # Errors
    ///
    /// When `/proc` has no such list.
    pub(super) fn open() -> io::Result<Self> {
        File::open(OWN_CHILDREN).map(Self)
    }

    /// Those there are now.
    pub(super) fn now(&self) -> Vec<Pid> {
        let mut text = [0; FEW_CHILDREN];
        match self.0.read_at(&mut text, 0) {
            Ok(count @ 0..FEW_CHILDREN) => numbers(&String::from_utf8_lossy(&text[..count])),
            _ => read_list(OWN_CHILDREN),
        }
    }
}

/// All processes below this one, whose children these are, with their parents.
fn descendants(children: Vec<Pid>) -> Vec<(Pid, Pid)> {
    let mut found: Vec<(Pid, Pid)> = Vec::new();
    let own = rustix::process::getpid();
    found.extend(children.into_iter().map(|child| (child, own)));
    let mut next = 0;
    while let Some(&(parent, _)) = found.get(next) {
        next += 1;
        let below = children_of(parent);
        found.extend(below.into_iter().map(|child| (child, parent)));
    }
    found
}

/// The children of all threads of a process.
pub(in super::super) fn children_of(process: Pid) -> Vec<Pid> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let lists = threads
        .flatten()
        .map(|thread| read_list(thread.path().join("children")));
    lists.flatten().collect()
}

fn read_list(path: impl AsRef<std::path::Path>) -> Vec<Pid> {
    numbers(&fs::read_to_string(path).unwrap_or_default())
}

fn numbers(text: &str) -> Vec<Pid> {
    let numbers = text.split_ascii_whitespace().filter_map(|number| number.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

/// Signals a process unless it is in the group, or is no longer its parent's child.
fn signal_outsider(pid: Pid, parent: Pid, group: Pid, signals: &[Signal]) {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let Some((current_parent, current_group)) = parent_and_group(pid) else {
        return;
    };
    let still_ours = current_parent == parent || current_parent == rustix::process::getpid();
    if still_ours && current_group != group {
        for signal in signals {
            let _ = pidfd_send_signal(&process, *signal);
        }
    }
}

/// From `/proc/PID/stat`: after the name, which is in parentheses and may hold anything, the state, parent and group.
fn parent_and_group(pid: Pid) -> Option<(Pid, Pid)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    let mut numbers = rest.split_ascii_whitespace().skip(1).map(str::parse);
    let mut next = || Pid::from_raw(numbers.next()?.ok()?);
    Some((next()?, next()?))
}
