//! What became of every job.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use synthex::message::JobResult;

use crate::collector::Results;
use crate::fleet::keep;
use crate::jobs::Kind;
use crate::support::proxy::Loss;

/// From the end of a run to the moment when the broker has applied its ack: a result has to be confirmed before, by a
/// broker that may stand still for some seconds.
const SETTLING: Duration = Duration::from_secs(5);

/// From the moment when a worker had a job to its start, when it is not to wait for a slot: what lost its connection in
/// between may start all the same.
const STARTING: Duration = Duration::from_secs(2);

/// Problems that are shown, of each sort.
const SHOWN: usize = 10;

/// A command that was started, as it wrote itself down.
#[derive(Clone, Debug)]
pub struct Start {
    attempt: u32,
    at: SystemTime,
    worker: String,
}

/// Starts by job, in the order of their attempts: a command may write itself down later than the one that follows it.
pub type Starts = BTreeMap<String, Vec<Start>>;

/// A message in a worker's hands.
struct Hold<'a> {
    attempt: u32,
    worker: &'a str,
    from: SystemTime,
    /// `None`: until the job was started again.
    until: Option<SystemTime>,
}

/// Everything that is known at the end.
pub struct Account {
    pub confirmed: BTreeMap<String, Kind>,
    pub unknown: BTreeMap<String, Kind>,
    pub starts: Starts,
    /// Redelivered jobs that workers published again with the attempt of their next start.
    pub counted: Starts,
    pub results: Results,
    /// The ids of dead letters.
    pub dead: Vec<String>,
    /// Queues that still hold something.
    pub queued: Vec<(String, usize)>,
    /// Commands that outlived all workers.
    pub orphans: Vec<String>,
    /// The connections that each worker lost.
    pub losses: BTreeMap<String, Vec<Loss>>,
    pub broker_away: Vec<Loss>,
    /// What each worker said.
    pub printed: Vec<(String, String)>,
    /// What the commands wrote.
    pub ledger: String,
}

/// What is wrong, by sort.
type Problems = BTreeMap<&'static str, Vec<String>>;

/// Reads what commands wrote.
pub fn read_ledger(ledger: &str) -> Starts {
    let mut starts = Starts::new();
    for line in ledger.lines() {
        let [id, attempt, at, worker] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("no line of a command: {line:?}");
        };
        let start = Start {
            attempt: attempt.parse().unwrap(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs_f64(at.parse().unwrap()),
            worker: worker.to_owned(),
        };
        starts.entry(id.to_owned()).or_default().push(start);
    }
    starts
        .values_mut()
        .for_each(|starts| starts.sort_by_key(|start| (start.attempt, start.at)));
    starts
}

/// Reads in what workers said which redelivered jobs they counted.
pub fn read_counted(printed: &[(String, String)]) -> Starts {
    let mut counted = Starts::new();
    for (worker, text) in printed {
        for line in text.lines().filter(|line| line.contains("redelivered job counted")) {
            let field = |name: &str| line.split(name).nth(1).and_then(|rest| rest.split(' ').next());
            let at: Timestamp = line.split(' ').next().unwrap().parse().unwrap();
            let start = Start {
                attempt: field(" attempt=").unwrap().parse().unwrap(),
                at: system_time(at),
                worker: worker.clone(),
            };
            counted
                .entry(field(" job.id=").unwrap().to_owned())
                .or_default()
                .push(start);
        }
    }
    counted
}

impl Account {
    /// Fails with all that is wrong.
    pub fn check(&self) {
        let mut problems = Problems::new();
        for (id, kind) in &self.confirmed {
            self.check_job(id, *kind, &mut problems);
        }
        for (id, kind) in &self.unknown {
            // One that never arrived has left no trace.
            if self.results.contains_key(id) || self.starts.contains_key(id) || self.dead.contains(id) {
                self.check_job(id, *kind, &mut problems);
            }
        }
        self.check_strangers(&mut problems);
        let text: Vec<String> = problems
            .iter()
            .map(|(sort, of_sort)| {
                let shown = &of_sort[..of_sort.len().min(SHOWN)];
                format!("{} {sort}:\n  {}", of_sort.len(), shown.join("\n  "))
            })
            .collect();
        if !text.is_empty() {
            keep(&self.printed, &self.ledger);
            panic!("{}", text.join("\n"));
        }
    }

