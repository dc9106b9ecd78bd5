//! The helper process that makes keepers, and cleans up after those that were killed.
//!
//! The worker starts one a processor, before it has a runtime: small, with one thread, few descriptors and next to no
//! memory, so that forking it is cheap and always allowed. It lives as long as the worker holds the other end of its
//! control socket. On request it forks a [`keeper`], which holds one job at a time, and passes the worker the keeper's
//! socket; jobs never go through the spawner itself.
//!
//! - [`keeper`] keeps a job's deadlines, [`tree`] finds and ends its processes,
//! - [`child`] is what a child does until its program is loaded,
//! - [`sys`] has the system calls without a safe form.
//!
//! The spawner is the subreaper above its keepers. Whatever becomes its child without being a keeper is the rest of a
//! job whose keeper was killed, and is killed.

mod child;
mod job;
mod keeper;
mod sys;
pub(super) mod tree;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{DumpableBehavior, Pid, Signal, getpid, kill_process, kill_process_group};

pub use sys::serve_soon;

use super::cgroup::Domain;
use super::limits;
use super::protocol::{self, FromSpawner, MAX_PACKET, Packet, ToSpawner, receive};

/// The first argument of a process that is to be a spawner instead of a command line.
pub const SPAWNER_ARGUMENT: &str = "__spawner";

/// How long a spawner whose worker is gone waits for its keepers to make an end of their jobs. One that has not by then was
/// stopped by its job, and is killed: that ends the command, and what else it started comes to the spawner.
const KEEPER_WAIT: Duration = Duration::from_secs(1);

/// How long it waits for the end of all of it.
const LEAVE_WAIT: Duration = Duration::from_secs(10);

/// Is a spawner, with its control socket as stdin, until the worker is gone.
pub fn main() -> ! {
    let code = match Spawner::new().and_then(|mut spawner| spawner.serve()) {
        Ok(()) => 0,
        Err(error) => {
            // The worker's own stderr. There is no log here, and nobody else to tell.
            let text = format!("synthex: a spawner failed to {error}\n");
            let _ = rustix::io::write(rustix::stdio::stderr(), text.as_bytes());
            1
        }
    };
    sys::exit(code)
}

/// Ends this process by a signal that it may have caught, as one ends that has not. Returns where that cannot be: for the
/// first process of a container.
pub fn end_by(signal: Signal) {
    sys::reset_signals();
    let _ = kill_process(getpid(), signal);
}

struct Spawner {
    /// `None` in a fork that is to be a keeper.
    control: Option<OwnedFd>,
    /// Both ends of a pipe: keepers have the reading one, and see its end when the only other one goes with this
    /// process.
    lifeline: (OwnedFd, Option<OwnedFd>),
    /// Readable when a child has ended.
    child_ended: OwnedFd,
    keepers: HashSet<Pid>,
    /// Those of them that stay behind with what their job was allowed to leave.
    released: HashSet<Pid>,
    groups: Option<Groups>,
}

/// Where each keeper has a cgroup.
struct Groups {
    domain: Domain,
    /// Keepers that have ended, and whose group may not have.
    left: Vec<Pid>,
}

impl Groups {
    /// Kills and removes the groups of keepers that have ended. One that is not empty yet is tried again at the next
    /// death.
    fn clean_up(&mut self) {
        let Self { domain, left } = self;
        left.retain(|keeper| {
            let number = keeper.as_raw_pid().cast_unsigned();
            !domain.end_group(number, Duration::ZERO).unwrap_or(true)
        });
    }
}

