//! `synthex man`: the help as manual pages, one a command.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::exit::{Exit, Failure};
use super::{Cli, print};

/// Print the manual page, or write those of all commands
///
/// To read it: synthex man | man -l -
#[derive(Args)]
pub(super) struct ManArgs {
    /// Write the pages of all commands into this directory, which is made if it is missing, and print their paths
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A manual page.
struct Page {
    /// `synthex-worker.1`
    file: String,
    text: Vec<u8>,
}

pub(super) async fn run(args: &ManArgs) -> Result<Exit, Failure> {
    let mut pages = pages().map_err(|error| Failure::io("write the manual", &error))?;
    let printed = match &args.dir {
        None => pages.swap_remove(0).text,
        Some(dir) => {
            let written = write(pages, dir).await;
            written.map_err(|error| Failure::io(&format!("write the manual to {}", dir.display()), &error))?
        }
    };
    print::data(&printed)
        .await
        .map_err(|error| Failure::io("write to stdout", &error))?;
    Ok(Exit::Done)
}

/// Writes pages as files, and returns their paths, one a line.
async fn write(pages: Vec<Page>, dir: &std::path::Path) -> io::Result<Vec<u8>> {
    tokio::fs::create_dir_all(dir).await?;
    let mut paths = String::new();
    for page in pages {
        let path = dir.join(page.file);
        tokio::fs::write(&path, page.text).await?;
        paths.push_str(&format!("{}\n", path.display()));
    }
    Ok(paths.into_bytes())
}

/// The pages of all commands, the program's own first.
fn pages() -> io::Result<Vec<Page>> {
    // `help` would have a page for each command once more.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut left = vec![&program];
    let mut pages = Vec::new();
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().filter(|command| !command.is_hide_set()));
        pages.push(page(command)?);
    }
    Ok(pages)
}

fn page(command: &Command) -> io::Result<Page> {
    let man = Man::new(command.clone())
        .source(concat!("Synthex ", env!("CARGO_PKG_VERSION")))
        .manual("Synthex manual");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    if let Some(notes) = command.get_after_long_help().or(command.get_after_help()) {
        as_it_stands(&notes.to_string()).to_writer(&mut text)?;
    }
    let file = man.get_filename();
    Ok(Page { file, text })
}

/// A section with its lines as they are: what follows the options in help is a table.
fn as_it_stands(notes: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["NOTES"]).control("nf", []);
    for line in notes.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}
