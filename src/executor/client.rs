//! The worker's end of its helper processes: starts and replaces spawners, and lends out keepers.
//!
//! A keeper that is free is used again, the one last used first, so that a worker with few jobs at a time keeps few; one
//! that was not needed for [`IDLE`] is let go. More are forked as more jobs run at a time. A spawner that dies is
//! replaced; its keepers kill their jobs, and those end as what they are.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::account::{self, SpawnerAccount};
use super::cgroup::{CgroupError, Choice, Claim, Delegation};
use super::protocol::{self, Failure, FromKeeper, FromSpawner, Packet, Report, ToKeeper, ToSpawner};
use super::spawner::{SPAWNER_ARGUMENT, tree};
use crate::flow::{Lock, LockAccount};

/// Free keepers, which each command takes one of and gives back.
pub static LOCK: LockAccount = LockAccount::new("keepers");

/// How long a keeper may be free before it is let go.
const IDLE: Duration = Duration::from_secs(30);

/// Spawners that are tried before a command cannot be started.
const TRIES: usize = 3;

/// How long a spawner may take to end once it was let go: as long as its keepers need to make an end of their jobs.
const GOODBYE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// How many commands may be starting at a time, for each processor: enough to keep it busy while others wait.
const STARTS_A_PROCESSOR: usize = 2;

/// How long to wait before a spawner that could not be started is tried again.
const START_AGAIN: Duration = Duration::from_millis(500);

/// How helper processes are started.
#[derive(Debug, Clone)]
pub struct SpawnerOptions {
    /// The program that is a spawner when its first argument is [`SPAWNER_ARGUMENT`].
    pub program: PathBuf,
    /// How many spawners there are, at least one.
    pub count: usize,
    /// Whether this process is the one under which the orphans of killed helpers are caught, and has no children that
    /// are not helpers.
    pub catch_orphans: bool,
    /// Whose cgroup is divided among jobs.
    pub cgroup: Choice,
}