    fn check_job(&self, id: &str, kind: Kind, problems: &mut Problems) {
        let mut wrong = |sort, what: String| {
            let of_sort: &mut Vec<String> = problems.entry(sort).or_default();
            of_sort.push(format!("{id} ({kind:?}) {what}"));
        };
        let results = self.results.get(id).map_or(&[][..], Vec::as_slice);
        let ends: Vec<&JobResult> = results.iter().filter(|result| result.is_final).collect();
        if ends.is_empty() {
            wrong("lost", format!("has the results {:?}", words(results)));
        }
        if ends.iter().any(|end| end.status != kind.ends_as()) {
            wrong("ends of another kind", words(results));
        }
        let is_dead = self.dead.iter().any(|dead| dead == id);
        if is_dead != kind.is_dead_lettered() {
            wrong("that should, or should not, be dead letters", words(results));
        }
        let attempts: BTreeSet<u32> = results.iter().map(|result| result.attempt).collect();
        let starts = self.starts.get(id).map_or(&[][..], Vec::as_slice);
        let noted: BTreeSet<u32> = starts.iter().map(|start| start.attempt).collect();
        // Not every command notes that it started; that its attempt was counted twice, its workers said.
        let counted = self.counted.get(id).map_or(&[][..], Vec::as_slice);
        let has_twins = has_twins(starts) || has_twins(counted);
        let is_excused = has_twins || self.is_refused_twice(kind, results) || is_counted_twice(kind, results);
        if attempts.len() < results.len() && !is_excused {
            wrong("with different results of one attempt", words(results));
        }
        // One with so little time may be over before its shell has written a line.
        let has_time = kind != Kind::TimesOut;
        if kind.is_noted() && has_time && !attempts.is_subset(&noted) {
            wrong(
                "with results of attempts that never started",
                format!("{starts:?} {}", words(results)),
            );
        }
        for again in self.unexplained(id, starts, results) {
            wrong(
                "started again without a reason",
                format!("{again:?} of {starts:?}, {}", words(results)),
            );
        }
    }

    /// What is no job is refused as often as it comes, always as what it is: nothing of it starts.
    fn is_refused_twice(&self, kind: Kind, results: &[JobResult]) -> bool {
        let first = results.iter().map(|result| system_time(result.finished_at)).min();
        let was_lost = |at| {
            self.losses
                .keys()
                .any(|worker| self.lost_between(worker, at, at + SETTLING))
        };
        kind == Kind::Bad && first.is_some_and(was_lost)
    }

