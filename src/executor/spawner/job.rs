//! One job, from its request to the moment nothing of it is left.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Signal;

use super::super::cgroup::{JobGroup, is_out_of_memory};
use super::super::ending::{Action, Ending, Fact};
use super::super::protocol::{Cause, Exit, Failure, FromKeeper, Report, Start, Step};
use super::child::{Prepared, STILLBORN, Stdio};
use super::keeper::{After, Keeper};
use super::tree::Tree;
use crate::message::{LimitsApplied, SignalName};

/// A program that is open for writing cannot be started (ETXTBSY). The writer is most often a fork of the one who just
/// wrote it, and gone at its exec; so the start is tried again after 1, 2, 4, … ms, about half a second in all.
const BUSY_FIRST_WAIT: Duration = Duration::from_millis(1);
const BUSY_LAST_WAIT: Duration = Duration::from_millis(256);

/// A command at work, and all it started.
struct Job<'a> {
    keeper: &'a mut Keeper,
    /// What the cgroup holds of its limits.
    in_group: LimitsApplied,
    tree: Tree,
    ending: Ending,
    /// Whether the worker or the spawner is gone, and nobody is to be listened to.
    cut_off: bool,
    released: bool,
}

/// Runs a command to its end, and everything it started.
///
/// # Errors
///
/// When the keeper itself is not able to work; it ends then, and so does the job.
pub(super) fn run(
    keeper: &mut Keeper,
    start: &Start<'_>,
    descriptors: Vec<OwnedFd>,
) -> io::Result<(FromKeeper, After)> {
    let asked = Instant::now();
    let (tree, in_group) = match begin(keeper, start, &descriptors)? {
        Ok(begun) => begun,
        Err(failure) => return Ok((FromKeeper::Failed(failure), After::Next)),
    };
    // Whoever reads the output sees its end when no process of the job has it any more.
    drop(descriptors);
    let started = Instant::now();
    let mut job = Job {
        keeper,
        in_group,
        tree,
        ending: Ending::new(start.schedule, start.leftovers, started),
        cut_off: false,
        released: false,
    };
    let gone = job.see_through()?;
    if job.tree.leader().is_none() && job.tree.leader_has_ended() {
        job.tree.reap_leader(); // how it ended is to be told, also when something it started is left
    }
    let after = match gone {
        _ if job.released => After::WatchOver,
        true if !job.cut_off => After::Next,
        _ => After::Exit,
    };
    let report = job.report(started - asked, after);
    Ok((FromKeeper::Ended(report), after))
}

/// What was started, and what its cgroup holds of its limits.
type Begun = (Tree, LimitsApplied);

/// Starts the command, waiting out a program that is being written.
fn begin(keeper: &mut Keeper, start: &Start<'_>, descriptors: &[OwnedFd]) -> io::Result<Result<Begun, Failure>> {
    let mut wait = BUSY_FIRST_WAIT;
    loop {
        match begin_once(keeper, start, descriptors) {
            Err(failure) if failure.errno == Errno::TXTBSY.raw_os_error() && wait <= BUSY_LAST_WAIT => {
                keeper.forget_child_signals(); // of the child that could not load it
                let ready = keeper.wait(Some(Instant::now() + wait), true)?;
                if ready.message || ready.orphaned {
                    return Ok(Err(failure)); // what there is to hear is heard by the keeper's own loop
                }
                wait *= 2;
            }
            begun => return Ok(begun),
        }
    }
}

fn begin_once(keeper: &mut Keeper, start: &Start<'_>, descriptors: &[OwnedFd]) -> Result<Begun, Failure> {
    let (stdin, outputs) = match descriptors {
        [stdin, outputs @ ..] if start.has_stdin => (stdin, outputs),
        outputs => (&keeper.null, outputs),
    };
    let [stdout, stderr] = outputs else {
        return Err(Failure {
            step: Step::Request,
            errno: Errno::INVAL.raw_os_error(),
        });
    };
    let stdio = Stdio {
        stdin: stdin.as_fd(),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
    };
    let Some(group) = &mut keeper.group else {
        let prepared = Prepared::new(start, start.bounds.rlimits(), stdio)?;
        let leader = prepared.spawn(&mut keeper.birth, None)?;
        return Ok((Tree::new(leader, &keeper.children), LimitsApplied::default()));
    };
    let refused = |_| Failure {
        step: Step::Cgroup,
        errno: 0,
    };
    let in_group = group.apply(&start.bounds).map_err(refused)?;
    let prepared = Prepared::new(start, start.bounds.without(&in_group).rlimits(), stdio)?;
    let leader = match prepared.spawn(&mut keeper.birth, Some(group.directory())) {
        // A job can have its own group killed, and the kernel then kills what is started in it.
        Err(failure) if failure == STILLBORN => {
            group.renew().map_err(refused)?;
            prepared.spawn(&mut keeper.birth, Some(group.directory()))?
        }
        spawned => spawned?,
    };
    Ok((Tree::new(leader, &keeper.children), in_group))
}

