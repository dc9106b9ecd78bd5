//! Where the jobs of `run` and `batch` come from, by flags.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use futures_util::FutureExt;

use super::exit::{Exit, Failure};
use super::job_args::JobArgs;
use super::print;
use crate::batch::input::{Input, InputError, Items, LineEnd, Lists, NumberRange, Request, Separator, idle_place};
use crate::batch::{Item, Source};
use crate::message::Job;
use crate::message::nearest::nearest;

/// What is printed of a dry run at a time.
const DRY_RUN_BYTES: usize = 64 * 1024;

#[derive(Args)]
pub(super) struct InputArgs {
    /// Files of jobs, one JSON object a line (see `synthex schema job`); - for stdin
    ///
    /// The options for jobs below fill what a line leaves out.
    #[arg(value_name = "FILE", conflicts_with_all = ["command", "each", "range"], required_unless_present = "command")]
    files: Vec<PathBuf>,
    /// Run the command for each line of this file; - for stdin
    ///
    /// In the command, {} is the line, {.} without its extension, {/} the last part of a path, {//} its folder, {/.} the last
    /// part without its extension, {#} the number of the item: as in GNU parallel, but put into the arguments as it is,
    /// without a shell, so nothing needs quotes. A command without such a place gets the line as its last argument.
    ///
    /// A file whose name ends in .csv or .tsv is a table whose first line names the columns: {host} is the column host,
    /// {2} the second.
    #[arg(
        long,
        visible_short_alias = 'a', // with the hidden one, GNU parallel's
        alias = "arg-file",
        value_name = "FILE",
        conflicts_with = "range",
        requires = "command",
        help_heading = "Items"
    )]
    each: Option<PathBuf>,
    /// The file is a table with commas, whatever its name ends in
    #[arg(long, conflicts_with_all = ["tsv", "null"], help_heading = "Items")]
    csv: bool,
    /// The file is a table with tabs, without quotes, whatever its name ends in
    #[arg(long, conflicts_with = "null", help_heading = "Items")]
    tsv: bool,
    /// Items end in NUL and not with the line, as `find -print0` writes them
    #[arg(long, short = '0', help_heading = "Items")]
    null: bool,
    /// Run the command for each of these numbers; zeros before the first keep all as wide
    #[arg(
        long,
        alias = "array",
        value_name = "FROM-TO[:STEP]",
        requires = "command",
        help_heading = "Items"
    )]
    range: Option<NumberRange>,
    /// Print the jobs, one JSON object a line, and run none
    #[arg(long)]
    dry_run: bool,
    /// The command to run, with its arguments; after ::: the words to run it for
    ///
    /// Several lists, each after its own :::, are combined: {1} is the word from the first.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    #[command(flatten)]
    job: JobArgs,
}

/// The subcommand that takes the input, for what is said of input that is none.
pub(super) struct Caller {
    /// Its name.
    pub(super) name: &'static str,
    /// The names of its own subcommands: a slip in one looks like a file.
    pub(super) subcommands: Vec<String>,
}

/// What was asked for, opened.
pub(super) struct Opened {
    /// The jobs.
    pub(super) input: Input,
    /// Whether it is the one command that was given, and no list of items.
    pub(super) is_single: bool,
    /// Whether the jobs are to be printed and not run.
    pub(super) is_dry_run: bool,
}

impl InputArgs {
    /// Opens the input, of which no line may have more than `max_bytes`.
    pub(super) async fn open(self, caller: &Caller, max_bytes: usize) -> Result<Opened, Failure> {
        let is_dry_run = self.dry_run;
        let advice = self.advice(caller);
        let (request, common) = self.request()?;
        if let Request::One(command) = &request
            && let Some(place) = idle_place(command)
        {
            // No error: find -exec and xargs -I have such words of their own, and nothing else could be written for them.
            print::note(&format!(
                "{place} has no items here and is left as it is: --each - takes lines of stdin, ::: takes words"
            ));
        }
        let is_single = matches!(request, Request::One(_));
        let input = Input::open(request, common, max_bytes).await;
        let input = input.map_err(|error| match advice {
            Some(advice) if error.is_missing_file() => usage(&format!("{error}; {advice}")),
            _ => failure(error),
        })?;
        Ok(Opened {
            input,
            is_single,
            is_dry_run,
        })
    }

