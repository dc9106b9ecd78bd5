//! The system calls that have no safe form elsewhere. All `unsafe` of the program is here.
//!
//! Everything in this file runs in a process with one thread, which is what makes a plain `fork` and a `clone` that
//! shares memory sound: no lock can be held by a thread that the copy lacks. [`reset_signals`] and
//! [`serve_soon`] alone have no need of that.
#![expect(
    unsafe_code,
    reason = "fork, clone, execve, wait4 and signal sets have no safe wrapper; each block says why it is sound"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::iter;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

use super::super::protocol::{Exit, Used};

/// Bytes of the stack on which a child runs until its exec. It calls a dozen functions, one deep.
const STACK: usize = 64 * 1024;

/// From clone(2): too wide for the type that the C library's header gives it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How [`run_soon`] has a process scheduled. The slice is in nanoseconds, the shortest there is.
const SOON_NICE: c_int = -10;
const USUAL_NICE: c_int = 0;
const SOON_SLICE: u64 = 100_000;
const RESET_ON_FORK: u64 = 1; // SCHED_FLAG_RESET_ON_FORK
const ATTRIBUTES_SIZE: u32 = 48; // SCHED_ATTR_SIZE_VER0

/// The last signal of Linux, and the bytes of a set of them.
const LAST_SIGNAL: c_int = 64;
const MASK_BYTES: usize = 8;

/// What a process has come to when it was reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reaped {
    pub(super) pid: Pid,
    pub(super) exit: Exit,
    pub(super) used: Used,
}

/// Forks this process. `None` in the child.
///
/// # Errors
///
/// When there are no more processes to be had.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread, so the child may do all that the parent might.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// The stack of children that share this process's memory until they exec.
pub(super) struct Stack(Vec<u8>);

impl Stack {
    pub(super) fn new() -> Self {
        // Zeroed memory is not resident before it is touched.
        Self(vec![0; STACK])
    }
}

/// Runs `child` in a new process that shares this one's memory, while this one waits until the child has loaded a
/// program or exited (vfork(2), on a stack of its own). Into the cgroup given, if one is.
///
/// `child` returns only to exit. It must do nothing but system calls: this process sees all that it writes to memory.
///
/// # Errors
///
/// When there are no more processes to be had.
pub(super) fn vfork(stack: &mut Stack, child: &mut dyn FnMut(), cgroup: Option<BorrowedFd<'_>>) -> io::Result<Pid> {
    let pid = match cgroup {
        None => vfork_here(stack, child),
        Some(cgroup) => fork_into(child, cgroup)?,
    };
    Pid::from_raw(pid).ok_or_else(io::Error::last_os_error)
}

extern "C" fn enter(child: *mut c_void) -> c_int {
    // SAFETY: `vfork_here` passes a pointer to its own argument, and is suspended until this process is gone from its
    // memory, so the reference is alive and unique.
    let child = unsafe { &mut *child.cast::<&mut dyn FnMut()>() };
    child();
    exit(127)
}

/// -1 or 0 where it failed.
fn vfork_here(stack: &mut Stack, mut child: &mut dyn FnMut()) -> c_int {
    let end = stack.0.as_mut_ptr_range().end;
    // The ABI wants stacks aligned to 16 bytes.
    let top = end.wrapping_sub(end.addr() % 16);
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is unique to the child and outlives it, as CLONE_VFORK suspends this thread until the child has
    // left the shared memory; this process has no other thread; `child` is the type that `enter` reads.
    let pid = unsafe { libc::clone(enter, top.cast(), flags, ptr::from_mut(&mut child).cast()) };
    pid.max(0)
}

/// Memory is copied here, as the call returns twice on one stack. `Err` where it failed.
fn fork_into(child: &mut dyn FnMut(), cgroup: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: all-zero is a valid clone_args: no flags, no pointers.
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = u64::from(libc::CLONE_VFORK.cast_unsigned()) | CLONE_INTO_CGROUP;
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    // SAFETY: the arguments are valid for their size; without CLONE_VM the child has memory of its own, as after fork.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            child();
            exit(127)
        }
        pid => Ok(c_int::try_from(pid).expect("process numbers are of this type")),
    }
}

