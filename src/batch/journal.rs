//! What a submitter has to know of an earlier run of the same batch, in a small file beside the results.
//!
//! Its first line is the [`Header`] as JSON. Each line after it says of which items the broker has confirmed the
//! publishing, and what the input was up to some item:
//!
//! ```text
//! {"batch":"0193…","namespace":"synthex","pool":"default","version":"0.1.0"}
//! 1-256,258 260:9f3a1b2c
//! 257*2 260:9f3a1b2c
//! ```
//!
//! Items 1 to 256 and 258 are confirmed, and the CRC-32 of the jobs up to item 260 is `9f3a1b2c`; then item 257, submitted
//! for the second time. Lines are appended; one without its end was cut off by a kill, and counts for nothing.
//!
//! It is written once the broker has confirmed and not before, so what is not in it may be on the broker all the same.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{BatchId, Submission, Table};

/// Checkpoints that are kept in memory are at least so many items apart.
const SPARSE: u64 = 64;

/// Which batch it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its id.
    pub batch: BatchId,
    /// What the names of exchanges and queues begin with; empty for a run on this machine alone.
    pub namespace: String,
    /// The pool its jobs are for.
    pub pool: String,
    /// The version of Synthex that began it.
    pub version: String,
}

/// Why a batch cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be used.
    #[error("failed to {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process goes on with it.
    #[error("{} is in use: another submitter goes on with this batch", .0.display())]
    Busy(PathBuf),
    /// It does not say what it should.
    #[error("{}:{line}: {reason}; to begin anew, remove it and the results", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// It is of another batch.
    #[error("{} is of a batch for {what} {was:?}, not {is:?}; to begin anew, name another results file", path.display())]
    Other {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// As it was.
        was: String,
        /// As it was asked for.
        is: String,
    },
    /// It was begun by the other of the two commands that keep one.
    #[error("{} was begun by {was}, and this is {is}; to begin anew, name another results file", path.display())]
    OtherCommand {
        /// The file.
        path: PathBuf,
        /// The command that began it.
        was: String,
        /// The command that was asked for.
        is: String,
    },
    /// It has jobs, and the results file is gone: what had ended would be awaited for ever.
    #[error(
        "{} is missing, but {} says that {} submitted; to begin anew remove it too",
        results.display(), path.display(), were(*jobs)
    )]
    NoResults {
        /// The file.
        path: PathBuf,
        /// The results file.
        results: PathBuf,
        /// How many jobs were submitted.
        jobs: u64,
    },
    /// There are results, and no journal of them: whatever the input is now would count as done.
    #[error(
        "{} has results of a batch, but {} is not there, so nobody can tell whether the input is the same; restore it, or \
         remove both",
        results.display(), path.display()
    )]
    NoJournal {
        /// The file.
        path: PathBuf,
        /// The results file.
        results: PathBuf,
    },
}

/// The journal of a batch, which nobody else has open.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    header: Header,
    is_new: bool,
    /// What the input has to be, up to some items: what is yet to come.
    checkpoints: std::collections::VecDeque<Checkpoint>,
    line: String,
}

/// The checksum of the input up to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The item.
    pub seq: u64,
    /// CRC-32 of all jobs up to it.
    pub sum: u32,
}

