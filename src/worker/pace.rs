//! How often a pool's commands are started, and those of single programs.
//!
//! A job that waits for its rate is in hand (its delivery is unacked, one of prefetch) and has no slot. It stands in line:
//! first in that of its program, if that has a rate of its own, then in that of the pool. Only the first of a line waits for
//! the clock, and stays the first until it has its slot: what it was told is free is still free then, and is counted at the
//! start itself. So no job starts on what another has saved up, and those of other programs go past.
//!
//! Knows nothing of drains and cancellations: to stop waiting, drop the future.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::sync::{Arc, PoisonError};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

use super::event::{Event, Observer};
use crate::config::{Pool, ProgramRates};
use crate::flow::rate::{Meter, Rate};

/// Programs whose rates are kept at a time. One that is forgotten, as it was not started for longest, has its burst again.
const PROGRAMS: usize = 1024;

/// A meter, and the line before it.
type Line = Arc<Mutex<Meter>>;

pub(super) struct Pace {
    pool: Arc<str>,
    all: Option<Line>,
    rates: ProgramRates,
    programs: std::sync::Mutex<HashMap<OsString, Used>>,
    observer: Arc<dyn Observer>,
}

struct Used {
    line: Line,
    last: Instant,
}

/// The first of its lines. Dropped without [`First::start`], it has taken nothing from anybody.
#[derive(Default)]
pub(super) struct First(Vec<OwnedMutexGuard<Meter>>);

impl First {
    /// Counts the start of a command.
    pub(super) fn start(mut self) {
        let now = Instant::now();
        for meter in &mut self.0 {
            // It was ready before, and nobody else could take it.
            let taken = meter.take(now);
            debug_assert!(taken, "a start over the rate");
        }
    }
}

impl Pace {
    pub(super) fn new(pool: &Pool, observer: Arc<dyn Observer>) -> Self {
        Self {
            pool: pool.name.clone(),
            all: pool.rate.map(|rate| line(rate, Instant::now())),
            rates: pool.program_rates.clone(),
            programs: std::sync::Mutex::default(),
            observer,
        }
    }

    /// Waits until a command of this program may start, as far as rates go.
    ///
    /// # Cancel safety
    /// Cancel safe; the place in the line is lost.
    pub(super) async fn first(&self, program: &OsStr) -> First {
        let mut first = First::default();
        for line in [self.line_of(program), self.all.clone()].into_iter().flatten() {
            let meter = line.lock_owned().await;
            self.wait_for(&meter).await;
            first.0.push(meter);
        }
        first
    }

    async fn wait_for(&self, meter: &Meter) {
        let now = Instant::now();
        if meter.ready_at() > now {
            let _limited = Limited { pace: self, since: now };
            tokio::time::sleep_until(meter.ready_at()).await;
        }
    }

    /// The line of a program that has a rate of its own.
    fn line_of(&self, program: &OsStr) -> Option<Line> {
        let rate = self.rates.of(&program.to_string_lossy())?;
        let (now, mut programs) = (
            Instant::now(),
            self.programs.lock().unwrap_or_else(PoisonError::into_inner),
        );
        if let Some(used) = programs.get_mut(program) {
            used.last = now;
            return Some(used.line.clone());
        }
        if programs.len() >= PROGRAMS {
            forget_one(&mut programs);
        }
        let line = line(rate, now);
        let used = Used {
            line: line.clone(),
            last: now,
        };
        programs.insert(program.to_owned(), used);
        Some(line)
    }
}

fn line(rate: Rate, now: Instant) -> Line {
    Arc::new(Mutex::new(Meter::new(rate, now)))
}

/// Forgets the program that was not used for longest and that nobody waits for. If all are waited for, there are no more
/// of them than jobs in hand.
fn forget_one(programs: &mut HashMap<OsString, Used>) {
    let free = programs.iter().filter(|(_, used)| Arc::strong_count(&used.line) == 1);
    let oldest = free
        .min_by_key(|(_, used)| used.last)
        .map(|(program, _)| program.clone());
    if let Some(program) = oldest {
        programs.remove(&program);
    }
}