/// Ends this process at once, running nothing.
pub(super) fn exit(code: c_int) -> ! {
    // SAFETY: always sound; nothing of this process is used after it.
    unsafe { libc::_exit(code) }
}

/// A number that a child can leave to its parent, whether it shares the parent's memory or has its own.
pub(super) struct Note(NonNull<AtomicU64>);

impl Note {
    /// A note that says 0.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, placed by the kernel, overlaps nothing.
        let page = unsafe { libc::mmap(ptr::null_mut(), size_of::<AtomicU64>(), access, kind, -1, 0) };
        match NonNull::new(page.cast()) {
            Some(page) if page.as_ptr() != libc::MAP_FAILED.cast() => Ok(Self(page)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn write(&self, number: u64) {
        self.number().store(number, Ordering::Relaxed);
    }

    /// What was written last; it says 0 again.
    pub(super) fn take(&self) -> u64 {
        self.number().swap(0, Ordering::Relaxed)
    }

    fn number(&self) -> &AtomicU64 {
        // SAFETY: the mapping is zeroed, which is a valid atomic, aligned to a page, and never unmapped.
        unsafe { self.0.as_ref() }
    }
}

/// A list of strings as execve(2) takes it: pointers into one block, and a null at the end.
pub(super) struct Strings<'a> {
    pointers: Vec<*const c_char>,
    block: PhantomData<&'a [u8]>,
}

impl<'a> Strings<'a> {
    /// Of blocks in which each string ends with a NUL.
    pub(super) fn new<const BLOCKS: usize>(blocks: [&'a [u8]; BLOCKS]) -> Self {
        let strings = blocks.into_iter().flat_map(|mut rest| {
            iter::from_fn(move || {
                let string = CStr::from_bytes_until_nul(rest).ok()?;
                rest = &rest[string.to_bytes_with_nul().len()..];
                Some(string.as_ptr())
            })
        });
        Self {
            pointers: strings.chain([ptr::null()]).collect(),
            block: PhantomData,
        }
    }
}

/// Replaces this process by a program; returns only if that failed. Allocates nothing.
pub(super) fn exec(path: &CStr, argv: &Strings<'_>, env: &Strings<'_>) -> Errno {
    // SAFETY: all three are NUL-ended, the lists end with a null, and what they point to is borrowed until here.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    last_errno()
}

/// Restricts this process to what a Landlock ruleset allows (landlock_restrict_self(2)).
pub(super) fn restrict_self(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: it takes a descriptor and flags by value.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Closes every descriptor from `first` on. Allocates nothing.
pub(super) fn close_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the callers are about to exec, or have just begun and own nothing: no owner of a descriptor is left that
    // would use or close it.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Blocks every signal, for good. What asks a process to end is meant for the worker; SIGKILL is still obeyed.
pub(super) fn block_signals() {
    set_mask(libc::SIG_SETMASK, &full_set());
}

/// Blocks no signal. Allocates nothing.
pub(super) fn unblock_signals() {
    set_mask(libc::SIG_UNBLOCK, &full_set());
}

/// Has every signal do what it does by default, also those that this process was started to ignore.
pub(super) fn reset_signals() {
    // A `struct sigaction` of the kernel's: no handler, no flags, an empty mask. Asked for directly, because the C library
    // keeps two numbers for itself and would not set those, though a parent may have had them ignored.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: the structure is as large as the kernel reads it and names no handler, so no code of ours runs in one;
        // numbers that cannot be set are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                MASK_BYTES,
            )
        };
    }
}

/// How a thread is scheduled: a `struct sched_attr`, see sched_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Has a process that is killed run soon, however many others want to run: with little to do at a time (a short slice, from
/// Linux 6.12), and before others where it may (root). What it starts gets none of this. A kernel that knows nothing of it
/// leaves things as they are.
pub(super) fn run_soon(process: Pid) {
    let process = process.as_raw_pid();
    let _ = schedule(process, SOON_NICE) || schedule(process, USUAL_NICE);
}

