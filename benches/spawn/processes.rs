//! What a process and its helpers have used so far.

#![expect(unsafe_code, reason = "the clock of another process has no safe form")]

use std::fs;
use std::mem::MaybeUninit;
use std::time::Duration;

use crate::support::process::descendants;

/// What the processes of a service have in their arguments that are not the service itself, nor a job.
const HELPER: &str = "__spawner";

/// Processor time, user and system.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// Of the service's own process.
    pub service: Duration,
    /// Of its helpers that live.
    pub helpers: Duration,
}

impl Cpu {
    /// Reads what a service has used so far.
    pub fn of(service: u32) -> Self {
        Self {
            service: cpu_time(service),
            helpers: helpers(service).into_iter().map(cpu_time).sum(),
        }
    }

    /// What was used since an earlier reading.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            service: self.service.saturating_sub(earlier.service),
            helpers: self.helpers.saturating_sub(earlier.helpers),
        }
    }
}

/// The helper processes of a service.
pub fn helpers(service: u32) -> Vec<u32> {
    let family = descendants(service).into_iter();
    family
        .filter(|process| process.command.contains(HELPER))
        .map(|process| process.pid)
        .collect()
}

/// How many processes below this one run `name`.
pub fn running(service: u32, name: &str) -> usize {
    let family = descendants(service).into_iter();
    family.filter(|process| process.command.starts_with(name)).count()
}

/// Time that all threads of a process have run, without its children. `/proc/PID/stat` has the same in steps of 10 ms;
/// this is the clock behind it (`clock_getcpuclockid(3)`). Zero for a process that is gone.
fn cpu_time(pid: u32) -> Duration {
    let mut clock = 0;
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: both calls write to the place they are given, and nothing is read unless both say that they did.
    let time = unsafe {
        if libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) != 0
            || libc::clock_gettime(clock, time.as_mut_ptr()) != 0
        {
            return Duration::ZERO;
        }
        time.assume_init()
    };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Makes the calling thread run before all others. False where that needs a right that we lack.
pub fn raise_priority() -> bool {
    let parameters = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameters are there for the time of the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

/// Resident memory in bytes.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub rss: f64,
    pub pss: f64,
}

/// Reads the memory of a process; `None` where we may not: helpers show theirs to root alone.
pub fn memory(pid: u32) -> Option<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(Memory {
        rss: kilobytes(&text, "Rss:"),
        pss: kilobytes(&text, "Pss:"),
    })
}

/// The most that a process ever had resident.
pub fn peak_rss(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kilobytes(&text, "VmHWM:")
}

fn kilobytes(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    value.unwrap_or_default() * 1024.0
}