/// Why there are no helper processes.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A process cannot be started.
    #[error("start a helper process: {0}")]
    Process(#[from] io::Error),
    /// Processes cannot be found.
    #[error("{0}")]
    Proc(#[source] io::Error),
    /// The cgroup that was named cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl SpawnerOptions {
    /// For a service: this program, one a processor.
    #[must_use]
    pub fn service(cgroup: Choice) -> Self {
        Self {
            // The very file that runs, also when another one has taken its place on the disk.
            program: PathBuf::from("/proc/self/exe"),
            count: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            catch_orphans: true,
            cgroup,
        }
    }
}

/// The helper processes of a worker. Clones are handles on the same ones; with the last, they end.
#[derive(Clone)]
pub struct Spawners(Arc<Inner>);

struct Inner {
    options: SpawnerOptions,
    /// The cgroup that is ours to divide, as long as this is held.
    claim: Option<Claim>,
    /// Free keepers, the one last used last. Dropped before the spawners, which wait for theirs.
    idle: Lock<Vec<Idle>>,
    account: SpawnerAccount,
    spawners: Vec<Spawner>,
    /// Commands that may be starting at a time.
    starts: Arc<Semaphore>,
    /// Children of this process that are not to be taken for orphans.
    known: Mutex<BTreeSet<u32>>,
}

struct Idle {
    keeper: Keeper,
    since: Instant,
}

/// One spawner after the other, in one place.
struct Spawner {
    /// Held for a question and its answer.
    process: tokio::sync::Mutex<Process>,
    /// Keepers it has forked and that are still in use here.
    keepers: Arc<AtomicUsize>,
    /// Whether its death was heard of and it was not replaced yet.
    is_dead: AtomicBool,
}

/// A running spawner.
struct Process {
    /// `None` only while it ends.
    control: Option<OwnedFd>,
    child: Child,
    /// Questions whose answer nobody waited for.
    unanswered: usize,
}

/// A process that runs one command at a time. Dropped, it kills what it runs, and ends.
pub(super) struct Keeper {
    socket: AsyncFd<OwnedFd>,
    number: u32,
    place: usize,
    _counted: (Counted, account::Counted),
}

/// What became of a command that was given to a keeper.
pub(super) enum Answer {
    /// It could not be started.
    Failed(Failure),
    /// It ended.
    Ended(Report),
    /// The keeper died before it had looked at it.
    Unread,
    /// The keeper died.
    Died,
}

impl Spawners {
    /// Starts the helper processes. Best done before there are threads and a runtime.
    ///
    /// # Errors
    ///
    /// When a process cannot be started, or a cgroup that was named cannot be used.
    pub fn start(options: SpawnerOptions) -> Result<Self, StartError> {
        if options.catch_orphans {
            let own = Some(rustix::process::getpid());
            rustix::process::set_child_subreaper(own).map_err(io::Error::from)?;
        }
        tree::check_listing().map_err(StartError::Proc)?;
        let claim = claim(&options.cgroup)?;
        let known = Mutex::default();
        let account = SpawnerAccount::default();
        let spawners = (0..options.count.max(1)).map(|_| {
            let process = Process::start(&options, claim.as_ref(), &known)?;
            account.spawner_started();
            Ok(Spawner {
                process: tokio::sync::Mutex::new(process),
                keepers: Arc::default(),
                is_dead: AtomicBool::new(false),
            })
        });
        let spawners = spawners.collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Inner {
            options,
            claim,
            spawners,
            idle: Lock::new(&LOCK, Vec::new()),
            account,
            starts: Arc::new(Semaphore::new(starts_at_a_time())),
            known,
        })))
    }

    /// What is counted of them.
    #[must_use]
    pub fn account(&self) -> SpawnerAccount {
        self.0.account.clone()
    }

    /// Replaces spawners that die and lets go of keepers that are not needed, for ever.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn run(&self) {
        let places = 0..self.0.spawners.len();
        tokio::join!(join_all(places.map(|place| self.watch(place))), self.let_go());
    }

    /// A free keeper, or a new one.
    ///
    /// # Errors
    ///
    /// When no process can be had.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a keeper that nobody takes ends.
    pub(super) async fn keeper(&self) -> io::Result<Keeper> {
        if let Some(keeper) = self.idle_keeper() {
            return Ok(keeper);
        }
        let spawners = self.0.spawners.iter().enumerate();
        let least = spawners.min_by_key(|(_, spawner)| spawner.keepers.load(Ordering::Relaxed));
        let first = least.map_or(0, |(place, _)| place);
        // Counted before it is there, so that those who ask at the same time go to the others.
        let mut error = io::ErrorKind::NotConnected.into();
        for place in (0..TRIES).map(|more| (first + more) % self.0.spawners.len()) {
            let counted = (Counted::new(&self.0.spawners[place].keepers), self.0.account.keeper());
            match self.fork(place).await {
                Ok((number, socket)) => return Keeper::new(number, socket, place, counted),
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// Waits for a command's turn to start, which is over when this is dropped. More starts at a time are no faster, as
    /// a start is all work for the processor; but each of them, and each end of a command, then waits for all others.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but the place in the queue is lost.
    pub(super) async fn turn_to_start(&self) -> OwnedSemaphorePermit {
        let turn = self.0.starts.clone().acquire_owned().await;
        turn.expect("nobody closes this semaphore")
    }

    /// Takes back a keeper that has nothing to do.
    pub(super) fn give_back(&self, keeper: Keeper) {
        let since = Instant::now();
        let mut idle = self.0.idle.lock();
        idle.push(Idle { keeper, since });
        self.0.account.keepers_are_idle(idle.len());
    }

    fn idle_keeper(&self) -> Option<Keeper> {
        let mut idle = self.0.idle.lock();
        let last = idle.pop()?;
        self.0.account.keepers_are_idle(idle.len());
        Some(last.keeper)
    }

    /// Makes an end of a keeper that does not answer, and of its job.
    pub(super) async fn discard(&self, keeper: Keeper) {
        let process = self.0.spawners[keeper.place].process.lock().await;
        // A spawner that cannot be told is dead, and its keepers end with it.
        let _ = process.tell(ToSpawner::Discard(keeper.number));
    }

    /// Remembers a keeper that stays behind with what its job was allowed to leave.
    pub(super) async fn release(&self, keeper: Keeper) {
        self.known().insert(keeper.number);
        let process = self.0.spawners[keeper.place].process.lock().await;
        let _ = process.tell(ToSpawner::Release(keeper.number));
    }

    /// Asks a spawner for a keeper; a spawner that is dead is replaced first.
    async fn fork(&self, place: usize) -> io::Result<(u32, OwnedFd)> {
        let spawner = &self.0.spawners[place];
        let mut process = spawner.process.lock().await;
        match process.fork().await {
            Err(error) if is_gone(&error) => {
                self.replace(spawner, &mut process).await?;
                process.fork().await
            }
            answered => answered,
        }
    }

    /// Replaces the spawner in one place whenever it has died.
    async fn watch(&self, place: usize) {
        let spawner = &self.0.spawners[place];
        loop {
            let exit = {
                let process = spawner.process.lock().await;
                process.exit()
            };
            match exit {
                // An error means that the runtime is shutting down, and then nobody polls any more.
                Ok(exit) => drop(exit.readable().await),
                // For want of a descriptor, say. It is looked after now and then until it can be watched.
                Err(_) => tokio::time::sleep(START_AGAIN).await,
            }
            let mut process = spawner.process.lock().await;
            if let Err(error) = self.replace(spawner, &mut process).await {
                tracing::error!("failed to replace a spawner that has died: {error}; trying again");
                drop(process);
                tokio::time::sleep(START_AGAIN).await;
            }
        }
    }

    /// Puts a new spawner in the place of one that has died; does nothing if it has not.
    async fn replace(&self, spawner: &Spawner, process: &mut Process) -> io::Result<()> {
        let Some(status) = process.child.try_wait()? else {
            return Ok(());
        };
        if !spawner.is_dead.swap(true, Ordering::Relaxed) {
            self.0.account.spawner_died();
        }
        tracing::warn!("a spawner has died ({status}) and is replaced; the commands it held were killed");
        self.known().remove(&process.child.id());
        self.kill_orphans().await;
        *process = Process::start(&self.0.options, self.0.claim.as_ref(), &self.0.known)?;
        spawner.is_dead.store(false, Ordering::Relaxed);
        self.0.account.spawner_started();
        self.0.account.spawner_replaced();
        Ok(())
    }

    /// Kills and reaps what came to this process when its helpers were killed.
    async fn kill_orphans(&self) {
        if !self.0.options.catch_orphans {
            return;
        }
        let inner = self.0.clone();
        let swept = tokio::task::spawn_blocking(move || while inner.sweep() {}).await;
        if let Err(error) = swept {
            tracing::error!("failed to kill orphans: {error}");
        }
    }

    /// Lets go of keepers that were not needed for a while.
    async fn let_go(&self) {
        let mut ticks = tokio::time::interval(IDLE);
        loop {
            ticks.tick().await;
            let mut idle = self.0.idle.lock();
            idle.retain(|idle| idle.since.elapsed() < IDLE);
            self.0.account.keepers_are_idle(idle.len());
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn starts_at_a_time() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.saturating_mul(STARTS_A_PROCESSOR)
}

/// Makes the chosen cgroup ours. What may be missing unasked is missing with a word in the log.
fn claim(choice: &Choice) -> Result<Option<Claim>, CgroupError> {
    let claim = match Delegation::find(choice)?.map(Delegation::prepare).transpose() {
        Err(error) if *choice == Choice::Auto => {
            tracing::warn!("failed to {error}; limits hold for each process alone");
            None
        }
        claim => claim?,
    };
    for problem in claim.iter().flat_map(|claim| &claim.problems) {
        tracing::warn!("failed to {problem}");
    }
    Ok(claim)
}

impl Inner {
    /// Kills and reaps every child that is not known; false when there was none.
    fn sweep(&self) -> bool {
        let orphans: Vec<Pid> = {
            // Held over the look, so that a spawner just started is not taken for an orphan.
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let children = tree::children_of(rustix::process::getpid());
            let is_known = |child: &Pid| known.contains(&child.as_raw_pid().cast_unsigned());
            children.into_iter().filter(|child| !is_known(child)).collect()
        };
        for orphan in &orphans {
            let _ = kill_process(*orphan, Signal::KILL);
        }
        for orphan in &orphans {
            let _ = waitid(WaitId::Pid(*orphan), WaitIdOptions::EXITED);
        }
        !orphans.is_empty()
    }
}

impl Process {
    fn start(options: &SpawnerOptions, claim: Option<&Claim>, known: &Mutex<BTreeSet<u32>>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let child = Command::new(&options.program)
            .arg0("synthex")
            .arg(SPAWNER_ARGUMENT)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        known.insert(child.id());
        let process = Self {
            control: Some(ours),
            child,
            unanswered: 0,
        };
        if let Some(claim) = claim {
            process.tell(ToSpawner::UseGroups(claim.domain.clone()))?;
        }
        Ok(process)
    }

    /// Readable when it has died.
    fn exit(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let exit = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        watch(exit)
    }

    fn control(&self) -> io::Result<BorrowedFd<'_>> {
        let control = self.control.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        Ok(control.as_fd())
    }

    fn tell(&self, what: ToSpawner) -> io::Result<()> {
        protocol::send(self.control()?, &what, &[])
    }

    async fn fork(&mut self) -> io::Result<(u32, OwnedFd)> {
        self.tell(ToSpawner::Fork)?;
        self.unanswered += 1;
        loop {
            let answer = self.answer().await?;
            self.unanswered -= 1;
            // Answers come in the order of the questions; those of questions given up are dropped.
            if self.unanswered == 0 {
                return answer;
            }
        }
    }

    async fn answer(&self) -> io::Result<io::Result<(u32, OwnedFd)>> {
        let control = watch(self.control()?)?;
        let mut buffer = [0; 64];
        let (count, descriptors) = match read(&control, &mut buffer).await? {
            Packet::Message(count, descriptors) => (count, descriptors),
            Packet::Closed => return Err(io::ErrorKind::ConnectionReset.into()),
        };
        Ok(match protocol::decode(&buffer[..count])? {
            FromSpawner::Refused(errno) => Err(io::Error::from_raw_os_error(errno)),
            FromSpawner::Forked(number) => match descriptors.into_iter().next() {
                Some(socket) => Ok((number, socket)),
                None => Err(io::ErrorKind::InvalidData.into()),
            },
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.control = None;
        if let Ok(exit) = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()) {
            let _ = poll(&mut [PollFd::new(&exit, PollFlags::IN)], Some(&GOODBYE));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One more keeper of a spawner, as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(keepers: &Arc<AtomicUsize>) -> Self {
        keepers.fetch_add(1, Ordering::Relaxed);
        Self(keepers.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Keeper {
    fn new(number: u32, socket: OwnedFd, place: usize, counted: (Counted, account::Counted)) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: watch(socket)?,
            number,
            place,
            _counted: counted,
        })
    }

    /// Gives it an encoded command with its streams.
    ///
    /// # Errors
    ///
    /// When it has died; the command was not started then.
    pub(super) fn start(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        protocol::send_bytes(self.socket.get_ref(), bytes, descriptors)
    }

    /// Has it end its job as at its timeout.
    pub(super) fn end(&self) {
        self.tell(&ToKeeper::End);
    }

    /// Has it kill its job at once.
    pub(super) fn kill(&self) {
        self.tell(&ToKeeper::Kill);
    }

    fn tell(&self, wish: &ToKeeper<'_>) {
        // One that is gone has killed its job.
        let _ = protocol::send(self.socket.get_ref(), wish, &[]);
    }

    /// What became of the command.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn answer(&self) -> Answer {
        let mut buffer = [0; 512];
        match read(&self.socket, &mut buffer).await {
            Ok(Packet::Message(count, _)) => match protocol::decode(&buffer[..count]) {
                Ok(FromKeeper::Failed(failure)) => Answer::Failed(failure),
                Ok(FromKeeper::Ended(report)) => Answer::Ended(report),
                Err(_) => Answer::Died,
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Answer::Unread,
            Ok(Packet::Closed) | Err(_) => Answer::Died,
        }
    }
}

/// Has the runtime tell when the descriptor is readable.
#[expect(
    deprecated,
    reason = "deprecated as unsound for types that may close or exchange the descriptor, which owned and borrowed ones \
              never do; its successor is an unsafe function"
)]
fn watch<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Reads one packet, once there is one.
///
/// Packets come one at a time, as answers, so the socket counts as empty after each; a look whether it is would be a
/// system call for every command. What comes later, the other end's death too, makes it readable again.
async fn read<T: AsFd + AsRawFd>(socket: &AsyncFd<T>, buffer: &mut [u8]) -> io::Result<Packet> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(packet) = ready.try_io(|socket| protocol::receive(socket, buffer)) {
            ready.clear_ready();
            return packet;
        }
    }
}

/// Whether a spawner is dead, from what a question to it came to.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}