/// Has a process, or the calling thread, run soon, as [`run_soon`] says, as far as nobody has chosen how it is scheduled: a
/// nice value or a policy of its own (by `nice`, `chrt`, a systemd unit) is kept, for what it starts too.
pub(super) fn run_soon_unless_chosen(process: Option<Pid>) {
    let process = process.map_or(0, Pid::as_raw_pid);
    let mut own = Attributes::default();
    // SAFETY: the structure is as large as it is said to be, and any bytes are good ones.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, process, &raw mut own, ATTRIBUTES_SIZE, 0) };
    if read != 0 || own.policy != libc::SCHED_OTHER.cast_unsigned() || own.nice < USUAL_NICE {
        return;
    }
    let sooner = if own.nice == USUAL_NICE { SOON_NICE } else { own.nice };
    let _ = schedule(process, sooner) || schedule(process, own.nice);
}

/// Has the calling thread run soon: for those that keep time beside commands which take all there is.
pub fn serve_soon() {
    run_soon_unless_chosen(None);
}

/// Gives a process or thread the shortest slice, and this nice value; whether it may.
fn schedule(process: c_int, nice: c_int) -> bool {
    let attributes = Attributes {
        size: ATTRIBUTES_SIZE,
        policy: libc::SCHED_OTHER.cast_unsigned(),
        flags: RESET_ON_FORK,
        nice,
        runtime: SOON_SLICE,
        ..Attributes::default()
    };
    // SAFETY: the structure is as large as it says, and only read.
    unsafe { libc::syscall(libc::SYS_sched_setattr, process, &raw const attributes, 0) == 0 }
}

/// A descriptor that is readable when a child has ended. SIGCHLD has to be blocked.
pub(super) fn child_signals() -> io::Result<OwnedFd> {
    let mut set = empty_set();
    // SAFETY: `set` is an initialised set of ours, and -1 asks for a new descriptor, which nobody else owns.
    let fd = unsafe {
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Empties a descriptor of [`child_signals`].
pub(super) fn forget_signals(signals: &OwnedFd) {
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>()];
    // One of a kind is pending at most.
    let _ = rustix::io::read(signals, &mut buffer);
}

/// Reaps a child that has ended, with what it and those it waited for used. `None` if none has.
///
/// # Errors
///
/// ECHILD when there is no such child.
pub(super) fn reap(pid: Option<Pid>) -> Result<Option<Reaped>, Errno> {
    let (mut status, target) = (0, pid.map_or(-1, Pid::as_raw_pid));
    // SAFETY: all-zero is a valid rusage.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to values of ours of the right types.
    let reaped = unsafe { libc::wait4(target, &raw mut status, libc::WNOHANG, &raw mut usage) };
    if reaped < 0 {
        return Err(last_errno());
    }
    Ok(Pid::from_raw(reaped).map(|pid| Reaped {
        pid,
        exit: read_status(status),
        used: read_usage(&usage),
    }))
}

fn read_status(status: c_int) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    }
}

fn read_usage(usage: &libc::rusage) -> Used {
    Used {
        user: read_time(usage.ru_utime),
        system: read_time(usage.ru_stime),
        max_rss: u64::try_from(usage.ru_maxrss).unwrap_or_default().saturating_mul(1024),
    }
}

fn read_time(time: libc::timeval) -> Duration {
    let micros = time.tv_sec.saturating_mul(1_000_000).saturating_add(time.tv_usec);
    Duration::from_micros(micros.try_into().unwrap_or_default())
}

fn last_errno() -> Errno {
    // SAFETY: the location is this thread's own, valid as long as the thread is.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn full_set() -> libc::sigset_t {
    let mut set = empty_set();
    // SAFETY: `set` is an initialised set of ours.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

fn empty_set() -> libc::sigset_t {
    // SAFETY: all-zero is a valid bit set, and the one that sigemptyset makes of it.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        set
    }
}

fn set_mask(how: c_int, set: &libc::sigset_t) {
    // SAFETY: `set` is initialised, and the old mask is not asked for. It cannot fail for a valid `how`.
    unsafe { libc::sigprocmask(how, set, ptr::null_mut()) };
}
