//! Where the items of a batch come from: files of jobs, and commands filled with lines, rows, numbers or words.
//!
//! ```text
//! jobs.jsonl                     ─────────────────────────────────────────► job of the line
//! --each FILE      lines         ─┐
//! --each FILE.csv  rows, named    ├─► fields ─► template ─► command ──┐
//! --range 1-9      numbers        │                                   ├───► job
//! ::: a b ::: 1 2  combinations  ─┘                  common options ──┘
//! ```
//!
//! All of it is read as it is needed: a pipe that never ends gives its items as they come, and memory holds one of them.
//! The same input gives the same items in the same order, each with its place ([`Item::seq`]).
//!
//! A line that is no job, or not UTF-8, or too long, is an [`Item`] with a [`BadItem`]; whether the batch goes on is not
//! decided here. The rules of templates are told in `template.rs`.

mod columns;
mod defaults;
mod faults;
mod lines;
mod lists;
mod numbers;
mod paths;
mod quote;
mod template;

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use columns::Separator;
pub use lists::{Lists, ListsError};
pub use numbers::{NumberRange, RangeError};
pub use template::{TemplateError, idle_place};

use super::{BadItem, Item, Name, Source};
use crate::message::{FailureKind, Job, peek_id};
use columns::{Columns, not_utf8};
use faults::{Hints, bad, bad_job, bad_line};
use lines::{Line, Lines};
use template::{Shape, Template};

/// Files of more bytes are not read twice to know how many items they have.
const COUNTED: u64 = 256 * 1024 * 1024;

/// What the items of a batch are made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// A job a line, JSON, from files; `-` is stdin. Empty lines are skipped.
    Jobs(Vec<PathBuf>),
    /// One command.
    One(Vec<String>),
    /// A command for each of these.
    Each(Items, Vec<String>),
}

/// What a command is run for each of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Items {
    /// The lines of a file, empty ones too, or what ends in NUL.
    Lines {
        /// The file; `-` is stdin.
        file: PathBuf,
        /// How each ends.
        end: LineEnd,
    },
    /// The rows of a table, whose first one names the columns.
    Rows {
        /// The file; `-` is stdin.
        file: PathBuf,
        /// What is between the columns.
        separator: Separator,
    },
    /// Numbers.
    Numbers(NumberRange),
    /// Combinations of words.
    Lists(Lists),
}

/// What is behind each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// A line feed; a carriage return is part of the line.
    Newline,
    /// NUL, as `find -print0` writes it, so that an item may have line feeds.
    Nul,
}