impl Job<'_> {
    /// Waits for the end of all of it, or brings it about. False if something is left that cannot be killed, or was
    /// allowed to stay.
    fn see_through(&mut self) -> io::Result<bool> {
        loop {
            let ready = self.keeper.wait(self.ending.due(), !self.cut_off)?;
            if ready.child_ended {
                self.keeper.forget_child_signals();
                if self.collect() {
                    return Ok(!self.released);
                }
            }
            if ready.message || ready.orphaned {
                let wish = if ready.orphaned { None } else { self.keeper.read_wish() };
                self.cut_off |= wish.is_none();
                self.perform(wish.unwrap_or(Fact::StopAsked));
            }
            // Also when something else woke it: a job whose children end all the time must not outlive its deadline.
            if self.ending.due().is_some_and(|due| Instant::now() >= due) && self.perform(Fact::Tick) {
                return Ok(false);
            }
        }
    }

    /// Reaps what has ended; true when the job is over.
    fn collect(&mut self) -> bool {
        let leader_has_ended = self.tree.leader_has_ended();
        let gone = self.tree.reap(leader_has_ended);
        let over = leader_has_ended && !self.ending.leader_has_exited() && self.perform_exit(gone);
        if gone {
            self.ending.on(Fact::TreeGone, Instant::now());
        } else if self.ending.is_killing() {
            // What the dead left is this process's child now.
            self.kill();
        }
        gone || over
    }

    fn perform_exit(&mut self, gone: bool) -> bool {
        let action = self.ending.on(Fact::LeaderExited, Instant::now());
        self.released = action == Action::Release && !gone;
        if self.released {
            self.tree.reap_leader();
        }
        self.released
    }

    /// Does what a fact asks for; true when the job is over.
    fn perform(&mut self, fact: Fact) -> bool {
        match self.ending.on(fact, Instant::now()) {
            Action::Wait => false,
            Action::Warn(name) => self.signal(name, Tree::signal),
            Action::Terminate(name) => self.signal(name, Tree::terminate),
            Action::Kill => self.kill(),
            Action::Release | Action::Done => true,
        }
    }

    fn kill(&mut self) -> bool {
        // Where it fails, what is in the group is below this process all the same.
        let _ = self.keeper.group.as_mut().map(JobGroup::kill);
        self.tree.kill();
        false
    }

    fn signal(&self, name: SignalName, send: fn(&Tree, Signal)) -> bool {
        if let Some(signal) = Signal::from_named_raw(name.number()) {
            send(&self.tree, signal);
        }
        false
    }

    /// Whether the kernel ended it for lack of memory, and not one of our own signals.
    fn is_out_of_memory(&self) -> bool {
        let Some(Exit::Signal(number)) = self.tree.leader().map(|reaped| reaped.exit) else {
            return false;
        };
        let kills = self.keeper.group.as_ref().and_then(|group| group.oom_kills().ok());
        self.ending.cause() == Cause::Exit
            && is_out_of_memory(kills.unwrap_or_default(), SignalName::from_number(number))
    }

    fn report(&self, spawn: Duration, after: After) -> Report {
        Report {
            cause: self.ending.cause(),
            exit: self.tree.leader().map(|reaped| reaped.exit),
            ended_by: self.ending.ended_by(),
            spawn,
            run: self.ending.run_time(),
            lasted: self.ending.lasted(),
            kill: self.ending.kill_time(),
            used: self.tree.used(),
            memory_in_cgroup: self.in_group.memory.is_some(),
            processes_in_cgroup: self.in_group.processes.is_some(),
            out_of_memory: self.is_out_of_memory(),
            reusable: after == After::Next,
            released: after == After::WatchOver,
        }
    }
}