impl Journal {
    /// Opens the journal of the results file `results`, made if neither is there. What it says was published is entered in
    /// `table`.
    ///
    /// A submitter makes the results file before it publishes anything, so one of the two without the other was taken away.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn open(results: &Path, header: &Header, table: &mut Table) -> Result<Self, JournalError> {
        let mut path = results.as_os_str().to_owned();
        path.push(".batch");
        let path = PathBuf::from(path);
        if length(results) > 0 && length(&path) == 0 {
            return Err(JournalError::NoJournal {
                path,
                results: results.to_owned(),
            });
        }
        let failed = |what| {
            let path = path.clone();
            move |source| JournalError::Io { what, path, source }
        };
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed("open"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => JournalError::Busy(path.clone()),
            error => failed("lock")(error.into()),
        })?;
        let mut journal = Self {
            file,
            path: path.clone(),
            header: header.clone(),
            is_new: false,
            checkpoints: [].into(),
            line: String::new(),
        };
        let read = journal.read(table)?;
        journal.file.set_len(read).map_err(failed("cut"))?;
        if read == 0 {
            journal.is_new = true;
            let text = serde_json::to_string(header).expect("it is plain");
            journal
                .file
                .write_all(format!("{text}\n").as_bytes())
                .map_err(failed("write"))?;
            journal.file.sync_data().map_err(failed("write"))?;
        }
        journal.check(header)?;
        if table.awaiting() > 0 && !results.exists() {
            return Err(JournalError::NoResults {
                path,
                results: results.to_owned(),
                jobs: table.awaiting(),
            });
        }
        Ok(journal)
    }

    /// Which batch it is: that of the first run.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Whether there was none before.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.is_new
    }

    /// Takes note of what the broker has confirmed, and of what the input was.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn confirm(&mut self, confirmed: &[Submission], input: Checkpoint) -> io::Result<()> {
        if confirmed.is_empty() {
            return Ok(());
        }
        self.line.clear();
        for (index, (first, last)) in runs(confirmed).into_iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let number = match first.number {
                1 => String::new(),
                number => format!("*{number}"),
            };
            // Writing to a string cannot fail.
            let _ = match last.seq - first.seq {
                0 => write!(self.line, "{comma}{}{number}", first.seq),
                _ => write!(self.line, "{comma}{}-{}{number}", first.seq, last.seq),
            };
        }
        let _ = writeln!(self.line, " {}:{:08x}", input.seq, input.sum);
        let written = self.file.write_all(self.line.as_bytes());
        written.map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("failed to write {}: {error}", self.path.display()),
            )
        })
    }

    /// Holds the input against what it was, up to this item.
    ///
    /// # Errors
    /// When it differs.
    pub fn compare(&mut self, input: Checkpoint) -> Result<(), Changed> {
        while let Some(known) = self.checkpoints.front().filter(|known| known.seq <= input.seq) {
            if known.seq == input.seq && known.sum != input.sum {
                return Err(self.changed(format!(
                    "the jobs up to item {} are not those that were submitted",
                    input.seq
                )));
            }
            self.checkpoints.pop_front();
        }
        Ok(())
    }

    /// Holds the end of the input against what it was: it may have grown, but not shrunk.
    ///
    /// # Errors
    /// When there are fewer items than there were.
    pub fn compare_end(&self, items: u64) -> Result<(), Changed> {
        match self.checkpoints.back() {
            Some(last) => Err(self.changed(format!("it has {items} items, and had at least {}", last.seq))),
            None => Ok(()),
        }
    }

    fn changed(&self, how: String) -> Changed {
        Changed {
            path: self.path.clone(),
            how,
        }
    }

    fn check(&self, asked: &Header) -> Result<(), JournalError> {
        let (was, is) = (&self.header, asked);
        if was.namespace.is_empty() != is.namespace.is_empty() {
            return Err(JournalError::OtherCommand {
                path: self.path.clone(),
                was: command(was),
                is: command(is),
            });
        }
        for (what, was, is) in [
            ("namespace", &was.namespace, &is.namespace),
            ("pool", &was.pool, &is.pool),
        ] {
            if was != is {
                return Err(JournalError::Other {
                    path: self.path.clone(),
                    what,
                    was: was.clone(),
                    is: is.clone(),
                });
            }
        }
        Ok(())
    }

    /// Reads what is there. Returns how long it is without a line that was cut off.
    fn read(&mut self, table: &mut Table) -> Result<u64, JournalError> {
        let io = |path: &Path, source| JournalError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        };
        let mut file = self.file.try_clone().map_err(|error| io(&self.path, error))?;
        file.seek(SeekFrom::Start(0)).map_err(|error| io(&self.path, error))?;
        let mut reader = BufReader::new(file);
        let (mut read, mut number, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            let length = reader.read_line(&mut line).map_err(|error| io(&self.path, error))?;
            let Some(text) = line.strip_suffix('\n') else {
                return Ok(read);
            };
            number += 1;
            let entered = if number == 1 {
                serde_json::from_str(text)
                    .map(|header| self.header = header)
                    .map_err(|error| error.to_string())
            } else {
                self.enter(text, table).ok_or_else(|| "it cannot be read".to_owned())
            };
            entered.map_err(|reason| JournalError::Bad {
                path: self.path.clone(),
                line: number,
                reason,
            })?;
            read += u64::try_from(length).unwrap_or(u64::MAX);
        }
    }

    fn enter(&mut self, text: &str, table: &mut Table) -> Option<()> {
        let (confirmed, input) = text.split_once(' ')?;
        for run in confirmed.split(',') {
            let (run, number) = run.split_once('*').unwrap_or((run, "1"));
            let (first, last) = run.split_once('-').unwrap_or((run, run));
            let (first, last, number) = (first.parse().ok()?, last.parse().ok()?, number.parse().ok()?);
            if !table.may_have(first) || !table.may_have(last) {
                return None;
            }
            for seq in first..=last {
                table.publish(Submission { seq, number });
            }
        }
        let (seq, sum) = input.split_once(':')?;
        let point = Checkpoint {
            seq: seq.parse().ok()?,
            sum: u32::from_str_radix(sum, 16).ok()?,
        };
        // The last one stays; those before it are thinned out.
        if let [.., before, last] = self.checkpoints.make_contiguous()
            && last.seq < before.seq + SPARSE
        {
            self.checkpoints.pop_back();
        }
        if self.checkpoints.back().is_none_or(|last| last.seq < point.seq) {
            self.checkpoints.push_back(point);
        }
        Some(())
    }
}

