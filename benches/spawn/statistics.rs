//! Medians and percentiles.

use std::time::Duration;

/// The value below which this part of the values lies; 0.5 is the median.
///
/// # Panics
/// When there are no values.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index among a few thousand"
    )]
    let index = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[index]
}

/// The value in the middle.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// A count as a number to divide with.
pub fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("a count of jobs"))
}

/// Microseconds of each of so many jobs.
pub fn micros_each(time: Duration, jobs: usize) -> f64 {
    time.as_secs_f64() * 1e6 / number(jobs)
}
