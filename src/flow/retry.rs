//! How long to wait before trying again: the one home of the `backoff` crate.
//!
//! Two kinds of waits, both exponential, both with a jitter of ±50 % so that many clients that
//! failed together do not come back together, both with a ceiling:
//! - [`Backoff`] remembers where it is: reconnecting, restarting a task.
//! - [`Schedule`] is told where it is: the retry of a job, whose run count travels in its message.
//!
//! Nothing here sleeps or decides whether to try again.

use std::time::Duration;

use backoff::{SystemClock, backoff::Backoff as _, exponential::ExponentialBackoff};

/// Half of the wait, up or down.
const JITTER: f64 = 0.5;

/// The longest wait between two attempts to reach a broker: longer, and a short outage would become
/// one of many seconds; shorter, and a fleet would hammer a broker that is starting up.
pub const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// Gives growing delays: doubling from `initial`, with jitter, never over `max`.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff<SystemClock>,
    max: Duration,
}

impl Backoff {
    /// Makes a back-off whose first delay is about `initial` and whose last ones are at most `max`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        // The jitter reaches half a step above the step. Cutting it off at `max` would give every
        // second delay the same length and bring a fleet back in step, so the steps end lower
        // instead.
        let top = max.mul_f64(1.0 / (1.0 + JITTER));
        let inner = exponential(initial.min(top), top, 2.0);
        Self { inner, max }
    }

    /// Gives the next delay, between a half and one and a half of the current step.
    pub fn next_delay(&mut self) -> Duration {
        jittered(&mut self.inner).min(self.max)
    }

    /// Begins again at the first delay: what was tried has worked.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

/// Says how long to wait after each run of something that is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The step after the first run.
    pub initial: Duration,
    /// The longest step; with its jitter a delay is at most one and a half of it.
    pub max: Duration,
    /// What a step is multiplied with to give the next one; less than 1, or not a number, counts as
    /// 1.
    pub multiplier: f64,
}

impl Schedule {
    /// Gives the delay after the `run`-th run ended, counted from 1 (0 counts as 1).
    ///
    /// It is spread evenly over ±50 % of the step, so two calls differ.
    pub fn delay(&self, run: u32) -> Duration {
        let step = self.step(run);
        let delay = jittered(&mut exponential(step, step, 1.0));
        // The crate's arithmetic in floating point can be off by a rounding at the edges.
        delay.clamp(step / 2, step.saturating_add(step / 2))
    }

    fn step(&self, run: u32) -> Duration {
        let growth = self.multiplier.max(1.0).powf(f64::from(run.saturating_sub(1)));
        // Infinite growth of an initial zero would be no number.
        let seconds = self.initial.as_secs_f64() * growth.min(f64::MAX);
        Duration::try_from_secs_f64(seconds)
            .unwrap_or(Duration::MAX)
            .min(self.max)
    }
}

fn exponential(initial: Duration, max: Duration, multiplier: f64) -> ExponentialBackoff<SystemClock> {
    ExponentialBackoff {
        current_interval: initial,
        initial_interval: initial,
        max_interval: max,
        multiplier,
        randomization_factor: JITTER,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    }
}

fn jittered(backoff: &mut ExponentialBackoff<SystemClock>) -> Duration {
    backoff
        .next_backoff()
        .expect("a back-off without a time limit never ends")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough draws that a jitter which is there shows: 0.75^200 is less than 1e-24.
    const DRAWS: u32 = 200;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Checks that the draws stay within ±50 % of `step` and use both halves of that range.
    fn assert_spread(step: Duration, mut draw: impl FnMut() -> Duration) {
        let draws: Vec<Duration> = (0..DRAWS).map(|_| draw()).collect();
        let (least, most) = (draws.iter().min(), draws.iter().max());
        let (least, most) = (*least.expect("draws"), *most.expect("draws"));
        assert!(
            least >= step / 2 && most <= step + step / 2,
            "{least:?}..{most:?} of {step:?}"
        );
        assert!(
            least < step.mul_f64(0.75) && most > step.mul_f64(1.25),
            "{least:?}..{most:?} of {step:?}"
        );
    }

    fn nth_delay(n: usize, initial: Duration, max: Duration) -> Duration {
        let mut backoff = Backoff::new(initial, max);
        (0..n).for_each(|_| _ = backoff.next_delay());
        backoff.next_delay()
    }

    #[test]
    fn backoff_doubles_with_jitter() {
        for (n, step) in [(0, 100), (1, 200), (2, 400), (3, 800)] {
            assert_spread(ms(step), || nth_delay(n, ms(100), RECONNECT_MAX));
        }
    }

    #[test]
    fn backoff_never_passes_max_and_is_still_spread_there() {
        let mut backoff = Backoff::new(ms(100), RECONNECT_MAX);
        (0..DRAWS).for_each(|_| assert!(backoff.next_delay() <= RECONNECT_MAX));
        assert_spread(RECONNECT_MAX.mul_f64(2.0 / 3.0), || backoff.next_delay());
        assert!((0..DRAWS).any(|_| backoff.next_delay() < RECONNECT_MAX / 2));
    }

    #[test]
    fn backoff_of_an_initial_over_max_stays_under_max_and_spread() {
        let max = ms(1500);
        (0..DRAWS).for_each(|_| assert!(Backoff::new(ms(60_000), max).next_delay() <= max));
        assert_spread(max.mul_f64(2.0 / 3.0), || Backoff::new(ms(60_000), max).next_delay());
    }

    #[test]
    fn reset_begins_again() {
        let mut backoff = Backoff::new(ms(100), RECONNECT_MAX);
        (0..10).for_each(|_| _ = backoff.next_delay());
        backoff.reset();
        assert!(backoff.next_delay() <= ms(150));
    }

    #[test]
    fn schedule_grows_by_its_multiplier_up_to_max() {
        let schedule = Schedule {
            initial: ms(1000),
            max: ms(10_000),
            multiplier: 3.0,
        };
        for (run, step) in [(0, 1000), (1, 1000), (2, 3000), (3, 9000), (4, 10_000), (5, 10_000)] {
            assert_eq!(schedule.step(run), ms(step), "run {run}");
            assert_spread(ms(step), || schedule.delay(run));
        }
    }

    #[test]
    fn schedule_does_not_overflow() {
        for (initial, max, multiplier) in [
            (ms(1), ms(60_000), 2.0),
            (ms(1), Duration::MAX, f64::MAX),
            (Duration::MAX, Duration::MAX, 1.0),
        ] {
            let schedule = Schedule {
                initial,
                max,
                multiplier,
            };
            assert_eq!(schedule.step(u32::MAX), max);
            assert!(schedule.delay(u32::MAX) <= max.saturating_add(max / 2));
        }
    }

    #[test]
    fn schedule_of_odd_numbers_is_still_a_delay() {
        let zero = Schedule {
            initial: Duration::ZERO,
            max: ms(10),
            multiplier: 2.0,
        };
        assert_eq!(zero.step(u32::MAX), Duration::ZERO);
        for multiplier in [0.0, -1.0, f64::NAN] {
            let schedule = Schedule {
                initial: ms(5),
                max: ms(10),
                multiplier,
            };
            assert_eq!(schedule.step(9), ms(5), "multiplier {multiplier}");
        }
    }
}