/// Tells how long a rate held up the first of a line, however that ends.
struct Limited<'a> {
    pace: &'a Pace,
    since: Instant,
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        self.pace.observer.on(&Event::RateLimited {
            pool: self.pace.pool.clone(),
            waited: self.since.elapsed(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    /// Adds up the waits.
    #[derive(Default)]
    struct Waits(std::sync::Mutex<Duration>);

    impl Observer for Waits {
        fn on(&self, event: &Event) {
            if let Event::RateLimited { waited, .. } = event {
                *self.0.lock().unwrap() += *waited;
            }
        }
    }

    impl Waits {
        fn ms(&self) -> u128 {
            self.0.lock().unwrap().as_millis()
        }
    }

    fn pace(jobs: Option<&str>, programs: &[(&str, &str)]) -> (Pace, Arc<Waits>) {
        let programs = programs.iter().map(|(name, rate)| format!("{name:?} = {rate:?}\n"));
        let jobs = jobs.map(|rate| format!("[rate]\njobs = {rate:?}\nburst = 1\n"));
        let text = format!(
            "{}[program_rates]\n{}",
            jobs.unwrap_or_default(),
            programs.collect::<String>()
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let pool = crate::config::load(file.path(), &Default::default()).unwrap().pool;
        let waits = Arc::new(Waits::default());
        (Pace::new(&pool, waits.clone()), waits)
    }

    /// Starts a command as soon as it may, and says when that was.
    async fn start(pace: &Pace, program: &str, since: Instant) -> u128 {
        pace.first(program.as_ref()).await.start();
        since.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn without_rates_nobody_waits() {
        let (pace, waits) = pace(None, &[("convert", "1/h")]);
        for _ in 0..1000 {
            pace.first("true".as_ref()).now_or_never().expect("at once").start();
        }
        assert_eq!(waits.ms(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn jobs_start_in_the_order_in_which_they_came_at_their_rate() {
        let (pace, waits) = pace(Some("2/s"), &[]);
        let begun = Instant::now();
        let all = (0..4).map(|_| start(&pace, "true", begun));
        assert_eq!(futures_util::future::join_all(all).await, [0, 500, 1000, 1500]);
        assert_eq!(waits.ms(), 1500, "what the first of the line waited, not all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_waits_holds_up_no_other() {
        let (pace, _) = pace(Some("10/s"), &[("slow*", "1/s")]);
        let begun = Instant::now();
        let all = ["slow", "slow", "slow-too", "fast", "fast"].map(|program| start(&pace, program, begun));
        // Each program that the name covers has the rate for itself.
        assert_eq!(futures_util::future::join_all(all).await, [0, 1000, 100, 200, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_away_has_taken_nothing_and_its_wait_is_counted() {
        let (pace, waits) = pace(Some("1/s"), &[]);
        let begun = Instant::now();
        start(&pace, "true", begun).await;
        let patience = Duration::from_millis(400);
        assert!(
            tokio::time::timeout(patience, pace.first("true".as_ref()))
                .await
                .is_err()
        );
        assert_eq!(waits.ms(), 400);
        drop(pace.first("true".as_ref()).await); // has its turn, and does not start
        assert_eq!(start(&pace, "true", begun).await, 1000);
    }

    /// The wait for a slot comes between: what was ready is counted when it starts, not before.
    #[tokio::test(start_paused = true)]
    async fn a_start_is_counted_when_it_happens() {
        let (pace, _) = pace(Some("1/s"), &[]);
        let begun = Instant::now();
        let first = pace.first("true".as_ref()).await;
        let mut second = Box::pin(start(&pace, "true", begun));
        assert!(second.as_mut().now_or_never().is_none());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(second.as_mut().now_or_never().is_none(), "it stays behind the first");
        first.start();
        assert_eq!(second.await, 61_000, "nothing was saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn programs_are_forgotten_when_they_are_too_many() {
        let (pace, _) = pace(None, &[("p*", "1/h")]);
        let waited_for = pace.first("p-waited-for".as_ref()).await;
        for number in 0..2 * PROGRAMS {
            tokio::time::advance(Duration::from_millis(1)).await;
            start(&pace, &format!("p{number}"), Instant::now()).await;
        }
        let known = pace.programs.lock().unwrap();
        assert_eq!(known.len(), PROGRAMS);
        assert!(known.contains_key(OsStr::new("p-waited-for")) && !known.contains_key(OsStr::new("p0")));
        waited_for.start();
    }
}
