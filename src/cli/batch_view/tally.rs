//! Counts what happens to a batch, and says what follows from it: how fast it goes, how long it will take.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::time::Instant;

use crate::batch::Progress;
use crate::message::Status;

/// Jobs that are named as the slowest.
const SLOWEST: usize = 3;
/// Letters of a name that is shown.
const NAME: usize = 60;
/// Jobs that took less are not called slow.
const SLOW: Duration = Duration::from_secs(1);
/// The speed is that of so many samples, a second apart at least.
const SAMPLES: usize = 15;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Bad items that wait to be told; the rest is counted, since what is told must not fill the memory.
const NOTES: usize = 1000;

/// What has happened so far.
pub(super) struct Tally {
    began: Instant,
    total: Option<u64>,
    published: u64,
    before: BTreeMap<Status, u64>,
    awaited: u64,
    by_status: BTreeMap<Status, u64>,
    again: u64,
    bad: u64,
    stalled: Option<String>,
    slowest: Vec<Slow>,
    samples: VecDeque<(Instant, u64)>,
    notes: Vec<Told>,
    untold: u64,
}

/// A job that took long.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(super) struct Slow {
    /// How long its command ran.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    #[schemars(with = "f64")]
    pub(super) duration: Duration,
    /// What people call it.
    pub(super) title: String,
}

/// What programs are told of a batch: an object a line, told apart by `event`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
#[schemars(
    title = "Synthex progress, version 1",
    extend("$id" = "urn:synthex:progress:v1")
)]
pub(in crate::cli) enum Told {
    /// An item is no job. People hear of it by its result.
    BadItem {
        /// Where it came from: file and line.
        origin: String,
        /// The path of the field at fault, if it is one.
        field: Option<String>,
        /// What is wrong.
        message: String,
    },
    /// More items were no jobs, and nobody could be told in time.
    MoreBadItems {
        /// How many.
        count: u64,
    },
    /// How far it is, about once a second.
    Progress(Snapshot),
    /// How it ended: the last that is told.
    Summary(Ended),
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(in crate::cli) struct Snapshot {
    /// Items; null until that is known.
    pub(super) total: Option<u64>,
    /// With what had ended before. What is no job ends, too: as rejected.
    pub(super) done: u64,
    /// Jobs that ended in this run in any way but succeeded.
    pub(super) failed: u64,
    /// Items that are no jobs.
    pub(super) bad: u64,
    /// Jobs that were submitted and have no final result.
    pub(super) under_way: u64,
    /// Jobs that end, lately.
    pub(super) per_second: f64,
    /// How long the rest will take at that rate; null where nobody can tell.
    #[serde(serialize_with = "maybe_seconds")]
    #[schemars(with = "Option<f64>")]
    pub(super) seconds_left: Option<Duration>,
    /// Since it began.
    #[serde(serialize_with = "seconds")]
    #[schemars(with = "f64")]
    pub(super) elapsed_seconds: Duration,
    /// What it waits for, if something holds it up.
    pub(super) stalled: Option<String>,
}

/// How it ended, and where its results are.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(in crate::cli) struct Ended {
    #[serde(flatten)]
    pub(super) summary: Summary,
    /// The results file, if there is one.
    pub(super) results: Option<String>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(in crate::cli) struct Summary {
    /// Final results of this run.
    pub(super) jobs: u64,
    /// How they ended.
    pub(super) statuses: BTreeMap<Status, u64>,
    /// Jobs that had ended in an earlier run.
    pub(super) finished_before: u64,
    /// How those ended.
    pub(super) statuses_before: BTreeMap<Status, u64>,
    /// Attempts that were followed by another one.
    pub(super) tried_again: u64,
    /// Items that are no jobs.
    pub(super) bad: u64,
    /// Since it began.
    #[serde(serialize_with = "seconds")]
    #[schemars(with = "f64")]
    pub(super) elapsed_seconds: Duration,
    /// Jobs that ended, over all of it.
    pub(super) per_second: f64,
    /// Those that took longest.
    pub(super) slowest: Vec<Slow>,
}

fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(rounded(time.as_secs_f64()))
}

fn maybe_seconds<S: serde::Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| rounded(time.as_secs_f64())).serialize(to)
}

fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            total: None,
            published: 0,
            before: BTreeMap::new(),
            awaited: 0,
            by_status: BTreeMap::new(),
            again: 0,
            bad: 0,
            stalled: None,
            slowest: Vec::new(),
            samples: VecDeque::from([(now, 0)]),
            notes: Vec::new(),
            untold: 0,
        }
    }

    /// Takes what the batch tells.
    pub(super) fn count(&mut self, progress: &Progress) {
        match progress {
            Progress::Total(total) => self.total = Some(*total),
            Progress::Bad { origin, error } => {
                self.bad += 1;
                if self.notes.len() < NOTES {
                    self.notes.push(Told::BadItem {
                        origin: origin.clone(),
                        field: error.field.clone(),
                        message: error.message.clone(),
                    });
                } else {
                    self.untold += 1;
                }
            }
            Progress::Published(count) => self.published += count,
            Progress::Resumed { finished, awaited } => {
                self.before.clone_from(finished);
                self.awaited = *awaited;
            }
            Progress::Finished { is_final: false, .. } => self.again += 1,
            Progress::Finished {
                status,
                duration,
                title,
                ..
            } => {
                *self.by_status.entry(*status).or_default() += 1;
                self.remember(*duration, title);
            }
            Progress::Stalled(why) => self.stalled.clone_from(why),
        }
    }

    fn remember(&mut self, duration: Duration, title: &str) {
        let place = self.slowest.partition_point(|slow| slow.duration >= duration);
        if place < SLOWEST {
            let title = shortened(title);
            self.slowest.insert(place, Slow { duration, title });
            self.slowest.truncate(SLOWEST);
        }
    }

    /// Final results of this run.
    fn finished(&self) -> u64 {
        self.by_status.values().sum()
    }

    /// Final results of earlier runs.
    fn finished_before(&self) -> u64 {
        self.before.values().sum()
    }

    /// What is to be told, once.
    pub(super) fn take_notes(&mut self) -> Vec<Told> {
        let mut notes = std::mem::take(&mut self.notes);
        let count = std::mem::take(&mut self.untold);
        if count > 0 {
            notes.push(Told::MoreBadItems { count });
        }
        notes
    }

    pub(super) fn snapshot(&mut self, now: Instant) -> Snapshot {
        let finished = self.finished();
        let per_second = self.speed(now, finished);
        let done = finished + self.finished_before();
        let left = self.total.map(|total| total.saturating_sub(done));
        let is_going = per_second > 0.0 && self.stalled.is_none();
        Snapshot {
            total: self.total,
            done,
            failed: finished - self.by_status.get(&Status::Succeeded).unwrap_or(&0),
            bad: self.bad,
            under_way: (self.published + self.awaited).saturating_sub(finished),
            per_second: rounded(per_second),
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            seconds_left: left.filter(|_| is_going).and_then(|left| {
                let seconds = Duration::try_from_secs_f64(left as f64 / per_second).ok()?;
                Some(Duration::from_secs(seconds.as_secs()))
            }),
            elapsed_seconds: now - self.began,
            stalled: self.stalled.clone(),
        }
    }

    /// Jobs a second, of late.
    fn speed(&mut self, now: Instant, finished: u64) -> f64 {
        if self.samples.back().is_none_or(|(at, _)| now - *at >= SAMPLE_EVERY) {
            self.samples.push_back((now, finished));
            if self.samples.len() > SAMPLES {
                self.samples.pop_front();
            }
        }
        self.samples
            .front()
            .map_or(0.0, |(since, before)| per_second(finished - before, now - *since))
    }

    pub(super) fn summary(&self, now: Instant) -> Summary {
        let jobs = self.finished();
        let elapsed = now - self.began;
        Summary {
            jobs,
            statuses: self.by_status.clone(),
            finished_before: self.finished_before(),
            statuses_before: self.before.clone(),
            tried_again: self.again,
            bad: self.bad,
            elapsed_seconds: elapsed,
            per_second: rounded(per_second(jobs, elapsed)),
            slowest: self.slowest.clone(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn per_second(count: u64, time: Duration) -> f64 {
    match time.as_secs_f64() {
        0.0 => 0.0,
        seconds => count as f64 / seconds,
    }
}

fn shortened(title: &str) -> String {
    match title.char_indices().nth(NAME) {
        None => title.to_owned(),
        Some((cut, _)) => format!("{}…", &title[..cut]),
    }
}

/// A time for people: `0.8s`, `42s`, `3m 5s`, `2h 10m`, `4d 3h`.
pub(super) fn in_words(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

impl Snapshot {
    /// In words, behind a bar that says how much is done; so without it.
    pub(super) fn beside_bar(&self) -> String {
        let mut parts = vec![match self.total {
            Some(total) => format!("{}/{total}", self.done),
            None => format!("{} done", self.done),
        }];
        parts.extend((self.failed > 0).then(|| format!("{} failed", self.failed)));
        parts.extend((self.bad > 0).then(|| format!("{} bad", self.bad)));
        parts.push(format!("{} under way", self.under_way));
        match (&self.stalled, self.seconds_left) {
            (Some(why), _) => parts.push(format!("waiting: {why}")),
            (None, Some(left)) => parts.push(format!("{:.1}/s  {} left", self.per_second, in_words(left))),
            (None, None) => parts.push(format!("{:.1}/s  {}", self.per_second, in_words(self.elapsed_seconds))),
        }
        parts.join("  ")
    }

    /// In words, as a sentence of a log.
    pub(super) fn line(&self) -> String {
        let mut parts = vec![match self.total {
            Some(total) => format!("{} of {total} done", self.done),
            None => format!("{} done", self.done),
        }];
        parts.extend((self.failed > 0).then(|| format!("{} failed", self.failed)));
        parts.extend((self.bad > 0).then(|| format!("{} bad", self.bad)));
        parts.push(format!("{} under way", self.under_way));
        parts.push(format!("{:.1} a second", self.per_second));
        parts.extend(self.seconds_left.map(|left| format!("{} left", in_words(left))));
        parts.extend(self.stalled.as_ref().map(|why| format!("waiting: {why}")));
        parts.join(", ")
    }
}

impl Summary {
    /// In words: first how many ended how, then how long it took and where the results are. `is_whole` says that nothing is
    /// missing.
    pub(super) fn lines(&self, is_whole: bool, at_length: bool, results: Option<&str>) -> Vec<String> {
        let mut lines = Vec::from_iter(self.by_status(is_whole));
        if !at_length {
            return lines;
        }
        let mut other = Vec::new();
        other.extend(self.before());
        other.extend((self.bad > 0).then(|| format!("not jobs: {}", self.bad)));
        other.extend((self.tried_again > 0).then(|| format!("tried again: {}", self.tried_again)));
        if !other.is_empty() {
            lines.push(other.join(", "));
        }
        let took = in_words(self.elapsed_seconds);
        lines.push(format!("took {took}, {:.1} jobs a second", self.per_second));
        let is_slow = |slow: &&Slow| slow.duration >= SLOW && !slow.title.is_empty();
        let slowest = self.slowest.iter().filter(is_slow);
        let slowest: Vec<String> = slowest
            .map(|slow| format!("{} {}", in_words(slow.duration), slow.title))
            .collect();
        if self.jobs > 1 && !slowest.is_empty() {
            lines.push(format!("slowest: {}", slowest.join("; ")));
        }
        lines.extend(results.map(|results| format!("results are in {results}")));
        lines
    }

    /// What ended in earlier runs, and how to have another try at it.
    fn before(&self) -> Option<String> {
        let succeeded = self.statuses_before.get(&Status::Succeeded).copied().unwrap_or(0);
        match self.finished_before {
            0 => None,
            count if count == succeeded => Some(format!("ended before: {count}")),
            count => Some(format!(
                "ended before: {count} ({}; --retry-failed submits {} again)",
                counts(&self.statuses_before),
                if succeeded > 0 { "the others" } else { "them" }
            )),
        }
    }

    fn by_status(&self, is_whole: bool) -> Option<String> {
        let counts = counts(&self.statuses);
        match self.jobs {
            0 if is_whole && self.finished_before > 0 => Some("no jobs were left".to_owned()),
            0 => is_whole.then(|| "no jobs".to_owned()),
            1 => Some(format!("1 job: {counts}")),
            jobs => Some(format!("{jobs} jobs: {counts}")),
        }
    }
}

fn counts(statuses: &BTreeMap<Status, u64>) -> String {
    let each: Vec<String> = statuses
        .iter()
        .map(|(status, count)| format!("{count} {status}"))
        .collect();
    each.join(", ")
}

#[cfg(test)]
mod tests;