impl Spawner {
    fn new() -> io::Result<Self> {
        sys::reset_signals();
        sys::block_signals();
        // What the worker's parent left open is none of a command's business.
        sys::close_from(3)?;
        rustix::process::setsid()?;
        limits::forbid_core_files()?;
        rustix::thread::set_name(c"synthex-spawner")?;
        rustix::process::set_child_subreaper(Some(getpid()))?;
        // A job of the same user must not look into, or debug, the processes that hold it.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        tree::check_listing()?;
        let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        rustix::stdio::dup2_stdin(child::null()?)?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok(Self {
            control: Some(control),
            lifeline: (reader, Some(writer)),
            child_ended: sys::child_signals()?,
            keepers: HashSet::new(),
            released: HashSet::new(),
            groups: None,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PACKET];
        while let Some(control) = &self.control {
            let mut ready = [
                PollFd::new(&self.child_ended, PollFlags::IN),
                PollFd::new(control, PollFlags::IN),
            ];
            poll(&mut ready, None)?;
            let [child_ended, asked] = ready.map(|fd| !fd.revents().is_empty());
            if asked {
                match receive(control, &mut buffer)? {
                    Packet::Closed => return self.leave(),
                    Packet::Message(count, _) => self.obey(protocol::decode(&buffer[..count])?)?,
                }
            }
            if child_ended {
                self.clean_up();
            }
        }
        Ok(())
    }

    fn obey(&mut self, request: ToSpawner) -> io::Result<()> {
        match request {
            ToSpawner::UseGroups(domain) => {
                self.groups = Some(Groups {
                    domain,
                    left: Vec::new(),
                });
                Ok(())
            }
            ToSpawner::Fork => self.fork(),
            ToSpawner::Discard(number) => {
                // Not reaped yet, so the number is still its own.
                if let Some(keeper) = self.keeper(number) {
                    let _ = kill_process(keeper, Signal::KILL);
                }
                Ok(())
            }
            ToSpawner::Release(number) => {
                self.released.extend(self.keeper(number));
                Ok(())
            }
        }
    }

    fn keeper(&self, number: u32) -> Option<Pid> {
        let keeper = i32::try_from(number).ok().and_then(Pid::from_raw);
        keeper.filter(|keeper| self.keepers.contains(keeper))
    }

    /// Makes a keeper and tells the worker. In the keeper, it returns only when the keeper is done.
    fn fork(&mut self) -> io::Result<()> {
        let made = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)
            .and_then(|sockets| Ok((sockets, self.lifeline.0.try_clone()?, sys::fork()?)));
        match made {
            Err(error) => self.answer(FromSpawner::Refused(error.raw_os_error().unwrap_or_default()), &[]),
            Ok(((theirs, ours), lifeline, None)) => {
                drop((theirs, self.control.take(), self.lifeline.1.take()));
                let domain = self.groups.as_ref().map(|groups| &groups.domain);
                sys::exit(keeper::run(ours, lifeline, domain))
            }
            Ok(((theirs, _), _, Some(keeper))) => {
                self.keepers.insert(keeper);
                let number = keeper.as_raw_pid().cast_unsigned();
                self.answer(FromSpawner::Forked(number), &[theirs])
            }
        }
    }

    fn answer(&self, answer: FromSpawner, descriptors: &[OwnedFd]) -> io::Result<()> {
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match &self.control {
            Some(control) => protocol::send(control, &answer, &descriptors),
            None => Ok(()),
        }
    }

    /// Waits until all keepers have made an end of their jobs, as the worker is gone. Those that cannot are left behind.
    fn leave(&mut self) -> io::Result<()> {
        self.control = None;
        let (kill_at, until) = (Instant::now() + KEEPER_WAIT, Instant::now() + LEAVE_WAIT);
        loop {
            self.clean_up();
            let now = Instant::now();
            let is_late = now >= kill_at;
            if is_late {
                self.kill_keepers();
            }
            if now >= until || (self.keepers.is_subset(&self.released) && tree::children().len() <= self.released.len())
            {
                return Ok(());
            }
            let next = if is_late { until } else { kill_at };
            let limit = Timespec::try_from(next.saturating_duration_since(now)).ok();
            poll(&mut [PollFd::new(&self.child_ended, PollFlags::IN)], limit.as_ref())?;
        }
    }

    fn kill_keepers(&self) {
        for keeper in self.keepers.difference(&self.released) {
            let _ = kill_process(*keeper, Signal::KILL);
        }
    }

    /// Reaps what has ended, and kills what a killed keeper left. Those come back here by their own end, until none is
    /// left.
    fn clean_up(&mut self) {
        sys::forget_signals(&self.child_ended);
        while let Ok(Some(reaped)) = sys::reap(None) {
            self.released.remove(&reaped.pid);
            if self.keepers.remove(&reaped.pid) {
                self.groups.iter_mut().for_each(|groups| groups.left.push(reaped.pid));
            }
        }
        for stray in tree::children() {
            if !self.keepers.contains(&stray) {
                let _ = kill_process_group(stray, Signal::KILL);
                let _ = kill_process(stray, Signal::KILL);
            }
        }
        self.groups.iter_mut().for_each(Groups::clean_up);
    }
}