/// Why an input cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file cannot be opened, or the header of a table not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The command does not fit the items.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl InputError {
    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing_file(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// The items of a batch.
pub struct Input {
    given: u64,
    total: Option<u64>,
    common: Common,
    items: Kind,
}

/// What all jobs of a batch get that do not say it for themselves.
struct Common {
    job: Job,
    is_empty: bool,
    max_bytes: usize,
}

enum Kind {
    Jobs(Lines, Hints),
    One(Option<Vec<String>>),
    Each(Template, Records),
}

enum Records {
    Lines(Lines),
    Rows(Box<Columns>, usize),
    Numbers(NumberRange),
    Lists(Lists),
}

/// An item before it is put into the template.
struct Record {
    origin: String,
    fields: Result<Vec<String>, BadItem>,
}

impl Input {
    /// Opens what is asked for. `common` has the fields that all jobs get: those made from a command as they are, those of
    /// files only where a line leaves a field out ([`Job::fill`](Job)). No line may be longer than `max_bytes`.
    ///
    /// # Errors
    /// When a file cannot be opened, or the command has a place that the items have nothing for.
    pub async fn open(request: Request, common: Job, max_bytes: usize) -> Result<Self, InputError> {
        if let Request::Jobs(files) = &request {
            lines::check(files).await?; // or the jobs of the first would run before the second is missed
        }
        let total = total(&request, max_bytes).await?;
        let items = match request {
            Request::Jobs(files) => {
                let mut lines = Lines::new(files, b'\n', max_bytes);
                lines.open().await?;
                Kind::Jobs(lines, Hints::default())
            }
            Request::One(command) => Kind::One(Some(command)),
            Request::Each(items, command) => {
                let (records, shape) = items.open(max_bytes).await?;
                Kind::Each(Template::parse(&command, &shape)?, records)
            }
        };
        let is_empty = common == Job::default();
        Ok(Self {
            given: 0,
            total,
            common: Common {
                job: common,
                is_empty,
                max_bytes,
            },
            items,
        })
    }

    /// How many items there are, where that is known before they are read: of numbers and words, and of files (not pipes)
    /// that are not too large to be counted.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }
}

impl Source for Input {
    async fn next(&mut self) -> io::Result<Option<Item>> {
        let seq = self.given + 1;
        let item = match &mut self.items {
            Kind::Jobs(lines, hints) => next_job(lines).await?.map(|Line { origin, bytes }| Item {
                seq,
                name: Name {
                    title: origin.clone(),
                    origin,
                    fields: None,
                },
                job: self.common.complete(bytes, hints),
            }),
            Kind::One(command) => command.take().map(|command| Item {
                seq,
                name: Name {
                    origin: "command line".to_owned(),
                    title: quote::quote(&command),
                    fields: None,
                },
                job: self.common.job_of(command),
            }),
            Kind::Each(template, records) => records
                .next(self.given, self.common.max_bytes)
                .await?
                .map(|record| self.common.item(seq, template, record)),
        };
        self.given += u64::from(item.is_some());
        Ok(item)
    }
}

/// The next line that is not empty.
async fn next_job(lines: &mut Lines) -> io::Result<Option<Line>> {
    loop {
        let line = lines.next().await?;
        match &line {
            Some(Line { bytes, .. }) if bytes.iter().all(u8::is_ascii_whitespace) => {}
            _ => return Ok(line),
        }
    }
}

impl Common {
    /// The body of a job from a line: as it came, unless the common fields fill a gap.
    fn complete(&self, line: Vec<u8>, hints: &mut Hints) -> Result<Bytes, BadItem> {
        let completed = self.fill(&line).map_err(|mut error| {
            hints.add(&line, &mut error);
            BadItem {
                id: peek_id(&line),
                ..error
            }
        })?;
        Ok(completed.unwrap_or_else(|| line.into()))
    }

    /// The job with the common fields, if there are any.
    fn fill(&self, line: &[u8]) -> Result<Option<Bytes>, BadItem> {
        self.check_length(line)?;
        let mut job = Job::decode(line).map_err(bad_line)?;
        if self.is_empty {
            return Ok(None);
        }
        defaults::fill(&mut job, &self.job);
        job.check().map_err(bad_job)?;
        Ok(Some(job.encode()))
    }

    fn check_length(&self, line: &[u8]) -> Result<(), BadItem> {
        if line.len() <= self.max_bytes {
            return Ok(());
        }
        Err(BadItem {
            id: None,
            kind: FailureKind::TooLarge,
            field: Some("body".to_owned()),
            message: format!("body: expected at most {} bytes, got more", self.max_bytes),
        })
    }

    fn job_of(&self, command: Vec<String>) -> Result<Bytes, BadItem> {
        let mut job = self.job.clone();
        job.command = Some(command);
        job.check().map_err(bad_job)?;
        Ok(job.encode())
    }

    fn item(&self, seq: u64, template: &Template, Record { origin, fields }: Record) -> Item {
        let filled = fields.map(|fields| (template.fill(&fields, seq), fields.join(" ")));
        let (title, fields, job) = match filled {
            Ok((command, fields)) => (quote::quote(&command), Some(fields), self.job_of(command)),
            Err(error) => (origin.clone(), None, Err(error)),
        };
        let name = Name { origin, title, fields };
        Item { seq, name, job }
    }
}

impl Items {
    async fn open(self, max_bytes: usize) -> io::Result<(Records, Shape)> {
        Ok(match self {
            Self::Lines { file, end } => {
                let mut lines = Lines::new(vec![file], end.byte(), max_bytes);
                lines.open().await?;
                (Records::Lines(lines), Shape::Fields(1))
            }
            Self::Rows { file, separator } => {
                let mut columns = Columns::open(&file, separator, max_bytes).await?;
                let names = columns.header().await?;
                (Records::Rows(Box::new(columns), names.len()), Shape::Columns(names))
            }
            Self::Numbers(numbers) => (Records::Numbers(numbers), Shape::Fields(1)),
            Self::Lists(lists) => {
                let shape = Shape::Fields(lists.fields());
                (Records::Lists(lists), shape)
            }
        })
    }
}

impl LineEnd {
    const fn byte(self) -> u8 {
        match self {
            Self::Newline => b'\n',
            Self::Nul => 0,
        }
    }
}

impl Records {
    /// The next one, before which there were `given`.
    async fn next(&mut self, given: u64, max_bytes: usize) -> io::Result<Option<Record>> {
        let numbered = |fields| Record {
            origin: format!("item {}", given + 1),
            fields: Ok(fields),
        };
        Ok(match self {
            Self::Lines(lines) => lines.next().await?.map(|line| line.record(max_bytes)),
            Self::Rows(columns, width) => columns.next().await?.map(|row| row.record(*width)),
            Self::Numbers(numbers) => numbers.get(given).map(|number| numbered(vec![number])),
            Self::Lists(lists) => lists.get(given).map(numbered),
        })
    }
}

impl Line {
    fn record(self, max_bytes: usize) -> Record {
        let fields = if self.bytes.len() > max_bytes {
            Err(bad(format!(
                "expected a line of at most {max_bytes} bytes, got a longer one"
            )))
        } else {
            let text = String::from_utf8(self.bytes);
            text.map(|text| vec![text])
                .map_err(|error| bad(not_utf8("line", error.utf8_error())))
        };
        Record {
            origin: self.origin,
            fields,
        }
    }
}

impl columns::Row {
    fn record(self, width: usize) -> Record {
        let fields = match self.fields {
            Ok(fields) if fields.len() == width => Ok(fields),
            Ok(fields) => Err(bad(format!(
                "expected {width} columns, as the header has, got {}",
                fields.len()
            ))),
            Err(message) => Err(bad(message)),
        };
        Record {
            origin: self.origin,
            fields,
        }
    }
}

/// Counts the items, where that costs little and takes nothing away.
async fn total(request: &Request, max_bytes: usize) -> io::Result<Option<u64>> {
    let files: &[PathBuf] = match request {
        Request::One(_) => return Ok(Some(1)),
        Request::Each(Items::Numbers(numbers), _) => return Ok(Some(numbers.len())),
        Request::Each(Items::Lists(lists), _) => return Ok(Some(lists.len())),
        Request::Jobs(files) => files,
        Request::Each(Items::Lines { file, .. } | Items::Rows { file, .. }, _) => std::slice::from_ref(file),
    };
    if !are_countable(files).await {
        return Ok(None);
    }
    let mut count = 0;
    match request {
        Request::Each(items, _) => {
            let (mut records, _) = items.clone().open(max_bytes).await?;
            while records.next(count, max_bytes).await?.is_some() {
                count += 1;
            }
        }
        _ => {
            let mut lines = Lines::new(files.to_vec(), b'\n', max_bytes);
            while let Some(line) = lines.next().await? {
                count += u64::from(!line.bytes.iter().all(u8::is_ascii_whitespace));
            }
        }
    }
    Ok(Some(count))
}

async fn are_countable(files: &[PathBuf]) -> bool {
    let mut bytes = 0;
    for file in files {
        match regular_size(file).await {
            Some(size) => bytes += size,
            None => return false,
        }
    }
    bytes <= COUNTED
}

async fn regular_size(file: &Path) -> Option<u64> {
    let found = tokio::fs::metadata(file).await.ok()?;
    (!lines::is_stdin(file) && found.is_file()).then_some(found.len())
}

#[cfg(test)]
mod tests;
