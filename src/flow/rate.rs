//! Rates: so many a period, and at most a burst of them at once.
//!
//! The algorithm is the generic cell rate algorithm (ITU-T I.371) of the package `governor`, which is at home here. It is
//! told the time instead of reading a clock, so a [`Meter`] is pure, and says beforehand when the next may start.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So often in each period.
    pub count: NonZeroU32,
    /// The period.
    pub per: Duration,
    /// So often at once, after a time without any.
    pub burst: NonZeroU32,
}

impl Rate {
    fn quota(self) -> Quota {
        // Closer than a nanosecond is no rate.
        let interval = (self.per / self.count.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(interval).expect("an interval over zero");
        quota.allow_burst(self.burst)
    }
}

/// Keeps account of one rate.
pub struct Meter {
    limiter: RateLimiter<NotKeyed, InMemoryState, Hand, StateInformationMiddleware>,
    hand: Hand,
    start: Instant,
    ready_at: Instant,
}

impl Meter {
    /// A meter on which a whole burst is left.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        let hand = Hand::default();
        let limiter = RateLimiter::direct_with_clock(rate.quota(), hand.clone()).with_middleware();
        Self {
            limiter,
            hand,
            start: now,
            ready_at: now,
        }
    }

    /// When the next may start: now, if that has passed.
    #[must_use]
    pub fn ready_at(&self) -> Instant {
        self.ready_at
    }

    /// Counts one that starts now; false when it must not.
    pub fn take(&mut self, now: Instant) -> bool {
        if now < self.ready_at {
            return false;
        }
        self.hand.set(now.saturating_duration_since(self.start));
        let taken = self.limiter.check();
        match &taken {
            Ok(state) if state.remaining_burst_capacity() > 0 => {}
            // Nothing is left, so this takes nothing, and says when there is.
            Ok(_) => self.ready_at = self.when_refused(),
            Err(refused) => self.ready_at = self.start + refused.earliest_possible(),
        }
        taken.is_ok()
    }

    fn when_refused(&self) -> Instant {
        match self.limiter.check() {
            Ok(_) => self.start + self.hand.now(),
            Err(refused) => self.start + refused.earliest_possible(),
        }
    }
}

/// The time as it was last told, from the meter's start.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn set(&self, since_start: Duration) {
        let nanos = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for Hand {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(count: u32, per_seconds: u64, burst: u32) -> Rate {
        Rate {
            count: count.try_into().unwrap(),
            per: Duration::from_secs(per_seconds),
            burst: burst.try_into().unwrap(),
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// When each of so many starts that starts as soon as it may, in milliseconds from the first.
    fn starts(meter: &mut Meter, begin: Instant, times: usize) -> Vec<u128> {
        let mut now = begin;
        let mut start = || {
            now = now.max(meter.ready_at());
            assert!(meter.take(now), "it was said to be ready");
            now.duration_since(begin).as_millis()
        };
        (0..times).map(|_| start()).collect()
    }

    #[test]
    fn a_burst_starts_at_once_and_the_rest_at_the_rate() {
        let begin = Instant::now();
        for (rate, expected) in [
            (rate(10, 1, 1), [0, 100, 200, 300, 400, 500]),
            (rate(10, 1, 3), [0, 0, 0, 100, 200, 300]),
            (rate(2, 60, 2), [0, 0, 30_000, 60_000, 90_000, 120_000]),
            (rate(1, 3600, 5), [0, 0, 0, 0, 0, 3_600_000]),
            (rate(1_000_000, 1, 100), [0, 0, 0, 0, 0, 0]),
        ] {
            let mut meter = Meter::new(rate, begin);
            assert_eq!(starts(&mut meter, begin, 6), expected, "{rate:?}");
        }
    }

    #[test]
    fn it_is_ready_at_the_instant_it_says_and_not_before() {
        let begin = Instant::now();
        let mut meter = Meter::new(rate(4, 1, 1), begin);
        assert!(meter.take(begin));
        assert_eq!(meter.ready_at(), begin + ms(250));
        assert!(!meter.take(begin + ms(249)), "too early");
        assert_eq!(meter.ready_at(), begin + ms(250), "who is refused takes nothing");
        assert!(meter.take(begin + ms(250)));
    }

    #[test]
    fn time_without_any_gives_back_a_burst_and_no_more() {
        let begin = Instant::now();
        let mut meter = Meter::new(rate(10, 1, 3), begin);
        starts(&mut meter, begin, 5);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(starts(&mut meter, later, 5), [0, 0, 0, 100, 200]);
    }

    #[test]
    fn no_window_has_more_than_its_burst_and_its_rate() {
        let begin = Instant::now();
        let mut meter = Meter::new(rate(7, 1, 4), begin);
        // Asked at odd times, far more often than it may be.
        let taken = (0..10_000).filter(|step| meter.take(begin + ms(1) * *step)).count();
        assert_eq!(taken, 4 + 69, "ten seconds, less one millisecond");
    }
}
