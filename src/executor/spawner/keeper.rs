//! Holds one job at a time, and is used again for the next.
//!
//! A keeper is a process of its own, because that is what tells one job's processes from another's without a right to
//! ask for: it is the subreaper under which all of them are, however they daemonise. The deadlines are kept here too
//! ([`job`](super::job)), so they hold while the worker is busy or stopped.
//!
//! It kills everything and exits when the worker's end of its socket closes (the worker died, or gave the run up) and
//! when its spawner dies. Killed itself, by its job for one, it takes the command with it, and the spawner the rest.

use std::ffi::c_int;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::cgroup::{Domain, JobGroup};
use super::super::ending::Fact;
use super::super::protocol::{self, FromKeeper, MAX_PACKET, MAX_START, Packet, Start, Step, ToKeeper, receive};
use super::child::{Birth, failed, null};
use super::job;
use super::sys;
use super::tree::Children;

/// A keeper's own things.
pub(super) struct Keeper {
    /// To the worker.
    socket: OwnedFd,
    /// Readable, at its end, when the spawner has died.
    lifeline: OwnedFd,
    /// Readable when a child has ended.
    child_ended: OwnedFd,
    pub(super) children: Rc<Children>,
    /// What commands without input read.
    pub(super) null: OwnedFd,
    pub(super) birth: Birth,
    /// What holds its jobs, where there is such a thing.
    pub(super) group: Option<JobGroup>,
}

/// What there is to look at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) child_ended: bool,
    /// A message, or the end of them.
    pub(super) message: bool,
    /// The spawner has died.
    pub(super) orphaned: bool,
}

/// What comes after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Another one.
    Next,
    /// The end of the keeper.
    Exit,
    /// Nothing but reaping what the job was allowed to leave.
    WatchOver,
}

/// Serves the socket until either side has gone.
pub(super) fn run(socket: OwnedFd, lifeline: OwnedFd, groups: Option<&Domain>) -> c_int {
    match Keeper::new(socket, lifeline, groups).and_then(Keeper::serve) {
        Ok(()) => 0,
        Err(_) => 1, // the worker sees the socket close
    }
}

impl Keeper {
    fn new(socket: OwnedFd, lifeline: OwnedFd, groups: Option<&Domain>) -> io::Result<Self> {
        rustix::thread::set_name(c"synthex-keeper")?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        // A session of its own is a scheduling group of its own (autogroup, sched(7)), as each command's is.
        rustix::process::setsid()?;
        sys::serve_soon();
        Ok(Self {
            socket,
            lifeline,
            child_ended: sys::child_signals()?,
            children: Rc::new(Children::open()?),
            null: null()?,
            birth: Birth::new()?,
            // One that cannot be made is made up for by limits of each process, and the result says so.
            group: groups.and_then(|domain| JobGroup::create(domain, std::process::id()).ok()),
        })
    }

    fn serve(mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let ready = self.wait(None, true)?;
            if ready.orphaned {
                return Ok(());
            }
            if !ready.message {
                self.forget_child_signals(); // of a job that is over
                continue;
            }
            let after = match receive(&self.socket, &mut buffer)? {
                Packet::Closed => After::Exit,
                Packet::Message(count, descriptors) => self.take(&buffer[..count], descriptors)?,
            };
            match after {
                After::Next => {}
                After::Exit => return Ok(()),
                After::WatchOver => return self.watch_over(),
            }
        }
    }

    fn take(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<After> {
        match protocol::decode(bytes)? {
            ToKeeper::End | ToKeeper::Kill => Ok(After::Next), // crossed with the end of its job
            ToKeeper::Start(start) => self.job(&start, descriptors),
            ToKeeper::StartInFile(size) => match read_file(size, descriptors) {
                Ok((bytes, descriptors)) => self.job(&protocol::decode(&bytes)?, descriptors),
                Err(error) => self.answer(FromKeeper::Failed(failed(Step::Request, &error)), After::Next),
            },
        }
    }

    fn job(&mut self, start: &Start<'_>, descriptors: Vec<OwnedFd>) -> io::Result<After> {
        let (answer, after) = job::run(self, start, descriptors)?;
        self.answer(answer, after)
    }

    /// A worker that is gone needs no answer.
    fn answer(&self, answer: FromKeeper, after: After) -> io::Result<After> {
        match protocol::send(&self.socket, &answer, &[]) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(after),
        }
    }

    /// Waits until there is something to look at, at most until `until`; with `listen`, also to worker and spawner.
    pub(super) fn wait(&self, until: Option<Instant>, listen: bool) -> io::Result<Ready> {
        let mut fds = [
            PollFd::new(&self.child_ended, PollFlags::IN),
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(&self.lifeline, PollFlags::IN),
        ];
        let heard = if listen { &mut fds[..] } else { &mut fds[..1] };
        // A time that no timespec holds is no bound.
        let limit = until.and_then(|at| Timespec::try_from(at.saturating_duration_since(Instant::now())).ok());
        poll(heard, limit.as_ref())?;
        let [child_ended, message, orphaned] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            child_ended,
            message,
            orphaned,
        })
    }

    /// Reads what came while a job runs, which can only be a wish that it ends; `None` when the worker is gone.
    pub(super) fn read_wish(&self) -> Option<Fact> {
        let mut buffer = [0; 64];
        let Ok(Packet::Message(count, _)) = receive(&self.socket, &mut buffer) else {
            return None;
        };
        match protocol::decode(&buffer[..count]) {
            Ok(ToKeeper::End) => Some(Fact::EndAsked),
            _ => Some(Fact::StopAsked),
        }
    }

    /// Has the next wait tell of children that end from now on.
    pub(super) fn forget_child_signals(&self) {
        sys::forget_signals(&self.child_ended);
    }

    /// Stays as the reaper of what a job was allowed to leave, holding nothing of the worker's.
    fn watch_over(self) -> io::Result<()> {
        let Self {
            socket,
            lifeline,
            child_ended,
            null,
            group,
            ..
        } = self;
        drop((socket, lifeline));
        let _ = group.as_ref().map(JobGroup::keep);
        rustix::stdio::dup2_stderr(&null)?;
        loop {
            match sys::reap(None) {
                Ok(Some(_)) => continue,
                Ok(None) => {}
                Err(_) => return Ok(()), // nothing is left
            }
            poll(&mut [PollFd::new(&child_ended, PollFlags::IN)], None)?;
            sys::forget_signals(&child_ended);
        }
    }
}

/// Takes the memory file, which is the last descriptor, and reads the request in it.
fn read_file(size: u32, mut descriptors: Vec<OwnedFd>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut file = File::from(descriptors.pop().ok_or(io::ErrorKind::InvalidData)?);
    let size = usize::try_from(size).ok().filter(|size| *size <= MAX_START);
    let mut bytes = vec![0; size.ok_or(io::ErrorKind::InvalidData)?];
    file.rewind()?;
    file.read_exact(&mut bytes)?;
    Ok((bytes, descriptors))
}