    /// Starts over the first one and those that a result had announced, without a lower attempt that was in hand when its
    /// worker lost a connection.
    ///
    /// Two of them may be the same attempt: those who count the redeliveries of one message, or its retry and its
    /// redelivery, know nothing of each other.
    fn unexplained<'a>(&self, id: &str, starts: &'a [Start], results: &[JobResult]) -> Vec<&'a Start> {
        let holds = self.holds(id, starts, results);
        let explains = |hold: &Hold, again: &Start| {
            hold.attempt < again.attempt
                && hold.from <= again.at
                && self.lost_between(hold.worker, hold.from, hold.until.unwrap_or(again.at))
        };
        let announced = results.iter().filter(|result| !result.is_final).count();
        let over = starts.iter().skip(1 + announced);
        over.filter(|again| !holds.iter().any(|hold| explains(hold, again)))
            .collect()
    }

    /// When some worker had a message of this job that it had not acked.
    fn holds<'a>(&'a self, id: &str, starts: &'a [Start], results: &[JobResult]) -> Vec<Hold<'a>> {
        let has_twins = has_twins(starts);
        let run = |start: &'a Start| {
            let result = results.iter().find(|result| result.attempt == start.attempt);
            // Its shell may have had to wait for a processor before it wrote itself down; of twins, the result is of one.
            let begun = result.filter(|_| !has_twins).and_then(|result| result.started_at);
            let begun = begun.map(system_time);
            Hold {
                attempt: start.attempt,
                worker: &start.worker,
                from: begun.map_or(start.at, |begun| begun.min(start.at)) - STARTING,
                until: result.map(|result| system_time(result.finished_at) + SETTLING),
            }
        };
        let counted = self.counted.get(id).into_iter().flatten().map(|counted| Hold {
            attempt: counted.attempt - 1,
            worker: &counted.worker,
            from: counted.at,
            until: Some(counted.at + SETTLING),
        });
        starts.iter().map(run).chain(counted).collect()
    }

    fn lost_between(&self, worker: &str, from: SystemTime, until: SystemTime) -> bool {
        let losses = self.losses.get(worker).into_iter().flatten();
        losses
            .chain(&self.broker_away)
            .any(|loss| loss.from <= until && loss.to >= from)
    }

    /// What is not about a job that was published.
    fn check_strangers(&self, problems: &mut Problems) {
        let known = |id: &&String| self.confirmed.contains_key(*id) || self.unknown.contains_key(*id);
        let ids = self.results.keys().chain(self.starts.keys()).chain(&self.dead);
        let strangers: Vec<String> = ids.filter(|id| !known(id)).cloned().collect();
        let panicked = self.printed.iter().filter(|(_, printed)| printed.contains("panicked"));
        let panicked = panicked.map(|(name, _)| name.clone()).collect();
        let queued = self
            .queued
            .iter()
            .map(|(queue, count)| format!("{count} in {queue}"))
            .collect();
        for (sort, found) in [
            ("that nobody published", strangers),
            ("queues that are not empty", queued),
            ("orphans", self.orphans.clone()),
            ("workers with a panic", panicked),
        ] {
            if !found.is_empty() {
                problems.insert(sort, found);
            }
        }
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    let micros = u64::try_from(time.as_microsecond()).expect("it is later than 1970");
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}

fn has_twins(starts: &[Start]) -> bool {
    let attempts: BTreeSet<u32> = starts.iter().map(|start| start.attempt).collect();
    attempts.len() < starts.len()
}

/// A job that was in hand when a connection was lost goes on as a copy that counts it, and there are two of those when the
/// confirm of the first is lost, or its worker. Commands that write their starts down show it; of the others no second
/// result of a first attempt can come from that.
fn is_counted_twice(kind: Kind, results: &[JobResult]) -> bool {
    let firsts = results.iter().filter(|result| result.attempt == 1).count();
    !kind.is_noted() && firsts <= 1
}

/// Attempts and statuses of results.
fn words(results: &[JobResult]) -> String {
    let word = |result: &JobResult| {
        let end = if result.is_final { "" } else { ", to be tried again" };
        format!("{}: {}{end} at {}", result.attempt, result.status, result.finished_at)
    };
    results.iter().map(word).collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Account {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has_end = |id: &&String| {
            let results = self.results.get(*id).into_iter().flatten();
            results.into_iter().any(|result| result.is_final)
        };
        let dead: BTreeSet<&String> = self.dead.iter().collect();
        let (ended, lost): (Vec<_>, Vec<_>) = self.confirmed.keys().partition(has_end);
        let dead_lettered = ended.iter().filter(|id| dead.contains(*id)).count();
        let arrived = self.unknown.keys().filter(|id| has_end(id)).count();
        let results: usize = self.results.values().map(Vec::len).sum();
        let ends: usize = self.results.values().flatten().filter(|result| result.is_final).count();
        let starts: usize = self.starts.values().map(Vec::len).sum();
        let losses: usize = self.losses.values().map(Vec::len).sum();
        let queued: usize = self.queued.iter().map(|(_, count)| count).sum();
        writeln!(
            out,
            "published {} = finished {} + dead-lettered {dead_lettered} + still queued {queued} + lost {}",
            self.confirmed.len(),
            ended.len() - dead_lettered,
            lost.len(),
        )?;
        writeln!(
            out,
            "of unknown fate {}, of which arrived {arrived}",
            self.unknown.len()
        )?;
        writeln!(
            out,
            "results {results}, ends {ends}, of which again {}; starts written down {starts}; connections lost {losses}",
            ends - ended.len() - arrived,
        )?;
        let twice = self.starts.values().filter(|starts| has_twins(starts)).count();
        writeln!(out, "jobs of which one attempt was started twice {twice}")?;
        write!(out, "orphans {}", self.orphans.len())
    }
}
