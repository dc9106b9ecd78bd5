//! Input that means no good: arbitrary bytes, and good messages, headers, files and packets with anything changed.
//!
//! - [`messages`]: bodies of jobs and results.
//! - [`headers`]: properties, and the counts in them.
//! - [`pools`]: pool files.
//! - [`helpers`]: what the helper processes are told.
//!
//! Whatever comes, nothing panics or hangs, memory is in proportion to the input ([`memory`]), and an error says where
//! it is. What is accepted is written again as the same thing.
//!
//! Inputs come from a seed, which a failure shows beside the smallest input that still fails; a run with
//! `SYNTHEX_TEST_SEED` set to it has the same inputs. Each check has [`CASES`] of them, a second or so in all.

#![allow(
    clippy::unwrap_used,        // a test that cannot go on should stop
    clippy::disallowed_methods  // the seed is a test's own setting
)]

#[path = "hostile/change.rs"]
mod change;
#[path = "hostile/headers.rs"]
mod headers;
#[path = "hostile/helpers.rs"]
mod helpers;
#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/messages.rs"]
mod messages;
#[path = "hostile/pools.rs"]
mod pools;
mod support;

use std::hash::{BuildHasher, Hasher, RandomState};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Inputs of a check.
const CASES: u32 = 256;

/// How often a failing input is made smaller at most.
const SHRINKS: u32 = 2_000;

/// Checks many inputs. What fails, by a panic of its own or of the code under test, is shown with its smallest input.
#[track_caller]
fn for_all<S: Strategy>(inputs: &S, check: impl Fn(S::Value)) {
    for_some(CASES, inputs, check);
}

/// As [`for_all`], with another number of inputs.
#[track_caller]
fn for_some<S: Strategy>(cases: u32, inputs: &S, check: impl Fn(S::Value)) {
    let given = std::env::var("SYNTHEX_TEST_SEED").ok();
    let random = || RandomState::new().build_hasher().finish();
    let seed = given.map_or_else(random, |seed| seed.parse().expect("SYNTHEX_TEST_SEED is a number"));
    let config = Config {
        cases,
        max_shrink_iters: SHRINKS,
        failure_persistence: None, // the seed is enough, and no test writes into the sources
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(inputs, |input| {
        check(input);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("SYNTHEX_TEST_SEED={seed}\n{failure}");
    }
}

/// The files of a folder of fixtures, whatever they hold.
fn fixtures(folder: &str) -> Vec<Vec<u8>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort(); // or the seed would not be all that decides
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}