    /// What to try if there is no such file.
    fn advice(&self, caller: &Caller) -> Option<String> {
        if !self.command.is_empty() {
            return None;
        }
        let name = caller.name;
        let meant = nearest(
            self.files.first()?.to_str()?,
            caller.subcommands.iter().map(String::as_str),
        );
        Some(match meant {
            Some(meant) => format!("did you mean `synthex {name} {meant}`?"),
            None => format!("a command goes after --: synthex {name} -- CMD"),
        })
    }

    fn request(mut self) -> Result<(Request, Job), Failure> {
        let lists = self.lists()?;
        // clap lets it pass beside FILE, which excludes --each.
        if self.each.is_none() && (self.csv || self.tsv || self.null) {
            return Err(usage("--csv, --tsv and --null are about the file of --each"));
        }
        if self.job.takes_stdin() && self.reads_stdin() {
            return Err(usage("--stdin -: the items come from there"));
        }
        let items = match (self.each, self.range, lists) {
            (Some(file), ..) => Some(match separator(&file, self.csv, self.tsv) {
                Some(separator) if !self.null => Items::Rows { file, separator },
                _ if self.null => Items::Lines {
                    file,
                    end: LineEnd::Nul,
                },
                _ => Items::Lines {
                    file,
                    end: LineEnd::Newline,
                },
            }),
            (None, Some(numbers), _) => Some(Items::Numbers(numbers)),
            (None, None, lists) => lists.map(Items::Lists),
        };
        Ok(match items {
            Some(items) => (Request::Each(items, self.command), self.job.common()?),
            None if self.command.is_empty() => (Request::Jobs(self.files), self.job.common()?),
            None => {
                let mut job = self.job.job(self.command)?;
                (Request::One(job.command.take().unwrap_or_default()), job)
            }
        })
    }

    fn lists(&mut self) -> Result<Option<Lists>, Failure> {
        let lists = Lists::split_off(&mut self.command).map_err(|error| usage(&error.to_string()))?;
        let other = match (&self.each, &self.range) {
            (Some(_), _) => "--each",
            (_, Some(_)) => "--range",
            _ => return Ok(lists),
        };
        match lists {
            Some(_) => Err(usage(&format!(
                "{other} and ::: both give items: leave one of them out"
            ))),
            None => Ok(None),
        }
    }

    fn reads_stdin(&self) -> bool {
        self.files.iter().chain(&self.each).any(|file| file.as_os_str() == "-")
    }
}

fn separator(file: &Path, csv: bool, tsv: bool) -> Option<Separator> {
    let ends_in = |wanted: &str| file.extension().is_some_and(|end| end.eq_ignore_ascii_case(wanted));
    match (csv, tsv) {
        (true, _) => Some(Separator::Comma),
        (_, true) => Some(Separator::Tab),
        _ if ends_in("csv") => Some(Separator::Comma),
        _ if ends_in("tsv") => Some(Separator::Tab),
        _ => None,
    }
}

/// Prints the jobs of `source`, and tells of what is none.
pub(super) async fn dry_run(source: &mut impl Source) -> Result<Exit, Failure> {
    let mut lines = Vec::new();
    let mut exit = Exit::Done;
    loop {
        // What came is printed before more is waited for.
        let item = match source.next().now_or_never() {
            Some(item) if lines.len() < DRY_RUN_BYTES => item,
            ready => {
                write(&mut lines).await?;
                match ready {
                    Some(item) => item,
                    None => source.next().await,
                }
            }
        };
        match item.map_err(|error| failure(error.into()))? {
            Some(Item { job: Ok(job), .. }) => {
                lines.extend_from_slice(&job);
                lines.push(b'\n');
            }
            Some(Item {
                job: Err(error), name, ..
            }) => {
                exit = Exit::JobsFailed;
                print::note(&format!("{}: not a job: {error}", name.origin));
            }
            None => break,
        }
    }
    write(&mut lines).await?;
    Ok(exit)
}

async fn write(lines: &mut Vec<u8>) -> Result<(), Failure> {
    let written = print::data(&std::mem::take(lines)).await;
    written.map_err(|error| Failure::io("write to stdout", &error))
}

/// Why an input cannot be begun or read on.
pub(super) fn failure(error: InputError) -> Failure {
    match error {
        InputError::Io(error) => match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidData => usage(&error.to_string()),
            _ => Failure::new(Exit::Failure, error.to_string()),
        },
        InputError::Template(error) => usage(&error.to_string()),
    }
}

fn usage(message: &str) -> Failure {
    Failure::new(Exit::Usage, message)
}

#[cfg(test)]
mod tests;