/// The input is not what it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "items, command or job options (--timeout, --env, --label ...) differ from those of the batch in {}: {how}; go on with \
     them as they were, or begin anew with another results file",
    path.display()
)]
pub struct Changed {
    path: PathBuf,
    how: String,
}

/// The command that has such a header.
fn command(header: &Header) -> String {
    match &*header.namespace {
        "" => "`synthex run`".to_owned(),
        namespace => format!("`synthex batch` in namespace {namespace:?}"),
    }
}

fn were(jobs: u64) -> String {
    match jobs {
        1 => "1 job was".to_owned(),
        _ => format!("{jobs} jobs were"),
    }
}

/// How long a file is; 0 for one that is not there.
fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |file| file.len())
}

/// Runs of neighbours of the same number: the first and the last of each.
fn runs(submissions: &[Submission]) -> Vec<(Submission, Submission)> {
    let mut runs: Vec<(Submission, Submission)> = Vec::new();
    for next in submissions {
        match runs.last_mut() {
            Some((_, last)) if last.seq + 1 == next.seq && last.number == next.number => *last = *next,
            _ => runs.push((*next, *next)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::message::Status;

    struct Bench {
        folder: TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let bench = Self {
                folder: tempfile::tempdir().unwrap(),
            };
            std::fs::write(bench.results(), "").unwrap(); // as a submitter does before it publishes
            bench
        }

        fn results(&self) -> PathBuf {
            self.folder.path().join("r.jsonl")
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("r.jsonl.batch")
        }

        fn open(&self, table: &mut Table) -> Result<Journal, JournalError> {
            Journal::open(&self.results(), &header("p"), table)
        }
    }

    fn header(pool: &str) -> Header {
        Header {
            batch: BatchId::random(),
            namespace: "n".to_owned(),
            pool: pool.to_owned(),
            version: "0".to_owned(),
        }
    }

    fn submissions(numbers: impl IntoIterator<Item = u64>, number: u8) -> Vec<Submission> {
        numbers.into_iter().map(|seq| Submission { seq, number }).collect()
    }

    const fn point(seq: u64, sum: u32) -> Checkpoint {
        Checkpoint { seq, sum }
    }

    #[test]
    fn what_was_confirmed_is_known_to_the_next_run() {
        let bench = Bench::new();
        let mut journal = bench.open(&mut Table::default()).unwrap();
        assert!(journal.is_new());
        let id = journal.header().batch.clone();
        journal.confirm(&submissions([1, 2, 3, 5], 1), point(5, 0xab)).unwrap();
        journal.confirm(&submissions([4], 2), point(5, 0xab)).unwrap();
        journal.confirm(&[], point(9, 9)).unwrap();
        drop(journal);
        let text = std::fs::read_to_string(bench.file()).unwrap();
        let records: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(records, ["1-3,5 5:000000ab", "4*2 5:000000ab"]);

        let mut table = Table::default();
        let journal = bench.open(&mut table).unwrap();
        assert_eq!((journal.is_new(), &journal.header().batch), (false, &id));
        let awaited: Vec<u64> = (1..=9).filter(|seq| table.awaited(*seq).is_some()).collect();
        assert_eq!(awaited, [1, 2, 3, 4, 5]);
        assert!(table.finish(Submission { seq: 4, number: 2 }, Status::Succeeded));
    }

    #[test]
    fn a_line_that_was_cut_off_counts_for_nothing() {
        let bench = Bench::new();
        let mut journal = bench.open(&mut Table::default()).unwrap();
        journal.confirm(&submissions(1..=2, 1), point(2, 1)).unwrap();
        drop(journal);
        let whole = std::fs::read(bench.file()).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(bench.file(), &whole[..cut]).unwrap();
            let mut table = Table::default();
            let mut journal = bench.open(&mut table).unwrap();
            assert_eq!(table.awaiting(), 0, "cut at {cut}");
            journal.confirm(&submissions(7..=7, 1), point(7, 1)).unwrap();
            drop(journal);
            bench.open(&mut table).unwrap();
            assert_eq!(table.awaiting(), 1, "cut at {cut}");
        }
    }

    #[test]
    fn changed_input_is_told() {
        let bench = Bench::new();
        let mut journal = bench.open(&mut Table::default()).unwrap();
        for seq in [100, 200, 300] {
            let sum = u32::try_from(seq).unwrap();
            journal
                .confirm(&submissions(seq - 99..=seq, 1), point(seq, sum))
                .unwrap();
        }
        drop(journal);
        let mut journal = bench.open(&mut Table::default()).unwrap();
        for seq in 1..=200 {
            let sum = if seq % 100 == 0 { u32::try_from(seq).unwrap() } else { 7 };
            journal.compare(point(seq, sum)).unwrap();
        }
        let short = journal.compare_end(200).expect_err("it was longer").to_string();
        assert!(short.contains("it has 200 items, and had at least 300"), "{short}");
        let other = journal.compare(point(300, 7)).expect_err("it was another").to_string();
        assert!(other.contains("up to item 300"), "{other}");
        journal.compare(point(300, 300)).unwrap();
        journal.compare(point(301, 7)).unwrap();
        journal.compare_end(301).unwrap();
    }

    #[test]
    fn many_small_records_are_thinned_out_in_memory() {
        let bench = Bench::new();
        let mut journal = bench.open(&mut Table::default()).unwrap();
        for seq in 1..=10_000 {
            journal.confirm(&submissions([seq], 1), point(seq, 1)).unwrap();
        }
        drop(journal);
        let journal = bench.open(&mut Table::default()).unwrap();
        assert!(journal.checkpoints.len() < 200, "{}", journal.checkpoints.len());
        assert_eq!(journal.checkpoints.back(), Some(&point(10_000, 1)));
    }

    #[test]
    fn a_batch_for_another_pool_and_a_file_of_another_kind_are_refused() {
        let bench = Bench::new();
        drop(bench.open(&mut Table::default()).unwrap());
        let other = Journal::open(&bench.results(), &header("q"), &mut Table::default());
        let error = other.expect_err("another pool").to_string();
        assert!(error.contains(r#"for pool "p", not "q""#), "{error}");
        for (text, line) in [("no json\n", 1), ("{}\n", 1)] {
            std::fs::write(bench.file(), text).unwrap();
            let error = bench.open(&mut Table::default()).expect_err("no journal").to_string();
            assert!(error.contains(&format!("r.jsonl.batch:{line}: ")), "{error}");
        }
    }

    #[test]
    fn the_other_command_is_told_from_another_namespace() {
        let named = |namespace: &str| Header {
            namespace: namespace.to_owned(),
            ..header("p")
        };
        for (began, goes_on, told) in [
            (
                "n",
                "",
                "was begun by `synthex batch` in namespace \"n\", and this is `synthex run`;",
            ),
            (
                "",
                "n",
                "was begun by `synthex run`, and this is `synthex batch` in namespace \"n\";",
            ),
            ("n", "m", "for namespace \"n\", not \"m\";"),
        ] {
            let bench = Bench::new();
            let open = |namespace| Journal::open(&bench.results(), &named(namespace), &mut Table::default());
            drop(open(began).unwrap());
            let error = open(goes_on).expect_err("another command").to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn jobs_without_a_results_file_and_results_without_a_journal_are_refused() {
        let bench = Bench::new();
        std::fs::remove_file(bench.results()).unwrap();
        drop(bench.open(&mut Table::default()).unwrap());
        let mut journal = bench.open(&mut Table::default()).unwrap(); // nothing was submitted
        journal.confirm(&submissions(1..=3, 1), point(3, 1)).unwrap();
        drop(journal);
        let error = bench
            .open(&mut Table::default())
            .expect_err("they are gone")
            .to_string();
        assert!(
            error.contains("r.jsonl is missing, but ") && error.contains(" 3 jobs were"),
            "{error}"
        );
        std::fs::write(bench.results(), "").unwrap();
        bench.open(&mut Table::default()).unwrap(); // a submitter was killed before the first result

        std::fs::remove_file(bench.file()).unwrap();
        std::fs::write(bench.results(), "{}\n").unwrap();
        for _ in 0..2 {
            let error = bench.open(&mut Table::default()).expect_err("it is gone").to_string();
            assert!(error.contains("r.jsonl.batch is not there"), "{error}");
        }
    }

    #[test]
    fn two_submitters_do_not_share_it() {
        let bench = Bench::new();
        let journal = bench.open(&mut Table::default()).unwrap();
        let error = bench.open(&mut Table::default()).expect_err("it is in use").to_string();
        assert!(error.contains("another submitter"), "{error}");
        drop(journal);
        bench.open(&mut Table::default()).unwrap();
    }
}
