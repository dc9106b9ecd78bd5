//! Jobs a second of several subjects, in turns.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::processes::Cpu;
use crate::statistics::{median, micros_each, number, percentile};
use crate::yardsticks::Program;

/// Something that runs jobs.
pub struct Subject {
    pub name: String,
    /// Whether the others are compared with it.
    pub is_yardstick: bool,
    /// Runs jobs, and says how that went.
    pub run: Box<dyn Fn() -> Sample>,
}

/// What one subject did in one round.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Sample {
    /// Jobs a second.
    pub rate: f64,
    /// Microseconds of processor time a job, of the process that starts or orders jobs; `None` where nobody can tell.
    pub service: Option<f64>,
    /// The same of its helpers.
    pub helpers: Option<f64>,
}

impl Sample {
    pub fn new(jobs: usize, time: Duration, cpu: Cpu) -> Self {
        Self {
            rate: number(jobs) / time.as_secs_f64(),
            service: Some(micros_each(cpu.service, jobs)),
            helpers: Some(micros_each(cpu.helpers, jobs)).filter(|micros| *micros > 0.0),
        }
    }
}

/// Measures all subjects in rounds, and prints what came of it.
pub fn table(program: &Program, subjects: &[Subject], rounds: usize) {
    let mut samples = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            samples.push((subject.run)());
        }
    }
    let yardstick = subjects.iter().position(|subject| subject.is_yardstick);
    let yardstick = rates(&samples[yardstick.expect("there is one")]);
    println!("\n{}: medians of {rounds} rounds", program.name);
    println!(
        "{:<40} {:>7} {:>15} {:>9} {:>11} {:>11}",
        "", "jobs/s", "low - high", "ratio", "µs service", "µs helpers"
    );
    for (subject, samples) in subjects.iter().zip(&samples) {
        row(&subject.name, samples, &yardstick);
    }
}

fn row(name: &str, samples: &[Sample], yardstick: &[f64]) {
    let rates = rates(samples);
    let ratios: Vec<f64> = rates.iter().zip(yardstick).map(|(rate, with)| rate / with).collect();
    let spread = format!("{:.0} - {:.0}", percentile(&rates, 0.0), percentile(&rates, 1.0));
    println!(
        "{name:<40} {:>7.0} {spread:>15} {:>9.2} {:>11} {:>11}",
        median(&rates),
        median(&ratios),
        micros(samples, |sample| sample.service),
        micros(samples, |sample| sample.helpers),
    );
}

fn rates(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.rate).collect()
}

fn micros(samples: &[Sample], which: impl Fn(&Sample) -> Option<f64>) -> String {
    let known: Vec<f64> = samples.iter().filter_map(which).collect();
    if known.is_empty() {
        return "-".to_owned();
    }
    format!("{:.1}", median(&known))
}
