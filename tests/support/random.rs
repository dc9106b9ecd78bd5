//! Choices of a test that can be made again: from a seed, which is printed.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The environment variable that gives a run the seed of another.
const SEED: &str = "SYNTHEX_TEST_SEED";

/// SplitMix64: small, and good enough to choose with.
pub struct Random(u64);

impl Random {
    /// Takes the seed that is given in `SYNTHEX_TEST_SEED`, else any, and prints it.
    pub fn new() -> Self {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().expect("SYNTHEX_TEST_SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        announce(seed);
        Self(seed)
    }

    /// Choices of their own, for what goes on at the same time.
    pub fn fork(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is below a usize")
    }

    pub fn between(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// A time of so many milliseconds.
    pub fn millis(&mut self, least: usize, most: usize) -> Duration {
        Duration::from_millis(self.between(least, most) as u64)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[expect(clippy::print_stdout, reason = "shown when the test fails")]
fn announce(seed: u64) {
    println!("{SEED}={seed}");
}
